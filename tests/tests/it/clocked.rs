//! The real program with a clock that the test sets: exact rates over simulated minutes, a spoofed flood, sources with
//! a factor, and entries that expire.

use std::{collections::BTreeSet, net::IpAddr};

use guard::{
    dataplane::Replay,
    host,
    policy::{CompileInput, Containers, KernelTick, Policy, ServiceIds, Tables, Timebase},
};
use guard_common::reason::{Outcome, Reason};

use crate::frames::{flags::*, *};

pub const SECOND: i64 = 1_000_000_000;

/// The kernel program on a clock that the test sets.
pub struct Simulation {
    replay: Replay,
}

impl Simulation {
    pub fn new(policy: &str) -> Self {
        Self::with_containers(policy, &Containers::default())
    }

    pub fn with_containers(policy: &str, containers: &Containers) -> Self {
        Self::with_text(
            &format!("mode = \"enforce\"\ndocker.socket = \"\"\n{policy}"),
            containers,
        )
    }

    /// Loads the program for a whole policy.
    pub fn with_text(policy: &str, containers: &Containers) -> Self {
        Self::of_host(policy, containers, &BTreeSet::new())
    }

    /// Loads the program for a host with these addresses.
    pub fn of_host(policy: &str, containers: &Containers, own: &BTreeSet<IpAddr>) -> Self {
        let tick_ns = host::tick_ns().unwrap();
        let policy = Policy::parse(policy, "test.toml", KernelTick { tick_ns }).unwrap();
        let start = Timebase {
            world: "2026-01-01T00:00:00Z".parse().unwrap(),
            boot_ns: Replay::BOOT_NS,
        };
        let compile_input = CompileInput {
            containers,
            local_ports: &(32_768..=60_999),
            now: start,
            entries: &[],
            own_sources: own,
        };
        let tables = Tables::compile_at(&policy, &compile_input, &ServiceIds::new(&policy));
        let mut simulation = Self {
            replay: Replay::new(tables, tick_ns).unwrap(),
        };
        simulation.at(0);
        simulation
    }

    /// Sets the clock to so many nanoseconds after 2026-01-01T00:00:00Z.
    pub fn at(&mut self, ns: i64) {
        self.replay.set_clock(ns).unwrap();
    }

    /// The service that a frame is counted under, and its outcome.
    pub fn judged(&self, frame: &[u8]) -> (Option<String>, Outcome) {
        let judged = self.replay.judge(frame).unwrap();
        let name = self
            .replay
            .generation()
            .tables()
            .service_name(judged.service);
        (name.map(str::to_owned), judged.outcome)
    }

    pub fn reason(&self, frame: &[u8]) -> Reason {
        self.replay.judge(frame).unwrap().outcome.reason
    }

    /// How many UDP flows are recorded.
    pub fn flows(&self) -> usize {
        self.replay.generation().flow_count().unwrap()
    }

    pub fn sent(&self, frame: &[u8]) {
        self.replay.sent(frame).unwrap();
    }

    /// Sends a frame `per_second` times a second, evenly, and returns how many pass.
    fn offer(&mut self, frame: &[u8], per_second: i64, seconds: i64) -> i64 {
        let mut passed = 0;
        for n in 0..per_second * seconds {
            self.at(n * SECOND / per_second);
            passed += i64::from(self.reason(frame) == Reason::Allowed);
        }
        passed
    }
}

/// The offered loads, in per cent of the budget.
const LOADS: [i64; 6] = [50, 90, 105, 143, 210, 5_000];

/// Asserts that all packets pass below the budget. Above it, the rate times the time plus the burst pass, within one
/// per cent.
fn assert_exact(policy: &str, frame: &[u8], rate: i64, burst: i64) {
    const SECONDS: i64 = 60;
    for load in LOADS {
        let offered = rate * load / 100;
        let mut simulation = Simulation::new(policy);
        let passed = simulation.offer(frame, offered, SECONDS);
        if load < 100 {
            assert_eq!(passed, offered * SECONDS, "at {load} % of the budget");
            continue;
        }
        let expected = (rate * SECONDS + burst).min(offered * SECONDS);
        let error = (passed - expected).abs() as f64 / expected as f64;
        assert!(
            error < 0.01,
            "at {load} % of the budget {passed} pass instead of {expected}"
        );
    }
}

