//! What the agent answers, asked from the kernel at the moment of the question.

use std::net::IpAddr;

use anyhow::Result;
use guard_common::reason::Mode;
use ipnet::IpNet;

use super::{Agent, ChangeError};
use crate::{
    api::{
        self, AgentStatus, DockerStatus, InterfaceStatus, ModeStatus, PolicyStatus, PolicyText,
        Status, TrialStatus, capture::CaptureRequest, to_counter, to_talker,
    },
    dataplane::Tap,
    explain::{Destination, Explanation, Seen, Situation, explain},
    host,
    policy::{Entry, Policy, Source, labels},
};

impl Agent {
    /// The policy with the modes that operators have set.
    pub(super) fn effective(&self) -> Policy {
        self.effective_of(&self.loaded.policy)
    }

    /// A policy with what the labels of containers ask for, and the modes that operators have set.
    pub(super) fn effective_of(&self, policy: &Policy) -> Policy {
        let policy = self.state.kept.modes.applied_to(policy);
        labels::apply(&policy, self.docker.containers(), self.clock()).0
    }

    /// What the labels of containers ask for in vain.
    pub(super) fn label_warnings(&self, policy: &Policy) -> Vec<String> {
        labels::apply(policy, self.docker.containers(), self.clock()).1
    }

    /// Whether and where the guard is at work.
    pub async fn status(&self) -> Result<Status> {
        let policy = self.effective();
        let mut interfaces = Vec::with_capacity(self.names.len());
        for name in &self.names {
            interfaces.push(self.interface_status(name).await);
        }
        let not_enforcing_because = self.obstacles(&policy, &interfaces);
        Ok(Status {
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
                stale: self.loaded.stale.clone(),
            },
            modes: self.mode_status(),
            trial: self.trial.as_ref().map(|trial| TrialStatus {
                path: self.loaded.path.display().to_string(),
                until: trial.until,
                back_to: trial.before.path.display().to_string(),
                by: Some(trial.by.user.clone()),
                process: trial.by.process,
            }),
            docker: Some(DockerStatus {
                warnings: self.label_warnings(&self.loaded.policy),
                ..self.docker.status(&policy)
            }),
            not_kept: self.not_kept().map(str::to_owned),
        })
    }

    pub fn policy_text(&self) -> PolicyText {
        PolicyText {
            path: self.loaded.path.display().to_string(),
            text: self.loaded.text.clone(),
        }
    }

    async fn interface_status(&self, name: &str) -> InterfaceStatus {
        // An interface that is gone has no program either.
        let found = self.netlink.xdp(name).await.unwrap_or_default();
        let attachment = self.attachments.get(name);
        let program_id = attachment.and_then(|attachment| attachment.program_id());
        let about = attachment.and_then(|attachment| attachment.about().ok());
        InterfaceStatus {
            name: name.to_owned(),
            attached: found.is_some_and(|found| Some(found.program_id) == program_id),
            xdp_mode: attachment
                .map_or("native", |attachment| attachment.mode().name())
                .to_owned(),
            program_id: program_id.unwrap_or_default(),
            generation: about.map_or(0, |about| about.generation),
            trouble: self.troubles.get(name).cloned(),
        }
    }

    fn mode_status(&self) -> Vec<ModeStatus> {
        let modes = &self.state.kept.modes;
        let host = modes.host.iter().map(|changed| (None, changed));
        let services = modes.services.iter();
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

    /// What the kernel counted, on every interface.
    pub fn counters(&self) -> Result<Vec<api::Counter>> {
        let mut counters = Vec::new();
        for (name, attachment) in &self.attachments {
            let rows = attachment.counters()?;
            counters.extend(rows.into_iter().map(|row| to_counter(name, row)));
        }
        Ok(counters)
    }

    /// The sources that sent most, of every interface, the heaviest first.
    pub fn talkers(&self) -> Result<Vec<api::Talker>> {
        let mut talkers = Vec::new();
        for (name, attachment) in &self.attachments {
            let rows = attachment.talkers()?;
            talkers.extend(rows.into_iter().map(|row| to_talker(name, row)));
        }
        name_sources(&mut talkers, &self.loaded.policy.sources);
        talkers.sort_unstable_by_key(|talker| (std::cmp::Reverse(talker.packets), talker.source));
        Ok(talkers)
    }

    /// The packets of every interface that a request asks for.
    pub fn taps(&self, request: &CaptureRequest) -> Result<Vec<(String, Tap)>, ChangeError> {
        if let Some(service) = &request.service {
            // Of what labels have made, the part before the container is a service of the policy.
            let services = self.effective().services;
            if !services.iter().any(|known| known.name == *service) {
                self.require_service(service)?;
            }
        }
        let wanted = request.wanted(self.attachments.len());
        let wanted = wanted.map_err(ChangeError::Wrong)?;
        let mut taps = Vec::with_capacity(self.attachments.len());
        for (name, attachment) in &self.attachments {
            let tap = attachment.tap(wanted.clone());
            taps.push((name.clone(), tap.map_err(anyhow::Error::from)?));
        }
        Ok(taps)
    }

    /// What operators let through or drop for a while, the newest last.
    pub fn entries(&self) -> &[Entry] {
        &self.state.kept.entries
    }

    /// A place to reach, or a service of the policy, which stands for its first port.
    pub fn destination(&self, to: &str) -> Result<Destination, ChangeError> {
        to.parse().or_else(|problem| {
            let mut services = self.loaded.policy.services.iter();
            let service = services.find(|service| service.name == to);
            let destination = service.and_then(Destination::of_service);
            destination.ok_or(ChangeError::Wrong(problem))
        })
    }

    /// Why a packet from there to here gets its verdict, under the policy in force.
    pub async fn explain(&self, from: IpAddr, to: &Destination) -> Result<Explanation> {
        let situation = Situation {
            policy: &self.effective(),
            containers: self.docker.containers(),
            local_ports: host::local_port_range()?,
            now: host::timebase()?,
            tick_ns: self.tick_ns,
            own: &self.netlink.addresses().await?,
            entries: &self.state.kept.entries,
        };
        let mut explanation = explain(&situation, from, to)?;
        let talkers = self.talkers()?.into_iter();
        let of_source = talkers.filter(|talker| talker.source == from);
        let seen = of_source.fold(Seen::default(), |seen, talker| Seen {
            packets: seen.packets + talker.packets,
            dropped: seen.dropped + talker.dropped,
            reason: talker.reason.or(seen.reason),
            service: talker.service.or(seen.service),
        });
        explanation.seen = Some(seen);
        Ok(explanation)
    }

    /// Why closed ports may be open although the mode is `enforce`.
    fn obstacles(&self, policy: &Policy, interfaces: &[InterfaceStatus]) -> Vec<String> {
        if policy.mode != Mode::Enforce {
            return Vec::new();
        }
        let mut obstacles: Vec<String> = interfaces
            .iter()
            .filter(|interface| !interface.attached)
            .map(|interface| match &interface.trouble {
                Some(trouble) => {
                    format!(
                        "the program is not attached to {}: {trouble}",
                        interface.name
                    )
                }
                None => format!("the program is not attached to {}", interface.name),
            })
            .collect();
        if let Some(error) = self.docker.ignorance()
            && policy.scope == guard_common::exposure::Scope::Containers
        {
            obstacles.push(format!("published ports are not known: {error}"));
        }
        obstacles
    }

    /// The service of this name.
    pub(super) fn require_service(&self, name: &str) -> Result<(), ChangeError> {
        let services = &self.loaded.policy.services;
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
}

/// Gives talkers the policy's names for them. Sorting them costs less than to ask a hundred thousand
/// prefixes about each.
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
    // The narrowest has the last word.
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
    fn a_talker_has_the_name_of_the_narrowest_source_that_it_belongs_to() {
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
            bytes: 60,
            reason: None,
            service: None,
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
