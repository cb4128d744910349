//! From bytes to a [`Packet`]. What the kernel behind us would accept is understood here or called
//! malformed: a packet must not hide its port from the guard and show it to the host.

use core::{mem::offset_of, ptr::read_volatile};

use aya_ebpf::{
    bindings::xdp_md,
    helpers::bpf_xdp_get_buff_len,
    programs::{TcContext, XdpContext},
};
use guard_common::{
    address::{Address, Family},
    packet::{Packet, Transport},
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    sctp::SctpHdr,
    tcp::TcpHdr,
    udp::UdpHdr,
    vlan::VlanHdr,
};

/// Tags that are read through: 802.1ad around 802.1Q. The kernel reads any number of priority tags,
/// so more than these is malformed.
const MAX_VLAN_TAGS: u32 = 2;

/// IPv6 extension headers that are read through (RFC 8200, section 4.1, lists seven at most).
const MAX_EXTENSION_HEADERS: u32 = 8;

/// EtherTypes (IEEE 802), in host byte order.
mod ether_type {
    pub const IPV4: u16 = 0x0800;
    pub const IPV6: u16 = 0x86dd;
    pub const VLAN: u16 = 0x8100;
    pub const SERVICE_VLAN: u16 = 0x88a8;
}

/// Protocol numbers (IANA), shared by IPv4's protocol and IPv6's next header.
pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const IGMP: u8 = 2;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION_OPTIONS: u8 = 60;
    pub const SCTP: u8 = 132;
}

/// The header that ICMP and ICMPv6 share: the host reads no message that is shorter.
const ICMP_HEADER_LENGTH: usize = 8;

/// The fragment field of IPv4: "more fragments" and the offset (RFC 791).
const IPV4_MORE_FRAGMENTS: u16 = 0x2000;
const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;

/// The fragment field of IPv6: "more fragments" and the offset (RFC 8200, section 4.5).
const IPV6_MORE_FRAGMENTS: u16 = 0x0001;
const IPV6_FRAGMENT_OFFSET: u16 = 0xfff8;

/// What Ethernet's shortest frame carries, in bytes (IEEE 802.3, section 3.2.7): less is padded.
const SHORTEST_PAYLOAD: usize = 46;

/// Where TCP's data offset and flags are, as one 16-bit word.
const TCP_FLAGS: usize = 12;
const TCP_SYN: u16 = 0x0002;
const TCP_ACK: u16 = 0x0010;

pub enum Parsed {
    /// With the frame's length in bytes.
    Ip(Packet, u64),
    NotIp,
    Malformed,
}

/// IP that cannot be read up to its transport header.
struct Malformed;

/// The bytes of a frame. Headers are read from its linear part; a jumbo frame has more behind it.
pub struct Frame {
    start: usize,
    end: usize,
    /// What it was made from, to be asked how long it is.
    buffer: Buffer,
}

#[derive(Clone, Copy)]
enum Buffer {
    Xdp(*mut xdp_md),
    /// Its length is known.
    Skb(u64),
}

impl Frame {
    #[inline(always)]
    pub fn of_skb(ctx: &TcContext) -> Self {
        Self {
            start: ctx.data(),
            end: ctx.data_end(),
            buffer: Buffer::Skb(u64::from(ctx.len())),
        }
    }

    #[inline(always)]
    pub fn of_xdp(ctx: &XdpContext) -> Self {
        Self {
            start: ctx.data(),
            end: ctx.data_end(),
            buffer: Buffer::Xdp(ctx.ctx),
        }
    }

    /// The length in bytes, with all fragments of the buffer.
    #[inline(always)]
    pub fn length(&self) -> u64 {
        match self.buffer {
            // SAFETY: the context is the one this program was called with (Linux 5.18 and later).
            Buffer::Xdp(ctx) => unsafe { bpf_xdp_get_buff_len(ctx) },
            Buffer::Skb(length) => length,
        }
    }

    /// The length of a frame with a packet of so many bytes at `packet`; `None`: it is shorter than that.
    ///
    /// A packet that ends with the linear part, or is padded to Ethernet's shortest frame there, has nothing
    /// behind it. To ask the kernel would be a call, and where it guards its returns that costs more
    /// than all of parsing.
    #[inline(always)]
    fn length_with(&self, packet: usize, length: usize) -> Option<u64> {
        let packet_end = packet + length;
        let linear = self.end - self.start;
        let shortest = packet + SHORTEST_PAYLOAD;
        if let Buffer::Xdp(_) = self.buffer
            && (packet_end == linear || packet_end < linear && linear <= shortest)
        {
            return Some(linear as u64);
        }
        let length = self.length();
        (packet_end as u64 <= length).then_some(length)
    }

