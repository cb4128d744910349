//! Parses a frame into a [`Packet`]. Every packet that the kernel would accept is parsed here or counted as malformed:
//! no packet may hide its port from guard and show it to the host.

use core::{
    mem::offset_of,
    ptr::{read_volatile, write_volatile},
};

use aya_ebpf::{
    helpers::bpf_xdp_get_buff_len,
    programs::{TcContext, XdpContext},
};
use guard_common::{
    address::Family,
    challenge::Endpoints,
    fragment::FragmentId,
    packet::{IpFields, IpHeader, Packet, WireIpHeader, protocol},
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    sctp::SctpHdr,
    tcp::TcpHdr,
    udp::UdpHdr,
    vlan::VlanHdr,
};

use crate::barrier::opaque;

/// The most VLAN tags that are parsed: 802.1ad around 802.1Q. The kernel accepts any number of priority tags, so a
/// frame with more is malformed.
const MAX_VLAN_TAGS: u32 = 2;

/// The most IPv6 extension headers that are parsed (RFC 8200, section 4.1, lists seven).
const MAX_EXTENSION_HEADERS: u32 = 8;

/// EtherTypes (IEEE 802), in network byte order.
mod ether_type {
    pub const IPV4: u16 = 0x0800u16.to_be();
    pub const IPV6: u16 = 0x86ddu16.to_be();
    pub const VLAN: u16 = 0x8100u16.to_be();
    pub const SERVICE_VLAN: u16 = 0x88a8u16.to_be();
}

/// The length of the header that ICMP and ICMPv6 share, in bytes. The kernel drops shorter messages.
const ICMP_HEADER_LENGTH: usize = 8;

/// The first byte of an IPv4 header without options: version 4, and a length of five words.
const IPV4_WITHOUT_OPTIONS: u8 = 0x45;

/// The fragment field of IPv4: "more fragments" and the offset (RFC 791).
const IPV4_MORE_FRAGMENTS: u16 = 0x2000;
const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;

/// The fragment field of IPv6: "more fragments" and the offset (RFC 8200, section 4.5).
const IPV6_MORE_FRAGMENTS: u16 = 0x0001;
const IPV6_FRAGMENT_OFFSET: u16 = 0xfff8;

/// The payload of the shortest Ethernet frame, in bytes (IEEE 802.3, section 3.2.7). A shorter payload is padded.
const SHORTEST_PAYLOAD: usize = 46;

/// The payload of the longest Ethernet frame that is no jumbo frame, in bytes (IEEE 802.3, section 3.2.7). The linear
/// part of a buffer holds that much, except where a driver splits headers from data. There, if a packet claims to end
/// with its headers, the bytes of later fragments are not counted.
const LONGEST_PAYLOAD: usize = 1500;

/// The offsets of TCP's data offset and of its flags.
const TCP_DATA_OFFSET: usize = 12;
const TCP_FLAGS: usize = 13;

/// Why a frame was not parsed up to its transport header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum NotParsed {
    NotIp,
    Malformed,
}

/// Consumes a parsed frame.
///
/// The compiler inlines it once for each kind of packet. If the parser returned a value instead, the code of all kinds
/// would merge and test the kind again: that costs 2 ns of 6 to 17 in every row with a bar (the table in `path.rs`).
pub trait Reader: Copy {
    type Output;

    /// `length`: of the frame, in bytes.
    fn ip(self, packet: &Packet<impl IpHeader>, length: u64) -> Self::Output;
    fn not_parsed(self, why: NotParsed, length: u64) -> Self::Output;
}

/// Consumes a packet that [`parse_plain`] has parsed.
pub trait PlainReader: Copy {
    type Output;

    /// `None`: [`parse`] must parse the frame too.
    fn plain(self, packet: &Packet<impl IpHeader>, length: u64) -> Option<Self::Output>;
}

