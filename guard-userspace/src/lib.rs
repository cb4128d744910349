//! guard: what a Linux host with containers shows to the network, decided in XDP.
//!
//! The command line (`commands`) knows the control API (`api`); the agent (`agent`) knows policy,
//! dataplane and docker; `policy` knows nothing of BPF.

pub mod agent;
pub mod api;
pub mod audit;
mod causes;
pub mod commands;
pub mod dataplane;
pub mod docker;
pub mod doctor;
pub mod explain;
pub mod host;
pub mod init;
pub mod kept;
pub mod lockout;
pub mod memory;
pub mod operator;
pub mod pcap;
pub mod pcapng;
pub mod policy;
pub mod privileges;
pub mod sessions;
mod sock_diag;
pub mod unattended;
pub mod web;
