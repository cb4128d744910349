//! Builds, tests and shows guard: `cargo xtask --help`.

mod bench;
mod build;
mod demo;
mod fuzz;
mod lint;
mod old_names;
mod package;
mod pages;
mod public_docs;
mod setup;
mod soak;
mod test;
mod type_names;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};
use lab::interrupt;

/// The exit code that a shell reports for a process that SIGINT ended (128 + 2).
const INTERRUPTED: u8 = 130;

/// Builds, tests and shows guard. Every command first finds or installs what it needs.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct XtaskArguments {
    #[command(subcommand)]
    command: XtaskCommand,
}

#[derive(Subcommand)]
enum XtaskCommand {
    /// Find or install the toolchain, bpf-linker and the programs of the lab
    Setup,
    /// Print the variables that a shell must export to build with plain `cargo`
    Env,
    /// Build the guard binary
    Build {
        /// Build target/release/guard
        #[arg(long)]
        release: bool,
    },
    /// Check format, type names and lints, of the kernel program too
    Lint,
    /// Run every test, and list the slowest
    Test {
        /// Run only this kind, as docs/testing.md names it, or else tests whose name contains this
        name: Option<String>,
        /// Run only the tests on other kernels, among them Debian's newest
        #[arg(long, conflicts_with = "name")]
        kernels: bool,
    },
    /// Compare the program with the model, on the corpus and then on random packets
    Fuzz {
        /// The duration, in minutes
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// The seed of the random packets, to repeat a run
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Reload, kill, upgrade and try for a quarter of an hour while packets keep coming
    Soak,
    /// Measure the cost of a packet, beside other programs; exit with 1 if a cost is over its limit
    Bench {
        /// Arguments of the bench itself: `cargo xtask bench -- --help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Make a Debian package
    Package(package::Options),
    /// Show the main job end to end, in a lab of its own
    Demo,
}

fn main() -> ExitCode {
    let XtaskArguments { command } = XtaskArguments::parse();
    // On an interrupt, the running command ends in the ordinary way and removes what it made.
    if let Err(error) = ctrlc::set_handler(interrupt::raise) {
        eprintln!("xtask: an interrupt will not clean up: {error}");
    }
    let result = match command {
        XtaskCommand::Setup => setup::for_tests().map(|_toolchain| ()),
        XtaskCommand::Env => setup::toolchain().map(|toolchain| toolchain.print_exports()),
        XtaskCommand::Build { release } => build::run(release),
        XtaskCommand::Lint => lint::run(),
        XtaskCommand::Test { kernels: true, .. } => test::on_kernels(),
        XtaskCommand::Test { name, .. } => test::run(name.as_deref()),
        XtaskCommand::Fuzz { minutes, seed } => fuzz::run(minutes, seed),
        XtaskCommand::Soak => soak::run(),
        XtaskCommand::Bench { arguments } => bench::run(&arguments),
        XtaskCommand::Package(options) => package::run(options),
        XtaskCommand::Demo => demo::run(),
    };
    match result {
        _ if interrupt::is_raised() => {
            eprintln!("xtask: interrupted; the command has removed what it made");
            ExitCode::from(INTERRUPTED)
        }
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
