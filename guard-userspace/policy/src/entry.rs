//! Entries: prefixes that an operator allows or denies for some time, besides the policy.

use std::fmt;

use guard_common::layout::Expiry;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::untrusted::quoted;

/// The most characters that are shown of an owner or a reason.
const MAX_SHOWN: usize = 256;

/// A temporary allow or deny entry. One element of the list that `guard list --json` prints.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
pub struct Entry {
    /// The number of the entry for `guard revoke`. It is never used for another entry.
    pub id: u64,
    pub action: Action,
    #[schema(value_type = String)]
    pub prefix: IpNet,
    /// The service at which the entry holds. `null`: every service.
    pub service: Option<String>,
    pub owner: Option<String>,
    pub reason: Option<String>,
    /// The user whose process made the entry, by the kernel's credentials of the socket. `null`: an older version of
    /// guard made it.
    #[serde(default)]
    pub by: Option<String>,
    /// The id of that process.
    #[serde(default)]
    pub process: Option<u32>,
    #[schema(value_type = String)]
    pub created: Timestamp,
    /// When the entry ends. `null`: never.
    #[schema(value_type = Option<String>)]
    pub expires: Option<Timestamp>,
}

/// Whether packets of a prefix pass or are dropped.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The prefix is neither denied nor limited, and admitted where a service has `from`. It opens no closed port.
    Allow,
    Deny,
}

impl Action {
    /// The name in JSON and text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
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
        } = self;
        let does = match action {
            Action::Allow => "lets through",
            Action::Deny => "denies",
        };
        write!(formatter, "entry {id} {does} {prefix}")?;
        if let Some(service) = service {
            write!(formatter, " at service \"{service}\"")?;
        }
        if let Some(owner) = owner {
            write!(formatter, ", owned by {}", quoted(owner, MAX_SHOWN))?;
        }
        if let Some(reason) = reason {
            write!(formatter, ", because: {}", quoted(reason, MAX_SHOWN))?;
        }
        if let Some(by) = by {
            write!(formatter, ", entered by {by}")?;
        }
        match expires {
            Some(expires) => write!(formatter, ", until {expires:.0}"),
            None => write!(formatter, ", without an end"),
        }
    }
}

impl Entry {
    /// Whether the entry has ended.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// Prefixes and when they end, by service id (0: every service).
pub type PrefixExpiries = std::collections::BTreeMap<(u16, IpNet), Expiry>;
