//! Lists the sockets of containers at addresses of their own that other hosts reach without a published port: in
//! macvlan and ipvlan networks, and in bridge networks that are routed.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use guard_common::{exposure::NetworkKind, layout::PortProtocol};
use procfs::{
    ProcResult,
    net::{TcpState, UdpState},
    process::Process,
};

use super::{
    endpoint::{Endpoint, Level},
    owner::Owner,
    role,
};
use crate::{
    audit::compose::address::is_of_network,
    docker::{Container, Inventory, Network},
    policy::untrusted,
};

/// An address of a container that other hosts reach directly.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnAddress {
    pub address: IpAddr,
    /// The interface of the host whose network has the address. `None`: the host routes to it.
    pub parent: Option<SharedParent>,
}

/// The lower interface of a macvlan or ipvlan network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SharedParent {
    /// `None`: the daemon does not name it.
    pub interface: Option<String>,
}

/// The endpoints of containers with such addresses.
#[derive(Debug, Default)]
pub struct InnerListeners {
    pub endpoints: Vec<Endpoint>,
    pub addresses: BTreeSet<OwnAddress>,
    /// Facts that could not be found out.
    pub notes: Vec<String>,
}

/// A socket of a container: its protocol and local address.
type InnerSocket = (PortProtocol, SocketAddr);

/// `listeners` reads the sockets of the network namespace of a process.
pub fn inner_listeners(
    inventory: &Inventory,
    listeners: impl Fn(u32) -> Result<BTreeSet<InnerSocket>, String>,
) -> InnerListeners {
    let mut found = InnerListeners {
        notes: perhaps_routed(inventory).into_iter().collect(),
        ..InnerListeners::default()
    };
    let running = inventory.containers.values();
    for container in running.filter(|container| container.running && !container.on_host_network) {
        let own = own_addresses(container, &inventory.networks);
        if own.is_empty() {
            continue;
        }
        let addresses: BTreeSet<IpAddr> = own.iter().map(|own| own.address).collect();
        found.addresses.extend(own);
        let sockets = match container.pid {
            Some(pid) => listeners(pid),
            None => Err("the daemon does not name its process".to_owned()),
        };
        match sockets {
            Ok(sockets) => found
                .endpoints
                .extend(endpoints(container, &addresses, &sockets)),
            Err(error) => {
                found.notes.push(format!(
                    "container {} has addresses that other hosts reach, {}, and its sockets cannot be read \
                     ({error}): the ports that its image names are listed instead",
                    untrusted::name(&container.name, 64),
                    named(&addresses)
                ));
                let every = |port| SocketAddr::new(IpAddr::from([0; 16]), port);
                let exposes = container.exposes.iter();
                let sockets = exposes.map(|(port, protocol)| (*protocol, every(*port)));
                let sockets = sockets.collect();
                found
                    .endpoints
                    .extend(endpoints(container, &addresses, &sockets));
            }
        }
    }
    found
}

fn named(addresses: &BTreeSet<IpAddr>) -> String {
    let names: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    names.join(", ")
}

fn own_addresses(container: &Container, networks: &[Network]) -> BTreeSet<OwnAddress> {
    let mut own = BTreeSet::new();
    for (name, addresses) in &container.attached {
        let mut all = networks.iter();
        let Some(network) = all.find(|network| network.name == *name || network.id == *name) else {
            continue;
        };
        let shared = network.shares_parent().then(|| SharedParent {
            interface: network.parent.clone(),
        });
        let is_open = |address: &&IpAddr| shared.is_some() || is_routed(network, **address);
        own.extend(addresses.iter().filter(is_open).map(|address| OwnAddress {
            address: *address,
            parent: shared.clone(),
        }));
    }
    own
}

/// Whether other hosts can reach an address of a bridge network. Docker's own rules protect masqueraded networks.
fn is_routed(network: &Network, address: IpAddr) -> bool {
    network.prefixes().next().is_some()
        && match address {
            IpAddr::V4(_) => network.kind == NetworkKind::Routed,
            IpAddr::V6(_) => network.is_routed_ipv6,
        }
}

