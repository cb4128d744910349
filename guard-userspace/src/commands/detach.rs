//! `guard detach`: off every interface, agent or not.

use super::{Failure, Whereabouts, print};
use crate::unattended;

pub async fn run(whereabouts: &Whereabouts) -> Result<(), Failure> {
    let asked = whereabouts.client()?.detach().await;
    let told = match asked {
        Ok(()) => "the agent has taken the guard off and ends",
        Err(error) if error.is_without_agent() => "there was no agent to ask",
        Err(error) => return Err(error.into()),
    };
    // Of other layouts, of interfaces that the agent did not know, of an agent that hangs.
    let Whereabouts { pins, state, .. } = whereabouts;
    let detached = unattended::detach(pins, state)?;
    let left = if detached.is_empty() {
        "nothing is left in the kernel".to_owned()
    } else {
        format!("taken off {}", detached.join(", "))
    };
    Ok(print(&format!("{told}; {left}"))?)
}
