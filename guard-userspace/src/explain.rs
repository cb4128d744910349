//! Explains the verdict for a packet. The verdict comes from the real kernel program, in a copy that is not attached;
//! the steps that lead to it come from the policy.

mod path;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    str::FromStr,
};

use anyhow::{Context as _, Result, bail};
use etherparse::{IpHeaders, IpNumber, PacketBuilder, PacketBuilderStep};
pub use guard_api::{Explanation, OverBudget, Seen, Step};
use guard_common::{
    layout::PortProtocol,
    reason::{Mode, Reason, Verdict},
};

use self::path::PacketPath;
pub use self::path::describe_budgets;
use crate::{
    dataplane::{Judged, LoadError, Replay},
    policy::{
        Action, CompileInput, Containers, Entry, Policy, Ports, Service, ServiceIds, Tables,
        Timebase,
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
