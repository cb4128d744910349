//! Finds out what is wrong with the keys and types of a policy that could not be read, and what would be right.

use guard_text::{all_of, any_of, nearest};
use toml::{
    Spanned,
    de::{DeArray, DeInteger, DeTable, DeValue},
};

use super::{
    check::parse_moment,
    keys::{Key, KeySection, Kind, TOP, budget},
    place::Problem,
    port::meant,
    rate::Unit,
};

/// The first problem in the text; `None`: its keys and types are right.
pub fn first_problem(file: &Spanned<DeTable<'_>>) -> Option<Problem> {
    let mut problems = Vec::new();
    let place = SectionPlace {
        section: &TOP,
        path: Vec::new(),
        offset: file.span().start,
    };
    place.walk(file.get_ref(), &mut problems);
    problems.into_iter().min_by_key(|problem| problem.offset)
}

/// A section, where it stands in the file.
struct SectionPlace {
    section: &'static KeySection,
    /// The keys that lead to it from the top: `service`, `limit`.
    path: Vec<&'static str>,
    offset: usize,
}

type SpannedValue<'a, 'i> = &'a Spanned<DeValue<'i>>;

impl SectionPlace {
    fn walk(&self, table: &DeTable<'_>, problems: &mut Vec<Problem>) {
        let before = problems.len();
        for (name, value) in table {
            let (written, offset) = (name.get_ref(), name.span().start);
            match self.section.key(written) {
                Some(key) => self.check(key, value, problems),
                None => problems.push(Problem {
                    text: self.unknown(written, value.get_ref()),
                    offset,
                }),
            }
        }
        // A key that is misspelled is not missing as well.
        if problems.len() > before {
            return;
        }
        let mut required = self.section.keys.iter().filter(|key| key.required);
        if let Some(missing) = required.find(|key| !table.contains_key(key.name)) {
            problems.push(Problem {
                text: format!(
                    "{} has no `{}`: write one, such as {}",
                    self.header(),
                    missing.name,
                    missing.example()
                ),
                offset: self.offset,
            });
        }
    }

    /// `[[service]]`, `[service.limit]`.
    fn header(&self) -> String {
        let path = self.path.join(".");
        match self.path.as_slice() {
            [] => "the policy".to_owned(),
            ["service"] | ["source"] => format!("[[{path}]]"),
            _ => format!("[{path}]"),
        }
    }

    /// A key as it is written here: `docker.socket`, or `packets` in a service's limit.
    fn name(&self, key: &str) -> String {
        match self.path.as_slice() {
            [section @ ("docker" | "web")] => format!("{section}.{key}"),
            _ => key.to_owned(),
        }
    }

    fn unknown(&self, written: &str, value: &DeValue<'_>) -> String {
        let is_top = self.path.is_empty();
        let what = match is_top {
            true => format!("unknown key `{written}`"),
            false => format!("unknown key `{written}` in {}", self.header()),
        };
        let keys = match (self.section.written().as_slice(), is_top) {
            (keys, true) => format!("the keys of a policy are {}", all_of(keys)),
            ([key], false) => format!("the only key there is {key}"),
            (keys, false) => format!("the keys there are {}", all_of(keys)),
        };
        let exact = self.nested(|names| names.into_iter().find(|name| *name == written));
        if !exact.is_empty() {
            return format!("{what}: write {}", any_of(&exact));
        }
        let names = self.section.keys.iter().map(|key| key.name);
        if let Some(key) = nearest(written, names).and_then(|name| self.section.key(name)) {
            return format!("{what}: did you mean {}? {}", key.written(), capital(&keys));
        }
        if let Some(above) = self.belongs_above(written) {
            return format!("{what}: {above}");
        }
        if !is_top && let Some(key) = TOP.key(written) {
            return self.belongs_at_top(key, written, value);
        }
        let plain = written.to_lowercase().replace('-', "_");
        let mut synonyms = self.section.synonyms.iter();
        let synonym = synonyms.find(|(words, _)| words.contains(&plain.as_str()));
        if let Some(key) = synonym.and_then(|(_, own)| self.section.key(own)) {
            return match key.kind {
                Kind::Tables(_) => format!("{what}: write {} and its keys below it", key.written()),
                _ => format!("{what}: write {}, such as {}", key.written(), key.example()),
            };
        }
        let mut keys_here = self.section.keys.iter();
        let budget = keys_here.find(|key| matches!(key.kind, Kind::Budget(_)));
        if let Some(budget) = budget.filter(|_| written == "burst") {
            let (name, kind) = (budget.name, budget.kind);
            let (rate, burst) = (rate_example(kind), burst_example(kind));
            return format!(
                "{what}: a burst stands beside its rate, such as {name} = {{ rate = {rate}, burst = {burst} }}"
            );
        }
        let near = self.nested(|names| nearest(written, names));
        if !near.is_empty() {
            return format!("{what}: did you mean {}?", any_of(&near));
        }
        for parent in ["service", "source"] {
            let section = TOP.key(parent).and_then(Key::section);
            let names = section.into_iter().flat_map(|section| section.keys);
            if let Some(key) = nearest(written, names.map(|key| key.name)) {
                let belongs = format!("it belongs to a [[{parent}]]: write it below that line");
                return match key == written {
                    true => format!("{what}: {belongs}"),
                    false => format!("{what}: did you mean `{key}`? {}", capital(&belongs)),
                };
            }
        }
        format!("{what}: {keys}")
    }

