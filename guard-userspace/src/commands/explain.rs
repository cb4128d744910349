//! `guard explain`: explains whether a source reaches a port, and why.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;

use super::{
    DEFAULT_POLICY, Failure, Output,
    colour::{Tone, paint_first_line},
    figures, print, print_json, print_warning, read_policy,
};
use crate::{
    agent::{find_once, plan::chosen_by},
    api::{ExplainRequest, RecentPackets, client::Client},
    explain::{Destination, ExplainInput, Explanation, Seen, Step, explain},
    host::{self, Host},
    policy::{KernelTick, labels},
    without_agent,
};

#[derive(Debug, Args)]
pub struct Explain {
    /// The source's address
    #[arg(long, value_name = "ADDR")]
    from: IpAddr,
    /// The destination: 8000/tcp, 203.0.113.5:8000/tcp, [2001:db8::5]:53/udp, icmp, 112/proto
    #[arg(long, value_name = "[ADDR:]PORT/PROTO")]
    to: String,
    /// Explain this policy instead of the policy in force
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

impl Explain {
    pub async fn run(self, client: &Client, pins: &Path) -> Result<(), Failure> {
        let Self {
            from,
            to,
            policy,
            output: Output { json },
        } = self;
        let destination = to.parse::<Destination>().map_err(Failure::Usage)?;
        let explanation = match policy {
            None if client.has_agent() => client.explain(&ExplainRequest { from, to }).await?,
            Some(policy) => explain_file(&policy, from, &destination).await?,
            None => {
                let path = policy_in_force(pins);
                print_warning(&format!(
                    "no agent answers: this is the verdict of {}, without the entries and modes of operators",
                    path.display()
                ));
                explain_file(&path, from, &destination).await?
            }
        };
        if json {
            print_json(&explanation)?;
        } else {
            let text = describe(&explanation).map_err(anyhow::Error::from)?;
            print(&paint_first_line(tone(&explanation), &text))?;
        }
        Ok(())
    }
}

/// The file of the policy that the kernel applies without an agent, or the default path.
fn policy_in_force(pins: &Path) -> PathBuf {
    let status = without_agent::status(pins, String::new()).ok().flatten();
    status.map_or_else(|| DEFAULT_POLICY.into(), |status| status.policy.path.into())
}

/// Explains a policy file, with the ports that Docker publishes at this moment.
async fn explain_file(path: &Path, from: IpAddr, to: &Destination) -> Result<Explanation, Failure> {
    let policy = read_policy(path)?;
    let host = Host::read_once().context("this host cannot be read")?;
    let docker = find_once(&policy, &host).await;
    let own: Vec<IpAddr> = match host.own_addresses() {
        Some(own) => own.into_iter().collect(),
        None => {
            let why = host.addresses.error.unwrap_or_default();
            return Err(anyhow::anyhow!("this host's addresses cannot be read: {why}").into());
        }
    };
    let tick_ns = host.tick_ns;
    let interfaces = chosen_by(&host, &policy);
    let own_sources = host.own_sources(&interfaces).unwrap_or_default();
    let (policy, _) = labels::apply(&policy, &docker.containers, KernelTick { tick_ns });
    let situation = ExplainInput {
        policy: &policy,
        containers: &docker.containers,
        local_ports: host::local_port_range().map_err(anyhow::Error::from)?,
        now: host::timebase().map_err(anyhow::Error::from)?,
        tick_ns,
        own: &own,
        own_sources: &own_sources,
        entries: &[],
    };
    let explanation = explain(&situation, from, to)?;
    Ok(Explanation {
        file: Some(path.display().to_string()),
        ..explanation
    })
}

/// The explanation in words. The first line is what becomes of the source's packets, and the last what to type.
pub fn describe(explanation: &Explanation) -> Result<String, fmt::Error> {
    let Explanation {
        verdict: _,
        would: _,
        reason: _,
        service: _,
        packet,
        steps,
        line,
        file,
        entry,
        advice,
        recent,
        seen,
        over_budget: _,
    } = explanation;
    let mut text = String::new();
    writeln!(text, "{}", headline(explanation))?;
    if let Some(recent) = recent
        && !is_about(explanation, recent)
        && recent.dropped > 0
    {
        writeln!(
            text,
            "Of its packets to any port in the last {}, {} were {}: {}.",
            minute(recent.seconds),
            percent(recent.dropped, recent.packets),
            dropped_or_would(recent),
            recent_reason(recent)
        )?;
    }
    if let Some(advice) = advice {
        writeln!(text, "-> {advice}")?;
    }
    writeln!(text, "{packet}")?;
    for Step {
        step,
        finding,
        line,
    } in steps
    {
        let place = line
            .map(|line| format!(" (line {line})"))
            .unwrap_or_default();
        writeln!(text, "  {step:<20} {finding}{place}")?;
    }
    let file = file.as_deref().unwrap_or("the policy");
    match (line, entry) {
        (_, Some(entry)) => writeln!(text, "Entry {entry} decided: `guard list` shows it.")?,
        (Some(line), None) => writeln!(text, "Line {line} of {file} decided.")?,
        (None, None) => writeln!(text, "No line of {file} decided.")?,
    }
    if let Some(seen) = seen {
        describe_seen(&mut text, seen)?;
    }
    Ok(text)
}

/// What becomes of the source's packets. A first packet may pass although most of its packets are dropped.
fn headline(explanation: &Explanation) -> String {
    let Explanation {
        verdict,
        would,
        reason,
        service,
        line,
        file,
        recent,
        ..
    } = explanation;
    let at = service.as_ref().map(|service| format!(" at {service}"));
    let at = at.unwrap_or_default();
    if verdict == "drop" {
        return format!("DROPPED: {reason}{at}");
    }
    if would.is_some() {
        return format!("PASSES, but would be dropped if enforced: {reason}{at}");
    }
    let Some(recent) = recent
        .as_ref()
        .filter(|recent| is_about(explanation, recent))
    else {
        return format!("PASSES: {reason}{at}");
    };
    let is_most = recent.for_reason * 2 >= recent.packets;
    let would = recent.would_drop >= recent.for_reason;
    let word = match (is_most, would) {
        (true, false) => "MOSTLY DROPPED",
        (false, false) => "PARTLY DROPPED",
        (true, true) => "WOULD MOSTLY BE DROPPED",
        (false, true) => "WOULD PARTLY BE DROPPED",
    };
    let file = file.as_deref().map(file_name);
    let place = file
        .zip(*line)
        .map(|(file, line)| format!("{file} line {line}"));
    let facts: Vec<String> = [place, recent.limit.clone()]
        .into_iter()
        .flatten()
        .collect();
    let facts = match facts.as_slice() {
        [] => String::new(),
        facts => format!(" ({})", facts.join(": ")),
    };
    format!(
        "{word}: {}, {} of its packets in the last {}. A first packet would pass{facts}.",
        recent_reason(recent),
        percent(recent.for_reason, recent.packets),
        minute(recent.seconds)
    )
}

/// Whether the recent drops were at the explained destination, and the explained packet passes.
fn is_about(explanation: &Explanation, recent: &RecentPackets) -> bool {
    explanation.reason_is_pass() && recent.is_same_destination && recent.for_reason > 0
}

fn recent_reason(recent: &RecentPackets) -> String {
    let reason = recent.reason.as_deref().unwrap_or("an earlier reason");
    match (&recent.service, &recent.port) {
        (Some(service), _) => format!("{reason} at {service}"),
        (None, Some(port)) => format!("{reason} {port}"),
        (None, None) => reason.to_owned(),
    }
}

fn dropped_or_would(recent: &RecentPackets) -> &'static str {
    if recent.would_drop >= recent.dropped {
        "counted as packets that would be dropped"
    } else {
        "dropped"
    }
}

