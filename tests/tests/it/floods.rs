//! Floods of requests for TCP connections from spoofed sources: real clients are served.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use lab::{
    guard::{self, Guard, write_policy},
    http::{HttpOutcome, get},
    process::{Daemon, wait_for},
    proxy::Proxy,
    topology::{HOST_V4, HOST_V6, INTERFACE, Lab, USER_V4, USER_V6},
};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(60);

/// nginx answers so, because nothing runs behind it.
const SERVED: HttpOutcome = HttpOutcome::Status(502);

fn policy(interface: &str, flood: &str) -> String {
    format!(
        "mode = \"enforce\"\nscope = \"host\"\ninterfaces = [\"{interface}\"]\ndocker.socket = \"\"\n[[service]]\nname \
         = \"web\"\nports = [\"tcp/80\"]\n[service.flood]\nprotect = \"auto\"\n{flood}\n"
    )
}

/// A veth device sends what a program answers only if its peer has a program as well: one that lets everything pass.
fn answer_on_veth(lab: &Lab) -> Daemon {
    let folder = lab.folder().join("peer");
    std::fs::create_dir(&folder).unwrap();
    let policy = folder.join("guard.toml");
    let passing = "mode = \"off\"\nscope = \"host\"\ninterfaces = [\"internet\"]\ndocker.socket = \"\"\n[[service]]\n\
                   name = \"none\"\nports = [\"tcp/1\"]\n";
    std::fs::write(&policy, passing).unwrap();
    let mut command = lab
        .internet
        .command(guard::binary().unwrap().to_str().unwrap());
    command.arg("--pins").arg(lab.folder().join("bpf/peer"));
    command.arg("--socket").arg(folder.join("guard.sock"));
    command.arg("--state").arg(folder.join("state"));
    command.args(["run", "--policy"]).arg(&policy);
    let peer = Daemon::start(&mut command, &folder.join("guard.log")).unwrap();
    wait_for(PATIENCE, || {
        anyhow::ensure!(peer.log().contains("in force"), "{}", peer.log());
        Ok(())
    })
    .unwrap();
    peer
}

/// Ten thousand requests a second from random sources, until it is dropped.
fn flood(lab: &Lab) -> Daemon {
    let mut command = lab.internet.command("hping3");
    command.args(["--quiet", "--syn", "--destport", "80", "--interval", "u100"]);
    command.args(["--rand-source", &HOST_V4.to_string()]);
    Daemon::start(&mut command, &lab.folder().join("flood.log")).unwrap()
}

fn wait_for_challenges(guard: &Guard) {
    let challenged = || guard.packets(&[("reason", json!("challenged"))]);
    let before = challenged().unwrap();
    wait_for(PATIENCE, || {
        let now = challenged()?;
        anyhow::ensure!(now > before + 1_000, "{before} challenges, then {now}");
        Ok(())
    })
    .unwrap();
}

/// Addresses of clients that the host has never seen.
fn newcomers(lab: &Lab) -> Vec<IpAddr> {
    let addresses = (100..110).map(|last| IpAddr::V4(Ipv4Addr::new(198, 51, 100, last)));
    addresses
        .inspect(|address| {
            lab.internet
                .ip(&format!("addr add {address} dev lo"))
                .unwrap();
        })
        .collect()
}

/// One new client in sixteen gets a strong challenge, which resets its first connection.
fn ask_again_after_a_reset(lab: &Lab, from: IpAddr, host: IpAddr) -> HttpOutcome {
    match get(lab, from, host, 80).unwrap() {
        HttpOutcome::Refused => get(lab, from, host, 80).unwrap(),
        outcome => outcome,
    }
}

