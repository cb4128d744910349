//! The account of a source at a service on one CPU, for one tick of the clock: the packets that the source has prepaid,
//! or the budget that it is over.
//!
//! An atomic exchange on a bucket that other CPUs charge as well costs more than all other steps for a packet. So a
//! source that sends again within one tick prepays several packets at once, and its packets on this CPU are charged to
//! the account. Prepaid packets that did not arrive return to the buckets when the account is next used in another
//! tick, for this source or another. A packet passes only if it was charged, so all CPUs together admit no more than
//! the budget. Two deviations remain. Prepaid packets that return after the bucket has refilled add to the next burst.
//! And a source cannot spend on this CPU the packets that its accounts on other CPUs hold. Each deviation is at most a
//! [`SHARE`]th of the source's burst over all CPUs, and no source prepays once half of its burst is used.
//!
//! The buckets that all sources share are charged packet by packet, because every account would hold a share of them.
//!
//! Within a tick the clock stands still and no bucket refills. So a source that is over a budget stays over it until
//! the next tick.
//!
//! Each CPU has few accounts, and a source's hash selects one. It belongs to that source until the tick is over; a
//! source whose account is taken is charged packet by packet. So a flood of random sources costs other sources speed
//! and nothing else.

use crate::{
    address::{Address, Family},
    cell::{HashKey, Share, hash},
    gcra::{BYTE_COST_SHIFT, GcraBudget, GcraBudgets},
    spread::GOLDEN,
};

/// The number of accounts on each CPU. They fit into the first-level cache. A power of two.
pub const ACCOUNTS: usize = 1 << 8;

/// All CPUs together may prepay 1/`SHARE` of a source's burst.
pub const SHARE: u64 = 32;

/// The most packets that are prepaid at once.
pub const MAX_PREPAID_PACKETS: u64 = u8::MAX as u64;

/// The most bytes that are prepaid at once: more than [`MAX_PREPAID_PACKETS`] packets can have.
const MOST_BYTES: u64 = 1 << 31;

/// The account of a source at a service on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    source: u64,
    stamp: u64,
    /// The packets, and below the bytes, that are prepaid and have not arrived yet.
    packets: u32,
    bytes: u32,
    standing: u32,
    /// For a source over its bytes: packets of this length, in bytes, or longer are over the budget.
    over_from: u32,
}

const _: () = assert!(size_of::<Account>() == 32);

/// Values of `standing`. In the first two states the source may prepay. In `EXACT` each of its packets is charged by
/// itself until the next tick. In the last two the source is over that budget until the next tick.
const GOOD: u32 = 0;
const OVER_CONNECTIONS: u32 = 1;
const EXACT: u32 = 2;
const OVER_PACKETS: u32 = 3;
const OVER_BYTES: u32 = 4;

/// The budget that a source is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Packets,
    Bytes,
    Connections,
}

/// The key of an account: an IPv4 prefix itself, or the hash of an IPv6 prefix. Comparing an IPv4 address costs less
/// than hashing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceKey(u64);

impl SourceKey {
    /// This bit of a hash selects no cell: only a row of 2^32 cells would use it, and all rows together have fewer.
    const IS_HASH: u64 = 1 << 63;

    /// The key of a source. `prefix`: its address, cut to the prefix that counts as one source.
    #[inline(always)]
    pub fn of(key: impl FnOnce() -> HashKey, family: Family, prefix: Address) -> Self {
        match family {
            Family::Ipv4 => Self(prefix.low),
            Family::Ipv6 => Self(hash(key(), Share::Base, family, prefix) | Self::IS_HASH),
        }
    }

    /// The [`cell::hash`](hash()) of the prefix. It may differ in the one bit that selects no cell.
    #[inline(always)]
    pub const fn hash(self, key: HashKey) -> u64 {
        let Self(source) = self;
        if source & Self::IS_HASH != 0 {
            return source;
        }
        let prefix = Address {
            high: 0,
            low: source,
        };
        hash(key, Share::Base, Family::Ipv4, prefix)
    }

