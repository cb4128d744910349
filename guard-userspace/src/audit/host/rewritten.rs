//! Endpoints made by rules that rewrite the destination, before any socket receives the packet. Rules of Docker and
//! Podman that a container's publication explains are left out.

use std::{collections::BTreeSet, net::IpAddr, ops::RangeInclusive};

use guard_common::{address::Family, layout::PortProtocol};
use serde::Serialize;

use super::{
    endpoint::{EVERYWHERE, Endpoint, FoundOnHost, Level, Setting, level_of},
    inner::container_at,
    owner::Owner,
    role,
    sockets::Socket,
};
use crate::{
    docker::{Container, SwarmServices},
    host::{NatHook, NatRule, NatTarget},
};

/// A rule that rewrites the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rewrite {
    /// Such as `10.0.0.2:80`.
    pub to: String,
    /// The chain that has the rule, such as `ip nat PREROUTING`.
    pub chain: String,
    /// The only sources that the rule matches.
    pub from: Option<String>,
    /// The rule matches only packets that this host sends.
    pub outgoing: bool,
}

/// Docker's chain for ports that Swarm publishes.
const OF_SWARM: &str = "DOCKER-INGRESS";

/// Every port. Zero is not a port.
const ALL_PORTS: RangeInclusive<u16> = 1..=u16::MAX;

/// The endpoints that these rules make.
pub fn rewritten(
    rules: &[NatRule],
    found: &FoundOnHost<'_>,
    setting: &Setting<'_>,
) -> Vec<Endpoint> {
    let mut endpoints: Vec<Endpoint> = Vec::new();
    let incoming = |rule: &&NatRule| rule.hook == NatHook::Prerouting;
    // A rule for packets that this host sends is an endpoint of its own only if no incoming rule does the same.
    let is_for_host = |rule: &&NatRule| {
        let also = rules.iter().filter(incoming);
        let mut also = also.map(|other| (&other.protocol, &other.ports, &other.to));
        rule.hook == NatHook::Output
            && !also.any(|other| other == (&rule.protocol, &rule.ports, &rule.to))
    };
    let all = rules.iter().filter(incoming);
    for rule in all.chain(rules.iter().filter(is_for_host)) {
        for protocol in protocols(rule) {
            let ports = rule.ports.clone().unwrap_or(ALL_PORTS);
            if *ports.end() == 0 || is_explained(rule, protocol, &ports, found) {
                continue;
            }
            let template = endpoint(rule, protocol, *ports.start(), found, setting);
            let first = *ports.start();
            endpoints.extend(ports.filter(|port| *port != 0).map(|port| {
                Endpoint {
                    ports: port..=port,
                    inside: template
                        .inside
                        .and_then(|inside| inside.checked_add(port - first)),
                    ..template.clone()
                }
            }));
        }
    }
    endpoints
}

/// A rule for every protocol counts for TCP and UDP.
fn protocols(rule: &NatRule) -> Vec<PortProtocol> {
    match rule.protocol {
        Some(protocol) => vec![protocol],
        None => vec![PortProtocol::Tcp, PortProtocol::Udp],
    }
}

/// Whether a container or a service of the Swarm publishes these ports, so that they are listed already.
fn is_explained(
    rule: &NatRule,
    protocol: PortProtocol,
    ports: &RangeInclusive<u16>,
    found: &FoundOnHost<'_>,
) -> bool {
    if is_of_swarm(rule)
        && let SwarmServices::Known(services) = found.swarm
    {
        let mut services = services.iter();
        return services.any(|one| {
            one.protocol == protocol
                && ports.start() == ports.end()
                && one.published == *ports.start()
        });
    }
    let NatTarget::Address { address, .. } = rule.to else {
        return false;
    };
    let container = container_at(found.inventory, address);
    container.is_some_and(|container| {
        let mut publications = container.publishes.iter();
        publications.any(|one| {
            let published = one.ports();
            one.protocol == protocol
                && published.contains(ports.start())
                && published.contains(ports.end())
        })
    })
}

fn is_of_swarm(rule: &NatRule) -> bool {
    rule.chain.ends_with(OF_SWARM)
}

