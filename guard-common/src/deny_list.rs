//! A list of many exact IPv4 addresses: four bytes each, and one memory access per packet.
//!
//! The 32 bits of an address are permuted, so that neighbours are spread, and split: the upper bits select a line, and
//! the line stores the remaining bits (quotienting: Knuth, "The Art of Computer Programming", volume 3, exercise
//! 6.4-13). Together they are the whole address, so there are no false positives. A line is half a cache line.
//!
//! Addresses that find no room in their line are listed in a hash map. If the last tag of a line is set, the line is
//! full, and the hash map is looked up as well.

/// The number of addresses that fit into a line.
pub const TAGS: usize = 16;

const TAG_BITS: u32 = 16;
const TAGS_PER_WORD: usize = (u64::BITS / TAG_BITS) as usize;
const WORDS: usize = TAGS / TAGS_PER_WORD;

/// Set in every tag. An unused place is 0.
const USED: u16 = 1 << 15;

/// The fewest bits of a line's index: the remaining bits of an address then fit a tag.
const FEWEST_LINE_BITS: u32 = u32::BITS - (TAG_BITS - 1);

/// The lowest bit, and the highest bit, of each tag in a word.
const ONES: u64 = 0x0001_0001_0001_0001;
const HIGHEST: u64 = 0x8000_8000_8000_8000;

/// The tags of the addresses in one line.
#[repr(C, align(32))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DenyLine(pub [u64; WORDS]);

const _: () = assert!(size_of::<DenyLine>() == 32);

/// The place of an address in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenyPlace {
    pub line: u32,
    pub tag: u16,
}

/// The number of bits of a line's index in a list of `addresses`: lines are at most half full on average, so that about
/// one line in two hundred overflows.
#[inline(always)]
pub const fn line_bits(addresses: u32) -> u32 {
    let lines = addresses.div_ceil(TAGS as u32 / 2);
    let bits = u32::BITS - lines.saturating_sub(1).leading_zeros();
    if bits < FEWEST_LINE_BITS {
        FEWEST_LINE_BITS
    } else {
        bits
    }
}

impl DenyPlace {
    /// `line_bits`: the result of [`line_bits`] for the list.
    #[inline(always)]
    pub const fn of(address: u32, line_bits: u32) -> Self {
        let permuted = permute(address);
        Self {
            line: permuted >> (u32::BITS - line_bits),
            tag: permuted as u16 | USED,
        }
    }
}

/// The finalizer of MurmurHash3 (Appleby, 2011). Every step is invertible, so no two addresses collide.
#[inline(always)]
const fn permute(address: u32) -> u32 {
    let word = (address ^ (address >> 16)).wrapping_mul(0x85eb_ca6b);
    let word = (word ^ (word >> 13)).wrapping_mul(0xc2b2_ae35);
    word ^ (word >> 16)
}

impl DenyLine {
    /// Whether an address with this tag is in this line. The tags of a word are compared together, in a few steps
    /// (Anderson: "Bit Twiddling Hacks", "Determine if a word has a zero byte").
    #[inline(always)]
    pub const fn has(&self, tag: u16) -> bool {
        let Self([first, second, third, fourth]) = *self;
        let wanted = tag as u64 * ONES;
        let found = has_zero(first ^ wanted)
            | has_zero(second ^ wanted)
            | has_zero(third ^ wanted)
            | has_zero(fourth ^ wanted);
        found != 0
    }

    /// Whether the line is full: other addresses of it may then be in the hash map.
    #[inline(always)]
    pub const fn is_full(&self) -> bool {
        let Self([.., last]) = *self;
        last >> (u64::BITS - 1) != 0
    }

    /// Adds a tag. `false`: the line has no room.
    pub fn add(&mut self, tag: u16) -> bool {
        if self.has(tag) {
            return true;
        }
        let empty = (0..TAGS).find(|nth| self.tag(*nth) == 0);
        let Some(nth) = empty else {
            return false;
        };
        self.set(nth, tag);
        true
    }

    /// Removes a tag. Returns whether the line had it. A full line has room after that, so [`Self::is_full`] no longer
    /// sends lookups of its other addresses to the hash map. The caller must make every lookup read the hash map before
    /// it removes a tag.
    pub fn remove(&mut self, tag: u16) -> bool {
        let found = (0..TAGS).find(|nth| self.tag(*nth) == tag);
        if let Some(nth) = found {
            self.set(nth, 0);
        }
        found.is_some() && tag != 0
    }

    /// The line to write before `after` when tags are added or removed. Each tag that changes has lost its upper byte,
    /// so it matches no address. The program then never reads a tag that is half old and half new, even if memory is
    /// copied byte by byte.
    #[must_use]
    pub fn intermediate(&self, after: &Self) -> Self {
        let mut between = *after;
        for nth in 0..TAGS {
            if self.tag(nth) != after.tag(nth) {
                between.set(nth, (self.tag(nth) | after.tag(nth)) & 0x00ff);
            }
        }
        between
    }

    fn tag(&self, nth: usize) -> u16 {
        let Self(words) = self;
        (words[nth / TAGS_PER_WORD] >> shift(nth)) as u16
    }

