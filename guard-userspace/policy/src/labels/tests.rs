use guard_common::layout::{PortProtocol, port_index};

use super::*;
use crate::{Ports, PublishedPort, Tables, Timebase};

const CLOCK: KernelTick = KernelTick { tick_ns: 4_000_000 };

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

fn on(at: PublishedAt, port: u16) -> PublishedPort {
    let protocol = PortProtocol::Tcp;
    PublishedPort { protocol, port, at }
}

fn everywhere(port: u16) -> Vec<PublishedPort> {
    PublishedAt::EVERYWHERE.map(|at| on(at, port)).into()
}

fn judge(labels: &str, port: u16, pairs: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
    let text = format!("docker.labels = \"{labels}\"\n{POLICY}");
    let policy = Policy::parse(&text, "guard.toml", CLOCK).unwrap();
    let pairs = pairs.iter();
    let labels = pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let containers = Containers {
        labelled: vec![Labelled {
            container: "web-1".to_owned(),
            published: everywhere(port),
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
fn labels_restrict_what_the_policy_allows() {
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
        published: everywhere(8003),
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
        "no source is in both"
    );
}

/// The service that holds at port 8003 of an address, after a container with labels publishes that port.
fn judge_at(labels: &str, policy: &str, published: &[&str], address: &str) -> String {
    let text = format!("docker.labels = \"{labels}\"\n{policy}");
    let policy = Policy::parse(&text, "guard.toml", CLOCK).unwrap();
    let published = published.iter().map(|at| {
        let at = match *at {
            "0.0.0.0" => PublishedAt::EveryIpv4,
            "::" => PublishedAt::EveryIpv6,
            address => PublishedAt::Address(address.parse().unwrap()),
        };
        on(at, 8003)
    });
    let asked = [
        ("guard.from", "192.0.2.0/28, 2001:db8:1::/48"),
        ("guard.limit.packets", "5/s"),
    ];
    let asked = asked.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let containers = Containers {
        labelled: vec![Labelled {
            container: "web-1".to_owned(),
            published: published.collect(),
            labels: asked.into(),
        }],
        ..Containers::default()
    };
    let (applied, _) = apply(&policy, &containers, CLOCK);
    let timebase = Timebase {
        world: jiff::Timestamp::UNIX_EPOCH,
        boot_ns: 0,
    };
    let tables = Tables::compile(&applied, &containers, &(32_768..=60_999), timebase);
    let index = port_index(PortProtocol::Tcp, 8003);
    let entry = tables.ports.at(index, address.parse().unwrap());
    let number = entry.service();
    let service = tables.services.iter().find(|one| one.number == number);
    service.map_or("closed".to_owned(), |service| service.name.clone())
}

#[test]
fn labels_hold_where_the_container_is_published_and_nowhere_else() {
    let here = ["203.0.113.11"];
    for (labels, published, at_11, at_10, at_v6) in [
        ("narrow", &here[..], "api@web-1", "api", "api"),
        (
            "narrow",
            &["0.0.0.0", "203.0.113.11"],
            "api@web-1",
            "api@web-1",
            "api@web-1",
        ),
        ("full", &here, "api@web-1", "api", "api"),
    ] {
        for (address, service) in [
            ("203.0.113.11", at_11),
            ("203.0.113.10", at_10),
            ("2001:db8::10", at_v6),
        ] {
            let found = judge_at(labels, POLICY, published, address);
            assert_eq!(found, service, "{labels} {published:?} {address}");
        }
    }
    // No service lists the port: `full` opens it on the address where the container publishes it.
    for (labels, published, address, service) in [
        ("full", &here[..], "203.0.113.11", "@web-1"),
        ("full", &here, "203.0.113.10", "closed"),
        ("full", &here, "2001:db8::10", "closed"),
        ("full", &["::"], "2001:db8::10", "@web-1"),
        ("narrow", &here, "203.0.113.11", "closed"),
    ] {
        let found = judge_at(labels, "", published, address);
        assert_eq!(found, service, "{labels} {published:?} {address}");
    }
    // Labels do not change a service on another address, or of the other family.
    for (address, other, published) in [
        ("203.0.113.10", "203.0.113.11", "203.0.113.11"),
        ("2001:db8::10", "203.0.113.11", "0.0.0.0"),
    ] {
        let policy = format!(
            "[[service]]\nname = \"api\"\nports = [\"tcp/8003\"]\naddress = \"{address}\"\n"
        );
        for (labels, there) in [("narrow", "closed"), ("full", "@web-1")] {
            assert_eq!(judge_at(labels, &policy, &[published], address), "api");
            assert_eq!(judge_at(labels, &policy, &[published], other), there);
        }
    }
}

/// The service that lists port 8003 and the sources that it admits, after containers with one label each.
fn from_of(policy: &str, containers: &[(&str, PublishedAt, &str)]) -> (String, Vec<String>) {
    let labelled = containers.iter().map(|(name, at, from)| Labelled {
        published: vec![on(*at, 8003)],
        ..container(name, 8003, &[(FROM, from)])
    });
    let (applied, warnings) = applied(policy, labelled.collect());
    let from = match listing(&applied, 8003)[..] {
        [] => "closed".to_owned(),
        [service] => match &service.from {
            From::Any => format!("{} any", service.name),
            From::Admitted(list) => {
                let list = list.iter().map(|one| format!(" {}", one.prefix));
                service.name.clone() + &list.collect::<String>()
            }
        },
        ref several => panic!("{several:?}"),
    };
    (from, warnings)
}

#[test]
fn labels_hold_for_the_family_that_the_container_is_published_on() {
    const LISTED: &str = "from = [\"198.51.100.0/24\", \"2001:db8::/32\"]\n";
    let (four, six) = (PublishedAt::EveryIpv4, PublishedAt::EveryIpv6);
    let own = PublishedAt::Address("2001:db8::10".parse().unwrap());
    let any = ANY.to_owned();
    let listed = any.clone() + LISTED;
    let nothing = String::new();
    let host = "scope = \"host\"\n".to_owned();
    for (labels, policy, containers, expected) in [
        (
            "narrow",
            &any,
            &[("a", four, "192.0.2.7")][..],
            "api@a 192.0.2.7/32 ::/0",
        ),
        (
            "narrow",
            &any,
            &[("a", six, "2001:db8::7")],
            "api@a 2001:db8::7/128 0.0.0.0/0",
        ),
        ("narrow", &any, &[("a", four, "0.0.0.0/0")], "api any"),
        ("narrow", &any, &[("a", four, "2001:db8::7")], "api@a ::/0"),
        (
            "narrow",
            &listed,
            &[("a", four, "198.51.100.7")],
            "api@a 198.51.100.7/32 2001:db8::/32",
        ),
        (
            "narrow",
            &listed,
            &[("a", four, "198.51.100.0/24")],
            "api 198.51.100.0/24 2001:db8::/32",
        ),
        // The label names no source that the policy allows: it is ignored.
        (
            "narrow",
            &listed,
            &[("a", four, "192.0.2.7")],
            "api 198.51.100.0/24 2001:db8::/32",
        ),
        (
            "narrow",
            &any,
            &[("a", four, "192.0.2.7"), ("b", six, "2001:db8::7")],
            "api@a@b 2001:db8::7/128 192.0.2.7/32",
        ),
        (
            "narrow",
            &listed,
            &[("a", four, "198.51.100.7"), ("b", six, "any")],
            "api@a 198.51.100.7/32 2001:db8::/32",
        ),
        // For IPv6, api@a has the list of the policy: the label of b is ignored as it would be alone.
        (
            "narrow",
            &listed,
            &[("a", four, "198.51.100.7"), ("b", six, "2001:db9::7")],
            "api@a 198.51.100.7/32 2001:db8::/32",
        ),
        (
            "full",
            &listed,
            &[("a", four, "any"), ("b", six, "2001:db9::7")],
            "api@a@b 2001:db9::7/128 0.0.0.0/0",
        ),
        (
            "full",
            &listed,
            &[("a", four, "any"), ("b", six, "any")],
            "api@a@b any",
        ),
        // Scope `containers` leaves the host's own server of the other family open, scope `host` closes it.
        ("full", &nothing, &[("a", four, "any")], "@a any"),
        (
            "full",
            &nothing,
            &[("a", four, "192.0.2.7")],
            "@a 192.0.2.7/32 ::/0",
        ),
        ("full", &nothing, &[("a", four, "2001:db8::7")], "closed"),
        ("full", &host, &[("a", four, "any")], "@a 0.0.0.0/0"),
        (
            "full",
            &host,
            &[("a", four, "192.0.2.7, 2001:db8::7")],
            "@a 192.0.2.7/32",
        ),
        (
            "full",
            &nothing,
            &[("a", four, "any"), ("b", six, "nonsense!")],
            "@a 0.0.0.0/0",
        ),
        (
            "full",
            &nothing,
            &[("a", four, "any"), ("b", own, "nonsense!")],
            "@a 0.0.0.0/0",
        ),
        (
            "full",
            &nothing,
            &[("a", four, "any"), ("b", six, "2001:db8::7")],
            "@a@b 2001:db8::7/128 0.0.0.0/0",
        ),
        (
            "full",
            &host,
            &[("a", four, "any"), ("b", six, "any")],
            "@a@b any",
        ),
        // Where two containers publish in one family, the first label that opens the port holds.
        (
            "full",
            &host,
            &[("a", four, "192.0.2.7"), ("b", four, "any")],
            "@a 192.0.2.7/32",
        ),
    ] {
        let (found, warnings) = from_of(
            &format!("docker.labels = \"{labels}\"\n{policy}"),
            containers,
        );
        assert_eq!(
            found, expected,
            "{labels} {policy:?} {containers:?} {warnings:?}"
        );
    }
}

#[test]
fn a_label_without_sources_of_the_published_family_is_reported() {
    let four = PublishedAt::EveryIpv4;
    for (labels, policy, words) in [
        (
            "narrow",
            ANY,
            "its IPv4 ports of the service \"api\" are closed",
        ),
        ("full", "", "tcp/8003 on every IPv4 address stays closed"),
    ] {
        let policy = format!("docker.labels = \"{labels}\"\n{policy}");
        let (_, warnings) = from_of(&policy, &[("a", four, "2001:db8::7")]);
        assert!(warnings[0].contains(words), "{warnings:?}");
        assert!(warnings[0].contains("names no IPv4 source"), "{warnings:?}");
    }
}

#[test]
fn without_room_for_its_list_a_container_is_closed_for_its_family_alone_if_that_has_room() {
    // The list that is kept for the other family takes room as well.
    for (room, expected) in [
        (2, "api@a 192.0.2.7/32 ::/0"),
        (1, "api@a ::/0"),
        (0, "api@a"),
    ] {
        let many: Vec<String> = (0..MAX_ADMITTED - room)
            .map(|n| format!("\"{}\"", std::net::Ipv4Addr::from(n * 2)))
            .collect();
        let policy = format!(
            "{ANY}[[service]]\nname = \"full\"\nports = [\"sctp/1\"]\nfrom = [{}]\n",
            many.join(",")
        );
        let (found, warnings) = from_of(&policy, &[("a", PublishedAt::EveryIpv4, "192.0.2.7")]);
        assert_eq!(found, expected, "{warnings:?}");
        let closed = match room {
            2 => None,
            1 => Some("tcp/8003 on every IPv4 address is closed to every source"),
            _ => Some("container a: tcp/8003 is closed to every source"),
        };
        assert_eq!(
            warnings.len(),
            usize::from(closed.is_some()),
            "{warnings:?}"
        );
        if let Some(closed) = closed {
            assert!(warnings[0].contains(closed), "{warnings:?}");
        }
    }
}

#[test]
fn limits_of_containers_in_both_families_of_a_port_hold_together() {
    let limited = |name: &str, at, rate: &str| Labelled {
        published: vec![on(at, 8003)],
        ..container(name, 8003, &[(FROM, "any"), ("guard.limit.packets", rate)])
    };
    let (four, six) = (PublishedAt::EveryIpv4, PublishedAt::EveryIpv6);
    for policy in [ANY, ""] {
        let text = format!("docker.labels = \"full\"\n{policy}");
        for (first, second) in [("5/s", "100/s"), ("100/s", "5/s")] {
            let labelled = vec![limited("a", four, first), limited("b", six, second)];
            let (applied, _) = applied(&text, labelled);
            let [service] = listing(&applied, 8003)[..] else {
                panic!("{:?}", listing(&applied, 8003))
            };
            assert_eq!(service.from, From::Any);
            let packets = service.limit.budgets.packets.unwrap();
            assert_eq!(packets.rate.count, 5, "{policy:?} {first} {second}");
        }
    }
}

#[test]
fn labels_for_more_than_the_policy_allows_are_ignored_and_the_container_is_named() {
    for (port, label, value, services, words) in [
        (
            8000,
            "guard.limit.packets",
            "200/s",
            vec![API, INNER],
            "rate or burst is larger",
        ),
        (
            8000,
            "guard.limit.packets",
            "{ rate = \"9/s\", burst = 200 }",
            vec![API, INNER],
            "rate or burst is larger",
        ),
        (9000, "guard.from", "any", vec![API, INNER], "names sources"),
        (
            9000,
            "guard.from",
            "192.0.2.7",
            vec![API, INNER],
            "names sources",
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
            "names sources",
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
        (8000, "guard.form", "any", vec![API, INNER], "unknown label"),
    ] {
        let (found, warnings) = judge("narrow", port, &[(label, value)]);
        assert_eq!(found, services, "{label}={value}");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].starts_with("container web-1: "), "{warnings:?}");
        assert!(warnings[0].contains(words), "{warnings:?}");
    }
}

#[test]
fn labels_may_open_ports_if_docker_labels_is_full() {
    let asked = [("guard.from", "any"), ("guard.limit.packets", "200/s")];
    let (services, warnings) = judge("full", 7000, &asked);
    assert_eq!(services, [API, INNER, "@web-1 tcp/7000 any 200"]);
    let (services, _) = judge("full", 9000, &asked);
    let api_and = |inner| vec![API.to_owned(), "inner  198.51.100.0/24 0".to_owned(), inner];
    assert_eq!(services, api_and("inner@web-1 tcp/9000 any 200".to_owned()));
    assert_eq!(warnings, [""; 0]);
}

fn container(name: &str, port: u16, pairs: &[(&str, &str)]) -> Labelled {
    let pairs = pairs.iter();
    Labelled {
        container: name.to_owned(),
        published: everywhere(port),
        labels: pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    }
}

fn applied(text: &str, labelled: Vec<Labelled>) -> (Policy, Vec<String>) {
    let policy = Policy::parse(text, "guard.toml", CLOCK).unwrap();
    let containers = Containers {
        labelled,
        ..Containers::default()
    };
    apply(&policy, &containers, CLOCK)
}

/// The services that list a port.
fn listing(policy: &Policy, port: u16) -> Vec<&Service> {
    let place = port_index(PortProtocol::Tcp, port);
    let services = policy.services.iter();
    services
        .filter(|service| places_of(&service.ports).any(|range| range.contains(&place)))
        .collect()
}

fn apart(count: u32) -> String {
    let addresses = (0..count).map(|n| std::net::Ipv4Addr::from(n * 2).to_string());
    addresses.collect::<Vec<_>>().join(",")
}

const ANY: &str = "[[service]]\nname = \"api\"\nports = [\"tcp/1-65535\"]\n";

#[test]
fn a_from_that_is_too_long_closes_its_own_container_and_no_other() {
    let long = apart(MAX_ADMITTED);
    let neighbours: Vec<String> = (0..4_000)
        .map(|n| format!("10.0.{}.{}", n / 256, n % 256))
        .collect();
    let words: String = (0..300)
        .map(|n| format!("10.{}.{}.0/24,", n / 128, 2 * n % 256))
        .collect();
    let (policy, warnings) = applied(
        ANY,
        vec![
            container("greedy", 8000, &[(FROM, &long)]),
            container("modest", 8001, &[(FROM, "192.0.2.7")]),
            container("most", 8002, &[(FROM, &apart(256))]),
            container("more", 8003, &[(FROM, &apart(257))]),
            container("merged", 8004, &[(FROM, &neighbours[..1_000].join(","))]),
            container("words", 8005, &[(FROM, &words)]),
        ],
    );
    let from = |port| match &listing(&policy, port)[..] {
        [service] => match &service.from {
            From::Any => panic!("{} is open", service.name),
            From::Admitted(list) => list.len(),
        },
        others => panic!("{others:?}"),
    };
    let merged = from(8004);
    assert!((2..=MAX_FROM).contains(&merged), "{merged}");
    assert_eq!([8000, 8001, 8002, 8003, 8005].map(from), [0, 1, 256, 0, 0]);
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    for (warning, name) in warnings.iter().zip(["greedy", "more", "words"]) {
        assert!(
            warning.starts_with(&format!("container {name}: ")),
            "{warning}"
        );
        assert!(warning.contains("closed"), "{warning}");
    }
}

#[test]
fn where_the_lists_are_full_a_restricted_container_is_closed_and_a_limited_one_is_as_the_policy_says()
 {
    let many: Vec<String> = (0..MAX_ADMITTED - 1)
        .map(|n| format!("\"{}\"", std::net::Ipv4Addr::from(n * 2)))
        .collect();
    let text = format!(
        "{ANY}[[service]]\nname = \"full\"\nports = [\"sctp/1\"]\nfrom = [{}]\n",
        many.join(",")
    );
    let (policy, warnings) = applied(
        &text,
        vec![
            container("first", 8000, &[(FROM, "192.0.2.7")]),
            container("second", 8001, &[(FROM, "192.0.2.8")]),
            container("third", 8002, &[("guard.limit.packets", "5/s")]),
        ],
    );
    let from = |port| listing(&policy, port)[0].from.clone();
    assert_eq!(count(&from(8000)), 1);
    assert_eq!(from(8001), From::Admitted(Vec::new()));
    assert_eq!(from(8002), From::Any);
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].contains("container second: tcp/8001 is closed"),
        "{warnings:?}"
    );
}

