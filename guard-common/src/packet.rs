//! What parsing yields. Everything behind the parser works on these values and never on the bytes.

use crate::address::{Address, Family};

/// An IP packet, read up to its transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub family: Family,
    pub source: Address,
    pub destination: Address,
    pub transport: Transport,
}

/// What the transport header says, as far as a verdict depends on it; [`Transport::view`] shows it.
///
/// Every field always has a value. An enum's other variants have none, and where the compiler keeps
/// such a field on the stack unwritten, verifiers before Linux 6.3 refuse the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    kind: Kind,
    source_port: u16,
    destination_port: u16,
    number: u8,
    flag: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
    Sctp,
    Icmp,
    Igmp,
    Other,
    LaterFragment,
}

/// A [`Transport`], taken apart. Ports are in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Tcp {
        destination_port: u16,
        /// SYN without ACK, whatever the other flags: this segment asks for a connection.
        attempt: bool,
    },
    Udp {
        source_port: u16,
        destination_port: u16,
    },
    Sctp {
        destination_port: u16,
    },
    /// ICMP over IPv4, ICMPv6 over IPv6.
    Icmp {
        kind: u8,
        /// The hop limit is 255: no router has passed this packet on (RFC 4861, section 6.1).
        on_link: bool,
    },
    /// IGMP over IPv4.
    Igmp {
        /// The TTL is 1: no router passes this packet on.
        last_hop: bool,
    },
    /// Any other protocol, by its IANA number.
    Other {
        protocol: u8,
    },
    /// A fragment that is not the first.
    LaterFragment,
}

impl Transport {
    pub const LATER_FRAGMENT: Self = Self {
        kind: Kind::LaterFragment,
        source_port: 0,
        destination_port: 0,
        number: 0,
        flag: false,
    };

    #[inline(always)]
    pub const fn tcp(destination_port: u16, attempt: bool) -> Self {
        Self {
            kind: Kind::Tcp,
            destination_port,
            flag: attempt,
            ..Self::LATER_FRAGMENT
        }
    }

    #[inline(always)]
    pub const fn udp(source_port: u16, destination_port: u16) -> Self {
        Self {
            kind: Kind::Udp,
            source_port,
            destination_port,
            ..Self::LATER_FRAGMENT
        }
    }

    #[inline(always)]
    pub const fn sctp(destination_port: u16) -> Self {
        Self {
            kind: Kind::Sctp,
            destination_port,
            ..Self::LATER_FRAGMENT
        }
    }

    #[inline(always)]
    pub const fn icmp(kind: u8, on_link: bool) -> Self {
        Self {
            kind: Kind::Icmp,
            number: kind,
            flag: on_link,
            ..Self::LATER_FRAGMENT
        }
    }

    #[inline(always)]
    pub const fn igmp(last_hop: bool) -> Self {
        Self {
            kind: Kind::Igmp,
            flag: last_hop,
            ..Self::LATER_FRAGMENT
        }
    }

    #[inline(always)]
    pub const fn other(protocol: u8) -> Self {
        Self {
            kind: Kind::Other,
            number: protocol,
            ..Self::LATER_FRAGMENT
        }
    }

    #[inline(always)]
    pub const fn view(self) -> View {
        let Self {
            kind,
            source_port,
            destination_port,
            number,
            flag,
        } = self;
        match kind {
            Kind::Tcp => View::Tcp {
                destination_port,
                attempt: flag,
            },
            Kind::Udp => View::Udp {
                source_port,
                destination_port,
            },
            Kind::Sctp => View::Sctp { destination_port },
            Kind::Icmp => View::Icmp {
                kind: number,
                on_link: flag,
            },
            Kind::Igmp => View::Igmp { last_hop: flag },
            Kind::Other => View::Other { protocol: number },
            Kind::LaterFragment => View::LaterFragment,
        }
    }
}

