//! Takes the measurements: in every round each case once, right after the empty program.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _},
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::Xdp;
use guard_common::reason::{Outcome, Verdict};

use crate::{
    beside::{Beside, Varied},
    cases::{ANYWHERE, Case, DENIED, Subject, Whose, open},
    guarded::{CounterKey, CounterSums, GuardProgram},
    policies,
    quiet::{self, Sample},
    run::{Run, XDP_DROP, XDP_PASS, run},
    stage::Stage,
    xdp_filter::Filter,
};

/// How long one measurement takes, about: undisturbed moments are short.
const RUN_NS: f64 = 0.4e6;

/// How many packets a measurement has at least, so that the system call does not show.
const FEWEST: u32 = 4_000;
const MOST: u32 = 20_000;

/// How many measurements follow each other before another row has its turn, and how many of them are enough.
const ATTEMPTS: u32 = 12;
const ENOUGH_AT_ONCE: usize = 3;

/// A flood that is another packet each time has come by everything several times before it is measured: what it
/// finds in the caches is what it left there, not what the row before left.
const VARIED_BEFORE: u32 = 400_000;

/// Packets that tell whether others fill the caches, and how often they are sent before anything else.
const MEMORY_PACKETS: u32 = 100_000;
const MEMORY_FIRST: u32 = 20;

/// A budget that is used up has room for one packet now and then.
const STRAYS: u64 = 1;

/// What is run right before each measurement, so that neither the system call's way nor the program is new to the CPU.
const WARM_UP: u32 = 1_000;

/// What waits for memory, beside what is measured with a flood that is another packet each time: sources of a
/// few megabytes of cells.
const MEMORY: Varied = Varied::Source(ANYWHERE);

/// What a case cost in each round that counts, in nanoseconds.
pub struct Samples {
    pub net: Vec<f64>,
    /// Of the empty program beside it.
    pub empty: Vec<f64>,
    /// Whether that is behind a wrapper, as the case is.
    pub is_wrapped: bool,
    /// How many measurements there were, with those that were disturbed.
    pub taken: usize,
    /// Whether disturbed rounds count as well, since hardly any was not.
    pub is_disturbed: bool,
    /// The first thing that was not as it should be.
    pub fault: Option<String>,
}

/// Measures all cases in so many rounds in which nothing disturbs, if there are as many until `patience` ends.
pub fn measure(
    cases: &[&Case],
    rounds: u32,
    patience: Duration,
) -> Result<BTreeMap<String, Samples>> {
    let mut loaded = LoadedPrograms::new()?;
    let mut bouts = Vec::new();
    for case in cases {
        bouts.push(CaseMeasurement::prepare(case, &mut loaded)?);
    }
    let enough = rounds as usize;
    let begin = Instant::now();
    for round in 1.. {
        progress(&format!("round {round}, of {rounds} that are quiet"));
        let floors = floors(&bouts);
        loaded.memory.learn();
        let mut is_done = true;
        for bout in &mut bouts {
            let floor = floors.get(&bout.beside()).copied().unwrap_or(f64::MAX);
            if quiet::quiet(&bout.samples, floor).len() < enough {
                lab::interrupt::check()?;
                bout.fight(floor, &mut loaded)?;
                is_done = false;
            }
        }
        if is_done || round >= rounds && begin.elapsed() > patience {
            break;
        }
    }
    progress("");
    let floors = floors(&bouts);
    let results = bouts.into_iter().map(|bout| {
        let floor = floors.get(&bout.beside()).copied().unwrap_or(f64::MAX);
        let counting = quiet::counting(&bout.samples, floor, enough);
        let is_disturbed = counting.is_none();
        let samples = counting.unwrap_or(bout.samples);
        let result = Samples {
            is_disturbed,
            net: samples.iter().map(|sample| sample.net).collect(),
            empty: samples.iter().map(|sample| sample.empty).collect(),
            is_wrapped: bout.case.varied.is_some(),
            taken: bout.begun.len(),
            fault: bout.fault,
        };
        (bout.case.name.to_string(), result)
    });
    Ok(results.collect())
}