    /// A key of a service or a source that stands below one of its own sections, such as [service.limit].
    fn belongs_above(&self, written: &str) -> Option<String> {
        let [parent @ ("service" | "source"), _, ..] = self.path.as_slice() else {
            return None;
        };
        TOP.key(parent)?.section()?.key(written)?;
        let header = self.header();
        Some(format!(
            "`{written}` belongs to the [[{parent}]]: write it above the line {header}, or it is read as a key of \
             {header}"
        ))
    }

    /// A key of the top of the file that stands in a section.
    fn belongs_at_top(&self, key: &Key, written: &str, value: &DeValue<'_>) -> String {
        let header = self.header();
        match (key.kind, value) {
            (Kind::Table(section), DeValue::Table(table)) => {
                let dotted = table.iter().next().map(|(name, _)| {
                    let own = section.key(name.get_ref()).map_or("", |key| key.name);
                    [written, own].join(".")
                });
                let dotted = dotted.filter(|dotted| !dotted.ends_with('.'));
                let what = dotted.unwrap_or_else(|| written.to_owned());
                format!(
                    "`{what}` belongs at the top of the file, before the first section: below {header} it is read as \
                     a key of {header}; or write it below a line [{written}]"
                )
            }
            (Kind::Tables(_), _) => format!(
                "`{written}` is a section of its own: write it as [[{written}]], without {} before it",
                self.path.join(".")
            ),
            _ => format!(
                "`{written}` belongs at the top of the file, before the first section: below {header} it is read as a \
                 key of {header}"
            ),
        }
    }

    /// Where a key stands in the sections below this one: `limit.packets` for each source. `find`: finds it among the
    /// names of a section.
    fn nested(&self, find: impl Fn(Vec<&'static str>) -> Option<&'static str>) -> Vec<String> {
        let tables = self.section.keys.iter().filter_map(|key| match key.kind {
            Kind::Table(section) => Some((key.name, section)),
            _ => None,
        });
        let found = tables.filter_map(|(name, section)| {
            let key = find(section.keys.iter().map(|key| key.name).collect())?;
            Some(match section.purpose {
                "" => format!("`{name}.{key}`"),
                purpose => format!("`{name}.{key}` ({purpose})"),
            })
        });
        found.collect()
    }

    fn check(&self, key: &'static Key, value: SpannedValue<'_, '_>, problems: &mut Vec<Problem>) {
        let below = |section: &'static KeySection| SectionPlace {
            section,
            path: self.path.iter().copied().chain([key.name]).collect(),
            offset: value.span().start,
        };
        let text = match (key.kind, value.get_ref()) {
            (Kind::Table(section), DeValue::Table(table)) => {
                return below(section).walk(table, problems);
            }
            (Kind::Tables(section), DeValue::Array(tables)) if all_tables(tables) => {
                for one in tables {
                    if let DeValue::Table(table) = one.get_ref() {
                        let place = SectionPlace {
                            offset: one.span().start,
                            ..below(section)
                        };
                        place.walk(table, problems);
                    }
                }
                return;
            }
            (Kind::Budget(unit), DeValue::Table(table)) => {
                return below(budget(unit)).walk(table, problems);
            }
            (Kind::Texts(_) | Kind::Ports, DeValue::Array(elements)) => {
                let wrong = elements
                    .iter()
                    .find(|element| !matches!(element.get_ref(), DeValue::String(_)));
                if let Some(element) = wrong {
                    problems.push(Problem::at(element, self.wrong_element(key, element)));
                }
                return;
            }
            (_, value) => self.wrong_value(key, value),
        };
        if let Some(text) = text {
            problems.push(Problem::at(value, text));
        }
    }

