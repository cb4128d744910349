//! Finds the word that was probably meant.

/// The candidate that a misspelled word probably means; `None`: none is close.
///
/// Case, `-` and `_` make no difference. A word of up to three letters may have one slip (a letter wrong, missing, added
/// or swapped with its neighbour), a longer word one for every three letters. The beginning of a candidate is close, too.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = plain(word);
    let length = word.chars().count();
    if length == 0 {
        return None;
    }
    let most = (length / 3).max(1);
    let distance = |candidate: &str| {
        let candidate = plain(candidate);
        // The beginning of a word is cut off, not misspelled: nearer than any other misspelling but one letter.
        if length >= 3 && candidate.starts_with(&word) {
            return Some(1);
        }
        let distance = strsim::damerau_levenshtein(&word, &candidate);
        // Of a short candidate, every letter could be another.
        let is_close = distance <= most && distance < candidate.chars().count();
        is_close.then_some(distance)
    };
    let candidates = candidates.into_iter();
    let close = candidates.filter_map(|candidate| Some((distance(candidate)?, candidate)));
    close
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn plain(word: &str) -> String {
    word.to_lowercase().replace('_', "-")
}

/// Joins words to `a, b or c`.
pub fn any_of<T: AsRef<str>>(words: &[T]) -> String {
    joined(words, "or")
}

/// Joins words to `a, b and c`.
pub fn all_of<T: AsRef<str>>(words: &[T]) -> String {
    joined(words, "and")
}

fn joined<T: AsRef<str>>(words: &[T], last: &str) -> String {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    match words.as_slice() {
        [] => String::new(),
        [word] => (*word).to_owned(),
        [words @ .., end] => format!("{} {last} {end}", words.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_found_and_another_word_is_not() {
        let commands = [
            "status", "counters", "top", "try", "talkers", "deny", "list",
        ];
        for (word, meant) in [
            ("statsu", Some("status")),
            ("Status", Some("status")),
            ("stat", Some("status")),
            ("count", Some("counters")),
            ("tpo", Some("top")),
            ("dney", Some("deny")),
            ("lst", Some("list")),
            ("taklers", Some("talkers")),
            ("x", None),
            ("", None),
            ("firewall", None),
            ("backup", None),
        ] {
            assert_eq!(nearest(word, commands), meant, "{word}");
        }
        assert_eq!(nearest("on-exit", ["on_exit", "mode"]), Some("on_exit"));
    }

    #[test]
    fn words_are_joined_as_in_a_sentence() {
        assert_eq!(any_of(&["a"]), "a");
        assert_eq!(any_of(&["a", "b", "c"]), "a, b or c");
        assert_eq!(all_of(&["a", "b"]), "a and b");
        assert_eq!(all_of::<&str>(&[]), "");
    }
}
