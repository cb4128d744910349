//! Compiles a policy, this host's containers and the entries of operators into the tables of the packet path.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use guard_common::{
    address::{Address, Family},
    exposure::{NetworkKind, Scope},
    gcra,
    layout::{self, Exemption, Expiry, NO_SERVICE, PortProtocol, feature, list, live},
    reason::{Mode, ModeBits},
};
use ipnet::IpNet;
use jiff::Timestamp;

use super::{
    Action, Budgets, ContainerNetwork, Containers, Entry, FloodProtection, From, Limit, Per,
    Policy, PortTables, Ports, PublishedAt, PublishedPort, Service, ServiceIds, Slice, Source,
    Treatment, entry::PrefixExpiries, prefix::supernets,
};

/// One moment on two clocks: a policy writes expiries in UTC, and the kernel tables have them in CLOCK_BOOTTIME.
#[derive(Clone, Copy, Debug)]
pub struct Timebase {
    pub world: Timestamp,
    /// CLOCK_BOOTTIME in nanoseconds.
    pub boot_ns: u64,
}

impl Timebase {
    /// Converts an expiry to the kernel's clock; `None` if it has passed.
    fn expiry(self, expires: Option<Timestamp>) -> Option<Expiry> {
        let Some(expires) = expires else {
            return Some(Expiry::NEVER);
        };
        let left = expires.duration_since(self.world).as_nanos();
        if left <= 0 {
            return None;
        }
        // The kernel's clock counts 584 years (64 bits of nanoseconds): a later expiry counts as never.
        let left = u64::try_from(left).ok();
        let end = left.and_then(|left| self.boot_ns.checked_add(left));
        Some(end.map_or(Expiry::NEVER, Expiry))
    }
}

/// The inputs of a compilation besides the policy.
#[derive(Clone, Copy, Debug)]
pub struct CompileInput<'a> {
    pub containers: &'a Containers,
    /// The host's `net.ipv4.ip_local_port_range`.
    pub local_ports: &'a RangeInclusive<u16>,
    pub now: Timebase,
    /// The allow and deny entries of operators.
    pub entries: &'a [Entry],
    /// This host's addresses. A packet from outside with one of them as its source is forged.
    pub own_sources: &'a BTreeSet<IpAddr>,
}

/// The contents of all tables of one generation of the kernel program.
#[derive(Clone, Debug)]
pub struct Tables {
    pub mode: Mode,
    pub scope: Scope,
    /// Flags of [`feature`].
    pub features: u16,
    /// The length of the array with the cells of all services.
    pub cells: u32,
    /// The budgets of packets that reach no service.
    pub limits: layout::ServiceSlot,
    pub services: Vec<ServiceTable>,
    pub ports: PortTables,
    pub denied: BTreeMap<IpNet, Expiry>,
    /// Sources denied at one service.
    pub denied_at: PrefixExpiries,
    /// Sources allowed at every service, or at one.
    pub allowed: PrefixExpiries,
    pub exemptions: BTreeMap<IpNet, Exemption>,
    pub networks: Vec<ContainerNetwork>,
    /// This host's addresses, of which no packet from outside may come; at most [`layout::MAX_OWN`].
    pub own_sources: BTreeSet<IpAddr>,
}

/// A service, as the kernel program needs it.
#[derive(Clone, Debug)]
pub struct ServiceTable {
    pub name: String,
    pub number: u16,
    pub settings: layout::ServiceSlot,
    /// How floods are met, if the service is protected.
    pub flood: Option<layout::FloodSettings>,
    /// The sources that the service admits if it has `from`, and those whose `expires` has passed.
    pub admitted: BTreeMap<IpNet, Expiry>,
}

/// The first [`layout::MAX_OWN`] addresses of this host: the table has room for no more.
pub fn fitting(own_sources: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let fitting = own_sources.iter().take(layout::MAX_OWN as usize);
    fitting.copied().collect()
}

impl Tables {
    /// Compiles a policy for a generation that shares no state with another, with new service ids and no entries.
    pub fn compile(
        policy: &Policy,
        containers: &Containers,
        local_ports: &RangeInclusive<u16>,
        now: Timebase,
    ) -> Self {
        let compile_input = CompileInput {
            containers,
            local_ports,
            now,
            entries: &[],
            own_sources: &BTreeSet::new(),
        };
        Self::compile_at(policy, &compile_input, &ServiceIds::new(policy))
    }

