//! The rules of exposure as pure functions: whether a packet may reach a port that no service opens to its source.

use crate::{
    packet::{PacketClass, Transport},
    reason::Reason,
};

/// The ports that the policy closes.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Only ports that containers publish.
    #[default]
    Containers = 0,
    /// Every port that no service lists.
    Host = 1,
}

impl Scope {
    /// The scope with this number. Any other number gives the narrower scope, [`Scope::Containers`].
    #[inline(always)]
    pub const fn from_raw(raw: u8) -> Self {
        match raw {
            1 => Self::Host,
            _ => Self::Containers,
        }
    }

    /// The name in policies and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Containers => "containers",
            Self::Host => "host",
        }
    }
}

/// The facts that the tables have about a packet's destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortFacts {
    /// A service lists it, but not for this source.
    pub listed: bool,
    /// A container publishes it.
    pub published: bool,
    /// It lies in `net.ipv4.ip_local_port_range`, so it may be the local end of a connection that
    /// this host opened.
    pub ephemeral: bool,
}

/// The decision of the rules of exposure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// Passes, if it is within the policy's `limits` for packets that reach no service.
    Pass(Reason),
    Closed(Reason),
    /// Closed, except for answers to a UDP flow that this host opened.
    ClosedUnlessReply(Reason),
}

/// The kind of a container network. It decides on packets sent straight to the network's addresses.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkKind {
    /// Packets from its containers are masqueraded, so no answer goes to the containers' own addresses: no packet
    /// passes.
    Masqueraded = 1,
    /// Its addresses are routed: answers to its containers' connections pass, connection requests do not.
    Routed = 2,
}

impl NetworkKind {
    /// The kind with this number. Any other number gives the milder kind, [`NetworkKind::Routed`].
    #[inline(always)]
    pub const fn from_raw(raw: u8) -> Self {
        match raw {
            1 => Self::Masqueraded,
            _ => Self::Routed,
        }
    }
}

/// Judges a packet sent straight to an address inside a container network.
#[inline(always)]
pub const fn judge_container_address(transport: Transport, kind: NetworkKind) -> Exposure {
    let closed = Reason::ContainerAddress;
    if matches!(kind, NetworkKind::Masqueraded) {
        return Exposure::Closed(closed);
    }
    if transport.may_belong_to_connection() {
        return Exposure::Pass(Reason::Established);
    }
    if transport.has(PacketClass::DATAGRAM) {
        return Exposure::ClosedUnlessReply(closed);
    }
    if transport.has(PacketClass::ECHO_REPLY.or(PacketClass::ICMP_ERROR)) {
        return Exposure::Pass(Reason::Reply);
    }
    Exposure::Closed(closed)
}