/// The linear part of a frame, which has the headers. A jumbo frame has fragments behind it.
pub struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    #[inline(always)]
    pub fn of_skb(ctx: &TcContext) -> Self {
        Self {
            start: ctx.data(),
            end: ctx.data_end(),
        }
    }

    #[inline(always)]
    pub fn of_xdp(ctx: &XdpContext) -> Self {
        // SAFETY: the context is the one this program was called with. Volatile: the slow path loads both words again,
        // so that the fast path need not keep them.
        unsafe {
            Self {
                start: read_volatile(&raw const (*ctx.ctx).data) as usize,
                end: read_volatile(&raw const (*ctx.ctx).data_end) as usize,
            }
        }
    }

    /// The frame's length, if no data follows a packet of `length` bytes: the packet ends with the linear part, or the
    /// linear part pads it to Ethernet's shortest frame. A jumbo frame may continue behind a full linear part, whatever
    /// length the IP header states.
    #[inline(always)]
    fn length_with(&self, packet: Header, length: usize) -> Option<u64> {
        let rest = self.end - packet.0;
        let is_whole = length == rest && rest <= LONGEST_PAYLOAD;
        let is_padded = rest <= SHORTEST_PAYLOAD && length < rest;
        (is_whole || is_padded).then_some((self.end - self.start) as u64)
    }

    /// [`Self::length_with`] for the IP packet that the frame carries.
    #[inline(always)]
    fn plain_length(&self) -> Option<u64> {
        let LinkHeader { ether_type, end } = read_link(self).ok()?;
        match ether_type {
            ether_type::IPV4 => {
                let header = self.header::<Ipv4Hdr>(end)?;
                let length = usize::from(header.half(offset_of!(Ipv4Hdr, tot_len)));
                self.length_with(header, length)
            }
            ether_type::IPV6 => {
                let header = self.header::<Ipv6Hdr>(end)?;
                let payload = usize::from(header.half(offset_of!(Ipv6Hdr, payload_len)));
                self.length_with(header, Ipv6Hdr::LEN + payload)
            }
            _ => None,
        }
    }

    /// The header at `offset`, if all of it is there.
    #[inline(always)]
    pub fn header<T>(&self, offset: usize) -> Option<Header> {
        let start = self.start + offset;
        (start + size_of::<T>() <= self.end).then_some(Header(start))
    }
}

const _: () =
    assert!(size_of::<(EthHdr, Ipv4Hdr, TcpHdr)>() == EthHdr::LEN + Ipv4Hdr::LEN + TcpHdr::LEN);
const _: () =
    assert!(size_of::<(VlanHdr, Ipv4Hdr, TcpHdr)>() == VlanHdr::LEN + Ipv4Hdr::LEN + TcpHdr::LEN);

/// A header within checked bounds.
#[derive(Clone, Copy)]
pub struct Header(usize);

impl Header {
    /// Reads a field. The offset must lie in the type that [`Frame::header`] checked.
    #[inline(always)]
    fn read<T>(self, offset: usize) -> T {
        // SAFETY: the bounds were checked, and the verifier checks that they were. Loads need no alignment on this
        // machine, and the compiler does not split a volatile load into bytes.
        unsafe { read_volatile((self.0 + offset) as *const T) }
    }

    #[inline(always)]
    fn byte(self, offset: usize) -> u8 {
        self.read(offset)
    }

    #[inline(always)]
    fn half(self, offset: usize) -> u16 {
        u16::from_be(self.read(offset))
    }

    #[inline(always)]
    fn word(self, offset: usize) -> u32 {
        u32::from_be(self.read(offset))
    }

    /// Writes a field in network byte order. The offset must lie in the type that [`Frame::header`] checked.
    #[inline(always)]
    pub fn write<T>(self, offset: usize, value: T) {
        // SAFETY: as in `read`.
        unsafe { write_volatile((self.0 + offset) as *mut T, value) }
    }

    /// [`Self::read`] of bytes, as they are.
    #[inline(always)]
    pub fn bytes<const LENGTH: usize>(self, offset: usize) -> [u8; LENGTH] {
        self.read(offset)
    }
}

