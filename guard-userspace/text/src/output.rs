//! What a command prints.

use std::io::{self, Write as _};

/// What a policy says does not move the terminal's cursor.
pub fn without_controls(text: &str) -> String {
    let harmless = |c: char| {
        if c.is_control() && c != '\n' {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    text.chars().map(harmless).collect()
}

/// What is wrong, in one line, whatever a library wrote.
pub fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    without_controls(&lines.join(" "))
}

/// Prints a command's whole output. A reader that stops reading, such as `head`, is no failure.
pub fn print(text: &str) -> anyhow::Result<()> {
    match write(text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

pub fn write(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", without_controls(text.trim_end()))
}

/// Says what is to be looked at again, beside a command's output.
pub fn print_warning(text: &str) {
    let text = without_controls(&text.replace('\n', " "));
    // Whoever closed standard error does not want to know.
    let _result = writeln!(io::stderr().lock(), "warning: {text}");
}

pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}
