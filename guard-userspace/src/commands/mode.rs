//! `guard mode`: the switch that works at three in the morning, with or without an agent.

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
    /// Of this service alone
    #[arg(long, value_name = "S")]
    service: Option<String>,
    #[command(flatten)]
    forced: Forced,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ModeArgument {
    /// Everything passes, nothing is judged; works without an agent too
    Off,
    /// Everything passes; what would be dropped is counted
    Observe,
    /// What the policy closes is closed
    Enforce,
    /// What the policy file says
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
    pub async fn run(self, whereabouts: &AgentLocation) -> Result<(), Failure> {
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
        match whereabouts.client()?.set_mode(&change).await {
            // Whatever keeps the agent from it: stopping must work.
            Err(error) if is_kill_switch => {
                let AgentLocation { pins, state, .. } = whereabouts;
                let claimed_by = change.by.map(OneLine::into_inner);
                let switched = without_agent::switch_off(pins, state, claimed_by)?;
                for warning in &switched.warnings {
                    print_warning(warning);
                }
                let switched = switched.interfaces;
                if switched.is_empty() {
                    return Ok(print(&format!(
                        "there is no program on any interface: nothing is blocked ({error})"
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
                        format!("service {service} is in the mode that the policy gives it")
                    }
                    (None, Some(mode)) => format!("the host is in mode {mode}"),
                    (None, None) => {
                        format!("the host is in mode {}, as the policy says", applied.mode)
                    }
                })?)
            }
        }
    }
}
