//! What this host should look like: a pure function of what the host is, what its containers are and what
//! operators want. [`super::apply`] makes it so.
//!
//! An event changes nothing by itself; it leads to another plan. A fact that cannot be read at this moment stays as
//! it was last read. The first read that fails is an obstacle: the guard does not claim to enforce what it does not
//! know.

mod containers;
mod interfaces;
#[cfg(test)]
mod worlds;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::RangeInclusive,
    sync::Arc,
};

use guard_common::{exposure::Scope, layout::MAX_OWN, reason::Mode};

use self::{containers::Compiled, interfaces::Chosen};
pub use self::{
    containers::compile as compile_containers,
    interfaces::{Target, Trouble, chosen_by, line_of},
};
use super::{Loaded, Wanted};
use crate::{
    docker::{ConnectionState, Runtime},
    host::Host,
    policy::{Containers, Entry, KernelTick, Policy, labels},
};

/// Container runtimes by the path of their socket.
pub type Runtimes = BTreeMap<String, Runtime>;

/// What one generation of the program is loaded with.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    /// With the modes that operators have set and what the labels of containers ask for.
    pub policy: Arc<Policy>,
    pub containers: Arc<Containers>,
    pub entries: Arc<Vec<Entry>>,
    /// The ports that the kernel picks from for connections that this host opens.
    pub local_ports: RangeInclusive<u16>,
    /// Addresses that no packet from outside comes from.
    pub own_sources: Arc<BTreeSet<IpAddr>>,
    /// See [`Wanted::revision`].
    pub revision: u64,
    /// When the kernel goes back by itself, in nanoseconds of CLOCK_BOOTTIME; 0: never.
    pub trial_until_ns: u64,
}

impl Content {
    /// Whether both can be one generation, whose tables change while it runs.
    pub fn is_same_program(&self, other: &Self) -> bool {
        let Self {
            policy,
            containers: _,
            entries: _,
            local_ports: _,
            own_sources: _,
            revision,
            trial_until_ns,
        } = self;
        *revision == other.revision
            && *trial_until_ns == other.trial_until_ns
            && (Arc::ptr_eq(policy, &other.policy) || *policy == other.policy)
    }

    /// Whether both have the same tables.
    pub fn has_same_tables(&self, other: &Self) -> bool {
        self.own_sources == other.own_sources && self.has_same_lists(other)
    }

    /// Whether both have the same tables but perhaps for this host's own addresses.
    pub fn has_same_lists(&self, other: &Self) -> bool {
        let Self {
            policy: _,
            containers,
            entries,
            local_ports,
            own_sources: _,
            revision: _,
            trial_until_ns: _,
        } = self;
        *containers == other.containers
            && *local_ports == other.local_ports
            && (Arc::ptr_eq(entries, &other.entries) || *entries == other.entries)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The interfaces to guard, in the order to attach them in.
    pub targets: Vec<Target>,
    /// Those that the policy chooses and that cannot be guarded now.
    pub troubles: Vec<Trouble>,
    /// Why the policy cannot be put in force on this host at all.
    pub refusal: Option<String>,
    pub content: Content,
    /// During a trial: what the kernel goes back to by itself.
    pub fallback: Option<Content>,
    /// Why the guard does not enforce all that the policy closes although the mode is `enforce`.
    pub obstacles: Vec<String>,
    /// What does not keep the guard from enforcing, and an operator should look at.
    pub warnings: Vec<String>,
    /// What labels of containers ask for in vain, and containers that are known by half.
    pub container_warnings: Vec<String>,
    pub runtime: RuntimeState,
}

/// What is known of the container runtime that the policy names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeState {
    /// Its socket; empty if the policy names none.
    pub socket: String,
    /// Its identity, as far as it has told.
    pub daemon: Option<String>,
    pub connected: bool,
    pub error: Option<String>,
}

impl Plan {
    pub fn is_enforcing(&self) -> bool {
        self.content.policy.mode == Mode::Enforce
            && self.obstacles.is_empty()
            && self.troubles.is_empty()
            && self.refusal.is_none()
    }
}

