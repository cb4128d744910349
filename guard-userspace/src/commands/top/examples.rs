//! Example readings for tests.

use serde_json::{Value, json};

use super::state::GuardReading;
use crate::{
    api::{Counter, ListedEntry, Status, Talker},
    policy::Entry,
};

pub fn status(mode: &str, is_running: bool) -> Status {
    let trouble = (!is_running).then_some("it is dead");
    from(json!({
        "version": "0.1.0", "mode": mode, "scope": "host", "enforcing": mode == "enforce",
        "not_enforcing_because": [], "interfaces": [], "modes": [], "trial": null, "docker": null,
        "agent": {"running": is_running, "pid": 1, "last_seen": null, "trouble": trouble},
        "policy": {"path": "guard.toml", "sha256": "", "loaded_at": "2027-01-31T00:00:00Z",
                   "services": 1, "stale": null},
    }))
}

/// The reading after this many seconds of three sources: a flood, an office over its limit, and a client within it.
pub fn reading(seconds: u64) -> GuardReading {
    let (good, office, flood) = (10 * seconds, 300 * seconds, 8_000 * seconds);
    GuardReading {
        status: status("enforce", true),
        counters: vec![
            counter(Some("web"), "pass", "allowed", good),
            counter(Some("web"), "drop", "connection_limit", office),
            closed_ports(&[("tcp/8000", flood - flood / 8), ("tcp/22", flood / 8)]),
        ],
        talkers: vec![
            talker("198.51.100.7", good, None),
            talker(
                "198.51.100.20",
                office,
                Some(("connection_limit", Some("web"))),
            ),
            Talker {
                port: Some("tcp/8000".to_owned()),
                ..talker("198.51.100.66", flood, Some(("closed_port", None)))
            },
        ],
    }
}

/// A reading with more counters and sources than a small screen has lines: in mode observe, packets pass that would be
/// dropped.
pub fn crowded(seconds: u64, mode: &str) -> GuardReading {
    let mut reading = reading(seconds);
    reading.status = status(mode, true);
    let services = (1..=12).map(|n| {
        counter(
            Some(&format!("service-{n}")),
            "pass",
            "allowed",
            n * seconds,
        )
    });
    reading.counters.extend(services);
    let sources = (1..=8).map(|n| talker(&format!("2001:db8:{n}:beef::"), 16 * n * seconds, None));
    reading.talkers.extend(sources);
    if mode == "observe" {
        let drops = reading
            .counters
            .iter_mut()
            .filter(|row| row.verdict == "drop");
        for row in drops {
            row.verdict = "pass".to_owned();
            row.would = Some("drop".to_owned());
        }
        for talker in &mut reading.talkers {
            talker.would_drop = talker.dropped;
        }
    }
    reading
}

/// A counter of closed ports.
pub fn closed_ports(ports: &[(&str, u64)]) -> Counter {
    let sum: u64 = ports.iter().map(|(_, packets)| packets).sum();
    let ports = ports
        .iter()
        .map(|(port, packets)| json!({"port": port, "packets": packets}));
    let ports: Vec<Value> = ports.collect();
    from(
        json!({"interface": "eth0", "service": null, "verdict": "drop", "reason": "closed_port", "packets": sum,
                "bytes": sum * 60, "ports": ports}),
    )
}

/// An entry that denies this prefix.
pub fn entry(id: u64, prefix: &str, expires: Option<&str>) -> Entry {
    from(
        json!({"id": id, "action": "deny", "prefix": prefix, "service": null, "owner": "ana", "reason": "guard top",
                "created": "2027-01-31T09:32:00Z", "expires": expires}),
    )
}

/// An entry that no other overrides.
pub fn listed(entry: Entry) -> ListedEntry {
    ListedEntry {
        entry,
        overridden_by: Vec::new(),
    }
}

pub fn counter(service: Option<&str>, verdict: &str, reason: &str, packets: u64) -> Counter {
    from(
        json!({"interface": "eth0", "service": service, "verdict": verdict, "reason": reason,
                "packets": packets, "bytes": packets * 60}),
    )
}

pub fn talker(source: &str, packets: u64, dropped: Option<(&str, Option<&str>)>) -> Talker {
    let name = (source == "198.51.100.20").then_some("office");
    let (reason, service) = dropped.unzip();
    from(
        json!({"interface": "eth0", "source": source, "name": name, "packets": packets,
                "dropped": if dropped.is_some() { packets } else { 0 }, "bytes": packets * 60,
                "reason": reason, "service": service}),
    )
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}
