//! Generates projects: ports in every spelling, variables, profiles, files on top of each other. Most are valid.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use fastrand::Rng;

use crate::judge::ProjectInput;

/// The files and arguments of a generated project.
#[derive(Debug, Default)]
pub struct Generated {
    /// The texts of all files by name, also of files that the command line does not name.
    pub texts: BTreeMap<String, String>,
    files: Vec<String>,
    profiles: Vec<String>,
    env_files: Option<Vec<String>>,
    environment: BTreeMap<String, String>,
}

impl Generated {
    /// Writes the files into an empty folder.
    pub fn write(&self, folder: &Path) -> ProjectInput {
        for (name, text) in &self.texts {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let paths = |names: &Vec<String>| names.iter().map(PathBuf::from).collect();
        ProjectInput {
            folder: folder.to_owned(),
            files: paths(&self.files),
            profiles: self.profiles.clone(),
            env_files: self.env_files.as_ref().map(paths),
            environment: self.environment.clone(),
        }
    }

    /// Describes the project for the report of a disagreement.
    pub fn describe(&self) -> String {
        let Self {
            texts,
            files,
            profiles,
            env_files,
            environment,
        } = self;
        let mut text = format!(
            "files {files:?}, profiles {profiles:?}, env files {env_files:?}, environment {environment:?}\n"
        );
        for (name, content) in texts {
            writeln!(text, "--- {name}\n{content}").unwrap();
        }
        text
    }
}

/// Returns true once in `many` times.
fn one_in(random: &mut Rng, many: u32) -> bool {
    random.u32(..many) == 0
}

fn choose<'a>(random: &mut Rng, from: &[&'a str]) -> &'a str {
    from[random.usize(..from.len())]
}

pub struct ProjectGenerator {
    random: Rng,
    project: Generated,
    /// Variables of `.env`, in their order.
    dot_env: Vec<(String, String)>,
    /// Counts variables, so that each has one value.
    variables: usize,
    /// The project has mistakes that Compose refuses.
    sloppy: bool,
    /// Services that change their base by a tag. If others extend these, Compose's result depends on the order of a Go
    /// map.
    changed: Vec<String>,
}

/// The names of services.
const SERVICES: [&str; 5] = ["web", "api", "db", "queue", "cache"];

const PROFILES: [&str; 3] = ["debug", "tools", "front"];

impl ProjectGenerator {
    pub fn new(seed: u64) -> Self {
        Self {
            random: Rng::with_seed(seed),
            project: Generated::default(),
            dot_env: Vec::new(),
            variables: 0,
            sloppy: false,
            changed: Vec::new(),
        }
    }

    pub fn project(mut self) -> Generated {
        self.sloppy = one_in(&mut self.random, 3);
        let names = &SERVICES[..self.random.usize(1..=SERVICES.len())];
        let base = self.base(names);
        self.add_file("compose.yaml", base);
        for number in 0..self.random.usize(..3) {
            let over = self.over(names);
            self.add_file(&format!("over{number}.yaml"), over);
        }
        if one_in(&mut self.random, 3) {
            let profile = choose(&mut self.random, &PROFILES);
            self.project.profiles.push(profile.to_owned());
        }
        self.write_environment();
        self.project
    }

    /// Whether to make a mistake, once in `many` times.
    fn slips(&mut self, many: u32) -> bool {
        self.sloppy && one_in(&mut self.random, many)
    }

    fn add_file(&mut self, name: &str, text: String) {
        self.project.texts.insert(name.to_owned(), text);
        self.project.files.push(name.to_owned());
    }

    /// Writes `.env`, or files that the command line names instead.
    fn write_environment(&mut self) {
        let lines: Vec<String> = std::mem::take(&mut self.dot_env)
            .into_iter()
            .map(|(name, value)| self.assignment(&name, &value))
            .collect();
        let random = &mut self.random;
        if one_in(random, 4) {
            let split = random.usize(..=lines.len());
            let (first, second) = lines.split_at(split);
            let names = ["first.env", "second.env"];
            for (name, lines) in names.into_iter().zip([first, second]) {
                self.project.texts.insert(name.to_owned(), lines.concat());
            }
            self.project.env_files = Some(names.map(str::to_owned).to_vec());
            // If files are named, Compose does not read `.env`.
            let ignored = "PORT=1\nWRONG LINE=2\n".to_owned();
            self.project.texts.insert(".env".to_owned(), ignored);
        } else if !lines.is_empty() {
            self.project.texts.insert(".env".to_owned(), lines.concat());
        }
    }

