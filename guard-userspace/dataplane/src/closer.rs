//! Closes ports immediately, independent of the agent's loop: a container may start a few milliseconds after it is
//! created, and loading another generation takes longer.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use guard_policy::PublishedPort;
use tracing::warn;

use super::{Generation, ports::SharedPortMaps};

/// The port tables in force. The agent shares them with the followers of container runtimes.
#[derive(Clone, Default)]
pub struct Closer(Arc<Mutex<CloserState>>);

#[derive(Default)]
struct CloserState {
    tables: Vec<SharedPortMaps>,
    /// Ports that have been closed here and that the agent's plan does not have yet.
    early: BTreeSet<PublishedPort>,
}

impl Closer {
    /// Closes ports in the tables of these generations from now on: they are in force.
    pub fn follow<'a>(&self, generations: impl Iterator<Item = &'a Generation>) {
        self.lock().tables = generations
            .map(|generation| generation.ports.clone())
            .collect();
    }

    /// Marks ports as published, which closes those that no service lists.
    pub fn close(
        &self,
        published: impl IntoIterator<Item = PublishedPort>,
        local_ports: &RangeInclusive<u16>,
    ) {
        let published: BTreeSet<PublishedPort> = published.into_iter().collect();
        let mut inner = self.lock();
        let CloserState { tables, early } = &mut *inner;
        for table in tables {
            if let Err(error) = table.mark(&published, local_ports, early) {
                let ports: Vec<String> = published.iter().map(ToString::to_string).collect();
                warn!(
                    "{} cannot be closed before the next plan: {error}",
                    ports.join(", ")
                );
            }
        }
    }

    /// Takes the ports that were closed since the last call, so that the caller brings them in line with the policy.
    pub fn take_early(&self) -> BTreeSet<PublishedPort> {
        std::mem::take(&mut self.lock().early)
    }

    /// Gives ports back that could not be brought in line: the next [`Self::take_early`] returns them again.
    pub fn give_back(&self, mut early: BTreeSet<PublishedPort>) {
        self.lock().early.append(&mut early);
    }

    fn lock(&self) -> MutexGuard<'_, CloserState> {
        let Self(inner) = self;
        inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
