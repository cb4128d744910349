//! `guard counters`: shows how many packets passed and were dropped, by service and reason.

use std::time::Instant;

use comfy_table::{CellAlignment, Table, presets::NOTHING};

use super::{
    AgentLocation, Failure, figures,
    meter::{Meter, Metered},
    reading::GuardReader,
    watch::Watched,
};
use crate::api::Counter;

pub async fn run(location: &AgentLocation, watched: Watched) -> Result<(), Failure> {
    let reader = GuardReader::new(location)?;
    let mut meter = Meter::default();
    watched
        .run(async |watched| {
            let counters = meter.read(Instant::now(), reader.counters().await?);
            if watched.is_json() {
                return watched.json(&counters);
            }
            Ok(match counters.as_slice() {
                [] => "no packet was counted yet".to_owned(),
                counters => table(counters).to_string(),
            })
        })
        .await
}

fn table(counters: &[Metered<Counter>]) -> Table {
    let is_metered = counters.iter().any(|counter| counter.rate.is_some());
    let mut table = aligned(
        &["INTERFACE", "SERVICE", "VERDICT", "REASON"],
        &["PACKETS", "BYTES"],
        is_metered.then_some(&["PACKETS/S", "BITS/S"]),
    );
    for Metered { row, rate } in counters {
        let mut cells = vec![
            row.interface.clone(),
            row.service.clone().unwrap_or_else(|| "-".to_owned()),
            row.describe_verdict(),
            row.reason.clone(),
            figures::count(row.packets as f64),
            figures::bytes(row.bytes as f64),
        ];
        if let Some(rate) = rate {
            cells.extend([figures::count(rate.packets), figures::bits(rate.bytes)]);
        }
        table.add_row(cells);
    }
    table
}

/// A table whose first columns (`facts`) are aligned left, and whose totals and rates are aligned right.
pub fn aligned(facts: &[&str], totals: &[&str], rates: Option<&[&str]>) -> Table {
    let numbers = [totals, rates.unwrap_or_default()].concat();
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([facts, &numbers].concat());
    for index in facts.len()..facts.len() + numbers.len() {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
