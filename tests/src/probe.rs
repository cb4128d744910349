//! Sends datagrams to an open and a closed port of the guarded host, and counts those that pass the guard.

use std::{
    fs::File,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::{
    process::run,
    topology::{HOST_V4, Lab, USER_V4},
};

/// The datagrams to each port between two pauses.
const BURST: u64 = 20;
const PAUSE: Duration = Duration::from_micros(1_800);

/// The rate of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbePace {
    /// About 10,000 datagrams a second to each port.
    Steady,
    /// As fast as one thread can send.
    Flood,
}

/// A running stream. It ends when this is dropped.
pub struct Probe {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
    start: Instant,
    open: u16,
    closed: u16,
}

/// The datagrams of a stream, sent and received.
#[derive(Clone, Copy, Debug)]
pub struct ProbeResult {
    /// Datagrams sent to each port.
    pub sent: u64,
    pub seconds: f64,
    /// Datagrams to the open port that the host's stack received; `closed`: those to the closed port.
    pub open: u64,
    pub closed: u64,
}

impl Probe {
    /// Starts counting and then sending.
    pub fn start(lab: &Lab, open: u16, closed: u16, pace: ProbePace) -> Result<Self> {
        for port in [open, closed] {
            // The raw table comes before conntrack and NAT: it counts a packet first.
            run(lab.host.command("iptables").args([
                "--wait",
                "--table",
                "raw",
                "--append",
                "PREROUTING",
                "--protocol",
                "udp",
                "--dport",
                &port.to_string(),
            ]))?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let listening = listen(lab, open, Arc::clone(&stop))?;
        let sending = send(
            lab,
            [open, closed],
            pace,
            Arc::clone(&stop),
            Arc::clone(&sent),
        )?;
        Ok(Self {
            stop,
            sent,
            threads: vec![listening, sending],
            start: Instant::now(),
            open,
            closed,
        })
    }

    /// The datagrams sent to each port so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends the stream, and returns the counts.
    pub fn stop(mut self, lab: &Lab) -> Result<ProbeResult> {
        let seconds = self.start.elapsed().as_secs_f64();
        self.end()?;
        // Time for the last datagrams to arrive.
        thread::sleep(Duration::from_millis(300));
        Ok(ProbeResult {
            sent: self.sent(),
            seconds,
            open: arrived(lab, self.open)?,
            closed: arrived(lab, self.closed)?,
        })
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread
                .join()
                .map_err(|_| anyhow!("a thread of the probe panicked"))??;
        }
        Ok(())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("the probe failed: {error:#}");
        }
    }
}

/// The datagrams to a port that the host's stack has received.
fn arrived(lab: &Lab, port: u16) -> Result<u64> {
    let rules = run(lab.host.command("iptables").args([
        "--wait",
        "--table",
        "raw",
        "--list",
        "PREROUTING",
        "--verbose",
        "--exact",
        "--numeric",
    ]))?;
    let rule = rules
        .lines()
        .find(|line| line.ends_with(&format!("dpt:{port}")));
    let count = rule.and_then(|rule| rule.split_whitespace().next()?.parse().ok());
    count.with_context(|| format!("no rule counts port {port}: {rules}"))
}

/// Receives the datagrams at the open port, so that the host sends no ICMP errors.
fn listen(lab: &Lab, port: u16, stop: Arc<AtomicBool>) -> Result<JoinHandle<Result<()>>> {
    let namespace = File::open(lab.host.path())?;
    Ok(thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        let socket = UdpSocket::bind(SocketAddr::new(HOST_V4, port))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let mut buffer = [0; 64];
        while !stop.load(Ordering::Relaxed) {
            // A datagram that the full socket buffer drops was counted before.
            let _result = socket.recv(&mut buffer);
        }
        Ok(())
    }))
}

fn send(
    lab: &Lab,
    ports: [u16; 2],
    pace: ProbePace,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
) -> Result<JoinHandle<Result<()>>> {
    let namespace = File::open(lab.internet.path())?;
    Ok(thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        let from: IpAddr = USER_V4;
        let socket = UdpSocket::bind(SocketAddr::new(from, 0))?;
        let mut next = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..BURST {
                for port in ports {
                    // send_to also returns the ICMP error of an earlier datagram.
                    while let Err(error) = socket.send_to(&[0; 18], (HOST_V4, port)) {
                        if error.kind() != std::io::ErrorKind::ConnectionRefused {
                            return Err(error.into());
                        }
                    }
                }
                sent.fetch_add(1, Ordering::Relaxed);
            }
            if pace == ProbePace::Steady {
                // By the clock, so that a late thread catches up.
                next += PAUSE;
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        }
        Ok(())
    }))
}
