//! What operators want of this host, as one plain value: the policy, the modes and entries they have set, a
//! trial. The state store keeps it; [`super::plan`] reads it.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

use super::Loaded;
use crate::{
    api::actor::Actor,
    policy::Entry,
    state_store::{KnownContainers, Modes},
};

#[derive(Clone, Debug)]
pub struct Wanted {
    /// The policy in force, or the one on trial.
    pub loaded: Arc<Loaded>,
    /// Counts the policies that operators have put in force: the same file once more is another generation.
    pub revision: u64,
    pub trial: Option<Trial>,
    pub modes: Modes,
    /// Entries of operators that have not ended, by id.
    pub entries: Arc<Vec<Entry>>,
    /// What a container runtime last reported, perhaps to an agent before this one.
    pub last_known: Option<KnownContainers>,
    /// The interfaces that carry the guard's program: the name each was attached by, and its index.
    pub guarded: BTreeMap<String, u32>,
    /// Whether an interface stays guarded that the policy does not choose at this moment: a default route may be
    /// gone for some seconds, and a trial that leaves an interface out must not open it.
    pub keeps_guarded: bool,
}

/// A policy that goes back by itself unless an operator confirms it.
#[derive(Clone, Debug)]
pub struct Trial {
    pub before: Arc<Loaded>,
    pub until: Timestamp,
    /// The same in nanoseconds of CLOCK_BOOTTIME: when the kernel goes back without the agent.
    pub until_ns: u64,
    pub by: Actor,
}