    /// A line of `.env`, in one of its spellings.
    fn assignment(&mut self, name: &str, value: &str) -> String {
        let random = &mut self.random;
        let before = choose(
            random,
            &["", "", "", "export ", "  ", "# a comment\n", "\n\n"],
        );
        let between = choose(random, &["=", "=", "=", " = ", "= ", ": ", ":"]);
        // Without quotes, `$` stands for a variable; so it does in double ones.
        let value = match (random.u8(..4), value.contains(['"', '\\'])) {
            (0, false) => format!("\"{}\"", value.replace('$', "\\$")),
            (1, _) if !value.contains('\'') => format!("'{value}'"),
            _ => value.replace('$', "$$"),
        };
        let behind = choose(random, &["", "", "", "", " ", " # a comment", "\r"]);
        format!("{before}{name}{between}{value}{behind}\n")
    }

    /// The first file, which defines the services.
    fn base(&mut self, names: &[&str]) -> String {
        let mut text = String::new();
        if one_in(&mut self.random, 3) {
            text.push_str("name: project\n");
        }
        let shared = one_in(&mut self.random, 4);
        if shared {
            let ports = self.list("  ");
            write!(text, "x-ports: &shared{ports}").unwrap();
            text.push_str("x-service: &service\n  image: example/shared\n  restart: always\n");
        }
        if one_in(&mut self.random, 8) {
            let included = self.included();
            self.project
                .texts
                .insert("inc/more.yaml".to_owned(), included);
            let short = one_in(&mut self.random, 2);
            text.push_str(match short {
                true => "include: [inc/more.yaml]\n",
                false => "include:\n  - path: ./inc/more.yaml\n    project_directory: .\n",
            });
        }
        if one_in(&mut self.random, 6) {
            let other = self.other();
            self.project
                .texts
                .insert("common/other.yaml".to_owned(), other);
        }
        text.push_str("services:\n");
        for (index, name) in names.iter().enumerate() {
            writeln!(text, "  {name}:").unwrap();
            self.service(&mut text, name, &names[..index], shared);
        }
        if one_in(&mut self.random, 12) {
            text.push_str("---\n");
            text.push_str(&self.over(names));
        }
        text
    }

    fn service(&mut self, text: &mut String, name: &str, before: &[&str], shared: bool) {
        let has_other = self.project.texts.contains_key("common/other.yaml");
        if shared && one_in(&mut self.random, 4) {
            text.push_str("    <<: *service\n");
        } else {
            text.push_str("    image: example/image:1\n");
        }
        if one_in(&mut self.random, 6) {
            let dollars = choose(
                &mut self.random,
                &[
                    "'^(a|b)?$'",
                    "'echo $(stat -c %u /data) $1'",
                    "'$$HOME/bin $'",
                    "\"test \\\"$?\\\" = 0 || kill $!\"",
                    "'{{.Name}} $'",
                ],
            );
            writeln!(text, "    labels: {{note: {dollars}}}").unwrap();
        }
        if self.slips(50) {
            let wrong = choose(
                &mut self.random,
                &["'${1}'", "'${PORT'", "'${PORT:=1}'", "'${}'"],
            );
            writeln!(text, "    entrypoint: {wrong}").unwrap();
        }
        if one_in(&mut self.random, 4) {
            let profiles = PROFILES.iter().filter(|_| one_in(&mut self.random, 2));
            let profiles: Vec<&str> = profiles.copied().collect();
            writeln!(text, "    profiles: [{}]", profiles.join(", ")).unwrap();
        }
        match self.random.u8(..12) {
            0 if has_other => {
                text.push_str("    extends: {service: other, file: common/other.yaml}\n");
            }
            1 | 2 if !before.is_empty() => {
                let base = choose(&mut self.random, before);
                if self.changed.iter().any(|changed| changed == base) {
                    return;
                }
                text.push_str(&match one_in(&mut self.random, 2) {
                    true => format!("    extends: {base}\n"),
                    false => format!("    extends:\n      service: {base}\n"),
                });
                if one_in(&mut self.random, 4) {
                    let tag = choose(&mut self.random, &["!reset", "!override"]);
                    let ports = self.list("      ");
                    write!(text, "    ports: {tag}{ports}").unwrap();
                    self.changed.push(name.to_owned());
                    return;
                }
            }
            _ => {}
        }
        if one_in(&mut self.random, 12) {
            let mode = choose(&mut self.random, &["host", "none", "bridge"]);
            writeln!(text, "    network_mode: {mode}").unwrap();
        }
        if shared && one_in(&mut self.random, 3) {
            text.push_str("    ports: *shared\n");
        } else if !one_in(&mut self.random, 6) {
            let ports = self.list("      ");
            write!(text, "    ports:{ports}").unwrap();
        }
    }

