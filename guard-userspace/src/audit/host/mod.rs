//! Lists the endpoints of this host: how far away they can be reached, their owners, the policy's decisions, and
//! possible changes.

mod change;
mod describe;
mod endpoint;
mod in_force;
mod inner;
mod judge;
mod loopback;
mod owner;
mod rewritten;
mod role;
mod sockets;
mod survey;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::Context as _;
use serde::Serialize;

use self::{
    change::changes,
    inner::SharedParent,
    judge::{ANY, Decision, EndpointJudge, Fate},
    loopback::{LoopbackFacts, OutsideLink, neighbours},
};
pub use self::{
    describe::{columns, describe_owner},
    endpoint::{Endpoint, Level, joined},
    in_force::{FindPolicyError, GuardLocation, GuardState, Knowledge, PolicyInForce},
    owner::Owner,
    role::Role,
    survey::{DockerQuery, Survey, find_docker},
};
use super::compose::address::is_link_local;
use super::dangers::{Danger, danger_at};
use crate::{
    host::{self, ARPHRD_LOOPBACK, Link},
    lockout::arrival::Arrivals,
    policy::{Containers, KernelTick, Policy, PublishedPort, Tables, labels},
};

/// What `guard audit --json` prints.
#[derive(Debug, Serialize)]
pub struct Report {
    /// `null`: there is no policy.
    pub policy: Option<JudgedBy>,
    pub docker: DockerQuery,
    /// What the audit could not find out.
    pub notes: Vec<String>,
    pub endpoints: Vec<Audited>,
    /// How many of the endpoints are findings.
    pub findings: usize,
}

/// The policy that is applied to the endpoints.
#[derive(Debug, Serialize)]
pub struct JudgedBy {
    pub path: String,
    pub mode: &'static str,
    pub scope: &'static str,
    pub guard: GuardState,
    /// The entries of `guard allow` and `guard deny`, which no decision includes. `null`: only an agent knows them.
    pub entries: Option<usize>,
}

impl From<PolicyInForce> for JudgedBy {
    fn from(in_force: PolicyInForce) -> Self {
        let PolicyInForce {
            path,
            policy,
            guard,
            knowledge: _,
            entries,
        } = in_force;
        Self {
            path,
            mode: policy.mode.name(),
            scope: policy.scope.name(),
            guard,
            entries,
        }
    }
}

/// An endpoint, with the policy's decisions, its danger and possible changes.
#[derive(Clone, Debug, Serialize)]
pub struct Audited {
    #[serde(flatten)]
    pub endpoint: Endpoint,
    /// The policy's decisions: several if they differ between addresses. Empty: the endpoint cannot be reached from
    /// outside, or there is no policy.
    pub policy: Vec<Decision>,
    /// It is open to the world, and no service lists it.
    pub finding: bool,
    /// `None` unless other hosts can reach the endpoint.
    pub danger: Option<&'static Danger>,
    /// Alternative changes: one is enough.
    pub changes: Vec<String>,
}

impl Report {
    /// Applies the policy, if there is one, to the endpoints of the survey.
    pub async fn new(
        survey: Survey,
        policy: Option<PolicyInForce>,
        mut notes: Vec<String>,
    ) -> anyhow::Result<Self> {
        notes.extend(survey.notes.iter().cloned());
        let audited = match &policy {
            Some(in_force) => judge_all(&survey, in_force, &mut notes).await?,
            None => {
                let endpoints = with_neighbours(&survey, None)?.into_iter();
                endpoints
                    .map(|endpoint| Audited::new(endpoint, None))
                    .collect()
            }
        };
        let docker = survey.docker;
        let mut endpoints: Vec<Audited> = joined(audited, Audited::continues, |audited| {
            &mut audited.endpoint.ports
        });
        let scope = policy.as_ref().map(|in_force| in_force.policy.scope);
        for audited in &mut endpoints {
            audited.changes = changes(audited, scope);
        }
        Ok(Self {
            policy: policy.map(JudgedBy::from),
            docker,
            notes,
            findings: endpoints.iter().filter(|audited| audited.finding).count(),
            endpoints,
        })
    }

