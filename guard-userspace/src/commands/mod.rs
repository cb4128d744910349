//! The command line. Each command has a file with its arguments, its work and its output.

mod audit;
mod capture;
mod check;
mod colour;
mod completions;
mod counters;
mod detach;
mod diff;
mod doctor;
mod entries;
mod explain;
mod figures;
mod init;
mod man;
mod meter;
mod mode;
mod moments;
mod reading;
mod reload;
mod replay;
mod run;
mod status;
mod talkers;
mod top;
mod trial;
mod watch;

use std::{
    fmt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand, error::ErrorKind};
use guard_compose::command::{self as compose, wrong_usage};
use guard_text::{print, print_json, print_warning, without_controls, write};
use nix::unistd::{Uid, User};

use crate::{
    agent::ChangeError,
    api::{
        self,
        actor::OneLine,
        client::{Client, ClientError},
    },
    audit::host::FindPolicyError,
    dataplane::pins,
    host,
    policy::{Action, AllowedFile, KernelTick, Policy, PolicyError, read_file},
    state_store,
};

const DEFAULT_POLICY: &str = "/etc/guard/guard.toml";

/// Decides in the network driver which packets reach this host: published container ports stay closed
/// unless the policy lists them, and every source has its budget.
#[derive(Debug, Parser)]
#[command(name = "guard", version, propagate_version = true)]
pub struct Arguments {
    #[command(flatten)]
    location: AgentLocation,
    /// Colours for states and verdicts: on a terminal, always or never
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t)]
    color: colour::ColourChoice,
    #[command(subcommand)]
    command: Command,
}

/// The paths of the agent's socket, its pins and its state.
#[derive(Debug, Args)]
struct AgentLocation {
    /// The agent's control socket
    #[arg(long, global = true, value_name = "FILE", env = "GUARD_SOCKET", default_value = api::DEFAULT_SOCKET)]
    socket: PathBuf,
    /// The folder in which programs and tables are pinned, on a BPF file system
    #[arg(long, global = true, value_name = "FOLDER", env = "GUARD_PINS", default_value = pins::DEFAULT_ROOT)]
    pins: PathBuf,
    /// The folder of the agent's state file
    #[arg(long, global = true, value_name = "FOLDER", env = "GUARD_STATE", default_value = state_store::DEFAULT_FOLDER)]
    state: PathBuf,
}

impl AgentLocation {
    fn client(&self) -> Result<Client, ClientError> {
        Client::new(&self.socket)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent in the foreground, until SIGINT or SIGTERM
    Run(run::RunCommand),
    /// Write a first policy for the services found on this host
    Init(init::Init),
    /// Check a policy without applying it
    Check(check::Check),
    /// Show whether the guard is attached and enforcing, and on which interfaces
    Status(status::ShowStatus),
    /// Show how many packets passed and were dropped, by service and reason
    Counters(watch::Watched),
    /// Watch traffic, drops and sources on a screen, and act on them
    Top(top::Top),
    /// Show the sources that send most, and those that are dropped most
    Talkers(talkers::Talkers),
    /// Show packets with the reasons of their verdicts, or write them for Wireshark
    Capture(capture::CaptureCommand),
    /// Explain whether a source reaches a port, and why
    Explain(explain::Explain),
    /// Run a recorded capture through a policy, in the real kernel program
    Replay(replay::ReplayCommand),
    /// List the ports of this host that can be reached, what the policy does with them, and what to change
    Audit(audit::Audit),
    /// Allow a source for a while: it is not denied, not limited, and admitted by services with `from`
    Allow(entries::Enter),
    /// Drop a source's packets for a while
    Deny(entries::Enter),
    /// List the temporary allow and deny entries
    List(Output),
    /// End an entry before it expires
    Revoke(entries::Revoke),
    /// Change the mode of the host or of a service, at once
    Mode(mode::ChangeMode),
    /// Show how the policy file differs from what is in force, and for whom
    Diff(diff::Diff),
    /// Read the policy file again and put it in force
    Reload(reload::ReloadPolicy),
    /// Put a policy in force on trial: the previous policy comes back unless this one is confirmed in time
    Try(trial::Try),
    /// Keep the policy on trial
    Confirm(trial::ConfirmTrial),
    /// Detach the guard from every interface, with or without an agent, and remove all of it from the kernel
    Detach,
    /// Check this host for problems of the guard, and show what to do about them
    Doctor(doctor::Doctor),
    /// Print the script with which a shell completes this command line
    Completions(completions::Completions),
    /// Write the manual pages into a folder
    Man(man::ManualPages),
}

/// The option of commands that could close the operator's own way in.
#[derive(Clone, Copy, Debug, Args)]
struct Forced {
    /// Apply the change even if it closes your own way in
    #[arg(long)]
    force: bool,
}

/// The output options of a command.
#[derive(Debug, Args)]
struct Output {
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Parses the command line. `--help` and `--version` print and end the process.
    pub fn parse() -> Result<Self, Failure> {
        Self::try_parse().map_err(|error| {
            if !error.use_stderr() || error.kind() == MISSING_COMMAND {
                error.exit();
            }
            Failure::Usage(wrong_usage(&error, "guard"))
        })
    }

