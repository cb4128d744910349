//! Describes the steps of a packet through the policy, up to the reason that the program returned.

use std::{fmt, net::IpAddr};

use guard_api::Step;
use guard_common::{
    exposure::Scope,
    reason::{Mode, Reason},
};

use super::ExplainInput;
use crate::policy::{Budgets, From, Ports, Service, Source, Treatment};

/// The stages of the packet path, in the order of the kernel program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PathStage {
    Martian,
    Denied,
    Address,
    Port,
    Source,
    Budgets,
}

impl PathStage {
    /// The stage that returns this reason.
    fn last(reason: Reason) -> Self {
        match reason {
            Reason::Martian => Self::Martian,
            Reason::DeniedSource => Self::Denied,
            Reason::ContainerAddress => Self::Address,
            Reason::Control | Reason::ClosedPort | Reason::Malformed => Self::Port,
            Reason::SourceNotAllowed => Self::Source,
            // Packets that match no service are charged as well, to the budgets of `[limits]`.
            Reason::Allowed
            | Reason::Established
            | Reason::Reply
            | Reason::Exempt
            | Reason::Fragment
            | Reason::NotGuarded
            | Reason::PacketLimit
            | Reason::ByteLimit
            | Reason::ConnectionLimit
            | Reason::FragmentLimit
            | Reason::TotalLimit => Self::Budgets,
        }
    }
}

/// Collects the steps of a packet through the policy.
pub struct PacketPath<'a> {
    pub situation: &'a ExplainInput<'a>,
    pub from: IpAddr,
    pub address: IpAddr,
    pub ports: &'a Ports,
    pub steps: Vec<Step>,
}

impl<'a> PacketPath<'a> {
    /// Describes every step up to this reason, and returns the line of the policy that decided.
    pub fn describe(&mut self, reason: Reason) -> Option<usize> {
        let last = PathStage::last(reason);
        if last == PathStage::Martian {
            self.describe_martian();
            return None;
        }
        self.describe_entries();
        let denied = self.describe_denial();
        if last == PathStage::Denied {
            return denied;
        }
        let service = self.find_service();
        // A service with exactly this address is matched before the container networks.
        if service.is_none_or(|service| service.address.is_none()) {
            self.describe_network();
        }
        if last == PathStage::Address {
            return None;
        }
        self.describe_service(service);
        let Some(service) = service else {
            if last == PathStage::Budgets {
                self.describe_limits();
            }
            return None;
        };
        let line = Some(service.line);
        if service.mode.min(self.situation.policy.mode) == Mode::Off {
            let finding = "the service's mode is off: everything passes and nothing is judged";
            self.add("service mode?", finding, line);
            return line;
        }
        if last >= PathStage::Source {
            self.describe_sources(service);
        }
        if last >= PathStage::Budgets {
            self.describe_budgets(service);
        }
        line
    }

    fn add(&mut self, step: &str, finding: impl Into<String>, line: Option<usize>) {
        self.steps.push(Step {
            step: step.to_owned(),
            finding: finding.into(),
            line,
        });
    }

    /// Whether a source of the policy contains the packet's source, and has not expired.
    fn matches(&self, source: &Source) -> bool {
        let ended = source
            .expires
            .is_some_and(|expires| expires <= self.situation.now.world);
        !ended && source.cidrs.iter().any(|cidr| cidr.contains(&self.from))
    }

    fn describe_martian(&mut self) {
        let finding = if self.situation.own_sources.contains(&self.from) {
            format!(
                "{} is an address of this host, or the broadcast address of one of its networks: no packet from \
                 outside has it as its source",
                self.from
            )
        } else {
            format!(
                "no packet on a wire goes from {} to {}: loopback and IPv4-mapped addresses, and sources that are \
                 multicast, broadcast or 0.0.0.0, never leave a host",
                self.from, self.address
            )
        };
        self.add("martian?", finding, None);
    }

    /// Describes the entries of operators for the source.
    fn describe_entries(&mut self) {
        let now = self.situation.now.world;
        for entry in self.situation.entries {
            if !entry.is_over(now) && entry.prefix.contains(&self.from) {
                self.add("entry?", entry.to_string(), None);
            }
        }
    }

    fn describe_denial(&mut self) -> Option<usize> {
        let mut sources = self.situation.policy.sources.iter();
        let denied =
            sources.find(|source| source.treatment == Treatment::Denied && self.matches(source));
        match denied {
            Some(source) => {
                let finding = format!("{} is denied as {}", self.from, Named(source));
                let line = source.line;
                self.add("denied?", finding, Some(line));
                Some(line)
            }
            None => {
                self.add(
                    "denied?",
                    format!("the policy does not deny {}", self.from),
                    None,
                );
                None
            }
        }
    }

    fn describe_network(&mut self) {
        let mut networks = self.situation.containers.networks.iter();
        let network = networks.find(|network| network.prefix.contains(&self.address));
        if let Some(network) = network {
            let finding = format!(
                "{} is in the container network {}, which is closed to packets sent directly to its addresses",
                self.address, network.prefix
            );
            self.add("container address?", finding, None);
        }
    }

    fn lists(&self, service: &Service) -> bool {
        let index = *self.ports.indices().start();
        service
            .ports
            .iter()
            .any(|ports| ports.indices().contains(&index))
            && service
                .address
                .is_none_or(|address| address == self.address)
    }

