//! Tests whether neighbours reach an endpoint that has only loopback addresses.
//!
//! A neighbour on the same network can send a packet to 127.0.0.1 at this host's link-layer address. The kernel
//! drops it when it looks up the route (`ip_route_input_slow()` in net/ipv4/route.c), unless `route_localnet` is
//! set for the interface. A rule that rewrites destinations applies before that: Docker before version 28 and
//! Podman have such rules for ports published on 127.0.0.1 (moby issues 41872 and 45610). For ::1 there is no such
//! case: the kernel drops packets to it that arrive on a link (RFC 4291, 2.5.3; `ip6_rcv_core()`) before any rule.

use std::net::IpAddr;

use serde::Serialize;

use super::endpoint::{Endpoint, Level};
use crate::{
    docker::DaemonFacts,
    host::{NatHook, NatRules, Sysctls},
};

/// The neighbours that reach a loopback address, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Neighbours {
    /// The interfaces whose networks the neighbours are on.
    pub interfaces: Vec<String>,
    pub why: String,
}

/// An interface that leads outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutsideLink {
    pub name: String,
    /// A guard drops packets to loopback addresses there.
    pub drops_martians: bool,
}

/// The facts that decide whether neighbours reach a loopback address.
pub struct LoopbackFacts<'a> {
    pub outside: &'a [OutsideLink],
    /// `None`: the sysctls cannot be read.
    pub sysctls: Option<&'a Sysctls>,
    /// `None`: the rules cannot be read.
    pub nat: Option<&'a NatRules>,
    /// `None`: no daemon answers.
    pub daemon: Option<&'a DaemonFacts>,
}

/// From this version on, Docker drops packets from outside to a port published on a loopback address.
const DROPPED_FROM: u32 = 28;

/// The neighbours that reach an endpoint with only loopback addresses. `None`: only this host reaches it.
pub fn neighbours(endpoint: &Endpoint, facts: &LoopbackFacts<'_>) -> Option<Neighbours> {
    let is_ipv4 = |address: &IpAddr| address.is_ipv4() && address.is_loopback();
    if endpoint.level != Level::Localhost || !endpoint.addresses.iter().any(is_ipv4) {
        return None;
    }
    let outside = facts.outside.iter().filter(|link| !link.drops_martians);
    let outside: Vec<&str> = outside.map(|link| link.name.as_str()).collect();
    if outside.is_empty() {
        return None;
    }
    let is_published = endpoint.inside.is_some() && endpoint.owner.container.is_some();
    if is_published && facts.daemon.is_some_and(drops_itself) {
        return None;
    }
    by_rules(endpoint, &outside, facts).or_else(|| by_route(&outside, facts))
}

fn by_rules(
    endpoint: &Endpoint,
    outside: &[&str],
    facts: &LoopbackFacts<'_>,
) -> Option<Neighbours> {
    let rewrite = endpoint.owner.rewrite.as_ref();
    let is_rule = rewrite.is_some_and(|rewrite| !rewrite.outgoing);
    let is_container = endpoint.owner.container.is_some() && rewrite.is_none();
    let is_published = endpoint.inside.is_some() && is_container;
    let is_led_on = is_published && is_rewritten(endpoint, facts.nat);
    if !is_rule && !is_led_on {
        return None;
    }
    let why = match facts.daemon {
        _ if is_rule => "a rule forwards packets from outside for 127.0.0.1".to_owned(),
        Some(DaemonFacts {
            is_podman: true, ..
        }) => "Podman forwards packets from outside for 127.0.0.1".to_owned(),
        Some(DaemonFacts {
            release: Some(release),
            ..
        }) => format!(
            "Docker {release} forwards packets from outside for 127.0.0.1; version {DROPPED_FROM} and later drop them"
        ),
        _ => format!(
            "Docker before version {DROPPED_FROM} and Podman forward packets from outside for 127.0.0.1"
        ),
    };
    Some(to(outside, why))
}

