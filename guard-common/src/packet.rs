//! The result of parsing. Every step after the parser reads these values, never the packet's bytes.

use core::ptr::read_volatile;

use crate::{
    address::{Address, Family},
    fragment::FragmentId,
    layout::{PORT_ENTRIES, PortProtocol, port_index, protocol_index},
    martian::fold,
};

/// An IP packet, parsed up to its transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<E> {
    pub ip: E,
    pub transport: Transport,
}

/// Everything a verdict depends on besides the addresses, in one word: the packet's index in the table of ports
/// ([`crate::layout::PORTS`]), its [`PacketClass`], and the source port of UDP or the flags of TCP.
///
/// One word stays in one register, and each test of it is one instruction. An enum would be matched again in every
/// later step, and verifiers before Linux 6.3 refuse the uninitialised fields of its other variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport(u64);

impl Transport {
    const PLACES: u64 = 1 << 18;
    const CLASS_SHIFT: u32 = 18;
    const SOURCE_SHIFT: u32 = 48;

    /// `place`: an index in [`crate::layout::PORTS`].
    #[inline(always)]
    pub const fn new(place: u32, class: PacketClass) -> Self {
        Self(place as u64 | (class.0 as u64) << Self::CLASS_SHIFT)
    }

    /// A TCP segment with these flags (RFC 9293, section 3.1).
    #[inline(always)]
    pub const fn tcp(destination_port: u16, flags: u8) -> Self {
        let class = if flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN {
            PacketClass::CONNECTION_REQUEST
        } else {
            PacketClass::SEGMENT
        };
        let place = port_index(PortProtocol::Tcp, destination_port);
        Self::new(place, class).with_source(flags as u16)
    }

    #[must_use]
    #[inline(always)]
    const fn with_source(self, source: u16) -> Self {
        Self(self.0 | (source as u64) << Self::SOURCE_SHIFT)
    }

    /// The index of the port or protocol in the array of ports.
    #[inline(always)]
    pub const fn place(self) -> u32 {
        (self.0 & (Self::PLACES - 1)) as u32
    }

    /// The destination port, if it has any.
    #[inline(always)]
    pub const fn destination_port(self) -> u16 {
        self.0 as u16
    }

    /// The source port of UDP.
    #[inline(always)]
    pub const fn source_port(self) -> u16 {
        (self.0 >> Self::SOURCE_SHIFT) as u16
    }

    /// Whether this is a TCP segment that opens no connection and that can belong to one. No connection has a segment
    /// without SYN, ACK and RST, or with SYN beside FIN or RST. The kernel's answer to such a segment would reveal
    /// whether a process listens (RFC 9293, section 3.10.7).
    #[inline(always)]
    pub const fn may_belong_to_connection(self) -> bool {
        use tcp_flags::{ACK, FIN, RST, SYN};
        let flags = (self.0 >> Self::SOURCE_SHIFT) as u8;
        let has_none = flags & (SYN | ACK | RST) == 0;
        let is_contradiction = flags & SYN != 0 && flags & (FIN | RST) != 0;
        self.has(PacketClass::SEGMENT) && !has_none && !is_contradiction
    }

    /// Whether it has any of these classes.
    #[inline(always)]
    pub const fn has(self, any: PacketClass) -> bool {
        self.0 & (any.0 as u64) << Self::CLASS_SHIFT != 0
    }
}

const _: () = assert!((PORT_ENTRIES as u64) <= Transport::PLACES);

/// The classes of packets that a verdict depends on: a set of bits, at most twelve (see [`Transport`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketClass(u16);

