//! The explanation of a packet's verdict.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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
    /// The line of the policy that decided; `null`: no line did.
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
    /// Those of `dropped` for `reason` and at `service`.
    pub for_reason: u64,
    /// The length of the minute: the agent reads at intervals.
    pub seconds: u64,
    /// The reason for the last dropped packet; its service, if it matched one, and its port, if that is closed.
    pub reason: Option<String>,
    pub service: Option<String>,
    pub port: Option<String>,
    /// Whether that packet was sent to the explained service, or to no service like the explained packet. A packet to a
    /// closed port was not: the explained packet passes.
    pub is_same_destination: bool,
    /// The budget of the explained service that the packets exceed, as the policy writes it, such as `2k/s`.
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
