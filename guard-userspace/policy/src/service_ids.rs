//! Assigns a service id and cells to each service. Generations share counters and budgets, so a service keeps both from
//! one policy to the next.
//!
//! Services that labels of containers make have cells in a separate part of the array. So containers that come and go
//! never move or shrink the cells of a service that the policy lists. A service that is gone keeps its id and cells
//! until another service needs them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use guard_common::{
    cell::ROWS,
    layout::{MAX_SERVICE_IDS, MIN_CELLS_PER_ROW, NO_SERVICE},
};

use super::{Budgets, Labels, Policy, Service};

/// Services made by labels have one cell for this many cells of the policy, in addition to these.
const CELLS_PER_LABEL_CELL: u32 = 4;

/// The number of cells of the smallest slice.
const SMALLEST: u32 = ROWS * MIN_CELLS_PER_ROW;

/// One in this many of the cells for labels is for slices that may be larger than the smallest.
const LARGE_PART: u32 = 4;

/// A new service gets one in this many of the cells that are left there, so that later ones get some as well.
const NEWCOMERS_PART: u32 = 8;

/// The number of generations whose services may need cells at once: the new one, the one in force, and the one that a
/// trial goes back to. Each service has as many of the smallest slices in reserve.
const GENERATIONS: u32 = 3;

/// How many services made by labels can have their own cells, whatever services were there before.
pub(super) const fn limits_for_labels(cells: u32) -> usize {
    let small = Area::of(0, cells / CELLS_PER_LABEL_CELL).small;
    ((small.end - small.start) / SMALLEST / GENERATIONS) as usize
}

/// The service ids and cells of the services of this policy and of earlier ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceIds {
    /// The `cells` of the policy for which the slices were cut.
    pub asked: u32,
    /// The length of the array from which they were cut.
    pub length: u32,
    /// The number of the array. It differs for two arrays that were cut alike.
    pub array: u32,
    pub places: BTreeMap<String, ServiceId>,
    /// The cells of each service that limits its sources; those of [`NO_SERVICE`] have the empty name.
    pub slices: BTreeMap<String, Slice>,
}

/// The number of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceId {
    pub number: u16,
    /// The number of policies since the last one that listed the service (it saturates); 0: it is listed.
    pub idle: u16,
    /// Labels have made the service from the service with this number. Its own number: from no service of the policy.
    pub derived_from: Option<u16>,
}

/// The cells of a service, in two rows: the first cell, and the number of cells in a row minus one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    pub first_cell: u32,
    pub cell_mask: u32,
}

impl Slice {
    const fn new(first_cell: u32, per_row: u32) -> Self {
        Self {
            first_cell,
            cell_mask: per_row - 1,
        }
    }

    /// The indices of its cells in the array.
    pub const fn cells(self) -> Range<u32> {
        let Self {
            first_cell,
            cell_mask,
        } = self;
        first_cell..first_cell + ROWS * (cell_mask + 1)
    }
}

/// The services of this policy, of the policy in force and of the one that a trial goes back to need more service ids
/// than there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoServiceIdLeft;

/// The service ids and cells that go to another service between two policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Each number, the service that had it, and the service that has it now.
    pub numbers: Vec<(u16, String, String)>,
    /// Slices of new services, in an array that other services have used.
    pub slices: Vec<Slice>,
}

impl ServiceIds {
    /// Service ids for a state that has none yet.
    pub fn new(policy: &Policy) -> Self {
        // A policy has fewer services than there are service ids, so this cannot fail.
        let next = Self::default().next(policy, |_| false);
        next.unwrap_or_default()
    }