    /// The header at `offset`, if all of it is there.
    #[inline(always)]
    fn header<T>(&self, offset: usize) -> Option<Header> {
        let start = self.start + offset;
        (start + size_of::<T>() <= self.end).then_some(Header(start))
    }
}

/// The place of a header whose bounds have been checked.
#[derive(Clone, Copy)]
struct Header(usize);

impl Header {
    /// Reads a field. The offset must lie in the type that [`Frame::header`] checked.
    #[inline(always)]
    fn read<T>(self, offset: usize) -> T {
        // SAFETY: the bounds were checked, and the verifier checks that they were. A load of this
        // machine needs no alignment, and a volatile one is not split into bytes.
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

    #[inline(always)]
    fn ipv6_address(self, offset: usize) -> Address {
        Address {
            high: u64::from_be(self.read(offset)),
            low: u64::from_be(self.read(offset + 8)),
        }
    }
}

#[inline(always)]
pub fn parse(frame: &Frame) -> Parsed {
    let Some(ethernet) = frame.header::<EthHdr>(0) else {
        return Parsed::NotIp;
    };
    let mut ether_type = ethernet.half(offset_of!(EthHdr, ether_type));
    let mut offset = EthHdr::LEN;
    for _ in 0..MAX_VLAN_TAGS {
        if !is_vlan(ether_type) {
            break;
        }
        let Some(tag) = frame.header::<VlanHdr>(offset) else {
            return Parsed::Malformed;
        };
        ether_type = tag.half(offset_of!(VlanHdr, ether_type));
        offset += VlanHdr::LEN;
    }
    let packet = match ether_type {
        ether_type::IPV4 => parse_ipv4(frame, offset),
        ether_type::IPV6 => parse_ipv6(frame, offset),
        tag if is_vlan(tag) => Err(Malformed),
        _ => return Parsed::NotIp,
    };
    match packet {
        Ok((packet, length)) => Parsed::Ip(packet, length),
        Err(Malformed) => Parsed::Malformed,
    }
}

#[inline(always)]
fn is_vlan(ether_type: u16) -> bool {
    matches!(ether_type, ether_type::VLAN | ether_type::SERVICE_VLAN)
}

#[inline(always)]
fn parse_ipv4(frame: &Frame, offset: usize) -> Result<(Packet, u64), Malformed> {
    let header = frame.header::<Ipv4Hdr>(offset).ok_or(Malformed)?;
    let version_and_length = header.byte(offset_of!(Ipv4Hdr, vihl));
    let header_length = usize::from(version_and_length & 0x0f) * 4;
    let total_length = usize::from(header.half(offset_of!(Ipv4Hdr, tot_len)));
    if version_and_length >> 4 != 4 || header_length < Ipv4Hdr::LEN || total_length < header_length
    {
        return Err(Malformed);
    }
    let length = frame.length_with(offset, total_length).ok_or(Malformed)?;
    let fragment = header.half(offset_of!(Ipv4Hdr, frags));
    let transport = if fragment & IPV4_FRAGMENT_OFFSET == 0 {
        Payload {
            protocol: header.byte(offset_of!(Ipv4Hdr, proto)),
            offset: offset + header_length,
            length: total_length - header_length,
            is_fragment: fragment & IPV4_MORE_FRAGMENTS != 0,
            family: Family::Ipv4,
            hops: header.byte(offset_of!(Ipv4Hdr, ttl)),
        }
        .parse(frame)?
    } else {
        Transport::LATER_FRAGMENT
    };
    let packet = Packet {
        family: Family::Ipv4,
        source: Address::from_ipv4(header.word(offset_of!(Ipv4Hdr, src_addr))),
        destination: Address::from_ipv4(header.word(offset_of!(Ipv4Hdr, dst_addr))),
        transport,
    };
    Ok((packet, length))
}

#[inline(always)]
fn parse_ipv6(frame: &Frame, offset: usize) -> Result<(Packet, u64), Malformed> {
    let header = frame.header::<Ipv6Hdr>(offset).ok_or(Malformed)?;
    if header.byte(0) >> 4 != 6 {
        return Err(Malformed);
    }
    let length = usize::from(header.half(offset_of!(Ipv6Hdr, payload_len)));
    let payload = Payload {
        protocol: header.byte(offset_of!(Ipv6Hdr, next_hdr)),
        offset: offset + Ipv6Hdr::LEN,
        length,
        is_fragment: false,
        family: Family::Ipv6,
        hops: header.byte(offset_of!(Ipv6Hdr, hop_limit)),
    };
    // A length of 0 stands for a jumbogram (RFC 2675), which no frame that XDP sees can hold; the
    // kernel reads such a packet up to the frame's end.
    let is_jumbogram = length == 0 && payload.protocol == protocol::HOP_BY_HOP;
    if is_jumbogram {
        return Err(Malformed);
    }
    let frame_length = frame
        .length_with(offset, Ipv6Hdr::LEN + length)
        .ok_or(Malformed)?;
    let packet = Packet {
        family: Family::Ipv6,
        source: header.ipv6_address(offset_of!(Ipv6Hdr, src_addr)),
        destination: header.ipv6_address(offset_of!(Ipv6Hdr, dst_addr)),
        transport: parse_ipv6_payload(frame, payload)?,
    };
    Ok((packet, frame_length))
}

/// Follows the chain of extension headers (RFC 8200, section 4) to the transport header.
#[inline(always)]
fn parse_ipv6_payload(frame: &Frame, mut payload: Payload) -> Result<Transport, Malformed> {
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
                if fragment & IPV6_FRAGMENT_OFFSET != 0 {
                    return Ok(Transport::LATER_FRAGMENT);
                }
                payload.is_fragment |= fragment & IPV6_MORE_FRAGMENTS != 0;
                8
            }
            protocol::AUTHENTICATION => (units + 2) * 4,
            _ => (units + 1) * 8,
        };
        payload.protocol = header.byte(0);
        payload.offset += length;
        payload.length = payload.length.checked_sub(length).ok_or(Malformed)?;
    }
    if is_extension(payload.protocol) {
        return Err(Malformed);
    }
    payload.parse(frame)
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

