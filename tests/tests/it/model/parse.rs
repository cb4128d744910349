//! Parses a packet as the design defines it, with etherparse's header slices.

use std::net::IpAddr;

use etherparse::{
    Ethernet2HeaderSlice, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice,
    Ipv6RawExtHeaderSlice, SingleVlanHeaderSlice,
};

#[derive(Debug)]
pub enum ParsedFrame {
    NotIp,
    Malformed,
    Ip(Datagram),
}

#[derive(Debug)]
pub struct Datagram {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub hop_limit: u8,
    pub content: DatagramContent,
    pub frame_length: u64,
    /// Of a fragment: the protocol (0 for IPv6) and the identification.
    pub fragment: Option<(u8, u32)>,
}

#[derive(Debug, PartialEq)]
pub enum DatagramContent {
    Tcp { port: u16, segment: ModelSegment },
    Udp { from_port: u16, port: u16 },
    Sctp { port: u16 },
    Icmp { kind: u8 },
    Other { protocol: u8 },
    LaterFragment,
}

/// The kinds of TCP segment, for its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelSegment {
    Attempt,
    Later,
    /// Belongs to no connection.
    Stray,
}

impl ModelSegment {
    fn of(flags: u8) -> Self {
        let [fin, syn, rst, ack] = [1, 2, 4, 16].map(|flag| flags & flag != 0);
        match (syn, ack) {
            (true, false) => Self::Attempt,
            (true, true) if fin || rst => Self::Stray,
            (false, false) if !rst => Self::Stray,
            _ => Self::Later,
        }
    }
}

pub fn look(frame: &[u8]) -> ParsedFrame {
    let Ok(ethernet) = Ethernet2HeaderSlice::from_slice(frame) else {
        return ParsedFrame::NotIp;
    };
    let mut kind = ethernet.ether_type().0;
    let mut rest = &frame[14..];
    let is_tag = |kind| kind == 0x8100 || kind == 0x88a8;
    for _ in 0..2 {
        if is_tag(kind) {
            let Ok(tag) = SingleVlanHeaderSlice::from_slice(rest) else {
                return ParsedFrame::Malformed;
            };
            kind = tag.ether_type().0;
            rest = &rest[4..];
        }
    }
    let datagram = match kind {
        0x0800 => look_v4(rest),
        0x86dd => look_v6(rest),
        _ if is_tag(kind) => None,
        _ => return ParsedFrame::NotIp,
    };
    match datagram {
        Some(mut datagram) => {
            datagram.frame_length = frame.len() as u64;
            ParsedFrame::Ip(datagram)
        }
        None => ParsedFrame::Malformed,
    }
}

/// Returns `None` if the packet cannot be read up to its transport header.
fn look_v4(bytes: &[u8]) -> Option<Datagram> {
    let header = Ipv4HeaderSlice::from_slice(bytes).ok()?;
    let packet = bytes.get(..usize::from(header.total_len()))?;
    let payload = packet.get(header.slice().len()..)?;
    let is_later = header.fragments_offset().value() > 0;
    let fragment = (is_later || header.more_fragments())
        .then(|| (header.protocol().0, u32::from(header.identification())));
    let content = if is_later {
        DatagramContent::LaterFragment
    } else {
        content(header.protocol().0, 1, payload, header.more_fragments())?
    };
    Some(Datagram {
        source: IpAddr::V4(header.source_addr()),
        destination: IpAddr::V4(header.destination_addr()),
        hop_limit: header.ttl(),
        content,
        frame_length: 0,
        fragment,
    })
}

fn look_v6(bytes: &[u8]) -> Option<Datagram> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    let header = Ipv6HeaderSlice::from_slice(bytes).ok()?;
    let length = usize::from(header.payload_length());
    let mut next = header.next_header().0;
    if length == 0 && next == HOP_BY_HOP {
        return None;
    }
    let mut payload = bytes.get(40..40 + length)?;
    let mut more = false;
    let mut read = 0;
    let mut later = false;
    let mut piece = None;
    while matches!(
        next,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION
    ) {
        read += 1;
        if read > 8 {
            return None;
        }
        match next {
            FRAGMENT => {
                let fragment = Ipv6FragmentHeaderSlice::from_slice(payload).ok()?;
                if fragment.is_fragmenting_payload() {
                    piece = Some((0, fragment.identification()));
                }
                if fragment.fragment_offset().value() > 0 {
                    later = true;
                    break;
                }
                more |= fragment.more_fragments();
                next = fragment.next_header().0;
                payload = &payload[8..];
            }
            AUTHENTICATION => {
                // etherparse rejects a length field of 0, which means 8 bytes (RFC 4302).
                let words = usize::from(*payload.get(1)?) + 2;
                next = *payload.first()?;
                payload = payload.get(words * 4..)?;
            }
            _ => {
                let options = Ipv6RawExtHeaderSlice::from_slice(payload).ok()?;
                next = options.next_header().0;
                payload = &payload[options.slice().len()..];
            }
        }
    }
    let content = if later {
        DatagramContent::LaterFragment
    } else {
        content(next, 58, payload, more)?
    };
    Some(Datagram {
        source: IpAddr::V6(header.source_addr()),
        destination: IpAddr::V6(header.destination_addr()),
        hop_limit: header.hop_limit(),
        content,
        frame_length: 0,
        fragment: piece,
    })
}

fn content(
    protocol: u8,
    icmp: u8,
    payload: &[u8],
    is_first_of_more: bool,
) -> Option<DatagramContent> {
    let half = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
    let need = |length: usize| (payload.len() >= length).then_some(());
    Some(match protocol {
        6 => {
            need(20)?;
            let header_length = usize::from(payload[12] >> 4) * 4;
            if header_length < 20 || (header_length > payload.len() && !is_first_of_more) {
                return None;
            }
            DatagramContent::Tcp {
                port: half(2),
                segment: ModelSegment::of(payload[13]),
            }
        }
        17 => {
            need(8)?;
            let length = usize::from(half(4));
            let to_the_end = length == 0 && icmp == 58;
            if length < 8 && !to_the_end || length > payload.len() && !is_first_of_more {
                return None;
            }
            DatagramContent::Udp {
                from_port: half(0),
                port: half(2),
            }
        }
        132 => {
            need(12)?;
            DatagramContent::Sctp { port: half(2) }
        }
        _ if protocol == icmp => {
            need(8)?;
            DatagramContent::Icmp { kind: payload[0] }
        }
        _ => DatagramContent::Other { protocol },
    })
}
