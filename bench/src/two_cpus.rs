//! The throughput of two CPUs at once on one loaded program, compared with one CPU alone and with the empty program.

use std::sync::Barrier;

use anyhow::{Context as _, Result, ensure};
use aya::programs::Xdp;
use guard_common::reason::{Outcome, Reason};

use crate::{
    RowFilter,
    beside::Beside,
    frames::{CLIENT_V4, PacketAddresses, syn},
    guarded::GuardProgram,
    policies::{FRIEND, Name, WEB, WEB_PORT},
    row::{Bar, Row, RowUnit},
    run::{self, XDP_PASS, run},
    spread::Spread,
};

const EMPTY: &str = "cpus-empty";
const DIFFERENT: &str = "cpus-different";
const SAME: &str = "cpus-same";
const FLOOR: &str = "cpus-same-floor";
const TOTAL: &str = "cpus-total";

pub const NAMES: [&str; 5] = [EMPTY, DIFFERENT, SAME, FLOOR, TOTAL];

const CPUS: [usize; 2] = [0, 1];

/// Packets for each CPU in a measurement: about 20 ms, so that the time between the two starts does not matter.
const REPEAT: u32 = 400_000;

/// A program, and the packet that each CPU gets.
struct TwoCpuSubject<'a> {
    program: &'a Xdp,
    frames: &'a [Vec<u8>; 2],
}

/// The throughput of both CPUs at once, divided by that of one CPU alone.
fn scaling(subject: &TwoCpuSubject<'_>) -> Result<f64> {
    let [first, second] = CPUS;
    let alone = [alone(subject, first)?, alone(subject, second)?];
    let together: f64 = at_once(subject)?.iter().sum();
    Ok(together / (alone.iter().sum::<f64>() / 2.0))
}

/// Packets per nanosecond of the thread's CPU time. Time in which another process has the CPU does not count.
fn rate(subject: &TwoCpuSubject<'_>, cpu: usize) -> Result<f64> {
    let run = run(subject.program, &subject.frames[cpu], REPEAT)?;
    ensure!(
        run.verdict == XDP_PASS,
        "the program must pass the packet, and returned {}",
        run.verdict
    );
    Ok(1.0 / run.ns)
}

fn alone(subject: &TwoCpuSubject<'_>, cpu: usize) -> Result<f64> {
    run::on(cpu, || rate(subject, cpu))
}

fn at_once(subject: &TwoCpuSubject<'_>) -> Result<[f64; 2]> {
    let start = Barrier::new(CPUS.len());
    let [first, second] = CPUS;
    let on = |cpu| {
        run::on(cpu, || {
            start.wait();
            rate(subject, cpu)
        })
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| on(second));
        let own = on(first)?;
        match other.join() {
            Ok(other) => Ok([own, other?]),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

pub fn measured(asked: &RowFilter, rounds: u32) -> Result<Vec<Row>> {
    if !NAMES.into_iter().any(|name| asked.is(name)) {
        return Ok(Vec::new());
    }
    let empty = Beside::empty()?;
    let floor = Beside::two_exchanges()?;
    let limited = GuardProgram::load(&Name::Packets.setup())?;
    let shared = GuardProgram::load(&Name::AllBudgets.setup())?;
    let frame = |source| syn(PacketAddresses::from(source), WEB_PORT);
    let different = [frame(CLIENT_V4), frame(FRIEND)];
    let same = [frame(CLIENT_V4), frame(CLIENT_V4)];
    let subject = |program, frames| TwoCpuSubject { program, frames };
    let subjects = [
        subject(empty.program()?, &different),
        subject(limited.program()?, &different),
        subject(limited.program()?, &same),
        subject(floor.program()?, &same),
        subject(shared.program()?, &different),
    ];
    let mut scalings: [Vec<f64>; 5] = Default::default();
    for _ in 0..rounds {
        lab::interrupt::check()?;
        for (subject, scalings) in subjects.iter().zip(&mut scalings) {
            scalings.push(scaling(subject)?);
        }
    }
    let fault = find_stray(&limited)?.or(find_stray(&shared)?);
    let [empty, different, same, floor, total] = scalings;
    let to_empty = |scalings: &[f64]| -> Vec<f64> {
        let pairs = scalings.iter().zip(&empty);
        pairs.map(|(scaling, empty)| scaling / empty).collect()
    };
    let row = |name, about, values: &[f64], bar, fault| -> Result<Row> {
        let spread = Spread::of(values.iter().copied()).context("no round was measured")?;
        let names = (name, "Two CPUs", about);
        Ok(Row::new(names, RowUnit::Ratio, spread, bar, fault))
    };
    let rows = [
        row(EMPTY, "the empty program: both to one", &empty, None, None)?,
        row(
            DIFFERENT,
            "a source for each, within its budget: to the empty program's",
            &to_empty(&different),
            Some(Bar::AtLeast(0.95)),
            fault.clone(),
        )?,
        row(
            SAME,
            "one and the same source: both to one",
            &same,
            Some(Bar::AtLeast(1.0)),
            fault.clone(),
        )?,
        row(
            FLOOR,
            "for comparison: two exchanges for one and the same source and nothing else",
            &floor,
            None,
            None,
        )?,
        row(
            TOTAL,
            "a budget that all sources share: both to one",
            &total,
            None,
            fault,
        )?,
    ];
    Ok(rows.into_iter().filter(|row| asked.is(&row.name)).collect())
}

/// The fault, if a packet was counted under another outcome.
fn find_stray(guarded: &GuardProgram) -> Result<Option<String>> {
    let allowed = Outcome {
        reason: Reason::Allowed,
        would_drop: false,
    };
    let expected = (Some(WEB.to_owned()), allowed);
    let counted = guarded.counted()?;
    let stray = counted.keys().find(|key| **key != expected);
    Ok(stray.map(|(_, outcome)| format!("some packets were counted as {}", outcome.reason.name())))
}
