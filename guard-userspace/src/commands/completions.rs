//! `guard completions`: what a shell completes, for packages and for people without one.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Arguments, Failure, print};

#[derive(Debug, Args)]
pub struct Completions {
    /// The shell to complete in
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> Result<(), Failure> {
        let Self { shell } = self;
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Arguments::command(), "guard", &mut script);
        Ok(print(&String::from_utf8_lossy(&script))?)
    }
}
