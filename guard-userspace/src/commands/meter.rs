//! Computes rates from two readings of the kernel's counters.

use std::{collections::HashMap, hash::Hash, net::IpAddr, time::Instant};

use serde::Serialize;

use crate::api::{Counter, Talker};

/// A row of counters, with the key that finds it in the next reading.
pub trait Counting {
    type Key: Clone + Eq + Hash;
    fn key(&self) -> Self::Key;
    fn sums(&self) -> Sums;
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    pub packets: u64,
    /// Packets that were dropped, or would have been dropped in mode enforce.
    pub dropped: u64,
    /// Those of `dropped` that passed only because of the mode.
    pub would_drop: u64,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TrafficRate {
    #[serde(rename = "packets_per_second")]
    pub packets: f64,
    #[serde(rename = "dropped_per_second")]
    pub dropped: f64,
    #[serde(rename = "would_drop_per_second")]
    pub would_drop: f64,
    #[serde(rename = "bytes_per_second")]
    pub bytes: f64,
}

impl TrafficRate {
    /// Packets that were dropped and did not pass because of the mode, per second.
    pub fn really_dropped(self) -> f64 {
        (self.dropped - self.would_drop).max(0.0)
    }
}

impl std::ops::AddAssign for TrafficRate {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.dropped += other.dropped;
        self.would_drop += other.would_drop;
        self.bytes += other.bytes;
    }
}

/// A row with its rate since the previous reading. The first reading has no rates.
#[derive(Clone, Debug, Serialize)]
pub struct Metered<T> {
    #[serde(flatten)]
    pub row: T,
    #[serde(flatten)]
    pub rate: Option<TrafficRate>,
}

/// Computes the rates of each reading, and keeps it for the next.
pub struct Meter<T: Counting> {
    before: Option<(Instant, HashMap<T::Key, Sums>)>,
}

impl<T: Counting> Default for Meter<T> {
    fn default() -> Self {
        Self { before: None }
    }
}

impl<T: Counting> Meter<T> {
    pub fn read(&mut self, at: Instant, rows: Vec<T>) -> Vec<Metered<T>> {
        let now = rows.iter().map(|row| (row.key(), row.sums())).collect();
        let before = self.before.replace((at, now));
        let rate = |row: &T| {
            let (then, sums) = before.as_ref()?;
            let seconds = at.duration_since(*then).as_secs_f64();
            let before = sums.get(&row.key()).copied().unwrap_or_default();
            (seconds > 0.0).then(|| rate_of(row.sums(), before, seconds))
        };
        rows.into_iter()
            .map(|row| {
                let rate = rate(&row);
                Metered { row, rate }
            })
            .collect()
    }
}

fn rate_of(now: Sums, before: Sums, seconds: f64) -> TrafficRate {
    // A smaller number than before means that the counter was created anew.
    let before = if now.packets < before.packets {
        Sums::default()
    } else {
        before
    };
    let per_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
    TrafficRate {
        packets: per_second(now.packets, before.packets),
        dropped: per_second(now.dropped, before.dropped),
        would_drop: per_second(now.would_drop, before.would_drop),
        bytes: per_second(now.bytes, before.bytes),
    }
}

impl Counting for Counter {
    type Key = (String, Option<String>, String, bool);

    fn key(&self) -> Self::Key {
        let (interface, service) = (self.interface.clone(), self.service.clone());
        (
            interface,
            service,
            self.reason.clone(),
            self.would.is_some(),
        )
    }

    fn sums(&self) -> Sums {
        Sums {
            packets: self.packets,
            dropped: if self.is_drop() { self.packets } else { 0 },
            would_drop: if self.would.is_some() {
                self.packets
            } else {
                0
            },
            bytes: self.bytes,
        }
    }
}

impl Counting for Talker {
    type Key = (String, IpAddr);

    fn key(&self) -> Self::Key {
        (self.interface.clone(), self.source)
    }

    fn sums(&self) -> Sums {
        Sums {
            packets: self.packets,
            dropped: self.dropped,
            would_drop: self.would_drop,
            bytes: self.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn talker(packets: u64) -> Talker {
        Talker {
            interface: "eth0".to_owned(),
            source: IpAddr::from([198, 51, 100, 7]),
            name: None,
            packets,
            dropped: packets / 2,
            would_drop: packets / 4,
            bytes: packets * 100,
            reason: None,
            service: None,
            port: None,
        }
    }

    #[test]
    fn a_rate_counts_from_the_previous_reading_and_a_new_counter_from_zero() {
        let start = Instant::now();
        let mut meter = Meter::default();
        assert_eq!(meter.read(start, vec![talker(100)])[0].rate, None);
        for (second, packets, rate) in [(2, 300, 100.0), (4, 300, 0.0), (6, 52, 26.0)] {
            let at = start + Duration::from_secs(second);
            let found = meter.read(at, vec![talker(packets)])[0].rate;
            let expected = TrafficRate {
                packets: rate,
                dropped: rate / 2.0,
                would_drop: rate / 4.0,
                bytes: rate * 100.0,
            };
            assert_eq!(found, Some(expected), "{second}");
        }
        assert_eq!(
            meter.read(start + Duration::from_secs(6), vec![talker(60)])[0].rate,
            None
        );
    }
}
