//! `guard status`: whether the guard is attached and enforcing, and on which interfaces.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    time::Instant,
};

use clap::Args;
use serde::Serialize;

use super::{
    AgentLocation, Failure,
    colour::{Tone, paint_first_line},
    figures,
    meter::{Meter, Metered, TrafficRate},
    moments::{ago, clock, left},
    reading::GuardReader,
    trial::how_to_end,
    watch::Watched,
};
use crate::{
    api::{
        Counter, DockerStatus, FloodStatus, InterfaceStatus, ModeStatus, PolicyStatus, Status,
        TrialStatus,
    },
    policy::untrusted::{name, quoted},
};

/// The most characters shown of a text that a client sent.
const MAX_SHOWN: usize = 256;

/// The most characters shown of a container's name.
const MAX_NAME: usize = 64;

/// A line of `--watch --json`.
#[derive(Serialize)]
struct WithRate<'a> {
    #[serde(flatten)]
    status: &'a Status,
    #[serde(flatten)]
    rate: Option<TrafficRate>,
}

/// `guard status`.
#[derive(Debug, Args)]
pub struct ShowStatus {
    /// Show also the interfaces, the policy, the container runtime and the agent
    #[arg(long, short)]
    verbose: bool,
    #[command(flatten)]
    watched: Watched,
}

impl ShowStatus {
    pub(super) async fn run(self, location: &AgentLocation) -> Result<(), Failure> {
        let Self { verbose, watched } = self;
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
                let mut text = describe(&status).map_err(anyhow::Error::from)?;
                text += &describe_traffic(&status.mode, &counters, rate);
                if verbose {
                    text += "\n";
                    text += &describe_rest(&status).map_err(anyhow::Error::from)?;
                }
                Ok(paint_first_line(tone(&status), text.trim_end()))
            })
            .await
    }
}

/// The colour of the state: an operator who set the mode off knows it, but it is not as it should be.
pub fn tone(status: &Status) -> Tone {
    match (status.mode.as_str(), status.enforcing) {
        ("enforce", true) => Tone::Good,
        ("observe", _) => Tone::Notice,
        _ => Tone::Bad,
    }
}

fn sum(counters: &[Metered<Counter>]) -> Option<TrafficRate> {
    let rates = counters.iter().filter_map(|counter| counter.rate);
    rates.reduce(|mut sum, rate| {
        sum += rate;
        sum
    })
}

