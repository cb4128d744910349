//! The corpus in `tests/corpus`: packets that were the first with a signature. They are judged again before new packets
//! are generated.
//!
//! A file has the seed of one policy, and the fewest packets that reach the same signatures. Packets that an outcome
//! depends on, such as those that use up a budget or open a flow, come before it.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::{self, Write as _},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::{
    ModelTrial, ModelledService,
    generate::{self, GeneratedPacket, ModelPolicy},
    judge::Model,
    parse::{DatagramContent, ParsedFrame, look},
    signature::{self, Signature},
};

/// The corpus' bounds. In a replay, the verifier takes a second or two for each policy.
const MOST_POLICIES: usize = 16;
const MOST_BYTES: usize = 256 * 1024;

/// The most repetitions of one packet: enough to use up every generated budget.
const MOST_TIMES: u32 = 2_000;

const HEADER: &str = "# Kept by `cargo xtask fuzz`: a policy's seed and its checksum; then how \
                      often a packet\n# comes in or is sent, the packet, and the outcome of the last \
                      one. `00*1400` is 1,400 bytes of 0.\n";

/// The folder of the corpus, and its files by the seed of their policy.
pub struct Corpus {
    folder: PathBuf,
    cases: BTreeMap<u64, CorpusEntry>,
}

/// A case, and the signatures that it reaches.
type CorpusEntry = (CorpusCase, BTreeSet<Signature>);

/// One policy and its packets.
pub struct CorpusCase {
    seed: u64,
    /// The checksum of the policy: a changed generator makes another policy from the same seed.
    checksum: u32,
    steps: Vec<CorpusStep>,
}

#[derive(Clone, Debug, PartialEq)]
struct CorpusStep {
    times: u32,
    packet: GeneratedPacket,
    /// `None` for packets that the host sends.
    outcome: Option<String>,
}

impl Corpus {
    /// Reads the corpus and judges its packets again. Returns also the stale files, each with the reason.
    pub fn replay() -> Result<(Self, Vec<(PathBuf, anyhow::Error)>)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let mut corpus = Self {
            folder,
            cases: BTreeMap::new(),
        };
        let mut stale = Vec::new();
        for entry in fs::read_dir(&corpus.folder)? {
            let path = entry?.path();
            let case = CorpusCase::parse(&fs::read_to_string(&path)?)
                .with_context(|| path.display().to_string())?;
            match case.replay() {
                Ok(reached) if path == corpus.path(case.seed) => {
                    corpus.cases.insert(case.seed, (case, reached));
                }
                Ok(_) => stale.push((path, anyhow!("the file's name is not its seed"))),
                Err(why) => stale.push((path, why)),
            }
        }
        Ok((corpus, stale))
    }

    pub fn signatures(&self) -> BTreeSet<Signature> {
        let reached = self.cases.values().flat_map(|(_, reached)| reached);
        reached.copied().collect()
    }

    pub fn is_within_bounds(&self) -> bool {
        self.cases.len() <= MOST_POLICIES && self.bytes() <= MOST_BYTES
    }

    fn bytes(&self) -> usize {
        self.cases
            .values()
            .map(|(case, _)| case.to_text().len())
            .sum()
    }

    fn path(&self, seed: u64) -> PathBuf {
        self.folder.join(format!("{seed}.txt"))
    }

    /// Adds a case with new signatures. If the cases removed for it have as many signatures of their own, it is not
    /// added.
    pub fn add(&mut self, case: CorpusCase) -> Result<()> {
        // A seed has at most one case. Other seeds reach the further signatures of this one.
        if case.steps.is_empty() || self.cases.contains_key(&case.seed) {
            return Ok(());
        }
        let before = self.signatures().len();
        let reached = case
            .replay()
            .context("a second run of the new case has another outcome")?;
        let (seed, text) = (case.seed, case.to_text());
        self.cases.insert(seed, (case, reached));
        let removed = self.shrink();
        if self.signatures().len() <= before {
            self.cases.remove(&seed);
            let others = removed.into_iter().filter(|(removed, _)| *removed != seed);
            self.cases.extend(others);
            return Ok(());
        }
        let path = self.path(seed);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        for (removed, _) in removed {
            fs::remove_file(self.path(removed))?;
        }
        eprintln!("fuzz: {self}");
        Ok(())
    }

    /// Removes files until the corpus is within its bounds.
    pub fn trim(&mut self) -> Result<()> {
        for (removed, _) in self.shrink() {
            fs::remove_file(self.path(removed))?;
        }
        Ok(())
    }

    /// Until the corpus is within its bounds, removes the case with the fewest signatures that no other case has.
    fn shrink(&mut self) -> Vec<(u64, CorpusEntry)> {
        let mut removed = Vec::new();
        while !self.is_within_bounds()
            && let Some(seed) = self.least()
        {
            removed.extend(self.cases.remove_entry(&seed));
        }
        removed
    }

    fn least(&self) -> Option<u64> {
        let mut owners: BTreeMap<Signature, usize> = BTreeMap::new();
        for signature in self.cases.values().flat_map(|(_, reached)| reached) {
            *owners.entry(*signature).or_default() += 1;
        }
        let own = |reached: &BTreeSet<Signature>| {
            let own = reached.iter().filter(|signature| owners[*signature] == 1);
            own.count()
        };
        let least = self
            .cases
            .iter()
            .min_by_key(|(_, (_, reached))| own(reached));
        least.map(|(seed, _)| *seed)
    }
}