    /// The index of the source's account. It depends on the secret `key`.
    #[inline(always)]
    pub const fn place(self, key: u64) -> usize {
        let Self(source) = self;
        let mixed = ((source ^ key) as u32).wrapping_mul(GOLDEN);
        (mixed >> (u32::BITS - ACCOUNTS.trailing_zeros())) as usize
    }
}

/// The tick and the service of an account, in one word.
#[inline(always)]
pub const fn stamp(tick: u64, service: u16) -> u64 {
    tick << u16::BITS | service as u64
}

impl Account {
    /// Whether it belongs to this source at this service, in this tick.
    #[inline(always)]
    pub const fn belongs_to(&self, SourceKey(source): SourceKey, stamp: u64) -> bool {
        self.source == source && self.stamp == stamp
    }

    /// The key of the source that the account belongs to.
    #[inline(always)]
    pub const fn source(&self) -> SourceKey {
        SourceKey(self.source)
    }

    /// Whether it belongs to any source in this tick.
    #[inline(always)]
    pub const fn is_taken(&self, stamp: u64) -> bool {
        (self.stamp ^ stamp) >> u16::BITS == 0
    }

    /// The service id.
    #[inline(always)]
    pub const fn service(&self) -> u16 {
        self.stamp as u16
    }

    /// Assigns it to a source for this tick. It must hold no prepaid packets or bytes.
    #[inline(always)]
    pub const fn assign(&mut self, SourceKey(source): SourceKey, stamp: u64) {
        self.source = source;
        self.stamp = stamp;
        self.packets = 0;
        self.bytes = 0;
        self.standing = GOOD;
    }

    /// Whether a packet of this length, in bytes, is prepaid.
    #[inline(always)]
    pub const fn has_prepaid(&self, length: u64, counts_bytes: bool) -> bool {
        self.packets != 0 && (!counts_bytes || self.bytes as u64 >= length)
    }

    /// Takes such a packet off the prepaid packets and bytes.
    #[inline(always)]
    pub const fn spend(&mut self, length: u64, counts_bytes: bool) {
        if counts_bytes {
            self.bytes -= length as u32;
        }
        self.packets -= 1;
    }

    /// Whether prepaid packets or bytes are left: packets may run out before bytes.
    #[inline(always)]
    pub const fn has_any_prepaid(&self) -> bool {
        self.packets | self.bytes != 0
    }

    /// The prepaid packets and bytes that are left.
    #[inline(always)]
    pub const fn prepaid(&self) -> (u32, u32) {
        (self.packets, self.bytes)
    }

    /// Stores prepaid packets and bytes in an account that holds none.
    #[inline(always)]
    pub const fn store_prepaid(&mut self, packets: u32, bytes: u32) {
        self.packets = packets;
        self.bytes = bytes;
    }

    /// Whether the source may prepay.
    #[inline(always)]
    pub const fn may_prepay(&self) -> bool {
        self.standing <= OVER_CONNECTIONS
    }

    /// Charges each packet by itself until the next tick.
    #[inline(always)]
    pub const fn stop_prepaying(&mut self) {
        self.standing = EXACT;
    }

    /// Records that a packet of this length, in bytes, is over a budget. Later packets of this tick are over it as
    /// well: for bytes those that are no shorter, for connections those that open one.
    #[inline(always)]
    pub const fn record_over(&mut self, over: Over, length: u64) {
        self.standing = match over {
            Over::Packets => OVER_PACKETS,
            Over::Bytes => OVER_BYTES,
            Over::Connections => OVER_CONNECTIONS,
        };
        self.over_from = length as u32;
    }

    /// The recorded budget that a packet of this length, in bytes, is over. `opens`: it opens a connection that is
    /// counted.
    #[inline(always)]
    pub const fn over(&self, length: u64, opens: bool) -> Option<Over> {
        match self.standing {
            OVER_PACKETS => Some(Over::Packets),
            OVER_BYTES if length >= self.over_from as u64 => Some(Over::Bytes),
            OVER_CONNECTIONS if opens => Some(Over::Connections),
            _ => None,
        }
    }
}

