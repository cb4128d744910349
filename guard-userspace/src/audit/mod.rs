//! Finds exposed ports, on this host and in compose files, and proposes changes.

pub mod host;

pub use guard_compose as compose;
pub use guard_compose::dangers;