    /// The error for standard error if there are findings.
    pub fn complaint(&self) -> Option<String> {
        match self.findings {
            0 => None,
            1 => Some("1 endpoint is open to the world, and no service lists it".to_owned()),
            n => Some(format!(
                "{n} endpoints are open to the world, and no service lists them"
            )),
        }
    }
}

async fn judge_all(
    survey: &Survey,
    in_force: &PolicyInForce,
    notes: &mut Vec<String>,
) -> anyhow::Result<Vec<Audited>> {
    let mut containers = survey.containers.clone();
    let unknown = match &in_force.knowledge {
        Knowledge::OwnReading => Vec::new(),
        Knowledge::Agent {
            published,
            connected,
        } => limit_to_agent(&mut containers, published, *connected, notes),
    };
    let tick_ns = host::tick_ns().context("the kernel's tick cannot be read")?;
    let (policy, _) = labels::apply(&in_force.policy, &containers, KernelTick { tick_ns });
    let now = host::timebase().context("the clocks cannot be read")?;
    let local_ports = host::local_port_range().context("the local port range cannot be read")?;
    let own: Vec<IpAddr> = survey.host.own_addresses().into_iter().flatten().collect();
    let judge = EndpointJudge {
        policy: &policy,
        tables: Tables::compile(&policy, &containers, &local_ports, now),
        own: &own,
        unguarded: unguarded(survey, &policy, notes)?,
        unknown,
        now: now.world,
        is_at_work: in_force.guard != GuardState::NotAtWork,
    };
    notes.extend(on_no_address(survey, &policy));
    let endpoints = with_neighbours(survey, Some(in_force))?.into_iter();
    Ok(endpoints
        .map(|endpoint| Audited::new(endpoint, Some(&judge)))
        .collect())
}

/// The endpoints. Those on loopback get the neighbours that can reach them.
fn with_neighbours(
    survey: &Survey,
    in_force: Option<&PolicyInForce>,
) -> anyhow::Result<Vec<Endpoint>> {
    let outside = outside(survey, in_force)?;
    let facts = LoopbackFacts {
        outside: &outside,
        sysctls: survey.host.sysctls.known(),
        nat: survey.host.nat.known(),
        daemon: survey.daemon.as_ref(),
    };
    let endpoints = survey.endpoints.iter().cloned();
    Ok(endpoints
        .map(|endpoint| match neighbours(&endpoint, &facts) {
            None => endpoint,
            Some(found) => Endpoint {
                level: Level::Network,
                neighbours: Some(found),
                ..endpoint
            },
        })
        .collect())
}

/// The interfaces that packets from outside arrive on, and whether a guard drops martians there.
fn outside(survey: &Survey, in_force: Option<&PolicyInForce>) -> anyhow::Result<Vec<OutsideLink>> {
    let guarding = in_force.filter(|in_force| in_force.drops_martians());
    let arrivals = match guarding {
        Some(in_force) => {
            let arrivals = Arrivals::new(&in_force.policy, &survey.host);
            Some(arrivals.context("this host's interfaces cannot be read")?)
        }
        None => None,
    };
    let host = &survey.host;
    let none = BTreeSet::new();
    let links = host.links.known().into_iter().flat_map(BTreeMap::values);
    // Packets that arrive on a port of a bridge or a bond reach the host through that bridge or bond.
    let leads_outside = |link: &&Link| {
        let is_apart = link.arphrd == ARPHRD_LOOPBACK || link.controller.is_some();
        link.up && !is_apart && !host.is_container_bridge(&link.name, &none)
    };
    Ok(links
        .filter(leads_outside)
        .map(|link| OutsideLink {
            name: link.name.clone(),
            drops_martians: arrivals
                .as_ref()
                .is_some_and(|arrivals| arrivals.leads_to_guarded(link.index)),
        })
        .collect())
}