    /// Compiles a policy. `service_ids` must have been made for it.
    pub fn compile_at(
        policy: &Policy,
        compile_input: &CompileInput<'_>,
        service_ids: &ServiceIds,
    ) -> Self {
        let CompileInput {
            containers,
            local_ports,
            now,
            entries,
            own_sources,
        } = *compile_input;
        let Policy {
            mode,
            interfaces: _,
            scope,
            docker_socket,
            docker_labels: _,
            web: _,
            cells: _,
            limits,
            limits_total,
            services,
            sources,
            on_exit: _,
            sha256: _,
        } = policy;
        let mut tables = Self {
            mode: *mode,
            limits: layout::ServiceSlot {
                total: to_units(limits_total),
                ..settings_of_limit(limits)
            },
            services: services
                .iter()
                .map(|service| {
                    let number = service_ids.number(&service.name);
                    ServiceTable::compile(service, number, *mode, now)
                })
                .collect(),
            networks: containers.networks.clone(),
            own_sources: fitting(own_sources),
            ..Self::passing_everything(*scope)
        };
        for service in services {
            tables.list(service_ids.number(&service.name), service);
        }
        for port in &containers.published {
            tables.ports.publish(*port, local_ports);
        }
        for source in sources {
            tables.treat(source, now);
        }
        for entry in entries {
            tables.enter(entry, services, now);
        }
        tables.link_exemptions();
        tables.assign_cells(service_ids, services);
        tables.denied = without_covered(&tables.denied);
        tables.denied_at = without_covered_at(&tables.denied_at);
        tables.allowed = without_covered_at(&tables.allowed);
        let mut published = containers.published.iter();
        // The port that masquerading finds for a container's query may be one that another container publishes.
        let answers_udp = services.iter().any(may_share_with_client)
            || published.any(|port| port.protocol == PortProtocol::Udp);
        tables.features = tables.used_features(answers_udp);
        if docker_socket.is_some() {
            // Container networks and ports on single addresses come and go while the generation runs.
            tables.features |= feature::NETWORKS | feature::ADDRESSED;
        }
        tables
    }

    /// Whether the port table marks this port as published.
    pub fn publishes(&self, published: PublishedPort) -> bool {
        let address = match published.at {
            PublishedAt::EveryIpv4 => Ipv4Addr::UNSPECIFIED.into(),
            PublishedAt::EveryIpv6 => Ipv6Addr::UNSPECIFIED.into(),
            PublishedAt::Address(address) => address,
        };
        let entry = self.ports.at(published.index(), address);
        match published.at.family() {
            Family::Ipv4 => entry.is_published_ipv4(),
            Family::Ipv6 => entry.is_published_ipv6(),
        }
    }

    /// The tables of a program that passes every packet.
    pub fn passing_everything(scope: Scope) -> Self {
        Self {
            mode: Mode::Off,
            scope,
            features: 0,
            cells: 0,
            limits: layout::ServiceSlot::default(),
            services: Vec::new(),
            ports: PortTables::default(),
            denied: BTreeMap::new(),
            denied_at: PrefixExpiries::new(),
            allowed: PrefixExpiries::new(),
            exemptions: BTreeMap::new(),
            networks: Vec::new(),
            own_sources: BTreeSet::new(),
        }
    }

    fn list(&mut self, number: u16, service: &Service) {
        for index in service.ports.iter().flat_map(Ports::indices) {
            self.ports.list(index, service.address, number);
        }
    }

    /// Sets the cells of each service that limits its sources.
    fn assign_cells(&mut self, service_ids: &ServiceIds, services: &[Service]) {
        self.cells = service_ids.cells();
        let settings = self.services.iter_mut().map(|table| &mut table.settings);
        let named = services.iter().map(Service::cells_of).zip(settings);
        for (name, settings) in named.chain([("", &mut self.limits)]) {
            if let Some(Slice {
                first_cell,
                cell_mask,
            }) = service_ids.slices.get(name)
                && settings.source != layout::GcraBudgets::default()
            {
                settings.first_cell = *first_cell;
                settings.cell_mask = *cell_mask;
            }
        }
    }

