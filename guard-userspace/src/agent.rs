//! The agent: brings policy, Docker and the dataplane together, and holds the attachments while it
//! runs.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use guard_common::{
    exposure::Scope,
    reason::{Mode, Verdict},
};
use jiff::Timestamp;
use tracing::{info, warn};

use crate::{
    api::{self, DockerStatus, InterfaceStatus, PolicyStatus, Status},
    dataplane::{AttachError, Attachment, CounterRow, Generation, LoadError, TalkerRow},
    docker,
    explain::{Destination, Explanation, Seen, Situation, explain},
    host::{self, Netlink},
    policy::{ContainerNetwork, Containers, Policy, PublishedPort, Tables},
};

/// A guard at work. Dropping it detaches its programs.
pub struct Agent {
    policy: Policy,
    path: PathBuf,
    loaded_at: Timestamp,
    interfaces: Vec<Guarded>,
    docker: Docker,
    netlink: Netlink,
}

/// An interface with a program on it.
struct Guarded {
    name: String,
    attachment: Attachment,
}

/// What is known of Docker.
pub enum Docker {
    /// The policy turns it off.
    Off,
    Connected(Containers),
    Lost(String),
}

impl Agent {
    /// Puts a policy in force. If anything fails on the way, nothing stays attached.
    pub async fn start(policy: Policy, path: &Path) -> Result<Self> {
        let netlink = Netlink::connect().context("route netlink cannot be reached")?;
        let names = interface_names(&policy, path, &netlink).await?;
        let docker = ask_docker(&policy, &netlink).await;
        let tick_ns = host::tick_ns().context("the kernel's tick cannot be read")?;
        let local_ports =
            host::local_port_range().context("the local port range cannot be read")?;
        let now = host::timebase().context("the clocks cannot be read")?;
        let own = netlink.addresses().await;
        let own = own.context("this host's addresses cannot be read")?;
        let mut interfaces = Vec::with_capacity(names.len());
        for warning in host::policy_warnings(&policy, &names, &netlink).await {
            warn!("{}", warning.display(&path.display().to_string()));
        }
        for name in names {
            let tables = Tables::compile(&policy, docker.containers(), &local_ports, now);
            let generation = Generation::load(tables, tick_ns)?;
            // What comes to others' addresses is no flow of this host's.
            let open_flows = || {
                let mut flows = host::open_udp_flows();
                let networks = &docker.containers().networks;
                flows.retain(|flow| {
                    let local = flow.local.ip().to_canonical();
                    own.contains(&local)
                        || networks
                            .iter()
                            .any(|network| network.prefix.contains(&local))
                });
                flows
            };
            let (attachment, refusal) =
                Attachment::new(generation, &name, open_flows).map_err(|error| match error {
                    AttachError::NoInterface(name) => no_interface(&policy, path, &name),
                    error => error.into(),
                })?;
            let xdp_mode = attachment.mode().name();
            if let Some(refusal) = refusal {
                warn!(
                    interface = name,
                    "the driver does not take the program ({refusal}): it runs in generic mode, \
                     which costs several times as much per packet"
                );
            }
            info!(
                interface = name,
                xdp_mode,
                mode = policy.mode.name(),
                scope = policy.scope.name(),
                services = policy.services.len(),
                published = docker.containers().published.len(),
                "attached"
            );
            interfaces.push(Guarded { name, attachment });
        }
        Ok(Self {
            policy,
            path: path.to_owned(),
            loaded_at: Timestamp::now(),
            interfaces,
            docker,
            netlink,
        })
    }

