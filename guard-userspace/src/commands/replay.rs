//! `guard replay`: runs a recorded capture through a policy, in the real kernel program.

mod drops;
mod published;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, BufWriter, Write as _},
    net::IpAddr,
    path::PathBuf,
};

use anyhow::Result;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use guard_common::reason::{Mode, Outcome, Reason, Verdict};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;

use self::{
    drops::{DropReport, DropTally},
    published::{Assumed, AssumedFrom},
};
use super::{DEFAULT_POLICY, Failure, print, print_json, print_warning, read_policy};
use crate::{
    dataplane::{Direction, Judged, LoadError, Replay, source_of},
    host,
    pcap::{self, Recorded},
    policy::{Containers, KernelTick, Policy, Tables, Timebase, labels, parse_prefix},
};

#[derive(Debug, Args)]
pub struct ReplayCommand {
    /// The policy file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_POLICY)]
    policy: PathBuf,
    /// Apply the policy as if every mode were `enforce`
    #[arg(long)]
    enforce: bool,
    /// Published ports of containers, instead of Docker's: tcp/8000,udp/9000-9010,203.0.113.11:tcp/443; `none`: there
    /// are none
    #[arg(
        long,
        visible_alias = "published",
        value_name = "PORTS",
        value_delimiter = ','
    )]
    publish: Vec<String>,
    /// Container networks, instead of Docker's: 172.17.0.0/16
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = parse_prefix)]
    network: Vec<IpNet>,
    /// Addresses of the recording host: packets from them get no verdict, but open flows
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',')]
    local: Vec<IpAddr>,
    /// Print one JSON object per packet, in order
    #[arg(long)]
    each: bool,
    /// Print the sums as JSON
    #[arg(long)]
    json: bool,
    /// The capture, pcap or pcapng: a file, a named pipe, or - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// The line that `--each` prints for a packet.
#[derive(Serialize)]
struct ReplayLine<'a> {
    n: u64,
    /// Seconds since 1970.
    time: f64,
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    would: Option<&'static str>,
    reason: &'static str,
    service: Option<&'a str>,
    /// `out`, if this host sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    direction: Option<&'static str>,
}

/// The numbers of packets.
#[derive(Default, Serialize)]
struct ReplaySummary {
    packets: u64,
    passed: u64,
    dropped: u64,
    would_drop: u64,
    by_reason: BTreeMap<&'static str, u64>,
    /// The empty name counts packets that matched no service.
    by_service: BTreeMap<String, u64>,
    #[serde(skip)]
    drops: DropTally,
}

/// What `--json` prints.
#[derive(Serialize)]
struct ReplayReport<'a> {
    #[serde(flatten)]
    sums: &'a ReplaySummary,
    /// The published ports that the replay assumes.
    published: Vec<String>,
    /// `options`, `docker`, or `unknown`.
    published_from: &'static str,
    #[serde(flatten)]
    drops: DropReport<'a>,
}

impl ReplayCommand {
    pub async fn run(self) -> Result<(), Failure> {
        let options =
            Assumed::from_options(&self.publish, &self.network).map_err(Failure::Usage)?;
        let policy = read_policy(&self.policy)?;
        let assumed = if self.publish.is_empty() && self.network.is_empty() {
            Assumed::from_runtime(&policy).await
        } else {
            Assumed {
                containers: options,
                from: AssumedFrom::Options,
            }
        };
        if let Some(warning) = assumed.warning(policy.scope) {
            print_warning(&warning);
        }
        let tick_ns = host::tick_ns().map_err(anyhow::Error::from)?;
        let (mut policy, _) = labels::apply(&policy, &assumed.containers, KernelTick { tick_ns });
        if self.enforce {
            policy.mode = Mode::Enforce;
            for service in &mut policy.services {
                service.mode = Mode::Enforce;
            }
        }
        let mut sums = ReplaySummary::default();
        let result = self.replay(&policy, &assumed.containers, &mut sums);
        if result.is_err() && sums.packets == 0 {
            // No packet was read: print only the error.
        } else if self.json {
            print_json(&ReplayReport {
                sums: &sums,
                published: assumed.ports(),
                published_from: assumed.from.name(),
                drops: sums.drops.report(),
            })?;
        } else if !self.each {
            print(&sums.describe(&assumed).map_err(anyhow::Error::from)?)?;
        }
        Ok(result?)
    }

