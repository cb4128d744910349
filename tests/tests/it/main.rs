//! Every test that needs root: the kernel program over single packets, and the whole guard in the
//! lab. `cargo xtask test` runs them; without root they fail rather than pass unseen.

mod api;
mod audit;
mod capture;
mod clients;
mod clocked;
mod commands;
mod containers;
mod deny_list;
mod docker;
mod doctor;
mod flows;
mod frames;
mod host;
mod host_scope;
mod judge;
mod kernels;
mod lasting;
mod lockout;
mod mishaps;
mod model;
mod namespaces;
mod package;
mod packets;
mod rates;
mod replay;
mod site;
mod soak;
mod sources;
mod top;
mod ways;
mod web;
