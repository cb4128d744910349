//! What the control API's requests and answers hold. Nothing here asks or answers: the agent, both ends of
//! the API, the command line and the page share it.

pub mod actor;
pub mod capture;
mod explanation;
pub mod operator;

use std::net::IpAddr;

use guard_policy::Action;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::explanation::{Explanation, OverBudget, Seen, Step};
use self::{actor::OneLine, operator::SshSession};

/// Where the agent listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/guard/guard.sock";

/// What `guard status --json` prints.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Status {
    pub version: String,
    /// `off`, `observe` or `enforce`: that of the host.
    pub mode: String,
    pub scope: String,
    /// Whether closed ports are closed at this moment: the mode is `enforce`, the program is
    /// attached to every interface, and the tables hold what they should.
    pub enforcing: bool,
    /// Why not, if the mode is `enforce` and `enforcing` is false.
    pub not_enforcing_because: Vec<String>,
    pub agent: AgentStatus,
    pub interfaces: Vec<InterfaceStatus>,
    pub policy: PolicyStatus,
    /// Modes that operators have set, which go before the policy's.
    pub modes: Vec<ModeStatus>,
    /// The policy is on trial.
    pub trial: Option<TrialStatus>,
    /// `null` without an agent: nobody asks Docker.
    pub docker: Option<DockerStatus>,
    /// What does not keep the guard from enforcing, and an operator should look at.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Why a restart of the agent would lose what is in force, if it would.
    #[serde(default)]
    pub not_kept: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct AgentStatus {
    /// Whether it answers. If not, the kernel goes on, and all this was read from the pins.
    pub running: bool,
    pub pid: Option<u32>,
    /// When it was last alive, if it does not answer.
    #[schema(value_type = Option<String>)]
    pub last_seen: Option<Timestamp>,
    /// How it does not answer.
    pub trouble: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ModeStatus {
    /// `null`: the host's.
    pub service: Option<String>,
    pub mode: String,
    #[schema(value_type = String)]
    pub since: Timestamp,
    /// The user whose process asked for it, as the kernel says.
    pub by: Option<String>,
    /// That process.
    #[serde(default)]
    pub process: Option<u32>,
    /// Who the process said it was, if that is another name.
    #[serde(default)]
    pub claimed_by: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct TrialStatus {
    pub path: String,
    #[schema(value_type = String)]
    pub until: Timestamp,
    /// The policy file that it goes back to.
    pub back_to: String,
    /// The user whose process asked for it, as the kernel says, and that process.
    #[serde(default)]
    pub by: Option<String>,
    #[serde(default)]
    pub process: Option<u32>,
}

#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct InterfaceStatus {
    pub name: String,
    /// Asked from the kernel at this moment.
    pub attached: bool,
    /// `native` or `generic`.
    pub xdp_mode: String,
    pub program_id: u32,
    /// Counts the policies that were put in force, from 1.
    pub generation: u64,
    /// Why it is not guarded.
    pub trouble: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct PolicyStatus {
    pub path: String,
    pub sha256: String,
    #[schema(value_type = String)]
    pub loaded_at: Timestamp,
    pub services: usize,
    /// Why what is in force is not what the file says, if it is not.
    pub stale: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct DockerStatus {
    /// The socket; empty if the policy turns Docker off.
    pub socket: String,
    pub connected: bool,
    /// What is wrong, if it should be connected and is not.
    pub error: Option<String>,
    /// The published ports that the guard knows of, such as `tcp/8000`.
    pub published: Vec<String>,
    /// What labels of containers ask for in vain.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// One element of the list that `guard counters --json` prints.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
pub struct Counter {
    pub interface: String,
    /// `null`: no service was concerned.
    pub service: Option<String>,
    /// What became of the packets: `pass` or `drop`.
    pub verdict: String,
    /// `drop`, if only the mode kept them from being dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would: Option<String>,
    pub reason: String,
    pub packets: u64,
    pub bytes: u64,
}

impl Counter {
    /// Whether its packets were dropped, or would have been.
    pub fn is_drop(&self) -> bool {
        self.would.is_some() || self.verdict == "drop"
    }

    /// `pass`, `drop` or `pass (would drop)`.
    pub fn what_became(&self) -> String {
        match &self.would {
            Some(would) => format!("{} (would {would})", self.verdict),
            None => self.verdict.clone(),
        }
    }
}

/// One element of the list that `guard talkers --json` prints: estimated from a sample.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
pub struct Talker {
    pub interface: String,
    #[schema(value_type = String)]
    pub source: IpAddr,
    /// The policy's name for it, of the narrowest `[[source]]` that it belongs to.
    #[serde(default)]
    pub name: Option<String>,
    pub packets: u64,
    /// Those that were dropped, or would have been.
    pub dropped: u64,
    pub bytes: u64,
    /// Why the last of `dropped` was.
    #[serde(default)]
    pub reason: Option<String>,
    /// The service that it was dropped at; `null`: no service was concerned.
    #[serde(default)]
    pub service: Option<String>,
}

impl Talker {
    /// `198.51.100.7 office`.
    pub fn who(&self) -> String {
        match &self.name {
            Some(name) => format!("{} {name}", self.source),
            None => self.source.to_string(),
        }
    }

    /// Why the last of its packets that was dropped was: `packet_limit at web`.
    pub fn why(&self) -> Option<String> {
        let reason = self.reason.as_ref()?;
        Some(match &self.service {
            Some(service) => format!("{reason} at {service}"),
            None => reason.clone(),
        })
    }
}

/// The body of `POST /v1/reload`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reload {
    /// Where the operator came in.
    pub operator: Option<SshSession>,
    /// Do it even if it closes the operator's own way in.
    #[serde(default)]
    pub force: bool,
}

/// The body of `POST /v1/try`.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTrial {
    /// The policy file's name, for errors and for the status.
    #[schema(value_type = String, max_length = 4096)]
    pub path: OneLine<4_096>,
    pub text: String,
    pub seconds: u64,
    pub operator: Option<SshSession>,
    #[serde(default)]
    pub force: bool,
}

/// The body of `POST /v1/mode`.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModeChange {
    /// `null`: the host's.
    pub service: Option<String>,
    /// `null`: the policy's own.
    pub mode: Option<String>,
    /// Who the client says it is: shown beside what the kernel says.
    #[schema(value_type = Option<String>, max_length = 256)]
    pub by: Option<OneLine>,
    pub operator: Option<SshSession>,
    #[serde(default)]
    pub force: bool,
}

/// The body of `POST /v1/entries`.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EntryRequest {
    pub action: Action,
    #[schema(value_type = String)]
    pub prefix: IpNet,
    pub service: Option<String>,
    /// Who answers for it. One line, as `reason`.
    #[schema(value_type = Option<String>, max_length = 256)]
    pub owner: Option<OneLine>,
    #[schema(value_type = Option<String>, max_length = 256)]
    pub reason: Option<OneLine>,
    /// `null`: until it is revoked.
    pub seconds: Option<u64>,
    pub operator: Option<SshSession>,
    #[serde(default)]
    pub force: bool,
}

