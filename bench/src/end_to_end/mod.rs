//! A web server under a flood, with guard, with others and with nothing in front of it.
//!
//! The flood takes the server's own CPU, as the interrupts of a card would, and the clients have the other
//! one. What the server keeps is told against what it serves while the same flood goes to another host,
//! where a program drops all of it: so what the generator itself takes counts on both sides.

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

/// Who is on which CPU. A veth with one queue for what it sends uses its peer's first, and the kernel's live frames go
/// to the one that has their CPU's number: so the flood and the clients' packets each have a queue of their own.
mod cpu {
    pub const FLOODED: usize = 1;
    pub const CLIENTS: usize = 0;
}

/// The end of the veth that is the internet's.
const OUTSIDE: &str = "internet";

pub const CLOSED_PORT: u16 = 8_001;

/// Addresses for measurements (RFC 2544), and one of the lab's.
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
    /// To a port that is closed, from anywhere.
    Closed,
    /// To the server's port, from one source.
    Over,
    /// To the server's port, from anywhere: no source is over its budget, all together are over theirs.
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

    /// What the server must keep behind guard at the rate that breaks it unprotected, and at the highest. At that one
    /// everybody keeps what the scheduler gives, also who is not protected at all: what a packet takes shows at half
    /// of it, where the row stands beside those of others.
    fn bar(self, rate: &FloodRate) -> Option<Bar> {
        (self != Self::Random && rate.name != HALF_RATE).then_some(Bar::AtLeast(90.0))
    }
}

/// Packets a second.
struct Rates {
    /// What brings a server without protection under half.
    breaking: u32,
    /// Half of what the generator makes with a CPU of its own.
    half: u32,
}

/// As many packets as the generator makes of the time that it gets.
const HIGHEST: u32 = u32::MAX;

/// One of them.
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

/// The rates that are tried until the server without protection serves less than half.
const RATES: [u32; 6] = [100_000, 200_000, 300_000, 400_000, 600_000, 800_000];
const HALF: f64 = 0.5;

/// How long clients and floods have been at work before anything is counted.
const RISING: Duration = Duration::from_millis(300);

/// How long it is counted what the generator makes alone.
const COUNTED: Duration = Duration::from_millis(1_000);

/// How long the flood goes to one host before it goes to the other, and how long before it is counted what is
/// served meanwhile: what the machine does besides is on both sides.
const TURN: Duration = Duration::from_millis(150);
const TURNING: Duration = Duration::from_millis(50);

/// How often each host is flooded in a round.
const TURNS: u32 = 5;

const ROUNDS: u32 = 5;

/// How often a bout is tried of which nothing can be told.
const BOUTS: u32 = 5;

/// The same of a row with a bar: what is left of the server at the highest rate comes and goes.
const HELD: u32 = 15;

/// Of the groups of rows.
pub const TITLES: [&str; 3] = [
    FloodKind::Closed.title(),
    FloodKind::Over.title(),
    FloodKind::Random.title(),
];