impl PacketClass {
    /// No class.
    pub const NONE: Self = Self(0);
    /// A TCP segment with SYN and without ACK, with any other flags: it requests a connection.
    pub const CONNECTION_REQUEST: Self = Self(1 << 0);
    /// Any other TCP segment.
    pub const SEGMENT: Self = Self(1 << 1);
    /// UDP.
    pub const DATAGRAM: Self = Self(1 << 2);
    /// An ICMP error: it answers a packet that this host sent, and without it a connection over a
    /// narrower path hangs (RFC 1122, section 3.2.2; RFC 4890, section 4.3.1).
    pub const ICMP_ERROR: Self = Self(1 << 3);
    /// The answer to a ping.
    pub const ECHO_REPLY: Self = Self(1 << 4);
    /// The host would lose its network without this packet. It passes before any list of sources, within a budget of
    /// its own ([`crate::layout::CONTROL_RATE`]).
    ///
    /// Only packets that the host itself would accept, in the form in which neighbours send them: neighbour discovery
    /// that crossed no router, MLD from a link-local or no address (RFC 3810, section 5), DHCPv6 from a link-local
    /// address, which the client's server or relay has on its link (RFC 8415, section 18.4), IGMP with a TTL of 1 to a
    /// group (RFC 3376, section 4). So a source behind a router cannot disguise a flood as control packets.
    pub const CONTROL: Self = Self(1 << 5);
    /// A packet from a DHCP server to a client over IPv4. A client may renew its lease with a server on any network
    /// (RFC 2131, section 4.4.5), so this class cannot exclude packets that remote sources send with these ports. The
    /// packet counts as control only if the host itself has the port, not a container.
    pub const DHCP_REPLY: Self = Self(1 << 6);
    /// A fragment that is not the first: it has no port.
    pub const LATER_FRAGMENT: Self = Self(1 << 7);

    /// The classes of both.
    #[must_use]
    #[inline(always)]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[inline(always)]
    const fn only_if(self, condition: bool) -> Self {
        if condition { self } else { Self::NONE }
    }
}

/// The fields of an IP header that a verdict depends on.
pub trait IpHeader {
    /// IPv4 or IPv6.
    fn family(&self) -> Family;
    /// The source address.
    fn source(&self) -> Address;
    /// The destination address.
    fn destination(&self) -> Address;

    /// The id of the datagram, if the packet is a fragment of it.
    fn fragment(&self) -> FragmentId;

    /// The source as [`crate::martian::own_bit`] takes it.
    fn source_bytes(&self) -> u64;

    /// 0: neither address is martian ([`crate::martian::is_martian`]). Other values: one may be. The test reads few
    /// bytes, so it also matches some other addresses. It has no branch: behind each branch the verifier would follow
    /// the rest of the program separately.
    fn martian_signs(&self) -> u64;

    /// The fields of an answer: source and destination are swapped.
    #[inline(always)]
    fn reversed(&self) -> IpFields {
        IpFields {
            family: self.family(),
            source: self.destination(),
            destination: self.source(),
            fragment: self.fragment(),
        }
    }

    /// Whether the source is link-local (fe80::/10).
    #[inline(always)]
    fn has_link_local_source(&self) -> bool {
        self.source().high & LINK_LOCAL_MASK == LINK_LOCAL
    }

    /// Whether the source is the unspecified address.
    #[inline(always)]
    fn has_no_source(&self) -> bool {
        self.source() == Address::default()
    }
}

impl<E: IpHeader> IpHeader for &E {
    #[inline(always)]
    fn family(&self) -> Family {
        (**self).family()
    }

    #[inline(always)]
    fn source(&self) -> Address {
        (**self).source()
    }

    #[inline(always)]
    fn destination(&self) -> Address {
        (**self).destination()
    }

    #[inline(always)]
    fn fragment(&self) -> FragmentId {
        (**self).fragment()
    }

    #[inline(always)]
    fn source_bytes(&self) -> u64 {
        (**self).source_bytes()
    }

    #[inline(always)]
    fn martian_signs(&self) -> u64 {
        (**self).martian_signs()
    }
}

/// An IP header whose fields are in registers, of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpFields {
    pub family: Family,
    pub source: Address,
    pub destination: Address,
    pub fragment: FragmentId,
}

impl IpHeader for IpFields {
    #[inline(always)]
    fn family(&self) -> Family {
        self.family
    }

    #[inline(always)]
    fn source(&self) -> Address {
        self.source
    }

    #[inline(always)]
    fn destination(&self) -> Address {
        self.destination
    }

    #[inline(always)]
    fn fragment(&self) -> FragmentId {
        self.fragment
    }

    #[inline(always)]
    fn source_bytes(&self) -> u64 {
        self.source.bytes(self.family)
    }

    #[inline(always)]
    fn martian_signs(&self) -> u64 {
        let words = |Address { high, low }: Address| [high.to_be(), low.to_be()];
        match self.family {
            Family::Ipv4 => {
                let addresses = self.source.low << 32 | self.destination.low;
                martian_signs_v4(addresses.to_be())
            }
            Family::Ipv6 => {
                let [[source, _], [destination, _]] = [self.source, self.destination].map(words);
                martian_signs_v6(source, destination)
            }
        }
    }
}