    /// The file that `include` names.
    fn included(&mut self) -> String {
        let ports = self.list("      ");
        format!("services:\n  included:\n    image: example/included\n    ports:{ports}")
    }

    /// The file that `extends` names.
    fn other(&mut self) -> String {
        let ports = self.list("      ");
        format!(
            "services:\n  other:\n    image: example/other\n    ports:{ports}  unused:\n    image: example/unused\n"
        )
    }

    /// A file on top of others.
    fn over(&mut self, names: &[&str]) -> String {
        let mut text = "services:\n".to_owned();
        let mut is_empty = true;
        for name in names {
            if one_in(&mut self.random, 2) {
                continue;
            }
            is_empty = false;
            match self.random.u8(..16) {
                0 => writeln!(text, "  {name}: !reset").unwrap(),
                1 => {
                    let ports = self.list("      ");
                    write!(
                        text,
                        "  {name}: !override\n    image: example/instead\n    ports:{ports}"
                    )
                    .unwrap();
                }
                2 => writeln!(text, "  {name}: {{}}").unwrap(),
                3 => writeln!(text, "  {name}: {{ports: [], restart: always}}").unwrap(),
                4 => writeln!(text, "  {name}: {{ports: !reset []}}").unwrap(),
                5 => writeln!(text, "  {name}:\n    ports: !reset null").unwrap(),
                6 => writeln!(text, "  {name}:\n    ports:").unwrap(),
                7 => writeln!(text, "  {name}: {{profiles: !reset []}}").unwrap(),
                8..=10 => {
                    let ports = self.list("      ");
                    write!(text, "  {name}:\n    ports: !override{ports}").unwrap();
                }
                _ => {
                    let ports = self.list("      ");
                    write!(text, "  {name}:\n    ports:{ports}").unwrap();
                }
            }
        }
        if one_in(&mut self.random, 4) || is_empty {
            is_empty = false;
            let ports = self.list("      ");
            write!(
                text,
                "  extra:\n    image: example/extra\n    ports:{ports}"
            )
            .unwrap();
        }
        debug_assert!(!is_empty);
        text
    }

    /// A list of ports behind its key, with the end of its last line.
    fn list(&mut self, indent: &str) -> String {
        let count = self.random.usize(1..5);
        let in_flow = one_in(&mut self.random, 4);
        let items: Vec<String> = (0..count).map(|_| self.item(indent, in_flow)).collect();
        match in_flow {
            true => format!(" [{}]\n", items.join(", ")),
            false => {
                let lines = items.iter().map(|item| format!("\n{indent}- {item}"));
                lines.collect::<String>() + "\n"
            }
        }
    }