    /// What is wrong with an element of a list of texts.
    fn wrong_element(&self, key: &Key, element: SpannedValue<'_, '_>) -> String {
        let name = self.name(key.name);
        match (key.kind, element.get_ref()) {
            (Kind::Ports, DeValue::Integer(port)) => format!(
                "`{name}` has the number {port} without a protocol: write \"tcp/{port}\", or \"udp/{port}\""
            ),
            (_, DeValue::Array(_)) => {
                format!("`{name}` has a list in its list: write {}", key.example())
            }
            (_, value) => match scalar(value) {
                Some(text) => format!("{text} in `{name}` needs quotes: write {text:?}"),
                None => format!("`{name}` is a list of texts: write {}", key.example()),
            },
        }
    }

    /// What is wrong with a value; `None`: it is right, as far as its type tells.
    fn wrong_value(&self, key: &Key, value: &DeValue<'_>) -> Option<String> {
        let name = self.name(key.name);
        let example = key.example_of(&name);
        let text = match (key.kind, value) {
            (Kind::Text(_), DeValue::String(_))
            | (Kind::Flag, DeValue::Boolean(_))
            | (Kind::Moment, DeValue::Datetime(_))
            | (Kind::Number(_) | Kind::Burst(_), DeValue::Integer(_))
            | (Kind::Budget(_) | Kind::Rate(_) | Kind::Burst(_), DeValue::String(_)) => {
                return None;
            }
            (Kind::Choice(choices), value) => return wrong_choice(&name, choices, value),
            (Kind::Text(_), value) => self.no_text(key, &name, value),
            (Kind::Texts(_), DeValue::String(text)) => {
                let texts: Vec<String> = words(text).map(|word| format!("{word:?}")).collect();
                format!("`{name}` is a list: write {name} = [{}]", texts.join(", "))
            }
            (Kind::Ports, DeValue::String(text)) => {
                let ports = words(text).map(|word| meant(word).unwrap_or_else(|| word.to_owned()));
                let ports: Vec<String> = ports.map(|port| format!("{port:?}")).collect();
                format!("`{name}` is a list: write {name} = [{}]", ports.join(", "))
            }
            (Kind::Ports, DeValue::Integer(port)) => {
                format!(
                    "`{name}` is a list of ports with their protocols: write {name} = [\"tcp/{port}\"]"
                )
            }
            (Kind::Texts(_) | Kind::Ports, _) => format!("`{name}` is a list: write {example}"),
            (Kind::Number(_), DeValue::String(text)) if is_number(text) => {
                format!(
                    "{name} = {text:?} is a text: write the number without quotes, {name} = {text}"
                )
            }
            (Kind::Number(_), DeValue::Float(number)) => {
                format!("{name} = {number} is not a whole number: write one, such as {example}")
            }
            (Kind::Number(_), _) => format!("`{name}` is a whole number: write {example}"),
            (Kind::Flag, _) => {
                format!("`{name}` is true or false: write {name} = true, without quotes")
            }
            (Kind::Moment, DeValue::String(text)) if parse_moment(text).is_some() => format!(
                "{name} = {text:?} is a text: write date and time without quotes, {name} = {text}"
            ),
            (Kind::Moment, DeValue::String(text)) if is_never(text) => {
                format!("{name} = {text:?} is not a date: leave the key out for no end")
            }
            (Kind::Moment, _) => {
                format!("`{name}` is a date and time without quotes: write {example}")
            }
            (Kind::Budget(unit) | Kind::Rate(unit), DeValue::Integer(number)) => format!(
                "{name} = {number} has no period: write {name} = \"{}/s\", or /min or /h",
                with_unit(number, unit)
            ),
            (Kind::Budget(_), _) => format!(
                "`{name}` is a rate: write {example}, or {name} = {{ rate = {}, burst = {} }}",
                rate_example(key.kind),
                burst_example(key.kind)
            ),
            (Kind::Rate(_) | Kind::Burst(_), _) => {
                format!("`{name}` is not valid: write {example}")
            }
            (Kind::Table(section), value) => self.no_table(key, section, value),
            (Kind::Tables(section), value) => no_tables(key, section, value),
        };
        Some(text)
    }

