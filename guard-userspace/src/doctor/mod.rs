//! `guard doctor`: finds problems of this host for the guard, with advice. It changes nothing, and runs without an
//! agent, Docker or root: a check that it cannot make is reported as unknown.

mod interface;
mod kernel;
mod surroundings;

use std::{path::Path, time::Duration};

use serde::Serialize;

use crate::{
    api::{Counter, Status, client::ClientError},
    host::{self, Host},
    policy::{AllowedFile, KernelTick, Policy, PolicyError},
};

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    Ok,
    /// The check cannot be made here, or not by this user.
    Unknown,
    Warning,
    Failure,
}

/// One element of the list that `guard doctor --json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DoctorFinding {
    /// The name of the check: `kernel`, `mtu`.
    pub check: &'static str,
    /// `null`: the check is of the host.
    pub interface: Option<String>,
    pub health: Health,
    pub finding: String,
    /// What to do about a warning, a failure or an unknown result.
    pub advice: Option<String>,
}

impl DoctorFinding {
    fn ok(check: &'static str, finding: impl Into<String>) -> Self {
        Self {
            check,
            interface: None,
            health: Health::Ok,
            finding: finding.into(),
            advice: None,
        }
    }

    fn unknown(check: &'static str, finding: impl Into<String>) -> Self {
        Self {
            health: Health::Unknown,
            ..Self::ok(check, finding)
        }
    }

    fn warning(check: &'static str, finding: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            health: Health::Warning,
            advice: Some(advice.into()),
            ..Self::ok(check, finding)
        }
    }

    fn failure(check: &'static str, finding: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            health: Health::Failure,
            ..Self::warning(check, finding, advice)
        }
    }

    /// The same with a next step.
    fn advised(self, advice: impl Into<String>) -> Self {
        Self {
            advice: Some(advice.into()),
            ..self
        }
    }

    fn on(self, interface: &str) -> Self {
        Self {
            interface: Some(interface.to_owned()),
            ..self
        }
    }
}

/// The data that the command has read from the agent or the pins.
pub struct DoctorInput<'a> {
    pub policy: &'a Path,
    pub pins: &'a Path,
    /// The status, or why it cannot be read.
    pub status: Result<Status, ClientError>,
    /// Two readings, [`BETWEEN_READINGS`] apart.
    pub counters: Option<[Vec<Counter>; 2]>,
}

/// The time between the two readings of the counters.
pub const BETWEEN_READINGS: Duration = Duration::from_secs(1);

/// Makes all checks.
pub async fn examine(known: &DoctorInput<'_>) -> Vec<DoctorFinding> {
    let policy = read_policy(known.policy);
    let mut findings = kernel::examine(known.pins);
    findings.push(surroundings::policy(known.policy, &policy));
    let policy = policy.ok();
    // A file that is no policy has its own finding above.
    let stale = surroundings::stale(&known.status);
    findings.extend(stale.filter(|_| policy.is_some()));
    findings.push(surroundings::agent(&known.status));
    match Host::read_once() {
        Ok(host) => {
            let names = interfaces(known, policy.as_ref(), &host);
            if names.is_empty() {
                findings.push(DoctorFinding::warning(
                    "interfaces",
                    "there is no interface to guard",
                    "name some in the policy, as in `interfaces = [\"eth0\"]`",
                ));
            }
            for name in names {
                findings.extend(interface::examine(&name, known, &host).await);
            }
        }
        Err(error) => findings.push(DoctorFinding::unknown(
            "interfaces",
            format!("this host cannot be read: {error}"),
        )),
    }
    findings.push(surroundings::local_ports(&known.status));
    findings.push(surroundings::conntrack());
    findings.push(surroundings::docker(policy.as_ref()).await);
    findings
}

fn read_policy(path: &Path) -> Result<Policy, PolicyError> {
    // If the tick is not known, the shortest tick (CONFIG_HZ=1000) reports the fewest errors about bursts.
    let tick_ns = host::tick_ns().unwrap_or(1_000_000);
    // The agent reads regular files only, too.
    Policy::read(path, AllowedFile::Regular, KernelTick { tick_ns })
}

/// The guarded interfaces, or those that the policy would guard.
fn interfaces(known: &DoctorInput<'_>, policy: Option<&Policy>, host: &Host) -> Vec<String> {
    if let Ok(status) = &known.status {
        let names = status.interfaces.iter();
        return names.map(|interface| interface.name.clone()).collect();
    }
    match policy.and_then(|policy| policy.interfaces.as_ref()) {
        Some(named) => named.iter().map(|named| named.name.clone()).collect(),
        None => {
            let routed = host.default_route_links().unwrap_or_default().into_iter();
            let links = routed.filter_map(|index| host.link(index));
            links.map(|link| link.name.clone()).collect()
        }
    }
}