    fn item(&mut self, indent: &str, in_flow: bool) -> String {
        let item = match self.random.u8(..10) {
            0 => self.number(),
            1..=3 => self.long(indent, in_flow),
            _ => self.short(in_flow),
        };
        let tag = match self.random.u8(..60) {
            // YAML has one tag for a value.
            0 if !item.starts_with("!!") => "!reset ",
            1 if !item.starts_with("!!") => "!override ",
            _ => "",
        };
        // Before a key, the tag would apply to the key.
        match item.contains('\n') {
            true => item,
            false => format!("{tag}{item}"),
        }
    }

    fn port(&mut self) -> u16 {
        let random = &mut self.random;
        match random.u8(..4) {
            0 => random.u16(1..=255),
            1 => [22, 53, 80, 443, 3000, 5432, 6379, 8000, 8080, 9090][random.usize(..10)],
            2 => random.u16(1..=65_000),
            _ => random.u16(8_000..8_100),
        }
    }

    /// A number without quotes, in a spelling of YAML.
    fn number(&mut self) -> String {
        let port = self.port();
        if self.slips(4) {
            let wrong = [
                "0",
                "true",
                "~",
                "1e3",
                "2024-01-01",
                "80.5",
                "8080.0",
                "-80",
                "70001",
                "08080",
                "_80",
            ];
            return choose(&mut self.random, &wrong).to_owned();
        }
        match self.random.u8(..14) {
            0 => format!("0x{port:x}"),
            1 => format!("0X{port:X}"),
            2 => format!("0o{port:o}"),
            3 => format!("0{port:o}"),
            4 => format!("0b{port:b}"),
            5 => format!("+{port}"),
            6 if port > 9 => {
                let digits = port.to_string();
                format!("{}_{}", &digits[..1], &digits[1..])
            }
            7 => format!("!!str {port}"),
            8 => format!("!!int \"{port}\""),
            _ => port.to_string(),
        }
    }

    /// `ADDRESS:HOST:CONTAINER/PROTOCOL`, with variables for parts of it.
    fn short(&mut self, in_flow: bool) -> String {
        let first = self.port();
        let count = match self.random.u8(..6) {
            0 => self.random.u16(1..4),
            _ => 0,
        };
        let container = range(first, first.saturating_add(count));
        let outside = self.port();
        let host = match self.random.u8(..12) {
            0 => String::new(),
            1 if count == 0 => range(outside, outside.saturating_add(3)),
            2 if count == 0 || self.sloppy => "0".to_owned(),
            3 if self.slips(2) => range(outside, outside.saturating_add(count + 1)),
            _ => range(outside, outside.saturating_add(count)),
        };
        let address = match self.random.u8(..5) {
            0 | 1 => {
                let address = self.address();
                Some(match address.contains(':') {
                    true => format!("[{address}]"),
                    false => address,
                })
            }
            _ => None,
        };
        let protocol = self.protocol();
        let mut parts = Vec::new();
        let mut add = |generator: &mut Self, part: &str| {
            let part = match one_in(&mut generator.random, 4) {
                true => generator.variable(part),
                false => part.to_owned(),
            };
            parts.push(part);
        };
        if let Some(address) = &address {
            add(self, address);
            add(self, &host);
        } else if !host.is_empty() || one_in(&mut self.random, 4) {
            add(self, &host);
        }
        add(self, &container);
        let mut text = parts.join(":");
        if !protocol.is_empty() {
            text.push('/');
            text += &match one_in(&mut self.random, 6) {
                true => self.variable(&protocol),
                false => protocol,
            };
        }
        if one_in(&mut self.random, 12) {
            text = self.variable(&text);
        }
        if self.slips(12) {
            text = self.spoilt(&text);
        }
        self.scalar(&text, in_flow)
    }

    fn address(&mut self) -> String {
        let random = &mut self.random;
        match random.u8(..24) {
            0 => choose(
                random,
                &[
                    "localhost",
                    "127.1",
                    "127.0.0.01",
                    "256.1.1.1",
                    "fe80::1%eth0",
                    "",
                ],
            ),
            _ => choose(
                random,
                &[
                    "127.0.0.1",
                    "0.0.0.0",
                    "::",
                    "::1",
                    "192.0.2.7",
                    "10.1.2.3",
                    "2001:db8::7",
                    "fd00::1",
                    "::ffff:127.0.0.1",
                    "::ffff:0.0.0.0",
                    "0:0:0:0:0:0:0:1",
                ],
            ),
        }
        .to_owned()
    }

