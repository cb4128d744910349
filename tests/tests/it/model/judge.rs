//! The model's verdict, as the design defines it: deny list, service, permitted source, budgets. The clock stands still
//! for the whole run, so a budget is its burst.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use super::{
    generate::{ModelPolicy, ModelService, Special},
    parse::{Datagram, DatagramContent, ModelSegment, ParsedFrame, look},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelVerdict {
    pub reason: &'static str,
    pub dropped: bool,
}

impl fmt::Display for ModelVerdict {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { reason, dropped } = self;
        let verdict = if *dropped { "drop" } else { "pass" };
        write!(f, "{verdict} {reason}")
    }
}

#[derive(Clone)]
pub struct Model<'a> {
    policy: &'a ModelPolicy,
    /// Open UDP flows: (local, port, peer, port).
    flows: HashSet<(IpAddr, u16, IpAddr, u16)>,
    /// UDP flows that a peer opened and that passed only because of mode observe.
    observed_flows: HashSet<(IpAddr, u16, IpAddr, u16)>,
    /// The amount charged to each budget.
    spent: HashMap<BudgetKey, u64>,
    /// Datagrams whose first fragment passed.
    pieces: HashSet<(IpAddr, IpAddr, u8, u32)>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum BudgetKey {
    Source {
        service: usize,
        prefix: IpAddr,
        what: &'static str,
    },
    Total {
        service: usize,
        what: &'static str,
    },
    Control,
    DhcpReply,
    Overtaking,
    OvertakingOf(IpAddr),
}

/// The service number of `[limits]`, the budgets of packets that reach no service.
const NO_SERVICE: usize = usize::MAX;

