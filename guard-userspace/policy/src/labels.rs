//! Applies the labels of containers to a policy. The owner of the policy decides, not the author of a compose file:
//! labels only restrict what the policy allows, unless `docker.labels` is `full`.
//!
//! The ports of a container with labels become a separate service, named after the service that lists them and the
//! container. A lack of room never opens a port: without room for a budget the container keeps the budget of the
//! policy's service, and without room for a list of sources its ports are closed.

mod asked;
mod complaints;
mod families;
mod places;
mod sources;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    rc::Rc,
};

use guard_common::{
    address::Family,
    exposure::Scope,
    layout::{MAX_ADMITTED, MAX_NAME, MAX_SERVICES},
    reason::Mode,
};
use sha2::{Digest as _, Sha256};

use self::{
    asked::{LabelReader, LabelRequest, Wish},
    complaints::{Complaints, Warnings},
    families::{joined, other, part, part_of_list},
    places::{address_of, display, overlaps, places_of, places_of_container, ranges, without},
    sources::{Allowed, merged},
};
use super::{
    Budget, Budgets, Containers, From, KernelTick, LabelOrigin, Labelled, Labels, Limit, Policy,
    PublishedAt, Service, service_ids::limits_for_labels,
};

const FROM: &str = "guard.from";
const LIMIT: &str = "guard.limit.";

/// The most prefixes of a container's `guard.from` at a service, after adjacent and nested prefixes are merged.
pub const MAX_FROM: usize = 256;

/// Separates the names of a service and a container. No name in a policy has this character.
const AT: char = '@';

/// Returns the policy with the labels of containers applied, and warnings about labels that were not applied.
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

/// The services while labels change them. Each has an index: first the services of the policy, then those that labels
/// have made. A *place* is an index into the port table.
struct Work<'a> {
    policy: &'a Policy,
    made: Vec<Piece>,
    /// For each place that a container with labels publishes, and each address where it does: the services that list
    /// it.
    listing: BTreeMap<u32, BTreeMap<PublishedAt, Vec<usize>>>,
    /// The places that the policy's services have lost on all of their addresses.
    lost: BTreeMap<usize, BTreeSet<u32>>,
    /// The places that stay closed, whatever labels of other containers say.
    closed: BTreeSet<u32>,
    names: HashSet<String>,
    /// The sources that a service allows, by the index of the service and the family.
    allowed: HashMap<(usize, Option<Family>), Rc<Allowed>>,
    /// The families in which containers publish each place, on every address or on some.
    published: HashSet<(u32, Family)>,
    /// The number of prefixes that still fit into the lists of all services, and the number of services made by labels
    /// that can still have their own cells.
    prefixes_left: usize,
    limits_left: usize,
}

/// A service that labels have made, with its ports as places.
struct Piece {
    service: Service,
    places: BTreeSet<u32>,
    /// The family for which the labels hold; `None`: both.
    family: Option<Family>,
}

/// Ports that a container publishes and no service lists.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Unlisted {
    /// Where the container publishes them; `None`: on every address of both families.
    at: Option<PublishedAt>,
    /// The service that labels have made from these ports for the other family.
    beside: Option<usize>,
    /// The guard does not close these ports in the other family: no container publishes them there.
    is_other_unguarded: bool,
}

/// The sources that may reach the ports of a container.
enum LabelAccess {
    /// The sources that may reach the service.
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
            published: containers
                .labelled
                .iter()
                .flat_map(|labelled| &labelled.published)
                .chain(&containers.published)
                .map(|port| (port.index(), port.at.family()))
                .collect(),
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

    fn piece(&self, index: usize) -> Option<&Piece> {
        let index = index.checked_sub(self.policy.services.len())?;
        self.made.get(index)
    }

    /// Whether labels of another container hold at a service, for sources of a family; `None`: of either family.
    fn has_labels(&self, index: usize, family: Option<Family>) -> bool {
        let Some(piece) = self.piece(index) else {
            return false;
        };
        piece.family.is_none() || family.is_none() || piece.family == family
    }

