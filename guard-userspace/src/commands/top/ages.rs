//! How long rows have been without traffic: verdicts of the past dim, and then leave the screen.

use std::{
    collections::HashMap,
    hash::Hash,
    mem,
    time::{Duration, Instant},
};

use crate::commands::meter::{Counting, Metered, TrafficRate};

/// A row without traffic for so long is dim, and then leaves the screen.
const UNTIL_QUIET: Duration = Duration::from_secs(10);
const UNTIL_PAST: Duration = Duration::from_secs(60);

/// Whether a row has traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    Active,
    /// Without traffic for [`UNTIL_QUIET`].
    Quiet,
    /// Without traffic for [`UNTIL_PAST`].
    Past,
}

/// When each row last had traffic.
pub struct Ages<K> {
    last_active: HashMap<K, Instant>,
    now: Option<Instant>,
}

impl<K> Default for Ages<K> {
    fn default() -> Self {
        Self {
            last_active: HashMap::new(),
            now: None,
        }
    }
}

impl<K: Eq + Hash> Ages<K> {
    /// Takes a reading. The first says nothing about rates, so each of its rows may have traffic.
    pub fn read<T: Counting<Key = K>>(&mut self, at: Instant, rows: &[Metered<T>]) {
        self.read_traffic(at, rows, |rate| rate.packets > 0.0);
    }

    /// Takes a reading of the dropped packets alone.
    pub fn read_drops<T: Counting<Key = K>>(&mut self, at: Instant, rows: &[Metered<T>]) {
        self.read_traffic(at, rows, |rate| rate.dropped > 0.0);
    }

    fn read_traffic<T: Counting<Key = K>>(
        &mut self,
        at: Instant,
        rows: &[Metered<T>],
        is_traffic: fn(&TrafficRate) -> bool,
    ) {
        let mut before = mem::take(&mut self.last_active);
        for Metered { row, rate } in rows {
            let has_traffic = rate.as_ref().is_none_or(is_traffic);
            let last = before.remove(&row.key()).filter(|_| !has_traffic);
            self.last_active.insert(row.key(), last.unwrap_or(at));
        }
        self.now = Some(at);
    }

    /// How long this row had no traffic, at the last reading.
    pub fn idle(&self, key: &K) -> Duration {
        let (now, last) = (self.now, self.last_active.get(key));
        now.zip(last)
            .map(|(now, last)| now.saturating_duration_since(*last))
            .unwrap_or_default()
    }

    pub fn activity(&self, key: &K) -> Activity {
        match self.idle(key) {
            idle if idle >= UNTIL_PAST => Activity::Past,
            idle if idle >= UNTIL_QUIET => Activity::Quiet,
            _ => Activity::Active,
        }
    }
}