    /// The service ids for the next policy. A service keeps its number. If all services of the policy that need cells
    /// have some, services keep their cells. Otherwise all get new cells, in a new array: budgets start afresh, so a
    /// source may pass one more burst, and no source is dropped for packets of another.
    ///
    /// Services of this policy, of the policy in force, and those that are held because a trial may go back to them
    /// (`is_held`) lose nothing to others.
    ///
    /// # Errors
    /// [`NoServiceIdLeft`]: there are not enough numbers or cells.
    pub fn next(
        &self,
        policy: &Policy,
        is_held: impl Fn(&str) -> bool,
    ) -> Result<Self, NoServiceIdLeft> {
        let mut next = self.clone();
        let in_force = self.places.iter().filter(|(_, place)| place.idle == 0);
        let mut held: BTreeSet<&str> = in_force.map(|(name, _)| name.as_str()).collect();
        held.extend(
            self.places
                .keys()
                .map(String::as_str)
                .filter(|name| is_held(name)),
        );
        held.extend(policy.services.iter().map(|service| service.name.as_str()));
        next.number_all(policy, &held)?;

        let labels_cells = labels_cells(policy);
        let (of_labels, of_policy): (Vec<&Service>, Vec<&Service>) = policy
            .services
            .iter()
            .filter(|service| service.limit.budgets != Budgets::default())
            .filter(|service| service.cells_of() == service.name)
            .partition(|service| service.made.is_some());
        let has_limits = policy.limits.budgets != Budgets::default();
        let of_policy = of_policy.into_iter().map(|service| service.name.as_str());
        let of_policy: Vec<&str> = of_policy.chain(has_limits.then_some("")).collect();
        if !next.keeps(policy.cells, labels_cells, &of_policy) {
            next.slices = cut(policy.cells, &of_policy);
            next.asked = policy.cells;
            next.length = end(&next.slices) + labels_cells;
            next.array = self.array.wrapping_add(1);
        }
        let area = Area::of(next.length - labels_cells, labels_cells);
        for service in of_labels {
            if !next.slices.contains_key(&service.name) {
                let slice = next.find_cells(&area, &held).ok_or(NoServiceIdLeft)?;
                next.slices.insert(service.name.clone(), slice);
            }
        }
        Ok(next)
    }

    /// Gives every service a number: its own, an unused one, or that of the service that is gone for the longest time.
    fn number_all(
        &mut self,
        policy: &Policy,
        held: &BTreeSet<&str>,
    ) -> Result<(), NoServiceIdLeft> {
        for place in self.places.values_mut() {
            place.idle = place.idle.saturating_add(1);
        }
        let taken: BTreeSet<u16> = self.places.values().map(|place| place.number).collect();
        let mut free =
            (NO_SERVICE + 1..MAX_SERVICE_IDS as u16).filter(|number| !taken.contains(number));
        let mut gone = None;
        for Service { name, .. } in &policy.services {
            let number = if let Some(place) = self.places.get(name) {
                place.number
            } else if let Some(number) = free.next() {
                number
            } else {
                let gone = gone.get_or_insert_with(|| self.gone(held).into_iter());
                let name = gone.next().ok_or(NoServiceIdLeft)?;
                self.slices.remove(&name);
                self.places.remove(&name).ok_or(NoServiceIdLeft)?.number
            };
            let place = ServiceId {
                number,
                idle: 0,
                derived_from: None,
            };
            self.places.insert(name.clone(), place);
        }
        for service in policy
            .services
            .iter()
            .filter(|service| service.made.is_some())
        {
            let base = service.base().and_then(|base| self.places.get(base));
            let base = base.map(|base| base.number);
            if let Some(place) = self.places.get_mut(&service.name) {
                place.derived_from = Some(base.unwrap_or(place.number));
            }
        }
        // The number of a service that is gone may go to another service, so `derived_from` must not refer to it.
        for place in self.places.values_mut().filter(|place| place.idle != 0) {
            place.derived_from = place.derived_from.map(|_| place.number);
        }
        Ok(())
    }

    /// The services whose number and cells may be used again, those first that are gone for the longest time.
    fn gone(&self, held: &BTreeSet<&str>) -> Vec<String> {
        let places = self.places.iter();
        let mut gone: Vec<(&String, &ServiceId)> = places
            .filter(|(name, _)| !held.contains(name.as_str()))
            .collect();
        gone.sort_by_key(|(_, place)| (Reverse(place.idle), place.number));
        gone.into_iter().map(|(name, _)| name.clone()).collect()
    }

    /// Whether labels have made the service with this name.
    fn is_made(&self, name: &str) -> bool {
        let place = self.places.get(name);
        place.is_some_and(|place| place.derived_from.is_some())
    }

    /// Whether the array can be kept for a policy with `asked` cells, `labels_cells` for labels, and `names` as the
    /// services of its own that need cells.
    fn keeps(&self, asked: u32, labels_cells: u32, names: &[&str]) -> bool {
        let Some(own_end) = self.length.checked_sub(labels_cells) else {
            return false;
        };
        let mut slices = self.slices.iter();
        self.asked == asked
            && names.iter().all(|name| self.slices.contains_key(*name))
            && slices.all(|(name, slice)| {
                let Range { start, end } = slice.cells();
                if self.is_made(name) {
                    start >= own_end && end <= self.length
                } else {
                    end <= own_end
                }
            })
    }

