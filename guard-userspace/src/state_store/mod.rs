//! The state store: what must survive a restart and a power loss besides the policy.
//!
//! The agent writes it, and whoever stops a guard whose agent does not answer. None of them overwrites what
//! another has written: [`StateStore`] sees to it.

mod folder;
mod lines;
mod lock;
mod merge;
mod store;

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc};

use guard_common::reason::Mode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::{folder::warn_if_open, lock::take, store::StateStore};
use crate::policy::{Containers, Entry, Policy};

/// Where the state file is unless told otherwise.
pub const DEFAULT_FOLDER: &str = "/var/lib/guard";

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the state cannot be kept in {path}: {error}")]
    Io { path: String, error: io::Error },
    #[error(
        "the state cannot be kept in {path}: what is there cannot be read ({error}) and is left as it is: \
         mend it, or move it away"
    )]
    Unreadable { path: String, error: io::Error },
    #[error("the state cannot be kept in {0}: others write it all the time")]
    Busy(String),
    #[error(
        "another agent keeps its state in {0}: stop it, or give this one another --state, --pins and \
         --socket"
    )]
    Taken(String),
}

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredState {
    /// The last number that an entry was given.
    pub last_id: u64,
    pub entries: Vec<Entry>,
    pub modes: Modes,
    /// The last that a Docker daemon said; `None`: none has ever said anything.
    pub containers: Option<KnownContainers>,
    /// The policy that was in force last, not counting one on trial.
    pub policy: Option<StoredPolicy>,
    /// The SHA-256 of the policies that were tried and not confirmed, the newest last.
    pub refused: Vec<String>,
    /// A policy that is being tried.
    pub trial: Option<StoredTrial>,
    /// The operator took the guard off; the agent that finds this ends.
    pub detached: bool,
}

/// Containers, and the daemon that they are of. Another daemon's are others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownContainers {
    /// The socket that the daemon answered at; `None`: a guard before this one has not written it down.
    pub socket: Option<String>,
    /// What the daemon calls itself; `None`: unknown.
    pub daemon: Option<String>,
    pub containers: Containers,
}

impl KnownContainers {
    /// What is known of the daemon at this socket, which may have said who it is. What is unknown is held
    /// against nobody: to close too much is better than to leave open what was closed.
    pub fn of(&self, socket: &str, daemon: Option<&str>) -> Option<&Containers> {
        let fits = |known: Option<&str>, asked: Option<&str>| {
            known.is_none() || asked.is_none() || known == asked
        };
        let is_its =
            fits(self.socket.as_deref(), Some(socket)) && fits(self.daemon.as_deref(), daemon);
        is_its.then_some(&self.containers)
    }
}

/// A policy file as it was when it was put in force.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct StoredPolicy {
    pub path: PathBuf,
    pub text: Arc<str>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct StoredTrial {
    pub path: PathBuf,
    pub sha256: String,
    pub until: Timestamp,
}

/// Modes that an operator has set and that go before those of the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modes {
    pub host: Option<ChangedMode>,
    pub services: BTreeMap<String, ChangedMode>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct ChangedMode {
    #[serde(with = "mode_name")]
    pub mode: Mode,
    pub since: Timestamp,
    /// The user whose process asked for it, as the kernel says. Older versions wrote what the client said.
    pub by: Option<String>,
    #[serde(default)]
    pub process: Option<u32>,
    /// What the client said, if that is somebody else.
    #[serde(default)]
    pub claimed_by: Option<String>,
}

impl Modes {
    /// Whether the policy's own modes hold.
    pub fn is_empty(&self) -> bool {
        let Self { host, services } = self;
        host.is_none() && services.is_empty()
    }

    /// What an operator is to be told of them: who set them, when, and how to take them back.
    pub fn warnings(&self, now: Timestamp) -> Vec<String> {
        let host = self.host.iter().map(|changed| (None, changed));
        let services = self.services.iter();
        let services = services.map(|(name, changed)| (Some(name.as_str()), changed));
        host.chain(services)
            .map(|(service, changed)| changed.warning(service, now))
            .collect()
    }

