//! The counters of the last hour, for the chart of the page.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use serde::Serialize;

use crate::api::Counter;

/// The seconds between two points, and the number of points: an hour.
pub const INTERVAL: u64 = 10;
const POINTS: usize = 360;

/// The packets of a line: service, verdict, would-be verdict, reason.
type SeriesKey = (Option<String>, String, Option<String>, String);

/// The packets of the last hour, for the chart of the page.
#[derive(Debug, Default)]
pub struct History {
    /// The last packets and bytes, summed over all interfaces.
    last: Option<BTreeMap<SeriesKey, [u64; 2]>>,
    points: VecDeque<(Timestamp, BTreeMap<SeriesKey, [u64; 2]>)>,
}

/// A line of the chart.
#[derive(Debug, PartialEq, Serialize)]
pub struct Series {
    pub service: Option<String>,
    pub verdict: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub would: Option<String>,
    pub reason: String,
    /// A value for each time of [`Hour::times`].
    pub packets: Vec<u64>,
    pub bytes: Vec<u64>,
}

/// The last hour.
#[derive(Debug, PartialEq, Serialize)]
pub struct Hour {
    /// The seconds of each point.
    pub interval: u64,
    /// The end of each point.
    pub times: Vec<Timestamp>,
    pub series: Vec<Series>,
}

impl History {
    /// Adds a point: the difference between these counters and the last.
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
                // A smaller number means that the counters were created anew.
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

    /// The last hour, a series for each line of the chart.
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
                if let (Some(line_packets), Some(line_bytes)) =
                    (line.packets.get_mut(index), line.bytes.get_mut(index))
                {
                    *line_packets = *packets;
                    *line_bytes = *bytes;
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
            ports: Vec::new(),
        }
    }

    #[test]
    fn history_holds_the_counts_of_each_interval_for_an_hour() {
        let mut history = History::default();
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        history.add(at(0), &[row("eth0", "closed_port", 100)]);
        assert!(
            history.hour().times.is_empty(),
            "a first reading makes no point"
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
        // The counters were created anew.
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
