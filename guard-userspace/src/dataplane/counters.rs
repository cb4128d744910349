//! Reads what the kernel program counted.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
};

use aya::maps::Map;
use guard_common::{
    layout::{self, Counter, NO_SERVICE, counter_index},
    reason::Outcome,
};

use super::{
    Generation, LoadError, batch,
    state::{State, StateError},
};

/// The packets of one service and outcome, over all CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CounterRow {
    /// `None`: no service was concerned.
    pub service: Option<String>,
    pub outcome: Outcome,
    pub packets: u64,
    pub bytes: u64,
}

impl Generation {
    /// Every counter of this policy's services that has counted anything.
    pub fn counters(&self) -> Result<Vec<CounterRow>, LoadError> {
        let services = self.tables().services.iter();
        let names = services.map(|service| (service.number, service.name.clone()));
        read(self.map(layout::COUNTERS)?, &names.collect())
    }
}

impl State {
    /// Every counter that has counted anything, those of services that are no longer listed, too.
    pub fn counters(&self) -> Result<Vec<CounterRow>, StateError> {
        Ok(read(&self.map(layout::COUNTERS)?, &self.names()?)?)
    }
}

fn read(counters: &Map, names: &BTreeMap<u16, String>) -> Result<Vec<CounterRow>, LoadError> {
    let numbers = || names.keys().copied().chain([NO_SERVICE]);
    let runs = runs();
    let ranges = numbers().flat_map(|service| {
        let first = u32::from(service) * Outcome::SLOTS;
        runs.iter()
            .map(move |run| first + run.start..first + run.end)
    });
    let mut counted = HashMap::new();
    batch::read_per_cpu(
        counters,
        ranges,
        |index, values: &mut dyn Iterator<Item = Counter>| {
            let (packets, bytes) = values.fold((0, 0), |(packets, bytes), value| {
                (packets + value.packets, bytes + value.bytes)
            });
            if packets != 0 {
                counted.insert(index, (packets, bytes));
            }
        },
    )?;
    let mut rows = Vec::new();
    for service in numbers() {
        for outcome in Outcome::all() {
            if let Some((packets, bytes)) = counted.get(&counter_index(service, outcome)) {
                rows.push(CounterRow {
                    service: names.get(&service).cloned(),
                    outcome,
                    packets: *packets,
                    bytes: *bytes,
                });
            }
        }
    }
    Ok(rows)
}

/// The slots of a service that can hold anything, as few ranges: each is read at once, and a place costs
/// the kernel more than anything else.
fn runs() -> Vec<Range<u32>> {
    let slots: BTreeSet<u32> = Outcome::all().map(Outcome::slot).collect();
    let mut runs: Vec<Range<u32>> = Vec::new();
    for slot in slots {
        match runs.last_mut() {
            Some(run) if run.end == slot => run.end += 1,
            _ => runs.push(slot..slot + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_is_read_once() {
        let read: Vec<u32> = runs().into_iter().flatten().collect();
        let slots: BTreeSet<u32> = Outcome::all().map(Outcome::slot).collect();
        assert_eq!(read, slots.into_iter().collect::<Vec<_>>());
        assert!(runs().len() < 8);
    }
}
