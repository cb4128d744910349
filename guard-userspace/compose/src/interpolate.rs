//! Replaces `${VARIABLE}` in values as Compose does.

/// The deepest nesting of `${A:-${B:-...}}`.
const MAX_DEPTH: usize = 16;

/// The longest value of a variable, and the longest text with its variables replaced.
pub const MAX_BYTES: usize = 64 << 10;

/// The facts about a text that names variables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reference {
    /// The text in the file.
    pub written: String,
    /// The text as it would be if no variable were set.
    pub literal: String,
    /// Variables without a value and without a default: Compose replaces them with an empty text.
    pub unset: Vec<String>,
    /// Variables that must be set and are not: Compose refuses the file.
    pub required: Vec<String>,
}

#[derive(Debug)]
enum Part {
    Literal(String),
    Variable(VariableReference),
}

#[derive(Debug)]
struct VariableReference {
    name: String,
    otherwise: Option<Otherwise>,
}

/// `:-`, `-`, `:?`, `?`, `:+` or `+`, and what follows.
#[derive(Debug)]
struct Otherwise {
    /// A colon: an empty value counts as not set.
    is_colon: bool,
    kind: SubstitutionKind,
    parts: Vec<Part>,
}

#[derive(Clone, Copy, Debug)]
enum SubstitutionKind {
    Default,
    Required,
    Alternative,
}

/// Returns the text with its variables replaced. `None`: it names no variable. The error is the problem.
pub fn interpolate(
    written: &str,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<(String, Reference)>, String> {
    if !written.contains('$') {
        return Ok(None);
    }
    let mut parser = Parser {
        rest: written,
        depth: 0,
    };
    let parts = parser.parts(false)?;
    let mut reference = Reference {
        written: written.to_owned(),
        ..Reference::default()
    };
    let text = evaluate(&parts, lookup, &mut reference)?;
    let nothing = |_: &str| None;
    reference.literal = evaluate(&parts, &nothing, &mut Reference::default())?;
    Ok(Some((text, reference)))
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl Parser<'_> {
    /// Parses up to the end, or to the closing brace of the surrounding variable.
    fn parts(&mut self, in_braces: bool) -> Result<Vec<Part>, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        // `$${` is the text `${`. Compose expects a closing brace for it as well.
        let mut escaped_braces = 0_usize;
        while let Some(next) = self.rest.chars().next() {
            if next == '}' && in_braces && escaped_braces == 0 {
                break;
            }
            self.rest = &self.rest[next.len_utf8()..];
            match next {
                '\n' if in_braces => {
                    return Err("the default of a variable must be one line".to_owned());
                }
                '}' => escaped_braces = escaped_braces.saturating_sub(1),
                _ => {}
            }
            if next != '$' {
                literal.push(next);
            } else if let Some(rest) = self.rest.strip_prefix('$') {
                self.rest = rest;
                literal.push('$');
                escaped_braces += usize::from(rest.starts_with('{'));
            } else if let Some(variable) = self.variable()? {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
                parts.push(Part::Variable(variable));
            } else {
                literal.push('$');
            }
        }
        parts.push(Part::Literal(literal));
        Ok(parts)
    }

    /// Parses a variable after `$`. `None`: neither a name nor a brace follows, so `$` is a character.
    fn variable(&mut self) -> Result<Option<VariableReference>, String> {
        let Some(rest) = self.rest.strip_prefix('{') else {
            return Ok(self.name().map(|name| VariableReference {
                name,
                otherwise: None,
            }));
        };
        self.rest = rest;
        let name = self
            .name()
            .ok_or("no variable name follows ${: write $${ for the characters")?;
        let otherwise = self.otherwise()?;
        self.rest = self.rest.strip_prefix('}').ok_or_else(|| {
            format!("${{{name} is not closed, or has more than a default: write ${{{name}}} or ${{{name}:-default}}")
        })?;
        Ok(Some(VariableReference { name, otherwise }))
    }

    fn name(&mut self) -> Option<String> {
        let end = self
            .rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let (name, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        self.rest = rest;
        Some(name.to_owned())
    }

    fn otherwise(&mut self) -> Result<Option<Otherwise>, String> {
        let (is_colon, rest) = match self.rest.strip_prefix(':') {
            Some(rest) => (true, rest),
            None => (false, self.rest),
        };
        let kind = match rest.chars().next() {
            Some('-') => SubstitutionKind::Default,
            Some('?') => SubstitutionKind::Required,
            Some('+') => SubstitutionKind::Alternative,
            _ => return Ok(None),
        };
        self.rest = &rest[1..];
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!(
                "variables are nested deeper than {MAX_DEPTH} levels"
            ));
        }
        let parts = self.parts(true)?;
        self.depth -= 1;
        Ok(Some(Otherwise {
            is_colon,
            kind,
            parts,
        }))
    }
}

