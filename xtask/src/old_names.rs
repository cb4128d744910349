//! Rejects old names that were replaced by the field's terms: one thing has one name.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use lab::process::run as output;

/// The old name, and the name that replaces it.
const OLD_NAMES: &[(&str, &str)] = &[
    ("Ends", "IpHeader"),
    ("Ground", "CompileInput"),
    ("KeepError", "StoreError"),
    ("KeptPolicy", "StoredPolicy"),
    ("KeptTrial", "StoredTrial"),
    ("PortNews", "PortUpdates"),
    ("ReadEnds", "IpFields"),
    ("Relief", "Exemption"),
    ("Seat", "ServiceIdSlot"),
    ("Seats", "ServiceIds"),
    ("ServiceNumber", "ServiceId"),
    ("STRANGERS", "UNSOLICITED"),
    ("Traits", "PacketClass"),
    ("Unread", "NotParsed"),
    ("Unsure", "Deferred"),
    ("Whereabouts", "AgentLocation"),
    ("WireEnds", "WireIpHeader"),
    ("find_relief", "find_exemption"),
    ("look_closer", "defer"),
    ("note_stranger", "note_unsolicited"),
    ("pay_as_crowd", "charge_crowd"),
    ("pay_totals", "charge_totals"),
    ("pay_each", "charge_every_kind"),
    ("pay_in_advance", "prepay"),
    ("DockerAsked", "DockerQuery"),
    ("OwnAlone", "OwnReading"),
    ("StaysOff", "StaysDetached"),
    ("Tapped", "CapturedPacket"),
    ("ask_hashes", "look_up_hashes"),
    ("asks_hashes", "needs_hashes"),
    ("be_exact", "stop_prepaying"),
    ("be_frugal", "limit_heaps"),
    ("go_by_agent", "limit_to_agent"),
    ("goes_by", "has_name"),
    ("judge_by", "load_program"),
    ("lacks_agent_alone", "is_agent_only_obstacle"),
    ("needs_another", "needs_new_generation"),
    ("patiently", "wait_for_claim"),
    ("still_judging", "interfaces_with_program"),
    ("tend_flows", "remove_ended_flows"),
    ("unmoved", "shared_slices"),
    ("wanted_now", "current_filter"),
    ("way_to", "steps_to"),
    ("what_became", "describe_verdict"),
    ("whereabouts", "location_options"),
];

/// Fails if a tracked file has an old name in its code. Comments are not searched: some old names are common words.
///
/// # Errors
/// One line for each old name, with its file and line.
pub fn require_none(workspace: &Path) -> Result<()> {
    let tracked = output(
        Command::new("git")
            .current_dir(workspace)
            .args(["ls-files", "-z", "*.rs"]),
    )?;
    let mut found = Vec::new();
    let itself = Path::new(file!());
    for file in tracked.split_terminator('\0') {
        let path = workspace.join(file);
        if path.ends_with(itself) || !path.exists() {
            continue;
        }
        let source = fs::read_to_string(path).with_context(|| format!("reading {file}"))?;
        for (number, line) in source.lines().enumerate() {
            for (old, new) in in_code(line) {
                found.push(format!("{file}:{}: {old} is called {new}", number + 1));
            }
        }
    }
    ensure!(
        found.is_empty(),
        "old names that were replaced:\n{}",
        found.join("\n")
    );
    Ok(())
}

/// The old names in a line, with the new ones.
fn in_code(line: &str) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    let code = line.split("//").next().unwrap_or_default();
    OLD_NAMES.iter().filter(move |(old, _)| {
        let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
        code.split(|letter| !is_part(letter))
            .any(|word| word == *old)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_name_is_found_as_a_word_of_code() {
        let found = |line| in_code(line).map(|(old, _)| *old).collect::<Vec<_>>();
        assert_eq!(
            found("fn f(seats: &Seats) -> Relief {"),
            ["Relief", "Seats"]
        );
        assert!(found("/// Ends the loop.").is_empty());
        assert!(found("struct SeatsOfACar;").is_empty());
    }
}
