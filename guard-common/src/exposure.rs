//! Whether a source may reach what it asks for: the rules of exposure as one pure function.

use crate::{
    packet::{Packet, View},
    reason::Reason,
};

/// What the guard closes.
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
    /// The scope with this number; what is none is the narrower.
    #[inline(always)]
    pub const fn from_raw(raw: u8) -> Self {
        match raw {
            1 => Self::Host,
            _ => Self::Containers,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Containers => "containers",
            Self::Host => "host",
        }
    }
}

/// What the tables know of the place a packet is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// A service lists it.
    pub listed: bool,
    /// That service allows this source.
    pub admitted: bool,
    /// A container publishes it.
    pub published: bool,
    /// It lies in `net.ipv4.ip_local_port_range`, so it may be the local end of a connection that
    /// this host opened.
    pub ephemeral: bool,
}

/// What exposure says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// A service is open to this source; its budgets come next.
    Open,
    /// No service is concerned.
    Pass(Reason),
    Closed(Reason),
    /// Closed, except to what answers a UDP flow that this host opened.
    ClosedUnlessReply(Reason),
}

/// How a container network is closed to packets sent straight to its addresses.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkKind {
    /// What its containers send is masqueraded, so no answer comes to their own addresses: nothing
    /// gets in.
    Masqueraded = 1,
    /// Its addresses are routed: answers to its containers' connections get in, attempts do not.
    Routed = 2,
}

impl NetworkKind {
    /// The kind with this number; what is none is the milder.
    #[inline(always)]
    pub const fn from_raw(raw: u8) -> Self {
        match raw {
            1 => Self::Masqueraded,
            _ => Self::Routed,
        }
    }
}

/// ICMPv6's and ICMP's answer to a ping.
const ECHO_REPLY_V6: u8 = 129;
const ECHO_REPLY_V4: u8 = 0;

/// Decides on a packet sent straight to an address inside a container network.
#[inline(always)]
pub const fn judge_container_address(packet: &Packet, kind: NetworkKind) -> Exposure {
    let closed = Reason::ContainerAddress;
    match (kind, packet.transport.view()) {
        (NetworkKind::Masqueraded, _) => Exposure::Closed(closed),
        (NetworkKind::Routed, View::Tcp { attempt: false, .. }) => {
            Exposure::Pass(Reason::Established)
        }
        (NetworkKind::Routed, View::Udp { .. }) => Exposure::ClosedUnlessReply(closed),
        (
            NetworkKind::Routed,
            View::Icmp {
                kind: ECHO_REPLY_V4 | ECHO_REPLY_V6,
                ..
            },
        ) => Exposure::Pass(Reason::Reply),
        (NetworkKind::Routed, _) if packet.is_icmp_error() => Exposure::Pass(Reason::Reply),
        (NetworkKind::Routed, _) => Exposure::Closed(closed),
    }
}