fn web(limit: &str) -> String {
    format!("[[service]]\nname = \"web\"\nports = [\"tcp/80\"]\n{limit}")
}

#[test]
fn packets_pass_at_exactly_their_rate() {
    let policy = web("limit.packets = { rate = \"100/s\", burst = 50 }");
    assert_exact(&policy, &tcp_v4(80, ACK), 100, 50);
}

#[test]
fn bytes_pass_at_exactly_their_rate() {
    // The budget is 100 frames of 1,500 bytes a second, with a burst of 50.
    let frame = ipv4(CLIENT_V4, protocol::TCP, &tcp(80, ACK, &[0; 1_446]));
    assert_eq!(frame.len(), 1_500);
    let policy = web("limit.bytes = { rate = \"150kB/s\", burst = \"75kB\" }");
    assert_exact(&policy, &frame, 100, 50);
}

#[test]
fn connections_pass_at_exactly_their_rate_and_other_segments_are_free() {
    let policy = web("limit.connections = { rate = \"100/s\", burst = 50 }");
    assert_exact(&policy, &tcp_v6(80, SYN), 100, 50);
    let mut simulation = Simulation::new(&policy);
    assert_eq!(simulation.offer(&tcp_v6(80, ACK), 10_000, 1), 10_000);
}

#[test]
fn totals_pass_at_exactly_their_rate_over_all_sources() {
    let policy = web("total.packets = { rate = \"100/s\", burst = 50 }");
    assert_exact(&policy, &tcp_v4(80, ACK), 100, 50);
    // The same with another source for each packet.
    let mut simulation = Simulation::new(&policy);
    let mut passed = 0;
    for n in 0..60 * 1_000 {
        simulation.at(n * SECOND / 1_000);
        let frame = ipv4(source(n as u32), protocol::TCP, &tcp(80, SYN, &[]));
        let reason = simulation.reason(&frame);
        passed += i64::from(reason == Reason::Allowed);
        assert!(matches!(reason, Reason::Allowed | Reason::TotalLimit));
    }
    assert!((passed - 6_050).abs() < 60, "{passed} passed");
}

#[test]
fn every_budget_has_its_reason() {
    let small = "{ rate = \"1/h\", burst = 1 }";
    for (limit, reason) in [
        (format!("limit.packets = {small}"), Reason::PacketLimit),
        (
            "limit.bytes = { rate = \"1MB/h\", burst = \"1600B\" }".to_owned(),
            Reason::ByteLimit,
        ),
        (
            format!("limit.connections = {small}"),
            Reason::ConnectionLimit,
        ),
        (format!("total.packets = {small}"), Reason::TotalLimit),
        (format!("total.connections = {small}"), Reason::TotalLimit),
        (
            "total.bytes = { rate = \"1MB/h\", burst = \"1600B\" }".to_owned(),
            Reason::TotalLimit,
        ),
    ] {
        let simulation = Simulation::new(&web(&limit));
        let frame = ipv4(CLIENT_V4, protocol::TCP, &tcp(80, SYN, &[0; 1_446]));
        assert_eq!(simulation.reason(&frame), Reason::Allowed, "{limit}");
        assert_eq!(simulation.reason(&frame), reason, "{limit}");
    }
}