enum ModelDecision<'a> {
    Service(usize, &'a ModelService),
    /// Passes within `[limits]`, under this service's name if it lists the port.
    Pass(Option<usize>, &'static str),
    Drop(Option<usize>, &'static str),
}

impl<'a> Model<'a> {
    pub fn new(policy: &'a ModelPolicy) -> Self {
        Self {
            policy,
            flows: HashSet::new(),
            observed_flows: HashSet::new(),
            spent: HashMap::new(),
            pieces: HashSet::new(),
        }
    }

    /// Records the flow of a packet that this host sends.
    pub fn sent(&mut self, frame: &[u8]) {
        if let ParsedFrame::Ip(datagram) = look(frame)
            && let DatagramContent::Udp { from_port, port } = datagram.content
        {
            let key = (datagram.source, from_port, datagram.destination, port);
            // The answer to a packet that passed only in mode observe opens no flow.
            let observed = self.mode_at(datagram.source, "udp", from_port) == "observe";
            if !observed || !self.observed_flows.contains(&key) {
                self.flows.insert(key);
            }
        }
    }

    /// The mode of the service that lists the port: on this address, or on every address, but not on a container's.
    /// Without such a service, the host's mode.
    fn mode_at(&self, address: IpAddr, protocol: &str, port: u16) -> &'static str {
        let listing = |on: Option<IpAddr>| {
            let mut services = self.policy.services.iter();
            services.find(|service| service.address == on && service.lists(protocol, port))
        };
        let mut networks = self.policy.networks.iter();
        let is_container = networks.any(|(network, _)| network.contains(&address));
        let everywhere = if is_container { None } else { listing(None) };
        listing(Some(address))
            .or(everywhere)
            .map_or(self.policy.mode, |service| {
                milder(service.mode, self.policy.mode)
            })
    }

    pub fn judge(&mut self, frame: &[u8]) -> (Option<String>, ModelVerdict) {
        let host_mode = self.policy.mode;
        if host_mode == "off" {
            return (None, passed("not_guarded"));
        }
        let datagram = match look(frame) {
            ParsedFrame::NotIp => return (None, passed("not_guarded")),
            ParsedFrame::Malformed => return (None, dropped("malformed", host_mode)),
            ParsedFrame::Ip(datagram) => datagram,
        };
        let (service, verdict) = self.judge_datagram(&datagram);
        if let Some((protocol, identification)) = datagram.fragment
            && datagram.content != DatagramContent::LaterFragment
            && !verdict.dropped
            && (host_mode == "enforce" || !is_drop(verdict.reason))
        {
            let Datagram {
                source,
                destination,
                ..
            } = datagram;
            self.pieces
                .insert((source, destination, protocol, identification));
        }
        (service, verdict)
    }

    fn judge_datagram(&mut self, datagram: &Datagram) -> (Option<String>, ModelVerdict) {
        let host_mode = self.policy.mode;
        if is_martian(datagram) {
            return (None, dropped("martian", host_mode));
        }
        if is_control(datagram) {
            return (None, self.charge_control(BudgetKey::Control, 10_000));
        }
        if self.is_dhcp(datagram) {
            return (None, self.charge_control(BudgetKey::DhcpReply, 2_000));
        }
        if self.policy.own.contains(&datagram.source) {
            return (None, dropped("martian", host_mode));
        }
        let special = self.policy.special(datagram.source);
        if self.policy.is_denied(datagram.source) {
            return (None, dropped("denied_source", host_mode));
        }
        if datagram.content == DatagramContent::LaterFragment
            && !self.is_expected(datagram)
            && !self.may_overtake(datagram)
        {
            return (None, dropped("fragment_limit", host_mode));
        }
        let decision = self.decide(datagram);
        let named = match &decision {
            ModelDecision::Service(number, _) => Some(*number),
            ModelDecision::Pass(number, _) | ModelDecision::Drop(number, _) => *number,
        };
        let service = named.map(|number| &self.policy.services[number]);
        let mode = service.map_or(host_mode, |service| milder(service.mode, host_mode));
        let name = service.map(|service| service.name.clone());
        if mode == "off" {
            return (name, passed("not_guarded"));
        }
        let reason = match decision {
            ModelDecision::Drop(_, reason) => {
                if mode == "observe"
                    && let DatagramContent::Udp { from_port, port } = datagram.content
                {
                    let key = (datagram.destination, port, datagram.source, from_port);
                    self.observed_flows.insert(key);
                }
                return (name, dropped(reason, mode));
            }
            ModelDecision::Service(number, service) => {
                self.charge(number, service, datagram, special, "allowed")
            }
            ModelDecision::Pass(_, reason) => match &self.policy.limits {
                Some(limits) => self.charge(NO_SERVICE, limits, datagram, special, reason),
                None => reason,
            },
        };
        let outcome = if reason.ends_with("_limit") {
            dropped(reason, mode)
        } else {
            passed(reason)
        };
        (name, outcome)
    }

    /// Charges a budget of control packets, of which `burst` may come at once.
    fn charge_control(&mut self, budget: BudgetKey, burst: u64) -> ModelVerdict {
        let spent = self.spent.entry(budget).or_default();
        if *spent < burst {
            *spent += 1;
            passed("control")
        } else {
            dropped("total_limit", self.policy.mode)
        }
    }

    fn is_expected(&self, datagram: &Datagram) -> bool {
        let Datagram {
            source,
            destination,
            fragment,
            ..
        } = datagram;
        fragment.is_some_and(|(protocol, identification)| {
            self.pieces
                .contains(&(*source, *destination, protocol, identification))
        })
    }

    /// Whether a later fragment may come before its first. The bursts are 1 MiB of the kernel's memory in total and 160
    /// KiB for one source; a fragment takes its length and 1,024 bytes.
    fn may_overtake(&mut self, datagram: &Datagram) -> bool {
        let memory = datagram.frame_length + 1_024;
        let of = BudgetKey::OvertakingOf(truncate(datagram.source, (32, 64)));
        let spent = |key| self.spent.get(key).copied().unwrap_or_default();
        let (in_all, of_source) = (spent(&BudgetKey::Overtaking), spent(&of));
        if in_all + memory > 1 << 20 || of_source + memory > 160 << 10 {
            return false;
        }
        self.spent.insert(BudgetKey::Overtaking, in_all + memory);
        self.spent.insert(of, of_source + memory);
        true
    }

    /// Whether this is a DHCP reply over IPv4 to the host itself.
    fn is_dhcp(&self, datagram: &Datagram) -> bool {
        let from_server = DatagramContent::Udp {
            from_port: 67,
            port: 68,
        };
        let Datagram {
            destination,
            content,
            ..
        } = datagram;
        let mut networks = self.policy.networks.iter();
        destination.is_ipv4()
            && *content == from_server
            && !self.is_published("udp", 68, *destination)
            && !networks.any(|(network, _)| network.contains(destination))
    }

    fn is_published(&self, protocol: &str, port: u16, on: IpAddr) -> bool {
        let mut everywhere = self.policy.published.iter();
        let mut here = self.policy.published_at.iter();
        everywhere.any(|one| *one == (protocol, port, on.is_ipv4()))
            || here.any(|one| *one == (protocol, port, on))
    }

    fn decide(&self, datagram: &Datagram) -> ModelDecision<'a> {
        let Datagram {
            source,
            destination,
            content,
            ..
        } = datagram;
        if *content == DatagramContent::LaterFragment {
            return ModelDecision::Pass(None, "fragment");
        }
        let (protocol, port) = match content {
            DatagramContent::Tcp { port, .. } => ("tcp", *port),
            DatagramContent::Udp { port, .. } => ("udp", *port),
            DatagramContent::Sctp { port } => ("sctp", *port),
            DatagramContent::Icmp { .. } if source.is_ipv4() => ("icmp", 0),
            DatagramContent::Icmp { .. } => ("icmpv6", 0),
            DatagramContent::Other { protocol: 47 } => ("gre", 0),
            DatagramContent::Other { protocol: 50 } => ("esp", 0),
            // A policy's `icmp` and `icmpv6` match the protocol number in either family.
            DatagramContent::Other { protocol: 1 } => ("icmp", 0),
            DatagramContent::Other { protocol: 58 } => ("icmpv6", 0),
            DatagramContent::Other { protocol } => ("proto", u16::from(*protocol)),
            DatagramContent::LaterFragment => ("none", 0),
        };
        let services = || self.policy.services.iter().enumerate();
        let on_address = services().find(|(_, service)| {
            service.address == Some(*destination) && service.lists(protocol, port)
        });
        let reply = || match content {
            DatagramContent::Udp { from_port, port } => {
                self.flows
                    .contains(&(*destination, *port, *source, *from_port))
            }
            _ => false,
        };
        let is_error = match content {
            DatagramContent::Icmp { kind } if source.is_ipv4() => [3, 11, 12].contains(kind),
            DatagramContent::Icmp { kind } => (1..5).contains(kind),
            _ => false,
        };
        let echo_reply = if source.is_ipv4() { 0 } else { 129 };
        let is_later = matches!(
            content,
            DatagramContent::Tcp {
                segment: ModelSegment::Later,
                ..
            }
        );
        let is_udp = matches!(content, DatagramContent::Udp { .. });
        let network = self
            .policy
            .networks
            .iter()
            .filter(|(network, _)| network.contains(destination))
            .max_by_key(|(network, _)| network.prefix_len());
        if on_address.is_none()
            && let Some((_, routed)) = network
        {
            let closed = ModelDecision::Drop(None, "container_address");
            return match content {
                _ if !routed => closed,
                DatagramContent::Tcp { .. } if is_later => ModelDecision::Pass(None, "established"),
                DatagramContent::Udp { .. } if reply() => ModelDecision::Pass(None, "reply"),
                DatagramContent::Icmp { kind } if *kind == echo_reply => {
                    ModelDecision::Pass(None, "reply")
                }
                _ if is_error => ModelDecision::Pass(None, "reply"),
                _ => closed,
            };
        }
        let listed = on_address.or_else(|| {
            services()
                .find(|(_, service)| service.address.is_none() && service.lists(protocol, port))
        });
        if let Some((number, service)) = listed
            && (service.from.is_empty() || service.from.iter().any(|from| from.contains(source)))
        {
            return ModelDecision::Service(number, service);
        }
        let published = self.is_published(protocol, port, *destination);
        let number = listed.map(|(number, _)| number);
        if number.is_none() && !published && self.policy.scope == "containers" {
            return ModelDecision::Pass(None, "not_guarded");
        }
        let local = (32_768..=60_999).contains(&port);
        if is_later && (!published || local) {
            return ModelDecision::Pass(number, "established");
        }
        if is_error || is_udp && reply() {
            return ModelDecision::Pass(number, "reply");
        }
        ModelDecision::Drop(
            number,
            if number.is_some() {
                "source_not_allowed"
            } else {
                "closed_port"
            },
        )
    }

    /// Charges every budget if all have room. Otherwise the reason names the budget that is used up.
    fn charge(
        &mut self,
        number: usize,
        service: &ModelService,
        datagram: &Datagram,
        special: Option<Special>,
        reason: &'static str,
    ) -> &'static str {
        let attempt = matches!(
            datagram.content,
            DatagramContent::Tcp {
                segment: ModelSegment::Attempt,
                ..
            }
        );
        let amount = |what| match what {
            "packet" => 1,
            "byte" => datagram.frame_length,
            _ => u64::from(attempt),
        };
        let factor = match special {
            Some(Special::Factor(factor)) => u64::from(factor),
            _ => 1,
        };
        let prefix = truncate(datagram.source, service.per);
        let mut charges = Vec::new();
        let mut over = None;
        // A source with a factor has further buckets: if the first charge fails, all budgets are tried again with them.
        for (share, times) in [("", 1), ("crowd ", factor - 1)] {
            if times == 0 {
                continue;
            }
            charges.clear();
            over = None;
            for (what, burst) in &service.limit {
                let budget = BudgetKey::Source {
                    service: number,
                    prefix,
                    what: match (*what, share) {
                        ("packet", "") => "packet",
                        ("byte", "") => "byte",
                        ("connection", "") => "connection",
                        ("packet", _) => "crowd packet",
                        ("byte", _) => "crowd byte",
                        (_, _) => "crowd connection",
                    },
                };
                self.add_charge(
                    &mut charges,
                    &mut over,
                    budget,
                    amount(what),
                    burst * times,
                    what,
                );
            }
            for (what, burst) in &service.total {
                let budget = BudgetKey::Total {
                    service: number,
                    what,
                };
                self.add_charge(
                    &mut charges,
                    &mut over,
                    budget,
                    amount(what),
                    *burst,
                    "total",
                );
            }
            if over.is_none() {
                break;
            }
        }
        let Some(over) = over else {
            for (budget, amount) in charges {
                *self.spent.entry(budget).or_default() += amount;
            }
            return reason;
        };
        if special == Some(Special::Exempt) {
            return "exempt";
        }
        match over {
            "packet" => "packet_limit",
            "byte" => "byte_limit",
            "connection" => "connection_limit",
            _ => "total_limit",
        }
    }

    fn add_charge(
        &self,
        charges: &mut Vec<(BudgetKey, u64)>,
        over: &mut Option<&'static str>,
        budget: BudgetKey,
        amount: u64,
        burst: u64,
        what: &'static str,
    ) {
        if amount == 0 {
            return;
        }
        let spent = self.spent.get(&budget).copied().unwrap_or_default();
        if spent + amount > burst && over.is_none() {
            *over = Some(what);
        }
        charges.push((budget, amount));
    }
}

