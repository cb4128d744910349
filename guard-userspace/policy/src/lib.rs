//! The policy: a file is read, checked as a whole, and becomes the tables of the packet path.
//! Nothing here knows how the tables reach the kernel.

mod check;
mod containers;
mod entry;
mod file;
pub mod labels;
mod place;
mod port;
mod prefix;
mod published;
mod rate;
mod read;
mod service_ids;
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
    entry::{Action, Entry, PrefixExpiries},
    port::Ports,
    published::{PortTables, PublishedAt, PublishedPort, split},
    rate::{Budget, Period, Rate, Unit},
    read::{AllowedFile, read_file},
    service_ids::{Changes, Exhausted, ServiceId, ServiceIds, Slice},
    tables::{CompileInput, ServiceTable, Tables, Timebase, fitting, is_single},
    warnings::Warning,
};

/// A policy that has been checked: whoever holds one need not validate it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub mode: Mode,
    /// `None`: those of the default routes.
    pub interfaces: Option<Vec<Interface>>,
    pub scope: Scope,
    /// The path of Docker's socket; `None`: no Docker.
    pub docker_socket: Option<String>,
    pub docker_labels: Labels,
    /// Where metrics and the page are served; `None`: nowhere.
    pub web: Option<SocketAddr>,
    /// How many cells all services have together for their budgets: a power of two.
    pub cells: u32,
    /// For each source, for packets that reach no service.
    pub limits: Limit,
    /// For all sources together, for packets that reach no service.
    pub limits_total: Budgets,
    pub services: Vec<Service>,
    pub sources: Vec<Source>,
    /// What becomes of the attached programs when the agent is asked to end.
    pub on_exit: OnExit,
    /// Of the file as it was read, in hexadecimal.
    pub sha256: String,
}

/// What the labels of containers may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Labels {
    Off,
    /// Only take away from what the policy allows.
    #[default]
    Narrow,
    /// Open what the policy leaves closed, too.
    Full,
}

/// What an agent leaves in the kernel when it is asked to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExit {
    /// The programs go on.
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
    /// As the file asks; the host's may be milder.
    pub mode: Mode,
    /// For each source.
    pub limit: Limit,
    /// For all sources together.
    pub total: Budgets,
    /// `None`: the policy lists it.
    pub made: Option<Made>,
}

/// What the labels of a container have made a service of. Its name may be cut, and says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The service of the policy; `None`: ports that the policy lists nowhere.
    pub base: Option<String>,
    /// The service whose cells it has, because there is no room for others; `None`: its own.
    pub cells_of: Option<String>,
}

impl Service {
    /// The service of the policy that labels have made this one of.
    pub fn base(&self) -> Option<&str> {
        self.made.as_ref()?.base.as_deref()
    }

    /// Whether what is said of this name is said of this service: its own, or that of the policy's service
    /// that it was made of.
    pub fn goes_by(&self, name: &str) -> bool {
        self.name == name || self.base() == Some(name)
    }

    /// The service whose cells its sources have.
    pub(crate) fn cells_of(&self) -> &str {
        let made = self.made.as_ref();
        let others = made.and_then(|made| made.cells_of.as_deref());
        others.unwrap_or(&self.name)
    }
}

/// Who may reach a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    Any,
    Admitted(Vec<Admitted>),
}

/// A prefix that may reach a service, for as long as the source lasts that names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    pub prefix: IpNet,
    pub expires: Option<Timestamp>,
}

/// Prefixes with a name, and what is special about them.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// Like anybody; the name stands for the prefixes.
    Named,
    /// A crowd behind few addresses: its budgets are this many times those of others.
    Factor(u32),
    /// Never limited.
    Exempt,
    /// Dropped first of all.
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
    /// Those of others where there are none.
    pub(crate) fn or(self, others: Self) -> Self {
        Self {
            packets: self.packets.or(others.packets),
            bytes: self.bytes.or(others.bytes),
            connections: self.connections.or(others.connections),
        }
    }
}

/// Budgets of each source, and what counts as one.
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
    /// A host has one IPv4 address, and a whole /64 of IPv6 (RFC 6177).
    fn default() -> Self {
        Self { ipv4: 32, ipv6: 64 }
    }
}

/// What a policy is checked against besides itself.
#[derive(Clone, Copy, Debug)]
pub struct KernelTick {
    /// The kernel's tick in nanoseconds: budgets see time in steps of it.
    pub tick_ns: u64,
}

/// A policy that is refused. Displays as one line: the file, the line, what is wrong and what would
/// be right.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("{file}: cannot be read: {error}; write a policy there, or name another file")]
    Unreadable { file: String, error: std::io::Error },
    #[error("{file}:{line}: {problem}")]
    Refused {
        file: String,
        line: usize,
        problem: String,
    },
}

impl Policy {
    /// Reads and checks a policy file.
    pub fn read(path: &Path, allowed: AllowedFile, clock: KernelTick) -> Result<Self, PolicyError> {
        let bytes = read_file(path, allowed)?;
        Self::from_bytes(&bytes, &path.display().to_string(), clock)
    }

    /// Checks what may be a policy's text.
    pub fn from_bytes(bytes: &[u8], file: &str, clock: KernelTick) -> Result<Self, PolicyError> {
        match str::from_utf8(bytes) {
            Ok(text) => Self::parse(text, file, clock),
            Err(error) => {
                let sound = bytes.iter().take(error.valid_up_to());
                Err(PolicyError::Refused {
                    file: file.to_owned(),
                    line: sound.filter(|byte| **byte == b'\n').count() + 1,
                    problem: "this is no text: a policy is written in UTF-8".to_owned(),
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
        let sha256 = base16ct::lower::encode_string(&Sha256::digest(text));
        check::check(raw, &lines, sha256, clock).map_err(refuse)
    }
}
