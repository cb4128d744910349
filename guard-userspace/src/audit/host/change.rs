//! Proposes changes to an endpoint, in the words of the compose file and of the policy.

use guard_common::{exposure::Scope, layout::PortProtocol};

use super::{
    Audited,
    endpoint::{Endpoint, range},
    judge::{NOT_ITS_INTERFACE, OUT_OF_SCOPE},
    rewritten::Rewrite,
    role::{DOCKERD, SYSTEMD, forwards},
};
use crate::policy::untrusted;

/// The changes that would settle a finding or a warning: one of them is enough.
pub fn changes(audited: &Audited, scope: Option<Scope>) -> Vec<String> {
    let Audited {
        endpoint,
        finding,
        danger,
        ..
    } = audited;
    let is_for_all = danger.is_some() && audited.is_open_to_any();
    let is_unlisted = audited
        .policy
        .iter()
        .all(|decision| decision.service.is_none());
    let is_loose = danger.is_some() && is_unlisted;
    if endpoint.neighbours.is_some() {
        return against_neighbours(endpoint);
    }
    let mut changes = Vec::new();
    if !finding && !is_for_all && !is_loose {
        return changes;
    }
    // An SSH server or a reverse proxy must stay reachable.
    if endpoint.role.is_none() {
        changes.extend(narrower_binding(endpoint));
    }
    let mut fates = audited.policy.iter();
    if fates.any(|decision| decision.why == Some(NOT_ITS_INTERFACE)) {
        changes.push("name its interface in `interfaces` of the policy".to_owned());
        return changes;
    }
    let place = endpoint.place();
    changes.push(match endpoint.role {
        _ if is_for_all => format!(
            "restrict the sources of {place} in the policy: write `from` with prefixes instead of \"any\""
        ),
        Some(_) => format!("list it in a service of the policy: ports = [\"{place}\"]"),
        None => format!(
            "if others are meant to reach it, list it in the policy, with `from`: ports = [\"{place}\"]"
        ),
    });
    let mut fates = audited.policy.iter();
    let is_out_of_scope = fates.any(|decision| decision.why == Some(OUT_OF_SCOPE));
    let may_close = is_out_of_scope && endpoint.role.is_none();
    if is_unlisted && may_close && scope == Some(Scope::Containers) {
        changes.push("close it in the policy: scope = \"host\"".to_owned());
    }
    changes
}

/// How to make the endpoint reachable from this host or its containers only.
fn narrower_binding(endpoint: &Endpoint) -> Vec<String> {
    let Endpoint {
        owner,
        inside,
        ports,
        own_address,
        ..
    } = endpoint;
    let first = ports.start();
    if let Some(Rewrite { chain, .. }) = &owner.rewrite {
        return vec![format!(
            "if not every source should reach it, remove the rule from {chain}, or let it match only the intended \
             interface or sources"
        )];
    }
    if *own_address {
        let mapping = format!("{first}:{first}{}", suffix(endpoint));
        return vec![format!(
            "if only this host reaches it, put the container into a bridge network, with ports: \
             [\"127.0.0.1:{mapping}\"]"
        )];
    }
    match inside {
        _ if owner.kind == "swarm" => {
            let service = owner.service.as_deref().unwrap_or("SERVICE");
            let service = untrusted::name(service, 64);
            vec![format!(
                "if only other services reach it: docker service update --publish-rm {first} {service}"
            )]
        }
        Some(inside) => {
            let mapping = mapping(endpoint, *inside);
            let exposed = range(*inside, ports.len());
            vec![
                format!(
                    "if only this host reaches it, such as a proxy that runs on it: ports: \
                     [\"127.0.0.1:{mapping}\"] instead of \"{mapping}\""
                ),
                format!(
                    "if only other containers reach it: expose: [\"{exposed}\"], and no `ports`"
                ),
            ]
        }
        None if owner.host_network => vec![format!(
            "remove `network_mode: host`, and publish only the needed ports: ports: \
             [\"127.0.0.1:{first}:{first}{}\"]",
            suffix(endpoint)
        )],
        None if owner.kind == "kernel" => Vec::new(),
        None => of_process(endpoint).into_iter().collect(),
    }
}