/// Notes for services with an address that neither this host nor a container has: no endpoint is found there.
fn on_no_address(survey: &Survey, policy: &Policy) -> Vec<String> {
    let own = survey.host.own_addresses().unwrap_or_default();
    let is_known =
        |address: &IpAddr| own.contains(address) || survey.container_addresses.contains(address);
    let services = policy.services.iter();
    let elsewhere = services.filter_map(|service| {
        let address = service.address.filter(|address| !is_known(address))?;
        Some(format!(
            "service {} has the address {address}, which neither this host nor a container has: endpoints there \
             are not listed",
            service.name
        ))
    });
    elsewhere.collect()
}

/// The addresses to which the policy does not apply: it does not guard their interfaces, which a note names.
fn unguarded(
    survey: &Survey,
    policy: &Policy,
    notes: &mut Vec<String>,
) -> anyhow::Result<BTreeSet<IpAddr>> {
    let arrivals = Arrivals::new(policy, &survey.host);
    let arrivals = arrivals.context("this host's interfaces cannot be read")?;
    let is_of_containers = |address: IpAddr| {
        let mut networks = survey.containers.networks.iter();
        networks.any(|network| network.prefix.contains(&address))
    };
    let mut addresses = BTreeSet::new();
    let mut names = BTreeSet::new();
    for own in survey.host.addresses.known().into_iter().flatten() {
        let (index, address) = (own.link, own.address);
        let is_inner = address.is_loopback() || is_of_containers(address);
        if is_inner || arrivals.leads_to_guarded(index) {
            continue;
        }
        addresses.insert(address);
        // Every interface has a link-local address, also the bridges of containers.
        if is_link_local(address) {
            continue;
        }
        names.extend(survey.host.link(index).map(|link| link.name.as_str()));
    }
    for own in &survey.own_addresses {
        let Some(SharedParent { interface }) = &own.parent else {
            continue;
        };
        let link = interface
            .as_deref()
            .and_then(|name| survey.host.link_named(name));
        match link {
            Some(link) if arrivals.leads_to_guarded(link.index) => {}
            Some(link) => {
                addresses.insert(own.address);
                names.insert(&link.name);
            }
            None => {
                addresses.insert(own.address);
                notes.push(format!(
                    "the interface of the container address {} is not known: no policy is applied there",
                    own.address
                ));
            }
        }
    }
    if !names.is_empty() {
        let names: Vec<&str> = names.into_iter().collect();
        notes.push(format!(
            "the policy does not guard {}: it does not apply to addresses there",
            names.join(", ")
        ));
    }
    Ok(addresses)
}

/// Reduces the containers to those that the agent knows as well, since it closes no other ports. Returns the ports that
/// the agent does not know, which a note names.
fn limit_to_agent(
    containers: &mut Containers,
    published: &[String],
    connected: bool,
    notes: &mut Vec<String>,
) -> Vec<PublishedPort> {
    let known: Vec<PublishedPort> = published
        .iter()
        .filter_map(|port| PublishedPort::parse(port).ok())
        .flatten()
        .collect();
    let (mut both, unknown): (Vec<_>, Vec<_>) = containers
        .published
        .drain(..)
        .partition(|port| known.contains(port));
    // The agent's status names no family. If this process sees the port, its own record has the family.
    let is_seen = |port: &PublishedPort| {
        let mut seen = both.iter();
        seen.any(|seen| (seen.protocol, seen.port) == (port.protocol, port.port))
    };
    let by_agent_alone: Vec<_> = known
        .iter()
        .filter(|port| !is_seen(port))
        .copied()
        .collect();
    both.extend(by_agent_alone);
    containers.published = both;
    containers.labelled.retain(|container| {
        let mut ports = container.published.iter();
        ports.all(|port| known.contains(port))
    });
    if !connected && known.is_empty() {
        // The agent has never received a list of containers.
        containers.networks.clear();
    }
    if !unknown.is_empty() {
        let mut names: Vec<String> = unknown.iter().map(PublishedPort::to_string).collect();
        names.dedup();
        notes.push(format!(
            "the agent does not know that containers publish {}, and does not close these ports: `guard status` \
             shows its connection to Docker",
            names.join(", ")
        ));
    }
    unknown
}

