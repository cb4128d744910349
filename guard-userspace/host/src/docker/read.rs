//! Reads containers and networks from Docker, and converts its answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::ErrorKind,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use guard_common::{exposure::NetworkKind, layout::PortProtocol};
use ipnet::IpNet;
use nix::unistd::{Gid, Group};
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};

use super::{
    BRIDGE, COMPOSE_PROJECT, COMPOSE_SERVICE, Container, DockerError, Inventory, LABEL, Network,
    Publication, TITLE,
    answers::{
        self, Binding, Element, EndpointAnswer, HostConfig, Info, Inspected, NetworkAnswer,
        NetworkSettings, PodmanNetwork, PortMap, Summary, SummaryPort,
    },
    client::{AnswerLimit, DAEMON, DockerClient, DockerClientError, ONE_CONTAINER, WHOLE_LIST},
    files::Files,
    text,
};

/// How long a container may take to be inspected before it counts as half known.
pub(super) const BUDGET_OF_ONE: Duration = Duration::from_secs(2);

/// The most containers that are inspected at once.
pub(super) const AT_ONCE: usize = 32;

/// How long inspecting all containers may take, for a caller that waits for the result.
const BUDGET_OF_ALL: Duration = Duration::from_secs(10);

/// The most labels of the guard that are kept for a container, and the longest name and value in bytes.
const MOST_LABELS: usize = 64;
const LONGEST_LABEL: usize = 128;
const LONGEST_VALUE: usize = 4096;

/// The most ports in a container's publications, before these are merged. All three protocols together have 196,605
/// ports.
const MOST_PORTS: usize = 1 << 18;

/// The longest name of a Linux interface.
const LONGEST_INTERFACE: usize = 15;

/// Reads all containers and networks once.
pub async fn read(socket: &str) -> Result<Inventory, DockerError> {
    let answer = async {
        let client = DockerClient::connect(Path::new(socket)).await?;
        let info = daemon(&client).await.unwrap_or_default();
        let files = Files::below(info.docker_root_dir.as_deref());
        let listed = list(&client).await?;
        let mut inventory = Inventory::default();
        inventory.take_networks(networks(&client).await);
        let end = Instant::now() + BUDGET_OF_ALL;
        let (client, files) = (&client, &files);
        let asked = stream::iter(listed).map(async |listed| {
            let (id, listed) = identified(listed)?;
            let end = end.min(Instant::now() + BUDGET_OF_ONE);
            let found = timeout_at(end, container(client, &id)).await;
            let found = found.unwrap_or(Err(DockerClientError::Slow(BUDGET_OF_ONE)));
            let found = match found {
                Ok(found) => found?,
                Err(error) => half_known(&id, listed.as_ref(), None, files, &error.to_string()),
            };
            Some((id, found))
        });
        let containers: Vec<_> = asked.buffer_unordered(AT_ONCE).collect().await;
        inventory.containers = containers.into_iter().flatten().collect();
        Ok(inventory)
    };
    answer.await.map_err(|error| api_error(socket, &error))
}

/// The version of the daemon.
pub async fn version(socket: &str) -> Result<String, DockerError> {
    let client = DockerClient::connect(Path::new(socket)).await;
    let client = client.map_err(|error| api_error(socket, &error))?;
    Ok(client.release.unwrap_or_else(|| "unknown".to_owned()))
}

pub(super) fn api_error(socket: &str, error: &DockerClientError) -> DockerError {
    let is_refused = matches!(
        error,
        DockerClientError::Socket(error) if error.kind() == ErrorKind::PermissionDenied
    );
    let error = if is_refused {
        format!("{error}: {}", remedy(Path::new(socket)))
    } else {
        error.to_string()
    };
    DockerError {
        socket: socket.to_owned(),
        error,
        is_refused,
    }
}

/// The advice for a user who may not open this socket.
fn remedy(socket: &Path) -> String {
    let group = fs::metadata(socket).ok().map(|found| found.gid());
    // No other user is in root's group.
    let group = group.filter(|group| *group != 0);
    let group = group.and_then(|group| Group::from_gid(Gid::from_raw(group)).ok()?);
    group.map_or_else(
        || "use sudo".to_owned(),
        |group| format!("join group {}, or use sudo", group.name),
    )
}

pub(super) async fn daemon(client: &DockerClient) -> Result<Info, DockerClientError> {
    let limit = AnswerLimit {
        time: BUDGET_OF_ONE,
        ..DAEMON
    };
    client.get("/info", limit).await
}