fn evaluate(
    parts: &[Part],
    lookup: &dyn Fn(&str) -> Option<String>,
    found: &mut Reference,
) -> Result<String, String> {
    let mut text = String::new();
    for part in parts {
        match part {
            Part::Literal(literal) => text.push_str(literal),
            Part::Variable(variable) => text.push_str(&variable.evaluate(lookup, found)?),
        }
        if text.len() > MAX_BYTES {
            return Err(format!(
                "with its variables replaced it is longer than {MAX_BYTES} bytes"
            ));
        }
    }
    Ok(text)
}

impl VariableReference {
    fn evaluate(
        &self,
        lookup: &dyn Fn(&str) -> Option<String>,
        found: &mut Reference,
    ) -> Result<String, String> {
        let Self { name, otherwise } = self;
        let value = lookup(name);
        let Some(Otherwise {
            is_colon,
            kind,
            parts,
        }) = otherwise
        else {
            if value.is_none() {
                found.unset.push(name.clone());
            }
            return Ok(value.unwrap_or_default());
        };
        let value = value.filter(|value| !(*is_colon && value.is_empty()));
        // Compose evaluates the text after the operator in any case, and refuses it if a required variable is not set.
        let mut within = Reference::default();
        let text = evaluate(parts, lookup, &mut within)?;
        found.required.extend(within.required);
        match (kind, value) {
            (SubstitutionKind::Default | SubstitutionKind::Required, Some(value)) => Ok(value),
            (SubstitutionKind::Default, None) | (SubstitutionKind::Alternative, Some(_)) => {
                found.unset.extend(within.unset);
                Ok(text)
            }
            (SubstitutionKind::Alternative, None) => Ok(String::new()),
            (SubstitutionKind::Required, None) => {
                found.required.push(name.clone());
                Ok(String::new())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "SET" => Some("value".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    fn text(written: &str) -> String {
        let found = interpolate(written, &lookup).unwrap();
        found.map_or(written.to_owned(), |(text, _)| text)
    }

    #[test]
    fn variables_are_put_in_as_compose_does() {
        for (written, expected) in [
            ("plain", "plain"),
            ("$SET/${SET}", "value/value"),
            ("$$SET $${SET}", "$SET ${SET}"),
            ("${UNSET:-default}", "default"),
            ("${EMPTY:-default}", "default"),
            ("${EMPTY-default}", ""),
            ("${UNSET-default}", "default"),
            ("${SET:-default}", "value"),
            ("${SET:+alternative}", "alternative"),
            ("${EMPTY:+alternative}", ""),
            ("${EMPTY+alternative}", "alternative"),
            ("${UNSET+alternative}", ""),
            ("${UNSET:-${SET}:80}", "value:80"),
            ("${UNSET:-${OTHER:-inner}}/x", "inner/x"),
            ("${UNSET:-}", ""),
            ("a$UNSET.b", "a.b"),
            ("^(a|b)?$", "^(a|b)?$"),
            ("$(stat -c %u x)", "$(stat -c %u x)"),
            ("$1 $- $ $é$", "$1 $- $ $é$"),
            ("$1SET", "$1SET"),
            ("${UNSET:-$}$SET$", "$value$"),
            ("${UNSET:-{x}}", "{x}"),
            ("${UNSET:-$${X}}", "${X}"),
            ("${SET:-$${X}}", "value"),
            ("$$${SET}", "$value"),
            ("${UNSET:-a:-b?c+d}", "a:-b?c+d"),
        ] {
            assert_eq!(text(written), expected, "{written}");
        }
    }

    #[test]
    fn what_is_missing_is_told_apart() {
        let (text, reference) = interpolate("${A:?must} $B ${C-c} ${EMPTY?}", &lookup)
            .unwrap()
            .unwrap();
        assert_eq!(text, "  c ");
        assert_eq!(reference.required, ["A"]);
        assert_eq!(reference.unset, ["B"]);
        assert_eq!(reference.literal, "  c ");
        let (text, reference) = interpolate("${SET:-${A:?must}$B}", &lookup)
            .unwrap()
            .unwrap();
        assert_eq!(text, "value");
        assert_eq!(
            (reference.required, reference.unset),
            (vec!["A".to_owned()], vec![])
        );
    }

    #[test]
    fn what_compose_refuses_is_refused() {
        let nested = "${A:-".repeat(1000);
        for written in [
            "${",
            "${}",
            "${A",
            "${1A}",
            "${A:x}",
            "${A:-b",
            "${A:=b}",
            "${A/b/c}",
            "${ A}",
            "${$}",
            "${A:-a\nb}",
            "${SET:-${}}",
            &nested,
        ] {
            assert!(interpolate(written, &lookup).is_err(), "{written}");
        }
    }
}
