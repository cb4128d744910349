//! A policy and what is known of containers, as the tables of the packet path.

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
    Action, Budgets, ContainerNetwork, Containers, Entry, From, Limit, Per, Policy, PortTables,
    Ports, PublishedAt, PublishedPort, Service, ServiceIds, Slice, Source, Treatment,
    entry::PrefixExpiries, prefix::supernets,
};

/// A moment on both clocks: expiries are written in the world's time and kept in the kernel's.
#[derive(Clone, Copy, Debug)]
pub struct Timebase {
    pub world: Timestamp,
    /// CLOCK_BOOTTIME in nanoseconds.
    pub boot_ns: u64,
}

impl Timebase {
    /// `None` if it is over.
    fn expiry(self, expires: Option<Timestamp>) -> Option<Expiry> {
        let Some(expires) = expires else {
            return Some(Expiry::NEVER);
        };
        let left = expires.duration_since(self.world).as_nanos();
        if left <= 0 {
            return None;
        }
        // The kernel's clock counts 584 years; what ends later than that never does.
        let left = u64::try_from(left).ok();
        let end = left.and_then(|left| self.boot_ns.checked_add(left));
        Some(end.map_or(Expiry::NEVER, Expiry))
    }
}

/// What a policy is compiled for, besides itself.
#[derive(Clone, Copy, Debug)]
pub struct CompileInput<'a> {
    pub containers: &'a Containers,
    /// The host's `net.ipv4.ip_local_port_range`.
    pub local_ports: &'a RangeInclusive<u16>,
    pub now: Timebase,
    /// What operators let through or drop for a while.
    pub entries: &'a [Entry],
    /// Addresses that no packet from outside comes from, because they are this host's.
    pub own_sources: &'a BTreeSet<IpAddr>,
}

/// Everything that one generation of the kernel program is filled with.
#[derive(Clone, Debug)]
pub struct Tables {
    pub mode: Mode,
    pub scope: Scope,
    /// Of [`feature`].
    pub features: u16,
    /// How long the array of all services' cells is.
    pub cells: u32,
    /// The budgets of packets that reach no service.
    pub limits: layout::ServiceSlot,
    pub services: Vec<ServiceTable>,
    pub ports: PortTables,
    pub denied: BTreeMap<IpNet, Expiry>,
    /// Denied at one service.
    pub denied_at: PrefixExpiries,
    /// Let through everywhere, or at one service.
    pub allowed: PrefixExpiries,
    pub exemptions: BTreeMap<IpNet, Exemption>,
    pub networks: Vec<ContainerNetwork>,
    /// Addresses that no packet from outside comes from; at most [`layout::MAX_OWN`].
    pub own_sources: BTreeSet<IpAddr>,
}

#[derive(Clone, Debug)]
pub struct ServiceTable {
    pub name: String,
    pub number: u16,
    pub settings: layout::ServiceSlot,
    /// The sources it allows, if it is restricted, and those that it allowed until their time was over.
    pub admitted: BTreeMap<IpNet, Expiry>,
}

/// As many of this host's addresses as there is room for.
pub fn fitting(own_sources: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let fitting = own_sources.iter().take(layout::MAX_OWN as usize);
    fitting.copied().collect()
}

impl Tables {
    /// For a generation that shares its state with no other.
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

