//! Endpoints: ports of this host that receive packets, with their addresses and owners.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use guard_common::layout::PortProtocol;
use serde::{Serialize, Serializer, ser::SerializeStruct as _};

use super::{
    loopback::Neighbours,
    owner::Owner,
    rewritten::{of_swarm, rewritten},
    role,
    role::Role,
    sockets::{Holder, Holders, Socket},
};
use crate::{
    audit::compose::address::is_of_network,
    docker::{Container, Inventory, Publication, SwarmServices},
    host::NatRule,
    policy::ContainerNetwork,
};

/// How far away the hosts are that can reach an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// On every address of the host, or on a public one.
    World,
    /// Only on private, unique local, link-local or multicast addresses.
    Network,
    /// Only from this host.
    Localhost,
    /// Only from the network of the containers.
    Containers,
}

/// Consecutive ports of one owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub protocol: PortProtocol,
    pub ports: RangeInclusive<u16>,
    /// The unspecified address: every address of its family. Empty: those of the container.
    pub addresses: BTreeSet<IpAddr>,
    /// The only interface that it receives from.
    pub interface: Option<String>,
    pub level: Level,
    pub owner: Owner,
    /// The first of the ports inside the container.
    pub inside: Option<u16>,
    pub role: Option<Role>,
    /// It may be the local end of a query by this host.
    pub may_be_client: bool,
    /// Its address is the container's own, not the host's.
    pub own_address: bool,
    /// The neighbours that reach it although its address is a loopback one.
    pub neighbours: Option<Neighbours>,
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self {
            protocol,
            ports,
            addresses,
            interface,
            level,
            owner,
            inside,
            role,
            may_be_client,
            own_address,
            neighbours,
        } = self;
        let mut object = serializer.serialize_struct("Endpoint", 12)?;
        object.serialize_field("protocol", protocol.name())?;
        object.serialize_field("port", ports.start())?;
        object.serialize_field("last_port", ports.end())?;
        object.serialize_field("addresses", addresses)?;
        object.serialize_field("interface", interface)?;
        object.serialize_field("level", level)?;
        object.serialize_field("owner", owner)?;
        object.serialize_field("container_port", inside)?;
        object.serialize_field("role", role)?;
        object.serialize_field("may_be_client", may_be_client)?;
        object.serialize_field("own_address", own_address)?;
        object.serialize_field("neighbours", neighbours)?;
        object.end()
    }
}

impl Endpoint {
    /// An endpoint of one port, without optional facts.
    pub fn new(
        protocol: PortProtocol,
        port: u16,
        addresses: BTreeSet<IpAddr>,
        level: Level,
        owner: Owner,
    ) -> Self {
        Self {
            protocol,
            ports: port..=port,
            addresses,
            interface: None,
            level,
            owner,
            inside: None,
            role: None,
            may_be_client: false,
            own_address: false,
            neighbours: None,
        }
    }

    /// The ports in the policy's notation: `tcp/8000`, `udp/8002-8004`.
    pub fn place(&self) -> String {
        let ports = range(*self.ports.start(), self.ports.len());
        format!("{}/{ports}", self.protocol.name())
    }

    /// Whether the other endpoint begins at the next port and is otherwise equal.
    pub fn continues(&self, next: &Self) -> bool {
        let joins = self.ports.end().checked_add(1) == Some(*next.ports.start());
        let inside = |endpoint: &Self| {
            endpoint
                .inside
                .map(|inside| i32::from(inside) - i32::from(*endpoint.ports.start()))
        };
        joins
            && inside(self) == inside(next)
            && Self {
                ports: next.ports.clone(),
                inside: next.inside,
                ..self.clone()
            } == *next
    }
}

/// `8000`, or `8002-8004` for three ports.
pub fn range(first: u16, count: usize) -> String {
    match count {
        0 | 1 => first.to_string(),
        count => format!("{first}-{}", usize::from(first) + count - 1),
    }
}

/// Joins each item to the earlier one that it continues.
pub fn joined<T>(
    all: impl IntoIterator<Item = T>,
    continues: impl Fn(&T, &T) -> bool,
    ports: impl Fn(&mut T) -> &mut RangeInclusive<u16>,
) -> Vec<T> {
    let mut joined: Vec<T> = Vec::new();
    for mut next in all {
        let mut before = joined.iter_mut().rev();
        match before.find(|before| continues(before, &next)) {
            Some(before) => {
                let end = *ports(&mut next).end();
                let range = ports(before);
                *range = *range.start()..=end;
            }
            None => joined.push(next),
        }
    }
    joined
}

