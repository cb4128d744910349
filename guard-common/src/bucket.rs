//! Charging buckets that other CPUs charge at the same time, without a lock.
//!
//! A bucket is changed by compare-and-swap, with a few retries. If all of them fail, the packet passes uncharged. Each
//! failure means that another packet was charged to the same bucket in those nanoseconds, so few packets pass
//! uncharged, whereas a drop could hit a source within its budget.

use crate::gcra::{Charge, Price, UNITS_PER_NANOSECOND, charge};

/// How many times a charge is tried.
pub const ATTEMPTS: u32 = 4;

/// The largest difference between the times at which two CPUs charge the same bucket, in units: one may read its clock
/// and then be delayed. A bucket that is beyond its burst by less refills by itself. Resetting it would free room that
/// another CPU has charged.
const SKEW: u64 = 1_000_000_000 * UNITS_PER_NANOSECOND;

/// A bucket in shared memory.
pub trait Bucket: Copy {
    /// The value, read in one load.
    fn read(self) -> u64;

    /// Writes `new` if the bucket still holds `seen`. Returns whether it did.
    fn exchange(self, seen: u64, new: u64) -> bool;

    /// Writes `new` over any current value.
    fn write(self, new: u64);

    /// Adds `amount` to the current value, in one step.
    fn add(self, amount: u64);

    /// Subtracts `amount` from the current value, in one step.
    fn take_off(self, amount: u64);

    /// The retries of [`charge_pair`] after another CPU changed a bucket. They are rare, and stay out of the code that
    /// every packet runs.
    fn charge_pair_again(pair: [Self; 2], now: u64, price: Price) -> bool {
        retry_pair(pair, now, price)
    }

    /// Charges the bucket anew after another CPU changed it. Returns whether it had room.
    fn charge_one_again(self, now: u64, price: Price) -> bool {
        retry_one(self, now, price)
    }
}

/// Whether either of a source's two buckets has room. The traffic of other sources limits a source only if it shares
/// both of its cells with heavy sources.
#[inline(always)]
pub fn pair_has_room<B: Bucket>(pair: [B; 2], now: u64, price: Price) -> bool {
    let [first, second] = pair;
    has_room(first, now, price) || has_room(second, now, price)
}

/// Whether a bucket has room for a price at this time (in units of [`crate::gcra`]), without charging it.
#[inline(always)]
pub fn has_room<B: Bucket>(bucket: B, now: u64, price: Price) -> bool {
    let looked = look(bucket, now, price);
    let (_, Charge { fits, .. }) = looked;
    if !fits {
        take_back(bucket, looked);
    }
    fits
}

/// Whether half of the burst would still be free after this charge.
#[inline(always)]
pub fn has_half_free<B: Bucket>(bucket: B, now: u64, Price { cost, burst }: Price) -> bool {
    let half = Price {
        cost,
        burst: burst / 2,
    };
    charge(bucket.read(), now, half).fits
}

/// Charges later packets to a bucket that [`has_half_free`] of room, even if other CPUs charge it at the same time. The
/// caller gives back the charge of packets that do not arrive.
#[inline(always)]
pub fn charge_ahead<B: Bucket>(bucket: B, now: u64, Price { cost, .. }: Price) {
    let seen = bucket.read();
    // If the exchange fails, another CPU has charged the bucket, so it is no longer empty.
    if seen >= now || !bucket.exchange(seen, now + cost) {
        bucket.add(cost);
    }
}

/// Resets a bucket that is far beyond its burst to exactly full.
#[inline(always)]
fn take_back<B: Bucket>(bucket: B, (seen, full): (u64, Charge)) {
    if seen.saturating_sub(full.arrival) > SKEW {
        // The clock went back, or the budget shrank: the bucket is full, and refills from now. If
        // another CPU was faster, it did the same.
        bucket.exchange(seen, full.arrival);
    }
}