    fn replay(
        &self,
        policy: &Policy,
        containers: &Containers,
        sums: &mut ReplaySummary,
    ) -> Result<()> {
        let mut stdout = BufWriter::new(io::stdout().lock());
        let mut program: Option<(Replay, CaptureClock)> = None;
        let mut odd_times = 0;
        let mut replay_one = |recorded: Recorded| {
            let (program, clock) = match &mut program {
                Some(running) => running,
                None => {
                    let loaded = load(policy, containers, recorded.time_ns)?;
                    program.insert((loaded, CaptureClock::starting_at(recorded.time_ns)))
                }
            };
            let problem = match &recorded.odd_time {
                Some(problem) => Some(problem.clone()),
                None => clock.set(program, recorded.time_ns)?,
            };
            if let Some(problem) = problem {
                odd_times += 1;
                if odd_times <= ODD_TIMES_SHOWN {
                    let place = pcap::place(&self.file, sums.packets);
                    print_warning(&format!(
                        "{place}: {problem}; the time of the packet before it is used"
                    ));
                }
            }
            let line = self.judge(program, &recorded, sums)?;
            if self.each {
                writeln!(stdout, "{}", serde_json::to_string(&line)?)?;
            }
            Ok(())
        };
        let mut ahead = Lookahead::default();
        let read = pcap::read(&self.file, |recorded| {
            ahead.push(recorded).map_or(Ok(()), &mut replay_one)
        });
        // The packets before an error are replayed.
        let last = ahead.finish().map_or(Ok(()), &mut replay_one);
        let result: Result<()> = last.and(read);
        if odd_times > ODD_TIMES_SHOWN {
            let more = odd_times - ODD_TIMES_SHOWN;
            print_warning(&format!("{more} more packets have such times"));
        }
        match result.and_then(|()| Ok(stdout.flush()?)) {
            // A reader that closes the pipe, such as `head`, is no error.
            Err(error) if is_broken_pipe(&error) => Ok(()),
            result => result,
        }
    }

    fn judge<'a>(
        &self,
        program: &'a Replay,
        recorded: &Recorded,
        sums: &mut ReplaySummary,
    ) -> Result<ReplayLine<'a>> {
        let Recorded {
            time_ns,
            odd_time: _,
            frame,
            direction,
        } = recorded;
        let is_ours = *direction == Direction::Out
            || source_of(frame).is_some_and(|source| self.local.contains(&source));
        let judged = if is_ours {
            program.sent(frame)?;
            Judged {
                service: 0,
                outcome: Outcome {
                    reason: Reason::NotGuarded,
                    would_drop: false,
                },
            }
        } else {
            program.judge(frame)?
        };
        let Judged { service, outcome } = judged;
        let line = ReplayLine {
            n: sums.packets,
            time: *time_ns as f64 / 1e9,
            verdict: outcome.verdict().name(),
            would: outcome.would_drop.then(|| Verdict::Drop.name()),
            reason: outcome.reason.name(),
            service: program.generation().tables().service_name(service),
            direction: is_ours.then_some("out"),
        };
        sums.add(&line);
        if line.verdict == Verdict::Drop.name() || line.would.is_some() {
            sums.drops.add(frame, line.reason, line.service);
        }
        Ok(line)
    }
}

/// For how many packets with odd times a warning is printed.
const ODD_TIMES_SHOWN: u64 = 3;

/// Reads one packet ahead, to find single packets whose time is wrong: it is far from the times before and after it.
#[derive(Default)]
struct Lookahead {
    /// The time of the last packet, in nanoseconds since 1970, without those that are wrong.
    before_ns: Option<i64>,
    next: Option<Recorded>,
}

impl Lookahead {
    /// Packets are recorded out of order by milliseconds, and a clock is set once and stays so. A single packet that is
    /// off by more than this has a wrong time.
    const FAR_NS: i64 = 60_000_000_000;

    /// Returns the packet before this one.
    fn push(&mut self, recorded: Recorded) -> Option<Recorded> {
        let after_ns = recorded.time_ns;
        let mut packet = self.next.replace(recorded)?;
        let far = |before: i64, after: i64| after.saturating_sub(before) > Self::FAR_NS;
        let is_wrong = self.before_ns.is_some_and(|before_ns| {
            let time_ns = packet.time_ns;
            far(before_ns, time_ns) && far(after_ns, time_ns)
                || far(time_ns, before_ns) && far(time_ns, after_ns)
        });
        if is_wrong && packet.odd_time.is_none() {
            packet.odd_time = Some("its time is far from those before and after it".to_owned());
        } else {
            self.before_ns = Some(packet.time_ns);
        }
        Some(packet)
    }

    /// Returns the last packet.
    fn finish(self) -> Option<Recorded> {
        self.next
    }
}