/// The change to the configuration of the process that listens.
fn of_process(endpoint: &Endpoint) -> Option<String> {
    let Endpoint {
        owner, protocol, ..
    } = endpoint;
    let port = *endpoint.ports.start();
    if owner.processes.iter().any(|name| forwards(name)) {
        let change =
            "if only this host reaches it, write 127.0.0.1: before the port where it is published";
        return Some(change.to_owned());
    }
    let is = |name: &str| owner.processes.contains(name);
    // The kernel's socket of VXLAN has no process.
    let is_vxlan = *protocol == PortProtocol::Udp && port == VXLAN && owner.processes.is_empty();
    Some(match (protocol, port) {
        _ if is_vxlan => {
            "list the port in the policy, only for the other nodes of the overlay network".to_owned()
        }
        (_, DOCKER_SWARM | DOCKER_SWARM_NODES) if is(DOCKERD) => {
            "if this host should not be in a Swarm: docker swarm leave --force; else list the port in the policy, \
             only for the other nodes"
                .to_owned()
        }
        (PortProtocol::Tcp, _) if is(DOCKERD) => {
            format!(
                "if it is Docker's API, remove tcp://…:{port} from `hosts` in /etc/docker/daemon.json or from \
                 dockerd's -H, and connect over SSH: DOCKER_HOST=ssh://…"
            )
        }
        _ if is(SYSTEMD) => {
            format!("if only this host reaches it, write 127.0.0.1:{port} in its systemd socket unit")
        }
        _ => {
            let name = owner.processes.iter().next();
            let name = name.map_or_else(
                || "the service".to_owned(),
                |name| untrusted::name(name, 64),
            );
            format!("if only this host reaches it, bind {name} to 127.0.0.1")
        }
    })
}

/// Docker Swarm's ports: of its managers, and of its nodes among themselves.
const DOCKER_SWARM: u16 = 2377;
const DOCKER_SWARM_NODES: u16 = 7946;

/// The port of overlay networks (RFC 7348).
const VXLAN: u16 = 4789;

/// The changes that keep neighbours from a loopback address.
fn against_neighbours(endpoint: &Endpoint) -> Vec<String> {
    let is_published = endpoint.owner.container.is_some() && endpoint.owner.rewrite.is_none();
    let mut changes = vec![
        "guard the interface: in every scope, guard drops packets to 127.0.0.0/8 there".to_owned(),
    ];
    if is_published {
        changes.push("update Docker to version 28 or later".to_owned());
    }
    changes
}

/// An item of `ports` in a compose file: `8000:80`, `5353:53/udp`, `8002-8004:8002-8004`.
fn mapping(endpoint: &Endpoint, inside: u16) -> String {
    let ports = &endpoint.ports;
    let outside = range(*ports.start(), ports.len());
    format!(
        "{outside}:{}{}",
        range(inside, ports.len()),
        suffix(endpoint)
    )
}

