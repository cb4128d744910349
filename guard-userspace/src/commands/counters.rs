//! `guard counters`: what became of the packets, by service and reason.

use comfy_table::{CellAlignment, Table, presets::NOTHING};

use super::{Failure, Output, Whereabouts, print, print_json};
use crate::{api::Counter, unattended};

/// Without an agent the kernel's own counters are read from the pins.
pub async fn run(whereabouts: &Whereabouts, output: &Output) -> Result<(), Failure> {
    let counters = match whereabouts.client()?.counters().await {
        Err(error) if error.is_without_agent() => {
            let counters = unattended::counters(&whereabouts.pins);
            counters.ok().flatten().ok_or(error)?
        }
        counters => counters?,
    };
    if output.json {
        return Ok(print_json(&counters)?);
    }
    if counters.is_empty() {
        return Ok(print("no packet has come yet")?);
    }
    Ok(print(&table(&counters).to_string())?)
}

fn table(counters: &[Counter]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([
        "INTERFACE",
        "SERVICE",
        "VERDICT",
        "REASON",
        "PACKETS",
        "BYTES",
    ]);
    for numbers in [4, 5] {
        if let Some(column) = table.column_mut(numbers) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for Counter {
        interface,
        service,
        verdict,
        would,
        reason,
        packets,
        bytes,
    } in counters
    {
        let verdict = match would {
            Some(would) => format!("{verdict} (would {would})"),
            None => verdict.clone(),
        };
        table.add_row([
            interface,
            service.as_deref().unwrap_or("-"),
            &verdict,
            reason,
            &packets.to_string(),
            &bytes.to_string(),
        ]);
    }
    table
}
