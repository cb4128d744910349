//! `guard completions`: prints the completion script of a shell, for packages and for installations without a package.

use clap::Args;
use clap_complete::Shell;

use super::{Failure, help, print};

#[derive(Debug, Args)]
pub struct Completions {
    /// The shell that completes
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> Result<(), Failure> {
        let Self { shell } = self;
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut help::command(), "guard", &mut script);
        Ok(print(&String::from_utf8_lossy(&script))?)
    }
}
