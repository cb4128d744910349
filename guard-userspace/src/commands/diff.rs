//! `guard diff`: shows how a policy file differs from the policy in force, and for whom that changes anything.

use std::{fs, path::PathBuf};

use clap::Args;
use serde::Serialize;

use super::{AgentLocation, Failure, Output, print, print_json, read_policy_and_text};
use crate::{
    difference::{PolicyDifference, difference},
    host,
    policy::{KernelTick, Policy},
};

#[derive(Debug, Args)]
pub struct Diff {
    /// The policy file; the file that a reload reads if left out
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The same as FILE
    #[arg(
        long = "policy",
        value_name = "FILE",
        conflicts_with = "file",
        hide = true
    )]
    policy: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// The output of `guard diff --json`.
#[derive(Serialize)]
struct DiffReport<'a> {
    /// The policy in force, and the file.
    in_force: &'a str,
    file: String,
    #[serde(flatten)]
    difference: &'a PolicyDifference,
}

impl Diff {
    pub async fn run(self, location: &AgentLocation) -> Result<(), Failure> {
        let Self {
            file,
            policy,
            output: Output { json },
        } = self;
        let client = location.client()?;
        let in_force = client.policy().await?;
        let own_file = in_force.file.as_ref().unwrap_or(&in_force.path);
        let file = file.or(policy).unwrap_or_else(|| own_file.into());
        let (policy, text) = read_policy_and_text(&file)?;
        let tick_ns = host::tick_ns().map_err(anyhow::Error::from)?;
        let before = Policy::parse(&in_force.text, &in_force.path, KernelTick { tick_ns })?;
        let difference = difference((&before, &in_force.text), (&policy, &text));
        if json {
            print_json(&DiffReport {
                in_force: &in_force.path,
                file: file.display().to_string(),
                difference: &difference,
            })?;
            return Ok(());
        }
        let compared = ComparedFiles {
            in_force: &in_force.path,
            file: &file.display().to_string(),
            own_file,
        };
        print(&compared.describe(&difference))?;
        Ok(())
    }
}

/// The files that a difference is about.
#[derive(Clone, Copy)]
struct ComparedFiles<'a> {
    /// The file of the policy in force.
    in_force: &'a str,
    /// The file that it is compared with.
    file: &'a str,
    /// The file that a reload reads.
    own_file: &'a str,
}

impl ComparedFiles<'_> {
    /// How the file is put in force.
    fn advice(self) -> String {
        let Self { file, own_file, .. } = self;
        let whole = |path: &str| fs::canonicalize(path).unwrap_or_else(|_| path.into());
        let tries = format!("`guard try {file} --for 5m` puts it in force with a way back");
        if whole(file) == whole(own_file) {
            return format!("{tries}, `guard reload` for good");
        }
        format!(
            "{tries}, and then `guard confirm --write` for good: it writes the policy to {own_file}, which is what \
             `guard reload` reads"
        )
    }

    fn describe(self, difference: &PolicyDifference) -> String {
        let Self { in_force, file, .. } = self;
        let PolicyDifference { keys, effects } = difference;
        if keys.is_empty() {
            return format!("{file} says what is in force: no key differs");
        }
        let mut text = format!(
            "{file} differs from what is in force ({in_force}) in {}\n",
            counted(keys.len(), "key")
        );
        for change in keys {
            text += &match (&change.before, &change.after) {
                (Some(before), Some(after)) => format!("  {}: {before} -> {after}\n", change.key),
                (None, Some(after)) => format!("+ {}: {after}\n", change.key),
                (Some(before), None) => format!("- {}: {before}\n", change.key),
                (None, None) => String::new(),
            };
        }
        text += "what changes for whom\n";
        if effects.is_empty() {
            text += "  no port opens or closes, and no budget changes\n";
        }
        for effect in effects {
            text += &format!("  {effect}\n");
        }
        text + &self.advice()
    }
}

fn counted(number: usize, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        number => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_says_whether_anything_differs() {
        let clock = KernelTick { tick_ns: 4_000_000 };
        let before = "mode = \"enforce\"\n[[service]]\nname = \"web\"\nports = [\"tcp/80\"]\n";
        let after = "mode = \"observe\"\n[[service]]\nname = \"web\"\nports = [\"tcp/80\", \"tcp/443\"]\nfrom = [\"192.0.2.0/24\"]\n";
        let [one, other] =
            [before, after].map(|text| Policy::parse(text, "guard.toml", clock).unwrap());
        let found = difference((&one, before), (&other, after));
        let own = ComparedFiles {
            in_force: "/etc/guard/guard.toml",
            file: "/etc/guard/guard.toml",
            own_file: "/etc/guard/guard.toml",
        };
        insta::assert_snapshot!(own.describe(&found), @r#"
        /etc/guard/guard.toml differs from what is in force (/etc/guard/guard.toml) in 3 keys
          mode: "enforce" -> "observe"
        + service.web.from: ["192.0.2.0/24"]
          service.web.ports: ["tcp/80"] -> ["tcp/80", "tcp/443"]
        what changes for whom
          nothing is dropped any more: packets that would be are counted
          tcp/443 opens for 192.0.2.0/24
          tcp/80 closes for everybody but 192.0.2.0/24
        `guard try /etc/guard/guard.toml --for 5m` puts it in force with a way back, `guard reload` for good
        "#);
        let same = difference((&one, before), (&one, before));
        let other = ComparedFiles {
            file: "new.toml",
            ..own
        };
        insta::assert_snapshot!(other.describe(&same), @r"new.toml says what is in force: no key differs");
        insta::assert_snapshot!(other.advice(), @"`guard try new.toml --for 5m` puts it in force with a way back, and then `guard confirm --write` for good: it writes the policy to /etc/guard/guard.toml, which is what `guard reload` reads");
    }
}
