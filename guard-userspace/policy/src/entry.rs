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

/// A temporary allow or deny entry.
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
        let does = match self.action {
            Action::Allow => "lets through",
            Action::Deny => "denies",
        };
        write!(formatter, "entry {} {does} ", self.id)?;
        self.describe(formatter)
    }
}

/// Displays an entry that is no longer in force.
pub struct PastEntry<'a>(pub &'a Entry);

impl fmt::Display for PastEntry<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(entry) = self;
        let did = match entry.action {
            Action::Allow => "let through",
            Action::Deny => "denied",
        };
        write!(formatter, "entry {}, which {did} ", entry.id)?;
        entry.describe(formatter)
    }
}

impl Entry {
    /// Describes the prefix, for whom and why it was entered, and until when.
    fn describe(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id: _,
            action: _,
            prefix,
            service,
            owner,
            reason,
            by,
            process: _,
            created: _,
            expires,
        } = self;
        write!(formatter, "{prefix}")?;
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

    /// Whether this allow entry wins over a deny entry, for sources that both contain: the kernel looks up allow entries
    /// for each packet that a deny entry matches. An allow entry at one service lifts no denial of the whole source.
    pub fn lifts(&self, denial: &Self) -> bool {
        (self.action, denial.action) == (Action::Allow, Action::Deny)
            && (self.service.is_none() || self.service == denial.service)
    }

    /// Whether this allow entry wins over a deny entry for every source of the deny entry.
    pub fn overrides(&self, denial: &Self) -> bool {
        self.lifts(denial) && self.prefix.contains(&denial.prefix)
    }

    /// Whether this allow entry wins over a deny entry for some sources of the deny entry, and not for all.
    pub fn excepts(&self, denial: &Self) -> bool {
        self.lifts(denial) && self.prefix != denial.prefix && denial.prefix.contains(&self.prefix)
    }

    /// Whether the entry has ended.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// Prefixes and when they end, by service id (0: every service).
pub type PrefixExpiries = std::collections::BTreeMap<(u16, IpNet), Expiry>;

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(action: Action, prefix: &str, service: Option<&str>) -> Entry {
        Entry {
            id: 2,
            action,
            prefix: prefix.parse().unwrap(),
            service: service.map(str::to_owned),
            owner: None,
            reason: None,
            by: None,
            process: None,
            created: Timestamp::UNIX_EPOCH,
            expires: None,
        }
    }

    #[test]
    fn an_allow_entry_overrides_the_denials_within_it_at_its_service() {
        let network = entry(Action::Allow, "198.51.100.64/28", None);
        let at_web = entry(Action::Allow, "198.51.100.64/28", Some("web"));
        let deny = |prefix, service| entry(Action::Deny, prefix, service);
        let address = deny("198.51.100.66/32", None);
        assert!(network.overrides(&address) && !network.excepts(&address));
        assert!(network.overrides(&deny("198.51.100.64/28", Some("web"))));
        assert!(at_web.overrides(&deny("198.51.100.66/32", Some("web"))));
        assert!(!at_web.overrides(&address), "the whole source is denied");
        let wide = deny("198.51.100.0/24", None);
        assert!(!network.overrides(&wide) && network.excepts(&wide));
        assert!(!network.overrides(&deny("2001:db8::/32", None)));
        assert!(!address.overrides(&network));
    }

    #[test]
    fn a_past_entry_reads_as_one() {
        let ended = entry(Action::Allow, "198.51.100.7/32", Some("web"));
        assert_eq!(
            PastEntry(&ended).to_string(),
            "entry 2, which let through 198.51.100.7/32 at service \"web\", without an end"
        );
    }
}