/// The addresses, networks and interfaces of this host.
pub struct Setting<'a> {
    pub networks: &'a [ContainerNetwork],
    /// The name of an interface by its index, and whether it leads to the world.
    pub interface: &'a dyn Fn(u32) -> (String, bool),
    /// How far away the hosts are that can send to an interface, by its name. `None`: it is not known.
    pub leads_out: &'a dyn Fn(&str) -> Option<Level>,
    pub local_ports: &'a RangeInclusive<u16>,
    /// The addresses of this host.
    pub own: &'a [IpAddr],
}

/// The containers, sockets and rules of this host.
pub struct FoundOnHost<'a> {
    pub inventory: &'a Inventory,
    pub swarm: &'a SwarmServices,
    pub sockets: &'a [Socket],
    pub holders: &'a Holders,
    pub nat: &'a [NatRule],
    /// The endpoints of containers with addresses of their own.
    pub inner: Vec<Endpoint>,
}

/// The endpoints of containers, Swarm services, rules and sockets, sorted by level, protocol and port.
pub fn endpoints(mut found_on_host: FoundOnHost<'_>, setting: &Setting<'_>) -> Vec<Endpoint> {
    let inner = std::mem::take(&mut found_on_host.inner);
    let FoundOnHost {
        inventory,
        swarm,
        sockets,
        holders,
        nat,
        inner: _,
    } = &found_on_host;
    let running = inventory.containers.values();
    let running = running.filter(|container| container.running);
    let mut found: Vec<Endpoint> = running
        .flat_map(|container| of_container(container, setting))
        .collect();
    found.extend(of_swarm(swarm));
    found.extend(rewritten(nat, &found_on_host, setting));
    let mut published: BTreeMap<(PortProtocol, u16), BTreeSet<IpAddr>> = BTreeMap::new();
    for endpoint in found
        .iter()
        .filter(|endpoint| !endpoint.addresses.is_empty())
    {
        let key = (endpoint.protocol, *endpoint.ports.start());
        let addresses = published.entry(key).or_default();
        addresses.extend(&endpoint.addresses);
    }
    found.extend(inner);
    for socket in *sockets {
        let holders = holders.by_inode.get(&socket.inode.into());
        let holders = holders.map_or(&[][..], Vec::as_slice);
        let publishes = holders.iter().all(|holder| role::publishes(&holder.name));
        let at = published.get(&(socket.protocol, socket.local.port()));
        // If the processes are not known, the address decides whether the socket belongs to the publication.
        let own = socket.local.ip();
        let covers = |at: &IpAddr| {
            let is_wide = at.is_ipv4() == own.is_ipv4() || own.is_unspecified();
            *at == own || at.is_unspecified() && is_wide
        };
        let is_there = |at: &BTreeSet<IpAddr>| !holders.is_empty() || at.iter().any(covers);
        if publishes && at.is_some_and(is_there) {
            continue;
        }
        found.push(of_socket(socket, holders, inventory, setting));
    }
    merged(found)
}

/// The ports that a container publishes, and those that it only exposes to its network.
fn of_container(container: &Container, setting: &Setting<'_>) -> Vec<Endpoint> {
    if container.on_host_network {
        return Vec::new();
    }
    let owner = Owner::of_container(container);
    let endpoint = |protocol, port, inside, addresses: BTreeSet<IpAddr>, level| Endpoint {
        inside: Some(inside),
        role: role::of_container(container, protocol, port, inside),
        ..Endpoint::new(protocol, port, addresses, level, owner.clone())
    };
    let mut by_inside: BTreeMap<(u16, PortProtocol), Vec<&Publication>> = BTreeMap::new();
    for publication in &container.publishes {
        let key = (publication.inside, publication.protocol);
        by_inside.entry(key).or_default().push(publication);
    }
    let mut endpoints = Vec::new();
    for ((inside, protocol), all) in &by_inside {
        for publication in all.iter().filter(|one| !is_superseded(one, all)) {
            let addresses = addresses_of(publication.address);
            let level = level(&addresses, setting.networks);
            let ports = publication.ports();
            let at = |port| endpoint(*protocol, port, *inside, addresses.clone(), level);
            endpoints.extend(ports.map(at));
        }
    }
    let unpublished = container
        .exposes
        .iter()
        .filter(|key| !by_inside.contains_key(key));
    endpoints.extend(unpublished.map(|(inside, protocol)| {
        endpoint(
            *protocol,
            *inside,
            *inside,
            BTreeSet::new(),
            Level::Containers,
        )
    }));
    endpoints
}

