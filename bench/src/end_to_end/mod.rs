//! A web server under a flood: protected by guard, by other software, and without protection.
//!
//! The flood uses the server's own CPU, as the interrupts of a network card do; the clients have another CPU. The
//! server's throughput is compared with its throughput while the same flood goes to another host, where a program drops
//! all of it. So the generator's own CPU time counts on both sides.

mod generator;
mod protection;
mod web;

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lab::{
    process::run,
    topology::{INTERFACE, Lab},
};
use nix::{
    libc,
    sched::{CpuSet, sched_setaffinity},
    unistd::{Pid, gettid},
};

use self::{
    generator::{FloodProgress, Generator, Sink},
    protection::Protection,
};
use crate::{
    RowFilter,
    beside::Numbers,
    frames::flooding_syn,
    policies::WEB_PORT,
    row::{Bar, Row, RowUnit},
    spread::Spread,
};

/// The CPUs of the flood and the clients. A veth with one transmit queue uses the first queue of its peer, and the
/// kernel's live frames use the queue with their CPU's number. So the flood and the clients' packets have separate
/// queues.
mod cpu {
    pub const FLOODED: usize = 1;
    pub const CLIENTS: usize = 0;
}

/// The veth's end in the internet namespace.
const OUTSIDE: &str = "internet";

pub const CLOSED_PORT: u16 = 8_001;

/// The addresses for benchmarks (RFC 2544), and the lab's flooder.
const ANYWHERE: Numbers = Numbers {
    first: u32::from_be_bytes([198, 18, 0, 0]),
    count: 1 << 17,
};
const FLOODER: Numbers = Numbers {
    first: u32::from_be_bytes([198, 51, 100, 66]),
    count: 1,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloodKind {
    /// To a closed port, from many sources.
    Closed,
    /// To the server's port, from one source.
    Over,
    /// To the server's port, from many sources: each is within its budget, and together they are over the total.
    Random,
}

impl FloodKind {
    const ALL: [Self; 3] = [Self::Closed, Self::Over, Self::Random];

    const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Over => "over",
            Self::Random => "random",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Closed => "A flood of SYNs to a closed port",
            Self::Over => "A flood of SYNs from one source to the open port",
            Self::Random => "A flood of SYNs from random sources to the open port",
        }
    }

    const fn shape(self) -> (u16, Numbers) {
        match self {
            Self::Closed => (CLOSED_PORT, ANYWHERE),
            Self::Over => (WEB_PORT, FLOODER),
            Self::Random => (WEB_PORT, ANYWHERE),
        }
    }

    /// The bar for the server behind guard, at the rate that breaks an unprotected server and at the highest rate. At
    /// the highest rate the scheduler alone decides, and even an unprotected server keeps its share. The cost of a
    /// packet shows at half of that rate: that row has no bar and is compared with other protections.
    fn bar(self, rate: &FloodRate) -> Option<Bar> {
        (self != Self::Random && rate.name != HALF_RATE).then_some(Bar::AtLeast(90.0))
    }
}

/// The rates of the floods, in packets a second.
struct Rates {
    /// The rate at which an unprotected server serves less than half.
    breaking: u32,
    /// Half of the generator's rate when it has a CPU to itself.
    half: u32,
}

/// As many packets as the generator can send in its share of the CPU.
const HIGHEST: u32 = u32::MAX;

/// One of the rates.
struct FloodRate {
    name: &'static str,
    packets: u32,
}

const HALF_RATE: &str = "half";

impl Rates {
    const NAMES: [&str; 3] = ["breaking", HALF_RATE, "highest"];

    fn named(&self) -> [FloodRate; 3] {
        let Self { breaking, half } = *self;
        let [first, second, third] = Self::NAMES;
        [(first, breaking), (second, half), (third, HIGHEST)]
            .map(|(name, packets)| FloodRate { name, packets })
    }
}

/// The rates that are tried until the unprotected server serves less than half.
const RATES: [u32; 6] = [100_000, 200_000, 300_000, 400_000, 600_000, 800_000];
const HALF: f64 = 0.5;

/// How long clients and floods run before the first count.
const RISING: Duration = Duration::from_millis(300);

/// How long the packets of the generator alone are counted.
const COUNTED: Duration = Duration::from_millis(1_000);

/// How long each host is flooded and counted in a turn, and how long the flood runs before the count. Turns are short,
/// so that the machine's other work affects both sides.
const TURN: Duration = Duration::from_millis(150);
const TURNING: Duration = Duration::from_millis(50);

/// The number of turns of each host in a round.
const TURNS: u32 = 5;

