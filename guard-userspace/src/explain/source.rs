//! Explains what becomes of the first packets of a source at each service.

use std::net::IpAddr;

use anyhow::Result;
use guard_api::{ConcernedSource, ListedEntry, ServiceVerdict, SourceExplanation};
use guard_common::{
    layout::PortProtocol,
    reason::{Mode, Verdict},
};

use super::{
    DescribedPath, ExplainInput, first_of, first_packet, own_address, own_addresses,
    path::listing_service,
};
use crate::{
    dataplane::Replay,
    policy::{Ports, PublishedPort, Service, Treatment},
};

/// Explains what becomes of a source at each service and at every other port.
pub fn explain_source(situation: &ExplainInput<'_>, from: IpAddr) -> Result<SourceExplanation> {
    let from = from.to_canonical();
    let judge = SourceJudge {
        situation,
        from,
        own: own_address(situation, from)?,
        replay: situation.load_program(situation.policy)?,
    };
    let (mut services, mut unreachable) = (Vec::new(), Vec::new());
    for service in &situation.policy.services {
        match judge.example(service) {
            Some((address, ports)) => {
                let verdict = judge.judge(address, &ports)?;
                let listed = service.ports.iter().map(Ports::to_string);
                services.push(ServiceVerdict {
                    service: Some(service.name.clone()),
                    ports: listed.collect(),
                    ..verdict
                });
            }
            None => unreachable.push(service.name.clone()),
        }
    }
    services.extend(judge.published()?);
    services.extend(judge.other_port()?);
    let sources = situation.sources_of(from).map(|source| ConcernedSource {
        name: source.name.clone(),
        line: source.line,
        treatment: treatment_name(source.treatment).to_owned(),
        factor: match source.treatment {
            Treatment::Factor(factor) => Some(factor),
            _ => None,
        },
        expires: source.expires,
    });
    let listed = ListedEntry::list(situation.entries, situation.now.world);
    let concerned = listed
        .into_iter()
        .filter(|listed| listed.entry.prefix.contains(&from));
    Ok(SourceExplanation {
        source: from,
        services,
        unreachable,
        entries: concerned.collect(),
        sources: sources.collect(),
        file: None,
        recent: None,
        seen: None,
    })
}

/// The key of a `[[source]]` that says how it is treated.
const fn treatment_name(treatment: Treatment) -> &'static str {
    match treatment {
        Treatment::Named => "named",
        Treatment::Factor(_) => "factor",
        Treatment::Exempt => "exempt",
        Treatment::Denied => "deny",
    }
}

/// Judges first packets of a source in one copy of the program.
struct SourceJudge<'a> {
    situation: &'a ExplainInput<'a>,
    from: IpAddr,
    /// An address of this host that the source can reach.
    own: IpAddr,
    replay: Replay,
}

impl SourceJudge<'_> {
    fn judge(&self, address: IpAddr, ports: &Ports) -> Result<ServiceVerdict> {
        let judged = self
            .replay
            .judge(&first_packet(self.from, address, ports)?)?;
        let outcome = judged.outcome;
        let (line, entry) = if self.situation.policy.mode == Mode::Off {
            (None, None)
        } else {
            let DescribedPath { line, entry, .. } =
                self.situation
                    .steps_to(outcome.reason, self.from, address, ports);
            (line, entry)
        };
        Ok(ServiceVerdict {
            service: None,
            ports: vec![ports.to_string()],
            verdict: outcome.verdict().name().to_owned(),
            would: outcome.would_drop.then(|| Verdict::Drop.name().to_owned()),
            reason: outcome.reason.name().to_owned(),
            line,
            entry,
        })
    }

    /// The first port of a service that the source can send to, on an address on which the service is the one that
    /// lists it. `None`: the service has none in the IP version of the source.
    fn example(&self, service: &Service) -> Option<(IpAddr, Ports)> {
        let is_ipv4 = self.from.is_ipv4();
        let mut listed = service.ports.iter();
        let ports = first_of(listed.find(|ports| ports.counterpart(is_ipv4).is_none())?);
        let address = match service.address {
            Some(address) => (address.is_ipv4() == is_ipv4).then_some(address),
            None => own_addresses(self.situation, self.from).find(|own| {
                let found = listing_service(self.situation.policy, *own, &ports);
                found.is_some_and(|found| found.name == service.name)
            }),
        };
        Some((address?, ports))
    }

    /// The verdict at the ports that containers publish and no service lists.
    fn published(&self) -> Result<Option<ServiceVerdict>> {
        let policy = self.situation.policy;
        let published = self.situation.containers.published.iter();
        let mut closed: Vec<Ports> = published
            .filter(|published| published.at.covers(self.own))
            .filter_map(|published: &PublishedPort| Ports::of_index(published.index()))
            .filter(|ports| listing_service(policy, self.own, ports).is_none())
            .collect();
        closed.dedup();
        let Some(first) = closed.first() else {
            return Ok(None);
        };
        Ok(Some(ServiceVerdict {
            ports: closed.iter().map(Ports::to_string).collect(),
            ..self.judge(self.own, first)?
        }))
    }

    /// The verdict at a port that no service lists and no container publishes, as an example of all.
    fn other_port(&self) -> Result<Option<ServiceVerdict>> {
        let published = &self.situation.containers.published;
        let is_other = |ports: &Ports| {
            let index = *ports.indices().start();
            let is_published = published.iter().any(|published| published.index() == index);
            !is_published && listing_service(self.situation.policy, self.own, ports).is_none()
        };
        let mut all = (1..=u16::MAX).map(|port| Ports::Range {
            protocol: PortProtocol::Tcp,
            ports: port..=port,
        });
        let Some(other) = all.find(is_other) else {
            return Ok(None);
        };
        Ok(Some(ServiceVerdict {
            ports: Vec::new(),
            ..self.judge(self.own, &other)?
        }))
    }
}
