//! Compiles the containers' part of the tables: the ports that they publish, and their addresses, which are closed to
//! packets that are sent to them directly.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use guard_common::layout::MAX_NETWORKS;
use ipnet::IpNet;

use crate::{
    docker::{Inventory, Network},
    host::Host,
    policy::{ContainerNetwork, Containers, PublishedPort, untrusted::quoted},
};

/// The longest name from a container that a warning quotes, in characters.
const NAME_SHOWN: usize = 64;

/// The containers as input for the tables, and the problems that were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    pub containers: Containers,
    /// The names of the containers by the port that they publish.
    pub publishers: BTreeMap<String, String>,
    pub warnings: Vec<String>,
    /// Why something that the policy closes may be open.
    pub obstacles: Vec<String>,
}

impl Compiled {
    /// The union of both: everything that either closes is closed.
    pub fn with(mut self, also: Self) -> Self {
        let Self {
            containers:
                Containers {
                    published,
                    networks,
                    labelled,
                },
            publishers,
            warnings,
            obstacles,
        } = also;
        let own = &mut self.containers;
        let ports: BTreeSet<PublishedPort> = own.published.drain(..).chain(published).collect();
        own.published = ports.into_iter().collect();
        let known: BTreeSet<IpNet> = own.networks.iter().map(|network| network.prefix).collect();
        let others = networks.into_iter();
        own.networks
            .extend(others.filter(|one| !known.contains(&one.prefix)));
        own.networks.sort_unstable_by_key(|network| network.prefix);
        let named: BTreeSet<String> = own
            .labelled
            .iter()
            .map(|one| one.container.clone())
            .collect();
        let others = labelled.into_iter();
        own.labelled
            .extend(others.filter(|one| !named.contains(&one.container)));
        own.labelled
            .sort_unstable_by(|one, other| one.container.cmp(&other.container));
        for (port, name) in publishers {
            self.publishers.entry(port).or_insert(name);
        }
        self.warnings.extend(warnings);
        self.obstacles.extend(obstacles);
        self
    }
}

/// Compiles the containers that a runtime reports. `guarded`: the indices of guarded interfaces.
pub fn compile(inventory: &Inventory, host: &Host, guarded: &BTreeSet<u32>) -> Compiled {
    let mut compiled = Compiled {
        containers: inventory.containers(host.listeners.last.as_deref()),
        publishers: inventory.publishers(host.listeners.last.as_deref()),
        ..Compiled::default()
    };
    for container in inventory.containers.values() {
        if container.may_publish_more() {
            compiled.obstacles.push(format!(
                "the ports that container {} publishes are not known, and may be open",
                quoted(&container.name, NAME_SHOWN)
            ));
        }
        if let Some(why) = &container.half_known {
            let file = match container.is_file_unread {
                true => ", and its configuration file cannot be read",
                false => "",
            };
            compiled.warnings.push(format!(
                "container {} cannot be inspected ({}){file}: the ports it may publish are closed",
                quoted(&container.name, NAME_SHOWN),
                quoted(why, NAME_SHOWN)
            ));
        }
    }
    if let (true, Some(error)) = (inventory.has_contested_ports(), &host.listeners.error) {
        compiled.warnings.push(format!(
            "the sockets of this host cannot be read ({error}): the ports of stopped containers are closed, even if a \
             process of this host listens on them"
        ));
    }
    for container in inventory.containers.values() {
        // The runtime's list of containers has the ports of running ones.
        if container.is_unconfigured && !container.running {
            compiled.obstacles.push(format!(
                "the ports that container {} may publish are not known",
                quoted(&container.name, NAME_SHOWN)
            ));
        }
        if container.labels_left_out > 0 {
            compiled.warnings.push(format!(
                "container {} has too many or too long labels for the guard: {} are ignored or truncated",
                quoted(&container.name, NAME_SHOWN),
                container.labels_left_out
            ));
        }
    }
    for why in &inventory.networks_left_out {
        compiled.obstacles.push(format!(
            "a container network is not known: {}",
            quoted(why, NAME_SHOWN)
        ));
    }
    let own = Own::of(host, inventory, guarded);
    let mut closed = BTreeMap::new();
    for network in &inventory.networks {
        own.close(network, inventory, &mut closed, &mut compiled);
    }
    compiled.containers.networks = bounded(closed, &mut compiled);
    compiled
}