#[test]
fn known_and_new_clients_are_served_in_a_flood_of_spoofed_sources() {
    let lab = Lab::new().unwrap();
    let _proxy = Proxy::start(&lab, "127.0.0.1:1").unwrap();
    let _peer = answer_on_veth(&lab);
    let guard = Guard::start(&lab, &policy(INTERFACE, "attempts = \"200/s\"")).unwrap();
    assert_eq!(
        guard.json("status").unwrap()["interfaces"][0]["xdp_mode"],
        "native"
    );
    assert_eq!(get(&lab, USER_V4, HOST_V4, 80).unwrap(), SERVED);
    let flood = flood(&lab);
    wait_for_challenges(&guard);
    for newcomer in newcomers(&lab) {
        assert_eq!(
            ask_again_after_a_reset(&lab, newcomer, HOST_V4),
            SERVED,
            "{newcomer}"
        );
        assert_eq!(
            get(&lab, USER_V4, HOST_V4, 80).unwrap(),
            SERVED,
            "a known client"
        );
    }
    wait_for(PATIENCE, || {
        let status = guard.run(&["status"])?;
        anyhow::ensure!(status.contains("FLOODED    web"), "{status}");
        Ok(())
    })
    .unwrap();
    assert!(guard.log().contains("flooded with connection requests"));
    let ipv6 = ask_again_after_a_reset(&lab, USER_V6, HOST_V6);
    assert_eq!(ipv6, SERVED, "IPv6");
    drop(flood);
    let answers = guard.packets(&[("reason", json!("handshake"))]).unwrap();
    assert!(
        answers >= 10,
        "{answers} of the newcomers answered a challenge"
    );
    // The flood itself reached nobody: what passed is the first second's attempts, and the clients'.
    let passed = guard.packets(&[("reason", json!("allowed"))]).unwrap();
    assert!(passed < 2_000, "{passed} packets passed");
}

#[test]
fn a_driver_without_native_xdp_answers_as_well() {
    let lab = Lab::new().unwrap();
    // The bridge's driver has no native XDP.
    for step in [
        "link add bridge type bridge",
        &format!("link set {INTERFACE} master bridge"),
        &format!("addr del {HOST_V4}/24 dev {INTERFACE}"),
        &format!("addr add {HOST_V4}/24 dev bridge"),
        "link set bridge up",
        "route add 198.51.100.0/24 via 203.0.113.1",
    ] {
        lab.host.ip(step).unwrap();
    }
    let _proxy = Proxy::start(&lab, "127.0.0.1:1").unwrap();
    let guard = Guard::start(&lab, &policy("bridge", "attempts = \"200/s\"")).unwrap();
    assert_eq!(
        guard.json("status").unwrap()["interfaces"][0]["xdp_mode"],
        "generic"
    );
    let _flood = flood(&lab);
    wait_for_challenges(&guard);
    for newcomer in newcomers(&lab) {
        assert_eq!(
            ask_again_after_a_reset(&lab, newcomer, HOST_V4),
            SERVED,
            "{newcomer}"
        );
    }
}

#[test]
fn a_verified_client_stays_verified_through_a_reload_a_kill_and_a_takeover() {
    let lab = Lab::new().unwrap();
    let _proxy = Proxy::start(&lab, "127.0.0.1:1").unwrap();
    let _peer = answer_on_veth(&lab);
    // The lane is always full, so a source that is not verified gets a strong challenge: its first connection is reset,
    // and its second is served.
    let narrow = "attempts = { rate = \"1/h\", burst = 1 }\nlane = { rate = \"1/h\", burst = 1 }\nlevel2 = 0";
    let guard = Guard::start(&lab, &policy(INTERFACE, narrow)).unwrap();
    let ask = |from| get(&lab, from, HOST_V4, 80).unwrap();
    assert_eq!(ask(USER_V4), SERVED);
    let _flood = flood(&lab);
    wait_for_challenges(&guard);
    let newcomers = newcomers(&lab);
    assert_eq!(ask(newcomers[0]), SERVED, "the lane has room for one");
    assert_eq!(ask(newcomers[1]), HttpOutcome::Refused, "a reset");
    let known = |when: &str| {
        // One has got data of the server, and the other has completed a handshake with guard.
        for client in [USER_V4, newcomers[1]] {
            assert_eq!(ask(client), SERVED, "{client} {when}");
        }
    };
    known("in the flood");
    let changed = narrow.to_owned() + "\n[service.total]\npackets = \"1M/s\"";
    write_policy(&lab, &policy(INTERFACE, &changed)).unwrap();
    guard.run(&["reload"]).unwrap();
    known("after a reload");
    guard.kill().unwrap();
    known("without an agent");
    let guard = Guard::start_again(&lab).unwrap();
    known("after a takeover");
    wait_for_challenges(&guard);
    known("when the flood goes on");
    assert_eq!(ask(newcomers[2]), HttpOutcome::Refused, "still a stranger");
    guard.remove().unwrap();
    assert_eq!(ask(newcomers[3]), SERVED);
    let pins = lab.pins();
    assert!(!pins.join("VERIFIED").exists() && !pins.join("FLOODS").exists());
}
