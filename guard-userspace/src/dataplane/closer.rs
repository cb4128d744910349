//! Closes ports at once, whatever else the agent is busy with: a container may be started a few
//! milliseconds after it is created, and to load another generation takes longer than that.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    os::fd::AsFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::maps::{Array, Map, MapData};
use guard_common::layout::{self, PortEntry, port_index};
use tracing::warn;

use super::{Generation, LoadError};
use crate::policy::PublishedPort;

/// The port tables in force, shared by the agent and whoever hears first what containers publish.
#[derive(Clone, Default)]
pub struct Closer(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    tables: Vec<Map>,
    /// What has been closed here, and the agent does not know of yet.
    early: BTreeSet<PublishedPort>,
}

impl Closer {
    /// The tables of these generations are in force from now on.
    pub fn follow<'a>(
        &self,
        generations: impl Iterator<Item = &'a Generation>,
    ) -> Result<(), LoadError> {
        let tables = generations.map(|generation| {
            let Map::Array(data) = generation.map(layout::PORTS)? else {
                return Err(LoadError::Incomplete(layout::PORTS));
            };
            let fd = data.fd().as_fd().try_clone_to_owned();
            let data = MapData::from_fd(fd.map_err(LoadError::Host)?)?;
            Ok(Map::from_map_data(data)?)
        });
        self.lock().tables = tables.collect::<Result<_, LoadError>>()?;
        Ok(())
    }

    /// Closes ports that no service lists. Others are only marked as published, which they are.
    pub fn close(
        &self,
        published: impl IntoIterator<Item = PublishedPort>,
        local_ports: &RangeInclusive<u16>,
    ) {
        let mut inner = self.lock();
        let Inner { tables, early } = &mut *inner;
        for port in published {
            for table in tables.iter_mut() {
                match mark(table, port, local_ports) {
                    Ok(true) => {
                        early.insert(port);
                    }
                    Ok(false) => {}
                    Err(error) => warn!("{port} cannot be closed at once: {error}"),
                }
            }
        }
    }

    /// The ports that have been closed since the last time, to be brought in line with the policy.
    pub fn take_early(&self) -> BTreeSet<PublishedPort> {
        std::mem::take(&mut self.lock().early)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        let Self(inner) = self;
        inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether that is new.
fn mark(
    table: &mut Map,
    port: PublishedPort,
    local_ports: &RangeInclusive<u16>,
) -> Result<bool, LoadError> {
    let mut table = Array::<_, PortEntry>::try_from(table)?;
    let index = port_index(port.protocol, port.port);
    let before = table.get(&index, 0)?;
    let after = port.marked(before, local_ports);
    if after == before {
        return Ok(false);
    }
    table.set(index, after, 0)?;
    Ok(true)
}