/// What each empty program takes where nothing disturbs it, as far as is known.
fn floors(bouts: &[CaseMeasurement<'_>]) -> BTreeMap<*const Program, f64> {
    let mut times: BTreeMap<*const Program, Vec<f64>> = BTreeMap::new();
    for bout in bouts {
        times.entry(bout.beside()).or_default().extend(&bout.begun);
    }
    let times = times.into_iter();
    times
        .map(|(beside, times)| (beside, quiet::undisturbed(times)))
        .collect()
}

/// Tells a person who waits where it is.
fn progress(text: &str) {
    /// Goes back to the start of the line, and removes what is there.
    const AGAIN: &str = "\r\x1b[K";
    if io::stderr().is_terminal() {
        eprint!("{AGAIN}{text}");
    }
}

/// What nothing but memory takes, to tell when others fill the caches that this machine shares.
struct Memory {
    program: Rc<Program>,
    empty: Rc<Program>,
    /// The wrappers call them; they live as long.
    _wrapped: [Rc<Program>; 2],
    frame: Vec<u8>,
    /// In nanoseconds more than the empty program.
    taken: Vec<f64>,
    undisturbed: f64,
}

impl Memory {
    fn new(empty: &Rc<Program>) -> Result<Self> {
        let bare = Rc::new(Program::Beside(Beside::two_exchanges()?));
        let memory = Self {
            program: Rc::new(wrap(&bare, MEMORY)?),
            empty: Rc::new(wrap(empty, MEMORY)?),
            _wrapped: [bare, Rc::clone(empty)],
            frame: open(),
            taken: Vec::new(),
            undisturbed: f64::MAX,
        };
        Ok(memory)
    }

    fn begin(&mut self) -> Result<()> {
        run(self.program.xdp()?, &self.frame, VARIED_BEFORE)?;
        for _ in 0..MEMORY_FIRST {
            self.is_quiet()?;
        }
        self.learn();
        Ok(())
    }

    /// What it takes where nothing disturbs, as far as is known.
    fn learn(&mut self) {
        self.undisturbed = quiet::undisturbed(self.taken.iter().copied());
    }

    /// Whether it takes now what it takes where nothing disturbs.
    fn is_quiet(&mut self) -> Result<bool> {
        let empty = run(self.empty.xdp()?, &self.frame, MEMORY_PACKETS)?;
        let taken = run(self.program.xdp()?, &self.frame, MEMORY_PACKETS)?.ns - empty.ns;
        self.taken.push(taken);
        Ok(!quiet::is_memory_disturbed(taken, self.undisturbed))
    }
}

/// The programs in the kernel, each policy's once.
struct LoadedPrograms {
    empty: Rc<Program>,
    memory: Memory,
    policies: BTreeMap<policies::Name, Rc<GuardProgram>>,
    xdp_filters: BTreeMap<Filter, Rc<Xdp>>,
    stage: Stage,
}

enum Program {
    Guard(Rc<GuardProgram>),
    XdpFilter(Rc<Xdp>),
    Beside(Beside),
}

impl Program {
    fn xdp(&self) -> Result<&Xdp> {
        match self {
            Self::Guard(guarded) => guarded.program(),
            Self::XdpFilter(program) => Ok(program),
            Self::Beside(beside) => beside.program(),
        }
    }
}

impl LoadedPrograms {
    fn new() -> Result<Self> {
        let empty = Rc::new(Program::Beside(Beside::empty()?));
        let mut memory = Memory::new(&empty)?;
        let mut stage = Stage::new()?;
        stage.show(&[memory.empty.xdp()?, memory.program.xdp()?])?;
        memory.begin()?;
        Ok(Self {
            memory,
            empty,
            policies: BTreeMap::new(),
            xdp_filters: BTreeMap::new(),
            stage,
        })
    }

    fn guarded(&mut self, policy: policies::Name) -> Result<Rc<GuardProgram>> {
        if let Some(guarded) = self.policies.get(&policy) {
            return Ok(Rc::clone(guarded));
        }
        progress(&format!("loading the policy {policy:?}"));
        let guarded = GuardProgram::load(&policy.setup());
        let guarded = Rc::new(guarded.with_context(|| format!("the policy {policy:?}"))?);
        self.policies.insert(policy, Rc::clone(&guarded));
        Ok(guarded)
    }

    fn xdp_filter(&mut self, filter: Filter) -> Result<Rc<Xdp>> {
        if let Some(program) = self.xdp_filters.get(&filter) {
            return Ok(Rc::clone(program));
        }
        let program = Rc::new(filter.load(self.stage.lab())?);
        self.xdp_filters.insert(filter, Rc::clone(&program));
        Ok(program)
    }
}

/// The program with a source or a port for every packet. It must live as long.
fn wrap(program: &Program, varied: Varied) -> Result<Program> {
    let fd = program.xdp()?.fd()?;
    Ok(Program::Beside(Beside::randomised(fd, varied)?))
}

/// A case against the empty program.
struct CaseMeasurement<'a> {
    case: &'a Case,
    program: Rc<Program>,
    empty: Rc<Program>,
    /// The wrapper calls them; they live as long.
    _wrapped: [Rc<Program>; 2],
    /// What guard's counters must say after every measurement.
    expected: Option<ExpectedCount>,
    verdict: u32,
    /// Packets in each measurement.
    repeat: u32,
    samples: Vec<Sample>,
    /// What the empty program took before each measurement, and where none followed because it was disturbed.
    begun: Vec<f64>,
    /// The first thing that was not as it should be.
    fault: Option<String>,
}

