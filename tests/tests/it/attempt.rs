//! Tests in which something ends by itself, such as a trial, and other things have to happen before. A machine may be too
//! slow for that: then the whole test is done again with more time.

use std::{
    cell::Cell,
    env,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread,
    time::{Duration, Instant},
};

/// How many times as long everything is given, one attempt after the other.
const FACTORS: [u64; 4] = [1, 4, 16, 64];

/// Where the first attempt begins, for a machine that is known to be slow.
pub const VARIABLE: &str = "GUARD_TEST_TIME_FACTOR";

/// After what has ended at the latest, the clock that it ends by may stand still for a tick.
const TICKS: Duration = Duration::from_millis(200);

/// How much time there is, and until when.
pub struct Attempt {
    factor: u64,
    /// When it ends at the earliest and at the latest.
    period: Cell<Option<[Instant; 2]>>,
}

/// Runs a test until it was fast enough.
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
                eprintln!("the machine is too slow for that: again, with more time");
            }
            Err(panic) => resume_unwind(panic),
        }
    }
}

impl Attempt {
    /// Begins what ends by itself after so many seconds, or more on a slow machine. `begin` gets them as `4s`.
    pub fn begin(&self, seconds: u64, begin: impl FnOnce(&str)) {
        let seconds = seconds * self.factor;
        let before = Instant::now();
        begin(&format!("{seconds}s"));
        let ends = [before, Instant::now()].map(|begun| begun + Duration::from_secs(seconds));
        self.period.set(Some(ends));
    }

    /// Waits until it has ended. What was to be done meanwhile has been done.
    pub fn wait_for_end(&self) {
        let Some([_, latest]) = self.period.get() else {
            panic!("nothing has begun");
        };
        assert!(!self.is_over(), "it has ended meanwhile");
        thread::sleep((latest + TICKS).saturating_duration_since(Instant::now()));
        self.period.set(None);
    }

    /// Whether it may have ended too soon.
    fn is_over(&self) -> bool {
        let period = self.period.get();
        period.is_some_and(|[earliest, _]| Instant::now() >= earliest)
    }
}