    /// Another type, where a text is right.
    fn no_text(&self, key: &Key, name: &str, value: &DeValue<'_>) -> String {
        match (name, value) {
            ("docker.socket", DeValue::Boolean(false)) => {
                "docker.socket = false is not a path: write docker.socket = \"\" for no Docker"
                    .to_owned()
            }
            ("web.listen", DeValue::Boolean(false)) => {
                "web.listen = false is not an address: leave the key out to serve no page"
                    .to_owned()
            }
            ("web.listen", DeValue::Integer(port)) => format!(
                "web.listen = {port} has no address: write web.listen = \"127.0.0.1:{port}\""
            ),
            (_, DeValue::Array(texts)) => {
                let first = texts.iter().find_map(|text| match text.get_ref() {
                    DeValue::String(text) => Some(format!("{name} = {text:?}")),
                    _ => None,
                });
                let right = first.unwrap_or_else(|| key.example_of(name));
                format!("`{name}` takes one value, not a list: write {right}")
            }
            (_, value) => match scalar(value) {
                Some(text) => format!("{name} = {text} needs quotes: write {name} = {text:?}"),
                None => format!("`{name}` is a text: write {}", key.example_of(name)),
            },
        }
    }

    /// Another type, where a section is right.
    fn no_table(&self, key: &Key, section: &KeySection, value: &DeValue<'_>) -> String {
        let name = key.name;
        let path: Vec<&str> = self.path.iter().copied().chain([name]).collect();
        let path = path.join(".");
        match (name, value) {
            (_, DeValue::Array(tables)) if all_tables(tables) => {
                format!("[[{path}]] stands once: write one bracket, [{path}]")
            }
            ("docker", DeValue::Boolean(false)) => {
                "docker = false is not valid: write docker.socket = \"\" for no Docker".to_owned()
            }
            ("docker", DeValue::String(socket)) => {
                format!("`docker` is a section: write docker.socket = {socket:?}")
            }
            ("web", DeValue::String(listen)) => {
                format!("`web` is a section: write web.listen = {listen:?}")
            }
            ("web", DeValue::Integer(port)) => {
                format!("`web` is a section: write web.listen = \"127.0.0.1:{port}\"")
            }
            ("per", DeValue::Integer(bits)) => {
                format!(
                    "`per` has a number of bits for each version of IP: write per = {{ ipv4 = {bits} }}"
                )
            }
            ("limit" | "limits" | "total", DeValue::String(rate)) => format!(
                "`{name}` is a section of budgets: write {name}.packets = {rate:?}, {name}.connections or {name}.bytes"
            ),
            ("limit" | "limits" | "total", DeValue::Integer(rate)) => format!(
                "`{name}` is a section of budgets: write {name}.packets = \"{rate}/s\", {name}.connections or \
                 {name}.bytes"
            ),
            _ => format!(
                "`{name}` is a section: write [{path}], and its keys {} below it",
                any_of(&section.written())
            ),
        }
    }
}

/// Another type, where sections in two brackets are right.
fn no_tables(key: &Key, section: &KeySection, value: &DeValue<'_>) -> String {
    let name = key.name;
    let DeValue::Table(table) = value else {
        return format!("`{name}` is a section: write [[{name}]], and its keys below it");
    };
    let mut keys = table.iter().map(|(written, value)| {
        let is_section = matches!(value.get_ref(), DeValue::Table(_));
        (
            written.get_ref(),
            section.key(written.get_ref()),
            is_section,
        )
    });
    match keys.next() {
        // `[service.limit]` before any [[service]].
        Some((written, Some(_), true)) if table.len() == 1 => format!(
            "[{name}.{written}] stands before the first [[{name}]]: write [[{name}]] with its keys above it"
        ),
        // `[service.web]`, as other files name their sections.
        Some((written, None, true)) => format!(
            "[{name}.{written}] is not how a {name} gets its name: write [[{name}]], and name = \"{written}\" below it"
        ),
        _ => format!("[{name}] has one bracket: write two, [[{name}]], for each {name}"),
    }
}

