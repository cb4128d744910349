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
                talkers.truncate(limit);
                if watched.is_json() {
                    return watched.json(&talkers);
                }
                Ok(match talkers.as_slice() {
                    [] => "no source was sampled yet".to_owned(),
                    talkers => {
                        format!("{}\n\nestimated from one packet of sixteen", table(talkers))
                    }
                })
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
            bytes,
        } = rate.unwrap_or_default();
        match self {
            Self::Packets => (packets, row.packets),
            Self::Dropped => (dropped, row.dropped),
            Self::Bytes => (bytes, row.bytes),
        }
    }
}

fn table(talkers: &[Metered<Talker>]) -> Table {
    let is_metered = talkers.iter().any(|talker| talker.rate.is_some());
    let mut table = aligned(
        &["INTERFACE", "SOURCE", "DROPPED LAST FOR"],
        &["PACKETS", "DROPPED", "BYTES"],
        is_metered.then_some(&["PACKETS/S", "DROPPED/S", "BITS/S"]),
    );
    for Metered { row, rate } in talkers {
        let mut cells = vec![
            row.interface.clone(),
            row.who(),
            row.why().unwrap_or_else(|| "-".to_owned()),
            figures::count(row.packets as f64),
            figures::count(row.dropped as f64),
            figures::bytes(row.bytes as f64),
        ];
        if let Some(rate) = rate {
            let counts = [rate.packets, rate.dropped].map(figures::count);
            cells.extend(counts);
            cells.push(figures::bits(rate.bytes));
        }
        table.add_row(cells);
    }
    table
}
