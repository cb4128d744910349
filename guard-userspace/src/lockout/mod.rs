//! The lockout check: before a policy is applied, the sessions that are open into this host, and the operator's own way
//! in, are checked against it.
//!
//! The real program judges two segments of every session: the first, which opens it, and a later one. Budgets are
//! removed from the policy first: a session over its budget is slow, but not closed.

pub(crate) mod arrival;
mod remedy;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result};
use guard_common::{
    layout::PortProtocol,
    reason::{Mode, Outcome, Reason, Verdict},
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tracing::warn;

use self::arrival::Arrivals;
use crate::{
    dataplane::Replay,
    explain::{DescribedPath, ExplainInput, first_packet, later_segment},
    host::{self, Host, Netlink},
    operator::SshSession,
    policy::{Action, Budgets, Containers, Entry, Limit, Policy, Ports, Service},
    privileges,
    sessions::{self, Session},
};

/// The sessions into this host that a policy would close.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Lockout {
    /// The number of inbound sessions that were checked.
    pub sessions: usize,
    /// The operator's own way in, if the policy closes it.
    pub operator: Option<Cut>,
    /// All other sessions that the policy closes.
    pub cut: Vec<Cut>,
}

/// A session that the policy closes, or would close if it were enforced.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Cut {
    pub protocol: String,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    pub verdict: String,
    /// `drop`: it would be dropped if the mode were `enforce`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would: Option<String>,
    pub reason: String,
    /// The service that lists the port, but not for this peer.
    pub service: Option<String>,
    /// The reason in words.
    pub because: String,
    /// The line of the policy that decided, if one did.
    pub line: Option<usize>,
    /// Whether the running session ends at once. If not, it continues, but could not be opened again.
    pub at_once: bool,
    /// The change of the policy that keeps it open. Only for the operator's own way in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_open: Option<String>,
}

impl Cut {
    /// Whether the session is really closed, not only reported in mode `observe`.
    pub fn is_enforced(&self) -> bool {
        self.would.is_none()
    }
}

/// `198.51.100.7:50000 to 203.0.113.10:22`.
impl fmt::Display for Cut {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} to {}", self.peer, self.local)
    }
}

impl Lockout {
    /// The number of sessions that are closed in the modes that apply, including the operator's.
    pub fn enforced(&self) -> usize {
        let cuts = self.operator.iter().chain(&self.cut);
        cuts.filter(|cut| cut.is_enforced()).count()
    }

    /// Why the policy must not be applied without `--force`, in one line.
    pub fn refusal(&self) -> Option<String> {
        let cut = self.operator.as_ref().filter(|cut| cut.is_enforced())?;
        let Cut {
            peer,
            local,
            reason,
            because,
            line,
            ..
        } = cut;
        let place = line
            .map(|line| format!(" (line {line})"))
            .unwrap_or_default();
        Some(format!(
            "this would close your own way in, SSH from {} to {local}: {reason}, {because}{place}; \
             `guard check --live` shows how to keep it open, and --force applies the change nevertheless",
            peer.ip()
        ))
    }
}

/// Whether an entry that denies this prefix denies the operator.
pub fn covers_operator(prefix: IpNet, operator: &SshSession) -> bool {
    prefix.contains(&operator.client.ip())
}

/// Checks this host's open sessions, and the operator's own way in, against a policy and the entries of operators.
pub async fn of_host(
    policy: &Policy,
    containers: &Containers,
    entries: &[Entry],
    (host, netlink): (&Host, &Netlink),
    operator: Option<SshSession>,
) -> Result<Lockout> {
    let sessions = privileges::spawn_blocking(sessions::inbound).await?;
    // The operator's own way in is known even if the list of sessions cannot be read.
    let sessions = sessions.unwrap_or_else(|error| {
        warn!("open sessions cannot be checked against the policy: {error}");
        Vec::new()
    });
    let here = (host, netlink);
    check(policy, containers, entries, here, &sessions, operator).await
}

/// The same check for the sessions to these local ports, also if no socket of this host listens there any more: a
/// container may have the port now.
pub async fn at_ports(
    policy: &Policy,
    containers: &Containers,
    entries: &[Entry],
    (host, netlink): (&Host, &Netlink),
    ports: BTreeSet<u16>,
) -> Result<Lockout> {
    let sessions = privileges::spawn_blocking(move || sessions::at_ports(&ports)).await??;
    let here = (host, netlink);
    check(policy, containers, entries, here, &sessions, None).await
}

