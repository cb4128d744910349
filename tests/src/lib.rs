//! The lab: a guarded host and the internet in front of it, each a network namespace of this machine.
//!
//! veth, Docker, nginx and curl are real, and no packet leaves the machine: no namespace has a default route. A
//! namespace is removed when its owner is dropped; [`sweep::dead_labs`] removes the namespaces of killed owners.

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
