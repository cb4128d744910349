//! Selects the rounds that count. On a shared machine another guest sometimes runs on the other thread of our core:
//! then code that fills the core takes much longer, and code that waits a little longer. The time of the empty program
//! beside each measurement shows such rounds, independent of the measured program.

/// The empty program is disturbed if it takes this many times its undisturbed time.
const DISTURBED: f64 = 1.1;

/// The same factor for the measurement of the memory: it is larger, because the free share of the common caches varies.
const MEMORY_DISTURBED: f64 = 1.5;

/// One of this many measurements may be faster than the real undisturbed time, but at least one of all.
const LUCKY_ONE_IN: usize = 100;

/// One in this many of the requested rounds is enough, if no more are quiet.
const ENOUGH: usize = 7;

/// One measurement, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    pub net: f64,
    /// The time of the empty program: the slower of the runs before and after the measurement.
    pub empty: f64,
    /// Whether the measurement of the memory was undisturbed before and after it; true if the packets do not vary.
    pub is_memory_quiet: bool,
}

/// Whether this time of the empty program is disturbed.
pub fn is_disturbed(empty: f64, undisturbed: f64) -> bool {
    empty > undisturbed * DISTURBED
}

/// Whether this cost of the memory is disturbed.
pub fn is_memory_disturbed(net: f64, undisturbed: f64) -> bool {
    net > undisturbed * MEMORY_DISTURBED
}

/// The undisturbed time of an empty program, from its measurements.
pub fn undisturbed(empty: impl IntoIterator<Item = f64>) -> f64 {
    let mut times: Vec<f64> = empty.into_iter().collect();
    times.sort_by(f64::total_cmp);
    let place = (times.len() / LUCKY_ONE_IN).max(1);
    times
        .get(place)
        .or(times.last())
        .copied()
        .unwrap_or(f64::MAX)
}

/// The samples that were not disturbed.
pub fn quiet(samples: &[Sample], undisturbed: f64) -> Vec<Sample> {
    let samples = samples.iter();
    samples
        .filter(|sample| !is_disturbed(sample.empty, undisturbed) && sample.is_memory_quiet)
        .copied()
        .collect()
}

/// The undisturbed samples of a row, at most `rounds`. `None` if there are too few.
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
        // The cost of the measured program does not matter.
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
