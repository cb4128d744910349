//! Explains the verdict for a packet. The verdict comes from the real kernel program, in a copy that is not attached;
//! the steps that lead to it come from the policy.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    str::FromStr,
};

use anyhow::{Context as _, Result, bail};
use etherparse::{IpHeaders, IpNumber, PacketBuilder, PacketBuilderStep};
pub use guard_api::{Explanation, OverBudget, Seen, Step};
use guard_common::{
    exposure::Scope,
    layout::PortProtocol,
    reason::{Mode, Reason, Verdict},
};

use crate::{
    dataplane::{Judged, LoadError, Replay},
    policy::{
        Action, Budgets, CompileInput, Containers, Entry, From, Policy, Ports, Service, ServiceIds,
        Source, Tables, Timebase, Treatment,
    },
};

/// A port, or a protocol without ports, on an address of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// `None`: an address of the host in the family of the source.
    pub address: Option<IpAddr>,
    pub ports: Ports,
}

impl FromStr for Destination {
    type Err = String;

    /// Parses `8000/tcp`, `203.0.113.5:8000/tcp`, `[2001:db8::5]:53/udp`, `icmp`, `112/proto`, and the same with the
    /// protocol first, `tcp/8000`, as a policy writes it.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is not a destination: write \"8000/tcp\", \"203.0.113.5:8000/tcp\", \
                 \"[2001:db8::5]:53/udp\", \"icmp\" or \"112/proto\""
            )
        };
        let Some((left, right)) = text.rsplit_once('/') else {
            return Ok(Self {
                address: None,
                ports: text.parse().map_err(|_| wrong())?,
            });
        };
        let (protocol, place) = if right.starts_with(|first: char| first.is_ascii_alphabetic()) {
            (right, left.to_owned())
        } else {
            // As a policy writes it, with the address before the protocol or before the port.
            match left.rsplit_once(':') {
                Some((address, protocol)) => (protocol, format!("{address}:{right}")),
                None => (left, right.to_owned()),
            }
        };
        let (address, port) = match place.parse::<SocketAddr>() {
            Ok(socket) => (Some(socket.ip().to_canonical()), socket.port().to_string()),
            Err(_) => (None, place),
        };
        let ports = format!("{protocol}/{port}").parse();
        let ports = ports.map_err(|why: String| format!("{} ({why})", wrong()))?;
        match &ports {
            Ports::Range { ports, .. } if ports.start() != ports.end() => return Err(wrong()),
            _ => {}
        }
        Ok(Self { address, ports })
    }
}

impl Destination {
    /// The first port of a service, as an example of the service.
    pub fn of_service(service: &Service) -> Option<Self> {
        let ports = match service.ports.first()? {
            Ports::Range { protocol, ports } => Ports::Range {
                protocol: *protocol,
                ports: *ports.start()..=*ports.start(),
            },
            protocol @ Ports::Protocol { .. } => protocol.clone(),
        };
        let address = service.address;
        Some(Self { address, ports })
    }
}

/// The policy and the state of the host for which a packet is explained.
pub struct ExplainInput<'a> {
    pub policy: &'a Policy,
    pub containers: &'a Containers,
    pub local_ports: RangeInclusive<u16>,
    pub now: Timebase,
    pub tick_ns: u64,
    /// Addresses of this host.
    pub own: &'a [IpAddr],
    /// Addresses of this host that are martian as a source: no packet from outside has them.
    pub own_sources: &'a BTreeSet<IpAddr>,
    /// The temporary allow and deny entries of operators.
    pub entries: &'a [Entry],
}

impl ExplainInput<'_> {
    /// Loads a copy of the program with this policy and this input, with its clock at `now`.
    pub(crate) fn load_program(&self, policy: &Policy) -> Result<Replay, LoadError> {
        let compile_input = CompileInput {
            containers: self.containers,
            local_ports: &self.local_ports,
            now: Timebase {
                boot_ns: Replay::BOOT_NS,
                ..self.now
            },
            entries: self.entries,
            own_sources: self.own_sources,
        };
        let tables = Tables::compile_at(policy, &compile_input, &ServiceIds::new(policy));
        let mut replay = Replay::new(tables, self.tick_ns)?;
        replay.set_clock(0)?;
        Ok(replay)
    }

    /// The steps that lead to this reason, and the line of the policy that decided, if a line did.
    pub(crate) fn steps_to(
        &self,
        reason: Reason,
        from: IpAddr,
        address: IpAddr,
        ports: &Ports,
    ) -> (Vec<Step>, Option<usize>) {
        let mut way = PacketPath {
            situation: self,
            from,
            address,
            ports,
            steps: Vec::new(),
        };
        let line = way.describe(reason);
        (way.steps, line)
    }
}

