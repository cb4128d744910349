//! The cost of the agent: the release binary in a separate lab, with a policy of the promised size.

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, UdpSocket},
    path::Path,
    pin::pin,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use guard::api::{Reload, client::Client};
use lab::{
    guard::Guard,
    topology::{HOST_V4, INTERFACE, Lab},
};
use nix::{
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};
use tokio::runtime::{Builder, Runtime};

use crate::{
    RowFilter,
    row::{Bar, Row, RowUnit},
    spread::Spread,
};

const RELOAD: &str = "agent-reload";
const STATUS: &str = "agent-status";
const COUNTERS: &str = "agent-counters";
const IDLE: &str = "agent-idle";
const MEMORY: &str = "agent-memory";

pub const NAMES: [&str; 5] = [RELOAD, STATUS, COUNTERS, IDLE, MEMORY];

const SERVICES: u16 = 1_000;
const FIRST_PORT: u16 = 20_000;
const DENIED: u32 = 100_000;

/// How often a reload and a reading of the counters are timed.
const RELOADS: u32 = 7;
const READINGS: u32 = 51;

/// How long the idle agent is watched, and the pause before that.
const WATCHED: Duration = Duration::from_secs(20);
const SETTLED: Duration = Duration::from_secs(3);

pub fn measured(asked: &RowFilter) -> Result<Vec<Row>> {
    if !NAMES.into_iter().any(|name| asked.is(name)) {
        return Ok(Vec::new());
    }
    let lab = Lab::new()?;
    let guard = Guard::start(&lab, &policy())?;
    let agent = AgentClient {
        client: Client::new(&lab.folder().join("guard.sock"))?,
        runtime: Builder::new_current_thread().enable_all().build()?,
    };
    let row = |name, about, unit, values, bar, fault| -> Result<Row> {
        let spread = Spread::of(values).context("no round was measured")?;
        let names = (name, "The agent", about);
        Ok(Row::new(names, unit, spread, Some(Bar::AtMost(bar)), fault))
    };
    let mut rows = Vec::new();
    let mut reloads = Vec::new();
    for _ in 0..RELOADS {
        lab::interrupt::check()?;
        reloads.push(agent.reload()?);
    }
    rows.push(row(
        RELOAD,
        "1,000 services and 100,000 denied addresses, from the request to the answer",
        RowUnit::Milliseconds,
        reloads,
        1_000.0,
        None,
    )?);
    let mut slowest = Vec::new();
    for _ in 0..RELOADS {
        lab::interrupt::check()?;
        slowest.push(agent.slowest_status_during_a_reload()?);
    }
    rows.push(row(
        STATUS,
        "the status while that policy is loaded, from the request to the answer: the slowest of a load",
        RowUnit::Milliseconds,
        slowest,
        50.0,
        None,
    )?);
    knock(&lab)?;
    let mut readings = Vec::new();
    let mut fewest = usize::MAX;
    for _ in 0..READINGS {
        let (took, counters) = agent.counters()?;
        readings.push(took);
        fewest = fewest.min(counters);
    }
    let fault = (fewest < usize::from(SERVICES))
        .then(|| format!("{fewest} counters for {SERVICES} services"));
    rows.push(row(
        COUNTERS,
        "all counters of 1,000 services, from the request to the answer",
        RowUnit::Milliseconds,
        readings,
        10.0,
        fault,
    )?);
    thread::sleep(SETTLED);
    let before = cpu_time(guard.pid())?;
    let start = Instant::now();
    thread::sleep(WATCHED);
    let spent = cpu_time(guard.pid())? - before;
    let share = 100.0 * spent.as_secs_f64() / start.elapsed().as_secs_f64();
    rows.push(row(
        IDLE,
        "the idle agent with that policy: of one core",
        RowUnit::Percent,
        vec![share],
        0.5,
        None,
    )?);
    rows.push(row(
        MEMORY,
        "the same, after these reloads: resident memory",
        RowUnit::Megabytes,
        vec![resident_megabytes(guard.pid())?],
        40.0,
        None,
    )?);
    guard.remove()?;
    Ok(rows.into_iter().filter(|row| asked.is(&row.name)).collect())
}

/// A policy with as many services and denied addresses as are promised.
fn policy() -> String {
    let mut policy = format!(
        "mode = \"enforce\"\nscope = \"host\"\ninterfaces = [\"{INTERFACE}\"]\n\
         [docker]\nsocket = \"\"\n"
    );
    for number in 0..SERVICES {
        let port = FIRST_PORT + number;
        // Writing to memory does not fail.
        let _ = write!(
            policy,
            "[[service]]\nname = \"service-{number}\"\nports = [\"tcp/{port}\", \"udp/{port}\"]\n\
             limit.packets = \"1k/s\"\nlimit.connections = \"50/s\"\n"
        );
    }
    policy += "[[source]]\nname = \"feed\"\ndeny = true\ncidrs = [\n";
    let first = u32::from(Ipv4Addr::new(10, 0, 0, 0));
    for number in 0..DENIED {
        // The addresses are not consecutive, as in real feeds.
        let address = Ipv4Addr::from(first + number * 13);
        let _ = writeln!(policy, "\"{address}\",");
    }
    policy + "]\n"
}

/// Sends a datagram to every service, so that there is something to count.
fn knock(lab: &Lab) -> Result<()> {
    lab.internet.enter(|| -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for number in 0..SERVICES {
            // No server listens there, so an ICMP error may come back.
            let _ = socket.send_to(b"?", (HOST_V4, FIRST_PORT + number));
        }
        Ok(())
    })?
}

/// A client of the agent, as in the command line.
struct AgentClient {
    client: Client,
    runtime: Runtime,
}

impl AgentClient {
    /// The time of a reload, in milliseconds.
    fn reload(&self) -> Result<f64> {
        let start = Instant::now();
        let request = Reload::default();
        self.runtime.block_on(self.client.reload(&request))?;
        Ok(milliseconds(start))
    }

    /// The slowest status answer during a reload, in milliseconds.
    fn slowest_status_during_a_reload(&self) -> Result<f64> {
        let request = Reload::default();
        let mut slowest = 0_f64;
        self.runtime.block_on(async {
            let mut reload = pin!(self.client.reload(&request));
            loop {
                let start = Instant::now();
                // The reload continues while the status request waits.
                let mut status = pin!(self.client.status());
                let reloaded = tokio::select! {
                    biased;
                    status = &mut status => {
                        status?;
                        slowest = slowest.max(milliseconds(start));
                        None
                    }
                    reloaded = &mut reload => Some(reloaded),
                };
                if let Some(reloaded) = reloaded {
                    reloaded?;
                    status.await?;
                    return Ok(slowest.max(milliseconds(start)));
                }
            }
        })
    }

    /// The time to read the counters in milliseconds, and their number.
    fn counters(&self) -> Result<(f64, usize)> {
        let start = Instant::now();
        let counters = self.runtime.block_on(self.client.counters())?;
        Ok((milliseconds(start), counters.len()))
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// The CPU time of a process, with its ended threads (clock_getcpuclockid(3)). The times in /proc are only as precise
/// as a tick.
fn cpu_time(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.try_into()?))?;
    Ok(clock_gettime(clock)?.into())
}

fn resident_megabytes(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(Path::new(&path))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next());
    let kibibytes: f64 = kibibytes.context("status has no VmRSS")?.parse()?;
    Ok(kibibytes * 1_024.0 / 1e6)
}
