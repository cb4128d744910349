//! What the labels of containers ask of the guard. The owner of the policy decides, not the author of a
//! compose file: labels only take away from what the policy allows, unless it says otherwise.
//!
//! The ports of such a container become a service of their own, named after the one that lists them and
//! the container. What there is no room for never opens anything: without room for a budget the container
//! keeps that of the policy's service, without room for a list of sources its ports are closed.

mod asked;
mod complaints;
mod sources;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::RangeInclusive,
    rc::Rc,
};

use guard_common::{
    layout::{MAX_ADMITTED, MAX_NAME, MAX_SERVICES, PortProtocol, port_index},
    reason::Mode,
};
use sha2::{Digest as _, Sha256};

use self::{
    asked::{Asked, Reader, Wish},
    complaints::{Complaints, Warnings},
    sources::{Allowed, merged},
};
use super::{
    Budget, Budgets, Clock, Containers, From, Labelled, Labels, Limit, Made, Policy, Ports,
    Service, seats::limits_for_labels, untrusted,
};

const FROM: &str = "guard.from";
const LIMIT: &str = "guard.limit.";

/// How many prefixes the `guard.from` of a container may come to at a service, after those that lie side by
/// side or within each other are merged.
pub const MAX_FROM: usize = 256;

/// Between the name of a service and of a container: no name of a policy has it.
const AT: char = '@';

/// A policy with what the labels of containers ask for, and what they ask for in vain.
pub fn apply(policy: &Policy, containers: &Containers, clock: Clock) -> (Policy, Vec<String>) {
    if policy.docker_labels == Labels::Off || containers.labelled.is_empty() {
        return (policy.clone(), Vec::new());
    }
    let mut reader = Reader::new(policy, clock);
    let mut work = Work::new(policy, containers);
    let mut warnings = Warnings::default();
    for labelled in &containers.labelled {
        let mut complaints = Complaints::default();
        let asked = reader.read(&labelled.labels, &mut complaints);
        if asked != Asked::default() {
            work.add(labelled, &asked, &mut complaints);
        }
        warnings.add(&labelled.container, complaints);
    }
    (work.end(), warnings.end())
}

/// The services while labels change them. Each has an index: those of the policy come first, then those that
/// labels have made.
struct Work<'a> {
    policy: &'a Policy,
    made: Vec<Piece>,
    /// Which services list each place in the port table that a container with labels publishes.
    listing: BTreeMap<u32, Vec<usize>>,
    /// The places that the policy's services have lost.
    lost: BTreeMap<usize, BTreeSet<u32>>,
    /// Those that stay closed, whatever other labels ask for.
    closed: BTreeSet<u32>,
    names: HashSet<String>,
    allowed: HashMap<usize, Rc<Allowed>>,
    /// How many more prefixes there is room for in the lists of all services, and how many more services with
    /// cells of their own in what labels have of them.
    prefixes_left: usize,
    limits_left: usize,
}

/// A service that labels have made, and its ports as places in the port table.
struct Piece {
    service: Service,
    places: BTreeSet<u32>,
}

/// Who may reach the ports of a container.
enum Who {
    /// Those that may reach the service.
    Same,
    Only(From),
    Nobody,
}

impl<'a> Work<'a> {
    fn new(policy: &'a Policy, containers: &Containers) -> Self {
        let mut listing: BTreeMap<u32, Vec<usize>> = containers
            .labelled
            .iter()
            .flat_map(places_of_container)
            .map(|place| (place, Vec::new()))
            .collect();
        for (index, service) in policy.services.iter().enumerate() {
            for range in places_of(&service.ports) {
                for (_, services) in listing.range_mut(range) {
                    services.push(index);
                }
            }
        }
        let services = policy.services.iter();
        let admitted: usize = services.map(|service| count(&service.from)).sum();
        Self {
            policy,
            made: Vec::new(),
            listing,
            lost: BTreeMap::new(),
            closed: BTreeSet::new(),
            names: policy
                .services
                .iter()
                .map(|service| service.name.clone())
                .collect(),
            allowed: HashMap::new(),
            prefixes_left: (MAX_ADMITTED as usize).saturating_sub(admitted),
            limits_left: limits_for_labels(policy.cells),
        }
    }

    fn is_full(&self) -> bool {
        self.policy.docker_labels == Labels::Full
    }

    fn service(&self, index: usize) -> Option<&Service> {
        let of_policy = self.policy.services.len();
        match index.checked_sub(of_policy) {
            None => self.policy.services.get(index),
            Some(index) => self.made.get(index).map(|piece| &piece.service),
        }
    }

