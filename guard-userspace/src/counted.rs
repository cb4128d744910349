//! What the kernel counted, as the API has it.

use guard_api::{Counter, Talker};
use guard_common::reason::Verdict;

use crate::dataplane::{CounterRow, TalkerRow};

pub(crate) fn to_counter(interface: &str, row: CounterRow) -> Counter {
    let CounterRow {
        service,
        outcome,
        packets,
        bytes,
    } = row;
    Counter {
        interface: interface.to_owned(),
        service,
        verdict: outcome.verdict().name().to_owned(),
        would: outcome.would_drop.then(|| Verdict::Drop.name().to_owned()),
        reason: outcome.reason.name().to_owned(),
        packets,
        bytes,
    }
}

pub(crate) fn to_talker(interface: &str, row: TalkerRow) -> Talker {
    let TalkerRow {
        source,
        packets,
        dropped,
        bytes,
        dropped_for,
        dropped_at,
    } = row;
    Talker {
        interface: interface.to_owned(),
        source,
        name: None,
        packets,
        dropped,
        bytes,
        reason: dropped_for.map(|reason| reason.name().to_owned()),
        service: dropped_at,
    }
}
