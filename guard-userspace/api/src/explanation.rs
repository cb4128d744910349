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
    /// The packets of the source that the attached program counted; absent without an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Seen>,
    /// Set if the source was over its budget at this service a moment ago: a first packet passes all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_budget: Option<OverBudget>,
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
    /// The reason for the last dropped packet, and its service, if it matched one.
    #[serde(default)]
    pub reason: Option<String>,
    #[serde(default)]
    pub service: Option<String>,
}
