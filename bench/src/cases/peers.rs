//! Other programs on the same packets, and guard compared with them.

use super::{
    ANYWHERE, CLOSED_PORT, Case, DENIED, Derived, DerivedKind, Group, Subject, closed, open,
};
use crate::{
    frames::{PacketAddresses, syn},
    policies::{DENIED_FIRST, WEB_PORT},
    xdp_filter::Filter,
};

pub fn cases() -> Vec<Case> {
    let peer = |names, subject, frame| Case::of(Group::Peers, names, subject, frame);
    let filter =
        |names, filter, drops, frame| peer(names, Subject::XdpFilter { filter, drops }, frame);
    let port = Filter::Port(CLOSED_PORT);
    let address = Filter::Address(DENIED_FIRST);
    let all = Filter::All(CLOSED_PORT, DENIED_FIRST);
    let denied = || syn(PacketAddresses::from(DENIED_FIRST), WEB_PORT);
    vec![
        filter(
            (
                "xdp-filter-closed",
                "xdp-filter, a port and an address, drop",
            ),
            all,
            true,
            closed(),
        ),
        filter(
            ("xdp-filter-open", "xdp-filter, a port and an address, pass"),
            all,
            false,
            open(),
        ),
        filter(
            (
                "xdp-filter-denied",
                "xdp-filter, a port and an address, drop by address",
            ),
            all,
            true,
            denied(),
        ),
        filter(
            (
                "xdp-filter-tcp-closed",
                "xdp-filter for TCP ports alone, drop",
            ),
            port,
            true,
            closed(),
        ),
        filter(
            (
                "xdp-filter-tcp-open",
                "xdp-filter for TCP ports alone, pass",
            ),
            port,
            false,
            open(),
        ),
        filter(
            ("xdp-filter-ipv4-denied", "xdp-filter for IPv4 alone, drop"),
            address,
            true,
            denied(),
        ),
        filter(
            ("xdp-filter-ipv4-open", "xdp-filter for IPv4 alone, pass"),
            address,
            false,
            open(),
        ),
        peer(
            ("lru", "token bucket in an LRU hash, one source"),
            Subject::LruBucket,
            open(),
        ),
        peer(
            ("lru-random", "token bucket in an LRU hash, random sources"),
            Subject::LruBucket,
            open(),
        )
        .from(ANYWHERE),
        peer(
            (
                "floor-closed",
                "TCP's port looked up and a drop counted, and nothing else",
            ),
            Subject::OnePort,
            closed(),
        ),
        peer(
            (
                "floor-random",
                "two exchanges in 4 MiB and nothing else, random sources",
            ),
            Subject::TwoExchanges,
            open(),
        )
        .from(ANYWHERE),
        peer(
            (
                "floor-denied-random",
                "a hash of a million and nothing else, a random one of them",
            ),
            Subject::OneLookup { drops: true },
            open(),
        )
        .from(DENIED),
        peer(
            (
                "floor-list-random",
                "a hash of a million and nothing else, random others",
            ),
            Subject::OneLookup { drops: false },
            open(),
        )
        .from(ANYWHERE),
    ]
}

/// The bars compare guard with xdp-filter as it is loaded by default, which has about the same features. The
/// comparisons with a part of xdp-filter have no bar.
pub fn derived() -> Vec<Derived> {
    const THIRD: Option<f64> = Some(1.0 / 3.0);
    const TENTH: Option<f64> = Some(0.1);
    let ratio = |name, about, of, than, bar| Derived {
        name,
        group: Group::Peers,
        about,
        kind: DerivedKind::Ratio,
        of,
        than,
        bar,
    };
    vec![
        ratio(
            "to-xdp-filter-closed",
            "guard to xdp-filter, closed port",
            "closed",
            "xdp-filter-closed",
            THIRD,
        ),
        ratio(
            "to-xdp-filter-open",
            "guard to xdp-filter, which knows no budgets, pass",
            "open-no-budget",
            "xdp-filter-open",
            THIRD,
        ),
        ratio(
            "to-xdp-filter-budget",
            "guard with a budget to xdp-filter without, pass",
            "open",
            "xdp-filter-open",
            None,
        ),
        ratio(
            "to-xdp-filter-denied",
            "guard's list of a million to xdp-filter's one address, drop",
            "denied",
            "xdp-filter-denied",
            THIRD,
        ),
        ratio(
            "to-xdp-filter-tcp",
            "guard to xdp-filter for TCP ports alone, closed port",
            "closed",
            "xdp-filter-tcp-closed",
            None,
        ),
        ratio(
            "to-xdp-filter-ipv4-denied",
            "guard's list of a million to xdp-filter for IPv4 alone",
            "denied",
            "xdp-filter-ipv4-denied",
            None,
        ),
        ratio(
            "to-lru-random",
            "guard's budget to the LRU hash, random sources",
            "random",
            "lru-random",
            TENTH,
        ),
        ratio(
            "to-lru-floor",
            "for comparison: two exchanges in 4 MiB and nothing else to the LRU hash",
            "floor-random",
            "lru-random",
            None,
        ),
    ]
}
