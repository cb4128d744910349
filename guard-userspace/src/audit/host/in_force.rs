//! Finds the policy that an audit applies, and whether a guard enforces it.

use std::{io::ErrorKind, os::unix::net::UnixStream, path::Path};

use guard_common::reason::Mode;
use serde::Serialize;

use crate::{
    api::{ModeStatus, PolicyText, Status, client::Client},
    dataplane,
    host::Host,
    policy::{AllowedFile, KernelTick, Policy, PolicyError},
    without_agent,
};

/// Whether ports that a policy closes are closed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardState {
    /// A guard is at work, in the policy's mode.
    AtWork,
    /// No guard is attached, or it has an obstacle.
    NotAtWork,
    /// It cannot be found out; the policy is assumed to be in force.
    Unknown,
    /// The policy was named on the command line: it is applied as if it were in force.
    Supposed,
}

/// The policy that is applied to the endpoints.
pub struct PolicyInForce {
    pub path: String,
    /// The policy, with the modes that operators have set.
    pub policy: Policy,
    pub guard: GuardState,
    pub knowledge: Knowledge,
    /// The entries of `guard allow` and `guard deny`. `None`: only an agent knows them.
    pub entries: Option<usize>,
}

/// The origin of the published ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Knowledge {
    /// No agent answers: the ports that this process reads from Docker.
    #[default]
    OwnReading,
    /// The ports of the agent's status: the agent closes no others.
    Agent {
        /// Such as `tcp/8000`, `203.0.113.11:tcp/443`.
        published: Vec<String>,
        /// Whether the agent is connected to Docker.
        connected: bool,
    },
}

/// Why the policy in force cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum FindPolicyError {
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Without the guard's answer, the audit would show closed ports as open.
    #[error(
        "a guard may be at work, and this user may not read its state ({0}): join group guard (`sudo \
         adduser YOU guard`, then log in again), use sudo, or name a policy with --policy"
    )]
    Hidden(String),
}

