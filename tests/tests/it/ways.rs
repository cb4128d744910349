//! Compares two ways to the same verdict: the fast path with the slow path, and tables that were changed in use with
//! tables that were filled anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    thread,
    time::Duration,
};

use fastrand::Rng;
use guard::{
    dataplane::{Generation, PortUpdates, Replay, needs_new_generation},
    host,
    policy::{
        Action, CompileInput, Containers, Entry, KernelTick, Policy, PublishedPort, ServiceIds,
        Tables, Timebase,
    },
};
use guard_common::{
    layout,
    reason::{Reason, Verdict},
};
use ipnet::IpNet;

use crate::{
    clocked::SECOND,
    frames::{self, flags::*, *},
    judge::test_run,
    model::generate::{GeneratedPolicy, ModelPolicy, answer, packet, policy_of},
};

const LOCAL_PORTS: std::ops::RangeInclusive<u16> = 32_768..=60_999;

/// Sources of packets that become addresses of the host for a while.
const OWN: [&str; 3] = ["198.51.100.7", "192.0.2.9", "2001:db8:51::7"];

const PREFIXES: [&str; 10] = [
    "198.51.100.7/32",
    "198.51.100.0/24",
    "198.51.0.0/16",
    "192.0.2.9/32",
    "192.0.2.0/25",
    "2001:db8:51::7/128",
    "2001:db8:51::/64",
    "2001:db8:51::/48",
    "2001:db8:99::9/128",
    "2001:db8:99::/126",
];

fn entry(rng: &mut Rng, services: &[String], now: Timebase, lasts: &[Option<Duration>]) -> Entry {
    let service = rng.usize(..services.len() + 1);
    Entry {
        id: rng.u64(..),
        action: if rng.u8(..3) == 0 {
            Action::Allow
        } else {
            Action::Deny
        },
        prefix: PREFIXES[rng.usize(..PREFIXES.len())]
            .parse::<IpNet>()
            .unwrap(),
        service: services.get(service).cloned(),
        owner: None,
        reason: None,
        by: None,
        process: None,
        created: now.world,
        expires: lasts[rng.usize(..lasts.len())].map(|lasts| now.world + lasts),
    }
}

/// The frame with 64 bytes behind its packet, so that it takes the slow path. `None` if the frame does not end with its
/// packet: more bytes could change the packet.
fn with_trailer(frame: &[u8]) -> Option<Vec<u8>> {
    let half = |at: usize| {
        Some(usize::from(u16::from_be_bytes([
            *frame.get(at)?,
            *frame.get(at + 1)?,
        ])))
    };
    let mut at = 12;
    for _ in 0..2 {
        if matches!(half(at)?, 0x8100 | 0x88a8) {
            at += 4;
        }
    }
    let end = match half(at)? {
        0x0800 => at + 2 + half(at + 4)?,
        0x86dd => at + 2 + 40 + half(at + 6)?,
        _ => return None,
    };
    (end == frame.len()).then(|| [frame, &[0x50; 64]].concat())
}

