//! The wishes of the operators as one plain value: the policy, the modes and entries that they have set, a trial. The
//! state store saves it, and [`super::plan`] reads it.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

use super::Loaded;
use crate::{
    api::actor::Actor,
    policy::Entry,
    state_store::{KnownContainers, Modes},
};

/// What operators want: the policy, modes, entries and trial.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The policy in force, or the one on trial.
    pub loaded: Arc<Loaded>,
    /// Counts the policies that operators have put in force: reloading an unchanged file is another generation.
    pub revision: u64,
    pub trial: Option<Trial>,
    pub modes: Modes,
    /// Entries of operators that have not expired, by id.
    pub entries: Arc<Vec<Entry>>,
    /// The containers that a runtime last reported, perhaps to a previous agent.
    pub last_known: Option<KnownContainers>,
    /// The interfaces that have the guard's program: the name under which each was attached, and its index.
    pub guarded: BTreeMap<String, u32>,
    /// Whether guarded interfaces stay guarded that the policy does not choose now: a default route may be absent for
    /// some seconds, and a trial that omits an interface must not open it.
    pub keeps_guarded: bool,
}

/// A policy that is reverted automatically unless an operator confirms it.
#[derive(Clone, Debug)]
pub struct Trial {
    pub before: Arc<Loaded>,
    pub until: Timestamp,
    /// The same in nanoseconds of CLOCK_BOOTTIME: the time at which the kernel reverts the policy without the agent.
    pub until_ns: u64,
    pub by: Actor,
}
