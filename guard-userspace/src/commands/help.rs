//! The help of `guard`: its commands in groups, and two examples for each.

use std::fmt::{self, Write as _};

use clap::{Command, CommandFactory as _, builder::Styles};
use guard_compose::usage::Synonyms;

use super::Arguments;

/// Commands that belong together.
struct HelpGroup {
    heading: &'static str,
    commands: &'static [HelpEntry],
}

/// A command, or `audit compose`, with its examples.
struct HelpEntry {
    command: &'static str,
    examples: [HelpExample; 2],
}

/// What is typed after `guard`, and what it does.
struct HelpExample(&'static str, &'static str);

const fn entry(
    command: &'static str,
    first: (&'static str, &'static str),
    second: (&'static str, &'static str),
) -> HelpEntry {
    HelpEntry {
        command,
        examples: [
            HelpExample(first.0, first.1),
            HelpExample(second.0, second.1),
        ],
    }
}

const GROUPS: &[HelpGroup] = &[
    HelpGroup {
        heading: "See what happens",
        commands: &[
            entry(
                "status",
                ("status", "is the guard enforcing, and where?"),
                ("status --json", "the same for scripts"),
            ),
            entry(
                "counters",
                ("counters", "packets by service and reason"),
                ("counters --watch 10", "with rates, every ten seconds"),
            ),
            entry(
                "top",
                ("top", "traffic, drops and sources on one screen"),
                ("top --every 5", "refreshed every five seconds"),
            ),
            entry(
                "talkers",
                ("talkers", "the 20 sources that send most"),
                (
                    "talkers --by dropped --limit 50",
                    "those that are dropped most",
                ),
            ),
            entry(
                "capture",
                ("capture --service proxy", "what is dropped at a service"),
                (
                    "capture -w drops.pcapng --for 30s",
                    "30 seconds for Wireshark",
                ),
            ),
            entry(
                "explain",
                (
                    "explain --from 198.51.100.7 --to 8000/tcp",
                    "does this source reach port 8000?",
                ),
                (
                    "explain --from 198.51.100.7 --to 443/tcp --policy new.toml",
                    "and with a new policy?",
                ),
            ),
        ],
    },
    HelpGroup {
        heading: "Act now",
        commands: &[
            entry(
                "deny",
                ("deny 198.51.100.7 --for 2h", "drop a source for two hours"),
                (
                    "deny 198.51.100.0/24 --service proxy --reason scanner",
                    "a network, at one service",
                ),
            ),
            entry(
                "allow",
                (
                    "allow 198.51.100.7 --for 1h",
                    "let a source through for an hour",
                ),
                (
                    "allow 198.51.100.0/24 --service ssh --owner ana --reason support",
                    "say for whom and why",
                ),
            ),
            entry(
                "list",
                ("list", "the entries of allow and deny"),
                ("list --json", "the same for scripts"),
            ),
            entry(
                "revoke",
                ("revoke 3", "end the entry with the number 3"),
                (
                    "revoke 198.51.100.7 --owner ana",
                    "end the entries of an owner for a source",
                ),
            ),
            entry(
                "mode",
                ("mode off", "emergency: let every packet pass, at once"),
                (
                    "mode observe --service proxy",
                    "drop nothing at one service",
                ),
            ),
            entry(
                "detach",
                ("detach", "emergency: remove the guard from the kernel"),
                (
                    "detach --pins /sys/fs/bpf/other",
                    "a guard with its pins in another folder",
                ),
            ),
        ],
    },
    HelpGroup {
        heading: "Change the policy",
        commands: &[
            entry(
                "check",
                ("check", "what does /etc/guard/guard.toml mean?"),
                (
                    "check --live new.toml",
                    "would it cut sessions that are open?",
                ),
            ),
            entry(
                "replay",
                (
                    "replay --enforce busy.pcap",
                    "what would be dropped of this traffic?",
                ),
                (
                    "replay --policy new.toml --publish tcp/8000 busy.pcap",
                    "with a published port",
                ),
            ),
            entry(
                "try",
                ("try new.toml --for 5m", "goes back unless you confirm it"),
                ("try /etc/guard/guard.toml", "for one minute"),
            ),
            entry(
                "confirm",
                ("confirm", "keep the policy on trial"),
                (
                    "confirm --write",
                    "and write it to the file that a reload reads",
                ),
            ),
            entry(
                "diff",
                (
                    "diff",
                    "how does the policy file differ from what is in force?",
                ),
                (
                    "diff new.toml",
                    "what would this file change, and for whom?",
                ),
            ),
            entry(
                "reload",
                ("reload", "put the changed policy file in force"),
                ("reload --json", "the same for scripts"),
            ),
        ],
    },
    HelpGroup {
        heading: "Set up and check",
        commands: &[
            entry(
                "init",
                ("init", "write a first policy for this host"),
                ("init --print", "show it only"),
            ),
            entry(
                "audit",
                ("audit", "which ports of this host can be reached?"),
                ("audit --policy new.toml", "and with a new policy?"),
            ),
            entry(
                "doctor",
                ("doctor", "does this host have what guard needs?"),
                (
                    "doctor --policy new.toml",
                    "for the interfaces of a new policy",
                ),
            ),
            entry(
                "completions",
                (
                    "completions bash > /etc/bash_completion.d/guard",
                    "for bash",
                ),
                (
                    "completions zsh > /usr/local/share/zsh/site-functions/_guard",
                    "for zsh",
                ),
            ),
            entry(
                "man",
                ("man /usr/local/share/man/man1", "install the manual pages"),
                ("man .", "write them into this folder"),
            ),
        ],
    },
    HelpGroup {
        heading: "Run",
        commands: &[entry(
            "run",
            ("run", "the agent, with /etc/guard/guard.toml"),
            ("run --policy new.toml", "with another policy"),
        )],
    },
];

