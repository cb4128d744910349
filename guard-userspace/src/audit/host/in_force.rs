//! Which policy an audit goes by, and whether a guard is at work by it.

use std::{io::ErrorKind, os::unix::net::UnixStream, path::Path};

use guard_common::reason::Mode;
use serde::Serialize;

use crate::{
    agent::plan::chosen_by,
    api::{ModeStatus, PolicyText, Status, client::Client},
    host::Host,
    policy::{AllowedFile, KernelTick, Policy, PolicyError},
    without_agent,
};

/// Whether what a policy closes is closed at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardState {
    /// A guard is at work, in the policy's mode.
    AtWork,
    /// No guard is attached, or it does not enforce what it should.
    NotAtWork,
    /// It cannot be told; the policy is taken at its word.
    Unknown,
    /// The policy was named: it is judged as if it were in force.
    Supposed,
}

/// A policy to judge by.
pub struct PolicyInForce {
    pub path: String,
    /// With the modes that operators have set.
    pub policy: Policy,
    pub guard: GuardState,
    pub knowledge: Knowledge,
}

/// Where published ports are known from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Knowledge {
    /// No agent answers: what this process learns from Docker is all there is.
    #[default]
    OwnAlone,
    /// Of the agent that answers: what it does not know of, it does not close.
    Agent {
        /// Such as `tcp/8000`, `203.0.113.11:tcp/443`.
        published: Vec<String>,
        /// Whether it hears from Docker.
        connected: bool,
    },
}

impl PolicyInForce {
    /// That of the agent; without one, what the pins say; without those, what the file says. `None`:
    /// there is no policy. What cannot be told goes to `notes`.
    pub async fn find(
        places: &GuardLocation<'_>,
        clock: KernelTick,
        notes: &mut Vec<String>,
    ) -> Result<Option<Self>, PolicyError> {
        let GuardLocation {
            client,
            socket,
            pins,
            default,
        } = places;
        if client.has_agent() {
            match ask(client, clock).await {
                Ok(in_force) => return Ok(Some(in_force)),
                Err(error) => notes.push(format!("{error:#}; what is pinned is gone by")),
            }
        }
        let pinned = without_agent::status(pins, "no agent".to_owned());
        if let Ok(Some(status)) = pinned {
            return Self::of_pins(&status, clock, notes).map(Some);
        }
        let policy = match Policy::read(default, AllowedFile::Regular, clock) {
            Ok(policy) => policy,
            Err(PolicyError::Unreadable { error, .. }) if error.kind() == ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(PolicyError::Unreadable { file, error }) => {
                notes.push(format!(
                    "{file} cannot be read ({error}): nothing is judged"
                ));
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let guard = if pinned.is_err() && (is_refused(socket) || has_program(&policy)) {
            notes.push(
                "whether a guard is at work cannot be told without root: its policy is taken at its word"
                    .to_owned(),
            );
            GuardState::Unknown
        } else {
            GuardState::NotAtWork
        };
        Ok(Some(Self {
            path: default.display().to_string(),
            policy,
            guard,
            knowledge: Knowledge::OwnAlone,
        }))
    }

    /// Whether a guard drops what is sent to a loopback address from outside: in every scope, where the mode is
    /// `enforce`.
    pub fn drops_martians(&self) -> bool {
        let is_there = matches!(self.guard, GuardState::AtWork | GuardState::Supposed);
        is_there && self.policy.mode == Mode::Enforce
    }

    /// A policy that is named.
    pub fn supposed(path: &Path, clock: KernelTick) -> Result<Self, PolicyError> {
        Ok(Self {
            path: path.display().to_string(),
            policy: Policy::read(path, AllowedFile::RegularOrPipe, clock)?,
            guard: GuardState::Supposed,
            knowledge: Knowledge::OwnAlone,
        })
    }

    /// What an agent says of itself.
    pub fn answered(
        PolicyText { path, text }: PolicyText,
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
        notes.push("no agent runs, and the kernel goes on without it".to_owned());
        let has_changed = policy.sha256 != status.policy.sha256;
        let mut in_force = Self::with_status(path, policy, status);
        if without_agent::lacks_agent_alone(status) {
            notes.push(
                "a port that a container publishes without an agent is open, and may be judged as closed here"
                    .to_owned(),
            );
            in_force.guard = GuardState::Unknown;
        }
        if has_changed && in_force.guard != GuardState::NotAtWork {
            notes.push(format!(
                "{} has changed since it was put in force, and is judged by as it is now",
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
            // Without an agent, the status has nothing of Docker.
            knowledge: docker.map_or(Knowledge::OwnAlone, |docker| Knowledge::Agent {
                published: docker.published.clone(),
                connected: docker.connected,
            }),
        }
    }
}

/// Where the agent and what it leaves are found.
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

/// An agent may listen, but not to this user.
fn is_refused(socket: &Path) -> bool {
    let refusal = UnixStream::connect(socket).err().map(|error| error.kind());
    refusal == Some(ErrorKind::PermissionDenied)
}

/// Some XDP program is on an interface of the policy, but whose, only root can tell.
fn has_program(policy: &Policy) -> bool {
    let Ok(host) = Host::read_once() else {
        return false;
    };
    let mut chosen = chosen_by(&host, policy).into_iter();
    chosen.any(|index| host.link(index).is_some_and(|link| link.xdp.is_some()))
}

/// A name of the API's; what is none is the mildest.
fn mode_of(name: &str) -> Mode {
    let mut modes = [Mode::Observe, Mode::Enforce].into_iter();
    let known = modes.find(|mode| mode.name() == name);
    known.unwrap_or(Mode::Off)
}