    /// Cells for a service that labels have made. If no cells are free, services that are gone lose theirs, those first
    /// that are gone for the longest time.
    fn find_cells(&mut self, area: &Area, held: &BTreeSet<&str>) -> Option<Slice> {
        let Area { large, small } = area;
        let size_in = |slices: &[Range<u32>]| slices.iter().map(|one| one.end - one.start).sum();
        let kept = self.taken_in(large, |name| held.contains(name));
        let taken: u32 = size_in(&kept);
        let share = (large.end - large.start).saturating_sub(taken) / NEWCOMERS_PART;
        if share >= SMALLEST {
            let size = 1 << share.ilog2();
            if gap(large, &kept, size, 1).is_some() {
                return self.find_in(large, size, 1, held);
            }
        }
        self.find_in(small, SMALLEST, SMALLEST, held)
    }

    fn find_in(
        &mut self,
        part: &Range<u32>,
        size: u32,
        step: u32,
        held: &BTreeSet<&str>,
    ) -> Option<Slice> {
        let mut gone = None;
        loop {
            let taken = self.taken_in(part, |_| true);
            if let Some(first_cell) = gap(part, &taken, size, step) {
                return Some(Slice::new(first_cell, size / ROWS));
            }
            let gone = gone.get_or_insert_with(|| self.gone(held).into_iter());
            let name = gone.find(|name| {
                let slice = self.slices.get(name);
                slice.is_some_and(|slice| part.contains(&slice.first_cell))
            });
            self.slices.remove(&name?);
        }
    }

    /// The slices in a part of the array whose services match `counts`, in order.
    fn taken_in(&self, part: &Range<u32>, counts: impl Fn(&str) -> bool) -> Vec<Range<u32>> {
        let slices = self.slices.iter();
        let mut taken: Vec<Range<u32>> = slices
            .filter(|(name, _)| counts(name))
            .map(|(_, slice)| slice.cells())
            .filter(|cells| part.contains(&cells.start))
            .collect();
        taken.sort_unstable_by_key(|cells| cells.start);
        taken
    }

    /// Whether both have their cells in the same array.
    pub fn shares_cells(&self, other: &Self) -> bool {
        self.array == other.array && self.length == other.length
    }

    /// The service ids and cells that went to another service since `before`.
    pub fn changes_since(&self, before: &Self) -> Changes {
        let had = before.places.iter();
        let had: BTreeMap<u16, &String> = had.map(|(name, place)| (place.number, name)).collect();
        let numbers = self.places.iter().filter_map(|(name, place)| {
            let had = *had.get(&place.number)?;
            (had != name).then(|| (place.number, had.clone(), name.clone()))
        });
        let slices = self.slices.iter().filter(|(name, slice)| {
            self.is_made(name)
                && self.shares_cells(before)
                && before.slices.get(*name) != Some(slice)
        });
        Changes {
            numbers: numbers.collect(),
            slices: slices.map(|(_, slice)| *slice).collect(),
        }
    }

    /// The slices that are the same in both, if both have their cells in the same array.
    pub fn shared_slices<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = Slice> + 'a {
        let slices = self.slices.iter();
        slices
            .filter(|(name, slice)| {
                self.shares_cells(before) && before.slices.get(*name) == Some(slice)
            })
            .map(|(_, slice)| *slice)
    }

    /// The id of a service, or [`NO_SERVICE`].
    pub fn number(&self, service: &str) -> u16 {
        let place = self.places.get(service);
        place.map_or(NO_SERVICE, |place| place.number)
    }

    /// The length of the array of cells.
    pub fn cells(&self) -> u32 {
        self.length.max(ROWS)
    }
}

/// The cells for services made by labels, in two parts.
struct Area {
    /// The first services get larger slices here than later ones.
    large: Range<u32>,
    /// Slices of the smallest size, side by side.
    small: Range<u32>,
}

impl Area {
    const fn of(start: u32, cells: u32) -> Self {
        let middle = start + cells / LARGE_PART;
        Self {
            large: start..middle,
            small: middle..start + cells,
        }
    }
}

/// The number of cells for labels. They are reserved before the first label comes: reserving them later would move the
/// cells of all services.
fn labels_cells(policy: &Policy) -> u32 {
    if policy.docker_socket.is_none() || policy.docker_labels == Labels::Off {
        return 0;
    }
    policy.cells / CELLS_PER_LABEL_CELL
}

/// The first gap of `size` cells in a part between those that are taken. Gaps start at multiples of `step`.
fn gap(part: &Range<u32>, taken: &[Range<u32>], size: u32, step: u32) -> Option<u32> {
    let mut start = part.start;
    for cells in taken {
        if start + size <= cells.start {
            break;
        }
        let behind = cells.end.max(start) - part.start;
        start = part.start + behind.next_multiple_of(step);
    }
    (start + size <= part.end).then_some(start)
}