/// Charges both buckets if either has room, with one read of the pair. If neither has room, resets those that are far
/// beyond their burst.
#[inline(always)]
pub fn charge_pair_with_room<B: Bucket>(pair: [B; 2], now: u64, price: Price) -> bool {
    let [first, second] = pair;
    let looked = [look(first, now, price), look(second, now, price)];
    let [(_, in_first), (_, in_second)] = looked;
    if !in_first.fits && !in_second.fits {
        take_back(first, looked[0]);
        take_back(second, looked[1]);
        return false;
    }
    try_pair(pair, looked, now, price).unwrap_or_else(|| B::charge_pair_again(pair, now, price))
}

/// Charges both buckets of a pair that had room. `false`: another CPU took the room meanwhile, and nothing is charged.
#[inline(always)]
pub fn charge_pair<B: Bucket>(pair: [B; 2], now: u64, price: Price) -> bool {
    look_and_try_pair(pair, now, price).unwrap_or_else(|| B::charge_pair_again(pair, now, price))
}

/// Charges a bucket even without room; returns whether it had room.
#[inline(always)]
pub fn charge_one<B: Bucket>(bucket: B, now: u64, price: Price) -> bool {
    try_one(bucket, look(bucket, now, price)).unwrap_or_else(|| bucket.charge_one_again(now, price))
}

/// The further attempts of [`charge_pair`]. If all of them fail, the packet passes uncharged.
#[inline(always)]
pub fn retry_pair<B: Bucket>(pair: [B; 2], now: u64, price: Price) -> bool {
    for _ in 1..ATTEMPTS {
        if let Some(fits) = look_and_try_pair(pair, now, price) {
            return fits;
        }
    }
    true
}

/// The further attempts of [`charge_one`]. If all of them fail, the packet passes uncharged.
#[inline(always)]
pub fn retry_one<B: Bucket>(bucket: B, now: u64, price: Price) -> bool {
    for _ in 1..ATTEMPTS {
        if let Some(fits) = try_one(bucket, look(bucket, now, price)) {
            return fits;
        }
    }
    true
}

#[inline(always)]
fn look_and_try_pair<B: Bucket>(pair: [B; 2], now: u64, price: Price) -> Option<bool> {
    // An exchange waits for its cache line, and later loads wait for the exchange. So both buckets are read before the
    // first exchange: their lines are fetched at the same time.
    let looked = pair.map(|bucket| look(bucket, now, price));
    try_pair(pair, looked, now, price)
}

/// `None`: another CPU was faster.
#[inline(always)]
fn try_pair<B: Bucket>(
    [first, second]: [B; 2],
    [in_first, in_second]: [(u64, Charge); 2],
    now: u64,
    price: Price,
) -> Option<bool> {
    // A bucket with room decides, so it is charged first.
    let ((deciding, decisive), (other, beside)) = if in_first.1.fits {
        ((first, in_first), (second, in_second))
    } else if in_second.1.fits {
        ((second, in_second), (first, in_first))
    } else {
        return Some(false);
    };
    if !try_store_of_source(deciding, decisive, now) {
        return None;
    }
    if !try_store_of_source(other, beside, now) {
        other.charge_one_again(now, price);
    }
    Some(true)
}

/// `None`: another CPU was faster.
#[inline(always)]
fn try_one<B: Bucket>(bucket: B, (seen, charged): (u64, Charge)) -> Option<bool> {
    try_store(bucket, (seen, charged)).then_some(charged.fits)
}

/// [`try_store`] for a bucket of one source.
///
/// An empty bucket is written without an atomic exchange: an exchange waits for the cache line, and later instructions
/// wait for the exchange. Charges that other CPUs make between the read and the write are lost, so the source gets that
/// many packets more: one or two, or more if this CPU is delayed in between. The error never drops a packet, and arises
/// only at a bucket that had its whole burst free.
#[inline(always)]
fn try_store_of_source<B: Bucket>(bucket: B, (seen, charged): (u64, Charge), now: u64) -> bool {
    if seen < now {
        bucket.write(charged.arrival);
        return true;
    }
    try_store(bucket, (seen, charged))
}

