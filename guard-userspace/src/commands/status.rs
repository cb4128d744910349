//! `guard status`: whether the guard is attached and enforcing, and on which interfaces.

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    time::Instant,
};

use serde::Serialize;

use super::{
    AgentLocation, Failure, figures,
    meter::{Meter, Metered, TrafficRate},
    reading::GuardReader,
    watch::Watched,
};
use crate::{
    api::{Counter, DockerStatus, InterfaceStatus, ModeStatus, PolicyStatus, Status, TrialStatus},
    policy::untrusted::quoted,
};

/// The most characters shown of a text that a client sent.
const MAX_SHOWN: usize = 256;

/// A line of `--watch --json`.
#[derive(Serialize)]
struct WithRate<'a> {
    #[serde(flatten)]
    status: &'a Status,
    #[serde(flatten)]
    rate: Option<TrafficRate>,
}

pub async fn run(location: &AgentLocation, watched: Watched) -> Result<(), Failure> {
    let reader = GuardReader::new(location)?;
    let mut meter = Meter::default();
    watched
        .run(async |watched| {
            let status = reader.status().await?;
            let counters = meter.read(Instant::now(), reader.counters().await?);
            let rate = sum(&counters);
            if watched.is_json() {
                let status = &status;
                return watched.json(&WithRate { status, rate });
            }
            let described = describe(&status).map_err(anyhow::Error::from)?;
            Ok(format!("{described}{}", describe_traffic(&counters, rate)))
        })
        .await
}

fn sum(counters: &[Metered<Counter>]) -> Option<TrafficRate> {
    let rates = counters.iter().filter_map(|counter| counter.rate);
    rates.reduce(|mut sum, rate| {
        sum += rate;
        sum
    })
}

fn describe_traffic(counters: &[Metered<Counter>], rate: Option<TrafficRate>) -> String {
    let sum = |is_wanted: fn(&Counter) -> bool| {
        let rows = counters.iter().filter(|counter| is_wanted(&counter.row));
        figures::count(rows.map(|counter| counter.row.packets as f64).sum())
    };
    let mut text = format!(
        "packets    {} counted, {} dropped, {} would be dropped if enforced",
        sum(|_| true),
        sum(|row| row.verdict == "drop"),
        sum(|row| row.would.is_some())
    );
    if let Some(TrafficRate {
        packets,
        dropped,
        bytes,
    }) = rate
    {
        text += &format!(
            "\nnow        {} packets/s, {}; dropped, or would be if enforced: {} packets/s",
            figures::count(packets),
            figures::bits(bytes),
            figures::count(dropped)
        );
    }
    text
}

/// The state in one line: whether the guard drops packets.
pub fn headline(status: &Status) -> &'static str {
    match (status.mode.as_str(), status.enforcing) {
        ("enforce", true) => "enforcing: packets against the policy are dropped",
        ("enforce", false) => "NOT ENFORCING, although the mode is enforce",
        ("observe", _) => "observing: everything passes, would-be drops are counted",
        _ => "off: everything passes",
    }
}

