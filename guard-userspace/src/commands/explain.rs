//! `guard explain`: explains whether a source reaches a port, and why.

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use guard_common::reason::Reason;

use super::{
    DEFAULT_POLICY, Failure, Output,
    colour::{Tone, paint_first_line},
    figures, print, print_json, print_warning, read_policy,
};
use crate::{
    agent::{find_once, plan::chosen_by},
    api::{
        ConcernedSource, ExplainRequest, RecentPackets, ServiceVerdict, SourceRequest,
        client::Client,
    },
    explain::{
        Destination, ExplainInput, Explanation, Seen, SourceExplanation, Step, explain,
        explain_source,
    },
    host::{self, Host},
    policy::{Containers, KernelTick, Policy, labels},
    without_agent,
};

#[derive(Debug, Args)]
pub struct Explain {
    /// The source's address
    #[arg(
        value_name = "ADDR",
        required_unless_present = "from",
        conflicts_with = "from"
    )]
    source: Option<IpAddr>,
    /// The source's address: the same as ADDR
    #[arg(long, value_name = "ADDR")]
    from: Option<IpAddr>,
    /// The destination: 80, 8000/tcp, 203.0.113.5:8000/tcp, [2001:db8::5]:53/udp, icmp, 112/proto, or a service. If
    /// left out, the verdict at each service
    #[arg(long, value_name = "[ADDR:]PORT[/PROTO]|SERVICE")]
    to: Option<String>,
    /// Explain this policy instead of the policy in force
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

impl Explain {
    pub async fn run(self, client: &Client, pins: &Path) -> Result<(), Failure> {
        let Self {
            source,
            from,
            to,
            policy,
            output: Output { json },
        } = self;
        let Some(from) = source.or(from) else {
            // clap requires one of them.
            return Err(Failure::Usage(
                "explain needs the source's address".to_owned(),
            ));
        };
        // The kernel may have another policy, and has what operators have changed.
        let is_guess = policy.is_none() && !client.has_agent();
        let policy = match policy {
            None if client.has_agent() => None,
            Some(policy) => Some(policy),
            None => {
                let path = policy_in_force(pins);
                print_warning(&format!(
                    "no agent answers: this is the verdict of {}, without the entries and modes of operators",
                    path.display()
                ));
                Some(path)
            }
        };
        match to {
            Some(to) => {
                explain_packet(
                    client,
                    policy.as_deref(),
                    from,
                    to,
                    ExplainForm { json, is_guess },
                )
                .await
            }
            None => explain_services(client, policy.as_deref(), from, json).await,
        }
    }
}

/// How an explanation is printed.
#[derive(Clone, Copy)]
struct ExplainForm {
    json: bool,
    /// It is made without an agent, of a file that may not be in force.
    is_guess: bool,
}

/// Explains one packet: by this policy file, or by the agent.
async fn explain_packet(
    client: &Client,
    policy: Option<&Path>,
    from: IpAddr,
    to: String,
    ExplainForm { json, is_guess }: ExplainForm,
) -> Result<(), Failure> {
    if let Err(problem) = to.parse::<Destination>()
        && !Destination::may_be_service(&to)
    {
        return Err(Failure::Usage(problem));
    }
    let explanation = match policy {
        None => client.explain(&ExplainRequest { from, to }).await?,
        Some(path) => {
            let read = ReadPolicy::new(path).await?;
            let to = Destination::find(&to, &read.policy).map_err(Failure::Usage)?;
            Explanation {
                file: Some(path.display().to_string()),
                ..explain(&read.input()?, from, &to)?
            }
        }
    };
    if json {
        return Ok(print_json(&explanation)?);
    }
    let mut text = describe(&explanation).map_err(anyhow::Error::from)?;
    if is_guess {
        text.insert_str(
            0,
            "PERHAPS (no agent answers, so this is what the file says): ",
        );
    }
    Ok(print(&paint_first_line(tone(&explanation), &text))?)
}

