//! What to change, in the words of the compose file and of the policy.

use guard_common::{exposure::Scope, layout::PortProtocol};

use super::{
    Audited,
    endpoint::{Endpoint, range},
    judge::NOT_ITS_INTERFACE,
    role::publishes,
};
use crate::policy::untrusted;

/// What would end what is to be said of an endpoint: one of them is enough.
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
    let mut changes = Vec::new();
    if !finding && !is_for_all && !is_loose {
        return changes;
    }
    // What is there to be reached is not taken away.
    if endpoint.role.is_none() {
        changes.extend(nearer(endpoint));
    }
    let mut fates = audited.policy.iter();
    if fates.any(|decision| decision.why == Some(NOT_ITS_INTERFACE)) {
        changes.push("name its interface in `interfaces` of the policy".to_owned());
        return changes;
    }
    let place = endpoint.place();
    changes.push(match endpoint.role {
        _ if is_for_all => format!(
            "write in the policy whom {place} is for: `from`, instead of \"any\""
        ),
        Some(_) => format!("list it in a service of the policy: ports = [\"{place}\"]"),
        None => format!(
            "if others are meant to reach it, list it in the policy, with `from`: ports = [\"{place}\"]"
        ),
    });
    let is_of_host = endpoint.inside.is_none() && endpoint.role.is_none();
    if is_unlisted && is_of_host && scope == Some(Scope::Containers) {
        changes.push("close it in the policy: scope = \"host\"".to_owned());
    }
    changes
}

/// How to show the endpoint to this host or its containers alone.
fn nearer(endpoint: &Endpoint) -> Vec<String> {
    let Endpoint {
        owner,
        inside,
        ports,
        ..
    } = endpoint;
    let first = ports.start();
    match inside {
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
            "take `network_mode: host` away, and publish what is needed: ports: \
             [\"127.0.0.1:{first}:{first}{}\"]",
            suffix(endpoint)
        )],
        None if owner.processes.iter().any(|name| publishes(name)) => {
            vec!["if only this host reaches it, write 127.0.0.1: before the port where it is published".to_owned()]
        }
        None => {
            let name = owner.processes.iter().next();
            let name = name.map_or_else(
                || "the service".to_owned(),
                |name| untrusted::name(name, 64),
            );
            vec![format!(
                "if only this host reaches it, bind {name} to 127.0.0.1"
            )]
        }
    }
}

/// As `ports` of a compose file has it: `8000:80`, `5353:53/udp`, `8002-8004:8002-8004`.
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
        let endpoint = Endpoint {
            protocol,
            ports: first..=last,
            addresses: BTreeSet::from(["0.0.0.0".parse().unwrap()]),
            interface: None,
            level: Level::World,
            owner: Owner::default(),
            inside,
            role: None,
            may_be_client: false,
        };
        Audited {
            finding: true,
            ..Audited::new(endpoint, None)
        }
    }

    #[test]
    fn a_published_port_is_changed_in_the_words_of_the_compose_file() {
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
    fn what_is_there_to_be_reached_is_only_listed() {
        let mut ssh = audited(PortProtocol::Tcp, 22, 22, None);
        ssh.endpoint.role = Some(Role::Ssh);
        let changes = changes(&ssh, Some(Scope::Containers));
        assert_eq!(
            changes,
            ["list it in a service of the policy: ports = [\"tcp/22\"]"]
        );
    }

    #[test]
    fn what_is_no_finding_needs_no_change() {
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
