//! The control API: HTTP and JSON over a Unix socket, so that `curl --unix-socket` works as well as the command line.

pub mod capture;
pub mod client;
pub mod listen;
pub mod server;

pub use guard_api::*;
