//! Sends the operator's requests to the agent, and turns the answers into what the screen shows.

use std::{fmt, net::IpAddr, sync::Arc, time::Instant};

use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::mpsc::Sender;

use super::{
    list::Notice,
    state::{GuardReading, Shown},
};
use crate::{
    api::{
        Changed, EnteredEntry, EntryRequest, ExplainRequest, ListedEntry, Revocation,
        client::ClientError,
    },
    commands::{self, explain, reading::GuardReader},
    operator::ssh_session,
    policy::Action,
};

/// A message for the screen.
pub enum ScreenEvent {
    Reading(Instant, Result<Box<GuardReading>, String>),
    Answer(Shown),
    Done(Notice),
    Entries(Timestamp, Result<Vec<ListedEntry>, String>),
}

/// A request to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentRequest {
    Explain {
        from: IpAddr,
        to: String,
    },
    Enter {
        action: Action,
        prefix: IpNet,
        /// `None`: until it is revoked.
        seconds: Option<u64>,
    },
    /// The list of entries.
    Entries,
    Revoke {
        id: u64,
    },
}

impl fmt::Display for AgentRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Explain { from, to } => write!(formatter, "{from} to {to}"),
            Self::Enter { action, prefix, .. } => write!(formatter, "{} {prefix}", action.name()),
            Self::Entries => write!(formatter, "entries"),
            Self::Revoke { id } => write!(formatter, "revoke entry {id}"),
        }
    }
}

/// Sends a request to the agent, and the answer to the screen.
pub async fn answer(
    reader: Arc<GuardReader>,
    request: AgentRequest,
    messages: Sender<ScreenEvent>,
) {
    let title = request.to_string();
    let answers = match request {
        AgentRequest::Explain { from, to } => {
            explained(&reader, &title, &ExplainRequest { from, to }).await
        }
        AgentRequest::Enter {
            action,
            prefix,
            seconds,
        } => {
            let request = EntryRequest {
                action,
                prefix,
                service: None,
                owner: commands::user(),
                reason: "guard top".parse().ok(),
                seconds,
                operator: ssh_session(),
                force: false,
            };
            entered(&reader, &title, &request).await
        }
        AgentRequest::Entries => Ok(vec![listed(&reader).await]),
        AgentRequest::Revoke { id } => revoked(&reader, &title, id).await,
    };
    let answers = answers.unwrap_or_else(|error| {
        let text = format!("Failed: {error}");
        vec![ScreenEvent::Answer(Shown::new(title, text))]
    });
    for answer in answers {
        // Fails if the screen is closed.
        let _result = messages.send(answer).await;
    }
}

type ScreenAnswers = Result<Vec<ScreenEvent>, ClientError>;

async fn explained(reader: &GuardReader, title: &str, question: &ExplainRequest) -> ScreenAnswers {
    let explanation = reader.client.explain(question).await?;
    let text = explain::describe(&explanation).unwrap_or_default();
    let shown = Shown::new(title.to_owned(), text);
    Ok(vec![ScreenEvent::Answer(shown)])
}

async fn listed(reader: &GuardReader) -> ScreenEvent {
    let entries = reader.client.entries().await;
    ScreenEvent::Entries(Timestamp::now(), entries.map_err(|error| error.to_string()))
}

async fn entered(reader: &GuardReader, title: &str, request: &EntryRequest) -> ScreenAnswers {
    let Changed { done, not_kept } = reader.client.enter_silently(request).await?;
    // Of an entry that was there before, `u` cannot bring back what it was.
    let EnteredEntry {
        entry,
        updated,
        overridden_by: _,
        overrides: _,
        warnings,
    } = &done;
    let notice = Notice::of_entered(entry, *updated, Timestamp::now());
    // An allow entry that wins over a denial does what it says: the last line is enough.
    let is_warned = entry.action == Action::Deny && !warnings.is_empty();
    let warning = is_warned.then(|| Shown::new(title.to_owned(), warnings.join("\n")));
    let mut answers = done_or_lost(title, notice, not_kept);
    answers.extend(warning.map(ScreenEvent::Answer));
    Ok(answers)
}

async fn revoked(reader: &GuardReader, title: &str, id: u64) -> ScreenAnswers {
    // Never forced: a refusal says what the operator would have to type.
    let request = Revocation {
        operator: ssh_session(),
        force: false,
    };
    let Changed { done, not_kept } = reader.client.revoke_silently(id, &request).await?;
    let mut answers = done_or_lost(title, Notice::of_revoked(&done), not_kept);
    answers.push(listed(reader).await);
    Ok(answers)
}

/// The last line, and a box if a restart of the agent would lose the change.
fn done_or_lost(title: &str, notice: Notice, not_kept: Option<String>) -> Vec<ScreenEvent> {
    let lost = not_kept.map(|not_kept| {
        let text = format!(
            "{}\nLOST AT THE AGENT'S NEXT START: {not_kept}",
            notice.text
        );
        ScreenEvent::Answer(Shown::new(title.to_owned(), text))
    });
    [ScreenEvent::Done(notice)]
        .into_iter()
        .chain(lost)
        .collect()
}
