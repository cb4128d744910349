//! Why a packet gets its verdict.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What `guard explain --json` prints.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Explanation {
    pub verdict: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would: Option<String>,
    pub reason: String,
    pub service: Option<String>,
    /// The packet that was judged.
    pub packet: String,
    pub steps: Vec<Step>,
    /// The line of the policy that decided, if one did.
    pub line: Option<usize>,
    /// What the attached program has seen of the source; absent without an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Seen>,
    /// That the source was over its budget at this service a moment ago, though a first packet passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_budget: Option<OverBudget>,
}

#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Step {
    pub step: String,
    pub finding: String,
    /// Of the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
}

/// Estimated from a sample of the source's packets.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct OverBudget {
    /// The key of the budget: `packets`, `bytes` or `connections`.
    pub budget: String,
    /// What the source sent in these seconds, to any place.
    pub packets: u64,
    /// Those of them that were over the budget.
    pub over: u64,
    pub seconds: u64,
}

/// Estimated from a sample of the source's packets.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
pub struct Seen {
    pub packets: u64,
    pub dropped: u64,
    /// Why the last of `dropped` was, and at which service, if one was concerned.
    #[serde(default)]
    pub reason: Option<String>,
    #[serde(default)]
    pub service: Option<String>,
}
