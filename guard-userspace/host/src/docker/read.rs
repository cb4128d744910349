//! Docker's answers, read into what the guard knows of containers.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    errors::Error,
    models::{
        ContainerInspectResponse, ContainerSummary, ContainerSummaryStateEnum, HostConfig, Network,
        PortBinding, PortMap, PortSummary, PortSummaryTypeEnum,
    },
    query_parameters::{
        InspectContainerOptions, ListContainersOptionsBuilder, ListNetworksOptions,
    },
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use guard_common::{exposure::NetworkKind, layout::PortProtocol};
use guard_policy::ContainerNetwork;
use ipnet::IpNet;
use tokio::time::timeout;

use super::{Container, DockerError, Inventory, PATIENCE, Publication};

/// How long Docker may take to answer for one container.
pub(super) const PATIENCE_FOR_ONE: Duration = Duration::from_secs(2);

/// How many containers are asked for at once.
const CONCURRENCY: usize = 16;

/// Asks once for everything.
pub async fn read(socket: &str) -> Result<Inventory, DockerError> {
    patient(socket, async {
        let docker = connect(socket).await?;
        let files = Files::find(&docker).await;
        inventory(&docker, &files, &Inventory::default()).await
    })
    .await
}

/// Which version answers.
pub async fn version(socket: &str) -> Result<String, DockerError> {
    patient(socket, async {
        let version = connect(socket).await?.version().await?;
        Ok(version.version.unwrap_or_else(|| "unknown".to_owned()))
    })
    .await
}