/// The commands below a command that have examples, too.
const NESTED: &[(&str, HelpEntry)] = &[(
    "audit",
    entry(
        "compose",
        (
            "audit compose compose.yaml",
            "what would this project expose?",
        ),
        (
            "audit compose compose.yaml compose.prod.yaml --level high",
            "two files of one project, grave findings alone",
        ),
    ),
)];

/// The words of ufw, firewalld, fail2ban, CrowdSec and systemctl for what guard does.
pub const SYNONYMS: &Synonyms = &[
    ("add", "allow"),
    ("accept", "allow"),
    ("permit", "allow"),
    ("unban", "revoke"),
    ("unblock", "revoke"),
    ("ban", "deny"),
    ("block", "deny"),
    ("drop", "deny"),
    ("reject", "deny"),
    ("delete", "revoke"),
    ("remove", "revoke"),
    ("rm", "revoke"),
    ("config", "check"),
    ("configtest", "check"),
    ("lint", "check"),
    ("validate", "check"),
    ("verify", "check"),
    ("test", "try"),
    ("apply", "reload"),
    ("disable", "mode off"),
    ("enable", "mode enforce"),
    ("enforce", "mode enforce"),
    ("observe", "mode observe"),
    ("off", "mode off"),
    ("on", "mode enforce"),
    ("decisions", "list"),
    ("entries", "list"),
    ("ls", "list"),
    ("log", "capture"),
    ("logs", "capture"),
    ("metrics", "counters"),
    ("show", "status"),
    ("info", "status"),
    ("stats", "counters"),
    ("start", "run"),
    ("uninstall", "detach"),
    ("scan", "audit"),
    ("setup", "init"),
    ("why", "explain"),
    ("monitor", "top"),
    ("version", "--version"),
    ("--address", "--from"),
    ("--comment", "--reason"),
    ("--conf", "--policy"),
    ("--config", "--policy"),
    ("--file", "--policy"),
    ("--dport", "--to"),
    ("--dst", "--to"),
    ("--port", "--to"),
    ("--source", "--from"),
    ("--src", "--from"),
    ("--duration", "--for"),
    ("--expire", "--for"),
    ("--expires", "--for"),
    ("--time", "--for"),
    ("--timeout", "--for"),
    ("--ttl", "--for"),
    ("--until", "--for"),
    ("--follow", "--watch"),
    ("--interval", "--watch"),
    ("--ports", "--publish"),
    ("--sort", "--by"),
    ("--bytes", "--by bytes"),
    ("--dropped", "--by dropped"),
    ("--drops", "--by dropped"),
    ("--user", "--owner"),
];

