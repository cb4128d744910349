//! `cargo xtask test`: runs every test or one kind, after the setup that they need, and lists their times.

mod tally;

use std::{num::NonZeroUsize, thread, time::Instant};

use anyhow::{Result, ensure};
use cargo_metadata::{MetadataCommand, TargetKind};

use self::tally::Tally;
use crate::{
    build::{cargo, cargo_lines, target_folder, workspace},
    setup::{self, Toolchain},
};

/// Every package that this machine runs. The list is the same for all kinds of tests: with another selection of
/// packages, Cargo would compile dependencies again with other features.
const PACKAGES: [&str; 5] = [
    "--workspace",
    "--exclude",
    "guard-ebpf",
    "--exclude",
    "guard-bench-ebpf",
];

/// The programs that tests run, besides their own.
const PROGRAMS: [&str; 4] = ["--bin", "guard", "--bin", "guard-compose"];

/// The tests that need root, one module for each kind.
const LAB_TESTS: &str = "it";

/// Unit tests, of all packages.
const UNIT: &str = "unit";

/// The test harness prints the time of a test only with unstable options.
const HARNESS: [&str; 2] = [
    "--config",
    "target.'cfg(all())'.runner = ['env', 'RUSTC_BOOTSTRAP=1']",
];
const REPORT_TIME: [&str; 3] = ["-Z", "unstable-options", "--report-time"];

/// The selected tests.
struct Selection {
    /// Cargo's targets.
    targets: Vec<String>,
    /// The arguments of the test harness.
    harness: Vec<String>,
}

pub fn run(name: Option<&str>) -> Result<()> {
    let selection = match name {
        None => Selection::all(),
        Some(name) => Selection::named(name)?,
    };
    selection.run(&setup::for_tests()?)
}

/// Runs the tests that run on each of Debian's kernels.
pub fn on_kernels() -> Result<()> {
    let mut selection = Selection::lab("kernels");
    selection.harness.push("--include-ignored".to_owned());
    selection.run(&setup::for_kernels()?)
}

impl Selection {
    fn all() -> Self {
        Self {
            targets: ["--lib", "--bins", "--tests"].map(str::to_owned).into(),
            harness: Vec::new(),
        }
    }

    /// Selects one kind of tests, or else every test whose name contains `name`.
    fn named(name: &str) -> Result<Self> {
        if name == UNIT {
            let targets = ["--lib", "--bins"].map(str::to_owned).into();
            return Ok(Self {
                targets,
                ..Self::all()
            });
        }
        let modules = workspace().join("tests/tests").join(LAB_TESTS);
        let places = [format!("{name}.rs"), format!("{name}/mod.rs")];
        if places.iter().any(|place| modules.join(place).is_file()) {
            return Ok(Self::lab(name));
        }
        if is_integration_test(name)? {
            return Ok(Self {
                targets: vec!["--test".to_owned(), name.to_owned()],
                ..Self::all()
            });
        }
        Ok(Self {
            harness: vec![name.to_owned()],
            ..Self::all()
        })
    }

    /// One module of the tests that need root.
    fn lab(module: &str) -> Self {
        Self {
            targets: ["--test", LAB_TESTS].map(str::to_owned).into(),
            harness: vec![format!("{module}::")],
        }
    }

    fn run(&self, toolchain: &Toolchain) -> Result<()> {
        let Self { targets, harness } = self;
        let begin = Instant::now();
        cargo(
            toolchain
                .cargo()
                .args(["build", "--locked"])
                .args(PACKAGES)
                .args(PROGRAMS)
                .args(targets),
        )?;
        let built = begin.elapsed();
        let mut tally = Tally::default();
        let mut command = toolchain.cargo();
        command
            .args(HARNESS)
            .args(["test", "--locked", "--no-fail-fast"])
            .args(PACKAGES)
            .args(targets)
            .arg("--")
            .args(REPORT_TIME)
            .arg(format!("--test-threads={}", threads()))
            .args(harness)
            .env("GUARD_BINARY", target_folder().join("debug/guard"));
        let result = cargo_lines(&mut command, |line| {
            println!("{line}");
            tally.add(line);
        });
        // An interrupt ends the tests as well: what they leave behind is removed here.
        lab::sweep::dead_labs()?;
        tally.print(built, begin.elapsed() - built);
        result?;
        ensure!(tally.passed > 0, "no test was run");
        Ok(())
    }
}

/// The number of tests that run at once. Most tests mostly wait: for a trial to end, or for a client without an answer.
fn threads() -> usize {
    const OF_EACH_PROCESSOR: usize = 2;
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    OF_EACH_PROCESSOR * processors
}

/// Whether a package has a file of tests with this name.
fn is_integration_test(name: &str) -> Result<bool> {
    let metadata = MetadataCommand::new()
        .current_dir(workspace())
        .no_deps()
        .other_options(["--locked".to_owned()])
        .exec()?;
    let mut targets = metadata
        .packages
        .iter()
        .flat_map(|package| &package.targets);
    Ok(targets.any(|target| target.is_kind(TargetKind::Test) && target.name == name))
}
