//! This host's containers, asked from Docker over its API (Docker and Podman's compatible socket).

mod answers;
mod client;
mod files;
mod follower;
mod held;
mod proxies;
mod read;
#[cfg(test)]
mod tales;
mod text;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::RangeInclusive,
    sync::Arc,
};

use crate::Listener;
use guard_common::{exposure::NetworkKind, layout::PortProtocol};
use guard_policy::{ContainerNetwork, Containers, Labelled, PublishedAt, PublishedPort};
use ipnet::IpNet;
use jiff::Timestamp;

pub use self::{
    proxies::own_listeners,
    read::{read, version},
    watch::{ObservedRuntime, Watch},
};

/// Labels that begin so are the guard's.
const LABEL: &str = "guard.";

/// Compose's labels (its specification, "Labels").
const COMPOSE_PROJECT: &str = "com.docker.compose.project";
const COMPOSE_SERVICE: &str = "com.docker.compose.service";

/// What an image says of itself (OCI image specification, "Annotations").
pub const TITLE: &str = "org.opencontainers.image.title";

#[derive(Clone, Debug, thiserror::Error)]
#[error("Docker does not answer at {socket}: {error}")]
pub struct DockerError {
    socket: String,
    error: String,
    is_refused: bool,
}

impl DockerError {
    /// Whether this user may not open the socket.
    pub fn is_refused(&self) -> bool {
        self.is_refused
    }
}

/// What is known of the daemon at a socket, and of its containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    pub socket: String,
    /// Whose containers these are: the daemon's identifier and its folder, which Docker before version 25
    /// needs besides (all daemons of a host share `/etc/docker/key.json`). Podman has its folder alone: its
    /// `ID` is another one each time. `None`: it has not told.
    pub daemon: Option<String>,
    pub connection: ConnectionState,
    /// While the daemon does not answer, what it answered last. While another daemon at the socket is being
    /// read, the containers of both.
    pub inventory: Arc<Inventory>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// The daemon is asked for the first time, or another one than before: the inventory is not whole.
    Reading,
    /// The inventory is whole, but for what it names as half known or left out.
    Connected,
    /// The daemon does not answer, or has not been read whole again; the inventory is its last one, and what
    /// its events have added since.
    Lost { error: String, since: Timestamp },
    /// What the daemon's containers publish has never been known.
    NeverAnswered { error: String },
}

impl Runtime {
    pub fn new(socket: &str) -> Self {
        Self {
            socket: socket.to_owned(),
            daemon: None,
            connection: ConnectionState::Reading,
            inventory: Arc::default(),
        }
    }
}

/// Everything that Docker says of this host's containers, running or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// By Docker's identifier.
    pub containers: BTreeMap<String, Container>,
    pub networks: Vec<Network>,
    /// Why networks may be missing.
    pub networks_left_out: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    pub name: String,
    /// As it was asked for, such as `nginx:1.27`.
    pub image: String,
    /// Those that something reads: the guard's own, Compose's, and the image's title.
    pub labels: BTreeMap<String, String>,
    /// How many of the guard's labels are not among them or have been cut: there were too many, or they were
    /// too long.
    pub labels_left_out: usize,
    pub running: bool,
    /// It has no network of its own: its listeners are the host's.
    pub on_host_network: bool,
    /// What it publishes, or will when it is started.
    pub publishes: BTreeSet<Publication>,
    /// The ports that its image and its configuration name, published or not.
    pub exposes: BTreeSet<(u16, PortProtocol)>,
    /// In all its networks, while it runs.
    pub addresses: BTreeSet<IpAddr>,
    /// Why it could not be inspected. What is known of it comes from the list of containers, from Docker's
    /// files and from when it could be inspected last.
    pub half_known: Option<String>,
    /// Docker's file with its configuration could not be read either, when it could not be inspected.
    pub is_file_unread: bool,
    /// What it will publish when it is started is not known.
    pub is_unconfigured: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub id: String,
    pub name: String,
    /// `bridge`, `macvlan`, `ipvlan`, `host`, `overlay`…
    pub driver: String,
    /// Its Linux interface, if its driver is `bridge`.
    pub bridge: Option<String>,
    pub subnets: Vec<IpNet>,
    pub gateways: Vec<IpAddr>,
    /// Of its IPv4 subnets; whether IPv6 is masqueraded is an option of the daemon, which the API does not
    /// tell, so IPv6 counts as routed.
    pub kind: NetworkKind,
}

impl Network {
    /// What packets sent to its addresses from outside are judged by. Bridges alone: the addresses of a
    /// macvlan or ipvlan network are the uplink's own.
    pub fn prefixes(&self) -> impl Iterator<Item = ContainerNetwork> {
        let subnets = self.subnets.iter().filter(|_| self.driver == BRIDGE);
        subnets.map(|subnet| ContainerNetwork {
            prefix: subnet.trunc(),
            kind: match subnet {
                IpNet::V4(_) => self.kind,
                IpNet::V6(_) => NetworkKind::Routed,
            },
        })
    }
}