/// What is wrong with a value that must be one of these texts; `None`: it is one.
fn wrong_choice(name: &str, choices: &[&str], value: &DeValue<'_>) -> Option<String> {
    let quoted: Vec<String> = choices.iter().map(|choice| format!("{choice:?}")).collect();
    let DeValue::String(text) = value else {
        let what = scalar(value).map_or_else(
            || format!("`{name}` takes one text"),
            |text| format!("{name} = {text} is not valid"),
        );
        return Some(format!("{what}: write {}", any_of(&quoted)));
    };
    if choices.contains(&&**text) {
        return None;
    }
    let near = nearest(text, choices.iter().copied()).or_else(|| {
        let mut synonyms = CHOICES.iter();
        let (_, own) = synonyms.find(|(words, own)| {
            choices.contains(own) && words.contains(&text.to_lowercase().as_str())
        })?;
        Some(own)
    });
    let what = format!("{name} = {text:?} is not valid");
    Some(match near {
        Some(meant) => format!(
            "{what}: did you mean {meant:?}? The values are {}",
            all_of(&quoted)
        ),
        None => format!("{what}: write {}", any_of(&quoted)),
    })
}

/// The words of other tools for the values of keys.
const CHOICES: [(&[&str], &str); 7] = [
    (
        &[
            "on", "enabled", "block", "drop", "active", "protect", "true",
        ],
        "enforce",
    ),
    (
        &[
            "monitor", "detect", "dry-run", "dryrun", "log", "learn", "audit", "report",
        ],
        "observe",
    ),
    (&["disabled", "none", "no", "false", "disable"], "off"),
    (&["docker", "published", "podman"], "containers"),
    (&["all", "system", "machine", "global"], "host"),
    (&["remove", "stop", "clean"], "detach"),
    (&["leave", "stay", "pinned"], "keep"),
];

/// A value that is no text, as it is written.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Float(number) => Some(number.to_string()),
        DeValue::Boolean(flag) => Some(flag.to_string()),
        DeValue::Datetime(moment) => Some(moment.to_string()),
        DeValue::String(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

fn all_tables(array: &DeArray<'_>) -> bool {
    array
        .iter()
        .all(|one| matches!(one.get_ref(), DeValue::Table(_)))
}

/// The words of a list that was written as one text.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split([',', ' ', ';']);
    words.filter(|word| !word.is_empty())
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_never(text: &str) -> bool {
    matches!(
        text.to_lowercase().as_str(),
        "" | "never" | "forever" | "none"
    )
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_uppercase());
    first.into_iter().flatten().chain(letters).collect()
}

fn with_unit(number: &DeInteger<'_>, unit: Unit) -> String {
    match unit {
        Unit::Packets | Unit::Connections => number.to_string(),
        Unit::Bytes => format!("{number}B"),
    }
}

fn rate_example(kind: Kind) -> &'static str {
    match kind {
        Kind::Budget(Unit::Bytes) | Kind::Rate(Unit::Bytes) => "\"20MB/s\"",
        Kind::Budget(Unit::Connections) | Kind::Rate(Unit::Connections) => "\"50/s\"",
        _ => "\"2k/s\"",
    }
}

fn burst_example(kind: Kind) -> &'static str {
    match kind {
        Kind::Budget(Unit::Bytes) | Kind::Burst(Unit::Bytes) => "\"40MB\"",
        Kind::Budget(Unit::Connections) | Kind::Burst(Unit::Connections) => "200",
        _ => "4000",
    }
}

impl Key {
    fn section(&self) -> Option<&'static KeySection> {
        match self.kind {
            Kind::Table(section) | Kind::Tables(section) => Some(section),
            _ => None,
        }
    }

    /// `ports = ["tcp/80"]`.
    fn example(&self) -> String {
        self.example_of(self.name)
    }

    fn example_of(&self, name: &str) -> String {
        match self.kind {
            Kind::Text(example) => format!("{name} = {example:?}"),
            Kind::Texts(example) => format!("{name} = [{example:?}]"),
            Kind::Ports => format!("{name} = [\"tcp/80\"]"),
            Kind::Number(example) => format!("{name} = {example}"),
            Kind::Flag => format!("{name} = true"),
            Kind::Moment => format!("{name} = 2027-01-31T00:00:00Z"),
            Kind::Choice(choices) => {
                let last = choices.last().copied().unwrap_or_default();
                format!("{name} = {last:?}")
            }
            Kind::Budget(_) | Kind::Rate(_) => format!("{name} = {}", rate_example(self.kind)),
            Kind::Burst(_) => format!("{name} = {}", burst_example(self.kind)),
            Kind::Table(section) => {
                let first = section.keys.first();
                let first = first.map(|key| key.example_of(&format!("{name}.{}", key.name)));
                first.unwrap_or_default()
            }
            Kind::Tables(_) => format!("[[{name}]] and its keys below it"),
        }
    }
}
