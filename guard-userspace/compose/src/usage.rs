//! The error of a wrong command line: one line with what is wrong, what was probably meant, and the help to read.

use std::ffi::OsString;

use clap::{
    Arg, Command, Error,
    error::{ContextKind, ContextValue, ErrorKind},
};
use guard_text::{all_of, any_of, nearest};

/// The words of other tools, each with the word of this command line. An option is written with its hyphens.
pub type Synonyms = [(&'static str, &'static str)];

/// A command line that was refused.
pub struct WrongUsage<'a> {
    /// The whole command line interface.
    pub root: Command,
    /// What was typed, without the name of the program.
    pub typed: &'a [OsString],
    pub synonyms: &'a Synonyms,
    /// The words of other tools for values, each with the own value.
    pub values: &'a Synonyms,
    /// Words that stand for no single command, each with what to type instead.
    pub advice: &'a Synonyms,
}

/// At most so many commands are named that have an option.
const MOST_OWNERS: usize = 3;

impl WrongUsage<'_> {
    /// Describes the error in one line.
    pub fn describe(mut self, error: &Error) -> String {
        // Fills in the full names of the commands and the options that they inherit.
        self.root.build();
        let (command, rest) = self.failed(error);
        let name = name(command);
        let what = self.after_dashes(error, rest);
        let what = what.or_else(|| self.problem(error, command, rest));
        let what = what.unwrap_or_else(|| {
            let text = error.to_string();
            let lines = text.lines().take_while(|line| !line.is_empty());
            let what: Vec<&str> = lines.map(str::trim).collect();
            let what = what.join(" ");
            what.strip_prefix("error: ").unwrap_or(&what).to_owned()
        });
        // A question ends with its own mark.
        let end = if what.ends_with('?') { "" } else { ";" };
        let shows = match error.kind() {
            ErrorKind::InvalidSubcommand => "lists the commands",
            _ => "shows the usage",
        };
        format!("{what}{end} `{name} --help` {shows}")
    }

    /// The command whose arguments are wrong, and what was typed after its name.
    fn failed(&self, error: &Error) -> (&Command, &[OsString]) {
        let unknown = text(error, ContextKind::InvalidArg);
        let unknown = unknown.filter(|_| error.kind() == ErrorKind::UnknownArgument);
        let mut command = &self.root;
        let mut rest = self.typed;
        let mut left = self.typed;
        while let [word, after @ ..] = left {
            let word = word.to_string_lossy();
            left = after;
            // A command after an argument that is not known is not the one that refuses it.
            let is_unknown = unknown.is_some_and(|unknown| word.starts_with(unknown));
            if is_unknown || word == "--" || word == HELP {
                break;
            }
            if let Some(found) = command.find_subcommand(word.as_ref()) {
                (command, rest) = (found, after);
            } else if takes_next(command, &word) {
                left = after.get(1..).unwrap_or_default();
            }
        }
        (command, rest)
    }

    /// A command or an option after `--`, which is not read as one.
    fn after_dashes(&self, error: &Error, rest: &[OsString]) -> Option<String> {
        let typed = text(error, ContextKind::InvalidArg)
            .or_else(|| text(error, ContextKind::InvalidSubcommand))?;
        let place = rest.iter().position(|word| word == "--")?;
        let mut after = rest.get(place..)?.iter();
        after.find(|word| word.to_string_lossy() == typed)?;
        Some(format!(
            "{typed:?} stands after `--`, so it is not read as a command or an option: leave `--` out"
        ))
    }

    fn problem(&self, error: &Error, command: &Command, rest: &[OsString]) -> Option<String> {
        match error.kind() {
            ErrorKind::InvalidSubcommand => {
                let typed = text(error, ContextKind::InvalidSubcommand)?;
                Some(self.no_command(command, typed))
            }
            ErrorKind::UnknownArgument => {
                let typed = text(error, ContextKind::InvalidArg)?;
                Some(if typed.starts_with('-') {
                    self.no_option(command, typed, rest)
                } else {
                    surplus(command, typed)
                })
            }
            ErrorKind::InvalidValue => {
                let argument = bare(text(error, ContextKind::InvalidArg)?);
                let value = text(error, ContextKind::InvalidValue)?;
                let values = list(error, ContextKind::ValidValue);
                Some(self.invalid_value(argument, value, values))
            }
            ErrorKind::ValueValidation => {
                let argument = bare(text(error, ContextKind::InvalidArg)?);
                let value = text(error, ContextKind::InvalidValue)?;
                let why = std::error::Error::source(error)?.to_string();
                Some(refused_value(argument, value, &why))
            }
            ErrorKind::MissingRequiredArgument => {
                let missing = list(error, ContextKind::InvalidArg);
                let place = place(command).unwrap_or_else(|| "the command".to_owned());
                (!missing.is_empty()).then(|| format!("{place} needs {}", all_of(missing)))
            }
            ErrorKind::ArgumentConflict => {
                let argument = bare(text(error, ContextKind::InvalidArg)?);
                let others = match error.get(ContextKind::PriorArg)? {
                    ContextValue::String(other) => vec![bare(other)],
                    ContextValue::Strings(others) => others.iter().map(|o| bare(o)).collect(),
                    _ => return None,
                };
                Some(if others == [argument] {
                    format!("{argument} was written more than once: write it once")
                } else {
                    format!(
                        "{argument} and {} exclude each other: write one of them",
                        all_of(&others)
                    )
                })
            }
            ErrorKind::TooManyValues => {
                let argument = bare(text(error, ContextKind::InvalidArg)?);
                let value = text(error, ContextKind::InvalidValue)?;
                Some(format!("{argument} takes no value, and {value:?} is one"))
            }
            _ => None,
        }
    }

    fn no_command(&self, command: &Command, typed: &str) -> String {
        let commands: Vec<&str> = shown(command).map(Command::get_name).collect();
        let what = none(command, &format!("command {typed:?}"));
        if let Some(advice) = meant(self.advice, typed) {
            return format!("{what}: {advice}");
        }
        let synonym = self.synonym(typed);
        match synonym.or_else(|| nearest(typed, commands.iter().copied())) {
            Some(meant) => format!("{what}: did you mean {meant:?}?"),
            // The help of a command with many subcommands lists them in groups.
            None if commands.len() > 6 => what,
            None => format!("{what}: it has {}", all_of(&commands)),
        }
    }

    fn no_option(&self, command: &Command, typed: &str, rest: &[OsString]) -> String {
        let options = options(command);
        let what = none(command, &format!("option {typed}"));
        // `-json` is the option -j for the parser.
        let written = rest.iter().map(|word| word.to_string_lossy());
        let is_long = |word: &str| {
            word.starts_with(typed) && !word.starts_with("--") && word.chars().count() > 2
        };
        let whole = written.clone().find(|word| is_long(word));
        let meant = whole.map_or_else(|| typed.to_owned(), |word| format!("-{word}"));
        // A synonym may be an option with its value.
        let has = |meant: &&str| {
            let option = meant.split(' ').next();
            options.iter().any(|own| Some(own.as_str()) == option)
        };
        let synonym = self.synonym(&meant).filter(has);
        let own = options.iter().map(String::as_str);
        if let Some(meant) = synonym.or_else(|| nearest_option(&meant, own)) {
            return format!("{what}: did you mean {meant}?");
        }
        let mut positionals = command.get_positionals();
        let takes_file = positionals.any(|arg| value_name(arg) == Some(FILE));
        let is_file = [Some(typed), self.synonym(typed)].contains(&Some(POLICY));
        if takes_file && is_file {
            return format!("{what}: write the name of the file without an option");
        }
        // An option that stands before the command it belongs to.
        let later = written
            .skip_while(|word| word != typed)
            .filter_map(|word| command.find_subcommand(word.as_ref()))
            .next();
        if let Some(later) = later.filter(|later| has_option(later, typed)) {
            return format!("{what}: did you mean `{} {typed}`?", name(later));
        }
        let owners = shown(&self.root).filter(|owner| has_option(owner, typed));
        let owners: Vec<String> = owners.map(|owner| format!("`{}`", name(owner))).collect();
        match owners.len() {
            0 => what,
            1..=MOST_OWNERS => format!("{what}, but {} has it", any_of(&owners)),
            _ => what,
        }
    }

    fn synonym(&self, typed: &str) -> Option<&'static str> {
        meant(self.synonyms, typed)
    }

    fn invalid_value(&self, argument: &str, value: &str, values: &[String]) -> String {
        let what = match value {
            "" => format!("{argument} needs a value"),
            value => format!("{value:?} is no value of {argument}"),
        };
        let synonym = meant(self.values, value).filter(|own| values.iter().any(|one| one == own));
        let near = synonym.or_else(|| nearest(value, values.iter().map(String::as_str)));
        match (values, near) {
            ([], _) => what,
            (values, Some(meant)) => {
                format!("{what} ({}): did you mean {meant:?}?", any_of(values))
            }
            (values, None) => format!("{what}: write {}", any_of(values)),
        }
    }
}

