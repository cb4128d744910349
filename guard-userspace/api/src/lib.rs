//! The types of the control API's requests and answers. The agent, the API's server and client, the command line and
//! the page share them.

pub mod actor;
pub mod capture;
mod explanation;
pub mod operator;

use std::{collections::BTreeMap, fmt, net::IpAddr};

use guard_policy::{Action, Entry};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::explanation::{
    ConcernedSource, Explanation, OverBudget, RecentPackets, Seen, ServiceVerdict,
    SourceExplanation, Step,
};
use self::{actor::OneLine, operator::SshSession};

/// The default path of the agent's socket.
pub const DEFAULT_SOCKET: &str = "/run/guard/guard.sock";

/// A service that is flooded with requests for connections: new clients are challenged.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema, PartialEq, Eq)]
pub struct FloodStatus {
    pub service: String,
    #[schema(value_type = String)]
    pub since: Timestamp,
}

/// The output of `guard status --json`.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Status {
    pub version: String,
    /// The mode of the host: `off`, `observe` or `enforce`.
    pub mode: String,
    pub scope: String,
    /// Whether packets against the policy are dropped at this moment: the mode is `enforce`, the program is attached to
    /// every interface, and the tables hold the policy in force.
    pub enforcing: bool,
    /// The reasons, if the mode is `enforce` and `enforcing` is false.
    pub not_enforcing_because: Vec<String>,
    pub agent: AgentStatus,
    pub interfaces: Vec<InterfaceStatus>,
    pub policy: PolicyStatus,
    /// Modes that operators have set. They override the modes of the policy.
    pub modes: Vec<ModeStatus>,
    /// The trial, if the policy is on trial.
    pub trial: Option<TrialStatus>,
    /// `null` without an agent: only the agent reads Docker.
    pub docker: Option<DockerStatus>,
    /// Problems that an operator should look at, and that do not prevent enforcing.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Why a restart of the agent would lose changes that are in force; `null` if it would not.
    #[serde(default)]
    pub not_kept: Option<String>,
    /// When `mode` or `enforcing` last changed, or the agent's start; `null` without an agent.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub since: Option<Timestamp>,
    /// The services that are flooded with connection requests at this moment; empty without an agent.
    #[serde(default)]
    pub floods: Vec<FloodStatus>,
    /// The number of temporary entries in force; 0 without an agent.
    #[serde(default)]
    pub entries: usize,
    /// What reaches this host by the policy in force: the ports that services list, as a policy writes them, with the
    /// address if a service names one.
    #[serde(default)]
    pub open: Vec<String>,
    /// The sources that may reach a port of `open`, for each port that not every source may reach.
    #[serde(default)]
    pub open_from: BTreeMap<String, Vec<String>>,
    /// The published ports that no service lists: they are closed in mode `enforce`. In scope `host`, every other port
    /// that no service lists is closed too.
    #[serde(default)]
    pub closed: Vec<String>,
    /// The names of the containers by the port that they publish.
    #[serde(default)]
    pub publishers: BTreeMap<String, String>,
    /// The address of the page and the metrics; `null` if the policy names none.
    #[serde(default)]
    pub page: Option<String>,
}

/// The agent.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct AgentStatus {
    /// Whether the agent answers. If not, the program in the kernel keeps running, and the status was read from the
    /// pins.
    pub running: bool,
    pub pid: Option<u32>,
    /// When the agent was last alive, if it does not answer.
    #[schema(value_type = Option<String>)]
    pub last_seen: Option<Timestamp>,
    /// Why the agent does not answer: it is dead, or it hangs.
    pub trouble: Option<String>,
}

/// A mode that an operator has set, of the host or of one service.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ModeStatus {
    /// `null`: the mode of the host.
    pub service: Option<String>,
    pub mode: String,
    #[schema(value_type = String)]
    pub since: Timestamp,
    /// The user of the process that set it, from the kernel.
    pub by: Option<String>,
    /// The id of that process.
    #[serde(default)]
    pub process: Option<u32>,
    /// The user name that the process sent, if it is another name.
    #[serde(default)]
    pub claimed_by: Option<String>,
}