    /// Runs the command.
    pub async fn run(self) -> Result<(), Failure> {
        let Self {
            location,
            color,
            command,
        } = self;
        color.apply();
        let client = || location.client();
        match command {
            Command::Run(run) => run.run(&location).await,
            Command::Check(check) => check.run(&location).await,
            Command::Status(status) => status.run(&location).await,
            Command::Talkers(talkers) => talkers.run(&location).await,
            Command::Capture(capture) => capture.run(&client()?).await,
            Command::Explain(explain) => explain.run(&client()?, &location.pins).await,
            Command::Replay(replay) => replay.run(),
            Command::Audit(audit) => audit.run(&location).await,
            Command::Init(init) => init.run().await,
            Command::Completions(completions) => completions.run(),
            Command::Man(pages) => pages.run(),
            Command::Counters(watched) => counters::run(&location, watched).await,
            Command::Doctor(doctor) => doctor.run(&location).await,
            Command::Top(top) => top.run(location).await,
            Command::Allow(enter) => enter.run(&client()?, Action::Allow).await,
            Command::Deny(enter) => enter.run(&client()?, Action::Deny).await,
            Command::List(output) => entries::list(&client()?, &output).await,
            Command::Revoke(revoke) => revoke.run(&client()?).await,
            Command::Mode(mode) => mode.run(&location).await,
            Command::Diff(diff) => diff.run(&location).await,
            Command::Reload(reload) => reload.run(&client()?).await,
            Command::Try(trial) => trial.run(&client()?).await,
            Command::Confirm(confirm) => confirm.run(&client()?).await,
            Command::Detach => detach::run(&location).await,
        }
    }
}

/// clap's error for `guard` without a command, which prints the help.
const MISSING_COMMAND: ErrorKind = ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;

/// The reason why a command failed. Displays as one line.
#[derive(Debug)]
pub enum Failure {
    /// The command line is wrong.
    Usage(String),
    /// The policy is invalid.
    Policy(PolicyError),
    /// Anything else.
    Other(anyhow::Error),
}

impl Failure {
    /// 1: the command failed. 2: the usage or the policy is wrong.
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
        formatter.write_str(&guard_text::one_line(&text))
    }
}

impl From<PolicyError> for Failure {
    fn from(error: PolicyError) -> Self {
        Self::Policy(error)
    }
}

impl From<FindPolicyError> for Failure {
    fn from(error: FindPolicyError) -> Self {
        match error {
            FindPolicyError::Policy(error) => Self::Policy(error),
            hidden @ FindPolicyError::Hidden(_) => Self::Other(hidden.into()),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Policy(problem) => Self::Usage(problem),
            error => Self::Other(error.into()),
        }
    }
}

impl From<ChangeError> for Failure {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Policy(error) => Self::Policy(error),
            error => Self::Other(error.into()),
        }
    }
}

impl From<compose::AuditFailure> for Failure {
    fn from(failure: compose::AuditFailure) -> Self {
        match failure {
            compose::AuditFailure::Refused(error) => Self::Usage(error.to_string()),
            failure @ compose::AuditFailure::Found(_) => Self::Other(failure.into()),
            compose::AuditFailure::Output(error) => Self::Other(error),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// Reads a policy and checks it against this host's clock.
fn read_policy(path: &Path) -> Result<Policy, Failure> {
    Ok(read_policy_and_text(path)?.0)
}

/// Reads a policy with its text: a pipe can be read only once.
fn read_policy_and_text(path: &Path) -> Result<(Policy, String), Failure> {
    let tick_ns = host::tick_ns().map_err(anyhow::Error::from)?;
    let bytes = read_file(path, AllowedFile::RegularOrPipe)?;
    let policy = Policy::from_bytes(&bytes, &path.display().to_string(), KernelTick { tick_ns })?;
    // `from_bytes` has accepted the text, so it is UTF-8.
    Ok((policy, String::from_utf8_lossy(&bytes).into_owned()))
}

/// The user name to show for this command: the user that called sudo (`SUDO_USER`), or this process's user.
fn user() -> Option<OneLine> {
    let name = std::env::var("SUDO_USER").ok();
    let name = name.filter(|name| !name.is_empty()).or_else(|| {
        let user = User::from_uid(Uid::current());
        user.ok().flatten().map(|user| user.name)
    });
    name?.try_into().ok()
}

/// Checks text that other users will read, such as `--reason`. `option` names it in the error.
fn one_line<const MAX: usize>(option: &str, text: String) -> Result<OneLine<MAX>, Failure> {
    let text = OneLine::try_from(text);
    text.map_err(|error| Failure::Usage(format!("{option} is not accepted: {error}")))
}