/// The fields of a TCP segment that its verdict does not depend on. A flood's answers need them.
pub struct Segment {
    pub endpoints: Endpoints,
    pub sequence: u32,
    pub acknowledgment: u32,
    /// The flags (RFC 9293, section 3.1).
    pub flags: u8,
    /// The offset of the IP header in the frame.
    pub link_end: usize,
    /// The offset of the segment's data in the frame.
    pub data: usize,
}

impl Segment {
    /// Reads the segment of a frame that [`parse`] has accepted. `None`: it has none, or one that cannot be read here.
    #[inline(always)]
    pub fn read(frame: &Frame) -> Option<Self> {
        let LinkHeader { ether_type, end } = read_link(frame).ok()?;
        let (ip, payload) = match ether_type {
            ether_type::IPV4 => {
                let header = frame.header::<Ipv4Hdr>(end)?;
                let units = usize::from(header.byte(offset_of!(Ipv4Hdr, vihl)) & 0x0f);
                let payload = Payload::at(header.byte(offset_of!(Ipv4Hdr, proto)), end + units * 4);
                (header.ipv4_header().read(), payload)
            }
            ether_type::IPV6 => {
                let header = frame.header::<Ipv6Hdr>(end)?;
                let mut ip = header.ipv6_header().read();
                let next = header.byte(offset_of!(Ipv6Hdr, next_hdr));
                let mut payload = Payload::at(next, end + Ipv6Hdr::LEN);
                match skip_extensions(frame, &mut ip, &mut payload).ok()? {
                    Behind::Transport => (ip, payload),
                    Behind::LaterFragment => return None,
                }
            }
            _ => return None,
        };
        if payload.protocol != protocol::TCP {
            return None;
        }
        let tcp = frame.header::<TcpHdr>(payload.offset)?;
        Some(Self {
            endpoints: Endpoints {
                family: ip.family,
                source: ip.source,
                destination: ip.destination,
                source_port: tcp.half(offset_of!(TcpHdr, source)),
                destination_port: tcp.half(offset_of!(TcpHdr, dest)),
            },
            sequence: tcp.word(offset_of!(TcpHdr, seq)),
            acknowledgment: tcp.word(offset_of!(TcpHdr, ack_seq)),
            flags: tcp.byte(TCP_FLAGS),
            link_end: end,
            data: payload.offset + usize::from(tcp.byte(TCP_DATA_OFFSET) >> 4) * 4,
        })
    }
}

/// The length of a frame in bytes, with all fragments of its buffer.
///
/// The helper is called only where data may follow the packet: with return thunks (retpolines), that call costs more
/// than all other steps of most packets.
#[inline(always)]
pub fn length_of(frame: &Frame, ctx: &XdpContext) -> u64 {
    match frame.plain_length() {
        Some(length) => length,
        // SAFETY: the context is the one this program was called with (Linux 5.18 and later).
        None => unsafe { bpf_xdp_get_buff_len(ctx.ctx) },
    }
}

