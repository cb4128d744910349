//! What containers publish, asked from Docker over its API (Docker and Podman's compatible socket).

use std::{net::IpAddr, time::Duration};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    models::{Network, PortSummary, PortSummaryTypeEnum},
    query_parameters::{ListContainersOptions, ListNetworksOptions},
};
use guard_common::{exposure::NetworkKind, layout::PortProtocol};
use ipnet::IpNet;
use tokio::time::timeout;

use crate::policy::{ContainerNetwork, Containers, PublishedFamily, PublishedPort};

/// How long Docker may take to answer; one that hangs must not hold up the guard.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    #[error("Docker does not answer at {socket}: {error}")]
    Api {
        socket: String,
        error: bollard::errors::Error,
    },
    #[error("Docker at {socket} has not answered within {} s", PATIENCE.as_secs())]
    Hung { socket: String },
}

/// What is known of this host's containers: the ports that running ones publish on addresses that
/// others can reach, sorted, and the networks that they are in.
pub async fn containers(socket: &str) -> Result<Containers, DockerError> {
    timeout(PATIENCE, ask(socket))
        .await
        .map_err(|_| DockerError::Hung {
            socket: socket.to_owned(),
        })?
        .map_err(|error| DockerError::Api {
            socket: socket.to_owned(),
            error,
        })
}

async fn ask(socket: &str) -> Result<Containers, bollard::errors::Error> {
    let docker = Docker::connect_with_unix(socket, PATIENCE.as_secs(), API_DEFAULT_VERSION)?
        .negotiate_version()
        .await?;
    let containers = docker
        .list_containers(None::<ListContainersOptions>)
        .await?;
    let networks = docker.list_networks(None::<ListNetworksOptions>).await?;
    let mut published: Vec<PublishedPort> = containers
        .into_iter()
        .flat_map(|container| container.ports.unwrap_or_default())
        .flat_map(|port| reachable(&port))
        .collect();
    published.sort_unstable();
    published.dedup();
    Ok(Containers {
        published,
        networks: networks.iter().flat_map(container_networks).collect(),
    })
}

/// Only bridges: the addresses of a macvlan or ipvlan network are the uplink's own.
const BRIDGE: &str = "bridge";

/// Docker's switch for masquerading what a bridge's containers send over IPv4; on if not set.
const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";

/// Docker's switch for routing a bridge's IPv4 addresses instead (Docker 27).
const GATEWAY_MODE: &str = "com.docker.network.bridge.gateway_mode_ipv4";

fn container_networks(network: &Network) -> Vec<ContainerNetwork> {
    if network.driver.as_deref() != Some(BRIDGE) {
        return Vec::new();
    }
    let options = network.options.as_ref();
    let option = |name| options.and_then(|options| options.get(name));
    let masquerades = option(MASQUERADE).is_none_or(|value| value != "false")
        && option(GATEWAY_MODE).is_none_or(|value| value != "routed");
    let configs = network.ipam.as_ref().and_then(|ipam| ipam.config.as_ref());
    let subnets = configs.into_iter().flatten();
    subnets
        .filter_map(|config| config.subnet.as_deref()?.parse::<IpNet>().ok())
        .map(|prefix| ContainerNetwork {
            prefix: prefix.trunc(),
            // Whether IPv6 is masqueraded is an option of the daemon, which the API does not tell.
            kind: match prefix {
                IpNet::V4(_) if masquerades => NetworkKind::Masqueraded,
                IpNet::V4(_) | IpNet::V6(_) => NetworkKind::Routed,
            },
        })
        .collect()
}

/// Nothing for a port that is not published, or only on a loopback address.
fn reachable(port: &PortSummary) -> Vec<PublishedPort> {
    let protocol = match port.typ {
        Some(PortSummaryTypeEnum::TCP) => PortProtocol::Tcp,
        Some(PortSummaryTypeEnum::UDP) => PortProtocol::Udp,
        Some(PortSummaryTypeEnum::SCTP) => PortProtocol::Sctp,
        Some(PortSummaryTypeEnum::EMPTY) | None => return Vec::new(),
    };
    let families: &[PublishedFamily] = match port.ip.as_deref().map(str::parse::<IpAddr>) {
        Some(Ok(address)) if address.is_loopback() => &[],
        Some(Ok(IpAddr::V4(_))) => &[PublishedFamily::Ipv4],
        Some(Ok(IpAddr::V6(_))) => &[PublishedFamily::Ipv6],
        // Podman leaves the address out for "every address".
        Some(Err(_)) | None => &[PublishedFamily::Ipv4, PublishedFamily::Ipv6],
    };
    let published = |port| {
        families.iter().map(move |family| PublishedPort {
            protocol,
            port,
            family: *family,
        })
    };
    port.public_port.into_iter().flat_map(published).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(ip: &str, public_port: Option<u16>, typ: PortSummaryTypeEnum) -> PortSummary {
        PortSummary {
            ip: Some(ip.to_owned()),
            private_port: 80,
            public_port,
            typ: Some(typ),
        }
    }

    #[test]
    fn only_what_others_can_reach_counts_as_published() {
        let tcp = PortSummaryTypeEnum::TCP;
        for (address, family) in [
            ("0.0.0.0", PublishedFamily::Ipv4),
            ("203.0.113.5", PublishedFamily::Ipv4),
            ("::", PublishedFamily::Ipv6),
            ("2001:db8::5", PublishedFamily::Ipv6),
        ] {
            let published = PublishedPort {
                protocol: PortProtocol::Tcp,
                port: 8000,
                family,
            };
            let found = reachable(&port(address, Some(8000), tcp));
            assert_eq!(found, [published], "{address}");
        }
        let everywhere = reachable(&port("", Some(8000), tcp));
        assert_eq!(everywhere.len(), 2, "Podman's way to say every address");
        for address in ["127.0.0.1", "127.8.8.8", "::1"] {
            assert_eq!(reachable(&port(address, Some(8000), tcp)), []);
        }
        assert_eq!(reachable(&port("0.0.0.0", None, tcp)), [], "only exposed");
    }
}
