//! Reads what the kernel program counted.

use std::{collections::BTreeMap, ops::Range};

use aya::maps::Map;
use guard_common::{
    layout::{self, Counters, NO_SERVICE},
    reason::Outcome,
};

use super::{
    Generation, LoadError, batch,
    state::{InterfaceState, StateError},
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

impl InterfaceState {
    /// Every counter that has counted anything, those of services that are no longer listed, too.
    pub fn counters(&self) -> Result<Vec<CounterRow>, StateError> {
        Ok(read(&self.map(layout::COUNTERS)?, &self.names()?)?)
    }
}

fn read(counters: &Map, names: &BTreeMap<u16, String>) -> Result<Vec<CounterRow>, LoadError> {
    let mut rows = Vec::new();
    let host = u32::from(NO_SERVICE);
    let mut places = runs(names.keys().copied().map(u32::from));
    places.push(host..host + 1);
    batch::read_per_cpu(
        counters,
        places.into_iter(),
        |service, of_cpus: &mut dyn Iterator<Item = Counters>| {
            let of_cpus: Vec<Counters> = of_cpus.collect();
            let name = u16::try_from(service).ok().and_then(|it| names.get(&it));
            for outcome in Outcome::all() {
                let counters = of_cpus.iter().map(|one| one.0[outcome.slot() as usize]);
                let (packets, bytes) = counters.fold((0, 0), |(packets, bytes), counter| {
                    (packets + counter.packets, bytes + counter.bytes)
                });
                if packets != 0 {
                    rows.push(CounterRow {
                        service: name.cloned(),
                        outcome,
                        packets,
                        bytes,
                    });
                }
            }
        },
    )?;
    Ok(rows)
}

/// Ascending numbers as few ranges, each of which is read at once.
fn runs(numbers: impl Iterator<Item = u32>) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some(run) if run.end == number => run.end += 1,
            _ => runs.push(number..number + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_read_once() {
        let numbers = [1, 2, 3, 7, 9, 10];
        let runs = runs(numbers.into_iter());
        assert_eq!(runs, [1..4, 7..8, 9..11]);
    }
}
