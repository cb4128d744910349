//! The `guard-compose` command: only `guard audit compose`, which needs no kernel program.

use std::{ffi::OsString, process::ExitCode};

use clap::FromArgMatches as _;
use guard_compose::{
    command::{AuditFailure, Compose, command},
    usage::WrongUsage,
};
use guard_text::one_line;

fn main() -> ExitCode {
    let matches = command().try_get_matches();
    let arguments = matches.and_then(|matches| Compose::from_arg_matches(&matches));
    let (text, code) = match arguments {
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => (wrong_usage(&error), 2),
        Ok(arguments) => match arguments.run() {
            Ok(()) => return ExitCode::SUCCESS,
            Err(failure) => (failure.to_string(), exit_code(&failure)),
        },
    };
    eprintln!("guard-compose: {}", one_line(&text));
    ExitCode::from(code)
}

/// The exit code of `guard audit compose` for the same failure.
fn exit_code(failure: &AuditFailure) -> u8 {
    match failure {
        AuditFailure::Refused(_) => 2,
        AuditFailure::Found(_) | AuditFailure::Output(_) => 1,
    }
}

fn wrong_usage(error: &clap::Error) -> String {
    let typed: Vec<OsString> = std::env::args_os().skip(1).collect();
    let usage = WrongUsage {
        root: command(),
        typed: &typed,
        synonyms: &[],
        values: &[],
        advice: &[],
    };
    usage.describe(error)
}
