//! `guard detach`: off every interface, agent or not.

use super::{AgentLocation, Failure, print, print_warning};
use crate::{
    api::Detached,
    without_agent::{self, Informed},
};

pub async fn run(whereabouts: &AgentLocation) -> Result<(), Failure> {
    let asked = whereabouts.client()?.detach().await;
    // Of other layouts, of interfaces that the agent did not know, of an agent that hangs.
    let AgentLocation { pins, state, .. } = whereabouts;
    let informed = match asked {
        Ok(_) => Informed::Yes,
        Err(_) => Informed::No,
    };
    let stopped = without_agent::detach(pins, state, informed)?;
    let mut warnings = stopped.warnings;
    let told = match asked {
        Ok(Detached {
            not_kept, left: _, ..
        }) => {
            // It ends, and knows. What is left has just been looked at again.
            warnings.retain(|warning| !not_kept.iter().any(|why| warning.contains(why.as_str())));
            warnings
                .extend(not_kept.map(|why| format!("the guard is off, which is not kept: {why}")));
            "the agent has taken the guard off and ends".to_owned()
        }
        Err(error) if error.is_without_agent() => "there was no agent to ask".to_owned(),
        Err(error) => format!("the agent was no help ({error})"),
    };
    for warning in &warnings {
        print_warning(warning);
    }
    let left = if stopped.interfaces.is_empty() {
        "nothing judges packets any more".to_owned()
    } else {
        format!("taken off {}", stopped.interfaces.join(", "))
    };
    Ok(print(&format!("{told}; {left}"))?)
}
