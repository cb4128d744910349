//! `guard talkers`: the sources that send most, and those that are dropped most.

use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, Table, presets::NOTHING};

use super::{Failure, Output, print, print_json};
use crate::api::{Talker, client::Client};

#[derive(Debug, Args)]
pub struct Talkers {
    /// What to sort by
    #[arg(long, value_enum, default_value_t = By::Packets)]
    by: By,
    /// How many to show
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    Packets,
    Dropped,
    Bytes,
}

impl Talkers {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let Self {
            by,
            limit,
            output: Output { json },
        } = self;
        let mut talkers = client.talkers().await?;
        talkers.sort_by_key(|talker| {
            std::cmp::Reverse(match by {
                By::Packets => talker.packets,
                By::Dropped => talker.dropped,
                By::Bytes => talker.bytes,
            })
        });
        talkers.truncate(limit);
        if json {
            return Ok(print_json(&talkers)?);
        }
        if talkers.is_empty() {
            return Ok(print("nobody has sent anything yet")?);
        }
        Ok(print(&format!(
            "{}\n\nestimated from one packet of sixteen",
            table(&talkers)
        ))?)
    }
}

fn table(talkers: &[Talker]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["INTERFACE", "SOURCE", "PACKETS", "DROPPED", "BYTES"]);
    for numbers in 2..=4 {
        if let Some(column) = table.column_mut(numbers) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for Talker {
        interface,
        source,
        packets,
        dropped,
        bytes,
    } in talkers
    {
        table.add_row([
            interface.clone(),
            source.to_string(),
            packets.to_string(),
            dropped.to_string(),
            bytes.to_string(),
        ]);
    }
    table
}
