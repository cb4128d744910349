//! What the labels of containers ask of the guard. The owner of the policy decides, not the author of a
//! compose file: labels only take away from what the policy allows, unless it says otherwise.
//!
//! The ports of such a container become a service of their own, named after the one that lists them and
//! the container. What there is no room for never opens anything: without room for a budget the container
//! keeps that of the policy's service, without room for a list of sources its ports are closed.

mod asked;
mod complaints;
mod places;
mod sources;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    rc::Rc,
};

use guard_common::{
    layout::{MAX_ADMITTED, MAX_NAME, MAX_SERVICES},
    reason::Mode,
};
use sha2::{Digest as _, Sha256};

use self::{
    asked::{LabelReader, LabelRequest, Wish},
    complaints::{Complaints, Warnings},
    places::{address_of, display, overlaps, places_of, places_of_container, ranges, without},
    sources::{Allowed, merged},
};
use super::{
    Budget, Budgets, Containers, From, KernelTick, Labelled, Labels, Limit, Made, Policy,
    PublishedAt, Service, seats::limits_for_labels,
};

const FROM: &str = "guard.from";
const LIMIT: &str = "guard.limit.";

/// How many prefixes the `guard.from` of a container may come to at a service, after those that lie side by
/// side or within each other are merged.
pub const MAX_FROM: usize = 256;

/// Between the name of a service and of a container: no name of a policy has it.
const AT: char = '@';

