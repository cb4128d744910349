//! Describes the steps of a packet through the policy, up to the reason that the program returned.

use std::{fmt, net::IpAddr};

use guard_api::Step;
use guard_common::{
    exposure::Scope,
    reason::{Mode, Reason, Verdict},
};

use super::ExplainInput;
use crate::policy::{Action, Budgets, Entry, From, Policy, Ports, Service, Source, Treatment};

/// The stages of the packet path, in the order of the kernel program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PathStage {
    Martian,
    Denied,
    Address,
    Port,
    Source,
    Flood,
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
            Reason::Challenged | Reason::Unverified | Reason::Handshake => Self::Flood,
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
    /// The number of the operator's entry that decided.
    pub entry: Option<u64>,
}

impl<'a> PacketPath<'a> {
    /// Describes every step up to this reason, and returns the line of the policy that decided. If an entry decided, no
    /// line did.
    pub fn describe(&mut self, reason: Reason) -> Option<usize> {
        let line = self.describe_to(PathStage::last(reason));
        if reason == Reason::Exempt && self.entry.is_none() {
            let service = listing_service(self.situation.policy, self.address, self.ports);
            let allowing = self.situation.allowing_entry(self.from, service);
            self.entry = allowing.map(|entry| entry.id);
        }
        // An entry that lifts a denial does not decide if a later stage drops the packet.
        if reason.verdict() == Verdict::Drop && reason != Reason::DeniedSource {
            self.entry = None;
        }
        line.filter(|_| self.entry.is_none())
    }

    fn describe_to(&mut self, last: PathStage) -> Option<usize> {
        if last == PathStage::Martian {
            self.describe_martian();
            return None;
        }
        let service = listing_service(self.situation.policy, self.address, self.ports);
        self.describe_entries(service);
        let denied = self.describe_denial();
        if last == PathStage::Denied {
            let denying = self.denying_entry(service);
            let denying = denying.filter(|_| denied.is_none());
            self.entry = denying.map(|entry| entry.id);
            return denied;
        }
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

    /// Describes the entries of operators for the source. An allow entry decides if it lifts a denial.
    fn describe_entries(&mut self, service: Option<&Service>) {
        let situation = self.situation;
        for entry in situation.entries_of(self.from) {
            let lifting = situation.lifting_entry(entry, self.from);
            let finding = match lifting {
                Some(lifting) => format!("{entry}; entry {} overrides it", lifting.id),
                None => entry.to_string(),
            };
            self.add("entry?", finding, None);
            if let Some(lifting) = lifting.filter(|_| holds_at(entry, service)) {
                self.entry = Some(lifting.id);
            }
        }
    }

    /// The deny entry that drops the packet.
    fn denying_entry(&self, service: Option<&Service>) -> Option<&'a Entry> {
        let mut entries = self.situation.entries_of(self.from);
        entries.find(|entry| {
            let is_lifted = self.situation.lifting_entry(entry, self.from).is_some();
            entry.action == Action::Deny && holds_at(entry, service) && !is_lifted
        })
    }

    fn describe_denial(&mut self) -> Option<usize> {
        let situation = self.situation;
        let Some(source) = situation.denying_source(self.from) else {
            let finding = format!("the policy does not deny {}", self.from);
            self.add("denied?", finding, None);
            return None;
        };
        let finding = format!("{} is denied as {}", self.from, Named(source));
        let line = Some(source.line);
        let Some(lifting) = situation.allowing_entry(self.from, None) else {
            self.add("denied?", finding, line);
            return line;
        };
        self.entry = Some(lifting.id);
        let finding = format!("{finding}; entry {} lifts the denial", lifting.id);
        self.add("denied?", finding, line);
        None
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
                    None => self.describe_not_admitted(service),
                }
            }
        };
        self.add("admitted source?", finding, Some(service.line));
    }

    /// Describes that `from` of a service does not list the source. An allow entry may admit it nevertheless.
    fn describe_not_admitted(&mut self, service: &Service) -> String {
        let from = self.from;
        match self.situation.allowing_entry(from, Some(service)) {
            Some(entry) => {
                self.entry = Some(entry.id);
                format!(
                    "`from` of the service does not list {from}, but entry {} admits it",
                    entry.id
                )
            }
            None => format!("{from} is not among the sources that the service admits"),
        }
    }

    fn describe_budgets(&mut self, service: &Service) {
        let (budgets, total) = (&service.limit.budgets, &service.total);
        let limited = self.limited(budgets, total);
        let finding = if limited.is_empty() {
            "the service has no budgets".to_owned()
        } else {
            self.within(&limited, Some(service))
        };
        self.add("within its budgets?", finding, Some(service.line));
        self.describe_exemption();
    }

    /// Packets that match no service and pass are charged to the budgets of `[limits]`.
    fn describe_limits(&mut self) {
        let policy = self.situation.policy;
        let limited = self.limited(&policy.limits.budgets, &policy.limits_total);
        if limited.is_empty() {
            let finding =
                "packets that match no service have no budgets: the policy has no [limits]";
            self.add("within [limits]?", finding, None);
        } else {
            let finding = self.within(&limited, None);
            self.add("within [limits]?", finding, None);
            self.describe_exemption();
        }
    }

    /// The budgets in words, with the source's factor in them.
    fn limited(&self, budgets: &Budgets, total: &Budgets) -> Vec<String> {
        let factor = self.situation.factor(self.from);
        let whose = match factor {
            1 => "for each source".to_owned(),
            factor => format!("for this source ({factor} times the policy's)"),
        };
        let mut limited = describe_budgets(&budgets.times(factor), &whose);
        limited.extend(describe_budgets(total, "for all sources together"));
        limited
    }

    fn within(&self, limited: &[String], service: Option<&Service>) -> String {
        let limited = limited.join(", ");
        match self.situation.allowing_entry(self.from, service) {
            Some(entry) => format!("entry {} lifts them: {limited}", entry.id),
            None => format!("{limited}; a first packet is within them"),
        }
    }

    /// Describes the source of the policy that is exempt, or has larger budgets.
    fn describe_exemption(&mut self) {
        let Some(source) = self.situation.special_source(self.from) else {
            return;
        };
        let what = match source.treatment {
            Treatment::Factor(factor) => format!("has {factor} times every budget"),
            _ => "is never limited".to_owned(),
        };
        let finding = format!("{} {what}, as {}", self.from, Named(source));
        self.add("exempt, or a factor?", finding, Some(source.line));
    }
}

/// Whether an entry holds for packets of this service. `None`: for packets of no service.
pub fn holds_at(entry: &Entry, service: Option<&Service>) -> bool {
    entry
        .service
        .as_ref()
        .is_none_or(|name| service.is_some_and(|service| service.has_name(name)))
}

/// The service that lists a port on an address. A service with exactly this address has priority over a service on all
/// addresses.
pub fn listing_service<'a>(
    policy: &'a Policy,
    address: IpAddr,
    ports: &Ports,
) -> Option<&'a Service> {
    let index = *ports.indices().start();
    let lists = |service: &&'a Service| {
        let mut listed = service.ports.iter();
        listed.any(|ports| ports.indices().contains(&index))
            && service.address.is_none_or(|own| own == address)
    };
    let listing = policy.services.iter().filter(lists);
    listing.max_by_key(|service| service.address.is_some())
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