    /// The policy with these modes in the place of its own.
    pub fn applied_to(&self, policy: &Policy) -> Policy {
        let mut policy = policy.clone();
        if let Some(changed) = &self.host {
            policy.mode = changed.mode;
        }
        for service in &mut policy.services {
            if let Some(changed) = self.services.get(&service.name) {
                service.mode = changed.mode;
            }
        }
        policy
    }
}

/// How many refused policies are remembered.
const MAX_REFUSED: usize = 16;

impl StoredState {
    /// Remembers that nobody confirmed a policy.
    pub fn refuse(&mut self, sha256: String) {
        self.accept(&sha256);
        self.refused.push(sha256);
        let surplus = self.refused.len().saturating_sub(MAX_REFUSED);
        self.refused.drain(..surplus);
    }

    /// An operator wants this policy.
    pub fn accept(&mut self, sha256: &str) {
        self.refused.retain(|refused| refused != sha256);
    }
}

impl ChangedMode {
    /// `service`: `None`: it is the host's.
    fn warning(&self, service: Option<&str>, now: Timestamp) -> String {
        let Self {
            mode,
            since,
            by,
            process: _,
            claimed_by,
        } = self;
        let claimed = claimed_by.as_deref();
        let claimed = claimed.map(|name| format!(", for {}", quoted(name)));
        let whose = service.map_or_else(
            || "the host".to_owned(),
            |name| format!("service {}", quoted(name)),
        );
        let by = by.as_deref().map(|by| format!(" by {}", quoted(by)));
        let what = match mode {
            Mode::Off => "everything passes and nothing is judged",
            Mode::Observe => "everything passes, and would-be drops are counted",
            Mode::Enforce => "what the policy closes is closed",
        };
        let option = service.map(|name| format!(" --service {}", cut(name)));
        format!(
            "{whose} is in mode {}, set{}{} at {since:.0} ({}), whatever the policy says: {what}; `guard \
             mode policy{}` gives it back to the policy",
            mode.name(),
            by.unwrap_or_default(),
            claimed.unwrap_or_default(),
            age(*since, now),
            option.unwrap_or_default(),
        )
    }
}

/// The longest part of a text that an operator or a client has chosen, in a line of the log.
const MAX_QUOTED: usize = 120;

/// Such a text, on one line and within bounds.
fn quoted(text: &str) -> String {
    format!("{:?}", cut(text))
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_QUOTED).collect()
}

