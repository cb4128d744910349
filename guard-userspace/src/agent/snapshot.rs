//! The snapshot for readers: the loop publishes it after each change, and readers do not wait for the loop.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Weak},
    time::Instant,
};

use anyhow::Result;
use guard_common::reason::{Mode, Verdict};
use ipnet::IpNet;
use jiff::Timestamp;

use super::{
    ChangeError, Loaded, Trial,
    attached::{AttachedAt, AttachedPrograms, OLD},
    changes::other_file,
    plan::Plan,
    policy_file::{Accepted, PolicyFile, StaleFile},
    recent::{self, RecentTalkers},
};
use crate::{
    api::{
        self, AgentStatus, Applied, DockerStatus, Explanation, FloodStatus, InterfaceStatus,
        ModeStatus, PolicyStatus, PolicyText, RecentPackets, Seen, Status, TrialStatus,
        capture::{CaptureRequest, DEFAULT_RATE, HIGHEST_RATE},
    },
    counted::{of_every_interface, to_counter, to_talker},
    dataplane::{FlowCounts, PacketFilter, Tap, XdpMode, pinned_program, pins::Pins},
    explain::{
        Advisor, Destination, ExplainInput, SourceExplanation, explain, explain_source,
        reason_named,
    },
    host::{self, Host, XdpState},
    policy::{
        Budgets, Containers, Entry, From, KernelTick, Policy, PublishedPort, Service, Source,
    },
    state_store::Modes,
};

/// The state of the guard at one moment.
#[derive(Clone)]
pub struct Snapshot {
    pub loaded: Arc<Loaded>,
    pub plan: Arc<Plan>,
    pub host: Arc<Host>,
    pub modes: Modes,
    pub trial: Option<Trial>,
    /// The interfaces that have the program, or should have it.
    pub interfaces: Vec<GuardedInterface>,
    /// Why the plan is not in force, if the reason concerns no single interface.
    pub trouble: Option<String>,
    /// Warnings about open sessions that newly published ports of containers close.
    pub cut: Arc<Vec<String>>,
    /// Why a restart of the agent would lose the changes of operators, if it would.
    pub not_kept: Option<String>,
    /// The root folder of the pins.
    pub pins: PathBuf,
    /// Held by a running capture. Weak: a snapshot that held it would look like a capture that never ends.
    pub tapped: Weak<()>,
    /// The number of tracked UDP flows. `None`: flows are not tracked.
    pub flows: Option<FlowCounts>,
    /// The services that are flooded.
    pub floods: Vec<FloodStatus>,
    /// When the mode, or whether the plan is in force, last changed.
    pub since: Timestamp,
    /// The policy file that a reload reads.
    pub policy_file: PathBuf,
    /// What was read from that file.
    pub file: Arc<PolicyFile>,
    /// The hashes of policies that were tried and not confirmed.
    pub refused: Vec<String>,
}

/// An interface of the plan.
#[derive(Clone)]
pub struct GuardedInterface {
    pub index: u32,
    /// Its current name.
    pub name: String,
    /// `None`: no program has been put in force on it.
    pub in_force: Option<ProgramInForce>,
    /// Why its program or tables differ from the plan.
    pub trouble: Option<String>,
}

/// The program on an interface, and the pins of its state.
#[derive(Clone)]
pub struct ProgramInForce {
    pub pins: Pins,
    pub program_id: u32,
    pub mode: XdpMode,
    pub generation: u64,
    /// When it was put in force: an earlier reading of the kernel does not have it.
    pub since: Instant,
}

impl Snapshot {
    /// The policy with the modes of operators and the labels of containers.
    pub fn effective(&self) -> &Policy {
        &self.plan.content.policy
    }

    /// The entries of operators in force.
    pub fn entries(&self) -> &[Entry] {
        &self.plan.content.entries
    }

    /// The containers that the plan knows.
    pub fn containers(&self) -> &Containers {
        &self.plan.content.containers
    }

