//! Takes the measurements: in every round each case in turn, beside the empty program.

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
    cases::{ANYWHERE, Case, CountedAt, DENIED, Subject, open},
    guarded::{CounterKey, CounterSums, GuardProgram},
    policies,
    quiet::{self, Sample},
    run::{Run, XDP_DROP, XDP_PASS, run},
    stage::Stage,
    xdp_filter::Filter,
};

/// The approximate time of one measurement in nanoseconds: undisturbed periods are short.
const RUN_NS: f64 = 0.4e6;

/// The least and the most packets of a measurement. The least makes the cost of the system call negligible.
const FEWEST: u32 = 4_000;
const MOST: u32 = 20_000;

/// The most measurements of a case before the next case, and how many quiet ones are enough.
const ATTEMPTS: u32 = 12;
const ENOUGH_AT_ONCE: usize = 3;

/// Packets of a varying flood that are sent before it is measured. They pass over all cells several times, so that the
/// caches hold this flood's data, not the data of the case before.
const VARIED_BEFORE: u32 = 400_000;

/// Packets in a measurement of the memory, and the number of such measurements at the start.
const MEMORY_PACKETS: u32 = 100_000;
const MEMORY_FIRST: u32 = 20;

/// Packets that may be counted under another outcome: a used-up budget sometimes refills by one packet.
const STRAYS: u64 = 1;

/// Packets before each measurement, so that the code of the system call and of the program is in the CPU's caches.
const WARM_UP: u32 = 1_000;

/// The sources for the measurement of the memory, beside cases with varying sources: they spread over a few megabytes
/// of cells.
const MEMORY: Varied = Varied::Source(ANYWHERE);

/// The costs of a case in the rounds that count, in nanoseconds.
pub struct Samples {
    pub net: Vec<f64>,
    /// The time of the empty program beside it.
    pub empty: Vec<f64>,
    /// Whether the case and the empty program are behind a wrapper.
    pub is_wrapped: bool,
    /// The number of measurements, with the disturbed ones.
    pub taken: usize,
    /// Whether disturbed rounds count, too, because there are too few quiet ones.
    pub is_disturbed: bool,
    /// The first fault.
    pub fault: Option<String>,
}

/// Measures all cases until each has `rounds` quiet rounds, or until `patience` has passed.
pub fn measure(
    cases: &[&Case],
    rounds: u32,
    patience: Duration,
) -> Result<BTreeMap<String, Samples>> {
    let mut loaded = LoadedPrograms::new()?;
    let mut measurements = Vec::new();
    for case in cases {
        measurements.push(CaseMeasurement::prepare(case, &mut loaded)?);
    }
    let enough = rounds as usize;
    let begin = Instant::now();
    for round in 1.. {
        progress(&format!("round {round} ({rounds} quiet rounds are needed)"));
        let floors = undisturbed_times(&measurements);
        loaded.memory.update_undisturbed();
        let mut is_done = true;
        for measurement in &mut measurements {
            let floor = floors
                .get(&measurement.empty_id())
                .copied()
                .unwrap_or(f64::MAX);
            if quiet::quiet(&measurement.samples, floor).len() < enough {
                lab::interrupt::check()?;
                measurement.measure(floor, &mut loaded)?;
                is_done = false;
            }
        }
        if is_done || round >= rounds && begin.elapsed() > patience {
            break;
        }
    }
    progress("");
    let floors = undisturbed_times(&measurements);
    let results = measurements.into_iter().map(|measurement| {
        let floor = floors
            .get(&measurement.empty_id())
            .copied()
            .unwrap_or(f64::MAX);
        let counting = quiet::counting(&measurement.samples, floor, enough);
        let is_disturbed = counting.is_none();
        let samples = counting.unwrap_or(measurement.samples);
        let result = Samples {
            is_disturbed,
            net: samples.iter().map(|sample| sample.net).collect(),
            empty: samples.iter().map(|sample| sample.empty).collect(),
            is_wrapped: measurement.case.varied.is_some(),
            taken: measurement.begun.len(),
            fault: measurement.fault,
        };
        (measurement.case.name.to_string(), result)
    });
    Ok(results.collect())
}

