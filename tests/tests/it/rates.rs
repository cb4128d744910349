//! The budgets of a source, in the real program with the kernel's clock.

use std::{
    thread,
    time::{Duration, Instant},
};

use guard_common::reason::Reason::{Allowed, PacketLimit};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::{
    frames::{
        CLIENT_V4, OTHER_V4,
        flags::{ACK, SYN},
        ipv4, ipv6,
        protocol::TCP,
        tcp,
    },
    judge::{ProgramUnderTest, because, observed},
};

/// A policy whose budgets refill so slowly that no packet is refilled during a test.
fn policy(mode: &str, per: &str) -> String {
    format!(
        "mode = \"{mode}\"
         docker.socket = \"\"
         [[service]]
         name = \"web\"
         ports = [\"tcp/80\"]
         [service.limit]
         packets = {{ rate = \"1/h\", burst = 3 }}
         per = {{ {per} }}
         [[service]]
         name = \"mail\"
         ports = [\"tcp/25\"]
         [service.limit]
         packets = {{ rate = \"1/h\", burst = 1 }}"
    )
}

const WEB: Option<&str> = Some("web");

fn from_v4(address: &str, port: u16) -> Vec<u8> {
    ipv4(address.parse().unwrap(), TCP, &tcp(port, SYN, &[]))
}

fn from_v6(address: &str) -> Vec<u8> {
    ipv6(address.parse().unwrap(), TCP, &tcp(80, SYN, &[]))
}

/// Sends three packets that pass, and two that are dropped.
fn exhaust(judge: &ProgramUnderTest, frame: &[u8]) {
    for _ in 0..3 {
        judge.assert("within the burst", frame, &because(WEB, Allowed));
    }
    for _ in 0..2 {
        judge.assert("over the burst", frame, &because(WEB, PacketLimit));
    }
}

#[test]
fn a_source_gets_its_burst_and_no_more_and_no_other_pays_for_it() {
    let judge = ProgramUnderTest::new(&policy("enforce", ""), &[]);
    exhaust(&judge, &ipv4(CLIENT_V4, TCP, &tcp(80, SYN, &[])));
    exhaust(&judge, &ipv4(OTHER_V4, TCP, &tcp(80, SYN, &[])));
    exhaust(&judge, &from_v6("2001:db8::1"));
}

#[test]
fn every_service_has_budgets_of_its_own() {
    let judge = ProgramUnderTest::new(&policy("enforce", ""), &[]);
    exhaust(&judge, &from_v4("198.51.100.7", 80));
    let mail = from_v4("198.51.100.7", 25);
    judge.assert("another service", &mail, &because(Some("mail"), Allowed));
    judge.assert(
        "another service",
        &mail,
        &because(Some("mail"), PacketLimit),
    );
}

#[test]
fn a_prefix_counts_as_one_source() {
    let judge = ProgramUnderTest::new(&policy("enforce", "ipv4 = 24, ipv6 = 56"), &[]);
    exhaust(&judge, &from_v4("198.51.100.7", 80));
    let expected = because(WEB, PacketLimit);
    judge.assert("same /24", &from_v4("198.51.100.200", 80), &expected);
    exhaust(&judge, &from_v4("198.51.101.7", 80));
    exhaust(&judge, &from_v6("2001:db8::1"));
    judge.assert("same /56", &from_v6("2001:db8:0:ff::9"), &expected);
    exhaust(&judge, &from_v6("2001:db8:0:100::1"));
}

#[test]
fn a_client_that_walks_through_its_64_stays_one_source() {
    let judge = ProgramUnderTest::new(&policy("enforce", ""), &[]);
    exhaust(&judge, &from_v6("2001:db8::1"));
    for n in 2..1000 {
        let frame = from_v6(&format!("2001:db8::{n:x}"));
        judge.assert("same /64", &frame, &because(WEB, PacketLimit));
    }
}

#[test]
fn observed_a_budget_drops_nothing() {
    let judge = ProgramUnderTest::new(&policy("observe", ""), &[]);
    let frame = from_v4("198.51.100.7", 80);
    for _ in 0..3 {
        judge.assert("within the burst", &frame, &because(WEB, Allowed));
    }
    for _ in 0..3 {
        judge.assert("over the burst", &frame, &observed(WEB, PacketLimit));
    }
}

/// A burst so large that packets are prepaid (guard-common/src/account.rs).
const LARGE: u64 = 1_500;

fn large(limit: &str) -> String {
    format!(
        "mode = \"enforce\"
         docker.socket = \"\"
         [[service]]
         name = \"web\"
         ports = [\"tcp/80\"]
         {limit}
         [[service]]
         name = \"mail\"
         ports = [\"tcp/25\"]
         {limit}"
    )
}

/// The longest tick of a kernel (CONFIG_HZ=100).
const TICK: Duration = Duration::from_millis(10);

/// Runs a function on this CPU only.
fn on_cpu<T: Send>(cpu: usize, run: impl FnOnce() -> T + Send) -> T {
    let run = move || {
        let mut cpus = CpuSet::new();
        cpus.set(cpu).unwrap();
        sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
        run()
    };
    thread::scope(|scope| scope.spawn(run).join().unwrap())
}

fn passed(judge: &ProgramUnderTest, service: &str) -> u64 {
    let counters = judge.counters();
    counters
        .get(&format!("{service}: pass allowed"))
        .map_or(0, |(packets, _)| *packets)
}

/// Each call comes in a new tick, so the packets that are left of a prepayment were returned to the buckets. In
/// between, another service of the same source takes over the account.
#[test]
fn a_source_that_pays_in_advance_gets_its_burst_to_the_packet() {
    const CALLS: u32 = 40;
    const PACKETS: u32 = 50;
    let budgets = [
        "limit.packets = { rate = \"1/h\", burst = 1500 }",
        "limit.packets = { rate = \"1/h\", burst = 1500 }\n\
         limit.bytes = { rate = \"1B/s\", burst = \"1MB\" }",
        "limit.packets = { rate = \"1/h\", burst = 2000 }\n\
         total.packets = { rate = \"1/h\", burst = 1500 }",
        "limit.bytes = { rate = \"1B/s\", burst = \"81000B\" }",
    ];
    for limit in budgets {
        let judge = ProgramUnderTest::new(&large(limit), &[]);
        let web = ipv4(CLIENT_V4, TCP, &tcp(80, ACK, &[]));
        let mail = ipv4(CLIENT_V4, TCP, &tcp(25, ACK, &[]));
        assert_eq!(web.len() as u64 * LARGE, 81_000);
        on_cpu(0, || {
            for _ in 0..CALLS {
                judge.repeat(&web, PACKETS);
                thread::sleep(TICK);
                judge.repeat(&mail, PACKETS);
                thread::sleep(TICK);
            }
        });
        for service in ["web", "mail"] {
            // One byte a second is refilled: less than a packet.
            assert_eq!(passed(&judge, service), LARGE, "{service} with {limit}");
        }
    }
}

/// Nearly all frames come in one tick. A prepayment for long frames runs out of packets before bytes; the bytes that
/// are left are not lost.
#[test]
fn short_frames_behind_long_ones_use_up_the_burst() {
    const BURST: u64 = 1_000_000;
    let judge = ProgramUnderTest::new(
        &large("limit.bytes = { rate = \"1B/s\", burst = \"1MB\" }"),
        &[],
    );
    let frames = [1_446, 0].map(|length| ipv4(CLIENT_V4, TCP, &tcp(80, ACK, &vec![0; length])));
    on_cpu(0, || {
        for _ in 0..60 {
            judge.repeat(&frames[0], 6);
            judge.repeat(&frames[1], 200);
        }
    });
    let (_, bytes) = judge.counters()["web: pass allowed"];
    assert!(
        (BURST - 54..BURST + 100).contains(&bytes),
        "{bytes} bytes passed"
    );
}

#[test]
fn a_budget_of_all_sources_is_exact_whatever_they_pay_in_advance() {
    let judge = ProgramUnderTest::new(
        &large(
            "limit.packets = { rate = \"1/h\", burst = 1500 }
             total.packets = { rate = \"1/h\", burst = 1500 }",
        ),
        &[],
    );
    on_cpu(0, || {
        for n in 0..60 {
            judge.repeat(&from_v4(&format!("198.51.100.{n}"), 80), 20);
        }
        judge.repeat(&from_v4("198.51.100.200", 80), 1_000);
    });
    assert_eq!(passed(&judge, "web"), LARGE);
}

/// Packets that open connections are charged one by one, and use the packets that others have prepaid.
#[test]
fn a_source_that_opens_connections_gets_the_burst_to_the_packet() {
    let limit = "limit.packets = { rate = \"1/h\", burst = 1500 }
         limit.connections = { rate = \"1/h\", burst = 4000 }";
    let judge = ProgramUnderTest::new(&large(limit), &[]);
    let [opening, later] = [SYN, ACK].map(|flags| ipv4(CLIENT_V4, TCP, &tcp(80, flags, &[])));
    on_cpu(0, || {
        for _ in 0..40 {
            judge.repeat(&later, 3);
            judge.repeat(&opening, 50);
        }
    });
    assert_eq!(passed(&judge, "web"), LARGE);
}

/// Within one tick, being over the connections budget does not drop later segments.
#[test]
fn a_source_over_its_connections_keeps_its_open_connections() {
    let limit = "limit.packets = { rate = \"1/h\", burst = 1500 }
         limit.connections = { rate = \"1/h\", burst = 10 }";
    let judge = ProgramUnderTest::new(&large(limit), &[]);
    let [opening, later] = [SYN, ACK].map(|flags| ipv4(CLIENT_V4, TCP, &tcp(80, flags, &[])));
    on_cpu(0, || {
        for _ in 0..10 {
            judge.repeat(&opening, 20);
            judge.repeat(&later, 100);
        }
    });
    assert_eq!(passed(&judge, "web"), 10 + 1_000);
    let (refused, _) = judge.counters()["web: drop connection_limit"];
    assert_eq!(refused, 190);
}

#[test]
fn frames_of_any_length_are_paid_for_to_the_byte() {
    const BURST: u64 = 1_000_000;
    let judge = ProgramUnderTest::new(
        &large("limit.bytes = { rate = \"1B/s\", burst = \"1MB\" }"),
        &[],
    );
    let frames =
        [0, 1_446, 200].map(|length| ipv4(CLIENT_V4, TCP, &tcp(80, ACK, &vec![0; length])));
    on_cpu(0, || {
        for _ in 0..20 {
            for frame in &frames {
                judge.repeat(frame, 60);
            }
        }
    });
    let (_, bytes) = judge.counters()["web: pass allowed"];
    let shortest = frames[0].len() as u64;
    // In a few seconds a few bytes are refilled.
    assert!(bytes <= BURST + 100, "{bytes} bytes passed");
    assert!(bytes > BURST - shortest, "{bytes} bytes passed");
}

/// The packets that one CPU has prepaid and not returned are missing on another: a small share of the burst.
#[test]
fn a_source_that_changes_cpus_loses_and_gains_next_to_nothing() {
    let judge = ProgramUnderTest::new(
        &large("limit.packets = { rate = \"1/h\", burst = 1500 }"),
        &[],
    );
    let frame = ipv4(CLIENT_V4, TCP, &tcp(80, ACK, &[]));
    for round in 0..50 {
        on_cpu(round % 2, || judge.repeat(&frame, 40));
    }
    let passed = passed(&judge, "web");
    let share = LARGE / guard_common::account::SHARE;
    assert!(
        passed.abs_diff(LARGE) <= share,
        "{passed} of {LARGE} passed"
    );
}

#[test]
fn a_source_over_its_bytes_still_gets_the_packets_that_fit() {
    let judge = ProgramUnderTest::new(
        &large("limit.bytes = { rate = \"1B/s\", burst = \"1600B\" }"),
        &[],
    );
    let long = ipv4(CLIENT_V4, TCP, &tcp(80, ACK, &[0; 1_446]));
    let short = ipv4(CLIENT_V4, TCP, &tcp(80, ACK, &[]));
    on_cpu(0, || {
        judge.repeat(&long, 10);
        judge.repeat(&short, 10);
    });
    assert_eq!(
        passed(&judge, "web"),
        2,
        "one long frame, and one of 54 bytes"
    );
}

#[test]
fn two_cpus_on_one_source_pass_no_more_than_its_rate() {
    /// A CPU that is held up for longer than the burst lasts loses tokens of the source, as it must. So only the best
    /// of these runs has to reach the rate.
    const RUNS: usize = 20;
    let reached = (0..RUNS).any(|_| {
        let ContentionResult {
            passed,
            dropped,
            expected,
        } = contend();
        assert!(
            passed as f64 <= expected * 1.02,
            "{passed} passed instead of {expected}"
        );
        let is_flood = dropped > 10 * passed;
        is_flood && passed as f64 >= expected * 0.98
    });
    assert!(reached, "the rate was not reached in {RUNS} runs");
}

struct ContentionResult {
    passed: u64,
    dropped: u64,
    /// The packets that the rate and the burst allow in the time of the run.
    expected: f64,
}

/// Two CPUs offer one source's packets as fast as they can.
fn contend() -> ContentionResult {
    const RATE: u64 = 10_000;
    // Large enough that threads which are held up mostly lose no tokens.
    const BURST: u64 = 3 * RATE;
    let policy = format!(
        "mode = \"enforce\"
         docker.socket = \"\"
         [[service]]
         name = \"web\"
         ports = [\"tcp/80\"]
         limit.packets = {{ rate = \"{RATE}/s\", burst = {BURST} }}"
    );
    let judge = ProgramUnderTest::new(&policy, &[]);
    let frame = from_v4("198.51.100.7", 80);
    let start = Instant::now();
    let duration = Duration::from_secs(3);
    thread::scope(|scope| {
        for cpu in 0..2 {
            let (judge, frame) = (&judge, &frame);
            scope.spawn(move || {
                on_cpu(cpu, || {
                    while start.elapsed() < duration {
                        judge.repeat(frame, 10_000);
                    }
                });
            });
        }
    });
    let elapsed = start.elapsed();
    let (passed, _) = judge.counters()["web: pass allowed"];
    let (dropped, _) = judge.counters()["web: drop packet_limit"];
    ContentionResult {
        passed,
        dropped,
        expected: elapsed.as_secs_f64() * RATE as f64 + BURST as f64,
    }
}