fn is_drop(reason: &str) -> bool {
    ![
        "allowed",
        "established",
        "reply",
        "exempt",
        "control",
        "fragment",
        "not_guarded",
    ]
    .contains(&reason)
}

/// Whether an address is a martian: loopback or IPv4-mapped at either end, or a multicast, broadcast or unspecified
/// source.
fn is_martian(datagram: &Datagram) -> bool {
    let Datagram {
        source,
        destination,
        content,
        ..
    } = datagram;
    let inside = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.is_loopback(),
        IpAddr::V6(address) => address.is_loopback() || address.to_ipv4_mapped().is_some(),
    };
    let is_unspecified = match source {
        IpAddr::V4(source) => {
            let discover = DatagramContent::Udp {
                from_port: 68,
                port: 67,
            };
            source.is_unspecified() && *content != discover && !is_control(datagram)
        }
        IpAddr::V6(_) => false,
    };
    let is_broadcast = matches!(source, IpAddr::V4(source) if source.is_broadcast());
    inside(source) || inside(destination) || source.is_multicast() || is_broadcast || is_unspecified
}

fn is_control(datagram: &Datagram) -> bool {
    let local = match datagram.source {
        IpAddr::V6(source) => source.is_unicast_link_local() || source == Ipv6Addr::UNSPECIFIED,
        IpAddr::V4(_) => false,
    };
    match datagram.content {
        DatagramContent::Icmp { kind } if datagram.source.is_ipv6() => match kind {
            133..=137 => datagram.hop_limit == 255,
            130..=132 | 143 => local,
            _ => false,
        },
        DatagramContent::Other { protocol: 2 } => match datagram.destination {
            IpAddr::V4(destination) => datagram.hop_limit == 1 && destination.is_multicast(),
            IpAddr::V6(_) => false,
        },
        DatagramContent::Udp { from_port, port } => match datagram.source {
            IpAddr::V4(_) => false,
            IpAddr::V6(source) => (from_port, port) == (547, 546) && source.is_unicast_link_local(),
        },
        _ => false,
    }
}

fn truncate(address: IpAddr, (v4, v6): (u8, u8)) -> IpAddr {
    let length = if address.is_ipv4() { v4 } else { v6 };
    ipnet::IpNet::new(address, length).unwrap().trunc().addr()
}

fn milder(one: &'static str, other: &'static str) -> &'static str {
    let rank = |mode| {
        ["off", "observe", "enforce"]
            .iter()
            .position(|m| *m == mode)
    };
    if rank(one) < rank(other) { one } else { other }
}

fn passed(reason: &'static str) -> ModelVerdict {
    ModelVerdict {
        reason,
        dropped: false,
    }
}

fn dropped(reason: &'static str, mode: &str) -> ModelVerdict {
    ModelVerdict {
        reason,
        dropped: mode == "enforce",
    }
}
