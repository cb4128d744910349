//! Labels hold where their container publishes a port and nowhere else. Compares exposure before and after labels for
//! every address, port and source, with random policies and containers.

use std::{collections::BTreeMap, net::IpAddr};

use guard_common::{
    exposure::Scope,
    layout::{NO_SERVICE, PortProtocol, list, port_index},
};
use guard_policy::{
    Containers, KernelTick, Labelled, Policy, PublishedAt, PublishedPort, Tables, Timebase, labels,
};

const CLOCK: KernelTick = KernelTick { tick_ns: 4_000_000 };
const WORLDS: u64 = 2_000;
const ADDRESSES: [&str; 4] = [
    "203.0.113.10",
    "203.0.113.11",
    "2001:db8::10",
    "2001:db8::11",
];
const SOURCES: [&str; 6] = [
    "198.51.100.7",
    "198.51.100.66",
    "192.0.2.1",
    "192.0.2.200",
    "2001:db8:51::7",
    "2001:db8:52::7",
];
const FROMS: [&str; 6] = [
    "any",
    "198.51.100.0/24",
    "198.51.100.7",
    "192.0.2.0/25",
    "2001:db8:51::/48",
    "192.0.2.0/24,2001:db8:52::/48",
];
const LABEL_FROMS: [&str; 10] = [
    FROMS[0],
    FROMS[1],
    FROMS[2],
    FROMS[3],
    FROMS[4],
    FROMS[5],
    "0.0.0.0/0",
    "::/0",
    "nonsense!",
    "",
];
const SERVICE_PORTS: [&str; 5] = ["tcp/80", "tcp/80-81", "tcp/79-82", "tcp/81", "udp/80"];

/// Where containers publish their ports.
#[derive(Clone, Copy, Debug)]
struct Publishing {
    /// Also on every address of one family, as with `-p 0.0.0.0:80:80`.
    one_family: bool,
    /// Several containers may publish one port at one address: all but one of them are stopped.
    shared: bool,
}

struct RandomHost {
    policy: String,
    containers: Containers,
}

fn pick<T: Copy>(choices: &[T], random: &mut fastrand::Rng) -> T {
    *random.choice(choices).unwrap()
}

