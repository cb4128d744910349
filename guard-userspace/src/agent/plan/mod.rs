//! Makes the plan, the wanted state of this host: a pure function of the host picture, the containers and the wishes
//! of the operators. [`super::apply`] carries it out.
//!
//! An event changes nothing directly: it leads to another plan. If a fact cannot be read, its last known value stays
//! in use. If it has never been read, that is an obstacle: the guard does not report that it enforces.

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
    interfaces::{Target, Trouble, chosen_by, line_of, refusal_here},
};
use super::{Loaded, Wanted};
use crate::{
    docker::{ConnectionState, Runtime},
    host::Host,
    policy::{Containers, Entry, KernelTick, Policy, labels},
};

/// Container runtimes by the path of their socket.
pub type Runtimes = BTreeMap<String, Runtime>;

/// The input from which one generation of the program is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    /// With the modes that operators have set and the services that labels of containers request.
    pub policy: Arc<Policy>,
    pub containers: Arc<Containers>,
    pub entries: Arc<Vec<Entry>>,
    /// The ports from which the kernel chooses for connections that this host opens (`ip_local_port_range`).
    pub local_ports: RangeInclusive<u16>,
    /// This host's own addresses: a packet from outside with one as its source is forged.
    pub own_sources: Arc<BTreeSet<IpAddr>>,
    /// See [`Wanted::revision`].
    pub revision: u64,
    /// When the kernel reverts to the previous policy by itself, in nanoseconds of CLOCK_BOOTTIME. 0: never.
    pub trial_until_ns: u64,
}

impl Content {
    /// Whether one generation serves for both: the difference, if any, is in tables that change while it runs.
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

    /// Whether both have the same tables, except for this host's own addresses.
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

/// What the kernel should do, and what the status should report: the result of [`plan`].
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The interfaces to guard, in the order in which to attach them.
    pub targets: Vec<Target>,
    /// The interfaces that the policy chooses and that cannot be guarded now.
    pub troubles: Vec<Trouble>,
    /// The names of interfaces in the policy, and during a trial in the policy before it. The state of one that does not
    /// exist now is kept until it returns.
    pub awaited: BTreeSet<String>,
    /// Why the policy cannot be put in force on this host at all.
    pub refusal: Option<String>,
    pub content: Content,
    /// During a trial: the content to which the kernel reverts by itself.
    pub fallback: Option<Content>,
    /// Why the guard does not enforce all that the policy closes although the mode is `enforce`.
    pub obstacles: Vec<String>,
    /// Findings for the operator that do not prevent the guard from enforcing.
    pub warnings: Vec<String>,
    /// Labels of containers that cannot be applied, and containers that are half known.
    pub container_warnings: Vec<String>,
    /// The names of the containers by the port that they publish.
    pub publishers: BTreeMap<String, String>,
    pub runtime: RuntimeState,
}

/// The state of the container runtime that the policy names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeState {
    /// Its socket; empty if the policy names none.
    pub socket: String,
    /// The identity that it has reported.
    pub daemon: Option<String>,
    pub connected: bool,
    pub error: Option<String>,
}

impl Plan {
    /// Whether the guard enforces all that the policy closes, once the plan is applied.
    pub fn is_enforcing(&self) -> bool {
        self.content.policy.mode == Mode::Enforce
            && self.obstacles.is_empty()
            && self.troubles.is_empty()
            && self.refusal.is_none()
    }
}

/// Makes the plan. The budgets of labels are checked against the kernel's tick in `host`.
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
            "this host's addresses cannot be read, so the last known ones are used: {error}"
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
    // Until the addresses are known, no packet is dropped because of its forged source.
    let own_sources = Arc::new(host.own_sources(&guarded).unwrap_or_default());
    if own_sources.len() > MAX_OWN as usize {
        warnings.push(format!(
            "this host has {} addresses, and the table holds {MAX_OWN}: packets from outside whose source is one of \
             the others are not dropped",
            own_sources.len()
        ));
    }
    let known = world.known(&wanted.loaded.policy);
    let (policy, mut container_warnings) = world.effective(&wanted.loaded, &known);
    container_warnings.extend(known.compiled.warnings.iter().cloned());
    // In mode off there is no fallback: the end of a trial must not switch the guard on.
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
        publishers: known.compiled.publishers,
        runtime: known.state,
        targets,
        troubles,
        awaited: interfaces::named(wanted),
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

/// The known containers of the runtime that a policy names.
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
                state: state(None, false, Some("it has not been read yet".to_owned())),
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
            // Until the daemon has been read completely, the ports that it last reported stay closed as well.
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

    /// The containers that this daemon last reported. Those that another daemon reported do not count.
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
            obstacles.push(format!(
                "the ports that containers publish now are not known: {error}"
            ));
        }
        if policy.docker_socket.is_some() && self.host.addresses.last.is_none() {
            let why = self.host.addresses.error.as_deref();
            obstacles.push(format!(
                "this host's addresses are not known: {}",
                why.unwrap_or("not read yet")
            ));
        }
        // There may be a new interface or container bridge, which is then not guarded or not closed.
        if let Some(error) = &self.host.links.error {
            obstacles.push(format!(
                "this host's interfaces cannot be read, so the last known ones are used: {error}"
            ));
        }
        obstacles
    }
}