/// Makes the plan. `clock` is the kernel's tick, which the budgets of labels are checked against.
pub fn plan(host: &Host, runtimes: &Runtimes, wanted: &Wanted) -> Plan {
    let clock = KernelTick {
        tick_ns: host.tick_ns,
    };
    let Chosen {
        targets,
        troubles,
        mut warnings,
        mut refusal,
    } = interfaces::choose(host, wanted);
    if let (Some(_), Some(error)) = (host.addresses.known(), &host.addresses.error) {
        warnings.push(format!(
            "this host's addresses cannot be read, and are taken as they were: {error}"
        ));
    }
    let guarded: BTreeSet<u32> = targets
        .iter()
        .map(|target| target.index)
        .chain(wanted.guarded.values().copied())
        .collect();
    let world = PlanInput {
        host,
        runtimes,
        wanted,
        guarded: &guarded,
        clock,
    };
    let local_ports = match &host.sysctls.last {
        Some(sysctls) => sysctls.local_ports.clone(),
        None => {
            let why = host.sysctls.error.as_deref().unwrap_or("not read yet");
            refusal.get_or_insert_with(|| format!("the local port range cannot be read: {why}"));
            0..=u16::MAX
        }
    };
    // Until they are known, no packet is dropped for them.
    let own_sources = Arc::new(host.own_sources(&guarded).unwrap_or_default());
    if own_sources.len() > MAX_OWN as usize {
        warnings.push(format!(
            "this host has {} addresses: packets that pretend to come from it are dropped for the first {MAX_OWN}",
            own_sources.len()
        ));
    }
    let known = world.known(&wanted.loaded.policy);
    let (policy, mut container_warnings) = world.effective(&wanted.loaded, &known);
    container_warnings.extend(known.compiled.warnings.iter().cloned());
    // What is off stays off, whatever a trial would go back to.
    let trial = wanted.trial.as_ref().filter(|_| policy.mode != Mode::Off);
    let fallback = trial.map(|trial| {
        let known = world.known(&trial.before.policy);
        let (policy, _) = world.effective(&trial.before, &known);
        Content {
            policy,
            containers: Arc::new(known.compiled.containers),
            entries: Arc::clone(&wanted.entries),
            local_ports: local_ports.clone(),
            own_sources: Arc::clone(&own_sources),
            revision: 0,
            trial_until_ns: 0,
        }
    });
    let obstacles = if policy.mode == Mode::Enforce {
        world.obstacles(&policy, &known)
    } else {
        Vec::new()
    };
    Plan {
        content: Content {
            containers: Arc::new(known.compiled.containers),
            entries: Arc::clone(&wanted.entries),
            local_ports,
            own_sources,
            revision: wanted.revision,
            trial_until_ns: trial.map_or(0, |trial| trial.until_ns),
            policy,
        },
        runtime: known.state,
        targets,
        troubles,
        refusal,
        fallback,
        obstacles,
        warnings,
        container_warnings,
    }
}

struct PlanInput<'a> {
    host: &'a Host,
    runtimes: &'a Runtimes,
    wanted: &'a Wanted,
    guarded: &'a BTreeSet<u32>,
    clock: KernelTick,
}

/// What is known of the containers that a policy is about.
#[derive(Default)]
struct CompiledContainers {
    compiled: Compiled,
    state: RuntimeState,
}

impl PlanInput<'_> {
    fn known(&self, policy: &Policy) -> CompiledContainers {
        let Some(socket) = &policy.docker_socket else {
            return CompiledContainers::default();
        };
        let state = |daemon: Option<&str>, connected, error| RuntimeState {
            socket: socket.clone(),
            daemon: daemon.map(str::to_owned),
            connected,
            error,
        };
        let compile =
            |runtime: &Runtime| containers::compile(&runtime.inventory, self.host, self.guarded);
        let Some(runtime) = self.runtimes.get(socket) else {
            return CompiledContainers {
                compiled: self.last_known(socket, None),
                state: state(None, false, Some("it has not been asked yet".to_owned())),
            };
        };
        let daemon = runtime.daemon.as_deref();
        match &runtime.connection {
            ConnectionState::Connected => CompiledContainers {
                compiled: compile(runtime),
                state: state(daemon, true, None),
            },
            ConnectionState::Lost { error, .. } => CompiledContainers {
                compiled: compile(runtime),
                state: state(daemon, false, Some(error.clone())),
            },
            // Until the daemon has told everything, what it published before stays closed as well.
            ConnectionState::Reading => CompiledContainers {
                compiled: compile(runtime).with(self.last_known(socket, daemon)),
                state: state(daemon, false, Some("it is being read".to_owned())),
            },
            ConnectionState::NeverAnswered { error } => CompiledContainers {
                compiled: compile(runtime).with(self.last_known(socket, daemon)),
                state: state(daemon, false, Some(error.clone())),
            },
        }
    }

    /// What was known last belongs to the daemon that reported it.
    fn last_known(&self, socket: &str, daemon: Option<&str>) -> Compiled {
        let last = self.wanted.last_known.as_ref();
        let last = last.and_then(|last| last.of(socket, daemon));
        last.map(|last| containers::compile_last_known(last, self.host))
            .unwrap_or_default()
    }

    /// The policy with the modes of operators and the labels of containers.
    fn effective(&self, loaded: &Loaded, known: &CompiledContainers) -> (Arc<Policy>, Vec<String>) {
        let modes = &self.wanted.modes;
        let labelled = &known.compiled.containers.labelled;
        if modes.is_empty() && labelled.is_empty() {
            return (Arc::clone(&loaded.policy), Vec::new());
        }
        let policy = modes.applied_to(&loaded.policy);
        let (policy, warnings) = labels::apply(&policy, &known.compiled.containers, self.clock);
        (Arc::new(policy), warnings)
    }

    fn obstacles(&self, policy: &Policy, known: &CompiledContainers) -> Vec<String> {
        let mut obstacles = known.compiled.obstacles.clone();
        if let Some(error) = &known.state.error
            && policy.scope == Scope::Containers
        {
            obstacles.push(format!("what containers publish now is not known: {error}"));
        }
        if policy.docker_socket.is_some() && self.host.addresses.last.is_none() {
            let why = self.host.addresses.error.as_deref();
            obstacles.push(format!(
                "this host's addresses are not known: {}",
                why.unwrap_or("not read yet")
            ));
        }
        // A new interface or container bridge may be there, and stays as it is.
        if let Some(error) = &self.host.links.error {
            obstacles.push(format!(
                "this host's interfaces cannot be read, and are taken as they were: {error}"
            ));
        }
        obstacles
    }
}
