//! This host's containers, as far as the guard knows them: ports, networks and labels.

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

/// This host's containers, as far as the guard knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Containers {
    pub published: Vec<PublishedPort>,
    pub networks: Vec<ContainerNetwork>,
    pub labelled: Vec<Labelled>,
}

/// A container with labels for the guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    /// The name of the container.
    pub container: String,
    pub published: Vec<PublishedPort>,
    /// Only the labels whose keys begin with `guard.`.
    pub labels: BTreeMap<String, String>,
}