#[test]
fn without_room_for_its_own_budget_a_container_keeps_that_of_the_policy() {
    let text = format!("cells = 131072\n{ANY}limit.packets = \"100/s\"\n");
    let most = limits_for_labels(131_072);
    let labelled = (0..most as u16).map(|n| {
        container(
            &format!("c{n}"),
            1_000 + n,
            &[("guard.limit.packets", "5/s")],
        )
    });
    let mut labelled: Vec<Labelled> = labelled.collect();
    labelled.push(container("late", 9_000, &[("guard.limit.packets", "5/s")]));
    let both = [("guard.limit.packets", "5/s"), (FROM, "192.0.2.7")];
    labelled.push(container("both", 9_001, &both));
    let (policy, warnings) = applied(&text, labelled.clone());
    let rate = |service: &Service| service.limit.budgets.packets.unwrap().rate.count;
    assert_eq!(rate(listing(&policy, 1_000)[0]), 5);
    let [late] = listing(&policy, 9_000)[..] else {
        panic!("{:?}", listing(&policy, 9_000))
    };
    assert_eq!((late.name.as_str(), rate(late)), ("api", 100));
    let [both] = listing(&policy, 9_001)[..] else {
        panic!("{:?}", listing(&policy, 9_001))
    };
    assert_eq!(
        (both.cells_of(), rate(both), count(&both.from)),
        ("api", 100, 1)
    );
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    for (warning, name) in warnings.iter().zip(["late", "both"]) {
        assert!(
            warning.starts_with(&format!("container {name}: ")),
            "{warning}"
        );
        assert!(warning.contains("keeps the budgets"), "{warning}");
    }
    // With `full`, ports without room for their limits stay as in the policy.
    let text = format!("docker.labels = \"full\"\n{text}").replace("tcp/1-65535", "tcp/1-9000");
    let text = text.replace(
        "limit.packets",
        "from = [\"198.51.100.0/24\"]\nlimit.packets",
    );
    labelled.truncate(most);
    let open = [("guard.limit.packets", "5/s"), (FROM, "any")];
    labelled.push(container("late", 9_000, &open));
    labelled.push(container("opened", 9_001, &open));
    let (policy, warnings) = applied(&text, labelled);
    assert_eq!(listing(&policy, 9_000)[0].name, "api");
    assert!(listing(&policy, 9_001).is_empty());
    assert!(
        warnings[1].contains("container opened: tcp/9001 stays closed"),
        "{warnings:?}"
    );
}

