//! `guard allow`, `deny`, `list` and `revoke`: what is let through or dropped for a while.

use clap::Args;
use comfy_table::{Table, presets::NOTHING};
use ipnet::IpNet;
use jiff::{SignedDuration, Span, SpanRelativeTo};

use super::{Failure, Forced, Output, one_line, print, print_json};
use crate::{
    api::{EntryRequest, Revocation, client::Client},
    operator::ssh_session,
    policy::{Action, Entry, parse_prefix, untrusted::quoted},
};

/// How many characters of an owner and a reason are shown.
const MAX_SHOWN: usize = 256;

#[derive(Debug, Args)]
pub struct Enter {
    /// The source: an address or a CIDR
    #[arg(value_name = "CIDR", value_parser = parse_prefix)]
    prefix: IpNet,
    /// At this service alone
    #[arg(long, value_name = "S")]
    service: Option<String>,
    /// How long, such as 30m, 2h or 7d; until it is revoked if left out
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    lasts: Option<SignedDuration>,
    /// Who answers for it; the user who types it if left out
    #[arg(long, value_name = "O")]
    owner: Option<String>,
    /// Why
    #[arg(long, value_name = "R")]
    reason: Option<String>,
    #[command(flatten)]
    forced: Forced,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub struct Revoke {
    /// The entry's number, as `guard list` shows it
    id: u64,
    #[command(flatten)]
    forced: Forced,
    #[command(flatten)]
    output: Output,
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
                seconds: lasts.and_then(|lasts| u64::try_from(lasts.as_secs()).ok()),
                operator: ssh_session(),
                force,
            })
            .await?;
        if output.json {
            return Ok(print_json(&entry)?);
        }
        Ok(print(&entry.to_string())?)
    }
}

impl Revoke {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let Self {
            id,
            forced: Forced { force },
            output,
        } = self;
        let operator = ssh_session();
        let entry = client.revoke(id, &Revocation { operator, force }).await?;
        if output.json {
            return Ok(print_json(&entry)?);
        }
        Ok(print(&format!("revoked: {entry}"))?)
    }
}

pub async fn list(client: &Client, output: &Output) -> Result<(), Failure> {
    let entries = client.entries().await?;
    if output.json {
        return Ok(print_json(&entries)?);
    }
    if entries.is_empty() {
        return Ok(print("nothing is allowed or denied besides the policy")?);
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
            said(owner.as_deref()),
            match expires {
                Some(expires) => format!("{expires:.0}"),
                None => "revoked".to_owned(),
            },
            said(reason.as_deref()),
        ]);
    }
    table
}

/// What a client said, which the kernel does not answer for.
fn said(text: Option<&str>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| quoted(text, MAX_SHOWN))
}

/// Parses `90s`, `30m`, `2h`, `7d`. A day has 24 hours.
pub fn parse_duration(text: &str) -> Result<SignedDuration, String> {
    let wrong = || format!("{text:?} is no time: write one such as 90s, 30m, 2h or 7d");
    let span: Span = text.parse().map_err(|_| wrong())?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours());
    match duration {
        Ok(duration) if duration.as_secs() >= 1 => Ok(duration),
        _ => Err(wrong()),
    }
}