#[test]
fn the_fast_path_and_the_slow_path_return_the_same_verdict() {
    const POLICIES: u64 = 24;
    const PACKETS: u64 = 8_000;
    let mut reached = BTreeMap::<_, u64>::new();
    for seed in 0..POLICIES {
        let mut rng = Rng::with_seed(0xa77a_c000 + seed);
        let mut policy: ModelPolicy = policy_of(1_000 + seed);
        if rng.u8(..4) != 0 {
            policy.mode = "enforce";
        }
        for service in policy.services.iter_mut().chain(&mut policy.limits) {
            if rng.bool() {
                service.from.clear();
            }
            for (budgets, adds) in [
                (&mut service.limit, rng.bool()),
                (&mut service.total, false),
            ] {
                // Without byte budgets: the two frames differ in length.
                budgets.retain(|(kind, _)| *kind != "byte");
                if adds && budgets.iter().all(|(kind, _)| *kind != "connection") {
                    budgets.push(("connection", 1));
                }
                for (_, burst) in budgets {
                    *burst = rng.u64(1..6);
                }
            }
        }
        if policy
            .limits
            .as_ref()
            .is_some_and(|limits| limits.limit.is_empty())
        {
            policy.limits = None;
        }
        let GeneratedPolicy {
            text,
            containers,
            own,
        } = policy.to_text();
        let services: Vec<String> = policy.services.iter().map(|s| s.name.clone()).collect();
        let start = Timebase {
            world: "2026-01-01T00:00:00Z".parse().unwrap(),
            boot_ns: Replay::BOOT_NS,
        };
        let lasts = [
            None,
            None,
            Some(Duration::from_secs(5)),
            Some(Duration::from_secs(12)),
        ];
        let entries: Vec<Entry> = (0..rng.usize(..6))
            .map(|_| entry(&mut rng, &services, start, &lasts))
            .collect();
        let tick_ns = host::tick_ns().unwrap();
        let parsed = Policy::parse(&text, "test.toml", KernelTick { tick_ns }).unwrap();
        let compile_input = CompileInput {
            containers: &containers,
            local_ports: &LOCAL_PORTS,
            now: start,
            entries: &entries,
            own_sources: &own,
        };
        let mut ways = [(); 2].map(|()| {
            let tables = Tables::compile_at(&parsed, &compile_input, &ServiceIds::new(&parsed));
            Replay::new(tables, tick_ns).unwrap()
        });
        let mut clock = 0;
        let mut question: Option<Vec<u8>> = None;
        for n in 0..PACKETS {
            if n % 8 == 0 {
                // The clock also goes back.
                clock += rng.i64(-SECOND / 100..SECOND / 25);
                for way in &mut ways {
                    way.set_clock(clock).unwrap();
                }
            }
            let mut packet = packet(&mut rng);
            if let Some(asked) = question.as_ref().filter(|_| rng.u8(..6) == 0) {
                packet.outgoing = rng.bool();
                packet.frame = if packet.outgoing {
                    answer(asked).unwrap()
                } else {
                    asked.clone()
                };
            }
            let frame = &packet.frame;
            if packet.outgoing {
                ways.iter().for_each(|way| way.sent(frame).unwrap());
                continue;
            }
            if answer(frame).is_some() {
                question = Some(frame.clone());
            }
            let long = with_trailer(frame);
            let quick = ways[0].judge(frame).unwrap();
            let slow = ways[1].judge(long.as_ref().unwrap_or(frame)).unwrap();
            assert_eq!(
                quick, slow,
                "seed {seed}, packet {n}\n{text}\n{entries:#?}\n{frame:02x?}"
            );
            if long.is_some() {
                *reached.entry(quick.outcome.reason.name()).or_default() += 1;
            }
        }
    }
    // Each of these reasons must be compared in more than 50 packets.
    for reason in [
        Reason::Allowed,
        Reason::ClosedPort,
        Reason::ConnectionLimit,
        Reason::ContainerAddress,
        Reason::DeniedSource,
        Reason::Established,
        Reason::Exempt,
        Reason::PacketLimit,
        Reason::Reply,
        Reason::SourceNotAllowed,
        Reason::TotalLimit,
    ] {
        let count = reached.get(reason.name()).copied().unwrap_or_default();
        assert!(count > 50, "only {count} packets were {}", reason.name());
    }
}

/// Runs all frames until the bursts are used up, and returns the counters of one more run.
fn count(generation: &Generation, frames: &[Vec<u8>]) -> BTreeMap<String, (u64, u64)> {
    let read = || -> BTreeMap<String, (u64, u64)> {
        let rows = generation.counters().unwrap().into_iter();
        rows.map(|row| {
            let key = format!("{:?} {:?}", row.service, row.outcome);
            (key, (row.packets, row.bytes))
        })
        .collect()
    };
    for _ in 0..2 {
        frames
            .iter()
            .for_each(|frame| _ = test_run(generation, frame));
    }
    let before = read();
    frames
        .iter()
        .for_each(|frame| _ = test_run(generation, frame));
    let mut after = read();
    for (key, (packets, bytes)) in before {
        let row = after.get_mut(&key).unwrap();
        row.0 -= packets;
        row.1 -= bytes;
    }
    after.retain(|_, row| *row != (0, 0));
    after
}

