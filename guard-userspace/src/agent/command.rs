//! The changes that operators request from the loop.

use tokio::sync::oneshot;

use super::ChangeError;
use crate::{
    api::{
        Applied, Changed, EnteredEntry, EntryRequest, ModeChange, NewTrial, Reload, Revocation,
        actor::Actor,
    },
    policy::Entry,
};

/// The receiver of the answer. A change is completed even if the client has closed its connection.
pub type Reply<T> = oneshot::Sender<Result<Changed<T>, ChangeError>>;

pub enum AgentCommand {
    Reload(Reload, Reply<Applied>),
    Try(NewTrial, Actor, Reply<Applied>),
    Confirm(Reply<Applied>),
    Mode(ModeChange, Actor, Reply<Applied>),
    Enter(EntryRequest, Actor, Reply<EnteredEntry>),
    Revoke(u64, Revocation, Actor, Reply<Entry>),
    /// Ends the agent. `on_exit` in the policy decides whether the programs stay attached.
    Leave(oneshot::Sender<anyhow::Result<()>>),
    /// The guard has been detached.
    End,
}
