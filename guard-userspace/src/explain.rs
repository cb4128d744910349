//! Explains the verdict for a packet. The verdict comes from the real kernel program, in a copy that is not attached;
//! the steps that lead to it come from the policy.

mod advice;
mod path;
mod source;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    str::FromStr,
};

use anyhow::{Context as _, Result, bail};
use etherparse::{IpHeaders, IpNumber, PacketBuilder, PacketBuilderStep};
use guard_api::RecentPackets;
pub use guard_api::{Explanation, OverBudget, Seen, SourceExplanation, Step};
use guard_common::{
    layout::PortProtocol,
    reason::{Mode, Reason, Verdict},
};

use self::path::{PacketPath, holds_at};
pub use self::{advice::Advisor, path::describe_budgets, source::explain_source};
use crate::{
    dataplane::{Judged, LoadError, Replay},
    policy::{
        Action, Budgets, CompileInput, Containers, Entry, Policy, Ports, Service, ServiceIds,
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
    /// protocol first, `tcp/8000`, as a policy writes it. A port without a protocol is a port of TCP.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is not a destination: write \"8000/tcp\", \"203.0.113.5:8000/tcp\", \
                 \"[2001:db8::5]:53/udp\", \"icmp\", \"112/proto\" or the name of a service"
            )
        };
        if text.parse::<u16>().is_ok() || text.parse::<SocketAddr>().is_ok() {
            return format!("{text}/tcp").parse();
        }
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
    /// Parses a destination, or the name of a service of the policy, which stands for its first port.
    ///
    /// # Errors
    /// The text is neither. The error lists the services.
    pub fn find(text: &str, policy: &Policy) -> Result<Self, String> {
        text.parse().or_else(|problem| {
            let mut named = policy
                .services
                .iter()
                .filter(|service| service.has_name(text));
            if let Some(found) = named.next().and_then(Self::of_service) {
                return Ok(found);
            }
            let names = policy.services.iter().map(|service| service.name.as_str());
            let names: Vec<&str> = names.collect();
            match names.as_slice() {
                names if Self::may_be_service(text) && !names.is_empty() => Err(format!(
                    "{problem}; the policy has the services {}",
                    names.join(", ")
                )),
                _ => Err(problem),
            }
        })
    }

    /// Whether a text that is no destination may be the name of a service.
    pub fn may_be_service(text: &str) -> bool {
        !text.contains(['/', ':']) && text.contains(|letter: char| letter.is_ascii_alphabetic())
    }

    /// The first port of a service, as an example of the service.
    pub fn of_service(service: &Service) -> Option<Self> {
        let ports = first_of(service.ports.first()?);
        let address = service.address;
        Some(Self { address, ports })
    }
}