struct ExpectedCount {
    guarded: Rc<GuardProgram>,
    service: Whose,
    outcome: Outcome,
}

impl<'a> CaseMeasurement<'a> {
    fn prepare(case: &'a Case, loaded: &mut LoadedPrograms) -> Result<Self> {
        let (target, expected, verdict) = match case.subject {
            Subject::Guard {
                policy,
                service,
                outcome,
            } => {
                let guarded = loaded.guarded(policy)?;
                let expected = ExpectedCount {
                    guarded: Rc::clone(&guarded),
                    service,
                    outcome,
                };
                let verdict = match outcome.verdict() {
                    Verdict::Pass => XDP_PASS,
                    Verdict::Drop => XDP_DROP,
                };
                (Program::Guard(guarded), Some(expected), verdict)
            }
            Subject::XdpFilter { filter, drops } => {
                let verdict = if drops { XDP_DROP } else { XDP_PASS };
                (
                    Program::XdpFilter(loaded.xdp_filter(filter)?),
                    None,
                    verdict,
                )
            }
            Subject::LruBucket => (Program::Beside(Beside::lru_bucket()?), None, XDP_PASS),
            Subject::OnePort => (Program::Beside(Beside::one_port()?), None, XDP_DROP),
            Subject::TwoExchanges => (Program::Beside(Beside::two_exchanges()?), None, XDP_PASS),
            Subject::OneLookup { drops } => {
                let verdict = if drops { XDP_DROP } else { XDP_PASS };
                (Program::Beside(Beside::one_lookup(DENIED)?), None, verdict)
            }
        };
        let wrapped = [Rc::new(target), Rc::clone(&loaded.empty)];
        let [program, empty] = match case.varied {
            None => wrapped.clone(),
            Some(varied) => {
                let [target, empty] = &wrapped;
                [
                    Rc::new(wrap(target, varied)?),
                    Rc::new(wrap(empty, varied)?),
                ]
            }
        };
        let mut bout = Self {
            case,
            program,
            empty,
            _wrapped: wrapped,
            expected,
            verdict,
            repeat: FEWEST,
            samples: Vec::new(),
            begun: Vec::new(),
            fault: None,
        };
        let program = bout.program.xdp()?;
        loaded.stage.show(&[bout.empty.xdp()?, program])?;
        run(program, &case.frame, FEWEST)?;
        let Run { ns, .. } = run(program, &case.frame, FEWEST)?;
        bout.repeat = ((RUN_NS / ns) as u32).clamp(FEWEST, MOST);
        Ok(bout)
    }

    /// Which loaded program is beside it: the bare empty one, or the one behind this case's wrapper.
    fn beside(&self) -> *const Program {
        Rc::as_ptr(&self.empty)
    }