/// The identity of a daemon, see [`super::Runtime::daemon`].
pub(super) fn identity(client: &DockerClient, info: &Info) -> Option<String> {
    let folder = info.docker_root_dir.as_deref().unwrap_or_default();
    if client.is_podman {
        return Some(format!("Podman at {}", text::plain(folder)));
    }
    let id = info.id.as_deref().filter(|id| !id.is_empty())?;
    Some(format!("{} at {}", text::plain(id), text::plain(folder)))
}

/// A container as the list shows it, by its identifier; `None`: it could not be parsed.
pub(super) type ListedContainer = Element<Summary>;

pub(super) async fn list(client: &DockerClient) -> Result<Vec<ListedContainer>, DockerClientError> {
    let path = "/containers/json?all=true";
    let list: Option<Vec<Box<RawValue>>> = client.get(path, WHOLE_LIST).await?;
    Ok(answers::elements(&list.unwrap_or_default()))
}

/// The identifier of a listed container; `None`: it has no valid one, so it cannot be inspected.
pub(super) fn identified(listed: ListedContainer) -> Option<(String, Option<Container>)> {
    let (id, container) = match listed {
        Ok(summary) => (summary.id.clone(), Some(of_list(summary))),
        Err(unparsed) => (unparsed.id, None),
    };
    answers::is_identifier(&id).then_some((id, container))
}

