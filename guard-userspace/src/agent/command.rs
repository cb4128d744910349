//! Changes that operators ask the loop for.

use tokio::sync::oneshot;

use super::ChangeError;
use crate::{
    api::{Applied, Changed, EntryRequest, ModeChange, NewTrial, Reload, Revocation, actor::Actor},
    policy::Entry,
};

/// Where the answer goes. A change is made to its end also if the client has hung up.
pub type Reply<T> = oneshot::Sender<Result<Changed<T>, ChangeError>>;

pub enum AgentCommand {
    Reload(Reload, Reply<Applied>),
    Try(NewTrial, Actor, Reply<Applied>),
    Confirm(Reply<Applied>),
    Mode(ModeChange, Actor, Reply<Applied>),
    Enter(EntryRequest, Actor, Reply<Entry>),
    Revoke(u64, Revocation, Actor, Reply<Entry>),
    /// The agent is asked to end: the programs stay or go as the policy says.
    Leave(oneshot::Sender<anyhow::Result<()>>),
    /// The guard has been taken off.
    End,
}
