//! Shared by the kernel program and user space: the layouts of the maps, the reasons, and every decision as a pure
//! function. Nothing here touches a map, a packet's bytes or a clock. So all of it is tested in user space with plain
//! values, and runs unchanged in the kernel.
#![cfg_attr(not(test), no_std)]

pub mod account;
pub mod address;
pub mod bucket;
pub mod cell;
pub mod challenge;
pub mod closed_ports;
pub mod deny_list;
pub mod exposure;
pub mod fragment;
pub mod gcra;
pub mod interfaces;
pub mod layout;
pub mod literal;
pub mod martian;
pub mod packet;
pub mod reason;
pub mod siphash;
mod spread;
pub mod talkers;
pub mod verified;