/// What a table of words has for a word.
fn meant(words: &Synonyms, typed: &str) -> Option<&'static str> {
    let typed = typed.to_lowercase();
    let mut words = words.iter();
    words.find(|(word, _)| *word == typed).map(|(_, own)| *own)
}

/// The commands that the help lists.
fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    let commands = command.get_subcommands();
    commands.filter(|command| !command.is_hide_set() && command.get_name() != HELP)
}

/// clap's own command `help`, whose arguments are commands.
const HELP: &str = "help";

/// The value and the option that name a policy.
const FILE: &str = "FILE";
const POLICY: &str = "--policy";

fn value_name(arg: &Arg) -> Option<&str> {
    let name = arg.get_value_names()?.first()?;
    Some(name.as_str())
}

/// `guard audit compose`.
fn name(command: &Command) -> &str {
    command.get_bin_name().unwrap_or(command.get_name())
}

/// `audit compose`: the name without the program's, which stands before every error. `None`: it is the program.
fn place(command: &Command) -> Option<String> {
    let (_program, place) = name(command).split_once(' ')?;
    Some(format!("`{place}`"))
}

/// The program or its command has no such thing.
fn none(command: &Command, what: &str) -> String {
    match place(command) {
        Some(place) => format!("{place} has no {what}"),
        None => format!("there is no {what}"),
    }
}