impl fmt::Display for Corpus {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "the corpus has {} policies, {} signatures, {} bytes",
            self.cases.len(),
            self.signatures().len(),
            self.bytes()
        )
    }
}

impl CorpusCase {
    fn new(seed: u64, policy: &ModelPolicy) -> Self {
        Self {
            seed,
            checksum: checksum(policy),
            steps: Vec::new(),
        }
    }

    /// Runs the packets through the program and the model; panics if they disagree.
    ///
    /// # Errors
    /// The policy or an outcome is not the recorded one.
    fn replay(&self) -> Result<BTreeSet<Signature>> {
        let policy = generate::policy_of(self.seed);
        let checksum = checksum(&policy);
        let is_same = checksum == self.checksum;
        ensure!(
            is_same,
            "the generator makes another policy from this seed now"
        );
        let mut trial = ModelTrial::new(self.seed, &policy);
        let mut signatures = BTreeSet::new();
        for (n, step) in (0..).zip(&self.steps) {
            let mut last = None;
            for _ in 0..step.times {
                last = trial.judge(n, &step.packet);
            }
            let outcome = last.as_ref().map(|(_, outcome)| outcome.to_string());
            let before = &step.outcome;
            ensure!(
                outcome == *before,
                "packet {n} was {before:?} and is {outcome:?}"
            );
            if let Some((service, outcome)) = last {
                let frame = &step.packet.frame;
                signatures.extend(signature::of(
                    frame,
                    policy.scope,
                    service.is_some(),
                    outcome,
                ));
            }
        }
        Ok(signatures)
    }

    fn to_text(&self) -> String {
        let Self {
            seed,
            checksum,
            steps,
        } = self;
        let mut text = format!("{HEADER}policy {seed} {checksum:08x}\n");
        for step in steps {
            let CorpusStep {
                times,
                packet: GeneratedPacket { outgoing, frame },
                outcome,
            } = step;
            let direction = if *outgoing { "sent" } else { "in" };
            write!(text, "{times} {direction} {}", to_words(frame)).unwrap();
            if let Some(outcome) = outcome {
                write!(text, " {outcome}").unwrap();
            }
            text.push('\n');
        }
        text
    }

    fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        let first: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
        let ["policy", seed, checksum] = first[..] else {
            bail!("the first line is not `policy SEED CHECKSUM`");
        };
        Ok(Self {
            seed: seed.parse()?,
            checksum: u32::from_str_radix(checksum, 16)?,
            steps: lines.map(parse_step).collect::<Result<_>>()?,
        })
    }
}

fn parse_step(line: &str) -> Result<CorpusStep> {
    let words: Vec<&str> = line.splitn(4, ' ').collect();
    let (times, outgoing, frame, outcome) = match words[..] {
        [times, "sent", frame] => (times, true, frame, None),
        [times, "in", frame, outcome] => (times, false, frame, Some(outcome.to_owned())),
        _ => bail!("not a packet: {line}"),
    };
    Ok(CorpusStep {
        times: times.parse()?,
        packet: GeneratedPacket {
            outgoing,
            frame: from_words(frame)?,
        },
        outcome,
    })
}

/// Finds new signatures while a policy's packets are judged, and the fewest packets that reach them.
pub struct Finder<'a> {
    case: CorpusCase,
    scope: &'static str,
    /// The signatures that need no further search: the corpus or the case has them, or no packets that reach them were
    /// found.
    settled: BTreeSet<Signature>,
    /// A model that has judged only the case's steps.
    model: Model<'a>,
    sent: Vec<GeneratedPacket>,
}

impl<'a> Finder<'a> {
    pub fn new(seed: u64, policy: &'a ModelPolicy, corpus: &Corpus) -> Self {
        Self {
            case: CorpusCase::new(seed, policy),
            scope: policy.scope,
            settled: corpus.signatures(),
            model: Model::new(policy),
            sent: Vec::new(),
        }
    }

