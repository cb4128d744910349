//! Which rounds count. On a shared machine another guest now and then has the other thread of our core: what
//! fills the core then takes much longer, and what waits a little. The empty program beside each measurement
//! tells those rounds apart, whatever the measured program does.

/// So much slower than it can be, and the empty program is disturbed.
const DISTURBED: f64 = 1.1;

/// The same of what waits for memory: what others leave of the caches that all share is never twice the same.
const MEMORY_DISTURBED: f64 = 1.5;

/// Of so many measurements one may be faster than the empty program really is, and one of all.
const LUCKY: usize = 100;

/// This part of the rounds that are asked for is enough, if no more are quiet.
const ENOUGH: usize = 7;

/// One measurement, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    pub net: f64,
    /// Of the empty program beside it, before or behind it: the slower of both.
    pub empty: f64,
    /// What does nothing but wait for memory took no longer than it must, before and behind it; true where packets
    /// do not vary.
    pub is_memory_quiet: bool,
}

/// Whether something keeps the empty program from running as it does undisturbed.
pub fn is_disturbed(empty: f64, undisturbed: f64) -> bool {
    empty > undisturbed * DISTURBED
}

/// The same of what waits for memory.
pub fn is_memory_disturbed(net: f64, undisturbed: f64) -> bool {
    net > undisturbed * MEMORY_DISTURBED
}

/// What one empty program takes where nothing disturbs it.
pub fn undisturbed(empty: impl IntoIterator<Item = f64>) -> f64 {
    let mut times: Vec<f64> = empty.into_iter().collect();
    times.sort_by(f64::total_cmp);
    let place = (times.len() / LUCKY).max(1);
    times
        .get(place)
        .or(times.last())
        .copied()
        .unwrap_or(f64::MAX)
}

/// Those that were not disturbed.
pub fn quiet(samples: &[Sample], undisturbed: f64) -> Vec<Sample> {
    let samples = samples.iter();
    samples
        .filter(|sample| !is_disturbed(sample.empty, undisturbed) && sample.is_memory_quiet)
        .copied()
        .collect()
}

/// What counts of a row's samples, at most so many: those that were not disturbed. `None`: there are hardly any.
pub fn counting(samples: &[Sample], undisturbed: f64, rounds: usize) -> Option<Vec<Sample>> {
    let mut counting = quiet(samples, undisturbed);
    let is_enough = counting.len() >= rounds.div_ceil(ENOUGH);
    counting.truncate(rounds);
    is_enough.then_some(counting)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(net: f64, empty: f64) -> Sample {
        Sample {
            net,
            empty,
            is_memory_quiet: true,
        }
    }

    #[test]
    fn a_round_counts_if_the_empty_program_beside_it_was_not_slowed_down() {
        let samples = [
            sample(7.0, 31.0),
            sample(12.0, 36.0),
            sample(40.0, 31.5),
            sample(12.0, 37.0),
        ];
        let floor = undisturbed(samples.iter().map(|sample| sample.empty));
        let counted = counting(&samples, floor, 3).unwrap();
        // What the measured program takes decides nothing.
        assert_eq!(counted, [sample(7.0, 31.0), sample(40.0, 31.5)]);
    }

    #[test]
    fn a_round_in_which_others_fill_the_caches_does_not_count() {
        let mut noisy = sample(90.0, 31.0);
        noisy.is_memory_quiet = false;
        assert_eq!(
            quiet(&[noisy, sample(40.0, 31.0)], 31.0),
            [sample(40.0, 31.0)]
        );
        assert!(is_memory_disturbed(40.0, 20.0) && !is_memory_disturbed(25.0, 20.0));
    }

    #[test]
    fn hardly_any_quiet_round_is_told_from_enough() {
        let samples = [sample(12.0, 40.0), sample(7.0, 31.0), sample(13.0, 40.0)];
        assert_eq!(counting(&samples, 31.0, 21), None);
        assert_eq!(counting(&samples, 31.0, 7).unwrap(), [samples[1]]);
    }

    #[test]
    fn one_lucky_moment_makes_no_floor() {
        let mut times = vec![31.5; 20];
        times.push(29.0);
        assert_eq!(undisturbed(times), 31.5);
    }
}
