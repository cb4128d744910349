//! Reads this host's containers over the API of Docker (or of Podman's compatible socket).

mod answers;
mod client;
mod facts;
mod files;
mod follower;
mod held;
#[cfg(test)]
mod misbehaving_daemon;
mod proxies;
mod read;
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
    facts::{DaemonFacts, SwarmPublication, SwarmServices, read_facts},
    proxies::own_listeners,
    read::{read, version},
    watch::{ObservedRuntime, Watch},
};

/// The prefix of the guard's labels.
const LABEL: &str = "guard.";

/// Compose's labels (its specification, "Labels").
const COMPOSE_PROJECT: &str = "com.docker.compose.project";
const COMPOSE_SERVICE: &str = "com.docker.compose.service";

/// The title of an image (OCI image specification, "Annotations").
pub const TITLE: &str = "org.opencontainers.image.title";

/// A daemon that does not answer.
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

/// The state of the daemon at a socket, and its containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    pub socket: String,
    /// The identity of the daemon: its identifier and its root folder. Before Docker 25, the folder is needed because
    /// all daemons of a host share `/etc/docker/key.json`. Podman has its folder alone, because its `ID` changes with
    /// each request. `None`: the daemon has not answered `/info` yet.
    pub daemon: Option<String>,
    pub connection: ConnectionState,
    /// The containers. While the daemon does not answer, those that it last reported. While another daemon at the
    /// socket is being read, the containers of both.
    pub inventory: Arc<Inventory>,
}

/// The state of the connection to a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// The daemon is being read for the first time, or another daemon than before: the inventory is not whole.
    Reading,
    /// The inventory is whole, except containers that are half known and networks that are left out.
    Connected,
    /// The daemon does not answer, or was not read whole again. The inventory is its last one, with the changes of
    /// later events.
    Lost { error: String, since: Timestamp },
    /// The daemon was never read whole.
    NeverAnswered { error: String },
}

impl Runtime {
    /// A runtime that is not read yet.
    pub fn new(socket: &str) -> Self {
        Self {
            socket: socket.to_owned(),
            daemon: None,
            connection: ConnectionState::Reading,
            inventory: Arc::default(),
        }
    }
}

/// The containers and networks of a daemon, whether the containers run or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// By Docker's identifier.
    pub containers: BTreeMap<String, Container>,
    pub networks: Vec<Network>,
    /// Why networks may be missing.
    pub networks_left_out: Vec<String>,
}

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    pub name: String,
    /// The name in the container's configuration, such as `nginx:1.27`.
    pub image: String,
    /// The labels that guard uses: its own, Compose's, and the image's title.
    pub labels: BTreeMap<String, String>,
    /// The number of the guard's labels that are left out or cut, because they are too many or too long.
    pub labels_left_out: usize,
    pub running: bool,
    /// It has no network of its own: its listeners are the host's.
    pub on_host_network: bool,
    /// The ports that it publishes, or will publish when it is started.
    pub publishes: BTreeSet<Publication>,
    /// The ports that its image and its configuration expose, published or not.
    pub exposes: BTreeSet<(u16, PortProtocol)>,
    /// Its addresses in all networks, while it runs.
    pub addresses: BTreeSet<IpAddr>,
    /// Its networks by their names, with its addresses there.
    pub attached: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Its first process, while it runs.
    pub pid: Option<u32>,
    /// Why it could not be inspected. Its other fields come from the list of containers, from Docker's files, and from
    /// the last time that it could be inspected.
    pub half_known: Option<String>,
    /// It could not be inspected, and Docker's file with its configuration could not be read either.
    pub is_file_unread: bool,
    /// The ports that it will publish when it is started are not known.
    pub is_unconfigured: bool,
}

/// A container network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub id: String,
    pub name: String,
    /// `bridge`, `macvlan`, `ipvlan`, `host`, `overlay`…
    pub driver: String,
    /// Its Linux interface, if its driver is `bridge`.
    pub bridge: Option<String>,
    /// The interface of the host that its containers share, if its driver is `macvlan` or `ipvlan`.
    pub parent: Option<String>,
    pub subnets: Vec<IpNet>,
    pub gateways: Vec<IpAddr>,
    /// The kind of its IPv4 subnets. Whether IPv6 is masqueraded is an option of the daemon that the API does not
    /// report, so IPv6 counts as routed.
    pub kind: NetworkKind,
    /// Its IPv6 addresses are routed, because its gateway mode for IPv6 says so.
    pub is_routed_ipv6: bool,
}

impl Network {
    /// Whether its containers have addresses of the parent's network, which other hosts reach without passing the rules
    /// of this host.
    pub fn shares_parent(&self) -> bool {
        ["macvlan", "ipvlan"].contains(&self.driver.as_str())
    }

    /// The prefixes for judging packets that are sent to its addresses from outside. Only bridges have any: the
    /// addresses of a macvlan or ipvlan network are those of the uplink's network.
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

/// A port of a container, and the host ports and address at which it can be reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Publication {
    pub protocol: PortProtocol,
    /// `None`: on every address.
    pub address: Option<IpAddr>,
    /// The first port of a range, of which Docker chooses one when the container starts.
    pub first: u16,
    pub last: u16,
    /// The port inside the container.
    pub inside: u16,
}

impl Publication {
    /// The ports of the host.
    pub fn ports(&self) -> RangeInclusive<u16> {
        self.first..=self.last
    }

    /// The ports at which other hosts can reach it; none if it is on a loopback address.
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
    /// Docker's files have its ports.
    pub fn may_publish_more(&self) -> bool {
        self.half_known.is_some()
            && self.is_file_unread
            && self.publishes.is_empty()
            && !self.on_host_network
    }

    /// Compose's project and service, if Compose has created it.
    pub fn compose(&self) -> Option<(&str, &str)> {
        let label = |name| self.labels.get(name).map(String::as_str);
        Some((label(COMPOSE_PROJECT)?, label(COMPOSE_SERVICE)?))
    }

    /// The ports at which other hosts can reach it, sorted. `listeners`: the listening sockets of this host, if they
    /// are known. A port that one of them holds does not belong to a container that does not run.
    pub fn published(&self, listeners: Option<&[Listener]>) -> BTreeSet<PublishedPort> {
        let publications = self.publications(listeners);
        publications
            .flat_map(|publication| publication.reachable().collect::<Vec<_>>())
            .collect()
    }

    /// The guard's labels.
    fn labels(&self) -> BTreeMap<String, String> {
        let labels = self.labels.iter();
        labels
            .filter(|(name, _)| name.starts_with(LABEL))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }
}

impl Inventory {
    /// The published ports, networks and labels for compiling the tables. The ports of a container that does not run
    /// are published as well: it may be started at any moment, and no packet may pass before guard notices.
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

    /// The name of the container that publishes each port: the running one, if several would.
    pub fn publishers(&self, listeners: Option<&[Listener]>) -> BTreeMap<String, String> {
        let mut containers: Vec<&Container> = self.containers.values().collect();
        containers.sort_by_key(|container| container.running);
        let named = containers.into_iter().flat_map(|container| {
            let published = container.published(listeners).into_iter();
            published.map(|port| (port.to_string(), container.name.clone()))
        });
        named.collect()
    }

    /// The containers with labels. A port belongs to the container that runs. If no container with the port runs, any
    /// of them may be started next, so the labels of all hold.
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
    fn only_ports_that_other_hosts_can_reach_count_as_published() {
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