/// Whether another publication is Docker's actual result for the requested one. `all` lead to the same port inside.
fn is_superseded(asked: &Publication, all: &[&Publication]) -> bool {
    let mut others = all.iter().filter(|other| **other != asked);
    others.any(|given| {
        let is_chosen = given.first == given.last && asked.ports().contains(&given.first);
        let was_open = asked.address.is_none() && given.address.is_some();
        is_chosen && (was_open || asked.first != asked.last)
    })
}

fn addresses_of(address: Option<IpAddr>) -> BTreeSet<IpAddr> {
    match address {
        Some(address) => BTreeSet::from([address]),
        None => BTreeSet::from(EVERYWHERE),
    }
}

/// Every address of both families.
pub const EVERYWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    IpAddr::V6(Ipv6Addr::UNSPECIFIED),
];

fn of_socket(
    socket: &Socket,
    holders: &[Holder],
    inventory: &Inventory,
    setting: &Setting<'_>,
) -> Endpoint {
    let Socket {
        protocol,
        local,
        v6_only,
        interface,
        inode: _,
        uid: _,
    } = socket;
    let addresses = match local.ip() {
        IpAddr::V6(own) if own.is_unspecified() && !v6_only => BTreeSet::from(EVERYWHERE),
        own => BTreeSet::from([own]),
    };
    let level = level(&addresses, setting.networks);
    let bound = (*interface != 0).then(|| (setting.interface)(*interface));
    let level = match &bound {
        Some((name, _)) if name == LOOPBACK => Level::Localhost,
        Some((_, false)) if level == Level::World => Level::Network,
        _ => level,
    };
    let port = local.port();
    let owner = Owner::of_socket(socket, holders, inventory);
    let is_of_client = setting.local_ports.contains(&port) || CLIENT_PORTS.contains(&port);
    Endpoint {
        interface: bound.map(|(name, _)| name),
        role: role::of_socket(*protocol, port, &owner),
        may_be_client: *protocol == PortProtocol::Udp && is_of_client,
        ..Endpoint::new(*protocol, port, addresses, level, owner)
    }
}

const LOOPBACK: &str = "lo";

/// The client ports of DHCP (RFC 2131) and DHCPv6 (RFC 8415).
const CLIENT_PORTS: [u16; 2] = [68, 546];

/// Merges endpoints with the same port, owner and level, in order.
fn merged(mut found: Vec<Endpoint>) -> Vec<Endpoint> {
    let order = |endpoint: &Endpoint| (endpoint.level, endpoint.protocol, *endpoint.ports.start());
    found.sort_by_key(order);
    let mut merged: Vec<Endpoint> = Vec::new();
    for endpoint in found {
        let others = merged.iter_mut().rev();
        let mut others = others.take_while(|other| order(other) == order(&endpoint));
        match others.find(|other| is_of_same(other, &endpoint)) {
            Some(other) => {
                other.addresses.extend(endpoint.addresses);
                other.owner.pids.extend(endpoint.owner.pids);
            }
            None => merged.push(endpoint),
        }
    }
    merged
}

/// Whether two endpoints are equal except for their addresses and process ids.
fn is_of_same(one: &Endpoint, other: &Endpoint) -> bool {
    let Endpoint {
        addresses, owner, ..
    } = other;
    let alike = Endpoint {
        addresses: addresses.clone(),
        owner: Owner {
            pids: owner.pids.clone(),
            ..one.owner.clone()
        },
        ..one.clone()
    };
    alike == *other
}

/// The widest level of these addresses.
fn level(addresses: &BTreeSet<IpAddr>, networks: &[ContainerNetwork]) -> Level {
    let levels = addresses.iter().map(|address| level_of(*address, networks));
    levels.min().unwrap_or(Level::Containers)
}

