//! `guard counters`: what became of the packets, by service and reason.

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets::NOTHING};

use super::{Output, print, print_json};
use crate::api::{Counter, client::Client};

pub async fn run(client: &Client, output: &Output) -> Result<()> {
    let counters = client.counters().await?;
    if output.json {
        return print_json(&counters);
    }
    if counters.is_empty() {
        return print("no packet has come yet");
    }
    print(&table(&counters).to_string())
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
