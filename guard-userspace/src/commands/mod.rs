//! The command line: one file per command, each from its arguments to its output.

mod audit;
mod capture;
mod check;
mod completions;
mod counters;
mod detach;
mod doctor;
mod entries;
mod explain;
mod figures;
mod init;
mod man;
mod meter;
mod mode;
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
    dataplane::pins,
    host,
    policy::{Action, AllowedFile, KernelTick, Policy, PolicyError, read_file},
    state_store,
};

const DEFAULT_POLICY: &str = "/etc/guard/guard.toml";

/// Decides in the network driver what this host shows to the network: published container ports
/// stay closed unless the policy lists them, and every source has its budget.
#[derive(Debug, Parser)]
#[command(name = "guard", version, propagate_version = true)]
pub struct Arguments {
    #[command(flatten)]
    whereabouts: AgentLocation,
    #[command(subcommand)]
    command: Command,
}

/// Where the agent and what it leaves in the kernel are found.
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
    /// Write a first policy from what is found on this host
    Init(init::Init),
    /// Check a policy without applying it
    Check(check::Check),
    /// Say whether the guard is at work, and where
    Status(watch::Watched),
    /// Show what became of the packets, by service and reason
    Counters(watch::Watched),
    /// Watch traffic, drops and sources on a screen, and act on them
    Top(top::Top),
    /// Show the sources that send most, and those that are dropped most
    Talkers(talkers::Talkers),
    /// Show packets with their reasons, or write them for Wireshark
    Capture(capture::CaptureCommand),
    /// Say whether a source reaches a port, and why
    Explain(explain::Explain),
    /// Run a capture through a policy, in the real kernel program
    Replay(replay::ReplayCommand),
    /// Say what of this host can be reached, what the policy does with it, and what to change
    Audit(audit::Audit),
    /// Let a source through for a while: not denied, not limited, admitted where a service has `from`
    Allow(entries::Enter),
    /// Drop a source's packets for a while
    Deny(entries::Enter),
    /// List what is allowed and denied for a while
    List(Output),
    /// End an entry before its time
    Revoke(entries::Revoke),
    /// Change the mode of the host or of a service, at once
    Mode(mode::ChangeMode),
    /// Read the policy file again and put it in force
    Reload(reload::ReloadPolicy),
    /// Put a policy in force that goes back by itself unless it is confirmed in time
    Try(trial::Try),
    /// Keep the policy that is being tried
    Confirm,
    /// Take the guard off every interface, agent or not, and leave nothing of it in the kernel
    Detach,
    /// Say what is well on this host and what is not, and what to do
    Doctor(doctor::Doctor),
    /// Print what a shell needs to complete this command line
    Completions(completions::Completions),
    /// Write the manual pages into a folder
    Man(man::ManualPages),
}

/// For what could close the operator's own way in.
#[derive(Clone, Copy, Debug, Args)]
struct Forced {
    /// Do it even if it closes your own way in
    #[arg(long)]
    force: bool,
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
            Failure::Usage(wrong_usage(&error, "guard"))
        })
    }

    pub async fn run(self) -> Result<(), Failure> {
        let Self {
            whereabouts,
            command,
        } = self;
        let client = || whereabouts.client();
        match command {
            Command::Run(run) => run.run(&whereabouts).await,
            Command::Check(check) => check.run(&whereabouts).await,
            Command::Status(watched) => status::run(&whereabouts, watched).await,
            Command::Talkers(talkers) => talkers.run(&whereabouts).await,
            Command::Capture(capture) => capture.run(&client()?).await,
            Command::Explain(explain) => explain.run(&client()?).await,
            Command::Replay(replay) => replay.run(),
            Command::Audit(audit) => audit.run(&whereabouts).await,
            Command::Init(init) => init.run().await,
            Command::Completions(completions) => completions.run(),
            Command::Man(pages) => pages.run(),
            Command::Counters(watched) => counters::run(&whereabouts, watched).await,
            Command::Doctor(doctor) => doctor.run(&whereabouts).await,
            Command::Top(top) => top.run(whereabouts).await,
            Command::Allow(enter) => enter.run(&client()?, Action::Allow).await,
            Command::Deny(enter) => enter.run(&client()?, Action::Deny).await,
            Command::List(output) => entries::list(&client()?, &output).await,
            Command::Revoke(revoke) => revoke.run(&client()?).await,
            Command::Mode(mode) => mode.run(&whereabouts).await,
            Command::Reload(reload) => reload.run(&client()?).await,
            Command::Try(trial) => trial.run(&client()?).await,
            Command::Confirm => trial::confirm(&client()?).await,
            Command::Detach => detach::run(&whereabouts).await,
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
        formatter.write_str(&guard_text::one_line(&text))
    }
}

impl From<PolicyError> for Failure {
    fn from(error: PolicyError) -> Self {
        Self::Policy(error)
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

/// The same with its text: a pipe can be read only once.
fn read_policy_and_text(path: &Path) -> Result<(Policy, String), Failure> {
    let tick_ns = host::tick_ns().map_err(anyhow::Error::from)?;
    let bytes = read_file(path, AllowedFile::RegularOrPipe)?;
    let policy = Policy::from_bytes(&bytes, &path.display().to_string(), KernelTick { tick_ns })?;
    // A policy is UTF-8.
    Ok((policy, String::from_utf8_lossy(&bytes).into_owned()))
}

/// Who types this, as far as the environment says: the user that sudo was called by, or this process's.
fn user() -> Option<OneLine> {
    let name = std::env::var("SUDO_USER").ok();
    let name = name.filter(|name| !name.is_empty()).or_else(|| {
        let user = User::from_uid(Uid::current());
        user.ok().flatten().map(|user| user.name)
    });
    name?.try_into().ok()
}

/// Text that others will read, such as `--reason`.
fn one_line<const MAX: usize>(what: &str, text: String) -> Result<OneLine<MAX>, Failure> {
    let text = OneLine::try_from(text);
    text.map_err(|error| Failure::Usage(format!("{what} is not taken: {error}")))
}
