//! The command line: one file per command, each from its arguments to its output.

mod check;
mod counters;
mod explain;
mod replay;
mod run;
mod status;
mod talkers;

use std::{
    fmt,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand, error::ErrorKind};

use crate::{
    api::{self, client::Client},
    host,
    policy::{Clock, Policy, PolicyError},
};

const DEFAULT_POLICY: &str = "/etc/guard/guard.toml";

/// Decides in the network driver what this host shows to the network: published container ports
/// stay closed unless the policy lists them, and every source has its budget.
#[derive(Debug, Parser)]
#[command(name = "guard", version, propagate_version = true)]
pub struct Arguments {
    /// The agent's control socket
    #[arg(long, global = true, value_name = "FILE", env = "GUARD_SOCKET", default_value = api::DEFAULT_SOCKET)]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent in the foreground, until SIGINT or SIGTERM
    Run(run::Run),
    /// Check a policy without applying it
    Check(check::Check),
    /// Say whether the guard is at work, and where
    Status(Output),
    /// Show what became of the packets, by service and reason
    Counters(Output),
    /// Show the sources that send most, and those that are dropped most
    Talkers(talkers::Talkers),
    /// Say whether a source reaches a port, and why
    Explain(explain::Explain),
    /// Run a capture through a policy, in the real kernel program
    Replay(replay::Replay),
}

/// How a command that reads prints.
#[derive(Debug, Args)]
struct Output {
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Reads the command line. Help and the version are printed, and end the process.
    pub fn parse() -> Result<Self, Failure> {
        Self::try_parse().map_err(|error| {
            if !error.use_stderr() || error.kind() == MISSING_COMMAND {
                error.exit();
            }
            // clap says what is wrong in its first paragraph.
            let text = error.to_string();
            let lines = text.lines().take_while(|line| !line.is_empty());
            let what: Vec<&str> = lines.map(str::trim).collect();
            let what = what.join(" ");
            let what = what.strip_prefix("error: ").unwrap_or(&what);
            Failure::Usage(format!("{what}: `guard --help` shows what there is"))
        })
    }

    pub async fn run(self) -> Result<(), Failure> {
        let Self { socket, command } = self;
        match command {
            Command::Run(run) => run.run(&socket).await,
            Command::Check(check) => check.run().await,
            Command::Status(output) => Ok(status::run(&Client::new(&socket)?, &output).await?),
            Command::Talkers(talkers) => Ok(talkers.run(&Client::new(&socket)?).await?),
            Command::Explain(explain) => explain.run(&Client::new(&socket)?).await,
            Command::Replay(replay) => replay.run(),
            Command::Counters(output) => Ok(counters::run(&Client::new(&socket)?, &output).await?),
        }
    }
}

/// `guard` alone, which prints its help.
const MISSING_COMMAND: ErrorKind = ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;

/// Why a command failed. Displays as one line.
#[derive(Debug)]
pub enum Failure {
    /// The command line is wrong.
    Usage(String),
    /// The policy is refused.
    Policy(PolicyError),
    /// Anything else.
    Other(anyhow::Error),
}

impl Failure {
    /// 1: failed; 2: wrong usage or policy.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) | Self::Policy(_) => ExitCode::from(2),
            Self::Other(_) => ExitCode::from(1),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Usage(error) => error.clone(),
            Self::Policy(error) => error.to_string(),
            Self::Other(error) => format!("{error:#}"),
        };
        // One line, whatever a library wrote.
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        formatter.write_str(&without_controls(&lines.join(" ")))
    }
}

/// What a policy says does not move the terminal's cursor.
fn without_controls(text: &str) -> String {
    let harmless = |c: char| {
        if c.is_control() && c != '\n' {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    text.chars().map(harmless).collect()
}

impl From<PolicyError> for Failure {
    fn from(error: PolicyError) -> Self {
        Self::Policy(error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// Reads a policy and checks it against this host's clock.
fn read_policy(path: &std::path::Path) -> Result<Policy, Failure> {
    let tick_ns = host::tick_ns().map_err(anyhow::Error::from)?;
    Ok(Policy::read(path, Clock { tick_ns })?)
}

/// Prints a command's whole output. A reader that stops reading, such as `head`, is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout().lock(), "{}", without_controls(text.trim_end())) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// Says what is to be looked at again, beside a command's output.
fn print_warning(text: &str) {
    let text = without_controls(&text.replace('\n', " "));
    // Whoever closed standard error does not want to know.
    let _result = writeln!(io::stderr().lock(), "warning: {text}");
}

fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}