/// A note for networks with public IPv6 addresses that the daemon does not report as routed.
fn perhaps_routed(inventory: &Inventory) -> Option<String> {
    let in_use = |network: &&Network| {
        let mut containers = inventory.containers.values();
        containers
            .any(|container| container.running && container.attached.contains_key(&network.name))
    };
    let networks = inventory.networks.iter().filter(in_use);
    let names: Vec<String> = networks
        .filter(|network| !network.is_routed_ipv6)
        .flat_map(|network| {
            let prefixes = network.prefixes().map(|prefixes| prefixes.prefix);
            let public = prefixes.filter(|net| net.addr().is_ipv6() && !is_of_network(net.addr()));
            public.map(|net| format!("{net} ({})", untrusted::name(&network.name, 64)))
        })
        .collect();
    (!names.is_empty()).then(|| {
        format!(
            "containers have public IPv6 addresses in {}: routes and Docker's own rules decide whether other hosts \
             reach them, and are not checked",
            names.join(", ")
        )
    })
}

fn endpoints(
    container: &Container,
    addresses: &BTreeSet<IpAddr>,
    sockets: &BTreeSet<InnerSocket>,
) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    for (protocol, socket) in sockets {
        let port = socket.port();
        let listens = |address: &&IpAddr| {
            let at = socket.ip();
            let is_family = at.is_ipv6() || address.is_ipv4();
            at == **address || at.is_unspecified() && is_family
        };
        for address in addresses.iter().filter(listens) {
            let level = match is_of_network(*address) {
                true => Level::Network,
                false => Level::World,
            };
            let owner = Owner::of_container(container);
            endpoints.push(Endpoint {
                inside: Some(port),
                role: role::of_container(container, *protocol, port, port),
                own_address: true,
                ..Endpoint::new(*protocol, port, BTreeSet::from([*address]), level, owner)
            });
        }
    }
    endpoints
}

/// The sockets in the network namespace of a process that receive from other hosts. Every user that sees the process
/// can read them (proc_tgid_net_lookup() in fs/proc/proc_net.c).
pub fn listeners_of(pid: u32) -> Result<BTreeSet<InnerSocket>, String> {
    let read = || -> ProcResult<BTreeSet<InnerSocket>> {
        let process = Process::new(i32::try_from(pid).unwrap_or(i32::MAX))?;
        let mut sockets = BTreeSet::new();
        let tcp = [process.tcp()?, process.tcp6().unwrap_or_default()];
        let listening = tcp.into_iter().flatten();
        let listening = listening.filter(|socket| socket.state == TcpState::Listen);
        sockets.extend(listening.map(|socket| (PortProtocol::Tcp, socket.local_address)));
        let udp = [process.udp()?, process.udp6().unwrap_or_default()];
        let unconnected = udp.into_iter().flatten();
        let unconnected = unconnected.filter(|socket| socket.state == UdpState::Close);
        sockets.extend(unconnected.map(|socket| (PortProtocol::Udp, socket.local_address)));
        Ok(sockets)
    };
    let sockets = read().map_err(|error| error.to_string())?;
    let canonical = sockets
        .into_iter()
        .map(|(protocol, at)| (protocol, SocketAddr::new(at.ip().to_canonical(), at.port())));
    let waits = |(_, at): &InnerSocket| at.port() != 0 && !at.ip().is_loopback();
    Ok(canonical.filter(waits).collect())
}

