//! The answers of a daemon, with the fields that guard reads. Fields may be missing or null. States are text, because
//! Podman has more of them than Docker. Each element of a list is parsed separately, so that one that cannot be parsed
//! does not hide the others.

use std::collections::BTreeMap;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::value::RawValue;

/// `GET /info`
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Info {
    #[serde(rename = "ID")]
    pub id: Option<String>,
    #[serde(rename = "DockerRootDir")]
    pub docker_root_dir: Option<String>,
    #[serde(rename = "Swarm")]
    pub swarm: Option<SwarmAnswer>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct SwarmAnswer {
    pub local_node_state: Option<String>,
    /// This node is a manager. Only managers can list the services.
    pub control_available: Option<bool>,
}

/// An element of `GET /services`
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct SwarmServiceAnswer {
    pub spec: Option<SwarmSpec>,
    pub endpoint: Option<SwarmEndpoint>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct SwarmSpec {
    pub name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct SwarmEndpoint {
    pub ports: Option<Vec<SwarmPort>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct SwarmPort {
    pub protocol: Option<String>,
    pub target_port: Option<u16>,
    pub published_port: Option<u16>,
    pub publish_mode: Option<String>,
}

/// An element of `GET /containers/json`
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Summary {
    pub id: String,
    pub names: Option<Vec<String>>,
    pub image: Option<String>,
    pub labels: Option<BTreeMap<String, String>>,
    pub state: Option<String>,
    pub ports: Option<Vec<SummaryPort>>,
    pub host_config: Option<HostConfig>,
    pub network_settings: Option<NetworkSettings>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct SummaryPort {
    #[serde(rename = "IP")]
    pub ip: Option<String>,
    pub private_port: u16,
    pub public_port: Option<u16>,
    #[serde(rename = "Type")]
    pub protocol: String,
}

/// `GET /containers/ID/json`
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Inspected {
    pub name: Option<String>,
    pub config: Option<ContainerConfigAnswer>,
    pub host_config: Option<HostConfig>,
    pub network_settings: Option<NetworkSettings>,
    pub state: Option<ContainerStateAnswer>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct ContainerConfigAnswer {
    pub image: Option<String>,
    pub labels: Option<BTreeMap<String, String>>,
    pub exposed_ports: Option<BTreeMap<String, IgnoredAny>>,
}

/// The configuration in an inspected container, and the content of `hostconfig.json`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct HostConfig {
    pub network_mode: Option<String>,
    pub port_bindings: Option<PortMap>,
}

pub(super) type PortMap = BTreeMap<String, Option<Vec<Binding>>>;

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Binding {
    pub host_ip: Option<String>,
    pub host_port: Option<String>,
}

/// The addresses at the top level are those of the default network: older daemons and Podman write them there.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct NetworkSettings {
    #[serde(rename = "IPAddress")]
    pub ip_address: Option<String>,
    #[serde(rename = "GlobalIPv6Address")]
    pub global_ipv6_address: Option<String>,
    pub ports: Option<PortMap>,
    /// A network is `null` if the container was disconnected from it.
    pub networks: Option<BTreeMap<String, Option<EndpointAnswer>>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct EndpointAnswer {
    #[serde(rename = "IPAddress")]
    pub ip_address: Option<String>,
    #[serde(rename = "GlobalIPv6Address")]
    pub global_ipv6_address: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct ContainerStateAnswer {
    pub running: Option<bool>,
    /// 0 while the container does not run.
    pub pid: Option<u32>,
}

/// An element of `GET /networks`
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct NetworkAnswer {
    pub id: String,
    pub name: Option<String>,
    pub driver: Option<String>,
    pub options: Option<BTreeMap<String, String>>,
    #[serde(rename = "IPAM")]
    pub ipam: Option<Ipam>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Ipam {
    pub config: Option<Vec<IpamConfig>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct IpamConfig {
    pub subnet: Option<String>,
    pub gateway: Option<String>,
}

/// An element of Podman's own `GET /libpod/networks/json`
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct PodmanNetwork {
    pub id: String,
    pub network_interface: Option<String>,
}

/// A line of `GET /events`
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct EventAnswer {
    #[serde(rename = "Type")]
    pub kind: Option<String>,
    #[serde(rename = "Action")]
    pub action: Option<String>,
    #[serde(rename = "Actor")]
    pub actor: Option<EventActorAnswer>,
    /// Only a measurement needs it, so an event whose number does not fit is not lost.
    #[serde(rename = "timeNano", deserialize_with = "if_it_fits")]
    pub time_ns: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct EventActorAnswer {
    #[serde(rename = "ID")]
    pub id: Option<String>,
    #[serde(rename = "Attributes")]
    pub attributes: Option<BTreeMap<String, String>>,
}

fn if_it_fits<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let raw = Box::<RawValue>::deserialize(deserializer)?;
    Ok(serde_json::from_str(raw.get()).ok())
}

/// An element of a list, and why it cannot be parsed.
pub(super) type Element<T> = Result<T, Unparsed>;

/// An element that cannot be parsed.
#[derive(Debug)]
pub(super) struct Unparsed {
    /// Its identifier; empty if that cannot be parsed either.
    pub id: String,
    pub why: String,
}

/// Parses each element of a list separately.
pub(super) fn elements<T: DeserializeOwned>(list: &[Box<RawValue>]) -> Vec<Element<T>> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Identified {
        #[serde(alias = "Id", alias = "ID")]
        id: String,
    }
    let parse = |element: &RawValue| {
        serde_json::from_str(element.get()).map_err(|error| {
            let found = serde_json::from_str::<Identified>(element.get());
            Unparsed {
                id: found.unwrap_or_default().id,
                why: error.to_string(),
            }
        })
    };
    list.iter().map(|element| parse(element)).collect()
}

/// Whether a text can be an identifier. Those of Docker and Podman have 64 hexadecimal digits. Identifiers become parts
/// of paths, so other characters are refused.
pub(super) fn is_identifier(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}
