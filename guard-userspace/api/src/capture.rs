//! Packets with their reasons: what is asked for, and what a line of the answer holds.

use guard_common::reason::{Outcome, Reason, Verdict};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// How many packets a second are handed over unless told otherwise, and at most.
pub const DEFAULT_RATE: u32 = 1_000;
pub const HIGHEST_RATE: u32 = 5_000;

/// The query of `GET /v1/capture`: which packets, and in which form.
#[derive(Clone, Debug, Default, Deserialize, IntoParams, Serialize)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CaptureRequest {
    /// Those that passed and that policy lets pass, too; without it, what was or would be dropped.
    #[serde(default)]
    pub all: bool,
    /// Only those with one of these reasons, such as `closed_port,packet_limit`.
    pub reasons: Option<String>,
    /// Only those of this service.
    pub service: Option<String>,
    /// Only those from here.
    #[param(value_type = Option<String>)]
    pub source: Option<IpNet>,
    /// How many a second at most, on all interfaces together: 1,000 if left out, 5,000 at most.
    pub rate: Option<u32>,
    /// How many bytes of each; all if left out.
    pub length: Option<u32>,
    #[serde(default)]
    pub form: Form,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// For Wireshark. Of what is missed, its statistics tell every second.
    #[default]
    Pcapng,
    /// A line with a [`Line`] for each packet, and every second one with what is missed.
    Json,
}

/// A line of a capture in JSON.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Line {
    Packet(Box<Captured>),
    /// How many more packets were wanted since the capture began. An estimate where a sample is taken.
    Missed {
        missed: u64,
    },
}

/// A packet that was judged.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Captured {
    #[schema(value_type = String)]
    pub time: Timestamp,
    pub interface: String,
    /// `pass` or `drop`.
    pub verdict: String,
    /// `drop`, if only the mode kept it from being dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would: Option<String>,
    pub reason: String,
    /// `null`: no service was concerned.
    pub service: Option<String>,
    /// With their ports, where they have some: `198.51.100.7:40000`.
    pub source: Option<String>,
    pub destination: Option<String>,
    /// Such as `tcp`, or the number of another.
    pub protocol: Option<String>,
    /// Of the frame, in bytes.
    pub length: u32,
    /// It stands for so many.
    pub one_of: u32,
}

impl CaptureRequest {
    /// What is to become of the packets.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn outcomes(&self) -> Result<Vec<Outcome>, String> {
        let is_drop = |reason: &Reason| reason.verdict() == Verdict::Drop;
        let reasons: Vec<Reason> = match &self.reasons {
            None if self.all => Reason::ALL.to_vec(),
            None => Reason::ALL.into_iter().filter(is_drop).collect(),
            Some(names) => names.split(',').map(reason).collect::<Result<_, _>>()?,
        };
        let outcomes = Outcome::all().filter(|outcome| reasons.contains(&outcome.reason));
        Ok(outcomes.collect())
    }
}

/// The reason with this name.
///
/// # Errors
/// Which there are.
pub fn reason(name: &str) -> Result<Reason, String> {
    let reason = Reason::ALL.into_iter().find(|reason| reason.name() == name);
    reason.ok_or_else(|| {
        let names = Reason::ALL.map(Reason::name).join(", ");
        format!("{name:?} is no reason: there are {names}")
    })
}
