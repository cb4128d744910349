//! Example readings for tests.

use serde_json::{Value, json};

use super::state::GuardReading;
use crate::api::{Counter, Status, Talker};

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
            counter(None, "drop", "closed_port", flood),
        ],
        talkers: vec![
            talker("198.51.100.7", good, None),
            talker(
                "198.51.100.20",
                office,
                Some(("connection_limit", Some("web"))),
            ),
            talker("198.51.100.66", flood, Some(("closed_port", None))),
        ],
    }
}

fn counter(service: Option<&str>, verdict: &str, reason: &str, packets: u64) -> Counter {
    from(
        json!({"interface": "eth0", "service": service, "verdict": verdict, "reason": reason,
                "packets": packets, "bytes": packets * 60}),
    )
}

fn talker(source: &str, packets: u64, dropped: Option<(&str, Option<&str>)>) -> Talker {
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
