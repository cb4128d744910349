//! What a packet costs: guard's program as it is loaded for real policies, beside the empty program and
//! its peers, on this machine; and what the agent costs. `cargo xtask bench` runs it.

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

/// Where the documentation is, seen from the root of the workspace.
const DOCS: &str = "docs";

/// Measures what a packet costs, and what the agent does
#[derive(Parser)]
#[command(name = "bench")]
struct BenchArguments {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Measure only rows whose name contains one of these, and what they follow from
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    filter: Vec<String>,
    /// How often each row is measured
    #[arg(long, default_value_t = 21)]
    rounds: u32,
    /// How many seconds quiet rounds are waited for, if the machine is disturbed; with more of something, for
    /// each of those at most 180
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    patience: u64,
    /// Measure what packets cost when there is more of something as well: sources, services, ports, denied
    /// and named sources
    #[arg(long)]
    growth: bool,
    /// Measure what a web server keeps under a flood as well; it needs two CPUs for some minutes
    #[arg(long)]
    end_to_end: bool,
    /// Measure with more of everything, and write everything into performance.md in this folder, with the plots
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, default_missing_value = DOCS, conflicts_with = "filter")]
    docs: Option<PathBuf>,
    /// Say the names of the rows, and measure nothing
    #[arg(long)]
    list: bool,
}

/// Which rows are asked for.
pub struct RowFilter {
    /// All, if there are none.
    parts: Vec<String>,
}

impl RowFilter {
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
        // Whoever reads no further has seen enough.
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
    // What fails late leaves what was measured before.
    let mut add = |group, measured: Result<Vec<Row>>| match measured {
        Ok(measured) => rows.extend(measured),
        Err(error) => rows.push(Row::failed(group, &error)),
    };
    add("Two CPUs", two_cpus::measured(&asked, rounds));
    add("The control side", control::measured(&asked));
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
        "no row has such a name: --list says them"
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
