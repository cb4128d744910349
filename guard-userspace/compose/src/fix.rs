//! Fixes: an edit of the text, and the lines after it.

use std::{collections::BTreeMap, sync::Arc};

use granit_parser::ScalarStyle;

use super::{
    source::{Place, SourceFile},
    yaml::{Node, Scalar},
};

/// Replaces the text of a place.
#[derive(Clone)]
pub struct Fix {
    pub place: Place,
    pub text: String,
}

impl Fix {
    /// Replaces the text of a scalar, in its own quotes, or in double quotes if the new text needs quotes.
    pub fn scalar(node: &Node, scalar: &Scalar, text: &str) -> Option<Self> {
        let written = match scalar.style {
            ScalarStyle::Plain if is_plain(text, node.in_flow) => text.to_owned(),
            ScalarStyle::SingleQuoted => format!("'{}'", text.replace('\'', "''")),
            ScalarStyle::Plain | ScalarStyle::DoubleQuoted => double_quoted(text),
            ScalarStyle::Literal | ScalarStyle::Folded => {
                return Self::block_scalar(node, text);
            }
        };
        Some(Self {
            place: node.place.clone(),
            text: written,
        })
    }

    /// Replaces `|` or `>` and the lines below with one line.
    fn block_scalar(node: &Node, text: &str) -> Option<Self> {
        let Place { source, start, end } = &node.place;
        let written = &source.text[*start..*end];
        written.starts_with(['|', '>']).then(|| Self {
            place: source.place(*start, start + written.trim_end().len()),
            text: double_quoted(text),
        })
    }

    /// Inserts a key at the beginning of a mapping, in quotes if the next key has quotes.
    pub fn first_key(mapping: &Node, key: &str, value: &str) -> Option<Self> {
        mapping.mapping().filter(|keys| !keys.is_empty())?;
        let Place { source, start, .. } = &mapping.place;
        let is_flow = source.text[*start..].starts_with('{');
        let at = match is_flow {
            true => source.next_word(start + 1),
            false => *start,
        };
        let next = source.place(at, at);
        let begins_line = next.before().trim().is_empty();
        let behind = match (is_flow, begins_line) {
            (true, false) => ", ".to_owned(),
            (true, true) => format!(",{}{}", ending(mapping), next.before()),
            (false, _) => format!("{}{}", ending(mapping), " ".repeat(next.column() - 1)),
        };
        let is_quoted = source.text[at..].starts_with('"');
        let key = match is_quoted {
            true => double_quoted(key),
            false => key.to_owned(),
        };
        let value = match is_quoted || !is_plain(value, true) {
            true => double_quoted(value),
            false => value.to_owned(),
        };
        Some(Self {
            place: next,
            text: format!("{key}: {value}{behind}"),
        })
    }

    /// The text of the whole file with this edit.
    pub fn applied(&self) -> String {
        let Self { place, text } = self;
        let whole = &place.source.text;
        [&whole[..place.start], text, &whole[place.end..]].concat()
    }
}

/// The line ending of the file.
fn ending(node: &Node) -> &'static str {
    if node.place.source.text.contains("\r\n") {
        "\r\n"
    } else {
        "\n"
    }
}

/// Whether a text keeps its meaning without quotes.
fn is_plain(text: &str, in_flow: bool) -> bool {
    let first = text.chars().next();
    let is_split = in_flow && text.contains([':', ',', '[', ']', '{', '}']);
    first.is_some_and(|first| first.is_ascii_alphanumeric() || matches!(first, '$' | '/' | '_'))
        && !is_split
        && !text.contains(": ")
        && !text.contains(" #")
        && !text.ends_with([':', ' '])
        && !text.chars().any(char::is_control)
}

fn double_quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            character => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

/// Fixes, by file and start offset.
pub struct Fixes<'a>(BTreeMap<(usize, usize), &'a Fix>);

impl<'a> FromIterator<&'a Fix> for Fixes<'a> {
    fn from_iter<I: IntoIterator<Item = &'a Fix>>(fixes: I) -> Self {
        let fixes = fixes.into_iter();
        Self(
            fixes
                .map(|fix| (key(&fix.place.source, fix.place.start), fix))
                .collect(),
        )
    }
}

fn key(source: &Arc<SourceFile>, offset: usize) -> (usize, usize) {
    (Arc::as_ptr(source).addr(), offset)
}

/// If the lines are longer, only the new text is shown.
const LONGEST_LINE: usize = 2000;

/// The lines of a fix after it and all other fixes of the same lines: of a line with two secrets, none is shown.
pub fn corrected(fix: &Fix, Fixes(others): &Fixes<'_>) -> String {
    let source = &fix.place.source;
    let first = source.line_start(fix.place.start);
    let last = source.line_end(fix.place.end);
    if last - first > LONGEST_LINE {
        return fix.text.trim().to_owned();
    }
    let others = others.range(key(source, first)..key(source, last));
    let mut edits = BTreeMap::from([(fix.place.start, fix)]);
    for (_, other) in others.filter(|(_, other)| other.place.end <= last) {
        let overlaps = |edit: &&Fix| {
            let (mine, theirs) = (&edit.place, &other.place);
            mine.start == theirs.start || (mine.start < theirs.end && theirs.start < mine.end)
        };
        if !edits.values().any(overlaps) {
            edits.insert(other.place.start, other);
        }
    }
    let mut text = String::new();
    let mut at = first;
    for Fix { place, text: new } in edits.into_values() {
        text.push_str(&source.text[at..place.start]);
        text.push_str(new);
        at = place.end;
    }
    text.push_str(&source.text[at..last]);
    text.trim_end().to_owned()
}
