//! Asks the kernel, Docker and the processes what of this host can be reached.

use std::{env, path::Path};

use anyhow::{Context as _, Result, bail};
use nix::unistd::Uid;
use serde::Serialize;

use super::{
    endpoint::{Endpoint, Setting, endpoints},
    sockets,
};
use crate::{
    agent::plan::compile_containers,
    docker::{self, Inventory},
    host::{self, Host},
    policy::{Containers, DEFAULT_DOCKER_SOCKET, untrusted},
};

/// What has been found.
pub struct Survey {
    pub endpoints: Vec<Endpoint>,
    pub containers: Containers,
    pub docker: DockerAsked,
    /// Its addresses are known.
    pub host: Host,
    /// What could not be told.
    pub notes: Vec<String>,
}

/// What became of asking Docker.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DockerAsked {
    /// `null`: it was not asked.
    pub socket: Option<String>,
    pub answered: bool,
    pub error: Option<String>,
    /// How many containers run.
    pub running: usize,
}

/// Podman's, after Docker's, and below the folder of a user those of daemons without root.
const PODMAN_SOCKET: &str = "/run/podman/podman.sock";
const USER_SOCKETS: [&str; 2] = ["docker.sock", "podman/podman.sock"];
const USER_FOLDER: &str = "XDG_RUNTIME_DIR";

/// The first socket of Docker's or Podman's that exists.
pub fn find_docker() -> Option<String> {
    let folder = env::var(USER_FOLDER).unwrap_or_default();
    let of_user = USER_SOCKETS.map(|socket| format!("{folder}/{socket}"));
    let of_host = [DEFAULT_DOCKER_SOCKET, PODMAN_SOCKET].map(str::to_owned);
    let mut sockets = of_host.into_iter().chain(of_user);
    sockets.find(|socket| Path::new(socket).exists())
}

impl Survey {
    /// `docker`: where Docker answers; `None`: it is not asked.
    pub async fn make(docker: Option<String>) -> Result<Self> {
        let host = Host::read_once().context("this host cannot be read")?;
        if let Some(error) = &host.addresses.error {
            bail!("this host's addresses cannot be read: {error}");
        }
        let routes = host.default_route_links().unwrap_or_default();
        let mut notes = Vec::new();
        let (inventory, docker) = ask(docker).await;
        let containers = match &inventory {
            Some(inventory) => compile_containers(inventory, &host, &routes).containers,
            None => Containers::default(),
        };
        let sockets = sockets::sockets().unwrap_or_else(|error| {
            notes.push(error.to_string());
            Vec::new()
        });
        let holders = sockets::holders(&sockets);
        if !holders.complete {
            notes.push(match Uid::effective().is_root() {
                true => "some processes may not be asked what they listen on (CAP_SYS_PTRACE is missing): \
                         `guard audit`, typed by root, names them"
                    .to_owned(),
                false => "without root, the processes of other users are not known".to_owned(),
            });
        }
        let setting = Setting {
            networks: &containers.networks,
            interface: &|index| {
                let link = host.link(index);
                let name = link.map_or_else(|| index.to_string(), |link| link.name.clone());
                (name, routes.contains(&index))
            },
            local_ports: &host::local_port_range()
                .context("the local port range cannot be read")?,
        };
        let endpoints = endpoints(inventory.as_ref(), &sockets, &holders, &setting);
        notes.extend(unseen(inventory.as_ref(), &endpoints));
        Ok(Self {
            endpoints,
            containers,
            docker,
            host,
            notes,
        })
    }
}

async fn ask(socket: Option<String>) -> (Option<Inventory>, DockerAsked) {
    let Some(socket) = socket else {
        return (None, DockerAsked::default());
    };
    let mut asked = DockerAsked {
        socket: Some(socket.clone()),
        ..DockerAsked::default()
    };
    match docker::read(&socket).await {
        Ok(inventory) => {
            let containers = inventory.containers.values();
            asked.running = containers.filter(|container| container.running).count();
            asked.answered = true;
            (Some(inventory), asked)
        }
        Err(error) => {
            asked.error = Some(error.to_string());
            (None, asked)
        }
    }
}

/// Containers on the host's network whose listeners are not known for theirs.
fn unseen(inventory: Option<&Inventory>, endpoints: &[Endpoint]) -> Vec<String> {
    let containers = inventory
        .into_iter()
        .flat_map(|inventory| inventory.containers.values());
    let unseen = containers.filter(|container| {
        let is_seen =
            |endpoint: &Endpoint| endpoint.owner.container.as_ref() == Some(&container.name);
        container.running && container.on_host_network && !endpoints.iter().any(is_seen)
    });
    unseen
        .map(|container| {
            format!(
                "container {} is on the host's network: what it listens on, if anything, is among the \
                 host's own",
                untrusted::name(&container.name, 64)
            )
        })
        .collect()
}
