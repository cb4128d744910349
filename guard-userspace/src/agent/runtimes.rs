//! The container runtimes that policies name. The agent follows them; commands that only report read them once.

use std::{collections::BTreeMap, iter, sync::Arc, time::Duration};

use guard_common::exposure::Scope;
use jiff::Timestamp;
use tokio::sync::Notify;
use tracing::warn;

use super::plan::{Runtimes, chosen_by, compile_containers};
use crate::{
    dataplane::Closer,
    docker::{self, ConnectionState, ObservedRuntime, Runtime, Watch},
    host::{self, Host, Reading},
    policy::{Containers, Policy},
};

/// The early close: it writes new ports into the tables without waiting for the loop. A container may start a few
/// milliseconds after it was created, before the loop can make a plan.
#[derive(Clone, Default)]
pub struct RuntimeListener {
    /// Notified of every change.
    pub changed: Arc<Notify>,
    pub closer: Closer,
}

impl RuntimeListener {
    fn close_early(&self, seen: &ObservedRuntime) {
        if let Ok(local_ports) = host::local_port_range() {
            let inventory = &seen.runtime.inventory;
            let listeners = if inventory.has_contested_ports() {
                docker::own_listeners(iter::once(&**inventory)).ok()
            } else {
                None
            };
            let containers = inventory.containers(listeners.as_deref());
            self.closer.close(containers.published, &local_ports);
        }
        self.changed.notify_one();
    }
}

/// The runtimes that are followed, by socket.
#[derive(Default)]
pub struct Followed {
    watches: BTreeMap<String, Watch>,
    listener: RuntimeListener,
}

impl Followed {
    pub fn new(listener: RuntimeListener) -> Self {
        Self {
            watches: BTreeMap::new(),
            listener,
        }
    }

    pub fn listener(&self) -> &RuntimeListener {
        &self.listener
    }

    /// Follows the runtime of a policy from now on, and waits for its first answer or the first failure. An answer that
    /// takes longer than `patience` is in a later plan.
    pub async fn follow(&mut self, policy: &Policy, patience: Duration) {
        let Some(socket) = &policy.docker_socket else {
            return;
        };
        if self.watches.contains_key(socket) {
            return;
        }
        let listener = self.listener.clone();
        let mut watch = Watch::start(socket, move |seen| listener.close_early(seen));
        let seen = watch.first(patience).await;
        if let ConnectionState::NeverAnswered { error } = &seen.runtime.connection {
            warn!(
                "{error}: ports that containers publish are not known and stay open; if there is no Docker, write \
                 `[docker] socket = \"\"` in the policy"
            );
        }
        self.watches.insert(socket.clone(), watch);
    }

    /// Stops following runtimes that none of these policies names.
    pub fn retain<'a>(&mut self, policies: impl Iterator<Item = &'a Policy>) {
        let sockets: Vec<&str> = policies
            .filter_map(|policy| policy.docker_socket.as_deref())
            .collect();
        self.watches
            .retain(|socket, _| sockets.contains(&socket.as_str()));
    }

    /// The runtimes with their last known containers.
    pub fn known(&self) -> Runtimes {
        let watches = self.watches.iter();
        watches
            .map(|(socket, watch)| (socket.clone(), watch.seen().runtime))
            .collect()
    }

    /// The time of the newest event that was received, by the runtime's clock.
    pub fn last_event(&self) -> Option<Timestamp> {
        let watches = self.watches.values();
        watches.filter_map(|watch| watch.seen().event).max()
    }
}

/// The result of reading the runtime of a policy once.
pub struct FoundOnce {
    pub containers: Containers,
    /// `false`: it does not answer, or the policy names no runtime.
    pub answered: bool,
    /// Why it could not be read.
    pub error: Option<String>,
}

/// Reads the runtime of a policy once. `host`: the host picture, with which its networks are compared.
pub async fn find_once(policy: &Policy, host: &Host) -> FoundOnce {
    let Some(socket) = &policy.docker_socket else {
        return FoundOnce {
            containers: Containers::default(),
            answered: false,
            error: None,
        };
    };
    match docker::read(socket).await {
        Ok(inventory) => {
            let mut host = host.clone();
            host.listeners = Reading::unread();
            if inventory.has_contested_ports() {
                let listeners = docker::own_listeners(iter::once(&inventory));
                host.listeners.renew(listeners);
            }
            let compiled = compile_containers(&inventory, &host, &chosen_by(&host, policy));
            for warning in &compiled.warnings {
                warn!("{warning}");
            }
            FoundOnce {
                containers: compiled.containers,
                answered: true,
                error: None,
            }
        }
        Err(error) => {
            if policy.scope == Scope::Containers {
                warn!(
                    "{error}: ports that containers publish are not known and stay open; if there is no Docker, \
                     write `[docker] socket = \"\"` in the policy"
                );
            }
            FoundOnce {
                containers: Containers::default(),
                answered: false,
                error: Some(error.to_string()),
            }
        }
    }
}

/// Whether the listening sockets of this host decide about a port: a process of the host may have a port that a
/// container publishes.
pub fn are_ports_contested(runtimes: &BTreeMap<String, Runtime>) -> bool {
    let mut runtimes = runtimes.values();
    runtimes.any(|runtime| runtime.inventory.has_contested_ports())
}