    /// The answer after the kill switch, before the loop has made a plan for it.
    pub fn applied_off(&self) -> Applied {
        let mut in_force = self.in_force().map(|(_, in_force)| in_force.generation);
        Applied {
            path: self.loaded.path.display().to_string(),
            sha256: self.loaded.policy.sha256.clone(),
            mode: Mode::Off.name().to_owned(),
            generation: in_force.next().unwrap_or_default() + 1,
            until: None,
            other_file: None,
            policy_mode: Some(self.loaded.policy.mode.name().to_owned()),
        }
    }

    /// The address for metrics and the web page, by the policy in force.
    pub fn web(&self) -> Option<SocketAddr> {
        self.loaded.policy.web
    }

    /// The text of the policy in force.
    pub fn policy_text(&self) -> PolicyText {
        PolicyText {
            path: self.loaded.path.display().to_string(),
            text: self.loaded.text.to_string(),
            file: Some(self.policy_file.display().to_string()),
        }
    }

    /// The status of the guard. `attached`: the programs that the kernel has. Blocks while the policy file is read.
    pub fn status(&self, attached: &AttachedAt) -> Status {
        let AttachedAt { programs, at } = attached;
        let old = at.elapsed() >= OLD;
        let policy = self.effective();
        let interfaces = self.interface_status(programs, *at);
        let mut not_enforcing_because = self.obstacles(&interfaces);
        if policy.mode == Mode::Enforce && old {
            not_enforcing_because.push(format!(
                "the kernel does not answer: the programs on its interfaces were last read {} s ago",
                at.elapsed().as_secs()
            ));
        }
        let stale = self.stale();
        let (stale, stale_advice) = stale.map(|stale| (stale.why, stale.advice)).unzip();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: policy.mode.name().to_owned(),
            scope: policy.scope.name().to_owned(),
            enforcing: policy.mode == Mode::Enforce && not_enforcing_because.is_empty(),
            not_enforcing_because,
            agent: AgentStatus {
                running: true,
                pid: Some(std::process::id()),
                last_seen: None,
                trouble: None,
            },
            interfaces,
            policy: PolicyStatus {
                path: self.loaded.path.display().to_string(),
                sha256: policy.sha256.clone(),
                loaded_at: self.loaded.at,
                services: policy.services.len(),
                file: Some(self.policy_file.display().to_string()),
                stale,
                stale_advice,
            },
            modes: self.mode_status(),
            trial: self.trial.as_ref().map(|trial| TrialStatus {
                path: self.loaded.path.display().to_string(),
                until: trial.until,
                back_to: trial.before.path.display().to_string(),
                other_file: other_file(&self.policy_file, &self.loaded),
                by: Some(trial.by.user.clone()),
                process: trial.by.process,
            }),
            docker: Some(self.docker_status()),
            warnings: self.all_warnings(),
            not_kept: self.not_kept.clone(),
            since: Some(self.since),
            floods: self.floods.clone(),
            entries: self.entries().len(),
            open: open_ports(policy),
            open_from: open_from(policy),
            closed: closed_ports(policy, self.containers()),
            publishers: self.plan.publishers.clone(),
            page: self.web().map(|address| format!("http://{address}/")),
        }
    }

    /// How the policy file differs from the policy that operators have accepted. It is read now: an operator who has
    /// just written the file sees what is true. Blocks while the file is read.
    pub fn stale(&self) -> Option<StaleFile> {
        let trial = self.trial.as_ref();
        let accepted = Accepted {
            loaded: trial.map_or(&*self.loaded, |trial| &*trial.before),
            on_trial: trial.map(|_| &*self.loaded),
            refused: &self.refused,
            clock: KernelTick {
                tick_ns: self.host.tick_ns,
            },
        };
        self.file.stale(&self.policy_file, &accepted)
    }

    fn interface_status(
        &self,
        attached: &AttachedPrograms,
        read_at: Instant,
    ) -> Vec<InterfaceStatus> {
        // An interface that does not exist any more is among the plan's troubles.
        let is_there = |interface: &&GuardedInterface| {
            let mut troubles = self.plan.troubles.iter();
            !troubles.any(|trouble| trouble.name == interface.name)
        };
        let guarded = self.interfaces.iter().filter(is_there).map(|interface| {
            let in_force = interface.in_force.as_ref();
            let program_id = in_force.map(|in_force| in_force.program_id);
            let found = attached.get(&interface.index);
            // Between a swap and the next snapshot, the pinned link is more recent than the snapshot.
            let is_ours = |found: &XdpState| {
                let in_force = interface.in_force.as_ref();
                Some(found.program_id) == program_id
                    || in_force.and_then(|one| pinned_program(&one.pins)) == Some(found.program_id)
            };
            let is_newer = in_force.is_some_and(|in_force| {
                in_force.since > read_at && pinned_program(&in_force.pins) == program_id
            });
            InterfaceStatus {
                name: interface.name.clone(),
                attached: is_newer || found.is_some_and(is_ours),
                xdp_mode: in_force
                    .map_or("native", |in_force| in_force.mode.name())
                    .to_owned(),
                program_id: program_id.unwrap_or_default(),
                generation: in_force.map_or(0, |in_force| in_force.generation),
                trouble: interface.trouble.clone(),
            }
        });
        let troubled = self.plan.troubles.iter().map(|trouble| InterfaceStatus {
            name: trouble.name.clone(),
            attached: false,
            xdp_mode: "native".to_owned(),
            program_id: 0,
            generation: 0,
            trouble: Some(trouble.why.clone()),
        });
        guarded.chain(troubled).collect()
    }

    /// Why something that the policy closes may be open although the mode is `enforce`.
    fn obstacles(&self, interfaces: &[InterfaceStatus]) -> Vec<String> {
        if self.effective().mode != Mode::Enforce {
            return Vec::new();
        }
        let mut obstacles = self.plan.obstacles.clone();
        for interface in interfaces {
            let InterfaceStatus {
                name,
                attached,
                trouble,
                ..
            } = interface;
            match (attached, trouble) {
                (true, None) => {}
                (true, Some(trouble)) => {
                    obstacles.push(format!("{name} is not as planned: {trouble}"));
                }
                (false, Some(trouble)) => {
                    obstacles.push(format!("the program is not attached to {name}: {trouble}"));
                }
                (false, None) => {
                    obstacles.push(format!("the program is not attached to {name}"));
                }
            }
        }
        obstacles.extend(self.trouble.clone());
        obstacles
    }

    fn all_warnings(&self) -> Vec<String> {
        let warnings = self.plan.warnings.iter();
        warnings.chain(self.cut.iter()).cloned().collect()
    }

    fn mode_status(&self) -> Vec<ModeStatus> {
        let host = self.modes.host.iter().map(|changed| (None, changed));
        let services = self.modes.services.iter();
        let services = services.map(|(name, changed)| (Some(name.clone()), changed));
        host.chain(services)
            .map(|(service, changed)| ModeStatus {
                service,
                mode: changed.mode.name().to_owned(),
                since: changed.since,
                by: changed.by.clone(),
                process: changed.process,
                claimed_by: changed.claimed_by.clone(),
            })
            .collect()
    }

    fn docker_status(&self) -> DockerStatus {
        let runtime = &self.plan.runtime;
        let published = self.containers().published.iter();
        let mut published: Vec<String> = published.map(PublishedPort::to_string).collect();
        // A port that is published on both families is named once.
        published.dedup();
        DockerStatus {
            socket: runtime.socket.clone(),
            connected: runtime.connected,
            error: runtime.error.clone(),
            published,
            warnings: self.plan.container_warnings.clone(),
        }
    }

    fn in_force(&self) -> impl Iterator<Item = (&str, &ProgramInForce)> {
        let interfaces = self.interfaces.iter();
        interfaces.filter_map(|one| Some((one.name.as_str(), one.in_force.as_ref()?)))
    }

    /// The kernel's ids of the programs in force.
    pub fn programs(&self) -> impl Iterator<Item = u32> {
        self.in_force().map(|(_, in_force)| in_force.program_id)
    }

    /// The kernel's counters of every interface.
    pub fn counters(&self) -> Result<Vec<api::Counter>> {
        let rows = of_every_interface(&self.pins, self.names(), |interface, tables, names| {
            let rows = tables.counters(names)?.into_iter();
            Ok(rows.map(|row| to_counter(interface, row)).collect())
        })?;
        Ok(rows.unwrap_or_default())
    }

    /// The top talkers of every interface, the heaviest first.
    pub fn talkers(&self) -> Result<Vec<api::Talker>> {
        let talkers = of_every_interface(&self.pins, self.names(), |interface, tables, names| {
            let rows = tables.talkers(names)?.into_iter();
            Ok(rows.map(|row| to_talker(interface, row)).collect())
        })?;
        let mut talkers = talkers.unwrap_or_default();
        name_sources(&mut talkers, &self.loaded.policy.sources);
        talkers.sort_unstable_by_key(|talker| (std::cmp::Reverse(talker.packets), talker.source));
        Ok(talkers)
    }

    /// The pins of interfaces with a program in force, and their names.
    fn names(&self) -> impl Iterator<Item = (Pins, String)> {
        let in_force = self.in_force();
        in_force.map(|(name, one)| (one.pins.clone(), name.to_owned()))
    }

    /// Starts a capture of the packets that match a request.
    pub fn tap(&self, request: &CaptureRequest) -> Result<Tap, ChangeError> {
        if let Some(service) = &request.service {
            // Labels make services such as `web@api-1`, which only the effective policy has. `web` of the policy
            // stands for all services that labels have made from it, and may be absent from the effective policy.
            let services = &self.effective().services;
            if !services.iter().any(|known| known.name == *service) {
                require_service(&self.loaded.policy, service)?;
            }
        }
        let filter = filter_of(request).map_err(ChangeError::Wrong)?;
        let tap = Tap::open(
            &self.pins,
            filter,
            self.tapped.upgrade().unwrap_or_default(),
        );
        Ok(tap.map_err(anyhow::Error::from)?)
    }

    /// Parses a destination: an address and port, or the name of a service, which stands for its first port. The labels
    /// of containers may have replaced a service of the policy.
    pub fn destination(&self, to: &str) -> Result<Destination, ChangeError> {
        let found = Destination::find(to, &self.loaded.policy);
        found.or_else(|problem| {
            let effective = Destination::find(to, self.effective());
            effective.map_err(|_| ChangeError::Wrong(problem))
        })
    }

    /// Explains the verdict on a packet by the policy in force. Blocks while it loads a copy of the program: do not
    /// call it on the runtime's workers.
    pub fn explain(
        &self,
        from: IpAddr,
        to: &Destination,
        recent: &RecentTalkers,
    ) -> Result<Explanation> {
        let own: Vec<IpAddr> = self.host.own_addresses().into_iter().flatten().collect();
        let situation = self.situation(&own)?;
        let mut explanation = explain(&situation, from, to)?;
        let source = from.to_canonical();
        let seen = self.seen(source)?;
        let service = explanation.service.clone();
        let mut recent = recent.of_source(Instant::now(), source, &seen, service.as_deref());
        if let Some(recent) = &mut recent {
            recent.limit = exceeded_limit(&situation, source, recent);
            recent.no_longer_applies =
                situation.no_longer_applies(source, explanation.reason_is_pass(), recent);
        }
        if explanation.verdict == Verdict::Pass.name() {
            explanation.over_budget = recent.as_ref().and_then(recent::over_budget);
        }
        if let Some(recent) = &recent
            && recent.is_same_destination
            && explanation.reason_is_pass()
        {
            let advisor = Advisor {
                situation: &situation,
                from: source,
                service: service.as_deref(),
                to,
                file: Some(&self.loaded.path),
            };
            let reason = recent.reason.as_deref().and_then(reason_named);
            explanation.advice = reason
                .filter(|_| !recent.no_longer_applies)
                .and_then(|reason| advisor.for_reason(reason));
        }
        explanation.recent = recent;
        explanation.seen = Some(seen);
        explanation.file = Some(self.loaded.path.display().to_string());
        Ok(explanation)
    }

    /// Explains what becomes of a source at each service. Blocks like [`explain`](Self::explain).
    pub fn explain_source(
        &self,
        from: IpAddr,
        recent: &RecentTalkers,
    ) -> Result<SourceExplanation> {
        let own: Vec<IpAddr> = self.host.own_addresses().into_iter().flatten().collect();
        let situation = self.situation(&own)?;
        let explanation = explain_source(&situation, from)?;
        let source = explanation.source;
        let seen = self.seen(source)?;
        let service = seen.service.as_deref();
        let mut recent = recent.of_source(Instant::now(), source, &seen, service);
        if let Some(recent) = &mut recent {
            recent.limit = exceeded_limit(&situation, source, recent);
            let passes = explanation.passes_at(recent.service.as_deref());
            recent.no_longer_applies = situation.no_longer_applies(source, passes, recent);
        }
        Ok(SourceExplanation {
            recent,
            seen: Some(seen),
            file: Some(self.loaded.path.display().to_string()),
            ..explanation
        })
    }

    /// The policy and the state of this host for an explanation.
    fn situation<'a>(&'a self, own: &'a [IpAddr]) -> Result<ExplainInput<'a>> {
        Ok(ExplainInput {
            policy: self.effective(),
            containers: self.containers(),
            local_ports: self.plan.content.local_ports.clone(),
            now: host::timebase()?,
            tick_ns: self.host.tick_ns,
            own,
            own_sources: &self.plan.content.own_sources,
            entries: self.entries(),
        })
    }

    /// The sampled packets of a source on every interface.
    fn seen(&self, source: IpAddr) -> Result<Seen> {
        let mut seen = Seen::default();
        for talker in self.talkers()? {
            if talker.source == source {
                recent::add_to(&mut seen, &talker);
            }
        }
        Ok(seen)
    }
}

