//! Reads the counters of the kernel program.

use std::{collections::BTreeMap, ops::Range};

use aya::{
    maps::{Map, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use guard_common::{
    layout::{self, CounterSlot, Counters, NO_SERVICE, SERVICES_PER_PAGE},
    reason::Outcome,
};

use super::{
    Generation, LoadError, batch, closed_ports::ClosedPortRow, interface::InterfaceTables,
};

/// The packets of one service and outcome, over all CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CounterRow {
    /// `None`: the packets reached no service.
    pub service: Option<String>,
    pub outcome: Outcome,
    pub packets: u64,
    pub bytes: u64,
    /// The busiest closed ports of these packets, if the reason is [`guard_common::reason::Reason::ClosedPort`].
    pub ports: Vec<ClosedPortRow>,
}

impl Generation {
    /// The nonzero counters of this policy's services. The generation must not be attached.
    pub fn counters(&self) -> Result<Vec<CounterRow>, LoadError> {
        let services = self.tables().services.iter();
        let names = services.map(|service| (service.number, service.name.clone()));
        let mut rows = Vec::new();
        read(self.map(layout::COUNTERS)?, 0, &names.collect(), &mut rows)?;
        Ok(rows)
    }
}

impl InterfaceTables {
    /// The nonzero counters, also those of services that are no longer listed. `names`: from
    /// [`HostState::names`](super::HostState::names).
    pub fn counters(&self, names: &BTreeMap<u16, String>) -> Result<Vec<CounterRow>, LoadError> {
        let mut rows = Vec::new();
        for (first, page) in (0..)
            .step_by(SERVICES_PER_PAGE as usize)
            .zip(&self.counters)
        {
            read(page, first, names, &mut rows)?;
        }
        self.add_closed_ports(&mut rows)?;
        Ok(rows)
    }

    /// Resets the counters of numbers that go to another service.
    pub(super) fn empty_counters(&mut self, numbers: &[u16]) -> Result<(), LoadError> {
        let cpus = nr_cpus().map_err(|(_, error)| LoadError::Host(error))?;
        let none = Counters([CounterSlot::default(); Outcome::SLOTS as usize]);
        for number in numbers {
            let (page, place) = (
                u32::from(*number) / SERVICES_PER_PAGE,
                u32::from(*number) % SERVICES_PER_PAGE,
            );
            let Some(page) = self.counters.get_mut(page as usize) else {
                continue;
            };
            let of_cpus = PerCpuValues::try_from(vec![none; cpus]).map_err(LoadError::Host)?;
            PerCpuArray::try_from(page)?.set(place, of_cpus, 0)?;
        }
        Ok(())
    }
}

/// Reads the elements of an array for these service ids; its first element belongs to the id `first`.
fn read(
    counters: &Map,
    first: u16,
    names: &BTreeMap<u16, String>,
    rows: &mut Vec<CounterRow>,
) -> Result<(), LoadError> {
    let end = u32::from(first) + map_length(counters)?;
    let numbers = names.keys().copied().filter(|number| *number >= first);
    let numbers = numbers.map(u32::from).filter(|number| *number < end);
    let host = (first == NO_SERVICE).then_some(u32::from(NO_SERVICE));
    let places = runs(
        host.into_iter()
            .chain(numbers)
            .map(|number| number - u32::from(first)),
    );
    batch::read_per_cpu(
        counters,
        places.into_iter(),
        |place, of_cpus: &mut dyn Iterator<Item = Counters>| {
            let of_cpus: Vec<Counters> = of_cpus.collect();
            let number = u16::try_from(place)
                .ok()
                .and_then(|place| first.checked_add(place));
            let name = number.and_then(|number| names.get(&number));
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
                        ports: Vec::new(),
                    });
                }
            }
        },
    )
}

fn map_length(map: &Map) -> Result<u32, LoadError> {
    let Map::PerCpuArray(data) = map else {
        return Err(LoadError::Incomplete("per-CPU array"));
    };
    Ok(data.info()?.max_entries())
}

/// Groups ascending ids into few ranges, each of which is read in one call.
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
