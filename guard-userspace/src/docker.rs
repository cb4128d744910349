//! What containers publish, asked from Docker over its API (Docker and Podman's compatible socket).

use std::{net::IpAddr, time::Duration};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    models::{ContainerSummary, PortSummary, PortSummaryTypeEnum},
    query_parameters::ListContainersOptions,
};
use guard_common::layout::PortProtocol;
use tokio::time::timeout;

use crate::policy::{PublishedFamily, PublishedPort};

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

/// The host ports that running containers publish on addresses that others can reach, sorted.
pub async fn published_ports(socket: &str) -> Result<Vec<PublishedPort>, DockerError> {
    let containers = timeout(PATIENCE, list_containers(socket))
        .await
        .map_err(|_| DockerError::Hung {
            socket: socket.to_owned(),
        })?
        .map_err(|error| DockerError::Api {
            socket: socket.to_owned(),
            error,
        })?;
    let mut published: Vec<PublishedPort> = containers
        .into_iter()
        .flat_map(|container| container.ports.unwrap_or_default())
        .flat_map(|port| reachable(&port))
        .collect();
    published.sort_unstable();
    published.dedup();
    Ok(published)
}

async fn list_containers(socket: &str) -> Result<Vec<ContainerSummary>, bollard::errors::Error> {
    let docker = Docker::connect_with_unix(socket, PATIENCE.as_secs(), API_DEFAULT_VERSION)?
        .negotiate_version()
        .await?;
    docker.list_containers(None::<ListContainersOptions>).await
}

/// Nothing for a port that is not published, or only on a loopback address.
fn reachable(port: &PortSummary) -> Vec<PublishedPort> {
    let protocol = match port.typ {
        Some(PortSummaryTypeEnum::TCP) => PortProtocol::Tcp,
        Some(PortSummaryTypeEnum::UDP) => PortProtocol::Udp,
        Some(PortSummaryTypeEnum::SCTP | PortSummaryTypeEnum::EMPTY) | None => return Vec::new(),
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