/// Explains the first packet of a connection or exchange between two places.
pub fn explain(
    situation: &ExplainInput<'_>,
    from: IpAddr,
    to: &Destination,
) -> Result<Explanation> {
    let from = from.to_canonical();
    let address = match to.address {
        Some(address) if address.is_ipv4() != from.is_ipv4() => {
            bail!("{from} and {address} are not of the same IP version")
        }
        Some(address) => address,
        None => own_address(situation, from)?,
    };
    if let Some(right) = to.ports.counterpart(from.is_ipv4()) {
        bail!("{from} cannot send {}: write {right}", to.ports);
    }
    let frame = first_packet(from, address, &to.ports)?;
    let replay = situation.load_program(situation.policy)?;
    let Judged { service, outcome } = replay.judge(&frame)?;
    let tables = replay.generation().tables();
    let is_off = situation.policy.mode == Mode::Off;
    let (mut steps, line) = if is_off {
        (Vec::new(), None)
    } else {
        situation.steps_to(outcome.reason, from, address, &to.ports)
    };
    let verdict = outcome.verdict().name();
    steps.push(Step {
        step: "mode".to_owned(),
        finding: match (outcome.reason.verdict(), outcome.would_drop) {
            (Verdict::Pass, _) if is_off => {
                "off: everything passes and nothing is judged".to_owned()
            }
            (Verdict::Pass, _) => format!("it passes: {}", outcome.reason.name()),
            (Verdict::Drop, false) => format!("enforced: it is dropped: {}", outcome.reason.name()),
            (Verdict::Drop, true) => format!(
                "observed: it passes, and is counted as a packet that would be dropped: {}",
                outcome.reason.name()
            ),
        },
        line: None,
    });
    let service = tables.service_name(service);
    let reason = outcome.reason;
    let entry = match line {
        None => deciding_entry(situation, reason, from, service),
        Some(_) => None,
    };
    let advice = match (entry, reason) {
        (Some(id), Reason::DeniedSource) => Some(format!("`guard revoke {id}` ends the entry")),
        _ => advice(reason.name(), from, service, to),
    };
    Ok(Explanation {
        verdict: verdict.to_owned(),
        would: outcome.would_drop.then(|| Verdict::Drop.name().to_owned()),
        reason: reason.name().to_owned(),
        service: service.map(str::to_owned),
        packet: format!("{} from {from} to {address}", describe_packet(&to.ports)),
        steps,
        line,
        file: None,
        entry,
        advice,
        recent: None,
        seen: None,
        over_budget: None,
    })
}

/// The number of the operator's entry that decided.
fn deciding_entry(
    situation: &ExplainInput<'_>,
    reason: Reason,
    from: IpAddr,
    service: Option<&str>,
) -> Option<u64> {
    let action = match reason {
        Reason::DeniedSource => Action::Deny,
        Reason::Exempt => Action::Allow,
        _ => return None,
    };
    let mut entries = situation.entries.iter();
    let decided = entries.find(|entry| {
        let at = entry.service.as_deref();
        entry.action == action
            && !entry.is_over(situation.now.world)
            && entry.prefix.contains(&from)
            && (at.is_none() || at == service)
    });
    decided.map(|entry| entry.id)
}

/// What an operator types if packets of a source should not be dropped for this reason.
pub fn advice(
    reason: &str,
    from: IpAddr,
    service: Option<&str>,
    to: &Destination,
) -> Option<String> {
    let mut reasons = Reason::ALL.into_iter();
    let reason = reasons.find(|known| known.name() == reason)?;
    let at = service.map(|service| format!(" --service {service}"));
    let at = at.unwrap_or_default();
    Some(match reason {
        Reason::ClosedPort => format!(
            "to open the port, list it in the policy: `ports = [\"{}\"]` in a [[service]]; then `guard try` the file",
            to.ports
        ),
        Reason::SourceNotAllowed => format!(
            "if this source may use it, add it to `from` of the service; until then: `guard allow {from}{at} --for 2h`"
        ),
        Reason::PacketLimit | Reason::ByteLimit | Reason::ConnectionLimit => format!(
            "if it is a real user: `guard allow {from}{at} --for 2h` lifts its budgets now, a [[source]] with `factor` \
             does so for good"
        ),
        Reason::TotalLimit => {
            "`guard top` shows who uses up the total; `guard deny CIDR --for 2h` drops a source"
                .to_owned()
        }
        Reason::DeniedSource => {
            "remove the source from the policy's denied sources, or `guard allow` it for a while"
                .to_owned()
        }
        _ => return None,
    })
}

/// An address of this host that a source of this family can reach.
fn own_address(situation: &ExplainInput<'_>, from: IpAddr) -> Result<IpAddr> {
    let in_network = |address: &IpAddr| {
        let mut networks = situation.containers.networks.iter();
        networks.any(|network| network.prefix.contains(address))
    };
    let is_link_local = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let mut own = situation.own.iter().copied();
    own.find(|address| {
        address.is_ipv4() == from.is_ipv4()
            && !address.is_loopback()
            && !in_network(address)
            && !is_link_local(address)
    })
    .with_context(|| {
        format!(
            "this host has no address that {from} could reach: name an address, as in --to ADDR:PORT/PROTO"
        )
    })
}

