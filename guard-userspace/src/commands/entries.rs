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
    api::{EnteredEntry, EntryRequest, ListedEntry, Revocation, client::Client},
    explain::Destination,
    operator::ssh_session,
    policy::{Action, Entry, PastEntry, parse_prefix, untrusted::quoted},
};

/// The most characters shown of an owner or a reason.
const MAX_SHOWN: usize = 256;

#[derive(Debug, Args)]
pub struct Enter {
    /// The source: an address or a CIDR
    #[arg(value_name = "CIDR", value_parser = parse_source)]
    prefix: IpNet,
    /// Apply it at this service only
    #[arg(long, value_name = "S")]
    service: Option<String>,
    /// Duration, such as 30m, 2h, 7d or forever; if left out, the entry has no end and stays until `guard revoke`
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
    /// The entry's number, as `guard list` shows it, or with --owner an address or a CIDR; several end several entries
    #[arg(value_name = "ID|CIDR", value_parser = parse_entry_name, required = true)]
    entries: Vec<EntryName>,
    /// End the entries of this owner for the CIDR
    #[arg(long, value_name = "O")]
    owner: Option<String>,
    #[command(flatten)]
    forced: Forced,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub struct ListCommand {
    /// List only the entries that concern this source: an address or a CIDR
    #[arg(value_name = "CIDR", value_parser = parse_prefix)]
    source: Option<IpNet>,
    #[command(flatten)]
    output: Output,
}

/// Parses the source of an entry. A port is a common mistake: in other firewalls, `allow` opens ports.
fn parse_source(text: &str) -> Result<IpNet, String> {
    parse_prefix(text).map_err(|problem| match text.parse::<Destination>() {
        Ok(Destination { ports, .. }) => format!(
            "{text:?} is a port, and `allow` and `deny` take a source: to open the port, list it in the policy, `ports = \
             [\"{ports}\"]` in a [[service]], and `guard try` the file; a port that no service lists is closed"
        ),
        Err(_) => problem,
    })
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

/// What was entered, what it does not do, and how to undo it. Then a line for each entry that overlaps with it.
pub fn entered(entered: &EnteredEntry) -> String {
    let EnteredEntry {
        entry,
        updated,
        overridden_by: _,
        overrides: _,
        warnings,
    } = entered;
    let mut text = entry.to_string();
    if *updated {
        text += ". It replaces the entry with this number";
    }
    if entry.action == Action::Allow {
        text +=
            ". A port that no service lists stays closed; services with `from` admit the source";
    }
    text += &match entry.expires {
        Some(_) => format!(". `guard revoke {}` ends it", entry.id),
        None => format!(
            ". It stays until `guard revoke {}`: --for 2h would give it an end",
            entry.id
        ),
    };
    for warning in warnings {
        text += &format!("\nwarning: {warning}");
    }
    text
}

impl Revoke {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let Self {
            entries,
            owner,
            forced: Forced { force },
            output,
        } = self;
        let operator = ssh_session();
        let revocation = Revocation { operator, force };
        let mut ids = Vec::new();
        for entry in &entries {
            let found = match (entry, &owner) {
                (EntryName::Id(id), None) => vec![*id],
                (EntryName::Id(id), Some(_)) => {
                    return Err(Failure::Usage(format!(
                        "the number {id} names a single entry: leave --owner out, or write a CIDR with it"
                    )));
                }
                (EntryName::Prefix(prefix), owner) => {
                    owned(client, *prefix, owner.as_deref()).await?
                }
            };
            ids.extend(found);
        }
        let (mut revoked, mut failure) = (Vec::new(), None);
        for id in ids {
            match client.revoke(id, &revocation).await {
                Ok(entry) => revoked.push(entry),
                // The entries before this one are revoked, so they are printed.
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        if failure.is_none() || !revoked.is_empty() {
            print_revoked(&entries, &revoked, output.json)?;
        }
        failure.map_or(Ok(()), |error| Err(error.into()))
    }
}

/// Prints one object if a single entry was named by its number, and otherwise a list.
fn print_revoked(named: &[EntryName], revoked: &[Entry], json: bool) -> anyhow::Result<()> {
    if json {
        return match (named, revoked) {
            ([EntryName::Id(_)], [entry]) => print_json(entry),
            _ => print_json(&revoked),
        };
    }
    let lines = revoked
        .iter()
        .map(|entry| format!("revoked {}", PastEntry(entry)));
    print(&lines.collect::<Vec<_>>().join("\n"))
}

/// The ids of an owner's entries for exactly this prefix. Without an owner, all entries for the prefix must be of one.
async fn owned(client: &Client, prefix: IpNet, owner: Option<&str>) -> Result<Vec<u64>, Failure> {
    let entries = client.entries().await?.into_iter();
    let mut entries: Vec<Entry> = entries.map(|listed| listed.entry).collect();
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

impl ListCommand {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let Self { source, output } = self;
        let mut entries = client.entries().await?;
        if let Some(source) = source {
            entries.retain(|listed| concerns(&listed.entry, source));
        }
        if output.json {
            return Ok(print_json(&entries)?);
        }
        if entries.is_empty() {
            return Ok(print(&match source {
                Some(source) => {
                    format!("no allow or deny entry concerns {source}: `guard list` shows all")
                }
                None => "there are no allow or deny entries".to_owned(),
            })?);
        }
        Ok(print(&table(&entries).to_string())?)
    }
}

/// Whether an entry holds for a source, or for a part of it.
fn concerns(entry: &Entry, source: IpNet) -> bool {
    entry.prefix.contains(&source) || source.contains(&entry.prefix)
}

fn table(entries: &[ListedEntry]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([
        "ID", "ACTION", "PREFIX", "SERVICE", "BY", "OWNER", "UNTIL", "REASON",
    ]);
    for listed in entries {
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
        } = &listed.entry;
        table.add_row([
            id.to_string(),
            match listed.overridden_by.first() {
                Some(by) => format!("{}, overridden by {by}", action.name()),
                None => action.name().to_owned(),
            },
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
        insta::assert_snapshot!(entered(&entry("allow", false)), @r#"entry 4 lets through 198.51.100.0/24, owned by "anna", entered by root, without an end. A port that no service lists stays closed; services with `from` admit the source. It stays until `guard revoke 4`: --for 2h would give it an end"#);
        insta::assert_snapshot!(entered(&entry("deny", true)), @r#"entry 4 denies 198.51.100.0/24, owned by "anna", entered by root, without an end. It replaces the entry with this number. It stays until `guard revoke 4`: --for 2h would give it an end"#);
        let mut overridden = entry("deny", false);
        overridden.entry.expires = Some("2026-11-30T11:45:01Z".parse().unwrap());
        overridden.warnings = vec!["entry 3 allows 198.51.100.0/24 and wins".to_owned()];
        insta::assert_snapshot!(entered(&overridden), @r#"
        entry 4 denies 198.51.100.0/24, owned by "anna", entered by root, until 2026-11-30T11:45:01Z. `guard revoke 4` ends it
        warning: entry 3 allows 198.51.100.0/24 and wins
        "#);
    }

    #[test]
    fn an_entry_without_an_end_is_listed_as_such_and_an_overridden_one_too() {
        let overridden = ListedEntry {
            entry: entry("deny", false).entry,
            overridden_by: vec![3],
        };
        let plain = ListedEntry {
            overridden_by: Vec::new(),
            ..overridden.clone()
        };
        let text = table(&[plain, overridden]).to_string();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        insta::assert_snapshot!(lines.join("\n"), @r#"
        ID  ACTION                 PREFIX           SERVICE  BY    OWNER   UNTIL   REASON
        4   deny                   198.51.100.0/24  -        root  "anna"  no end  -
        4   deny, overridden by 3  198.51.100.0/24  -        root  "anna"  no end  -
        "#);
    }

    #[test]
    fn an_entry_concerns_each_source_within_it_and_each_network_around_it() {
        let entry = entry("deny", false).entry;
        for (source, is_concerned) in [
            ("198.51.100.7", true),
            ("198.51.0.0/16", true),
            ("203.0.113.1", false),
            ("2001:db8::1", false),
        ] {
            let source = parse_prefix(source).unwrap();
            assert_eq!(concerns(&entry, source), is_concerned, "{source}");
        }
    }
}