    /// Measures it a few times. `floor`: what the empty program takes where nothing disturbs it, as far as is known.
    fn fight(&mut self, floor: f64, loaded: &mut LoadedPrograms) -> Result<()> {
        let LoadedPrograms { memory, stage, .. } = loaded;
        let (frame, repeat) = (&self.case.frame, self.repeat);
        let (program, empty) = (self.program.xdp()?, self.empty.xdp()?);
        stage.show(&[empty, program])?;
        let waits_for_memory = matches!(self.case.varied, Some(Varied::Source(_)));
        if waits_for_memory {
            stage.show(&[memory.empty.xdp()?, memory.program.xdp()?])?;
        }
        let mut is_memory_quiet = !waits_for_memory || memory.is_quiet()?;
        let counted = self.counted()?;
        let mut packets = 0;
        if self.case.varied.is_some() {
            run(program, frame, VARIED_BEFORE)?;
            packets += u64::from(VARIED_BEFORE);
        }
        let first = self.samples.len();
        let mut last = None;
        let warm = |program| {
            run(program, frame, WARM_UP)?;
            run(program, frame, repeat)
        };
        let mut before = warm(empty)?;
        for _ in 0..ATTEMPTS {
            ensure!(before.verdict == XDP_PASS, "the empty program is not empty");
            self.begun.push(before.ns);
            if quiet::is_disturbed(before.ns, floor) {
                before = warm(empty)?;
                continue;
            }
            let measured = warm(program)?;
            packets += u64::from(repeat + WARM_UP);
            let behind = warm(empty)?;
            self.samples.push(Sample {
                net: measured.ns - f64::midpoint(before.ns, behind.ns),
                empty: before.ns.max(behind.ns),
                is_memory_quiet: true,
            });
            (before, last) = (behind, Some(measured));
            let new = self.samples.get(first..).unwrap_or_default();
            if quiet::quiet(new, floor).len() >= ENOUGH_AT_ONCE {
                break;
            }
        }
        let after = self.counted()?;
        is_memory_quiet = is_memory_quiet && (!waits_for_memory || memory.is_quiet()?);
        for sample in self.samples.iter_mut().skip(first) {
            sample.is_memory_quiet = is_memory_quiet;
        }
        if let (None, Some(measured)) = (&self.fault, last) {
            self.fault = self.find_fault(&measured, packets, &counted, &after);
        }
        Ok(())
    }

    fn counted(&self) -> Result<CounterSums> {
        match &self.expected {
            Some(expected) => expected.guarded.counted(),
            None => Ok(CounterSums::new()),
        }
    }

    /// What is wrong if not every packet went the way that is measured.
    fn find_fault(
        &self,
        run: &Run,
        expected: u64,
        before: &CounterSums,
        after: &CounterSums,
    ) -> Option<String> {
        if run.verdict != self.verdict {
            return Some(format!(
                "the program returned {}, not {}",
                run.verdict, self.verdict
            ));
        }
        let ExpectedCount {
            service, outcome, ..
        } = self.expected.as_ref()?;
        let moved = after.iter().filter_map(|(key, packets)| {
            let moved = packets - before.get(key).copied().unwrap_or_default();
            (moved != 0).then_some((key, moved))
        });
        let moved: Vec<_> = moved.collect();
        let is_stray =
            |(name, found): &CounterKey| found != outcome || !service.is(name.as_deref());
        let strays = moved.iter().filter(|(key, _)| is_stray(key));
        let strays: Vec<String> = strays.map(|(key, packets)| told(key, *packets)).collect();
        let stray_packets = moved.iter().filter(|(key, _)| is_stray(key));
        let stray_packets: u64 = stray_packets.map(|(_, packets)| packets).sum();
        let all: u64 = moved.iter().map(|(_, packets)| packets).sum();
        if stray_packets <= STRAYS && all == expected {
            return None;
        }
        Some(format!(
            "{all} packets were counted, {expected} sent; not {service:?} {}: {}",
            outcome.reason.name(),
            strays.join(", ")
        ))
    }
}

fn told((service, outcome): &CounterKey, packets: u64) -> String {
    format!(
        "{packets} {}{} at {}",
        if outcome.would_drop { "would-be " } else { "" },
        outcome.reason.name(),
        service.as_deref().unwrap_or("no service")
    )
}
