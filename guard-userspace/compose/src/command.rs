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

The text lists the gravest findings first. JSON and SARIF have all findings, in the order of the files.

Exit status: 0: no finding at or above --level; 1: at least one; 2: wrong usage, or a file that is refused.")]
pub struct Compose {
    /// The compose files of one project; - is standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Exit with 1 if a finding has this severity or a higher one
    #[arg(long, value_enum, default_value_t = Severity::Medium)]
    level: Severity,
    /// List low findings as well, which are only counted otherwise
    #[arg(long)]
    all: bool,
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
            all,
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
            // A finding that decides the exit status is always listed.
            print(&described(&findings, all || level == Severity::Low)?)?;
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

/// The counts, then the findings, the gravest first. Findings of the same severity keep the order of the files.
fn described(findings: &[Printed], has_low: bool) -> Result<String, fmt::Error> {
    let of = |severity: Severity| {
        let findings = findings.iter();
        findings.filter(move |finding| finding.severity == severity)
    };
    let counts = Severity::ALL.map(|severity| (of(severity).count(), severity.name()));
    let counts = counts.into_iter().filter(|(count, _)| *count > 0);
    let counts: Vec<String> = counts
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    if counts.is_empty() {
        return Ok("nothing found".to_owned());
    }
    let mut blocks = vec![format!("found: {}", counts.join(", "))];
    let is_listed = |severity: &Severity| has_low || *severity != Severity::Low;
    for finding in Severity::ALL.into_iter().filter(is_listed).flat_map(of) {
        blocks.push(describe(finding)?);
    }
    match of(Severity::Low).count() {
        0 => {}
        _ if has_low => {}
        1 => blocks.push("1 low finding is not shown: `--all` lists it".to_owned()),
        count => blocks.push(format!(
            "{count} low findings are not shown: `--all` lists them"
        )),
    }
    Ok(blocks.join("\n\n"))
}

fn describe(finding: &Printed) -> Result<String, fmt::Error> {
    let Printed {
        rule,
        severity,
        file,
        line,
        column,
        services,
        profiles,
        why,
        advice,
        fix,
        accept,
    } = finding;
    let services = services.join(", ");
    let severity = severity.name();
    let profiles = match profiles.as_slice() {
        [] => String::new(),
        profiles => format!(" (profile {})", profiles.join(" or ")),
    };
    let mut text =
        format!("{file}:{line}:{column}: {severity}: {rule}: {services}{profiles}\n    {why}");
    if let Some(advice) = advice {
        write!(text, "\n    {advice}")?;
    }
    if let Some(fix) = fix {
        write!(text, "\n    write in {}:", lines(file, fix))?;
        for line in fix.corrected.lines() {
            write!(text, "\n        {}", line.trim_end())?;
        }
    }
    if let Some(line) = accept {
        write!(text, "\n    meant for everybody? {line}")?;
    }
    Ok(text)
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
