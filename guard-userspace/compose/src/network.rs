//! Networks of a project: whether Docker publishes ports of their containers, and on which address.

use std::collections::HashMap;

use super::{
    port::{BindAddress, parse_address},
    service::ComposeService,
    yaml::{Node, is_true},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComposeNetwork {
    /// The host's own network.
    Host,
    /// A network without published ports.
    Apart,
    /// A bridge, with the address for ports that name none, if the bridge sets it.
    Bridge(Option<BindAddress>),
}

/// The network of services that name none.
pub const DEFAULT: &str = "default";

const BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";

pub struct ComposeNetworks<'a>(HashMap<&'a str, ComposeNetwork>);

impl<'a> ComposeNetworks<'a> {
    pub fn read(root: &'a Node) -> Self {
        let networks = root.get("networks").and_then(Node::mapping);
        let networks = networks.into_iter().flatten();
        Self(
            networks
                .map(|(name, entry)| (name.as_str(), ComposeNetwork::read(name, &entry.node)))
                .collect(),
        )
    }

    /// The networks of a service; none if it has a `network_mode` instead.
    pub fn of(&self, service: &ComposeService<'_>) -> Vec<(String, ComposeNetwork)> {
        if service.node.get("network_mode").is_some() {
            return Vec::new();
        }
        let mut names = service.networks();
        if names.is_empty() {
            names.push(DEFAULT.to_owned());
        }
        let network = |name: &String| self.0.get(name.as_str()).copied();
        let named = |name: String| {
            let network = network(&name).unwrap_or(ComposeNetwork::Bridge(None));
            (name, network)
        };
        names.into_iter().map(named).collect()
    }

    /// The address of ports that name none. `None`: the service's networks do not set one and the same address.
    pub fn binding(&self, service: &ComposeService<'_>) -> Option<BindAddress> {
        let networks = self.of(service).into_iter();
        let mut bindings = networks.filter_map(|(_, network)| match network {
            ComposeNetwork::Bridge(binding) => Some(binding),
            ComposeNetwork::Host | ComposeNetwork::Apart => None,
        });
        let first = bindings.next()??;
        bindings
            .all(|binding| binding == Some(first))
            .then_some(first)
    }
}

impl ComposeNetwork {
    fn read(key: &str, node: &Node) -> Self {
        let text = |key: &str| Some(node.get(key)?.scalar()?.text.as_str());
        let is = |key: &str| text(key).is_some_and(is_true);
        // `external: {name: …}` is the notation of Compose files of version 2.
        let external = || Some(node.get("external")?.get("name")?.scalar()?.text.as_str());
        let own_key = is("external").then_some(key);
        let name = text("name").or_else(external).or(own_key);
        match (name, text("driver")) {
            (Some("host"), _) | (_, Some("host")) => Self::Host,
            (Some("none"), _) | (_, Some("none" | "macvlan" | "ipvlan")) => Self::Apart,
            _ if is("internal") => Self::Apart,
            _ => Self::Bridge(binding(node)),
        }
    }
}

fn binding(network: &Node) -> Option<BindAddress> {
    let options = network.get("driver_opts")?;
    let address = options.get(BINDING)?.scalar()?;
    parse_address(&address.text).ok()
}