    /// Adds an operator's entry. An entry for a service that the policy no longer lists has no effect.
    fn enter(&mut self, entry: &Entry, services: &[Service], now: Timebase) {
        let Entry {
            action,
            prefix,
            service,
            expires,
            ..
        } = entry;
        let Some(expiry) = now.expiry(*expires) else {
            return;
        };
        let numbers: Vec<u16> = match service {
            None => vec![NO_SERVICE],
            // The service itself, and the services that labels have made from it.
            Some(name) => services
                .iter()
                .zip(&self.services)
                .filter(|(service, _)| service.has_name(name))
                .map(|(_, table)| table.number)
                .collect(),
        };
        for number in numbers {
            let place = (number, *prefix);
            match (action, number) {
                (Action::Deny, NO_SERVICE) => lengthen(&mut self.denied, *prefix, expiry),
                (Action::Deny, _) => lengthen_at(&mut self.denied_at, place, expiry),
                (Action::Allow, _) => lengthen_at(&mut self.allowed, place, expiry),
            }
        }
    }

    fn treat(&mut self, source: &Source, now: Timebase) {
        let Some(expiry) = now.expiry(source.expires) else {
            return;
        };
        for prefix in &source.cidrs {
            let exemption = |factor, exempt| Exemption {
                expiry,
                factor,
                exempt,
                wider: 0,
            };
            match source.treatment {
                Treatment::Named => {}
                Treatment::Factor(factor) => {
                    self.exemptions.insert(*prefix, exemption(factor, 0));
                }
                Treatment::Exempt => {
                    self.exemptions.insert(*prefix, exemption(1, 1));
                }
                Treatment::Denied => lengthen(&mut self.denied, *prefix, expiry),
            }
        }
    }

    /// Links each exemption and factor to the next wider one, which holds when it has ended.
    fn link_exemptions(&mut self) {
        let prefixes: Vec<IpNet> = self.exemptions.keys().copied().collect();
        for prefix in prefixes {
            let wider = supernets(prefix).find(|wider| self.exemptions.contains_key(wider));
            if let (Some(wider), Some(exemption)) = (wider, self.exemptions.get_mut(&prefix)) {
                exemption.wider = u16::from(wider.prefix_len()) + 1;
            }
        }
    }

    /// The flags of the features that these tables need. `answers_udp`: UDP answers to this host or its containers may
    /// come to ports that services list or containers publish.
    fn used_features(&self, answers_udp: bool) -> u16 {
        let settings = || {
            let services = self.services.iter().map(|service| &service.settings);
            services.chain([&self.limits])
        };
        let limited = |budget: fn(&layout::GcraBudgets) -> gcra::GcraBudget| {
            settings().any(|settings| {
                budget(&settings.source).is_limited() || budget(&settings.total).is_limited()
            })
        };
        let has_routed = self
            .networks
            .iter()
            .any(|network| network.kind == NetworkKind::Routed);
        let total =
            |settings: &layout::ServiceSlot| settings.total != layout::GcraBudgets::default();
        let uses = [
            (
                feature::RESTRICTED,
                settings().any(|settings| settings.lists & list::ADMITTED != 0),
            ),
            (feature::PACKETS, limited(|budgets| budgets.packets)),
            (feature::BYTES, limited(|budgets| budgets.bytes)),
            (feature::CONNECTIONS, limited(|budgets| budgets.connections)),
            (feature::TOTALS, settings().any(total)),
            (
                feature::LIMITS,
                self.limits.source != layout::GcraBudgets::default() || total(&self.limits),
            ),
            (feature::EXEMPTIONS, !self.exemptions.is_empty()),
            (feature::ADDRESSED, !self.ports.addressed.is_empty()),
            (feature::NETWORKS, !self.networks.is_empty()),
            (
                feature::FLOODS,
                settings().any(|settings| settings.lists & list::PROTECTED != 0),
            ),
            (
                feature::FLOWS,
                self.scope == Scope::Host || has_routed || answers_udp,
            ),
        ];
        let used = uses.into_iter().filter(|(_, used)| *used);
        let features = used.fold(0, |features, (feature, _)| features | feature);
        let kinds = features & (feature::PACKETS | feature::BYTES | feature::CONNECTIONS);
        if kinds.is_power_of_two() {
            features | feature::NARROW
        } else {
            features
        }
    }