    fn set(&mut self, nth: usize, tag: u16) {
        let Self(words) = self;
        let word = &mut words[nth / TAGS_PER_WORD];
        *word &= !(u64::from(u16::MAX) << shift(nth));
        *word |= u64::from(tag) << shift(nth);
    }
}

const fn shift(nth: usize) -> u32 {
    (nth % TAGS_PER_WORD) as u32 * TAG_BITS
}

/// Non-zero if one of the word's tags is 0. Tags whose highest bit is set are never mistaken for 0.
#[inline(always)]
const fn has_zero(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & HIGHEST
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A list as user space makes it, the addresses for the hash map, and the number of bits of a line's index.
    fn list(addresses: impl Iterator<Item = u32> + Clone) -> (Vec<DenyLine>, BTreeSet<u32>, u32) {
        let bits = line_bits(addresses.clone().count() as u32);
        let mut lines = vec![DenyLine::default(); 1 << bits];
        let elsewhere = addresses.filter(|address| {
            let DenyPlace { line, tag } = DenyPlace::of(*address, bits);
            !lines[line as usize].add(tag)
        });
        let elsewhere = elsewhere.collect();
        (lines, elsewhere, bits)
    }

    fn is_listed(
        (lines, elsewhere, bits): &(Vec<DenyLine>, BTreeSet<u32>, u32),
        address: u32,
    ) -> bool {
        let DenyPlace { line, tag } = DenyPlace::of(address, *bits);
        let line = &lines[line as usize];
        line.has(tag) || line.is_full() && elsewhere.contains(&address)
    }

    #[test]
    fn a_lookup_finds_the_listed_addresses_and_no_others() {
        // Neighbouring addresses, as in a feed of whole networks, and distant addresses.
        let addresses = (0..1u32 << 20).map(|n| if n % 2 == 0 { 0x0a00_0000 + n } else { n << 12 });
        let list = list(addresses.clone());
        let listed: BTreeSet<u32> = addresses.collect();
        for address in &listed {
            assert!(is_listed(&list, *address), "{address:#x}");
        }
        for n in 0..1u32 << 22 {
            let address = n.wrapping_mul(0x9e37_79b1);
            assert_eq!(
                is_listed(&list, address),
                listed.contains(&address),
                "{address:#x}"
            );
        }
    }

    #[test]
    fn few_lines_of_a_long_list_overflow() {
        for count in [1 << 20, (1 << 20) + 1, 1 << 21] {
            let (lines, elsewhere, _) = list(0..count);
            assert!(
                elsewhere.len() < count as usize / 500,
                "{} of {count}",
                elsewhere.len()
            );
            let full = lines.iter().filter(|line| line.is_full()).count();
            assert!(full < lines.len() / 100, "{full} of {}", lines.len());
        }
    }

    #[test]
    fn the_permutation_gives_no_two_addresses_the_same_value() {
        // A sample of all addresses: 2^32 would take too long.
        let permuted: BTreeSet<u32> = (0..1 << 20)
            .map(|n: u32| permute(n.rotate_left(10)))
            .collect();
        assert_eq!(permuted.len(), 1 << 20);
    }

    #[test]
    fn a_line_holds_sixteen_tags_and_is_full_then() {
        let mut line = DenyLine::default();
        for tag in 0..TAGS as u16 {
            assert!(!line.is_full());
            assert!(!line.has(USED | tag));
            assert!(line.add(USED | tag));
            assert!(line.add(USED | tag), "the tag is already there");
            assert!(line.has(USED | tag));
        }
        assert!(line.is_full());
        assert!(!line.add(USED | 0x1000));
        assert!((TAGS as u16..1 << 15).all(|tag| !line.has(USED | tag)));
    }

    #[test]
    fn a_reader_that_sees_part_of_a_change_matches_no_other_address() {
        let (kept, changed) = (USED | 0x0a07, USED | 0x0a12);
        let mut with = DenyLine::default();
        assert!(with.add(kept));
        let without = with;
        assert!(with.add(changed));
        for (before, after) in [(without, with), (with, without)] {
            let between = before.intermediate(&after);
            for (from, to) in [(before, between), (between, after)] {
                // `seen`: the bytes of the changed tag that are already written.
                for seen in 0..4u16 {
                    let mut torn = from;
                    for (bit, mask) in [(1, 0x00ff), (2, 0xff00)] {
                        if seen & bit != 0 {
                            torn.set(1, torn.tag(1) & !mask | to.tag(1) & mask);
                        }
                    }
                    let found = (0..1 << 15)
                        .map(|tag| USED | tag)
                        .filter(|tag| torn.has(*tag));
                    assert!(found.into_iter().all(|tag| tag == kept || tag == changed));
                    assert!(torn.has(kept));
                }
            }
        }
    }

    #[test]
    fn a_removed_tag_leaves_its_place_free() {
        for removed in 0..TAGS as u16 {
            let mut line = DenyLine::default();
            (0..TAGS as u16).for_each(|tag| assert!(line.add(USED | tag)));
            assert!(line.remove(USED | removed));
            assert!(!line.remove(USED | removed));
            for tag in 0..TAGS as u16 {
                assert_eq!(line.has(USED | tag), tag != removed);
            }
            assert!(line.add(USED | 0x1000) && line.is_full());
        }
        assert!(!DenyLine::default().remove(USED));
        assert!(!DenyLine::default().remove(0));
    }
}
