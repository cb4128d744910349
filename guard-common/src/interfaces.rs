//! Maps interfaces to rows of the tables that have a row per interface.
//!
//! One program judges the packets of all interfaces. It looks up the row by the interface's index (ifindex), in an
//! open-addressing hash table with a bounded number of probes.

use crate::spread::spread;

/// The row for packets of an interface that has no row of its own, such as a port that was just added to a bond.
pub const UNKNOWN_ROW: u32 = 0;

/// The number of rows, [`UNKNOWN_ROW`] included.
pub const MAX_ROWS: u32 = 1 << 10;

/// The number of places: four per row, so that an interface finds a free place within [`LOOKS`] probes.
pub const PLACES: usize = 1 << 12;

/// The most probes of a lookup.
pub const LOOKS: u32 = 8;

/// An interface and its row. All zeros: the place is free.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfacePlace {
    pub interface: u32,
    pub row: u32,
}

/// The first place that is probed for an interface. The next probes read the places after it.
#[inline(always)]
pub const fn first_place(interface: u32) -> usize {
    // The kernel numbers new interfaces in sequence, so the index must be hashed.
    (spread(interface as u64) >> (u64::BITS - PLACES.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_with_consecutive_indices_find_free_places() {
        let mut taken = [false; PLACES];
        for interface in 1_000..2_000 {
            let first = first_place(interface);
            assert!(first < PLACES);
            let free = (0..2).map(|look| (first + look) % PLACES);
            let free = free.into_iter().find(|place| !taken[*place]);
            taken[free.unwrap()] = true;
        }
    }
}