/// The long options of a command, with their hyphens.
fn options(command: &Command) -> Vec<String> {
    let arguments = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let names = arguments.flat_map(|arg| arg.get_long_and_visible_aliases().unwrap_or_default());
    names.map(|name| format!("--{name}")).collect()
}

fn has_option(command: &Command, typed: &str) -> bool {
    options(command).iter().any(|own| own == typed)
}

/// The hyphens are no letters of the name, so they do not count for the distance.
fn nearest_option<'a>(typed: &str, own: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let own: Vec<&str> = own.collect();
    let names = own.iter().map(|option| option.trim_start_matches('-'));
    let name = nearest(typed.trim_start_matches('-'), names)?;
    own.into_iter()
        .find(|option| option.trim_start_matches('-') == name)
}

/// Whether the word is an option of the command whose value is the next word.
fn takes_next(command: &Command, word: &str) -> bool {
    let takes = |arg: &Arg| {
        let least = arg.get_num_args().map_or(0, |range| range.min_values());
        arg.get_action().takes_values() && least > 0
    };
    let is_named = |arg: &&Arg| match word.strip_prefix("--") {
        Some(long) => arg
            .get_long_and_visible_aliases()
            .is_some_and(|names| names.contains(&long)),
        None => word.strip_prefix('-').is_some_and(|short| {
            let mut letters = short.chars();
            arg.get_short() == letters.next() && letters.next().is_none()
        }),
    };
    command.get_arguments().find(is_named).is_some_and(takes)
}

/// An argument that the command does not take, or one too many.
fn surplus(command: &Command, typed: &str) -> String {
    let place = place(command).unwrap_or_else(|| "the command".to_owned());
    let is_time = typed.starts_with(|c: char| c.is_ascii_digit())
        && typed.ends_with(['s', 'm', 'h', 'd'])
        && !typed.contains(['.', ':', '/']);
    if (is_time || typed == "forever") && has_option(command, "--for") {
        return format!("{place} takes the time as an option: write --for {typed}");
    }
    let flag = format!("--{typed}");
    if has_option(command, &flag) {
        return format!("{place} has no argument {typed:?}: did you mean {flag}?");
    }
    match command.get_positionals().count() {
        0 => format!("{place} takes no argument, and {typed:?} is one"),
        _ => format!("{typed:?} is one argument more than {place} takes"),
    }
}

fn refused_value(argument: &str, value: &str, why: &str) -> String {
    // These are the words of Rust's own parsers, which name neither the value nor what would be right.
    let right = match why {
        "invalid digit found in string" | "cannot parse integer from empty string" => {
            "write a whole number"
        }
        "number too large to fit in target type" => "write a smaller number",
        "number too small to fit in target type" => "write a larger number",
        "invalid IP address syntax" if value.contains('/') => {
            "write one address, such as 198.51.100.7 or 2001:db8::7, without a prefix length"
        }
        "invalid IP address syntax" => "write an address, such as 198.51.100.7 or 2001:db8::7",
        why => match range(value, why) {
            Some(range) => return format!("{value:?} is no value of {argument}: write {range}"),
            None if why.contains(value) => return format!("{argument}: {why}"),
            None => why,
        },
    };
    format!("{value:?} is no value of {argument}: {right}")
}

/// `0 is not in 1..=86400`: a number from 1 to 86400.
fn range(value: &str, why: &str) -> Option<String> {
    let range = why.strip_prefix(value)?.strip_prefix(" is not in ")?;
    let (first, last) = range.split_once("..")?;
    Some(match last.trim_start_matches('=') {
        "" => format!("a number from {first}"),
        last => format!("a number from {first} to {last}"),
    })
}

/// The argument without the hint that its value may be left out: `--watch`, `--by <BY>`.
fn bare(argument: &str) -> &str {
    let (name, _) = argument.split_once(" [").unwrap_or((argument, ""));
    match name.split_once(' ') {
        Some((option, _)) if option.starts_with("--") => option,
        _ => name,
    }
}

fn text(error: &Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text),
        _ => None,
    }
}

fn list(error: &Error, kind: ContextKind) -> &[String] {
    match error.get(kind) {
        Some(ContextValue::Strings(texts)) => texts,
        _ => &[],
    }
}
