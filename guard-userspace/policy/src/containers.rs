//! What is known of this host's containers, as plain data.

use std::collections::BTreeMap;

use guard_common::exposure::NetworkKind;
use ipnet::IpNet;

use super::PublishedPort;

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
