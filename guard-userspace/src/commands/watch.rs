//! `--watch`: repeats an output every few seconds.

use std::{
    io::{self, ErrorKind, IsTerminal as _, Write as _},
    time::Duration,
};

use clap::Args;
use serde::Serialize;

use super::{Failure, Output, print, print_warning, write};

#[derive(Debug, Args)]
pub struct Watched {
    /// Repeat the output at this interval, with rates
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    watch: Option<u64>,
    #[command(flatten)]
    output: Output,
}

/// Moves the cursor to the top left corner, and clears the screen from there (CUP and ED of ECMA-48).
const CLEAR: &str = "\x1b[H\x1b[J";

impl Watched {
    pub const fn is_json(&self) -> bool {
        self.output.json
    }

    /// The interval of `--watch`.
    pub const fn seconds(&self) -> Option<u64> {
        self.watch
    }

    /// Formats a JSON document: indented, or with `--watch` on one line, so that each line is a document.
    pub fn json(&self, value: &impl Serialize) -> Result<String, Failure> {
        let text = match self.watch {
            Some(_) => serde_json::to_string(value),
            None => serde_json::to_string_pretty(value),
        };
        Ok(text.map_err(anyhow::Error::from)?)
    }

    /// Prints the text of `show`, until the reader closes the pipe. An error after the first output is a warning.
    pub async fn run(
        &self,
        mut show: impl AsyncFnMut(&Self) -> Result<String, Failure>,
    ) -> Result<(), Failure> {
        let text = show(self).await?;
        let Some(seconds) = self.watch else {
            return Ok(print(&text)?);
        };
        let mut text: Result<String, Failure> = Ok(text);
        loop {
            match text {
                Ok(text) => match self.write(&text) {
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                    written => written.map_err(anyhow::Error::from)?,
                },
                Err(failure) => print_warning(&failure.to_string()),
            }
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            text = show(self).await;
        }
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let is_screen = io::stdout().is_terminal();
        if !is_screen && !self.is_json() {
            let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::system());
            write(&now.strftime("%Y-%m-%d %H:%M:%S").to_string())?;
        }
        if is_screen && !self.is_json() {
            io::stdout().lock().write_all(CLEAR.as_bytes())?;
        }
        write(text)?;
        if !is_screen && !self.is_json() {
            // An empty line separates the tables.
            write("")?;
        }
        Ok(())
    }
}
