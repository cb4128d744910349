//! Whether others reach what has a loopback address alone.
//!
//! A neighbour on the same network can send a packet to 127.0.0.1 at this host's link-layer address. The kernel
//! drops it where it looks up the route (`ip_route_input_slow()` in net/ipv4/route.c), unless `route_localnet` is
//! set for the interface. A rule that rewrites destinations comes before that: Docker before version 28 and
//! Podman have such rules for what is published on 127.0.0.1 (moby issues 41872 and 45610). To ::1 nothing comes
//! from a wire (RFC 4291, 2.5.3; `ip6_rcv_core()`), whatever the rules say.

use std::net::IpAddr;

use serde::Serialize;

use super::endpoint::{Endpoint, Level};
use crate::{
    docker::DaemonFacts,
    host::{NatHook, NatRules, Sysctls},
};

/// Who reaches a loopback address, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Neighbours {
    /// The interfaces whose networks they are on.
    pub interfaces: Vec<String>,
    pub why: String,
}

/// An interface that leads outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutsideLink {
    pub name: String,
    /// A guard drops there what is sent to a loopback address.
    pub drops_martians: bool,
}

/// What decides about loopback addresses.
pub struct LoopbackFacts<'a> {
    pub outside: &'a [OutsideLink],
    /// `None`: they cannot be read.
    pub sysctls: Option<&'a Sysctls>,
    /// `None`: they cannot be read.
    pub nat: Option<&'a NatRules>,
    /// `None`: no daemon answers.
    pub daemon: Option<&'a DaemonFacts>,
}

/// Docker drops what others send to a loopback publication from this version on.
const DROPPED_FROM: u32 = 28;

/// Who reaches an endpoint that is at loopback addresses alone; `None`: this host alone.
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
        _ if is_rule => "a rule leads on what is sent to 127.0.0.1 from outside".to_owned(),
        Some(DaemonFacts {
            is_podman: true, ..
        }) => "Podman leads on what is sent to 127.0.0.1 from outside".to_owned(),
        Some(DaemonFacts {
            release: Some(release),
            ..
        }) => format!(
            "Docker {release} leads on what is sent to 127.0.0.1 from outside; version {DROPPED_FROM} and later do \
             not"
        ),
        _ => format!(
            "Docker before version {DROPPED_FROM} and Podman lead on what is sent to 127.0.0.1 from outside"
        ),
    };
    Some(to(outside, why))
}

/// Whether a rule, and not a process alone, is behind a publication. If the rules are not known, it is.
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
            "whether `route_localnet` is set cannot be read".to_owned(),
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

    /// As Docker has it: `-A DOCKER -d 127.0.0.1/32 ! -i docker0 -p tcp --dport 8080 -j DNAT …`.
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

    /// The interfaces whose neighbours reach it, of `eth0`, which is not guarded, and `eth1`, which may be.
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
    fn a_publication_on_loopback_is_for_this_host_alone_where_docker_or_a_guard_sees_to_it() {
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
            // The rules come before the route: `route_localnet` changes nothing.
            for localnet in [&none[..], &["eth0"]] {
                let found = reached(&published, Some(&daemon), Some(&rules(8080)), localnet, &[]);
                let expected = match (interfaces.is_empty(), localnet.is_empty()) {
                    (true, false) => &["eth0"][..],
                    _ => interfaces,
                };
                // What Docker drops itself, it drops on every way.
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
        // No rule leads there: a proxy alone listens, as without root.
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
    fn a_process_on_loopback_is_reached_where_the_kernel_routes_there() {
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
    fn of_ipv6_nothing_on_loopback_comes_from_a_wire() {
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
    fn a_rule_of_somebody_else_leads_on_what_is_sent_to_loopback() {
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
    fn what_is_not_on_loopback_is_no_concern_of_this() {
        let mut open = endpoint("127.0.0.1", true);
        open.level = Level::World;
        assert_eq!(reached(&open, None, None, &["all"], &[]), [""; 0]);
    }
}
