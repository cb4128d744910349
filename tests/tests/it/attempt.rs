//! Tests with a timed period, such as a trial, that must do something before it ends. If the machine is too slow for
//! that, the whole test is repeated with a longer period.

use std::{
    cell::Cell,
    env,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread,
    time::{Duration, Instant},
};

/// The factors on the period, one for each attempt.
const FACTORS: [u64; 4] = [1, 4, 16, 64];

/// The variable with a further factor on all periods, for slow machines.
pub const VARIABLE: &str = "GUARD_TEST_TIME_FACTOR";

/// Extra time after the latest end: the kernel's coarse clock is behind by up to a tick.
const TICKS: Duration = Duration::from_millis(200);

/// One attempt: the factor on its period, and the period's end.
pub struct Attempt {
    factor: u64,
    /// The earliest and the latest end of the period.
    period: Cell<Option<[Instant; 2]>>,
}

/// Runs a test, and repeats a failed one with a longer period if its period may have ended too early.
pub fn with_enough_time(test: impl Fn(&Attempt)) {
    let first = env::var(VARIABLE).ok().and_then(|first| first.parse().ok());
    let factors = FACTORS.map(|factor| factor * first.unwrap_or(1));
    for factor in factors {
        let attempt = Attempt {
            factor,
            period: Cell::new(None),
        };
        match catch_unwind(AssertUnwindSafe(|| test(&attempt))) {
            Ok(()) => return,
            Err(_) if attempt.is_over() && factor != factors[FACTORS.len() - 1] => {
                eprintln!("the machine is too slow: the test is repeated with a longer period");
            }
            Err(panic) => resume_unwind(panic),
        }
    }
}

impl Attempt {
    /// Begins a period of `seconds` times the factor. `begin` gets its length as `4s`.
    pub fn begin(&self, seconds: u64, begin: impl FnOnce(&str)) {
        let seconds = seconds * self.factor;
        let before = Instant::now();
        begin(&format!("{seconds}s"));
        let ends = [before, Instant::now()].map(|begun| begun + Duration::from_secs(seconds));
        self.period.set(Some(ends));
    }

    /// Waits until the period has ended. The caller has done everything that it had to do within it.
    pub fn wait_for_end(&self) {
        let Some([_, latest]) = self.period.get() else {
            panic!("no period has begun");
        };
        assert!(!self.is_over(), "the period has ended too early");
        thread::sleep((latest + TICKS).saturating_duration_since(Instant::now()));
        self.period.set(None);
    }

    /// Whether the period may have ended already.
    fn is_over(&self) -> bool {
        let period = self.period.get();
        period.is_some_and(|[earliest, _]| Instant::now() >= earliest)
    }
}