#[test]
fn what_one_budget_drops_is_not_charged_to_another() {
    let mut simulation =
        Simulation::new(&web("limit.packets = { rate = \"1000/s\", burst = 1000 }
         limit.connections = { rate = \"1/h\", burst = 1 }
         total.packets = { rate = \"1000/s\", burst = 1000 }"));
    assert_eq!(simulation.reason(&tcp_v4(80, SYN)), Reason::Allowed);
    for _ in 0..5_000 {
        assert_eq!(simulation.reason(&tcp_v4(80, SYN)), Reason::ConnectionLimit);
    }
    simulation.at(SECOND);
    for _ in 0..1_000 {
        assert_eq!(simulation.reason(&tcp_v4(80, ACK)), Reason::Allowed);
    }
}

#[test]
fn a_clock_that_stands_still_or_goes_back_frees_no_second_burst() {
    // The program reads a service's only budget once, and one of several budgets twice.
    let only = "limit.packets = { rate = \"10/s\", burst = 10 }";
    for limits in [only, &format!("{only}\nlimit.connections = \"1k/s\"")] {
        let mut simulation = Simulation::new(&web(limits));
        simulation.at(100 * SECOND);
        let frame = tcp_v4(80, ACK);
        for _ in 0..10 {
            assert_eq!(simulation.reason(&frame), Reason::Allowed);
        }
        assert_eq!(simulation.reason(&frame), Reason::PacketLimit);
        simulation.at(50 * SECOND);
        assert_eq!(simulation.reason(&frame), Reason::PacketLimit);
        // The bucket refills from the new time: the source need not wait until the clock is where it was.
        simulation.at(50 * SECOND + SECOND / 10);
        assert_eq!(simulation.reason(&frame), Reason::Allowed, "{limits}");
        assert_eq!(simulation.reason(&frame), Reason::PacketLimit);
    }
}

#[test]
fn an_exemption_that_ends_does_not_hide_a_wider_one() {
    let source =
        |name, cidr, end| format!("[[source]]\nname = \"{name}\"\ncidrs = [\"{cidr}\"]\n{end}\n");
    let policy = [
        web("limit.packets = { rate = \"1/h\", burst = 1 }\n"),
        source("office", "198.51.100.0/24", "exempt = true"),
        source(
            "floor",
            "198.51.100.0/28",
            "factor = 3\nexpires = 2026-01-01T00:00:20Z",
        ),
        source(
            "desk",
            "198.51.100.7",
            "factor = 2\nexpires = 2026-01-01T00:00:10Z",
        ),
    ];
    let frame = tcp_v4(80, ACK);
    for (seconds, expected) in [
        (
            0,
            [
                Reason::Allowed,
                Reason::Allowed,
                Reason::PacketLimit,
                Reason::PacketLimit,
            ],
        ),
        (
            15,
            [
                Reason::Allowed,
                Reason::Allowed,
                Reason::Allowed,
                Reason::PacketLimit,
            ],
        ),
        (
            25,
            [
                Reason::Allowed,
                Reason::Exempt,
                Reason::Exempt,
                Reason::Exempt,
            ],
        ),
    ] {
        let mut simulation = Simulation::new(&policy.concat());
        simulation.at(seconds * SECOND);
        let found = [(); 4].map(|()| simulation.reason(&frame));
        assert_eq!(found, expected, "after {seconds} s");
    }
}

#[test]
fn four_exemptions_that_have_ended_hide_none_behind_them() {
    let mut policy = web("limit.packets = { rate = \"1/h\", burst = 1 }\n");
    let exempt = |name: String, cidr, end| {
        format!("[[source]]\nname = \"{name}\"\ncidrs = [\"{cidr}\"]\nexempt = true\n{end}\n")
    };
    for cidr in [
        "198.51.100.7",
        "198.51.100.6/31",
        "198.51.100.4/30",
        "198.51.100.0/29",
    ] {
        policy += &exempt(
            format!("past-{}", cidr.replace("/", "-")),
            cidr,
            "expires = 2026-01-01T00:00:10Z",
        );
    }
    policy += &exempt("office".to_owned(), "198.51.0.0/16", "");
    let mut simulation = Simulation::new(&policy);
    let frame = tcp_v4(80, ACK);
    simulation.at(11 * SECOND);
    assert_eq!(simulation.reason(&frame), Reason::Allowed);
    assert_eq!(simulation.reason(&frame), Reason::Exempt);
}

#[test]
fn limits_bound_what_reaches_no_service() {
    let policy = format!(
        "scope = \"host\"\n[limits]\npackets = {{ rate = \"1/h\", burst = 2 }}\n{}",
        web("")
    );
    let simulation = Simulation::new(&policy);
    let segment = tcp_v4(9999, ACK);
    let fragment = as_fragment(&tcp_v4(8000, SYN), 9, false);
    assert_eq!(simulation.reason(&segment), Reason::Established);
    assert_eq!(simulation.reason(&fragment), Reason::Fragment);
    assert_eq!(simulation.reason(&segment), Reason::PacketLimit);
    assert_eq!(simulation.reason(&fragment), Reason::PacketLimit);
    assert_eq!(
        simulation.reason(&tcp_v4(80, ACK)),
        Reason::Allowed,
        "a service has its own budget"
    );
    assert_eq!(
        simulation.reason(&other(0x0806)),
        Reason::NotGuarded,
        "ARP has no source"
    );
    let control = ipv4(CLIENT_V4, protocol::UDP, &udp(67, 68, &[0; 240]));
    assert_eq!(simulation.reason(&control), Reason::Control);
}

#[test]
fn what_reaches_no_service_has_a_total_of_its_own() {
    let policy = format!(
        "scope = \"host\"\n[limits.total]\npackets = {{ rate = \"1/h\", burst = 3 }}\n{}",
        web("")
    );
    let simulation = Simulation::new(&policy);
    let segment = |n| ipv4(source(n), protocol::TCP, &tcp(9999, ACK, &[]));
    let reasons = (0..5).map(|n| simulation.reason(&segment(n)));
    let expected = [
        [Reason::Established; 3].as_slice(),
        &[Reason::TotalLimit; 2],
    ]
    .concat();
    assert_eq!(reasons.collect::<Vec<_>>(), expected);
    assert_eq!(simulation.reason(&tcp_v4(80, ACK)), Reason::Allowed);
    // The same with a budget for each source besides.
    let policy = policy.replace(
        "[limits.total]",
        "[limits]\nconnections = \"1/s\"\n[limits.total]",
    );
    let simulation = Simulation::new(&policy);
    let reasons = (0..5).map(|n| simulation.reason(&segment(n)));
    assert_eq!(reasons.collect::<Vec<_>>(), expected);
}

/// A different host address in 128.0.0.0/2 for each number below 2^30.
fn source(n: u32) -> std::net::Ipv4Addr {
    // Multiplication by an odd number is a bijection modulo 2^30, so all addresses differ.
    (0x8000_0000 | n.wrapping_mul(0x9e37_79b1) & 0x3fff_ffff).into()
}

/// Simulates one second: 5 million packets come from as many spoofed sources, and a thousand real sources send at half
/// their budget of `rate` a second. Returns how many packets the real sources sent, and how many of them were dropped.
fn flood_among(rate: u32) -> (u32, u32) {
    const REAL: u32 = 1_000;
    const FLOOD: u32 = 5_000_000;
    const STEPS: u32 = 1_000;
    let policy = format!("limit.packets = {{ rate = \"{rate}/s\", burst = {rate} }}");
    let mut simulation = Simulation::new(&web(&policy));
    let mut spoofed = ipv4(source(0), protocol::TCP, &tcp(80, SYN, &[]));
    let mut real = ipv4(source(0), protocol::TCP, &tcp(80, ACK, &[]));
    let set_source = |frame: &mut Vec<u8>, n| {
        frame[IPV4_AT + 12..IPV4_AT + 16].copy_from_slice(&source(n).octets());
    };
    let (mut offered, mut dropped) = (0, 0);
    for step in 0..STEPS {
        simulation.at(i64::from(step) * SECOND / i64::from(STEPS));
        for n in 0..FLOOD / STEPS {
            set_source(&mut spoofed, REAL + step * (FLOOD / STEPS) + n);
            simulation.reason(&spoofed);
        }
        // Each real source sends once in `every` steps, in turn.
        let every = STEPS / (rate / 2);
        for n in (0..REAL).filter(|n| (n + step) % every == 0) {
            set_source(&mut real, n);
            offered += 1;
            dropped += u32::from(simulation.reason(&real) != Reason::Allowed);
        }
    }
    (offered, dropped)
}

#[test]
fn no_flood_of_spoofed_sources_takes_the_budget_of_a_real_one() {
    // 5 million packets over 2^18 cells are 19 a second in each cell. With the real source's 50 that fits into a budget
    // of 100 a second.
    let (offered, dropped) = flood_among(100);
    assert_eq!(offered, 50_000);
    assert_eq!(dropped, 0, "packets of real sources were dropped");
}

#[test]
fn where_the_flood_fills_every_cell_it_ends() {
    // The same flood against a budget of 10 a second: 19 packets a second fill each cell.
    let (offered, dropped) = flood_among(10);
    assert_eq!(offered, 5_000);
    assert!(dropped > offered / 10, "{dropped} of {offered} dropped");
}

#[test]
fn a_flood_on_a_slow_budget_leaves_the_budgets_of_other_services_alone() {
    let slow = "[[service]]
        name = \"slow\"
        ports = [\"tcp/25\"]
        limit.packets = { rate = \"1/h\", burst = 1 }";
    let simulation = Simulation::new(&format!("{slow}\n{}", web("limit.packets = \"2k/s\"")));
    let exhausted = ipv4(source(0), protocol::TCP, &tcp(25, SYN, &[]));
    assert_eq!(simulation.reason(&exhausted), Reason::Allowed);
    for n in 1..300_000 {
        let port = if n % 2 == 0 { 25 } else { 80 };
        simulation.reason(&ipv4(source(n), protocol::TCP, &tcp(port, SYN, &[])));
    }
    assert_eq!(
        simulation.reason(&exhausted),
        Reason::PacketLimit,
        "the exhausted budget was refilled"
    );
    for n in 300_000..301_000 {
        let fresh = ipv4(source(n), protocol::TCP, &tcp(80, SYN, &[]));
        assert_eq!(
            simulation.reason(&fresh),
            Reason::Allowed,
            "a new source was over its budget"
        );
    }
}

#[test]
fn a_crowd_has_its_factor_times_every_budget() {
    let crowd = "[[source]]
        name = \"office\"
        cidrs = [\"198.51.100.0/24\"]
        factor = 50";
    for (limit, frame) in [
        (
            "limit.packets = { rate = \"10/s\", burst = 10 }",
            tcp_v4(80, ACK),
        ),
        (
            "limit.connections = { rate = \"10/s\", burst = 10 }",
            tcp_v4(80, SYN),
        ),
    ] {
        let policy = format!("{}\n{crowd}", web(limit));
        let mut simulation = Simulation::new(&policy);
        // 2,000 users behind one address, each with a packet every five seconds: 400 packets a second of a budget of
        // 500.
        assert_eq!(simulation.offer(&frame, 400, 60), 400 * 60);
        let mut simulation = Simulation::new(&policy);
        let passed = simulation.offer(&frame, 1_000, 60);
        assert!((passed - (500 * 60 + 500)).abs() < 305, "{passed} passed");
    }
    // Other sources have the usual budget.
    let policy = format!(
        "{}\n{crowd}",
        web("limit.packets = { rate = \"10/s\", burst = 10 }")
    );
    let mut simulation = Simulation::new(&policy);
    let other = ipv4(OTHER_V4, protocol::TCP, &tcp(80, ACK, &[]));
    assert_eq!(simulation.offer(&other, 100, 10), 10 * 10 + 9);
}

#[test]
fn an_exempt_source_is_never_limited_and_still_reaches_no_closed_port() {
    let policy = format!(
        "scope = \"host\"
         {}
         total.packets = {{ rate = \"1/h\", burst = 1 }}
         [[source]]
         name = \"monitor\"
         cidrs = [\"198.51.100.7\"]
         exempt = true
         expires = 2026-01-01T00:01:00Z",
        web("limit.packets = { rate = \"1/h\", burst = 1 }")
    );
    let mut simulation = Simulation::new(&policy);
    assert_eq!(simulation.reason(&tcp_v4(80, SYN)), Reason::Allowed);
    for _ in 0..100 {
        assert_eq!(simulation.reason(&tcp_v4(80, SYN)), Reason::Exempt);
    }
    assert_eq!(simulation.reason(&tcp_v4(8000, SYN)), Reason::ClosedPort);
    simulation.at(61 * SECOND);
    assert_eq!(
        simulation.reason(&tcp_v4(80, SYN)),
        Reason::PacketLimit,
        "it has ended"
    );
}

#[test]
fn a_deny_entry_ends_in_the_kernel() {
    let policy = format!(
        "{}
         [[source]]
         name = \"scanner\"
         cidrs = [\"198.51.100.7\", \"192.0.2.0/24\", \"2001:db8:51::7\", \"2001:db8:99::/48\"]
         deny = true
         expires = 2026-01-01T00:01:00Z",
        web("")
    );
    let mut simulation = Simulation::new(&policy);
    let frames = [
        tcp_v4(80, SYN),
        ipv4(OTHER_V4, protocol::TCP, &tcp(80, SYN, &[])),
        tcp_v6(80, SYN),
        ipv6(OTHER_V6, protocol::TCP, &tcp(80, SYN, &[])),
        // The source is also dropped as a fragment and on an established connection.
    ];
    for (ns, expected) in [
        (0, Reason::DeniedSource),
        (59 * SECOND, Reason::DeniedSource),
        (60 * SECOND, Reason::Allowed),
        (1_000 * SECOND, Reason::Allowed),
    ] {
        simulation.at(ns);
        for frame in &frames {
            assert_eq!(simulation.reason(frame), expected, "after {ns} ns");
        }
    }
    simulation.at(0);
    let fragment = as_fragment(&tcp_v4(80, SYN), 9, false);
    assert_eq!(simulation.reason(&fragment), Reason::DeniedSource);
    assert_eq!(simulation.reason(&tcp_v4(80, ACK)), Reason::DeniedSource);
    let control = ipv4(CLIENT_V4, protocol::UDP, &udp(67, 68, &[0; 240]));
    assert_eq!(
        simulation.reason(&control),
        Reason::Control,
        "control always passes"
    );
}

#[test]
fn what_a_named_source_may_reach_ends_with_it() {
    let policy = format!(
        "[[service]]
         name = \"database\"
         ports = [\"tcp/5432\"]
         from = [\"contractor\", \"198.51.100.64/26\"]
         [[source]]
         name = \"contractor\"
         cidrs = [\"198.51.100.0/24\", \"2001:db8:51::/48\"]
         expires = 2026-01-01T00:01:00Z\n{}",
        web("")
    );
    let mut simulation = Simulation::new(&policy);
    let lasting = ipv4(
        [198, 51, 100, 66].into(),
        protocol::TCP,
        &tcp(5432, SYN, &[]),
    );
    for (ns, expected) in [
        (0, Reason::Allowed),
        (61 * SECOND, Reason::SourceNotAllowed),
    ] {
        simulation.at(ns);
        assert_eq!(simulation.reason(&tcp_v4(5432, SYN)), expected);
        assert_eq!(simulation.reason(&tcp_v6(5432, SYN)), expected);
        assert_eq!(simulation.reason(&lasting), Reason::Allowed);
    }
}

#[test]
fn an_end_that_is_centuries_off_is_not_over() {
    for expires in ["2700-01-01T00:00:00Z", "9999-12-31T23:59:59Z"] {
        let policy = format!(
            "[[service]]
             name = \"database\"
             ports = [\"tcp/5432\"]
             from = [\"admin\"]
             [[source]]
             name = \"admin\"
             cidrs = [\"198.51.100.0/24\"]
             expires = {expires}
             [[source]]
             name = \"scanner\"
             cidrs = [\"192.0.2.9\"]
             deny = true
             expires = {expires}\n{}",
            web("")
        );
        let mut simulation = Simulation::new(&policy);
        let denied = ipv4(OTHER_V4, protocol::TCP, &tcp(80, SYN, &[]));
        for ns in [0, 1_000_000 * SECOND] {
            simulation.at(ns);
            assert_eq!(simulation.reason(&tcp_v4(5432, SYN)), Reason::Allowed);
            assert_eq!(simulation.reason(&denied), Reason::DeniedSource);
        }
    }
}

#[test]
fn a_deny_entry_that_ends_does_not_hide_a_wider_one() {
    let source = |name, cidrs, end| {
        format!("[[source]]\nname = \"{name}\"\ncidrs = [{cidrs}]\ndeny = true\n{end}\n")
    };
    let policy = [
        web("\n"),
        source("net", "\"198.51.0.0/16\", \"2001:db8::/32\"", ""),
        source(
            "floor",
            "\"198.51.100.0/28\", \"2001:db8:51::/64\"",
            "expires = 2026-01-01T00:01:00Z",
        ),
    ];
    let mut simulation = Simulation::new(&policy.concat());
    for second in [0, 61] {
        simulation.at(second * SECOND);
        for frame in [tcp_v4(80, SYN), tcp_v6(80, SYN)] {
            assert_eq!(simulation.reason(&frame), Reason::DeniedSource, "{second}");
        }
    }
}
