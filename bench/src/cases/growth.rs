//! Cases that show the cost of the same packet as tables grow, in steps of ten.

use guard_common::reason::Reason::{
    Allowed, ClosedPort, DeniedSource, Exempt, PacketLimit, SourceNotAllowed,
};

use super::{ANYWHERE, Case, CountedAt, Group, Subject, closed, no_service, open, web};
use crate::{
    beside::Numbers,
    frames::{PacketAddresses, syn},
    policies::{
        DENIED_FIRST, NAMED,
        Name::{self, Admitted, Denied, Packets, Published, Services},
        SERVICE_PORT, SPENT, SPENT_PORT, SSH, SSH_PORT,
    },
};

/// An axis of growth, and the packets measured along it.
pub struct Axis {
    /// The name of its table and its plot.
    pub name: &'static str,
    /// The things that are counted.
    pub of: &'static str,
    pub lines: Vec<AxisLine>,
}

pub struct AxisLine {
    pub about: &'static str,
    /// The cases, each with its count of things.
    pub cases: Vec<(u32, Case)>,
}

pub fn axes() -> Vec<Axis> {
    vec![sources(), services(), ports(), denied(), named()]
}

/// The powers of ten up to `most`.
fn steps(most: u32) -> impl Iterator<Item = u32> {
    let tens = std::iter::successors(Some(1u32), |step| step.checked_mul(10));
    tens.take_while(move |step| *step < most).chain([most])
}

fn line(
    name: &str,
    about: &'static str,
    most: u32,
    case: impl Fn(String, u32) -> Case,
) -> AxisLine {
    let cases = steps(most).map(|step| (step, case(format!("{name}-{step}"), step)));
    AxisLine {
        about,
        cases: cases.collect(),
    }
}

fn guard(name: String, policy: Name, frame: Vec<u8>, expected: (CountedAt, super::Reason)) -> Case {
    Case::guard(Group::Growth, (name, ""), policy, frame, expected)
}

fn sources() -> Axis {
    const MOST: u32 = 10_000_000;
    let first = ANYWHERE.first;
    Axis {
        name: "sources",
        of: "sources, a random one for every packet",
        lines: vec![
            line(
                "sources-closed",
                "closed port, drop",
                MOST,
                |name, count| {
                    guard(name, Packets, closed(), no_service(ClosedPort))
                        .from(Numbers { first, count })
                },
            ),
            line(
                "sources-open",
                "open port, within its budget",
                MOST,
                |name, count| {
                    guard(name, Packets, open(), web(Allowed)).from(Numbers { first, count })
                },
            ),
            line(
                "sources-lru",
                "for comparison: a token bucket in an LRU hash",
                MOST,
                |name, count| {
                    Case::of(Group::Growth, (name, ""), Subject::LruBucket, open())
                        .from(Numbers { first, count })
                },
            ),
        ],
    }
}

fn services() -> Axis {
    let frame = || syn(PacketAddresses::V4, SERVICE_PORT as u16);
    let allowed = (CountedAt::AnyService, Allowed);
    Axis {
        name: "services",
        of: "services with a budget, a random one for every packet",
        lines: vec![
            line(
                "services-open",
                "open port, within its budget",
                1_000,
                |name, count| {
                    let first = SERVICE_PORT;
                    guard(name, Services(count), frame(), allowed)
                        .at_ports(Numbers { first, count })
                },
            ),
            line(
                "services-closed",
                "closed port, drop",
                1_000,
                |name, count| guard(name, Services(count), closed(), no_service(ClosedPort)),
            ),
        ],
    }
}

fn ports() -> Axis {
    Axis {
        name: "ports",
        of: "closed ports of containers, a random one for every packet",
        lines: vec![line(
            "ports-closed",
            "closed port, drop",
            65_535,
            |name, count| {
                guard(name, Published(count), closed(), no_service(ClosedPort))
                    .at_ports(Numbers { first: 1, count })
            },
        )],
    }
}

fn denied() -> Axis {
    const MOST: u32 = 1_000_000;
    let first = DENIED_FIRST.to_bits();
    Axis {
        name: "denied",
        of: "denied addresses",
        lines: vec![
            line(
                "denied-hit",
                "on the list, a random one of them, drop",
                MOST,
                |name, count| {
                    guard(name, Denied(count), open(), no_service(DeniedSource))
                        .from(Numbers { first, count })
                },
            ),
            line(
                "denied-miss",
                "not on the list, within its budget",
                MOST,
                |name, count| guard(name, Denied(count), open(), web(Allowed)),
            ),
            line(
                "denied-random-miss",
                "the same, random sources",
                MOST,
                |name, count| guard(name, Denied(count), open(), web(Allowed)).from(ANYWHERE),
            ),
        ],
    }
}

fn named() -> Axis {
    const MOST: u32 = 1_000;
    let first = NAMED.to_bits();
    let ssh = || syn(PacketAddresses::V4, SSH_PORT);
    let spent = || syn(PacketAddresses::V4, SPENT_PORT);
    let at_ssh = |reason| (CountedAt::Service(SSH), reason);
    let at_spent = |reason| (CountedAt::Service(SPENT), reason);
    Axis {
        name: "named",
        of: "named sources",
        lines: vec![
            line(
                "named-clean",
                "a clean packet of another source",
                MOST,
                |name, count| guard(name, Name::Exempt(count), open(), web(Allowed)),
            ),
            line(
                "named-dropped",
                "another source over its budget, drop",
                MOST,
                |name, count| guard(name, Name::Exempt(count), spent(), at_spent(PacketLimit)),
            ),
            line(
                "named-exempt",
                "over its budget and exempt, a random one",
                MOST,
                |name, count| {
                    guard(name, Name::Exempt(count), spent(), at_spent(Exempt))
                        .from(Numbers { first, count })
                },
            ),
            line(
                "named-admitted",
                "at a service that is for them, a random one",
                MOST,
                |name, count| {
                    guard(name, Admitted(count), ssh(), at_ssh(Allowed))
                        .from(Numbers { first, count })
                },
            ),
            line(
                "named-refused",
                "another source there, drop",
                MOST,
                |name, count| guard(name, Admitted(count), ssh(), at_ssh(SourceNotAllowed)),
            ),
        ],
    }
}