/// Explains what becomes of a source at each service: by this policy file, or by the agent.
async fn explain_services(
    client: &Client,
    policy: Option<&Path>,
    from: IpAddr,
    json: bool,
) -> Result<(), Failure> {
    let explanation = match policy {
        None => client.explain_source(&SourceRequest { from }).await?,
        Some(path) => SourceExplanation {
            file: Some(path.display().to_string()),
            ..explain_source(&ReadPolicy::new(path).await?.input()?, from)?
        },
    };
    if json {
        return Ok(print_json(&explanation)?);
    }
    Ok(print(
        &describe_source(&explanation).map_err(anyhow::Error::from)?,
    )?)
}

/// The file of the policy that the kernel applies without an agent, or the default path.
fn policy_in_force(pins: &Path) -> PathBuf {
    let status = without_agent::status(pins, String::new()).ok().flatten();
    status.map_or_else(|| DEFAULT_POLICY.into(), |status| status.policy.path.into())
}

/// A policy file and the state of this host, with the ports that Docker publishes at this moment.
struct ReadPolicy {
    policy: Policy,
    containers: Containers,
    tick_ns: u64,
    own: Vec<IpAddr>,
    own_sources: BTreeSet<IpAddr>,
}

impl ReadPolicy {
    async fn new(path: &Path) -> Result<Self, Failure> {
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
        Ok(Self {
            policy,
            containers: docker.containers,
            tick_ns,
            own,
            own_sources,
        })
    }

    fn input(&self) -> anyhow::Result<ExplainInput<'_>> {
        Ok(ExplainInput {
            policy: &self.policy,
            containers: &self.containers,
            local_ports: host::local_port_range()?,
            now: host::timebase()?,
            tick_ns: self.tick_ns,
            own: &self.own,
            own_sources: &self.own_sources,
            entries: &[],
        })
    }
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
        && !is_mostly_dropped(explanation)
        && recent.dropped > 0
    {
        writeln!(text, "{}", recent_drops(recent))?;
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
    let here = recent
        .as_ref()
        .filter(|recent| is_about(explanation, recent));
    let Some(recent) = here else {
        let passes = format!("{}: {reason}{at}", becomes(verdict, would.as_deref()));
        return match recent.as_ref().filter(|_| is_mostly_dropped(explanation)) {
            Some(recent) => format!(
                "{}: {} of its packets to any port in the last {}, the last for {}. A first packet {passes}",
                if recent.would_drop >= recent.dropped {
                    "WOULD MOSTLY BE DROPPED"
                } else {
                    "MOSTLY DROPPED"
                },
                percent(recent.dropped, recent.packets),
                minute(recent.seconds),
                recent_reason(recent),
            ),
            None => passes,
        };
    };
    let minute = minute(recent.seconds);
    let percent = percent(recent.for_reason, recent.packets);
    let whole = figures::whole(recent.for_reason);
    let last = recent_reason(recent);
    let is_would = recent.would_drop >= recent.for_reason;
    if recent.no_longer_applies {
        let were = if is_would {
            "counted as drops"
        } else {
            "dropped"
        };
        let dropped = if is_of_connections(recent) {
            format!("about {whole} new connections ({percent} of its packets)")
        } else {
            format!("{percent} of its packets")
        };
        return format!(
            "PASSES NOW: {reason}{at}; in the last {minute} {dropped} were {were}, the last for {last}, which no longer \
             applies."
        );
    }
    let is_most = recent.for_reason * 2 >= recent.packets;
    let word = match (is_of_connections(recent), is_most, is_would) {
        (true, _, false) => "NEW CONNECTIONS DROPPED",
        (true, _, true) => "NEW CONNECTIONS WOULD BE DROPPED",
        (false, true, false) => "MOSTLY DROPPED",
        (false, false, false) => "PARTLY DROPPED",
        (false, true, true) => "WOULD MOSTLY BE DROPPED",
        (false, false, true) => "WOULD PARTLY BE DROPPED",
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
    let dropped = if is_of_connections(recent) {
        format!("about {whole} in the last {minute} ({percent} of its packets)")
    } else {
        format!("{percent} of its packets in the last {minute}")
    };
    format!("{word}: {dropped}, the last for {last}. A first packet would pass{facts}.")
}

/// The word for a verdict.
fn becomes(verdict: &str, would: Option<&str>) -> &'static str {
    match (verdict, would) {
        ("drop", _) => "DROPPED",
        (_, Some(_)) => "PASSES, but would be dropped if enforced",
        (_, None) => "PASSES",
    }
}

