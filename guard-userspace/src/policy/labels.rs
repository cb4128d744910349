//! What the labels of containers ask of the guard. The owner of the policy decides, not the author of a
//! compose file: labels only take away from what the policy allows, unless it says otherwise.
//!
//! The ports of such a container become a service of their own, named after the one that lists them and
//! the container.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use guard_common::{
    layout::{MAX_ADMITTED, MAX_NAME, MAX_SERVICES, PortProtocol, port_index},
    reason::Mode,
};
use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::{
    Admitted, Budget, Budgets, Clock, Containers, From, Labelled, Labels, Limit, Policy, Ports,
    Service, check, file,
};

const FROM: &str = "guard.from";
const LIMIT: &str = "guard.limit.";

/// Between the name of a service and of a container: no name of a policy has it.
const AT: char = '@';

/// A policy with what the labels of containers ask for, and what they ask for in vain.
pub fn apply(policy: &Policy, containers: &Containers, clock: Clock) -> (Policy, Vec<String>) {
    let mut applied = policy.clone();
    let mut warnings = Vec::new();
    if policy.docker_labels == Labels::Off {
        return (applied, warnings);
    }
    for labelled in &containers.labelled {
        let mut complaints = Vec::new();
        let asked = Asked::read(&labelled.labels, policy, clock, &mut complaints);
        if asked != Asked::default() {
            add(&mut applied, policy, labelled, &asked, &mut complaints);
        }
        let container = &labelled.container;
        let complaints = complaints.into_iter();
        warnings.extend(complaints.map(|text| format!("container {container}: {text}")));
    }
    (applied, warnings)
}

/// The name that a policy gives a service, of one that labels have made.
pub fn base_name(name: &str) -> &str {
    name.split_once(AT).map_or(name, |(base, _)| base)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    from: Option<From>,
    limit: Budgets,
}

impl Asked {
    /// A label that cannot be read asks for nothing.
    fn read(
        labels: &BTreeMap<String, String>,
        policy: &Policy,
        clock: Clock,
        complaints: &mut Vec<String>,
    ) -> Self {
        let mut asked = Self::default();
        for (name, value) in labels {
            let read = match name.strip_prefix(LIMIT) {
                _ if name == FROM => read_from(value, policy).map(|from| asked.from = Some(from)),
                Some(kind @ ("packets" | "bytes" | "connections")) => {
                    read_limit(kind, value, clock).map(|limit| {
                        let Budgets {
                            packets,
                            bytes,
                            connections,
                        } = limit;
                        let Budgets {
                            packets: had_packets,
                            bytes: had_bytes,
                            connections: had_connections,
                        } = asked.limit;
                        asked.limit = Budgets {
                            packets: packets.or(had_packets),
                            bytes: bytes.or(had_bytes),
                            connections: connections.or(had_connections),
                        };
                    })
                }
                _ => Err(format!(
                    "no such label: {FROM}, {LIMIT}packets, {LIMIT}bytes and {LIMIT}connections are"
                )),
            };
            if let Err(problem) = read {
                complaints.push(format!("the label {name}={value:?} is ignored: {problem}"));
            }
        }
        asked
    }
}

/// `any`, CIDRs and names of sources, with commas between them.
fn read_from(value: &str, policy: &Policy) -> Result<From, String> {
    let words = value.split(',').map(str::trim);
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    if words.is_empty() {
        return Err("write \"any\", CIDRs, or names of sources".to_owned());
    }
    if words.contains(&"any") {
        return Ok(From::Any);
    }
    let mut admitted = Vec::new();
    for word in words {
        match policy.sources.iter().find(|source| source.name == word) {
            Some(source) => admitted.extend(source.cidrs.iter().map(|prefix| Admitted {
                prefix: *prefix,
                expires: source.expires,
            })),
            None => admitted.push(Admitted {
                prefix: check::parse_prefix(word)?,
                expires: None,
            }),
        }
    }
    Ok(From::Admitted(admitted))
}