const ROUNDS: u32 = 5;

/// How often a round without a usable result is repeated.
const ROUND_ATTEMPTS: u32 = 5;

/// The rounds of a row with a bar: at the highest rate the server's share varies.
const ROUNDS_WITH_BAR: u32 = 15;

/// The titles of the groups of rows.
pub const TITLES: [&str; 3] = [
    FloodKind::Closed.title(),
    FloodKind::Over.title(),
    FloodKind::Random.title(),
];

pub fn names() -> Vec<String> {
    let mut names = Vec::new();
    for flood in FloodKind::ALL {
        for protection in Protection::ALL {
            if protection.handles(flood) {
                let kept = |rate| format!("flood-{}-{}-{rate}", flood.name(), protection.name());
                names.extend(Rates::NAMES.map(kept));
            }
        }
    }
    names
}

pub fn measured(asked: &RowFilter) -> Result<Vec<Row>> {
    if !names().iter().any(|name| asked.is(name)) {
        return Ok(Vec::new());
    }
    let elsewhere = Lab::new()?;
    give_queues(&elsewhere)?;
    let _sink = Sink::attach(&elsewhere.host, INTERFACE)?;
    Generator::add_interface(&elsewhere.internet)?;
    let rates = Rates {
        breaking: breaking_rate(&elsewhere)?,
        half: half_rate(&elsewhere)?,
    };
    let mut rows = Vec::new();
    for protection in Protection::ALL {
        eprintln!("bench: under a flood, {}", protection.about());
        let scene = Scene::new(protection, &elsewhere)?;
        for flood in FloodKind::ALL
            .into_iter()
            .filter(|flood| protection.handles(*flood))
        {
            for rate in rates.named() {
                let name = format!("flood-{}-{}-{}", flood.name(), protection.name(), rate.name);
                if asked.is(&name) {
                    rows.push((flood as u8, scene.row(&name, flood, &rate)?));
                }
            }
        }
        scene.end()?;
    }
    rows.sort_by_key(|(flood, _)| *flood);
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// The least ratio for a valid row with a bar. Its flood must send as many packets as the one to the other host, and as
/// many as intended. At the highest rate the generator must be as busy as with the other host.
const LEAST_RATIO: f64 = 0.95;

/// The rate in packets a second at which the unprotected server serves less than half.
fn breaking_rate(elsewhere: &Lab) -> Result<u32> {
    let scene = Scene::new(Protection::Nothing, elsewhere)?;
    for rate in RATES {
        let mut kept = Vec::new();
        for _ in 0..ROUNDS {
            kept.push(scene.round(FloodKind::Closed, rate, 0)?.kept());
        }
        if Spread::of(kept).is_some_and(|kept| kept.high < HALF) {
            return Ok(rate);
        }
    }
    // A faster flood is not possible here: the generator has no CPU time left.
    Ok(RATES[RATES.len() - 1])
}

/// Half of the generator's rate in packets a second when no other process uses its CPU.
fn half_rate(elsewhere: &Lab) -> Result<u32> {
    let flood = Flooding::new(elsewhere, FloodKind::Closed, HIGHEST)?;
    thread::scope(|scope| {
        let flooding = flood.start(scope);
        let progress = &flood.progress;
        progress.on.store(true, Ordering::Relaxed);
        thread::sleep(RISING);
        let (before, start) = (progress.sent.load(Ordering::Relaxed), Instant::now());
        thread::sleep(COUNTED);
        let sent = progress.sent.load(Ordering::Relaxed) - before;
        let rate = sent as f64 / start.elapsed().as_secs_f64();
        progress.stop.store(true, Ordering::Relaxed);
        joined(flooding.join())?;
        Ok((rate / 2.0) as u32)
    })
}

/// A flood to one host, which is switched on and off.
struct Flooding<'a> {
    flooded: &'a Lab,
    generator: Mutex<Generator>,
    rate: u32,
    progress: FloodProgress,
}

impl<'a> Flooding<'a> {
    fn new(flooded: &'a Lab, flood: FloodKind, rate: u32) -> Result<Self> {
        let (port, sources) = flood.shape();
        let macs = (mac(flooded, Side::Outside)?, mac(flooded, Side::Host)?);
        let generator = Generator::load(flooding_syn(macs, port), sources)?;
        Ok(Self {
            flooded,
            generator: Mutex::new(generator),
            rate,
            progress: FloodProgress::default(),
        })
    }

    fn start<'scope>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, '_>,
    ) -> thread::ScopedJoinHandle<'scope, Result<()>> {
        scope.spawn(|| {
            let mut generator = self
                .generator
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            generator.run(&self.flooded.internet, OUTSIDE, self.rate, &self.progress)
        })
    }
}