/// Whether the recent drops were at the explained destination, and the explained packet passes.
fn is_about(explanation: &Explanation, recent: &RecentPackets) -> bool {
    explanation.reason_is_pass() && recent.is_same_destination && recent.for_reason > 0
}

/// Whether the explained packet passes, and most packets of its source were dropped at whatever port. The sample has the
/// reason for the last drop alone, so drops at this destination may be among them.
fn is_mostly_dropped(explanation: &Explanation) -> bool {
    let is_most = |recent: &RecentPackets| {
        !is_about(explanation, recent)
            && !recent.no_longer_applies
            && recent.dropped * 2 >= recent.packets
    };
    let recent = explanation
        .recent
        .as_ref()
        .filter(|recent| recent.dropped > 0);
    explanation.reason_is_pass() && recent.is_some_and(is_most)
}

/// Whether the last drop was that of a new connection: packets of open connections are not charged to that budget, so
/// a small share of the packets may be every new connection.
fn is_of_connections(recent: &RecentPackets) -> bool {
    recent.reason.as_deref() == Some(Reason::ConnectionLimit.name())
}

/// The drops of a source at any destination. The sample has the reason for the last one alone.
fn recent_drops(recent: &RecentPackets) -> String {
    format!(
        "To any port in the last {}, {} of its packets were {}, the last for {}.{}{}",
        minute(recent.seconds),
        percent(recent.dropped, recent.packets),
        if recent.would_drop >= recent.dropped {
            "counted as packets that would be dropped"
        } else {
            "dropped"
        },
        recent_reason(recent),
        if is_of_connections(recent) {
            " That budget drops new connections alone."
        } else {
            ""
        },
        if recent.no_longer_applies {
            " That reason no longer applies."
        } else {
            ""
        }
    )
}