/// As a policy writes it: `500/s`, or `{ rate = "50/s", burst = 200 }`.
fn read_limit(kind: &str, value: &str, clock: Clock) -> Result<Budgets, String> {
    let value = value.trim();
    let value = if value.starts_with('{') {
        let document: toml::Table = format!("value = {value}")
            .parse()
            .map_err(|error: toml::de::Error| error.message().to_owned())?;
        document.get("value").cloned()
    } else {
        Some(toml::Value::from(value))
    };
    let limit: toml::Table = value
        .map(|value| (kind.to_owned(), value))
        .into_iter()
        .collect();
    let text = toml::to_string(&limit).map_err(|error| error.to_string())?;
    let limit: file::Limit = toml::from_str(&text).map_err(|error| error.message().to_owned())?;
    let limit = check::check_limit(&limit, clock).map_err(|problem| problem.text)?;
    Ok(limit.budgets)
}

/// Adds the services that a container's labels make; all of them, or none if there is no room.
fn add(
    applied: &mut Policy,
    policy: &Policy,
    labelled: &Labelled,
    asked: &Asked,
    complaints: &mut Vec<String>,
) {
    let is_full = policy.docker_labels == Labels::Full;
    let published = labelled.published.iter();
    let mut places: BTreeSet<u32> = published
        .map(|port| port_index(port.protocol, port.port))
        .collect();
    let mut services = applied.services.clone();
    let mut made = Vec::new();
    for service in &mut services {
        let mine: BTreeSet<u32> = places_of(&service.ports)
            .flat_map(|range| places.range(range))
            .copied()
            .collect();
        places.retain(|place| !mine.contains(place));
        // Where labels open, what another container's have opened is its own.
        if mine.is_empty() || is_full && service.name.contains(AT) {
            continue;
        }
        let changed = if is_full {
            replaced(service, asked)
        } else {
            narrowed(service, asked, complaints)
        };
        if changed.from == service.from && changed.limit == service.limit {
            continue;
        }
        service.ports = without(&service.ports, &mine);
        made.push(Service {
            name: name(&service.name, &labelled.container),
            ports: ranges(&mine),
            ..changed
        });
    }
    if asked.from.is_some() && !places.is_empty() {
        let closed = ranges(&places);
        if is_full {
            made.push(opened(labelled, closed, asked));
        } else {
            let closed: Vec<String> = closed.iter().map(Ports::to_string).collect();
            complaints.push(format!(
                "the label {FROM} does not open {}, which no service of the policy lists: labels only \
                 narrow what the policy allows",
                closed.join(", ")
            ));
        }
    }
    services.extend(made);
    let admitted = services.iter().map(|service| match &service.from {
        From::Any => 0,
        From::Admitted(prefixes) => prefixes.len(),
    });
    if services.len() >= MAX_SERVICES as usize || admitted.sum::<usize>() > MAX_ADMITTED as usize {
        complaints.push(
            "its labels are ignored: with them there would be more services or sources than there is \
             room for"
                .to_owned(),
        );
        return;
    }
    applied.services = services;
}

/// The places in the port table of ports that containers can publish.
fn places_of(ports: &[Ports]) -> impl Iterator<Item = RangeInclusive<u32>> {
    let ranges = ports
        .iter()
        .filter(|ports| matches!(ports, Ports::Range { .. }));
    ranges.map(Ports::indices)
}

/// What is left of some ports without others.
fn without(ports: &[Ports], taken: &BTreeSet<u32>) -> Vec<Ports> {
    let mut left: Vec<Ports> = ports
        .iter()
        .filter(|ports| !matches!(ports, Ports::Range { .. }))
        .cloned()
        .collect();
    let places = places_of(ports).flatten();
    left.extend(ranges(
        &places.filter(|place| !taken.contains(place)).collect(),
    ));
    left
}

/// Places in the port table as ranges of ports.
fn ranges(places: &BTreeSet<u32>) -> Vec<Ports> {
    let mut ranges: Vec<Ports> = Vec::new();
    for place in places {
        let Some((protocol, port)) = port_at(*place) else {
            continue;
        };
        match ranges.last_mut() {
            Some(Ports::Range {
                protocol: last,
                ports,
            }) if *last == protocol && ports.end().checked_add(1) == Some(port) => {
                *ports = *ports.start()..=port;
            }
            _ => ranges.push(Ports::Range {
                protocol,
                ports: port..=port,
            }),
        }
    }
    ranges
}

/// The other way round from [`port_index`].
fn port_at(place: u32) -> Option<(PortProtocol, u16)> {
    let protocols = [PortProtocol::Tcp, PortProtocol::Udp, PortProtocol::Sctp];
    let protocol = protocols.into_iter().find(|protocol| {
        (port_index(*protocol, 0)..=port_index(*protocol, u16::MAX)).contains(&place)
    })?;
    Some((
        protocol,
        u16::try_from(place - port_index(protocol, 0)).ok()?,
    ))
}

