//! Reads a policy file, checks it as a whole, and compiles it into the tables of the packet path.
//! This crate does not depend on how the tables reach the kernel.

mod check;
mod containers;
mod diagnose;
mod entry;
mod file;
mod keys;
pub mod labels;
mod place;
mod port;
mod prefix;
mod published;
mod rate;
mod read;
mod service_ids;
mod syntax;
mod tables;
pub mod untrusted;
mod warnings;

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use guard_common::{exposure::Scope, reason::Mode};
use guard_text::Lines;
use ipnet::IpNet;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

pub use self::{
    check::{DEFAULT_DOCKER_SOCKET, parse_prefix},
    containers::{ContainerNetwork, Containers, Labelled},
    entry::{Action, Entry, PastEntry, PrefixExpiries},
    port::Ports,
    published::{PortTables, PublishedAt, PublishedPort, split},
    rate::{Budget, Period, Rate, Unit},
    read::{AllowedFile, read_file},
    service_ids::{Changes, NoServiceIdLeft, ServiceId, ServiceIds, Slice},
    tables::{CompileInput, ServiceTable, Tables, Timebase, fitting, is_single},
    warnings::Warning,
};

/// A policy that has been checked. Code that has a value of this type need not validate it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub mode: Mode,
    /// `None`: the interfaces of the default routes.
    pub interfaces: Option<Vec<Interface>>,
    pub scope: Scope,
    /// The path of Docker's socket; `None`: no Docker.
    pub docker_socket: Option<String>,
    pub docker_labels: Labels,
    /// The address and port at which metrics and the page are served; `None`: they are not served.
    pub web: Option<SocketAddr>,
    /// The number of cells that the budgets of all services have together: a power of two.
    pub cells: u32,
    /// Budgets of each source, for packets that reach no service.
    pub limits: Limit,
    /// Budgets of all sources together, for packets that reach no service.
    pub limits_total: Budgets,
    pub services: Vec<Service>,
    pub sources: Vec<Source>,
    /// Whether the programs stay attached when the agent ends on SIGTERM or SIGINT.
    pub on_exit: OnExit,
    /// The SHA-256 of the file's text, in hexadecimal.
    pub sha256: String,
}

/// What the labels of containers may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Labels {
    Off,
    /// Labels only restrict what the policy allows.
    #[default]
    Narrow,
    /// Labels may also open ports that the policy leaves closed.
    Full,
}

/// What an agent leaves in the kernel when it ends on SIGTERM or SIGINT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExit {
    /// The programs stay attached.
    #[default]
    Keep,
    Detach,
}

/// An interface that the policy names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub line: usize,
}

/// Named ports that some sources may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    pub line: usize,
    pub ports: Vec<Ports>,
    /// `None`: on every address of this host.
    pub address: Option<IpAddr>,
    pub from: From,
    /// The mode that the file gives. If the host's mode is milder, the host's mode applies.
    pub mode: Mode,
    /// Budgets of each source.
    pub limit: Limit,
    /// Budgets of all sources together.
    pub total: Budgets,
    /// `None`: the service is not protected from floods.
    pub flood: Option<FloodProtection>,
    /// `None`: the policy lists the service.
    pub made: Option<LabelOrigin>,
}

/// How a flood of requests for TCP connections is met: unverified sources are challenged before they are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloodProtection {
    /// The requests of sources that are not verified. Over this rate, the service is flooded.
    pub attempts: Budget,
    /// In a flood: the requests that pass of sources that have answered a weak challenge.
    pub lane: Budget,
    /// The challenges of all CPUs together.
    pub replies: Budget,
    /// A source gets a strong challenge in one of this many periods. A power of two; 0: never.
    pub level2: u32,
}

/// The origin of a service that the labels of a container have made. Its name may be cut, so it does not tell the
/// origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelOrigin {
    /// The service of the policy that lists the ports; `None`: no service of the policy lists them.
    pub base: Option<String>,
    /// The service whose cells this one shares, because there was no room for its own; `None`: it has its own.
    pub cells_of: Option<String>,
}

impl Service {
    /// The service of the policy from which labels have made this one.
    pub fn base(&self) -> Option<&str> {
        self.made.as_ref()?.base.as_deref()
    }

    /// Whether an entry or a mode for `name` holds for this service: the name is its own, or that of the policy's
    /// service from which labels have made it.
    pub fn has_name(&self, name: &str) -> bool {
        self.name == name || self.base() == Some(name)
    }

    /// The service whose cells count the sources of this one.
    pub(crate) fn cells_of(&self) -> &str {
        let made = self.made.as_ref();
        let others = made.and_then(|made| made.cells_of.as_deref());
        others.unwrap_or(&self.name)
    }
}