/// Stores a bucket's value after a charge. `false`: another CPU was faster.
#[inline(always)]
fn try_store<B: Bucket>(bucket: B, (seen, charged): (u64, Charge)) -> bool {
    seen == charged.arrival || bucket.exchange(seen, charged.arrival)
}

#[inline(always)]
fn look<B: Bucket>(bucket: B, now: u64, price: Price) -> (u64, Charge) {
    let seen = bucket.read();
    (seen, charge(seen, now, price))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A bucket that another CPU charges `stolen` before each of the first `losses` exchanges, so that they fail.
    struct ContendedBucket {
        arrival: Cell<u64>,
        losses: Cell<u32>,
        stolen: u64,
    }

    impl ContendedBucket {
        fn new(arrival: u64, losses: u32, stolen: u64) -> Self {
            Self {
                arrival: Cell::new(arrival),
                losses: Cell::new(losses),
                stolen,
            }
        }
    }

    impl Bucket for &ContendedBucket {
        fn read(self) -> u64 {
            self.arrival.get()
        }

        fn exchange(self, seen: u64, new: u64) -> bool {
            if self.losses.get() > 0 {
                self.losses.set(self.losses.get() - 1);
                self.arrival.set(self.arrival.get() + self.stolen);
                return false;
            }
            assert_eq!(self.arrival.get(), seen);
            self.arrival.set(new);
            true
        }

        fn write(self, new: u64) {
            self.arrival.set(new);
        }

        fn add(self, amount: u64) {
            self.arrival.set(self.arrival.get() + amount);
        }

        fn take_off(self, amount: u64) {
            self.arrival.set(self.arrival.get() - amount);
        }
    }

    const NOW: u64 = 1_000;
    const PRICE: Price = Price {
        cost: 10,
        burst: 100,
    };
    const FULL: u64 = NOW + PRICE.burst;

    #[test]
    fn both_buckets_are_charged() {
        let (first, second) = (
            ContendedBucket::new(0, 0, 0),
            ContendedBucket::new(1_020, 0, 0),
        );
        assert!(charge_pair([&first, &second], NOW, PRICE));
        assert_eq!((first.arrival.get(), second.arrival.get()), (1_010, 1_030));
    }

    #[test]
    fn either_bucket_decides_and_a_full_bucket_stays_full() {
        for full_first in [true, false] {
            let (full, free) = (
                ContendedBucket::new(FULL, 0, 0),
                ContendedBucket::new(0, 0, 0),
            );
            let pair = if full_first {
                [&full, &free]
            } else {
                [&free, &full]
            };
            assert!(pair_has_room(pair, NOW, PRICE));
            assert!(charge_pair(pair, NOW, PRICE));
            assert_eq!((full.arrival.get(), free.arrival.get()), (FULL, 1_010));
        }
        let (first, second) = (
            ContendedBucket::new(FULL, 0, 0),
            ContendedBucket::new(FULL, 0, 0),
        );
        assert!(!pair_has_room([&first, &second], NOW, PRICE));
        assert!(!charge_pair([&first, &second], NOW, PRICE));
    }

    #[test]
    fn a_bucket_beyond_its_burst_is_reset_to_full_and_refills_from_now() {
        let skewed = ContendedBucket::new(FULL + SKEW, 0, 0);
        assert!(!has_room(&skewed, NOW, PRICE));
        assert_eq!(
            skewed.arrival.get(),
            FULL + SKEW,
            "another CPU may be ahead"
        );
        let bucket = ContendedBucket::new(FULL + SKEW + 1, 0, 0);
        assert!(!has_room(&bucket, NOW, PRICE));
        assert_eq!(bucket.arrival.get(), FULL);
        assert!(has_room(&bucket, NOW + PRICE.cost, PRICE));
        let pair = [0, 1].map(|_| ContendedBucket::new(FULL + SKEW + 1, 0, 0));
        assert!(!charge_pair_with_room(pair.each_ref(), NOW, PRICE));
        assert_eq!(pair.map(|bucket| bucket.arrival.get()), [FULL; 2]);
    }

    #[test]
    fn a_charge_that_loses_its_race_is_tried_again_with_the_new_value() {
        let (first, second) = (
            ContendedBucket::new(NOW, ATTEMPTS - 1, 10),
            ContendedBucket::new(0, 0, 0),
        );
        assert!(charge_pair([&first, &second], NOW, PRICE));
        assert_eq!(
            first.arrival.get(),
            NOW + 40,
            "three charges of the other CPU, one of this CPU"
        );
        let alone = ContendedBucket::new(NOW, ATTEMPTS - 1, 10);
        assert!(charge_one(&alone, NOW, PRICE));
        assert_eq!(alone.arrival.get(), NOW + 40);
    }

    #[test]
    fn an_empty_bucket_is_written_without_an_exchange() {
        let (first, second) = (
            ContendedBucket::new(NOW - 1, u32::MAX, 0),
            ContendedBucket::new(0, u32::MAX, 0),
        );
        assert!(charge_pair([&first, &second], NOW, PRICE));
        assert_eq!((first.arrival.get(), second.arrival.get()), (1_010, 1_010));
        assert_eq!(first.losses.get(), u32::MAX, "no exchange was tried");
    }

    #[test]
    fn plenty_is_half_of_the_burst() {
        let at = |arrival| has_half_free(&ContendedBucket::new(arrival, 0, 0), NOW, PRICE);
        assert!(at(0));
        assert!(at(NOW + 40));
        assert!(!at(NOW + 41));
        let bucket = ContendedBucket::new(NOW + 30, 0, 0);
        (&bucket).take_off(10);
        assert_eq!(bucket.arrival.get(), NOW + 20);
    }

    #[test]
    fn prepaid_packets_are_charged_even_if_another_cpu_is_faster() {
        let price = Price { cost: 40, ..PRICE };
        let empty = ContendedBucket::new(NOW - 5, 0, 0);
        charge_ahead(&empty, NOW, price);
        assert_eq!(empty.arrival.get(), NOW + 40);
        // Another CPU charges the empty bucket to 20 units ahead of the clock.
        let raced = ContendedBucket::new(NOW - 5, u32::MAX, 25);
        charge_ahead(&raced, NOW, price);
        assert_eq!(raced.arrival.get(), NOW + 60);
        let used = ContendedBucket::new(NOW + 20, u32::MAX, 0);
        charge_ahead(&used, NOW, price);
        assert_eq!(used.arrival.get(), NOW + 60);
    }

    #[test]
    fn the_bucket_of_all_sources_is_never_written_without_an_exchange() {
        let shared = ContendedBucket::new(0, 1, 10);
        assert!(charge_one(&shared, NOW, PRICE));
        assert_eq!(shared.losses.get(), 0, "an exchange was tried");
    }

    #[test]
    fn room_that_another_cpu_took_is_gone() {
        let (first, second) = (
            ContendedBucket::new(FULL - 10, 1, 10),
            ContendedBucket::new(FULL, 0, 0),
        );
        assert!(!charge_pair([&first, &second], NOW, PRICE));
        assert!(!charge_one(
            &ContendedBucket::new(FULL - 10, 1, 10),
            NOW,
            PRICE
        ));
    }

    #[test]
    fn a_packet_that_loses_every_race_passes_uncharged() {
        let (first, second) = (
            ContendedBucket::new(NOW, u32::MAX, 0),
            ContendedBucket::new(NOW, 0, 0),
        );
        assert!(charge_pair([&first, &second], NOW, PRICE));
        assert_eq!((first.arrival.get(), second.arrival.get()), (NOW, NOW));
        assert!(charge_one(&first, NOW, PRICE));
        assert_eq!(first.arrival.get(), NOW);
        assert_eq!(first.losses.get(), u32::MAX - 2 * ATTEMPTS);
    }
}