/// Parses plain packets, the common case: TCP or UDP over IPv4 without options or IPv6 without extension headers, not
/// fragmented, with nothing behind the packet. `None`: the packet is not plain, and [`parse`] parses it.
///
/// This function rejects nothing itself, so that the rules for malformed packets are in one place.
#[inline(always)]
pub fn parse_plain<R: PlainReader>(frame: &Frame, reader: R) -> Option<R::Output> {
    let link = read_plain_link(frame)?;
    match link.ether_type {
        ether_type::IPV4 => {
            let header = Header(frame.start + link.end);
            if header.byte(offset_of!(Ipv4Hdr, vihl)) != IPV4_WITHOUT_OPTIONS
                || header.half(offset_of!(Ipv4Hdr, frags))
                    & (IPV4_MORE_FRAGMENTS | IPV4_FRAGMENT_OFFSET)
                    != 0
            {
                return None;
            }
            let total_length = usize::from(header.half(offset_of!(Ipv4Hdr, tot_len)));
            let length = frame.length_with(header, total_length)?;
            parse_plain_payload(
                Header(header.0 + Ipv4Hdr::LEN),
                (Ipv4Hdr::LEN, total_length),
                header.byte(offset_of!(Ipv4Hdr, proto)),
                &header.ipv4_header(),
                length,
                reader,
            )
        }
        ether_type::IPV6 => {
            let header = frame.header::<(Ipv6Hdr, TcpHdr)>(link.end)?;
            if header.byte(0) >> 4 != 6 {
                return None;
            }
            let payload = usize::from(header.half(offset_of!(Ipv6Hdr, payload_len)));
            let length = frame.length_with(header, Ipv6Hdr::LEN + payload)?;
            parse_plain_payload(
                Header(header.0 + Ipv6Hdr::LEN),
                (0, payload),
                header.byte(offset_of!(Ipv6Hdr, next_hdr)),
                &header.ipv6_header(),
                length,
                reader,
            )
        }
        _ => None,
    }
}

/// `header`: the transport header, with room for TCP's. `(before, payload)`: how many bytes precede it in the length
/// that the IP header states, and that length.
#[inline(always)]
fn parse_plain_payload<R: PlainReader>(
    header: Header,
    (before, payload): (usize, usize),
    protocol: u8,
    ip: &impl IpHeader,
    length: u64,
    reader: R,
) -> Option<R::Output> {
    // TCP comes first: it is the common case.
    if protocol == protocol::TCP {
        let tcp = Tcp::read(header);
        if !tcp.fits(before, payload) {
            return None;
        }
        return reader.plain(&tcp.packet(ip), length);
    }
    if opaque(protocol.into()) != protocol::UDP.into() {
        return None;
    }
    let udp = Udp::read(header);
    if !udp.fits(before, payload) {
        return None;
    }
    reader.plain(&udp.packet(ip), length)
}

/// A packet from the full parser.
type Any = Packet<IpFields>;

/// Parses any frame. `length`: of the whole frame, in bytes.
#[inline(always)]
pub fn parse<R: Reader>(frame: &Frame, length: u64, reader: R) -> R::Output {
    let packet = match read_link(frame) {
        Ok(LinkHeader { ether_type, end }) => match ether_type {
            ether_type::IPV4 => parse_ipv4(frame, length, end),
            ether_type::IPV6 => parse_ipv6(frame, length, end),
            tag if is_vlan(tag) => Err(NotParsed::Malformed),
            _ => Err(NotParsed::NotIp),
        },
        Err(why) => Err(why),
    };
    match packet {
        Ok(packet) => reader.ip(&packet, length),
        Err(why) => reader.not_parsed(why, length),
    }
}

/// The EtherType behind Ethernet's header and VLAN tags, and the offset at which they end.
struct LinkHeader {
    ether_type: u16,
    end: usize,
}

#[inline(always)]
fn read_link(frame: &Frame) -> Result<LinkHeader, NotParsed> {
    let ethernet = frame.header::<EthHdr>(0).ok_or(NotParsed::NotIp)?;
    let mut ether_type = ethernet.read(offset_of!(EthHdr, ether_type));
    let mut end = EthHdr::LEN;
    for _ in 0..MAX_VLAN_TAGS {
        if !is_vlan(ether_type) {
            break;
        }
        let tag = frame.header::<VlanHdr>(end).ok_or(NotParsed::Malformed)?;
        ether_type = tag.read(offset_of!(VlanHdr, ether_type));
        end += VlanHdr::LEN;
    }
    Ok(LinkHeader { ether_type, end })
}