async fn check(
    policy: &Policy,
    containers: &Containers,
    entries: &[Entry],
    (host, netlink): (&Host, &Netlink),
    sessions: &[Session],
    operator: Option<SshSession>,
) -> Result<Lockout> {
    let own = host.own_addresses();
    let own = own.context("this host's addresses cannot be read")?;
    let own: Vec<IpAddr> = own.into_iter().collect();
    let situation = ExplainInput {
        policy,
        containers,
        local_ports: host::local_port_range().context("the local port range cannot be read")?,
        now: host::timebase().context("the clocks cannot be read")?,
        tick_ns: host.tick_ns,
        own: &own,
        // A session from an own address comes in over the loopback interface, which is never guarded.
        own_sources: &BTreeSet::new(),
        entries,
    };
    let mut lockout = judge(&situation, sessions, operator)?;
    Arrivals::new(policy, host)
        .context("this host's interfaces cannot be read")?
        .retain_guarded(&mut lockout, netlink)
        .await;
    Ok(lockout)
}

/// Checks sessions against a policy, as if all of them came in over guarded interfaces.
pub fn judge(
    situation: &ExplainInput<'_>,
    sessions: &[Session],
    operator: Option<SshSession>,
) -> Result<Lockout> {
    let judge = SessionJudge {
        situation,
        replay: situation.load_program(&exposure_alone(situation.policy))?,
    };
    let way_in = operator.and_then(|operator| judge.way_in(operator, sessions));
    let mut found = HashMap::new();
    let mut cut = Vec::new();
    for session in sessions {
        // Packets from this host to itself cross no guarded interface.
        if Some(*session) == way_in || judge.is_own(session.peer.ip()) {
            continue;
        }
        // All sessions from one address to one port get the same verdict.
        let key = (session.peer.ip(), session.local);
        let finding = match found.get(&key) {
            Some(finding) => finding,
            None => {
                let finding = judge.find(session)?;
                found.entry(key).or_insert(finding)
            }
        };
        cut.extend(finding.as_ref().map(|finding| finding.cut(*session)));
    }
    let operator = match way_in {
        Some(session) => judge.find(&session)?.map(|finding| Cut {
            keep_open: Some(remedy::keep_open(situation.policy, &session, &finding)),
            ..finding.cut(session)
        }),
        None => None,
    };
    Ok(Lockout {
        sessions: sessions.len(),
        operator,
        cut,
    })
}

/// The policy without budgets and in mode `enforce`, so that the program returns every reason to drop.
fn exposure_alone(policy: &Policy) -> Policy {
    let services = policy.services.iter();
    Policy {
        mode: Mode::Enforce,
        limits: Limit::default(),
        limits_total: Budgets::default(),
        services: services
            .map(|service| Service {
                mode: Mode::Enforce,
                limit: Limit::default(),
                total: Budgets::default(),
                flood: None,
                ..service.clone()
            })
            .collect(),
        ..policy.clone()
    }
}

/// The policy's program, loaded and not attached.
struct SessionJudge<'a> {
    situation: &'a ExplainInput<'a>,
    replay: Replay,
}

/// Why sessions from one address to one port are closed.
struct CloseCause {
    outcome: Outcome,
    service: Option<String>,
    because: String,
    line: Option<usize>,
    at_once: bool,
    /// The entry that denies them, if no line of the policy does.
    entry: Option<u64>,
}

impl SessionJudge<'_> {
    fn is_own(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.situation.own.contains(&address)
    }

    /// The operator's session, if it comes from another host and ends at this one. A shell in a container may have the
    /// variable of a session to another host.
    fn way_in(&self, operator: SshSession, sessions: &[Session]) -> Option<Session> {
        let SshSession { client, server } = operator;
        let session = Session {
            local: server,
            peer: client,
        };
        let ends_here = self.situation.own.contains(&server.ip()) || sessions.contains(&session);
        let comes_from_elsewhere =
            !self.is_own(client.ip()) && client.is_ipv4() == server.is_ipv4();
        (ends_here && comes_from_elsewhere).then_some(session)
    }

    /// Why the policy closes a session. `None`: it stays open.
    fn find(&self, session: &Session) -> Result<Option<CloseCause>> {
        let Session { local, peer } = session;
        let (from, to) = (peer.ip(), local.ip());
        let port = local.port();
        let ports = Ports::Range {
            protocol: PortProtocol::Tcp,
            ports: port..=port,
        };
        let (service, reason) = self.judge(&first_packet(from, to, &ports)?)?;
        if reason.verdict() == Verdict::Pass {
            return Ok(None);
        }
        let (_, later) = self.judge(&later_segment(from, to, port)?)?;
        let policy = self.situation.policy;
        let mut services = policy.services.iter();
        let mode = services
            .find(|candidate| Some(&candidate.name) == service.as_ref())
            .map_or(policy.mode, |service| service.mode.min(policy.mode));
        let DescribedPath { steps, line, .. } = self.situation.steps_to(reason, from, to, &ports);
        let entry = match (reason, line) {
            (Reason::DeniedSource, None) => self.denying_entry(from, service.as_deref()),
            _ => None,
        };
        Ok(Some(CloseCause {
            outcome: Outcome::new(reason, mode),
            because: match (entry, steps.last(), &service) {
                (Some(entry), _, _) => entry.to_string(),
                (None, Some(step), Some(service)) if reason == Reason::SourceNotAllowed => {
                    format!("service \"{service}\" lists {ports}, but {}", step.finding)
                }
                (None, Some(step), _) => step.finding.clone(),
                (None, None, _) => String::new(),
            },
            service,
            line,
            entry: entry.map(|entry| entry.id),
            at_once: later.verdict() == Verdict::Drop,
        }))
    }

    fn denying_entry(&self, from: IpAddr, service: Option<&str>) -> Option<&Entry> {
        let now = self.situation.now.world;
        let mut entries = self.situation.entries.iter();
        entries.find(|entry| {
            let is_here = entry.service.is_none() || entry.service.as_deref() == service;
            let holds = !entry.is_over(now) && entry.prefix.contains(&from);
            entry.action == Action::Deny && is_here && holds
        })
    }

    fn judge(&self, frame: &[u8]) -> Result<(Option<String>, Reason)> {
        let judged = self.replay.judge(frame)?;
        let tables = self.replay.generation().tables();
        let service = tables.service_name(judged.service);
        Ok((service.map(str::to_owned), judged.outcome.reason))
    }
}

