//! `guard audit compose`, and `guard-compose`, the same command as a program of its own.

use std::{
    fmt::{self, Write as _},
    path::PathBuf,
};

use clap::{Args, Command};
use guard_text::{print, print_json, print_warning};
use serde::Serialize;

use super::{
    ComposeError, ComposeRequest, ComposeWarning, Edit, Printed, ProjectPort, Severity, audit,
    sarif,
};

/// The arguments of the audit of compose files.
#[derive(Debug, Args)]
#[command(after_help = "\
Several files are one project, later files on top of earlier ones, as with `docker compose -f A -f B`. \
Variables come from the environment first, then from .env beside the first file.

Exit status: 0: no finding at or above --level; 1: at least one; 2: wrong usage, or a file that is refused.")]
pub struct Compose {
    /// The compose files of one project; - is standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Exit with 1 if a finding has this severity or a higher one
    #[arg(long, value_enum, default_value_t = Severity::Medium)]
    level: Severity,
    /// Check the services of this profile, and those without a profile; without it, all. May be repeated
    #[arg(long = "profile", value_name = "NAME")]
    profiles: Vec<String>,
    /// Read variables from this file instead of .env and COMPOSE_ENV_FILES. May be repeated
    #[arg(long = "env-file", value_name = "FILE")]
    env_files: Vec<PathBuf>,
    /// Print JSON, for scripts
    #[arg(long, conflicts_with = "sarif")]
    json: bool,
    /// Print SARIF 2.1.0, for code hosts
    #[arg(long)]
    sarif: bool,
}

/// What `guard audit compose --json` prints.
#[derive(Serialize)]
struct ComposeAudit<'a> {
    findings: &'a [Printed],
    warnings: &'a [ComposeWarning],
    ports: &'a [ProjectPort],
}

impl Compose {
    /// Audits the project and prints the findings.
    ///
    /// # Errors
    /// A finding at or above `--level`, wrong usage, or a file that is refused.
    pub fn run(self) -> Result<(), AuditFailure> {
        let Self {
            files,
            level,
            profiles,
            env_files,
            json,
            sarif: as_sarif,
        } = self;
        let report = audit(&ComposeRequest {
            files,
            profiles,
            env_files: (!env_files.is_empty()).then_some(env_files),
            environment: environment(),
        })?;
        let findings = report.printed();
        let warnings = &report.warnings;
        if as_sarif {
            print_json(&sarif(&findings, warnings))?;
        } else if json {
            print_json(&ComposeAudit {
                findings: &findings,
                warnings,
                ports: &report.ports,
            })?;
        } else {
            for ComposeWarning {
                file,
                line,
                problem,
            } in warnings
            {
                print_warning(&format!("{file}:{line}: {problem}"));
            }
            print(&described(&findings)?)?;
        }
        let grave = findings.iter().filter(|finding| finding.severity >= level);
        match grave.count() {
            0 => Ok(()),
            1 => Err(AuditFailure::Found(format!(
                "1 finding has the severity {} or higher",
                level.name()
            ))),
            count => Err(AuditFailure::Found(format!(
                "{count} findings have the severity {} or higher",
                level.name()
            ))),
        }
    }
}

/// The variables of the process. Those that are not UTF-8 are left out: no compose file can name them.
fn environment() -> std::collections::HashMap<String, String> {
    let variables = std::env::vars_os();
    variables
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn described(findings: &[Printed]) -> Result<String, fmt::Error> {
    let mut text = String::new();
    for finding in findings {
        describe(&mut text, finding)?;
    }
    let counts = Severity::ALL.map(|severity| {
        let same = findings
            .iter()
            .filter(|finding| finding.severity == severity);
        (same.count(), severity.name())
    });
    let counts = counts.into_iter().filter(|(count, _)| *count > 0);
    let counts: Vec<String> = counts
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    match counts.as_slice() {
        [] => text.push_str("nothing found"),
        counts => write!(text, "found: {}", counts.join(", "))?,
    }
    Ok(text)
}

fn describe(text: &mut String, finding: &Printed) -> fmt::Result {
    let Printed {
        rule,
        severity,
        file,
        line,
        column,
        services,
        profiles,
        why,
        fix,
    } = finding;
    let services = services.join(", ");
    let severity = severity.name();
    let profiles = match profiles.as_slice() {
        [] => String::new(),
        profiles => format!(" (profile {})", profiles.join(" or ")),
    };
    writeln!(
        text,
        "{file}:{line}:{column}: {severity}: {rule}: {services}{profiles}"
    )?;
    writeln!(text, "    {why}")?;
    match fix {
        None => {}
        Some(fix) if fix.corrected.is_empty() => {
            writeln!(text, "    remove {}", lines(file, fix))?;
        }
        Some(fix) => {
            writeln!(text, "    write in {}:", lines(file, fix))?;
            for line in fix.corrected.lines() {
                writeln!(text, "        {}", line.trim_end())?;
            }
        }
    }
    writeln!(text)
}

fn lines(file: &str, fix: &Edit) -> String {
    let (first, last) = (fix.line, fix.last_line());
    let lines = match first == last {
        true => format!("line {first}"),
        false => format!("lines {first}-{last}"),
    };
    match fix.file == file {
        true => lines,
        false => format!("{}, {lines}", fix.file),
    }
}

/// Why the command fails.
#[derive(Debug, thiserror::Error)]
pub enum AuditFailure {
    /// A file is refused.
    #[error(transparent)]
    Refused(#[from] ComposeError),
    #[error("{0}")]
    Found(String),
    /// The findings cannot be printed.
    #[error("{0:#}")]
    Output(#[from] anyhow::Error),
}

impl From<fmt::Error> for AuditFailure {
    fn from(error: fmt::Error) -> Self {
        Self::Output(error.into())
    }
}

/// The command line of `guard-compose`.
pub fn command() -> Command {
    let command = Command::new("guard-compose").version(env!("CARGO_PKG_VERSION"));
    Compose::augment_args(command)
        .about("Find in compose files what they would expose, and what to write instead")
}

/// The first paragraph of clap's error message, in one line.
pub fn wrong_usage(error: &clap::Error, program: &str) -> String {
    let text = error.to_string();
    let lines = text.lines().take_while(|line| !line.is_empty());
    let what: Vec<&str> = lines.map(str::trim).collect();
    let what = what.join(" ");
    let what = what.strip_prefix("error: ").unwrap_or(&what);
    format!("{what}: `{program} --help` shows the usage")
}