/// Whether a rule implements a publication, and not only a process. If the rules are not known, it counts as a rule.
fn is_rewritten(endpoint: &Endpoint, nat: Option<&NatRules>) -> bool {
    let Some(nat) = nat else {
        return true;
    };
    let mut incoming = nat
        .rules
        .iter()
        .filter(|rule| rule.hook == NatHook::Prerouting);
    incoming.any(|rule| {
        let is_of = |protocol| protocol == endpoint.protocol;
        let has_port = rule
            .ports
            .as_ref()
            .is_none_or(|ports| ports.contains(endpoint.ports.start()));
        let mut addresses = endpoint.addresses.iter();
        let is_at = addresses.any(|address| {
            let net = rule.destination;
            net.is_none_or(|net| net.contains(address))
        });
        rule.protocol.is_none_or(is_of) && has_port && is_at
    })
}

fn drops_itself(daemon: &DaemonFacts) -> bool {
    let release = daemon.release.as_deref().unwrap_or_default();
    let major = release
        .split('.')
        .next()
        .and_then(|major| major.parse::<u32>().ok());
    !daemon.is_podman && major.is_some_and(|major| major >= DROPPED_FROM)
}

fn by_route(outside: &[&str], facts: &LoopbackFacts<'_>) -> Option<Neighbours> {
    let Some(sysctls) = facts.sysctls else {
        return Some(to(
            outside,
            "`route_localnet` cannot be read, and may be set".to_owned(),
        ));
    };
    let open: Vec<&str> = outside
        .iter()
        .copied()
        .filter(|name| sysctls.routes_localnet(name))
        .collect();
    (!open.is_empty()).then(|| {
        to(
            &open,
            "net.ipv4.conf.*.route_localnet is 1 there".to_owned(),
        )
    })
}