/// The undisturbed time of each empty program, by the measurements so far.
fn undisturbed_times(measurements: &[CaseMeasurement<'_>]) -> BTreeMap<*const Program, f64> {
    let mut times: BTreeMap<*const Program, Vec<f64>> = BTreeMap::new();
    for measurement in measurements {
        times
            .entry(measurement.empty_id())
            .or_default()
            .extend(&measurement.begun);
    }
    let times = times.into_iter();
    times
        .map(|(empty_id, times)| (empty_id, quiet::undisturbed(times)))
        .collect()
}

/// Prints the progress on a terminal.
fn progress(text: &str) {
    /// Clears the line.
    const CLEAR_LINE: &str = "\r\x1b[K";
    if io::stderr().is_terminal() {
        eprint!("{CLEAR_LINE}{text}");
    }
}

/// Measures the cost of memory alone, to detect when other guests fill the shared caches.
struct Memory {
    program: Rc<Program>,
    empty: Rc<Program>,
    /// The wrapped programs: they must live as long as the wrappers that call them.
    _wrapped: [Rc<Program>; 2],
    frame: Vec<u8>,
    /// The costs so far, in nanoseconds above the empty program.
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
        self.update_undisturbed();
        Ok(())
    }

    /// Updates the undisturbed cost from the measurements so far.
    fn update_undisturbed(&mut self) {
        self.undisturbed = quiet::undisturbed(self.taken.iter().copied());
    }

    /// Measures, and returns whether the cost is the undisturbed one.
    fn is_quiet(&mut self) -> Result<bool> {
        let empty = run(self.empty.xdp()?, &self.frame, MEMORY_PACKETS)?;
        let taken = run(self.program.xdp()?, &self.frame, MEMORY_PACKETS)?.ns - empty.ns;
        self.taken.push(taken);
        Ok(!quiet::is_memory_disturbed(taken, self.undisturbed))
    }
}

/// The loaded programs, one for each policy.
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
        stage.attach(&[memory.empty.xdp()?, memory.program.xdp()?])?;
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

/// Wraps a program, so that every packet gets another source or port. The program must live as long as the wrapper.
fn wrap(program: &Program, varied: Varied) -> Result<Program> {
    let fd = program.xdp()?.fd()?;
    Ok(Program::Beside(Beside::randomised(fd, varied)?))
}

/// The measurements of a case and of the empty program beside it.
struct CaseMeasurement<'a> {
    case: &'a Case,
    program: Rc<Program>,
    empty: Rc<Program>,
    /// The wrapped programs: they must live as long as the wrappers that call them.
    _wrapped: [Rc<Program>; 2],
    /// The expected change of guard's counters after every measurement.
    expected: Option<ExpectedCount>,
    verdict: u32,
    /// Packets in each measurement.
    repeat: u32,
    samples: Vec<Sample>,
    /// The times of the empty program before each measurement, with those that were disturbed and had no measurement.
    begun: Vec<f64>,
    /// The first fault.
    fault: Option<String>,
}

struct ExpectedCount {
    guarded: Rc<GuardProgram>,
    service: CountedAt,
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
        let mut measurement = Self {
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
        let program = measurement.program.xdp()?;
        loaded.stage.attach(&[measurement.empty.xdp()?, program])?;
        run(program, &case.frame, FEWEST)?;
        let Run { ns, .. } = run(program, &case.frame, FEWEST)?;
        measurement.repeat = ((RUN_NS / ns) as u32).clamp(FEWEST, MOST);
        Ok(measurement)
    }

    /// The identity of the empty program beside it: the bare one, or the one behind this case's wrapper.
    fn empty_id(&self) -> *const Program {
        Rc::as_ptr(&self.empty)
    }

    /// Measures the case a few times. `floor`: the undisturbed time of the empty program so far.
    fn measure(&mut self, floor: f64, loaded: &mut LoadedPrograms) -> Result<()> {
        let LoadedPrograms { memory, stage, .. } = loaded;
        let (frame, repeat) = (&self.case.frame, self.repeat);
        let (program, empty) = (self.program.xdp()?, self.empty.xdp()?);
        stage.attach(&[empty, program])?;
        let waits_for_memory = matches!(self.case.varied, Some(Varied::Source(_)));
        if waits_for_memory {
            stage.attach(&[memory.empty.xdp()?, memory.program.xdp()?])?;
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
            ensure!(
                before.verdict == XDP_PASS,
                "the empty program must pass the packet"
            );
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

    /// Returns the fault if not every packet had the expected verdict and counter.
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
        let strays: Vec<String> = strays
            .map(|(key, packets)| describe(key, *packets))
            .collect();
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

fn describe((service, outcome): &CounterKey, packets: u64) -> String {
    format!(
        "{packets} {}{} at {}",
        if outcome.would_drop { "would-be " } else { "" },
        outcome.reason.name(),
        service.as_deref().unwrap_or("no service")
    )
}
