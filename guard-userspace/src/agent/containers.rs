//! What is known of Docker.

use std::net::IpAddr;

use tracing::warn;

use crate::{
    api::DockerStatus,
    docker,
    host::Netlink,
    policy::{ContainerNetwork, Containers, Policy, PublishedPort},
};

pub enum Docker {
    /// The policy turns it off.
    Off,
    Connected(Containers),
    /// It does not answer; what it said last, perhaps to an agent before this one, stays closed.
    Lost {
        error: String,
        last: Option<Containers>,
    },
}

impl Docker {
    pub fn containers(&self) -> &Containers {
        static NONE: Containers = Containers {
            published: Vec::new(),
            networks: Vec::new(),
        };
        match self {
            Self::Connected(containers) => containers,
            Self::Lost { last, .. } => last.as_ref().unwrap_or(&NONE),
            Self::Off => &NONE,
        }
    }

    /// Why published ports may be open: nothing is known of them.
    pub fn ignorance(&self) -> Option<&str> {
        match self {
            Self::Lost { error, last: None } => Some(error),
            _ => None,
        }
    }

    pub fn status(&self, policy: &Policy) -> DockerStatus {
        let mut published: Vec<String> = self
            .containers()
            .published
            .iter()
            .map(PublishedPort::to_string)
            .collect();
        // Published on both families, a port is named once.
        published.dedup();
        DockerStatus {
            socket: policy.docker_socket.clone().unwrap_or_default(),
            connected: matches!(self, Self::Connected(_)),
            error: match self {
                Self::Lost { error, .. } => Some(error.clone()),
                Self::Off | Self::Connected(_) => None,
            },
            published,
        }
    }
}

/// Docker that does not answer opens nothing that was closed before. If it never answered, the ports that
/// it published are not known: the guard starts all the same, so that listed services keep their
/// budgets, and says so.
pub async fn ask_docker(policy: &Policy, netlink: &Netlink, last: Option<&Containers>) -> Docker {
    let Some(socket) = &policy.docker_socket else {
        return Docker::Off;
    };
    match docker::containers(socket).await {
        Ok(mut containers) => {
            let own = netlink.addresses().await.unwrap_or_default();
            containers
                .networks
                .retain(|network| is_apart(network, &own));
            Docker::Connected(containers)
        }
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::from(error));
            if last.is_some() {
                warn!("{error}: the ports that containers published last stay closed");
            } else {
                warn!(
                    "{error}: ports that containers publish are not known and stay open; \
                     `[docker] socket = \"\"` in the policy if there is no Docker"
                );
            }
            Docker::Lost {
                error,
                last: last.cloned(),
            }
        }
    }
}

/// Whether only containers have addresses in this network, besides its bridge. One that the host has
/// another address in is not closed: the guard never takes a host off its network.
fn is_apart(network: &ContainerNetwork, own: &[IpAddr]) -> bool {
    // The bridge's own address is one; a second is another interface's.
    let inside = own
        .iter()
        .filter(|address| network.prefix.contains(*address));
    let apart = inside.count() <= 1;
    if !apart {
        warn!(
            network = %network.prefix,
            "the container network overlaps one of this host's own: its addresses are not closed"
        );
    }
    apart
}

#[cfg(test)]
mod tests {
    use guard_common::exposure::NetworkKind;

    use super::*;

    #[test]
    fn a_network_that_the_host_has_a_second_address_in_is_not_the_containers_alone() {
        let network = ContainerNetwork {
            prefix: "172.17.0.0/16".parse().unwrap(),
            kind: NetworkKind::Masqueraded,
        };
        let own = |addresses: &[&str]| -> Vec<IpAddr> {
            addresses.iter().map(|one| one.parse().unwrap()).collect()
        };
        assert!(is_apart(&network, &own(&["203.0.113.10", "172.18.0.1"])));
        assert!(is_apart(&network, &own(&["203.0.113.10", "172.17.0.1"])));
        assert!(!is_apart(&network, &own(&["172.17.0.1", "172.17.9.9"])));
    }
}