/// The query of `DELETE /v1/entries/{id}`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// Where the operator came in, as `SSH_CONNECTION` has it.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "session_text"
    )]
    pub operator: Option<SshSession>,
    #[serde(default)]
    pub force: bool,
}

mod session_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::operator::SshSession;

    pub fn serialize<S: Serializer>(
        session: &Option<SshSession>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match session {
            Some(session) => serializer.collect_str(session),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SshSession>, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Some).map_err(D::Error::custom)
    }
}

/// What a change answers.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Changed<T> {
    #[serde(flatten)]
    pub done: T,
    /// Why a restart of the agent would lose it, if it would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_kept: Option<String>,
}

/// What `POST /v1/detach` answers: the guard is off, and the agent ends.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
pub struct Detached {
    /// Why it is not kept that the guard is off, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_kept: Option<String>,
    /// Why a program is still on an interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub still_attached: Vec<String>,
    /// What is left below the pins, and judges nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<String>,
}

/// The policy in force, as it was written. What operators have changed since is in the status.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct PolicyText {
    pub path: String,
    pub text: String,
}

/// What is in force after a change.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Applied {
    pub path: String,
    pub sha256: String,
    pub mode: String,
    pub generation: u64,
    /// When it goes back by itself, if it is on trial.
    #[schema(value_type = Option<String>)]
    pub until: Option<Timestamp>,
}

/// What `explain` is asked, as the query of its address.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Question {
    pub from: IpAddr,
    /// A place such as `203.0.113.5:8000/tcp`, or the name of a service.
    pub to: String,
}

/// The body of every answer that is not a success.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct ErrorBody {
    pub error: String,
    /// What is wrong is a policy, whose file and line come first.
    #[serde(default)]
    pub is_policy: bool,
}
