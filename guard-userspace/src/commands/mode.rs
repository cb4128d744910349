//! `guard mode`: changes the mode of the host or of a service. `guard mode off` works with or without an agent.

use clap::{Args, ValueEnum};

use super::{
    AgentLocation, Failure, Forced, print, print_warning, reading::GuardReader,
    status::describe_mode,
};
use crate::{
    api::{ModeChange, Status, actor::OneLine},
    operator::ssh_session,
    without_agent::{self, Stopped},
};

/// How long a mode lasts that an operator sets.
const LASTS: &str = "also after a restart, until `guard mode policy`";

fn host_in(mode: &str) -> String {
    format!("the host is in mode {mode}")
}

#[derive(Debug, Args)]
pub struct ChangeMode {
    /// The mode to set; without it, the current modes are shown
    #[arg(value_enum)]
    mode: Option<ModeArgument>,
    /// Change the mode of this service only
    #[arg(long, value_name = "S")]
    service: Option<String>,
    #[command(flatten)]
    forced: Forced,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ModeArgument {
    /// Let every packet pass without a check; works without an agent too
    Off,
    /// Let every packet pass, and count those that `enforce` would drop
    Observe,
    /// Drop the packets that are against the policy
    Enforce,
    /// Return to the mode in the policy file
    Policy,
}

impl ModeArgument {
    const fn name(self) -> Option<&'static str> {
        match self {
            Self::Off => Some("off"),
            Self::Observe => Some("observe"),
            Self::Enforce => Some("enforce"),
            Self::Policy => None,
        }
    }
}

impl ChangeMode {
    pub async fn run(self, location: &AgentLocation) -> Result<(), Failure> {
        let Self {
            mode,
            service,
            forced: Forced { force },
        } = self;
        let Some(mode) = mode else {
            let status = GuardReader::new(location)?.status().await?;
            return Ok(print(&describe_modes(&status))?);
        };
        let is_kill_switch = mode == ModeArgument::Off && service.is_none();
        let change = ModeChange {
            service: service.clone(),
            mode: mode.name().map(str::to_owned),
            by: super::user(),
            operator: ssh_session(),
            force,
        };
        match location.client()?.set_mode(&change).await {
            // `off` must work, so any error of the agent leads here.
            Err(error) if is_kill_switch => {
                let AgentLocation { pins, state, .. } = location;
                let claimed_by = change.by.map(OneLine::into_inner);
                let switched = without_agent::switch_off(pins, state, claimed_by)?;
                for warning in &switched.warnings {
                    print_warning(warning);
                }
                let why = match error.is_without_agent() {
                    true => "no agent answers".to_owned(),
                    false => format!("the agent failed: {error}"),
                };
                Ok(print(&describe_switched(&switched, &why))?)
            }
            applied => {
                let applied = applied?;
                Ok(print(&match (service, mode.name()) {
                    (Some(service), Some(mode)) => {
                        format!(
                            "service {service} is in mode {mode}, the host in {}",
                            applied.mode
                        )
                    }
                    (Some(service), None) => {
                        format!("service {service} is in the mode of the policy")
                    }
                    (None, Some(mode)) => format!("{}, {LASTS}", host_in(mode)),
                    (None, None) => {
                        format!(
                            "the host is in mode {}, the mode of the policy",
                            applied.mode
                        )
                    }
                })?)
            }
        }
    }
}

/// What the kill switch has done without an agent.
fn describe_switched(switched: &Stopped, why: &str) -> String {
    let Stopped {
        interfaces,
        warnings,
    } = switched;
    let host = host_in("off");
    // A warning says that the mode cannot be stored.
    let lasts = match warnings.is_empty() {
        true => LASTS,
        false => "until `guard mode policy`",
    };
    let done = match interfaces.as_slice() {
        [] => "no program is on any interface".to_owned(),
        names => format!("everything passes on {}", names.join(", ")),
    };
    format!("{host}, {lasts}, which needs an agent. It was set without one, because {why}: {done}")
}

/// The modes, and how to change them.
fn describe_modes(status: &Status) -> String {
    let Status {
        mode,
        modes,
        enforcing,
        ..
    } = status;
    let mut text = host_in(mode);
    if mode == "enforce" && !enforcing {
        text += ", and the guard does NOT enforce it: `guard status` says why";
    }
    if !modes.iter().any(|changed| changed.service.is_none()) && status.agent.running {
        text += ", the mode of the policy";
    }
    for changed in modes {
        text += &format!("\n  {}", describe_mode(changed));
    }
    text + "\n`guard mode off`, `observe` or `enforce` changes it, and `guard mode policy` takes that back"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kill_switch_without_an_agent_says_what_it_did_and_how_to_undo_it() {
        let switched = |interfaces: &[&str], warnings: &[&str]| {
            let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            let stopped = Stopped {
                interfaces: owned(interfaces),
                warnings: owned(warnings),
            };
            describe_switched(&stopped, "no agent answers")
        };
        insta::assert_snapshot!(switched(&["wan", "lan"], &[]), @"the host is in mode off, also after a restart, until `guard mode policy`, which needs an agent. It was set without one, because no agent answers: everything passes on wan, lan");
        insta::assert_snapshot!(switched(&[], &["not stored"]), @"the host is in mode off, until `guard mode policy`, which needs an agent. It was set without one, because no agent answers: no program is on any interface");
    }
}