pub fn names() -> Vec<String> {
    let mut names = Vec::new();
    for flood in FloodKind::ALL {
        for protection in Protection::ALL {
            if protection.knows(flood) {
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
    Generator::settle(&elsewhere.internet)?;
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
            .filter(|flood| protection.knows(*flood))
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

/// A row with a bar has sent as much as the other host got, and as was meant to be sent, or has been as busy with it
/// if it sends all that it makes: this part, at least.
const ALIKE: f64 = 0.95;

/// Packets a second that bring the server under half if nothing stops them.
fn breaking_rate(elsewhere: &Lab) -> Result<u32> {
    let scene = Scene::new(Protection::Nothing, elsewhere)?;
    for rate in RATES {
        let mut kept = Vec::new();
        for _ in 0..ROUNDS {
            kept.push(scene.bout(FloodKind::Closed, rate, 0)?.kept());
        }
        if Spread::of(kept).is_some_and(|kept| kept.high < HALF) {
            return Ok(rate);
        }
    }
    // It takes no faster one here: the generator has no time left to send it.
    Ok(RATES[RATES.len() - 1])
}

/// Half of the packets a second that the generator makes when nobody else wants its CPU.
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

/// A flood to one host, which comes and goes.
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

/// A server, its clients, and what protects it.
struct Scene<'a> {
    protection: Protection,
    standing: protection::Standing,
    _nginx: lab::process::Daemon,
    lab: Lab,
    elsewhere: &'a Lab,
}

/// What came of one flood.
struct FloodResult {
    /// While the flood comes here.
    here: ServedRate,
    /// While it goes to the other host.
    elsewhere: ServedRate,
}

impl FloodResult {
    /// The share of what the server serves while the flood goes elsewhere.
    fn kept(&self) -> f64 {
        self.here.answers / self.elsewhere.answers
    }
}

/// In a second.
#[derive(Clone, Copy)]
struct ServedRate {
    answers: f64,
    packets: f64,
    /// What the generator has of its CPU, with what that CPU does on receiving the flood.
    busy: f64,
}

impl<'a> Scene<'a> {
    fn new(protection: Protection, elsewhere: &'a Lab) -> Result<Self> {
        let lab = Lab::new()?;
        // Answers to the flood find their way out, as on a host with a default route, and end there.
        run(lab
            .host
            .command("ip")
            .args(["route", "add", "198.18.0.0/15"])
            .args(["via", "203.0.113.1"]))?;
        give_queues(&lab)?;
        Generator::settle(&lab.internet)?;
        let nginx = web::serve(&lab)?;
        let standing = protection.put_up(&lab)?;
        Ok(Self {
            protection,
            standing,
            _nginx: nginx,
            lab,
            elsewhere,
        })
    }

    fn end(self) -> Result<()> {
        self.standing.take_down()
    }

    fn row(&self, name: &str, flood: FloodKind, rate: &FloodRate) -> Result<Row> {
        let bar = flood.bar(rate);
        let bar = bar.filter(|_| self.protection == Protection::Guard);
        let rate = rate.packets;
        let rounds = if bar.is_some() { HELD } else { ROUNDS };
        let mut bouts = Vec::new();
        for round in 0..rounds {
            lab::interrupt::check()?;
            bouts.push(self.bout(flood, rate, round)?);
        }
        let middle = |value: fn(&FloodResult) -> f64| {
            Spread::of(bouts.iter().map(value)).map_or(0.0, |spread| spread.median)
        };
        let (sent, elsewhere) = (
            middle(|bout| bout.here.packets),
            middle(|bout| bout.elsewhere.packets),
        );
        let (busy, busy_elsewhere) = (
            middle(|bout| bout.here.busy),
            middle(|bout| bout.elsewhere.busy),
        );
        let all = if rate == HIGHEST {
            format!("all that it makes ({elsewhere:.0} elsewhere)")
        } else {
            format!("of {rate}")
        };
        let about = format!(
            "{}: {:.0} answers/s at {sent:.0} packets/s, {all}, in {:.0} % of the CPU ({:.0} % elsewhere)",
            self.protection.about(),
            middle(|bout| bout.here.answers),
            100.0 * busy,
            100.0 * busy_elsewhere,
        );
        let kept = Spread::of(bouts.iter().map(|bout| 100.0 * bout.kept()));
        let kept = kept.context("there is no round")?;
        // Of other rows it is told: where a flood is stopped late, the generator does not get to send all of it.
        let is_alike = if rate == HIGHEST {
            busy >= ALIKE * busy_elsewhere
        } else {
            sent >= ALIKE * elsewhere && elsewhere >= ALIKE * f64::from(rate)
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

    /// One in which the server got anything of the CPU while the other host was flooded: at the highest rate the
    /// generator now and then leaves it nothing, and what it keeps then cannot be told.
    fn bout(&self, flood: FloodKind, rate: u32, round: u32) -> Result<FloodResult> {
        for _ in 0..BOUTS {
            let bout = self.any_bout(flood, rate, round)?;
            if bout.elsewhere.answers > 0.0 {
                return Ok(bout);
            }
        }
        bail!("the server serves nothing while another host is flooded");
    }

    /// The flood goes to this host and to the other one in turns. Which is first is the other one in every other
    /// round.
    fn any_bout(&self, flood: FloodKind, rate: u32, round: u32) -> Result<FloodResult> {
        let here = Flooding::new(&self.lab, flood, rate)?;
        let elsewhere = Flooding::new(self.elsewhere, flood, rate)?;
        let answered = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let (mut at_here, mut at_elsewhere) = (FloodTotals::default(), FloodTotals::default());
        thread::scope(|scope| {
            let clients: Vec<_> = (0..web::CLIENTS)
                .map(|_| scope.spawn(|| self.lab.internet.enter(|| web::ask(&answered, &stop))))
                .collect();
            let floods = [here.start(scope), elsewhere.start(scope)];
            thread::sleep(RISING);
            for turn in 0..TURNS {
                let mut both = [(&here, &mut at_here), (&elsewhere, &mut at_elsewhere)];
                if (round + turn).is_multiple_of(2) {
                    both.reverse();
                }
                for (flooding, counted) in both {
                    counted.take(&flooding.progress, &answered);
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
        let bout = FloodResult {
            here: at_here.a_second(),
            elsewhere: at_elsewhere.a_second(),
        };
        Ok(bout)
    }
}

/// What came of a flood in all of its turns.
#[derive(Default)]
struct FloodTotals {
    answered: u64,
    sent: u64,
    busy: Duration,
    time: Duration,
}

impl FloodTotals {
    /// Has a flood its turn.
    fn take(&mut self, flood: &FloodProgress, answered: &AtomicU64) {
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

/// Gives the host a queue for each CPU, as cards have. With one for all, whichever CPU is at it takes all that
/// comes: the clients' CPU would take part of the flood.
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
        .context("ip tells no address")?;
    let bytes: Vec<u8> = address
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()?;
    <[u8; 6]>::try_from(bytes)
        .ok()
        .context("that is no Ethernet address")
}

/// Keeps this thread on a CPU, with this niceness.
fn process_of(cpu: usize, nice: i32) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    let thread = gettid().as_raw().cast_unsigned();
    // SAFETY: it has no preconditions (setpriority(2)).
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, nice) };
    ensure!(result == 0, "a thread cannot be given precedence");
    Ok(())
}