/// [`read_link`] for a frame that is long enough for headers of IPv4 and TCP behind it: one bounds check covers all
/// three.
#[inline(always)]
fn read_plain_link(frame: &Frame) -> Option<LinkHeader> {
    let ethernet = frame.header::<(EthHdr, Ipv4Hdr, TcpHdr)>(0)?;
    // Each family has its own comparison, and the field is read again for the next. Otherwise the compiler would merge
    // the comparisons into one binary search.
    for family in [ether_type::IPV4, ether_type::IPV6] {
        let ether_type: u16 = ethernet.read(offset_of!(EthHdr, ether_type));
        if ether_type == family {
            return Some(LinkHeader {
                ether_type,
                end: EthHdr::LEN,
            });
        }
    }
    let mut ether_type: u16 = ethernet.read(offset_of!(EthHdr, ether_type));
    let mut end = EthHdr::LEN;
    for _ in 0..MAX_VLAN_TAGS {
        if !is_vlan(ether_type) {
            break;
        }
        let tag = frame.header::<(VlanHdr, Ipv4Hdr, TcpHdr)>(end)?;
        ether_type = tag.read(offset_of!(VlanHdr, ether_type));
        end += VlanHdr::LEN;
    }
    Some(LinkHeader { ether_type, end })
}

#[inline(always)]
fn is_vlan(ether_type: u16) -> bool {
    matches!(ether_type, ether_type::VLAN | ether_type::SERVICE_VLAN)
}

#[inline(always)]
fn parse_ipv4(frame: &Frame, length: u64, offset: usize) -> Result<Any, NotParsed> {
    let header = frame
        .header::<Ipv4Hdr>(offset)
        .ok_or(NotParsed::Malformed)?;
    let version_and_length = header.byte(offset_of!(Ipv4Hdr, vihl));
    let header_length = usize::from(version_and_length & 0x0f) * 4;
    let total_length = usize::from(header.half(offset_of!(Ipv4Hdr, tot_len)));
    if version_and_length >> 4 != 4
        || header_length < Ipv4Hdr::LEN
        || total_length < header_length
        || (offset + total_length) as u64 > length
    {
        return Err(NotParsed::Malformed);
    }
    let mut ip = header.ipv4_header().read();
    let protocol = header.byte(offset_of!(Ipv4Hdr, proto));
    let fragment = header.half(offset_of!(Ipv4Hdr, frags));
    if fragment & (IPV4_FRAGMENT_OFFSET | IPV4_MORE_FRAGMENTS) != 0 {
        let identification = header.half(offset_of!(Ipv4Hdr, id));
        ip.fragment = FragmentId::ipv4(identification, protocol);
    }
    if fragment & IPV4_FRAGMENT_OFFSET != 0 {
        return Ok(Packet::later_fragment(ip));
    }
    Payload {
        protocol,
        offset: offset + header_length,
        length: total_length - header_length,
        is_fragment: fragment & IPV4_MORE_FRAGMENTS != 0,
        hops: header.byte(offset_of!(Ipv4Hdr, ttl)),
    }
    .parse(frame, ip)
}

#[inline(always)]
fn parse_ipv6(frame: &Frame, length: u64, offset: usize) -> Result<Any, NotParsed> {
    let header = frame
        .header::<Ipv6Hdr>(offset)
        .ok_or(NotParsed::Malformed)?;
    let payload = Payload {
        protocol: header.byte(offset_of!(Ipv6Hdr, next_hdr)),
        offset: offset + Ipv6Hdr::LEN,
        length: usize::from(header.half(offset_of!(Ipv6Hdr, payload_len))),
        is_fragment: false,
        hops: header.byte(offset_of!(Ipv6Hdr, hop_limit)),
    };
    // A length of 0 stands for a jumbogram (RFC 2675), which no frame that XDP sees can hold; the
    // kernel reads such a packet up to the frame's end.
    let is_jumbogram = payload.length == 0 && payload.protocol == protocol::HOP_BY_HOP;
    if header.byte(0) >> 4 != 6 || is_jumbogram || (payload.offset + payload.length) as u64 > length
    {
        return Err(NotParsed::Malformed);
    }
    parse_ipv6_payload(frame, header.ipv6_header().read(), payload)
}

