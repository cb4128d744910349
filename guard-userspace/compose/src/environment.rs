//! What variables mean: the process's environment first, then `.env`.

use std::{collections::HashMap, rc::Rc};

use super::interpolate::{MAX_BYTES, interpolate};

/// Variables, and those that come before them.
#[derive(Clone, Default)]
pub struct Environment {
    stronger: Option<Rc<Environment>>,
    variables: HashMap<String, String>,
}

impl Environment {
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        Self {
            stronger: None,
            variables: variables.into_iter().collect(),
        }
    }

    pub fn get(&self, name: &str) -> Option<String> {
        let stronger = self
            .stronger
            .as_ref()
            .and_then(|stronger| stronger.get(name));
        stronger.or_else(|| self.variables.get(name).cloned())
    }

    /// One that these variables come before.
    pub fn behind(stronger: &Rc<Self>) -> Self {
        Self {
            stronger: Some(Rc::clone(stronger)),
            variables: HashMap::new(),
        }
    }

    /// Reads a file of variables, which come before those that are here. The error has the line.
    pub fn read(&mut self, text: &str) -> Result<(), (usize, String)> {
        let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
        while !rest.is_empty() {
            let line = text[..text.len() - rest.len()].matches('\n').count() + 1;
            let (assignment, behind) = assignment(rest).map_err(|problem| (line, problem))?;
            rest = behind;
            let Some(Assignment {
                name,
                value,
                is_literal,
            }) = assignment
            else {
                continue;
            };
            let value = if is_literal {
                value
            } else {
                self.put_in(value)
            };
            if value.len() > MAX_BYTES {
                return Err((
                    line,
                    format!("the value of {name} is longer than {MAX_BYTES} bytes"),
                ));
            }
            self.variables.insert(name.to_owned(), value);
        }
        Ok(())
    }

    /// What is no reference stays as it is.
    fn put_in(&self, value: String) -> String {
        match interpolate(&value, &|name| self.get(name)) {
            Ok(Some((text, _))) => text,
            Ok(None) | Err(_) => value,
        }
    }
}

struct Assignment<'a> {
    name: &'a str,
    value: String,
    /// In single quotes, which keep `$`.
    is_literal: bool,
}

/// The first line's, or that of several lines if a quote spans them, and what follows.
fn assignment(text: &str) -> Result<(Option<Assignment<'_>>, &str), String> {
    let (line, behind) = text.split_once('\n').unwrap_or((text, ""));
    let trimmed = line.trim();
    if trimmed.is_empty() || trimmed.starts_with('#') {
        return Ok((None, behind));
    }
    let trimmed = trimmed.strip_prefix("export ").unwrap_or(trimmed);
    let Some(split) = trimmed.find(['=', ':']) else {
        // The name alone: what the process has.
        return Ok((None, behind));
    };
    let name = trimmed[..split].trim();
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err("sets no variable: write NAME=value".to_owned());
    }
    let start = line.find(['=', ':']).map_or(line.len(), |at| at + 1);
    let value = line[start..].trim_start();
    let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
        let end = value
            .find(" #")
            .or_else(|| value.starts_with('#').then_some(0));
        let value = value[..end.unwrap_or(value.len())].trim_end().to_owned();
        let assignment = Assignment {
            name,
            value,
            is_literal: false,
        };
        return Ok((Some(assignment), behind));
    };
    let opened = &text[line.len() - value.len() + 1..];
    let (value, closed) = quoted(opened, quote)
        .ok_or_else(|| format!("the value of {name} has no closing {quote}"))?;
    let assignment = Assignment {
        name,
        value,
        is_literal: quote == '\'',
    };
    let behind = closed.split_once('\n').map_or("", |(_, behind)| behind);
    Ok((Some(assignment), behind))
}

/// The text up to the quote, and what follows it.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            character if character == quote => return Some((value, &text[index + 1..])),
            '\\' if quote == '"' => match characters.next()?.1 {
                'n' => value.push('\n'),
                'r' => value.push('\r'),
                't' => value.push('\t'),
                // Stays a character when variables are put in.
                '$' => value.push_str("$$"),
                other => value.push(other),
            },
            character => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Environment {
        let process = Rc::new(Environment::new([(
            "SHELL_SET".to_owned(),
            "shell".to_owned(),
        )]));
        let mut environment = Environment::behind(&process);
        environment.read(text).unwrap();
        environment
    }

    #[test]
    fn files_of_variables_are_read_as_people_write_them() {
        let environment = read(
            "\u{feff}# comment\r\nA=1\r\nexport B = two words # comment\nC='$A # kept'\nD=\"x\\n$A\\$A\"\n\
             E: yaml\nF=$A-${NONE:-f}\nG=\nH=\"one\ntwo\"\nSHELL_SET=file\nALONE\nI=a#b\nJ=a$ b",
        );
        for (name, expected) in [
            ("A", Some("1")),
            ("B", Some("two words")),
            ("C", Some("$A # kept")),
            ("D", Some("x\n1$A")),
            ("E", Some("yaml")),
            ("F", Some("1-f")),
            ("G", Some("")),
            ("H", Some("one\ntwo")),
            ("SHELL_SET", Some("shell")),
            ("ALONE", None),
            ("I", Some("a#b")),
            ("J", Some("a$ b")),
        ] {
            assert_eq!(environment.get(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line_and_nothing_grows_without_end() {
        let error = |text: &str| Environment::default().read(text).unwrap_err();
        assert_eq!(error("A=1\n=x").0, 2);
        assert_eq!(error("A=1\n\nB=\"x\ny").0, 3);
        let doubling = (0..60).map(|n| format!("A{}=$A{n}$A{n}\n", n + 1));
        let doubling = read(&format!("A0=xx\n{}", doubling.collect::<String>()));
        let values = doubling.variables.values();
        assert!(values.map(String::len).all(|length| length <= MAX_BYTES));
    }
}