/// The running container that has an address.
pub fn container_at(inventory: &Inventory, address: IpAddr) -> Option<&Container> {
    let mut containers = inventory.containers.values();
    containers.find(|container| container.running && container.addresses.contains(&address))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use PortProtocol::{Tcp, Udp};

    fn network(name: &str, driver: &str, subnets: &[&str], kind: NetworkKind) -> Network {
        Network {
            id: format!("{name}-id"),
            name: name.to_owned(),
            driver: driver.to_owned(),
            bridge: None,
            parent: (driver != "bridge").then(|| "eth0".to_owned()),
            subnets: subnets.iter().map(|net| net.parse().unwrap()).collect(),
            gateways: Vec::new(),
            kind,
            is_routed_ipv6: name == "public",
        }
    }

    fn inventory() -> Inventory {
        let attached = [
            ("lan", &["192.168.1.50"][..]),
            ("plain", &["172.17.0.2", "fd00:17::2"]),
            ("public", &["2001:db8:17::2"]),
            ("routed-id", &["10.5.0.2"]),
            ("gone", &["10.6.0.2"]),
        ];
        let container = Container {
            name: "camera".to_owned(),
            running: true,
            pid: Some(7),
            exposes: BTreeSet::from([(80, Tcp)]),
            attached: attached
                .into_iter()
                .map(|(name, addresses)| {
                    let addresses = addresses.iter().map(|address| address.parse().unwrap());
                    (name.to_owned(), addresses.collect())
                })
                .collect(),
            ..Container::default()
        };
        Inventory {
            containers: BTreeMap::from([("0".to_owned(), container)]),
            networks: vec![
                network(
                    "lan",
                    "macvlan",
                    &["192.168.1.0/24"],
                    NetworkKind::Masqueraded,
                ),
                network(
                    "plain",
                    "bridge",
                    &["172.17.0.0/16", "fd00:17::/64"],
                    NetworkKind::Masqueraded,
                ),
                network(
                    "public",
                    "bridge",
                    &["2001:db8:17::/64"],
                    NetworkKind::Masqueraded,
                ),
                network("routed", "bridge", &["10.5.0.0/16"], NetworkKind::Routed),
            ],
            ..Inventory::default()
        }
    }

    fn places(found: &InnerListeners) -> Vec<String> {
        let endpoints = found.endpoints.iter();
        endpoints
            .map(|one| {
                format!(
                    "{} {:?} {:?}",
                    one.place(),
                    one.addresses.first().unwrap(),
                    one.level
                )
            })
            .collect()
    }

    #[test]
    fn a_container_is_reached_at_its_own_addresses_in_macvlan_and_routed_networks() {
        let socket = |protocol, at: &str| (protocol, at.parse().unwrap());
        let found = inner_listeners(&inventory(), |pid| {
            assert_eq!(pid, 7);
            Ok(BTreeSet::from([
                socket(Tcp, "0.0.0.0:80"),
                socket(Tcp, "[::]:8080"),
                socket(Udp, "10.5.0.2:53"),
                socket(Tcp, "172.17.0.2:9"),
            ]))
        });
        assert_eq!(found.notes, [""; 0], "fd00:17::/64 is not public");
        assert_eq!(
            places(&found),
            [
                "tcp/80 10.5.0.2 Network",
                "tcp/80 192.168.1.50 Network",
                "tcp/8080 10.5.0.2 Network",
                "tcp/8080 192.168.1.50 Network",
                "tcp/8080 2001:db8:17::2 World",
                "udp/53 10.5.0.2 Network",
            ]
        );
        let parents: Vec<_> = found
            .addresses
            .iter()
            .map(|own| own.parent.is_some())
            .collect();
        assert_eq!(parents, [false, true, false]);
    }

    #[test]
    fn if_its_sockets_cannot_be_read_the_ports_of_its_image_are_listed_with_a_note() {
        let found = inner_listeners(&inventory(), |_| Err("refused".to_owned()));
        assert_eq!(
            places(&found),
            [
                "tcp/80 10.5.0.2 Network",
                "tcp/80 192.168.1.50 Network",
                "tcp/80 2001:db8:17::2 World",
            ]
        );
        let [note] = found.notes.as_slice() else {
            panic!("{:?}", found.notes)
        };
        assert!(
            note.contains("camera") && note.contains("192.168.1.50"),
            "{note}"
        );
    }

    #[test]
    fn public_addresses_that_may_be_routed_are_named() {
        let mut inventory = inventory();
        for network in &mut inventory.networks {
            network.is_routed_ipv6 = false;
        }
        let found = inner_listeners(&inventory, |_| {
            Ok(BTreeSet::from([(Tcp, "[::]:80".parse().unwrap())]))
        });
        let [note] = found.notes.as_slice() else {
            panic!("{:?}", found.notes)
        };
        assert!(note.contains("2001:db8:17::/64 (public)"), "{note}");
        assert_eq!(found.endpoints.len(), 2, "{:?}", places(&found));
    }

    #[test]
    fn the_sockets_of_a_process_are_read() {
        let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let inner = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = listeners_of(std::process::id()).unwrap();
        assert!(
            found.contains(&(Tcp, listener.local_addr().unwrap())),
            "{found:?}"
        );
        assert!(
            !found.contains(&(Tcp, inner.local_addr().unwrap())),
            "{found:?}"
        );
    }
}