fn describe(status: &Status) -> Result<String, fmt::Error> {
    let mut text = String::new();
    let Status {
        version,
        mode: _,
        scope,
        enforcing: _,
        not_enforcing_because,
        agent,
        interfaces,
        policy:
            PolicyStatus {
                path,
                sha256,
                loaded_at,
                services,
                stale,
            },
        modes,
        trial,
        docker,
        warnings,
        not_kept,
        since: _,
        entries: _,
        page: _,
    } = status;
    writeln!(text, "guard {version} is {}", headline(status))?;
    for obstacle in not_enforcing_because {
        writeln!(text, "  because {obstacle}")?;
    }
    if !agent.running {
        let trouble = agent.trouble.as_deref().unwrap_or("it does not answer");
        write!(text, "agent      NOT RUNNING: {trouble}")?;
        if let Some(last_seen) = agent.last_seen {
            write!(text, ", last alive {last_seen:.0}")?;
        }
        writeln!(text, "; the program in the kernel keeps running")?;
    }
    writeln!(text, "scope      {scope}")?;
    if let Some(TrialStatus {
        path,
        until,
        back_to,
        by,
        process,
    }) = trial
    {
        writeln!(
            text,
            "trial      {path}{} until {until:.0}, then back to {back_to}: `guard confirm` keeps it",
            made_by(by.as_deref(), *process)
        )?;
    }
    for ModeStatus {
        service,
        mode,
        since,
        by,
        process,
        claimed_by,
    } in modes
    {
        let whose = service.as_deref().unwrap_or("host");
        let by = made_by(by.as_deref(), *process);
        let claimed = claimed_by.as_ref();
        let claimed =
            claimed.map(|name| format!(" (the client names {})", quoted(name, MAX_SHOWN)));
        let option = service.as_ref().map(|name| format!(" --service {name}"));
        writeln!(
            text,
            "mode       {whose}: {mode} since {since:.0}{by}{}, instead of the policy's mode: `guard mode \
             policy{}` ends it",
            claimed.unwrap_or_default(),
            option.unwrap_or_default()
        )?;
    }
    writeln!(
        text,
        "policy     {path}, services: {services}, loaded {loaded_at}, sha256 {}",
        sha256.get(..12).unwrap_or(sha256)
    )?;
    if let Some(stale) = stale {
        writeln!(text, "           differs from the file: {stale}")?;
    }
    for InterfaceStatus {
        name,
        attached,
        xdp_mode,
        program_id,
        generation,
        trouble,
    } in interfaces
    {
        let state = match (attached, trouble) {
            (true, None) => "attached".to_owned(),
            (true, Some(trouble)) => format!("attached ({trouble})"),
            (false, Some(trouble)) => format!("NOT ATTACHED ({trouble})"),
            (false, None) => "NOT ATTACHED".to_owned(),
        };
        writeln!(
            text,
            "interface  {name}: {state}, {xdp_mode} XDP, program {program_id}, generation \
             {generation}"
        )?;
    }
    match docker {
        Some(docker) => {
            writeln!(text, "docker     {}", describe_docker(docker))?;
            for warning in &docker.warnings {
                writeln!(text, "           {warning}")?;
            }
        }
        None => writeln!(text, "docker     not known: only the agent reads it")?,
    }
    for warning in warnings {
        writeln!(text, "warning    {warning}")?;
    }
    if let Some(not_kept) = not_kept {
        writeln!(text, "state      LOST AT THE NEXT START: {not_kept}")?;
    }
    Ok(text)
}

/// ` by root, process 4711`: both come from the kernel (SO_PEERCRED), not from the client.
fn made_by(user: Option<&str>, process: Option<u32>) -> String {
    match (user, process) {
        (Some(user), Some(process)) => format!(" by {user}, process {process}"),
        (Some(user), None) => format!(" by {user}"),
        (None, _) => String::new(),
    }
}

fn describe_docker(docker: &DockerStatus) -> String {
    let DockerStatus {
        socket,
        connected,
        error,
        published,
        warnings: _,
    } = docker;
    match (connected, error) {
        (true, _) if published.is_empty() => "connected, no published ports".to_owned(),
        (true, _) => format!("connected, published: {}", joined(published)),
        (false, Some(error)) => error.clone(),
        (false, None) if socket.is_empty() => "turned off by the policy".to_owned(),
        (false, None) => format!("not connected at {socket}"),
    }
}

/// Joins adjacent published ports into ranges: 2,000 ports are shown as `tcp/8000-9999`.
fn joined(published: &[String]) -> String {
    let port_of = |text: &str| {
        let (place, port) = text.rsplit_once('/')?;
        Some((place.to_owned(), port.parse::<u16>().ok()?))
    };
    let ports: BTreeSet<(String, u16)> =
        published.iter().filter_map(|port| port_of(port)).collect();
    let mut ranges: Vec<(String, u16, u16)> = Vec::new();
    for (place, port) in ports {
        match ranges.last_mut() {
            Some((last, _, end)) if *last == place && end.checked_add(1) == Some(port) => {
                *end = port
            }
            _ => ranges.push((place, port, port)),
        }
    }
    let ranges = ranges.into_iter().map(|(place, first, last)| {
        if first == last {
            format!("{place}/{first}")
        } else {
            format!("{place}/{first}-{last}")
        }
    });
    ranges.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports_next_to_each_other_are_one_range() {
        let ports = (8_000..=9_999).rev().map(|port| format!("tcp/{port}"));
        let others = [
            "udp/53",
            "203.0.113.11:tcp/443",
            "203.0.113.11:tcp/444",
            "tcp/65535",
        ];
        let all: Vec<String> = ports.chain(others.map(str::to_owned)).collect();
        assert_eq!(
            joined(&all),
            "203.0.113.11:tcp/443-444, tcp/8000-9999, tcp/65535, udp/53"
        );
        assert_eq!(joined(&[]), "");
    }
}
