//! A web server under a flood, with guard, with others and with nothing in front of it.
//!
//! The flood takes the server's own CPU, as the interrupts of a card would, and the clients have the other
//! one. What the server keeps is told against what it serves while the same flood goes to another host,
//! where a program drops all of it: so what the generator itself takes counts on both sides.

mod generator;
mod protection;
mod web;

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
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
    generator::{Generator, Progress, Sink},
    protection::Protection,
};
use crate::{
    Asked,
    beside::Numbers,
    frames::flooding_syn,
    policies::WEB_PORT,
    report::{Bar, Row, Unit},
    spread::Spread,
};

/// Who is on which CPU.
mod cpu {
    pub const FLOODED: usize = 0;
    pub const CLIENTS: usize = 1;
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
pub enum Flood {
    /// To a port that is closed, from anywhere.
    Closed,
    /// To the server's port, from one source.
    Over,
    /// To the server's port, from anywhere: no source is over its budget, all together are over theirs.
    Random,
}

impl Flood {
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

    /// What the server must keep behind guard.
    const fn bar(self) -> Option<Bar> {
        match self {
            Self::Closed | Self::Over => Some(Bar::AtLeast(90.0)),
            Self::Random => None,
        }
    }
}

/// Packets a second: what brings a server without protection under half, and half of what the generator
/// makes with a CPU of its own, so that it leaves the server the other half.
struct Rates {
    breaking: u32,
    highest: u32,
}

impl Rates {
    const NAMES: [&str; 2] = ["breaking", "highest"];

