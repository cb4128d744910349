//! `guard reload`: reads the policy file again and puts it in force.

use clap::Args;

use super::{Failure, Forced, Output, print, print_json};
use crate::{
    api::{Applied, Reload, client::Client},
    operator::ssh_session,
};

#[derive(Debug, Args)]
pub struct ReloadPolicy {
    #[command(flatten)]
    forced: Forced,
    #[command(flatten)]
    output: Output,
}

impl ReloadPolicy {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let Self {
            forced: Forced { force },
            output,
        } = self;
        let request = Reload {
            operator: ssh_session(),
            force,
        };
        let before = client.status().await.ok();
        let applied = client.reload(&request).await?;
        if output.json {
            return Ok(print_json(&applied)?);
        }
        let Applied {
            path,
            mode,
            generation,
            policy_mode,
            ..
        } = applied;
        let mut text = format!("{path} is in force: mode {mode}, generation {generation}");
        if let Some(hidden) = policy_mode.filter(|hidden| *hidden != mode) {
            text += &format!(
                ". An operator set the mode, which hides the mode {hidden} of the file: `guard mode policy` ends that"
            );
        }
        let was_enforced = before.is_some_and(|before| before.mode == "enforce");
        if was_enforced && mode != "enforce" {
            text += ". ENFORCING HAS ENDED: nothing is dropped any more";
        }
        Ok(print(&text)?)
    }
}
