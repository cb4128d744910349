//! A policy file that was cut off or corrupted either is a valid policy or gives an error of one line with its line
//! number.

use guard_policy::{KernelTick, Policy};

const EXAMPLE: &str = include_str!("../../../packaging/guard.toml");

/// Every key that a policy has.
const FULL: &str = r#"
mode = "enforce"
interfaces = ["eth0", "eth1.7"]
scope = "host"
on_exit = "keep"

[docker]
socket = "/var/run/docker.sock"

[limits]
packets = "5k/s"

[[service]]
name = "proxy"
ports = ["tcp/80", "udp/443", "tcp/8000-8010", "icmp", "proto/112"]
address = "203.0.113.5"
from = ["any", "office", "192.0.2.0/24"]
mode = "observe"
[service.limit]
packets = "2k/s"
connections = { rate = "50/s", burst = 200 }
bytes = { rate = "20MB/s", burst = "40MB" }
per = { ipv4 = 24, ipv6 = 56 }
[service.total]
connections = "20k/s"

[[source]]
name = "office"
cidrs = ["198.51.100.0/24", "2001:db8::/32"]
factor = 20
owner = "ana"
reason = "NAT des Büros"
expires = 2099-01-31T00:00:00Z
"#;

const CLOCK: KernelTick = KernelTick { tick_ns: 4_000_000 };

fn is_clear(bytes: &[u8], what: &str) {
    if let Err(error) = Policy::from_bytes(bytes, "guard.toml", CLOCK) {
        let text = error.to_string();
        let line = text.strip_prefix("guard.toml:");
        let number = line.and_then(|line| line.split(':').next()?.parse::<usize>().ok());
        let lines = bytes.split(|byte| *byte == b'\n').count();
        assert!(
            number.is_some_and(|number| (1..=lines).contains(&number)),
            "{what}: {text}"
        );
        assert!(!text.contains('\n'), "{what}: {text}");
    }
}

#[test]
fn a_policy_cut_off_at_any_byte_is_valid_or_an_error_with_its_line() {
    for policy in [EXAMPLE, FULL] {
        Policy::from_bytes(policy.as_bytes(), "guard.toml", CLOCK).unwrap();
        for end in 0..policy.len() {
            is_clear(&policy.as_bytes()[..end], &format!("cut off at {end}"));
        }
    }
}

#[test]
fn noise_in_a_policy_is_valid_or_an_error_with_its_line() {
    let mut rng = fastrand::Rng::with_seed(1);
    for place in 0..FULL.len() {
        let mut noisy = FULL.as_bytes().to_vec();
        noisy[place] = rng.u8(..);
        is_clear(&noisy, &format!("{} at {place}", noisy[place]));
    }
    for _ in 0..200 {
        let noise: Vec<u8> = (0..rng.usize(..500)).map(|_| rng.u8(..)).collect();
        is_clear(&noise, "noise");
    }
}