impl PolicyInForce {
    /// Returns the agent's policy. Without an agent it is the policy that the pins name, and without pins the default
    /// file. `None`: there is no policy. Facts that cannot be found out go to `notes`.
    pub async fn find(
        places: &GuardLocation<'_>,
        clock: KernelTick,
        notes: &mut Vec<String>,
    ) -> Result<Option<Self>, FindPolicyError> {
        let GuardLocation {
            client,
            socket,
            pins,
            default,
        } = places;
        if client.has_agent() {
            match ask(client, clock).await {
                Ok(in_force) => return Ok(Some(in_force)),
                Err(error) => notes.push(format!("{error:#}: the pins are read instead")),
            }
        }
        let pinned = without_agent::status(pins, "no agent".to_owned());
        if let Ok(Some(status)) = pinned {
            return Ok(Some(Self::of_pins(&status, clock, notes)?));
        }
        // Pins that this user may not read look as if there were none, also where a mount hides them.
        let is_blind = pinned.is_err() || dataplane::require_capabilities().is_err();
        let may_be_guarded = is_blind && has_any_program();
        let hidden = || {
            let refused = is_refused(socket).then(|| socket.display().to_string());
            refused.or_else(|| {
                may_be_guarded.then(|| format!("a program is attached, and {}", pins.display()))
            })
        };
        let policy = match Policy::read(default, AllowedFile::Regular, clock) {
            Ok(policy) => policy,
            Err(PolicyError::Unreadable { error, .. }) if error.kind() == ErrorKind::NotFound => {
                return match hidden() {
                    Some(place) => Err(FindPolicyError::Hidden(place)),
                    None => Ok(None),
                };
            }
            Err(PolicyError::Unreadable { file, error }) => {
                if let Some(place) = hidden() {
                    return Err(FindPolicyError::Hidden(place));
                }
                notes.push(format!(
                    "{file} cannot be read ({error}): no policy is applied"
                ));
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let guard = if is_refused(socket) || may_be_guarded {
            notes.push(format!(
                "a guard may be at work, and this user may not read its state: {} is applied as if it were in force. \
                 Run `guard audit` as root or as a member of group guard to know",
                default.display()
            ));
            GuardState::Unknown
        } else {
            GuardState::NotAtWork
        };
        Ok(Some(Self {
            path: default.display().to_string(),
            policy,
            guard,
            knowledge: Knowledge::OwnReading,
            entries: None,
        }))
    }

    /// Whether a guard drops packets from outside to a loopback address: it does in every scope, if the mode is
    /// `enforce`.
    pub fn drops_martians(&self) -> bool {
        let is_there = matches!(self.guard, GuardState::AtWork | GuardState::Supposed);
        is_there && self.policy.mode == Mode::Enforce
    }

    /// A policy that is named on the command line.
    pub fn supposed(path: &Path, clock: KernelTick) -> Result<Self, PolicyError> {
        Ok(Self {
            path: path.display().to_string(),
            policy: Policy::read(path, AllowedFile::RegularOrPipe, clock)?,
            guard: GuardState::Supposed,
            knowledge: Knowledge::OwnReading,
            entries: None,
        })
    }

    /// The policy of an agent, with the modes of its status.
    pub fn answered(
        PolicyText { path, text, .. }: PolicyText,
        status: &Status,
        clock: KernelTick,
    ) -> Result<Self, PolicyError> {
        let policy = Policy::parse(&text, &path, clock)?;
        Ok(Self::with_status(path, policy, status))
    }

    fn of_pins(
        status: &Status,
        clock: KernelTick,
        notes: &mut Vec<String>,
    ) -> Result<Self, PolicyError> {
        let path = status.policy.path.clone();
        let policy = Policy::read(path.as_ref(), AllowedFile::Regular, clock)?;
        notes.push("no agent runs; the pinned program stays in force".to_owned());
        let has_changed = policy.sha256 != status.policy.sha256;
        let mut in_force = Self::with_status(path, policy, status);
        if without_agent::is_agent_only_obstacle(status) {
            notes.push(
                "without an agent, newly published ports are open, and may be shown as closed here"
                    .to_owned(),
            );
            in_force.guard = GuardState::Unknown;
        }
        if has_changed && in_force.guard != GuardState::NotAtWork {
            notes.push(format!(
                "{} has changed since it was put in force: the changed file is applied here",
                in_force.path
            ));
            in_force.guard = GuardState::Unknown;
        }
        Ok(in_force)
    }

    fn with_status(path: String, mut policy: Policy, status: &Status) -> Self {
        policy.mode = mode_of(&status.mode);
        for ModeStatus { service, mode, .. } in &status.modes {
            let mut services = policy.services.iter_mut();
            if let Some(found) = services.find(|found| Some(&found.name) == service.as_ref()) {
                found.mode = mode_of(mode);
            }
        }
        let docker = status.docker.as_ref();
        Self {
            path,
            policy,
            guard: if status.not_enforcing_because.is_empty() {
                GuardState::AtWork
            } else {
                GuardState::NotAtWork
            },
            entries: status.agent.running.then_some(status.entries),
            // A status without an agent has no facts about Docker.
            knowledge: docker.map_or(Knowledge::OwnReading, |docker| Knowledge::Agent {
                published: docker.published.clone(),
                connected: docker.connected,
            }),
        }
    }
}

/// Where the agent and its pins are found.
pub struct GuardLocation<'a> {
    pub client: &'a Client,
    pub socket: &'a Path,
    pub pins: &'a Path,
    /// The policy file if nothing is in force.
    pub default: &'a Path,
}

async fn ask(client: &Client, clock: KernelTick) -> anyhow::Result<PolicyInForce> {
    let status = client.status().await?;
    let text = client.policy().await?;
    Ok(PolicyInForce::answered(text, &status, clock)?)
}

/// Whether the socket exists and refuses this user: an agent may be listening.
fn is_refused(socket: &Path) -> bool {
    let refusal = UnixStream::connect(socket).err().map(|error| error.kind());
    refusal == Some(ErrorKind::PermissionDenied)
}

/// Whether any XDP program is on any interface of this host. Only root can find out which software it belongs to.
fn has_any_program() -> bool {
    let host = Host::read_once();
    host.is_ok_and(|host| host.all_links().any(|link| link.xdp.is_some()))
}

/// The mode with this name in the API. An unknown name counts as `off`, the mildest mode.
fn mode_of(name: &str) -> Mode {
    let mut modes = [Mode::Observe, Mode::Enforce].into_iter();
    let known = modes.find(|mode| mode.name() == name);
    known.unwrap_or(Mode::Off)
}
