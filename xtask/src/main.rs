//! Builds, tests and shows guard: `cargo xtask --help`.

mod bench;
mod build;
mod demo;
mod fuzz;
mod lint;
mod old_names;
mod package;
mod pages;
mod setup;
mod soak;
mod test;
mod type_names;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};
use lab::interrupt;

/// What a shell reports of a process that SIGINT ended.
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
    /// Find or install the toolchain, bpf-linker and what the lab needs
    Setup,
    /// Print what a shell must export to build with plain `cargo`
    Env,
    /// Build the guard binary
    Build {
        /// Build target/release/guard
        #[arg(long)]
        release: bool,
    },
    /// Check format, type names and lints, of the kernel program too
    Lint,
    /// Run every test, and say which took longest
    Test {
        /// Run only this kind, as docs/testing.md names it, or else tests whose name contains this
        name: Option<String>,
        /// Run only what is tested on other kernels, the newest that Debian has among them
        #[arg(long, conflicts_with = "name")]
        kernels: bool,
    },
    /// Hold the program against the model, with the corpus and then with ever new packets
    Fuzz {
        /// How long to go on
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// Where to start, to repeat a run
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Reload, kill, upgrade and try for a quarter of an hour while packets keep coming
    Soak,
    /// Measure what a packet costs, beside other programs; exits with 1 if it is more than it may be
    Bench {
        /// What the bench itself takes: `cargo xtask bench -- --help` says it
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
    // Whatever runs gives up in the ordinary way and removes what it made.
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
            eprintln!("xtask: interrupted; what was made is removed");
            ExitCode::from(INTERRUPTED)
        }
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
