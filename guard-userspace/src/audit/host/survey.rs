//! Reads the kernel, Docker and the processes to find the endpoints of this host.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    net::IpAddr,
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::Uid;
use serde::Serialize;

use super::{
    endpoint::{Endpoint, FoundOnHost, Level, Setting, endpoints},
    inner::{InnerListeners, OwnAddress, inner_listeners, listeners_of},
    sockets,
};
use crate::{
    agent::plan::compile_containers,
    audit::compose::address::is_link_local,
    docker::{self, DaemonFacts, Inventory, SwarmServices},
    host::{self, Host, Link, NatRules, Route},
    policy::{Containers, DEFAULT_DOCKER_SOCKET, untrusted},
};

/// The result of a survey.
pub struct Survey {
    pub endpoints: Vec<Endpoint>,
    pub containers: Containers,
    pub docker: DockerQuery,
    /// `None`: the daemon does not answer, or was not queried.
    pub daemon: Option<DaemonFacts>,
    /// Addresses of containers that other hosts reach directly.
    pub own_addresses: BTreeSet<OwnAddress>,
    /// All addresses of the containers that run.
    pub container_addresses: BTreeSet<IpAddr>,
    /// The host picture, whose addresses are known.
    pub host: Host,
    /// Facts that the survey could not find out.
    pub notes: Vec<String>,
}

/// The result of querying Docker.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DockerQuery {
    /// `null`: Docker was not queried.
    pub socket: Option<String>,
    pub answered: bool,
    pub error: Option<String>,
    /// How many containers run.
    pub running: usize,
}

/// The sockets after Docker's own: Podman's, and below the folder of a user those of rootless daemons.
const PODMAN_SOCKET: &str = "/run/podman/podman.sock";
const USER_SOCKETS: [&str; 2] = ["docker.sock", "podman/podman.sock"];
const USER_FOLDER: &str = "XDG_RUNTIME_DIR";

/// The first socket of Docker or Podman that exists.
pub fn find_docker() -> Option<String> {
    let folder = env::var(USER_FOLDER).unwrap_or_default();
    let of_user = USER_SOCKETS.map(|socket| format!("{folder}/{socket}"));
    let of_host = [DEFAULT_DOCKER_SOCKET, PODMAN_SOCKET].map(str::to_owned);
    let mut sockets = of_host.into_iter().chain(of_user);
    sockets.find(|socket| Path::new(socket).exists())
}

impl Survey {
    /// `docker`: Docker's socket. `None`: Docker is not queried.
    pub async fn make(docker: Option<String>) -> Result<Self> {
        let mut host = Host::read_once().context("this host cannot be read")?;
        if let Some(error) = &host.addresses.error {
            bail!("this host's addresses cannot be read: {error}");
        }
        host.read_nat();
        let routes = host.default_route_links().unwrap_or_default();
        let mut notes = Vec::new();
        let Answers {
            inventory,
            daemon,
            docker,
        } = ask(docker).await;
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
                true => {
                    "some processes that listen cannot be named (CAP_SYS_PTRACE is missing): run \
                         `guard audit` as root"
                        .to_owned()
                }
                false => "without root, the processes of other users are not known".to_owned(),
            });
        }
        let none = Inventory::default();
        let known = inventory.as_ref().unwrap_or(&none);
        let InnerListeners {
            endpoints: inner,
            addresses: own_addresses,
            notes: of_inner,
        } = inner_listeners(known, listeners_of);
        notes.extend(of_inner);
        let apart = SwarmServices::Apart;
        let swarm = daemon.as_ref().map_or(&apart, |daemon| &daemon.swarm);
        notes.extend(without_rules(&host, swarm));
        notes.extend(behind(&host, known, &routes));
        let own: Vec<IpAddr> = host.own_addresses().into_iter().flatten().collect();
        let setting = Setting {
            networks: &containers.networks,
            interface: &|index| {
                let link = host.link(index);
                let name = link.map_or_else(|| index.to_string(), |link| link.name.clone());
                (name, routes.contains(&index))
            },
            leads_out: &|name| leads_out(&host, known, name, &routes),
            local_ports: &host::local_port_range()
                .context("the local port range cannot be read")?,
            own: &own,
        };
        let empty = NatRules::default();
        let found = FoundOnHost {
            inventory: known,
            swarm,
            sockets: &sockets,
            holders: &holders,
            nat: &host.nat.known().unwrap_or(&empty).rules,
            inner,
        };
        let endpoints = endpoints(found, &setting);
        notes.extend(unseen(inventory.as_ref(), &endpoints));
        let running = known.containers.values();
        let running = running.filter(|container| container.running);
        let container_addresses = running
            .flat_map(|container| container.addresses.iter().copied())
            .collect();
        Ok(Self {
            endpoints,
            containers,
            docker,
            daemon,
            own_addresses,
            container_addresses,
            host,
            notes,
        })
    }
}

