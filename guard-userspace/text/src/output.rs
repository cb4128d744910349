//! Prints the output of commands.

use std::io::{self, Write as _};

/// Replaces control characters except LF: texts of a policy must not move the terminal's cursor.
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

/// Joins an error message to one line: libraries write several.
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

/// Writes a text to standard output without control characters.
pub fn write(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", without_controls(text.trim_end()))
}

/// Prints a warning to standard error, beside a command's output.
pub fn print_warning(text: &str) {
    let text = without_controls(&text.replace('\n', " "));
    // A failure is ignored: if standard error is closed, no reader waits for the warning.
    let _result = writeln!(io::stderr().lock(), "warning: {text}");
}

/// Prints a value as JSON.
pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}
