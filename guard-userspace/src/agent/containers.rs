//! What is known of Docker.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::Notify;
use tracing::warn;

use crate::{
    api::DockerStatus,
    dataplane::Closer,
    docker::{self, Connection, Seen, Watch},
    host::{self, Netlink},
    policy::{ContainerNetwork, Containers, Labelled, Policy, PublishedPort},
};

/// What is known of Docker, and where it comes from.
#[derive(Default)]
pub struct Docker {
    /// `None`: it was asked once, or is turned off.
    watch: Option<Watch>,
    known: Known,
    /// The networks that are not the containers' alone.
    shared: BTreeSet<IpNet>,
}

#[derive(Default)]
enum Known {
    /// The policy turns it off.
    #[default]
    Off,
    Connected(Containers),
    /// It does not answer; what it said last, perhaps to an agent before this one, stays closed.
    Lost {
        error: String,
        last: Option<Containers>,
    },
}

/// Who hears first what Docker says: ports are closed before the agent finds the time.
#[derive(Clone)]
pub struct Listener {
    /// Told of everything that is new.
    pub changed: Arc<Notify>,
    pub closer: Closer,
}

impl Listener {
    fn hear(&self, seen: &Seen) {
        if let Ok(local_ports) = host::local_port_range() {
            let containers = seen.runtime.inventory.containers();
            self.closer.close(containers.published, &local_ports);
        }
        self.changed.notify_one();
    }
}

impl Docker {
    /// Follows the Docker of a policy from now on, and waits for its first answer. Docker that does not
    /// answer opens nothing that was closed before. If it never answered, the ports that it published are
    /// not known: the guard starts all the same, so that listed services keep their budgets, and says so.
    pub async fn follow(
        policy: &Policy,
        netlink: &Netlink,
        last: Option<Containers>,
        listener: &Listener,
    ) -> Self {
        let Some(socket) = &policy.docker_socket else {
            return Self::default();
        };
        let listener = listener.clone();
        let mut watch = Watch::start(socket, move |seen| listener.hear(seen));
        watch.first().await;
        let error = String::new();
        let mut docker = Self {
            watch: Some(watch),
            known: Known::Lost { error, last },
            shared: BTreeSet::new(),
        };
        docker.update(policy, netlink).await;
        docker
    }

    /// Takes in what Docker has said. Returns when the event happened that it was about, by Docker's clock.
    pub async fn update(&mut self, policy: &Policy, netlink: &Netlink) -> Option<Timestamp> {
        let Seen { runtime, event } = self.watch.as_ref()?.seen();
        let before = self.said().or(self.last()).cloned();
        let found = runtime.inventory.containers();
        let guarded = netlink.interfaces_of(policy).await.unwrap_or_default();
        let found = of_others(found, &mut self.shared, &guarded, netlink).await;
        self.known = match runtime.connection {
            Connection::Connected => Known::Connected(found),
            Connection::Lost { error, .. } => self.lost(error, Some(found)),
            // What is known in part opens nothing that was known before.
            Connection::NeverAnswered { error } => self.lost(error, join(before, found)),
            Connection::Reading => Known::Lost {
                error: format!(
                    "Docker at {} has not answered everything yet",
                    runtime.socket
                ),
                last: join(before, found),
            },
        };
        event
    }

    fn lost(&self, error: String, last: Option<Containers>) -> Known {
        if !matches!(self.known, Known::Lost { .. }) || self.error() == Some("") {
            warn_of_loss(&error, last.is_some());
        }
        Known::Lost { error, last }
    }

    /// Whether this follows the Docker that a policy names.
    pub fn is_of(&self, policy: &Policy) -> bool {
        let socket = self.watch.as_ref().map(Watch::socket);
        socket == policy.docker_socket.as_deref()
    }

    pub fn containers(&self) -> &Containers {
        static NONE: Containers = Containers {
            published: Vec::new(),
            networks: Vec::new(),
            labelled: Vec::new(),
        };
        self.said().or(self.last()).unwrap_or(&NONE)
    }

    /// What it says at this moment; `None`: it does not answer, or is turned off.
    pub fn said(&self) -> Option<&Containers> {
        match &self.known {
            Known::Connected(containers) => Some(containers),
            Known::Lost { .. } | Known::Off => None,
        }
    }

    fn last(&self) -> Option<&Containers> {
        match &self.known {
            Known::Lost { last, .. } => last.as_ref(),
            Known::Connected(_) | Known::Off => None,
        }
    }

    fn error(&self) -> Option<&str> {
        match &self.known {
            Known::Lost { error, .. } => Some(error),
            Known::Connected(_) | Known::Off => None,
        }
    }

    /// Why published ports may be open: nothing is known of them.
    pub fn ignorance(&self) -> Option<&str> {
        match &self.known {
            Known::Lost { error, last: None } => Some(error),
            _ => None,
        }
    }

    pub fn status(&self, policy: &Policy) -> DockerStatus {
        let mut published: Vec<String> = self
            .containers()
            .published
            .iter()
            .map(PublishedPort::to_string)
            .collect();
        // Published on both families, a port is named once.
        published.dedup();
        DockerStatus {
            socket: policy.docker_socket.clone().unwrap_or_default(),
            connected: self.said().is_some(),
            error: self.error().map(str::to_owned),
            published,
            warnings: Vec::new(),
        }
    }
}

