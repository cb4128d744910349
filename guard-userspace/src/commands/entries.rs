//! `guard allow`, `deny`, `list` and `revoke`: the temporary entries of operators.

use std::collections::BTreeSet;

use clap::Args;
use comfy_table::{Table, presets::NOTHING};
use ipnet::IpNet;
use jiff::{SignedDuration, Span, SpanRelativeTo};

use super::{
    Failure, Forced, Output,
    moments::{clock, left},
    one_line, print, print_json,
};
use crate::{
    api::{EnteredEntry, EntryRequest, Revocation, client::Client},
    operator::ssh_session,
    policy::{Action, Entry, parse_prefix, untrusted::quoted},
};

/// The most characters shown of an owner or a reason.
const MAX_SHOWN: usize = 256;

#[derive(Debug, Args)]
pub struct Enter {
    /// The source: an address or a CIDR
    #[arg(value_name = "CIDR", value_parser = parse_prefix)]
    prefix: IpNet,
    /// Apply it at this service only
    #[arg(long, value_name = "S")]
    service: Option<String>,
    /// Duration, such as 30m, 2h, 7d or forever; without an end if left out
    #[arg(long = "for", value_name = "TIME", value_parser = parse_entry_time)]
    lasts: Option<EntryTime>,
    /// The owner of the entry; your user name if left out
    #[arg(long, value_name = "O")]
    owner: Option<String>,
    /// The reason for the entry
    #[arg(long, value_name = "R")]
    reason: Option<String>,
    #[command(flatten)]
    forced: Forced,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub struct Revoke {
    /// The entry's number, as `guard list` shows it, or with --owner an address or a CIDR
    #[arg(value_name = "ID|CIDR", value_parser = parse_entry_name)]
    entry: EntryName,
    /// End the entries of this owner for the CIDR
    #[arg(long, value_name = "O")]
    owner: Option<String>,
    #[command(flatten)]
    forced: Forced,
    #[command(flatten)]
    output: Output,
}

/// How long an entry lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EntryTime {
    Forever,
    For(SignedDuration),
}

fn parse_entry_time(text: &str) -> Result<EntryTime, String> {
    match text {
        "forever" => Ok(EntryTime::Forever),
        text => match parse_duration(text) {
            Ok(lasts) => Ok(EntryTime::For(lasts)),
            Err(problem) => Err(format!("{problem}, or forever")),
        },
    }
}

/// How an operator names the entries to revoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EntryName {
    Id(u64),
    Prefix(IpNet),
}

fn parse_entry_name(text: &str) -> Result<EntryName, String> {
    if let Ok(id) = text.parse() {
        return Ok(EntryName::Id(id));
    }
    let prefix = parse_prefix(text).map(EntryName::Prefix);
    prefix.map_err(|_| {
        format!("{text:?} names no entry: write its number, or an address or a CIDR with --owner")
    })
}

impl Enter {
    pub async fn run(self, client: &Client, action: Action) -> Result<(), Failure> {
        let Self {
            prefix,
            service,
            lasts,
            owner,
            reason,
            forced: Forced { force },
            output,
        } = self;
        let owner = owner.map(|owner| one_line("--owner", owner)).transpose()?;
        let reason = reason
            .map(|reason| one_line("--reason", reason))
            .transpose()?;
        let entry = client
            .enter(&EntryRequest {
                action,
                prefix,
                service,
                owner: owner.or_else(super::user),
                reason,
                seconds: match lasts {
                    None | Some(EntryTime::Forever) => None,
                    Some(EntryTime::For(lasts)) => u64::try_from(lasts.as_secs()).ok(),
                },
                operator: ssh_session(),
                force,
            })
            .await?;
        if output.json {
            return Ok(print_json(&entry)?);
        }
        Ok(print(&entered(&entry))?)
    }
}

/// What was entered, what it does not do, and how to undo it.
pub fn entered(entered: &EnteredEntry) -> String {
    let EnteredEntry { entry, updated } = entered;
    let mut text = entry.to_string();
    if *updated {
        text += ". It replaces the entry with this number";
    }
    if entry.action == Action::Allow {
        text += ". Closed ports stay closed: only the policy opens a port";
    }
    text + &format!(". `guard revoke {}` ends it", entry.id)
}

impl Revoke {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let Self {
            entry,
            owner,
            forced: Forced { force },
            output,
        } = self;
        let operator = ssh_session();
        let revocation = Revocation { operator, force };
        let ids = match (entry, owner) {
            (EntryName::Id(id), None) => vec![id],
            (EntryName::Id(id), Some(_)) => {
                return Err(Failure::Usage(format!(
                    "the number {id} names a single entry: leave --owner out, or write a CIDR with it"
                )));
            }
            (EntryName::Prefix(prefix), owner) => owned(client, prefix, owner.as_deref()).await?,
        };
        let mut revoked = Vec::new();
        for id in ids {
            revoked.push(client.revoke(id, &revocation).await?);
        }
        if output.json {
            match (entry, revoked.as_slice()) {
                (EntryName::Id(_), [entry]) => print_json(entry)?,
                _ => print_json(&revoked)?,
            }
            return Ok(());
        }
        let lines = revoked.iter().map(|entry| format!("revoked: {entry}"));
        Ok(print(&lines.collect::<Vec<_>>().join("\n"))?)
    }
}

