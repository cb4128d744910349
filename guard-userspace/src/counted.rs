//! Converts the kernel's counters to the types of the API.

use std::{collections::BTreeMap, path::Path};

use guard_api::{ClosedPort, Counter, Talker};
use guard_common::reason::{Reason, Verdict};

use crate::dataplane::{
    ClosedPortRow, CounterRow, HostState, InterfaceState, InterfaceTables, LoadError, StateError,
    TalkerRow, UNKNOWN_INTERFACE, pins::Pins,
};

/// The rows of each of these interfaces, given by pins and name, and of packets whose interface has no row of its own
/// ([`UNKNOWN_INTERFACE`]). `None`: nothing is pinned below this root.
pub(crate) fn of_every_interface<T>(
    root: &Path,
    interfaces: impl Iterator<Item = (Pins, String)>,
    rows: impl Fn(&str, &InterfaceTables, &BTreeMap<u16, String>) -> Result<Vec<T>, LoadError>,
) -> Result<Option<Vec<T>>, StateError> {
    let Some(host) = HostState::existing(root)? else {
        return Ok(None);
    };
    let names = host.names()?;
    let mut found = Vec::new();
    for (pins, name) in interfaces {
        if let Some(state) = InterfaceState::existing(&pins)? {
            found.extend(rows(&name, state.tables(), &names)?);
        }
    }
    found.extend(rows(UNKNOWN_INTERFACE, host.unknown(), &names)?);
    Ok(Some(found))
}

pub(crate) fn to_counter(interface: &str, row: CounterRow) -> Counter {
    let CounterRow {
        service,
        outcome,
        packets,
        bytes,
        ports,
    } = row;
    Counter {
        interface: interface.to_owned(),
        service,
        verdict: outcome.verdict().name().to_owned(),
        would: outcome.would_drop.then(|| Verdict::Drop.name().to_owned()),
        reason: outcome.reason.name().to_owned(),
        packets,
        bytes,
        ports: ports
            .into_iter()
            .map(|ClosedPortRow { port, packets }| ClosedPort {
                port: port.to_string(),
                packets,
            })
            .collect(),
    }
}

pub(crate) fn to_talker(interface: &str, row: TalkerRow) -> Talker {
    let TalkerRow {
        source,
        packets,
        dropped,
        would_drop,
        bytes,
        dropped_for,
        dropped_at,
        dropped_port,
    } = row;
    Talker {
        interface: interface.to_owned(),
        source,
        name: None,
        packets,
        dropped,
        would_drop,
        bytes,
        port: dropped_port
            .filter(|_| dropped_for == Some(Reason::ClosedPort))
            .map(|port| port.to_string()),
        reason: dropped_for.map(|reason| reason.name().to_owned()),
        service: dropped_at,
    }
}
