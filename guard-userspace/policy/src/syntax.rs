//! Explains in the words of the policy why a text is not TOML.

use guard_text::Lines;

/// What is wrong at this offset of the text, and what would be right. `message`: what the parser says.
pub fn explain(text: &str, message: &str, offset: usize) -> String {
    let place = SyntaxError::new(text, offset);
    let explained = place.explain(message);
    // The parser's own words end with what it expects.
    explained.unwrap_or_else(|| {
        let message = message.replace('\n', "; ");
        format!("this line is not TOML ({message})")
    })
}

/// A place where the parser stopped.
struct SyntaxError<'a> {
    text: &'a str,
    offset: usize,
    /// The line, and the offset in it.
    line: &'a str,
    column: usize,
}

/// What ends an unquoted word.
const ENDS: [char; 8] = [' ', '\t', ',', ']', '}', '#', '\n', '\r'];

/// Typographic quotes, which word processors and web pages make of straight ones.
const CURLY: [char; 6] = ['“', '”', '„', '‘', '’', '«'];

impl<'a> SyntaxError<'a> {
    fn new(text: &'a str, offset: usize) -> Self {
        // The parser's offsets lie between characters; an offset that does not is moved to the one before.
        let offset = (0..=offset.min(text.len()))
            .rev()
            .find(|offset| text.is_char_boundary(*offset))
            .unwrap_or_default();
        let (before, after) = text.split_at(offset);
        let start = before.rfind('\n').map_or(0, |end| end + 1);
        let end = after.find('\n').map_or(text.len(), |end| offset + end);
        Self {
            text,
            offset,
            line: text.get(start..end).unwrap_or_default(),
            column: offset - start,
        }
    }

    fn explain(&self, message: &str) -> Option<String> {
        let line = self.line.trim();
        let (message, expected) = message.split_once(", expected").unwrap_or((message, ""));
        let header = self.header();
        if self.text.trim_start().starts_with('{') {
            return Some("the policy is written in TOML, not in JSON: write lines such as mode = \"observe\"".to_owned());
        }
        match message {
            "string values must be quoted" => Some(self.unquoted()),
            "invalid boolean" => Some(self.unquoted()),
            _ if message.starts_with("unclosed") && line.starts_with('[') => header,
            "unexpected key or value" if line.starts_with('[') && !line.contains('=') => header,
            "unquoted keys cannot be empty" if line.starts_with('[') => header,
            "unquoted keys cannot be empty" => {
                Some("there is no key before `=`: write one, such as mode = \"observe\"".to_owned())
            }
            "key with no value" if line.ends_with(']') && !line.contains(['=', ':', ' ']) => header,
            "key with no value" => Some(self.no_equals()),
            "unexpected key or value" => Some(
                "this line goes on after its value: write each key in a line of its own".to_owned(),
            ),
            "missing comma between array elements" => Some(if line_key(line).is_some() && self.is_line_start() {
                "the list above this line is not closed: write ] at its end".to_owned()
            } else {
                "a comma is missing between two elements of the list: write one".to_owned()
            }),
            "extra comma in array" => Some("a comma follows another: write one".to_owned()),
            "unclosed array" => Some("the list is not closed: write ] at its end".to_owned()),
            "unclosed inline table" => {
                Some("the braces are not closed: write } at the end of the value".to_owned())
            }
            "invalid basic string" | "invalid literal string" | "unclosed basic string" => Some(
                "a quote is missing: write the text between two quotes, in one line".to_owned(),
            ),
            "missing assignment between key-value pairs"
            | "missing key for inline table element"
            | "missing comma between key-value pairs"
            | "extra assignment between key-value pairs" => Some(
                "braces hold keys with their values, and commas between them: write them as in \
                 { rate = \"50/s\", burst = 200 }"
                    .to_owned(),
            ),
            "unexpected `=` in array" => {
                Some("the list before this `=` is not closed: write ] at its end".to_owned())
            }
            "missing opening quote" => {
                Some("a quote is missing before this text: write the text between two quotes".to_owned())
            }
            "missing table open" => header,
            "invalid unquoted key" => Some(
                "a key has letters, digits, - and _ alone: write one of the policy's keys before `=`"
                    .to_owned(),
            ),
            "extra `=`" => Some("there are two signs `=`: write one".to_owned()),
            "missing escaped value" => Some(
                "a \\ in quotes begins a special character: write \\\\, or put the text between single quotes".to_owned(),
            ),
            "unexpected leading zero" => Some("a number has no 0 before it: leave it out".to_owned()),
            "duplicate key" => Some(self.duplicate()),
            _ if message.contains("date") || message.contains("time") || expected.contains("digit") => {
                Some("this is not a date and time: write one such as 2027-01-31T00:00:00Z".to_owned())
            }
            _ => None,
        }
    }

    fn is_line_start(&self) -> bool {
        let before = self.line.get(..self.column).unwrap_or_default();
        before.trim().is_empty()
    }

