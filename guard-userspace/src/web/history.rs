//! What was counted over the last hour, for the page.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use serde::Serialize;

use crate::api::Counter;

/// Seconds from one point to the next, and how many are kept: an hour.
pub const INTERVAL: u64 = 10;
const POINTS: usize = 360;

/// Which packets: their service, what became of them, what would have, and why.
type SeriesKey = (Option<String>, String, Option<String>, String);

#[derive(Debug, Default)]
pub struct History {
    /// The last sums, over all interfaces.
    last: Option<BTreeMap<SeriesKey, [u64; 2]>>,
    points: VecDeque<(Timestamp, BTreeMap<SeriesKey, [u64; 2]>)>,
}

/// One line of the chart.
#[derive(Debug, PartialEq, Serialize)]
pub struct Series {
    pub service: Option<String>,
    pub verdict: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub would: Option<String>,
    pub reason: String,
    /// For each of the times.
    pub packets: Vec<u64>,
    pub bytes: Vec<u64>,
}

/// The last hour.
#[derive(Debug, PartialEq, Serialize)]
pub struct Hour {
    /// Seconds that each point stands for.
    pub interval: u64,
    /// When each point ends.
    pub times: Vec<Timestamp>,
    pub series: Vec<Series>,
}

impl History {
    /// Takes in what has been counted up to a moment.
    pub fn add(&mut self, now: Timestamp, counters: &[Counter]) {
        let mut sums: BTreeMap<SeriesKey, [u64; 2]> = BTreeMap::new();
        for counter in counters {
            let key = (
                counter.service.clone(),
                counter.verdict.clone(),
                counter.would.clone(),
                counter.reason.clone(),
            );
            let [packets, bytes] = sums.entry(key).or_default();
            *packets += counter.packets;
            *bytes += counter.bytes;
        }
        if let Some(last) = &self.last {
            let grown = sums.iter().filter_map(|(key, [packets, bytes])| {
                let [had_packets, had_bytes] = last.get(key).copied().unwrap_or_default();
                // They start afresh when the state does.
                let more = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
                let more = [more(*packets, had_packets), more(*bytes, had_bytes)];
                (more != [0, 0]).then(|| (key.clone(), more))
            });
            self.points.push_back((now, grown.collect()));
            if self.points.len() > POINTS {
                self.points.pop_front();
            }
        }
        self.last = Some(sums);
    }

    pub fn hour(&self) -> Hour {
        let mut series: BTreeMap<&SeriesKey, Series> = BTreeMap::new();
        for (index, (_, point)) in self.points.iter().enumerate() {
            for (key, [packets, bytes]) in point {
                let (service, verdict, would, reason) = key;
                let line = series.entry(key).or_insert_with(|| Series {
                    service: service.clone(),
                    verdict: verdict.clone(),
                    would: would.clone(),
                    reason: reason.clone(),
                    packets: vec![0; self.points.len()],
                    bytes: vec![0; self.points.len()],
                });
                if let (Some(one), Some(other)) =
                    (line.packets.get_mut(index), line.bytes.get_mut(index))
                {
                    *one = *packets;
                    *other = *bytes;
                }
            }
        }
        Hour {
            interval: INTERVAL,
            times: self.points.iter().map(|(time, _)| *time).collect(),
            series: series.into_values().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(interface: &str, reason: &str, packets: u64) -> Counter {
        Counter {
            interface: interface.to_owned(),
            service: None,
            verdict: "drop".to_owned(),
            would: None,
            reason: reason.to_owned(),
            packets,
            bytes: packets * 60,
        }
    }

    #[test]
    fn it_holds_what_was_counted_in_each_interval_for_an_hour() {
        let mut history = History::default();
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        history.add(at(0), &[row("eth0", "closed_port", 100)]);
        assert!(
            history.hour().times.is_empty(),
            "a first sum is no interval"
        );
        history.add(
            at(10),
            &[
                row("eth0", "closed_port", 130),
                row("eth1", "closed_port", 5),
            ],
        );
        history.add(
            at(20),
            &[
                row("eth0", "closed_port", 130),
                row("eth1", "closed_port", 5),
            ],
        );
        // The state has started afresh.
        history.add(at(30), &[row("eth0", "closed_port", 7)]);
        let hour = history.hour();
        assert_eq!(hour.times, [at(10), at(20), at(30)]);
        assert_eq!(hour.series.len(), 1);
        assert_eq!(hour.series[0].packets, [35, 0, 7]);
        assert_eq!(hour.series[0].bytes, [35 * 60, 0, 7 * 60]);
        for second in 4..1_000 {
            history.add(at(second * 10), &[row("eth0", "closed_port", 7)]);
        }
        assert_eq!(history.hour().times.len(), POINTS);
        assert!(history.hour().series.is_empty());
    }
}