    fn named(&self) -> [(&'static str, u32); 2] {
        let Self { breaking, highest } = *self;
        let [first, second] = Self::NAMES;
        [(first, breaking), (second, highest)]
    }
}

/// The rates that are tried until the server without protection serves less than half.
const RATES: [u32; 6] = [100_000, 200_000, 300_000, 400_000, 600_000, 800_000];
const HALF: f64 = 0.5;

/// How long a flood lasts before it is counted what is served, and while.
const RISING: Duration = Duration::from_millis(300);
const COUNTED: Duration = Duration::from_millis(1_000);

const ROUNDS: u32 = 5;

/// The same of a row with a bar: what is left of the server at the highest rate comes and goes.
const HELD: u32 = 15;

/// Of the groups of rows.
pub const TITLES: [&str; 3] = [
    Flood::Closed.title(),
    Flood::Over.title(),
    Flood::Random.title(),
];

pub fn names() -> Vec<String> {
    let mut names = Vec::new();
    for flood in Flood::ALL {
        for protection in Protection::ALL {
            if protection.knows(flood) {
                let kept = |rate| format!("flood-{}-{}-{rate}", flood.name(), protection.name());
                names.extend(Rates::NAMES.map(kept));
            }
        }
    }
    names
}

pub fn measured(asked: &Asked) -> Result<Vec<Row>> {
    if !names().iter().any(|name| asked.is(name)) {
        return Ok(Vec::new());
    }
    let elsewhere = Lab::new()?;
    let _sink = Sink::attach(&elsewhere.host, INTERFACE)?;
    Generator::settle(&elsewhere.internet)?;
    let rates = Rates {
        breaking: breaking_rate(&elsewhere)?,
        highest: highest_rate(&elsewhere)?,
    };
    let mut rows = Vec::new();
    for protection in Protection::ALL {
        eprintln!("bench: under a flood, {}", protection.about());
        let scene = Scene::new(protection, &elsewhere)?;
        for flood in Flood::ALL
            .into_iter()
            .filter(|flood| protection.knows(*flood))
        {
            for (name, rate) in rates.named() {
                let name = format!("flood-{}-{}-{name}", flood.name(), protection.name());
                if asked.is(&name) {
                    rows.push((flood as u8, scene.row(&name, flood, rate)?));
                }
            }
        }
        scene.end()?;
    }
    rows.sort_by_key(|(flood, _)| *flood);
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// A row with a bar has sent as much as the other host got, and as was meant to be sent: this part, at least.
const ALIKE: f64 = 0.95;

/// Packets a second that bring the server under half if nothing stops them.
fn breaking_rate(elsewhere: &Lab) -> Result<u32> {
    let scene = Scene::new(Protection::Nothing, elsewhere)?;
    for rate in RATES {
        let mut kept = Vec::new();
        for _ in 0..ROUNDS {
            kept.push(scene.bout(Flood::Closed, rate, 0)?.kept);
        }
        if Spread::of(kept).is_some_and(|kept| kept.high < HALF) {
            return Ok(rate);
        }
    }
    // It takes no faster one here: the generator has no time left to send it.
    Ok(RATES[RATES.len() - 1])
}

/// Half of the packets a second that the generator makes when nobody else wants its CPU.
fn highest_rate(elsewhere: &Lab) -> Result<u32> {
    let mut generator = generator(elsewhere, Flood::Closed)?;
    let progress = Progress::default();
    thread::scope(|scope| {
        let flooding =
            scope.spawn(|| generator.run(&elsewhere.internet, OUTSIDE, u32::MAX, &progress));
        thread::sleep(RISING + COUNTED);
        progress.stop.store(true, Ordering::Relaxed);
        joined(flooding.join())
    })?;
    let seconds = (RISING + COUNTED).as_secs_f64();
    Ok((progress.sent.load(Ordering::Relaxed) as f64 / seconds / 2.0) as u32)
}

fn generator(flooded: &Lab, flood: Flood) -> Result<Generator> {
    let (port, sources) = flood.shape();
    let macs = (mac(flooded, Side::Outside)?, mac(flooded, Side::Host)?);
    Generator::load(flooding_syn(macs, port), sources)
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
struct Bout {
    /// The share of what the server serves while the flood goes elsewhere.
    kept: f64,
    /// Answers and packets in a second.
    served: f64,
    sent: f64,
    /// The same to the other host, while the server is left alone.
    sent_elsewhere: f64,
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

    fn row(&self, name: &str, flood: Flood, rate: u32) -> Result<Row> {
        let (mut kept, mut served, mut sent) = (Vec::new(), Vec::new(), Vec::new());
        let mut sent_elsewhere = Vec::new();
        let bar = flood.bar().filter(|_| self.protection == Protection::Guard);
        let rounds = if bar.is_some() { HELD } else { ROUNDS };
        for round in 0..rounds {
            lab::interrupt::check()?;
            let bout = self.bout(flood, rate, round)?;
            kept.push(100.0 * bout.kept);
            served.push(bout.served);
            sent.push(bout.sent);
            sent_elsewhere.push(bout.sent_elsewhere);
        }
        let middle = |values: Vec<f64>| Spread::of(values).map_or(0.0, |spread| spread.median);
        let (sent, sent_elsewhere) = (middle(sent), middle(sent_elsewhere));
        let about = format!(
            "{}: {:.0} answers/s at {sent:.0} packets/s, of {rate}",
            self.protection.about(),
            middle(served),
        );
        // Of other rows it is told: where a flood is stopped late, the generator does not get to send all of it.
        let is_as_busy =
            sent >= ALIKE * sent_elsewhere && sent_elsewhere >= ALIKE * f64::from(rate);
        let fault = (bar.is_some() && !is_as_busy).then(|| {
            format!("{sent:.0} packets/s were sent here, {sent_elsewhere:.0} elsewhere, of {rate}")
        });
        let kept = Spread::of(kept).context("there is no round")?;
        let names = (name, flood.title(), about.as_str());
        Ok(Row::new(names, Unit::Percent, kept, bar, fault))
    }

    /// Which host is flooded first is the other one in every other round: what the machine does meanwhile is on
    /// both sides.
    fn bout(&self, flood: Flood, rate: u32, round: u32) -> Result<Bout> {
        let elsewhere = || self.served_while(self.elsewhere, flood, rate);
        let here = || self.served_while(&self.lab, flood, rate);
        let ((elsewhere, sent_elsewhere), (here, sent)) = if round.is_multiple_of(2) {
            (elsewhere()?, here()?)
        } else {
            let here = here()?;
            (elsewhere()?, here)
        };
        ensure!(elsewhere > 0.0, "the server serves nothing without a flood");
        Ok(Bout {
            kept: here / elsewhere,
            served: here,
            sent,
            sent_elsewhere,
        })
    }

    /// What this server answers in a second while a lab's host is flooded, and how many packets are sent.
    fn served_while(&self, flooded: &Lab, flood: Flood, rate: u32) -> Result<(f64, f64)> {
        let mut generator = generator(flooded, flood)?;
        let answered = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let progress = Progress::default();
        thread::scope(|scope| {
            let clients: Vec<_> = (0..web::CLIENTS)
                .map(|_| scope.spawn(|| self.lab.internet.enter(|| web::ask(&answered, &stop))))
                .collect();
            thread::sleep(RISING);
            let flooding =
                scope.spawn(|| generator.run(&flooded.internet, OUTSIDE, rate, &progress));
            thread::sleep(RISING);
            let count = || {
                let answered = answered.load(Ordering::Relaxed);
                (answered, progress.sent.load(Ordering::Relaxed))
            };
            let (before, start) = (count(), Instant::now());
            thread::sleep(COUNTED);
            let (after, seconds) = (count(), start.elapsed().as_secs_f64());
            progress.stop.store(true, Ordering::Relaxed);
            joined(flooding.join())?;
            stop.store(true, Ordering::Relaxed);
            for client in clients {
                joined(client.join())??;
            }
            let a_second = |before: u64, after: u64| (after - before) as f64 / seconds;
            Ok((a_second(before.0, after.0), a_second(before.1, after.1)))
        })
    }
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
