//! An independent judge, written from the design on top of etherparse, against the real program.
//!
//! Generated packets under generated policies go through both, and they agree on every reason. They
//! share nothing but the names of the reasons: what a policy says reaches the program as a file, and
//! the model as its own plain values.

mod generate;
mod judge;
mod parse;

use std::{
    env, fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use fastrand::Rng;
use guard_common::reason::Verdict;

use self::{
    generate::{PolicyText, answer, packet, policy},
    judge::Model,
};
use crate::clocked::Simulation;

/// Packets in an ordinary run, over so many policies.
const POLICIES: u64 = 32;
const PACKETS_PER_POLICY: u64 = 32_000;

/// `cargo xtask fuzz` sets these: how long to go on, and from where.
const MINUTES: &str = "GUARD_FUZZ_MINUTES";
const SEED: &str = "GUARD_FUZZ_SEED";

#[test]
fn the_program_and_an_independent_model_agree_on_a_million_packets() {
    let mut reasons = std::collections::BTreeMap::new();
    for seed in 0..POLICIES {
        run(seed, PACKETS_PER_POLICY, &mut reasons);
    }
    // A generator that never reaches a reason tests nothing of it.
    for reason in guard_common::reason::Reason::ALL {
        let count: u64 = reasons.get(reason.name()).copied().unwrap_or_default();
        assert!(count > 100, "only {count} packets were {}", reason.name());
    }
}

/// Runs as long as it is asked to; without being asked, it has nothing to add to the test above.
#[test]
fn fuzz() {
    let number = |name| {
        env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let Some(minutes) = number(MINUTES) else {
        return;
    };
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let mut seed = number(SEED).unwrap_or_else(|| Rng::new().u64(POLICIES..));
    let mut reasons = std::collections::BTreeMap::new();
    while Instant::now() < end {
        eprintln!("fuzz: seed {seed}");
        run(seed, 10 * PACKETS_PER_POLICY, &mut reasons);
        seed += 1;
    }
    eprintln!("fuzz: {reasons:#?}");
}

/// One policy and its packets, all from one seed.
fn run(seed: u64, packets: u64, reasons: &mut std::collections::BTreeMap<&'static str, u64>) {
    let mut rng = Rng::with_seed(seed);
    let policy = policy(&mut rng);
    let PolicyText { text, containers } = policy.to_text();
    let simulation = Simulation::with_text(&text, &containers);
    let mut model = Model::new(&policy);
    let mut question: Option<Vec<u8>> = None;
    for n in 0..packets {
        // Some questions are answered, and some asked again.
        let (outgoing, frame) = match &question {
            Some(asked) if rng.u8(..8) == 0 => match answer(asked) {
                Some(answer) if rng.bool() => (true, answer),
                _ => (false, asked.clone()),
            },
            _ => packet(&mut rng),
        };
        if outgoing {
            simulation.sent(&frame);
            model.sent(&frame);
            continue;
        }
        if answer(&frame).is_some() {
            question = Some(frame.clone());
        }
        let (service, expected) = model.judge(&frame);
        let (found_service, found) = simulation.judged(&frame);
        *reasons.entry(found.reason.name()).or_default() += 1;
        let would = found.would_drop;
        let agree = found.reason.name() == expected.reason
            && found_service == service
            && (found.reason.verdict() == Verdict::Drop && found.verdict() == Verdict::Pass)
                == would
            && (found.verdict() == Verdict::Drop) == expected.dropped;
        if !agree {
            let kept = keep(seed, n, &text, &frame);
            panic!(
                "seed {seed}, packet {n}: the program says {found_service:?} {found:?}, the model \
                 {service:?} {expected:?}; kept in {}\npolicy:\n{text}\nframe: {}",
                kept.display(),
                hex(&frame)
            );
        }
    }
}

/// Writes a disagreement down where `cargo xtask fuzz` collects them.
fn keep(seed: u64, n: u64, policy: &str, frame: &[u8]) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    let path = folder.join(format!("{seed}-{n}.txt"));
    let text = format!("{policy}\n# frame: {}\n", hex(frame));
    if fs::create_dir_all(&folder).is_ok() {
        // The panic that follows says it all, too.
        let _result = fs::write(&path, text);
    }
    path
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
