//! guard: what a Linux host with containers shows to the network, decided in XDP.
//!
//! The command line (`commands`) knows the control API (`api`); the agent (`agent`) knows policy,
//! dataplane and docker; `policy` knows nothing of BPF.

pub mod agent;
pub mod api;
pub mod audit;
pub mod commands;
mod counted;
pub mod doctor;
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

// Their places in this crate, for what is left of it.
pub use guard_dataplane as dataplane;
pub use guard_host::{self as host, docker, privileges, sessions};
pub use guard_policy as policy;

use guard_host::{causes, sock_diag};
