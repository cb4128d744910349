//! Measures the cost of packets as tables grow.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::{
    cases::{Axis, AxisLine, Case, axes},
    measure::{Samples, measure},
    packets::{CPU, unquiet},
    run,
    spread::Spread,
};

/// The longest time to wait for quiet rounds, for each axis.
const PATIENCE: Duration = Duration::from_secs(180);

/// The measurements along one axis.
#[derive(Serialize)]
pub struct Growth {
    pub name: &'static str,
    pub of: &'static str,
    pub lines: Vec<GrowthSeries>,
    /// As in [`crate::row::Packets`].
    pub unquiet: Vec<String>,
}

/// The measurements of one packet along the axis.
#[derive(Serialize)]
pub struct GrowthSeries {
    pub about: &'static str,
    pub points: Vec<Point>,
}

#[derive(Serialize)]
pub struct Point {
    pub count: u32,
    /// The cost in nanoseconds above the empty program.
    pub cost: Spread,
}

pub fn measured(rounds: u32, patience: Duration) -> Result<Vec<Growth>> {
    // One axis after the other: each frees its tables before the next one loads its own.
    axes()
        .into_iter()
        .map(|axis| {
            eprintln!("bench: from few to many {}", axis.of);
            grown(axis, rounds, patience.min(PATIENCE))
        })
        .collect()
}

fn grown(axis: Axis, rounds: u32, patience: Duration) -> Result<Growth> {
    let Axis { name, of, lines } = axis;
    let cases = lines.iter().flat_map(|line| &line.cases);
    let cases: Vec<&Case> = cases.map(|(_, case)| case).collect();
    let samples = run::on(CPU, || measure(&cases, rounds, patience))?;
    let point = |(count, case): &(u32, Case)| {
        let samples = samples.get(case.name.as_ref());
        let Samples { net, fault, .. } = samples.context("a case is missing")?;
        if let Some(fault) = fault {
            anyhow::bail!("{}: {fault}", case.name);
        }
        Ok(Point {
            count: *count,
            cost: Spread::of(net.iter().copied()).context("no round was measured")?,
        })
    };
    let series = lines.iter().map(|AxisLine { about, cases }| {
        Ok(GrowthSeries {
            about,
            points: cases.iter().map(point).collect::<Result<_>>()?,
        })
    });
    Ok(Growth {
        name,
        of,
        lines: series.collect::<Result<_>>()?,
        unquiet: unquiet(&samples),
    })
}