/// The ids of an owner's entries for exactly this prefix. Without an owner, all entries for the prefix must be of one.
async fn owned(client: &Client, prefix: IpNet, owner: Option<&str>) -> Result<Vec<u64>, Failure> {
    let mut entries = client.entries().await?;
    entries.retain(|entry| {
        entry.prefix == prefix.trunc() && (owner.is_none() || entry.owner.as_deref() == owner)
    });
    let owners: BTreeSet<Option<&str>> =
        entries.iter().map(|entry| entry.owner.as_deref()).collect();
    if owners.len() > 1 {
        let named = owners
            .iter()
            .map(|owner| quoted(owner.unwrap_or("-"), MAX_SHOWN));
        return Err(Failure::Usage(format!(
            "several owners have entries for {prefix} ({}): write --owner, or the number that `guard list` shows",
            named.collect::<Vec<_>>().join(", ")
        )));
    }
    if entries.is_empty() {
        let of_owner = owner.map(|owner| format!(" of {}", quoted(owner, MAX_SHOWN)));
        return Err(anyhow::anyhow!(
            "there is no entry for {prefix}{}: `guard list` shows all entries",
            of_owner.unwrap_or_default()
        )
        .into());
    }
    Ok(entries.iter().map(|entry| entry.id).collect())
}

pub async fn list(client: &Client, output: &Output) -> Result<(), Failure> {
    let entries = client.entries().await?;
    if output.json {
        return Ok(print_json(&entries)?);
    }
    if entries.is_empty() {
        return Ok(print("there are no allow or deny entries")?);
    }
    Ok(print(&table(&entries).to_string())?)
}

fn table(entries: &[Entry]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([
        "ID", "ACTION", "PREFIX", "SERVICE", "BY", "OWNER", "UNTIL", "REASON",
    ]);
    for entry in entries {
        let Entry {
            id,
            action,
            prefix,
            service,
            owner,
            reason,
            by,
            process: _,
            created: _,
            expires,
        } = entry;
        table.add_row([
            id.to_string(),
            action.name().to_owned(),
            prefix.to_string(),
            service.clone().unwrap_or_else(|| "-".to_owned()),
            by.clone().unwrap_or_else(|| "-".to_owned()),
            quoted_or_dash(owner.as_deref()),
            match expires {
                Some(expires) => format!("{} (in {})", clock(*expires), left(*expires)),
                None => "no end".to_owned(),
            },
            quoted_or_dash(reason.as_deref()),
        ]);
    }
    table
}

/// A text that a client sent, in quotes because nothing verifies it.
fn quoted_or_dash(text: Option<&str>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| quoted(text, MAX_SHOWN))
}

/// Parses `90s`, `30m`, `2h`, `7d`. A day has 24 hours.
pub fn parse_duration(text: &str) -> Result<SignedDuration, String> {
    let wrong = || format!("{text:?} is not a duration: write 90s, 30m, 2h or 7d");
    let span: Span = text.parse().map_err(|_| wrong())?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours());
    match duration {
        Ok(duration) if duration.as_secs() >= 1 => Ok(duration),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(action: &str, updated: bool) -> EnteredEntry {
        let entry = json!({
            "id": 4, "action": action, "prefix": "198.51.100.0/24", "service": null, "owner": "anna", "reason": null,
            "by": "root", "created": "2026-11-30T09:45:01.123456789Z", "expires": null, "updated": updated,
        });
        serde_json::from_value(entry).unwrap()
    }

    #[test]
    fn an_answer_says_what_an_entry_does_not_do_and_how_to_undo_it() {
        insta::assert_snapshot!(entered(&entry("allow", false)), @r#"entry 4 lets through 198.51.100.0/24, owned by "anna", entered by root, without an end. Closed ports stay closed: only the policy opens a port. `guard revoke 4` ends it"#);
        insta::assert_snapshot!(entered(&entry("deny", true)), @r#"entry 4 denies 198.51.100.0/24, owned by "anna", entered by root, without an end. It replaces the entry with this number. `guard revoke 4` ends it"#);
    }

    #[test]
    fn an_entry_without_an_end_is_listed_as_such() {
        let text = table(&[entry("deny", false).entry]).to_string();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        insta::assert_snapshot!(lines.join("\n"), @r#"
        ID  ACTION  PREFIX           SERVICE  BY    OWNER   UNTIL   REASON
        4   deny    198.51.100.0/24  -        root  "anna"  no end  -
        "#);
    }
}