/// The counters live as long as the pins, so they contain packets of earlier modes.
fn describe_traffic(
    mode: &str,
    counters: &[Metered<Counter>],
    rate: Option<TrafficRate>,
) -> String {
    let sum = |is_wanted: fn(&Counter) -> bool| -> f64 {
        let rows = counters.iter().filter(|counter| is_wanted(&counter.row));
        rows.map(|counter| counter.row.packets as f64).sum()
    };
    let would_drop = match mode {
        "enforce" => "passed only because of mode observe",
        _ => "would be dropped if enforced",
    };
    let parts = [
        (sum(|row| row.verdict == "drop"), "dropped"),
        (sum(|row| row.would.is_some()), would_drop),
    ];
    let parts = parts.into_iter().filter(|(packets, _)| *packets > 0.0);
    let parts = parts.map(|(packets, what)| format!(", {} {what}", figures::count(packets)));
    let mut text = format!(
        "packets    {} counted{}: `guard counters`",
        figures::count(sum(|_| true)),
        parts.collect::<String>()
    );
    if let Some(rate) = rate {
        text += &format!(
            "\nnow        {} packets/s, {}",
            figures::count(rate.packets),
            figures::bits(rate.bytes)
        );
        let parts = [
            (rate.really_dropped(), "dropped"),
            (rate.would_drop, would_drop),
        ];
        for (rate, what) in parts.into_iter().filter(|(rate, _)| *rate > 0.0) {
            text += &format!(", {} packets/s {what}", figures::count(rate));
        }
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

/// The state in one glance: the truth, what is closed and open, and what needs a look.
fn describe(status: &Status) -> Result<String, fmt::Error> {
    let mut text = String::new();
    let Status {
        version: _,
        mode: _,
        scope: _,
        enforcing: _,
        not_enforcing_because,
        agent,
        interfaces,
        policy,
        modes,
        trial,
        docker,
        warnings,
        not_kept,
        since,
        floods,
        entries,
        open: _,
        open_from: _,
        closed: _,
        publishers: _,
        page,
    } = status;
    write!(text, "guard is {}", headline(status))?;
    if let Some(since) = since {
        write!(text, ", since {}", ago(*since))?;
    }
    writeln!(text)?;
    for obstacle in not_enforcing_because {
        writeln!(text, "  because {obstacle}")?;
    }
    if !agent.running {
        let trouble = agent.trouble.as_deref().unwrap_or("it does not answer");
        write!(text, "agent      NOT RUNNING: {trouble}")?;
        if let Some(last_seen) = agent.last_seen {
            write!(text, ", last alive {}", ago(last_seen))?;
        }
        let start = if trouble.contains("hangs") {
            "systemctl restart guard"
        } else {
            "systemctl start guard"
        };
        writeln!(
            text,
            "; the program in the kernel keeps running: `{start}`, or `guard run`"
        )?;
        writeln!(
            text,
            "           operators' modes and entries stay in force, and are listed only by an agent"
        )?;
    } else {
        describe_ports(&mut text, status)?;
    }
    let names = interfaces.iter().map(|interface| {
        let not = if interface.attached {
            ""
        } else {
            " (NOT ATTACHED)"
        };
        format!("{}{not}", interface.name)
    });
    let names = names.collect::<Vec<_>>().join(", ");
    let names = if names.is_empty() {
        "no interface"
    } else {
        &names
    };
    writeln!(text, "on         {names}")?;
    let troubled = interfaces.iter().filter(|one| one.trouble.is_some());
    for interface in troubled {
        writeln!(text, "interface  {}", describe_interface(interface))?;
    }
    if let Some(trial) = trial {
        writeln!(text, "trial      {}", describe_trial(trial))?;
    }
    for mode in modes {
        writeln!(text, "mode       {}", describe_mode(mode))?;
    }
    for FloodStatus { service, since } in floods {
        writeln!(
            text,
            "FLOODED    {service} with connection requests, since {}: `guard counters` shows what becomes of them",
            ago(*since)
        )?;
    }
    match entries {
        0 => {}
        1 => writeln!(text, "entries    1 temporary entry: `guard list` shows it")?,
        entries => writeln!(
            text,
            "entries    {entries} temporary entries: `guard list` shows them"
        )?,
    }
    if let Some(stale) = &policy.stale {
        let advice = policy.stale_advice.as_ref();
        let advice = advice
            .map(|advice| format!(": {advice}"))
            .unwrap_or_default();
        writeln!(text, "STALE      {stale}{advice}")?;
    }
    if let Some(trouble) = docker.as_ref().and_then(trouble_of_docker) {
        writeln!(text, "docker     {trouble}")?;
    }
    for warning in docker.iter().flat_map(|docker| &docker.warnings) {
        writeln!(text, "docker     {warning}")?;
    }
    for warning in warnings {
        writeln!(text, "warning    {warning}")?;
    }
    if let Some(not_kept) = not_kept {
        writeln!(text, "state      LOST AT THE NEXT START: {not_kept}")?;
    }
    if let Some(page) = page {
        writeln!(text, "page       {page}")?;
    }
    Ok(text)
}

/// The most ports that are named in one line.
const MOST_PORTS: usize = 8;

fn describe_ports(text: &mut String, status: &Status) -> fmt::Result {
    let Status {
        mode,
        scope,
        open,
        open_from,
        closed,
        publishers,
        ..
    } = status;
    let published = joined(closed, publishers);
    let published = match closed.len() {
        0 => "no published port".to_owned(),
        1 => format!("1 published port: {}", named(&published)),
        ports => format!("{ports} published ports: {}", named(&published)),
    };
    // Nothing is closed in the other modes.
    let closes = match mode.as_str() {
        "enforce" => "closed     ",
        _ => "would close ",
    };
    if scope == "host" {
        writeln!(
            text,
            "{closes}every port that no service lists; {published}"
        )?;
    } else {
        writeln!(text, "{closes}{published}")?;
    }
    let listed: Vec<String> = open
        .iter()
        .map(|port| match open_from.get(port) {
            Some(sources) => format!("{port} {}", describe_sources(sources)),
            None => port.clone(),
        })
        .collect();
    match listed.len() {
        0 => writeln!(text, "open       no port: the policy lists none"),
        1 => writeln!(text, "open       1 port by the policy: {}", named(&listed)),
        ports => writeln!(
            text,
            "open       {ports} ports by the policy: {}",
            named(&listed)
        ),
    }
}

fn named(ports: &[String]) -> String {
    let (named, rest) = ports.split_at(ports.len().min(MOST_PORTS));
    match rest.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// `only from 198.51.100.7`
fn describe_sources(sources: &[String]) -> String {
    match sources {
        [] => "for no source".to_owned(),
        [one] => format!("only from {one}"),
        [one, other] => format!("only from {one} and {other}"),
        all => format!("only from {} sources", all.len()),
    }
}

fn describe_trial(trial: &TrialStatus) -> String {
    let TrialStatus {
        path,
        until,
        back_to,
        other_file,
        by,
        process,
    } = trial;
    format!(
        "{path}{} goes back in {} (at {}) to {back_to}: `guard confirm` keeps it. {}",
        made_by(by.as_deref(), *process),
        left(*until),
        clock(*until),
        how_to_end(other_file.as_deref())
    )
}

/// `host: off, set 3 min ago by root, instead of the policy's mode`
pub fn describe_mode(mode: &ModeStatus) -> String {
    let ModeStatus {
        service,
        mode,
        since,
        by,
        process,
        claimed_by,
    } = mode;
    let whose = service.as_deref().unwrap_or("host");
    let by = made_by(by.as_deref(), *process);
    let claimed = claimed_by.as_ref();
    let claimed = claimed.map(|name| format!(" (the client names {})", quoted(name, MAX_SHOWN)));
    let option = service.as_ref().map(|name| format!(" --service {name}"));
    format!(
        "{whose}: {mode}, set {}{by}{}, instead of the policy's mode: `guard mode policy{}` ends it",
        ago(*since),
        claimed.unwrap_or_default(),
        option.unwrap_or_default()
    )
}

/// Why the containers are not followed, if they should be.
fn trouble_of_docker(docker: &DockerStatus) -> Option<String> {
    let is_off = docker.socket.is_empty() && docker.error.is_none();
    (!docker.connected && !is_off).then(|| describe_docker(docker))
}

/// What `-v` adds.
fn describe_rest(status: &Status) -> Result<String, fmt::Error> {
    let mut text = String::new();
    let Status {
        version,
        scope,
        agent,
        interfaces,
        policy:
            PolicyStatus {
                path,
                sha256,
                loaded_at,
                services,
                ..
            },
        docker,
        ..
    } = status;
    writeln!(text, "version    {version}")?;
    if let (true, Some(pid)) = (agent.running, agent.pid) {
        writeln!(text, "agent      runs as process {pid}")?;
    }
    writeln!(text, "scope      {scope}")?;
    writeln!(
        text,
        "policy     {path}, services: {services}, loaded {}, sha256 {}",
        ago(*loaded_at),
        sha256.get(..12).unwrap_or(sha256)
    )?;
    for interface in interfaces {
        writeln!(text, "interface  {}", describe_interface(interface))?;
    }
    match docker {
        Some(docker) => writeln!(text, "docker     {}", describe_docker(docker))?,
        None => writeln!(text, "docker     not known: only the agent reads it")?,
    }
    Ok(text)
}

fn describe_interface(interface: &InterfaceStatus) -> String {
    let InterfaceStatus {
        name,
        attached,
        xdp_mode,
        program_id,
        generation,
        trouble,
    } = interface;
    let state = match (attached, trouble) {
        (true, None) => "attached".to_owned(),
        (true, Some(trouble)) => format!("attached ({trouble})"),
        (false, Some(trouble)) => format!("NOT ATTACHED ({trouble})"),
        (false, None) => "NOT ATTACHED".to_owned(),
    };
    if *program_id == 0 {
        return format!("{name}: {state}");
    }
    format!("{name}: {state}, {xdp_mode} XDP, program {program_id}, generation {generation}")
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
        (true, _) => {
            let published = joined(published, &BTreeMap::new());
            format!("connected, published: {}", published.join(", "))
        }
        (false, Some(error)) => error.clone(),
        (false, None) if socket.is_empty() => "turned off by the policy".to_owned(),
        (false, None) => format!("not connected at {socket}"),
    }
}

/// Joins adjacent published ports of a container into ranges: 2,000 ports are shown as `tcp/8000-9999 (media)`.
fn joined(published: &[String], publishers: &BTreeMap<String, String>) -> Vec<String> {
    let port_of = |text: &str| {
        let (place, port) = text.rsplit_once('/')?;
        Some((place.to_owned(), port.parse::<u16>().ok()?))
    };
    let ports: BTreeMap<(String, u16), Option<&String>> = published
        .iter()
        .filter_map(|port| Some((port_of(port)?, publishers.get(port))))
        .collect();
    let mut ranges: Vec<(String, u16, u16, Option<&String>)> = Vec::new();
    for ((place, port), container) in ports {
        match ranges.last_mut() {
            Some((last, _, end, of))
                if *last == place && *of == container && end.checked_add(1) == Some(port) =>
            {
                *end = port;
            }
            _ => ranges.push((place, port, port, container)),
        }
    }
    let ranges = ranges.into_iter().map(|(place, first, last, container)| {
        let ports = match first == last {
            true => format!("{place}/{first}"),
            false => format!("{place}/{first}-{last}"),
        };
        match container {
            Some(container) => format!("{ports} ({})", name(container, MAX_NAME)),
            None => ports,
        }
    });
    ranges.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(facts: serde_json::Value) -> Status {
        let mut whole = serde_json::json!({
            "version": "0.1.0", "mode": "enforce", "scope": "containers", "enforcing": true,
            "not_enforcing_because": [], "agent": {"running": true, "pid": 4711},
            "interfaces": [{"name": "eth0", "attached": true, "xdp_mode": "native", "program_id": 77, "generation": 3}],
            "policy": {"path": "/etc/guard/guard.toml", "sha256": "0123456789abcdef", "services": 2,
                       "loaded_at": "2026-11-30T09:45:01Z"},
            "modes": [],
            "docker": {"socket": "/run/docker.sock", "connected": true,
                       "published": ["tcp/80", "tcp/443", "tcp/5432", "tcp/6379", "tcp/8000"]},
            "open": ["tcp/80", "tcp/443"], "closed": ["tcp/5432", "tcp/6379", "tcp/8000"],
            "page": "http://127.0.0.1:9469/",
        });
        for (key, value) in facts.as_object().unwrap() {
            whole[key] = value.clone();
        }
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn a_host_as_it_should_be_takes_five_lines() {
        insta::assert_snapshot!(describe(&status(serde_json::json!({}))).unwrap(), @r"
        guard is enforcing: packets against the policy are dropped
        closed     3 published ports: tcp/5432, tcp/6379, tcp/8000
        open       2 ports by the policy: tcp/80, tcp/443
        on         eth0
        page       http://127.0.0.1:9469/
        ");
    }

    #[test]
    fn what_the_policy_would_close_and_who_reaches_a_port_is_told_in_every_mode() {
        let facts = serde_json::json!({
            "mode": "observe", "enforcing": false, "scope": "host", "page": null,
            "open": ["tcp/80", "tcp/9000", "tcp/9001", "tcp/9002"],
            "open_from": {"tcp/9000": ["198.51.100.7"], "tcp/9001": ["192.0.2.0/24", "2001:db8::/32"],
                          "tcp/9002": ["192.0.2.1", "192.0.2.2", "192.0.2.3"]},
            "closed": ["tcp/5432", "tcp/5433", "tcp/8000"],
            "publishers": {"tcp/5432": "shop-db-1", "tcp/5433": "shop-db-1", "tcp/8000": "invoices"},
        });
        insta::assert_snapshot!(describe(&status(facts)).unwrap(), @r"
        guard is observing: everything passes, would-be drops are counted
        would close every port that no service lists; 3 published ports: tcp/5432-5433 (shop-db-1), tcp/8000 (invoices)
        open       4 ports by the policy: tcp/80, tcp/9000 only from 198.51.100.7, tcp/9001 only from 192.0.2.0/24 and 2001:db8::/32, tcp/9002 only from 3 sources
        on         eth0
        ");
    }

    #[test]
    fn packets_of_an_earlier_mode_are_not_shown_as_what_happens_now() {
        let rows = serde_json::json!([
            {"interface": "eth0", "verdict": "pass", "reason": "allowed", "packets": 9, "bytes": 900},
            {"interface": "eth0", "verdict": "pass", "would": "drop", "reason": "closed_port", "packets": 5, "bytes": 300},
        ]);
        let rows: Vec<Counter> = serde_json::from_value(rows).unwrap();
        let rows: Vec<Metered<Counter>> = rows
            .into_iter()
            .map(|row| Metered { row, rate: None })
            .collect();
        assert_eq!(
            describe_traffic("observe", &rows, None),
            "packets    14 counted, 5 would be dropped if enforced: `guard counters`"
        );
        assert_eq!(
            describe_traffic("enforce", &rows, None),
            "packets    14 counted, 5 passed only because of mode observe: `guard counters`"
        );
        assert_eq!(
            describe_traffic("enforce", &rows[..1], Some(TrafficRate::default())),
            "packets    9 counted: `guard counters`\nnow        0 packets/s, 0 bit/s"
        );
    }

    #[test]
    fn what_needs_a_look_is_told_and_what_to_type() {
        let troubled = status(serde_json::json!({
            "enforcing": false, "scope": "host",
            "not_enforcing_because": ["the program is not attached to eth1"],
            "interfaces": [
                {"name": "eth0", "attached": true, "xdp_mode": "native", "program_id": 77, "generation": 3},
                {"name": "eth1", "attached": false, "xdp_mode": "native", "program_id": 0, "generation": 0,
                 "trouble": "it has a program of other software"},
            ],
            "policy": {"path": "/etc/guard/guard.toml", "sha256": "0123456789abcdef", "services": 2,
                       "loaded_at": "2026-11-30T09:45:01Z",
                       "stale": "/etc/guard/guard.toml is not what is in force",
                       "stale_advice": "`guard diff` shows the difference"},
            "entries": 2, "page": null, "closed": [],
            "warnings": ["no conntrack"],
            "not_kept": "the disk is full",
        }));
        insta::assert_snapshot!(describe(&troubled).unwrap(), @r"
        guard is NOT ENFORCING, although the mode is enforce
          because the program is not attached to eth1
        closed     every port that no service lists; no published port
        open       2 ports by the policy: tcp/80, tcp/443
        on         eth0, eth1 (NOT ATTACHED)
        interface  eth1: NOT ATTACHED (it has a program of other software)
        entries    2 temporary entries: `guard list` shows them
        STALE      /etc/guard/guard.toml is not what is in force: `guard diff` shows the difference
        warning    no conntrack
        state      LOST AT THE NEXT START: the disk is full
        ");
    }

    #[test]
    fn an_interface_without_a_program_shows_no_numbers_of_one() {
        let interface = InterfaceStatus {
            name: "nuv9".to_owned(),
            attached: false,
            xdp_mode: "native".to_owned(),
            program_id: 0,
            generation: 0,
            trouble: Some("there is no such interface".to_owned()),
        };
        assert_eq!(
            describe_interface(&interface),
            "nuv9: NOT ATTACHED (there is no such interface)"
        );
    }

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
            joined(&all, &BTreeMap::new()).join(", "),
            "203.0.113.11:tcp/443-444, tcp/8000-9999, tcp/65535, udp/53"
        );
        let media = (8_000..=8_999).map(|port| (format!("tcp/{port}"), "media".to_owned()));
        assert_eq!(
            joined(&all, &media.collect()).join(", "),
            "203.0.113.11:tcp/443-444, tcp/8000-8999 (media), tcp/9000-9999, tcp/65535, udp/53"
        );
        assert!(joined(&[], &BTreeMap::new()).is_empty());
    }
}
