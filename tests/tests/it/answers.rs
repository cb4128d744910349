//! Answers to what this host and its containers asked, on real packets: at ports that containers publish, to flows that
//! were open before the guard came, and when there are more flows than can be remembered.

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

/// Has the kernel of the host follow connections, as a firewall or Docker does.
fn track(lab: &Lab) {
    let rules = "add table inet lab\n\
                 add chain inet lab in { type filter hook input priority 0 ; }\n\
                 add rule inet lab in ct state established accept\n";
    let path = lab.folder().join("track.nft");
    std::fs::write(&path, rules).unwrap();
    run(lab.host.command("nft").arg("-f").arg(&path)).unwrap();
}

/// What coturn publishes, and other containers' queries leave by as well, cut short.
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
    // Nothing that needs flows is there yet: the first published port of UDP brings them.
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
    // What nobody asked for gets in at no port of the range, from the same server or another.
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
    // Not connected: no socket says whom it is for.
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
    // Who asked this host, and was answered before, is a stranger to a closed port.
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
    // They are remembered over a restart.
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
    let told = "only those of connected sockets are known";
    let check = |scope: &str| {
        lab::guard::write_policy(&lab, &policy(scope, NO_DOCKER)).unwrap();
        let check = output(&lab, &["check", "--live", &policy_path(&lab)]).unwrap();
        String::from_utf8_lossy(&check.stdout).into_owned()
    };
    // A policy that closes nothing of UDP needs none.
    assert!(!check("containers").contains(told));
    let said = check("host");
    assert!(said.contains(told) && said.contains("conntrack"), "{said}");
    let guard = Guard::start_again(&lab).unwrap();
    let log = guard.log();
    let warned = log.lines().find(|line| line.contains(told));
    assert!(warned.is_some_and(|line| line.contains("WARN")), "{log}");
    // From now on they are known: a reload says it no more, nor does a check.
    guard.run(&["reload"]).unwrap();
    assert_eq!(guard.log().matches(told).count(), 1);
    assert!(!check("host").contains(told));
}

#[test]
fn flows_that_have_to_go_for_others_are_counted() {
    const WEB: &str = "127.0.0.1:9469";
    /// So many more than there is room for.
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
            // Where nobody listens: an error that comes back is no matter.
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
        // The kernel evicts some before the table is full, and none that it did not have.
        anyhow::ensure!(evicted + open <= u64::from(MAX_FLOWS + MORE) + 100);
        Ok(())
    })
    .unwrap();
}