#[test]
fn without_room_for_another_service_a_restricted_container_is_closed() {
    let labelled =
        (0..1_100).map(|n| container(&format!("c{n}"), 1_000 + n, &[(FROM, "192.0.2.7")]));
    let labelled: Vec<Labelled> = labelled.collect();
    let (policy, warnings) = applied(ANY, labelled.clone());
    assert_eq!(policy.services.len(), MAX_SERVICES as usize - 1);
    assert_eq!(listing(&policy, 1_000)[0].name, "api@c0");
    assert!(listing(&policy, 2_099).is_empty());
    assert_eq!(listing(&policy, 2_100)[0].name, "api");
    assert!(
        warnings[0].contains("is closed to every source"),
        "{warnings:?}"
    );
    // A service in mode observe drops nothing.
    let (policy, _) = applied(&format!("{ANY}mode = \"observe\"\n"), labelled);
    assert_eq!(listing(&policy, 2_099)[0].name, "api");
}

#[test]
fn the_text_of_a_label_forges_no_line_and_is_cut() {
    let mut hostile = container(
        "web\nERROR all is lost",
        8000,
        &[
            ("guard.x\n2026-01-01 WARN forged\u{202e}", "\u{202e}"),
            ("guard.limit.packets", "5/\u{202e}s\n\u{1b}[2J"),
            ("guard.limit.bytes", "{ rate = \"\u{202e}\", x = 1 }"),
            (FROM, "nobody\nforged"),
        ],
    );
    let check = |warnings: &[String]| {
        for warning in warnings {
            assert!(warning.chars().count() < 700, "{warning}");
            let forging = |c: char| c.is_control() || c == '\u{202e}';
            assert!(!warning.contains(forging), "{warning:?}");
        }
    };
    let (_, warnings) = applied(ANY, vec![hostile.clone()]);
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    check(&warnings);
    for number in 0..100_000 {
        hostile
            .labels
            .insert(format!("guard.{number}"), "x".repeat(100));
    }
    let (_, warnings) = applied(ANY, vec![hostile.clone()]);
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    assert!(warnings[3].contains("and 99998 more"), "{warnings:?}");
    check(&warnings);
    hostile
        .labels
        .retain(|key, _| !key.contains(|c: char| c.is_ascii_digit()));
    let crowd = vec![hostile; 200];
    let (_, warnings) = applied(ANY, crowd);
    assert_eq!(warnings.len(), 101);
    check(&warnings);
    let long = "x".repeat(1_000_000);
    let pairs = [
        (FROM, long.as_str()),
        ("guard.limit.packets", &long),
        (&long, &long),
    ];
    check(&applied(ANY, vec![container(&long, 8000, &pairs)]).1);
}