    /// Adds the services that a container's labels make.
    fn add(&mut self, labelled: &Labelled, asked: &Asked, complaints: &mut Complaints) {
        let mut unlisted = BTreeSet::new();
        let mut mine: BTreeMap<usize, BTreeSet<u32>> = BTreeMap::new();
        for place in places_of_container(labelled) {
            let services = self.listing.get(&place).into_iter().flatten();
            let mut is_listed = false;
            for index in services {
                is_listed = true;
                mine.entry(*index).or_default().insert(place);
            }
            if !is_listed && !self.closed.contains(&place) {
                unlisted.insert(place);
            }
        }
        for (index, mine) in mine {
            // Where labels open, what another container's have opened is its own.
            let is_others = self.is_full() && index >= self.policy.services.len();
            if !is_others && let Some(service) = self.service(index).cloned() {
                self.cut_out(index, &service, mine, labelled, asked, complaints);
            }
        }
        if unlisted.is_empty() {
            return;
        }
        match &asked.from {
            None | Some(Wish::TooMany) => {}
            Some(wish) if self.is_full() => {
                self.open(labelled, unlisted, wish, asked.limit, complaints);
            }
            Some(_) => complaints.add(format!(
                "the label {FROM} does not open {}, which no service of the policy lists: labels only \
                 narrow what the policy allows",
                display(&unlisted)
            )),
        }
    }

    /// Makes a service of its own of the places of a container at a service, if its labels change anything.
    fn cut_out(
        &mut self,
        index: usize,
        service: &Service,
        mine: BTreeSet<u32>,
        labelled: &Labelled,
        asked: &Asked,
        complaints: &mut Complaints,
    ) {
        let mut who = self.who(index, service, asked, complaints);
        let mut limit = service.limit;
        limit.budgets = if self.is_full() {
            asked.limit.or(service.limit.budgets)
        } else {
            narrowed(service, asked.limit, complaints)
        };
        if matches!(who, Who::Same) && limit == service.limit {
            return;
        }
        let mut cells_of = None;
        if limit.budgets != Budgets::default()
            && self.limits_left == 0
            && !matches!(who, Who::Nobody)
        {
            if limit != service.limit {
                complaints.add(format!(
                    "its {LIMIT}* labels are ignored, and it keeps the budgets of the service {:?}: \
                     labels have room for the limits of {} containers, and others have it; a larger \
                     `cells` in the policy makes more",
                    service.name,
                    limits_for_labels(self.policy.cells),
                ));
                // Whoever is let in for the sake of a limit stays out without it.
                if self.is_full()
                    && let Some(Wish::Admitted(_) | Wish::Any) = asked.from
                {
                    who = self.within(index, service, who);
                }
            }
            limit = service.limit;
            cells_of = Some(service.cells_of().to_owned());
            if matches!(who, Who::Same) {
                return;
            }
        }
        let needed = match &who {
            Who::Same => count(&service.from),
            Who::Only(from) => count(from),
            Who::Nobody => 0,
        };
        if needed > self.prefixes_left {
            if matches!(who, Who::Same) {
                complaints.add(format!(
                    "its {LIMIT}* labels are ignored: the lists of all services have no room for \
                     another {needed} prefixes, those that may reach the service {:?}",
                    service.name
                ));
                return;
            }
            complaints.add(format!(
                "{} is closed to everybody: the lists of all services have no room for the {needed} \
                 prefixes of its label {FROM}",
                display(&mine)
            ));
            who = Who::Nobody;
        }
        if !self.has_room_for_service() {
            match who {
                Who::Same => complaints.add(format!(
                    "its {LIMIT}* labels are ignored: there is no room for another service"
                )),
                // Closed like a port that nobody lists, if that is not stricter than the service.
                _ if service.mode == Mode::Enforce => {
                    complaints.add(format!(
                        "{} is closed to everybody: there is no room for the service that its label \
                         {FROM} makes",
                        display(&mine)
                    ));
                    self.closed.extend(&mine);
                    self.take(index, &mine, None);
                }
                _ => complaints.add(format!(
                    "the label {FROM} is ignored: there is no room for another service, and of {:?} \
                     nothing is dropped",
                    service.name
                )),
            }
            return;
        }
        let mut made = Service {
            name: self.name(&service.name, &labelled.container),
            limit,
            made: Some(Made {
                base: match &service.made {
                    None => Some(service.name.clone()),
                    Some(made) => made.base.clone(),
                },
                cells_of,
            }),
            ..service.clone()
        };
        match who {
            Who::Same => {}
            Who::Only(from) => made.from = from,
            Who::Nobody => {
                made.from = From::Admitted(Vec::new());
                // Nobody gets so far.
                made.limit.budgets = Budgets::default();
            }
        }
        self.take(index, &mine, Some(made));
    }

