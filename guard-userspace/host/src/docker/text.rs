//! Escapes and cuts text from containers and their daemon, so that it can be printed.

/// The longest name, image or error that is kept, in characters.
const LONGEST: usize = 256;

/// Makes a text printable, on one line and not long: a line break or U+202E could forge other output.
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
    fn text_forges_no_line_and_is_cut() {
        assert_eq!(plain("web-1"), "web-1");
        assert_eq!(plain("it's \"so\\\""), "it's \"so\\\"");
        assert_eq!(plain("a\nb\u{202e}c\u{1b}[2J"), "a\\nb\\u{202e}c\\u{1b}[2J");
        let long = plain(&"x".repeat(1 << 20));
        assert_eq!(long.chars().count(), LONGEST + 1);
    }
}