    /// `service_ids` must have been made for this policy.
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
        tables.link_reliefs();
        tables.assign_cells(service_ids, services);
        tables.denied = without_covered(&tables.denied);
        tables.denied_at = without_covered_at(&tables.denied_at);
        tables.allowed = without_covered_at(&tables.allowed);
        let mut published = containers.published.iter();
        // The answer to a query of any container may come to a port that is published.
        let answers_udp = services.iter().any(may_share_with_client)
            || published.any(|port| port.protocol == PortProtocol::Udp);
        tables.features = tables.used_features(answers_udp);
        if docker_socket.is_some() {
            // They come and go while the generation runs.
            tables.features |= feature::NETWORKS | feature::ADDRESSED;
        }
        tables
    }

    /// Whether the table of ports says that a container publishes this port.
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

    /// For a program that lets everything pass.
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

    /// Tells each service that limits its sources which cells it has.
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

    /// Enters what operators let through or drop for a while. An entry for a service that the policy no
    /// longer lists says nothing.
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
            // With those that labels have made of it.
            Some(name) => services
                .iter()
                .zip(&self.services)
                .filter(|(service, _)| service.goes_by(name))
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

    /// Tells each exemption and factor which wider one follows when it ends.
    fn link_reliefs(&mut self) {
        let prefixes: Vec<IpNet> = self.exemptions.keys().copied().collect();
        for prefix in prefixes {
            let wider = supernets(prefix).find(|wider| self.exemptions.contains_key(wider));
            if let (Some(wider), Some(exemption)) = (wider, self.exemptions.get_mut(&prefix)) {
                exemption.wider = u16::from(wider.prefix_len()) + 1;
            }
        }
    }

    /// `answers_udp`: answers to queries of this host or its containers come to ports that services list or containers
    /// publish.
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

    /// The table that the sources' cells are in.
    pub fn cells_map(&self) -> &'static str {
        if self.uses(feature::NARROW) {
            layout::NARROW_CELLS
        } else {
            layout::CELLS
        }
    }

    pub fn uses(&self, feature: u16) -> bool {
        self.features & feature != 0
    }

    /// The name of the service with this number; `None` for "no service".
    pub fn service_name(&self, number: u16) -> Option<&str> {
        let mut services = self.services.iter();
        let service = services.find(|service| service.number == number)?;
        Some(&service.name)
    }

    /// Of [`live`]: what the tables hold of what comes and goes.
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
                // Who was admitted is remembered: what the host still sends there opens no flow.
                let expiry = now.expiry(entry.expires).unwrap_or(Expiry::OVER);
                lengthen(&mut admitted, entry.prefix, expiry);
            }
        }
        Self {
            name: service.name.clone(),
            number,
            settings: layout::ServiceSlot {
                mode: ModeBits::of(service.mode.min(host_mode)),
                lists: if service.from == From::Any {
                    0
                } else {
                    list::ADMITTED
                },
                total: to_units(&service.total),
                ..settings_of_limit(&service.limit)
            },
            admitted: without_covered(&admitted),
        }
    }
}

/// A restricted UDP port may also be a client's of this host, such as NTP's, which is answered by
/// sources that the service does not allow.
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

/// A service with nothing but its budgets per source.
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

/// Enters a prefix; one that is there already ends with the later of both.
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

/// Whether it is one address: those go into hashes.
pub fn is_single(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// The lengths of prefixes that occur in a list, of IPv4 (`true`) and of IPv6. There are few: a list of a
/// hundred thousand single addresses has one, and none of them needs to be held against the others.
pub(super) struct Lengths(BTreeSet<(bool, u8)>);

impl Lengths {
    pub(super) fn of(prefixes: impl Iterator<Item = IpNet>) -> Self {
        let lengths = prefixes.map(|prefix| (prefix.addr().is_ipv4(), prefix.prefix_len()));
        Self(lengths.collect())
    }

    /// Those prefixes of such a length that this one lies in.
    pub(super) fn wider(&self, prefix: IpNet) -> impl Iterator<Item = IpNet> {
        let Self(lengths) = self;
        let is_v4 = prefix.addr().is_ipv4();
        let wider = lengths.range((is_v4, 0)..(is_v4, prefix.prefix_len()));
        wider.filter_map(move |(_, length)| Some(IpNet::new(prefix.addr(), *length).ok()?.trunc()))
    }
}

/// Leaves out what lies in a wider prefix that lasts as long. A trie finds the longest match alone:
/// so that it never finds one that is over while a wider one still holds.
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

/// The same for each service by itself.
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
            // As many bits, and another family.
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
    fn an_expiry_is_as_far_off_on_both_clocks() {
        let now = Timebase {
            world: "2026-01-01T00:00:00Z".parse().unwrap(),
            boot_ns: 1_000,
        };
        let at = |text: &str| now.expiry(Some(text.parse().unwrap()));
        assert_eq!(at("2026-01-01T00:00:02Z"), Some(Expiry(2_000_001_000)));
        assert_eq!(at("2026-01-01T00:00:00Z"), None);
        assert_eq!(at("2025-01-01T00:00:00Z"), None);
        assert_eq!(now.expiry(None), Some(Expiry::NEVER));
        // Further off than the kernel's clock counts.
        for far in ["2610-07-22T23:34:34Z", "2700-01-01T00:00:00Z"] {
            assert_eq!(at(far), Some(Expiry::NEVER), "{far}");
        }
        assert_eq!(now.expiry(Some(Timestamp::MAX)), Some(Expiry::NEVER));
        assert_eq!(now.expiry(Some(Timestamp::MIN)), None);
    }
}