/// What IP carries: a transport header at `offset`, in `length` bytes.
struct Payload {
    protocol: u8,
    offset: usize,
    length: usize,
    /// It is the first fragment of more.
    is_fragment: bool,
    family: Family,
    /// How many routers may still pass it on: IPv4's TTL, IPv6's hop limit.
    hops: u8,
}

impl Payload {
    #[inline(always)]
    fn parse(&self, frame: &Frame) -> Result<Transport, Malformed> {
        match self.protocol {
            protocol::TCP => self.parse_tcp(frame),
            protocol::UDP => self.parse_udp(frame),
            protocol::SCTP => {
                let header = self.header::<SctpHdr>(frame)?;
                Ok(Transport::sctp(header.half(offset_of!(SctpHdr, dst))))
            }
            protocol if protocol == self.own_icmp() => {
                let header = self.header::<[u8; ICMP_HEADER_LENGTH]>(frame)?;
                Ok(Transport::icmp(header.byte(0), self.hops == 255))
            }
            protocol::IGMP if self.family == Family::Ipv4 => Ok(Transport::igmp(self.hops == 1)),
            protocol => Ok(Transport::other(protocol)),
        }
    }

    /// The other family's ICMP is a protocol like any other.
    #[inline(always)]
    fn own_icmp(&self) -> u8 {
        match self.family {
            Family::Ipv4 => protocol::ICMP,
            Family::Ipv6 => protocol::ICMPV6,
        }
    }

    /// The transport header, if it lies in the packet and not only in the frame.
    #[inline(always)]
    fn header<T>(&self, frame: &Frame) -> Result<Header, Malformed> {
        if self.length < size_of::<T>() {
            return Err(Malformed);
        }
        frame.header::<T>(self.offset).ok_or(Malformed)
    }

    #[inline(always)]
    fn parse_tcp(&self, frame: &Frame) -> Result<Transport, Malformed> {
        let header = self.header::<TcpHdr>(frame)?;
        let flags = header.half(TCP_FLAGS);
        let header_length = usize::from(flags >> 12) * 4;
        // The options may lie in a later fragment; ports and flags never do.
        let fits = self.is_fragment || header_length <= self.length;
        if header_length < TcpHdr::LEN || !fits {
            return Err(Malformed);
        }
        Ok(Transport::tcp(
            header.half(offset_of!(TcpHdr, dest)),
            flags & (TCP_SYN | TCP_ACK) == TCP_SYN,
        ))
    }

    #[inline(always)]
    fn parse_udp(&self, frame: &Frame) -> Result<Transport, Malformed> {
        let header = self.header::<UdpHdr>(frame)?;
        let length = usize::from(header.half(offset_of!(UdpHdr, len)));
        // Over IPv6 the kernel takes 0 for "to the end of the packet".
        let to_the_end = length == 0 && self.family == Family::Ipv6;
        let fits = self.is_fragment || length <= self.length;
        if (length < UdpHdr::LEN && !to_the_end) || !fits {
            return Err(Malformed);
        }
        Ok(Transport::udp(
            header.half(offset_of!(UdpHdr, src)),
            header.half(offset_of!(UdpHdr, dst)),
        ))
    }
}