impl Audited {
    /// `endpoint` has one port.
    fn new(endpoint: Endpoint, judge: Option<&EndpointJudge<'_>>) -> Self {
        let policy = judge
            .map(|judge| judge.decide(&endpoint))
            .unwrap_or_default();
        // A service that admits only some sources lists the endpoint as well.
        let settles = |decision: &Decision| match decision.fate {
            Fate::Open | Fate::Closed => true,
            Fate::WouldBeClosed => decision.service.is_some(),
            Fate::NotGuarded => false,
        };
        let is_settled = !policy.is_empty() && policy.iter().all(settles);
        let finding = endpoint.level == Level::World && !endpoint.may_be_client && !is_settled;
        let known = danger(&endpoint);
        let audited = Self {
            danger: None,
            policy,
            finding,
            changes: Vec::new(),
            endpoint,
        };
        let danger = known.filter(|_| audited.is_reachable());
        Self { danger, ..audited }
    }

    /// Whether all packets to it from outside are dropped.
    fn is_closed(&self) -> bool {
        let mut decisions = self.policy.iter();
        !self.policy.is_empty() && decisions.all(|decision| decision.fate == Fate::Closed)
    }

    /// Whether a service opens it to every source.
    fn is_open_to_any(&self) -> bool {
        let mut decisions = self.policy.iter();
        decisions.any(|decision| decision.from.iter().any(|from| from == ANY))
    }

    /// Whether other hosts can reach it.
    fn is_reachable(&self) -> bool {
        self.endpoint.level <= Level::Network && !self.is_closed()
    }

    fn continues(&self, next: &Self) -> bool {
        let Self {
            endpoint,
            policy,
            finding,
            danger,
            changes: _,
        } = self;
        endpoint.continues(&next.endpoint)
            && (policy, finding, danger) == (&next.policy, &next.finding, &next.danger)
    }
}

/// The danger of the endpoint's first port: looked up by its number inside the container, then on the host.
pub fn danger(endpoint: &Endpoint) -> Option<&'static Danger> {
    let known = |port: u16| danger_at(endpoint.protocol, port);
    endpoint
        .inside
        .and_then(known)
        .or_else(|| known(*endpoint.ports.start()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Labelled;
    use crate::policy::PublishedAt;

    fn ports(ports: &[&str]) -> Vec<PublishedPort> {
        let ports = ports
            .iter()
            .filter_map(|port| PublishedPort::parse(port).ok())
            .flatten();
        ports.collect()
    }

    fn labelled(container: &str, published: &[&str]) -> Labelled {
        Labelled {
            container: container.to_owned(),
            published: ports(published),
            labels: Default::default(),
        }
    }

    #[test]
    fn ports_that_the_agent_does_not_know_are_left_out_and_named() {
        let mut seen = ports(&["tcp/8000", "tcp/8001"]);
        // On IPv4 alone, as this process sees it.
        seen.retain(|port| port.port != 8000 || port.at == PublishedAt::EveryIpv4);
        let mut containers = Containers {
            published: seen.clone(),
            labelled: vec![
                labelled("known", &["tcp/8000"]),
                labelled("unknown", &["tcp/8000", "tcp/8001"]),
            ],
            ..Containers::default()
        };
        let mut notes = Vec::new();
        let known = ["tcp/8000".to_owned(), "udp/53".to_owned()];
        let unknown = limit_to_agent(&mut containers, &known, true, &mut notes);
        assert_eq!(unknown, ports(&["tcp/8001"]));
        assert_eq!(
            containers.published,
            [&seen[..1], &ports(&["udp/53"])].concat()
        );
        assert_eq!(containers.labelled, [labelled("known", &["tcp/8000"])]);
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("publish tcp/8001, and"), "{notes:?}");
    }

    #[test]
    fn an_agent_that_knows_all_ports_gives_no_note() {
        let mut containers = Containers {
            published: ports(&["tcp/8000"]),
            ..Containers::default()
        };
        let mut notes = Vec::new();
        let known = ["tcp/8000".to_owned()];
        assert_eq!(
            limit_to_agent(&mut containers, &known, true, &mut notes),
            []
        );
        assert_eq!(containers.published, ports(&["tcp/8000"]));
        assert!(notes.is_empty());
    }
}
