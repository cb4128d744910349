//! `cargo xtask test`: every test, after the set-up that they need.

use anyhow::{Result, ensure};

use crate::{
    build::{self, cargo_lines},
    setup::{self, Toolchain},
};

/// The bench is no default member.
const BENCH: [&str; 2] = ["--package", "guard-bench"];

pub fn run(filter: Option<&str>) -> Result<()> {
    let toolchain = setup::for_tests()?;
    match filter {
        None => run_all(&toolchain, &[&[], &BENCH]),
        Some(filter) => run_all(&toolchain, &[&[filter]]),
    }
}

/// What is tested on each of Debian's kernels.
pub fn on_kernels() -> Result<()> {
    run_all(
        &setup::for_kernels()?,
        &[&["kernels::", "--", "--include-ignored"]],
    )
}

/// Runs `cargo test` with each of these arguments; the first failure is the result.
fn run_all(toolchain: &Toolchain, runs: &[&[&str]]) -> Result<()> {
    let binary = build::guard(toolchain, false)?;
    let mut sum = Sum::default();
    let mut result = Ok(());
    for arguments in runs {
        if lab::interrupt::is_raised() {
            break;
        }
        let mut command = toolchain.cargo();
        command
            .args(["test", "--locked", "--no-fail-fast"])
            .args(*arguments)
            .env("GUARD_BINARY", &binary);
        let run = cargo_lines(&mut command, |line| {
            println!("{line}");
            sum.add(line);
        });
        result = result.and(run);
    }
    // An interrupt ends the tests, too; what they leave is removed here.
    lab::sweep::dead_labs()?;
    let Sum { passed, failed } = sum;
    println!("{passed} passed, {failed} failed");
    result?;
    ensure!(passed > 0, "no test was run");
    Ok(())
}

/// The tests of all binaries together.
#[derive(Default)]
struct Sum {
    passed: u64,
    failed: u64,
}

impl Sum {
    /// Reads `test result: ok. 30 passed; 0 failed; …`.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        let words: Vec<&str> = result.split([' ', ';', '.']).collect();
        for pair in words.windows(2) {
            match (pair[0].parse::<u64>(), pair[1]) {
                (Ok(number), "passed") => self.passed += number,
                (Ok(number), "failed") => self.failed += number,
                _ => {}
            }
        }
    }
}