/// How much a source may prepay at once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Advance {
    /// With fewer than two, the source does not prepay: it would gain nothing.
    pub packets: u8,
    /// The binary logarithm of the number of bytes.
    pub bytes_log2: u8,
}

impl Advance {
    /// The advance at a service where each source has the budgets `source`, on a host with so many CPUs.
    pub fn of(source: GcraBudgets, cpus: u64) -> Self {
        let share = SHARE.saturating_mul(cpus.max(1));
        // How many times the cost fits into the part of the burst that one CPU may prepay; `None`: not limited.
        let fits = |budget: GcraBudget| (budget.burst / share).checked_div(budget.cost);
        let packets =
            fits(source.packets).map_or(MAX_PREPAID_PACKETS, |fit| fit.min(MAX_PREPAID_PACKETS));
        let bytes = fits(source.bytes).map_or(MOST_BYTES, |fit| {
            // The cost of a byte has fractional bits, and the cost of all bytes together must fit 64 bits.
            let fit = fit.saturating_mul(1 << BYTE_COST_SHIFT);
            fit.min(u64::MAX / source.bytes.cost).min(MOST_BYTES)
        });
        Self {
            packets: packets as u8,
            bytes_log2: bytes.checked_ilog2().unwrap_or(0) as u8,
        }
    }

