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
    /// Resets the totals and buckets that this generation takes over from services that are gone. It must not be in
    /// force yet. The program in force uses none of these.
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
                "all service ids are in use: those of services that are gone are used again, and the counters of \
                 these services are lost: {}",
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

    /// Copies the buckets of another generation into an array of the other kind, in slices that both have. The kind of
    /// array changes when a policy gets budgets of a second kind, or loses all but one kind. Charges from now until
    /// this generation is in force are lost.
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

/// The only kind of budget of tables with [`feature::NARROW`].
enum NarrowBudget {
    Packets,
    Bytes,
    Connections,
}

impl NarrowBudget {
    /// `tables` must have [`feature::NARROW`].
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
