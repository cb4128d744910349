//! The measured packets: the smallest on a wire.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep, err::packet::BuildWriteError};

pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 7);
pub const HOST_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10);

/// 64 bytes on the wire, without the frame check sequence, which no program sees.
const SHORTEST: usize = 60;

const CLIENT_PORT: u16 = 40_000;
const HOP_LIMIT: u8 = 64;

/// The offset of IPv4 in a frame without tags.
const IPV4_AT: usize = 14;

/// The addresses and headers around a packet.
#[derive(Clone, Copy)]
pub enum PacketAddresses {
    V4 { from: Ipv4Addr, to: Ipv4Addr },
    V6 { from: Ipv6Addr, to: Ipv6Addr },
}

impl PacketAddresses {
    pub const V4: Self = Self::V4 {
        from: CLIENT_V4,
        to: HOST_V4,
    };
    pub const V6: Self = Self::V6 {
        from: CLIENT_V6,
        to: HOST_V6,
    };

    pub const fn from(from: Ipv4Addr) -> Self {
        Self::V4 { from, to: HOST_V4 }
    }

    pub const fn to(to: Ipv4Addr) -> Self {
        Self::V4 {
            from: CLIENT_V4,
            to,
        }
    }

    fn build(self) -> PacketBuilderStep<IpHeaders> {
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        match self {
            Self::V4 { from, to } => ethernet.ipv4(from.octets(), to.octets(), HOP_LIMIT),
            Self::V6 { from, to } => ethernet.ipv6(from.octets(), to.octets(), HOP_LIMIT),
        }
    }
}

/// A TCP segment that opens a connection.
pub fn syn(network: PacketAddresses, port: u16) -> Vec<u8> {
    let segment = network.build().tcp(CLIENT_PORT, port, 1, 64_240).syn();
    padded(|frame| segment.write(frame, &[]))
}

/// A SYN between two hardware addresses, with source and source port 0 and checksums to match.
pub fn flooding_syn((from, to): ([u8; 6], [u8; 6]), port: u16) -> Vec<u8> {
    let ip = PacketBuilder::ethernet2(from, to).ipv4([0; 4], HOST_V4.octets(), HOP_LIMIT);
    let segment = ip.tcp(0, port, 1, 64_240).syn();
    padded(|frame| segment.write(frame, &[]))
}

/// A TCP segment of an open connection.
pub fn ack(network: PacketAddresses, port: u16) -> Vec<u8> {
    let segment = network.build().tcp(CLIENT_PORT, port, 1, 64_240).ack(1);
    padded(|frame| segment.write(frame, &[]))
}

pub fn udp(network: PacketAddresses, from_port: u16, port: u16) -> Vec<u8> {
    let datagram = network.build().udp(from_port, port);
    padded(|frame| datagram.write(frame, &[]))
}

/// An IPv6 neighbour solicitation.
pub fn neighbour_solicitation() -> Vec<u8> {
    const SOLICITATION: u8 = 135;
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = ethernet.ipv6(CLIENT_V6.octets(), HOST_V6.octets(), 255);
    let message = ip.icmpv6_raw(SOLICITATION, 0, [0; 4]);
    padded(|frame| message.write(frame, &HOST_V6.octets()))
}

/// An ARP request.
pub fn arp() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 0x08, 0x06]);
    frame.resize(SHORTEST, 0);
    frame
}

/// The frame with two tags, 802.1ad around 802.1Q.
pub fn tagged(frame: &[u8]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    let tags = [0x88, 0xa8, 0, 9, 0x81, 0, 0, 5];
    [addresses, &tags, rest].concat()
}

/// The IPv4 frame as a later fragment.
pub fn later_fragment(mut frame: Vec<u8>) -> Vec<u8> {
    frame[IPV4_AT + 7] = 1;
    frame
}

/// The IPv4 frame with a header length below the minimum.
pub fn malformed(mut frame: Vec<u8>) -> Vec<u8> {
    frame[IPV4_AT] = 0x44;
    frame
}

fn padded(write: impl FnOnce(&mut Vec<u8>) -> Result<(), BuildWriteError>) -> Vec<u8> {
    let mut frame = Vec::with_capacity(SHORTEST);
    // The headers above fit, and writing to memory does not fail.
    write(&mut frame).expect("a frame is written to memory");
    frame.resize(frame.len().max(SHORTEST), 0);
    frame
}
