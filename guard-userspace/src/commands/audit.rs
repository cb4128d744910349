//! `guard audit`: finds exposed ports, of this host or in compose files, and what to change.

mod host;

use clap::{Args, Subcommand};
use guard_compose::command as compose;

use super::{AgentLocation, Failure};

#[derive(Debug, Args)]
pub struct Audit {
    #[command(flatten)]
    host: host::AuditHostCommand,
    #[command(subcommand)]
    target: Option<AuditTarget>,
}

#[derive(Debug, Subcommand)]
enum AuditTarget {
    /// Find in compose files what they would expose, and what to write instead
    Compose(compose::Compose),
}

impl Audit {
    pub(super) async fn run(self, location: &AgentLocation) -> Result<(), Failure> {
        let Self { host, target } = self;
        match target {
            None => host.run(location).await,
            Some(AuditTarget::Compose(compose)) => {
                host.require_unused()?;
                Ok(compose.run()?)
            }
        }
    }
}