/// The daemon's answers.
#[derive(Default)]
struct Answers {
    inventory: Option<Inventory>,
    daemon: Option<DaemonFacts>,
    docker: DockerQuery,
}

async fn ask(socket: Option<String>) -> Answers {
    let Some(socket) = socket else {
        return Answers::default();
    };
    let mut asked = DockerQuery {
        socket: Some(socket.clone()),
        ..DockerQuery::default()
    };
    let inventory = match docker::read(&socket).await {
        Ok(inventory) => {
            let containers = inventory.containers.values();
            asked.running = containers.filter(|container| container.running).count();
            asked.answered = true;
            Some(inventory)
        }
        Err(error) => {
            asked.error = Some(error.to_string());
            None
        }
    };
    // If a daemon lists its containers but does not return its facts, its version is not known.
    let daemon = match &inventory {
        Some(_) => docker::read_facts(&socket).await.ok(),
        None => None,
    };
    Answers {
        inventory,
        daemon,
        docker: asked,
    }
}

/// Notes for endpoints that are missing because rules that rewrite destinations, or Swarm services, are not known.
fn without_rules(host: &Host, swarm: &SwarmServices) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(error) = &host.nat.error {
        notes.push(format!(
            "the rules that rewrite destinations cannot be read ({error}): ports that they redirect are not listed"
        ));
    }
    if host.nat.known().is_some_and(|nat| nat.is_partial) {
        notes.push(
            "there are more rules that rewrite destinations than audit follows: some ports that they redirect are \
             not listed"
                .to_owned(),
        );
    }
    if let (SwarmServices::Unknown(why), Some(_)) = (swarm, &host.nat.error) {
        notes.push(format!(
            "the ports that services of the Swarm publish are not known: {why}"
        ));
    }
    notes
}

/// Kinds of interfaces with other machines or containers behind them, which this host's daemons may not know.
const LEADING_ON: [&str; 6] = ["bridge", "tun", "veth", "wireguard", "vxlan", "macvlan"];

/// A note for networks behind this host, whose machines are not known here.
fn behind(host: &Host, inventory: &Inventory, uplinks: &BTreeSet<u32>) -> Option<String> {
    let is_forwarding = |family: &str| {
        let path = format!("/proc/sys/net/{family}/conf/all/forwarding");
        fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
    };
    if !["ipv4", "ipv6"].into_iter().any(is_forwarding) {
        return None;
    }
    let bridges: Vec<&str> = inventory
        .networks
        .iter()
        .filter_map(|network| network.bridge.as_deref())
        .collect();
    let leads_on = |link: &&Link| {
        let kind = link.kind.as_deref();
        kind.is_some_and(|kind| LEADING_ON.contains(&kind))
            && link.up
            && link.controller.is_none()
            && !uplinks.contains(&link.index)
            && !bridges.contains(&link.name.as_str())
    };
    let links = host.links.known().into_iter().flat_map(BTreeMap::values);
    let networks: Vec<String> = links
        .filter(leads_on)
        .filter_map(|link| {
            let routes = host.routes.known()?.iter();
            let is_by = |route: &&Route| route.links.contains(&link.index) && is_wide(route);
            let networks: Vec<String> = routes
                .filter(is_by)
                .map(|route| route.prefix.to_string())
                .collect();
            (!networks.is_empty()).then(|| format!("{} ({})", link.name, networks.join(", ")))
        })
        .collect();
    (!networks.is_empty()).then(|| {
        format!(
            "this host forwards packets: machines behind {} may be reached through it, and are not listed",
            networks.join(" and ")
        )
    })
}

/// Whether the route is not the link-local one that every interface has.
fn is_wide(route: &Route) -> bool {
    !is_link_local(route.prefix.addr())
}

/// How far away the hosts are that can send packets to an interface. `None`: there is no such interface.
fn leads_out(
    host: &Host,
    inventory: &Inventory,
    name: &str,
    uplinks: &BTreeSet<u32>,
) -> Option<Level> {
    let link = host.link_named(name)?;
    let mut networks = inventory.networks.iter();
    Some(if link.arphrd == host::ARPHRD_LOOPBACK {
        Level::Localhost
    } else if networks.any(|network| network.bridge.as_deref() == Some(name)) {
        Level::Containers
    } else if uplinks.contains(&link.index) {
        Level::World
    } else {
        Level::Network
    })
}

/// Notes for containers on the host's network whose listeners were not recognised as theirs.
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
                "container {} is on the host's network: its listeners, if it has any, are listed as the host's own",
                untrusted::name(&container.name, 64)
            )
        })
        .collect()
}
