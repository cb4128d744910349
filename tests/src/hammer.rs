//! Sends connection attempts and datagrams to many ports of the guarded host without pause, and counts the packets that
//! reach containers.

use std::{
    fs::File,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::{
    process::run,
    topology::{INTERFACE, Lab},
};

/// The timeout of a connection attempt, and the pause between two datagrams.
const PAUSE: Duration = Duration::from_millis(1);

/// The packet filters of IPv4 and IPv6.
const FILTERS: [&str; 2] = ["iptables", "ip6tables"];

/// A port that the hammer sends to.
#[derive(Clone, Copy, Debug)]
pub enum HammerTarget {
    Tcp(SocketAddr),
    Udp(SocketAddr),
}

/// The sending threads, one for each target. They end when this is dropped.
pub struct Hammer {
    stop: Arc<AtomicBool>,
    attempts: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Hammer {
    /// Starts a thread for each target.
    pub fn start(lab: &Lab, targets: &[HammerTarget]) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let attempts = Arc::new(AtomicU64::new(0));
        let mut threads = Vec::new();
        for target in targets {
            let namespace = File::open(lab.internet.path())?;
            let (stop, attempts, target) = (Arc::clone(&stop), Arc::clone(&attempts), *target);
            threads.push(thread::spawn(move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET)?;
                match target {
                    HammerTarget::Tcp(address) => connect(address, &stop, &attempts),
                    HammerTarget::Udp(address) => send(address, &stop, &attempts),
                }
            }));
        }
        Ok(Self {
            stop,
            attempts,
            threads,
        })
    }

    /// The number of attempts and datagrams so far, for all targets together.
    pub fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// Stops, and returns the number of attempts and datagrams.
    pub fn stop(mut self) -> Result<u64> {
        self.end()?;
        Ok(self.attempts())
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread
                .join()
                .map_err(|_| anyhow!("a thread of the hammer panicked"))??;
        }
        Ok(())
    }
}

impl Drop for Hammer {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("the hammer failed: {error:#}");
        }
    }
}

fn connect(address: SocketAddr, stop: &AtomicBool, attempts: &AtomicU64) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        if TcpStream::connect_timeout(&address, PAUSE)
            .is_err_and(|error| error.kind() != ErrorKind::TimedOut)
        {
            // A refused attempt returns at once: without the pause the thread would flood the port.
            thread::sleep(PAUSE);
        }
        attempts.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn send(address: SocketAddr, stop: &AtomicBool, attempts: &AtomicU64) -> Result<()> {
    let any: IpAddr = if address.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    while !stop.load(Ordering::Relaxed) {
        // send_to also returns the ICMP error of an earlier datagram.
        let _result = socket.send_to(b"knock", address);
        attempts.fetch_add(1, Ordering::Relaxed);
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Rules that count every TCP and UDP packet from the host to a container, forwarded or sent by Docker's proxy.
pub struct Reached<'a>(&'a Lab);

/// The comment that marks the counting rules.
const COMMENT: &str = "reached";

impl<'a> Reached<'a> {
    /// Adds the rules; they count packets from now on.
    pub fn count(lab: &'a Lab) -> Result<Self> {
        for filter in FILTERS {
            for outward in [INTERFACE, "lo"] {
                append(
                    lab,
                    filter,
                    &["--out-interface", outward, "--jump", "ACCEPT"],
                )?;
            }
            for protocol in ["tcp", "udp"] {
                let comment = ["--match", "comment", "--comment", COMMENT];
                let rule = [&["--protocol", protocol][..], &comment].concat();
                append(lab, filter, &rule)?;
            }
        }
        Ok(Self(lab))
    }

    /// How many packets have reached containers.
    pub fn packets(&self) -> Result<u64> {
        let Self(lab) = self;
        let mut packets = 0;
        for filter in FILTERS {
            let list = ["--list", "POSTROUTING", "--verbose", "--exact", "--numeric"];
            let rules = run(mangle(lab, filter).args(list))?;
            let counting = rules.lines().filter(|line| line.contains(COMMENT));
            let counts = counting.map(|rule| rule.split_whitespace().next()?.parse::<u64>().ok());
            let counts: Option<Vec<u64>> = counts.collect();
            let counts = counts.filter(|counts| counts.len() == 2);
            let counts =
                counts.with_context(|| format!("the counting rules are missing: {rules}"))?;
            packets += counts.iter().sum::<u64>();
        }
        Ok(packets)
    }
}

fn append(lab: &Lab, filter: &str, rule: &[&str]) -> Result<()> {
    run(mangle(lab, filter)
        .args(["--append", "POSTROUTING"])
        .args(rule))?;
    Ok(())
}

fn mangle(lab: &Lab, filter: &str) -> Command {
    let mut command = lab.host.command(filter);
    command.args(["--wait", "--table", "mangle"]);
    command
}