/// No longer than the kernel's tables have room for.
fn name(service: &str, container: &str) -> String {
    let name = format!("{service}{AT}{container}");
    if name.len() <= MAX_NAME {
        return name;
    }
    let digest = base16ct::lower::encode_string(&Sha256::digest(&name));
    let kept: String = name
        .chars()
        .filter(char::is_ascii)
        .take(MAX_NAME - 9)
        .collect();
    format!("{kept}~{}", digest.get(..8).unwrap_or_default())
}

fn narrowed(service: &Service, asked: &Asked, complaints: &mut Vec<String>) -> Service {
    let mut narrowed = service.clone();
    if let Some(from) = &asked.from {
        let (left, asks_for_more) = intersection(&service.from, from);
        // Of several containers with one port all labels hold, also if together they admit nobody.
        let is_of_label = service.name.contains(AT);
        if asks_for_more {
            let whose = if is_of_label {
                "label of another container with the same port"
            } else {
                "policy"
            };
            complaints.push(format!(
                "the label {FROM} asks for sources that the service \"{}\" does not allow by the {whose}: \
                 they stay out",
                service.name
            ));
        }
        if is_of_label || left != From::Admitted(Vec::new()) {
            narrowed.from = left;
        }
    }
    let mut narrow = |kind: &str, allowed: &mut Option<Budget>, asked: Option<Budget>| {
        let Some(asked) = asked else { return };
        match allowed {
            Some(budget) if !is_within(asked, *budget) => complaints.push(format!(
                "the label {LIMIT}{kind} asks for more than the service \"{}\" allows, and is ignored",
                service.name
            )),
            _ => *allowed = Some(asked),
        }
    };
    let Limit { budgets, .. } = &mut narrowed.limit;
    narrow("packets", &mut budgets.packets, asked.limit.packets);
    narrow("bytes", &mut budgets.bytes, asked.limit.bytes);
    narrow(
        "connections",
        &mut budgets.connections,
        asked.limit.connections,
    );
    narrowed
}

fn replaced(service: &Service, asked: &Asked) -> Service {
    let mut replaced = service.clone();
    if let Some(from) = &asked.from {
        replaced.from = from.clone();
    }
    let Limit { budgets, .. } = &mut replaced.limit;
    budgets.packets = asked.limit.packets.or(budgets.packets);
    budgets.bytes = asked.limit.bytes.or(budgets.bytes);
    budgets.connections = asked.limit.connections.or(budgets.connections);
    replaced
}

/// A service for ports that the policy lists nowhere.
fn opened(labelled: &Labelled, ports: Vec<Ports>, asked: &Asked) -> Service {
    Service {
        name: name("", &labelled.container),
        line: 0,
        ports,
        address: None,
        from: asked.from.clone().unwrap_or(From::Any),
        mode: Mode::Enforce,
        limit: Limit {
            budgets: asked.limit,
            ..Limit::default()
        },
        total: Budgets::default(),
    }
}

/// Who both let in, and whether the second asks for more than that.
fn intersection(allowed: &From, asked: &From) -> (From, bool) {
    let (allowed, asked) = match (allowed, asked) {
        (From::Any, asked) => return (asked.clone(), false),
        (allowed, From::Any) => return (allowed.clone(), true),
        (From::Admitted(allowed), From::Admitted(asked)) => (allowed, asked),
    };
    let earlier = |one: Admitted, other: Admitted| match (one.expires, other.expires) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    let mut left = Vec::new();
    let mut asks_for_more = false;
    for asked in asked {
        let contains = |wide: &IpNet, narrow: &IpNet| wide.contains(narrow);
        let is_covered = allowed
            .iter()
            .any(|one| contains(&one.prefix, &asked.prefix));
        asks_for_more |= !is_covered;
        for one in allowed {
            let prefix = if contains(&one.prefix, &asked.prefix) {
                asked.prefix
            } else if contains(&asked.prefix, &one.prefix) {
                one.prefix
            } else {
                continue;
            };
            let expires = earlier(*one, *asked);
            left.push(Admitted { prefix, expires });
        }
    }
    (From::Admitted(left), asks_for_more)
}

