//! Which row of the tables that are kept for each interface belongs to which interface.
//!
//! One program judges the packets of all interfaces. It finds the row by the number that the kernel gives an
//! interface (its ifindex), in an array with a few places for each number.

use crate::spread::spread;

/// The row of packets from an interface that has none of its own, such as a port that has just been put below a bond.
pub const UNKNOWN_ROW: u32 = 0;

/// How many rows there are, with [`UNKNOWN_ROW`].
pub const MAX_ROWS: u32 = 1 << 10;

/// How many places there are: four for each row, so that an interface finds a free one close by.
pub const PLACES: usize = 1 << 12;

/// In how many places an interface may be.
pub const LOOKS: u32 = 8;

/// An interface, and the row that is kept for it. All zeros: the place is free.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfacePlace {
    pub interface: u32,
    pub row: u32,
}

/// The first place of an interface. The others follow it.
#[inline(always)]
pub const fn first_place(interface: u32) -> usize {
    // A host that makes many interfaces numbers them one after the other.
    (spread(interface as u64) >> (u64::BITS - PLACES.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_that_were_made_one_after_the_other_have_places_of_their_own() {
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
