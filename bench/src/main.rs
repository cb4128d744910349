//! What a packet costs: guard's program as it is loaded for real policies, beside the empty program and
//! its peers, on this machine. `cargo xtask bench` runs it.

mod beside;
mod cases;
mod frames;
mod guarded;
mod machine;
mod measure;
mod policies;
mod report;
mod run;
mod spread;
mod xdp_filter;

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use jiff::Timestamp;

use crate::{
    cases::{Case, Derived, Kind, cases, derived},
    machine::Machine,
    measure::{Samples, measure},
    report::{Report, Row, Unit},
    spread::Spread,
};

/// Measures what a packet costs
#[derive(Parser)]
#[command(name = "bench")]
struct Arguments {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Measure only rows whose name contains one of these, and what they follow from
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    filter: Vec<String>,
    /// How often each row is measured
    #[arg(long, default_value_t = 21)]
    rounds: u32,
    /// Say the names of the rows, and measure nothing
    #[arg(long)]
    list: bool,
}

/// The CPU that is measured.
const CPU: usize = 0;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match bench(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every row is within its bar.
fn bench(arguments: &Arguments) -> Result<bool> {
    let Arguments {
        json,
        filter,
        rounds,
        list,
    } = arguments;
    let is_asked =
        |name: &str| filter.is_empty() || filter.iter().any(|part| name.contains(part.as_str()));
    let (cases, derived) = (cases(), derived());
    if *list {
        let names = cases.iter().map(|case| case.name);
        for name in names.chain(derived.iter().map(|derived| derived.name)) {
            println!("{name}");
        }
        return Ok(true);
    }
    let derived: Vec<&Derived> = derived.iter().filter(|row| is_asked(row.name)).collect();
    let is_needed =
        |name: &str| is_asked(name) || derived.iter().any(|row| [row.of, row.than].contains(&name));
    let cases: Vec<&Case> = cases.iter().filter(|case| is_needed(case.name)).collect();
    ensure!(
        !cases.is_empty(),
        "no row has such a name: --list says them"
    );
    let machine = Machine::read()?;
    run::pin(CPU)?;
    let samples = measure(&cases, *rounds)?;
    let empty = samples.values().flat_map(|samples| &samples.empty);
    let report = Report {
        date: Timestamp::now(),
        machine,
        empty: Spread::of(empty.copied()).context("there is no round")?,
        rounds: *rounds,
        rows: rows(&cases, &derived, &samples)?,
    };
    if *json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.print();
    }
    Ok(report.is_within())
}

fn rows(
    cases: &[&Case],
    derived: &[&Derived],
    samples: &BTreeMap<&'static str, Samples>,
) -> Result<Vec<Row>> {
    let of = |name| {
        samples
            .get(name)
            .with_context(|| format!("{name} is missing"))
    };
    let mut rows = Vec::new();
    for case in cases {
        let samples = of(case.name)?;
        let spread = Spread::of(samples.net.iter().copied()).context("there is no round")?;
        rows.push((
            case.group,
            Row::new(
                (case.name, case.group.title(), case.about),
                Unit::Nanoseconds,
                spread,
                case.bar,
                samples.fault.clone(),
            ),
        ));
    }
    for derived in derived {
        let (of, than) = (of(derived.of)?, of(derived.than)?);
        let pairs = of.net.iter().zip(&than.net);
        let (unit, values): (_, Vec<f64>) = match derived.kind {
            Kind::Difference => (
                Unit::Nanoseconds,
                pairs.map(|(of, than)| of - than).collect(),
            ),
            Kind::Ratio => (Unit::Ratio, pairs.map(|(of, than)| of / than).collect()),
        };
        rows.push((
            derived.group,
            Row::new(
                (derived.name, derived.group.title(), derived.about),
                unit,
                Spread::of(values).context("there is no round")?,
                derived.bar,
                of.fault.clone().or_else(|| than.fault.clone()),
            ),
        ));
    }
    rows.sort_by_key(|(group, _)| *group);
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}
