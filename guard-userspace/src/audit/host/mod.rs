//! What of this host can be reached from outside, who answers there, what the policy does with it, and
//! what to change.

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
    in_force::{GuardLocation, GuardState, Knowledge, PolicyInForce},
    owner::Owner,
    role::Role,
    survey::{DockerAsked, Survey, find_docker},
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
    /// `null`: there is none, and nothing is judged.
    pub policy: Option<JudgedBy>,
    pub docker: DockerAsked,
    /// What could not be told.
    pub notes: Vec<String>,
    pub endpoints: Vec<Audited>,
    /// How many of the endpoints are findings.
    pub findings: usize,
}

/// The policy that endpoints are judged by.
#[derive(Debug, Serialize)]
pub struct JudgedBy {
    pub path: String,
    pub mode: &'static str,
    pub scope: &'static str,
    pub guard: GuardState,
}

impl From<PolicyInForce> for JudgedBy {
    fn from(in_force: PolicyInForce) -> Self {
        let PolicyInForce {
            path,
            policy,
            guard,
            knowledge: _,
        } = in_force;
        Self {
            path,
            mode: policy.mode.name(),
            scope: policy.scope.name(),
            guard,
        }
    }
}

/// An endpoint, and what is to be said of it.
#[derive(Clone, Debug, Serialize)]
pub struct Audited {
    #[serde(flatten)]
    pub endpoint: Endpoint,
    /// What the policy does with it; several if it is not the same on all addresses. Empty: it cannot be
    /// reached from outside, or there is no policy.
    pub policy: Vec<Decision>,
    /// It is open to the world, and no service lists it.
    pub finding: bool,
    /// Only if others can reach it.
    pub danger: Option<&'static Danger>,
    /// What to do about it, one of them.
    pub changes: Vec<String>,
}

impl Report {
    /// Judges what has been found by a policy, if there is one.
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

    /// Why this is no success, if it is none.
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
        Knowledge::OwnAlone => Vec::new(),
        Knowledge::Agent {
            published,
            connected,
        } => go_by_agent(&mut containers, published, *connected, notes),
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

/// The endpoints, those on loopback with the neighbours that reach them all the same.
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

/// The interfaces that packets come in by from outside, and whether a guard drops martians there.
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
    // What comes in by a port of a bridge or a bond comes to the host by that.
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

/// Services for an address that neither this host nor a container has: of what is listed there, nothing is found.
fn on_no_address(survey: &Survey, policy: &Policy) -> Vec<String> {
    let own = survey.host.own_addresses().unwrap_or_default();
    let is_known =
        |address: &IpAddr| own.contains(address) || survey.container_addresses.contains(address);
    let services = policy.services.iter();
    let elsewhere = services.filter_map(|service| {
        let address = service.address.filter(|address| !is_known(address))?;
        Some(format!(
            "service {} is for {address}, which neither this host nor a container has: whatever answers there \
             is not among these",
            service.name
        ))
    });
    elsewhere.collect()
}

/// The addresses of interfaces where nothing is judged, which `notes` names.
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
        // Every interface has one, bridges of containers too.
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
                    "the interface that a container has {} on is not known: what is sent there is not judged",
                    own.address
                ));
            }
        }
    }
    if !names.is_empty() {
        let names: Vec<&str> = names.into_iter().collect();
        notes.push(format!(
            "what comes in over {} is not judged",
            names.join(", ")
        ));
    }
    Ok(addresses)
}

/// Leaves of the containers what the agent knows of as well: it closes nothing else. Returns the ports
/// that it does not know of, which `notes` names.
fn go_by_agent(
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
    // The agent's status names no family. Where this process sees the port, it knows it.
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
        // It has never heard of any container.
        containers.networks.clear();
    }
    if !unknown.is_empty() {
        let mut names: Vec<String> = unknown.iter().map(PublishedPort::to_string).collect();
        names.dedup();
        notes.push(format!(
            "the agent does not know that containers publish {}, and does not close what it does not \
             know: `guard status` says what it hears from Docker",
            names.join(", ")
        ));
    }
    unknown
}

impl Audited {
    /// Of an endpoint with one port.
    fn new(endpoint: Endpoint, judge: Option<&EndpointJudge<'_>>) -> Self {
        let policy = judge
            .map(|judge| judge.decide(&endpoint))
            .unwrap_or_default();
        // What a service lists for others than a stranger is listed, too.
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

    /// Whether nothing that is sent to it from outside arrives.
    fn is_closed(&self) -> bool {
        let mut decisions = self.policy.iter();
        !self.policy.is_empty() && decisions.all(|decision| decision.fate == Fate::Closed)
    }

    /// Whether a service opens it to everybody.
    fn is_open_to_any(&self) -> bool {
        let mut decisions = self.policy.iter();
        decisions.any(|decision| decision.from.iter().any(|from| from == ANY))
    }

    /// Whether others can reach it.
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

/// What is known of the first of its ports: the one inside a container says what listens there, as much
/// as the host's.
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
    fn what_the_agent_does_not_know_of_is_left_out_and_named() {
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
        let unknown = go_by_agent(&mut containers, &known, true, &mut notes);
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
    fn an_agent_that_knows_all_of_it_is_no_note() {
        let mut containers = Containers {
            published: ports(&["tcp/8000"]),
            ..Containers::default()
        };
        let mut notes = Vec::new();
        let known = ["tcp/8000".to_owned()];
        assert_eq!(go_by_agent(&mut containers, &known, true, &mut notes), []);
        assert_eq!(containers.published, ports(&["tcp/8000"]));
        assert!(notes.is_empty());
    }
}
