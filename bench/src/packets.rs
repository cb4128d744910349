//! The cost of a packet: every case compared with the empty program, and the rows derived from two cases.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    RowFilter,
    cases::{Case, Derived, DerivedKind, cases, derived},
    measure::{Samples, measure},
    row::{Bar, Packets, Row, RowUnit},
    run,
    spread::Spread,
};

/// The CPU that runs the measurements.
pub const CPU: usize = 0;

pub fn names() -> Vec<Cow<'static, str>> {
    let cases = cases().into_iter().map(|case| case.name);
    let derived = derived().into_iter().map(|derived| derived.name.into());
    cases.chain(derived).collect()
}

/// Measures the selected rows and the cases that they are derived from. `None` if no row is selected.
///
/// `patience`: the longest time to wait for quiet rounds.
pub fn measured(
    asked: &RowFilter,
    rounds: u32,
    patience: Duration,
) -> Result<Option<(Packets, Vec<Row>)>> {
    let (cases, derived) = (cases(), derived());
    let derived: Vec<&Derived> = derived.iter().filter(|row| asked.is(row.name)).collect();
    let is_needed =
        |name: &str| asked.is(name) || derived.iter().any(|row| [row.of, row.than].contains(&name));
    let cases: Vec<&Case> = cases.iter().filter(|case| is_needed(&case.name)).collect();
    if cases.is_empty() {
        return Ok(None);
    }
    let samples = run::on(CPU, || measure(&cases, rounds, patience))?;
    let empties = |is_wrapped| {
        let samples = samples.values();
        let samples = samples.filter(move |samples| samples.is_wrapped == is_wrapped);
        Spread::of(samples.flat_map(|samples| &samples.empty).copied())
    };
    // If all selected packets vary, the empty program is measured behind the wrapper.
    let empty = empties(false).or_else(|| empties(true));
    let (counted, taken) = samples.values().fold((0, 0), |(counted, taken), samples| {
        (counted + samples.net.len(), taken + samples.taken)
    });
    let packets = Packets {
        empty: empty.context("no round was measured")?,
        rounds,
        disturbed: 1.0 - counted as f64 / taken.max(1) as f64,
        unquiet: unquiet(&samples),
    };
    Ok(Some((packets, rows(&cases, &derived, &samples)?)))
}

/// The names of the cases with too few quiet rounds.
pub fn unquiet(samples: &BTreeMap<String, Samples>) -> Vec<String> {
    let unquiet = samples.iter().filter(|(_, samples)| samples.is_disturbed);
    unquiet.map(|(name, _)| name.clone()).collect()
}

fn rows(
    cases: &[&Case],
    derived: &[&Derived],
    samples: &BTreeMap<String, Samples>,
) -> Result<Vec<Row>> {
    let of = |name: &str| {
        samples
            .get(name)
            .with_context(|| format!("{name} is missing"))
    };
    let mut rows = Vec::new();
    for case in cases {
        let samples = of(&case.name)?;
        let spread = Spread::of(samples.net.iter().copied()).context("no round was measured")?;
        rows.push((
            case.group,
            Row::new(
                (&case.name, case.group.title(), case.about),
                RowUnit::Nanoseconds,
                spread,
                case.bar.map(Bar::AtMost),
                samples.fault.clone(),
            ),
        ));
    }
    for derived in derived {
        let (of, than) = (of(derived.of)?, of(derived.than)?);
        let pairs = of.net.iter().zip(&than.net);
        let (unit, values): (_, Vec<f64>) = match derived.kind {
            DerivedKind::Difference => (
                RowUnit::Nanoseconds,
                pairs.map(|(of, than)| of - than).collect(),
            ),
            DerivedKind::Ratio => (RowUnit::Ratio, pairs.map(|(of, than)| of / than).collect()),
        };
        rows.push((
            derived.group,
            Row::new(
                (derived.name, derived.group.title(), derived.about),
                unit,
                Spread::of(values).context("no round was measured")?,
                derived.bar.map(Bar::AtMost),
                of.fault.clone().or_else(|| than.fault.clone()),
            ),
        ));
    }
    rows.sort_by_key(|(group, _)| *group);
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}