impl CloseCause {
    fn cut(&self, session: Session) -> Cut {
        let Self {
            outcome,
            service,
            because,
            line,
            at_once,
            entry: _,
        } = self;
        let Session { local, peer } = session;
        Cut {
            protocol: PortProtocol::Tcp.name().to_owned(),
            peer,
            local,
            verdict: outcome.verdict().name().to_owned(),
            would: outcome.would_drop.then(|| Verdict::Drop.name().to_owned()),
            reason: outcome.reason.name().to_owned(),
            service: service.clone(),
            because: because.clone(),
            line: *line,
            at_once: *at_once,
            keep_open: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(would: Option<&str>) -> Cut {
        Cut {
            protocol: "tcp".to_owned(),
            peer: "198.51.100.7:50000".parse().unwrap(),
            local: "203.0.113.10:22".parse().unwrap(),
            verdict: "drop".to_owned(),
            would: would.map(str::to_owned),
            reason: "closed_port".to_owned(),
            service: None,
            because: "no service lists tcp/22".to_owned(),
            line: None,
            at_once: false,
            keep_open: None,
        }
    }

    #[test]
    fn only_an_enforced_cut_is_refused() {
        let mut lockout = Lockout {
            sessions: 3,
            operator: Some(cut(Some("drop"))),
            cut: vec![cut(None), cut(Some("drop"))],
        };
        assert_eq!((lockout.enforced(), lockout.refusal()), (1, None));
        lockout.operator = Some(cut(None));
        assert_eq!(lockout.enforced(), 2);
        let refusal = lockout.refusal().unwrap();
        for word in ["198.51.100.7", "203.0.113.10:22", "closed_port", "--force"] {
            assert!(refusal.contains(word), "{refusal}");
        }
        assert_eq!(refusal.lines().count(), 1);
        lockout.operator = None;
        assert_eq!(lockout.refusal(), None, "others are only listed");
    }

    #[test]
    fn a_report_survives_a_json_round_trip() {
        let lockout = Lockout {
            sessions: 1,
            operator: Some(cut(None)),
            cut: vec![cut(Some("drop"))],
        };
        let text = serde_json::to_string(&lockout).unwrap();
        assert_eq!(serde_json::from_str::<Lockout>(&text).unwrap(), lockout);
    }

    #[test]
    fn an_entry_covers_the_operator_if_it_holds_the_clients_address() {
        let operator = |text: &str| text.parse::<SshSession>().unwrap();
        let v4 = operator("198.51.100.7 50000 203.0.113.10 22");
        let mapped = operator("::ffff:198.51.100.7 50000 ::ffff:203.0.113.10 22");
        let v6 = operator("2001:db8:51::7 50000 2001:db8:113::10 22");
        for (prefix, session, covers) in [
            ("198.51.100.0/24", v4, true),
            ("198.51.100.7/32", mapped, true),
            ("203.0.113.0/24", v4, false),
            ("0.0.0.0/0", v4, true),
            ("::/0", v4, false),
            ("2001:db8:51::/64", v6, true),
        ] {
            let prefix = prefix.parse().unwrap();
            assert_eq!(covers_operator(prefix, &session), covers, "{prefix}");
        }
    }
}
