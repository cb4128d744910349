//! Compares the real program with an independent model, which was written from the design on top of etherparse.
//!
//! Both judge generated packets under generated policies, and must agree on every reason. They share only the names of
//! the reasons: the program reads the policy as a file, the model as plain values.

mod corpus;
pub mod generate;
mod judge;
mod parse;
mod signature;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use fastrand::Rng;
use guard_common::reason::{Reason, Verdict};

use self::{
    corpus::{Corpus, Finder},
    generate::{GeneratedPacket, GeneratedPolicy, ModelPolicy, answer, packet, policy, policy_of},
    judge::{Model, ModelVerdict},
    signature::Signature,
};
use crate::{clocked::Simulation, judge::ProgramUnderTest};

/// The policies of an ordinary run, and the packets for each.
const POLICIES: u64 = 32;
const PACKETS_PER_POLICY: u64 = 32_000;

/// The verifier's limit is a million instructions (Linux 5.2); the margin is for kernels that count more.
const MOST_VERIFIED: u32 = 300_000;

/// Variables that `cargo xtask fuzz` sets: the minutes to run, and the first seed.
const MINUTES: &str = "GUARD_FUZZ_MINUTES";
const SEED: &str = "GUARD_FUZZ_SEED";

/// The reasons that the model knows. Floods are conversations, not single packets: `challenges.rs` has them.
fn modelled() -> impl Iterator<Item = Reason> {
    let of_floods = [Reason::Challenged, Reason::Unverified, Reason::Handshake];
    let known = move |reason: &Reason| !of_floods.contains(reason);
    Reason::ALL.into_iter().filter(known)
}

/// The number of packets with each reason.
type Reasons = BTreeMap<&'static str, u64>;

#[test]
fn the_program_and_an_independent_model_agree_on_a_million_packets() {
    let mut reasons = Reasons::new();
    for seed in 0..POLICIES {
        run(seed, PACKETS_PER_POLICY, &mut reasons, |_, _| ());
    }
    // A reason that no generated packet gets would not be tested.
    for reason in modelled() {
        let count: u64 = reasons.get(reason.name()).copied().unwrap_or_default();
        assert!(count > 100, "only {count} packets were {}", reason.name());
    }
}

/// Each combination of features is another program for the verifier, and every kernel has
/// another verifier.
#[test]
fn a_program_for_every_generated_policy_is_verified_in_few_instructions() {
    for seed in 0..POLICIES {
        let GeneratedPolicy {
            text, containers, ..
        } = policy(&mut Rng::with_seed(seed)).to_text();
        let verified =
            ProgramUnderTest::with_containers(&text, &containers).verified_instructions();
        assert!(verified < MOST_VERIFIED, "seed {seed}: {verified}");
    }
}

#[test]
fn the_corpus_is_judged_as_when_it_was_kept_and_has_every_reason() {
    let (corpus, stale) = Corpus::replay().unwrap();
    assert!(
        stale.is_empty(),
        "{stale:?}: if the change is intended, `cargo xtask fuzz` replaces them"
    );
    let reached: BTreeSet<&str> = corpus.signatures().iter().map(Signature::reason).collect();
    assert_eq!(
        reached,
        modelled().map(Reason::name).collect::<BTreeSet<&str>>()
    );
    assert!(corpus.is_within_bounds(), "{corpus}");
}

/// Runs for `GUARD_FUZZ_MINUTES`. Without that variable it does nothing: the tests above cover the rest.
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
    let (mut corpus, stale) = Corpus::replay().unwrap();
    for (path, why) in stale {
        eprintln!("fuzz: {} is removed: {why}", path.display());
        fs::remove_file(path).unwrap();
    }
    corpus.trim().unwrap();
    eprintln!("fuzz: {corpus}");
    let mut seed = number(SEED).unwrap_or_else(|| Rng::new().u64(POLICIES..));
    let mut reasons = Reasons::new();
    while Instant::now() < end {
        eprintln!("fuzz: seed {seed}");
        let policy = policy_of(seed);
        let mut finder = Finder::new(seed, &policy, &corpus);
        run(
            seed,
            10 * PACKETS_PER_POLICY,
            &mut reasons,
            |packet, judged| {
                finder.look(packet, judged);
            },
        );
        corpus.add(finder.into_case()).unwrap();
        seed += 1;
    }
    eprintln!("fuzz: {reasons:#?}");
}

