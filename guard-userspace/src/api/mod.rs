//! The control API: HTTP and JSON over a Unix socket, so that `curl --unix-socket` works as well as
//! the command line.

pub mod client;
pub mod server;

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Where the agent listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/guard/guard.sock";

/// What `guard status --json` prints.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Status {
    pub version: String,
    /// `off`, `observe` or `enforce`: that of the host.
    pub mode: String,
    pub scope: String,
    /// Whether closed ports are closed at this moment: the mode is `enforce`, the program is
    /// attached to every interface, and the tables hold what they should.
    pub enforcing: bool,
    /// Why not, if the mode is `enforce` and `enforcing` is false.
    pub not_enforcing_because: Vec<String>,
    pub interfaces: Vec<InterfaceStatus>,
    pub policy: PolicyStatus,
    pub docker: DockerStatus,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct InterfaceStatus {
    pub name: String,
    /// Asked from the kernel at this moment.
    pub attached: bool,
    /// `native` or `generic`.
    pub xdp_mode: String,
    pub program_id: u32,
    /// Counts the policies that were loaded, from 1.
    pub generation: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PolicyStatus {
    pub path: String,
    pub sha256: String,
    pub loaded_at: Timestamp,
    pub services: usize,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct DockerStatus {
    /// The socket; empty if the policy turns Docker off.
    pub socket: String,
    pub connected: bool,
    /// What is wrong, if it should be connected and is not.
    pub error: Option<String>,
    /// The published ports that the guard knows of, such as `tcp/8000`.
    pub published: Vec<String>,
}

/// One element of the list that `guard counters --json` prints.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Counter {
    pub interface: String,
    /// `null`: no service was concerned.
    pub service: Option<String>,
    /// What became of the packets: `pass` or `drop`.
    pub verdict: String,
    /// `drop`, if only the mode kept them from being dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would: Option<String>,
    pub reason: String,
    pub packets: u64,
    pub bytes: u64,
}

/// One element of the list that `guard talkers --json` prints: estimated from a sample.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Talker {
    pub interface: String,
    pub source: IpAddr,
    pub packets: u64,
    /// Those that were dropped, or would have been.
    pub dropped: u64,
    pub bytes: u64,
}

/// What `explain` is asked, as the query of its address.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Question {
    pub from: IpAddr,
    /// As [`crate::explain::Destination`] reads it.
    pub to: String,
}

/// The body of every answer that is not a success.
#[derive(Debug, Deserialize, Serialize)]
pub struct ErrorBody {
    pub error: String,
}