fn suffix(endpoint: &Endpoint) -> String {
    match endpoint.protocol {
        PortProtocol::Tcp => String::new(),
        protocol => format!("/{}", protocol.name()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::audit::host::{Level, Owner, Role};

    fn audited(protocol: PortProtocol, first: u16, last: u16, inside: Option<u16>) -> Audited {
        let addresses = BTreeSet::from(["0.0.0.0".parse().unwrap()]);
        let owner = Owner::default();
        let endpoint = Endpoint {
            ports: first..=last,
            inside,
            ..Endpoint::new(protocol, first, addresses, Level::World, owner)
        };
        Audited {
            finding: true,
            ..Audited::new(endpoint, None)
        }
    }

    #[test]
    fn changes_to_a_published_port_are_in_the_words_of_the_compose_file() {
        use PortProtocol::{Tcp, Udp};
        for (audited, ports, expose) in [
            (
                audited(Tcp, 8000, 8000, Some(80)),
                "127.0.0.1:8000:80",
                "\"80\"",
            ),
            (
                audited(Udp, 5353, 5353, Some(53)),
                "127.0.0.1:5353:53/udp",
                "\"53\"",
            ),
            (
                audited(Tcp, 8002, 8004, Some(9002)),
                "127.0.0.1:8002-8004:9002-9004",
                "\"9002-9004\"",
            ),
        ] {
            let changes = changes(&audited, Some(Scope::Containers));
            assert!(
                changes[0].contains(&format!("ports: [\"{ports}\"]")),
                "{changes:?}"
            );
            assert!(
                changes[1].contains(&format!("expose: [{expose}]")),
                "{changes:?}"
            );
            assert!(
                !changes.iter().any(|change| change.contains("scope")),
                "{changes:?}"
            );
        }
    }

    #[test]
    fn an_endpoint_with_a_role_is_only_listed() {
        let mut ssh = audited(PortProtocol::Tcp, 22, 22, None);
        ssh.endpoint.role = Some(Role::Ssh);
        let changes = changes(&ssh, Some(Scope::Containers));
        assert_eq!(
            changes,
            ["list it in a service of the policy: ports = [\"tcp/22\"]"]
        );
    }

    #[test]
    fn the_change_fits_the_process() {
        let first = |port: u16, process: &str| {
            let mut audited = audited(PortProtocol::Tcp, port, port, None);
            audited.endpoint.owner = Owner {
                kind: if process.is_empty() {
                    "kernel"
                } else {
                    "process"
                },
                processes: Some(process.to_owned())
                    .filter(|name| !name.is_empty())
                    .into_iter()
                    .collect(),
                ..Owner::default()
            };
            changes(&audited, Some(Scope::Containers)).remove(0)
        };
        for (port, process, words) in [
            (2377, "dockerd", "docker swarm leave"),
            (7946, "dockerd", "docker swarm leave"),
            (2375, "dockerd", "daemon.json"),
            (8080, "docker-proxy", "where it is published"),
            (8080, "rootlessport", "where it is published"),
            (9090, "systemd", "systemd socket"),
            (3306, "mysqld", "bind mysqld to 127.0.0.1"),
            (2049, "", "list it in the policy"),
        ] {
            let change = first(port, process);
            assert!(change.contains(words), "{port} {process}: {change}");
        }
    }

    #[test]
    fn a_rule_a_swarm_service_and_an_own_address_are_changed_at_their_origin() {
        let with = |change: &dyn Fn(&mut Endpoint)| {
            let mut audited = audited(PortProtocol::Tcp, 25, 25, Some(25));
            change(&mut audited.endpoint);
            changes(&audited, Some(Scope::Containers)).remove(0)
        };
        let rule = with(&|endpoint| {
            endpoint.owner.rewrite = Some(Rewrite {
                to: "10.0.0.2:25".to_owned(),
                chain: "ip nat PREROUTING".to_owned(),
                from: None,
                outgoing: false,
            });
        });
        assert!(rule.contains("from ip nat PREROUTING"), "{rule}");
        let swarm = with(&|endpoint| {
            endpoint.owner.kind = "swarm";
            endpoint.owner.service = Some("mail".to_owned());
        });
        assert!(swarm.contains("--publish-rm 25 mail"), "{swarm}");
        let own = with(&|endpoint| endpoint.own_address = true);
        assert!(own.contains("bridge network"), "{own}");
    }

    #[test]
    fn an_endpoint_without_finding_or_danger_needs_no_change() {
        let settled = Audited {
            finding: false,
            ..audited(PortProtocol::Tcp, 8000, 8000, Some(80))
        };
        assert!(changes(&settled, None).is_empty());
        let dangerous = Audited {
            finding: false,
            ..audited(PortProtocol::Tcp, 6379, 6379, None)
        };
        assert!(!changes(&dangerous, None).is_empty(), "on some network");
    }
}
