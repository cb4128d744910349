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
        let applied = client.reload(&request).await?;
        if output.json {
            return Ok(print_json(&applied)?);
        }
        let Applied {
            path,
            mode,
            generation,
            ..
        } = applied;
        Ok(print(&format!(
            "{path} is in force: mode {mode}, generation {generation}"
        ))?)
    }
}