    /// A service with exactly this address has priority over a service on all addresses.
    fn find_service(&self) -> Option<&'a Service> {
        let services = self.situation.policy.services.iter();
        let listing = services.filter(|service| self.lists(service));
        listing.max_by_key(|service| service.address.is_some())
    }

    fn describe_service(&mut self, service: Option<&Service>) {
        let ports = self.ports;
        if let Some(service) = service {
            let finding = format!("service \"{}\" lists {ports}", service.name);
            self.add("which service?", finding, Some(service.line));
            return;
        }
        let index = *ports.indices().start();
        let published = self.situation.containers.published.iter();
        let mut places = published.filter(|published| published.index() == index);
        let is_elsewhere = places.clone().next().is_some();
        let is_published = places.any(|published| published.at.covers(self.address));
        let finding = match (is_published, self.situation.policy.scope) {
            (true, _) => format!("no service lists {ports}, and a container publishes it: closed"),
            (false, Scope::Host) => {
                format!("no service lists {ports}: closed, as every such port in scope `host`")
            }
            (false, Scope::Containers) if is_elsewhere => format!(
                "no service lists {ports} and no container publishes it on {}: it is not guarded in scope \
                 `containers`",
                self.address
            ),
            (false, Scope::Containers) => format!(
                "no service lists {ports} and no container publishes it: it is not guarded in scope \
                 `containers`"
            ),
        };
        self.add("which service?", finding, None);
    }

    fn describe_sources(&mut self, service: &Service) {
        let finding = match &service.from {
            From::Any => "the service is open to any source".to_owned(),
            From::Admitted(admitted) => {
                let now = self.situation.now.world;
                let mut valid = admitted.iter().filter(|entry| {
                    entry.prefix.contains(&self.from)
                        && entry.expires.is_none_or(|expires| expires > now)
                });
                match valid.next() {
                    Some(entry) => format!("the service is open to {}", entry.prefix),
                    None => format!(
                        "{} is not among the sources that the service admits",
                        self.from
                    ),
                }
            }
        };
        self.add("admitted source?", finding, Some(service.line));
    }

    fn describe_budgets(&mut self, service: &Service) {
        let budgets = [
            (&service.limit.budgets, "for each source"),
            (&service.total, "for all sources together"),
        ];
        let limited: Vec<String> = budgets
            .into_iter()
            .flat_map(|(budgets, whose)| describe_budgets(budgets, whose))
            .collect();
        let finding = if limited.is_empty() {
            "the service has no budgets".to_owned()
        } else {
            format!("{}; a first packet is within them", limited.join(", "))
        };
        self.add("within its budgets?", finding, Some(service.line));
        self.describe_exemption();
    }

    /// Packets that match no service and pass are charged to the budgets of `[limits]`.
    fn describe_limits(&mut self) {
        let limits = &self.situation.policy.limits.budgets;
        let mut limited = describe_budgets(limits, "for each source");
        let total = &self.situation.policy.limits_total;
        limited.extend(describe_budgets(total, "for all sources together"));
        if limited.is_empty() {
            let finding =
                "packets that match no service have no budgets: the policy has no [limits]";
            self.add("within [limits]?", finding, None);
        } else {
            let finding = format!("{}; a first packet is within them", limited.join(", "));
            self.add("within [limits]?", finding, None);
            self.describe_exemption();
        }
    }

    /// Describes the source of the policy that is exempt, or has larger budgets. The narrowest prefix decides.
    fn describe_exemption(&mut self) {
        let sources = self.situation.policy.sources.iter();
        let special = sources
            .filter(|source| self.matches(source))
            .filter_map(|source| match source.treatment {
                Treatment::Factor(factor) => {
                    Some((source, format!("has {factor} times every budget")))
                }
                Treatment::Exempt => Some((source, "is never limited".to_owned())),
                Treatment::Named | Treatment::Denied => None,
            })
            .max_by_key(|(source, _)| {
                let matching = source.cidrs.iter().filter(|cidr| cidr.contains(&self.from));
                matching.map(|cidr| cidr.prefix_len()).max()
            });
        if let Some((source, what)) = special {
            let finding = format!("{} {what}, as {}", self.from, Named(source));
            let line = source.line;
            self.add("exempt, or a factor?", finding, Some(line));
        }
    }
}

/// The budgets in words, each with its key.
pub fn describe_budgets(budgets: &Budgets, whose: &str) -> Vec<String> {
    let Budgets {
        packets,
        bytes,
        connections,
    } = budgets;
    let named = [
        (packets, "packets"),
        (bytes, "bytes"),
        (connections, "connections"),
    ];
    named
        .into_iter()
        .filter_map(|(budget, key)| Some(format!("{key} {} {whose}", budget.as_ref()?)))
        .collect()
}

/// Displays a source of the policy with its owner, reason and end.
struct Named<'a>(&'a Source);

impl fmt::Display for Named<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(source) = self;
        write!(formatter, "\"{}\"", source.name)?;
        if let Some(owner) = &source.owner {
            write!(formatter, ", owned by {owner}")?;
        }
        if let Some(reason) = &source.reason {
            write!(formatter, ", because: {reason}")?;
        }
        if let Some(expires) = source.expires {
            write!(formatter, ", until {expires}")?;
        }
        Ok(())
    }
}