#[test]
fn tables_that_are_changed_in_any_order_judge_as_those_that_are_filled_afresh() {
    const ROUNDS: u64 = 3;
    const CHANGES: u32 = 25;
    // Some are ports of services, and some are on an address that no frame is sent to.
    const PUBLISHED: [&str; 6] = [
        "0.0.0.0:tcp/8001",
        "203.0.113.10:tcp/22",
        "203.0.113.11:tcp/22",
        "203.0.113.10:tcp/8001",
        "[2001:db8:113::10]:tcp/8000",
        "[2001:db8:113::10]:udp/443",
    ];
    let text = "mode = \"enforce\"\nscope = \"host\"\ndocker.socket = \"\"\n\
        [[service]]\nname = \"web\"\nports = [\"tcp/80\"]\nlimit.packets = { rate = \"1/h\", burst = 1 }\n\
        [[service]]\nname = \"some\"\nports = [\"tcp/443\", \"udp/443\"]\nfrom = [\"198.51.100.0/24\", \"2001:db8:51::/48\"]\n\
        [[service]]\nname = \"here\"\nports = [\"tcp/22\"]\naddress = \"203.0.113.10\"\n\
        [[service]]\nname = \"seen\"\nports = [\"tcp/8000\"]\nmode = \"observe\"\n";
    let services = ["web", "some", "here", "seen", "gone"].map(str::to_owned);
    let mut shown = Vec::new();
    for port in [80, 443, 22, 8000, 8001] {
        for source in [CLIENT_V4, OTHER_V4] {
            shown.push(ipv4(source, protocol::TCP, &tcp(port, SYN, &[])));
        }
        for source in [CLIENT_V6, OTHER_V6] {
            shown.push(ipv6(source, protocol::TCP, &tcp(port, SYN, &[])));
        }
    }
    shown.push(frames::udp_v4(443));
    // And the frames for the slow path.
    let long: Vec<_> = shown
        .iter()
        .filter_map(|frame| with_trailer(frame))
        .collect();
    shown.extend(long);
    let tick_ns = host::tick_ns().unwrap();
    let policy = Policy::parse(text, "test.toml", KernelTick { tick_ns }).unwrap();
    let service_ids = ServiceIds::new(&policy);
    for seed in 0..ROUNDS {
        let mut rng = Rng::with_seed(seed);
        let mut entries: Vec<Entry> = Vec::new();
        let mut containers = Containers::default();
        let mut own: BTreeSet<IpAddr> = BTreeSet::new();
        let compile = |entries: &[Entry], containers: &Containers, own: &BTreeSet<IpAddr>| {
            let compile_input = CompileInput {
                containers,
                local_ports: &LOCAL_PORTS,
                now: host::timebase().unwrap(),
                entries,
                own_sources: own,
            };
            Tables::compile_at(&policy, &compile_input, &service_ids)
        };
        let mut running = Generation::load(compile(&entries, &containers, &own), tick_ns).unwrap();
        for n in 0..CHANGES {
            for _ in 0..rng.usize(1..4) {
                if rng.bool() && !entries.is_empty() {
                    entries.swap_remove(rng.usize(..entries.len()));
                } else {
                    let lasts = [
                        None,
                        Some(Duration::from_millis(40)),
                        Some(Duration::from_secs(3_600)),
                    ];
                    entries.push(entry(
                        &mut rng,
                        &services,
                        host::timebase().unwrap(),
                        &lasts,
                    ));
                }
            }
            if rng.u8(..4) == 0 {
                containers.published.clear();
                for published in PUBLISHED {
                    if rng.bool() {
                        let ports = PublishedPort::parse(published).unwrap();
                        containers.published.extend(ports);
                    }
                }
            }
            if rng.u8(..4) == 0 {
                own = OWN
                    .iter()
                    .filter(|_| rng.bool())
                    .map(|address| address.parse().unwrap())
                    .collect();
            }
            running
                .change(
                    compile(&entries, &containers, &own),
                    &mut PortUpdates::default(),
                )
                .unwrap();
            // The short entries expire in the kernel.
            thread::sleep(Duration::from_millis(50));
            let fresh = Generation::load(compile(&entries, &containers, &own), tick_ns).unwrap();
            let (found, expected) = (count(&running, &shown), count(&fresh, &shown));
            assert_eq!(found, expected, "seed {seed}, change {n}: {entries:#?}");
        }
    }
}

