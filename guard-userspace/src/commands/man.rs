//! `guard man`: writes the manual pages of the command line, for packages.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, Command};
use clap_mangen::Man;

use super::{Failure, help};

/// The sections that clap does not generate.
const FURTHER: &str = ".SH \"EXIT STATUS\"
0: success. 1: failure, or a check that found a problem. 2: wrong usage, or an invalid policy.
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
    /// The folder for the pages: guard.1, a page for each command, and guard-compose.1
    folder: PathBuf,
}

impl ManualPages {
    pub fn run(self) -> Result<(), Failure> {
        let Self { folder } = self;
        let mut guard = help::command().disable_help_subcommand(true);
        // Fills in the full names of the commands and the arguments that they inherit.
        guard.build();
        write_pages(&guard, &folder)?;
        write_page(&guard_compose::command::command(), &folder, "")?;
        Ok(())
    }
}

/// Writes a page for a command, and one for each of its subcommands.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_the_commands_examples_and_no_escapes_of_a_terminal() {
        let mut guard = help::command();
        guard.build();
        for command in guard.get_subcommands() {
            let mut text = Vec::new();
            page(command).render(&mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            let name = command.get_name();
            let has_examples = text.contains("Examples:\n  guard ");
            assert_eq!(has_examples, name != "help", "{name}: {text}");
            assert!(!text.contains('\u{1b}'), "{name}: {text}");
        }
    }
}