    /// Adds the services that a container's labels make.
    fn add(&mut self, labelled: &Labelled, asked: &LabelRequest, complaints: &mut Complaints) {
        let mut unlisted: BTreeMap<(u32, Option<IpAddr>, Option<usize>), Option<PublishedAt>> =
            BTreeMap::new();
        let mut listed: BTreeMap<(usize, Option<IpAddr>, u32), Option<PublishedAt>> =
            BTreeMap::new();
        // A place on every address occurs once for each family: if it occurs twice, it is published in both.
        for (place, at) in places_of_container(labelled) {
            let services = self.listing.get(&place).and_then(|places| places.get(&at));
            let mut is_listed = false;
            let mut beside = None;
            for index in services.into_iter().flatten() {
                let has_labels = self.has_labels(*index, Some(at.family()));
                let service = self.service(*index);
                let made = service.and_then(|service| service.made.as_ref());
                if made.is_some_and(|made| made.base.is_none()) && !has_labels {
                    beside = address_of(at).is_none().then_some(*index);
                    continue;
                }
                is_listed = true;
                // If labels may open ports, a port that another container's labels opened stays that container's.
                if self.is_full() && has_labels {
                    continue;
                }
                let address = service.and_then(|service| service.address);
                let at = address.map_or(at, PublishedAt::Address);
                listed
                    .entry((*index, address_of(at), place))
                    .and_modify(|at| *at = None)
                    .or_insert(Some(at));
            }
            if !is_listed && !self.closed.contains(&place) {
                unlisted
                    .entry((place, address_of(at), beside))
                    .and_modify(|at| *at = None)
                    .or_insert(Some(at));
            }
        }
        let mut pieces: BTreeMap<(usize, Option<PublishedAt>), BTreeSet<u32>> = BTreeMap::new();
        for ((index, _, place), at) in listed {
            pieces.entry((index, at)).or_default().insert(place);
        }
        for ((index, at), mine) in pieces {
            self.cut_out(index, at, mine, labelled, asked, complaints);
        }
        let mut openings: BTreeMap<Unlisted, BTreeSet<u32>> = BTreeMap::new();
        for ((place, _, beside), at) in unlisted {
            let opening = Unlisted {
                at,
                beside,
                is_other_unguarded: self.policy.scope == Scope::Containers
                    && at.is_some_and(|at| {
                        let other = other(at.family());
                        !self.published.contains(&(place, other))
                    }),
            };
            openings.entry(opening).or_default().insert(place);
        }
        for (opening, places) in openings {
            match &asked.from {
                None | Some(Wish::TooMany) => {}
                Some(wish) if self.is_full() => {
                    self.open(labelled, places, opening, wish, asked.limit, complaints);
                }
                Some(_) => complaints.add(format!(
                    "the label {FROM} does not open {}, which no service of the policy lists: with \
                     docker.labels = \"narrow\", labels only restrict what the policy allows",
                    display(&places, opening.at)
                )),
            }
        }
    }