    fn protocol(&mut self) -> String {
        if self.slips(20) {
            return choose(&mut self.random, &["icmp", "tls", "6"]).to_owned();
        }
        let random = &mut self.random;
        match one_in(random, 2) {
            true => String::new(),
            false => choose(
                random,
                &["tcp", "udp", "UDP", "Tcp", "sctp", "tcp/udp", "/"],
            )
            .to_owned(),
        }
    }

    /// The long form.
    fn long(&mut self, indent: &str, in_flow: bool) -> String {
        let target = self.port();
        let mut keys: Vec<(&str, String)> = Vec::new();
        let target = match self.random.u8(..20) {
            0 => self.number(),
            1 => format!("\"0{target}\""),
            2 => format!("\"+{target}\""),
            3 => self.quoted_variable(&target.to_string()),
            4 if one_in(&mut self.random, 4) => {
                format!("\"{target}-{}\"", target.saturating_add(1))
            }
            5 | 6 => format!("\"{target}\""),
            7 => format!("{target}.0"),
            _ => target.to_string(),
        };
        if !self.slips(20) {
            keys.push(("target", target));
        }
        let published = self.port();
        if !one_in(&mut self.random, 4) {
            let published = match self.random.u8(..16) {
                0 => self.number(),
                1 => format!("\"{}\"", range(published, published.saturating_add(2))),
                2 => format!("'0{published}'"),
                3 => "\"\"".to_owned(),
                4 => self.quoted_variable(&published.to_string()),
                5 if self.slips(2) => {
                    choose(&mut self.random, &["abc", "\"80/udp\"", "", "[80]", "80-"]).to_owned()
                }
                6..=8 => format!("\"{published}\""),
                _ => published.to_string(),
            };
            keys.push(("published", published));
        }
        if one_in(&mut self.random, 2) {
            let address = match self.random.u8(..20) {
                0 => choose(
                    &mut self.random,
                    &["\"[::1]\"", "127", "\"\"", "localhost", ""],
                )
                .to_owned(),
                1 => self.quoted_variable("127.0.0.1"),
                _ => {
                    let address = self.address();
                    let plain = !address.contains(':') && one_in(&mut self.random, 2);
                    match plain && !address.is_empty() {
                        true => address,
                        false => format!("\"{address}\""),
                    }
                }
            };
            keys.push(("host_ip", address));
        }
        if one_in(&mut self.random, 2) {
            let protocol = match self.random.u8(..16) {
                0 if self.sloppy => choose(&mut self.random, &["icmp", "6", "\"\"", ""]).to_owned(),
                1 => self.quoted_variable("udp"),
                _ => choose(&mut self.random, &["tcp", "udp", "\"udp\"", "UDP", "sctp"]).to_owned(),
            };
            keys.push(("protocol", protocol));
        }
        for (key, value) in [
            ("mode", "host"),
            ("mode", "ingress"),
            ("name", "web"),
            ("app_protocol", "http"),
            ("x-note", "[1]"),
        ] {
            let is_new = keys.iter().all(|(other, _)| *other != key);
            if is_new && one_in(&mut self.random, 6) {
                keys.push((key, value.to_owned()));
            }
        }
        if self.slips(40) {
            keys.push(("listen", "80".to_owned()));
        }
        self.random.shuffle(&mut keys);
        let keys: Vec<String> = keys
            .into_iter()
            .map(|(key, value)| match value.is_empty() {
                true => format!("{key}:"),
                false => format!("{key}: {value}"),
            })
            .collect();
        match in_flow || keys.is_empty() || one_in(&mut self.random, 2) {
            true => format!("{{{}}}", keys.join(", ")),
            false => keys.join(&format!("\n{indent}  ")),
        }
    }

    fn quoted_variable(&mut self, value: &str) -> String {
        format!("\"{}\"", self.variable(value))
    }