    /// The unquoted word at the offset.
    fn word(&self) -> &'a str {
        let (before, after) = self
            .line
            .split_at_checked(self.column)
            .unwrap_or(("", self.line));
        let begins = |c: char| ENDS.contains(&c) || matches!(c, '=' | '[' | '{');
        let start = before.rfind(begins).map_or(0, |end| end + 1);
        let after = after.trim_start();
        // The parser stops before the blanks in front of a word.
        let (start, from) = match self.line.get(start..self.column) {
            Some(word) if !word.is_empty() => (start, self.line.get(start..).unwrap_or_default()),
            _ => (self.line.len() - after.len().min(self.line.len()), after),
        };
        let end = from.find(ENDS).map_or(from.len(), |end| end);
        self.line.get(start..start + end).unwrap_or_default()
    }

    /// Text without quotes, or with other signs for quotes.
    fn unquoted(&self) -> String {
        let word = self.word();
        let plain = word.trim_matches(|c| CURLY.contains(&c) || c == '`');
        if word.is_empty() || plain.is_empty() {
            return match line_key(self.line) {
                Some(key) => format!("`{key}` has no value: write one after `=`"),
                None => "there is no value after `=`: write one".to_owned(),
            };
        }
        if plain.len() < word.len() {
            return format!("{word} is not in straight quotes: write {plain:?}");
        }
        let key = line_key(self.line).filter(|_| line_value(self.line) == word);
        let last = key
            .and_then(|key| key.rsplit('.').next())
            .unwrap_or_default();
        match (key, last) {
            (Some(key), "exempt" | "deny") => {
                let yes = matches!(word.to_lowercase().as_str(), "true" | "yes" | "on");
                format!("`{key}` is true or false, in small letters: write {key} = {yes}")
            }
            (Some(key), "ports" | "from" | "cidrs" | "interfaces") => {
                format!("`{key}` is a list of texts in quotes: write {key} = [{word:?}]")
            }
            (Some(key), _) => format!("{word} needs quotes: write {key} = {word:?}"),
            (None, _) => format!("{word} needs quotes: write {word:?}"),
        }
    }

    /// A line without `=`.
    fn no_equals(&self) -> String {
        let line = self.line.trim();
        for comment in ["//", ";", "--", "/*"] {
            if line.starts_with(comment) {
                return format!("a comment begins with #, not with {comment}");
            }
        }
        let quoted = |value: &str| match value.trim().trim_matches(['"', '\'']) {
            "" => None,
            value if value.parse::<i64>().is_ok() || matches!(value, "true" | "false") => {
                Some(value.to_owned())
            }
            value if value.starts_with('[') => Some(value.to_owned()),
            value => Some(format!("{value:?}")),
        };
        if let Some((key, value)) = line.split_once(':').filter(|(key, _)| is_key(key.trim())) {
            let key = key.trim();
            return match quoted(value) {
                Some(value) => {
                    format!("a key and its value have `=` between them: write {key} = {value}")
                }
                None => format!(
                    "`{key}:` is YAML, and the policy is written in TOML: a section begins with [[service]], and \
                     its keys stand below it, such as name = \"web\""
                ),
            };
        }
        match line
            .split_once(char::is_whitespace)
            .filter(|(key, _)| is_key(key))
        {
            Some((key, value)) if !value.contains('=') => match quoted(value) {
                Some(value) => format!("`{key}` has no `=`: write {key} = {value}"),
                None => format!("`{key}` has no value: write {key} = and its value"),
            },
            _ => match line_key(line) {
                Some(key) => format!(
                    "this line does not begin with `{key}`: write {key} = {}",
                    line_value(line)
                ),
                None => format!("{line:?} has no value: write a key, `=` and its value"),
            },
        }
    }

    /// A section's header with a bracket too few or too many.
    fn header(&self) -> Option<String> {
        let name = self.line.split('#').next().unwrap_or_default();
        let name = name.trim().trim_matches(['[', ']', ' ']);
        let right = match name {
            "" => {
                return Some(
                    "the brackets are empty: write the name of a section, such as [[service]]"
                        .to_owned(),
                );
            }
            "service" | "source" => format!("[[{name}]]"),
            name => format!("[{name}]"),
        };
        Some(format!(
            "a section stands in brackets that are closed: write {right}"
        ))
    }

    /// A key or a section that is there already.
    fn duplicate(&self) -> String {
        let line = self.line.trim();
        let key = match line_key(line) {
            Some(key) => key,
            None => line.split('#').next().unwrap_or_default().trim(),
        };
        if let Some(name) = key
            .strip_prefix("[[")
            .and_then(|name| name.strip_suffix("]]"))
        {
            let below = format!("[{name}.");
            if let Some(number) = self.earlier(|line| line.starts_with(&below)) {
                return format!(
                    "the section in line {number} stands before the first {key}: move it below {key} and its keys"
                );
            }
        }
        let name = key.trim_matches(['[', ']', ' ']);
        let first = name.split('.').next().unwrap_or(name);
        let is_same = |line: &str| match line_key(line) {
            Some(other) if key.starts_with('[') => {
                other.split('.').next() == Some(first) && !other.starts_with('[')
            }
            Some(other) => other == key || other.starts_with(&format!("{key}.")),
            None => line.trim_matches(['[', ']', ' ']) == name,
        };
        match self.earlier(is_same) {
            Some(number) => format!("{name} is already in line {number}: write each key once"),
            None => format!("{name} is written twice: write each key once"),
        }
    }

    /// The number of the last line before this one for which `is_it` holds.
    fn earlier(&self, is_it: impl Fn(&str) -> bool) -> Option<usize> {
        let before = self.text.get(..self.offset)?;
        let number = Lines::new(self.text).line(self.offset);
        let lines: Vec<&str> = before.lines().take(number - 1).collect();
        let place = lines.iter().rposition(|line| {
            let line = line.split('#').next().unwrap_or_default();
            is_it(line.trim())
        })?;
        Some(place + 1)
    }
}

fn is_key(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    !text.is_empty() && text.chars().all(is_part)
}

/// The key before `=`.
fn line_key(line: &str) -> Option<&str> {
    let (key, _) = line.split_once('=')?;
    let key = key.trim();
    is_key(key).then_some(key)
}

/// What stands after `=`, without a comment.
fn line_value(line: &str) -> &str {
    let (_, value) = line.split_once('=').unwrap_or_default();
    value.split('#').next().unwrap_or_default().trim()
}