fn describe_packet(ports: &Ports) -> String {
    match ports {
        Ports::Range {
            protocol: PortProtocol::Tcp,
            ports,
        } => format!("a connection attempt (TCP SYN) to port {}", ports.start()),
        Ports::Range { protocol, ports } => {
            format!("a {} packet to port {}", protocol.name(), ports.start())
        }
        Ports::Protocol { .. } => format!("a packet of {ports}"),
    }
}

/// The source port of the example packet: an ephemeral port (RFC 6335).
const CLIENT_PORT: u16 = 50_000;

const WINDOW: u16 = 64_240;

pub(crate) fn first_packet(from: IpAddr, to: IpAddr, ports: &Ports) -> Result<Vec<u8>> {
    const ECHO_REQUEST: [u8; 2] = [8, 128];
    let ip = ip_packet(from, to)?;
    let mut frame = Vec::new();
    match ports {
        Ports::Range {
            protocol: PortProtocol::Tcp,
            ports,
        } => {
            let segment = ip.tcp(CLIENT_PORT, *ports.start(), 0, WINDOW).syn();
            segment.write(&mut frame, &[])?;
        }
        Ports::Range {
            protocol: PortProtocol::Udp,
            ports,
        } => ip.udp(CLIENT_PORT, *ports.start()).write(&mut frame, &[])?,
        Ports::Range {
            protocol: PortProtocol::Sctp,
            ports,
        } => {
            // The common header (RFC 9260): ports, tag, checksum.
            let mut header = [0; 12];
            header[..2].copy_from_slice(&CLIENT_PORT.to_be_bytes());
            header[2..4].copy_from_slice(&ports.start().to_be_bytes());
            ip.write(&mut frame, IpNumber::SCTP, &header)?;
        }
        Ports::Protocol { number } => {
            let mut message = [0; 8];
            message[0] = ECHO_REQUEST[usize::from(from.is_ipv6())];
            ip.write(&mut frame, IpNumber(*number), &message)?;
        }
    }
    Ok(frame)
}

/// A segment of a connection that is already open.
pub(crate) fn later_segment(from: IpAddr, to: IpAddr, port: u16) -> Result<Vec<u8>> {
    let segment = ip_packet(from, to)?
        .tcp(CLIENT_PORT, port, 1, WINDOW)
        .ack(1);
    let mut frame = Vec::new();
    segment.write(&mut frame, &[])?;
    Ok(frame)
}

fn ip_packet(from: IpAddr, to: IpAddr) -> Result<PacketBuilderStep<IpHeaders>> {
    const TTL: u8 = 64;
    let ethernet = PacketBuilder::ethernet2([0; 6], [0; 6]);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => Ok(ethernet.ipv4(from.octets(), to.octets(), TTL)),
        (IpAddr::V6(from), IpAddr::V6(to)) => Ok(ethernet.ipv6(from.octets(), to.octets(), TTL)),
        _ => bail!("{from} and {to} are not of the same IP version"),
    }
}

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
struct PacketPath<'a> {
    situation: &'a ExplainInput<'a>,
    from: IpAddr,
    address: IpAddr,
    ports: &'a Ports,
    steps: Vec<Step>,
}

impl<'a> PacketPath<'a> {
    /// Describes every step up to this reason, and returns the line of the policy that decided.
    fn describe(&mut self, reason: Reason) -> Option<usize> {
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

pub(crate) fn describe_budgets(budgets: &Budgets, whose: &str) -> Vec<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_parsed_as_port_and_protocol_in_either_order() {
        let read = |text: &str| text.parse::<Destination>().map(|to| (to.address, to.ports));
        let port = || Ports::Range {
            protocol: PortProtocol::Tcp,
            ports: 80..=80,
        };
        for text in ["80/tcp", "tcp/80"] {
            assert_eq!(read(text), Ok((None, port())), "{text}");
        }
        let address = Some("203.0.113.5".parse().unwrap());
        for text in [
            "203.0.113.5:80/tcp",
            "203.0.113.5:tcp/80",
            "tcp/203.0.113.5:80",
        ] {
            assert_eq!(read(text), Ok((address, port())), "{text}");
        }
        let (address, _) = read("[2001:db8::5]:udp/53").unwrap();
        assert_eq!(address, Some("2001:db8::5".parse().unwrap()));
        assert_eq!(read("proto/112"), read("112/proto"));
        assert!(read("proto/112").is_ok() && read("47/proto").unwrap_err().contains("gre"));
        for text in ["80", "80-90/tcp", "tcp/80-90", "tcp/tcp", "80/80", "/", ""] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
