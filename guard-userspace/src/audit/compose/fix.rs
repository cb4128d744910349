//! What to write instead: an edit of the text, and the lines that it makes.

use std::{collections::BTreeMap, sync::Arc};

use granit_parser::ScalarStyle;

use super::{
    source::{Place, Source},
    yaml::{Node, Scalar},
};

/// Writes a text in a place. An empty text takes away what stands there.
#[derive(Clone)]
pub struct Fix {
    pub place: Place,
    pub text: String,
}

impl Fix {
    /// A scalar with another text, in the quotes that it has, or in double ones if it needs some.
    pub fn scalar(node: &Node, scalar: &Scalar, text: &str) -> Option<Self> {
        let written = match scalar.style {
            ScalarStyle::Plain if is_plain(text, node.in_flow) => text.to_owned(),
            ScalarStyle::SingleQuoted => format!("'{}'", text.replace('\'', "''")),
            ScalarStyle::Plain | ScalarStyle::DoubleQuoted => double_quoted(text),
            _ => return None,
        };
        Some(Self {
            place: node.place.clone(),
            text: written,
        })
    }

    /// A key at the beginning of a mapping.
    pub fn first_key(mapping: &Node, line: &str) -> Option<Self> {
        let Place { source, start, .. } = &mapping.place;
        let is_flow = source.text[*start..].starts_with('{');
        let (at, text) = if is_flow {
            (start + 1, format!("{line}, "))
        } else {
            let column = mapping.place.column() - 1;
            (
                *start,
                format!("{line}{}{}", ending(mapping), " ".repeat(column)),
            )
        };
        mapping.mapping().filter(|keys| !keys.is_empty())?;
        Some(Self {
            place: source.place(at, at),
            text,
        })
    }

    /// Takes the lines away from the one where `key` begins to the end of `node`; `None` if they hold
    /// anything else.
    pub fn without(key: &Place, node: &Node) -> Option<Self> {
        let source = &key.source;
        let before = key.before().trim();
        let is_own = before.is_empty() || before == "-";
        if !is_own || node.in_flow || !node.place.is_in(source) || node.place.start < key.start {
            return None;
        }
        let end = node.end().max(key.end);
        let rest = source.text[end..source.line_end(end)].trim();
        let ends = rest.is_empty() || rest.starts_with('#') || rest.starts_with(['"', '\'']);
        ends.then(|| Self {
            place: source.place(source.line_start(key.start), source.line_end(end)),
            text: String::new(),
        })
    }

    /// Takes an item out of a list between brackets, with the comma that it leaves.
    pub fn without_flow_item(items: &[Node], item: &Node) -> Option<Self> {
        let source = &item.place.source;
        let index = items
            .iter()
            .position(|other| other.place.is_in(source) && other.place.start == item.place.start)?;
        let before = source.text[..item.place.start].trim_end();
        if !item.in_flow || !before.ends_with(['[', ',']) {
            return None;
        }
        let beside = |index: Option<usize>| {
            let other = items.get(index?)?;
            other.place.is_in(source).then_some(other)
        };
        let next = beside(index.checked_add(1)).filter(|next| next.place.start > item.place.start);
        let last = beside(index.checked_sub(1)).filter(|last| last.end() < item.place.start);
        let (start, end) = match (next, last) {
            (Some(next), _) => (item.place.start, next.place.start),
            (None, Some(last)) => (last.end(), item.end()),
            (None, None) => return None,
        };
        Some(Self {
            place: source.place(start, end),
            text: String::new(),
        })
    }

    /// The text of the whole file with this edit.
    pub fn applied(&self) -> String {
        let Self { place, text } = self;
        let whole = &place.source.text;
        [&whole[..place.start], text, &whole[place.end..]].concat()
    }
}

/// The line ends of the file.
fn ending(node: &Node) -> &'static str {
    if node.place.source.text.contains("\r\n") {
        "\r\n"
    } else {
        "\n"
    }
}

/// Whether a text means itself without quotes.
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

/// Edits by where they begin.
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

fn key(source: &Arc<Source>, offset: usize) -> (usize, usize) {
    (Arc::as_ptr(source).addr(), offset)
}

/// Of a longer line, only what is new is shown.
const LONGEST_LINE: usize = 2000;

/// The lines of an edit as they are when it and the others of the same lines are made: a line with two
/// secrets shows none. Empty if nothing is left of them.
pub fn corrected(fix: &Fix, Fixes(others): &Fixes<'_>) -> String {
    let source = &fix.place.source;
    let first = source.line_start(fix.place.start);
    let last = match fix.text.is_empty() && fix.place.end > fix.place.start {
        true => fix.place.end,
        false => source.line_end(fix.place.end),
    };
    if last - first > LONGEST_LINE && !fix.text.is_empty() {
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