/// The agent reads the talkers every ten seconds, so a minute is not exactly 60 s.
fn minute(seconds: u64) -> String {
    match seconds {
        50..=80 => "minute".to_owned(),
        seconds => format!("{seconds} s"),
    }
}

/// Never 100 % unless it is all, and never 0 % unless it is none.
fn percent(part: u64, whole: u64) -> String {
    match (part * 100).checked_div(whole) {
        _ if part >= whole => "100 %".to_owned(),
        Some(0) if part > 0 => "less than 1 %".to_owned(),
        Some(percent) => format!("{percent} %"),
        None => "0 %".to_owned(),
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The colour of the headline.
fn tone(explanation: &Explanation) -> Tone {
    let drops = explanation.recent.as_ref();
    let drops = drops.is_some_and(|recent| is_about(explanation, recent));
    match (explanation.verdict.as_str(), &explanation.would) {
        ("drop", _) => Tone::Bad,
        (_, Some(_)) => Tone::Notice,
        _ if drops => Tone::Bad,
        _ => Tone::Good,
    }
}

fn describe_seen(text: &mut String, seen: &Seen) -> fmt::Result {
    let Seen {
        packets,
        dropped,
        would_drop,
        port: _,
        reason: _,
        service: _,
    } = seen;
    if *packets == 0 {
        return writeln!(
            text,
            "No packet of this source is in the sample (one packet in sixteen, of the busiest sources): it sends little."
        );
    }
    writeln!(
        text,
        "Estimated from one packet in sixteen: {} packets of this source so far, {} dropped, {} would be dropped if \
         enforced. A few dozen drops may not show here: `guard counters` is exact, and `guard capture --from` shows \
         each.",
        figures::whole(*packets),
        figures::whole(dropped.saturating_sub(*would_drop)),
        figures::whole(*would_drop)
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn explanation(facts: Value) -> Explanation {
        let mut whole = json!({
            "verdict": "pass", "reason": "allowed", "service": "proxy",
            "packet": "a connection attempt (TCP SYN) to port 443 from 198.51.100.66 to 203.0.113.10",
            "steps": [{"step": "which service?", "finding": "service \"proxy\" lists tcp/443", "line": 26}],
            "line": 26, "file": "/etc/guard/guard.toml",
            "seen": {"packets": 573_000, "dropped": 552_000, "would_drop": 0},
        });
        for (key, value) in facts.as_object().unwrap() {
            whole[key] = value.clone();
        }
        serde_json::from_value(whole).unwrap()
    }

    fn recent(facts: Value) -> Value {
        let mut whole = json!({
            "packets": 573_000, "dropped": 552_000, "would_drop": 0, "for_reason": 552_000, "seconds": 60,
            "reason": "packet_limit", "service": "proxy", "port": null, "is_same_destination": true,
            "limit": "packets 2k/s",
        });
        for (key, value) in facts.as_object().unwrap() {
            whole[key] = value.clone();
        }
        whole
    }

    #[test]
    fn during_a_flood_the_first_line_says_that_most_is_dropped_and_the_second_what_to_type() {
        let flood = explanation(json!({
            "recent": recent(json!({})),
            "advice": "if it is a real user: `guard allow 198.51.100.66 --service proxy --for 2h` lifts its budgets now",
        }));
        insta::assert_snapshot!(describe(&flood).unwrap(), @r#"
        MOSTLY DROPPED: packet_limit at proxy, 96 % of its packets in the last minute. A first packet would pass (guard.toml line 26: packets 2k/s).
        -> if it is a real user: `guard allow 198.51.100.66 --service proxy --for 2h` lifts its budgets now
        a connection attempt (TCP SYN) to port 443 from 198.51.100.66 to 203.0.113.10
          which service?       service "proxy" lists tcp/443 (line 26)
        Line 26 of /etc/guard/guard.toml decided.
        Estimated from one packet in sixteen: 573,000 packets of this source so far, 552,000 dropped, 0 would be dropped if enforced. A few dozen drops may not show here: `guard counters` is exact, and `guard capture --from` shows each.
        "#);
        assert_eq!(tone(&flood), Tone::Bad);
    }

    #[test]
    fn each_headline_is_what_becomes_of_the_packets() {
        let headline_of = |facts: Value| headline(&explanation(facts));
        assert_eq!(headline_of(json!({})), "PASSES: allowed at proxy");
        assert_eq!(
            headline_of(json!({"verdict": "drop", "reason": "closed_port", "service": null})),
            "DROPPED: closed_port"
        );
        assert_eq!(
            headline_of(json!({"would": "drop", "reason": "packet_limit"})),
            "PASSES, but would be dropped if enforced: packet_limit at proxy"
        );
        let some = recent(
            json!({"dropped": 10, "for_reason": 10, "packets": 4_000, "seconds": 20, "limit": null}),
        );
        assert_eq!(
            headline_of(json!({"recent": some})),
            "PARTLY DROPPED: packet_limit at proxy, less than 1 % of its packets in the last 20 s. A first packet would \
             pass (guard.toml line 26)."
        );
        let observed = recent(json!({"would_drop": 552_000}));
        assert_eq!(
            headline_of(json!({"recent": observed})),
            "WOULD MOSTLY BE DROPPED: packet_limit at proxy, 96 % of its packets in the last minute. A first packet \
             would pass (guard.toml line 26: packets 2k/s)."
        );
    }

    #[test]
    fn drops_at_another_port_are_told_behind_the_verdict() {
        let elsewhere = explanation(json!({
            "recent": recent(json!({
                "reason": "closed_port", "service": null, "port": "tcp/8000", "is_same_destination": false,
            })),
        }));
        let text = describe(&elsewhere).unwrap();
        let lines: Vec<&str> = text.lines().take(2).collect();
        assert_eq!(
            lines,
            [
                "PASSES: allowed at proxy",
                "Of its packets to any port in the last minute, 96 % were dropped: closed_port tcp/8000."
            ]
        );
    }

    #[test]
    fn the_entry_that_decided_is_named() {
        let denied = explanation(json!({
            "verdict": "drop", "reason": "denied_source", "service": null, "line": null, "entry": 3,
            "advice": "`guard revoke 3` ends the entry",
        }));
        let text = describe(&denied).unwrap();
        assert!(text.contains("Entry 3 decided"), "{text}");
        assert_eq!(
            text.lines().nth(1),
            Some("-> `guard revoke 3` ends the entry")
        );
    }
}
