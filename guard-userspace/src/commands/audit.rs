//! `guard audit`: what is exposed, and what to change.

mod compose;

use clap::{Args, Subcommand};

use super::Failure;

#[derive(Debug, Args)]
pub struct Audit {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Find in compose files what they would expose, and what to write instead
    Compose(compose::Compose),
}

impl Audit {
    pub fn run(self) -> Result<(), Failure> {
        let Self { what } = self;
        match what {
            What::Compose(compose) => compose.run(),
        }
    }
}