    pub fn look(&mut self, packet: &GeneratedPacket, judged: Option<&ModelledService>) {
        let Some(judged) = judged else {
            self.sent.push(packet.clone());
            return;
        };
        let (service, outcome) = judged;
        let found = signature::of(&packet.frame, self.scope, service.is_some(), *outcome);
        if found.is_subset(&self.settled) {
            return;
        }
        self.settled.extend(found);
        for step in self.steps_to(packet, judged).unwrap_or_default() {
            for _ in 0..step.times {
                judge(&mut self.model, &step.packet);
            }
            self.case.steps.push(step);
        }
    }

    /// The case with the fewest packets that reach the new signatures.
    pub fn into_case(self) -> CorpusCase {
        self.case
    }

    /// The steps that reach the outcome again: the packet once or repeated, or after the sent packet that opens its
    /// flow.
    fn steps_to(
        &self,
        packet: &GeneratedPacket,
        judged: &ModelledService,
    ) -> Option<Vec<CorpusStep>> {
        let step = |times| CorpusStep {
            times,
            packet: packet.clone(),
            outcome: Some(judged.1.to_string()),
        };
        let mut model = self.model.clone();
        for times in 1..=MOST_TIMES {
            if judge(&mut model, packet).as_ref() == Some(judged) {
                return Some(vec![step(times)]);
            }
            if times == 1
                && let Some(opening) = self.sent.iter().find(|sent| opens(sent, packet))
            {
                let mut model = self.model.clone();
                judge(&mut model, opening);
                if judge(&mut model, packet).as_ref() == Some(judged) {
                    let opening = CorpusStep {
                        times: 1,
                        packet: opening.clone(),
                        outcome: None,
                    };
                    return Some(vec![opening, step(1)]);
                }
            }
        }
        None
    }
}

fn judge(model: &mut Model, packet: &GeneratedPacket) -> Option<ModelledService> {
    let GeneratedPacket { outgoing, frame } = packet;
    if *outgoing {
        model.sent(frame);
        return None;
    }
    Some(model.judge(frame))
}

/// Whether a received packet answers a sent one.
fn opens(sent: &GeneratedPacket, packet: &GeneratedPacket) -> bool {
    let ends = |frame: &[u8]| match look(frame) {
        ParsedFrame::Ip(datagram) => match datagram.content {
            DatagramContent::Udp { from_port, port } => {
                Some(((datagram.source, from_port), (datagram.destination, port)))
            }
            _ => None,
        },
        _ => None,
    };
    let (Some(sent), Some((from, to))) = (ends(&sent.frame), ends(&packet.frame)) else {
        return false;
    };
    sent == (to, from)
}

/// FNV-1a: unlike the standard library's hasher, it never changes.
fn checksum(policy: &ModelPolicy) -> u32 {
    let ModelPolicy {
        published,
        published_at,
        networks,
        own,
        ..
    } = policy;
    let text = policy.to_text().text;
    let mut text = format!("{text}{published:?}{networks:?}");
    if !published_at.is_empty() {
        write!(text, "{published_at:?}").unwrap();
    }
    if !own.is_empty() {
        write!(text, "{own:?}").unwrap();
    }
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// The bytes in hexadecimal; a long run of one byte is `00*1400`, between dots.
fn to_words(bytes: &[u8]) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut is_open = false;
    for run in bytes.chunk_by(|one, other| one == other) {
        let byte = format!("{:02x}", run[0]);
        if run.len() >= 8 {
            words.push(format!("{byte}*{}", run.len()));
            is_open = false;
            continue;
        }
        if !is_open {
            words.push(String::new());
            is_open = true;
        }
        if let Some(word) = words.last_mut() {
            word.push_str(&byte.repeat(run.len()));
        }
    }
    words.join(".")
}

fn from_words(words: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for word in words.split('.') {
        let (digits, times) = match word.split_once('*') {
            Some((digits, times)) => (digits, times.parse()?),
            None => (word, 1),
        };
        ensure!(digits.is_ascii() && digits.len() % 2 == 0, "{word:?}");
        let places = (0..digits.len()).step_by(2);
        let decoded = places.map(|at| u8::from_str_radix(&digits[at..at + 2], 16));
        bytes.extend(decoded.collect::<Result<Vec<u8>, _>>()?.repeat(times));
    }
    Ok(bytes)
}

#[test]
fn what_is_written_is_read_again() {
    let mut rng = fastrand::Rng::with_seed(7);
    let packets = (0..1_000).map(|_| generate::packet(&mut rng));
    let steps = packets.map(|packet| CorpusStep {
        times: 3,
        outcome: (!packet.outgoing).then(|| "drop closed_port".to_owned()),
        packet,
    });
    let case = CorpusCase {
        seed: 9,
        checksum: 0xabcd,
        steps: steps.collect(),
    };
    let again = CorpusCase::parse(&case.to_text()).unwrap();
    assert_eq!((again.seed, again.checksum), (9, 0xabcd));
    assert_eq!(again.steps, case.steps);
}