fn recent_reason(recent: &RecentPackets) -> String {
    let reason = recent.reason.as_deref().unwrap_or("an earlier reason");
    match (&recent.service, &recent.port) {
        (Some(service), _) => format!("{reason} at {service}"),
        (None, Some(port)) => format!("{reason} {port}"),
        (None, None) => reason.to_owned(),
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
    let drops =
        drops.is_some_and(|recent| is_about(explanation, recent) && !recent.no_longer_applies);
    match (explanation.verdict.as_str(), &explanation.would) {
        ("drop", _) => Tone::Bad,
        (_, Some(_)) => Tone::Notice,
        _ if drops || is_mostly_dropped(explanation) => Tone::Bad,
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
    let about = |packets: u64| format!("about {}", figures::whole(packets));
    let really = dropped.saturating_sub(*would_drop);
    let became: Vec<String> = [
        (really > 0).then(|| format!("{} dropped", about(really))),
        (*would_drop > 0).then(|| format!("{} would be dropped if enforced", about(*would_drop))),
    ]
    .into_iter()
    .flatten()
    .collect();
    let became = match became.as_slice() {
        [] => "none of the sampled ones was dropped".to_owned(),
        became => became.join(", "),
    };
    writeln!(
        text,
        "Estimated from one packet in sixteen: {} packets of this source so far, {became}. A few dozen drops may not \
         show here: `guard counters` is exact, and `guard capture --from` shows each.",
        about(*packets)
    )
}

/// What becomes of a source, in words: its recent packets, what concerns it, and a line for each service.
fn describe_source(explanation: &SourceExplanation) -> Result<String, fmt::Error> {
    let SourceExplanation {
        source,
        services,
        unreachable,
        entries,
        sources,
        file,
        recent,
        seen,
    } = explanation;
    let mut text = String::new();
    let named = services.iter().filter(|row| row.service.is_some());
    let passing = named.clone().filter(|row| row.verdict == "pass");
    writeln!(
        text,
        "{source}: a first packet passes at {} of {} services",
        passing.count(),
        named.count() + unreachable.len()
    )?;
    if let Some(recent) = recent.as_ref().filter(|recent| recent.dropped > 0) {
        writeln!(text, "{}", recent_drops(recent))?;
    }
    for entry in entries {
        writeln!(text, "{entry}")?;
    }
    for source in sources {
        writeln!(text, "{}", describe_concerned(source, file.as_deref()))?;
    }
    let rows: Vec<(String, String)> = services.iter().map(service_row).collect();
    let widths = rows.iter().map(|(ports, _)| ports.chars().count());
    let width = widths.max().unwrap_or_default();
    for (ports, becomes) in rows {
        writeln!(text, "  {ports:<width$}  {becomes}")?;
    }
    for service in unreachable {
        let version = if source.is_ipv4() { "IPv4" } else { "IPv6" };
        writeln!(text, "  {service}: no port or address over {version}")?;
    }
    if let Some(first) = services.iter().find_map(|row| row.service.as_ref()) {
        writeln!(
            text,
            "`guard explain {source} --to {first}` shows each step at a service, and what to type."
        )?;
    }
    if let Some(seen) = seen {
        describe_seen(&mut text, seen)?;
    }
    Ok(text)
}

/// The most ports that a row names.
const MOST_PORTS: usize = 4;

/// The service with its ports, and what becomes of a first packet.
fn service_row(row: &ServiceVerdict) -> (String, String) {
    let ServiceVerdict {
        service,
        ports,
        verdict,
        would,
        reason,
        line,
        entry,
    } = row;
    let mut listed: Vec<String> = ports.iter().take(MOST_PORTS).cloned().collect();
    if ports.len() > MOST_PORTS {
        listed.push(format!("+{}", ports.len() - MOST_PORTS));
    }
    let listed = listed.join(", ");
    let what = match service {
        Some(service) => format!("{service} ({listed})"),
        None if ports.is_empty() => "every other port".to_owned(),
        None => format!("published by containers ({listed})"),
    };
    let decided = match (entry, line) {
        (Some(entry), _) => format!(" (entry {entry})"),
        (None, Some(line)) => format!(" (line {line})"),
        (None, None) => String::new(),
    };
    let becomes = becomes(verdict, would.as_deref());
    (what, format!("{becomes}: {reason}{decided}"))
}

/// `line 12 of guard.toml: "office" has 10 times every budget`.
fn describe_concerned(source: &ConcernedSource, file: Option<&str>) -> String {
    let ConcernedSource {
        name,
        line,
        treatment,
        factor,
        expires,
    } = source;
    let what = match (treatment.as_str(), factor) {
        (_, Some(factor)) => format!("has {factor} times every budget"),
        ("exempt", _) => "is never limited".to_owned(),
        ("deny", _) => "is denied".to_owned(),
        _ => "is a name for `from`".to_owned(),
    };
    let file = file.map_or("the policy", file_name);
    let until = expires.map(|expires| format!(", until {expires}"));
    format!(
        "[[source]] in line {line} of {file}: \"{name}\" {what}{}",
        until.unwrap_or_default()
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
        MOSTLY DROPPED: 96 % of its packets in the last minute, the last for packet_limit at proxy. A first packet would pass (guard.toml line 26: packets 2k/s).
        -> if it is a real user: `guard allow 198.51.100.66 --service proxy --for 2h` lifts its budgets now
        a connection attempt (TCP SYN) to port 443 from 198.51.100.66 to 203.0.113.10
          which service?       service "proxy" lists tcp/443 (line 26)
        Line 26 of /etc/guard/guard.toml decided.
        Estimated from one packet in sixteen: about 573,000 packets of this source so far, about 552,000 dropped. A few dozen drops may not show here: `guard counters` is exact, and `guard capture --from` shows each.
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
            "PARTLY DROPPED: less than 1 % of its packets in the last 20 s, the last for packet_limit at proxy. A first \
             packet would pass (guard.toml line 26)."
        );
        let observed = recent(json!({"would_drop": 552_000}));
        assert_eq!(
            headline_of(json!({"recent": observed})),
            "WOULD MOSTLY BE DROPPED: 96 % of its packets in the last minute, the last for packet_limit at proxy. A first \
             packet would pass (guard.toml line 26: packets 2k/s)."
        );
    }

    #[test]
    fn a_small_share_of_the_packets_may_be_every_new_connection() {
        let syns = json!({
            "packets": 480, "dropped": 64, "for_reason": 64, "reason": "connection_limit", "service": "proxy",
            "limit": "connections 1/s with a burst of 1",
        });
        let limited = explanation(json!({"recent": recent(syns.clone())}));
        assert_eq!(
            headline(&limited),
            "NEW CONNECTIONS DROPPED: about 64 in the last minute (13 % of its packets), the last for connection_limit \
             at proxy. A first packet would pass (guard.toml line 26: connections 1/s with a burst of 1)."
        );
        let mut observed = syns;
        observed["would_drop"] = json!(64);
        let observed = headline(&explanation(json!({"recent": recent(observed)})));
        assert!(
            observed.starts_with("NEW CONNECTIONS WOULD BE DROPPED: about 64"),
            "{observed}"
        );
    }

    #[test]
    fn after_the_fix_the_headline_is_what_happens_now() {
        let fixed = |facts: Value| {
            let mut recent = recent(facts);
            recent["no_longer_applies"] = json!(true);
            explanation(json!({"recent": recent}))
        };
        let allowed = fixed(json!({
            "packets": 480, "dropped": 64, "for_reason": 64, "reason": "connection_limit",
        }));
        insta::assert_snapshot!(headline(&allowed), @"PASSES NOW: allowed at proxy; in the last minute about 64 new connections (13 % of its packets) were dropped, the last for connection_limit at proxy, which no longer applies.");
        assert_eq!(tone(&allowed), Tone::Good);
        let revoked = fixed(json!({"reason": "denied_source", "service": null, "limit": null}));
        insta::assert_snapshot!(headline(&revoked), @"PASSES NOW: allowed at proxy; in the last minute 96 % of its packets were dropped, the last for denied_source, which no longer applies.");
    }

    #[test]
    fn after_a_denial_its_reason_is_not_said_to_be_that_of_all_drops() {
        let denied = explanation(json!({
            "verdict": "drop", "reason": "denied_source", "service": null, "line": null, "entry": 3,
            "recent": recent(json!({"reason": "denied_source", "service": null})),
        }));
        let text = describe(&denied).unwrap();
        let lines: Vec<&str> = text.lines().take(2).collect();
        assert_eq!(
            lines,
            [
                "DROPPED: denied_source",
                "To any port in the last minute, 96 % of its packets were dropped, the last for denied_source."
            ]
        );
    }

    #[test]
    fn drops_whose_reason_no_longer_applies_are_said_to_be_past() {
        let past = recent(json!({
            "reason": "denied_source", "service": null, "no_longer_applies": true,
        }));
        assert_eq!(
            recent_drops(&serde_json::from_value(past).unwrap()),
            "To any port in the last minute, 96 % of its packets were dropped, the last for denied_source. That reason \
             no longer applies."
        );
    }

    #[test]
    fn a_sample_without_drops_is_no_proof_that_there_were_none() {
        let few = explanation(json!({"seen": {"packets": 336, "dropped": 0, "would_drop": 0}}));
        let text = describe(&few).unwrap();
        assert!(
            text.contains(
                "about 336 packets of this source so far, none of the sampled ones was dropped."
            ),
            "{text}"
        );
    }

    #[test]
    fn without_a_destination_each_service_has_a_line() {
        let source: SourceExplanation = serde_json::from_value(json!({
            "source": "198.51.100.66",
            "services": [
                {"service": "web", "ports": ["tcp/80", "tcp/443"], "verdict": "pass", "reason": "allowed", "line": 14},
                {"service": "metrics", "ports": ["tcp/9100"], "verdict": "pass", "reason": "allowed", "line": null,
                 "entry": 3},
                {"service": "ssh", "ports": ["tcp/22"], "verdict": "pass", "would": "drop",
                 "reason": "source_not_allowed", "line": 30},
                {"service": null, "ports": ["tcp/1", "tcp/2", "tcp/3", "tcp/4", "tcp/5"], "verdict": "drop",
                 "reason": "closed_port", "line": null},
                {"service": null, "ports": [], "verdict": "drop", "reason": "closed_port", "line": null},
            ],
            "unreachable": ["mail"],
            "entries": [{
                "id": 4, "action": "deny", "prefix": "198.51.100.66/32", "service": null, "owner": null, "reason": null,
                "by": "root", "created": "2026-11-30T09:45:01Z", "expires": null, "overridden_by": [3],
            }],
            "sources": [{"name": "office", "line": 9, "treatment": "factor", "factor": 10, "expires": null}],
            "file": "/etc/guard/guard.toml",
            "recent": recent(json!({"reason": "connection_limit", "packets": 480, "dropped": 64})),
            "seen": {"packets": 480, "dropped": 64, "would_drop": 0},
        }))
        .unwrap();
        insta::assert_snapshot!(describe_source(&source).unwrap(), @r#"
        198.51.100.66: a first packet passes at 3 of 4 services
        To any port in the last minute, 13 % of its packets were dropped, the last for connection_limit at proxy. That budget drops new connections alone.
        entry 4 denies 198.51.100.66/32, entered by root, without an end; entry 3 overrides it: `guard revoke 3` puts it in force
        [[source]] in line 9 of guard.toml: "office" has 10 times every budget
          web (tcp/80, tcp/443)                                     PASSES: allowed (line 14)
          metrics (tcp/9100)                                        PASSES: allowed (entry 3)
          ssh (tcp/22)                                              PASSES, but would be dropped if enforced: source_not_allowed (line 30)
          published by containers (tcp/1, tcp/2, tcp/3, tcp/4, +1)  DROPPED: closed_port
          every other port                                          DROPPED: closed_port
          mail: no port or address over IPv4
        `guard explain 198.51.100.66 --to web` shows each step at a service, and what to type.
        Estimated from one packet in sixteen: about 480 packets of this source so far, about 64 dropped. A few dozen drops may not show here: `guard counters` is exact, and `guard capture --from` shows each.
        "#);
    }

    #[test]
    fn drops_at_another_port_come_behind_the_verdict_unless_most_packets_were_dropped() {
        let first_lines = |dropped: u64| {
            let elsewhere = explanation(json!({
                "recent": recent(json!({
                    "reason": "closed_port", "service": null, "port": "tcp/8000", "is_same_destination": false,
                    "packets": 1_000, "dropped": dropped,
                })),
            }));
            let text = describe(&elsewhere).unwrap();
            text.lines().take(2).collect::<Vec<&str>>().join("\n")
        };
        assert_eq!(
            first_lines(400),
            "PASSES: allowed at proxy\nTo any port in the last minute, 40 % of its packets were dropped, the last for \
             closed_port tcp/8000."
        );
        // The sample has the reason for the last drop alone: others may have been at this port.
        assert_eq!(
            first_lines(960).lines().next(),
            Some(
                "MOSTLY DROPPED: 96 % of its packets to any port in the last minute, the last for closed_port tcp/8000. \
                 A first packet PASSES: allowed at proxy"
            )
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