/// The containers that a runtime reported to a previous agent. Their ports and networks stay closed, except the
/// addresses that this host has now.
pub fn compile_last_known(last: &Containers, host: &Host) -> Compiled {
    let mut compiled = Compiled::default();
    let bridges = host.links.last.iter().flatten();
    let bridges: BTreeSet<u32> = bridges
        .filter(|(_, link)| link.kind.as_deref() == Some(BRIDGE))
        .map(|(index, _)| *index)
        .collect();
    let addresses = host.addresses.last.iter().flatten();
    let own: Vec<IpAddr> = addresses
        .filter(|address| !bridges.contains(&address.link))
        .map(|address| address.address)
        .collect();
    let mut closed = BTreeMap::new();
    for network in &last.networks {
        for prefix in without(network.prefix, &own) {
            closed.insert(prefix, *network);
        }
    }
    compiled.containers = Containers {
        networks: bounded(closed, &mut compiled),
        ..last.clone()
    };
    compiled
}

/// The kind of a bridge in IFLA_INFO_KIND.
const BRIDGE: &str = "bridge";

/// This host's own addresses and networks, without those of container bridges.
struct Own<'a> {
    host: &'a Host,
    /// Bridges with containers only. Their addresses are closed like those of a container.
    bridges: BTreeSet<u32>,
    /// Addresses of all other links. These are never closed as container addresses.
    addresses: BTreeSet<IpAddr>,
    /// The networks of those addresses.
    networks: Vec<IpNet>,
    /// The prefixes that those links reach by a route without a gateway.
    routed: Vec<IpNet>,
}

impl<'a> Own<'a> {
    fn of(host: &'a Host, inventory: &Inventory, guarded: &BTreeSet<u32>) -> Self {
        let bridges: BTreeSet<u32> = inventory
            .networks
            .iter()
            .filter_map(|network| network.bridge.as_deref())
            .filter(|bridge| host.is_container_bridge(bridge, guarded))
            .filter_map(|bridge| Some(host.link_named(bridge)?.index))
            .collect();
        let others = host.addresses.last.iter().flatten();
        let others: Vec<_> = others
            .filter(|address| !bridges.contains(&address.link))
            .collect();
        let networks = others
            .iter()
            .filter(|address| !is_link_local(address.address) && !address.address.is_loopback())
            .map(|address| address.network())
            .filter(|network| network.prefix_len() < network.max_prefix_len())
            .collect();
        let routed = host.routes.last.iter().flatten().filter(|route| {
            route.gateways.is_empty()
                && !is_link_local(route.prefix.addr())
                && route.links.iter().any(|link| !bridges.contains(link))
        });
        Self {
            host,
            addresses: others.iter().map(|address| address.address).collect(),
            networks,
            routed: routed.map(|route| route.prefix).collect(),
            bridges,
        }
    }

