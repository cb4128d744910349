//! The lab: a guarded host and the internet in front of it, as network namespaces of this machine.
//!
//! Everything in it is real (veth, Docker, nginx, curl) and none of it leaves the machine: no
//! namespace has a default route, and every one is removed when its owner is dropped. What a killed
//! owner leaves behind, [`sweep::dead_labs`] removes.

pub mod browser;
pub mod cache;
pub mod compose;
pub mod debian;
pub mod docker;
pub mod flood;
pub mod guard;
pub mod hammer;
pub mod http;
pub mod image;
pub mod interrupt;
pub mod machine;
pub mod namespace;
pub mod probe;
pub mod process;
pub mod proxy;
pub mod relay;
pub mod screen;
pub mod ssh;
pub mod sweep;
pub mod topology;
pub mod udp;
pub mod vm;
