//! `guard detach`: detaches the guard from every interface, with or without an agent.

use super::{AgentLocation, Failure, print, print_warning};
use crate::{
    api::Detached,
    without_agent::{self, AgentDetached},
};

pub async fn run(location: &AgentLocation) -> Result<(), Failure> {
    let answer = location.client()?.detach().await;
    // Programs of other layouts, of interfaces that the agent did not know and of an agent that hangs are detached
    // here.
    let AgentLocation { pins, state, .. } = location;
    let informed = match answer {
        Ok(_) => AgentDetached::Yes,
        Err(_) => AgentDetached::No,
    };
    let stopped = without_agent::detach(pins, state, informed)?;
    let mut warnings = stopped.warnings;
    let outcome = match answer {
        Ok(Detached {
            not_kept, left: _, ..
        }) => {
            // The agent ends, and has reported its own errors. `without_agent::detach` has just read again what is
            // left.
            warnings.retain(|warning| !not_kept.iter().any(|why| warning.contains(why.as_str())));
            warnings.extend(
                not_kept.map(|why| format!("detached, but the next agent may attach again: {why}")),
            );
            "the agent has detached the guard and ends".to_owned()
        }
        Err(error) if error.is_without_agent() => "no agent answered".to_owned(),
        Err(error) => format!("the agent could not detach the guard ({error})"),
    };
    for warning in &warnings {
        print_warning(warning);
    }
    let left = if stopped.interfaces.is_empty() {
        "no program is attached any more".to_owned()
    } else {
        format!("detached from {}", stopped.interfaces.join(", "))
    };
    Ok(print(&format!("{outcome}; {left}"))?)
}
