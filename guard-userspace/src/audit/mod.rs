//! What is exposed, on this host and in compose files, and what to change.

pub mod host;

pub use guard_compose as compose;
pub use guard_compose::dangers;