/// A policy with what the labels of containers ask for, and what they ask for in vain.
pub fn apply(policy: &Policy, containers: &Containers, clock: KernelTick) -> (Policy, Vec<String>) {
    if policy.docker_labels == Labels::Off || containers.labelled.is_empty() {
        return (policy.clone(), Vec::new());
    }
    let mut reader = LabelReader::new(policy, clock);
    let mut work = Work::new(policy, containers);
    let mut warnings = Warnings::default();
    for labelled in &containers.labelled {
        let mut complaints = Complaints::default();
        let asked = reader.read(&labelled.labels, &mut complaints);
        if asked != LabelRequest::default() {
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
    /// Which services list each place in the port table that a container with labels publishes, by where it does.
    listing: BTreeMap<u32, BTreeMap<PublishedAt, Vec<usize>>>,
    /// The places that the policy's services have lost on all of their addresses.
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
enum LabelAccess {
    /// Those that may reach the service.
    Same,
    Only(From),
    Nobody,
}

impl<'a> Work<'a> {
    fn new(policy: &'a Policy, containers: &Containers) -> Self {
        let mut listing: BTreeMap<u32, BTreeMap<PublishedAt, Vec<usize>>> = BTreeMap::new();
        for (place, at) in containers.labelled.iter().flat_map(places_of_container) {
            listing.entry(place).or_default().insert(at, Vec::new());
        }
        for (index, service) in policy.services.iter().enumerate() {
            for range in places_of(&service.ports) {
                let places = listing.range_mut(range).flat_map(|(_, places)| places);
                for (at, services) in places {
                    if overlaps(*at, service.address) {
                        services.push(index);
                    }
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
    fn add(&mut self, labelled: &Labelled, asked: &LabelRequest, complaints: &mut Complaints) {
        let mut unlisted: BTreeMap<Option<IpAddr>, BTreeSet<u32>> = BTreeMap::new();
        let mut mine: BTreeMap<(usize, Option<IpAddr>), BTreeSet<u32>> = BTreeMap::new();
        for (place, at) in places_of_container(labelled) {
            let services = self.listing.get(&place).and_then(|places| places.get(&at));
            let mut is_listed = false;
            for index in services.into_iter().flatten() {
                is_listed = true;
                let address = self.service(*index).and_then(|service| service.address);
                let piece = (*index, address.or(address_of(at)));
                mine.entry(piece).or_default().insert(place);
            }
            if !is_listed && !self.closed.contains(&place) {
                let places = unlisted.entry(address_of(at)).or_default();
                places.insert(place);
            }
        }
        for ((index, address), mine) in mine {
            // Where labels open, what another container's have opened is its own.
            let is_others = self.is_full() && index >= self.policy.services.len();
            if !is_others && let Some(service) = self.service(index).cloned() {
                let piece = Service { address, ..service };
                self.cut_out(index, &piece, mine, labelled, asked, complaints);
            }
        }
        for (address, unlisted) in unlisted {
            match &asked.from {
                None | Some(Wish::TooMany) => {}
                Some(wish) if self.is_full() => {
                    self.open(labelled, (unlisted, address), wish, asked.limit, complaints);
                }
                Some(_) => complaints.add(format!(
                    "the label {FROM} does not open {}, which no service of the policy lists: labels only \
                     narrow what the policy allows",
                    display(&unlisted, address)
                )),
            }
        }
    }

    /// Makes a service of its own of the places of a container at a service, if its labels change anything. `service`
    /// has the address that the container publishes them on, if that is one alone.
    fn cut_out(
        &mut self,
        index: usize,
        service: &Service,
        mine: BTreeSet<u32>,
        labelled: &Labelled,
        asked: &LabelRequest,
        complaints: &mut Complaints,
    ) {
        let mut who = self.who(index, service, asked, complaints);
        let mut limit = service.limit;
        limit.budgets = if self.is_full() {
            asked.limit.or(service.limit.budgets)
        } else {
            narrowed(service, asked.limit, complaints)
        };
        if matches!(who, LabelAccess::Same) && limit == service.limit {
            return;
        }
        let mut cells_of = None;
        if limit.budgets != Budgets::default()
            && self.limits_left == 0
            && !matches!(who, LabelAccess::Nobody)
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
            if matches!(who, LabelAccess::Same) {
                return;
            }
        }
        let needed = match &who {
            LabelAccess::Same => count(&service.from),
            LabelAccess::Only(from) => count(from),
            LabelAccess::Nobody => 0,
        };
        if needed > self.prefixes_left {
            if matches!(who, LabelAccess::Same) {
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
                display(&mine, service.address)
            ));
            who = LabelAccess::Nobody;
        }
        if !self.has_room_for_service() {
            match who {
                LabelAccess::Same => complaints.add(format!(
                    "its {LIMIT}* labels are ignored: there is no room for another service"
                )),
                // Closed like a port that nobody lists, if that is not stricter than the service.
                _ if service.mode == Mode::Enforce => {
                    complaints.add(format!(
                        "{} is closed to everybody on every address: there is no room for the service that \
                         its label {FROM} makes",
                        display(&mine, None)
                    ));
                    self.closed.extend(&mine);
                    self.take(index, &mine);
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
            LabelAccess::Same => {}
            LabelAccess::Only(from) => made.from = from,
            LabelAccess::Nobody => {
                made.from = From::Admitted(Vec::new());
                // Nobody gets so far.
                made.limit.budgets = Budgets::default();
            }
        }
        // On one address of several, the kernel's tables prefer the service that names it.
        if self
            .service(index)
            .is_none_or(|whole| whole.address == made.address)
        {
            self.take(index, &mine);
        }
        self.put(mine, made);
    }

    /// Who may reach what a container publishes of a service.
    fn who(
        &mut self,
        index: usize,
        service: &Service,
        asked: &LabelRequest,
        complaints: &mut Complaints,
    ) -> LabelAccess {
        let closed = |prefixes: usize, complaints: &mut Complaints| {
            complaints.add(format!(
                "its ports of the service {:?} are closed to everybody: the label {FROM} comes to \
                 {prefixes} prefixes there, and {MAX_FROM} are the most",
                service.name
            ));
            LabelAccess::Nobody
        };
        let list = match &asked.from {
            None => return LabelAccess::Same,
            // That has been said.
            Some(Wish::TooMany) => return LabelAccess::Nobody,
            Some(Wish::Any) if self.is_full() => {
                return match service.from {
                    From::Any => LabelAccess::Same,
                    From::Admitted(_) => LabelAccess::Only(From::Any),
                };
            }
            Some(Wish::Any) => {
                if service.from != From::Any {
                    complaints.add(asks_for_more(service));
                }
                return LabelAccess::Same;
            }
            Some(Wish::Admitted(list)) => list,
        };
        let allowed = self.allowed(index, service);
        if allowed.as_ref().is_some_and(|allowed| allowed.is(list)) {
            return LabelAccess::Same;
        }
        if list.len() > MAX_FROM {
            return closed(list.len(), complaints);
        }
        let Some(allowed) = allowed.filter(|_| !self.is_full()) else {
            return LabelAccess::Only(From::Admitted(list.to_vec()));
        };
        let (left, is_covered) = allowed.intersection(list);
        if !is_covered {
            complaints.add(asks_for_more(service));
        }
        if allowed.is(&left) {
            return LabelAccess::Same;
        }
        // Of several containers with one port all labels hold, also if together they admit nobody.
        if left.is_empty() && service.made.is_none() {
            return LabelAccess::Same;
        }
        if left.len() > MAX_FROM {
            return closed(left.len(), complaints);
        }
        LabelAccess::Only(From::Admitted(left))
    }

    /// Of those, who may reach the service, too.
    fn within(&mut self, index: usize, service: &Service, who: LabelAccess) -> LabelAccess {
        let LabelAccess::Only(from) = who else {
            return who;
        };
        let Some(allowed) = self.allowed(index, service) else {
            return LabelAccess::Only(from);
        };
        let From::Admitted(list) = from else {
            return LabelAccess::Same;
        };
        let (left, _) = allowed.intersection(&list);
        if left.is_empty() || left.len() > MAX_FROM {
            return LabelAccess::Nobody;
        }
        LabelAccess::Only(From::Admitted(left))
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
        (places, address): (BTreeSet<u32>, Option<IpAddr>),
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
            let places = display(&places, address);
            complaints.add(format!("{places} stays closed: {why} prefixes"));
            return;
        }
        let is_limited = budgets != Budgets::default();
        if is_limited && self.limits_left == 0 || !self.has_room_for_service() {
            let places = display(&places, address);
            complaints.add(format!(
                "{places} stays closed: labels have no room for another service with its limits"
            ));
            return;
        }
        let made = Service {
            name: self.name("", &labelled.container),
            line: 0,
            ports: Vec::new(),
            address,
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

    /// Takes places away from a service, on all of its addresses.
    fn take(&mut self, index: usize, places: &BTreeSet<u32>) {
        for place in places {
            let listed = self.listing.get_mut(place).into_iter();
            for services in listed.flat_map(BTreeMap::values_mut) {
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
    }

    fn put(&mut self, places: BTreeSet<u32>, service: Service) {
        let index = self.policy.services.len() + self.made.len();
        for place in &places {
            for (at, services) in self.listing.get_mut(place).into_iter().flatten() {
                if !overlaps(*at, service.address) {
                    continue;
                }
                if address_of(*at).is_some() && service.address.is_some() {
                    // It comes before one that is on every address.
                    services.clear();
                }
                services.push(index);
            }
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
