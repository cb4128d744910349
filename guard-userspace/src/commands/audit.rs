//! `guard audit`: what is exposed, and what to change.

mod host;

use clap::Args;

use super::{Failure, Whereabouts};

#[derive(Debug, Args)]
pub struct Audit {
    #[command(flatten)]
    host: host::Host,
}

impl Audit {
    pub(super) async fn run(self, whereabouts: &Whereabouts) -> Result<(), Failure> {
        let Self { host } = self;
        host.run(whereabouts).await
    }
}