/// Judges the packets of one policy. Policy and packets come from one seed.
fn run(
    seed: u64,
    packets: u64,
    reasons: &mut Reasons,
    mut on_judged: impl FnMut(&GeneratedPacket, Option<&ModelledService>),
) {
    let mut rng = Rng::with_seed(seed);
    let policy = policy(&mut rng);
    let mut trial = ModelTrial::new(seed, &policy);
    let mut question: Option<Vec<u8>> = None;
    for n in 0..packets {
        // Some received datagrams are answered, and some are received again.
        let packet = match &question {
            Some(asked) if rng.u8(..8) == 0 => match answer(asked) {
                Some(frame) if rng.bool() => GeneratedPacket {
                    outgoing: true,
                    frame,
                },
                _ => GeneratedPacket {
                    outgoing: false,
                    frame: asked.clone(),
                },
            },
            _ => packet(&mut rng),
        };
        if !packet.outgoing && answer(&packet.frame).is_some() {
            question = Some(packet.frame.clone());
        }
        let judged = trial.judge(n, &packet);
        if let Some((_, outcome)) = &judged {
            *reasons.entry(outcome.reason).or_default() += 1;
        }
        on_judged(&packet, judged.as_ref());
    }
}

/// The service that a packet was counted under, and its outcome.
type ModelledService = (Option<String>, ModelVerdict);

/// The program and the model, both with the same policy.
struct ModelTrial<'a> {
    seed: u64,
    text: String,
    simulation: Simulation,
    model: Model<'a>,
}

impl<'a> ModelTrial<'a> {
    fn new(seed: u64, policy: &'a ModelPolicy) -> Self {
        let GeneratedPolicy {
            text,
            containers,
            own,
        } = policy.to_text();
        Self {
            seed,
            simulation: Simulation::of_host(&text, &containers, &own),
            text,
            model: Model::new(policy),
        }
    }

    /// Judges a received packet with both, and panics if they disagree. `None` for a packet that the host sends.
    fn judge(&mut self, n: u64, packet: &GeneratedPacket) -> Option<ModelledService> {
        let GeneratedPacket { outgoing, frame } = packet;
        let Self { seed, text, .. } = self;
        if *outgoing {
            self.simulation.sent(frame);
            self.model.sent(frame);
            return None;
        }
        let (service, expected) = self.model.judge(frame);
        let (found_service, found) = self.simulation.judged(frame);
        let is_dropped = found.verdict() == Verdict::Drop;
        let would_be = found.reason.verdict() == Verdict::Drop && !is_dropped;
        let agree = found.reason.name() == expected.reason
            && found_service == service
            && found.would_drop == would_be
            && is_dropped == expected.dropped;
        if !agree {
            let kept = keep(*seed, n, text, frame);
            panic!(
                "seed {seed}, packet {n}: the program returns {found_service:?} {found:?}, the model \
                 {service:?} {expected:?}; kept in {}\npolicy:\n{text}\nframe: {}",
                kept.display(),
                hex(frame)
            );
        }
        Some((service, expected))
    }
}

/// Writes a disagreement to a file in the folder that `cargo xtask fuzz` reads.
fn keep(seed: u64, n: u64, policy: &str, frame: &[u8]) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    let path = folder.join(format!("{seed}-{n}.txt"));
    let text = format!("{policy}\n# frame: {}\n", hex(frame));
    if fs::create_dir_all(&folder).is_ok() {
        // The following panic prints the same text.
        let _result = fs::write(&path, text);
    }
    path
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
