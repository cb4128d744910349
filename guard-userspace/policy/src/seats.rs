//! Which number and which cells each service has. Generations share counters and budgets, so a service
//! keeps its place from one policy to the next.

use std::collections::{BTreeMap, BTreeSet};

use guard_common::{
    cell::ROWS,
    layout::{MAX_SEATS, MIN_CELLS_PER_ROW, NO_SERVICE},
};

use super::{Budgets, Policy};

/// The places of services, of this policy and of those before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seats {
    /// How many cells the policy asked for that these slices were cut for.
    pub asked: u32,
    pub numbers: BTreeMap<String, u16>,
    /// The cells of each service that limits its sources; those of [`NO_SERVICE`] have the empty name.
    pub slices: BTreeMap<String, Slice>,
}

/// Two rows of cells: where the first starts, and how many a row has, less one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    pub first_cell: u32,
    pub cell_mask: u32,
}

/// More services have come and gone than there are numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

impl Seats {
    /// Seats for a state that has none yet.
    pub fn new(policy: &Policy) -> Self {
        // A policy has fewer services than there are numbers.
        Self::default().next(policy).unwrap_or_default()
    }

    /// The seats for the next policy: who had a number keeps it, and who had cells keeps them if all
    /// who need some have them. If not, all get new ones, in an array of its own: budgets start
    /// afresh, so that a source may pass one more burst, and nobody is dropped for what others sent.
    pub fn next(&self, policy: &Policy) -> Result<Self, Exhausted> {
        let mut numbers = self.numbers.clone();
        let taken: BTreeSet<u16> = numbers.values().copied().collect();
        let mut free = (NO_SERVICE + 1..MAX_SEATS as u16).filter(|number| !taken.contains(number));
        for service in &policy.services {
            if !numbers.contains_key(&service.name) {
                numbers.insert(service.name.clone(), free.next().ok_or(Exhausted)?);
            }
        }
        let limited = limited_names(policy);
        let keeps = self.asked == policy.cells
            && limited.iter().all(|name| self.slices.contains_key(*name));
        let slices = if keeps {
            self.slices.clone()
        } else {
            cut(policy.cells, &limited)
        };
        Ok(Self {
            asked: policy.cells,
            numbers,
            slices,
        })
    }

    /// Whether both have their cells in the same array.
    pub fn shares_cells(&self, other: &Self) -> bool {
        self.asked == other.asked && self.slices == other.slices
    }

    pub fn number(&self, service: &str) -> u16 {
        self.numbers.get(service).copied().unwrap_or(NO_SERVICE)
    }

    /// How long the array of cells is.
    pub fn cells(&self) -> u32 {
        let ends = self.slices.values().map(|slice| {
            let Slice {
                first_cell,
                cell_mask,
            } = slice;
            first_cell + ROWS * (cell_mask + 1)
        });
        ends.max().unwrap_or(ROWS)
    }
}

/// The services that limit their sources; the empty name is that of `limits`.
fn limited_names(policy: &Policy) -> Vec<&str> {
    let services = policy
        .services
        .iter()
        .map(|service| (service.name.as_str(), &service.limit));
    services
        .chain([("", &policy.limits)])
        .filter(|(_, limit)| limit.budgets != Budgets::default())
        .map(|(name, _)| name)
        .collect()
}

/// An equal share of the cells for each.
fn cut(cells: u32, names: &[&str]) -> BTreeMap<String, Slice> {
    let count = u32::try_from(names.len()).unwrap_or(u32::MAX).max(1);
    let per_row = (cells / ROWS / count).max(MIN_CELLS_PER_ROW);
    let per_row = 1 << per_row.ilog2();
    let slice = |number: u32| Slice {
        first_cell: number * per_row * ROWS,
        cell_mask: per_row - 1,
    };
    let numbered = (0..).zip(names);
    numbered
        .map(|(number, name)| ((*name).to_owned(), slice(number)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Clock;

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
        let clock = Clock { tick_ns: 4_000_000 };
        Policy::parse(&format!("{extra}{services}"), "test.toml", clock).unwrap()
    }

    #[test]
    fn no_two_services_share_a_cell() {
        for count in [1, 2, 3, 100, 1_023] {
            let names: Vec<String> = (0..count).map(|n| format!("s{n}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let seats = Seats::new(&policy(&names, ""));
            let mut slices: Vec<Slice> = seats.slices.values().copied().collect();
            slices.sort_unstable_by_key(|slice| slice.first_cell);
            let mut end = 0;
            for Slice {
                first_cell,
                cell_mask,
            } in slices
            {
                assert_eq!(first_cell, end);
                assert!((cell_mask + 1).is_power_of_two());
                end = first_cell + ROWS * (cell_mask + 1);
            }
            assert_eq!(end, seats.cells());
            assert!(end <= guard_common::layout::DEFAULT_CELLS);
        }
    }

    #[test]
    fn a_service_keeps_its_number_and_its_cells() {
        let first = Seats::new(&policy(&["a", "b", "c"], ""));
        let fewer = first.next(&policy(&["c", "a"], "")).unwrap();
        assert!(first.shares_cells(&fewer));
        for name in ["a", "b", "c"] {
            assert_eq!(fewer.number(name), first.number(name), "{name}");
        }
        let more = fewer.next(&policy(&["d", "c"], "")).unwrap();
        assert!(!more.shares_cells(&first), "d had no cells");
        assert_eq!(more.number("c"), first.number("c"));
        assert!(!first.numbers.values().any(|n| *n == more.number("d")));
        let larger = first.next(&policy(&["a"], "cells = 1048576\n")).unwrap();
        assert!(!larger.shares_cells(&first));
    }

    #[test]
    fn numbers_run_out_after_two_thousand_names_and_say_so() {
        let mut seats = Seats::default();
        for batch in 0..2 {
            let names: Vec<String> = (0..1_023).map(|n| format!("s{batch}-{n}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            seats = seats.next(&policy(&names, "")).unwrap();
        }
        assert_eq!(seats.next(&policy(&["x", "y"], "")), Err(Exhausted));
        assert!(seats.next(&policy(&["x"], "")).is_ok());
    }
}
