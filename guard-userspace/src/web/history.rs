//! The counters of the last hour, for the chart of the page.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::Serialize;

use super::{
    floods::{FloodPoint, FloodSpan, floods},
    marks::{ChartMark, RecentMarks},
};
use crate::api::Counter;

/// The seconds between two points, and the number of points: an hour.
pub const INTERVAL: u64 = 10;
const POINTS: usize = 360;

/// The packets of a line: service, verdict, would-be verdict, reason.
type SeriesKey = (Option<String>, String, Option<String>, String);

/// The packets and bytes of each line.
type LineSums = BTreeMap<SeriesKey, [u64; 2]>;

/// The packets of the last hour, for the chart of the page.
#[derive(Debug, Default)]
pub struct History {
    /// The last reading, summed over all interfaces.
    last: Option<(Instant, LineSums)>,
    points: VecDeque<HistoryPoint>,
    /// The changes of the last hour.
    pub marks: RecentMarks,
}

/// What was counted between two readings.
#[derive(Debug)]
struct HistoryPoint {
    time: Timestamp,
    /// Longer than [`INTERVAL`] after a reading that failed.
    lasted: Duration,
    grown: LineSums,
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
    /// The seconds between two points.
    pub interval: u64,
    /// The time of the answer, by the clock of the host.
    pub now: Timestamp,
    /// The end of each point.
    pub times: Vec<Timestamp>,
    /// The seconds of each point: more than `interval` after counters that could not be read.
    pub seconds: Vec<f64>,
    pub series: Vec<Series>,
    /// The changes of the last hour, the oldest first.
    pub marks: Vec<ChartMark>,
    /// The floods of the last hour, the oldest first.
    pub floods: Vec<FloodSpan>,
}

impl History {
    /// Adds a point: the difference between these counters and the last. `read_at` is the same moment as `now`, by a
    /// clock that nobody sets.
    pub fn add(&mut self, now: Timestamp, read_at: Instant, counters: &[Counter]) {
        let mut sums = LineSums::new();
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
        if let Some((last_read, last)) = &self.last {
            let grown = sums.iter().filter_map(|(key, [packets, bytes])| {
                let [had_packets, had_bytes] = last.get(key).copied().unwrap_or_default();
                // A smaller number means that the counters were created anew.
                let more = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
                let more = [more(*packets, had_packets), more(*bytes, had_bytes)];
                (more != [0, 0]).then(|| (key.clone(), more))
            });
            let grown = grown.collect();
            // The clock was set back: times on the axis only grow.
            while self.points.back().is_some_and(|point| point.time >= now) {
                self.points.pop_back();
            }
            self.points.push_back(HistoryPoint {
                time: now,
                lasted: read_at.saturating_duration_since(*last_read),
                grown,
            });
            if self.points.len() > POINTS {
                self.points.pop_front();
            }
        }
        self.last = Some((read_at, sums));
    }

    /// The last hour, a series for each line of the chart.
    pub fn hour(&self, now: Timestamp) -> Hour {
        let mut series: BTreeMap<&SeriesKey, Series> = BTreeMap::new();
        for (index, point) in self.points.iter().enumerate() {
            for (key, [packets, bytes]) in &point.grown {
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
        let points: Vec<FloodPoint<'_>> = self.points.iter().map(HistoryPoint::drops).collect();
        Hour {
            interval: INTERVAL,
            now,
            times: self.points.iter().map(|point| point.time).collect(),
            seconds: self.points.iter().map(HistoryPoint::seconds).collect(),
            series: series.into_values().collect(),
            marks: self.marks.hour(now),
            floods: floods(&points),
        }
    }
}

impl HistoryPoint {
    /// Two readings are never at the same moment; a rate needs a number above zero.
    fn seconds(&self) -> f64 {
        self.lasted.as_millis().max(1) as f64 / 1_000.0
    }

    fn drops(&self) -> FloodPoint<'_> {
        let mut passed = 0;
        let mut dropped = Vec::new();
        for ((service, verdict, would, reason), [packets, _]) in &self.grown {
            match verdict == "drop" || would.is_some() {
                true => dropped.push((service.as_deref(), reason.as_str(), *packets)),
                false => passed += packets,
            }
        }
        FloodPoint {
            begin: self.time - self.lasted,
            end: self.time,
            seconds: self.seconds(),
            passed,
            dropped,
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
        let start = Instant::now();
        let add = |history: &mut History, second: u64, rows: &[Counter]| {
            let read_at = start + Duration::from_secs(second);
            history.add(at(second as i64), read_at, rows);
        };
        add(&mut history, 0, &[row("eth0", "closed_port", 100)]);
        assert!(
            history.hour(at(0)).times.is_empty(),
            "a first reading makes no point"
        );
        let two = [
            row("eth0", "closed_port", 130),
            row("eth1", "closed_port", 5),
        ];
        add(&mut history, 10, &two);
        add(&mut history, 20, &two);
        // The counters were created anew.
        add(&mut history, 30, &[row("eth0", "closed_port", 7)]);
        let hour = history.hour(at(31));
        assert_eq!(hour.now, at(31));
        assert_eq!(hour.times, [at(10), at(20), at(30)]);
        assert_eq!(hour.seconds, [10.0; 3]);
        assert_eq!(hour.series.len(), 1);
        assert_eq!(hour.series[0].packets, [35, 0, 7]);
        assert_eq!(hour.series[0].bytes, [35 * 60, 0, 7 * 60]);
        for number in 4..1_000 {
            add(&mut history, number * 10, &[row("eth0", "closed_port", 7)]);
        }
        assert_eq!(history.hour(at(0)).times.len(), POINTS);
        assert!(history.hour(at(0)).series.is_empty());
    }

    #[test]
    fn a_point_after_a_failed_reading_is_longer_and_no_flood() {
        let mut history = History::default();
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let start = Instant::now();
        for (second, packets) in [(0, 0), (10, 9_000), (40, 36_000), (50, 60_000)] {
            let read_at = start + Duration::from_secs(second);
            let rows = [row("eth0", "closed_port", packets)];
            history.add(at(second as i64), read_at, &rows);
        }
        let hour = history.hour(at(50));
        assert_eq!(hour.seconds, [10.0, 30.0, 10.0]);
        // 2,400 packets/s in the last point, and 900 packets/s in the others.
        assert_eq!(hour.floods.len(), 1);
        assert_eq!(hour.floods[0].begin, at(40));
        assert_eq!((hour.floods[0].end, hour.floods[0].peak), (None, 2_400));
    }

    #[test]
    fn a_clock_that_is_set_back_leaves_times_that_grow() {
        let mut history = History::default();
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let start = Instant::now();
        for (number, second) in (0..).zip([100, 110, 120, 105, 115]) {
            let read_at = start + Duration::from_secs(10 * number);
            history.add(at(second), read_at, &[]);
        }
        assert_eq!(history.hour(at(115)).times, [at(105), at(115)]);
    }
}
