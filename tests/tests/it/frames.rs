//! Builds frames as they come over a wire, and modifies them.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{
    EtherType, IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, PacketBuilder,
    TcpHeader, VlanId,
};

pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
pub const OTHER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
pub const HOST_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 7);
pub const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 9);
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10);

const ETHERNET: usize = 14;
const IPV4: usize = 20;

/// Offsets in a frame without tags and options.
pub const IPV4_AT: usize = ETHERNET;
pub const IPV6_AT: usize = ETHERNET;
pub const IPV4_PAYLOAD_AT: usize = ETHERNET + IPV4;

/// Bits of TCP's flags.
pub mod flags {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
    pub const ECE: u8 = 0x40;
    pub const CWR: u8 = 0x80;
}

/// Protocol numbers (IANA).
pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION_OPTIONS: u8 = 60;
    pub const SCTP: u8 = 132;
}

fn ethernet(ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    frame.extend(ether_type.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 packet from a source to the host, with this payload.
pub fn ipv4(source: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = Ipv4Header::new(
        payload.len() as u16,
        64,
        IpNumber(protocol),
        source.octets(),
        HOST_V4.octets(),
    )
    .unwrap();
    header.header_checksum = header.calc_header_checksum();
    let mut bytes = Vec::new();
    header.write(&mut bytes).unwrap();
    bytes.extend(payload);
    ethernet(EtherType::IPV4.0, &bytes)
}

/// An IPv6 packet whose next header is `protocol`.
pub fn ipv6(source: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let header = Ipv6Header {
        payload_length: payload.len() as u16,
        next_header: IpNumber(protocol),
        hop_limit: 64,
        source: source.octets(),
        destination: HOST_V6.octets(),
        ..Ipv6Header::default()
    };
    let mut bytes = Vec::new();
    header.write(&mut bytes).unwrap();
    bytes.extend(payload);
    ethernet(EtherType::IPV6.0, &bytes)
}

/// A TCP header with these flags and some data.
pub fn tcp(port: u16, flags: u8, data: &[u8]) -> Vec<u8> {
    let header = TcpHeader::new(40_000, port, 1, 64_240);
    let mut bytes = header.to_bytes().to_vec();
    bytes[13] = flags;
    bytes.extend(data);
    bytes
}

/// A UDP header with a true length and some data.
pub fn udp(source_port: u16, port: u16, data: &[u8]) -> Vec<u8> {
    let length = 8 + data.len() as u16;
    let words = [source_port, port, length, 0];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    bytes.extend(data);
    bytes
}

/// An SCTP common header (RFC 9260, section 3.1).
pub fn sctp(port: u16) -> Vec<u8> {
    let mut bytes = vec![0; 12];
    bytes[2..4].copy_from_slice(&port.to_be_bytes());
    bytes
}

/// An ICMP or ICMPv6 message of this type.
pub fn icmp(kind: u8) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    bytes[0] = kind;
    bytes
}

/// An IGMP message as neighbours send it: to a group, with a TTL of 1.
pub fn igmp(group: [u8; 4]) -> Vec<u8> {
    let frame = ipv4(CLIENT_V4, 2, &[0x11, 0, 0, 0, 0, 0, 0, 0]);
    let frame = patched(&frame, IPV4_AT + 8, &[1]);
    patched(&frame, IPV4_AT + 16, &group)
}

/// The frame, sent to another address of the host.
pub fn to_v4(frame: &[u8], address: &str) -> Vec<u8> {
    let address: Ipv4Addr = address.parse().unwrap();
    patched(frame, IPV4_AT + 16, &address.octets())
}

pub fn to_v6(frame: &[u8], address: &str) -> Vec<u8> {
    let address: Ipv6Addr = address.parse().unwrap();
    patched(frame, IPV6_AT + 24, &address.octets())
}

pub fn tcp_v4(port: u16, flags: u8) -> Vec<u8> {
    ipv4(CLIENT_V4, protocol::TCP, &tcp(port, flags, &[]))
}

pub fn tcp_v6(port: u16, flags: u8) -> Vec<u8> {
    ipv6(CLIENT_V6, protocol::TCP, &tcp(port, flags, &[]))
}

pub fn udp_v4(port: u16) -> Vec<u8> {
    ipv4(CLIENT_V4, protocol::UDP, &udp(40_000, port, b"hello"))
}

pub fn udp_v6(port: u16) -> Vec<u8> {
    ipv6(CLIENT_V6, protocol::UDP, &udp(40_000, port, b"hello"))
}

/// An extension header of `units` times 8 bytes, filled with padding options (RFC 8200, 4.2).
pub fn extension(next: u8, units: u8) -> Vec<u8> {
    let length = usize::from(units) * 8;
    let mut bytes = vec![0; length];
    bytes[0] = next;
    bytes[1] = units - 1;
    bytes
}

/// An authentication header (RFC 4302) of `units` times 4 bytes.
pub fn authentication(next: u8, units: u8) -> Vec<u8> {
    let mut bytes = vec![0; usize::from(units) * 4];
    bytes[0] = next;
    bytes[1] = units - 2;
    bytes
}

/// A fragment header; the offset counts units of 8 bytes.
pub fn fragment(next: u8, offset: u16, more: bool) -> Vec<u8> {
    let offset = IpFragOffset::try_new(offset).unwrap();
    let header = Ipv6FragmentHeader::new(IpNumber(next), offset, more, 7);
    header.to_bytes().to_vec()
}

/// The frame with tags of these EtherTypes in front of its payload, the first outermost.
pub fn tagged(frame: &[u8], ether_types: &[u16]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    let mut tagged = addresses.to_vec();
    for ether_type in ether_types {
        tagged.extend(ether_type.to_be_bytes());
        tagged.extend([0, 5]);
    }
    tagged.extend(rest);
    tagged
}

/// The IPv4 frame with options that make its header `words` times 4 bytes long.
pub fn with_options(frame: &[u8], words: u8) -> Vec<u8> {
    let options = usize::from(words) * 4 - IPV4;
    let mut long = frame[..IPV4_PAYLOAD_AT].to_vec();
    long.extend(std::iter::repeat_n(1, options));
    long.extend(&frame[IPV4_PAYLOAD_AT..]);
    long[IPV4_AT] = 0x40 | words;
    let length = (long.len() - IPV4_AT) as u16;
    long[IPV4_AT + 2..IPV4_AT + 4].copy_from_slice(&length.to_be_bytes());
    long
}

/// The IPv4 frame as a fragment; the offset counts units of 8 bytes.
pub fn as_fragment(frame: &[u8], offset: u16, more: bool) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let field = u16::from(more) << 13 | offset;
    frame[IPV4_AT + 6..IPV4_AT + 8].copy_from_slice(&field.to_be_bytes());
    frame
}

/// The frame with these bytes written at an offset.
pub fn patched(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// A frame of another protocol than IP.
pub fn other(ether_type: u16) -> Vec<u8> {
    ethernet(ether_type, &[0; 46])
}

/// A frame with both kinds of tags, built completely by etherparse, an independent implementation.
pub fn foreign_double_tagged(port: u16) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .double_vlan(VlanId::try_new(9).unwrap(), VlanId::try_new(5).unwrap())
        .ipv4(CLIENT_V4.octets(), HOST_V4.octets(), 64)
        .tcp(40_000, port, 1, 64_240)
        .syn();
    let mut frame = Vec::new();
    builder.write(&mut frame, b"").unwrap();
    frame
}