    /// The packets and bytes to prepay for packets of this length, in bytes. `None`: the source does not prepay.
    #[inline(always)]
    pub const fn with(self, length: u64) -> Option<(u64, u64)> {
        let packets = self.packets as u64;
        let wanted = packets * length;
        let most = 1 << (self.bytes_log2 % 32);
        let bytes = if wanted < most { wanted } else { most };
        if packets >= 2 && bytes >= 2 * length {
            Some((packets, bytes))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::{
        bucket::{Bucket, charge_ahead, charge_one, has_half_free},
        cell::indices,
        gcra::{Price, UNITS_PER_NANOSECOND},
    };

    const KEY: HashKey = HashKey([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]);
    const SECOND: u64 = 1_000_000_000 * UNITS_PER_NANOSECOND;
    const MASK: u32 = (1 << 25) - 1;

    fn source(family: Family, prefix: Address) -> SourceKey {
        SourceKey::of(|| KEY, family, prefix)
    }

    fn ipv4(n: u32) -> SourceKey {
        source(Family::Ipv4, Address::from_ipv4(n))
    }

    /// A budget of packets (`shift` 0) or of bytes (`shift`: the fractional bits of the cost).
    fn budget(rate: u64, burst: u64, shift: u32) -> GcraBudget {
        let cost = (SECOND << shift) / rate;
        GcraBudget {
            cost,
            burst: (cost >> shift) * burst,
        }
    }

    fn packets(rate: u64, burst: u64) -> GcraBudgets {
        GcraBudgets {
            packets: budget(rate, burst, 0),
            ..GcraBudgets::default()
        }
    }

    #[test]
    fn an_account_finds_the_cells_of_its_source() {
        for n in 0..1_000u32 {
            let v4 = (
                Family::Ipv4,
                Address::from_ipv4(n.wrapping_mul(0x0101_0101)),
            );
            let v6 = Address {
                high: 0x2001_0db8_0000_0000 + u64::from(n),
                low: 0,
            };
            for (family, prefix) in [v4, (Family::Ipv6, v6)] {
                let expected = indices(hash(KEY, Share::Base, family, prefix), 0, MASK);
                let found = indices(source(family, prefix).hash(KEY), 0, MASK);
                assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn neighbours_and_prefixes_spread_over_all_accounts() {
        for step in [1, 1 << 8, 1 << 16, 1 << 24] {
            let places = (0..ACCOUNTS as u32).map(|n| ipv4(n.wrapping_mul(step)).place(KEY.0[0]));
            let mut places: Vec<usize> = places.collect();
            places.sort_unstable();
            places.dedup();
            // At random, 162 of 256 would be taken.
            assert!(places.len() > 120, "{} with steps of {step}", places.len());
            assert!(places.iter().all(|place| *place < ACCOUNTS));
        }
    }

    #[test]
    fn an_account_belongs_to_one_source_at_one_service_in_one_tick() {
        let mut account = Account::default();
        account.assign(ipv4(7), stamp(1_000, 3));
        assert!(account.belongs_to(ipv4(7), stamp(1_000, 3)));
        assert!(!account.belongs_to(ipv4(8), stamp(1_000, 3)));
        assert!(!account.belongs_to(ipv4(7), stamp(1_000, 4)));
        assert!(!account.belongs_to(ipv4(7), stamp(1_001, 3)));
        assert!(account.is_taken(stamp(1_000, 9)));
        assert!(!account.is_taken(stamp(1_001, 3)));
        assert_eq!((account.source(), account.service()), (ipv4(7), 3));
    }

    #[test]
    fn prepaid_packets_and_bytes_are_spent_together() {
        let mut account = Account::default();
        assert!(!account.has_prepaid(60, false) && !account.has_any_prepaid());
        account.store_prepaid(2, 1_000);
        assert!(!account.has_prepaid(1_001, true));
        assert!(account.has_prepaid(600, true));
        account.spend(600, true);
        assert_eq!(account.prepaid(), (1, 400));
        assert!(!account.has_prepaid(600, true));
        account.spend(300, true);
        assert!(!account.has_prepaid(0, true), "the packets have run out");
        assert!(account.has_any_prepaid(), "bytes are left to give back");
        account.store_prepaid(1, 0);
        assert!(account.has_prepaid(1_500, false), "no budget counts bytes");
        assert!(account.has_any_prepaid());
    }

    #[test]
    fn a_source_over_a_budget_stays_over_it_until_its_account_is_opened_again() {
        let mut account = Account::default();
        account.assign(ipv4(7), stamp(1, 0));
        assert_eq!(account.over(1_500, true), None);
        account.record_over(Over::Bytes, 1_000);
        assert_eq!(account.over(999, true), None, "a shorter packet may fit");
        assert_eq!(account.over(1_000, true), Some(Over::Bytes));
        account.record_over(Over::Connections, 1_000);
        assert_eq!(account.over(60, true), Some(Over::Connections));
        assert_eq!(account.over(1_500, false), None, "it opens no connection");
        assert!(
            account.may_prepay(),
            "a segment that opens no connection may be prepaid"
        );
        account.record_over(Over::Packets, 1_000);
        assert_eq!(account.over(60, false), Some(Over::Packets));
        assert!(!account.may_prepay());
        account.assign(ipv4(7), stamp(2, 0));
        assert_eq!(account.over(1_500, true), None);
        assert!(account.may_prepay());
        account.stop_prepaying();
        assert_eq!(
            (account.over(1_500, true), account.may_prepay()),
            (None, false)
        );
    }

    #[test]
    fn all_cpus_together_hold_no_more_than_their_share_of_a_burst() {
        for cpus in [1, 2, 16, 64, 512] {
            for burst in [1, 31, 64, 2_000, 100_000, 1_000_000_000] {
                let advance = Advance::of(packets(2_000, burst), cpus);
                let held = u64::from(advance.packets) * cpus;
                assert!(held * SHARE <= burst, "{held} of {burst} on {cpus} CPUs");
                let bytes = GcraBudgets {
                    bytes: budget(20_000_000, burst, BYTE_COST_SHIFT),
                    ..GcraBudgets::default()
                };
                let advance = Advance::of(bytes, cpus);
                let most = 1u64 << advance.bytes_log2;
                assert!(
                    most == 1 || most * cpus * SHARE <= burst,
                    "{most} of {burst}"
                );
            }
        }
    }

    #[test]
    fn an_advance_is_a_share_of_the_burst_and_has_a_limit() {
        let of = |source| Advance::of(source, 2).packets;
        assert_eq!(of(packets(2_000, 2_000)), 31);
        assert_eq!(of(packets(500, 640)), 10);
        assert_eq!(of(packets(1_000_000, 1_000_000)), 255);
        let unlimited = Advance::of(GcraBudgets::default(), 2);
        assert_eq!(unlimited.with(1_500), Some((255, 255 * 1_500)));
        assert_eq!(unlimited.with(65_535), Some((255, 255 * 65_535)));
    }

    /// A byte a second and the longest burst: the cost of all prepaid bytes still fits 64 bits.
    #[test]
    fn the_cost_of_the_most_expensive_prepaid_bytes_does_not_overflow() {
        let cost = crate::gcra::MAX_BYTE_COST;
        let dear = GcraBudgets {
            bytes: GcraBudget {
                cost,
                burst: crate::gcra::MAX_BURST,
            },
            ..GcraBudgets::default()
        };
        for cpus in [1, 2] {
            let most = 1u64 << Advance::of(dear, cpus).bytes_log2;
            assert!(cost.checked_mul(most).is_some(), "{most} bytes");
        }
    }

    #[test]
    fn a_source_prepays_only_if_two_packets_fit_or_more() {
        let advance = |packets, bytes_log2| Advance {
            packets,
            bytes_log2,
        };
        assert_eq!(advance(10, 20).with(1_500), Some((10, 15_000)));
        assert_eq!(advance(10, 12).with(1_500), Some((10, 4_096)));
        assert_eq!(advance(10, 11).with(1_500), None, "only one packet fits");
        assert_eq!(advance(1, 20).with(1_500), None);
    }

    /// A bucket that no other CPU charges.
    impl Bucket for &Cell<u64> {
        fn read(self) -> u64 {
            self.get()
        }

        fn exchange(self, seen: u64, new: u64) -> bool {
            assert_eq!(self.get(), seen);
            self.set(new);
            true
        }

        fn write(self, new: u64) {
            self.set(new);
        }

        fn add(self, amount: u64) {
            self.set(self.get() + amount);
        }

        fn take_off(self, amount: u64) {
            self.set(self.get() - amount);
        }
    }

    /// One CPU prepays and gives back the rest in every tick. As many packets pass as if each were charged by itself.
    #[test]
    fn as_many_packets_pass_with_accounts_as_without() {
        const TICK: u64 = SECOND / 250;
        let price = budget(2_000, 2_000, 0).price();
        let advance = Advance::of(packets(2_000, 2_000), 2);
        for per_tick in [1, 3, 8, 9, 40, 700] {
            let [exact, bucket] = [0, 0].map(Cell::new);
            let mut account = Account::default();
            let mut passed = [0u64; 2];
            for tick in 1_000..1_500u64 {
                let now = tick * TICK;
                let (left, _) = account.prepaid();
                (&bucket).take_off(u64::from(left) * price.cost);
                account.assign(ipv4(7), stamp(tick, 0));
                for n in 0..per_tick {
                    passed[0] += u64::from(charge_one(&exact, now, price));
                    if account.has_prepaid(60, false) {
                        account.spend(60, false);
                        passed[1] += 1;
                        continue;
                    }
                    if n > 0
                        && account.may_prepay()
                        && let Some((packets, _)) = advance.with(60)
                    {
                        let ahead = Price {
                            cost: price.cost * packets,
                            ..price
                        };
                        if has_half_free(&bucket, now, ahead) {
                            charge_ahead(&bucket, now, ahead);
                            account.store_prepaid(packets as u32, 0);
                        } else {
                            account.stop_prepaying();
                        }
                    }
                    passed[1] += u64::from(charge_one(&bucket, now, price));
                }
            }
            assert_eq!(passed[0], passed[1], "{per_tick} packets a tick");
        }
    }
}
