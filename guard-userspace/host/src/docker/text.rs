//! Text that containers and their daemon have written, before anybody prints it.

/// The longest name, image or error that is kept, in characters.
const LONGEST: usize = 256;

/// Printable, on one line, and not long: a line break or U+202E would forge what is printed.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::new();
    for character in text.chars().take(LONGEST) {
        match character {
            '\'' | '"' | '\\' => plain.push(character),
            _ => plain.extend(character.escape_debug()),
        }
    }
    if text.chars().nth(LONGEST).is_some() {
        plain.push('…');
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_forges_a_line_or_fills_a_screen() {
        assert_eq!(plain("web-1"), "web-1");
        assert_eq!(plain("it's \"so\\\""), "it's \"so\\\"");
        assert_eq!(plain("a\nb\u{202e}c\u{1b}[2J"), "a\\nb\\u{202e}c\\u{1b}[2J");
        let long = plain(&"x".repeat(1 << 20));
        assert_eq!(long.chars().count(), LONGEST + 1);
    }
}
