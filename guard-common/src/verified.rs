//! The sources that have proved that they receive what this host sends to them. Under a flood, they are served first.
//!
//! - A source is **strong** if it completed a handshake: the server has sent it data, or it has answered a strong
//!   challenge ([`crate::challenge`]).
//! - A source is **weak** if it has answered a weak challenge. It has a few credits: a SYN costs one.
//!
//! The table is an array of lines, and a keyed hash of the source's prefix selects one. A line is one cache line. Its
//! strong and its weak entries never displace each other, so answers to weak challenges displace no strong source. A
//! flood of spoofed sources writes nothing.

use crate::gcra::UNITS_PER_NANOSECOND;

/// The lines of the table, a power of two: 1 MiB. With 8 MiB, what is served under a flood fell by a third, because the
/// table no longer fits the processor's caches.
pub const LINES: u32 = 1 << 14;

/// The strong entries of a line.
pub const STRONG: usize = 6;
/// The weak entries of a line.
pub const WEAK: usize = 2;

/// The verified sources whose hashes select the same line: first the strong, then the weak.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifiedLine(pub [u64; STRONG + WEAK]);

const _: () = assert!(size_of::<VerifiedLine>() == 64);

/// The line of a source, and the tag of its entries: a hash that no other source of the line has, except by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedPlace {
    pub line: u32,
    tag: u32,
}

impl VerifiedPlace {
    /// `hash`: of the source's prefix, by [`crate::cell::hash`].
    #[inline(always)]
    pub const fn of(hash: u64) -> Self {
        Self {
            line: hash as u32 & (LINES - 1),
            // Never 0: an empty entry is 0.
            tag: (hash >> 32) as u32 | 1,
        }
    }
}

/// A time in units of about a second. Its 24 bits wrap around after 208 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Second(u32);

/// The unit of [`Second`] as a power of two of the units of [`crate::gcra`]: 1.07 s.
const SECOND: u32 = 36;
const SECONDS: u32 = (1 << 24) - 1;

impl Second {
    /// `now`: in the units of [`crate::gcra`].
    #[inline(always)]
    pub const fn of(now: u64) -> Self {
        Self((now >> SECOND) as u32 & SECONDS)
    }

    /// The time since `before`.
    #[inline(always)]
    const fn since(self, before: u32) -> u32 {
        self.0.wrapping_sub(before) & SECONDS
    }
}

const fn seconds(seconds: u64) -> u32 {
    ((seconds * 1_000_000_000 * UNITS_PER_NANOSECOND) >> SECOND) as u32
}

/// How long a source stays strong after the last proof.
pub const STRONG_FOR: u32 = seconds(600);
/// A proof that is younger is not written again.
pub const RENEWED_AFTER: u32 = seconds(75);
/// How long the credits of a weak source last.
pub const WEAK_FOR: u32 = seconds(8);

/// The credits that one answer to a weak challenge buys.
pub const CREDITS: u64 = 2;
/// The most credits that a source collects: many clients may share its address.
pub const MOST_CREDITS: u64 = 64;

/// An entry: the tag, 8 bits of credit, and the time of the last proof.
const CREDIT_SHIFT: u32 = 24;

#[inline(always)]
const fn entry(tag: u32, credit: u64, Second(second): Second) -> u64 {
    (tag as u64) << 32 | credit << CREDIT_SHIFT | second as u64
}

#[inline(always)]
const fn credit(entry: u64) -> u64 {
    entry >> CREDIT_SHIFT & 0xff
}

/// The age of the source's strong entry; [`u32::MAX`] if it has none. Without a branch: the verifier follows each way
/// of a branch, and six entries have many.
#[inline(always)]
pub fn strong_age(strong: [u64; STRONG], place: VerifiedPlace, now: Second) -> u32 {
    let mut age = u32::MAX;
    for entry in strong {
        let is_other = u32::from((entry >> 32) as u32 != place.tag);
        // All ones for an entry of another source.
        let other = is_other.wrapping_neg();
        let of_entry = now.since(entry as u32 & SECONDS) | other;
        age = age.min(of_entry);
    }
    age
}

/// Whether a source with a strong entry of this age is strong.
#[inline(always)]
pub const fn is_strong(age: u32) -> bool {
    age <= STRONG_FOR
}

/// The index and the value of the entry to write for a source that is strong now: in place of its own entry, an empty
/// one, or the oldest.
#[inline(always)]
pub fn strong_entry(strong: [u64; STRONG], place: VerifiedPlace, now: Second) -> (usize, u64) {
    let (index, _) = oldest(strong, place, now);
    (index, entry(place.tag, 0, now))
}

/// The index of a weak source's entry with a credit left, and the entry after one is spent. `None`: it has none left,
/// or they have ended.
#[inline(always)]
pub fn spend(weak: [u64; WEAK], place: VerifiedPlace, now: Second) -> Option<(usize, u64)> {
    let (index, found) = oldest(weak, place, now);
    let is_own = (found >> 32) as u32 == place.tag;
    let is_young = now.since(found as u32 & SECONDS) <= WEAK_FOR;
    if is_own && is_young && credit(found) != 0 {
        Some((index, found - (1 << CREDIT_SHIFT)))
    } else {
        None
    }
}