#[test]
fn a_thousand_containers_cost_little() {
    let labelled = (0..1_000).map(|n: u16| {
        let from = format!("10.{}.{}.0/24, office", n / 256, n % 256);
        let rate = format!("{}/s", 500 + n);
        let burst = format!("{{ rate = \"{}/s\", burst = {n} }}", 200);
        container(
            &format!("c{n}"),
            10_000 + n,
            &[
                (FROM, &from),
                ("guard.limit.packets", &rate),
                ("guard.limit.connections", &burst),
            ],
        )
    });
    let services: String = (0..20)
        .map(|n| {
            format!(
                "[[service]]\nname = \"s{n}\"\nports = [\"tcp/{}-{}\"]\n",
                10_000 + n * 1_000,
                10_999 + n * 1_000
            )
        })
        .collect();
    let text = format!("{services}[[source]]\nname = \"office\"\ncidrs = [\"192.0.2.0/28\"]\n");
    let policy = Policy::parse(&text, "guard.toml", CLOCK).unwrap();
    let containers = Containers {
        labelled: labelled.collect(),
        ..Containers::default()
    };
    let start = std::time::Instant::now();
    let (applied, _) = apply(&policy, &containers, CLOCK);
    let took = start.elapsed();
    println!("{took:?} for {} services", applied.services.len());
    assert!(applied.services.len() > 1_000);
    // Ten times as long without optimization. It took minutes when each container copied all services.
    assert!(took.as_millis() < 500, "{took:?}");
}