    /// Who may reach what a container publishes of a service.
    fn who(
        &mut self,
        index: usize,
        service: &Service,
        asked: &Asked,
        complaints: &mut Complaints,
    ) -> Who {
        let closed = |prefixes: usize, complaints: &mut Complaints| {
            complaints.add(format!(
                "its ports of the service {:?} are closed to everybody: the label {FROM} comes to \
                 {prefixes} prefixes there, and {MAX_FROM} are the most",
                service.name
            ));
            Who::Nobody
        };
        let list = match &asked.from {
            None => return Who::Same,
            // That has been said.
            Some(Wish::TooMany) => return Who::Nobody,
            Some(Wish::Any) if self.is_full() => {
                return match service.from {
                    From::Any => Who::Same,
                    From::Admitted(_) => Who::Only(From::Any),
                };
            }
            Some(Wish::Any) => {
                if service.from != From::Any {
                    complaints.add(asks_for_more(service));
                }
                return Who::Same;
            }
            Some(Wish::Admitted(list)) => list,
        };
        let allowed = self.allowed(index, service);
        if allowed.as_ref().is_some_and(|allowed| allowed.is(list)) {
            return Who::Same;
        }
        if list.len() > MAX_FROM {
            return closed(list.len(), complaints);
        }
        let Some(allowed) = allowed.filter(|_| !self.is_full()) else {
            return Who::Only(From::Admitted(list.to_vec()));
        };
        let (left, is_covered) = allowed.intersection(list);
        if !is_covered {
            complaints.add(asks_for_more(service));
        }
        if allowed.is(&left) {
            return Who::Same;
        }
        // Of several containers with one port all labels hold, also if together they admit nobody.
        if left.is_empty() && service.made.is_none() {
            return Who::Same;
        }
        if left.len() > MAX_FROM {
            return closed(left.len(), complaints);
        }
        Who::Only(From::Admitted(left))
    }

    /// Of those, who may reach the service, too.
    fn within(&mut self, index: usize, service: &Service, who: Who) -> Who {
        let Who::Only(from) = who else {
            return who;
        };
        let Some(allowed) = self.allowed(index, service) else {
            return Who::Only(from);
        };
        let From::Admitted(list) = from else {
            return Who::Same;
        };
        let (left, _) = allowed.intersection(&list);
        if left.is_empty() || left.len() > MAX_FROM {
            return Who::Nobody;
        }
        Who::Only(From::Admitted(left))
    }

    /// `None`: anybody.
    fn allowed(&mut self, index: usize, service: &Service) -> Option<Rc<Allowed>> {
        let From::Admitted(list) = &service.from else {
            return None;
        };
        let allowed = self.allowed.entry(index);
        let allowed = allowed.or_insert_with(|| Rc::new(Allowed::new(merged(list))));
        Some(Rc::clone(allowed))
    }

    /// Makes a service of ports that the policy lists nowhere.
    fn open(
        &mut self,
        labelled: &Labelled,
        places: BTreeSet<u32>,
        wish: &Wish,
        budgets: Budgets,
        complaints: &mut Complaints,
    ) {
        let from = match wish {
            Wish::Any => From::Any,
            Wish::Admitted(list) => From::Admitted(list.to_vec()),
            Wish::TooMany => return,
        };
        let stay_closed = match &from {
            From::Admitted(list) if list.len() > MAX_FROM => {
                Some(format!("its label {FROM} comes to more than {MAX_FROM}"))
            }
            from if count(from) > self.prefixes_left => {
                Some("the lists of all services have no room for its".to_owned())
            }
            _ => None,
        };
        if let Some(why) = stay_closed {
            let places = display(&places);
            complaints.add(format!("{places} stays closed: {why} prefixes"));
            return;
        }
        let is_limited = budgets != Budgets::default();
        if is_limited && self.limits_left == 0 || !self.has_room_for_service() {
            let places = display(&places);
            complaints.add(format!(
                "{places} stays closed: labels have no room for another service with its limits"
            ));
            return;
        }
        let made = Service {
            name: self.name("", &labelled.container),
            line: 0,
            ports: Vec::new(),
            address: None,
            from,
            mode: Mode::Enforce,
            limit: Limit {
                budgets,
                ..Limit::default()
            },
            total: Budgets::default(),
            made: Some(Made {
                base: None,
                cells_of: None,
            }),
        };
        self.put(places, made);
    }

    fn has_room_for_service(&self) -> bool {
        // One number stands for no service.
        self.policy.services.len() + self.made.len() + 1 < MAX_SERVICES as usize
    }

    /// Takes places away from a service, for another.
    fn take(&mut self, index: usize, places: &BTreeSet<u32>, made: Option<Service>) {
        for place in places {
            if let Some(services) = self.listing.get_mut(place) {
                services.retain(|one| *one != index);
            }
        }
        match index.checked_sub(self.policy.services.len()) {
            None => self.lost.entry(index).or_default().extend(places),
            Some(index) => {
                if let Some(piece) = self.made.get_mut(index) {
                    piece.places.retain(|place| !places.contains(place));
                }
            }
        }
        if let Some(made) = made {
            self.put(places.clone(), made);
        }
    }

    fn put(&mut self, places: BTreeSet<u32>, service: Service) {
        let index = self.policy.services.len() + self.made.len();
        for place in &places {
            self.listing.entry(*place).or_default().push(index);
        }
        let has_cells = service.limit.budgets != Budgets::default();
        if has_cells && service.cells_of() == service.name {
            self.limits_left = self.limits_left.saturating_sub(1);
        }
        self.prefixes_left = self.prefixes_left.saturating_sub(count(&service.from));
        self.names.insert(service.name.clone());
        self.made.push(Piece { service, places });
    }

