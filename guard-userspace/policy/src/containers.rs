//! What is known of this host's containers, as plain data.

use std::{collections::BTreeMap, fmt, ops::RangeInclusive};

use guard_common::{
    exposure::NetworkKind,
    layout::{PortEntry, PortProtocol},
};
use ipnet::IpNet;

/// A host port that a container publishes, on an address that others can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublishedPort {
    pub protocol: PortProtocol,
    pub port: u16,
    pub family: PublishedFamily,
}

impl PublishedPort {
    /// An entry of the port table, with this port published.
    #[must_use]
    pub fn marked(self, entry: PortEntry, local_ports: &RangeInclusive<u16>) -> PortEntry {
        let entry = match self.family {
            PublishedFamily::Ipv4 => entry.published_ipv4(),
            PublishedFamily::Ipv6 => entry.published_ipv6(),
        };
        if local_ports.contains(&self.port) {
            entry.ephemeral()
        } else {
            entry
        }
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.protocol.name(), self.port)
    }
}

/// The family whose addresses it is published on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PublishedFamily {
    Ipv4,
    Ipv6,
}

/// A network of containers on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContainerNetwork {
    pub prefix: IpNet,
    pub kind: NetworkKind,
}

/// What is known of this host's containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Containers {
    pub published: Vec<PublishedPort>,
    pub networks: Vec<ContainerNetwork>,
    pub labelled: Vec<Labelled>,
}

/// A container that asks something of the guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    /// Its name.
    pub container: String,
    pub published: Vec<PublishedPort>,
    /// The guard's labels alone.
    pub labels: BTreeMap<String, String>,
}