/// Decides on a packet that has a transport header.
///
/// A closed published port outside the local port range gets nothing at all, so that a session that
/// an intruder already holds dies too. Elsewhere a TCP segment that opens nothing may belong to a
/// connection of this host, and passes; so does an ICMP error, and a UDP packet that answers a flow of
/// this host.
#[inline(always)]
pub const fn judge(target: &Target, packet: &Packet, scope: Scope) -> Exposure {
    let Target {
        listed,
        admitted,
        published,
        ephemeral,
    } = *target;
    if listed && admitted {
        return Exposure::Open;
    }
    if !listed && !published && matches!(scope, Scope::Containers) {
        return Exposure::Pass(Reason::NotGuarded);
    }
    let reason = if listed {
        Reason::SourceNotAllowed
    } else {
        Reason::ClosedPort
    };
    match packet.transport.view() {
        View::Tcp { attempt: false, .. } if !published || ephemeral => {
            Exposure::Pass(Reason::Established)
        }
        View::Udp { .. } if !published => Exposure::ClosedUnlessReply(reason),
        View::Icmp { .. } if packet.is_icmp_error() => Exposure::Pass(Reason::Reply),
        _ => Exposure::Closed(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{Address, Family};
    use crate::packet::Transport;

    const fn packet(transport: Transport) -> Packet {
        let nowhere = Address { high: 0, low: 0 };
        Packet {
            family: Family::Ipv4,
            source: nowhere,
            destination: nowhere,
            transport,
        }
    }

    const ATTEMPT: Packet = packet(Transport::tcp(8000, true));
    const SEGMENT: Packet = packet(Transport::tcp(8000, false));
    const UDP: Packet = packet(Transport::udp(1, 8000));
    const UNREACHABLE: Packet = packet(Transport::icmp(3, false));
    const UNKNOWN: Target = Target {
        listed: false,
        admitted: false,
        published: false,
        ephemeral: false,
    };
    const PUBLISHED: Target = Target {
        published: true,
        ..UNKNOWN
    };
    const EPHEMERAL: Target = Target {
        ephemeral: true,
        ..PUBLISHED
    };

    #[test]
    fn a_closed_published_port_gets_nothing_at_all() {
        for scope in [Scope::Containers, Scope::Host] {
            for transport in [ATTEMPT, SEGMENT, UDP] {
                let closed = Exposure::Closed(Reason::ClosedPort);
                assert_eq!(judge(&PUBLISHED, &transport, scope), closed);
            }
        }
    }

    #[test]
    fn inside_the_local_port_range_only_attempts_and_udp_are_dropped() {
        for scope in [Scope::Containers, Scope::Host] {
            let closed = Exposure::Closed(Reason::ClosedPort);
            assert_eq!(judge(&EPHEMERAL, &ATTEMPT, scope), closed);
            assert_eq!(judge(&EPHEMERAL, &UDP, scope), closed);
            let established = Exposure::Pass(Reason::Established);
            assert_eq!(judge(&EPHEMERAL, &SEGMENT, scope), established);
        }
    }

    #[test]
    fn the_scope_decides_on_ports_nobody_speaks_of() {
        let outside = Exposure::Pass(Reason::NotGuarded);
        for transport in [ATTEMPT, SEGMENT, UDP] {
            assert_eq!(judge(&UNKNOWN, &transport, Scope::Containers), outside);
        }
        let closed = Exposure::Closed(Reason::ClosedPort);
        assert_eq!(judge(&UNKNOWN, &ATTEMPT, Scope::Host), closed);
        let unless_reply = Exposure::ClosedUnlessReply(Reason::ClosedPort);
        assert_eq!(judge(&UNKNOWN, &UDP, Scope::Host), unless_reply);
        let reply = Exposure::Pass(Reason::Reply);
        assert_eq!(judge(&UNKNOWN, &UNREACHABLE, Scope::Host), reply);
        let established = Exposure::Pass(Reason::Established);
        assert_eq!(judge(&UNKNOWN, &SEGMENT, Scope::Host), established);
    }

    #[test]
    fn a_listed_port_is_open_to_its_sources_and_closed_to_others() {
        let listed = Target {
            listed: true,
            ..PUBLISHED
        };
        let admitted = Target {
            admitted: true,
            ..listed
        };
        for scope in [Scope::Containers, Scope::Host] {
            for transport in [ATTEMPT, SEGMENT, UDP] {
                assert_eq!(judge(&admitted, &transport, scope), Exposure::Open);
                let closed = Exposure::Closed(Reason::SourceNotAllowed);
                assert_eq!(judge(&listed, &transport, scope), closed);
            }
            let host_port = Target {
                published: false,
                ..listed
            };
            let established = Exposure::Pass(Reason::Established);
            assert_eq!(judge(&host_port, &SEGMENT, scope), established);
        }
    }

    #[test]
    fn a_masqueraded_network_gets_nothing_and_a_routed_one_only_answers() {
        let closed = Exposure::Closed(Reason::ContainerAddress);
        for packet in [&ATTEMPT, &SEGMENT, &UDP, &UNREACHABLE] {
            let exposure = judge_container_address(packet, NetworkKind::Masqueraded);
            assert_eq!(exposure, closed);
        }
        let routed = |packet| judge_container_address(packet, NetworkKind::Routed);
        assert_eq!(routed(&ATTEMPT), closed);
        assert_eq!(routed(&SEGMENT), Exposure::Pass(Reason::Established));
        assert_eq!(routed(&UNREACHABLE), Exposure::Pass(Reason::Reply));
        let unless_reply = Exposure::ClosedUnlessReply(Reason::ContainerAddress);
        assert_eq!(routed(&UDP), unless_reply);
    }
}
