//! What operators let through or drop for a while, besides the policy.

use std::fmt;

use guard_common::layout::Expiry;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::untrusted::quoted;

/// How many characters of what a client said are shown.
const MAX_SHOWN: usize = 256;

/// A temporary allow or deny entry. One element of the list that `guard list --json` prints.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
pub struct Entry {
    /// Names it for `guard revoke`; no other entry has ever had it.
    pub id: u64,
    pub action: Action,
    #[schema(value_type = String)]
    pub prefix: IpNet,
    /// `null`: at every service.
    pub service: Option<String>,
    pub owner: Option<String>,
    pub reason: Option<String>,
    /// The user whose process asked for it, as the kernel says. `null`: an older version made it.
    #[serde(default)]
    pub by: Option<String>,
    /// That process.
    #[serde(default)]
    pub process: Option<u32>,
    #[schema(value_type = String)]
    pub created: Timestamp,
    /// `null`: never.
    #[schema(value_type = Option<String>)]
    pub expires: Option<Timestamp>,
}

/// What becomes of the packets of a prefix.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Neither denied nor limited, and admitted where a service has `from`. It opens no closed port.
    Allow,
    Deny,
}

impl Action {
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
            Some(expires) => write!(formatter, ", until {expires}"),
            None => write!(formatter, ", until it is revoked"),
        }
    }
}

impl Entry {
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// Prefixes with their end, by the number of the service that they are for (0: every one).
pub type PrefixExpiries = std::collections::BTreeMap<(u16, IpNet), Expiry>;