#[test]
fn more_publications_on_one_address_than_there_is_room_for_close_what_fits_and_ask_for_another_generation()
 {
    let tick_ns = host::tick_ns().unwrap();
    let text = "mode = \"enforce\"\n";
    let policy = Policy::parse(text, "test.toml", KernelTick { tick_ns }).unwrap();
    let service_ids = ServiceIds::new(&policy);
    let compile = |published: &str| {
        let containers = Containers {
            published: PublishedPort::parse(published).unwrap(),
            ..Containers::default()
        };
        let compile_input = CompileInput {
            containers: &containers,
            local_ports: &LOCAL_PORTS,
            now: host::timebase().unwrap(),
            entries: &[],
            own_sources: &BTreeSet::new(),
        };
        Tables::compile_at(&policy, &compile_input, &service_ids)
    };
    let closed = |generation: &Generation| {
        (1..=1_000)
            .filter(|port| test_run(generation, &tcp_v4(*port, SYN)) == Verdict::Drop)
            .count()
    };
    let none = &mut PortUpdates::default();
    let mut running = Generation::load(compile("203.0.113.11:tcp/1"), tick_ns).unwrap();
    let all = "203.0.113.10:tcp/1-1000";
    let error = running.change(compile(all), none).unwrap_err();
    assert!(needs_new_generation(&error), "{error}");
    let fitted = closed(&running);
    assert!(
        (200..1_000).contains(&fitted),
        "{fitted} of 1000 are closed"
    );
    assert_eq!(running.tables().ports.addressed.len(), fitted);
    // A second change with the same ports has no more room, and removes none.
    running.change(compile(all), none).unwrap_err();
    assert_eq!(closed(&running), fitted);
    let fresh = Generation::load(compile(all), tick_ns).unwrap();
    assert_eq!(closed(&fresh), 1_000);
    // Removed publications make room.
    running
        .change(compile("203.0.113.10:tcp/901-1000"), none)
        .unwrap();
    assert_eq!(closed(&running), 100);
}

#[test]
fn all_addresses_of_a_host_may_change_at_once() {
    let tick_ns = host::tick_ns().unwrap();
    let text = "mode = \"enforce\"\n[[service]]\nname = \"web\"\nports = [\"tcp/80\"]\n";
    let policy = Policy::parse(text, "test.toml", KernelTick { tick_ns }).unwrap();
    let service_ids = ServiceIds::new(&policy);
    // Two disjoint sets, each as large as the table.
    let addresses = |network: u32| -> BTreeSet<IpAddr> {
        let numbers = 0..layout::MAX_OWN;
        numbers
            .map(|number| IpAddr::from(Ipv4Addr::from(network + number)))
            .collect()
    };
    let (before, after) = (addresses(0xc612_0000), addresses(0xc613_0000));
    let compile_input = CompileInput {
        containers: &Containers::default(),
        local_ports: &LOCAL_PORTS,
        now: host::timebase().unwrap(),
        entries: &[],
        own_sources: &before,
    };
    let tables = Tables::compile_at(&policy, &compile_input, &service_ids);
    let mut running = Generation::load(tables, tick_ns).unwrap();
    let judged = |generation: &Generation, own: &BTreeSet<IpAddr>| {
        let mut verdicts = own.iter().step_by(1_000).map(|source| {
            let IpAddr::V4(source) = source else {
                unreachable!("all addresses are IPv4")
            };
            let segment = tcp(80, SYN, &[]);
            test_run(generation, &ipv4(*source, protocol::TCP, &segment))
        });
        let first = verdicts.next().unwrap();
        assert!(verdicts.all(|verdict| verdict == first));
        first
    };
    assert_eq!(judged(&running, &before), Verdict::Drop);
    assert_eq!(judged(&running, &after), Verdict::Pass);
    running.change_own_sources(&after).unwrap();
    assert_eq!(judged(&running, &before), Verdict::Pass);
    assert_eq!(judged(&running, &after), Verdict::Drop);
    assert_eq!(running.tables().own_sources, after);
}
