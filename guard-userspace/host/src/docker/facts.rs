//! Reads a daemon's version and settings, and the services of its Swarm.

use std::path::Path;

use guard_common::layout::PortProtocol;
use serde_json::value::RawValue;

use super::{
    DockerError,
    answers::{self, SwarmServiceAnswer},
    client::{DockerClient, DockerClientError, WHOLE_LIST},
    read::{api_error, daemon, protocol},
    text,
};

/// What the audit needs to know of a daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DaemonFacts {
    pub is_podman: bool,
    /// Such as `28.5.1`.
    pub release: Option<String>,
    pub swarm: SwarmServices,
}

/// The services that a Swarm publishes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SwarmServices {
    /// The daemon is in no Swarm.
    #[default]
    Apart,
    /// The ports that services publish on every node.
    Known(Vec<SwarmPublication>),
    /// This node is not a manager, or the list cannot be read; the text says which.
    Unknown(String),
}

/// A port that every node of a Swarm answers for, whether the service runs there or not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SwarmPublication {
    pub service: String,
    pub protocol: PortProtocol,
    pub published: u16,
    /// The port inside the containers.
    pub target: u16,
}

/// Reads the facts of the daemon at a socket.
///
/// # Errors
/// The daemon does not answer.
pub async fn read_facts(socket: &str) -> Result<DaemonFacts, DockerError> {
    let facts = async {
        let client = DockerClient::connect(Path::new(socket)).await?;
        let swarm = swarm(&client).await?;
        Ok(DaemonFacts {
            is_podman: client.is_podman,
            release: client.release,
            swarm,
        })
    };
    let facts: Result<DaemonFacts, DockerClientError> = facts.await;
    facts.map_err(|error| api_error(socket, &error))
}

async fn swarm(client: &DockerClient) -> Result<SwarmServices, DockerClientError> {
    let swarm = daemon(client).await?.swarm.unwrap_or_default();
    if swarm.local_node_state.as_deref() != Some("active") {
        return Ok(SwarmServices::Apart);
    }
    if swarm.control_available != Some(true) {
        let why = "this node of the Swarm is not a manager";
        return Ok(SwarmServices::Unknown(why.to_owned()));
    }
    let list: Result<Option<Vec<Box<RawValue>>>, _> = client.get("/services", WHOLE_LIST).await;
    Ok(match list {
        Ok(list) => services(&list.unwrap_or_default()),
        Err(error) => SwarmServices::Unknown(error.to_string()),
    })
}

/// Parses the services. If one cannot be parsed, the whole list counts as unknown.
fn services(list: &[Box<RawValue>]) -> SwarmServices {
    let mut publications = Vec::new();
    for element in answers::elements::<SwarmServiceAnswer>(list) {
        let answer = match element {
            Ok(answer) => answer,
            Err(unparsed) => {
                return SwarmServices::Unknown(format!(
                    "a service cannot be read: {}",
                    unparsed.why
                ));
            }
        };
        let name = answer.spec.unwrap_or_default().name.unwrap_or_default();
        let ports = answer
            .endpoint
            .unwrap_or_default()
            .ports
            .unwrap_or_default();
        // Ports with publish mode `host` are published by the containers themselves.
        let of_mesh = ports
            .into_iter()
            .filter(|port| port.publish_mode.as_deref() != Some("host"));
        publications.extend(of_mesh.filter_map(|port| {
            Some(SwarmPublication {
                service: text::plain(&name),
                protocol: protocol(port.protocol.as_deref().unwrap_or("tcp"))?,
                published: port.published_port.filter(|port| *port != 0)?,
                target: port.target_port?,
            })
        }));
    }
    publications.sort_unstable();
    SwarmServices::Known(publications)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> SwarmServices {
        services(&serde_json::from_str::<Vec<Box<RawValue>>>(text).unwrap())
    }

    #[test]
    fn ports_of_the_mesh_are_listed_and_ports_of_containers_are_not() {
        let text = r#"[{"ID": "a", "Spec": {"Name": "web"}, "Endpoint": {"Spec": {}, "Ports": [
            {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"},
            {"Protocol": "udp", "TargetPort": 53, "PublishedPort": 53, "PublishMode": "host"},
            {"Protocol": "sctp", "TargetPort": 9, "PublishedPort": 9}]}},
            {"ID": "b", "Spec": {"Name": "inner"}, "Endpoint": {"Spec": {}}}]"#;
        let publication = |protocol, published, target| SwarmPublication {
            service: "web".to_owned(),
            protocol,
            published,
            target,
        };
        assert_eq!(
            read(text),
            SwarmServices::Known(vec![
                publication(PortProtocol::Tcp, 8080, 80),
                publication(PortProtocol::Sctp, 9, 9),
            ])
        );
    }

    #[test]
    fn a_list_that_cannot_be_parsed_is_unknown() {
        let text = r#"[{"ID": "a", "Endpoint": {"Ports": [{"PublishedPort": 80000}]}}]"#;
        assert!(
            matches!(read(text), SwarmServices::Unknown(_)),
            "{:?}",
            read(text)
        );
    }
}
