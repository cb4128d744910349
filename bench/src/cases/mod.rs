//! The measured cases, one for every path of a packet, and the rows derived from two cases.

mod bars;
mod growth;
mod paths;
mod peers;

use std::borrow::Cow;

pub use growth::{Axis, AxisLine, axes};
use guard_common::reason::{Outcome, Reason};

use crate::{
    beside::{Numbers, Varied},
    frames::{PacketAddresses, syn},
    policies::{DENIED_COUNT, DENIED_FIRST, Name as Policy, WEB, WEB_PORT},
    xdp_filter::Filter,
};

/// One packet, one program, and the bar for its cost.
pub struct Case {
    pub name: Cow<'static, str>,
    pub group: Group,
    pub about: &'static str,
    pub subject: Subject,
    pub frame: Vec<u8>,
    /// `None`: every packet is the unchanged frame.
    pub varied: Option<Varied>,
    /// The bar, in nanoseconds above the empty program.
    pub bar: Option<f64>,
}

/// The program that gets the packet.
#[derive(Clone, Copy)]
pub enum Subject {
    Guard {
        policy: Policy,
        service: CountedAt,
        /// The outcome that every packet must be counted under.
        outcome: Outcome,
    },
    XdpFilter {
        filter: Filter,
        drops: bool,
    },
    LruBucket,
    /// The least program that closes ports: it parses TCP, looks up the port, and counts drops.
    OnePort,
    /// A program that mostly waits for memory: it charges two cells of the source.
    TwoExchanges,
    /// A program that mostly waits for memory: it looks up the source in a list as long as the longest deny list.
    OneLookup {
        drops: bool,
    },
}

/// The service that a packet is counted at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountedAt {
    NoService,
    Service(&'static str),
    /// Any service: it varies from packet to packet.
    AnyService,
}

impl CountedAt {
    pub fn is(self, service: Option<&str>) -> bool {
        match self {
            Self::NoService => service.is_none(),
            Self::Service(name) => service == Some(name),
            Self::AnyService => service.is_some(),
        }
    }
}

/// A row derived from two cases, pairing a quiet round of each; the pairs need not be from the same round.
pub struct Derived {
    pub name: &'static str,
    pub group: Group,
    pub about: &'static str,
    pub kind: DerivedKind,
    pub of: &'static str,
    pub than: &'static str,
    pub bar: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DerivedKind {
    /// The difference, in nanoseconds.
    Difference,
    Ratio,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    Bars,
    Deny,
    Peers,
    Paths,
    Everything,
    Growth,
}

impl Group {
    pub const fn title(self) -> &'static str {
        match self {
            Self::Bars => "The fast path",
            Self::Deny => "A deny list of a million addresses",
            Self::Peers => "Compared with other programs",
            Self::Paths => "Other paths of a packet",
            Self::Everything => "With a policy that uses everything",
            Self::Growth => "As it grows",
        }
    }
}

pub fn cases() -> Vec<Case> {
    let parts = [bars::cases(), peers::cases(), paths::cases()];
    parts.into_iter().flatten().collect()
}

pub fn derived() -> Vec<Derived> {
    [bars::derived(), peers::derived()]
        .into_iter()
        .flatten()
        .collect()
}

/// A port that no service lists.
const CLOSED_PORT: u16 = 8_001;

/// The source addresses of floods.
pub const ANYWHERE: Numbers = Numbers {
    first: u32::from_be_bytes([11, 0, 0, 0]),
    count: 1 << 24,
};

/// All addresses of the deny list.
pub const DENIED: Numbers = Numbers {
    first: DENIED_FIRST.to_bits(),
    count: DENIED_COUNT,
};

fn closed() -> Vec<u8> {
    syn(PacketAddresses::V4, CLOSED_PORT)
}

pub fn open() -> Vec<u8> {
    syn(PacketAddresses::V4, WEB_PORT)
}

/// The counter of a packet that matches no service; `web`: of a packet to the service `web`.
const fn no_service(reason: Reason) -> (CountedAt, Reason) {
    (CountedAt::NoService, reason)
}

const fn web(reason: Reason) -> (CountedAt, Reason) {
    (CountedAt::Service(WEB), reason)
}

impl Case {
    fn guard(
        group: Group,
        (name, about): (impl Into<Cow<'static, str>>, &'static str),
        policy: Policy,
        frame: Vec<u8>,
        (service, reason): (CountedAt, Reason),
    ) -> Self {
        let outcome = Outcome {
            reason,
            would_drop: false,
        };
        let subject = Subject::Guard {
            policy,
            service,
            outcome,
        };
        Self::of(group, (name, about), subject, frame)
    }

    fn of(
        group: Group,
        (name, about): (impl Into<Cow<'static, str>>, &'static str),
        subject: Subject,
        frame: Vec<u8>,
    ) -> Self {
        Self {
            name: name.into(),
            group,
            about,
            subject,
            frame,
            varied: None,
            bar: None,
        }
    }

    fn from(self, sources: Numbers) -> Self {
        Self {
            varied: Some(Varied::Source(sources)),
            ..self
        }
    }

    fn at_ports(self, ports: Numbers) -> Self {
        Self {
            varied: Some(Varied::Port(ports)),
            ..self
        }
    }

    fn at_most(self, bar: f64) -> Self {
        Self {
            bar: Some(bar),
            ..self
        }
    }
}