/// The ports that a service lists, with its address if it has one.
fn listed_ports(service: &Service) -> impl Iterator<Item = String> {
    service.ports.iter().map(|ports| match service.address {
        Some(address) => format!("{}:{ports}", bracketed(address)),
        None => ports.to_string(),
    })
}

/// The ports that the services of a policy list, each once.
fn open_ports(policy: &Policy) -> Vec<String> {
    let listed = policy.services.iter().flat_map(listed_ports);
    let mut seen = BTreeSet::new();
    listed.filter(|port| seen.insert(port.clone())).collect()
}

/// The sources that may reach a port, for the ports that not every source may reach.
fn open_from(policy: &Policy) -> BTreeMap<String, Vec<String>> {
    let mut admitted: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut open_to_any = BTreeSet::new();
    for service in &policy.services {
        for port in listed_ports(service) {
            match &service.from {
                From::Any => {
                    open_to_any.insert(port);
                }
                From::Admitted(sources) => {
                    let prefixes = sources.iter().map(|source| shown(source.prefix));
                    admitted.entry(port).or_default().extend(prefixes);
                }
            }
        }
    }
    admitted.retain(|port, _| !open_to_any.contains(port));
    admitted
}

/// A prefix; of one address without its length.
fn shown(prefix: IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() {
        prefix.addr().to_string()
    } else {
        prefix.to_string()
    }
}

