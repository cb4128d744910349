//! The guard on a veth pair between two namespaces, with packets of a real network stack.

use std::{net::UdpSocket, process::Command, thread, time::Duration};

use lab::{
    flood::Flood,
    guard::Guard,
    http::{HttpOutcome, get},
    process::{run, wait_for},
    proxy::Proxy,
    topology::{FLOODER_V4, HOST_V4, HOST_V6, INTERFACE, Lab, USER_V4, USER_V6},
};
use serde_json::{Value, json};

use crate::attempt::with_enough_time;

/// A policy that opens only port 80. Without Docker, scope `host` closes the other ports.
fn policy(mode: &str, extra: &str) -> String {
    format!(
        "mode = \"{mode}\"
         interfaces = [\"{INTERFACE}\"]
         scope = \"host\"
         docker.socket = \"\"
         {extra}"
    )
}

const OPEN_80: &str = "
    [[service]]
    name = \"web\"
    ports = [\"tcp/80\"]";

#[test]
fn a_port_is_reachable_then_closed_then_reachable_again() {
    let lab = Lab::new().unwrap();
    let _web = Proxy::start(&lab, "127.0.0.1:1").unwrap();
    // nginx answers 502, because its upstream does not run: the port is open.
    let open = HttpOutcome::Status(502);
    let answers = || {
        [(USER_V4, HOST_V4), (USER_V6, HOST_V6)]
            .map(|(user, host)| get(&lab, user, host, 80).unwrap())
    };
    assert_eq!(answers(), [open; 2], "before");
    for (mode, services, expected) in [
        ("enforce", "", HttpOutcome::TimedOut),
        ("observe", "", open),
        ("off", "", open),
        ("enforce", OPEN_80, open),
    ] {
        let guard = Guard::start(&lab, &policy(mode, services)).unwrap();
        assert_eq!(answers(), [expected; 2], "{mode} with {services:?}");
        guard.remove().unwrap();
        assert_eq!(answers(), [open; 2], "after {mode} with {services:?}");
    }
}

#[test]
fn a_thousand_packets_are_counted_as_a_thousand() {
    let lab = Lab::new().unwrap();
    let guard = Guard::start(&lab, &policy("enforce", OPEN_80)).unwrap();
    for port in [80, 8000] {
        let flood = Flood::start(&lab, USER_V4, port, Duration::from_micros(200), 1000).unwrap();
        assert_eq!(flood.wait(Duration::from_secs(20)).unwrap(), 1000);
    }
    let closed = [
        ("reason", json!("closed_port")),
        ("verdict", json!("drop")),
        ("service", Value::Null),
    ];
    let open = [
        ("reason", json!("allowed")),
        ("verdict", json!("pass")),
        ("service", json!("web")),
    ];
    wait_for(Duration::from_secs(2), || {
        anyhow::ensure!(guard.packets(&closed)? >= 1000 && guard.packets(&open)? >= 1000);
        Ok(())
    })
    .unwrap();
    thread::sleep(Duration::from_millis(200));
    assert_eq!(guard.packets(&closed).unwrap(), 1000);
    assert_eq!(guard.packets(&open).unwrap(), 1000);
    // A SYN without options: 14 bytes of Ethernet, 20 of IPv4, 20 of TCP.
    let rows = guard.json("counters").unwrap();
    let row = rows
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["reason"] == "closed_port")
        .unwrap();
    assert_eq!(row["bytes"], 54_000);
    assert_eq!(row["interface"], INTERFACE);
}

/// One frame for each datagram: on a jumbo network, and with the largest MTU of an interface.
#[test]
fn the_longest_datagrams_pass_whole_and_are_counted_to_the_last_byte() {
    const UDP: usize = 8;
    let open = "[[service]]\nname = \"long\"\nports = [\"udp/7000\"]";
    for mtu in [9_000, 65_535] {
        let lab = Lab::new().unwrap();
        lab.internet
            .ip(&format!("link set internet mtu {mtu}"))
            .unwrap();
        lab.host
            .ip(&format!("link set {INTERFACE} mtu {mtu}"))
            .unwrap();
        let guard = Guard::start(&lab, &policy("enforce", open)).unwrap();
        let status = guard.json("status").unwrap();
        assert_eq!(status["interfaces"][0]["xdp_mode"], "native", "{mtu}");
        for (user, host, ip) in [(USER_V4, HOST_V4, 20), (USER_V6, HOST_V6, 40)] {
            let receiver = lab.host.enter(|| UdpSocket::bind((host, 7000)).unwrap());
            let receiver = receiver.unwrap();
            let patience = Duration::from_secs(3);
            receiver.set_read_timeout(Some(patience)).unwrap();
            let sender = lab.internet.enter(|| UdpSocket::bind((user, 0)).unwrap());
            let sender = sender.unwrap();
            let sent: Vec<u8> = (0..mtu - ip - UDP).map(|n| n as u8).collect();
            for port in [7000, 7001] {
                sender.send_to(&sent, (host, port)).unwrap();
            }
            let mut received = vec![0; 1 << 16];
            let length = receiver.recv(&mut received).unwrap();
            assert!(received[..length] == sent, "{mtu}: another {length} bytes");
        }
        let rows = guard.json("counters").unwrap();
        for (reason, verdict) in [("allowed", "pass"), ("closed_port", "drop")] {
            let mut rows = rows.as_array().unwrap().iter();
            let row = rows.find(|row| row["reason"] == reason).unwrap();
            assert_eq!(row["verdict"], verdict);
            assert_eq!(row["packets"], 2, "{mtu}: {row}");
            assert_eq!(row["bytes"], 2 * (14 + mtu), "{mtu}: {row}");
        }
    }
}

#[test]
fn the_program_runs_in_the_driver_and_status_says_so() {
    let lab = Lab::new().unwrap();
    let guard = Guard::start(&lab, &policy("enforce", OPEN_80)).unwrap();
    let net = run(lab.host.command("bpftool").args(["net", "show"])).unwrap();
    let status = guard.json("status").unwrap();
    let interface = &status["interfaces"][0];
    let program = interface["program_id"].as_u64().unwrap();
    assert!(
        net.contains(&format!("{INTERFACE}(2) driver id {program}"))
            || net.lines().any(|line| line.starts_with(INTERFACE)
                && line.ends_with(&format!("driver id {program}"))),
        "{net}"
    );
    assert_eq!(interface["name"], INTERFACE);
    assert_eq!(interface["attached"], true);
    assert_eq!(interface["xdp_mode"], "native");
    assert_eq!(interface["generation"], 1);
    assert_eq!(status["mode"], "enforce");
    assert_eq!(status["enforcing"], true);
    assert_eq!(status["docker"]["connected"], false);
    assert_eq!(status["docker"]["published"], json!([]));
    assert_eq!(status["policy"]["sha256"].as_str().unwrap().len(), 64);
    assert!(status["policy"]["loaded_at"].is_string());
    assert!(
        status["policy"]["path"]
            .as_str()
            .unwrap()
            .ends_with("guard.toml")
    );
    guard.remove().unwrap();
    let net = run(lab.host.command("bpftool").args(["net", "show"])).unwrap();
    assert!(!net.contains("driver id"), "{net}");
}

#[test]
fn a_driver_without_xdp_gets_the_generic_mode_and_the_guard_says_so() {
    let lab = Lab::new().unwrap();
    // The bridge driver has no native XDP.
    lab.host.ip("link add bridge type bridge").unwrap();
    lab.host.ip("link set bridge up").unwrap();
    let policy = policy("enforce", OPEN_80).replace(INTERFACE, "bridge");
    let guard = Guard::start(&lab, &policy).unwrap();
    let status = guard.json("status").unwrap();
    assert_eq!(status["interfaces"][0]["xdp_mode"], "generic");
    assert_eq!(status["interfaces"][0]["attached"], true);
    assert!(guard.log().contains("generic mode"), "{}", guard.log());
}

#[test]
fn a_program_that_somebody_took_off_is_not_enforcing() {
    let lab = Lab::new().unwrap();
    let guard = Guard::start(&lab, &policy("enforce", OPEN_80)).unwrap();
    // With the interface, the kernel removes the link.
    lab.host.ip(&format!("link del {INTERFACE}")).unwrap();
    let status = guard.json("status").unwrap();
    assert_eq!(status["interfaces"][0]["attached"], false);
    assert_eq!(status["enforcing"], false);
    assert!(guard.run(&["status"]).unwrap().contains("NOT ENFORCING"));
}

#[test]
fn a_flood_is_cut_to_its_budget_while_another_source_gets_every_answer() {
    let lab = Lab::new().unwrap();
    let _web = Proxy::start(&lab, "127.0.0.1:1").unwrap();
    let limited = format!("{OPEN_80}\n[service.limit]\npackets = \"500/s\"");
    let guard = Guard::start(&lab, &policy("enforce", &limited)).unwrap();
    let interval = Duration::from_micros(100);
    let mut flood = Flood::start(&lab, FLOODER_V4, 80, interval, 20_000).unwrap();
    let mut answered = 0;
    while !flood.is_over() {
        assert_eq!(
            get(&lab, USER_V4, HOST_V4, 80).unwrap(),
            HttpOutcome::Status(502)
        );
        answered += 1;
    }
    assert_eq!(flood.wait(Duration::from_secs(5)).unwrap(), 20_000);
    assert!(answered > 10, "{answered} answers");
    let dropped = guard
        .packets(&[("service", json!("web")), ("reason", json!("packet_limit"))])
        .unwrap();
    assert!(dropped > 15_000, "{dropped} of 20,000 dropped");
}

#[test]
fn the_interfaces_of_the_default_routes_are_taken_when_none_is_named() {
    let lab = Lab::new().unwrap();
    // In the lab a default route leads only to the other namespace.
    lab.host.ip("route add default via 203.0.113.1").unwrap();
    let unnamed =
        policy("observe", OPEN_80).replace(&format!("interfaces = [\"{INTERFACE}\"]"), "");
    let guard = Guard::start(&lab, &unnamed).unwrap();
    let status = guard.json("status").unwrap();
    assert_eq!(status["interfaces"].as_array().unwrap().len(), 1);
    assert_eq!(status["interfaces"][0]["name"], INTERFACE);
    assert_eq!(status["enforcing"], false, "it observes");
}

#[test]
fn a_deny_entry_ends_in_the_kernel_while_no_agent_runs() {
    with_enough_time(|attempt| {
        let lab = Lab::new().unwrap();
        let _web = Proxy::start(&lab, "127.0.0.1:1").unwrap();
        let mut guard = None;
        attempt.begin(7, |time| {
            let later = format!("+{} seconds", time.trim_end_matches('s'));
            let end = Command::new("date")
                .args(["-u", "-d", &later, "+%Y-%m-%dT%H:%M:%S.%3NZ"])
                .output()
                .unwrap();
            let end = String::from_utf8(end.stdout).unwrap();
            let denied = format!(
                "{OPEN_80}
             [[source]]
             name = \"scanner\"
             cidrs = [\"{USER_V4}\", \"2001:db8:51::/64\"]
             deny = true
             expires = {}",
                end.trim()
            );
            guard = Some(Guard::start(&lab, &policy("enforce", &denied)).unwrap());
        });
        let guard = guard.unwrap();
        assert_eq!(
            get(&lab, USER_V4, HOST_V4, 80).unwrap(),
            HttpOutcome::TimedOut
        );
        guard.pause().unwrap();
        assert_eq!(
            get(&lab, USER_V6, HOST_V6, 80).unwrap(),
            HttpOutcome::TimedOut
        );
        attempt.wait_for_end();
        // The agent was stopped before the end.
        assert_eq!(
            get(&lab, USER_V4, HOST_V4, 80).unwrap(),
            HttpOutcome::Status(502)
        );
        assert_eq!(
            get(&lab, USER_V6, HOST_V6, 80).unwrap(),
            HttpOutcome::Status(502)
        );
        guard.resume().unwrap();
        assert!(
            guard
                .packets(&[("reason", json!("denied_source"))])
                .unwrap()
                >= 2
        );
    });
}
