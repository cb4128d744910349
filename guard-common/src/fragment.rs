//! Fragments of datagrams. Only the first fragment has a port, and is judged by it. Later fragments pass if their first
//! fragment passed.
//!
//! The kernel keeps fragments until their datagram is complete: for 30 s over IPv4 (`net.ipv4.ipfrag_time`) and 60 s
//! over IPv6 (`net.ipv6.ip6frag_time`). It has 4 MB for all of them (`ipfrag_high_thresh`). About 80 later fragments a
//! second without their first fragment fill that memory.

use crate::{
    address::{Address, Family},
    cell::{HashKey, mix},
    gcra::{BYTE_COST_SHIFT, GcraBudget, UNITS_PER_NANOSECOND},
    packet::IpHeader,
    spread::spread,
};

/// Identifies a datagram between two addresses, by its identification, and over IPv4 also by its protocol (RFC 791,
/// section 3.2; RFC 8200, section 4.5).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentId(u64);

impl FragmentId {
    /// The id of a packet that is no fragment.
    pub const NONE: Self = Self(0);

    const IS_FRAGMENT: u64 = 1 << 63;
    const IS_IPV6: u64 = 1 << 62;

    /// IPv4: the identification has 16 bits and is unique within a protocol (RFC 791).
    #[inline(always)]
    pub const fn ipv4(identification: u16, protocol: u8) -> Self {
        Self(Self::IS_FRAGMENT | (protocol as u64) << 32 | identification as u64)
    }

    /// IPv6: the identification has 32 bits for all protocols (RFC 8200, section 4.5).
    #[inline(always)]
    pub const fn ipv6(identification: u32) -> Self {
        Self(Self::IS_FRAGMENT | Self::IS_IPV6 | identification as u64)
    }

    /// The id with this [`Self::number`].
    #[inline(always)]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// The id as a number; 0: the packet is no fragment.
    #[inline(always)]
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// The source and the destination, each folded into one word. Two addresses with the same word share an entry: a first
/// fragment from one of them then counts for the other as well.
#[inline(always)]
pub fn fold(ip: &impl IpHeader) -> [u64; 2] {
    [ip.source(), ip.destination()].map(|Address { high, low }| spread(high) ^ low)
}

/// The keyed hash of a datagram's [`fold`]ed addresses and its identification.
#[inline(always)]
pub const fn hash(
    HashKey([first, second]): HashKey,
    [source, destination]: [u64; 2],
    FragmentId(id): FragmentId,
) -> u64 {
    mix(mix(mix(source ^ first) ^ destination ^ second) ^ id)
}

/// The number of datagrams in one set.
pub const WAYS: usize = 4;

/// Datagrams whose first fragment passed, of those whose hashes have the same lower bits. Each entry is the upper half
/// of the hash, and below it the time at which the first fragment passed.
///
/// A new entry replaces the oldest, so the set is never full: a flood of first fragments that pass shortens how long an
/// entry is remembered.
pub type FragmentSet = [u64; WAYS];

/// A time in units of [`MOMENT`], never 0. 32 bits wrap around after 52 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(u32);

/// About a millisecond, as a power of two of the units of [`crate::gcra`].
const MOMENT: u32 = 26;

impl Moment {
    /// `now`: in the units of [`crate::gcra`].
    #[inline(always)]
    pub const fn of(now: u64) -> Self {
        Self((now >> MOMENT) as u32)
    }
}

const fn moments(seconds: u64) -> u32 {
    ((seconds * 1_000_000_000 * UNITS_PER_NANOSECOND) >> MOMENT) as u32
}

/// How long the kernel keeps an incomplete datagram.
#[inline(always)]
const fn lifetime(family: Family) -> u32 {
    match family {
        Family::Ipv4 => moments(30),
        Family::Ipv6 => moments(60),
    }
}

/// The tag of a hash, never 0: an unused entry is 0.
#[inline(always)]
const fn tag(hash: u64) -> u64 {
    (hash | 1 << 32) >> 32 << 32
}

/// Whether the first fragment of the datagram passed in the last 30 s (IPv6: 60 s).
#[inline(always)]
pub fn is_known(set: [u64; WAYS], hash: u64, Moment(now): Moment, family: Family) -> bool {
    let mut is_known = false;
    for way in set {
        let age = now.wrapping_sub(way as u32);
        is_known |= way >> 32 << 32 == tag(hash) && age <= lifetime(family);
    }
    is_known
}

/// The index at which to store a datagram, and the entry to store.
#[inline(always)]
pub fn place(set: [u64; WAYS], hash: u64, Moment(now): Moment) -> (usize, u64) {
    let mut place = 0;
    let mut oldest = 0;
    for (index, way) in set.into_iter().enumerate() {
        // The datagram's own entry comes first, then an unused entry, then the oldest.
        let age = if way >> 32 << 32 == tag(hash) {
            u64::MAX
        } else if way == 0 {
            u64::MAX - 1
        } else {
            now.wrapping_sub(way as u32) as u64
        };
        if age >= oldest {
            (place, oldest) = (index, age);
        }
    }
    (place, tag(hash) | now as u64)
}

/// The kernel's overhead for one fragment, in bytes, roughly: `struct sk_buff` and `struct skb_shared_info` (Linux
/// 6.1).
const OVERHEAD: u64 = 1_024;

const fn bytes_per_second(rate: u64, burst: u64) -> GcraBudget {
    let cost = ((1_000_000_000 * UNITS_PER_NANOSECOND) << BYTE_COST_SHIFT) / rate;
    GcraBudget {
        cost,
        burst: (cost * burst) >> BYTE_COST_SHIFT,
    }
}

/// The budget of one source for fragments that arrive before their first fragment, in bytes of kernel memory
/// ([`memory`]). A source can send a datagram of 64 kB with its fragments in reverse order.
pub const OVERTAKING: GcraBudget = bytes_per_second(16 << 10, 160 << 10);
/// The same budget for all sources together: 64 kB a second, 1 MB at once. Within the 30 s that the kernel keeps
/// fragments, they get 3 of its 4 MB.
pub const OVERTAKING_IN_ALL: GcraBudget = bytes_per_second(64 << 10, 1 << 20);

/// The kernel memory that a fragment of `length` bytes takes, in bytes, roughly.
#[inline(always)]
pub const fn memory(length: u64) -> u64 {
    length + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gcra::{Price, charge},
        packet::IpFields,
    };