    /// Whether and where the guard is at work, asked from the kernel at this moment.
    pub async fn status(&self) -> Result<Status> {
        let mut interfaces = Vec::with_capacity(self.interfaces.len());
        for guarded in &self.interfaces {
            interfaces.push(self.interface_status(guarded).await?);
        }
        let not_enforcing_because = self.obstacles(&interfaces);
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: self.policy.mode.name().to_owned(),
            scope: self.policy.scope.name().to_owned(),
            enforcing: self.policy.mode == Mode::Enforce && not_enforcing_because.is_empty(),
            not_enforcing_because,
            interfaces,
            policy: PolicyStatus {
                path: self.path.display().to_string(),
                sha256: self.policy.sha256.clone(),
                loaded_at: self.loaded_at,
                services: self.policy.services.len(),
            },
            docker: self.docker.status(&self.policy),
        })
    }

    /// What the kernel counted, on every interface.
    pub fn counters(&self) -> Result<Vec<api::Counter>, LoadError> {
        let mut counters = Vec::new();
        for Guarded { name, attachment } in &self.interfaces {
            let rows = attachment.generation().counters()?;
            counters.extend(rows.into_iter().map(|row| to_counter(name, row)));
        }
        Ok(counters)
    }

    /// The sources that sent most, of every interface, the heaviest first.
    pub fn talkers(&self) -> Result<Vec<api::Talker>, LoadError> {
        let mut talkers = Vec::new();
        for Guarded { name, attachment } in &self.interfaces {
            let rows = attachment.generation().talkers()?;
            talkers.extend(rows.into_iter().map(|row| {
                let TalkerRow {
                    source,
                    packets,
                    dropped,
                    bytes,
                } = row;
                api::Talker {
                    interface: name.clone(),
                    source,
                    packets,
                    dropped,
                    bytes,
                }
            }));
        }
        talkers.sort_unstable_by_key(|talker| (std::cmp::Reverse(talker.packets), talker.source));
        Ok(talkers)
    }

    /// Why a packet from there to here gets its verdict, under the policy in force.
    pub async fn explain(&self, from: IpAddr, to: &Destination) -> Result<Explanation> {
        let situation = Situation {
            policy: &self.policy,
            containers: self.docker.containers(),
            local_ports: host::local_port_range()?,
            now: host::timebase()?,
            tick_ns: host::tick_ns()?,
            own: &self.netlink.addresses().await?,
        };
        let mut explanation = explain(&situation, from, to)?;
        let of_source = self
            .talkers()?
            .into_iter()
            .filter(|talker| talker.source == from);
        let seen = of_source.fold((0, 0), |(packets, dropped), talker| {
            (packets + talker.packets, dropped + talker.dropped)
        });
        explanation.seen = Some(Seen {
            packets: seen.0,
            dropped: seen.1,
        });
        Ok(explanation)
    }

    async fn interface_status(&self, guarded: &Guarded) -> Result<InterfaceStatus> {
        let Guarded { name, attachment } = guarded;
        // An interface that is gone has no program either.
        let state = self.netlink.xdp(name).await.unwrap_or_default();
        Ok(InterfaceStatus {
            name: name.clone(),
            attached: state.is_some_and(|state| state.program_id == attachment.program_id()),
            xdp_mode: attachment.mode().name().to_owned(),
            program_id: attachment.program_id(),
            generation: 1,
        })
    }

    /// Why closed ports may be open although the mode is `enforce`.
    fn obstacles(&self, interfaces: &[InterfaceStatus]) -> Vec<String> {
        if self.policy.mode != Mode::Enforce {
            return Vec::new();
        }
        let mut obstacles: Vec<String> = interfaces
            .iter()
            .filter(|interface| !interface.attached)
            .map(|interface| format!("the program is not attached to {}", interface.name))
            .collect();
        if let Docker::Lost(error) = &self.docker
            && self.policy.scope == Scope::Containers
        {
            obstacles.push(format!("published ports are not known: {error}"));
        }
        obstacles
    }
}

impl Docker {
    pub fn containers(&self) -> &Containers {
        static NONE: Containers = Containers {
            published: Vec::new(),
            networks: Vec::new(),
        };
        match self {
            Self::Connected(containers) => containers,
            Self::Off | Self::Lost(_) => &NONE,
        }
    }

    fn status(&self, policy: &Policy) -> DockerStatus {
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
                Self::Lost(error) => Some(error.clone()),
                Self::Off | Self::Connected(_) => None,
            },
            published,
        }
    }
}

/// The interfaces to guard: the policy's, or those of the default routes.
async fn interface_names(policy: &Policy, path: &Path, netlink: &Netlink) -> Result<Vec<String>> {
    let names: Vec<String> = match &policy.interfaces {
        Some(interfaces) => {
            let names = interfaces.iter().map(|interface| interface.name.clone());
            names.collect()
        }
        None => netlink
            .default_route_interfaces()
            .await
            .context("the default routes cannot be read")?,
    };
    anyhow::ensure!(
        !names.is_empty(),
        "{}: there is no default route to take the interfaces from: name them, as in `interfaces = \
         [\"eth0\"]`",
        path.display()
    );
    for name in &names {
        match netlink.is_ethernet(name).await {
            Ok(true) => {}
            Ok(false) => anyhow::bail!(
                "{}{}: {name} is no Ethernet interface, and the program would not understand its \
                 frames: tun, wg, ppp and the like are not supported, nor does guarding the interface \
                 below them look inside",
                path.display(),
                line_of(policy, name)
            ),
            Err(_) => return Err(no_interface(policy, path, name)),
        }
    }
    Ok(names)
}

/// `:3`, where the policy names the interface; nothing if it does not.
fn line_of(policy: &Policy, name: &str) -> String {
    let mut named = policy.interfaces.iter().flatten();
    named
        .find(|interface| interface.name == name)
        .map(|interface| format!(":{}", interface.line))
        .unwrap_or_default()
}

fn no_interface(policy: &Policy, path: &Path, name: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "{}{}: interface {name} does not exist: `ip -brief link` lists those that do",
        path.display(),
        line_of(policy, name)
    )
}

/// Docker that does not answer opens nothing that was closed before, but ports that it published are
/// not known: the guard starts all the same, so that listed services keep their budgets, and says so.
pub async fn ask_docker(policy: &Policy, netlink: &Netlink) -> Docker {
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
            warn!(
                "{error}: ports that containers publish are not known and stay open; \
                 `[docker] socket = \"\"` in the policy if there is no Docker"
            );
            Docker::Lost(error)
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

fn to_counter(interface: &str, row: CounterRow) -> api::Counter {
    let CounterRow {
        service,
        outcome,
        packets,
        bytes,
    } = row;
    api::Counter {
        interface: interface.to_owned(),
        service,
        verdict: outcome.verdict().name().to_owned(),
        would: outcome.would_drop.then(|| Verdict::Drop.name().to_owned()),
        reason: outcome.reason.name().to_owned(),
        packets,
        bytes,
    }
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
