//! The generic cell rate algorithm: a token bucket stored as one number, the theoretical arrival time (TAT) of the next
//! packet that would conform (ITU-T I.371, annex A, "virtual scheduling").
//!
//! Time is in units of 1/64 ns since the kernel's boot. That keeps the rounding error of a 64-byte packet below half a
//! per cent up to 20 GB/s, and 64 bits last nine years.

/// Units of time in one nanosecond.
pub const UNITS_PER_NANOSECOND: u64 = 64;

/// The longest burst a budget may have, in units (about 208 days): far from where sums overflow.
pub const MAX_BURST: u64 = 1 << 60;

/// Fractional bits in the cost of a byte: at 100 GB/s a byte costs less than one unit.
pub const BYTE_COST_SHIFT: u32 = 10;

/// The highest cost of a byte, in 1/1024 unit: a rate of less than one byte a second. With it, the cost of any frame
/// (under 128 KiB) fits 64 bits.
pub const MAX_BYTE_COST: u64 = 1 << 46;

/// A rate and a burst, in units of time. A packet moves its bucket `cost` into the future, and a bucket may be `burst`
/// ahead of the clock: `burst / cost` packets at once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcraBudget {
    /// The cost of one packet or connection, in units, or of one byte, in 1/1024 unit. 0: no limit.
    pub cost: u64,
    pub burst: u64,
}

impl GcraBudget {
    /// No limit: nothing is charged.
    pub const UNLIMITED: Self = Self { cost: 0, burst: 0 };

    /// Whether there is a limit.
    #[inline(always)]
    pub const fn is_limited(self) -> bool {
        self.cost != 0
    }

    /// The price of one packet or connection.
    #[inline(always)]
    pub const fn price(self) -> Price {
        let Self { cost, burst } = self;
        Price { cost, burst }
    }

    /// The price of a frame of this many bytes, if this is a budget of bytes.
    #[inline(always)]
    pub const fn price_of_bytes(self, length: u64) -> Price {
        Price {
            cost: self.cost.wrapping_mul(length) >> BYTE_COST_SHIFT,
            burst: self.burst,
        }
    }
}

/// Budgets of packets, bytes and connections.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcraBudgets {
    pub packets: GcraBudget,
    pub bytes: GcraBudget,
    pub connections: GcraBudget,
}

/// The cost of a packet at a budget, and how far ahead of the clock its bucket may be, in units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    pub cost: u64,
    pub burst: u64,
}

/// The result of charging a packet to a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The bucket had room.
    pub fits: bool,
    /// The bucket's new value: exactly full if it had no room.
    pub arrival: u64,
}

/// Charges one packet to the bucket `arrival` at the time `now`.
///
/// A bucket in the past is empty. A bucket further ahead than its burst comes from a clock that went back or a budget
/// that shrank: it has no room, and is reset to exactly full, so that it refills from now.
#[inline(always)]
pub const fn charge(arrival: u64, now: u64, price: Price) -> Charge {
    let full = now + price.burst;
    let start = if arrival < now { now } else { arrival };
    let charged = start + price.cost;
    let fits = charged <= full;
    Charge {
        fits,
        arrival: if fits { charged } else { full },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000 * UNITS_PER_NANOSECOND;

    /// How many of `offered` packets, evenly spread over `seconds`, pass a budget of `rate` a second.
    fn passed(rate: u64, burst: u64, offered: u64, seconds: u64, tick: u64) -> u64 {
        let cost = SECOND / rate;
        let budget = Price {
            cost,
            burst: cost * burst,
        };
        let mut arrival = 0;
        let mut passed = 0;
        for n in 0..offered {
            let exact = SECOND + n * (SECOND / 1000) * seconds / offered * 1000;
            let now = exact / tick * tick;
            let charge = charge(arrival, now, budget);
            if charge.fits {
                arrival = charge.arrival;
                passed += 1;
            }
        }
        passed
    }

    #[test]
    fn the_rate_times_the_time_plus_the_burst_passes() {
        let tick = 4_000_000 * UNITS_PER_NANOSECOND;
        for percent in [50, 90, 105, 143, 210, 5_000] {
            let (rate, burst, seconds) = (2_000, 2_000, 60);
            let offered = rate * seconds * percent / 100;
            let expected = offered.min(rate * seconds + burst);
            let passed = passed(rate, burst, offered, seconds, tick);
            let error = passed.abs_diff(expected) as f64 / expected as f64;
            assert!(
                error < 0.01,
                "{percent} %: {passed} passed, {expected} expected"
            );
            if percent < 100 {
                assert_eq!(passed, offered);
            }
        }
    }

    #[test]
    fn a_burst_of_three_is_three_packets() {
        let budget = Price {
            cost: 100,
            burst: 300,
        };
        let mut arrival = 0;
        let fits: Vec<bool> = (0..5)
            .map(|_| {
                let charge = charge(arrival, 1_000, budget);
                arrival = charge.arrival;
                charge.fits
            })
            .collect();
        assert_eq!(fits, [true, true, true, false, false]);
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_frees_no_second_burst() {
        let budget = Price {
            cost: 100,
            burst: 300,
        };
        let mut arrival = 0;
        for now in [10_000, 10_000, 10_000] {
            let charge = charge(arrival, now, budget);
            assert!(charge.fits);
            arrival = charge.arrival;
        }
        assert!(!charge(arrival, 10_000, budget).fits);
        assert!(!charge(arrival, 5_000, budget).fits);
        // The bucket does not stay full until the clock has caught up: it refills from the new time.
        let arrival = charge(arrival, 5_000, budget).arrival;
        assert!(charge(arrival, 5_100, budget).fits);
    }

    #[test]
    fn the_longest_burst_does_not_overflow() {
        let budget = Price {
            cost: MAX_BURST,
            burst: MAX_BURST,
        };
        assert!(charge(0, 1 << 62, budget).fits);
    }
}
