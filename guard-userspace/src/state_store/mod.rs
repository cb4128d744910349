//! The state store: the facts besides the policy file that must survive a restart and a power loss.
//!
//! The agent writes it. `guard mode off` and `guard detach` write it too, if the agent does not answer. [`StateStore`]
//! ensures that no writer overwrites the changes of another.

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

/// The default folder of the state file.
pub const DEFAULT_FOLDER: &str = "/var/lib/guard";

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the state cannot be written to {path}: {error}")]
    Io { path: String, error: io::Error },
    #[error(
        "the state cannot be written to {path}: the existing file cannot be read ({error}) and is not overwritten: \
         repair the file, or move it away"
    )]
    Unreadable { path: String, error: io::Error },
    #[error("the state cannot be written to {0}: other processes write it all the time")]
    Busy(String),
    #[error(
        "another agent keeps its state in {0}: stop it, or give this agent another --state, --pins and \
         --socket"
    )]
    Taken(String),
}

/// The content of the state store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredState {
    /// The highest id that was given to an entry.
    pub last_id: u64,
    pub entries: Vec<Entry>,
    pub modes: Modes,
    /// The containers that a Docker daemon last reported. `None`: no daemon has ever reported any.
    pub containers: Option<KnownContainers>,
    /// The last policy in force, not counting a policy on trial.
    pub policy: Option<StoredPolicy>,
    /// The SHA-256 of policies that were tried and not confirmed, the newest last.
    pub refused: Vec<String>,
    /// The policy on trial.
    pub trial: Option<StoredTrial>,
    /// An operator detached the guard. A running agent that reads this ends.
    pub detached: bool,
}

/// Containers, and the daemon that reported them. Another daemon has other containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownContainers {
    /// The socket of the daemon. `None`: an older version wrote the line without it.
    pub socket: Option<String>,
    /// The identity that the daemon reports. `None`: unknown.
    pub daemon: Option<String>,
    pub containers: Containers,
}

impl KnownContainers {
    /// The containers, if they are of the daemon at this socket. `daemon`: its identity, if known. An unknown socket or
    /// identity counts as a match: it is better to close too many ports than to open closed ones.
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

/// A policy on trial: its file, its digest and its end.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct StoredTrial {
    pub path: PathBuf,
    pub sha256: String,
    pub until: Timestamp,
}

/// Modes that operators have set. They take precedence over those of the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modes {
    pub host: Option<ChangedMode>,
    pub services: BTreeMap<String, ChangedMode>,
}

/// A mode that an operator has set, when, and by whom.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct ChangedMode {
    #[serde(with = "mode_name")]
    pub mode: Mode,
    pub since: Timestamp,
    /// The user of the requesting process, as reported by the kernel. Older versions wrote the name from the client.
    pub by: Option<String>,
    #[serde(default)]
    pub process: Option<u32>,
    /// The name that the client gave, if it differs from `by`.
    #[serde(default)]
    pub claimed_by: Option<String>,
}

impl Modes {
    /// Whether no mode is set, so that those of the policy apply.
    pub fn is_empty(&self) -> bool {
        let Self { host, services } = self;
        host.is_none() && services.is_empty()
    }

    /// A warning for each mode: the user who set it, when, and the command that resets it.
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

/// The limit of refused policies that are remembered.
const MAX_REFUSED: usize = 16;

impl StoredState {
    /// Records that a policy was tried and not confirmed.
    pub fn refuse(&mut self, sha256: String) {
        self.accept(&sha256);
        self.refused.push(sha256);
        let surplus = self.refused.len().saturating_sub(MAX_REFUSED);
        self.refused.drain(..surplus);
    }

    /// Records that an operator wants this policy.
    pub fn accept(&mut self, sha256: &str) {
        self.refused.retain(|refused| refused != sha256);
    }
}

impl ChangedMode {
    /// The warning about this mode. `service`: `None` for the mode of the host.
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
            Mode::Enforce => "packets against the policy are dropped",
        };
        let option = service.map(|name| format!(" --service {}", cut(name)));
        format!(
            "{whose} is in mode {}, set{}{} at {since:.0} ({}), instead of the mode in the policy: {what}; `guard \
             mode policy{}` resets it to the policy",
            mode.name(),
            by.unwrap_or_default(),
            claimed.unwrap_or_default(),
            age(*since, now),
            option.unwrap_or_default(),
        )
    }
}

/// The longest quotation of a text from an operator or a client in a log line, in characters.
const MAX_QUOTED: usize = 120;

/// Quotes such a text: escaped, so that it stays on one line, and truncated.
fn quoted(text: &str) -> String {
    format!("{:?}", cut(text))
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_QUOTED).collect()
}

/// The time since an event in words, such as `3 hours ago`.
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
        mode.ok_or_else(|| D::Error::custom(format!("{name:?} is not a mode")))
    }
}

#[cfg(test)]
mod tests {
    use guard_common::{exposure::NetworkKind, layout::PortProtocol};

    use super::*;
    use crate::policy::{Action, ContainerNetwork, Labelled, PublishedAt, PublishedPort};

    /// A state with an example of every kind of line.
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
    fn containers_of_one_daemon_are_not_attributed_to_another() {
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
    fn the_warning_about_a_mode_has_the_user_the_time_and_the_command_that_resets_it() {
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
