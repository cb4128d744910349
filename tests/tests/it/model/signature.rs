//! The signatures of a packet: its outcome with its kind, its headers or its tags. The corpus keeps a packet with a
//! signature that no other has. Signatures are coarse: a few hundred packets have all of them.

use std::collections::BTreeSet;

use super::{
    judge::ModelVerdict,
    parse::{DatagramContent, ModelSegment, ParsedFrame, look},
};
use crate::frames::protocol;

const EXTENSIONS: [u8; 5] = [
    protocol::HOP_BY_HOP,
    protocol::ROUTING,
    protocol::FRAGMENT,
    protocol::AUTHENTICATION,
    protocol::DESTINATION_OPTIONS,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signature {
    /// The outcome, and the packet's transport.
    Judged {
        outcome: ModelVerdict,
        scope: &'static str,
        is_listed: bool,
        carried: Carried,
    },
    /// The outcome, and the headers behind Ethernet's.
    Headers {
        outcome: ModelVerdict,
        network: NetworkLayer,
    },
    Tags {
        outcome: ModelVerdict,
        tags: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Carried {
    NotIp,
    Malformed,
    Attempt,
    Segment,
    Stray,
    Udp,
    Sctp,
    Icmp,
    Other,
    LaterFragment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NetworkLayer {
    NotIp,
    Ipv4 {
        has_options: bool,
        is_fragment: bool,
    },
    Ipv6 {
        /// The number of the first extension header, and the count of extension headers.
        extensions: Option<(u8, HeaderCount)>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HeaderCount {
    One,
    Few,
    /// Up to the eight that the program reads.
    Many,
    TooMany,
}

impl Signature {
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Judged { outcome, .. }
            | Self::Headers { outcome, .. }
            | Self::Tags { outcome, .. } => outcome.reason,
        }
    }
}

/// The signatures of a received packet.
pub fn of(
    frame: &[u8],
    scope: &'static str,
    is_listed: bool,
    outcome: ModelVerdict,
) -> BTreeSet<Signature> {
    let judged = Signature::Judged {
        outcome,
        scope,
        is_listed,
        carried: carried(frame),
    };
    let (tags, network) = headers(frame);
    BTreeSet::from([
        judged,
        Signature::Headers { outcome, network },
        Signature::Tags { outcome, tags },
    ])
}

fn carried(frame: &[u8]) -> Carried {
    let datagram = match look(frame) {
        ParsedFrame::NotIp => return Carried::NotIp,
        ParsedFrame::Malformed => return Carried::Malformed,
        ParsedFrame::Ip(datagram) => datagram,
    };
    match datagram.content {
        DatagramContent::Tcp { segment, .. } => match segment {
            ModelSegment::Attempt => Carried::Attempt,
            ModelSegment::Later => Carried::Segment,
            ModelSegment::Stray => Carried::Stray,
        },
        DatagramContent::Udp { .. } => Carried::Udp,
        DatagramContent::Sctp { .. } => Carried::Sctp,
        DatagramContent::Icmp { .. } => Carried::Icmp,
        DatagramContent::Other { .. } => Carried::Other,
        DatagramContent::LaterFragment => Carried::LaterFragment,
    }
}

/// The number of tags, and the network header behind them as far as it can be read.
fn headers(frame: &[u8]) -> (usize, NetworkLayer) {
    let half = |at: usize| {
        let bytes = frame.get(at..at + 2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    let mut at = 12;
    while matches!(half(at), Some(0x8100 | 0x88a8)) {
        at += 4;
    }
    let tags = (at - 12) / 4;
    let packet = frame.get(at + 2..).unwrap_or_default();
    let network = match (half(at), packet.first()) {
        (Some(0x0800), Some(first)) => NetworkLayer::Ipv4 {
            has_options: first & 0x0f > 5,
            // All bits except DF.
            is_fragment: half(at + 8).is_some_and(|field| field & 0x3fff != 0),
        },
        (Some(0x86dd), Some(_)) => NetworkLayer::Ipv6 {
            extensions: extensions(packet),
        },
        _ => NetworkLayer::NotIp,
    };
    (tags, network)
}

/// The first extension header of an IPv6 packet, and the count of consecutive extension headers.
fn extensions(packet: &[u8]) -> Option<(u8, HeaderCount)> {
    let first = *packet.get(6)?;
    let (mut next, mut at, mut headers) = (first, 40, 0);
    while let (true, Some([following, length])) =
        (EXTENSIONS.contains(&next), packet.get(at..at + 2))
    {
        at += match next {
            protocol::FRAGMENT => 8,
            protocol::AUTHENTICATION => (usize::from(*length) + 2) * 4,
            _ => (usize::from(*length) + 1) * 8,
        };
        next = *following;
        headers += 1;
    }
    (headers > 0).then(|| (first, count(headers)))
}

fn count(extensions: usize) -> HeaderCount {
    match extensions {
        ..=1 => HeaderCount::One,
        2..=4 => HeaderCount::Few,
        5..=8 => HeaderCount::Many,
        _ => HeaderCount::TooMany,
    }
}