/// Other words for values.
pub const VALUES: &Synonyms = &[
    ("on", "enforce"),
    ("enable", "enforce"),
    ("block", "enforce"),
    ("disable", "off"),
    ("monitor", "observe"),
    ("default", "policy"),
    ("auto", "policy"),
];

const OPENS: &str = "the policy opens ports. Write the lines `[[service]]`, `name = \"app\"` and `ports = [\"tcp/9000\"]` into \
                     the policy file, and run `guard reload`";
const CLOSES: &str = "a port that no service of the policy lists is closed. Remove it from `ports` in the policy file, and run \
                      `guard reload`";
const ENDS_TRIAL: &str = "`guard reload --force` ends a trial and puts the policy file in force. A trial that nobody confirms ends \
                          by itself";
const STOPS: &str = "`systemctl stop guard` ends the agent, and the program in the kernel keeps the policy in force. `guard mode \
                     off` lets every packet pass, and `guard detach` removes the program: both open the host";
const SHOWS_DROPS: &str = "`guard capture` shows packets as they are dropped, `guard talkers --by dropped` their sources, and `guard \
                           counters` the reasons";

/// Words that stand for no single command, and what to type instead. A wrong guess would open the host, or close it.
pub const ADVICE: &Synonyms = &[
    ("open", OPENS),
    ("expose", OPENS),
    ("publish", OPENS),
    ("close", CLOSES),
    ("abort", ENDS_TRIAL),
    ("cancel", ENDS_TRIAL),
    ("revert", ENDS_TRIAL),
    ("rollback", ENDS_TRIAL),
    ("undo", ENDS_TRIAL),
    ("drops", SHOWS_DROPS),
    ("dropped", SHOWS_DROPS),
    ("exit", STOPS),
    ("halt", STOPS),
    ("kill", STOPS),
    ("quit", STOPS),
    ("shutdown", STOPS),
    ("stop", STOPS),
];

/// The command line, with its commands in groups and examples for each.
pub fn command() -> Command {
    let mut command = Arguments::command();
    for entry in GROUPS.iter().flat_map(|group| group.commands) {
        let nested = NESTED.iter().filter(|(parent, _)| *parent == entry.command);
        command = command.mut_subcommand(entry.command, |mut command| {
            for (_, below) in nested.clone() {
                command =
                    command.mut_subcommand(below.command, |command| with_examples(command, below));
            }
            with_examples(command, entry)
        });
    }
    let template = template(&command);
    command.help_template(template)
}

/// Adds the examples to the end of a command's help.
fn with_examples(command: Command, entry: &HelpEntry) -> Command {
    let mut text = String::new();
    if describe_examples(&mut text, &entry.examples).is_err() {
        return command;
    }
    if let Some(more) = command.get_after_help() {
        text = format!("{text}\n{}", more.ansi());
    }
    command.after_help(text)
}

fn describe_examples(text: &mut String, examples: &[HelpExample]) -> fmt::Result {
    let style = Styles::styled();
    let header = style.get_header();
    writeln!(text, "{header}Examples:{header:#}")?;
    for HelpExample(typed, does) in examples {
        writeln!(text, "  guard {typed}")?;
        writeln!(text, "      {does}")?;
    }
    Ok(())
}

