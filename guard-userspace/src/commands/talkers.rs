//! `guard talkers`: shows the sources that send most, and those that are dropped most.

use std::{cmp::Reverse, time::Instant};

use clap::{Args, ValueEnum};
use comfy_table::Table;

use super::{
    AgentLocation, Failure,
    counters::aligned,
    figures,
    meter::{Meter, Metered, TrafficRate},
    reading::GuardReader,
    watch::Watched,
};
use crate::api::Talker;

#[derive(Debug, Args)]
pub struct Talkers {
    /// Sort by this number: the total, or with --watch the rate
    #[arg(long, value_enum, default_value_t = By::Packets)]
    by: By,
    /// Show at most this many sources
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    #[command(flatten)]
    watched: Watched,
}

/// One packet of so many is sampled.
const SAMPLE: u64 = 16;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    Packets,
    Dropped,
    Bytes,
}

impl Talkers {
    pub async fn run(self, location: &AgentLocation) -> Result<(), Failure> {
        let Self { by, limit, watched } = self;
        let reader = GuardReader::new(location)?;
        let mut meter = Meter::default();
        watched
            .run(async |watched| {
                let mut talkers = meter.read(Instant::now(), reader.talkers().await?);
                talkers.sort_by(|one, other| {
                    let weights = |talker| Reverse(by.weigh(talker));
                    weights(one)
                        .partial_cmp(&weights(other))
                        .unwrap_or(std::cmp::Ordering::Equal)
                });
                // A sort keeps the order of equals.
                talkers.sort_by_key(|talker| talker.row.packets <= SAMPLE);
                if watched.is_json() {
                    talkers.truncate(limit);
                    return watched.json(&talkers);
                }
                // One packet of sixteen within the interval.
                let resolution = watched
                    .seconds()
                    .map(|seconds| SAMPLE as f64 / seconds as f64);
                Ok(describe(&talkers, limit, resolution))
            })
            .await
    }
}

impl By {
    /// The sort key: the rate, then the total.
    fn weigh(self, talker: &Metered<Talker>) -> (f64, u64) {
        let Metered { row, rate } = talker;
        let TrafficRate {
            packets,
            dropped,
            would_drop: _,
            bytes,
        } = rate.unwrap_or_default();
        match self {
            Self::Packets => (packets, row.packets),
            Self::Dropped => (dropped, row.dropped),
            Self::Bytes => (bytes, row.bytes),
        }
    }
}

/// A rate of packets that were sampled. A source of which no packet was sampled may have sent up to `resolution`.
fn sampled(rate: f64, resolution: Option<f64>) -> String {
    match resolution {
        Some(resolution) if rate <= 0.0 => format!("<{}", figures::count(resolution)),
        _ => figures::count(rate),
    }
}

/// The heaviest sources. A source with one sampled packet may have sent one packet or thirty. Such sources are not listed
/// but counted, unless there are no others.
fn describe(talkers: &[Metered<Talker>], limit: usize, resolution: Option<f64>) -> String {
    let known = talkers.partition_point(|talker| talker.row.packets > SAMPLE);
    let (shown, single) = match known {
        0 => (talkers, 0),
        known => (
            talkers.get(..known).unwrap_or_default(),
            talkers.len() - known,
        ),
    };
    let shown = shown.get(..limit).unwrap_or(shown);
    if shown.is_empty() {
        return "no source was sampled yet".to_owned();
    }
    let mut text = table(shown, resolution).to_string();
    text += &match single {
        0 => String::new(),
        1 => "\n and 1 source with one sampled packet".to_owned(),
        sources => format!("\n and {sources} sources with one sampled packet each"),
    };
    text + "\n\nestimated from one packet of sixteen; LAST DROP is the last drop in that sample"
}