const BRIDGE: &str = "bridge";

/// A port of a container, and where it can be reached on the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Publication {
    pub protocol: PortProtocol,
    /// `None`: on every address.
    pub address: Option<IpAddr>,
    /// Of which Docker chooses one, if it is not one alone.
    pub first: u16,
    pub last: u16,
    /// Inside the container.
    pub inside: u16,
}

impl Publication {
    pub fn ports(&self) -> RangeInclusive<u16> {
        self.first..=self.last
    }

    /// As it is seen from outside; nothing if it is on a loopback address alone.
    pub fn reachable(&self) -> impl Iterator<Item = PublishedPort> {
        let Self {
            protocol, address, ..
        } = *self;
        self.ports().flat_map(move |port| {
            PublishedAt::reachable(address).map(move |at| PublishedPort { protocol, port, at })
        })
    }
}

impl Container {
    /// Whether it may publish ports that are not known: it cannot be inspected, and neither the list of containers nor
    /// Docker's files tell.
    pub fn may_publish_more(&self) -> bool {
        self.half_known.is_some()
            && self.is_file_unread
            && self.publishes.is_empty()
            && !self.on_host_network
    }

    /// Compose's project and service, if it comes from there.
    pub fn compose(&self) -> Option<(&str, &str)> {
        let label = |name| self.labels.get(name).map(String::as_str);
        Some((label(COMPOSE_PROJECT)?, label(COMPOSE_SERVICE)?))
    }

    /// The ports that others can reach it by, sorted. `listeners`: the sockets that wait on this host, if they are
    /// known: what one of them holds is not a container's that does not run.
    pub fn published(&self, listeners: Option<&[Listener]>) -> BTreeSet<PublishedPort> {
        let publications = self.publications(listeners);
        publications
            .flat_map(|publication| publication.reachable().collect::<Vec<_>>())
            .collect()
    }

    /// What it asks of the guard, if anything.
    fn labels(&self) -> BTreeMap<String, String> {
        let labels = self.labels.iter();
        labels
            .filter(|(name, _)| name.starts_with(LABEL))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }
}

impl Inventory {
    /// What the packet path has to know. The ports of a container that does not run are published, too:
    /// it may be started at any moment, and nothing may get through before that is known.
    pub fn containers(&self, listeners: Option<&[Listener]>) -> Containers {
        let containers = self.containers.values();
        let published: BTreeSet<PublishedPort> = containers
            .flat_map(|container| container.published(listeners))
            .collect();
        let mut networks: Vec<_> = self.networks.iter().flat_map(Network::prefixes).collect();
        networks.sort_unstable_by_key(|network| network.prefix);
        networks.dedup();
        Containers {
            published: published.into_iter().collect(),
            networks,
            labelled: self.labelled(listeners),
        }
    }

    /// A port belongs to the container that runs. While none does, whoever may be started next has it, and
    /// the labels of all hold.
    fn labelled(&self, listeners: Option<&[Listener]>) -> Vec<Labelled> {
        let running = self
            .containers
            .values()
            .filter(|container| container.running);
        let taken: BTreeSet<PublishedPort> = running
            .flat_map(|container| container.published(listeners))
            .collect();
        let mut labelled = Vec::new();
        for container in self.containers.values() {
            let mut published = container.published(listeners);
            if !container.running {
                published.retain(|port| !taken.contains(port));
            }
            let labels = container.labels();
            if !labels.is_empty() {
                labelled.push(Labelled {
                    container: container.name.clone(),
                    published: published.into_iter().collect(),
                    labels,
                });
            }
        }
        labelled.sort_unstable_by(|one, other| one.container.cmp(&other.container));
        labelled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(address: Option<&str>) -> Vec<PublishedAt> {
        let publication = Publication {
            protocol: PortProtocol::Tcp,
            address: address.map(|address| address.parse().unwrap()),
            first: 8000,
            last: 8000,
            inside: 80,
        };
        let reachable = publication.reachable();
        reachable.map(|port| port.at).collect()
    }

    #[test]
    fn only_what_others_can_reach_counts_as_published() {
        use PublishedAt::{Address, EveryIpv4, EveryIpv6};
        let one = |address: &str| Address(address.parse().unwrap());
        for (address, places) in [
            ("0.0.0.0", vec![EveryIpv4]),
            ("203.0.113.5", vec![one("203.0.113.5")]),
            ("::", vec![EveryIpv6]),
            ("2001:db8::5", vec![one("2001:db8::5")]),
            ("127.0.0.1", vec![]),
            ("127.8.8.8", vec![]),
            ("::1", vec![]),
        ] {
            assert_eq!(published(Some(address)), places, "{address}");
        }
        assert_eq!(published(None), [EveryIpv4, EveryIpv6], "every address");
    }
}