/// The first port of a range.
fn first_of(ports: &Ports) -> Ports {
    match ports {
        Ports::Range { protocol, ports } => Ports::Range {
            protocol: *protocol,
            ports: *ports.start()..=*ports.start(),
        },
        protocol @ Ports::Protocol { .. } => protocol.clone(),
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

    /// The steps that lead to this reason, and what decided.
    pub(crate) fn steps_to(
        &self,
        reason: Reason,
        from: IpAddr,
        address: IpAddr,
        ports: &Ports,
    ) -> DescribedPath {
        let mut way = PacketPath {
            situation: self,
            from,
            address,
            ports,
            steps: Vec::new(),
            entry: None,
        };
        let line = way.describe(reason);
        DescribedPath {
            steps: way.steps,
            line,
            entry: way.entry,
        }
    }

    /// The entries in force that contain a source.
    pub fn entries_of(&self, from: IpAddr) -> impl Iterator<Item = &Entry> {
        let now = self.now.world;
        let entries = self.entries.iter();
        entries.filter(move |entry| !entry.is_over(now) && entry.prefix.contains(&from))
    }

    /// The allow entry that holds for packets of a source at a service. `None`: for its packets to no service.
    fn allowing_entry(&self, from: IpAddr, service: Option<&Service>) -> Option<&Entry> {
        let mut entries = self.entries_of(from);
        entries.find(|entry| entry.action == Action::Allow && holds_at(entry, service))
    }

    /// The allow entry that lifts a deny entry for this source.
    fn lifting_entry(&self, denial: &Entry, from: IpAddr) -> Option<&Entry> {
        let mut entries = self.entries_of(from);
        entries.find(|entry| entry.lifts(denial))
    }

    /// The sources of the policy that contain an address and have not ended.
    fn sources_of(&self, from: IpAddr) -> impl Iterator<Item = &Source> {
        let now = self.now.world;
        self.policy.sources.iter().filter(move |source| {
            let has_ended = source.expires.is_some_and(|expires| expires <= now);
            !has_ended && source.cidrs.iter().any(|cidr| cidr.contains(&from))
        })
    }

    fn denying_source(&self, from: IpAddr) -> Option<&Source> {
        let mut sources = self.sources_of(from);
        sources.find(|source| source.treatment == Treatment::Denied)
    }

    /// The source of the policy that is exempt, or has larger budgets. The narrowest prefix decides.
    fn special_source(&self, from: IpAddr) -> Option<&Source> {
        let special = self
            .sources_of(from)
            .filter(|source| matches!(source.treatment, Treatment::Factor(_) | Treatment::Exempt));
        special.max_by_key(|source| {
            let matching = source.cidrs.iter().filter(|cidr| cidr.contains(&from));
            matching.map(|cidr| cidr.prefix_len()).max()
        })
    }

    /// How many times larger the budgets of a source are than those of the policy.
    fn factor(&self, from: IpAddr) -> u32 {
        match self.special_source(from).map(|source| source.treatment) {
            Some(Treatment::Factor(factor)) => factor,
            _ => 1,
        }
    }

    fn service(&self, name: &str) -> Option<&Service> {
        let mut services = self.policy.services.iter();
        services.find(|service| service.name == name)
    }

    /// The budgets of a source at a service, with the factor of the source. `None`: those of `[limits]`.
    pub fn budgets_of(&self, from: IpAddr, service: Option<&str>) -> Option<Budgets> {
        let budgets = match service {
            Some(name) => self.service(name)?.limit.budgets,
            None => self.policy.limits.budgets,
        };
        Some(budgets.times(self.factor(from)))
    }

    /// Whether the reason for the last drops no longer drops packets of the source at the service of the last one: since
    /// then an entry, the policy or a mode has changed. `passes`: whether a first packet to this service passes.
    pub fn no_longer_applies(&self, from: IpAddr, passes: bool, recent: &RecentPackets) -> bool {
        let Some(reason) = recent.reason.as_deref().and_then(reason_named) else {
            return false;
        };
        if !passes || !recent.is_same_destination {
            return false;
        }
        match reason {
            Reason::PacketLimit
            | Reason::ByteLimit
            | Reason::ConnectionLimit
            | Reason::TotalLimit => self.is_unlimited(from, reason, recent),
            // The explained packet is whole and well formed, so its verdict says nothing about others.
            Reason::FragmentLimit | Reason::Malformed => false,
            // These reasons come from a lookup, which lets the explained packet pass now.
            _ => true,
        }
    }

    /// Whether packets over a budget pass now.
    fn is_unlimited(&self, from: IpAddr, reason: Reason, recent: &RecentPackets) -> bool {
        let name = recent.service.as_deref();
        let service = name.and_then(|name| self.service(name));
        let mode = service.map_or(Mode::Enforce, |service| service.mode);
        let is_observed = mode.min(self.policy.mode) != Mode::Enforce;
        let special = self.special_source(from);
        let is_exempt = special.is_some_and(|source| source.treatment == Treatment::Exempt);
        let limits = self.budgets_of(from, name).unwrap_or_default();
        let total = service.map_or(&self.policy.limits_total, |service| &service.total);
        let has_budget = match reason {
            Reason::PacketLimit => limits.packets.is_some(),
            Reason::ByteLimit => limits.bytes.is_some(),
            Reason::ConnectionLimit => limits.connections.is_some(),
            _ => *total != Budgets::default(),
        };
        is_exempt
            || !has_budget
            || (is_observed && recent.would_drop < recent.for_reason)
            || self.allowing_entry(from, service).is_some()
    }
}

/// The reason with this name.
pub fn reason_named(name: &str) -> Option<Reason> {
    let mut reasons = Reason::ALL.into_iter();
    reasons.find(|reason| reason.name() == name)
}

/// The steps of a packet, and the line of the policy or the operator's entry that decided.
pub(crate) struct DescribedPath {
    pub steps: Vec<Step>,
    pub line: Option<usize>,
    pub entry: Option<u64>,
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
    let DescribedPath {
        mut steps,
        line,
        entry,
    } = if is_off {
        DescribedPath {
            steps: Vec::new(),
            line: None,
            entry: None,
        }
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
    let advisor = Advisor {
        situation,
        from,
        service,
        to,
        file: None,
    };
    let advice = match entry.filter(|_| reason == Reason::DeniedSource) {
        Some(entry) => advisor.for_entry(entry),
        None => advisor.for_reason(reason),
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

/// The addresses of this host that a source of this family can reach.
fn own_addresses<'a>(
    situation: &'a ExplainInput<'_>,
    from: IpAddr,
) -> impl Iterator<Item = IpAddr> + use<'a> {
    let networks = &situation.containers.networks;
    let in_network = |address: &IpAddr| {
        let mut networks = networks.iter();
        networks.any(|network| network.prefix.contains(address))
    };
    let is_link_local = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let own = situation.own.iter().copied();
    own.filter(move |address| {
        address.is_ipv4() == from.is_ipv4()
            && !address.is_loopback()
            && !in_network(address)
            && !is_link_local(address)
    })
}

fn own_address(situation: &ExplainInput<'_>, from: IpAddr) -> Result<IpAddr> {
    own_addresses(situation, from).next().with_context(|| {
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
        for text in ["80/tcp", "tcp/80", "80"] {
            assert_eq!(read(text), Ok((None, port())), "{text}");
        }
        let address = Some("203.0.113.5".parse().unwrap());
        for text in [
            "203.0.113.5:80",
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
        for text in [
            "70000",
            "0",
            "80-90/tcp",
            "tcp/80-90",
            "tcp/tcp",
            "80/80",
            "/",
            "",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    const POLICY: &str = r#"
mode = "enforce"
docker.socket = ""

[[service]]
name = "web"
ports = ["tcp/80"]
limit.connections = { rate = "1/s", burst = 1 }

[[service]]
name = "metrics"
ports = ["tcp/9100"]
from = ["192.0.2.0/24"]

[[source]]
name = "office"
cidrs = ["198.51.100.64/28"]
factor = 10
"#;

    fn entry(id: u64, action: &str, prefix: &str) -> Entry {
        let entry = serde_json::json!({
            "id": id, "action": action, "prefix": prefix, "service": null, "owner": null, "reason": null,
            "created": "2026-11-30T09:45:01Z", "expires": null,
        });
        serde_json::from_value(entry).unwrap()
    }

    /// Calls a function with the policy and these entries.
    fn with_input<T>(entries: &[Entry], act: impl FnOnce(&ExplainInput<'_>) -> T) -> T {
        let tick_ns = 4_000_000;
        let clock = crate::policy::KernelTick { tick_ns };
        let policy = Policy::parse(POLICY, "guard.toml", clock).unwrap();
        act(&ExplainInput {
            policy: &policy,
            containers: &Containers::default(),
            local_ports: 32_768..=60_999,
            now: crate::host::timebase().unwrap(),
            tick_ns,
            own: &["203.0.113.10".parse().unwrap()],
            own_sources: &BTreeSet::new(),
            entries,
        })
    }

    /// The steps of a packet to a port as text, with what decided.
    fn path(entries: &[Entry], from: &str, port: &str, reason: Reason) -> String {
        with_input(entries, |input| {
            let to: Destination = port.parse().unwrap();
            let address = "203.0.113.10".parse().unwrap();
            let path = input.steps_to(reason, from.parse().unwrap(), address, &to.ports);
            let steps = path.steps.iter();
            let steps: Vec<String> = steps
                .map(|step| format!("{}: {}", step.step, step.finding))
                .collect();
            format!(
                "{}\nline {:?}, entry {:?}",
                steps.join("\n"),
                path.line,
                path.entry
            )
        })
    }

    const OFFICE: &str = "198.51.100.66";

    #[test]
    fn an_allow_entry_that_admits_a_source_decided_and_no_line_did() {
        let allowed = [entry(3, "allow", "198.51.100.64/28")];
        insta::assert_snapshot!(path(&allowed, OFFICE, "9100", Reason::Allowed), @r#"
        entry?: entry 3 lets through 198.51.100.64/28, without an end
        denied?: the policy does not deny 198.51.100.66
        which service?: service "metrics" lists tcp/9100
        admitted source?: `from` of the service does not list 198.51.100.66, but entry 3 admits it
        within its budgets?: the service has no budgets
        exempt, or a factor?: 198.51.100.66 has 10 times every budget, as "office"
        line None, entry Some(3)
        "#);
        insta::assert_snapshot!(path(&[], OFFICE, "9100", Reason::SourceNotAllowed), @r#"
        denied?: the policy does not deny 198.51.100.66
        which service?: service "metrics" lists tcp/9100
        admitted source?: 198.51.100.66 is not among the sources that the service admits
        line Some(11), entry None
        "#);
    }

    #[test]
    fn budgets_are_printed_as_they_are_for_the_source_and_an_allow_entry_lifts_them() {
        insta::assert_snapshot!(path(&[], OFFICE, "80", Reason::Allowed), @r#"
        denied?: the policy does not deny 198.51.100.66
        which service?: service "web" lists tcp/80
        admitted source?: the service is open to any source
        within its budgets?: connections 10/s with a burst of 10 for this source (10 times the policy's); a first packet is within them
        exempt, or a factor?: 198.51.100.66 has 10 times every budget, as "office"
        line Some(6), entry None
        "#);
        let allowed = [entry(3, "allow", "198.51.100.7/32")];
        let text = path(&allowed, "198.51.100.7", "80", Reason::Allowed);
        assert!(
            text.contains("entry 3 lifts them: connections 1/s with a burst of 1 for each source"),
            "{text}"
        );
        assert!(text.ends_with("line Some(6), entry None"), "{text}");
    }

    #[test]
    fn an_allow_entry_that_wins_over_a_denial_decided() {
        let entries = [
            entry(3, "allow", "198.51.100.64/28"),
            entry(4, "deny", "198.51.100.66/32"),
        ];
        let text = path(&entries, OFFICE, "80", Reason::Allowed);
        assert!(
            text.contains("entry 4 denies 198.51.100.66/32, without an end; entry 3 overrides it"),
            "{text}"
        );
        assert!(text.ends_with("line None, entry Some(3)"), "{text}");
        let text = path(&entries[1..], OFFICE, "80", Reason::DeniedSource);
        assert!(text.ends_with("line None, entry Some(4)"), "{text}");
        // A closed port is closed to an allowed source, too.
        let text = path(&entries, OFFICE, "81", Reason::ClosedPort);
        assert!(text.ends_with("line None, entry None"), "{text}");
    }

    #[test]
    fn the_advice_says_for_whom_an_entry_ends_and_what_holds_for_good() {
        let denied = [entry(1, "deny", "198.51.100.64/28")];
        let advice = |entries: &[Entry], from: &str, reason| {
            with_input(entries, |input| {
                let advisor = Advisor {
                    situation: input,
                    from: from.parse().unwrap(),
                    service: Some("web"),
                    to: &"9000".parse().unwrap(),
                    file: Some("/etc/guard/guard.toml".as_ref()),
                };
                match (reason, entries) {
                    (Reason::DeniedSource, [entry]) => advisor.for_entry(entry.id),
                    _ => advisor.for_reason(reason),
                }
                .unwrap()
            })
        };
        insta::assert_snapshot!(advice(&denied, OFFICE, Reason::DeniedSource), @"`guard revoke 1` ends it for all of 198.51.100.64/28; `guard allow 198.51.100.66 --for 2h` is an exception for this address alone");
        insta::assert_snapshot!(advice(&[entry(1, "deny", "198.51.100.66/32")], OFFICE, Reason::DeniedSource), @"`guard revoke 1` ends the entry");
        insta::assert_snapshot!(advice(&[], "198.51.100.7", Reason::ClosedPort), @r#"to open the port, list it in the policy: `ports = ["tcp/9000"]` in a [[service]], with `from = ["198.51.100.7"]` if only this source is to reach it; then `guard try` the file"#);
        insta::assert_snapshot!(advice(&[], "198.51.100.7", Reason::ConnectionLimit), @r#"if it is a real user: `guard allow 198.51.100.7 --service web --for 2h` lifts its budgets now; for good, add a [[source]] with `factor`, and try it: `(cat /etc/guard/guard.toml; printf '\n[[source]]\nname = "users-198.51.100.7"\ncidrs = ["198.51.100.7"]\nfactor = 10\n') > /etc/guard/guard.toml.new && guard try /etc/guard/guard.toml.new`, then `guard confirm --write`"#);
        insta::assert_snapshot!(advice(&[], OFFICE, Reason::ConnectionLimit), @r#"if it is a real user: `guard allow 198.51.100.66 --service web --for 2h` lifts its budgets now; for good, raise `factor` of source "office" (line 16), which is 10"#);
    }

    #[test]
    fn a_reason_no_longer_applies_once_an_entry_or_the_policy_lets_its_packets_pass() {
        let recent = |service: &str, reason: Reason| RecentPackets {
            packets: 160,
            dropped: 80,
            for_reason: 80,
            reason: Some(reason.name().to_owned()),
            service: Some(service.to_owned()),
            is_same_destination: true,
            ..RecentPackets::default()
        };
        let allowed = [entry(3, "allow", "198.51.100.64/28")];
        for (entries, service, reason, is_past) in [
            (&allowed[..], "web", Reason::ConnectionLimit, true),
            (&[], "web", Reason::ConnectionLimit, false),
            // The policy has no such budget, or none any more.
            (&[], "web", Reason::PacketLimit, true),
            (&[], "metrics", Reason::ConnectionLimit, true),
            // The explained packet passes, so the source is no longer denied.
            (&[], "web", Reason::DeniedSource, true),
            (&[], "metrics", Reason::SourceNotAllowed, true),
            (&[], "web", Reason::Malformed, false),
        ] {
            let found = with_input(entries, |input| {
                let from = OFFICE.parse().unwrap();
                let recent = recent(service, reason);
                assert!(!input.no_longer_applies(from, false, &recent));
                input.no_longer_applies(from, true, &recent)
            });
            assert_eq!(found, is_past, "{service} {reason:?}");
        }
    }

    #[test]
    fn the_name_of_a_service_stands_for_its_first_port() {
        with_input(&[], |input| {
            let found = |text: &str| Destination::find(text, input.policy);
            assert_eq!(found("metrics"), found("tcp/9100"));
            let unknown = found("shop").unwrap_err();
            assert!(
                unknown.ends_with("; the policy has the services web, metrics"),
                "{unknown}"
            );
            assert!(!found("tcp/shop").unwrap_err().contains("metrics"));
        });
    }
}
