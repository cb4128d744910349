//! Colours for states and verdicts, on a terminal only. Everything that a colour shows is also written in words.

use std::{
    env,
    io::{self, IsTerminal as _},
    sync::atomic::{AtomicBool, Ordering},
};

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use guard_text::marked_colour;

/// When output has colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColourChoice {
    /// On a terminal, unless the variable NO_COLOR is set
    #[default]
    Auto,
    Always,
    Never,
}

impl ColourChoice {
    /// Decides for this process, before anything is printed.
    pub fn apply(self) {
        let has_colour = match self {
            Self::Auto => io::stdout().is_terminal() && is_wanted(|name| env::var_os(name)),
            Self::Always => true,
            Self::Never => false,
        };
        HAS_COLOUR.store(has_colour, Ordering::Relaxed);
    }
}

static HAS_COLOUR: AtomicBool = AtomicBool::new(false);

/// Whether this process prints colours.
pub fn has_colour() -> bool {
    HAS_COLOUR.load(Ordering::Relaxed)
}

/// `NO_COLOR` counts unless it is empty (no-color.org).
fn is_wanted(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> bool {
    let no_colour = variable("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_dumb = variable("TERM").is_some_and(|value| value == "dumb");
    !no_colour && !is_dumb
}

/// The meaning of a colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it should be: enforcing, passed.
    Good,
    /// Worth a look: observing, would be dropped, dim facts that changed.
    Notice,
    /// Not as it should be, or dropped.
    Bad,
}

impl Tone {
    const fn style(self) -> Style {
        match self {
            Self::Good => AnsiColor::Green.on_default(),
            Self::Notice => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default(),
        }
    }
}

/// The text in the colour of its meaning, if this process prints colours.
pub fn paint(tone: Tone, text: &str) -> String {
    if !has_colour() || text.is_empty() {
        return text.to_owned();
    }
    painted(tone.style(), text)
}

/// The text with its first line in bold and in the colour of its meaning.
pub fn paint_first_line(tone: Tone, text: &str) -> String {
    if !has_colour() {
        return text.to_owned();
    }
    let style = tone.style().bold();
    match text.split_once('\n') {
        Some((first, rest)) => painted(style, first) + "\n" + rest,
        None => painted(style, text),
    }
}

/// A text that `guard_text::write` writes in this style.
fn painted(style: Style, text: &str) -> String {
    let [on, off] = [format!("{style}"), format!("{style:#}")];
    marked_colour(&on) + text + &marked_colour(&off)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_is_set_and_not_empty_turns_colours_off() {
        let with = |pairs: &'static [(&'static str, &'static str)]| {
            move |name: &str| {
                let mut pairs = pairs.iter();
                Some(pairs.find(|(known, _)| *known == name)?.1.into())
            }
        };
        assert!(is_wanted(with(&[("TERM", "xterm-256color")])));
        assert!(is_wanted(with(&[("NO_COLOR", "")])));
        assert!(!is_wanted(with(&[("NO_COLOR", "0")])));
        assert!(!is_wanted(with(&[("TERM", "dumb")])));
    }
}
