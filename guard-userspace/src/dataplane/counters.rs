//! Reads what the kernel program counted.

use std::{borrow::Borrow, collections::BTreeMap};

use aya::maps::{MapData, PerCpuArray};
use guard_common::{
    layout::{self, Counter, NO_SERVICE, counter_index},
    reason::Outcome,
};

use super::{
    Generation, LoadError,
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
        let map = PerCpuArray::try_from(self.map(layout::COUNTERS)?)?;
        read(&map, &names.collect())
    }
}

impl State {
    /// Every counter that has counted anything, those of services that are no longer listed, too.
    pub fn counters(&self) -> Result<Vec<CounterRow>, StateError> {
        let map = PerCpuArray::try_from(self.map(layout::COUNTERS)?).map_err(LoadError::from)?;
        Ok(read(&map, &self.names()?)?)
    }
}

fn read(
    counters: &PerCpuArray<impl Borrow<MapData>, Counter>,
    names: &BTreeMap<u16, String>,
) -> Result<Vec<CounterRow>, LoadError> {
    let mut rows = Vec::new();
    let services = names.iter().map(|(number, name)| (*number, Some(name)));
    for (service, name) in services.chain([(NO_SERVICE, None)]) {
        for outcome in Outcome::all() {
            let values = counters.get(&counter_index(service, outcome), 0)?;
            let (packets, bytes) = values.iter().fold((0, 0), |(packets, bytes), value| {
                (packets + value.packets, bytes + value.bytes)
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
    }
    Ok(rows)
}