/// Both addresses, as they are in the header.
impl Header {
    #[inline(always)]
    fn ipv4_header(self) -> WireIpHeader {
        WireIpHeader::ipv4(self.read(offset_of!(Ipv4Hdr, src_addr)))
    }

    #[inline(always)]
    fn ipv6_header(self) -> WireIpHeader {
        let addresses = offset_of!(Ipv6Hdr, src_addr);
        WireIpHeader::ipv6([0, 8, 16, 24].map(|offset| self.read(addresses + offset)))
    }
}

/// Parses what follows an IPv6 header: extension headers (RFC 8200, section 4), and the transport header.
#[inline(always)]
fn parse_ipv6_payload(
    frame: &Frame,
    mut ip: IpFields,
    mut payload: Payload,
) -> Result<Any, NotParsed> {
    match skip_extensions(frame, &mut ip, &mut payload)? {
        Behind::Transport => payload.parse(frame, ip),
        Behind::LaterFragment => Ok(Packet::later_fragment(ip)),
    }
}

/// What follows a chain of extension headers.
enum Behind {
    Transport,
    LaterFragment,
}

/// Moves `payload` behind the extension headers.
#[inline(always)]
fn skip_extensions(
    frame: &Frame,
    ip: &mut IpFields,
    payload: &mut Payload,
) -> Result<Behind, NotParsed> {
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !is_extension(payload.protocol) {
            break;
        }
        // The shortest extension header has 8 bytes.
        let header = payload.header::<[u8; 8]>(frame)?;
        let units = usize::from(header.byte(1));
        let length = match payload.protocol {
            protocol::FRAGMENT => {
                let fragment = header.half(2);
                // Offset 0 without more fragments: the packet is whole and waits for no other fragment (RFC 6946).
                if fragment & (IPV6_FRAGMENT_OFFSET | IPV6_MORE_FRAGMENTS) != 0 {
                    ip.fragment = FragmentId::ipv6(header.word(4));
                }
                if fragment & IPV6_FRAGMENT_OFFSET != 0 {
                    return Ok(Behind::LaterFragment);
                }
                payload.is_fragment |= fragment & IPV6_MORE_FRAGMENTS != 0;
                8
            }
            protocol::AUTHENTICATION => (units + 2) * 4,
            _ => (units + 1) * 8,
        };
        payload.protocol = header.byte(0);
        payload.offset += length;
        payload.length = payload
            .length
            .checked_sub(length)
            .ok_or(NotParsed::Malformed)?;
    }
    if is_extension(payload.protocol) {
        return Err(NotParsed::Malformed);
    }
    Ok(Behind::Transport)
}

#[inline(always)]
fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION_OPTIONS
    )
}

/// The payload of an IP packet: a transport header at `offset`, and `length` bytes.
struct Payload {
    protocol: u8,
    offset: usize,
    length: usize,
    /// The packet is the first of several fragments.
    is_fragment: bool,
    /// How many routers may still forward it: IPv4's TTL, IPv6's hop limit.
    hops: u8,
}

impl Payload {
    /// A payload of unknown length.
    #[inline(always)]
    const fn at(protocol: u8, offset: usize) -> Self {
        Self {
            protocol,
            offset,
            length: usize::MAX,
            is_fragment: false,
            hops: 0,
        }
    }

    #[inline(always)]
    fn parse(&self, frame: &Frame, ip: IpFields) -> Result<Any, NotParsed> {
        match self.protocol {
            protocol::TCP => self.parse_tcp(frame, ip),
            protocol::UDP => self.parse_udp(frame, ip),
            protocol::SCTP => {
                let header = self.header::<SctpHdr>(frame)?;
                Ok(Packet::sctp(ip, header.half(offset_of!(SctpHdr, dst))))
            }
            protocol if protocol == own_icmp(ip.family()) => {
                let header = self.header::<[u8; ICMP_HEADER_LENGTH]>(frame)?;
                Ok(Packet::icmp(ip, header.byte(0), self.hops == 255))
            }
            protocol::IGMP if ip.family == Family::Ipv4 => Ok(Packet::igmp(ip, self.hops == 1)),
            protocol => Ok(Packet::other(ip, protocol)),
        }
    }