    /// An expression with this text as its value, or one whose required variable is not set.
    fn variable(&mut self, value: &str) -> String {
        if value.contains('$') {
            return value.to_owned();
        }
        match self.random.u8(..22) {
            0 => format!("${{{}:-{value}}}", self.unset()),
            1 => format!("${{{}-{value}}}", self.unset()),
            2 => format!("${{{}:-{value}}}", self.set("")),
            3 => format!("${{{}:+{value}}}", self.set("x")),
            4 => format!("${{{}+{value}}}", self.set("")),
            5 => format!("${{{}:-7}}", self.set(value)),
            6 => format!("${{{}-7}}", self.set(value)),
            7 => format!("${{{}:?is needed}}", self.set(value)),
            8 => format!("${{{}?}}", self.set(value)),
            9 => {
                let inner = self.variable(value);
                format!("${{{}:-{inner}}}", self.unset())
            }
            10 => format!("{value}${{{}:-}}", self.unset()),
            11 => format!("${{{}+7}}{value}", self.unset()),
            12 => {
                let half = value.len() / 2;
                match value.is_char_boundary(half) {
                    true => format!("${{{}}}{}", self.set(&value[..half]), &value[half..]),
                    false => value.to_owned(),
                }
            }
            13 if self.slips(4) => format!("${{{}:?is needed}}", self.unset()),
            14 if self.slips(2) => format!("${}", self.unset()),
            15 if self.slips(4) => format!("${{{}:-${{1}}}}", self.unset()),
            16 => format!("${}", self.set(value)),
            _ => format!("${{{}}}", self.set(value)),
        }
    }

    fn unset(&mut self) -> String {
        self.variables += 1;
        format!("UNSET_{}", self.variables)
    }

    /// A variable with this value, from the process or from `.env`.
    fn set(&mut self, value: &str) -> String {
        self.variables += 1;
        let name = format!(
            "{}_{}",
            choose(&mut self.random, &["PORT", "_p", "Bind"]),
            self.variables
        );
        let value = value.to_owned();
        if one_in(&mut self.random, 2) {
            if one_in(&mut self.random, 4) {
                // The process comes first.
                self.dot_env.push((name.clone(), "9".to_owned()));
            }
            self.project.environment.insert(name.clone(), value);
        } else {
            self.dot_env.push((name.clone(), value));
        }
        name
    }

    /// The text with a mistake.
    fn spoilt(&mut self, text: &str) -> String {
        let slips = [
            " ", ":", "-", "x", "/", "7", "0x", "[", "]", ".", "+", "ü", "_", ",",
        ];
        let slip = choose(&mut self.random, &slips);
        let offsets: Vec<usize> = text.char_indices().map(|(index, _)| index).collect();
        let at = match offsets.is_empty() {
            true => 0,
            false => offsets[self.random.usize(..offsets.len())],
        };
        match one_in(&mut self.random, 2) {
            true => format!("{}{slip}{}", &text[..at], &text[at..]),
            false => {
                let rest = text[at..].chars().next().map_or(0, char::len_utf8);
                format!("{}{slip}{}", &text[..at], &text[at + rest..])
            }
        }
    }

    /// The text with quotes, or without if the meaning is the same.
    fn scalar(&mut self, text: &str, in_flow: bool) -> String {
        let begins = text.starts_with(|c: char| c.is_ascii_digit() || c == '$');
        let is_split =
            [": ", " #"].iter().any(|end| text.contains(end)) || text.ends_with([':', ' ']);
        let is_flow = in_flow && text.contains(['{', '}', '[', ']', ',']);
        let is_plain = begins && !is_split && !is_flow;
        match self.random.u8(..4) {
            0 if is_plain => text.to_owned(),
            1 if !text.contains('\'') => format!("'{text}'"),
            2 if !in_flow && !text.is_empty() && one_in(&mut self.random, 6) => {
                // The text has a line of its own below, wherever the list is.
                format!(">-\n{}{text}", " ".repeat(10))
            }
            _ => format!("\"{text}\""),
        }
    }
}

fn range(first: u16, last: u16) -> String {
    match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    }
}
