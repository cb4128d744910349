//! The client that requests a change: its user and process from the kernel, and the texts that it sends. The kernel's
//! facts are reliable. The texts are not: they are limited in length, stored separately and shown in quotes.

use std::{fmt, process, str::FromStr};

use nix::unistd::{Uid, User};
use serde::{Deserialize, Serialize};

/// The user and the process of a client, from the kernel (SO_PEERCRED, unix(7)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    pub user: String,
    /// The process may have ended since.
    pub process: Option<u32>,
}

impl Actor {
    /// The user name of a uid, or `user UID` if it has none, and a process.
    pub fn new(uid: Uid, process: Option<u32>) -> Self {
        let user = User::from_uid(uid).ok().flatten();
        Self {
            user: user.map_or_else(|| format!("user {uid}"), |user| user.name),
            process,
        }
    }

    /// This process, with its real user.
    pub fn own() -> Self {
        Self::new(Uid::current(), Some(process::id()))
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, process } = self;
        match process {
            Some(process) => write!(formatter, "{user}, process {process}"),
            None => formatter.write_str(user),
        }
    }
}

/// A client's text that is stored and shown to other users: one line of at most `MAX` characters.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct OneLine<const MAX: usize = 256>(String);

/// Why a client's text is refused. The error does not repeat the text, which could forge a line of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOneLine {
    #[error("it has {characters} characters, at most {most} are allowed: make it shorter")]
    TooLong { characters: usize, most: usize },
    #[error(
        "its character {place} is U+{code:04X}, which breaks the line, moves the cursor or is not \
         shown: write one line of plain text"
    )]
    NotPlain { place: usize, code: u32 },
}

impl<const MAX: usize> OneLine<MAX> {
    /// The text.
    pub fn into_inner(self) -> String {
        let Self(text) = self;
        text
    }
}

impl<const MAX: usize> TryFrom<String> for OneLine<MAX> {
    type Error = NotOneLine;

    fn try_from(text: String) -> Result<Self, NotOneLine> {
        let characters = text.chars().count();
        if characters > MAX {
            return Err(NotOneLine::TooLong {
                characters,
                most: MAX,
            });
        }
        match (1..).zip(text.chars()).find(|(_, c)| !is_plain(*c)) {
            Some((place, c)) => Err(NotOneLine::NotPlain {
                place,
                code: c.into(),
            }),
            None => Ok(Self(text)),
        }
    }
}

impl<const MAX: usize> FromStr for OneLine<MAX> {
    type Err = NotOneLine;

    fn from_str(text: &str) -> Result<Self, NotOneLine> {
        text.to_owned().try_into()
    }
}

impl<const MAX: usize> From<OneLine<MAX>> for String {
    fn from(text: OneLine<MAX>) -> Self {
        text.into_inner()
    }
}

/// Whether a character is shown as itself. Rust escapes the others: control and format characters (also those that
/// change the direction of the text), line separators and unassigned code points.
fn is_plain(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().eq([c])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_would_forge_a_line_or_fill_a_screen_is_refused_and_not_repeated() {
        for text in [
            "",
            "head office NAT",
            "it's \"theirs\" \\ ours",
            "büro 東京",
            &"x".repeat(256),
            &"東".repeat(256),
        ] {
            let kept: OneLine = text.parse().unwrap();
            assert_eq!(kept.into_inner(), text);
        }
        for (text, place) in [
            ("a\nroot", 2),
            ("\u{1b}[2J", 1),
            ("ab\u{202e}c", 3),
            ("\u{2028}", 1),
            ("a\0", 2),
            ("\u{85}", 1),
        ] {
            let code = text.chars().nth(place - 1).unwrap().into();
            let refused = NotOneLine::NotPlain { place, code };
            assert_eq!(text.parse::<OneLine>(), Err(refused));
        }
        let error = "x".repeat(100_000).parse::<OneLine>().unwrap_err();
        let (characters, most) = (100_000, 256);
        assert_eq!(error, NotOneLine::TooLong { characters, most });
        assert!(error.to_string().len() < 100, "{error}");
        assert!("x".repeat(257).parse::<OneLine<4_096>>().is_ok());
    }
}
