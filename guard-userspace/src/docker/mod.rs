//! This host's containers, asked from Docker over its API (Docker and Podman's compatible socket).

mod read;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::RangeInclusive,
    time::Duration,
};

use guard_common::layout::PortProtocol;

pub use self::{
    read::{read, version},
    watch::{Seen, Watch},
};
use crate::policy::{ContainerNetwork, Containers, Labelled, PublishedAt, PublishedPort};

/// How long Docker may take to answer; one that hangs must not hold up the guard.
const PATIENCE: Duration = Duration::from_secs(5);

/// Labels that begin so are the guard's.
const LABEL: &str = "guard.";

/// Compose's labels (its specification, "Labels").
const COMPOSE_PROJECT: &str = "com.docker.compose.project";
const COMPOSE_SERVICE: &str = "com.docker.compose.service";

#[derive(Clone, Debug, thiserror::Error)]
pub enum DockerError {
    #[error("Docker does not answer at {socket}: {error}")]
    Api { socket: String, error: String },
    #[error("Docker at {socket} has not answered within {} s", PATIENCE.as_secs())]
    Hung { socket: String },
}

/// Everything that Docker says of this host's containers, running or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// By Docker's identifier.
    pub containers: BTreeMap<String, Container>,
    pub networks: Vec<ContainerNetwork>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    pub name: String,
    /// As it was asked for, such as `nginx:1.27`.
    pub image: String,
    pub labels: BTreeMap<String, String>,
    pub running: bool,
    /// It has no network of its own: its listeners are the host's.
    pub on_host_network: bool,
    /// What it publishes, or will when it is started.
    pub publishes: BTreeSet<Publication>,
    /// The ports that its image and its configuration name, published or not.
    pub exposes: BTreeSet<(u16, PortProtocol)>,
}

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
    fn reachable(&self) -> impl Iterator<Item = PublishedPort> {
        let Self {
            protocol, address, ..
        } = *self;
        self.ports().flat_map(move |port| {
            PublishedAt::reachable(address).map(move |at| PublishedPort { protocol, port, at })
        })
    }
}

impl Container {
    /// Compose's project and service, if it comes from there.
    pub fn compose(&self) -> Option<(&str, &str)> {
        let label = |name| self.labels.get(name).map(String::as_str);
        Some((label(COMPOSE_PROJECT)?, label(COMPOSE_SERVICE)?))
    }

    /// The ports that others can reach it by, sorted.
    pub fn published(&self) -> BTreeSet<PublishedPort> {
        let publishes = self.publishes.iter();
        publishes.flat_map(Publication::reachable).collect()
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
    pub fn containers(&self) -> Containers {
        let containers = self.containers.values();
        let published: BTreeSet<PublishedPort> =
            containers.clone().flat_map(Container::published).collect();
        Containers {
            published: published.into_iter().collect(),
            networks: self.networks.clone(),
            labelled: self.labelled(),
        }
    }

    /// A port belongs to the container that runs. While none does, whoever may be started next has it, and
    /// the labels of all hold.
    fn labelled(&self) -> Vec<Labelled> {
        let running = self
            .containers
            .values()
            .filter(|container| container.running);
        let taken: BTreeSet<PublishedPort> = running.flat_map(Container::published).collect();
        let mut labelled = Vec::new();
        for container in self.containers.values() {
            let mut published = container.published();
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