/// Inspects a container. `Ok(None)`: it is gone.
pub(super) async fn container(
    client: &DockerClient,
    id: &str,
) -> Result<Option<Container>, DockerClientError> {
    let path = format!("/containers/{id}/json");
    match client.get::<Inspected>(&path, ONE_CONTAINER).await {
        Ok(answer) => Ok(Some(inspected(answer))),
        Err(DockerClientError::Refused { status: 404, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A container that cannot be inspected at this moment. Its publications are all that the list, its file and its last
/// inspection have.
pub(super) fn half_known(
    id: &str,
    listed: Option<&Container>,
    known: Option<&Container>,
    files: &Files,
    why: &str,
) -> Container {
    let mut container = known.or(listed).cloned().unwrap_or_default();
    if container.name.is_empty() {
        container.name = id.chars().take(12).collect();
    }
    if let Some(listed) = listed {
        container.running = listed.running;
        container.on_host_network |= listed.on_host_network;
        container.publishes.extend(listed.publishes.iter().cloned());
        container.addresses.extend(&listed.addresses);
    }
    let config = files.host_config(id);
    container.is_file_unread = config.is_err();
    match config {
        Ok(config) => {
            container.on_host_network |= config.is_on_host_network();
            container.publishes.extend(configured(&config));
            container.is_unconfigured = false;
        }
        // If it was known before, its last publications are its configuration.
        Err(_) => container.is_unconfigured |= known.is_none(),
    }
    if container.on_host_network {
        container.publishes.clear();
    }
    container.half_known = Some(why.to_owned());
    container
}

/// A container as the list of containers shows it.
fn of_list(summary: Summary) -> Container {
    let names = summary.names.unwrap_or_default();
    let settings = summary.network_settings.unwrap_or_default();
    let host = summary.host_config.unwrap_or_default();
    let on_host_network = host.is_on_host_network() || settings.is_on_host_network();
    let mut publishes = BTreeSet::new();
    if !on_host_network {
        let ports = summary.ports.unwrap_or_default();
        publishes.extend(ports.iter().filter_map(given_port));
    }
    // A paused container is a running one, and `stopping` is Podman's.
    let state = summary.state.unwrap_or_default();
    let running = ["running", "paused", "restarting", "stopping"].contains(&state.as_str());
    let (labels, labels_left_out) = kept_labels(summary.labels.unwrap_or_default());
    let name = names.first().map(String::as_str).unwrap_or_default();
    Container {
        name: text::plain(name.trim_start_matches('/')),
        image: text::plain(&summary.image.unwrap_or_default()),
        labels,
        labels_left_out,
        running,
        on_host_network,
        publishes: bounded(publishes),
        exposes: BTreeSet::new(),
        addresses: settings.addresses(),
        attached: settings.attached(),
        pid: None,
        half_known: None,
        is_file_unread: false,
        is_unconfigured: false,
    }
}

fn given_port(port: &SummaryPort) -> Option<Publication> {
    let public = port.public_port.filter(|port| *port != 0)?;
    Some(Publication {
        protocol: protocol(&port.protocol)?,
        address: port.ip.as_deref().and_then(|address| address.parse().ok()),
        first: public,
        last: public,
        inside: port.private_port,
    })
}

fn inspected(answer: Inspected) -> Container {
    let config = answer.config.unwrap_or_default();
    let host = answer.host_config.unwrap_or_default();
    let settings = answer.network_settings.unwrap_or_default();
    let on_host_network = host.is_on_host_network() || settings.is_on_host_network();
    let mut publishes = BTreeSet::new();
    if !on_host_network {
        publishes.extend(configured(&host));
        publishes.extend(settings.ports.iter().flat_map(publications));
    }
    let (labels, labels_left_out) = kept_labels(config.labels.unwrap_or_default());
    let exposes = config.exposed_ports.unwrap_or_default();
    let name = answer.name.unwrap_or_default();
    let state = answer.state.unwrap_or_default();
    Container {
        name: text::plain(name.trim_start_matches('/')),
        image: text::plain(&config.image.unwrap_or_default()),
        labels,
        labels_left_out,
        running: state.running.unwrap_or_default(),
        on_host_network,
        publishes: bounded(publishes),
        exposes: exposes
            .keys()
            .filter_map(|port| parse_inside(port))
            .collect(),
        addresses: settings.addresses(),
        attached: settings.attached(),
        pid: state.pid.filter(|pid| *pid != 0),
        half_known: None,
        is_file_unread: false,
        is_unconfigured: false,
    }
}

/// A container of which only an event is known. The event's attributes are its name, its image and its labels.
pub(super) fn created(attributes: BTreeMap<String, String>) -> Container {
    let mut labels = attributes;
    let name = labels.remove("name").unwrap_or_default();
    let image = labels.remove("image").unwrap_or_default();
    let (labels, labels_left_out) = kept_labels(labels);
    Container {
        name: text::plain(&name),
        image: text::plain(&image),
        labels,
        labels_left_out,
        ..Container::default()
    }
}

/// The labels that guard uses, and the number of its own labels that are left out or cut. They are bounded, because the
/// creator of a container chooses their number and their text.
fn kept_labels(labels: BTreeMap<String, String>) -> (BTreeMap<String, String>, usize) {
    let mut kept = BTreeMap::new();
    let (mut of_guard, mut left_out) = (0, 0);
    for (name, mut value) in labels {
        let is_of_guard = name.starts_with(LABEL);
        if !is_of_guard && ![COMPOSE_PROJECT, COMPOSE_SERVICE, TITLE].contains(&name.as_str()) {
            continue;
        }
        of_guard += usize::from(is_of_guard);
        if is_of_guard && (of_guard > MOST_LABELS || name.len() > LONGEST_LABEL) {
            left_out += 1;
            continue;
        }
        if value.len() > LONGEST_VALUE {
            // Cut between two elements of a list: a prefix that is cut may become a wider one.
            let starts = value.char_indices().map(|(start, _)| start);
            let most = starts.take_while(|start| *start <= LONGEST_VALUE).last();
            let most = most.unwrap_or_default();
            let end = value[..most].rfind(',').unwrap_or(most);
            value.truncate(end);
            left_out += usize::from(is_of_guard);
        }
        kept.insert(text::plain(&name), value);
    }
    (kept, left_out)
}

/// Merges the publications of a protocol into one range, if they have more ports than exist. Otherwise a container
/// with a hundred thousand ranges of 65,535 ports would take very long to process.
fn bounded(publishes: BTreeSet<Publication>) -> BTreeSet<Publication> {
    let ports: usize = publishes
        .iter()
        .map(|publication| publication.ports().len())
        .sum();
    if ports <= MOST_PORTS {
        return publishes;
    }
    let mut hulls: BTreeMap<PortProtocol, Publication> = BTreeMap::new();
    for publication in publishes {
        let hull = hulls.entry(publication.protocol);
        let hull = hull.or_insert_with(|| publication.clone());
        hull.address = None;
        hull.first = hull.first.min(publication.first);
        hull.last = hull.last.max(publication.last);
    }
    hulls.into_values().collect()
}

impl HostConfig {
    fn is_on_host_network(&self) -> bool {
        self.network_mode.as_deref() == Some(HOST)
    }
}

impl NetworkSettings {
    /// The network mode of a container may be the id of the host network instead of `host`.
    fn is_on_host_network(&self) -> bool {
        let networks = self.networks.as_ref();
        networks.is_some_and(|networks| networks.contains_key(HOST))
    }

    fn addresses(&self) -> BTreeSet<IpAddr> {
        let of_default = parsed([&self.ip_address, &self.global_ipv6_address]);
        let networks = self.networks.iter().flat_map(BTreeMap::values).flatten();
        of_default
            .chain(networks.flat_map(EndpointAnswer::addresses))
            .collect()
    }

    fn attached(&self) -> BTreeMap<String, BTreeSet<IpAddr>> {
        let networks = self.networks.iter().flatten();
        networks
            .filter_map(|(name, network)| {
                let addresses = network.as_ref()?.addresses().collect();
                Some((text::plain(name), addresses))
            })
            .collect()
    }
}

impl EndpointAnswer {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let Self {
            ip_address,
            global_ipv6_address,
        } = self;
        parsed([ip_address, global_ipv6_address])
    }
}

/// Parses addresses. Podman writes `::` for no address.
fn parsed(texts: [&Option<String>; 2]) -> impl Iterator<Item = IpAddr> {
    let addresses = texts.into_iter().flatten();
    let addresses = addresses.filter_map(|address| address.parse::<IpAddr>().ok());
    addresses.filter(|address| !address.is_unspecified())
}

/// The ports that a container will publish when it is started.
fn configured(host: &HostConfig) -> BTreeSet<Publication> {
    let ports = host.port_bindings.as_ref();
    let ports = ports.filter(|_| !host.is_on_host_network());
    bounded(ports.into_iter().flat_map(publications).collect())
}

/// The networks of a daemon, and those that cannot be parsed.
pub(super) struct Networks {
    pub known: Vec<Network>,
    pub unparsed: Vec<answers::Unparsed>,
}

pub(super) async fn networks(client: &DockerClient) -> Result<Networks, DockerClientError> {
    let list: Option<Vec<Box<RawValue>>> = client.get("/networks", WHOLE_LIST).await?;
    let bridges = if client.is_podman {
        podman_bridges(client).await
    } else {
        BTreeMap::new()
    };
    let mut networks = Networks {
        known: Vec::new(),
        unparsed: Vec::new(),
    };
    for element in answers::elements::<NetworkAnswer>(&list.unwrap_or_default()) {
        match element {
            Ok(answer) => {
                let bridge = bridges.get(&answer.id).cloned();
                networks.known.push(network(answer, bridge));
            }
            Err(unparsed) => networks.unparsed.push(unparsed),
        }
    }
    networks
        .known
        .sort_unstable_by(|one, other| one.id.cmp(&other.id));
    Ok(networks)
}

/// The interfaces of Podman's networks. Podman's own API has them; the compatible API does not.
async fn podman_bridges(client: &DockerClient) -> BTreeMap<String, String> {
    let path = "/v4.0.0/libpod/networks/json";
    let list: Option<Vec<Box<RawValue>>> = client
        .get_unversioned(path, WHOLE_LIST)
        .await
        .unwrap_or_default();
    let networks = answers::elements::<PodmanNetwork>(&list.unwrap_or_default());
    let networks = networks.into_iter().filter_map(Result::ok);
    networks
        .filter_map(|network| Some((network.id, network.network_interface?)))
        .collect()
}

impl Inventory {
    /// Takes over the networks. Those that cannot be listed or parsed stay unchanged.
    pub(super) fn take_networks(&mut self, listed: Result<Networks, DockerClientError>) {
        match listed {
            Ok(Networks {
                mut known,
                unparsed,
            }) => {
                self.networks_left_out = unparsed
                    .iter()
                    .map(|unparsed| format!("a network cannot be read: {}", unparsed.why))
                    .collect();
                let is_unparsed =
                    |network: &&Network| unparsed.iter().any(|unparsed| unparsed.id == network.id);
                known.extend(self.networks.iter().filter(is_unparsed).cloned());
                self.networks = known;
            }
            Err(error) => {
                self.networks_left_out = vec![format!("networks cannot be listed: {error}")];
            }
        }
    }
}

/// The network mode of a container without a network of its own, and the name of that network.
const HOST: &str = "host";

fn publications(ports: &PortMap) -> Vec<Publication> {
    let mut publications = Vec::new();
    for (inside, bindings) in ports {
        let Some((inside, protocol)) = parse_inside(inside) else {
            continue;
        };
        for Binding { host_ip, host_port } in bindings.iter().flatten() {
            // Without a port, Docker chooses one when the container starts.
            let Some((first, last)) = host_port.as_deref().and_then(parse_range) else {
                continue;
            };
            publications.push(Publication {
                protocol,
                // Without an address, the port is on every address of both families.
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
    let (port, name) = text.split_once('/').unwrap_or((text, "tcp"));
    Some((port.parse().ok()?, protocol(name)?))
}

pub(super) fn protocol(name: &str) -> Option<PortProtocol> {
    match name {
        "tcp" => Some(PortProtocol::Tcp),
        "udp" => Some(PortProtocol::Udp),
        "sctp" => Some(PortProtocol::Sctp),
        _ => None,
    }
}

/// Parses `8000` and `8000-8010`, of which Docker chooses one port. Port 0 counts as no port.
fn parse_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first != 0 && first <= last).then_some((first, last))
}

/// Docker's option for masquerading packets that a bridge's containers send over IPv4; on if not set.
const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";

/// Docker's options for routing a bridge's addresses instead of masquerading them (Docker 27).
const GATEWAY_MODE: &str = "com.docker.network.bridge.gateway_mode_ipv4";
const GATEWAY_MODE_IPV6: &str = "com.docker.network.bridge.gateway_mode_ipv6";
/// The gateway modes in which hosts with a route reach the containers' addresses directly.
const ROUTED_MODES: [&str; 2] = ["routed", "nat-unprotected"];

/// Docker's options for the name of a bridge, and for whether it is the bridge of the default network.
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
const DEFAULT_BRIDGE: &str = "com.docker.network.bridge.default_bridge";

/// The interface that a macvlan or ipvlan network stands on.
const PARENT: &str = "parent";

/// Converts a network. `bridge`: the interface that Podman reports.
fn network(answer: NetworkAnswer, bridge: Option<String>) -> Network {
    let options = answer.options.unwrap_or_default();
    let option = |name| options.get(name).map(String::as_str);
    let masquerades = option(MASQUERADE) != Some("false") && option(GATEWAY_MODE) != Some("routed");
    let driver = answer.driver.unwrap_or_default();
    let is_bridge = driver == BRIDGE;
    // For a macvlan or ipvlan network, the interface that Podman reports is the parent.
    let parent = option(PARENT).map(str::to_owned);
    let parent = parent.or_else(|| bridge.clone().filter(|_| !is_bridge));
    let bridge = is_bridge
        .then(|| {
            let named = bridge.or_else(|| option(BRIDGE_NAME).map(str::to_owned));
            named.unwrap_or_else(|| match option(DEFAULT_BRIDGE) {
                Some("true") => "docker0".to_owned(),
                _ => format!("br-{}", answer.id.chars().take(12).collect::<String>()),
            })
        })
        .filter(|name| is_interface(name));
    let configs = answer.ipam.unwrap_or_default().config.unwrap_or_default();
    let subnets = configs.iter().filter_map(|config| config.subnet.as_deref());
    let gateways = configs
        .iter()
        .filter_map(|config| config.gateway.as_deref());
    Network {
        bridge,
        parent: parent.filter(|name| is_interface(name)),
        subnets: subnets.filter_map(|subnet| subnet.parse().ok()).collect(),
        gateways: gateways.filter_map(parse_gateway).collect(),
        kind: match masquerades {
            true => NetworkKind::Masqueraded,
            false => NetworkKind::Routed,
        },
        is_routed_ipv6: option(GATEWAY_MODE_IPV6).is_some_and(|mode| ROUTED_MODES.contains(&mode)),
        id: text::plain(&answer.id),
        name: text::plain(&answer.name.unwrap_or_default()),
        driver: text::plain(&driver),
    }
}

/// Parses a gateway. Some versions of Docker write a prefix length after the address.
fn parse_gateway(text: &str) -> Option<IpAddr> {
    let address = text.parse();
    let address = address.or_else(|_| text.parse().map(|network: IpNet| network.addr()));
    address.ok()
}

fn is_interface(name: &str) -> bool {
    let is_bad = |byte: u8| byte == b'/' || !byte.is_ascii_graphic();
    (1..=LONGEST_INTERFACE).contains(&name.len()) && !name.bytes().any(is_bad)
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
            let container = inspected(serde_json::from_str(&text).unwrap());
            assert!(container.on_host_network, "{mode}");
            assert_eq!(container.publishes, BTreeSet::new(), "{mode}");
        }
    }
}