/// A server and its protection.
struct Scene<'a> {
    protection: Protection,
    active: protection::ActiveProtection,
    _nginx: lab::process::Daemon,
    lab: Lab,
    elsewhere: &'a Lab,
}

/// The rates in one round of a flood.
struct FloodResult {
    /// While this host is flooded.
    here: ServedRate,
    /// While the other host is flooded.
    elsewhere: ServedRate,
}

impl FloodResult {
    /// The server's throughput as a share of its throughput while the other host is flooded.
    fn kept(&self) -> f64 {
        self.here.answers / self.elsewhere.answers
    }
}

/// Rates per second.
#[derive(Clone, Copy)]
struct ServedRate {
    answers: f64,
    packets: f64,
    /// The share of its CPU that the generator uses, with the kernel's work on receiving the flood.
    busy: f64,
}

impl<'a> Scene<'a> {
    fn new(protection: Protection, elsewhere: &'a Lab) -> Result<Self> {
        let lab = Lab::new()?;
        // A route for answers to the flood, as on a host with a default route; they end in the internet namespace.
        run(lab
            .host
            .command("ip")
            .args(["route", "add", "198.18.0.0/15"])
            .args(["via", "203.0.113.1"]))?;
        give_queues(&lab)?;
        Generator::add_interface(&lab.internet)?;
        let nginx = web::serve(&lab)?;
        let active = protection.set_up(&lab)?;
        Ok(Self {
            protection,
            active,
            _nginx: nginx,
            lab,
            elsewhere,
        })
    }

    fn end(self) -> Result<()> {
        self.active.take_down()
    }

    fn row(&self, name: &str, flood: FloodKind, rate: &FloodRate) -> Result<Row> {
        let bar = flood.bar(rate);
        let bar = bar.filter(|_| self.protection == Protection::Guard);
        let rate = rate.packets;
        let rounds = if bar.is_some() {
            ROUNDS_WITH_BAR
        } else {
            ROUNDS
        };
        let mut results = Vec::new();
        for round in 0..rounds {
            lab::interrupt::check()?;
            results.push(self.round(flood, rate, round)?);
        }
        let middle = |value: fn(&FloodResult) -> f64| {
            Spread::of(results.iter().map(value)).map_or(0.0, |spread| spread.median)
        };
        let (sent, elsewhere) = (
            middle(|result| result.here.packets),
            middle(|result| result.elsewhere.packets),
        );
        let (busy, busy_elsewhere) = (
            middle(|result| result.here.busy),
            middle(|result| result.elsewhere.busy),
        );
        let all = if rate == HIGHEST {
            format!("all that it makes ({elsewhere:.0} elsewhere)")
        } else {
            format!("of {rate}")
        };
        let about = format!(
            "{}: {:.0} answers/s at {sent:.0} packets/s, {all}, in {:.0} % of the CPU ({:.0} % elsewhere)",
            self.protection.about(),
            middle(|result| result.here.answers),
            100.0 * busy,
            100.0 * busy_elsewhere,
        );
        let kept = Spread::of(results.iter().map(|result| 100.0 * result.kept()));
        let kept = kept.context("no round was measured")?;
        // Rows without a bar only report it: with a protection that drops late, the generator cannot send the whole
        // flood.
        let is_alike = if rate == HIGHEST {
            busy >= LEAST_RATIO * busy_elsewhere
        } else {
            sent >= LEAST_RATIO * elsewhere && elsewhere >= LEAST_RATIO * f64::from(rate)
        };
        let fault = (bar.is_some() && !is_alike).then(|| {
            format!(
                "{sent:.0} packets/s were sent here, {elsewhere:.0} elsewhere, {all}, in {:.0} and {:.0} % of the CPU",
                100.0 * busy,
                100.0 * busy_elsewhere
            )
        });
        let names = (name, flood.title(), about.as_str());
        Ok(Row::new(names, RowUnit::Percent, kept, bar, fault))
    }

    /// Runs a round, and repeats it if the server served nothing while the other host was flooded: then the kept share
    /// is not defined. At the highest rate the generator sometimes leaves the server no CPU time.
    fn round(&self, flood: FloodKind, rate: u32, round: u32) -> Result<FloodResult> {
        for _ in 0..ROUND_ATTEMPTS {
            let result = self.try_round(flood, rate, round)?;
            if result.elsewhere.answers > 0.0 {
                return Ok(result);
            }
        }
        bail!("the server serves nothing while another host is flooded");
    }