    /// The transport header, if it lies in the packet and not only in the frame.
    #[inline(always)]
    fn header<T>(&self, frame: &Frame) -> Result<Header, NotParsed> {
        if self.length < size_of::<T>() {
            return Err(NotParsed::Malformed);
        }
        frame.header::<T>(self.offset).ok_or(NotParsed::Malformed)
    }

    /// The largest length that a transport header may state, in bytes. For a first fragment, the rest is in later
    /// fragments: TCP's options may be there as well, its ports and flags never are.
    #[inline(always)]
    fn most(&self) -> usize {
        if self.is_fragment {
            usize::MAX
        } else {
            self.length
        }
    }

    #[inline(always)]
    fn parse_tcp(&self, frame: &Frame, ip: IpFields) -> Result<Any, NotParsed> {
        let tcp = Tcp::read(self.header::<TcpHdr>(frame)?);
        if !tcp.fits(0, self.most()) {
            return Err(NotParsed::Malformed);
        }
        Ok(tcp.packet(ip))
    }

    #[inline(always)]
    fn parse_udp(&self, frame: &Frame, ip: IpFields) -> Result<Any, NotParsed> {
        let udp = Udp::read(self.header::<UdpHdr>(frame)?);
        // Over IPv6 the kernel reads a length of 0 as "to the end of the packet".
        let to_the_end = udp.length == 0 && ip.family == Family::Ipv6;
        if !to_the_end && !udp.fits(0, self.most()) {
            return Err(NotParsed::Malformed);
        }
        Ok(udp.packet(ip))
    }
}

/// The parsed fields of a TCP header.
struct Tcp {
    destination_port: u16,
    /// In bytes.
    header_length: usize,
    flags: u8,
}

impl Tcp {
    #[inline(always)]
    fn read(header: Header) -> Self {
        Self {
            destination_port: header.half(offset_of!(TcpHdr, dest)),
            header_length: usize::from(header.byte(TCP_DATA_OFFSET) >> 4) * 4,
            flags: header.byte(TCP_FLAGS),
        }
    }

    /// Whether the header's length is valid, and the header with its options ends within `length` bytes if it begins at
    /// `before`.
    #[inline(always)]
    fn fits(&self, before: usize, length: usize) -> bool {
        self.header_length >= TcpHdr::LEN && before + self.header_length <= length
    }

    #[inline(always)]
    fn packet<E: IpHeader>(&self, ip: E) -> Packet<E> {
        Packet::tcp(ip, self.destination_port, self.flags)
    }
}

/// The parsed fields of a UDP header.
struct Udp {
    source_port: u16,
    destination_port: u16,
    /// The length that the header states, in bytes, with the header.
    length: usize,
}

impl Udp {
    #[inline(always)]
    fn read(header: Header) -> Self {
        Self {
            source_port: header.half(offset_of!(UdpHdr, src)),
            destination_port: header.half(offset_of!(UdpHdr, dst)),
            length: usize::from(header.half(offset_of!(UdpHdr, len))),
        }
    }

    /// Whether the stated length is valid, and the datagram ends within `length` bytes if it begins at `before`.
    #[inline(always)]
    fn fits(&self, before: usize, length: usize) -> bool {
        self.length >= UdpHdr::LEN && before + self.length <= length
    }

    #[inline(always)]
    fn packet<E: IpHeader>(&self, ip: E) -> Packet<E> {
        Packet::udp(ip, self.source_port, self.destination_port)
    }
}

/// The ICMP protocol number of a family. ICMPv6 over IPv4, and ICMP over IPv6, are protocols like any other.
#[inline(always)]
fn own_icmp(family: Family) -> u8 {
    match family {
        Family::Ipv4 => protocol::ICMP,
        Family::Ipv6 => protocol::ICMPV6,
    }
}
