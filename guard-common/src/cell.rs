//! The places of a source's buckets: one cell in each of two rows, selected by a keyed hash.
//!
//! Nothing is inserted or evicted, so a flood of spoofed sources costs the same per packet as one source. Two sources
//! that share a cell in one row rarely share one in the other, and a packet passes if either cell has room.
//!
//! Each service has cells of its own: a flood at one service cannot fill or reset the buckets of another, whose packets
//! may cost a thousand times more or less.

use crate::address::{Address, Family};

/// The number of rows of cells at each service.
pub const ROWS: u32 = 2;

/// The buckets of a source at a service. They share a cache line, so several budgets need one line per row.
#[repr(C, align(32))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    pub packets: u64,
    pub bytes: u64,
    pub connections: u64,
    pub reserved: u64,
}

const _: () = assert!(size_of::<Cell>() == 32);

/// The kind of a source's buckets.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// The buckets that every source has.
    Base = 0,
    /// The additional buckets of a crowd.
    Crowd = 1,
}

/// The key of the hash, random for each set of cells: an attacker who does not know it cannot choose addresses that
/// share the cell of another source.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashKey(pub [u64; 2]);

/// Odd constants with well spread bits: the finalizer of SplitMix64 (Steele, Lea, Flood: "Fast
/// splittable pseudorandom number generators", 2014).
const MIX: [u64; 2] = [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];

/// The hash of a source prefix. Each word is combined with secret bits before it is mixed, so the key decides which
/// inputs collide. Each kind and family is combined with a secret of its own: a mark beside the address would act like
/// one of its bits, and two sources could share both cells under every key. The hash need not be cryptographic: an
/// attacker never sees its output.
#[inline(always)]
pub const fn hash(key: HashKey, share: Share, family: Family, prefix: Address) -> u64 {
    let HashKey([first, second]) = key;
    let (first, second) = match share {
        Share::Base => (first, second),
        Share::Crowd => (second, first),
    };
    match family {
        // An IPv4 address has 32 bits: the upper half of the word is the secret alone.
        Family::Ipv4 => mix(prefix.low ^ first),
        Family::Ipv6 => mix(mix(prefix.high ^ first) ^ prefix.low ^ second),
    }
}

#[inline(always)]
pub(crate) const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(MIX[0]);
    let word = (word ^ (word >> 27)).wrapping_mul(MIX[1]);
    word ^ (word >> 31)
}

/// The cell in each row: indices into the slice of `ROWS * (mask + 1)` cells that starts at `first`.
///
/// `mask` is the number of cells in a row of the slice, a power of two, less one.
#[inline(always)]
pub const fn indices(hash: u64, first: u32, mask: u32) -> [u32; ROWS as usize] {
    [
        first + (hash as u32 & mask),
        first + mask + 1 + ((hash >> 32) as u32 & mask),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: HashKey = HashKey([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]);
    const MASK: u32 = (1 << 16) - 1;

    fn cells(family: Family, prefix: Address) -> [u32; 2] {
        indices(hash(KEY, Share::Base, family, prefix), 0, MASK)
    }

    /// The fullest cell of each row must be near what throwing balls at random gives: with as many
    /// balls as cells, the fullest holds 8 or 9 (Raab, Steger: "Balls into bins", 1998).
    fn assert_spread(sources: impl Iterator<Item = [u32; 2]>) {
        let mut load = vec![0u32; 2 * (MASK as usize + 1)];
        for [a, b] in sources {
            load[a as usize] += 1;
            load[b as usize] += 1;
        }
        let fullest = load.iter().max().unwrap();
        assert!(*fullest <= 13, "the fullest cell holds {fullest}");
    }

    #[test]
    fn neighbouring_addresses_spread_like_random_addresses() {
        assert_spread((0..=MASK).map(|n| cells(Family::Ipv4, Address::from_ipv4(0x0a00_0000 + n))));
        assert_spread((0..=MASK).map(|n| cells(Family::Ipv4, Address::from_ipv4(n << 16))));
        assert_spread((0..=u64::from(MASK)).map(|n| {
            let prefix = Address {
                high: 0x2001_0db8_0000_0000 + n,
                low: 0,
            };
            cells(Family::Ipv6, prefix)
        }));
    }

    #[test]
    fn rows_do_not_overlap() {
        for n in 0..1000 {
            let [first, second] = cells(Family::Ipv4, Address::from_ipv4(n));
            assert!(first <= MASK);
            assert!((MASK + 1..2 * (MASK + 1)).contains(&second));
        }
    }

    #[test]
    fn slices_do_not_overlap() {
        for n in 0..1000 {
            let hash = hash(KEY, Share::Base, Family::Ipv4, Address::from_ipv4(n));
            for index in indices(hash, 4_096, 1_023) {
                assert!((4_096..4_096 + 2 * 1_024).contains(&index));
            }
        }
    }

    #[test]
    fn a_crowd_has_additional_buckets() {
        let address = Address::from_ipv4(7);
        assert_ne!(
            hash(KEY, Share::Base, Family::Ipv4, address),
            hash(KEY, Share::Crowd, Family::Ipv4, address)
        );
    }

    #[test]
    fn a_crowds_additional_buckets_are_not_those_of_an_address_that_differs_in_one_bit() {
        let crowd = Address {
            high: 0x2001_0db8_0051_0000,
            low: 8,
        };
        let further = hash(KEY, Share::Crowd, Family::Ipv6, crowd);
        for bit in 0..64 {
            let Address { high, low } = crowd;
            for other in [
                Address {
                    high: high ^ 1 << bit,
                    low,
                },
                Address {
                    high,
                    low: low ^ 1 << bit,
                },
            ] {
                assert_ne!(
                    hash(KEY, Share::Base, Family::Ipv6, other),
                    further,
                    "bit {bit}"
                );
            }
        }
    }

    #[test]
    fn the_same_number_as_ipv4_and_ipv6_is_not_the_same_source() {
        let address = Address::from_ipv4(7);
        assert_ne!(
            hash(KEY, Share::Base, Family::Ipv4, address),
            hash(KEY, Share::Base, Family::Ipv6, address)
        );
    }

    #[test]
    fn another_key_selects_other_cells() {
        let other = HashKey([1, 2]);
        let same = (0..1000)
            .filter(|n| {
                let address = Address::from_ipv4(*n);
                indices(hash(KEY, Share::Base, Family::Ipv4, address), 0, MASK)
                    == indices(hash(other, Share::Base, Family::Ipv4, address), 0, MASK)
            })
            .count();
        assert_eq!(same, 0);
    }
}