fn to(interfaces: &[&str], why: String) -> Neighbours {
    Neighbours {
        interfaces: interfaces.iter().map(|name| (*name).to_owned()).collect(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use guard_common::layout::PortProtocol;

    use super::*;
    use crate::{
        audit::host::{Owner, rewritten::Rewrite},
        host::{NatRule, NatTarget},
    };

    fn endpoint(address: &str, is_published: bool) -> Endpoint {
        let owner = Owner {
            kind: if is_published { "container" } else { "process" },
            container: is_published.then(|| "shop".to_owned()),
            ..Owner::default()
        };
        let addresses = BTreeSet::from([address.parse().unwrap()]);
        Endpoint {
            inside: is_published.then_some(80),
            ..Endpoint::new(PortProtocol::Tcp, 8080, addresses, Level::Localhost, owner)
        }
    }

    fn docker(release: &str) -> DaemonFacts {
        DaemonFacts {
            release: Some(release.to_owned()),
            ..DaemonFacts::default()
        }
    }

    fn podman() -> DaemonFacts {
        DaemonFacts {
            is_podman: true,
            ..docker("5.4.2")
        }
    }

    /// The rule of a Docker before version 28: `-A DOCKER -d 127.0.0.1/32 ! -i docker0 -p tcp --dport 8080 -j DNAT …`.
    fn rules(port: u16) -> NatRules {
        NatRules {
            rules: vec![NatRule {
                hook: NatHook::Prerouting,
                family: None,
                protocol: Some(PortProtocol::Tcp),
                ports: Some(port..=port),
                destination: Some("127.0.0.1/32".parse().unwrap()),
                source: None,
                interface: None,
                to: NatTarget::Address {
                    address: "172.17.0.2".parse().unwrap(),
                    ports: Some(80..=80),
                },
                chain: "ip nat DOCKER".to_owned(),
            }],
            is_partial: false,
        }
    }

    /// The interfaces whose neighbours reach the endpoint, of `eth0` and `eth1`.
    fn reached(
        endpoint: &Endpoint,
        daemon: Option<&DaemonFacts>,
        nat: Option<&NatRules>,
        route_localnet: &[&str],
        guarded: &[&str],
    ) -> Vec<String> {
        let outside = ["eth0", "eth1"].map(|name| OutsideLink {
            name: name.to_owned(),
            drops_martians: guarded.contains(&name),
        });
        let sysctls = Sysctls {
            accept_local: BTreeSet::new(),
            local_ports: 32_768..=60_999,
            route_localnet: route_localnet.iter().map(|&name| name.to_owned()).collect(),
        };
        let facts = LoopbackFacts {
            outside: &outside,
            sysctls: Some(&sysctls),
            nat,
            daemon,
        };
        let found = neighbours(endpoint, &facts);
        found.map_or_else(Vec::new, |found| found.interfaces)
    }

    #[test]
    fn a_publication_on_loopback_is_for_this_host_alone_if_docker_or_a_guard_drops_the_rest() {
        let published = endpoint("127.0.0.1", true);
        let none: [&str; 0] = [];
        let both = ["eth0", "eth1"];
        for (daemon, interfaces) in [
            (docker("20.10.24+dfsg1"), &both[..]),
            (docker("27.5.1"), &both),
            (docker("28.0.0-rc.1"), &none),
            (docker("28.5.1"), &none),
            (docker("29.1.0"), &none),
            (docker("dev"), &both),
            (podman(), &both),
        ] {
            // The rules apply before the route lookup: `route_localnet` changes nothing.
            for localnet in [&none[..], &["eth0"]] {
                let found = reached(&published, Some(&daemon), Some(&rules(8080)), localnet, &[]);
                let expected = match (interfaces.is_empty(), localnet.is_empty()) {
                    (true, false) => &["eth0"][..],
                    _ => interfaces,
                };
                // Docker 28 and later drop the packets, whether a rule or `route_localnet` would let them in.
                let expected = if drops_itself(&daemon) {
                    &none
                } else {
                    expected
                };
                assert_eq!(found, expected, "{daemon:?} {localnet:?}");
            }
            let found = reached(&published, Some(&daemon), None, &[], &["eth1"]);
            let unguarded = interfaces.iter().filter(|name| **name == "eth0");
            assert_eq!(found, unguarded.copied().collect::<Vec<_>>(), "{daemon:?}");
            let found = reached(&published, Some(&daemon), None, &[], &["eth0", "eth1"]);
            assert_eq!(found, none, "{daemon:?}");
        }
        assert_eq!(reached(&published, None, None, &[], &[]), both);
        // No rule matches the port: only a proxy process listens, as with a rootless daemon.
        let found = reached(
            &published,
            Some(&docker("20.10.24")),
            Some(&rules(9)),
            &[],
            &[],
        );
        assert_eq!(found, none);
        let found = reached(&published, Some(&podman()), Some(&rules(9)), &["eth1"], &[]);
        assert_eq!(found, ["eth1"]);
    }

    #[test]
    fn a_process_on_loopback_is_reached_if_route_localnet_is_set() {
        let process = endpoint("127.0.0.53", false);
        let found = |localnet: &[&str], guarded: &[&str]| {
            reached(
                &process,
                Some(&docker("20.10.24")),
                Some(&rules(8080)),
                localnet,
                guarded,
            )
        };
        assert_eq!(found(&[], &[]), [""; 0]);
        assert_eq!(found(&["default", "docker0"], &[]), [""; 0]);
        assert_eq!(found(&["eth1"], &[]), ["eth1"]);
        assert_eq!(found(&["all"], &[]), ["eth0", "eth1"]);
        assert_eq!(found(&["all"], &["eth0"]), ["eth1"]);
        assert_eq!(found(&["all"], &["eth0", "eth1"]), [""; 0]);
    }

    #[test]
    fn no_neighbour_reaches_an_ipv6_loopback_address() {
        for is_published in [true, false] {
            let found = reached(
                &endpoint("::1", is_published),
                Some(&docker("20.10.24")),
                None,
                &["all"],
                &[],
            );
            assert_eq!(found, [""; 0]);
        }
    }

    #[test]
    fn a_rule_of_other_software_forwards_packets_for_loopback() {
        let with = |outgoing| {
            let mut endpoint = endpoint("127.0.0.1", false);
            endpoint.owner.rewrite = Some(Rewrite {
                to: "10.0.0.2:80".to_owned(),
                chain: "ip nat PREROUTING".to_owned(),
                from: None,
                outgoing,
            });
            reached(&endpoint, Some(&docker("28.5.1")), None, &[], &[])
        };
        assert_eq!(with(false), ["eth0", "eth1"]);
        assert_eq!(with(true), [""; 0]);
    }

    #[test]
    fn an_endpoint_that_is_not_on_loopback_gets_no_neighbours() {
        let mut open = endpoint("127.0.0.1", true);
        open.level = Level::World;
        assert_eq!(reached(&open, None, None, &["all"], &[]), [""; 0]);
    }
}
