//! A steady stream of datagrams to two ports of the guarded host, one that is open and one that is closed,
//! counted where they arrive behind the guard.

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

/// So many datagrams to each port at once, and then a pause.
const BURST: u64 = 20;
const PAUSE: Duration = Duration::from_micros(1_800);

/// How fast the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbePace {
    /// About ten thousand a second to each port.
    Steady,
    /// As fast as a thread can send.
    Flood,
}

/// The stream. It ends when this is dropped.
pub struct Probe {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
    start: Instant,
    open: u16,
    closed: u16,
}

/// What came through.
#[derive(Clone, Copy, Debug)]
pub struct ProbeResult {
    /// To each port.
    pub sent: u64,
    pub seconds: f64,
    /// Those that the host's stack saw.
    pub open: u64,
    pub closed: u64,
}

impl Probe {
    /// Starts counting and then sending.
    pub fn start(lab: &Lab, open: u16, closed: u16, pace: ProbePace) -> Result<Self> {
        for port in [open, closed] {
            // Before conntrack and any NAT: the first that the stack does with a packet.
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

    /// How many have been sent to each port so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends the stream and counts.
    pub fn stop(mut self, lab: &Lab) -> Result<ProbeResult> {
        let seconds = self.start.elapsed().as_secs_f64();
        self.end()?;
        // What is on its way arrives.
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

/// The datagrams to a port that the host's stack has seen.
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

/// Takes what comes to the open port, so that the host answers nothing.
fn listen(lab: &Lab, port: u16, stop: Arc<AtomicBool>) -> Result<JoinHandle<Result<()>>> {
    let namespace = File::open(lab.host.path())?;
    Ok(thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        let socket = UdpSocket::bind(SocketAddr::new(HOST_V4, port))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let mut buffer = [0; 64];
        while !stop.load(Ordering::Relaxed) {
            // What does not fit the socket's buffer was counted before.
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
                    // An ICMP error of an earlier datagram is no failure of this one.
                    while let Err(error) = socket.send_to(&[0; 18], (HOST_V4, port)) {
                        if error.kind() != std::io::ErrorKind::ConnectionRefused {
                            return Err(error.into());
                        }
                    }
                }
                sent.fetch_add(1, Ordering::Relaxed);
            }
            if pace == ProbePace::Steady {
                // By the clock, so that a pause that was too long is made up for.
                next += PAUSE;
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        }
        Ok(())
    }))
}