    /// The name of the map with the cells of sources.
    pub fn cells_map(&self) -> &'static str {
        if self.uses(feature::NARROW) {
            layout::NARROW_CELLS
        } else {
            layout::CELLS
        }
    }

    /// Whether the policy uses a feature of [`layout::feature`].
    pub fn uses(&self, feature: u16) -> bool {
        self.features & feature != 0
    }

    /// The name of the service with this id; `None`: no service has it.
    pub fn service_name(&self, number: u16) -> Option<&str> {
        let mut services = self.services.iter();
        let service = services.find(|service| service.number == number)?;
        Some(&service.name)
    }

    /// The flags of [`live`]: which tables of denied and allowed sources have entries.
    pub fn live(&self) -> u32 {
        let holds = [
            (live::DENIED, self.denied.keys().any(is_single)),
            (live::DENIED_PREFIXES, !self.denied.keys().all(is_single)),
            (live::ALLOWED, !self.allowed.is_empty()),
        ];
        holds
            .into_iter()
            .filter(|(_, holds)| *holds)
            .fold(0, |flags, (flag, _)| flags | flag)
    }
}

impl ServiceTable {
    fn compile(service: &Service, number: u16, host_mode: Mode, now: Timebase) -> Self {
        let mut admitted = BTreeMap::new();
        if let From::Admitted(prefixes) = &service.from {
            for entry in prefixes {
                // A source whose time is over stays in the table: packets that the host still sends to it must open
                // no flow.
                let expiry = now.expiry(entry.expires).unwrap_or(Expiry::OVER);
                lengthen(&mut admitted, entry.prefix, expiry);
            }
        }
        let mut lists = 0;
        if service.from != From::Any {
            lists |= list::ADMITTED;
        }
        if service.flood.is_some() {
            lists |= list::PROTECTED;
        }
        Self {
            name: service.name.clone(),
            number,
            settings: layout::ServiceSlot {
                mode: ModeBits::of(service.mode.min(host_mode)),
                lists,
                total: to_units(&service.total),
                ..settings_of_limit(&service.limit)
            },
            flood: service.flood.map(settings_of_flood),
            admitted: without_covered(&admitted),
        }
    }
}

/// Whether a client on this host may use the same UDP port as the service, as NTP does. Its answers come from sources
/// that a service with `from` does not admit.
fn may_share_with_client(service: &Service) -> bool {
    let is_udp = |ports: &Ports| {
        matches!(
            ports,
            Ports::Range {
                protocol: PortProtocol::Udp,
                ..
            }
        )
    };
    service.from != From::Any && service.ports.iter().any(is_udp)
}

/// A service slot with only the budgets of each source.
fn settings_of_limit(limit: &Limit) -> layout::ServiceSlot {
    let Limit {
        budgets,
        per: Per { ipv4, ipv6 },
    } = limit;
    layout::ServiceSlot {
        source_mask_v4: Address::ipv4_mask(*ipv4).low as u32,
        source_mask_v6: Address::ipv6_mask(*ipv6),
        source: to_units(budgets),
        ..layout::ServiceSlot::default()
    }
}

/// The budget of challenges is that of all CPUs together: the loader divides it.
fn settings_of_flood(flood: FloodProtection) -> layout::FloodSettings {
    let FloodProtection {
        attempts,
        lane,
        replies,
        level2,
    } = flood;
    let attempts_at_once = attempts.burst.clamp(1, MOST_SAMPLED);
    let sample = 1 << attempts_at_once.ilog2();
    layout::FloodSettings {
        attempts: attempts.to_units(),
        lane: lane.to_units(),
        answers: replies.to_units(),
        sample,
        strong_one_of: level2,
    }
}

/// In a flood, at most one request of this many is charged to the budget of attempts.
const MOST_SAMPLED: u64 = 64;

fn to_units(budgets: &Budgets) -> layout::GcraBudgets {
    let Budgets {
        packets,
        bytes,
        connections,
    } = budgets;
    let units = |budget: &Option<super::Budget>| {
        budget.map_or(gcra::GcraBudget::UNLIMITED, super::Budget::to_units)
    };
    layout::GcraBudgets {
        packets: units(packets),
        bytes: units(bytes),
        connections: units(connections),
    }
}

/// Adds a prefix. If it is there already, the later expiry of both holds.
fn lengthen(entries: &mut BTreeMap<IpNet, Expiry>, prefix: IpNet, expiry: Expiry) {
    let entry = entries.entry(prefix).or_insert(expiry);
    if expiry.outlasts(*entry) {
        *entry = expiry;
    }
}

fn lengthen_at(entries: &mut PrefixExpiries, place: (u16, IpNet), expiry: Expiry) {
    let entry = entries.entry(place).or_insert(expiry);
    if expiry.outlasts(*entry) {
        *entry = expiry;
    }
}