/// Non-zero if an address may be martian: a first byte of 127, or a source whose first byte is 0 or 224 to 255.
/// `addresses`: as in [`WireIpHeader::ipv4`].
#[inline(always)]
const fn martian_signs_v4(addresses: u64) -> u64 {
    const FIRST_BYTES: u64 = 0x0000_0001_0000_0001;
    // A byte is 0 if its highest bit is clear, and set after subtracting 1.
    let other_than_127 = addresses ^ (127 * FIRST_BYTES);
    let is_127 = other_than_127.wrapping_sub(FIRST_BYTES) & !other_than_127 & (128 * FIRST_BYTES);
    // The source's first byte less 1: 255, or 223 to 254. Adding 33 carries into the next bit.
    let is_beyond = ((addresses.wrapping_sub(1) & 0xff) + (256 - 223)) & 256;
    is_127 | is_beyond
}

/// Non-zero if an address may be martian: its first word is 0, or the source begins with ff. Both are the first words
/// of the addresses, in network byte order.
#[inline(always)]
const fn martian_signs_v6(source: u64, destination: u64) -> u64 {
    const fn is_zero(word: u64) -> u64 {
        word.wrapping_sub(1) & !word & 1 << 63
    }
    is_zero(source) | is_zero(destination) | ((source & 0xff) + 1) & 256
}

/// An IP header whose addresses are in network byte order. They are converted where they are used.
///
/// The kernel program keeps these words in memory. In registers an address would be converted at once and kept through
/// every step that may use it. A packet to a closed port, which uses no address, would run that code for nothing. The
/// compiler must know the family: otherwise the verifier refuses the words that are uninitialised for the other family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireIpHeader {
    family: Family,
    /// The source and the destination, in network byte order: of IPv4 in one word, of IPv6 in two each.
    words: [u64; 4],
}

impl WireIpHeader {
    /// `addresses`: the last 8 bytes of a header without options (RFC 791).
    #[inline(always)]
    pub const fn ipv4(addresses: u64) -> Self {
        Self {
            family: Family::Ipv4,
            words: [addresses, 0, 0, 0],
        }
    }

    /// `addresses`: the last 32 bytes of the header (RFC 8200, section 3).
    #[inline(always)]
    pub const fn ipv6(addresses: [u64; 4]) -> Self {
        Self {
            family: Family::Ipv6,
            words: addresses,
        }
    }

    /// The fields of the header, as those of a packet that is no fragment. The parser sets the id of a fragment.
    #[inline(always)]
    pub fn read(&self) -> IpFields {
        IpFields {
            family: self.family(),
            source: self.source(),
            destination: self.destination(),
            fragment: FragmentId::NONE,
        }
    }

    #[inline(always)]
    fn ipv6_address(&self, first: usize) -> Address {
        Address {
            high: u64::from_be(self.word(first)),
            low: u64::from_be(self.word(first + 1)),
        }
    }

    #[inline(always)]
    fn word(&self, index: usize) -> u64 {
        // SAFETY: the pointer comes from a reference.
        unsafe { read_volatile(&raw const self.words[index]) }
    }
}

impl IpHeader for WireIpHeader {
    #[inline(always)]
    fn family(&self) -> Family {
        self.family
    }

    #[inline(always)]
    fn source(&self) -> Address {
        match self.family {
            Family::Ipv4 => {
                let [a, b, c, d, ..] = self.word(0).to_ne_bytes();
                Address::from_ipv4(u32::from_be_bytes([a, b, c, d]))
            }
            Family::Ipv6 => self.ipv6_address(0),
        }
    }

    #[inline(always)]
    fn destination(&self) -> Address {
        match self.family {
            Family::Ipv4 => {
                let [.., a, b, c, d] = self.word(0).to_ne_bytes();
                Address::from_ipv4(u32::from_be_bytes([a, b, c, d]))
            }
            Family::Ipv6 => self.ipv6_address(2),
        }
    }

    /// The fast path makes it of packets that are no fragments.
    #[inline(always)]
    fn fragment(&self) -> FragmentId {
        FragmentId::NONE
    }

    #[inline(always)]
    fn source_bytes(&self) -> u64 {
        match self.family {
            Family::Ipv4 => u64::from(self.word(0) as u32),
            Family::Ipv6 => fold(self.word(0), self.word(1)),
        }
    }