fn table(talkers: &[Metered<Talker>], resolution: Option<f64>) -> Table {
    let is_metered = talkers.iter().any(|talker| talker.rate.is_some());
    let mut table = aligned(
        &["INTERFACE", "SOURCE", "LAST DROP"],
        &["PACKETS", "DROPPED", "WOULD DROP", "BYTES"],
        is_metered.then_some(&["PACKETS/S", "DROPPED/S", "BITS/S"]),
    );
    for Metered { row, rate } in talkers {
        let mut cells = vec![
            row.interface.clone(),
            row.who(),
            row.why().unwrap_or_else(|| "-".to_owned()),
            figures::count(row.packets as f64),
            figures::count(row.dropped.saturating_sub(row.would_drop) as f64),
            figures::count(row.would_drop as f64),
            figures::bytes(row.bytes as f64),
        ];
        if let Some(rate) = rate {
            let counts =
                [rate.packets, rate.really_dropped()].map(|rate| sampled(rate, resolution));
            cells.extend(counts);
            cells.push(if rate.bytes > 0.0 {
                figures::bits(rate.bytes)
            } else {
                "-".to_owned()
            });
        }
        table.add_row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sources_with_one_sampled_packet_are_counted_after_all_others() {
        let talker = |last: usize, packets: u64| {
            let row = json!({"interface": "eth0", "source": format!("198.51.100.{last}"), "packets": packets,
                             "dropped": 0, "bytes": 60 * packets});
            Metered {
                row: serde_json::from_value(row).unwrap(),
                rate: None,
            }
        };
        let single = |number| (1..=number).map(move |last| talker(last, SAMPLE));
        let heavy = || [talker(66, 3_200), talker(67, 32)].into_iter();
        let all: Vec<_> = heavy().chain(single(3)).collect();
        let text = describe(&all, 20, None);
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
         INTERFACE  SOURCE         LAST DROP  PACKETS  DROPPED  WOULD DROP   BYTES
         eth0       198.51.100.66  -             3.2k        0           0  192 kB
         eth0       198.51.100.67  -               32        0           0  1.9 kB
         and 3 sources with one sampled packet each

        estimated from one packet of sixteen; LAST DROP is the last drop in that sample
        ");
        let ghosts: Vec<_> = single(2).collect();
        assert!(
            describe(&ghosts, 20, None).contains("198.51.100.2"),
            "there is no other"
        );
        assert!(
            !describe(&all, 1, None).contains("198.51.100.67"),
            "the limit"
        );
        assert_eq!(describe(&[], 20, None), "no source was sampled yet");
    }

    #[test]
    fn dropped_and_would_be_dropped_are_apart_and_a_rate_below_the_sample_is_a_bound() {
        let rows = json!([
            {"interface": "eth0", "source": "198.51.100.7", "name": "office", "packets": 3_200, "dropped": 1_600,
             "would_drop": 1_600, "bytes": 200_000, "reason": "packet_limit", "service": "web"},
            {"interface": "eth0", "source": "2001:db8::66", "packets": 160, "dropped": 160, "bytes": 9_600,
             "reason": "closed_port", "port": "tcp/8000"},
        ]);
        let rows: Vec<Talker> = serde_json::from_value(rows).unwrap();
        let rate = TrafficRate {
            packets: 160.0,
            dropped: 80.0,
            would_drop: 80.0,
            bytes: 10_000.0,
        };
        let rates = [Some(rate), Some(TrafficRate::default())];
        let rows: Vec<Metered<Talker>> = rows
            .into_iter()
            .zip(rates)
            .map(|(row, rate)| Metered { row, rate })
            .collect();
        let text = table(&rows, Some(8.0)).to_string();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        INTERFACE  SOURCE               LAST DROP             PACKETS  DROPPED  WOULD DROP   BYTES  PACKETS/S  DROPPED/S       BITS/S
        eth0       198.51.100.7 office  packet_limit at web      3.2k        0        1.6k  200 kB        160         <8  80.0 kbit/s
        eth0       2001:db8::66         closed_port tcp/8000      160      160           0  9.6 kB         <8         <8            -
        ");
    }
}