/// A policy on trial.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct TrialStatus {
    pub path: String,
    #[schema(value_type = String)]
    pub until: Timestamp,
    /// The policy file that comes back when the trial ends.
    pub back_to: String,
    /// The policy file that a reload reads; `null` if it is the one on trial, or without an agent.
    #[serde(default)]
    pub other_file: Option<String>,
    /// The user and the id of the process that began the trial, from the kernel.
    #[serde(default)]
    pub by: Option<String>,
    #[serde(default)]
    pub process: Option<u32>,
}

/// A guarded interface.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct InterfaceStatus {
    pub name: String,
    /// Whether the guard's program is attached, read from the kernel at this moment.
    pub attached: bool,
    /// `native` or `generic`.
    pub xdp_mode: String,
    pub program_id: u32,
    /// The number of the policy in force: the first that was put in force is 1.
    pub generation: u64,
    /// Why the interface is not guarded.
    pub trouble: Option<String>,
}

/// The policy in force.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct PolicyStatus {
    pub path: String,
    pub sha256: String,
    #[schema(value_type = String)]
    pub loaded_at: Timestamp,
    pub services: usize,
    /// Why the policy in force differs from the file; `null` if it does not.
    pub stale: Option<String>,
    /// What to type about `stale`.
    #[serde(default)]
    pub stale_advice: Option<String>,
    /// The policy file that a reload reads; `null` without an agent.
    #[serde(default)]
    pub file: Option<String>,
}

/// The container runtime.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct DockerStatus {
    /// The socket; empty if the policy turns Docker off.
    pub socket: String,
    pub connected: bool,
    /// The error, if Docker should be connected and is not.
    pub error: Option<String>,
    /// The published ports, such as `tcp/8000`.
    pub published: Vec<String>,
    /// Labels of containers that are not applied, with the reason.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// An element of the list that `guard counters --json` prints.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
pub struct Counter {
    pub interface: String,
    /// `null`: the packets matched no service.
    pub service: Option<String>,
    /// The verdict for the packets: `pass` or `drop`.
    pub verdict: String,
    /// `drop`, if the packets passed only because of the mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would: Option<String>,
    pub reason: String,
    pub packets: u64,
    pub bytes: u64,
    /// The busiest closed ports of these packets, the busiest first, estimated from a sample. Only for the reason
    /// `closed_port`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ClosedPort>,
}

/// A closed port that packets were sent to.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
pub struct ClosedPort {
    /// As a policy writes it: `tcp/8000`.
    pub port: String,
    /// Estimated from a sample, and at most the packets of the counter.
    pub packets: u64,
}

impl Counter {
    /// Whether its packets were dropped, or would have been dropped in mode enforce.
    pub fn is_drop(&self) -> bool {
        self.would.is_some() || self.verdict == "drop"
    }

    /// `pass`, `drop` or `pass (would drop)`.
    pub fn describe_verdict(&self) -> String {
        match &self.would {
            Some(would) => format!("{} (would {would})", self.verdict),
            None => self.verdict.clone(),
        }
    }
}

/// An element of the list that `guard talkers --json` prints. The numbers are estimated from a sample.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
pub struct Talker {
    pub interface: String,
    #[schema(value_type = String)]
    pub source: IpAddr,
    /// The name of the narrowest `[[source]]` of the policy that contains the source.
    #[serde(default)]
    pub name: Option<String>,
    pub packets: u64,
    /// Packets that were dropped, or would have been dropped in mode enforce.
    pub dropped: u64,
    /// Those of `dropped` that passed only because of the mode.
    #[serde(default)]
    pub would_drop: u64,
    pub bytes: u64,
    /// The reason for the last of the dropped packets.
    #[serde(default)]
    pub reason: Option<String>,
    /// The service of that packet; `null`: it matched no service.
    #[serde(default)]
    pub service: Option<String>,
    /// The closed port of that packet, such as `tcp/8000`, if the reason is `closed_port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
}

impl Talker {
    /// `198.51.100.7 office`.
    pub fn who(&self) -> String {
        match &self.name {
            Some(name) => format!("{} {name}", self.source),
            None => self.source.to_string(),
        }
    }

    /// The reason for its last dropped packet, and the service or the closed port: `packet_limit at web`,
    /// `closed_port tcp/8000`.
    pub fn why(&self) -> Option<String> {
        let reason = self.reason.as_ref()?;
        Some(match (&self.service, &self.port) {
            (Some(service), _) => format!("{reason} at {service}"),
            (None, Some(port)) => format!("{reason} {port}"),
            (None, None) => reason.clone(),
        })
    }
}