    /// Moves the places of a container at a service to a new service, if its labels change anything. `at`: where the
    /// container publishes them; `None`: on every address of both families.
    fn cut_out(
        &mut self,
        index: usize,
        at: Option<PublishedAt>,
        mine: BTreeSet<u32>,
        labelled: &Labelled,
        asked: &LabelRequest,
        complaints: &mut Complaints,
    ) {
        let Some(whole) = self.service(index).cloned() else {
            return;
        };
        let address = at.and_then(address_of);
        let family = at.map(PublishedAt::family);
        // A single address has no other family.
        let kept_family = family.filter(|_| address.is_none()).map(other);
        let kept = kept_family.map(|family| part(&whole.from, Some(family)));
        let with_kept = |from: &From| match (family, &kept) {
            (Some(family), Some(kept)) => joined(from, family, kept),
            _ => from.clone(),
        };
        // The service as it is for sources of that family.
        let service = &Service {
            address,
            from: part(&whole.from, family),
            ..whole.clone()
        };
        let mut access = self.access(index, family, service, asked, complaints);
        if let LabelAccess::Only(from) = &access
            && with_kept(from) == whole.from
        {
            access = LabelAccess::Same;
        }
        let mut limit = service.limit;
        // A service cannot have different limits for the two families: the limits of both labels hold.
        let shares_limits = whole.made.is_some() && whole.address == address;
        limit.budgets = if self.is_full() && !shares_limits {
            asked.limit.or(service.limit.budgets)
        } else {
            narrowed(service, asked.limit, complaints)
        };
        let nobody = From::Admitted(Vec::new());
        if matches!(access, LabelAccess::Same) && limit == service.limit {
            return;
        }
        let mut cells_of = None;
        if limit.budgets != Budgets::default()
            && self.limits_left == 0
            && !(matches!(access, LabelAccess::Nobody) && with_kept(&nobody) == nobody)
        {
            if limit != service.limit {
                complaints.add(format!(
                    "its {LIMIT}* labels are ignored, and it keeps the budgets of the service {:?}: \
                     there are cells for the limits of {} containers, and other containers have them; \
                     write a larger `cells` in the policy",
                    service.name,
                    limits_for_labels(self.policy.cells),
                ));
                // The label may admit further sources only because it limits them: without the limit they stay out.
                if self.is_full()
                    && let Some(Wish::Admitted(_) | Wish::Any) = asked.from
                {
                    access = self.within(index, family, service, access);
                }
            }
            limit = service.limit;
            cells_of = Some(service.cells_of().to_owned());
            if matches!(access, LabelAccess::Same) {
                return;
            }
        }
        let mut from = with_kept(match &access {
            LabelAccess::Same => &service.from,
            LabelAccess::Only(from) => from,
            LabelAccess::Nobody => &nobody,
        });
        let needed = count(&from);
        if needed > self.prefixes_left {
            if matches!(access, LabelAccess::Same) {
                complaints.add(format!(
                    "its {LIMIT}* labels are ignored: the lists of all services have no room for \
                     another copy of the {needed} prefixes that may reach the service {:?}",
                    service.name
                ));
                return;
            }
            access = LabelAccess::Nobody;
            from = with_kept(&nobody);
            let mut closed_at = at;
            if count(&from) > self.prefixes_left {
                closed_at = address.map(PublishedAt::Address);
                from = nobody.clone();
            }
            complaints.add(format!(
                "{} is closed to every source: the lists of all services have no room for the {needed} \
                 prefixes of its label {FROM}",
                display(&mine, closed_at)
            ));
        }
        if !self.has_room_for_service() {
            match access {
                LabelAccess::Same => complaints.add(format!(
                    "its {LIMIT}* labels are ignored: there is no room for another service"
                )),
                // Closed like a port that no service lists, unless the service's own mode drops nothing.
                _ if service.mode == Mode::Enforce => {
                    complaints.add(format!(
                        "{} is closed to every source on every address: there is no room for the service that \
                         its label {FROM} needs",
                        display(&mine, None)
                    ));
                    self.closed.extend(&mine);
                    self.take(index, &mine);
                }
                _ => complaints.add(format!(
                    "the label {FROM} is ignored: there is no room for another service, and the mode of the \
                     service {:?} drops nothing",
                    service.name
                )),
            }
            return;
        }
        if from == nobody {
            // No packet reaches the budgets.
            limit.budgets = Budgets::default();
        }
        let made = Service {
            name: self.name(&service.name, &labelled.container),
            from,
            limit,
            made: Some(LabelOrigin {
                base: match &service.made {
                    None => Some(service.name.clone()),
                    Some(made) => made.base.clone(),
                },
                cells_of,
            }),
            ..service.clone()
        };
        // On one address of several, a lookup prefers the service that names the address.
        let is_whole = whole.address == address;
        let before = self.piece(index).filter(|_| is_whole);
        let is_same = before.is_none_or(|piece| piece.family == family);
        let family = family.filter(|_| is_same);
        if is_whole {
            self.take(index, &mine);
        }
        self.put(mine, made, family);
    }