/// The index and the value of the entry to write for a source that has answered a weak challenge.
#[inline(always)]
pub fn earn(weak: [u64; WEAK], place: VerifiedPlace, now: Second) -> (usize, u64) {
    let (index, found) = oldest(weak, place, now);
    let is_own = (found >> 32) as u32 == place.tag;
    let is_young = now.since(found as u32 & SECONDS) <= WEAK_FOR;
    let before = if is_own && is_young { credit(found) } else { 0 };
    let credit = before + CREDITS;
    let credit = if credit > MOST_CREDITS {
        MOST_CREDITS
    } else {
        credit
    };
    (index, entry(place.tag, credit, now))
}

/// The source's own entry, otherwise an empty one, otherwise the oldest.
#[inline(always)]
fn oldest<const WAYS: usize>(ways: [u64; WAYS], place: VerifiedPlace, now: Second) -> (usize, u64) {
    let mut found = (0, ways[0]);
    let mut highest = 0;
    for (index, way) in ways.into_iter().enumerate() {
        let age = if (way >> 32) as u32 == place.tag {
            u32::MAX
        } else if way == 0 {
            u32::MAX - 1
        } else {
            now.since(way as u32 & SECONDS)
        };
        if age >= highest {
            highest = age;
            found = (index, way);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: u64 = 1 << SECOND;

    fn source(n: u64) -> VerifiedPlace {
        VerifiedPlace::of(n << 40)
    }

    fn at(second: u64) -> Second {
        Second::of(second * LENGTH)
    }

    #[test]
    fn a_strong_source_stays_strong_for_ten_minutes_after_the_last_proof() {
        // Also where the 24 bits wrap around.
        for start in [1_000, (1 << 24) - 3] {
            let mut strong = [0; STRONG];
            assert_eq!(strong_age(strong, source(1), at(start)), u32::MAX);
            let (index, value) = strong_entry(strong, source(1), at(start));
            strong[index] = value;
            let age = |after| strong_age(strong, source(1), at(start + after));
            assert_eq!((age(0), age(10)), (0, 10));
            assert!(is_strong(age(u64::from(STRONG_FOR))));
            assert!(!is_strong(age(u64::from(STRONG_FOR) + 1)));
            assert_eq!(strong_age(strong, source(2), at(start)), u32::MAX);
        }
        assert!((550..650).contains(&STRONG_FOR) && (65..80).contains(&RENEWED_AFTER));
    }

    #[test]
    fn a_new_strong_source_takes_the_oldest_place_and_a_known_one_its_own() {
        let mut strong = [0; STRONG];
        for n in 0..=STRONG as u64 {
            let (index, value) = strong_entry(strong, source(n + 1), at(100 + n));
            strong[index] = value;
        }
        let age = |n| strong_age(strong, source(n), at(200));
        assert_eq!(age(1), u32::MAX, "the oldest has made room");
        assert!((2..=STRONG as u64 + 1).all(|n| age(n) <= 100));
        let (index, value) = strong_entry(strong, source(4), at(200));
        strong[index] = value;
        let known = |n| strong_age(strong, source(n), at(200)) != u32::MAX;
        assert!((2..=STRONG as u64 + 1).all(known));
    }

    #[test]
    fn an_answer_buys_two_syns_for_eight_seconds_and_many_answers_up_to_64() {
        let mut weak = [0; WEAK];
        assert!(spend(weak, source(1), at(100)).is_none());
        let (index, value) = earn(weak, source(1), at(100));
        weak[index] = value;
        for _ in 0..CREDITS {
            let (index, value) = spend(weak, source(1), at(101)).unwrap();
            weak[index] = value;
        }
        assert!(spend(weak, source(1), at(101)).is_none());
        assert!(spend(weak, source(2), at(101)).is_none());
        for _ in 0..100 {
            let (index, value) = earn(weak, source(1), at(102));
            weak[index] = value;
        }
        let mut spent = 0;
        while let Some((index, value)) = spend(weak, source(1), at(103)) {
            weak[index] = value;
            spent += 1;
        }
        assert_eq!(spent, MOST_CREDITS);
        let (index, value) = earn(weak, source(1), at(104));
        weak[index] = value;
        assert!(spend(weak, source(1), at(104 + u64::from(WEAK_FOR))).is_some());
        assert!(spend(weak, source(1), at(105 + u64::from(WEAK_FOR))).is_none());
        // Credits that have ended are not added to.
        let (index, value) = earn(weak, source(1), at(200));
        weak[index] = value;
        assert_eq!(credit(weak[index]), CREDITS);
    }

    #[test]
    fn every_source_has_a_line_and_a_tag() {
        for hash in [0, 1, u64::MAX, 1 << 32, 0xdead_beef_0000_3fff] {
            let place = VerifiedPlace::of(hash);
            assert!(place.line < LINES && place.tag != 0);
        }
    }
}
