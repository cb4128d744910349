//! `guard audit`: what is exposed, and what to change.

mod host;

use clap::{Args, Subcommand};
use guard_compose::command as compose;

use super::{AgentLocation, Failure};

#[derive(Debug, Args)]
pub struct Audit {
    #[command(flatten)]
    host: host::AuditHostCommand,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Find in compose files what they would expose, and what to write instead
    Compose(compose::Compose),
}

impl Audit {
    pub(super) async fn run(self, whereabouts: &AgentLocation) -> Result<(), Failure> {
        let Self { host, what } = self;
        match what {
            None => host.run(whereabouts).await,
            Some(What::Compose(compose)) => {
                host.require_unused()?;
                Ok(compose.run()?)
            }
        }
    }
}