    /// The sources of a family that may reach a container's ports of a service. `service` must admit only sources of
    /// that family.
    fn access(
        &mut self,
        index: usize,
        family: Option<Family>,
        service: &Service,
        asked: &LabelRequest,
        complaints: &mut Complaints,
    ) -> LabelAccess {
        let closed = |prefixes: usize, complaints: &mut Complaints| {
            complaints.add(format!(
                "its ports of the service {:?} are closed to every source: the label {FROM} has {prefixes} \
                 prefixes there, and {MAX_FROM} are the most",
                service.name
            ));
            LabelAccess::Nobody
        };
        let whose = if self.has_labels(index, family) {
            "label of another container with the same port"
        } else {
            "policy"
        };
        // `None`: any.
        let list = match (&asked.from, family) {
            (None, _) => return LabelAccess::Same,
            // The reader of the labels has warned of it already.
            (Some(Wish::TooMany), _) => return LabelAccess::Nobody,
            (Some(Wish::Any), _) => None,
            (Some(Wish::Admitted(list)), None) => Some(Cow::Borrowed(&**list)),
            (Some(Wish::Admitted(list)), Some(family)) => match part_of_list(list, family) {
                From::Any => None,
                From::Admitted(list) => Some(Cow::Owned(list)),
            },
        };
        let Some(list) = list else {
            return match service.from {
                From::Any => LabelAccess::Same,
                From::Admitted(_) if self.is_full() => LabelAccess::Only(From::Any),
                From::Admitted(_) => {
                    complaints.add(asks_for_more(service, whose));
                    LabelAccess::Same
                }
            };
        };
        let allowed = self.allowed(index, family, service);
        if allowed.as_ref().is_some_and(|allowed| allowed.is(&list)) {
            return LabelAccess::Same;
        }
        if let Some(family) = family
            && list.is_empty()
        {
            let family = families::name(family);
            complaints.add(format!(
                "its {family} ports of the service {:?} are closed to every source: the label {FROM} names no \
                 {family} source",
                service.name
            ));
            return LabelAccess::Nobody;
        }
        if list.len() > MAX_FROM {
            return closed(list.len(), complaints);
        }
        let Some(allowed) = allowed.filter(|_| !self.is_full()) else {
            return LabelAccess::Only(From::Admitted(list.to_vec()));
        };
        let (left, is_covered) = allowed.intersection(&list);
        if !is_covered {
            complaints.add(asks_for_more(service, whose));
        }
        if allowed.is(&left) {
            return LabelAccess::Same;
        }
        // If several containers have a port, the labels of all hold, even if together they admit no source.
        if left.is_empty() && !self.has_labels(index, family) {
            return LabelAccess::Same;
        }
        if left.len() > MAX_FROM {
            return closed(left.len(), complaints);
        }
        LabelAccess::Only(From::Admitted(left))
    }