    const KEY: HashKey = HashKey([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]);
    const SECOND: u64 = 1_000_000_000 * UNITS_PER_NANOSECOND;

    fn ip(family: Family, source: u64, destination: u64, fragment: FragmentId) -> IpFields {
        let address = |low| Address { high: 0, low };
        IpFields {
            family,
            source: address(source),
            destination: address(destination),
            fragment,
        }
    }

    #[test]
    fn datagrams_that_differ_in_any_field_have_different_hashes() {
        let id = FragmentId::ipv4(7, 17);
        let family = Family::Ipv6;
        let hashes = [
            ip(family, 1, 2, id),
            ip(family, 2, 1, id),
            ip(family, 1, 3, id),
            ip(family, 1, 2, FragmentId::ipv4(8, 17)),
            ip(family, 1, 2, FragmentId::ipv4(7, 6)),
            ip(family, 1, 2, FragmentId::ipv6(7)),
        ]
        .map(|ip| hash(KEY, fold(&ip), ip.fragment));
        for (n, current) in hashes.iter().enumerate() {
            assert!(!hashes[..n].contains(current));
        }
    }

    #[test]
    fn a_datagram_is_remembered_as_long_as_the_kernel_waits_for_it() {
        for (family, seconds) in [(Family::Ipv4, 30), (Family::Ipv6, 60)] {
            // Also where the 32 bits of the time wrap around.
            for start in [SECOND, ((u64::from(u32::MAX) - 1) << MOMENT)] {
                let mut set = [0; WAYS];
                assert!(!is_known(set, 0, Moment::of(start), family));
                let (way, entry) = place(set, 0, Moment::of(start));
                set[way] = entry;
                let known = |after| is_known(set, 0, Moment::of(start + after), family);
                assert!(known(0) && known((seconds - 1) * SECOND));
                assert!(!known((seconds + 1) * SECOND));
                assert!(!is_known(set, 2 << 32, Moment::of(start), family));
            }
        }
    }

    #[test]
    fn a_new_datagram_takes_the_place_of_the_oldest() {
        let mut set = [0; WAYS];
        for n in 0..=WAYS as u64 {
            let (way, entry) = place(set, n << 40, Moment::of(n * SECOND));
            set[way] = entry;
        }
        let now = Moment::of(WAYS as u64 * SECOND);
        let known = |n: u64| is_known(set, n << 40, now, Family::Ipv4);
        assert!(!known(0));
        assert!((1..=WAYS as u64).all(known));
        // A datagram that is stored again takes its own entry.
        let (way, entry) = place(set, 2 << 40, now);
        set[way] = entry;
        assert!((1..=WAYS as u64).all(|n| is_known(set, n << 40, now, Family::Ipv4)));
    }

    /// How many of `rate` fragments a second fit the budget, over so many seconds.
    fn pass(budget: GcraBudget, length: u64, rate: u64, seconds: u64) -> u64 {
        let Price { cost, burst } = budget.price_of_bytes(memory(length));
        let mut arrival = 0;
        let mut passed = 0;
        for n in 0..rate * seconds {
            let charged = charge(arrival, SECOND + n * SECOND / rate, Price { cost, burst });
            arrival = charged.arrival;
            passed += u64::from(charged.fits);
        }
        passed
    }

    #[test]
    fn a_datagram_of_64_kb_fits_in_any_order_and_orphans_do_not_fill_the_kernels_memory() {
        let fragments = 65_535u64.div_ceil(1_480);
        assert_eq!(pass(OVERTAKING, 1_514, fragments, 1), fragments);
        // Linux counts the whole buffer, of 2,304 bytes for such a frame (`truesize`).
        let held = pass(OVERTAKING_IN_ALL, 1_514, 10_000, 30) * 2_304;
        assert!(held < 3 << 20, "{held} bytes");
        assert!(pass(OVERTAKING_IN_ALL, 60, 10_000, 30) * 768 < 3 << 20);
        assert!(pass(OVERTAKING_IN_ALL, 9_014, 10_000, 30) * 9_728 < 3_500_000);
    }
}