/// The body of `POST /v1/reload`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reload {
    /// The operator's SSH session.
    pub operator: Option<SshSession>,
    /// Apply the change even if it closes the operator's own way in.
    #[serde(default)]
    pub force: bool,
}

/// The body of `POST /v1/try`.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTrial {
    /// The path of the policy file, for errors and for the status.
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
    /// `null`: the mode of the host.
    pub service: Option<String>,
    /// `null`: the mode of the policy.
    pub mode: Option<String>,
    /// The user name that the client sends, shown beside the name from the kernel.
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
    /// The owner of the entry. One line, as `reason`.
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
    /// The operator's SSH session, as in `SSH_CONNECTION`.
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

/// The answer to a change.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Changed<T> {
    #[serde(flatten)]
    pub done: T,
    /// Why a restart of the agent would lose the change; absent if it would not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_kept: Option<String>,
}

/// The answer to `POST /v1/detach`: the guard is detached, and the agent ends.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
pub struct Detached {
    /// Why the next start of an agent does not know that the guard was detached; absent if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_kept: Option<String>,
    /// Why a program is still attached to an interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub still_attached: Vec<String>,
    /// Pins that are left and process no packets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<String>,
}

/// The policy in force, as it was written. The status has the changes of operators since.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct PolicyText {
    pub path: String,
    pub text: String,
    /// The policy file that the agent reads at a reload and a restart.
    #[serde(default)]
    pub file: Option<String>,
}

/// The policy in force after a change.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Applied {
    pub path: String,
    pub sha256: String,
    pub mode: String,
    pub generation: u64,
    /// When the previous policy comes back, if this one is on trial.
    #[schema(value_type = Option<String>)]
    pub until: Option<Timestamp>,
    /// The policy file that the agent reads at a reload and a restart, if it is not `path`.
    #[serde(default)]
    pub other_file: Option<String>,
    /// The mode that the policy has; `mode` differs from it if an operator has set a mode.
    #[serde(default)]
    pub policy_mode: Option<String>,
}

/// The answer to `POST /v1/entries`.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct EnteredEntry {
    #[serde(flatten)]
    pub entry: Entry,
    /// Whether there was an entry for the same prefix, service, action and owner, which this one replaces.
    #[serde(default)]
    pub updated: bool,
    /// For a deny entry: the allow entries in force that win over it for all of its sources. It drops nothing while one
    /// of them is in force.
    #[serde(default)]
    pub overridden_by: Vec<u64>,
    /// For an allow entry: the deny entries in force that it wins over, for all or some of their sources.
    #[serde(default)]
    pub overrides: Vec<u64>,
    /// Why the entry does not have the effect that its action suggests.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// One element of the list that `guard list --json` prints.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct ListedEntry {
    #[serde(flatten)]
    pub entry: Entry,
    /// For a deny entry: the allow entries in force that win over it for all of its sources.
    #[serde(default)]
    pub overridden_by: Vec<u64>,
}

impl ListedEntry {
    /// Lists entries, each with the allow entries that override it now.
    pub fn list(entries: &[Entry], now: Timestamp) -> Vec<Self> {
        let allowing: Vec<&Entry> = entries
            .iter()
            .filter(|entry| entry.action == Action::Allow && !entry.is_over(now))
            .collect();
        let listed = entries.iter().map(|entry| {
            let overriding = allowing.iter().filter(|allowing| allowing.overrides(entry));
            Self {
                entry: entry.clone(),
                overridden_by: overriding.map(|allowing| allowing.id).collect(),
            }
        });
        listed.collect()
    }
}

impl fmt::Display for ListedEntry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            entry,
            overridden_by,
        } = self;
        write!(formatter, "{entry}")?;
        match overridden_by.first() {
            Some(id) => write!(
                formatter,
                "; entry {id} overrides it: `guard revoke {id}` puts it in force"
            ),
            None => Ok(()),
        }
    }
}

/// The query of `GET /v1/explain`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ExplainRequest {
    pub from: IpAddr,
    /// A destination such as `203.0.113.5:8000/tcp`, or the name of a service.
    pub to: String,
}

/// The query of `GET /v1/source`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct SourceRequest {
    pub from: IpAddr,
}

/// The body of every error.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct ErrorBody {
    pub error: String,
    /// Whether a policy is invalid: `error` then begins with its file and line.
    #[serde(default)]
    pub is_policy: bool,
}
