//! Answers to UDP datagrams of this host and its containers, on real packets: at ports that containers publish, in
//! flows opened before the guard started, and when the flow table is full.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use guard_common::layout::MAX_FLOWS;
use lab::{
    docker::Docker,
    guard::{Guard, output},
    image,
    namespace::Namespace,
    process::{run, wait_for},
    topology::{FLOODER_V4, HOST_V4, INTERFACE, Lab, USER_V4},
    udp,
};
use serde_json::{Value, json};

fn policy(scope: &str, extra: &str) -> String {
    format!("mode = \"enforce\"\nscope = \"{scope}\"\ninterfaces = [\"{INTERFACE}\"]\n{extra}\n")
}

const NO_DOCKER: &str = "docker.socket = \"\"";

fn socket(namespace: &Namespace, address: IpAddr, port: u16) -> UdpSocket {
    let bind = || UdpSocket::bind((address, port)).unwrap();
    let socket = namespace.enter(bind).unwrap();
    let patience = Some(Duration::from_secs(2));
    socket.set_read_timeout(patience).unwrap();
    socket
}

/// Whether a datagram from one socket reaches the other.
fn reaches(from: &UdpSocket, to: &UdpSocket) -> bool {
    from.send_to(b"datagram", to.local_addr().unwrap()).unwrap();
    to.recv(&mut [0; 16]).is_ok()
}

fn counted(guard: &Guard, reason: &str) -> u64 {
    guard.packets(&[("reason", json!(reason))]).unwrap()
}

/// Adds an nftables rule that makes the host's kernel track connections, as a firewall or Docker does.
fn track(lab: &Lab) {
    let rules = "add table inet lab\n\
                 add chain inet lab in { type filter hook input priority 0 ; }\n\
                 add rule inet lab in ct state established accept\n";
    let path = lab.folder().join("track.nft");
    std::fs::write(&path, rules).unwrap();
    run(lab.host.command("nft").arg("-f").arg(&path)).unwrap();
}

/// The start of the range that coturn publishes. Queries of other containers are sent from these ports, too.
const RANGE: &str = "49152-49200";

#[test]
fn a_query_from_a_port_that_another_container_publishes_gets_its_answer() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    let root = lab.folder().join("clients");
    image::make_root(&root, &udp::CLIENTS).unwrap();
    docker.import(&root, "guard-lab/clients", &[]).unwrap();
    let _servers = udp::Servers::start(&lab).unwrap();
    let socket_path = docker.socket().display().to_string();
    let guard = Guard::start(
        &lab,
        &policy("containers", &format!("docker.socket = \"{socket_path}\"")),
    )
    .unwrap();
    // Before a UDP port is published, the generation records no flows.
    let published = format!("{RANGE}:{RANGE}/udp");
    docker.run_invoices("coturn", &[&published]).unwrap();
    wait_for(Duration::from_secs(20), || {
        let status = guard.json("status")?;
        anyhow::ensure!(status["enforcing"] == true, "{status}");
        anyhow::ensure!(status["docker"]["published"] != json!([]), "{status}");
        Ok(())
    })
    .unwrap();
    let range = format!("net.ipv4.ip_local_port_range={}", RANGE.replace('-', " "));
    let ask = || {
        let command = udp::resolve(USER_V4);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let run = ["run", "--rm", "--sysctl", &range, "guard-lab/clients"];
        docker.run(&[&run[..], &command].concat())
    };
    for _ in 0..3 {
        let answer = ask().unwrap();
        for address in udp::ADDRESSES {
            assert!(answer.contains(address), "{answer}");
        }
    }
    assert!(counted(&guard, "reply") >= 6);
    assert_eq!(counted(&guard, "closed_port"), 0);
    // Datagrams that answer no query are dropped at every port of the range.
    let stranger = socket(&lab.internet, FLOODER_V4, 53);
    for port in 49_152..=49_200 {
        stranger
            .send_to(b"unasked", SocketAddr::new(HOST_V4, port))
            .unwrap();
    }
    wait_for(Duration::from_secs(5), || {
        let closed = counted(&guard, "closed_port");
        anyhow::ensure!(closed == 49, "{closed}");
        Ok(())
    })
    .unwrap();
    guard.remove().unwrap();
}

