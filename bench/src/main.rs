//! Measures the cost of a packet on this machine: guard's program, loaded for real policies, beside the empty program
//! and other software. Measures also the cost of the agent. `cargo xtask bench` runs it.

mod beside;
mod cases;
mod control;
mod docs;
mod end_to_end;
mod frames;
mod growth;
mod guarded;
mod machine;
mod measure;
mod packets;
mod plot;
mod policies;
mod quiet;
mod report;
mod row;
mod run;
mod spread;
mod stage;
mod two_cpus;
mod watched;
mod xdp_filter;

use std::{
    borrow::Cow,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, ensure};
use clap::Parser;
use jiff::Timestamp;

use crate::{machine::MachineInfo, report::BenchReport, row::Row};

/// The folder of the documentation, relative to the root of the workspace.
const DOCS: &str = "docs";

/// Measure the cost of a packet and of the agent
#[derive(Parser)]
#[command(name = "bench")]
struct BenchArguments {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Measure only rows whose name contains one of these, and the rows that they are derived from
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    filter: Vec<String>,
    /// Measure each row this many times
    #[arg(long, default_value_t = 21)]
    rounds: u32,
    /// Wait at most this many seconds for quiet rounds, if the machine is disturbed; with --growth, at most 180 for
    /// each table
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    patience: u64,
    /// Measure also the cost of packets as tables grow: sources, services, ports, denied and named sources
    #[arg(long)]
    growth: bool,
    /// Measure also what a web server keeps under a flood; this needs two CPUs for some minutes
    #[arg(long)]
    end_to_end: bool,
    /// Measure as with --growth, and write all results into performance.md in this folder, with the plots
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, default_missing_value = DOCS, conflicts_with = "filter")]
    docs: Option<PathBuf>,
    /// Print the names of the rows, and measure nothing
    #[arg(long)]
    list: bool,
}

/// The selected rows.
pub struct RowFilter {
    /// Parts of names; without any, all rows are selected.
    parts: Vec<String>,
}

impl RowFilter {
    /// Whether a row of this name is wanted.
    pub fn is(&self, name: &str) -> bool {
        let Self { parts } = self;
        parts.is_empty() || parts.iter().any(|part| name.contains(part.as_str()))
    }
}

fn main() -> ExitCode {
    let arguments = BenchArguments::parse();
    match bench(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every row is within its bar.
fn bench(arguments: BenchArguments) -> Result<bool> {
    let BenchArguments {
        json,
        filter,
        rounds,
        patience,
        growth,
        end_to_end,
        docs,
        list,
    } = arguments;
    if list {
        let others = two_cpus::NAMES.into_iter().chain(control::NAMES);
        let others = others.chain(watched::NAMES);
        let floods = end_to_end::names().into_iter().map(Cow::Owned);
        let others = others.map(Cow::Borrowed).chain(floods);
        let mut names = packets::names().into_iter().chain(others);
        // A closed pipe is no error: the reader needs no more names.
        let _ = names.try_for_each(|name| writeln!(io::stdout(), "{name}"));
        return Ok(true);
    }
    let patience = Duration::from_secs(patience);
    let asked = RowFilter { parts: filter };
    let mut rows = Vec::new();
    let packets = match packets::measured(&asked, rounds, patience)? {
        Some((packets, measured)) => {
            rows.extend(measured);
            Some(packets)
        }
        None => None,
    };
    // A group that fails does not discard the groups measured before.
    let mut add = |group, measured: Result<Vec<Row>>| match measured {
        Ok(measured) => rows.extend(measured),
        Err(error) => rows.push(Row::failed(group, &error)),
    };
    add("Two CPUs", two_cpus::measured(&asked, rounds));
    add("The agent", control::measured(&asked));
    add("Watched", watched::measured(&asked));
    if end_to_end {
        add("A server under a flood", end_to_end::measured(&asked));
    }
    let growth = if growth || docs.is_some() {
        growth::measured(rounds, patience)?
    } else {
        Vec::new()
    };
    ensure!(
        !rows.is_empty() || !growth.is_empty(),
        "no row has such a name: --list prints all names"
    );
    let report = BenchReport {
        date: Timestamp::now(),
        machine: MachineInfo::read()?,
        packets,
        rows,
        growth,
    };
    if let Some(folder) = docs {
        docs::write(&folder, &report)?;
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.print();
    }
    Ok(report.is_within())
}