/// ICMPv6 types of multicast listener discovery (RFC 2710, RFC 3810) and neighbour discovery
/// (RFC 4861).
const MULTICAST_LISTENER_QUERY: u8 = 130;
const MULTICAST_LISTENER_DONE: u8 = 132;
const ROUTER_SOLICITATION: u8 = 133;
const REDIRECT: u8 = 137;
const MULTICAST_LISTENER_REPORT_V2: u8 = 143;

/// The server's and the client's port of DHCP (RFC 2131) and DHCPv6 (RFC 8415).
const DHCP: (u16, u16) = (67, 68);
const DHCPV6: (u16, u16) = (547, 546);

/// 224.0.0.0/4 (RFC 5771).
const MULTICAST_V4: u64 = 0xe000_0000;
const MULTICAST_V4_MASK: u64 = 0xf000_0000;

/// fe80::/10 (RFC 4291, section 2.5.6).
const LINK_LOCAL: u64 = 0xfe80 << 48;
const LINK_LOCAL_MASK: u64 = 0xffc0 << 48;

impl Packet {
    /// Whether the host would lose its network without this packet: it is never dropped.
    ///
    /// Only what the host itself would take for such, and only as neighbours send it: neighbour
    /// discovery that crossed no router, MLD from a link-local or no address (RFC 3810, section 5),
    /// DHCPv6 from a link-local address, as the client's server or relay has on its link (RFC 8415,
    /// section 18.4), IGMP with a TTL of 1 to a group (RFC 3376, section 4). So nobody further away can
    /// dress a flood in these clothes. DHCP over IPv4 is apart: see [`Self::is_dhcp_reply`].
    #[inline(always)]
    pub const fn is_control(&self) -> bool {
        match self.transport.view() {
            View::Icmp { kind, on_link } => match (self.family, kind) {
                (Family::Ipv6, ROUTER_SOLICITATION..=REDIRECT) => on_link,
                (
                    Family::Ipv6,
                    MULTICAST_LISTENER_QUERY..=MULTICAST_LISTENER_DONE
                    | MULTICAST_LISTENER_REPORT_V2,
                ) => self.has_link_local_source() || self.has_no_source(),
                _ => false,
            },
            // To one address it could come from afar, with a TTL that is 1 by the time it is here.
            View::Igmp { last_hop } => {
                last_hop && self.destination.low & MULTICAST_V4_MASK == MULTICAST_V4
            }
            View::Udp {
                source_port,
                destination_port,
            } => {
                matches!(self.family, Family::Ipv6)
                    && source_port == DHCPV6.0
                    && destination_port == DHCPV6.1
                    && self.has_link_local_source()
            }
            _ => false,
        }
    }

    /// Whether this is what a DHCP server sends to a client over IPv4. A lease may be renewed with a
    /// server on any network (RFC 2131, section 4.4.5), so nothing in the packet tells it from what
    /// somebody far away sends with these ports: it is control only where the host itself has the port.
    #[inline(always)]
    pub const fn is_dhcp_reply(&self) -> bool {
        match (self.family, self.transport.view()) {
            (
                Family::Ipv4,
                View::Udp {
                    source_port,
                    destination_port,
                },
            ) => source_port == DHCP.0 && destination_port == DHCP.1,
            _ => false,
        }
    }

    /// Whether this is an ICMP error: it answers a packet that this host sent, and without it a
    /// connection over a narrower path hangs (RFC 1122, section 3.2.2; RFC 4890, section 4.3.1).
    #[inline(always)]
    pub const fn is_icmp_error(&self) -> bool {
        match self.transport.view() {
            View::Icmp { kind, .. } => match self.family {
                Family::Ipv4 => matches!(kind, 3 | 11 | 12),
                Family::Ipv6 => matches!(kind, 1..=4),
            },
            _ => false,
        }
    }

    #[inline(always)]
    const fn has_link_local_source(&self) -> bool {
        self.source.high & LINK_LOCAL_MASK == LINK_LOCAL
    }