/// Whether the prefix is a single address. Single addresses are written into hashes, other prefixes into tries.
pub fn is_single(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// The prefix lengths that occur in a list, of IPv4 (`true`) and of IPv6. They are few: a list of a hundred thousand
/// single addresses has one length, so no prefix needs to be compared with all others.
pub(super) struct Lengths(BTreeSet<(bool, u8)>);

impl Lengths {
    pub(super) fn of(prefixes: impl Iterator<Item = IpNet>) -> Self {
        let lengths = prefixes.map(|prefix| (prefix.addr().is_ipv4(), prefix.prefix_len()));
        Self(lengths.collect())
    }

    /// The shorter prefixes of these lengths that contain this one.
    pub(super) fn wider(&self, prefix: IpNet) -> impl Iterator<Item = IpNet> {
        let Self(lengths) = self;
        let is_v4 = prefix.addr().is_ipv4();
        let wider = lengths.range((is_v4, 0)..(is_v4, prefix.prefix_len()));
        wider.filter_map(move |(_, length)| Some(IpNet::new(prefix.addr(), *length).ok()?.trunc()))
    }
}

/// Leaves out each prefix that lies in a wider one that lasts at least as long. A trie returns only the longest match:
/// a prefix that has ended must not hide a wider one that still holds.
fn without_covered(entries: &BTreeMap<IpNet, Expiry>) -> BTreeMap<IpNet, Expiry> {
    let lengths = Lengths::of(entries.keys().copied());
    let is_covered = |prefix: &IpNet, expiry: Expiry| {
        lengths.wider(*prefix).any(|wider| {
            entries
                .get(&wider)
                .is_some_and(|wide| wide.outlasts(expiry))
        })
    };
    entries
        .iter()
        .filter(|(prefix, expiry)| !is_covered(prefix, **expiry))
        .map(|(prefix, expiry)| (*prefix, *expiry))
        .collect()
}

/// [`without_covered`] for each service.
fn without_covered_at(entries: &PrefixExpiries) -> PrefixExpiries {
    let lengths = Lengths::of(entries.keys().map(|(_, prefix)| *prefix));
    let is_covered = |number: u16, prefix: IpNet, expiry: Expiry| {
        lengths.wider(prefix).any(|wider| {
            let wide = entries.get(&(number, wider));
            wide.is_some_and(|wide| wide.outlasts(expiry))
        })
    };
    entries
        .iter()
        .filter(|((number, prefix), expiry)| !is_covered(*number, *prefix, **expiry))
        .map(|(place, expiry)| (*place, *expiry))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_ends_never_hides_a_wider_one_that_lasts() {
        let entries = |list: &[(&str, u64)]| -> BTreeMap<IpNet, Expiry> {
            list.iter()
                .map(|(prefix, end)| (prefix.parse().unwrap(), Expiry(*end)))
                .collect()
        };
        let all = entries(&[
            ("198.51.0.0/16", 0),
            ("198.51.100.0/24", 5),
            ("198.51.101.0/24", 0),
            ("192.0.2.0/24", 5),
            ("192.0.2.7/32", 9),
            ("192.0.2.8/32", 0),
            ("192.0.2.9/32", 5),
            // The same bits in the other family.
            ("c000:200::/24", 5),
        ]);
        let kept = entries(&[
            ("198.51.0.0/16", 0),
            ("192.0.2.0/24", 5),
            ("192.0.2.7/32", 9),
            ("192.0.2.8/32", 0),
            ("c000:200::/24", 5),
        ]);
        assert_eq!(without_covered(&all), kept);
    }

    #[test]
    fn an_expiry_is_equally_far_away_on_both_clocks() {
        let now = Timebase {
            world: "2026-01-01T00:00:00Z".parse().unwrap(),
            boot_ns: 1_000,
        };
        let at = |text: &str| now.expiry(Some(text.parse().unwrap()));
        assert_eq!(at("2026-01-01T00:00:02Z"), Some(Expiry(2_000_001_000)));
        assert_eq!(at("2026-01-01T00:00:00Z"), None);
        assert_eq!(at("2025-01-01T00:00:00Z"), None);
        assert_eq!(now.expiry(None), Some(Expiry::NEVER));
        // Later than the kernel's clock can count.
        for far in ["2610-07-22T23:34:34Z", "2700-01-01T00:00:00Z"] {
            assert_eq!(at(far), Some(Expiry::NEVER), "{far}");
        }
        assert_eq!(now.expiry(Some(Timestamp::MAX)), Some(Expiry::NEVER));
        assert_eq!(now.expiry(Some(Timestamp::MIN)), None);
    }
}