/// The help of `guard` itself: clap lists all commands below one heading.
fn template(command: &Command) -> String {
    let style = Styles::styled();
    let (header, literal) = (style.get_header(), style.get_literal());
    let mut text = "{about-with-newline}\n{usage-heading} {usage}\n".to_owned();
    for HelpGroup { heading, commands } in GROUPS {
        text += &format!("\n{header}{heading}:{header:#}\n");
        for HelpEntry { command: name, .. } in *commands {
            let found = command.find_subcommand(name);
            let about = found.and_then(Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            text += &format!("  {literal}{name:<12}{literal:#} {about}\n");
        }
    }
    text += "\n`guard COMMAND --help` shows the options of a command and examples.\n";
    text += &format!("\n{header}Options:{header:#}\n{{options}}{{after-help}}");
    text
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, ffi::OsString};

    use super::*;

    #[test]
    fn every_command_is_in_exactly_one_group() {
        let command = Arguments::command();
        let shown = command.get_subcommands();
        let shown = shown.filter(|command| !command.is_hide_set());
        let mut known: Vec<&str> = shown.map(Command::get_name).collect();
        let grouped = GROUPS.iter().flat_map(|group| group.commands);
        let mut grouped: Vec<&str> = grouped.map(|entry| entry.command).collect();
        known.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(grouped, known);
    }

    /// The commands of the tables, as they are typed, with their examples.
    fn all() -> Vec<(String, &'static HelpEntry)> {
        let grouped = GROUPS.iter().flat_map(|group| group.commands);
        let grouped = grouped.map(|entry| (entry.command.to_owned(), entry));
        let nested = NESTED.iter();
        let nested = nested.map(|(parent, entry)| (format!("{parent} {}", entry.command), entry));
        grouped.chain(nested).collect()
    }

    #[test]
    fn every_example_is_accepted_and_begins_with_its_command() {
        let mut seen = BTreeSet::new();
        for (command, entry) in all() {
            for HelpExample(typed, _) in &entry.examples {
                assert!(seen.insert(typed), "{typed}: twice");
                assert!(
                    *typed == command || typed.starts_with(&format!("{command} ")),
                    "{typed}: not {command}"
                );
                let words = typed.split(' ').take_while(|word| *word != ">");
                let words: Vec<OsString> = words.map(OsString::from).collect();
                let parsed = Arguments::parse_from(&words);
                assert!(parsed.is_ok(), "{typed}: {parsed:?}");
            }
        }
    }

    #[test]
    fn the_help_of_every_command_ends_with_its_examples() {
        for (path, entry) in all() {
            let words = path.split(' ').chain(["--help"]).map(OsString::from);
            let words: Vec<OsString> = words.collect();
            let help = Arguments::parse_from(&words).unwrap_err().to_string();
            for HelpExample(typed, does) in &entry.examples {
                assert!(
                    help.contains(&format!("  guard {typed}\n      {does}\n")),
                    "{help}"
                );
            }
        }
    }

    #[test]
    fn every_synonym_leads_to_a_command_or_an_option_that_exists() {
        let command = command();
        let options: BTreeSet<String> = command
            .get_subcommands()
            .chain([&command])
            .flat_map(Command::get_arguments)
            .filter_map(|argument| argument.get_long())
            .map(|long| format!("--{long}"))
            .chain(["--version".to_owned()])
            .collect();
        for (word, own) in SYNONYMS {
            let first = own.split(' ').next().unwrap_or_default();
            let exists = command.find_subcommand(first).is_some() || options.contains(first);
            assert!(exists, "{word}: there is no {own}");
            assert!(
                command.find_subcommand(word).is_none(),
                "{word} is a command"
            );
        }
        for (word, _) in ADVICE {
            let has_synonym = SYNONYMS.iter().any(|(synonym, _)| synonym == word);
            assert!(
                !has_synonym && command.find_subcommand(word).is_none(),
                "{word}"
            );
        }
    }
}