    #[inline(always)]
    const fn has_no_source(&self) -> bool {
        let Address { high, low } = self.source;
        high == 0 && low == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANYWHERE: Address = Address {
        high: 0x2001_0db8_0000_0000,
        low: 1,
    };
    const NEIGHBOUR: Address = Address {
        high: LINK_LOCAL,
        low: 1,
    };

    fn icmpv6(kind: u8, on_link: bool, source: Address) -> Packet {
        Packet {
            family: Family::Ipv6,
            source,
            destination: ANYWHERE,
            transport: Transport::icmp(kind, on_link),
        }
    }

    fn udp(family: Family, source_port: u16, destination_port: u16) -> Packet {
        Packet {
            family,
            source: ANYWHERE,
            destination: ANYWHERE,
            transport: Transport::udp(source_port, destination_port),
        }
    }

    #[test]
    fn neighbour_discovery_is_control_unless_a_router_passed_it_on() {
        for kind in ROUTER_SOLICITATION..=REDIRECT {
            assert!(icmpv6(kind, true, ANYWHERE).is_control());
            assert!(!icmpv6(kind, false, ANYWHERE).is_control());
        }
        assert!(!icmpv6(128, true, NEIGHBOUR).is_control(), "echo request");
    }

    #[test]
    fn icmp_errors_are_known_by_their_family() {
        let mut packet = icmpv6(2, false, ANYWHERE);
        assert!(packet.is_icmp_error(), "packet too big");
        packet.family = Family::Ipv4;
        assert!(!packet.is_icmp_error());
        packet.transport = Transport::icmp(3, false);
        assert!(packet.is_icmp_error(), "destination unreachable");
        assert!(!icmpv6(128, false, ANYWHERE).is_icmp_error(), "echo");
    }

    #[test]
    fn listener_discovery_is_control_from_a_neighbour_only() {
        for kind in [130, 131, 132, 143] {
            assert!(icmpv6(kind, false, NEIGHBOUR).is_control());
            assert!(icmpv6(kind, false, Address::default()).is_control());
            assert!(!icmpv6(kind, false, ANYWHERE).is_control());
        }
    }

    #[test]
    fn igmp_is_control_on_its_link_alone() {
        let igmp = |destination, last_hop| Packet {
            family: Family::Ipv4,
            source: Address::from_ipv4(0xc633_6407),
            destination: Address::from_ipv4(destination),
            transport: Transport::igmp(last_hop),
        };
        for group in [0xe000_0001, 0xe000_0016, 0xefff_ffff] {
            assert!(igmp(group, true).is_control());
            assert!(!igmp(group, false).is_control());
        }
        for address in [0xcb00_710a, 0xdfff_ffff, 0xf000_0000, 0xffff_ffff] {
            assert!(!igmp(address, true).is_control());
        }
    }

    #[test]
    fn dhcp_replies_are_known_in_their_own_family() {
        assert!(udp(Family::Ipv4, 67, 68).is_dhcp_reply());
        assert!(!udp(Family::Ipv4, 68, 67).is_dhcp_reply(), "a request");
        assert!(!udp(Family::Ipv4, 547, 546).is_dhcp_reply());
        assert!(!udp(Family::Ipv6, 67, 68).is_dhcp_reply());
        let dhcpv6 = |source| Packet {
            source,
            ..udp(Family::Ipv6, 547, 546)
        };
        assert!(dhcpv6(NEIGHBOUR).is_control());
        for source in [ANYWHERE, Address::default()] {
            assert!(!dhcpv6(source).is_control());
        }
        for (family, source_port) in [(Family::Ipv6, 67), (Family::Ipv4, 67), (Family::Ipv4, 547)] {
            let packet = Packet {
                source: NEIGHBOUR,
                ..udp(family, source_port, source_port + 1)
            };
            assert!(!packet.is_control());
        }
    }
}
