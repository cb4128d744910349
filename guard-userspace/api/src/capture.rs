//! The request of a capture, and the lines of its answer.

use guard_common::reason::{Outcome, Reason, Verdict};
use guard_text::nearest;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Packets per second: the default, and the most.
pub const DEFAULT_RATE: u32 = 1_000;
/// The most packets per second that a request may ask for.
pub const HIGHEST_RATE: u32 = 5_000;

/// The query of `GET /v1/capture`: which packets, and in which form.
#[derive(Clone, Debug, Default, Deserialize, IntoParams, Serialize)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CaptureRequest {
    /// Capture all packets; without it, those that are dropped, or would be dropped in mode enforce.
    #[serde(default)]
    pub all: bool,
    /// Capture only packets with one of these reasons, such as `closed_port,packet_limit`.
    pub reasons: Option<String>,
    /// Capture only packets to this service.
    pub service: Option<String>,
    /// Capture only packets from this source.
    #[param(value_type = Option<String>)]
    pub source: Option<IpNet>,
    /// The most packets per second, on all interfaces together: 1,000 if left out, 5,000 at most.
    pub rate: Option<u32>,
    /// The most bytes of each packet; all if left out.
    pub length: Option<u32>,
    #[serde(default)]
    pub form: Form,
}

/// The format of a capture.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// For Wireshark. Every second its statistics count the missed packets.
    #[default]
    Pcapng,
    /// A [`Line`] for each packet, and every second a line with the number of missed packets.
    Json,
}

/// A line of a capture in JSON.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Line {
    Packet(Box<Captured>),
    /// The packets that matched and were missed since the capture began. An estimate where a sample is taken.
    Missed {
        missed: u64,
    },
}

/// A captured packet.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Captured {
    #[schema(value_type = String)]
    pub time: Timestamp,
    pub interface: String,
    /// `pass` or `drop`.
    pub verdict: String,
    /// `drop`, if the packet passed only because of the mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would: Option<String>,
    pub reason: String,
    /// `null`: the packet matched no service.
    pub service: Option<String>,
    /// The source address, with the port if the protocol has ports: `198.51.100.7:40000`.
    pub source: Option<String>,
    pub destination: Option<String>,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `arp`, or `ip` for another protocol; `null`: the frame cannot be parsed.
    pub protocol: Option<String>,
    /// The length of the frame, in bytes.
    pub length: u32,
    /// The packet is a sample of this many.
    pub one_of: u32,
}

impl CaptureRequest {
    /// The verdicts and reasons that the request matches.
    ///
    /// # Errors
    /// A reason does not exist.
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

/// Parses the name of a reason.
///
/// # Errors
/// There is no such reason. The error lists all reasons.
pub fn reason(name: &str) -> Result<Reason, String> {
    let reason = Reason::ALL.into_iter().find(|reason| reason.name() == name);
    reason.ok_or_else(|| {
        let names = Reason::ALL.map(Reason::name);
        let meant = nearest(name, names).map(|meant| format!("did you mean {meant:?}? There"));
        let meant = meant.as_deref().unwrap_or("there");
        format!("{name:?} is no reason: {meant} are {}", names.join(", "))
    })
}
