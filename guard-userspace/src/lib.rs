//! guard: decides in XDP which ports of a Linux host with containers are open to the network.
//!
//! The command line (`commands`) depends on the control API (`api`). The agent (`agent`) depends on policy, dataplane
//! and docker. `policy` does not depend on BPF.

pub mod agent;
pub mod api;
pub mod audit;
pub mod commands;
mod counted;
pub mod difference;
mod doctor;
pub mod explain;
pub mod init;
pub mod lockout;
pub mod memory;
pub mod operator;
pub mod pcap;
pub mod pcapng;
pub mod state_store;
pub mod web;
pub mod without_agent;

// The other crates under the names that they had as modules of this crate.
pub use guard_dataplane as dataplane;
pub use guard_host::{self as host, docker, privileges, sessions};
pub use guard_policy as policy;

use guard_host::{causes, sock_diag};
