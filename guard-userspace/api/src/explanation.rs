//! The explanation of a packet's verdict.

use std::net::IpAddr;

use guard_common::reason::Reason;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ListedEntry;

/// The output of `guard explain --json`.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Explanation {
    pub verdict: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would: Option<String>,
    pub reason: String,
    pub service: Option<String>,
    /// The example packet, in words.
    pub packet: String,
    pub steps: Vec<Step>,
    /// The line of the policy that decided; `null`: no line did, but perhaps an entry.
    pub line: Option<usize>,
    /// The file that has the lines.
    #[serde(default)]
    pub file: Option<String>,
    /// The number of the temporary entry that decided; absent: none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<u64>,
    /// What to do if the verdict is wrong for this source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// What became of the source's packets in the last minute; absent without an agent, or if it sent none that were
    /// sampled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recent: Option<RecentPackets>,
    /// The packets of the source that the attached program counted; absent without an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Seen>,
    /// Set if the source was over its budget at this service a moment ago: a first packet passes all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_budget: Option<OverBudget>,
}

impl Explanation {
    /// Whether the packet passes in every mode.
    pub fn reason_is_pass(&self) -> bool {
        self.verdict == "pass" && self.would.is_none()
    }
}

/// One step of a verdict: what was looked up, and the result.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Step {
    pub step: String,
    pub finding: String,
    /// The line of the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
}

/// The packets of a source to any destination within the last minute, estimated from a sample.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct RecentPackets {
    pub packets: u64,
    /// Packets that were dropped, or would have been dropped in mode enforce.
    pub dropped: u64,
    /// Those of `dropped` that passed only because of the mode.
    pub would_drop: u64,
    /// Those of `dropped` in the intervals whose last dropped packet was dropped for `reason` and at `service`. The
    /// sample records the reason for the last one alone.
    pub for_reason: u64,
    /// The length of the minute: the agent reads at intervals.
    pub seconds: u64,
    /// The reason for the last dropped packet; its service, if it matched one, and its port, if that is closed.
    pub reason: Option<String>,
    pub service: Option<String>,
    pub port: Option<String>,
    /// Whether that packet was sent to the explained service, or to no service like the explained packet. A packet to a
    /// closed port was not: the explained packet passes. A denial of the whole source concerns every destination.
    pub is_same_destination: bool,
    /// Whether the explained packet and those that follow it can no longer be dropped for `reason`: an entry, the policy
    /// or a mode has changed.
    #[serde(default)]
    pub no_longer_applies: bool,
    /// The budget of the explained service that the packets exceed, such as `2k/s`, with the `factor` of the source.
    pub limit: Option<String>,
}

/// Estimated from a sample of the source's packets.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct OverBudget {
    /// The key of the budget: `packets`, `bytes` or `connections`.
    pub budget: String,
    /// The packets that the source sent in these seconds, to any destination.
    pub packets: u64,
    /// The packets of them that were over the budget.
    pub over: u64,
    pub seconds: u64,
}

/// Estimated from a sample of the source's packets.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
pub struct Seen {
    pub packets: u64,
    pub dropped: u64,
    /// Those of `dropped` that passed only because of the mode.
    #[serde(default)]
    pub would_drop: u64,
    /// The closed port of the last dropped packet, if the reason is `closed_port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// The reason for the last dropped packet, and its service, if it matched one.
    #[serde(default)]
    pub reason: Option<String>,
    #[serde(default)]
    pub service: Option<String>,
}

/// The output of `guard explain ADDR --json` without `--to`: what becomes of a source.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct SourceExplanation {
    #[schema(value_type = String)]
    pub source: IpAddr,
    /// The verdict on a first packet at each service, at the published ports that no service lists, and at every other
    /// port.
    pub services: Vec<ServiceVerdict>,
    /// The services that have no address or port in the IP version of the source.
    pub unreachable: Vec<String>,
    /// The temporary entries that contain the source.
    pub entries: Vec<ListedEntry>,
    /// The `[[source]]` tables of the policy that contain the source.
    pub sources: Vec<ConcernedSource>,
    /// The file that has the lines.
    pub file: Option<String>,
    /// What became of the source's packets in the last minute; absent without an agent, or if it sent none that were
    /// sampled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recent: Option<RecentPackets>,
    /// The packets of the source that the attached program counted; absent without an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Seen>,
}

impl SourceExplanation {
    /// Whether a first packet passes in every mode at a service. `None`: whether no denial of the whole source drops it.
    pub fn passes_at(&self, service: Option<&str>) -> bool {
        let mut rows = self.services.iter();
        match service {
            Some(name) => rows.any(|row| {
                let passes = row.verdict == "pass" && row.would.is_none();
                passes && row.service.as_deref() == Some(name)
            }),
            None => rows.all(|row| row.reason != Reason::DeniedSource.name()),
        }
    }
}

/// The verdict on a first packet to a service, or to ports that no service lists.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ServiceVerdict {
    /// `null`: no service lists these ports.
    pub service: Option<String>,
    /// The ports that the verdict holds for. Empty: every port that is not in another element.
    pub ports: Vec<String>,
    pub verdict: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would: Option<String>,
    pub reason: String,
    /// The line of the policy that decided; `null`: no line did, but perhaps an entry.
    pub line: Option<usize>,
    /// The number of the temporary entry that decided; absent: none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<u64>,
}

/// A `[[source]]` of the policy that contains an address.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ConcernedSource {
    pub name: String,
    pub line: usize,
    /// `named` (for `from`), `factor`, `exempt` or `deny`.
    pub treatment: String,
    /// How many times larger the budgets of the source are; absent unless `treatment` is `factor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factor: Option<u32>,
    /// When the source ends. `null`: never.
    #[schema(value_type = Option<String>)]
    pub expires: Option<Timestamp>,
}