    /// A name that fits the kernel's tables, has no letters but those of names, and that no other has.
    fn name(&self, service: &str, container: &str) -> String {
        let name = format!("{service}{AT}{container}");
        let is_of_names =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~' | AT);
        if name.len() <= MAX_NAME && name.chars().all(is_of_names) && !self.names.contains(&name) {
            return name;
        }
        const DIGITS: usize = 16;
        let kept = name.chars().filter(|c| is_of_names(*c));
        let kept: String = kept.take(MAX_NAME - DIGITS - 1).collect();
        let mut hashed = name;
        loop {
            hashed = base16ct::lower::encode_string(&Sha256::digest(&hashed));
            let short = format!("{kept}~{}", hashed.get(..DIGITS).unwrap_or_default());
            if !self.names.contains(&short) {
                return short;
            }
        }
    }

    fn end(self) -> Policy {
        let mut policy = self.policy.clone();
        for (index, lost) in &self.lost {
            if let Some(service) = policy.services.get_mut(*index) {
                service.ports = without(&service.ports, lost);
            }
        }
        let made = self.made.into_iter().map(|piece| Service {
            ports: ranges(&piece.places),
            ..piece.service
        });
        policy.services.extend(made);
        policy
    }
}

fn asks_for_more(service: &Service) -> String {
    let whose = if service.made.is_some() {
        "label of another container with the same port"
    } else {
        "policy"
    };
    format!(
        "the label {FROM} asks for sources that the service {:?} does not allow by the {whose}: they stay \
         out",
        service.name
    )
}

/// How many prefixes a list takes of the room that all have.
fn count(from: &From) -> usize {
    match from {
        From::Any => 0,
        From::Admitted(prefixes) => prefixes.len(),
    }
}

fn places_of_container(labelled: &Labelled) -> BTreeSet<u32> {
    let published = labelled.published.iter();
    published
        .map(|port| port_index(port.protocol, port.port))
        .collect()
}

/// The places in the port table of ports that containers can publish.
fn places_of(ports: &[Ports]) -> impl Iterator<Item = RangeInclusive<u32>> {
    let ranges = ports
        .iter()
        .filter(|ports| matches!(ports, Ports::Range { .. }));
    ranges.map(Ports::indices)
}

/// What is left of some ports without others.
fn without(ports: &[Ports], taken: &BTreeSet<u32>) -> Vec<Ports> {
    let (ranges, mut left): (Vec<Ports>, Vec<Ports>) = ports
        .iter()
        .cloned()
        .partition(|ports| matches!(ports, Ports::Range { .. }));
    for range in places_of(&ranges) {
        let mut start = *range.start();
        for place in taken.range(range.clone()) {
            left.extend(range_of(start..=place.saturating_sub(1)));
            start = place + 1;
        }
        left.extend(range_of(start..=*range.end()));
    }
    left
}

/// Places of one protocol in the port table, as ports.
fn range_of(places: RangeInclusive<u32>) -> Option<Ports> {
    if places.is_empty() {
        return None;
    }
    let (protocol, first) = port_at(*places.start())?;
    let (_, last) = port_at(*places.end())?;
    Some(Ports::Range {
        protocol,
        ports: first..=last,
    })
}

/// Places in the port table as ranges of ports.
fn ranges(places: &BTreeSet<u32>) -> Vec<Ports> {
    let mut ranges: Vec<Ports> = Vec::new();
    for place in places {
        let Some((protocol, port)) = port_at(*place) else {
            continue;
        };
        match ranges.last_mut() {
            Some(Ports::Range {
                protocol: last,
                ports,
            }) if *last == protocol && ports.end().checked_add(1) == Some(port) => {
                *ports = *ports.start()..=port;
            }
            _ => ranges.push(Ports::Range {
                protocol,
                ports: port..=port,
            }),
        }
    }
    ranges
}

/// The other way round from [`port_index`].
fn port_at(place: u32) -> Option<(PortProtocol, u16)> {
    let protocols = [PortProtocol::Tcp, PortProtocol::Udp, PortProtocol::Sctp];
    let protocol = protocols.into_iter().find(|protocol| {
        (port_index(*protocol, 0)..=port_index(*protocol, u16::MAX)).contains(&place)
    })?;
    Some((
        protocol,
        u16::try_from(place - port_index(protocol, 0)).ok()?,
    ))
}

/// Places in the port table, as a policy writes them.
fn display(places: &BTreeSet<u32>) -> String {
    let ranges = ranges(places);
    untrusted::listed(ranges.iter().map(Ports::to_string), 8)
}

/// The budgets of a service, but for those that labels narrow.
fn narrowed(service: &Service, asked: Budgets, complaints: &mut Complaints) -> Budgets {
    let mut budgets = service.limit.budgets;
    let mut narrow = |kind: &str, allowed: &mut Option<Budget>, asked: Option<Budget>| {
        let Some(asked) = asked else { return };
        match allowed {
            Some(budget) if !is_within(asked, *budget) => complaints.add(format!(
                "the label {LIMIT}{kind} asks for more than the service {:?} allows, and is ignored",
                service.name
            )),
            _ => *allowed = Some(asked),
        }
    };
    narrow("packets", &mut budgets.packets, asked.packets);
    narrow("bytes", &mut budgets.bytes, asked.bytes);
    narrow("connections", &mut budgets.connections, asked.connections);
    budgets
}