/// Cuts the cells into an equal slice for each service, rounded down to a power of two.
fn cut(cells: u32, names: &[&str]) -> BTreeMap<String, Slice> {
    let count = u32::try_from(names.len()).unwrap_or(u32::MAX).max(1);
    let per_row = (cells / ROWS / count).max(MIN_CELLS_PER_ROW);
    let per_row = 1 << per_row.ilog2();
    let numbered = (0..).zip(names);
    numbered
        .map(|(number, name)| {
            let slice = Slice::new(number * per_row * ROWS, per_row);
            ((*name).to_owned(), slice)
        })
        .collect()
}

/// The end of the last slice.
fn end(slices: &BTreeMap<String, Slice>) -> u32 {
    let ends = slices.values().map(|slice| slice.cells().end);
    ends.max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use guard_common::layout::DEFAULT_CELLS;

    use super::*;
    use crate::{KernelTick, LabelOrigin};

    fn policy(services: &[&str], extra: &str) -> Policy {
        let services: String = services
            .iter()
            .enumerate()
            .map(|(n, name)| {
                format!(
                    "[[service]]\nname = \"{name}\"\nports = [\"tcp/{}\"]\n\
                     limit.packets = \"5/min\"\n",
                    n + 1
                )
            })
            .collect();
        let clock = KernelTick { tick_ns: 4_000_000 };
        Policy::parse(&format!("{extra}{services}"), "test.toml", clock).unwrap()
    }

    /// Adds a container for each name, whose labels limit the policy's first service.
    fn labelled(policy: &Policy, containers: &[&str]) -> Policy {
        let mut policy = policy.clone();
        let api = policy.services[0].clone();
        policy
            .services
            .extend(containers.iter().map(|name| Service {
                name: format!("{}@{name}", api.name),
                made: Some(LabelOrigin {
                    base: Some(api.name.clone()),
                    cells_of: None,
                }),
                ..api.clone()
            }));
        policy
    }

    fn names(count: usize, prefix: &str) -> Vec<String> {
        (0..count).map(|n| format!("{prefix}{n}")).collect()
    }

    fn as_strs(names: &[String]) -> Vec<&str> {
        names.iter().map(String::as_str).collect()
    }

    fn none_held(_: &str) -> bool {
        false
    }

    /// Asserts that no two slices share a cell, and that none lies outside of the array.
    fn assert_apart(service_ids: &ServiceIds) {
        let mut slices: Vec<Slice> = service_ids.slices.values().copied().collect();
        slices.sort_unstable_by_key(|slice| slice.first_cell);
        let mut end = 0;
        for slice in slices {
            assert!((slice.cell_mask + 1).is_power_of_two());
            assert!(slice.cells().start >= end, "{slice:?}");
            end = slice.cells().end;
        }
        assert!(end <= service_ids.cells());
    }

    #[test]
    fn no_two_services_share_a_cell() {
        for count in [1, 2, 3, 100, 1_023] {
            let service_ids = ServiceIds::new(&policy(
                &as_strs(&names(count, "s")),
                "docker.labels = \"off\"\n",
            ));
            assert_apart(&service_ids);
            assert!(service_ids.cells() <= DEFAULT_CELLS);
        }
        let service_ids = ServiceIds::new(&policy(&["a"], ""));
        assert_eq!(service_ids.slices["a"].cells(), 0..DEFAULT_CELLS);
        assert_eq!(service_ids.cells(), DEFAULT_CELLS / 4 * 5);
    }

    #[test]
    fn a_service_keeps_its_number_and_its_cells() {
        let first = ServiceIds::new(&policy(&["a", "b", "c"], ""));
        let fewer = first.next(&policy(&["c", "a"], ""), none_held).unwrap();
        assert!(first.shares_cells(&fewer));
        for name in ["a", "b", "c"] {
            assert_eq!(fewer.number(name), first.number(name), "{name}");
        }
        let more = fewer.next(&policy(&["d", "c"], ""), none_held).unwrap();
        assert!(!more.shares_cells(&first), "d had no cells");
        assert_eq!(more.number("c"), first.number("c"));
        assert!(
            !first
                .places
                .values()
                .any(|place| place.number == more.number("d"))
        );
        let larger = first
            .next(&policy(&["a"], "cells = 1048576\n"), none_held)
            .unwrap();
        assert!(!larger.shares_cells(&first));
        let unlabelled = policy(&["a", "b", "c"], "docker.labels = \"off\"\n");
        let first = ServiceIds::new(&unlabelled);
        assert!(
            !first
                .next(&policy(&["a", "b", "c"], ""), none_held)
                .unwrap()
                .shares_cells(&first)
        );
    }

    #[test]
    fn containers_that_come_and_go_move_no_other_cells() {
        let plain = policy(&["api", "other"], "limits.packets = \"5/min\"\n");
        let first = ServiceIds::new(&plain);
        let mut service_ids = first.clone();
        for number in 0..2_200 {
            let name = format!("c{number}");
            let before = service_ids.clone();
            service_ids = service_ids
                .next(&labelled(&plain, &[&name, "steady"]), none_held)
                .unwrap();
            assert!(service_ids.shares_cells(&first));
            for name in ["api", "other", ""] {
                assert_eq!(service_ids.slices[name], first.slices[name]);
            }
            let steady = service_ids.slices["api@steady"];
            assert!(number == 0 || before.slices["api@steady"] == steady);
            let slice = service_ids.slices[&format!("api@{name}")];
            assert!(slice.cell_mask + 1 >= 1_024, "{number}: {slice:?}");
            assert_eq!(
                number == 0,
                service_ids.changes_since(&before).slices.len() == 2
            );
            assert_apart(&service_ids);
            assert_eq!(
                service_ids.places[&format!("api@{name}")].derived_from,
                Some(service_ids.number("api"))
            );
        }
        assert_eq!(service_ids.number("other"), first.number("other"));
        let back = service_ids
            .next(&labelled(&plain, &["c2199"]), none_held)
            .unwrap();
        assert_eq!(back.slices["api@c2199"], service_ids.slices["api@c2199"]);
        assert_eq!(back.changes_since(&service_ids), Changes::default());
    }

    #[test]
    fn limits_for_labels_holds_whatever_containers_were_there_before() {
        for cells in [1 << 17, DEFAULT_CELLS, 1 << 21] {
            let plain = policy(&["api"], &format!("cells = {cells}\n"));
            let most = limits_for_labels(cells);
            assert_eq!(most, cells as usize / 2_048);
            // There are too few service ids for more containers.
            let most = most.min(600);
            let first = ServiceIds::new(&plain);
            let mut service_ids = first.clone();
            for batch in ["a", "b", "c", "d"] {
                let containers = names(most, batch);
                let next = labelled(&plain, &as_strs(&containers));
                let is_held = |name: &str| name.starts_with("api@a");
                service_ids = service_ids.next(&next, is_held).unwrap();
                assert_apart(&service_ids);
                assert_eq!(service_ids.slices["api"], first.slices["api"]);
                for name in containers.iter().chain(&names(most, "a")) {
                    assert!(
                        service_ids.slices.contains_key(&format!("api@{name}")),
                        "{batch} {name}"
                    );
                }
            }
        }
    }

    #[test]
    fn numbers_of_services_that_are_gone_are_used_again_the_oldest_first() {
        let mut service_ids = ServiceIds::default();
        for batch in ["a", "b"] {
            service_ids = service_ids
                .next(&policy(&as_strs(&names(1_023, batch)), ""), none_held)
                .unwrap();
        }
        // One number is unused, for x.
        let with = |extra: &[&str]| {
            let mut all = names(1_000, "b");
            all.extend(extra.iter().map(|name| (*name).to_owned()));
            policy(&as_strs(&all), "")
        };
        let last = service_ids.next(&with(&["x"]), none_held).unwrap();
        assert_eq!(last.changes_since(&service_ids).numbers, []);
        let next = last.next(&with(&["x", "y"]), none_held).unwrap();
        let changed = next.changes_since(&last).numbers;
        assert_eq!(
            changed,
            [(next.number("y"), "a0".to_owned(), "y".to_owned())]
        );
        assert_eq!(next.number("y"), last.number("a0"));
        for name in names(1_000, "b") {
            assert_eq!(next.number(&name), service_ids.number(&name));
        }
        // The services that a trial goes back to keep their numbers.
        let held = last.next(&with(&["x", "y"]), |name| name == "a0").unwrap();
        assert_eq!(held.number("y"), last.number("a1"));
        let unique: BTreeSet<u16> = next.places.values().map(|place| place.number).collect();
        assert_eq!(unique.len(), next.places.len());
        // The services of the policy in force keep their numbers, and with them their counters.
        let all = names(1_023, "z");
        let full = service_ids
            .next(&policy(&as_strs(&all), ""), none_held)
            .unwrap();
        let changed = full.changes_since(&service_ids).numbers;
        assert!(
            changed.iter().all(|(_, had, _)| had.starts_with('a')),
            "{changed:?}"
        );
        let crowded = service_ids.next(&policy(&as_strs(&all), ""), |_| true);
        assert_eq!(crowded, Err(NoServiceIdLeft));
    }
}
