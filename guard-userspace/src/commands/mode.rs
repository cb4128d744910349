//! `guard mode`: changes the mode of the host or of a service. `guard mode off` works with or without an agent.

use clap::{Args, ValueEnum};

use super::{AgentLocation, Failure, Forced, print, print_warning};
use crate::{
    api::{ModeChange, actor::OneLine},
    operator::ssh_session,
    without_agent,
};

#[derive(Debug, Args)]
pub struct ChangeMode {
    #[arg(value_enum)]
    mode: ModeArgument,
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
                let switched = switched.interfaces;
                if switched.is_empty() {
                    return Ok(print(&format!(
                        "no program is on any interface: nothing is blocked, and the next agent starts in mode off \
                         until `guard mode policy` ({error})"
                    ))?);
                }
                Ok(print(&format!(
                    "the kernel lets everything pass on {} from now on, without the agent ({error})",
                    switched.join(", ")
                ))?)
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
                    (None, Some(mode)) => format!(
                        "the host is in mode {mode}, also after a restart, until `guard mode policy`"
                    ),
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