    /// Floods this host and the other one in turns. The first host alternates from turn to turn and from round to
    /// round.
    fn try_round(&self, flood: FloodKind, rate: u32, round: u32) -> Result<FloodResult> {
        let here = Flooding::new(&self.lab, flood, rate)?;
        let elsewhere = Flooding::new(self.elsewhere, flood, rate)?;
        let answered = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let (mut at_here, mut at_elsewhere) = (FloodTotals::default(), FloodTotals::default());
        thread::scope(|scope| {
            let clients: Vec<_> = (0..web::CLIENTS)
                .map(|_| {
                    scope.spawn(|| {
                        self.lab
                            .internet
                            .enter(|| web::send_requests(&answered, &stop))
                    })
                })
                .collect();
            let floods = [here.start(scope), elsewhere.start(scope)];
            thread::sleep(RISING);
            for turn in 0..TURNS {
                let mut both = [(&here, &mut at_here), (&elsewhere, &mut at_elsewhere)];
                if (round + turn).is_multiple_of(2) {
                    both.reverse();
                }
                for (flooding, counted) in both {
                    counted.run_turn(&flooding.progress, &answered);
                }
            }
            for flooding in [&here, &elsewhere] {
                flooding.progress.stop.store(true, Ordering::Relaxed);
            }
            stop.store(true, Ordering::Relaxed);
            for flood in floods {
                joined(flood.join())?;
            }
            for client in clients {
                joined(client.join())??;
            }
            Ok::<_, anyhow::Error>(())
        })?;
        let result = FloodResult {
            here: at_here.a_second(),
            elsewhere: at_elsewhere.a_second(),
        };
        Ok(result)
    }
}

/// The sums over all turns of a flood.
#[derive(Default)]
struct FloodTotals {
    answered: u64,
    sent: u64,
    busy: Duration,
    time: Duration,
}

impl FloodTotals {
    /// Runs the flood for one turn, and adds its counts.
    fn run_turn(&mut self, flood: &FloodProgress, answered: &AtomicU64) {
        let count =
            || [answered, &flood.sent, &flood.busy_ns].map(|count| count.load(Ordering::Relaxed));
        flood.on.store(true, Ordering::Relaxed);
        thread::sleep(TURNING);
        let (before, start) = (count(), Instant::now());
        thread::sleep(TURN);
        let ([answered, sent, busy_ns], time) = (count(), start.elapsed());
        flood.on.store(false, Ordering::Relaxed);
        let [answered_before, sent_before, busy_before] = before;
        self.busy += Duration::from_nanos(busy_ns - busy_before);
        self.answered += answered - answered_before;
        self.sent += sent - sent_before;
        self.time += time;
    }

    fn a_second(&self) -> ServedRate {
        let Self {
            answered,
            sent,
            busy,
            time,
        } = self;
        let seconds = time.as_secs_f64();
        ServedRate {
            answers: *answered as f64 / seconds,
            packets: *sent as f64 / seconds,
            busy: busy.as_secs_f64() / seconds,
        }
    }
}

/// Gives the host a receive queue for each CPU, as network cards have. With a single queue, the CPU that polls it takes
/// all packets: the clients' CPU would take part of the flood.
fn give_queues(lab: &Lab) -> Result<()> {
    let arguments = ["-L", INTERFACE, "rx", "2"];
    run(lab.host.command("ethtool").args(arguments)).map(drop)
}

fn joined<T>(result: thread::Result<Result<T>>) -> Result<T> {
    match result {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

enum Side {
    Outside,
    Host,
}

/// The hardware address of an end of a lab's veth.
fn mac(lab: &Lab, side: Side) -> Result<[u8; 6]> {
    let (namespace, interface) = match side {
        Side::Outside => (&lab.internet, OUTSIDE),
        Side::Host => (&lab.host, INTERFACE),
    };
    let links = namespace.ip(&format!("-json link show dev {interface}"))?;
    let links: serde_json::Value = serde_json::from_str(&links)?;
    let address = links[0]["address"]
        .as_str()
        .context("`ip link` prints no hardware address")?;
    let bytes: Vec<u8> = address
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()?;
    <[u8; 6]>::try_from(bytes)
        .ok()
        .context("the hardware address does not have six bytes")
}

/// Pins this thread to a CPU, with this nice value.
fn pin_thread(cpu: usize, nice: i32) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    let thread = gettid().as_raw().cast_unsigned();
    // SAFETY: setpriority(2) has no preconditions.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, nice) };
    ensure!(result == 0, "setpriority failed for nice value {nice}");
    Ok(())
}
