//! Adds up the results of all test programs, and lists the slowest tests.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets::NOTHING};

/// The number of slowest tests that are shown.
const SLOWEST: usize = 20;

/// The tests of all programs together.
#[derive(Debug, Default)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    took: Vec<(Duration, String)>,
}

impl Tally {
    /// Reads a line of a test program.
    pub fn add(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.add_result(result);
        } else if let Some((name, took)) = line.strip_prefix("test ").and_then(read_time) {
            self.took.push((took, name.to_owned()));
        }
    }

    /// Reads `ok. 30 passed; 0 failed; …`.
    fn add_result(&mut self, result: &str) {
        let words: Vec<&str> = result.split([' ', ';', '.']).collect();
        for pair in words.windows(2) {
            match (pair[0].parse::<u64>(), pair[1]) {
                (Ok(number), "passed") => self.passed += number,
                (Ok(number), "failed") => self.failed += number,
                _ => {}
            }
        }
    }

    /// Prints the slowest tests, the time of all tests, and the sums.
    pub fn print(&mut self, built: Duration, ran: Duration) {
        let Self {
            passed,
            failed,
            took,
        } = self;
        took.sort_by(|one, other| other.cmp(one));
        let sum: Duration = took.iter().map(|(took, _)| *took).sum();
        let mut table = Table::new();
        table.load_style(NOTHING);
        table.set_header(["SECONDS", "TEST"]);
        if let Some(seconds) = table.column_mut(0) {
            seconds.set_cell_alignment(CellAlignment::Right);
        }
        for (took, name) in took.iter().take(SLOWEST) {
            table.add_row([format!("{:.1}", took.as_secs_f64()), name.clone()]);
        }
        println!("the slowest tests:\n{}", table.trim_fmt());
        println!(
            "built in {} s, tested in {} s; all tests, one after the other: {} s",
            built.as_secs(),
            ran.as_secs(),
            sum.as_secs()
        );
        println!("{passed} passed, {failed} failed");
    }
}

/// Reads `containers::what_is_published - should panic ... ok <1.234s>`.
fn read_time(line: &str) -> Option<(&str, Duration)> {
    let (name, result) = line.rsplit_once(" ... ")?;
    let (_, took) = result.strip_suffix("s>")?.split_once(" <")?;
    let took = Duration::try_from_secs_f64(took.parse().ok()?).ok()?;
    Some((name, took))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tests_of_all_programs_are_added_up_and_timed() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test storm::nothing_gets_through ... ok <61.250s>",
            "test rates::one - should panic ... ok <0.001s>",
            "test rates::two ... FAILED <2.000s>",
            "test kernels::newest ... ignored, only for --kernels",
            "test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 61.25s",
            "test result: ok. 30 passed; 0 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.01s",
        ] {
            tally.add(line);
        }
        assert_eq!((tally.passed, tally.failed), (32, 1));
        let took = |seconds: f64, name: &str| (Duration::from_secs_f64(seconds), name.to_owned());
        assert_eq!(
            tally.took,
            [
                took(61.25, "storm::nothing_gets_through"),
                took(0.001, "rates::one - should panic"),
                took(2.0, "rates::two"),
            ]
        );
    }
}