    /// Closes a network: its whole prefix, or only the addresses of its containers if the prefix overlaps a network
    /// that this host's own links reach. The guard never cuts a host off its own network.
    fn close(
        &self,
        network: &Network,
        inventory: &Inventory,
        closed: &mut BTreeMap<IpNet, ContainerNetwork>,
        compiled: &mut Compiled,
    ) {
        for ContainerNetwork { prefix, kind } in network.prefixes() {
            let mut close = |prefix| {
                closed.insert(prefix, ContainerNetwork { prefix, kind });
            };
            if self.host.addresses.last.is_some() && !self.overlaps(prefix) {
                let inside = self.addresses.iter().copied();
                let inside: Vec<IpAddr> = inside.filter(|one| prefix.contains(one)).collect();
                without(prefix, &inside).into_iter().for_each(&mut close);
                continue;
            }
            if self.host.addresses.last.is_some() {
                compiled.warnings.push(format!(
                    "the container network {} ({prefix}) overlaps a network of this host's own: only the addresses \
                     of its containers are closed, not the whole prefix",
                    quoted(&network.name, NAME_SHOWN)
                ));
            }
            let of_containers = inventory
                .containers
                .values()
                .flat_map(|container| &container.addresses)
                .copied();
            let addresses = self.host.addresses.last.iter().flatten();
            let of_bridges = addresses
                .filter(|address| self.bridges.contains(&address.link))
                .map(|address| address.address);
            for address in of_containers.chain(of_bridges) {
                if prefix.contains(&address) && !self.addresses.contains(&address) {
                    close(IpNet::from(address));
                }
            }
            for container in inventory.containers.values() {
                if container.running
                    && container.half_known.is_some()
                    && container.addresses.is_empty()
                    && !container.on_host_network
                {
                    compiled.obstacles.push(format!(
                        "the address of container {} is not known",
                        quoted(&container.name, NAME_SHOWN)
                    ));
                }
            }
        }
    }

    /// A route that is wider than a container network, such as `10.0.0.0/8 dev wg0`, is no overlap: the route of the
    /// container's bridge has a longer prefix, and the longest prefix wins (RFC 1812, section 5.2.4.3).
    fn overlaps(&self, prefix: IpNet) -> bool {
        let mut networks = self.networks.iter();
        networks.any(|network| network.contains(&prefix) || prefix.contains(network))
            || self.routed.iter().any(|route| prefix.contains(route))
    }
}

/// Every link has fe80::/10 or 169.254.0.0/16, so these prefixes do not show which network it reaches.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// A prefix without some of its addresses, as the smallest set of prefixes.
pub fn without(prefix: IpNet, holes: &[IpAddr]) -> Vec<IpNet> {
    let holes: Vec<IpNet> = holes.iter().copied().map(IpNet::from).collect();
    let mut left = Vec::new();
    let mut rest = vec![prefix.trunc()];
    while let Some(prefix) = rest.pop() {
        if !holes.iter().any(|hole| prefix.contains(hole)) {
            left.push(prefix);
        } else if let Ok(halves) = prefix.subnets(prefix.prefix_len() + 1) {
            rest.extend(halves);
        }
        // Otherwise the prefix is a single address, and a hole.
    }
    left.sort_unstable();
    left
}

/// The first networks, as many as the kernel's table holds. If there are more, that is an obstacle.
fn bounded(
    closed: BTreeMap<IpNet, ContainerNetwork>,
    compiled: &mut Compiled,
) -> Vec<ContainerNetwork> {
    let room = MAX_NETWORKS as usize;
    if closed.len() > room {
        compiled.obstacles.push(format!(
            "containers have {} networks and addresses to close, and there is room for {room}",
            closed.len()
        ));
    }
    closed
        .into_iter()
        .take(room)
        .map(|(prefix, network)| ContainerNetwork { prefix, ..network })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_is_the_only_address_that_a_prefix_loses() {
        let prefix: IpNet = "172.17.0.0/16".parse().unwrap();
        let hole: IpAddr = "172.17.9.9".parse().unwrap();
        let left = without(prefix, &[hole]);
        assert_eq!(left.len(), 16);
        let contains = |address: &str| {
            let address: IpAddr = address.parse().unwrap();
            left.iter().any(|prefix| prefix.contains(&address))
        };
        assert!(!contains("172.17.9.9"));
        for closed in ["172.17.0.1", "172.17.9.8", "172.17.9.10", "172.17.255.255"] {
            assert!(contains(closed), "{closed}");
        }
        assert_eq!(without(prefix, &[]), [prefix]);
        assert_eq!(without(IpNet::from(hole), &[hole]), []);
        let v6: IpNet = "2001:db8::/64".parse().unwrap();
        assert_eq!(without(v6, &["2001:db8::1".parse().unwrap()]).len(), 64);
    }
}
