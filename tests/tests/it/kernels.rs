//! The guard on other kernels than this machine's: runs tests of this test binary in virtual machines.

use std::{
    env,
    time::{Duration, Instant},
};

use guard::policy::{ContainerNetwork, Containers, PublishedAt, PublishedPort};
use guard_common::{exposure::NetworkKind, layout::PortProtocol};
use lab::{
    guard::binary,
    topology::Lab,
    vm::{Equipment, Kernel, run_in},
};
use which::which;

use crate::{attempt, judge::ProgramUnderTest};

/// Software emulation is slow, and other processes may use the machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// The modules for veth, for filters without tcx, and for sock_diag.
const MODULES: [&str; 6] = [
    "veth",
    "sch_ingress",
    "cls_bpf",
    "cls_matchall",
    "tcp_diag",
    "udp_diag",
];

/// The programs that the lab runs.
const PROGRAMS: [&str; 9] = [
    "curl", "ip", "mount", "nginx", "nice", "nsenter", "sysctl", "tc", "umount",
];

/// A policy with every feature and every budget.
const EVERYTHING: &str = r#"
    mode = "enforce"
    scope = "host"
    docker.socket = ""
    [limits]
    packets = "5k/s"
    bytes = "20MB/s"
    connections = "1k/s"
    [[service]]
    name = "proxy"
    ports = ["tcp/80", "udp/443"]
    from = ["198.51.100.0/24", "2001:db8:51::/48"]
    limit = { packets = "2k/s", bytes = "20MB/s", connections = "50/s" }
    total = { packets = "20k/s", bytes = "200MB/s", connections = "500/s" }
    flood = { protect = "auto" }
    [[service]]
    name = "addressed"
    ports = ["tcp/443"]
    address = "203.0.113.10"
    [[source]]
    name = "office"
    cidrs = ["198.51.100.0/28", "2001:db8:51::/64"]
    factor = 20
    owner = "ana"
    reason = "one NAT"
    expires = 2099-01-01T00:00:00Z
    [[source]]
    name = "monitor"
    cidrs = ["198.51.100.77"]
    exempt = true
    owner = "ana"
    reason = "it asks often"
    expires = 2099-01-01T00:00:00Z
    [[source]]
    name = "abuse"
    cidrs = ["192.0.2.0/24", "192.0.2.7", "2001:db8:bad::/48", "2001:db8:bad::7"]
    deny = true
"#;

/// Tests of loading the program and attaching the guard. They need no servers and little time.
const TESTS: [&str; 7] = [
    "packets::",
    "challenges::",
    "flows::answers_to_udp_flows_of_this_host",
    "kernels::a_policy_of_everything",
    "host_scope::what_this_host_asks_is_recorded",
    "host_scope::without_tcx_the_guard_leaves_no_qdisc",
    "lasting::a_trial_goes_back_in_the_kernel",
];

/// The number of tests that run in parallel, on as many processors.
const AT_ONCE: usize = 2;

/// The factor on all periods: the emulation is this many times slower than the machine.
const PACE: u32 = 4;

#[test]
fn a_policy_of_everything_is_loaded() {
    let containers = Containers {
        published: PublishedAt::EVERYWHERE
            .map(|at| PublishedPort {
                protocol: PortProtocol::Tcp,
                port: 8000,
                at,
            })
            .into(),
        networks: [
            ("172.17.0.0/16", NetworkKind::Masqueraded),
            ("2001:db8:d0c::/64", NetworkKind::Routed),
        ]
        .map(|(prefix, kind)| ContainerNetwork {
            prefix: prefix.parse().unwrap(),
            kind,
        })
        .into(),
        labelled: Vec::new(),
    };
    let start = Instant::now();
    let judge = ProgramUnderTest::with_containers(EVERYTHING, &containers);
    let instructions = judge.verified_instructions();
    println!(
        "{instructions} instructions verified in {:?}",
        start.elapsed()
    );
}

#[test]
fn the_guard_works_on_linux_6_1() {
    assert_works_on("6.1");
}

#[test]
fn the_guard_works_on_linux_6_12() {
    assert_works_on("6.12");
}

#[test]
#[ignore = "only `cargo xtask test --kernels` fetches it"]
fn the_guard_works_on_the_newest_linux_that_debian_has() {
    assert_works_on("newest");
}

fn assert_works_on(series: &str) {
    let start = Instant::now();
    let kernel = Kernel::of_series(series).unwrap();
    let lab = Lab::new().unwrap();
    let mut programs = vec![
        ("it", env::current_exe().unwrap()),
        ("guard", binary().unwrap()),
    ];
    programs.extend(PROGRAMS.map(|program| (program, which(program).unwrap())));
    let equipment = Equipment {
        modules: &MODULES,
        programs: &programs,
    };
    let tests = TESTS.join(" ");
    let command = format!(
        "{}={PACE} it --test-threads={AT_ONCE} --show-output {tests}",
        attempt::VARIABLE
    );
    let output = run_in(&kernel, lab.folder(), &equipment, &command, PATIENCE).unwrap();
    for test in TESTS {
        let has_passed = |line: &str| line.contains(test) && line.ends_with("... ok");
        assert!(
            output.lines().any(has_passed),
            "{test} did not run: {output}"
        );
    }
    println!("{} in {:?}: {output}", kernel.release, start.elapsed());
}