fn warn_of_loss(error: &str, is_known: bool) {
    if is_known {
        warn!("{error}: the ports that containers published last stay closed");
    } else {
        warn!(
            "{error}: ports that containers publish are not known and stay open; `[docker] socket = \
             \"\"` in the policy if there is no Docker"
        );
    }
}

/// Asks the Docker of a policy once.
pub async fn ask_docker(policy: &Policy, netlink: &Netlink) -> Docker {
    let Some(socket) = &policy.docker_socket else {
        return Docker::default();
    };
    let known = match docker::read(socket).await {
        Ok(inventory) => {
            let guarded = netlink.interfaces_of(policy).await.unwrap_or_default();
            let containers = inventory.containers();
            let mut shared = BTreeSet::new();
            Known::Connected(of_others(containers, &mut shared, &guarded, netlink).await)
        }
        Err(error) => {
            let error = error.to_string();
            warn_of_loss(&error, false);
            Known::Lost { error, last: None }
        }
    };
    Docker {
        known,
        ..Docker::default()
    }
}

/// What was known before, and what has been found since; `None`: nothing is known.
fn join(before: Option<Containers>, found: Containers) -> Option<Containers> {
    let Some(mut joined) = before else {
        return (found != Containers::default()).then_some(found);
    };
    joined.published.extend(found.published);
    joined.published.sort_unstable();
    joined.published.dedup();
    joined.networks.extend(found.networks);
    joined
        .networks
        .sort_unstable_by_key(|network| network.prefix);
    joined.networks.dedup();
    let is_found = |one: &Labelled| {
        found
            .labelled
            .iter()
            .any(|other| other.container == one.container)
    };
    joined.labelled.retain(|labelled| !is_found(labelled));
    joined.labelled.extend(found.labelled);
    Some(joined)
}

/// Without the networks that are not the containers' alone, of which it is said once.
pub(crate) async fn of_others(
    mut containers: Containers,
    told: &mut BTreeSet<IpNet>,
    guarded: &[String],
    netlink: &Netlink,
) -> Containers {
    let own = Own::look(guarded, netlink).await;
    let (apart, shared): (Vec<_>, Vec<_>) = containers
        .networks
        .into_iter()
        .partition(|network| own.is_apart(network));
    for ContainerNetwork { prefix, .. } in shared {
        if told.insert(prefix) {
            warn!(
                network = %prefix,
                "the container network overlaps one of this host's own: its addresses are not closed"
            );
        }
    }
    containers.networks = apart;
    containers
}

/// The addresses of this host.
struct Own {
    all: Vec<IpAddr>,
    /// Of the interfaces that a policy guards.
    guarded: Vec<IpAddr>,
}

impl Own {
    async fn look(guarded: &[String], netlink: &Netlink) -> Self {
        let mut indices = Vec::new();
        for name in guarded {
            indices.extend(netlink.index(name).await);
        }
        let addresses = netlink.addresses_of_links().await.unwrap_or_default();
        let guarded = addresses
            .iter()
            .filter(|(index, _)| indices.contains(index));
        Self {
            guarded: guarded.map(|(_, address)| *address).collect(),
            all: addresses.into_iter().map(|(_, address)| address).collect(),
        }
    }

    /// Whether only containers have addresses in this network, besides its bridge. One that the host has
    /// another address in is not closed: the guard never takes a host off its network.
    fn is_apart(&self, network: &ContainerNetwork) -> bool {
        let is_inside = |address: &&IpAddr| network.prefix.contains(*address);
        // The bridge's own address is one; a second is another interface's.
        let bridge_alone = self.all.iter().filter(is_inside).count() <= 1;
        bridge_alone && !self.guarded.iter().any(|address| is_inside(&address))
    }
}

#[cfg(test)]
mod tests {
    use guard_common::exposure::NetworkKind;

    use super::*;

    #[test]
    fn a_network_that_the_host_has_a_second_address_in_is_not_the_containers_alone() {
        let network = ContainerNetwork {
            prefix: "172.17.0.0/16".parse().unwrap(),
            kind: NetworkKind::Masqueraded,
        };
        let is_apart = |all: &[&str], guarded: &[&str]| {
            let parse = |addresses: &[&str]| {
                let addresses = addresses.iter();
                addresses.map(|one| one.parse().unwrap()).collect()
            };
            let (all, guarded) = (parse(all), parse(guarded));
            Own { all, guarded }.is_apart(&network)
        };
        assert!(is_apart(&["203.0.113.10", "172.18.0.1"], &["203.0.113.10"]));
        assert!(is_apart(&["203.0.113.10", "172.17.0.1"], &["203.0.113.10"]));
        assert!(!is_apart(&["172.17.0.1", "172.17.9.9"], &[]));
        // A network over the host's own, whose bridge has no address.
        assert!(!is_apart(&["172.17.0.10"], &["172.17.0.10"]));
    }
}
