//! `guard man`: the manual pages of the command line, for whoever makes a package.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, Command, CommandFactory as _};
use clap_mangen::Man;

use super::{Arguments, Failure};

/// What the command line does not say of itself.
const FURTHER: &str = ".SH \"EXIT STATUS\"
0: done. 1: failed, or something was found. 2: wrong usage, or a policy that is refused.
.SH FILES
.TP
\\fI/etc/guard/guard.toml\\fR
the policy
.TP
\\fI/run/guard/guard.sock\\fR
the control socket of the agent, for root and the group guard
.SH \"SEE ALSO\"
\\fBguard\\fR(1), \\fBguard.toml\\fR(5)
";

#[derive(Debug, Args)]
pub struct ManualPages {
    /// The folder to write guard.1, a page for each command and guard-compose.1 to
    folder: PathBuf,
}

impl ManualPages {
    pub fn run(self) -> Result<(), Failure> {
        let Self { folder } = self;
        let mut guard = Arguments::command().disable_help_subcommand(true);
        // Gives the commands their full names and the arguments that they inherit.
        guard.build();
        write_pages(&guard, &folder)?;
        write_page(&guard_compose::command::command(), &folder, "")?;
        Ok(())
    }
}

/// A page for a command and one for each that it has.
fn write_pages(command: &Command, folder: &Path) -> anyhow::Result<()> {
    let commands = command.get_subcommands();
    for command in commands.filter(|command| !command.is_hide_set()) {
        write_pages(command, folder)?;
    }
    write_page(command, folder, FURTHER)
}

fn write_page(command: &Command, folder: &Path, further: &str) -> anyhow::Result<()> {
    let man = page(command);
    let path = folder.join(man.get_filename());
    let mut text = Vec::new();
    man.render(&mut text)?;
    text.extend(further.as_bytes());
    fs::write(&path, text).with_context(|| path.display().to_string())
}

fn page(command: &Command) -> Man {
    Man::new(command.clone())
        .source(concat!("guard ", env!("CARGO_PKG_VERSION")))
        .manual("guard")
}
