//! `guard diff`: shows how a policy file differs from the policy in force, and for whom that changes anything.

use std::path::PathBuf;

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
            output: Output { json },
        } = self;
        let client = location.client()?;
        let in_force = client.policy().await?;
        let own_file = in_force.file.as_ref().unwrap_or(&in_force.path);
        let file = file.unwrap_or_else(|| own_file.into());
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
        print(&describe(
            &in_force.path,
            &file.display().to_string(),
            &difference,
        ))?;
        Ok(())
    }
}

fn describe(in_force: &str, file: &str, difference: &PolicyDifference) -> String {
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
    text + "`guard try FILE --for 5m` puts it in force with a way back, `guard reload` for good"
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
        insta::assert_snapshot!(describe("/etc/guard/guard.toml", "/etc/guard/guard.toml", &found), @r#"
        /etc/guard/guard.toml differs from what is in force (/etc/guard/guard.toml) in 3 keys
          mode: "enforce" -> "observe"
        + service.web.from: ["192.0.2.0/24"]
          service.web.ports: ["tcp/80"] -> ["tcp/80", "tcp/443"]
        what changes for whom
          nothing is dropped any more: packets that would be are counted
          tcp/443 opens for 192.0.2.0/24
          tcp/80 closes for everybody but 192.0.2.0/24
        `guard try FILE --for 5m` puts it in force with a way back, `guard reload` for good
        "#);
        let same = difference((&one, before), (&one, before));
        insta::assert_snapshot!(describe("/etc/guard/guard.toml", "new.toml", &same), @r"new.toml says what is in force: no key differs");
    }
}
