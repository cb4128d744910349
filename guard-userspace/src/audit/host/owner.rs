//! Finds the owner of an endpoint: a container, a process, the kernel, a Swarm service or a rule.

use std::collections::BTreeSet;

use nix::unistd::{Uid, User};
use serde::Serialize;

use super::{
    rewritten::Rewrite,
    sockets::{Holder, Socket},
};
use crate::docker::{Container, Inventory};

/// The owner of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Owner {
    /// `container`, `process`, `kernel`, `nat`, `swarm` or `unknown`.
    pub kind: &'static str,
    /// The name of the container, or its identifier if Docker does not know it.
    pub container: Option<String>,
    pub image: Option<String>,
    /// The Compose project.
    pub project: Option<String>,
    /// The Compose or Swarm service.
    pub service: Option<String>,
    /// The container uses the host's network.
    pub host_network: bool,
    /// The names of the processes that listen.
    pub processes: BTreeSet<String>,
    pub pids: BTreeSet<i32>,
    /// The user of the socket, if its process is not known.
    pub user: Option<String>,
    /// The rule that redirects packets to the owner.
    pub rewrite: Option<Rewrite>,
}

impl Owner {
    pub(super) fn of_container(container: &Container) -> Self {
        let compose = container.compose();
        Self {
            kind: "container",
            container: Some(container.name.clone()),
            image: Some(container.image.clone()).filter(|image| !image.is_empty()),
            project: compose.map(|(project, _)| project.to_owned()),
            service: compose.map(|(_, service)| service.to_owned()),
            host_network: container.on_host_network,
            ..Self::default()
        }
    }

    pub(super) fn of_socket(socket: &Socket, holders: &[Holder], inventory: &Inventory) -> Self {
        let named = Self {
            processes: holders.iter().map(|holder| holder.name.clone()).collect(),
            pids: holders.iter().map(|holder| holder.pid).collect(),
            ..Self::default()
        };
        let identifier = holders.iter().find_map(|holder| holder.container.as_ref());
        match (identifier, holders) {
            (Some(identifier), _) => {
                let known = inventory.containers.get(identifier).map(Self::of_container);
                let unknown = || Self {
                    container: identifier.get(..12).map(str::to_owned),
                    ..Self::default()
                };
                Self {
                    kind: "container",
                    host_network: true,
                    processes: named.processes,
                    pids: named.pids,
                    ..known.unwrap_or_else(unknown)
                }
            }
            (None, []) if socket.inode == 0 => Self {
                kind: "kernel",
                ..named
            },
            (None, []) => Self {
                kind: "unknown",
                user: Some(user_of(socket.uid)),
                ..named
            },
            (None, _) => Self {
                kind: "process",
                ..named
            },
        }
    }
}

fn user_of(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}
