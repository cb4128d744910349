//! Recognises endpoints that are meant to be reached from outside: the reverse proxy and SSH.

use guard_common::layout::PortProtocol;
use serde::Serialize;

use super::owner::Owner;
use crate::{
    audit::compose::proxies::{PROXIES, PROXY_NAMES, WEB, WEB_SERVERS, image_name},
    docker::{Container, TITLE},
};

/// The purpose of an endpoint, if it is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Ssh,
    /// The web, by a reverse proxy.
    Proxy,
}

const PROXY_PROCESSES: [&str; 9] = [
    "nginx",
    "caddy",
    "traefik",
    "haproxy",
    "envoy",
    "apache2",
    "httpd",
    "openresty",
    "angie",
];

const SSH_PROCESSES: [&str; 2] = ["sshd", "dropbear"];
const SSH_PORT: u16 = 22;

/// systemd holds the sockets of units that start with the first connection.
pub const SYSTEMD: &str = "systemd";

/// The processes that forward a published port to its container, or reserve the port: Docker's, Podman's, and those of
/// rootless daemons.
const PUBLISHERS: [&str; 9] = [
    "docker-proxy",
    "dockerd",
    "rootlesskit",
    "rootlessport",
    "slirp4netns",
    "pasta",
    "pasta.avx2",
    "conmon",
    "netavark",
];

/// Docker's daemon, which reserves ports that Swarm publishes, and has ports of its own.
pub const DOCKERD: &str = "dockerd";

/// Whether a process listens on behalf of a container.
pub fn publishes(process: &str) -> bool {
    PUBLISHERS.contains(&process)
}

/// Whether a process has no ports but those of containers.
pub fn forwards(process: &str) -> bool {
    publishes(process) && process != DOCKERD
}

/// A proxy's other ports, such as that of its dashboard, have no role: they are not meant for every source.
pub fn of_container(
    container: &Container,
    protocol: PortProtocol,
    port: u16,
    inside: u16,
) -> Option<Role> {
    let is_web = is_web(protocol, port) || is_web(protocol, inside);
    (is_web && is_proxy(container)).then_some(Role::Proxy)
}

/// HTTP/3 uses UDP.
fn is_web(protocol: PortProtocol, port: u16) -> bool {
    protocol != PortProtocol::Sctp && WEB.contains(&port)
}

fn is_proxy(container: &Container) -> bool {
    let image = image_name(&container.image);
    let title = container
        .labels
        .get(TITLE)
        .map(|title| title.to_lowercase());
    let names = [Some(image), title.as_deref()];
    let is_image = names
        .into_iter()
        .flatten()
        .any(|name| PROXIES.contains(&name) || WEB_SERVERS.contains(&name));
    let service = container.compose().map(|(_, service)| service);
    is_image || service.is_some_and(|service| PROXY_NAMES.contains(&service))
}

pub fn of_socket(protocol: PortProtocol, port: u16, owner: &Owner) -> Option<Role> {
    let is_any_of = |names: &[&str]| {
        let mut processes = owner.processes.iter();
        processes.any(|process| names.contains(&process.as_str()))
    };
    let is_unnamed = owner.processes.iter().all(|process| process == SYSTEMD);
    let is_tcp = protocol == PortProtocol::Tcp;
    if is_tcp && (is_any_of(&SSH_PROCESSES) || (port == SSH_PORT && is_unnamed)) {
        return Some(Role::Ssh);
    }
    (is_web(protocol, port) && is_any_of(&PROXY_PROCESSES)).then_some(Role::Proxy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use PortProtocol::{Tcp, Udp};

    fn container(image: &str, labels: &[(&str, &str)]) -> Container {
        let labels = labels.iter();
        Container {
            image: image.to_owned(),
            labels: labels
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            ..Container::default()
        }
    }

    #[test]
    fn a_proxy_is_recognised_by_its_image_its_labels_and_its_ports() {
        let built = [
            ("com.docker.compose.project", "shop"),
            ("com.docker.compose.service", "proxy"),
        ];
        for (image, labels) in [
            ("traefik:v3", &[][..]),
            ("docker.io/library/nginx:1.27@sha256:0123", &[]),
            ("registry.example:5000/own/caddy", &[]),
            ("haproxy", &[]),
            ("0123456789ab", &[(TITLE, "Traefik")]),
            ("shop-proxy", &built),
        ] {
            let proxy = container(image, labels);
            for (protocol, port, inside, role) in [
                (Tcp, 443, 8443, Some(Role::Proxy)),
                (Udp, 443, 443, Some(Role::Proxy)),
                (Tcp, 8080, 80, Some(Role::Proxy)),
                (Tcp, 8080, 8080, None),
            ] {
                let found = of_container(&proxy, protocol, port, inside);
                assert_eq!(found, role, "{image} {port}:{inside}");
            }
        }
        let other = container("registry.example:5000/nginx/app", &[(TITLE, "app")]);
        assert_eq!(of_container(&other, Tcp, 443, 443), None);
    }

    #[test]
    fn ssh_is_recognised_by_its_process_or_else_by_its_port() {
        let owner = |processes: &[&str]| Owner {
            processes: processes.iter().map(|name| (*name).to_owned()).collect(),
            ..Owner::default()
        };
        for (port, processes, role) in [
            (2222, &["sshd"][..], Some(Role::Ssh)),
            (22, &["dropbear"], Some(Role::Ssh)),
            (22, &["systemd"], Some(Role::Ssh)),
            (22, &["sshd", "systemd"], Some(Role::Ssh)),
            (22, &[], Some(Role::Ssh)),
            (22, &["honeypot"], None),
            (2222, &["systemd"], None),
            (80, &["nginx"], Some(Role::Proxy)),
            (8080, &["nginx"], None),
        ] {
            assert_eq!(
                of_socket(Tcp, port, &owner(processes)),
                role,
                "{port} {processes:?}"
            );
        }
        assert_eq!(of_socket(Udp, 22, &owner(&[])), None);
    }
}