/// The sources that may reach a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    Any,
    Admitted(Vec<Admitted>),
}

/// A prefix that may reach a service until its source in the policy ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    pub prefix: IpNet,
    pub expires: Option<Timestamp>,
}

/// A `[[source]]` of the policy: named prefixes, and how they are treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub name: String,
    pub line: usize,
    pub cidrs: Vec<IpNet>,
    pub treatment: Treatment,
    pub owner: Option<String>,
    pub reason: Option<String>,
    pub expires: Option<Timestamp>,
}

/// How packets of a named source are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// Like any other source; the name is for `from`.
    Named,
    /// Many users behind few addresses: budgets of each source are this many times larger.
    Factor(u32),
    /// Never limited.
    Exempt,
    /// Dropped before any other rule of the policy.
    Denied,
}

/// Budgets of packets, bytes and connections. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budgets {
    pub packets: Option<Budget>,
    pub bytes: Option<Budget>,
    pub connections: Option<Budget>,
}

impl Budgets {
    /// Budgets that are this many times larger, as those of a source with `factor`.
    pub fn times(self, factor: u32) -> Self {
        let times = |budget: Option<Budget>| budget.map(|budget| budget.times(factor));
        Self {
            packets: times(self.packets),
            bytes: times(self.bytes),
            connections: times(self.connections),
        }
    }

    /// These budgets; those of `others` where there is none.
    pub(crate) fn or(self, others: Self) -> Self {
        Self {
            packets: self.packets.or(others.packets),
            bytes: self.bytes.or(others.bytes),
            connections: self.connections.or(others.connections),
        }
    }
}

/// Budgets of each source, and the prefix that counts as one source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    pub budgets: Budgets,
    pub per: Per,
}

/// The prefix that counts as one source, in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Per {
    pub ipv4: u8,
    pub ipv6: u8,
}

impl Default for Per {
    /// An IPv4 host usually has one address; an IPv6 host has a whole /64 (RFC 6177).
    fn default() -> Self {
        Self { ipv4: 32, ipv6: 64 }
    }
}

/// The kernel's tick, against which the bursts of a policy are checked.
#[derive(Clone, Copy, Debug)]
pub struct KernelTick {
    /// In nanoseconds. The clock of budgets advances in steps of it.
    pub tick_ns: u64,
}

/// A policy that is refused. Displays as one line: the file, the line, what is wrong, and what to write instead.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("{file}: cannot be read: {error}; {}, or name another file", remedy(.error))]
    Unreadable { file: String, error: std::io::Error },
    #[error("{file}:{line}: {problem}")]
    Refused {
        file: String,
        line: usize,
        problem: String,
    },
}

/// What makes a policy file readable.
fn remedy(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => "use sudo",
        _ => "write a policy there",
    }
}

/// The SHA-256 of a policy file (FIPS 180-4), in hexadecimal digits.
pub fn sha256_of(text: &[u8]) -> String {
    base16ct::lower::encode_string(&Sha256::digest(text))
}

impl Policy {
    /// Reads and checks a policy file.
    pub fn read(path: &Path, allowed: AllowedFile, clock: KernelTick) -> Result<Self, PolicyError> {
        let bytes = read_file(path, allowed)?;
        Self::from_bytes(&bytes, &path.display().to_string(), clock)
    }

    /// Checks the bytes of a policy, which may not be UTF-8; `file` is its name in errors.
    pub fn from_bytes(bytes: &[u8], file: &str, clock: KernelTick) -> Result<Self, PolicyError> {
        match str::from_utf8(bytes) {
            Ok(text) => Self::parse(text, file, clock),
            Err(error) => {
                let sound = bytes.iter().take(error.valid_up_to());
                Err(PolicyError::Refused {
                    file: file.to_owned(),
                    line: sound.filter(|byte| **byte == b'\n').count() + 1,
                    problem: "this line is not text: write the policy in UTF-8".to_owned(),
                })
            }
        }
    }

    /// Checks a policy's text; `file` is its name in errors.
    pub fn parse(text: &str, file: &str, clock: KernelTick) -> Result<Self, PolicyError> {
        let lines = Lines::new(text);
        let refuse = |problem: place::Problem| PolicyError::Refused {
            file: file.to_owned(),
            line: lines.line(problem.offset),
            problem: problem.text,
        };
        let raw = file::parse(text).map_err(refuse)?;
        let sha256 = sha256_of(text.as_bytes());
        check::check(raw, &lines, sha256, clock).map_err(refuse)
    }
}
