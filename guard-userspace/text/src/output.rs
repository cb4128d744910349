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

/// Writes a text to standard output without control characters, other than those of [`marked_colour`].
pub fn write(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", written(text))
}

fn written(text: &str) -> String {
    let mut text = without_controls(text.trim_end());
    for colour in COLOURS {
        text = text.replace(&format!("{MARK}{colour}"), &format!("\x1b{colour}"));
    }
    text.replace(MARK, "\u{fffd}")
}

/// Stands for ESC in a text that is not written yet: a noncharacter (Unicode 17, section 23.7), which no text that is
/// meant to be read has.
const MARK: char = '\u{fdd0}';

/// Reset, bold, red, green and yellow (ECMA-48, section 8.3.117), without their ESC. No text has another effect on a
/// terminal, even if it contains [`MARK`].
const COLOURS: [&str; 5] = ["[0m", "[1m", "[31m", "[32m", "[33m"];

/// A colour's control sequences as [`write`] lets them through. Other control sequences are replaced there.
pub fn marked_colour(sequences: &str) -> String {
    sequences.replace('\x1b', &MARK.to_string())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_written_and_no_other_control_sequence_is() {
        let painted = format!(
            "{}{}DROPPED{}: \x1b[31m a \u{fdd0}[2J b",
            marked_colour("\x1b[1m"),
            marked_colour("\x1b[31m"),
            marked_colour("\x1b[0m")
        );
        assert_eq!(
            written(&painted),
            "\x1b[1m\x1b[31mDROPPED\x1b[0m: \u{fffd}[31m a \u{fffd}[2J b"
        );
        assert_eq!(written("one\ntwo\n"), "one\ntwo");
    }
}