/// Maps the capture's times to the replay's clock, and rejects single times that jump.
struct CaptureClock {
    /// Nanoseconds since 1970 at which the replay's clock is 0.
    start_ns: i64,
    /// The last time of the replay's clock, in nanoseconds.
    now_ns: i64,
    /// The time of the previous packet, if it was rejected as a jump.
    doubted_ns: Option<i64>,
}

impl CaptureClock {
    const fn starting_at(start_ns: i64) -> Self {
        Self {
            start_ns,
            now_ns: 0,
            doubted_ns: None,
        }
    }

    /// Sets the program's clock for a packet. A time that jumps too far is returned as a problem, and the clock stays.
    /// If the next packet jumps to about the same time, the capturing host's clock was set, and is followed.
    fn set(&mut self, program: &mut Replay, time_ns: i64) -> Result<Option<String>> {
        match self.try_set(program, time_ns) {
            Ok(()) => {
                self.doubted_ns = None;
                return Ok(None);
            }
            Err(LoadError::ClockJump) => {}
            Err(error) => return Err(error.into()),
        }
        let Some(doubted_ns) = self.doubted_ns.replace(time_ns) else {
            return Ok(Some(LoadError::ClockJump.to_string()));
        };
        let (start_ns, now_ns) = (self.start_ns, self.now_ns);
        self.start_ns = doubted_ns.saturating_sub(now_ns);
        match self.try_set(program, time_ns) {
            Ok(()) => {
                self.doubted_ns = None;
                Ok(None)
            }
            Err(LoadError::ClockJump) => {
                self.start_ns = start_ns;
                Ok(Some(LoadError::ClockJump.to_string()))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn try_set(&mut self, program: &mut Replay, time_ns: i64) -> Result<(), LoadError> {
        let after_start_ns = time_ns
            .checked_sub(self.start_ns)
            .ok_or(LoadError::ClockJump)?;
        program.set_clock(after_start_ns)?;
        self.now_ns = after_start_ns;
        Ok(())
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain();
    causes.any(|cause| {
        let io = cause.downcast_ref::<io::Error>();
        io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// Loads the program with its tables as of the first packet's time.
fn load(policy: &Policy, containers: &Containers, first_ns: i64) -> Result<Replay> {
    let now = Timebase {
        world: Timestamp::from_nanosecond(first_ns.into())?,
        boot_ns: Replay::BOOT_NS,
    };
    let tick_ns = host::tick_ns()?;
    let local_ports = host::local_port_range()?;
    let tables = Tables::compile(policy, containers, &local_ports, now);
    Ok(Replay::new(tables, tick_ns)?)
}

impl ReplaySummary {
    fn add(&mut self, line: &ReplayLine<'_>) {
        self.packets += 1;
        if line.verdict == Verdict::Drop.name() {
            self.dropped += 1;
        } else {
            self.passed += 1;
        }
        self.would_drop += u64::from(line.would.is_some());
        *self.by_reason.entry(line.reason).or_default() += 1;
        let service = line.service.unwrap_or_default();
        if !self.by_service.contains_key(service) {
            self.by_service.insert(service.to_owned(), 0);
        }
        if let Some(count) = self.by_service.get_mut(service) {
            *count += 1;
        }
    }

    fn describe(&self, assumed: &Assumed) -> Result<String, std::fmt::Error> {
        let Self {
            packets,
            passed,
            dropped,
            would_drop,
            by_reason,
            by_service,
            drops,
        } = self;
        let mut text = String::new();
        writeln!(
            text,
            "{packets} packets: {passed} passed ({would_drop} of them would be dropped), {dropped} \
             dropped"
        )?;
        if let AssumedFrom::Runtime(socket) = &assumed.from {
            let ports = assumed.ports();
            if !ports.is_empty() {
                let ports = ports.join(", ");
                writeln!(
                    text,
                    "published ports, from {socket} at this moment: {ports}"
                )?;
            }
        }
        let mut table = Table::new();
        table.load_style(NOTHING);
        for (reason, count) in by_reason {
            table.add_row(["reason", reason, &count.to_string()]);
        }
        for (service, count) in by_service {
            let service = if service.is_empty() { "-" } else { service };
            table.add_row(["service", service, &count.to_string()]);
        }
        if let Some(column) = table.column_mut(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(text, "{table}")?;
        let heading = match (dropped, would_drop) {
            (_, 0) => "DROPPED",
            (0, _) => "WOULD BE DROPPED",
            _ => "DROPPED, OR WOULD BE",
        };
        drops.describe(&mut text, heading)?;
        Ok(text)
    }
}