fn endpoint(
    rule: &NatRule,
    protocol: PortProtocol,
    port: u16,
    found: &FoundOnHost<'_>,
    setting: &Setting<'_>,
) -> Endpoint {
    let addresses = addresses(rule, setting);
    let levels = addresses
        .iter()
        .map(|address| level_of(*address, setting.networks));
    let level = narrowed(levels.min().unwrap_or(Level::World), rule, setting);
    let rewrite = Rewrite {
        to: rule.to.to_string(),
        chain: rule.chain.clone(),
        from: rule.source.map(|net| net.to_string()),
        outgoing: rule.hook == NatHook::Output,
    };
    let (owner, inside) = owner(rule, protocol, port, found);
    let role = match container_of(rule, found) {
        Some(container) => role::of_container(container, protocol, port, inside.unwrap_or(port)),
        None => role::of_socket(protocol, port, &owner),
    };
    Endpoint {
        interface: rule.interface.clone(),
        inside,
        role: role.filter(|_| owner.kind != "nat"),
        ..Endpoint::new(
            protocol,
            port,
            addresses,
            level,
            Owner {
                rewrite: Some(rewrite),
                ..owner
            },
        )
    }
}

fn container_of<'a>(rule: &NatRule, found: &'a FoundOnHost<'_>) -> Option<&'a Container> {
    match rule.to {
        NatTarget::Address { address, .. } => container_at(found.inventory, address),
        _ => None,
    }
}

/// The destinations of packets that the rule matches.
fn addresses(rule: &NatRule, setting: &Setting<'_>) -> BTreeSet<IpAddr> {
    let of_target = match rule.to {
        NatTarget::Address { address, .. } => Some(family_of(address)),
        _ => None,
    };
    let Some(net) = rule.destination.filter(|net| net.prefix_len() > 0) else {
        let family = rule.family.or(of_target);
        let is_of_family = |every: &IpAddr| family.is_none_or(|family| family == family_of(*every));
        return EVERYWHERE.into_iter().filter(is_of_family).collect();
    };
    if net.prefix_len() == net.max_prefix_len() {
        return BTreeSet::from([net.addr()]);
    }
    let own: BTreeSet<IpAddr> = setting
        .own
        .iter()
        .copied()
        .filter(|own| net.contains(own))
        .collect();
    match own.is_empty() {
        true => BTreeSet::from([net.network()]),
        false => own,
    }
}

const fn family_of(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::Ipv4,
        IpAddr::V6(_) => Family::Ipv6,
    }
}

/// Narrows the level of a rule that matches only some sources, or an interface that does not lead to the world.
fn narrowed(level: Level, rule: &NatRule, setting: &Setting<'_>) -> Level {
    let is_for_some = rule.source.is_some_and(|net| net.prefix_len() > 0);
    let by = rule.interface.as_deref().map(setting.leads_out);
    match (rule.hook, by) {
        (NatHook::Output, _) | (_, Some(Some(Level::Localhost))) => Level::Localhost,
        (_, Some(Some(Level::Network))) => level.max(Level::Network),
        (_, Some(Some(Level::Containers))) => level.max(Level::Containers),
        _ if is_for_some => level.max(Level::Network),
        _ => level,
    }
}

/// The owner behind a rule, and the first port inside its container.
fn owner(
    rule: &NatRule,
    protocol: PortProtocol,
    port: u16,
    found: &FoundOnHost<'_>,
) -> (Owner, Option<u16>) {
    let unknown = |kind| Owner {
        kind,
        ..Owner::default()
    };
    match &rule.to {
        NatTarget::Address { ports, .. } => {
            let inside = ports.as_ref().map_or(port, |ports| *ports.start());
            match container_of(rule, found) {
                Some(container) => (Owner::of_container(container), Some(inside)),
                None if is_of_swarm(rule) => (unknown("swarm"), None),
                None => (unknown("nat"), None),
            }
        }
        NatTarget::ThisHost { ports } => {
            let inside = ports.as_ref().map_or(port, |ports| *ports.start());
            let listens = |socket: &&Socket| {
                let at = socket.local;
                socket.protocol == protocol && at.port() == inside && !at.ip().is_loopback()
            };
            let socket = found.sockets.iter().find(listens);
            let owner = socket.map(|socket| {
                let holders = found.holders.by_inode.get(&socket.inode.into());
                let holders = holders.map_or(&[][..], Vec::as_slice);
                Owner::of_socket(socket, holders, found.inventory)
            });
            (owner.unwrap_or_else(|| unknown("nat")), None)
        }
        NatTarget::Other(_) => (unknown("nat"), None),
    }
}

/// The ports that Swarm's services publish on every node.
pub fn of_swarm(swarm: &SwarmServices) -> Vec<Endpoint> {
    let SwarmServices::Known(publications) = swarm else {
        return Vec::new();
    };
    let endpoints = publications.iter().map(|one| {
        let owner = Owner {
            kind: "swarm",
            service: Some(one.service.clone()),
            ..Owner::default()
        };
        // Docker has rules for published Swarm ports in IPv4 only.
        let every = BTreeSet::from([EVERYWHERE[0]]);
        Endpoint {
            inside: Some(one.target),
            ..Endpoint::new(one.protocol, one.published, every, Level::World, owner)
        }
    });
    endpoints.collect()
}
