//! The cases with a bar: packets of floods, and packets that must pass during a flood.

use guard_common::reason::Reason::{Allowed, ClosedPort, DeniedSource, PacketLimit};

use super::{
    ANYWHERE, CLOSED_PORT, Case, DENIED, Derived, DerivedKind, Group, closed, no_service, open, web,
};
use crate::{
    frames::{PacketAddresses, syn, tagged},
    guarded::PUBLISHED,
    policies::{
        DENIED_FIRST,
        Name::{self, AllBudgets, Containers, DenyList, Packets, Spent},
        WEB_PORT,
    },
};

pub fn cases() -> Vec<Case> {
    let bar = |names, policy: Name, frame, expected| {
        Case::guard(Group::Bars, names, policy, frame, expected)
    };
    let deny = |names, frame, expected| Case::guard(Group::Deny, names, DenyList, frame, expected);
    let closed_v6 = || syn(PacketAddresses::V6, CLOSED_PORT);
    let open_v6 = || syn(PacketAddresses::V6, WEB_PORT);
    let denied = || syn(PacketAddresses::from(DENIED_FIRST), WEB_PORT);
    let closed_port = no_service(ClosedPort);
    let allowed = web(Allowed);
    let limited = web(PacketLimit);
    let denied_source = no_service(DeniedSource);
    vec![
        bar(
            ("closed", "closed port, drop"),
            Packets,
            closed(),
            closed_port,
        )
        .at_most(8.0),
        bar(
            (
                "closed-published",
                "a container's port in scope containers, drop",
            ),
            Containers,
            syn(PacketAddresses::V4, PUBLISHED),
            closed_port,
        )
        .at_most(8.0),
        bar(
            ("closed-ipv6", "closed port, IPv6"),
            Packets,
            closed_v6(),
            closed_port,
        ),
        bar(
            ("closed-tagged", "closed port, two VLAN tags"),
            Packets,
            tagged(&closed()),
            closed_port,
        ),
        bar(
            ("open", "open port, within a budget of packets"),
            Packets,
            open(),
            allowed,
        )
        .at_most(15.0),
        bar(("open-ipv6", "the same, IPv6"), Packets, open_v6(), allowed),
        bar(
            ("open-tagged", "the same, two VLAN tags"),
            Packets,
            tagged(&open()),
            allowed,
        ),
        bar(
            (
                "budgets",
                "within budgets of packets, bytes and all sources",
            ),
            AllBudgets,
            open(),
            allowed,
        )
        .at_most(30.0),
        bar(
            ("budgets-ipv6", "the same, IPv6"),
            AllBudgets,
            open_v6(),
            allowed,
        ),
        bar(
            ("over", "open port, over its budget, drop"),
            Spent,
            open(),
            limited,
        )
        .at_most(15.0),
        bar(("over-ipv6", "the same, IPv6"), Spent, open_v6(), limited),
        bar(
            ("random", "open port, a random source for every packet"),
            Packets,
            open(),
            allowed,
        )
        .from(ANYWHERE)
        .at_most(60.0),
        bar(
            ("random-ipv6", "the same, IPv6"),
            Packets,
            open_v6(),
            allowed,
        )
        .from(ANYWHERE),
        deny(("denied", "on the list, drop"), denied(), denied_source).at_most(60.0),
        deny(
            ("denied-random", "on the list, a random one of them, drop"),
            open(),
            denied_source,
        )
        .from(DENIED)
        .at_most(60.0),
        deny(("not-denied", "not on the list, pass"), open(), allowed),
        deny(
            ("not-denied-random", "not on the list, random sources, pass"),
            open(),
            allowed,
        )
        .from(ANYWHERE),
    ]
}

pub fn derived() -> Vec<Derived> {
    const IPV6: f64 = 6.0;
    const TAGS: f64 = 4.0;
    const LIST: f64 = 35.0;
    let more = |group, name, about, of, than, bar| Derived {
        name,
        group,
        about,
        kind: DerivedKind::Difference,
        of,
        than,
        bar: Some(bar),
    };
    let bar = |name, about, of, than, bar| more(Group::Bars, name, about, of, than, bar);
    let deny = |name, about, of, than| more(Group::Deny, name, about, of, than, LIST);
    vec![
        bar(
            "ipv6-closed",
            "IPv6 over IPv4, closed port",
            "closed-ipv6",
            "closed",
            IPV6,
        ),
        bar(
            "ipv6-open",
            "IPv6 over IPv4, open port",
            "open-ipv6",
            "open",
            IPV6,
        ),
        bar(
            "ipv6-budgets",
            "IPv6 over IPv4, all budgets",
            "budgets-ipv6",
            "budgets",
            IPV6,
        ),
        bar(
            "ipv6-over",
            "IPv6 over IPv4, over its budget",
            "over-ipv6",
            "over",
            IPV6,
        ),
        bar(
            "tags-closed",
            "two tags over none, closed port",
            "closed-tagged",
            "closed",
            TAGS,
        ),
        bar(
            "tags-open",
            "two tags over none, open port",
            "open-tagged",
            "open",
            TAGS,
        ),
        deny("list", "with the list over none", "not-denied", "open"),
        deny(
            "list-random",
            "the same, random sources",
            "not-denied-random",
            "random",
        ),
    ]
}
