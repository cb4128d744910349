//! What is exposed, on this host and in compose files, and what to change.

pub mod compose;
pub mod dangers;
pub mod host;
mod proxies;