/// Whether a budget never grants more than another.
fn is_within(asked: Budget, allowed: Budget) -> bool {
    let per = |one: Budget, other: Budget| {
        u128::from(one.rate.count) * u128::from(other.rate.period.nanoseconds())
    };
    per(asked, allowed) <= per(allowed, asked) && asked.burst <= allowed.burst
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{PublishedAt, PublishedPort};

    const CLOCK: Clock = Clock { tick_ns: 4_000_000 };

    const POLICY: &str = r#"
[[service]]
name = "api"
ports = ["tcp/8000-8010"]
[service.limit]
packets = "100/s"
[[service]]
name = "inner"
ports = ["tcp/9000"]
from = ["198.51.100.0/24"]
[[source]]
name = "office"
cidrs = ["192.0.2.0/28"]
"#;

    fn judge(labels: &str, port: u16, pairs: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let text = format!("docker.labels = \"{labels}\"\n{POLICY}");
        let policy = Policy::parse(&text, "guard.toml", CLOCK).unwrap();
        let pairs = pairs.iter();
        let labels = pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let containers = Containers {
            labelled: vec![Labelled {
                container: "web-1".to_owned(),
                published: vec![PublishedPort {
                    protocol: PortProtocol::Tcp,
                    port,
                    at: PublishedAt::EveryIpv4,
                }],
                labels: labels.collect(),
            }],
            ..Containers::default()
        };
        let (applied, warnings) = apply(&policy, &containers, CLOCK);
        let services = applied.services.iter().map(|service| {
            let ports: Vec<String> = service.ports.iter().map(Ports::to_string).collect();
            let from = match &service.from {
                From::Any => "any".to_owned(),
                From::Admitted(list) => {
                    let list = list.iter().map(|one| one.prefix.to_string());
                    list.collect::<Vec<_>>().join(" ")
                }
            };
            let packets = service.limit.budgets.packets;
            let packets = packets.map_or(0, |budget| budget.rate.count);
            format!("{} {} {from} {packets}", service.name, ports.join(","))
        });
        (services.collect(), warnings)
    }

    const API: &str = "api tcp/8000-8010 any 100";
    const INNER: &str = "inner tcp/9000 198.51.100.0/24 0";

    #[test]
    fn labels_take_away_from_what_the_policy_allows() {
        let (services, warnings) = judge(
            "narrow",
            8003,
            &[
                ("guard.from", "office, 203.0.113.7"),
                ("guard.limit.packets", "5/s"),
            ],
        );
        assert_eq!(
            services,
            [
                "api tcp/8000-8002,tcp/8004-8010 any 100",
                INNER,
                "api@web-1 tcp/8003 192.0.2.0/28 203.0.113.7/32 5",
            ]
        );
        assert_eq!(warnings, [""; 0]);
        let (services, _) = judge("off", 8003, &[("guard.from", "office")]);
        assert_eq!(services, [API, INNER]);
    }

    #[test]
    fn where_containers_share_a_port_all_their_labels_hold() {
        let policy = Policy::parse(POLICY, "guard.toml", CLOCK).unwrap();
        let labelled = |container: &str, from: &str| Labelled {
            container: container.to_owned(),
            published: vec![PublishedPort {
                protocol: PortProtocol::Tcp,
                port: 8003,
                at: PublishedAt::EveryIpv4,
            }],
            labels: [(FROM.to_owned(), from.to_owned())].into(),
        };
        let admitted = |one: &str, other: &str| {
            let containers = Containers {
                labelled: vec![labelled("one", one), labelled("other", other)],
                ..Containers::default()
            };
            let (applied, _) = apply(&policy, &containers, CLOCK);
            let service = applied.services.into_iter().last().unwrap();
            match service.from {
                From::Any => panic!("{} is open to any", service.name),
                From::Admitted(list) => list.len(),
            }
        };
        assert_eq!(admitted("198.51.100.0/24", "198.51.100.7"), 1);
        assert_eq!(
            admitted("198.51.100.7", "198.51.100.66"),
            0,
            "nobody is in both"
        );
    }

    #[test]
    fn labels_that_ask_for_more_are_ignored_and_the_container_is_named() {
        for (port, label, value, services, words) in [
            (
                8000,
                "guard.limit.packets",
                "200/s",
                vec![API, INNER],
                "asks for more",
            ),
            (
                8000,
                "guard.limit.packets",
                "{ rate = \"9/s\", burst = 200 }",
                vec![API, INNER],
                "asks for more",
            ),
            (
                9000,
                "guard.from",
                "any",
                vec![API, INNER],
                "asks for sources",
            ),
            (
                9000,
                "guard.from",
                "192.0.2.7",
                vec![API, INNER],
                "asks for sources",
            ),
            (
                9000,
                "guard.from",
                "198.51.100.7, 192.0.2.7",
                vec![
                    API,
                    "inner  198.51.100.0/24 0",
                    "inner@web-1 tcp/9000 198.51.100.7/32 0",
                ],
                "asks for sources",
            ),
            (
                7000,
                "guard.from",
                "any",
                vec![API, INNER],
                "does not open tcp/7000",
            ),
            (
                8000,
                "guard.from",
                "nowhere",
                vec![API, INNER],
                "is ignored",
            ),
            (
                8000,
                "guard.limit.packets",
                "5/fortnight",
                vec![API, INNER],
                "is ignored",
            ),
            (
                8000,
                "guard.limit.packets",
                "{ rate = ",
                vec![API, INNER],
                "is ignored",
            ),
            (8000, "guard.form", "any", vec![API, INNER], "no such label"),
        ] {
            let (found, warnings) = judge("narrow", port, &[(label, value)]);
            assert_eq!(found, services, "{label}={value}");
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            assert!(warnings[0].starts_with("container web-1: "), "{warnings:?}");
            assert!(warnings[0].contains(words), "{warnings:?}");
        }
    }

    #[test]
    fn labels_may_open_if_the_policy_says_so() {
        let asked = [("guard.from", "any"), ("guard.limit.packets", "200/s")];
        let (services, warnings) = judge("full", 7000, &asked);
        assert_eq!(services, [API, INNER, "@web-1 tcp/7000 any 200"]);
        let (services, _) = judge("full", 9000, &asked);
        let api_and = |inner| vec![API.to_owned(), "inner  198.51.100.0/24 0".to_owned(), inner];
        assert_eq!(services, api_and("inner@web-1 tcp/9000 any 200".to_owned()));
        assert_eq!(warnings, [""; 0]);
    }

    #[test]
    fn what_there_is_no_room_for_is_ignored_and_takes_nothing_away() {
        let many: Vec<String> = (0..MAX_ADMITTED + 1)
            .map(|n| std::net::Ipv4Addr::from(n).to_string())
            .collect();
        let (services, warnings) = judge("narrow", 8000, &[("guard.from", &many.join(","))]);
        assert_eq!(services, [API, INNER]);
        assert!(
            warnings[0].contains("more services or sources"),
            "{warnings:?}"
        );
    }

    #[test]
    fn two_containers_that_may_have_a_port_are_both_heeded() {
        let policy = Policy::parse(POLICY, "guard.toml", CLOCK).unwrap();
        let labelled = |container: &str, from: &str| Labelled {
            container: container.to_owned(),
            published: vec![PublishedPort {
                protocol: PortProtocol::Tcp,
                port: 8000,
                at: PublishedAt::EveryIpv4,
            }],
            labels: BTreeMap::from([(FROM.to_owned(), from.to_owned())]),
        };
        let containers = Containers {
            labelled: vec![labelled("a", "192.0.2.0/24"), labelled("b", "192.0.2.7")],
            ..Containers::default()
        };
        let (applied, _) = apply(&policy, &containers, CLOCK);
        let last = applied.services.last().unwrap();
        assert_eq!(last.name, "api@a@b");
        assert_eq!(base_name(&last.name), "api");
        let port = port_index(PortProtocol::Tcp, 8000);
        let mut listing = applied
            .services
            .iter()
            .filter(|service| places_of(&service.ports).any(|range| range.contains(&port)));
        assert_eq!(listing.next().unwrap().name, "api@a@b");
        assert!(listing.next().is_none());
    }

    #[test]
    fn names_fit_the_tables() {
        let long = "x".repeat(200);
        let (one, other) = (name("api", &long), name("api", &format!("{long}y")));
        assert!(one.len() <= MAX_NAME && other.len() <= MAX_NAME);
        assert_ne!(one, other);
        assert_eq!(base_name(&one), "api");
    }
}