/// Whether a budget never grants more than another.
fn is_within(asked: Budget, allowed: Budget) -> bool {
    let per = |one: Budget, other: Budget| {
        u128::from(one.rate.count) * u128::from(other.rate.period.nanoseconds())
    };
    per(asked, allowed) <= per(allowed, asked) && asked.burst <= allowed.burst
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PublishedAt, PublishedPort};

    const CLOCK: Clock = Clock { tick_ns: 4_000_000 };

    const POLICY: &str = r#"
[[service]]
name = "api"
ports = ["tcp/8000-8010"]
[service.limit]
packets = "100/s"
[[service]]
name = "inner"
ports = ["tcp/9000"]
from = ["198.51.100.0/24"]
[[source]]
name = "office"
cidrs = ["192.0.2.0/28"]
"#;

    fn judge(labels: &str, port: u16, pairs: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let text = format!("docker.labels = \"{labels}\"\n{POLICY}");
        let policy = Policy::parse(&text, "guard.toml", CLOCK).unwrap();
        let pairs = pairs.iter();
        let labels = pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let containers = Containers {
            labelled: vec![Labelled {
                container: "web-1".to_owned(),
                published: vec![PublishedPort {
                    protocol: PortProtocol::Tcp,
                    port,
                    at: PublishedAt::EveryIpv4,
                }],
                labels: labels.collect(),
            }],
            ..Containers::default()
        };
        let (applied, warnings) = apply(&policy, &containers, CLOCK);
        let services = applied.services.iter().map(|service| {
            let ports: Vec<String> = service.ports.iter().map(Ports::to_string).collect();
            let from = match &service.from {
                From::Any => "any".to_owned(),
                From::Admitted(list) => {
                    let list = list.iter().map(|one| one.prefix.to_string());
                    list.collect::<Vec<_>>().join(" ")
                }
            };
            let packets = service.limit.budgets.packets;
            let packets = packets.map_or(0, |budget| budget.rate.count);
            format!("{} {} {from} {packets}", service.name, ports.join(","))
        });
        (services.collect(), warnings)
    }

    const API: &str = "api tcp/8000-8010 any 100";
    const INNER: &str = "inner tcp/9000 198.51.100.0/24 0";

    #[test]
    fn labels_take_away_from_what_the_policy_allows() {
        let (services, warnings) = judge(
            "narrow",
            8003,
            &[
                ("guard.from", "office, 203.0.113.7"),
                ("guard.limit.packets", "5/s"),
            ],
        );
        assert_eq!(
            services,
            [
                "api tcp/8000-8002,tcp/8004-8010 any 100",
                INNER,
                "api@web-1 tcp/8003 192.0.2.0/28 203.0.113.7/32 5",
            ]
        );
        assert_eq!(warnings, [""; 0]);
        let (services, _) = judge("off", 8003, &[("guard.from", "office")]);
        assert_eq!(services, [API, INNER]);
    }

    #[test]
    fn where_containers_share_a_port_all_their_labels_hold() {
        let policy = Policy::parse(POLICY, "guard.toml", CLOCK).unwrap();
        let labelled = |container: &str, from: &str| Labelled {
            container: container.to_owned(),
            published: vec![PublishedPort {
                protocol: PortProtocol::Tcp,
                port: 8003,
                at: PublishedAt::EveryIpv4,
            }],
            labels: [(FROM.to_owned(), from.to_owned())].into(),
        };
        let admitted = |one: &str, other: &str| {
            let containers = Containers {
                labelled: vec![labelled("one", one), labelled("other", other)],
                ..Containers::default()
            };
            let (applied, _) = apply(&policy, &containers, CLOCK);
            let service = applied.services.into_iter().last().unwrap();
            match service.from {
                From::Any => panic!("{} is open to any", service.name),
                From::Admitted(list) => list.len(),
            }
        };
        assert_eq!(admitted("198.51.100.0/24", "198.51.100.7"), 1);
        assert_eq!(
            admitted("198.51.100.7", "198.51.100.66"),
            0,
            "nobody is in both"
        );
    }

    #[test]
    fn labels_that_ask_for_more_are_ignored_and_the_container_is_named() {
        for (port, label, value, services, words) in [
            (
                8000,
                "guard.limit.packets",
                "200/s",
                vec![API, INNER],
                "asks for more",
            ),
            (
                8000,
                "guard.limit.packets",
                "{ rate = \"9/s\", burst = 200 }",
                vec![API, INNER],
                "asks for more",
            ),
            (
                9000,
                "guard.from",
                "any",
                vec![API, INNER],
                "asks for sources",
            ),
            (
                9000,
                "guard.from",
                "192.0.2.7",
                vec![API, INNER],
                "asks for sources",
            ),
            (
                9000,
                "guard.from",
                "198.51.100.7, 192.0.2.7",
                vec![
                    API,
                    "inner  198.51.100.0/24 0",
                    "inner@web-1 tcp/9000 198.51.100.7/32 0",
                ],
                "asks for sources",
            ),
            (
                7000,
                "guard.from",
                "any",
                vec![API, INNER],
                "does not open tcp/7000",
            ),
            (
                8000,
                "guard.from",
                "nowhere",
                vec![API, INNER],
                "is ignored",
            ),
            (
                8000,
                "guard.limit.packets",
                "5/fortnight",
                vec![API, INNER],
                "is ignored",
            ),
            (
                8000,
                "guard.limit.packets",
                "{ rate = ",
                vec![API, INNER],
                "is ignored",
            ),
            (8000, "guard.form", "any", vec![API, INNER], "no such label"),
        ] {
            let (found, warnings) = judge("narrow", port, &[(label, value)]);
            assert_eq!(found, services, "{label}={value}");
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            assert!(warnings[0].starts_with("container web-1: "), "{warnings:?}");
            assert!(warnings[0].contains(words), "{warnings:?}");
        }
    }

    #[test]
    fn labels_may_open_if_the_policy_says_so() {
        let asked = [("guard.from", "any"), ("guard.limit.packets", "200/s")];
        let (services, warnings) = judge("full", 7000, &asked);
        assert_eq!(services, [API, INNER, "@web-1 tcp/7000 any 200"]);
        let (services, _) = judge("full", 9000, &asked);
        let api_and = |inner| vec![API.to_owned(), "inner  198.51.100.0/24 0".to_owned(), inner];
        assert_eq!(services, api_and("inner@web-1 tcp/9000 any 200".to_owned()));
        assert_eq!(warnings, [""; 0]);
    }

    fn container(name: &str, port: u16, pairs: &[(&str, &str)]) -> Labelled {
        let pairs = pairs.iter();
        Labelled {
            container: name.to_owned(),
            published: vec![PublishedPort {
                protocol: PortProtocol::Tcp,
                port,
                at: PublishedAt::EveryIpv4,
            }],
            labels: pairs
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    fn applied(text: &str, labelled: Vec<Labelled>) -> (Policy, Vec<String>) {
        let policy = Policy::parse(text, "guard.toml", CLOCK).unwrap();
        let containers = Containers {
            labelled,
            ..Containers::default()
        };
        apply(&policy, &containers, CLOCK)
    }

    /// The services that list a port.
    fn listing(policy: &Policy, port: u16) -> Vec<&Service> {
        let place = port_index(PortProtocol::Tcp, port);
        let services = policy.services.iter();
        services
            .filter(|service| places_of(&service.ports).any(|range| range.contains(&place)))
            .collect()
    }

    fn apart(count: u32) -> String {
        let addresses = (0..count).map(|n| std::net::Ipv4Addr::from(n * 2).to_string());
        addresses.collect::<Vec<_>>().join(",")
    }

    const ANY: &str = "[[service]]\nname = \"api\"\nports = [\"tcp/1-65535\"]\n";

    #[test]
    fn a_from_that_is_too_long_closes_its_own_container_and_no_other() {
        let long = apart(MAX_ADMITTED);
        let neighbours: Vec<String> = (0..4_000)
            .map(|n| format!("10.0.{}.{}", n / 256, n % 256))
            .collect();
        let words: String = (0..300)
            .map(|n| format!("10.{}.{}.0/24,", n / 128, 2 * n % 256))
            .collect();
        let (policy, warnings) = applied(
            ANY,
            vec![
                container("greedy", 8000, &[(FROM, &long)]),
                container("modest", 8001, &[(FROM, "192.0.2.7")]),
                container("most", 8002, &[(FROM, &apart(256))]),
                container("more", 8003, &[(FROM, &apart(257))]),
                container("merged", 8004, &[(FROM, &neighbours[..1_000].join(","))]),
                container("words", 8005, &[(FROM, &words)]),
            ],
        );
        let from = |port| match &listing(&policy, port)[..] {
            [service] => match &service.from {
                From::Any => panic!("{} is open", service.name),
                From::Admitted(list) => list.len(),
            },
            others => panic!("{others:?}"),
        };
        let merged = from(8004);
        assert!((2..=MAX_FROM).contains(&merged), "{merged}");
        assert_eq!([8000, 8001, 8002, 8003, 8005].map(from), [0, 1, 256, 0, 0]);
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        for (warning, name) in warnings.iter().zip(["greedy", "more", "words"]) {
            assert!(
                warning.starts_with(&format!("container {name}: ")),
                "{warning}"
            );
            assert!(warning.contains("closed"), "{warning}");
        }
    }

    #[test]
    fn where_the_lists_are_full_a_restricted_container_is_closed_and_a_limited_one_is_as_the_policy_says()
     {
        let many: Vec<String> = (0..MAX_ADMITTED - 1)
            .map(|n| format!("\"{}\"", std::net::Ipv4Addr::from(n * 2)))
            .collect();
        let text = format!(
            "{ANY}[[service]]\nname = \"full\"\nports = [\"sctp/1\"]\nfrom = [{}]\n",
            many.join(",")
        );
        let (policy, warnings) = applied(
            &text,
            vec![
                container("first", 8000, &[(FROM, "192.0.2.7")]),
                container("second", 8001, &[(FROM, "192.0.2.8")]),
                container("third", 8002, &[("guard.limit.packets", "5/s")]),
            ],
        );
        let from = |port| listing(&policy, port)[0].from.clone();
        assert_eq!(count(&from(8000)), 1);
        assert_eq!(from(8001), From::Admitted(Vec::new()));
        assert_eq!(from(8002), From::Any);
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].contains("container second: tcp/8001 is closed"),
            "{warnings:?}"
        );
    }

    #[test]
    fn without_room_for_its_own_budget_a_container_keeps_that_of_the_policy() {
        let text = format!("cells = 131072\n{ANY}limit.packets = \"100/s\"\n");
        let most = limits_for_labels(131_072);
        let labelled = (0..most as u16).map(|n| {
            container(
                &format!("c{n}"),
                1_000 + n,
                &[("guard.limit.packets", "5/s")],
            )
        });
        let mut labelled: Vec<Labelled> = labelled.collect();
        labelled.push(container("late", 9_000, &[("guard.limit.packets", "5/s")]));
        let both = [("guard.limit.packets", "5/s"), (FROM, "192.0.2.7")];
        labelled.push(container("both", 9_001, &both));
        let (policy, warnings) = applied(&text, labelled.clone());
        let rate = |service: &Service| service.limit.budgets.packets.unwrap().rate.count;
        assert_eq!(rate(listing(&policy, 1_000)[0]), 5);
        let [late] = listing(&policy, 9_000)[..] else {
            panic!("{:?}", listing(&policy, 9_000))
        };
        assert_eq!((late.name.as_str(), rate(late)), ("api", 100));
        let [both] = listing(&policy, 9_001)[..] else {
            panic!("{:?}", listing(&policy, 9_001))
        };
        assert_eq!(
            (both.cells_of(), rate(both), count(&both.from)),
            ("api", 100, 1)
        );
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        for (warning, name) in warnings.iter().zip(["late", "both"]) {
            assert!(
                warning.starts_with(&format!("container {name}: ")),
                "{warning}"
            );
            assert!(warning.contains("keeps the budgets"), "{warning}");
        }
        // Where labels open, what has no room for its limit stays as the policy says.
        let text = format!("docker.labels = \"full\"\n{text}").replace("tcp/1-65535", "tcp/1-9000");
        let text = text.replace(
            "limit.packets",
            "from = [\"198.51.100.0/24\"]\nlimit.packets",
        );
        labelled.truncate(most);
        let open = [("guard.limit.packets", "5/s"), (FROM, "any")];
        labelled.push(container("late", 9_000, &open));
        labelled.push(container("opened", 9_001, &open));
        let (policy, warnings) = applied(&text, labelled);
        assert_eq!(listing(&policy, 9_000)[0].name, "api");
        assert!(listing(&policy, 9_001).is_empty());
        assert!(
            warnings[1].contains("container opened: tcp/9001 stays closed"),
            "{warnings:?}"
        );
    }

    #[test]
    fn without_room_for_another_service_a_restricted_container_is_closed() {
        let labelled =
            (0..1_100).map(|n| container(&format!("c{n}"), 1_000 + n, &[(FROM, "192.0.2.7")]));
        let labelled: Vec<Labelled> = labelled.collect();
        let (policy, warnings) = applied(ANY, labelled.clone());
        assert_eq!(policy.services.len(), MAX_SERVICES as usize - 1);
        assert_eq!(listing(&policy, 1_000)[0].name, "api@c0");
        assert!(listing(&policy, 2_099).is_empty());
        assert_eq!(listing(&policy, 2_100)[0].name, "api");
        assert!(
            warnings[0].contains("is closed to everybody"),
            "{warnings:?}"
        );
        // Of what is only observed nothing is dropped.
        let (policy, _) = applied(&format!("{ANY}mode = \"observe\"\n"), labelled);
        assert_eq!(listing(&policy, 2_099)[0].name, "api");
    }

    #[test]
    fn what_a_label_holds_forges_no_line_and_is_not_repeated_at_length() {
        let mut hostile = container(
            "web\nERROR all is lost",
            8000,
            &[
                ("guard.x\n2026-01-01 WARN forged\u{202e}", "\u{202e}"),
                ("guard.limit.packets", "5/\u{202e}s\n\u{1b}[2J"),
                ("guard.limit.bytes", "{ rate = \"\u{202e}\", x = 1 }"),
                (FROM, "nobody\nforged"),
            ],
        );
        let check = |warnings: &[String]| {
            for warning in warnings {
                assert!(warning.chars().count() < 700, "{warning}");
                let forging = |c: char| c.is_control() || c == '\u{202e}';
                assert!(!warning.contains(forging), "{warning:?}");
            }
        };
        let (_, warnings) = applied(ANY, vec![hostile.clone()]);
        assert_eq!(warnings.len(), 4, "{warnings:?}");
        check(&warnings);
        for number in 0..100_000 {
            hostile
                .labels
                .insert(format!("guard.{number}"), "x".repeat(100));
        }
        let (_, warnings) = applied(ANY, vec![hostile.clone()]);
        assert_eq!(warnings.len(), 4, "{warnings:?}");
        assert!(warnings[3].contains("and 99998 more"), "{warnings:?}");
        check(&warnings);
        hostile
            .labels
            .retain(|key, _| !key.contains(|c: char| c.is_ascii_digit()));
        let crowd = vec![hostile; 200];
        let (_, warnings) = applied(ANY, crowd);
        assert_eq!(warnings.len(), 101);
        check(&warnings);
        let long = "x".repeat(1_000_000);
        let pairs = [
            (FROM, long.as_str()),
            ("guard.limit.packets", &long),
            (&long, &long),
        ];
        check(&applied(ANY, vec![container(&long, 8000, &pairs)]).1);
    }

    #[test]
    fn a_thousand_containers_cost_little() {
        let labelled = (0..1_000).map(|n: u16| {
            let from = format!("10.{}.{}.0/24, office", n / 256, n % 256);
            let rate = format!("{}/s", 500 + n);
            let burst = format!("{{ rate = \"{}/s\", burst = {n} }}", 200);
            container(
                &format!("c{n}"),
                10_000 + n,
                &[
                    (FROM, &from),
                    ("guard.limit.packets", &rate),
                    ("guard.limit.connections", &burst),
                ],
            )
        });
        let services: String = (0..20)
            .map(|n| {
                format!(
                    "[[service]]\nname = \"s{n}\"\nports = [\"tcp/{}-{}\"]\n",
                    10_000 + n * 1_000,
                    10_999 + n * 1_000
                )
            })
            .collect();
        let text = format!("{services}[[source]]\nname = \"office\"\ncidrs = [\"192.0.2.0/28\"]\n");
        let policy = Policy::parse(&text, "guard.toml", CLOCK).unwrap();
        let containers = Containers {
            labelled: labelled.collect(),
            ..Containers::default()
        };
        let start = std::time::Instant::now();
        let (applied, _) = apply(&policy, &containers, CLOCK);
        let took = start.elapsed();
        println!("{took:?} for {} services", applied.services.len());
        assert!(applied.services.len() > 1_000);
        // Ten times as much without optimization; it was minutes when each one copied all.
        assert!(took.as_millis() < 500, "{took:?}");
    }

    #[test]
    fn two_containers_that_may_have_a_port_are_both_heeded() {
        let policy = Policy::parse(POLICY, "guard.toml", CLOCK).unwrap();
        let labelled = |container: &str, from: &str| Labelled {
            container: container.to_owned(),
            published: vec![PublishedPort {
                protocol: PortProtocol::Tcp,
                port: 8000,
                at: PublishedAt::EveryIpv4,
            }],
            labels: BTreeMap::from([(FROM.to_owned(), from.to_owned())]),
        };
        let containers = Containers {
            labelled: vec![labelled("a", "192.0.2.0/24"), labelled("b", "192.0.2.7")],
            ..Containers::default()
        };
        let (applied, _) = apply(&policy, &containers, CLOCK);
        let last = applied.services.last().unwrap();
        assert_eq!(last.name, "api@a@b");
        assert_eq!(last.base(), Some("api"));
        let port = port_index(PortProtocol::Tcp, 8000);
        let mut listing = applied
            .services
            .iter()
            .filter(|service| places_of(&service.ports).any(|range| range.contains(&port)));
        assert_eq!(listing.next().unwrap().name, "api@a@b");
        assert!(listing.next().is_none());
    }

    #[test]
    fn names_fit_the_tables_and_differ() {
        let policy = Policy::parse(POLICY, "guard.toml", CLOCK).unwrap();
        let mut work = Work::new(&policy, &Containers::default());
        let long = "x".repeat(200);
        let containers = ["web", &long, &format!("{long}y"), "a\nb", "a b", "büro"];
        let services = ["", "api", &"s".repeat(60), &"s".repeat(64)];
        let mut names = BTreeSet::new();
        for service in services {
            for container in containers.into_iter().chain(containers) {
                let name = work.name(service, container);
                assert!(name.len() <= MAX_NAME && name.is_ascii(), "{name}");
                assert!(!name.contains(|c: char| c.is_whitespace() || c.is_control()));
                work.names.insert(name.clone());
                names.insert(name);
            }
        }
        assert_eq!(names.len(), 48);
        assert!(names.contains("api@web"));
    }

    #[test]
    fn what_is_said_of_a_service_with_a_long_name_is_said_of_what_labels_make_of_it() {
        let long = "s".repeat(60);
        let text = ANY.replace("api", &long);
        let (policy, _) = applied(
            &text,
            vec![container("website", 8000, &[(FROM, "192.0.2.0/24")])],
        );
        let made = listing(&policy, 8000)[0];
        assert!(!made.name.contains(AT), "{}", made.name);
        assert_eq!(made.base(), Some(long.as_str()));
        assert!(made.goes_by(&long) && made.goes_by(&made.name) && !made.goes_by("s"));
    }
}