pub fn level_of(address: IpAddr, networks: &[ContainerNetwork]) -> Level {
    if address.is_unspecified() {
        Level::World
    } else if address.is_loopback() {
        Level::Localhost
    } else if networks
        .iter()
        .any(|network| network.prefix.contains(&address))
    {
        Level::Containers
    } else if is_of_network(address) {
        Level::Network
    } else {
        Level::World
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use guard_common::exposure::NetworkKind;

    use super::*;
    use crate::{
        docker::SwarmPublication,
        host::{NatHook, NatTarget},
    };
    use PortProtocol::{Tcp, Udp};

    fn networks() -> Vec<ContainerNetwork> {
        vec![ContainerNetwork {
            prefix: "172.17.0.0/16".parse().unwrap(),
            kind: NetworkKind::Masqueraded,
        }]
    }

    fn found(containers: &[Container], sockets: &[Socket], holders: &Holders) -> Vec<Endpoint> {
        let numbered = (0..).zip(containers);
        let inventory = Inventory {
            containers: numbered
                .map(|(n, container): (u8, _)| (format!("{n:064x}"), container.clone()))
                .collect(),
            ..Inventory::default()
        };
        found_with(&inventory, &SwarmServices::Apart, &[], sockets, holders)
    }

    fn found_with(
        inventory: &Inventory,
        swarm: &SwarmServices,
        nat: &[NatRule],
        sockets: &[Socket],
        holders: &Holders,
    ) -> Vec<Endpoint> {
        let setting = Setting {
            networks: &networks(),
            interface: &|index| match index {
                1 => ("lo".to_owned(), false),
                2 => ("eth0".to_owned(), true),
                _ => ("br0".to_owned(), false),
            },
            leads_out: &|name| match name {
                "lo" => Some(Level::Localhost),
                "eth0" => Some(Level::World),
                "wg0" => Some(Level::Network),
                "docker0" => Some(Level::Containers),
                _ => None,
            },
            local_ports: &(32_768..=60_999),
            own: &["203.0.113.10".parse().unwrap()],
        };
        let found = FoundOnHost {
            inventory,
            swarm,
            sockets,
            holders,
            nat,
            inner: Vec::new(),
        };
        endpoints(found, &setting)
    }

    fn container(publishes: &[(Option<&str>, u16, u16, u16)]) -> Container {
        let publishes = publishes.iter();
        Container {
            name: "shop".to_owned(),
            running: true,
            publishes: publishes
                .map(|(address, first, last, inside)| Publication {
                    protocol: Tcp,
                    address: address.map(|address| address.parse().unwrap()),
                    first: *first,
                    last: *last,
                    inside: *inside,
                })
                .collect(),
            ..Container::default()
        }
    }

    fn socket(protocol: PortProtocol, local: &str) -> Socket {
        Socket {
            protocol,
            local: local.parse().unwrap(),
            v6_only: false,
            interface: 0,
            inode: 7,
            uid: 0,
        }
    }

    fn held_by(name: &str, container: Option<String>) -> Holders {
        let holder = Holder {
            pid: 12,
            name: name.to_owned(),
            container,
        };
        Holders {
            by_inode: HashMap::from([(7, vec![holder])]),
            complete: true,
        }
    }

    fn addresses(endpoint: &Endpoint) -> Vec<String> {
        endpoint.addresses.iter().map(IpAddr::to_string).collect()
    }

    #[test]
    fn how_far_an_address_is_reached() {
        for (address, expected) in [
            ("0.0.0.0", Level::World),
            ("::", Level::World),
            ("203.0.113.10", Level::World),
            ("2001:db8::1", Level::World),
            ("10.1.2.3", Level::Network),
            ("192.168.1.1", Level::Network),
            ("169.254.1.1", Level::Network),
            ("100.64.0.1", Level::Network),
            ("fd00::1", Level::Network),
            ("fe80::1", Level::Network),
            ("224.0.0.251", Level::Network),
            ("ff02::fb", Level::Network),
            ("127.0.0.53", Level::Localhost),
            ("::1", Level::Localhost),
            ("172.17.0.1", Level::Containers),
        ] {
            let level = level_of(address.parse().unwrap(), &networks());
            assert_eq!(level, expected, "{address}");
        }
    }

    #[test]
    fn a_given_publication_supersedes_the_requested_one() {
        let asked_and_given = container(&[
            (None, 8000, 8000, 80),
            (Some("0.0.0.0"), 8000, 8000, 80),
            (None, 9000, 9010, 90),
            (Some("0.0.0.0"), 9003, 9003, 90),
            (Some("::"), 9003, 9003, 90),
            (None, 7000, 7000, 70),
        ]);
        let found = found(&[asked_and_given], &[], &Holders::default());
        let places: Vec<_> = found
            .iter()
            .map(|one| (one.place(), addresses(one)))
            .collect();
        let every = vec!["0.0.0.0".to_owned(), "::".to_owned()];
        assert_eq!(
            places,
            [
                ("tcp/7000".to_owned(), every.clone()),
                ("tcp/8000".to_owned(), vec!["0.0.0.0".to_owned()]),
                ("tcp/9003".to_owned(), every),
            ]
        );
    }

    #[test]
    fn a_publishing_process_is_no_endpoint_of_its_own() {
        let shop = [container(&[(None, 8000, 8000, 80)])];
        let sockets = [socket(Tcp, "0.0.0.0:8000"), socket(Tcp, "[::]:8000")];
        for holders in [held_by("docker-proxy", None), Holders::default()] {
            let found = found(&shop, &sockets, &holders);
            let owners: Vec<_> = found.iter().map(|one| one.owner.kind).collect();
            assert_eq!(owners, ["container"]);
        }
        let found = found(&shop, &sockets[..1], &held_by("nginx", None));
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn the_address_decides_about_a_listener_whose_process_is_not_known() {
        let shop = [container(&[(Some("127.0.0.1"), 8000, 8000, 80)])];
        let sockets = ["127.0.0.1:8000", "203.0.113.10:8000"].map(|at| socket(Tcp, at));
        let found = found(&shop, &sockets, &Holders::default());
        let owners: Vec<_> = found
            .iter()
            .map(|one| (one.level, one.owner.kind))
            .collect();
        assert_eq!(
            owners,
            [(Level::World, "unknown"), (Level::Localhost, "container")]
        );
    }

    #[test]
    fn a_stopped_container_has_no_endpoint() {
        let mut stopped = container(&[(None, 8000, 8000, 80)]);
        stopped.running = false;
        assert_eq!(found(&[stopped], &[], &Holders::default()), []);
    }

    #[test]
    fn a_listener_in_a_containers_control_group_is_the_containers() {
        let host = Container {
            on_host_network: true,
            ..container(&[])
        };
        let sockets = [socket(Tcp, "0.0.0.0:80")];
        let known = found(
            &[host],
            &sockets,
            &held_by("app", Some(format!("{:064x}", 0))),
        );
        let Owner {
            container,
            host_network,
            ..
        } = &known[0].owner;
        assert_eq!((container.as_deref(), *host_network), (Some("shop"), true));
        let unknown = found(&[], &sockets, &held_by("app", Some("f".repeat(64))));
        assert_eq!(unknown[0].owner.container.as_deref(), Some("ffffffffffff"));
    }

    #[test]
    fn the_level_of_a_socket_follows_its_address_family_and_interface() {
        let on = |interface| Socket {
            interface,
            ..socket(Udp, "0.0.0.0:68")
        };
        let v6_only = Socket {
            v6_only: true,
            ..socket(Tcp, "[::]:22")
        };
        for (socket, level, count, client) in [
            (socket(Tcp, "[::]:22"), Level::World, 2, false),
            (v6_only, Level::World, 1, false),
            (socket(Tcp, "0.0.0.0:40000"), Level::World, 1, false),
            (socket(Udp, "0.0.0.0:40000"), Level::World, 1, true),
            (socket(Udp, "[fd00::1]:53"), Level::Network, 1, false),
            (on(1), Level::Localhost, 1, true),
            (on(2), Level::World, 1, true),
            (on(3), Level::Network, 1, true),
        ] {
            let found = found(&[], std::slice::from_ref(&socket), &held_by("server", None));
            let [one] = found.as_slice() else {
                panic!("{found:?}")
            };
            let facts = (one.level, one.addresses.len(), one.may_be_client);
            assert_eq!(facts, (level, count, client), "{socket:?}");
        }
    }

    /// A rule for incoming TCP.
    fn rule(
        ports: Option<RangeInclusive<u16>>,
        destination: Option<&str>,
        to: &str,
        chain: &str,
    ) -> NatRule {
        NatRule {
            hook: NatHook::Prerouting,
            family: None,
            protocol: Some(Tcp),
            ports,
            destination: destination.map(|net| net.parse().unwrap()),
            source: None,
            interface: None,
            to: match to.split_once(':') {
                Some(("this host", port)) => NatTarget::ThisHost {
                    ports: port.parse().ok().map(|port: u16| port..=port),
                },
                Some((address, port)) => NatTarget::Address {
                    address: address.parse().unwrap(),
                    ports: port.parse().ok().map(|port: u16| port..=port),
                },
                None => NatTarget::Other(to.to_owned()),
            },
            chain: chain.to_owned(),
        }
    }

    /// `tcp/25 world [0.0.0.0] nat 10.0.0.2:25`.
    fn described(endpoints: &[Endpoint]) -> Vec<String> {
        let all = endpoints.iter().map(|one| {
            let rewrite = one.owner.rewrite.as_ref();
            let to = rewrite.map_or("-", |rewrite| &rewrite.to);
            let container = one.owner.container.as_deref().unwrap_or(one.owner.kind);
            format!(
                "{} {:?} {:?} {container} {to}",
                one.place(),
                one.level,
                addresses(one)
            )
        });
        all.collect()
    }

    #[test]
    fn a_port_that_a_rule_redirects_is_an_endpoint_unless_a_container_publishes_it() {
        let mut shop = container(&[(None, 8000, 8000, 80), (Some("127.0.0.1"), 8001, 8001, 81)]);
        shop.addresses = BTreeSet::from(["172.17.0.2".parse().unwrap()]);
        let inventory = Inventory {
            containers: BTreeMap::from([("0".to_owned(), shop)]),
            ..Inventory::default()
        };
        let all = [
            // Docker's own rules, which the publications explain.
            rule(Some(8000..=8000), None, "172.17.0.2:80", "ip nat DOCKER"),
            rule(
                Some(8001..=8001),
                Some("127.0.0.1/32"),
                "172.17.0.2:81",
                "ip nat DOCKER",
            ),
            // A rule of other software, to the same container.
            rule(Some(9000..=9000), None, "172.17.0.2:80", "inet own in"),
            rule(Some(25..=26), None, "10.0.0.2:25", "ip nat PREROUTING"),
            rule(
                Some(53..=53),
                Some("203.0.113.0/24"),
                "10.0.0.3:",
                "ip nat PREROUTING",
            ),
            rule(
                Some(54..=54),
                Some("198.51.100.0/24"),
                "10.0.0.3:",
                "ip nat PREROUTING",
            ),
            rule(Some(22..=22), None, "this host:2222", "ip nat PREROUTING"),
            rule(Some(7..=7), None, "a map", "ip nat PREROUTING"),
        ];
        let sockets = [socket(Tcp, "0.0.0.0:2222")];
        let holders = held_by("sshd", None);
        let found = found_with(&inventory, &SwarmServices::Apart, &all, &sockets, &holders);
        assert_eq!(
            described(&found),
            [
                "tcp/7 World [\"0.0.0.0\", \"::\"] nat a map",
                "tcp/22 World [\"0.0.0.0\", \"::\"] process this host:2222",
                "tcp/25 World [\"0.0.0.0\"] nat 10.0.0.2:25",
                "tcp/26 World [\"0.0.0.0\"] nat 10.0.0.2:25",
                "tcp/53 World [\"203.0.113.10\"] nat 10.0.0.3",
                "tcp/54 World [\"198.51.100.0\"] nat 10.0.0.3",
                "tcp/2222 World [\"0.0.0.0\"] process -",
                "tcp/8000 World [\"0.0.0.0\", \"::\"] shop -",
                "tcp/9000 World [\"0.0.0.0\"] shop 172.17.0.2:80",
                "tcp/8001 Localhost [\"127.0.0.1\"] shop -",
            ]
        );
        // Without an answer from Docker, no publication explains its rules.
        let none = Inventory::default();
        let found = found_with(&none, &SwarmServices::Apart, &all[..2], &[], &holders);
        assert_eq!(
            described(&found),
            [
                "tcp/8000 World [\"0.0.0.0\"] nat 172.17.0.2:80",
                "tcp/8001 Localhost [\"127.0.0.1\"] nat 172.17.0.2:81",
            ]
        );
    }

    #[test]
    fn a_rule_for_some_is_not_for_the_world() {
        let base = rule(Some(25..=25), None, "10.0.0.2:25", "ip nat PREROUTING");
        let by = |name: &str| NatRule {
            interface: Some(name.to_owned()),
            ..base.clone()
        };
        let from = NatRule {
            source: Some("198.51.100.0/24".parse().unwrap()),
            ..base.clone()
        };
        let outgoing = NatRule {
            hook: NatHook::Output,
            ..base.clone()
        };
        for (rule, level) in [
            (base.clone(), Level::World),
            (by("eth0"), Level::World),
            (by("eth+"), Level::World),
            (by("wg0"), Level::Network),
            (by("docker0"), Level::Containers),
            (by("lo"), Level::Localhost),
            (from, Level::Network),
            (outgoing.clone(), Level::Localhost),
        ] {
            let none = Inventory::default();
            let rules = std::slice::from_ref(&rule);
            let found = found_with(
                &none,
                &SwarmServices::Apart,
                rules,
                &[],
                &Holders::default(),
            );
            assert_eq!(found.len(), 1, "{rule}");
            assert_eq!(found[0].level, level, "{rule}");
        }
        // A rule that does the same for outgoing packets adds no endpoint.
        let none = Inventory::default();
        let both = [base, outgoing];
        let found = found_with(
            &none,
            &SwarmServices::Apart,
            &both,
            &[],
            &Holders::default(),
        );
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn a_rule_for_all_ports_is_one_endpoint_in_the_end() {
        let all = [rule(None, None, "10.0.0.2:", "ip nat PREROUTING")];
        let none = Inventory::default();
        let found = found_with(&none, &SwarmServices::Apart, &all, &[], &Holders::default());
        let joined = joined(found, Endpoint::continues, |one| &mut one.ports);
        let places: Vec<String> = joined.iter().map(Endpoint::place).collect();
        assert_eq!(places, ["tcp/1-65535"]);
    }

    #[test]
    fn a_swarm_port_is_listed_once_and_dockerds_own_port_remains() {
        let services = SwarmServices::Known(vec![SwarmPublication {
            service: "web".to_owned(),
            protocol: Tcp,
            published: 8080,
            target: 80,
        }]);
        let ingress = |port: u16| {
            let chain = "ip nat DOCKER-INGRESS";
            rule(Some(port..=port), None, "172.18.0.2:8080", chain)
        };
        let sockets = [socket(Tcp, "[::]:8080"), socket(Tcp, "[::]:2377")];
        let holders = held_by("dockerd", None);
        let none = Inventory::default();
        let found = found_with(&none, &services, &[ingress(8080)], &sockets, &holders);
        assert_eq!(
            described(&found),
            [
                "tcp/2377 World [\"0.0.0.0\", \"::\"] process -",
                "tcp/8080 World [\"0.0.0.0\"] swarm -",
            ]
        );
        assert_eq!(found[1].owner.service.as_deref(), Some("web"));
        // A worker has the rules, but no list of services.
        let unknown = SwarmServices::Unknown("no manager".to_owned());
        let found = found_with(&none, &unknown, &[ingress(8080)], &sockets[..1], &holders);
        assert_eq!(
            described(&found),
            ["tcp/8080 World [\"0.0.0.0\"] swarm 172.18.0.2:8080"]
        );
    }

    #[test]
    fn consecutive_ports_join_and_others_do_not() {
        let shop = container(&[
            (None, 8002, 8002, 82),
            (None, 8003, 8003, 83),
            (None, 8004, 8004, 90),
        ]);
        let all = found(&[shop], &[], &Holders::default());
        let joined = joined(all, Endpoint::continues, |one| &mut one.ports);
        let places: BTreeMap<_, _> = joined.iter().map(|one| (one.place(), one.inside)).collect();
        let expected = [("tcp/8002-8003", Some(82)), ("tcp/8004", Some(90))];
        assert_eq!(
            places,
            expected
                .map(|(place, inside)| (place.to_owned(), inside))
                .into()
        );
    }
}