#[test]
fn a_flow_in_which_only_the_peer_speaks_goes_on_when_the_guard_comes() {
    let lab = Lab::new().unwrap();
    track(&lab);
    let peer = socket(&lab.internet, USER_V4, 9_000);
    let stranger = socket(&lab.internet, FLOODER_V4, 9_000);
    // The socket is not connected, so the agent cannot read the peer from it: only conntrack has the flow.
    let ours = socket(&lab.host, HOST_V4, 40_000);
    let served = socket(&lab.host, HOST_V4, 40_001);
    assert!(reaches(&ours, &peer) && reaches(&peer, &ours));
    assert!(reaches(&stranger, &served) && reaches(&served, &stranger));
    let guard = Guard::start(&lab, &policy("host", NO_DOCKER)).unwrap();
    for _ in 0..3 {
        assert!(
            reaches(&peer, &ours),
            "{}",
            guard.run(&["counters"]).unwrap()
        );
    }
    assert_eq!(counted(&guard, "reply"), 3);
    // A flow that the peer opened is not taken over: its port is closed.
    served
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    assert!(!reaches(&stranger, &served));
    assert_eq!(counted(&guard, "closed_port"), 1);
    assert!(
        !guard.log().contains("only those of connected sockets"),
        "{}",
        guard.log()
    );
    let check = output(
        &lab,
        &["check", "--live", "--json", policy_path(&lab).as_str()],
    )
    .unwrap();
    let check: Value = serde_json::from_slice(&check.stdout).unwrap();
    assert_eq!(check["live"]["flows_gap"], Value::Null, "{check}");
    // The flows survive a restart of the agent.
    guard.kill().unwrap();
    let _guard = Guard::start_again(&lab).unwrap();
    assert!(reaches(&peer, &ours));
}

fn policy_path(lab: &Lab) -> String {
    lab.folder().join("guard.toml").display().to_string()
}

#[test]
fn where_nothing_is_tracked_the_log_and_the_check_say_so() {
    let lab = Lab::new().unwrap();
    let text = policy("host", NO_DOCKER);
    lab::guard::write_policy(&lab, &text).unwrap();
    let gap = "only those of connected sockets are known";
    let check = |scope: &str| {
        lab::guard::write_policy(&lab, &policy(scope, NO_DOCKER)).unwrap();
        let check = output(&lab, &["check", "--live", &policy_path(&lab)]).unwrap();
        String::from_utf8_lossy(&check.stdout).into_owned()
    };
    // A policy that closes no UDP port needs no flows.
    assert!(!check("containers").contains(gap));
    let checked = check("host");
    assert!(
        checked.contains(gap) && checked.contains("conntrack"),
        "{checked}"
    );
    let guard = Guard::start_again(&lab).unwrap();
    let log = guard.log();
    let warned = log.lines().find(|line| line.contains(gap));
    assert!(warned.is_some_and(|line| line.contains("WARN")), "{log}");
    // The guard has recorded all flows since its start: a reload and a check do not print the line again.
    guard.run(&["reload"]).unwrap();
    assert_eq!(guard.log().matches(gap).count(), 1);
    assert!(!check("host").contains(gap));
    // Another policy may close ports at which no flows were recorded so far.
    let other = policy("host", &format!("{NO_DOCKER}\nlimits.packets = \"10k/s\""));
    lab::guard::write_policy(&lab, &other).unwrap();
    let check = output(&lab, &["check", "--live", &policy_path(&lab)]).unwrap();
    assert!(String::from_utf8_lossy(&check.stdout).contains(gap));
    guard.run(&["reload"]).unwrap();
    assert_eq!(guard.log().matches(gap).count(), 2);
}

#[test]
fn flows_that_conntrack_does_not_follow_are_a_gap_although_it_follows_others() {
    let lab = Lab::new().unwrap();
    lab::guard::write_policy(&lab, &policy("host", NO_DOCKER)).unwrap();
    let check = |rules: &str| {
        let path = lab.folder().join("rules.nft");
        std::fs::write(&path, format!("flush ruleset\n{rules}")).unwrap();
        run(lab.host.command("nft").arg("-f").arg(&path)).unwrap();
        let check = output(&lab, &["check", "--live", &policy_path(&lab)]).unwrap();
        String::from_utf8_lossy(&check.stdout).into_owned()
    };
    let followed =
        "chain in {\ntype filter hook input priority 0\nct state established accept\n}\n";
    let gap = "only those of connected sockets are known";
    let both = check(&format!("table inet lab {{\n{followed}}}\n"));
    assert!(!both.contains(gap), "{both}");
    let v4 = check(&format!("table ip lab {{\n{followed}}}\n"));
    assert!(v4.contains(gap) && v4.contains("no UDP over IPv6"), "{v4}");
    let untracked = ["prerouting", "output"].map(|hook| {
        format!(
            "chain {hook} {{\ntype filter hook {hook} priority -300\nmeta l4proto udp notrack\n}}\n"
        )
    });
    let untracked = untracked.concat();
    let none = check(&format!("table inet lab {{\n{followed}{untracked}}}\n"));
    assert!(none.contains(gap) && none.contains("conntrack"), "{none}");
}

