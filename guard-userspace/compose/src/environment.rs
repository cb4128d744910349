//! Looks up variables: in the process's environment first, then in `.env`.

use std::{collections::HashMap, rc::Rc};

use super::interpolate::{MAX_BYTES, interpolate};

/// Variables, and the stronger ones that are looked up first.
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

    /// An empty environment behind these variables, which are looked up first.
    pub fn behind(stronger: &Rc<Self>) -> Self {
        Self {
            stronger: Some(Rc::clone(stronger)),
            variables: HashMap::new(),
        }
    }

    /// Reads a file of variables, which replace those read before. The error has the line.
    pub fn read(&mut self, text: &str) -> Result<(), (usize, String)> {
        let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text).trim_start();
        while !rest.is_empty() {
            let line = text[..text.len() - rest.len()].matches('\n').count() + 1;
            let refused = |problem| (line, problem);
            let (statement, behind) = statement(rest).map_err(refused)?;
            rest = behind.trim_start();
            let Some(Assignment {
                name,
                value,
                is_literal,
            }) = statement
            else {
                continue;
            };
            let value = match is_literal {
                true => value,
                false => self.put_in(value).map_err(refused)?,
            };
            if value.len() > MAX_BYTES {
                return Err(refused(format!(
                    "the value of {name} is longer than {MAX_BYTES} bytes"
                )));
            }
            self.variables.insert(name.to_owned(), value);
        }
        Ok(())
    }

    fn put_in(&self, value: String) -> Result<String, String> {
        let Some((text, reference)) = interpolate(&value, &|name| self.get(name))? else {
            return Ok(value);
        };
        match reference.required.first() {
            None => Ok(text),
            Some(name) => Err(format!("needs the variable {name}, which is not set")),
        }
    }
}

struct Assignment<'a> {
    name: &'a str,
    value: String,
    /// The value is in single quotes, in which `$` is a character.
    is_literal: bool,
}

/// The first statement of a text without leading spaces, and the rest of the text. `None`: a comment, or a name without
/// a value, which comes from the process.
fn statement(text: &str) -> Result<(Option<Assignment<'_>>, &str), String> {
    let (line, behind) = text.split_once('\n').unwrap_or((text, ""));
    if line.starts_with('#') {
        return Ok((None, behind));
    }
    let exported = line.strip_prefix("export");
    let exported = exported.filter(|rest| rest.starts_with(char::is_whitespace));
    let assignment = exported.unwrap_or(line).trim_start();
    let split = assignment.find(['=', ':']).unwrap_or(assignment.len());
    let (name, value) = assignment.split_at(split);
    let name = name.trim_end();
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '[' | ']');
    if name.contains(|c: char| !is_part(c)) {
        return Err("sets no variable: write NAME=value".to_owned());
    }
    let Some(value) = value.get(1..) else {
        return Ok((None, behind));
    };
    let value = value.trim_start();
    let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
        let end = value.find(" #").unwrap_or(value.len());
        let assignment = Assignment {
            name,
            value: value[..end].trim_end().to_owned(),
            is_literal: false,
        };
        return Ok((Some(assignment), behind));
    };
    let opened = &text[line.len() - value.len() + 1..];
    // Another statement may follow the quote in its line.
    let (value, behind) = quoted(opened, quote)
        .ok_or_else(|| format!("the value of {name} has no closing {quote}"))?;
    let assignment = Assignment {
        name,
        value,
        is_literal: quote == '\'',
    };
    Ok((Some(assignment), behind))
}

/// The text up to the closing quote, and the rest after it.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        if character == quote {
            return Some((value, &text[index + 1..]));
        }
        if character != '\\' {
            value.push(character);
            continue;
        }
        let escaped = characters.next()?.1;
        match escaped {
            _ if escaped == quote => value.push(quote),
            _ if quote == '\'' => value.extend(['\\', escaped]),
            'a' => value.push('\u{7}'),
            'b' => value.push('\u{8}'),
            'f' => value.push('\u{c}'),
            'n' => value.push('\n'),
            'r' => value.push('\r'),
            't' => value.push('\t'),
            'v' => value.push('\u{b}'),
            // `$$` stays the character `$` when variables are replaced.
            '$' => value.push_str("$$"),
            '\\' => value.push('\\'),
            other => value.extend(['\\', other]),
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
             E: yaml\nF=$A-${NONE:-f}\nG=\nH=\"one\ntwo\"\nSHELL_SET=file\nALONE\nI=a#b\nJ=a$ b\n\
             K= #c\nL=\"1\" M=2 # c\nN='it\\'s \\n'\nO=\"\\x41\\t\"\nP-Q[0].R=p\nexportS=s\n=none",
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
            ("K", Some("#c")),
            ("L", Some("1")),
            ("M", Some("2")),
            ("N", Some("it's \\n")),
            ("O", Some("\\x41\t")),
            ("P-Q[0].R", Some("p")),
            ("exportS", Some("s")),
        ] {
            assert_eq!(environment.get(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line_and_nothing_grows_without_end() {
        let error = |text: &str| Environment::default().read(text).unwrap_err();
        for (text, line) in [
            ("A=1\nB C=x", 2),
            ("A=1\nB?=x", 2),
            ("A=1\n\nB=\"x\ny", 3),
            ("A='a''b'", 1),
            ("A=${", 1),
            ("\nA=${NONE:?}", 2),
        ] {
            assert_eq!(error(text).0, line, "{text}");
        }
        let doubling = (0..60).map(|n| format!("A{}=$A{n}$A{n}\n", n + 1));
        let doubling = format!("A0=xx\n{}", doubling.collect::<String>());
        assert!(error(&doubling).1.contains("longer than"));
    }
}