fn parse(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn random_policy(labels: &str, random: &mut fastrand::Rng) -> String {
    let mut text = format!("mode = \"enforce\"\ndocker.labels = \"{labels}\"\n");
    if random.bool() {
        text += "scope = \"host\"\n";
    }
    for number in 0..random.usize(0..4) {
        let ports = pick(&SERVICE_PORTS, random);
        text += &format!("[[service]]\nname = \"s{number}\"\nports = [\"{ports}\"]\n");
        if random.bool() {
            text += &format!("address = \"{}\"\n", pick(&ADDRESSES, random));
        }
        let from = pick(&FROMS, random).replace(',', "\", \"");
        text += &format!("from = [\"{from}\"]\n");
        if random.u8(0..4) == 0 {
            text += "mode = \"observe\"\n";
        }
        if random.bool() {
            text += "[service.limit]\npackets = \"100/s\"\n";
        }
    }
    text
}

fn random_containers(publishing: Publishing, random: &mut fastrand::Rng) -> Containers {
    let mut containers = Containers::default();
    for number in 0..random.usize(1..4) {
        let mut ports = Vec::new();
        for _ in 0..random.usize(1..3) {
            let port = random.u16(79..83);
            let places = match random.u8(0..4) {
                0 => PublishedAt::EVERYWHERE.to_vec(),
                1 if publishing.one_family => vec![pick(&PublishedAt::EVERYWHERE, random)],
                1 => PublishedAt::EVERYWHERE.to_vec(),
                _ => vec![PublishedAt::Address(parse(pick(&ADDRESSES, random)))],
            };
            let is_taken = |other: &PublishedPort| {
                other.port == port && places.iter().any(|at| overlap(*at, other.at))
            };
            if !publishing.shared && containers.published.iter().chain(&ports).any(is_taken) {
                continue;
            }
            ports.extend(places.into_iter().map(|at| PublishedPort {
                protocol: PortProtocol::Tcp,
                port,
                at,
            }));
        }
        containers.published.extend(&ports);
        let mut labels = BTreeMap::new();
        if random.u8(0..4) != 0 {
            let from = pick(&LABEL_FROMS, random);
            labels.insert("guard.from".to_owned(), from.to_owned());
        }
        if random.u8(0..3) == 0 {
            let rate = pick(&["5/s", "1000/s", "x"], random);
            labels.insert("guard.limit.packets".to_owned(), rate.to_owned());
        }
        if !labels.is_empty() && !ports.is_empty() {
            containers.labelled.push(Labelled {
                container: format!("c{number}"),
                published: ports,
                labels,
            });
        }
    }
    containers
}

fn overlap(one: PublishedAt, other: PublishedAt) -> bool {
    match (one, other) {
        (PublishedAt::Address(address), at) | (at, PublishedAt::Address(address)) => {
            at.covers(address)
        }
        (one, other) => one == other,
    }
}

/// Whether a source may reach a port at an address, and at which service.
fn verdict(tables: &Tables, port: u16, address: IpAddr, source: IpAddr) -> (bool, String) {
    let entry = tables
        .ports
        .at(port_index(PortProtocol::Tcp, port), address);
    let number = entry.service();
    if number == NO_SERVICE {
        let is_published = if address.is_ipv4() {
            entry.is_published_ipv4()
        } else {
            entry.is_published_ipv6()
        };
        let is_open = tables.scope == Scope::Containers && !is_published;
        return (is_open, "none".to_owned());
    }
    let mut services = tables.services.iter();
    let service = services.find(|one| one.number == number).unwrap();
    let is_open = service.settings.lists & list::ADMITTED == 0
        || service
            .admitted
            .keys()
            .any(|prefix| prefix.contains(&source));
    (is_open, service.name.clone())
}

/// Every address, port and source of one family.
fn packets() -> impl Iterator<Item = (IpAddr, u16, IpAddr)> {
    let addresses = ADDRESSES.into_iter().map(parse);
    let ports = addresses.flat_map(|address| (79..83).map(move |port| (address, port)));
    ports.flat_map(|(address, port)| {
        let sources = SOURCES.into_iter().map(parse);
        let sources = sources.filter(move |source| source.is_ipv4() == address.is_ipv4());
        sources.map(move |source| (address, port, source))
    })
}

fn holds(labels: &str, publishing: Publishing) {
    let mut compared = 0;
    for seed in 0..WORLDS {
        let mut random = fastrand::Rng::with_seed(seed);
        let host = RandomHost {
            policy: random_policy(labels, &mut random),
            containers: random_containers(publishing, &mut random),
        };
        let Ok(policy) = Policy::parse(&host.policy, "guard.toml", CLOCK) else {
            continue;
        };
        compared += 1;
        compare(&policy, &host, labels, publishing, seed);
    }
    assert!(compared > WORLDS / 4, "{compared} policies were valid");
}

fn compare(policy: &Policy, host: &RandomHost, labels: &str, publishing: Publishing, seed: u64) {
    let RandomHost {
        policy: text,
        containers,
    } = host;
    let (applied, warnings) = labels::apply(policy, containers, CLOCK);
    let compile = |policy| {
        let now = Timebase {
            world: jiff::Timestamp::UNIX_EPOCH,
            boot_ns: 1,
        };
        Tables::compile(policy, containers, &(32_768..=60_999), now)
    };
    let (before, after) = (compile(policy), compile(&applied));
    for (address, port, source) in packets() {
        let (was_open, service) = verdict(&before, port, address, source);
        let (is_open, made) = verdict(&after, port, address, source);
        let context = || {
            format!(
                "seed {seed}, {labels}, {publishing:?}: {address}:{port} from {source}: {service} {was_open}, then \
                 {made} {is_open}\n{text}\n{containers:#?}\n{warnings:?}"
            )
        };
        if labels == "narrow" {
            assert!(was_open || !is_open, "labels opened: {}", context());
        }
        let mut published = containers.labelled.iter().flat_map(|one| &one.published);
        if published.any(|one| one.port == port && one.at.covers(address)) {
            continue;
        }
        // One list cannot tell the addresses of the other family apart: if a container publishes the port on one of
        // them, a port that labels open for this family stays closed on all of them.
        let is_published = |one: &PublishedPort| {
            one.port == port && one.at.family() == PublishedAt::Address(address).family()
        };
        let may_close = labels == "full"
            && publishing.one_family
            && service == "none"
            && containers.published.iter().any(is_published);
        if !may_close || is_open {
            assert_eq!(is_open, was_open, "labels hold elsewhere: {}", context());
        }
        if !publishing.one_family {
            assert_eq!(made, service, "another service: {}", context());
        }
    }
}

const ADDRESSES_ALONE: Publishing = Publishing {
    one_family: false,
    shared: false,
};

#[test]
fn narrow_one_address() {
    holds("narrow", ADDRESSES_ALONE);
}

#[test]
fn full_one_address() {
    holds("full", ADDRESSES_ALONE);
}

#[test]
fn narrow_one_address_shared() {
    let shared = true;
    holds(
        "narrow",
        Publishing {
            shared,
            ..ADDRESSES_ALONE
        },
    );
}

#[test]
fn full_one_address_shared() {
    let shared = true;
    holds(
        "full",
        Publishing {
            shared,
            ..ADDRESSES_ALONE
        },
    );
}

#[test]
fn narrow_one_family() {
    let one_family = true;
    holds(
        "narrow",
        Publishing {
            one_family,
            ..ADDRESSES_ALONE
        },
    );
}

#[test]
fn full_one_family() {
    let one_family = true;
    holds(
        "full",
        Publishing {
            one_family,
            ..ADDRESSES_ALONE
        },
    );
}
