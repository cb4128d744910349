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
mod files;
mod help;
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
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, FromArgMatches as _, Parser, Subcommand, error::ErrorKind};
use guard_compose::{command as compose, usage::WrongUsage};
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
#[command(next_help_heading = "Paths of the agent")]
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
    /// Allow a source, for a time or until `guard revoke`: it is not denied, not limited, and admitted by services with
    /// `from`
    Allow(entries::Enter),
    /// Drop a source's packets, for a time (--for) or until `guard revoke`
    Deny(entries::Enter),
    /// List the allow and deny entries: all, or those that concern a source
    List(entries::ListCommand),
    /// End entries before they expire
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
        let typed: Vec<OsString> = std::env::args_os().skip(1).collect();
        Self::parse_from(&typed).map_err(|error| {
            if !error.use_stderr() || error.kind() == MISSING_COMMAND {
                error.exit();
            }
            Failure::Usage(describe_usage(&error, &typed))
        })
    }

    /// Parses what was typed after `guard`.
    fn parse_from(typed: &[OsString]) -> clap::error::Result<Self> {
        let program = OsString::from("guard");
        let words = [program].into_iter().chain(typed.iter().cloned());
        Self::from_arg_matches(&help::command().try_get_matches_from(words)?)
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
            Command::Replay(replay) => replay.run().await,
            Command::Audit(audit) => audit.run(&location).await,
            Command::Init(init) => init.run(&location).await,
            Command::Completions(completions) => completions.run(),
            Command::Man(pages) => pages.run(),
            Command::Counters(watched) => counters::run(&location, watched).await,
            Command::Doctor(doctor) => doctor.run(&location).await,
            Command::Top(top) => top.run(location).await,
            Command::Allow(enter) => enter.run(&client()?, Action::Allow).await,
            Command::Deny(enter) => enter.run(&client()?, Action::Deny).await,
            Command::List(list) => list.run(&client()?).await,
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

/// Describes a command line that was refused, in one line.
fn describe_usage(error: &clap::Error, typed: &[OsString]) -> String {
    let usage = WrongUsage {
        root: help::command(),
        typed,
        synonyms: help::SYNONYMS,
        values: help::VALUES,
        advice: help::ADVICE,
    };
    usage.describe(error)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What is printed for a command line; spaces separate its words.
    fn refusal(typed: &str) -> String {
        let typed: Vec<OsString> = typed.split(' ').map(OsString::from).collect();
        let error = Arguments::parse_from(&typed).unwrap_err();
        assert!(error.use_stderr(), "{typed:?}: {error}");
        Failure::Usage(describe_usage(&error, &typed)).to_string()
    }

    #[test]
    fn a_wrong_command_line_is_answered_with_what_was_meant_and_the_help_of_its_command() {
        let lines = [
            "statsu",
            "Status",
            "stat",
            "block 198.51.100.7",
            "disable",
            "version",
            "foo",
            "help statsu",
            "status --jsn",
            "status -json",
            "status -x",
            "--json status",
            "--policy new.toml check --live",
            "status --by packets",
            "deny",
            "deny 300.1.1.1",
            "deny 198.51.100.7/24",
            "deny 198.51.100.7 2h",
            "deny 198.51.100.7 --for 2x",
            "deny 198.51.100.7 --for",
            "deny 198.51.100.7 203.0.113.9",
            "deny 198.51.100.7 --duration 2h",
            "deny 198.51.100.7 --for 1h --for 2h",
            "deny 198.51.100.7 json",
            "revoke abc",
            "mode enforced",
            "mode on",
            "open 9000",
            "rollback",
            "stop",
            "drops",
            "talkers --dropped",
            "explain",
            "explain --to 80/tcp",
            "explain 198.51.100.7 --from 198.51.100.8",
            "explain 198.51.100.0/24",
            "allow 9000/tcp",
            "allow 9000",
            "explain --from 198.51.100.0/24 --to 80/tcp",
            "explain --from example.org --to 80/tcp",
            "talkers --by drop",
            "talkers --by x",
            "talkers --limit x",
            "status extra",
            "status --watch 0",
            "status --json=yes",
            "capture --reason foo",
            "capture --reason closed_prot",
            "replay",
            "run --polcy x",
            "check --config new.toml",
            "try --policy new.toml",
            "try new.toml --for abc",
            "completions bsh",
            "--socket",
            "-- status",
            "status -- --json",
            "replay --network foo a.pcap",
            "--socket status statsu",
            "audit composer",
            "audit compose",
            "audit compose a.yaml --json --sarif",
            "audit compose a.yaml --level hihg",
        ];
        let answers = lines.map(|typed| format!("{typed}\n  {}", refusal(typed)));
        insta::assert_snapshot!(answers.join("\n"), @r#"
        statsu
          there is no command "statsu": did you mean "status"? `guard --help` lists the commands
        Status
          there is no command "Status": did you mean "status"? `guard --help` lists the commands
        stat
          there is no command "stat": did you mean "status"? `guard --help` lists the commands
        block 198.51.100.7
          there is no command "block": did you mean "deny"? `guard --help` lists the commands
        disable
          there is no command "disable": did you mean "mode off"? `guard --help` lists the commands
        version
          there is no command "version": did you mean "--version"? `guard --help` lists the commands
        foo
          there is no command "foo"; `guard --help` lists the commands
        help statsu
          there is no command "statsu": did you mean "status"? `guard --help` lists the commands
        status --jsn
          `status` has no option --jsn: did you mean --json? `guard status --help` shows the usage
        status -json
          `status` has no option -j: did you mean --json? `guard status --help` shows the usage
        status -x
          `status` has no option -x; `guard status --help` shows the usage
        --json status
          there is no option --json: did you mean `guard status --json`? `guard --help` shows the usage
        --policy new.toml check --live
          there is no option --policy; `guard --help` shows the usage
        status --by packets
          `status` has no option --by, but `guard talkers` has it; `guard status --help` shows the usage
        deny
          `deny` needs <CIDR>; `guard deny --help` shows the usage
        deny 300.1.1.1
          <CIDR>: "300.1.1.1" is not an address or a CIDR: write one such as "198.51.100.7", "198.51.100.0/24" or "2001:db8::/32"; `guard deny --help` shows the usage
        deny 198.51.100.7/24
          <CIDR>: "198.51.100.7/24" has bits set after its prefix length: write "198.51.100.0/24" for the network, or "198.51.100.7" for the single address; `guard deny --help` shows the usage
        deny 198.51.100.7 2h
          `deny` takes the time as an option: write --for 2h; `guard deny --help` shows the usage
        deny 198.51.100.7 --for 2x
          --for: "2x" is not a duration: write 90s, 30m, 2h or 7d, or forever; `guard deny --help` shows the usage
        deny 198.51.100.7 --for
          --for needs a value; `guard deny --help` shows the usage
        deny 198.51.100.7 203.0.113.9
          "203.0.113.9" is one argument more than `deny` takes; `guard deny --help` shows the usage
        deny 198.51.100.7 --duration 2h
          `deny` has no option --duration: did you mean --for? `guard deny --help` shows the usage
        deny 198.51.100.7 --for 1h --for 2h
          --for was written more than once: write it once; `guard deny --help` shows the usage
        deny 198.51.100.7 json
          `deny` has no argument "json": did you mean --json? `guard deny --help` shows the usage
        revoke abc
          <ID|CIDR>...: "abc" names no entry: write its number, or an address or a CIDR with --owner; `guard revoke --help` shows the usage
        mode enforced
          "enforced" is no value of [MODE] (off, observe, enforce or policy): did you mean "enforce"? `guard mode --help` shows the usage
        mode on
          "on" is no value of [MODE] (off, observe, enforce or policy): did you mean "enforce"? `guard mode --help` shows the usage
        open 9000
          there is no command "open": the policy opens ports. Write the lines `[[service]]`, `name = "app"` and `ports = ["tcp/9000"]` into the policy file, and run `guard reload`; `guard --help` lists the commands
        rollback
          there is no command "rollback": `guard reload --force` ends a trial and puts the policy file in force. A trial that nobody confirms ends by itself; `guard --help` lists the commands
        stop
          there is no command "stop": `systemctl stop guard` ends the agent, and the program in the kernel keeps the policy in force. `guard mode off` lets every packet pass, and `guard detach` removes the program: both open the host; `guard --help` lists the commands
        drops
          there is no command "drops": `guard capture` shows packets as they are dropped, `guard talkers --by dropped` their sources, and `guard counters` the reasons; `guard --help` lists the commands
        talkers --dropped
          `talkers` has no option --dropped: did you mean --by dropped? `guard talkers --help` shows the usage
        explain
          `explain` needs <ADDR>; `guard explain --help` shows the usage
        explain --to 80/tcp
          `explain` needs <ADDR>; `guard explain --help` shows the usage
        explain 198.51.100.7 --from 198.51.100.8
          [ADDR] and --from exclude each other: write one of them; `guard explain --help` shows the usage
        explain 198.51.100.0/24
          "198.51.100.0/24" is no value of [ADDR]: write one address, such as 198.51.100.7 or 2001:db8::7, without a prefix length; `guard explain --help` shows the usage
        allow 9000/tcp
          <CIDR>: "9000/tcp" is a port, and `allow` and `deny` take a source: to open the port, list it in the policy, `ports = ["tcp/9000"]` in a [[service]], and `guard try` the file; a port that no service lists is closed; `guard allow --help` shows the usage
        allow 9000
          <CIDR>: "9000" is a port, and `allow` and `deny` take a source: to open the port, list it in the policy, `ports = ["tcp/9000"]` in a [[service]], and `guard try` the file; a port that no service lists is closed; `guard allow --help` shows the usage
        explain --from 198.51.100.0/24 --to 80/tcp
          "198.51.100.0/24" is no value of --from: write one address, such as 198.51.100.7 or 2001:db8::7, without a prefix length; `guard explain --help` shows the usage
        explain --from example.org --to 80/tcp
          "example.org" is no value of --from: write an address, such as 198.51.100.7 or 2001:db8::7; `guard explain --help` shows the usage
        talkers --by drop
          "drop" is no value of --by (packets, dropped or bytes): did you mean "dropped"? `guard talkers --help` shows the usage
        talkers --by x
          "x" is no value of --by: write packets, dropped or bytes; `guard talkers --help` shows the usage
        talkers --limit x
          "x" is no value of --limit: write a whole number; `guard talkers --help` shows the usage
        status extra
          `status` takes no argument, and "extra" is one; `guard status --help` shows the usage
        status --watch 0
          "0" is no value of --watch: write a number from 1 to 86400; `guard status --help` shows the usage
        status --json=yes
          --json takes no value, and "yes" is one; `guard status --help` shows the usage
        capture --reason foo
          --reason: "foo" is no reason: there are allowed, established, reply, exempt, control, fragment, not_guarded, closed_port, source_not_allowed, container_address, denied_source, packet_limit, byte_limit, connection_limit, total_limit, malformed, martian, fragment_limit, challenged, unverified, handshake; `guard capture --help` shows the usage
        capture --reason closed_prot
          --reason: "closed_prot" is no reason: did you mean "closed_port"? There are allowed, established, reply, exempt, control, fragment, not_guarded, closed_port, source_not_allowed, container_address, denied_source, packet_limit, byte_limit, connection_limit, total_limit, malformed, martian, fragment_limit, challenged, unverified, handshake; `guard capture --help` shows the usage
        replay
          `replay` needs <FILE>; `guard replay --help` shows the usage
        run --polcy x
          `run` has no option --polcy: did you mean --policy? `guard run --help` shows the usage
        check --config new.toml
          `check` has no option --config: write the name of the file without an option; `guard check --help` shows the usage
        try --policy new.toml
          `try` has no option --policy: write the name of the file without an option; `guard try --help` shows the usage
        try new.toml --for abc
          --for: "abc" is not a duration: write 90s, 30m, 2h or 7d; `guard try --help` shows the usage
        completions bsh
          "bsh" is no value of <SHELL> (bash, elvish, fish, powershell or zsh): did you mean "bash"? `guard completions --help` shows the usage
        --socket
          --socket needs a value; `guard --help` shows the usage
        -- status
          "status" stands after `--`, so it is not read as a command or an option: leave `--` out; `guard --help` shows the usage
        status -- --json
          "--json" stands after `--`, so it is not read as a command or an option: leave `--` out; `guard status --help` shows the usage
        replay --network foo a.pcap
          --network: "foo" is not an address or a CIDR: write one such as "198.51.100.7", "198.51.100.0/24" or "2001:db8::/32"; `guard replay --help` shows the usage
        --socket status statsu
          there is no command "statsu": did you mean "status"? `guard --help` lists the commands
        audit composer
          `audit` has no command "composer": did you mean "compose"? `guard audit --help` lists the commands
        audit compose
          `audit compose` needs <FILE>...; `guard audit compose --help` shows the usage
        audit compose a.yaml --json --sarif
          --json and --sarif exclude each other: write one of them; `guard audit compose --help` shows the usage
        audit compose a.yaml --level hihg
          "hihg" is no value of --level (low, medium, high or critical): did you mean "high"? `guard audit compose --help` shows the usage
        "#);
    }
}
