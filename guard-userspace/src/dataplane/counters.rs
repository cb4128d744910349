//! Reads what the kernel program counted.

use aya::maps::PerCpuArray;
use guard_common::{
    layout::{self, Counter, NO_SERVICE, counter_index},
    reason::Outcome,
};

use super::{Generation, LoadError};

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
    /// Every counter that has counted anything.
    pub fn counters(&self) -> Result<Vec<CounterRow>, LoadError> {
        let counters = PerCpuArray::<_, Counter>::try_from(self.map(layout::COUNTERS)?)?;
        let mut rows = Vec::new();
        let services = (NO_SERVICE..).take(self.tables().services.len() + 1);
        for service in services {
            for outcome in Outcome::all() {
                let values = counters.get(&counter_index(service, outcome), 0)?;
                let (packets, bytes) = values.iter().fold((0, 0), |(packets, bytes), value| {
                    (packets + value.packets, bytes + value.bytes)
                });
                if packets != 0 {
                    rows.push(CounterRow {
                        service: self.tables().service_name(service).map(str::to_owned),
                        outcome,
                        packets,
                        bytes,
                    });
                }
            }
        }
        Ok(rows)
    }
}