/// Docker has so long, and no longer.
pub(super) async fn patient<T>(
    socket: &str,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, DockerError> {
    match timeout(PATIENCE, answer).await {
        Ok(answer) => answer.map_err(|error| api_error(socket, &error)),
        Err(_) => Err(DockerError::Hung {
            socket: socket.to_owned(),
        }),
    }
}

pub(super) fn api_error(socket: &str, error: &Error) -> DockerError {
    DockerError::Api {
        socket: socket.to_owned(),
        error: error.to_string(),
    }
}

pub(super) async fn connect(socket: &str) -> Result<Docker, Error> {
    Docker::connect_with_unix(socket, PATIENCE.as_secs(), API_DEFAULT_VERSION)?
        .negotiate_version()
        .await
}

/// `known` is what was known before.
pub(super) async fn inventory(
    docker: &Docker,
    files: &Files,
    known: &Inventory,
) -> Result<Inventory, Error> {
    let all = ListContainersOptionsBuilder::default().all(true).build();
    let listed = docker.list_containers(Some(all)).await?;
    let asked = stream::iter(listed).map(async |listed| {
        let id = listed.id.clone().unwrap_or_default();
        let found = match timeout(PATIENCE_FOR_ONE, container(docker, &id)).await {
            Ok(found) => found?,
            // Docker holds it while it starts.
            Err(_) => Some(half_known(
                listed,
                known.containers.get(&id),
                files.publishes(&id),
            )),
        };
        Ok::<_, Error>(found.map(|container| (id, container)))
    });
    let containers: Vec<_> = asked.buffer_unordered(CONCURRENCY).try_collect().await?;
    Ok(Inventory {
        containers: containers.into_iter().flatten().collect(),
        networks: networks(docker).await?,
    })
}

/// A container that Docker only lists at this moment: whatever it may publish is published.
fn half_known(
    listed: ContainerSummary,
    known: Option<&Container>,
    configured: BTreeSet<Publication>,
) -> Container {
    let names = listed.names.unwrap_or_default();
    let name = names.first().map(|name| name.trim_start_matches('/'));
    let mut container = known.cloned().unwrap_or_else(|| Container {
        name: name.unwrap_or_default().to_owned(),
        image: listed.image.unwrap_or_default(),
        labels: listed.labels.unwrap_or_default().into_iter().collect(),
        ..Container::default()
    });
    container.running = listed.state == Some(ContainerSummaryStateEnum::RUNNING);
    container.publishes.extend(configured);
    let given = listed.ports.unwrap_or_default();
    container
        .publishes
        .extend(given.iter().filter_map(given_port));
    container
}

fn given_port(port: &PortSummary) -> Option<Publication> {
    let public = port.public_port?;
    Some(Publication {
        protocol: match port.typ? {
            PortSummaryTypeEnum::TCP => PortProtocol::Tcp,
            PortSummaryTypeEnum::UDP => PortProtocol::Udp,
            PortSummaryTypeEnum::SCTP => PortProtocol::Sctp,
            PortSummaryTypeEnum::EMPTY => return None,
        },
        address: port.ip.as_deref().and_then(|address| address.parse().ok()),
        first: public,
        last: public,
        inside: port.private_port,
    })
}

/// `None`: it is gone.
pub(super) async fn container(docker: &Docker, id: &str) -> Result<Option<Container>, Error> {
    let options = None::<InspectContainerOptions>;
    match docker.inspect_container(id, options).await {
        Ok(answer) => Ok(Some(to_container(answer))),
        Err(Error::DockerResponseServerError {
            status_code: 404, ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Docker's own files. Its API does not answer for a container while it starts, which is just when the
/// ports that it will publish must be known; they are written down when it is created.
pub(super) struct Files(Option<PathBuf>);

impl Files {
    /// Where they are, if Docker says so.
    pub(super) async fn find(docker: &Docker) -> Self {
        let root = docker
            .info()
            .await
            .ok()
            .and_then(|info| info.docker_root_dir);
        Self(root.map(|root| PathBuf::from(root).join("containers")))
    }

    /// The ports that a container is configured to publish. Nothing, if Docker keeps no such file or this
    /// process may not read it (Podman, a daemon without root).
    pub(super) fn publishes(&self, id: &str) -> BTreeSet<Publication> {
        let Self(Some(root)) = self else {
            return BTreeSet::new();
        };
        let text = fs::read(root.join(id).join("hostconfig.json")).unwrap_or_default();
        let host: HostConfig = serde_json::from_slice(&text).unwrap_or_default();
        configured(&host)
    }
}

/// What a container will publish when it is started.
fn configured(host: &HostConfig) -> BTreeSet<Publication> {
    let ports = host.port_bindings.as_ref();
    let ports = ports.filter(|_| host.network_mode.as_deref() != Some(HOST));
    ports.into_iter().flat_map(publications).collect()
}

pub(super) async fn networks(docker: &Docker) -> Result<Vec<ContainerNetwork>, Error> {
    let networks = docker.list_networks(None::<ListNetworksOptions>).await?;
    let mut networks: Vec<_> = networks.iter().flat_map(container_networks).collect();
    networks.sort_unstable_by_key(|network| network.prefix);
    networks.dedup();
    Ok(networks)
}

/// The mode of a container without a network of its own.
const HOST: &str = "host";

fn to_container(answer: ContainerInspectResponse) -> Container {
    let ContainerInspectResponse {
        name,
        config,
        host_config,
        network_settings,
        state,
        ..
    } = answer;
    let config = config.unwrap_or_default();
    let host = host_config.unwrap_or_default();
    let settings = network_settings.unwrap_or_default();
    // Its mode may be the network's number instead of the name.
    let networks = settings.networks.unwrap_or_default();
    let on_host_network = host.network_mode.as_deref() == Some(HOST) || networks.contains_key(HOST);
    let mut publishes = BTreeSet::new();
    if !on_host_network {
        publishes.extend(configured(&host));
        publishes.extend(settings.ports.iter().flat_map(publications));
    }
    let exposes = config.exposed_ports.unwrap_or_default();
    Container {
        name: name.unwrap_or_default().trim_start_matches('/').to_owned(),
        image: config.image.unwrap_or_default(),
        labels: config.labels.unwrap_or_default().into_iter().collect(),
        running: state.and_then(|state| state.running).unwrap_or_default(),
        on_host_network,
        publishes,
        exposes: exposes
            .iter()
            .filter_map(|port| parse_inside(port))
            .collect(),
    }
}

fn publications(ports: &PortMap) -> Vec<Publication> {
    let mut publications = Vec::new();
    for (inside, bindings) in ports {
        let Some((inside, protocol)) = parse_inside(inside) else {
            continue;
        };
        for PortBinding { host_ip, host_port } in bindings.iter().flatten() {
            // Left out, Docker chooses when the container starts.
            let Some((first, last)) = host_port.as_deref().and_then(parse_range) else {
                continue;
            };
            publications.push(Publication {
                protocol,
                // Docker and Podman leave it out for every address of both families.
                address: host_ip.as_deref().and_then(|address| address.parse().ok()),
                first,
                last,
                inside,
            });
        }
    }
    publications
}

/// Parses `80/tcp`.
fn parse_inside(text: &str) -> Option<(u16, PortProtocol)> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => PortProtocol::Tcp,
        "udp" => PortProtocol::Udp,
        "sctp" => PortProtocol::Sctp,
        _ => return None,
    };
    Some((port.parse().ok()?, protocol))
}

/// Parses `8000` and `8000-8010`, of which Docker chooses one. Zero is none.
fn parse_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first != 0 && first <= last).then_some((first, last))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> Vec<Publication> {
        let mut ports = publications(&serde_json::from_str(text).unwrap());
        ports.sort_unstable();
        ports
    }

    fn one(address: Option<&str>, first: u16, last: u16) -> Publication {
        Publication {
            protocol: PortProtocol::Tcp,
            address: address.map(|address| address.parse().unwrap()),
            first,
            last,
            inside: 80,
        }
    }

    #[test]
    fn bindings_are_read_as_docker_and_podman_write_them() {
        let asked = ports(r#"{"80/tcp": [{"HostIp": "", "HostPort": "8000"}]}"#);
        assert_eq!(asked, [one(None, 8000, 8000)]);
        let given = r#"{"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8000"},
            {"HostIp": "::", "HostPort": "8000"}], "81/tcp": null}"#;
        assert_eq!(
            ports(given),
            [
                one(Some("0.0.0.0"), 8000, 8000),
                one(Some("::"), 8000, 8000)
            ]
        );
        let local = ports(r#"{"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8001"}]}"#);
        assert_eq!(local, [one(Some("127.0.0.1"), 8001, 8001)]);
        let range = ports(r#"{"80/tcp": [{"HostPort": "8000-8010"}]}"#);
        assert_eq!(range, [one(None, 8000, 8010)]);
        for not_yet in ["0", "", "x", "9-8", "70000"] {
            let text = format!(r#"{{"80/tcp": [{{"HostPort": "{not_yet}"}}], "x": null}}"#);
            assert_eq!(ports(&text), [], "{not_yet}");
        }
    }

    #[test]
    fn a_container_in_the_hosts_network_publishes_nothing_however_the_network_is_named() {
        for mode in ["host", "1a2b3c4d5e6f"] {
            let text = format!(
                r#"{{"HostConfig": {{"NetworkMode": "{mode}", "PortBindings": {{"80/tcp":
                [{{"HostPort": "8000"}}]}}}}, "NetworkSettings": {{"Networks": {{"host": {{}}}}}}}}"#
            );
            let container = to_container(serde_json::from_str(&text).unwrap());
            assert!(container.on_host_network, "{mode}");
            assert_eq!(container.publishes, BTreeSet::new(), "{mode}");
        }
    }
}