/// Judges a packet with a transport header that no service admits.
///
/// - At a closed published port outside the local port range, all TCP is dropped, so that a session that an intruder
///   already has ends too.
/// - Elsewhere a TCP segment that requests no connection may belong to a connection of this host, and passes. So does
///   an ICMP error.
/// - A TCP segment that can belong to no connection is dropped: the kernel's answer would reveal whether a process
///   listens (`nmap -sF`, `-sN` and `-sX`).
/// - A UDP packet that answers a flow of this host or of a container passes at any port: the port that masquerading
///   chose for a container's query may lie in a range that another container publishes.
#[inline(always)]
pub const fn judge(target: &PortFacts, transport: Transport, scope: Scope) -> Exposure {
    let PortFacts {
        listed,
        published,
        ephemeral,
    } = *target;
    if !listed && !published && matches!(scope, Scope::Containers) {
        return Exposure::Pass(Reason::NotGuarded);
    }
    let reason = if listed {
        Reason::SourceNotAllowed
    } else {
        Reason::ClosedPort
    };
    if (!published || ephemeral) && transport.may_belong_to_connection() {
        return Exposure::Pass(Reason::Established);
    }
    if transport.has(PacketClass::DATAGRAM) {
        return Exposure::ClosedUnlessReply(reason);
    }
    if transport.has(PacketClass::ICMP_ERROR) {
        return Exposure::Pass(Reason::Reply);
    }
    Exposure::Closed(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECTION_REQUEST: Transport = Transport::tcp(0, 0x02);
    const SEGMENT: Transport = Transport::tcp(0, 0x10);
    const STRAY: Transport = Transport::tcp(0, 0x01);
    const UDP: Transport = Transport::new(0, PacketClass::DATAGRAM);
    const UNREACHABLE: Transport = Transport::new(0, PacketClass::ICMP_ERROR);
    const UNKNOWN: PortFacts = PortFacts {
        listed: false,
        published: false,
        ephemeral: false,
    };
    const PUBLISHED: PortFacts = PortFacts {
        published: true,
        ..UNKNOWN
    };
    const EPHEMERAL: PortFacts = PortFacts {
        ephemeral: true,
        ..PUBLISHED
    };

    #[test]
    fn a_closed_published_port_drops_all_tcp_and_lets_only_udp_answers_pass() {
        for scope in [Scope::Containers, Scope::Host] {
            for transport in [CONNECTION_REQUEST, SEGMENT] {
                let closed = Exposure::Closed(Reason::ClosedPort);
                assert_eq!(judge(&PUBLISHED, transport, scope), closed);
            }
            let unless_reply = Exposure::ClosedUnlessReply(Reason::ClosedPort);
            assert_eq!(judge(&PUBLISHED, UDP, scope), unless_reply);
        }
    }

    #[test]
    fn inside_the_local_port_range_only_segments_of_connections_and_answers_pass() {
        for scope in [Scope::Containers, Scope::Host] {
            let closed = Exposure::Closed(Reason::ClosedPort);
            assert_eq!(judge(&EPHEMERAL, CONNECTION_REQUEST, scope), closed);
            assert_eq!(judge(&EPHEMERAL, STRAY, scope), closed);
            let unless_reply = Exposure::ClosedUnlessReply(Reason::ClosedPort);
            assert_eq!(judge(&EPHEMERAL, UDP, scope), unless_reply);
            let established = Exposure::Pass(Reason::Established);
            assert_eq!(judge(&EPHEMERAL, SEGMENT, scope), established);
        }
    }

    #[test]
    fn the_scope_decides_on_ports_that_are_neither_listed_nor_published() {
        let outside = Exposure::Pass(Reason::NotGuarded);
        for transport in [CONNECTION_REQUEST, SEGMENT, UDP] {
            assert_eq!(judge(&UNKNOWN, transport, Scope::Containers), outside);
        }
        let closed = Exposure::Closed(Reason::ClosedPort);
        assert_eq!(judge(&UNKNOWN, CONNECTION_REQUEST, Scope::Host), closed);
        assert_eq!(judge(&UNKNOWN, STRAY, Scope::Host), closed);
        let unless_reply = Exposure::ClosedUnlessReply(Reason::ClosedPort);
        assert_eq!(judge(&UNKNOWN, UDP, Scope::Host), unless_reply);
        let reply = Exposure::Pass(Reason::Reply);
        assert_eq!(judge(&UNKNOWN, UNREACHABLE, Scope::Host), reply);
        let established = Exposure::Pass(Reason::Established);
        assert_eq!(judge(&UNKNOWN, SEGMENT, Scope::Host), established);
    }

    #[test]
    fn a_listed_port_is_closed_to_sources_that_it_does_not_admit() {
        let listed = PortFacts {
            listed: true,
            ..PUBLISHED
        };
        for scope in [Scope::Containers, Scope::Host] {
            for transport in [CONNECTION_REQUEST, SEGMENT] {
                let closed = Exposure::Closed(Reason::SourceNotAllowed);
                assert_eq!(judge(&listed, transport, scope), closed);
            }
            let unless_reply = Exposure::ClosedUnlessReply(Reason::SourceNotAllowed);
            assert_eq!(judge(&listed, UDP, scope), unless_reply);
            let host_port = PortFacts {
                published: false,
                ..listed
            };
            let established = Exposure::Pass(Reason::Established);
            assert_eq!(judge(&host_port, SEGMENT, scope), established);
        }
    }

    #[test]
    fn a_masqueraded_network_gets_no_packet_and_a_routed_network_only_answers() {
        let closed = Exposure::Closed(Reason::ContainerAddress);
        for packet in [CONNECTION_REQUEST, SEGMENT, UDP, UNREACHABLE] {
            let exposure = judge_container_address(packet, NetworkKind::Masqueraded);
            assert_eq!(exposure, closed);
        }
        let routed = |packet| judge_container_address(packet, NetworkKind::Routed);
        assert_eq!(routed(CONNECTION_REQUEST), closed);
        assert_eq!(routed(STRAY), closed);
        assert_eq!(routed(SEGMENT), Exposure::Pass(Reason::Established));
        assert_eq!(routed(UNREACHABLE), Exposure::Pass(Reason::Reply));
        let unless_reply = Exposure::ClosedUnlessReply(Reason::ContainerAddress);
        assert_eq!(routed(UDP), unless_reply);
    }
}