/// The published ports that no service lists.
fn closed_ports(policy: &Policy, containers: &Containers) -> Vec<String> {
    let is_listed = |published: &PublishedPort| {
        policy.services.iter().any(|service| {
            let mut ports = service.ports.iter();
            let lists = ports.any(|ports| ports.indices().contains(&published.index()));
            lists
                && service
                    .address
                    .is_none_or(|address| published.at.covers(address))
        })
    };
    let published = containers.published.iter();
    let closed = published.filter(|published| !is_listed(published));
    let mut closed: Vec<String> = closed.map(PublishedPort::to_string).collect();
    // A port that is published on both families is named once.
    closed.dedup();
    closed
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// The budget that a source exceeds, as the policy writes it, with the factor of the source.
fn exceeded_limit(
    situation: &ExplainInput<'_>,
    source: IpAddr,
    recent: &RecentPackets,
) -> Option<String> {
    let key = recent::budget_of(recent.reason.as_deref()?)?;
    let Budgets {
        packets,
        bytes,
        connections,
    } = situation.budgets_of(source, recent.service.as_deref())?;
    let budget = match key {
        "packets" => packets,
        "bytes" => bytes,
        _ => connections,
    };
    budget.map(|budget| format!("{key} {budget}"))
}

/// The capture filter for a request.
///
/// # Errors
/// The request is invalid. The text says why.
fn filter_of(request: &CaptureRequest) -> Result<PacketFilter, String> {
    let rate = request.rate.unwrap_or(DEFAULT_RATE);
    if !(1..=HIGHEST_RATE).contains(&rate) {
        return Err(format!(
            "a rate of {rate} packets a second is out of range: give 1 to {HIGHEST_RATE}"
        ));
    }
    Ok(PacketFilter {
        outcomes: request.outcomes()?,
        service: request.service.clone(),
        source: request.source.map(|source| source.trunc()),
        per_second: rate,
    })
}

/// Fails unless a policy lists the service.
pub fn require_service(policy: &Policy, name: &str) -> Result<(), ChangeError> {
    let services = &policy.services;
    if services.iter().any(|service| service.name == name) {
        return Ok(());
    }
    let names: Vec<&str> = services
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    Err(ChangeError::Wrong(match names.as_slice() {
        [] => format!("there is no service \"{name}\": the policy lists none"),
        names => format!(
            "there is no service \"{name}\": the policy lists {}",
            names.join(", ")
        ),
    }))
}

/// Gives talkers the names of the policy's sources. Sorting the talkers costs less than matching each of them against
/// a hundred thousand prefixes.
fn name_sources(talkers: &mut [api::Talker], sources: &[Source]) {
    talkers.sort_unstable_by_key(|talker| talker.source);
    let mut named: Vec<(IpNet, &str)> = sources
        .iter()
        .flat_map(|source| {
            source
                .cidrs
                .iter()
                .map(|cidr| (*cidr, source.name.as_str()))
        })
        .collect();
    // The longest prefix comes last, so its name wins.
    named.sort_by_key(|(cidr, _)| cidr.prefix_len());
    for (cidr, name) in named {
        let start = talkers.partition_point(|talker| talker.source < cidr.network());
        let inside = talkers.iter_mut().skip(start);
        for talker in inside.take_while(|talker| talker.source <= cidr.broadcast()) {
            talker.name = Some(name.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Treatment;

    #[test]
    fn a_talker_has_the_name_of_the_source_with_the_longest_matching_prefix() {
        let source = |name: &str, cidr: &str| Source {
            name: name.to_owned(),
            line: 1,
            cidrs: vec![cidr.parse().unwrap()],
            treatment: Treatment::Named,
            owner: None,
            reason: None,
            expires: None,
        };
        let sources = [
            source("office", "198.51.100.0/29"),
            source("city", "198.51.100.0/24"),
            source("lab", "2001:db8::/32"),
        ];
        let talker = |address: &str| api::Talker {
            interface: "eth0".to_owned(),
            source: address.parse().unwrap(),
            name: None,
            packets: 1,
            dropped: 0,
            would_drop: 0,
            bytes: 60,
            reason: None,
            service: None,
            port: None,
        };
        let mut talkers =
            ["2001:db8::1", "203.0.113.1", "198.51.100.9", "198.51.100.7"].map(talker);
        name_sources(&mut talkers, &sources);
        let names = talkers.map(|talker| (talker.source.to_string(), talker.name));
        let named = names.map(|(address, name)| format!("{address} {}", name.unwrap_or_default()));
        assert_eq!(
            named,
            [
                "198.51.100.7 office",
                "198.51.100.9 city",
                "203.0.113.1 ",
                "2001:db8::1 lab"
            ]
        );
    }
}