#[test]
fn the_labels_of_two_containers_with_one_port_both_hold() {
    let policy = Policy::parse(POLICY, "guard.toml", CLOCK).unwrap();
    let labelled = |container: &str, from: &str| Labelled {
        container: container.to_owned(),
        published: everywhere(8000),
        labels: BTreeMap::from([(FROM.to_owned(), from.to_owned())]),
    };
    let containers = Containers {
        labelled: vec![labelled("a", "192.0.2.0/24"), labelled("b", "192.0.2.7")],
        ..Containers::default()
    };
    let (applied, _) = apply(&policy, &containers, CLOCK);
    let last = applied.services.last().unwrap();
    assert_eq!(last.name, "api@a@b");
    assert_eq!(last.base(), Some("api"));
    let port = port_index(PortProtocol::Tcp, 8000);
    let mut listing = applied
        .services
        .iter()
        .filter(|service| places_of(&service.ports).any(|range| range.contains(&port)));
    assert_eq!(listing.next().unwrap().name, "api@a@b");
    assert!(listing.next().is_none());
}

#[test]
fn names_fit_the_tables_and_differ() {
    let policy = Policy::parse(POLICY, "guard.toml", CLOCK).unwrap();
    let mut work = Work::new(&policy, &Containers::default());
    let long = "x".repeat(200);
    let containers = ["web", &long, &format!("{long}y"), "a\nb", "a b", "büro"];
    let services = ["", "api", &"s".repeat(60), &"s".repeat(64)];
    let mut names = BTreeSet::new();
    for service in services {
        for container in containers.into_iter().chain(containers) {
            let name = work.name(service, container);
            assert!(name.len() <= MAX_NAME && name.is_ascii(), "{name}");
            assert!(!name.contains(|c: char| c.is_whitespace() || c.is_control()));
            work.names.insert(name.clone());
            names.insert(name);
        }
    }
    assert_eq!(names.len(), 48);
    assert!(names.contains("api@web"));
}

#[test]
fn a_service_made_by_labels_goes_by_the_long_name_of_its_base() {
    let long = "s".repeat(60);
    let text = ANY.replace("api", &long);
    let (policy, _) = applied(
        &text,
        vec![container("website", 8000, &[(FROM, "192.0.2.0/24")])],
    );
    let made = listing(&policy, 8000)[0];
    assert!(!made.name.contains(AT), "{}", made.name);
    assert_eq!(made.base(), Some(long.as_str()));
    assert!(made.has_name(&long) && made.has_name(&made.name) && !made.has_name("s"));
}
