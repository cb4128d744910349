//! Which rounds count. On a shared machine another guest now and then has the other thread of our core: what
//! fills the core then takes much longer, and what waits a little. The empty program beside each measurement
//! tells those rounds apart, whatever the measured program does.

use std::collections::BTreeMap;

/// So much slower than it can be, and the empty program is disturbed.
const DISTURBED: f64 = 1.06;

/// Of so many rounds one may be faster than the empty program really is.
const LUCKY: usize = 10;

/// This part of the rounds that are asked for is enough, if no more are quiet.
const ENOUGH: usize = 7;

/// How often each row is begun at most, for each round that is asked for.
pub const PATIENCE: u32 = 10;

/// One measurement, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    pub net: f64,
    /// Of the empty program beside it, before or after it: the slower of both.
    pub empty: f64,
}

/// Whether something keeps the empty program from running as it does undisturbed.
pub fn is_disturbed(empty: f64, undisturbed: f64) -> bool {
    empty > undisturbed * DISTURBED
}

/// What one empty program takes where nothing disturbs it.
pub fn undisturbed(empty: impl IntoIterator<Item = f64>) -> f64 {
    let mut times: Vec<f64> = empty.into_iter().collect();
    times.sort_by(f64::total_cmp);
    times.get(times.len() / LUCKY).copied().unwrap_or(f64::MAX)
}

/// Those that were not disturbed.
pub fn quiet(samples: &[Sample], undisturbed: f64) -> Vec<Sample> {
    let samples = samples.iter();
    samples
        .filter(|sample| !is_disturbed(sample.empty, undisturbed))
        .copied()
        .collect()
}

/// What counts of each row's samples, at most so many: those that were not disturbed. A row with hardly any of
/// them has all count: then there is no better. Rows with the same key stand beside the same empty program.
pub fn counting<K: Ord + Copy>(rows: &mut [(K, Vec<Sample>)], rounds: usize) {
    let floors = floors(rows.iter().map(|(key, samples)| (*key, samples.as_slice())));
    for (key, samples) in rows {
        let floor = floors.get(key).copied().unwrap_or(f64::MAX);
        let quiet = quiet(samples, floor);
        if quiet.len() >= rounds.div_ceil(ENOUGH) {
            *samples = quiet;
        }
        samples.truncate(rounds);
    }
}

/// [`undisturbed`] of each key.
pub fn floors<'a, K: Ord>(rows: impl Iterator<Item = (K, &'a [Sample])>) -> BTreeMap<K, f64> {
    let mut empties: BTreeMap<K, Vec<f64>> = BTreeMap::new();
    for (key, samples) in rows {
        let times = samples.iter().map(|sample| sample.empty);
        empties.entry(key).or_default().extend(times);
    }
    let floors = empties.into_iter();
    floors
        .map(|(key, times)| (key, undisturbed(times)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(net: f64, empty: f64) -> Sample {
        Sample { net, empty }
    }

    #[test]
    fn a_round_counts_if_the_empty_program_beside_it_was_not_slowed_down() {
        let samples = [
            sample(7.0, 31.0),
            sample(12.0, 36.0),
            sample(40.0, 31.5),
            sample(12.0, 37.0),
        ];
        let mut rows = [((), samples.to_vec())];
        counting(&mut rows, 3);
        let [((), counted)] = rows;
        // What the measured program takes decides nothing.
        assert_eq!(counted, [sample(7.0, 31.0), sample(40.0, 31.5)]);
    }

    #[test]
    fn with_hardly_any_quiet_round_all_count() {
        let mut samples = vec![sample(12.0, 40.0); 9];
        samples.push(sample(7.0, 31.0));
        let mut rows = [(0, samples), (0, vec![sample(7.0, 31.0); 8])];
        counting(&mut rows, 8);
        assert_eq!(rows[0].1.len(), 8);
        assert_eq!(rows[0].1[0], sample(12.0, 40.0));
    }
}