    #[inline(always)]
    fn martian_signs(&self) -> u64 {
        match self.family {
            Family::Ipv4 => martian_signs_v4(self.word(0)),
            Family::Ipv6 => martian_signs_v6(self.word(0), self.word(2)),
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

/// Echo replies of ICMP and ICMPv6 (RFC 792, RFC 4443).
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REPLY_V6: u8 = 129;

/// The server's and the client's port of DHCP (RFC 2131) and DHCPv6 (RFC 8415).
pub const DHCP: (u16, u16) = (67, 68);
const DHCPV6: (u16, u16) = (547, 546);

/// 224.0.0.0/4 (RFC 5771).
const MULTICAST_V4: u64 = 0xe000_0000;
const MULTICAST_V4_MASK: u64 = 0xf000_0000;

/// fe80::/10 (RFC 4291, section 2.5.6).
const LINK_LOCAL: u64 = 0xfe80 << 48;
const LINK_LOCAL_MASK: u64 = 0xffc0 << 48;

/// Protocol numbers (IANA), shared by IPv4's protocol and IPv6's next header.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IGMP.
    pub const IGMP: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// The IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// The IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// The IPsec authentication header.
    pub const AUTHENTICATION: u8 = 51;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// TCP's flags (RFC 9293, section 3.1).
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 1 << 0;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 1 << 1;
    /// Reset the connection.
    pub const RST: u8 = 1 << 2;
    /// The acknowledgment field is significant.
    pub const ACK: u8 = 1 << 4;
}

impl<E: IpHeader> Packet<E> {
    #[inline(always)]
    fn new(ip: E, place: u32, class: PacketClass) -> Self {
        Self {
            ip,
            transport: Transport::new(place, class),
        }
    }

    /// A TCP segment with these flags (RFC 9293, section 3.1).
    #[inline(always)]
    pub fn tcp(ip: E, destination_port: u16, flags: u8) -> Self {
        let transport = Transport::tcp(destination_port, flags);
        Self { ip, transport }
    }

    /// A UDP datagram.
    #[inline(always)]
    pub fn udp(ip: E, source_port: u16, destination_port: u16) -> Self {
        let control = match ip.family() {
            Family::Ipv4 => {
                PacketClass::DHCP_REPLY.only_if(source_port == DHCP.0 && destination_port == DHCP.1)
            }
            Family::Ipv6 => PacketClass::CONTROL.only_if(
                source_port == DHCPV6.0
                    && destination_port == DHCPV6.1
                    && ip.has_link_local_source(),
            ),
        };
        let place = port_index(PortProtocol::Udp, destination_port);
        let packet = Self::new(ip, place, PacketClass::DATAGRAM.or(control));
        Self {
            transport: packet.transport.with_source(source_port),
            ..packet
        }
    }

    /// An SCTP packet.
    #[inline(always)]
    pub fn sctp(ip: E, destination_port: u16) -> Self {
        let place = port_index(PortProtocol::Sctp, destination_port);
        Self::new(ip, place, PacketClass::NONE)
    }

    /// ICMP over IPv4, ICMPv6 over IPv6. `on_link`: the hop limit is 255, so no router has forwarded this packet (RFC
    /// 4861, section 6.1).
    #[inline(always)]
    pub fn icmp(ip: E, kind: u8, on_link: bool) -> Self {
        let (protocol, class) = match ip.family() {
            Family::Ipv4 => (
                protocol::ICMP,
                match kind {
                    3 | 11 | 12 => PacketClass::ICMP_ERROR,
                    ECHO_REPLY_V4 => PacketClass::ECHO_REPLY,
                    _ => PacketClass::NONE,
                },
            ),
            Family::Ipv6 => (
                protocol::ICMPV6,
                match kind {
                    1..=4 => PacketClass::ICMP_ERROR,
                    ECHO_REPLY_V6 => PacketClass::ECHO_REPLY,
                    ROUTER_SOLICITATION..=REDIRECT => PacketClass::CONTROL.only_if(on_link),
                    MULTICAST_LISTENER_QUERY..=MULTICAST_LISTENER_DONE
                    | MULTICAST_LISTENER_REPORT_V2 => PacketClass::CONTROL
                        .only_if(ip.has_link_local_source() || ip.has_no_source()),
                    _ => PacketClass::NONE,
                },
            ),
        };
        Self::new(ip, protocol_index(protocol), class)
    }

    /// IGMP over IPv4. `last_hop`: the TTL is 1, so no router forwards this packet.
    #[inline(always)]
    pub fn igmp(ip: E, last_hop: bool) -> Self {
        // A packet to a unicast address may come from far away, with a TTL that has fallen to 1 on its way.
        let to_group = ip.destination().low & MULTICAST_V4_MASK == MULTICAST_V4;
        Self::new(
            ip,
            protocol_index(protocol::IGMP),
            PacketClass::CONTROL.only_if(last_hop && to_group),
        )
    }

    /// Any other protocol, by its IANA number.
    #[inline(always)]
    pub fn other(ip: E, protocol: u8) -> Self {
        Self::new(ip, protocol_index(protocol), PacketClass::NONE)
    }

    /// A fragment that is not the first. It has no port.
    #[inline(always)]
    pub fn later_fragment(ip: E) -> Self {
        let place = protocol_index(protocol::FRAGMENT);
        Self::new(ip, place, PacketClass::LATER_FRAGMENT)
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

    fn ip(family: Family, source: Address) -> IpFields {
        IpFields {
            family,
            source,
            destination: ANYWHERE,
            fragment: FragmentId::NONE,
        }
    }

    #[test]
    fn source_and_destination_are_read_from_their_words() {
        let [source, destination] = [0xc633_6407_u32, 0xcb00_710a];
        let ipv4 = WireIpHeader::ipv4((u64::from(source) << 32 | u64::from(destination)).to_be());
        assert_eq!(ipv4.source(), Address::from_ipv4(source));
        assert_eq!(ipv4.destination(), Address::from_ipv4(destination));
        let words = [NEIGHBOUR.high, NEIGHBOUR.low, ANYWHERE.high, ANYWHERE.low];
        let ipv6 = WireIpHeader::ipv6(words.map(u64::to_be));
        assert_eq!((ipv6.source(), ipv6.destination()), (NEIGHBOUR, ANYWHERE));
        for ip in [ipv4, ipv6] {
            let answer = ip.reversed();
            assert_eq!(answer.family, ip.family());
            assert_eq!(answer.source, ip.destination());
            assert_eq!(answer.destination, ip.source());
        }
    }

    fn is_control(packet: Packet<IpFields>) -> bool {
        packet.transport.has(PacketClass::CONTROL)
    }

    fn icmpv6(kind: u8, on_link: bool, source: Address) -> bool {
        is_control(Packet::icmp(ip(Family::Ipv6, source), kind, on_link))
    }

    #[test]
    fn neighbour_discovery_is_control_unless_a_router_forwarded_it() {
        for kind in ROUTER_SOLICITATION..=REDIRECT {
            assert!(icmpv6(kind, true, ANYWHERE));
            assert!(!icmpv6(kind, false, ANYWHERE));
        }
        assert!(!icmpv6(128, true, NEIGHBOUR), "echo request");
    }

    #[test]
    fn the_types_of_icmp_errors_and_echo_replies_depend_on_the_family() {
        let icmp = |family, kind| {
            let Transport(word) = Packet::icmp(ip(family, ANYWHERE), kind, false).transport;
            PacketClass((word >> Transport::CLASS_SHIFT) as u16)
        };
        assert_eq!(
            icmp(Family::Ipv6, 2),
            PacketClass::ICMP_ERROR,
            "packet too big"
        );
        assert_eq!(icmp(Family::Ipv4, 2), PacketClass::NONE);
        assert_eq!(
            icmp(Family::Ipv4, 3),
            PacketClass::ICMP_ERROR,
            "destination unreachable"
        );
        assert_eq!(icmp(Family::Ipv6, 128), PacketClass::NONE, "echo request");
        for (family, answer, other) in [(Family::Ipv4, 0, 129), (Family::Ipv6, 129, 0)] {
            assert_eq!(icmp(family, answer), PacketClass::ECHO_REPLY);
            assert_eq!(icmp(family, other), PacketClass::NONE);
        }
    }

    #[test]
    fn listener_discovery_is_control_from_a_neighbour_only() {
        for kind in [130, 131, 132, 143] {
            assert!(icmpv6(kind, false, NEIGHBOUR));
            assert!(icmpv6(kind, false, Address::default()));
            assert!(!icmpv6(kind, false, ANYWHERE));
        }
    }

    #[test]
    fn igmp_is_control_on_its_link_alone() {
        let igmp = |destination, last_hop| {
            let ip = IpFields {
                family: Family::Ipv4,
                source: Address::from_ipv4(0xc633_6407),
                destination: Address::from_ipv4(destination),
                fragment: FragmentId::NONE,
            };
            is_control(Packet::igmp(ip, last_hop))
        };
        for group in [0xe000_0001, 0xe000_0016, 0xefff_ffff] {
            assert!(igmp(group, true));
            assert!(!igmp(group, false));
        }
        for address in [0xcb00_710a, 0xdfff_ffff, 0xf000_0000, 0xffff_ffff] {
            assert!(!igmp(address, true));
        }
    }

    #[test]
    fn the_ports_of_dhcp_replies_depend_on_the_family() {
        let udp = |family, source, source_port, destination_port| {
            Packet::udp(ip(family, source), source_port, destination_port).transport
        };
        let is_reply = |family, source_port, destination_port| {
            udp(family, ANYWHERE, source_port, destination_port).has(PacketClass::DHCP_REPLY)
        };
        assert!(is_reply(Family::Ipv4, 67, 68));
        assert!(!is_reply(Family::Ipv4, 68, 67), "a request");
        assert!(!is_reply(Family::Ipv4, 547, 546));
        assert!(!is_reply(Family::Ipv6, 67, 68));
        let dhcpv6 = |source| udp(Family::Ipv6, source, 547, 546).has(PacketClass::CONTROL);
        assert!(dhcpv6(NEIGHBOUR));
        for source in [ANYWHERE, Address::default()] {
            assert!(!dhcpv6(source));
        }
        for (family, source_port) in [(Family::Ipv6, 67), (Family::Ipv4, 67), (Family::Ipv4, 547)] {
            let class = udp(family, NEIGHBOUR, source_port, source_port + 1);
            assert!(!class.has(PacketClass::CONTROL));
        }
    }

    #[test]
    fn flags_separate_connection_requests_segments_of_connections_and_strays() {
        let (fin, syn, rst, psh, ack) = (0x01, 0x02, 0x04, 0x08, 0x10);
        let of = |flags: u8| {
            let transport = Packet::tcp(ip(Family::Ipv4, ANYWHERE), 1, flags).transport;
            (
                transport.has(PacketClass::CONNECTION_REQUEST),
                transport.may_belong_to_connection(),
            )
        };
        // URG, ECE and CWR change nothing.
        for others in [0, 0x20, 0x40, 0x80, 0xe0] {
            for attempt in [syn, syn | psh, syn | fin, syn | rst, syn | rst | fin] {
                assert_eq!(of(attempt | others), (true, false), "{attempt:#x}");
            }
            let later = [
                ack,
                syn | ack,
                fin | ack,
                rst,
                rst | ack,
                psh | ack,
                rst | fin,
            ];
            for segment in later {
                assert_eq!(of(segment | others), (false, true), "{segment:#x}");
            }
            for stray in [0, fin, psh, fin | psh, syn | ack | fin, syn | ack | rst] {
                assert_eq!(of(stray | others), (false, false), "{stray:#x}");
            }
        }
    }

    #[test]
    fn every_protocol_has_a_place_of_its_own() {
        let ip = ip(Family::Ipv4, ANYWHERE);
        let places = [
            Packet::tcp(ip, 8000, 0x02).transport.place(),
            Packet::udp(ip, 1, 8000).transport.place(),
            Packet::sctp(ip, 8000).transport.place(),
            Packet::icmp(ip, 8, false).transport.place(),
            Packet::igmp(ip, false).transport.place(),
            Packet::other(ip, 47).transport.place(),
            Packet::later_fragment(ip).transport.place(),
        ];
        for (n, place) in places.iter().enumerate() {
            assert!(!places[..n].contains(place));
        }
        assert_eq!(Packet::tcp(ip, 8000, 0x10).transport.place(), places[0]);
        let udp = Packet::udp(ip, u16::MAX, 8000).transport;
        assert_eq!(
            (udp.source_port(), udp.destination_port()),
            (u16::MAX, 8000)
        );
        assert!(udp.has(PacketClass::DATAGRAM) && !udp.has(PacketClass::SEGMENT));
    }
}