/// How long ago something was, as one would say it.
fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs();
    let (number, unit) = match seconds {
        ..0 => return "in the future: the clock has been set".to_owned(),
        0..120 => return "just now".to_owned(),
        120..7_200 => (seconds / 60, "minutes"),
        7_200..172_800 => (seconds / 3_600, "hours"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{number} {unit} ago")
}

/// Modes by their names.
mod mode_name {
    use guard_common::reason::Mode;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(mode: &Mode, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(mode.name())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mode, D::Error> {
        let name = String::deserialize(deserializer)?;
        let modes = [Mode::Off, Mode::Observe, Mode::Enforce];
        let mode = modes.into_iter().find(|mode| mode.name() == name);
        mode.ok_or_else(|| D::Error::custom(format!("{name:?} is no mode")))
    }
}

#[cfg(test)]
mod tests {
    use guard_common::{exposure::NetworkKind, layout::PortProtocol};

    use super::*;
    use crate::policy::{Action, ContainerNetwork, Labelled, PublishedAt, PublishedPort};

    /// Something of everything that is kept.
    pub(super) fn full() -> StoredState {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let changed = |mode| ChangedMode {
            mode,
            since: now,
            by: Some("root".to_owned()),
            process: Some(4_711),
            claimed_by: Some("ana".to_owned()),
        };
        let entry = |id, action| Entry {
            id,
            action,
            prefix: "198.51.100.0/24".parse().unwrap(),
            service: (id == 2).then(|| "web".to_owned()),
            owner: Some("ana".to_owned()),
            reason: Some("a \"flood\"\nof theirs".to_owned()),
            by: Some("root".to_owned()),
            process: Some(4_711),
            created: now,
            expires: Some(now),
        };
        StoredState {
            last_id: 7,
            entries: vec![entry(1, Action::Deny), entry(2, Action::Allow)],
            modes: Modes {
                host: Some(changed(Mode::Off)),
                services: BTreeMap::from([("web".to_owned(), changed(Mode::Observe))]),
            },
            containers: Some(KnownContainers {
                socket: Some("/var/run/docker.sock".to_owned()),
                daemon: Some("X7:QQ".to_owned()),
                containers: Containers {
                    published: [
                        PublishedAt::EveryIpv6,
                        PublishedAt::Address("203.0.113.11".parse().unwrap()),
                        PublishedAt::Address("2001:db8::11".parse().unwrap()),
                    ]
                    .map(|at| PublishedPort {
                        protocol: PortProtocol::Udp,
                        port: 53,
                        at,
                    })
                    .into(),
                    networks: vec![ContainerNetwork {
                        prefix: "172.17.0.0/16".parse().unwrap(),
                        kind: NetworkKind::Masqueraded,
                    }],
                    labelled: vec![Labelled {
                        container: "api-1".to_owned(),
                        published: vec![PublishedPort {
                            protocol: PortProtocol::Tcp,
                            port: 8000,
                            at: PublishedAt::Address("203.0.113.11".parse().unwrap()),
                        }],
                        labels: BTreeMap::from([("guard.from".to_owned(), "office".to_owned())]),
                    }],
                },
            }),
            policy: Some(StoredPolicy {
                path: "/etc/guard/guard.toml".into(),
                text: "mode = \"enforce\"\n".into(),
            }),
            refused: vec!["00ff".to_owned(), "ff00".to_owned()],
            trial: Some(StoredTrial {
                path: "/etc/guard/new.toml".into(),
                sha256: "00ff".to_owned(),
                until: now,
            }),
            detached: true,
        }
    }

    #[test]
    fn what_is_known_of_one_daemon_is_not_taken_for_anothers() {
        let known = full().containers.unwrap();
        let socket = "/var/run/docker.sock";
        assert_eq!(known.of(socket, Some("X7:QQ")), Some(&known.containers));
        assert_eq!(known.of(socket, None), Some(&known.containers));
        assert_eq!(known.of(socket, Some("another")), None);
        assert_eq!(known.of("/run/podman/podman.sock", None), None);
        let before = KnownContainers {
            socket: None,
            daemon: None,
            ..known
        };
        assert!(
            before
                .of("/run/podman/podman.sock", Some("another"))
                .is_some()
        );
    }

    #[test]
    fn a_mode_that_an_operator_has_set_is_told_with_who_when_and_the_way_back() {
        let mut modes = full().modes;
        let now = "2026-01-08T00:00:00Z".parse().unwrap();
        let warnings = modes.warnings(now);
        let [host, service] = &warnings[..] else {
            panic!("{warnings:?}")
        };
        for word in [
            "the host is in mode off",
            "\"ana\"",
            "2026-01-01T00:00:00Z",
            "7 days ago",
            "`guard mode policy`",
        ] {
            assert!(host.contains(word), "{word}: {host}");
        }
        assert!(
            service.contains("`guard mode policy --service web`"),
            "{service}"
        );
        modes.host.as_mut().unwrap().by = Some(format!("x\ny\u{202e}{}", "z".repeat(500)));
        let host = &modes.warnings(now)[0];
        assert!(!host.contains(['\n', '\u{202e}']), "{host}");
        assert!(host.len() < 500, "{host}");
        assert_eq!(Modes::default().warnings(now), Vec::<String>::new());
    }
}
