//! Hands state over from one generation to the next: resets the ids and cells that pass from a service that is gone to
//! another, and copies buckets into an array of another kind.

use aya::maps::Array;
use guard_common::{
    cell::Cell,
    layout::{self, feature},
};
use tracing::warn;

use super::{Generation, LoadError, batch};
use guard_policy::{Changes, Slice, Tables, untrusted};

/// The most services that a message names when they lose their counters.
const NAMED: usize = 8;

impl Generation {
    /// Empties what this generation has from others, before it is in force: the totals of numbers, and the buckets in
    /// slices. The program in force uses none of it.
    pub(super) fn empty(&mut self, changes: &Changes) -> Result<(), LoadError> {
        let Changes { numbers, slices } = changes;
        if !numbers.is_empty() {
            let mut totals = Array::try_from(self.map_mut(layout::TOTALS)?)?;
            for (number, _, _) in numbers {
                totals.set(u32::from(*number), Cell::default(), 0)?;
            }
            let handed = numbers
                .iter()
                .map(|(_, had, has)| format!("{had} (now {has})"));
            warn!(
                "all numbers of services are taken: those of services that are gone are used again, and what \
                 was counted for these is lost: {}",
                untrusted::listed(handed, NAMED)
            );
        }
        let is_narrow = self.tables().uses(feature::NARROW);
        let map = self.map_mut(self.tables().cells_map())?;
        for slice in slices {
            let keys: Vec<u32> = slice.cells().collect();
            if is_narrow {
                batch::insert(map, &keys, &vec![0u64; keys.len()])?;
            } else {
                batch::insert(map, &keys, &vec![Cell::default(); keys.len()])?;
            }
        }
        Ok(())
    }

    /// Takes over the buckets of another generation that keeps them in the other kind of array, in slices that
    /// both have: with the first budget of a second kind every bucket has company, with the last it is alone.
    /// What is charged from now until this generation is in force is not in it.
    pub(super) fn take_over(
        &mut self,
        before: &Self,
        slices: impl Iterator<Item = Slice>,
    ) -> Result<(), LoadError> {
        let (from, to) = (before.tables().cells_map(), self.tables().cells_map());
        let have_budgets = [before.tables(), self.tables()].map(|it| it.uses(feature::BUDGETS));
        if from == to || have_budgets != [true; 2] {
            return Ok(());
        }
        let from = before.map(from)?;
        let (mut keys, mut narrow, mut wide) = (Vec::new(), Vec::new(), Vec::new());
        let ranges = slices.map(Slice::cells);
        let is_narrow = self.tables().uses(feature::NARROW);
        if is_narrow {
            let kind = NarrowBudget::of(self.tables());
            batch::read(from, ranges, |place, mut cell: Cell| {
                let bucket = *kind.bucket(&mut cell);
                if bucket != 0 {
                    keys.push(place);
                    narrow.push(bucket);
                }
            })?;
        } else {
            let kind = NarrowBudget::of(before.tables());
            batch::read(from, ranges, |place, bucket: u64| {
                if bucket != 0 {
                    let mut cell = Cell::default();
                    *kind.bucket(&mut cell) = bucket;
                    keys.push(place);
                    wide.push(cell);
                }
            })?;
        }
        let map = self.map_mut(to)?;
        if is_narrow {
            batch::insert(map, &keys, &narrow)
        } else {
            batch::insert(map, &keys, &wide)
        }
    }
}

/// The kind of the only budget.
enum NarrowBudget {
    Packets,
    Bytes,
    Connections,
}

impl NarrowBudget {
    /// Of tables that are narrow.
    fn of(tables: &Tables) -> Self {
        if tables.uses(feature::PACKETS) {
            Self::Packets
        } else if tables.uses(feature::BYTES) {
            Self::Bytes
        } else {
            Self::Connections
        }
    }

    fn bucket<'a>(&self, cell: &'a mut Cell) -> &'a mut u64 {
        match self {
            Self::Packets => &mut cell.packets,
            Self::Bytes => &mut cell.bytes,
            Self::Connections => &mut cell.connections,
        }
    }
}