    /// Restricts `access` to the sources that may reach the service as well.
    fn within(
        &mut self,
        index: usize,
        family: Option<Family>,
        service: &Service,
        access: LabelAccess,
    ) -> LabelAccess {
        let LabelAccess::Only(from) = access else {
            return access;
        };
        let Some(allowed) = self.allowed(index, family, service) else {
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

    /// The sources that a service allows; `None`: any. `service` must admit only sources of the family.
    fn allowed(
        &mut self,
        index: usize,
        family: Option<Family>,
        service: &Service,
    ) -> Option<Rc<Allowed>> {
        let From::Admitted(list) = &service.from else {
            return None;
        };
        let allowed = self.allowed.entry((index, family));
        let allowed = allowed.or_insert_with(|| Rc::new(Allowed::new(merged(list))));
        Some(Rc::clone(allowed))
    }

    /// Makes a service from ports that no service of the policy lists.
    fn open(
        &mut self,
        labelled: &Labelled,
        places: BTreeSet<u32>,
        opening: Unlisted,
        wish: &Wish,
        budgets: Budgets,
        complaints: &mut Complaints,
    ) {
        let Unlisted {
            at,
            beside,
            is_other_unguarded,
        } = opening;
        let family = at.map(PublishedAt::family);
        let address = at.and_then(address_of);
        let asked = match (wish, family) {
            (Wish::Any, _) => From::Any,
            (Wish::Admitted(list), None) => From::Admitted(list.to_vec()),
            (Wish::Admitted(list), Some(family)) => part_of_list(list, family),
            (Wish::TooMany, _) => return,
        };
        let beside = beside.and_then(|index| Some((index, self.service(index)?.clone())));
        let nobody = From::Admitted(Vec::new());
        let from = match (family, &beside) {
            (Some(family), _) if asked == nobody => {
                let family = families::name(family);
                complaints.add(format!(
                    "{} stays closed: its label {FROM} names no {family} source",
                    display(&places, at)
                ));
                return;
            }
            (Some(family), Some((_, beside))) => joined(&asked, family, &beside.from),
            (Some(family), None) if address.is_none() => {
                let rest = if is_other_unguarded {
                    &From::Any
                } else {
                    &nobody
                };
                joined(&asked, family, rest)
            }
            _ => asked.clone(),
        };
        let stay_closed = match &asked {
            From::Admitted(list) if list.len() > MAX_FROM => {
                Some(format!("its label {FROM} has more than {MAX_FROM}"))
            }
            _ if count(&from) > self.prefixes_left => {
                Some("the lists of all services have no room for its".to_owned())
            }
            _ => None,
        };
        if let Some(why) = stay_closed {
            let places = display(&places, at);
            complaints.add(format!("{places} stays closed: {why} prefixes"));
            return;
        }
        // A service cannot have different limits for the two families: the limits of both labels hold.
        let budgets = match &beside {
            None => budgets,
            Some((_, beside)) => narrowed(beside, budgets, complaints),
        };
        let is_limited = budgets != Budgets::default();
        if is_limited && self.limits_left == 0 || !self.has_room_for_service() {
            let places = display(&places, at);
            complaints.add(format!(
                "{places} stays closed: there is no room for another service with its limits"
            ));
            return;
        }
        let name = beside.as_ref().map_or("", |(_, beside)| &beside.name);
        let made = Service {
            name: self.name(name, &labelled.container),
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
            flood: None,
            made: Some(LabelOrigin {
                base: None,
                cells_of: None,
            }),
        };
        let mut family = family;
        if let Some((index, _)) = beside {
            family = None;
            self.take(index, &places);
        }
        self.put(places, made, family);
    }

    fn has_room_for_service(&self) -> bool {
        // The id 0 means "no service".
        self.policy.services.len() + self.made.len() + 1 < MAX_SERVICES as usize
    }

    /// Removes places from a service, on all of its addresses.
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

    /// Adds a service that labels have made. `family`: the family for which the labels hold; `None`: both.
    fn put(&mut self, places: BTreeSet<u32>, service: Service, family: Option<Family>) {
        let index = self.policy.services.len() + self.made.len();
        for place in &places {
            for (at, services) in self.listing.get_mut(place).into_iter().flatten() {
                if !overlaps(*at, service.address) {
                    continue;
                }
                if address_of(*at).is_some() && service.address.is_some() {
                    // A service on this address comes before services on every address.
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
        self.made.push(Piece {
            service,
            places,
            family,
        });
    }

    /// A unique name that fits the kernel's tables and has only characters of names.
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

fn asks_for_more(service: &Service, whose: &str) -> String {
    format!(
        "the label {FROM} names sources that the {whose} does not allow at the service {:?}: they are left out",
        service.name
    )
}

/// The number of prefixes that a list takes in the lists of all services.
fn count(from: &From) -> usize {
    match from {
        From::Any => 0,
        From::Admitted(prefixes) => prefixes.len(),
    }
}

/// The budgets of a service, restricted by those of labels.
fn narrowed(service: &Service, asked: Budgets, complaints: &mut Complaints) -> Budgets {
    let mut budgets = service.limit.budgets;
    let mut narrow = |kind: &str, allowed: &mut Option<Budget>, asked: Option<Budget>| {
        let Some(asked) = asked else { return };
        match allowed {
            Some(budget) if !is_within(asked, *budget) => complaints.add(format!(
                "the label {LIMIT}{kind} is ignored: its rate or burst is larger than that of the service {:?}",
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

/// Whether a budget never allows more than another.
fn is_within(asked: Budget, allowed: Budget) -> bool {
    let per = |one: Budget, other: Budget| {
        u128::from(one.rate.count) * u128::from(other.rate.period.nanoseconds())
    };
    per(asked, allowed) <= per(allowed, asked) && asked.burst <= allowed.burst
}
