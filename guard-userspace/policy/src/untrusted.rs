//! Escapes and cuts untrusted text (labels, names of containers and images, the names that a client gives itself), so
//! that it can be printed in one line of a log or a status.
//!
//! This module does not interpret the text.

use std::fmt::{self, Write as _};

/// Follows text that was cut.
const MORE: char = '…';

/// The text in quotes, on one line. Characters that a terminal would act on are escaped as in Rust. At most `max_chars`
/// characters are shown, escapes counted and quotes not; then `…` follows the closing quote, where the text itself
/// cannot put it.
pub fn quoted(text: &str, max_chars: usize) -> String {
    let (shown, is_cut) = escaped(text, max_chars);
    let more = if is_cut {
        String::from(MORE)
    } else {
        String::new()
    };
    format!("\"{shown}\"{more}")
}

/// A name unchanged, if it consists of `A-Z a-z 0-9 - _ .` and is short enough; [`quoted`] if not.
pub fn name(text: &str, max_chars: usize) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !text.is_empty() && text.len() <= max_chars && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        quoted(text, max_chars)
    }
}

/// Escapes and cuts a text of which only a part is untrusted, such as the error of a parser. It adds no quotes and
/// keeps those of the text.
pub fn one_line(text: &str, max_chars: usize) -> String {
    let mut line = EscapedLine::new(max_chars);
    for character in text.chars() {
        let is_quote = matches!(character, '"' | '\\');
        if !line.push(character, !is_quote) {
            line.shown.push(MORE);
            break;
        }
    }
    line.shown
}

/// The first `most` texts, and the number of the others.
pub fn listed(texts: impl ExactSizeIterator<Item = String>, most: usize) -> String {
    let count = texts.len();
    let mut line = texts.take(most).collect::<Vec<_>>().join(", ");
    if count > most {
        let _result: fmt::Result = write!(line, " and {} more", count - most);
    }
    line
}

fn escaped(text: &str, max_chars: usize) -> (String, bool) {
    let mut line = EscapedLine::new(max_chars);
    let is_whole = text.chars().all(|character| line.push(character, true));
    (line.shown, !is_whole)
}

struct EscapedLine {
    shown: String,
    left: usize,
}

impl EscapedLine {
    fn new(max_chars: usize) -> Self {
        Self {
            shown: String::new(),
            left: max_chars,
        }
    }

    /// Returns `false` if there was no room.
    fn push(&mut self, character: char, escape_quotes: bool) -> bool {
        // Escapes the Unicode categories C (control, format, which includes changes of the text's direction, private,
        // unassigned) and Z (separators), except the space.
        let escaped = character.escape_debug();
        let as_it_is = character == '\'' || !escape_quotes;
        let length = if as_it_is { 1 } else { escaped.len() };
        if length > self.left {
            return false;
        }
        self.left -= length;
        if as_it_is {
            self.shown.push(character);
        } else {
            self.shown.extend(escaped);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_direction_characters_are_escaped() {
        for (text, shown) in [
            ("web", r#""web""#),
            ("", r#""""#),
            ("it's", r#""it's""#),
            ("a\nERROR forged", r#""a\nERROR forged""#),
            ("a\"b\\c", r#""a\"b\\c""#),
            ("\u{1b}[31mred\u{7f}", r#""\u{1b}[31mred\u{7f}""#),
            ("\u{202e}gpj.exe", r#""\u{202e}gpj.exe""#),
            ("\u{2066}a\u{2069}", r#""\u{2066}a\u{2069}""#),
            ("\u{200b}\u{feff}", r#""\u{200b}\u{feff}""#),
            ("\u{2028}", r#""\u{2028}""#),
            ("\u{85}", r#""\u{85}""#),
            ("büro 東京", "\"büro 東京\""),
        ] {
            assert_eq!(quoted(text, 100), shown);
        }
    }

    #[test]
    fn no_shown_character_is_a_control_or_direction_character() {
        let every: String = ('\0'..=char::MAX).collect();
        let shown = quoted(&every, usize::MAX);
        assert!(shown.len() > every.len());
        assert_eq!(shown.chars().find(|one| one.is_control()), None);
        let turns = ['\u{61c}', '\u{200e}', '\u{200f}'].into_iter();
        let turns = turns.chain('\u{202a}'..='\u{202e}');
        for turn in turns.chain('\u{2066}'..='\u{2069}') {
            assert!(!shown.contains(turn), "{turn:?}");
        }
    }

    #[test]
    fn long_text_is_cut_and_marked_outside_the_quotes() {
        assert_eq!(quoted("abcdef", 6), r#""abcdef""#);
        assert_eq!(quoted("abcdefg", 6), r#""abcdef"…"#);
        assert_eq!(quoted("abcd\n", 5), r#""abcd"…"#, "an escape is not cut");
        assert_eq!(quoted("abc…", 9), r#""abc…""#);
        let long = quoted(&"\u{202e}".repeat(1_000_000), 64);
        assert!(long.chars().count() <= 64 + 3, "{long}");
        assert_eq!(one_line("\"a\" is\nwrong", 100), "\"a\" is\\nwrong");
        assert_eq!(one_line(&"x".repeat(9), 4), "xxxx…");
    }

    #[test]
    fn a_plain_name_is_not_quoted() {
        assert_eq!(name("web-1_a.b", 64), "web-1_a.b");
        assert_eq!(name("web 1", 64), "\"web 1\"");
        assert_eq!(name("", 64), "\"\"");
        assert_eq!(name("abcdef", 5), "\"abcde\"…");
        let names = ["a", "b", "c"].map(str::to_owned);
        assert_eq!(listed(names.clone().into_iter(), 3), "a, b, c");
        assert_eq!(listed(names.into_iter(), 1), "a and 2 more");
    }
}
