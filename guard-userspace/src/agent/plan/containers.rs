//! What containers add to the tables: the ports they publish, and the addresses that are closed to packets sent
//! straight to them.

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

/// How much of a name that a container chose a warning shows, in characters.
const NAME_SHOWN: usize = 64;

/// The containers as the tables know them, and what is not as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    pub containers: Containers,
    pub warnings: Vec<String>,
    /// Why something that the policy closes may be open.
    pub obstacles: Vec<String>,
}

impl Compiled {
    /// This and what else is closed.
    pub fn with(mut self, also: Self) -> Self {
        let Self {
            containers:
                Containers {
                    published,
                    networks,
                    labelled,
                },
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
        self.warnings.extend(warnings);
        self.obstacles.extend(obstacles);
        self
    }
}

/// Compiles what a runtime reports. `guarded` holds the indices of guarded interfaces.
pub fn compile(inventory: &Inventory, host: &Host, guarded: &BTreeSet<u32>) -> Compiled {
    let mut compiled = Compiled {
        containers: inventory.containers(host.listeners.last.as_deref()),
        ..Compiled::default()
    };
    for container in inventory.containers.values() {
        if container.may_publish_more() {
            compiled.obstacles.push(format!(
                "what container {} publishes is not known, and it may be open",
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
            "the sockets of this host are not known ({error}): ports of containers that do not run are closed, also if a \
             service of this host has them"
        ));
    }
    for container in inventory.containers.values() {
        // A list names the ports of a container that runs.
        if container.is_unconfigured && !container.running {
            compiled.obstacles.push(format!(
                "what container {} may publish is not known",
                quoted(&container.name, NAME_SHOWN)
            ));
        }
        if container.labels_left_out > 0 {
            compiled.warnings.push(format!(
                "container {} has more or longer labels for the guard than are read: {} are left out or cut",
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

/// The containers that a runtime reported to an agent before this one: their ports stay closed, and so do their
/// networks, but for the addresses that this host has by now.
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

/// What this host owns besides the bridges of its containers.
struct Own<'a> {
    host: &'a Host,
    /// Links that carry containers alone. Their addresses are closed like a container's.
    bridges: BTreeSet<u32>,
    /// Addresses of all other links: these are never closed as a container's.
    addresses: BTreeSet<IpAddr>,
    /// The networks of those addresses.
    networks: Vec<IpNet>,
    /// What those links reach without a gateway by the routes.
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

    /// Closes a network: its whole prefix, or the exact addresses of its containers where the prefix overlaps what
    /// this host's own links reach. The guard never takes a host off its network.
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
                    "the container network {} ({prefix}) overlaps a network of this host's own: its containers' \
                     addresses are closed one by one",
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

    /// A route that is wider than a container network, such as `10.0.0.0/8 dev wg0`, does not reach it: the bridge's
    /// own is longer, and the longest prefix wins (RFC 1812, section 5.2.4.3).
    fn overlaps(&self, prefix: IpNet) -> bool {
        let mut networks = self.networks.iter();
        networks.any(|network| network.contains(&prefix) || prefix.contains(network))
            || self.routed.iter().any(|route| prefix.contains(route))
    }
}

/// fe80::/10 and 169.254.0.0/16 are on every link, and say nothing of what it reaches.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// A prefix without some of its addresses, as few prefixes.
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
        // Else it is one address, and a hole.
    }
    left.sort_unstable();
    left
}

/// No more than the kernel's table holds.
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