#[test]
fn a_flow_at_a_port_that_a_container_publishes_later_goes_on() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    let root = lab.folder().join("clients");
    image::make_root(&root, &udp::CLIENTS).unwrap();
    docker.import(&root, "guard-lab/clients", &[]).unwrap();
    // Flows are recorded from the beginning, but not at the ports that are published later.
    docker.run_invoices("first", &["5353:5353/udp"]).unwrap();
    let socket_path = docker.socket().display().to_string();
    let guard = Guard::start(
        &lab,
        &policy("containers", &format!("docker.socket = \"{socket_path}\"")),
    )
    .unwrap();
    let peer = socket(&lab.internet, USER_V4, 53);
    let range = "net.ipv4.ip_local_port_range=50005 50005";
    let query = udp::resolve(USER_V4);
    let query: Vec<&str> = query.iter().map(String::as_str).collect();
    let run = [
        "run", "--rm", "--detach", "--name", "client", "--sysctl", range,
    ];
    let run = [&run[..], &["guard-lab/clients"], &query].concat();
    docker.run(&run).unwrap();
    let mut buffer = [0; 512];
    let (_, from) = peer.recv_from(&mut buffer).unwrap();
    assert_eq!(from, SocketAddr::new(HOST_V4, 50_005));
    // The client asks again and gives up: from then on conntrack alone has its flow.
    wait_for(Duration::from_secs(60), || {
        peer.send_to(b"late", from)?;
        let running = docker.run(&["ps", "--quiet", "--filter", "name=client"])?;
        anyhow::ensure!(running.trim().is_empty(), "{running}");
        Ok(())
    })
    .unwrap();
    docker
        .run_invoices("range", &["50000-50010:50000-50010/udp"])
        .unwrap();
    wait_for(Duration::from_secs(20), || {
        let status = guard.json("status")?;
        anyhow::ensure!(status["enforcing"] == true, "{status}");
        anyhow::ensure!(status.to_string().contains("udp/50000"), "{status}");
        Ok(())
    })
    .unwrap();
    wait_for(Duration::from_secs(20), || {
        peer.send_to(b"answer", from)?;
        let counts = ["reply", "closed_port"].map(|reason| counted(&guard, reason));
        anyhow::ensure!(counts[0] > 0, "{counts:?}");
        Ok(())
    })
    .unwrap();
    let stranger = socket(&lab.internet, FLOODER_V4, 53);
    let closed = counted(&guard, "closed_port");
    stranger.send_to(b"unasked", from).unwrap();
    wait_for(Duration::from_secs(5), || {
        anyhow::ensure!(counted(&guard, "closed_port") == closed + 1);
        Ok(())
    })
    .unwrap();
    guard.remove().unwrap();
}

#[test]
fn flows_that_have_to_go_for_others_are_counted() {
    const WEB: &str = "127.0.0.1:9469";
    /// The number of flows beyond the room of the table.
    const MORE: u32 = 10_000;
    let lab = Lab::new().unwrap();
    let extra = format!("{NO_DOCKER}\nweb.listen = \"{WEB}\"");
    let _guard = Guard::start(&lab, &policy("host", &extra)).unwrap();
    lab.host.ip("link set lo up").unwrap();
    let metric = |name: &str| -> anyhow::Result<u64> {
        let url = format!("http://{WEB}/metrics");
        let text = run(lab.host.command("curl").args(["--silent", "--fail", &url]))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value: f64 = line.unwrap_or_default().trim().parse()?;
        Ok(value as u64)
    };
    wait_for(Duration::from_secs(10), || {
        anyhow::ensure!(metric("guard_flow_evictions_total")? == 0);
        Ok(())
    })
    .unwrap();
    assert_eq!(metric("guard_flows_limit").unwrap(), u64::from(MAX_FLOWS));
    let sockets = [40_000, 40_001].map(|port| socket(&lab.host, HOST_V4, port));
    let mut left = MAX_FLOWS + MORE;
    for ours in &sockets {
        for port in 1..=u16::MAX {
            if left == 0 {
                break;
            }
            left -= 1;
            // No socket listens at the peer: ICMP errors are ignored.
            let _result = ours.send_to(b"query", SocketAddr::new(USER_V4, port));
            if port % 1_000 == 0 {
                thread::yield_now();
            }
        }
    }
    wait_for(Duration::from_secs(75), || {
        let (evicted, open) = (
            metric("guard_flow_evictions_total")?,
            metric("guard_flows")?,
        );
        anyhow::ensure!(
            evicted >= u64::from(MORE) && open <= u64::from(MAX_FLOWS),
            "{evicted} evicted, {open} open"
        );
        // The kernel's LRU map evicts some flows before the table is full, but no flow is counted twice.
        anyhow::ensure!(evicted + open <= u64::from(MAX_FLOWS + MORE) + 100);
        Ok(())
    })
    .unwrap();
}
