//! Hosts that are more complex than the lab: VPNs, bridges, renamed interfaces, and unusual addresses and containers.
//! Each test is for a failure found on a real host or in another project.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use lab::{
    docker::{Docker, IMAGE},
    guard::{Guard, output, write_policy},
    http::{HttpOutcome, get},
    process::wait_for,
    proxy::Proxy,
    ssh::Ssh,
    topology::{FLOODER_V4, HOST_V4, INTERFACE, Lab, USER_V4},
};
use serde_json::Value;

use crate::site::{CLOSED, OPEN, OPEN_80, SHUT, Site, fails, policy as host_policy};

/// The longest time until a change of the host is in the tables, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(15);

fn policy(docker: &Path, extra: &str) -> String {
    format!(
        "mode = \"enforce\"\ninterfaces = [\"{INTERFACE}\"]\n[docker]\nsocket = \"{}\"\n{extra}",
        docker.display()
    )
}

fn status(guard: &Guard) -> Value {
    guard.json("status").unwrap()
}

fn is_enforcing(guard: &Guard) -> bool {
    status(guard)["enforcing"] == true
}

fn not_enforcing_because(guard: &Guard) -> String {
    status(guard)["not_enforcing_because"].to_string()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let held = wait_for(PATIENCE, || {
        anyhow::ensure!(holds(), "not yet");
        Ok(())
    });
    assert!(held.is_ok(), "{what}");
}

#[test]
fn a_vpn_with_a_default_route_keeps_the_guard_from_nothing() {
    let site = Site::new();
    let host = &site.lab.host;
    // In the lab a default route leads only to the other namespace.
    host.ip("route add default via 203.0.113.1").unwrap();
    host.ip("tuntap add dev tun0 mode tun").unwrap();
    host.ip("link set tun0 up").unwrap();
    host.ip("route add default dev tun0 table 77").unwrap();
    let unnamed = |mode: &str| {
        let text = host_policy(mode, SHUT);
        text.replace(&format!("interfaces = [\"{INTERFACE}\"]\n"), "")
    };
    let guard = Guard::start(&site.lab, &unnamed("enforce")).unwrap();
    let names = |guard: &Guard| {
        let interfaces = status(guard)["interfaces"].clone();
        let names = interfaces.as_array().unwrap().iter();
        names
            .map(|one| one["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (names(&guard), is_enforcing(&guard)),
        (vec![INTERFACE.to_owned()], true)
    );
    guard.run(&["reload"]).unwrap();
    // A default route in the main table causes a warning, and no other change.
    host.ip("route add default dev tun0 metric 5").unwrap();
    until("a warning names tun0", || {
        status(&guard)["warnings"].to_string().contains("tun0")
    });
    for command in [&["reload"][..], &["mode", "observe"], &["mode", "policy"]] {
        guard.run(command).unwrap();
    }
    assert_eq!(
        (names(&guard), is_enforcing(&guard)),
        (vec![INTERFACE.to_owned()], true)
    );
    assert_eq!(site.get(), CLOSED);
    // An agent also starts with that route.
    guard.stop().unwrap();
    let guard = Guard::start_again(&site.lab).unwrap();
    assert!(is_enforcing(&guard), "{}", status(&guard));
    guard.remove().unwrap();
    // Commands without an agent use the same host picture.
    host.ip("route del default dev tun0 metric 5").unwrap();
    let path = write_policy(&site.lab, &unnamed("enforce")).unwrap();
    let report = output(&site.lab, &["doctor", "--policy", path.to_str().unwrap()]).unwrap();
    let report = String::from_utf8_lossy(&report.stdout).into_owned();
    assert!(
        report.contains(INTERFACE) && !report.contains("tun0"),
        "{report}"
    );
}

#[test]
fn a_renamed_interface_is_followed_also_by_the_next_agent_and_without_one() {
    let site = Site::new();
    let guard = site.start("enforce", OPEN_80);
    let rename = |from: &str, to: &str| {
        let host = &site.lab.host;
        host.ip(&format!("link set {from} down")).unwrap();
        host.ip(&format!("link set {from} name {to}")).unwrap();
        host.ip(&format!("link set {to} up")).unwrap();
        // An interface that was down has lost its routes.
        host.ip("route replace 198.51.100.0/24 via 203.0.113.1")
            .unwrap();
    };
    let before = status(&guard)["interfaces"][0].clone();
    rename(INTERFACE, "lan0");
    until("the new name is in the status", || {
        status(&guard)["interfaces"][0]["name"] == "lan0"
    });
    let after = status(&guard);
    assert_eq!(after["interfaces"][0]["program_id"], before["program_id"]);
    assert_eq!(
        (&after["interfaces"][0]["attached"], &after["enforcing"]),
        (&true.into(), &true.into())
    );
    assert!(after["warnings"].to_string().contains("lan0"), "{after}");
    assert_eq!(site.get(), OPEN);
    guard.run(&["mode", "observe"]).unwrap();
    guard.run(&["mode", "policy"]).unwrap();
    let counted = |guard: &Guard| {
        let counters = guard.json("counters").unwrap();
        let rows = counters.as_array().unwrap().iter();
        let of = rows.filter(|row| row["interface"] == "lan0" && row["service"] == "web");
        of.filter_map(|row| row["packets"].as_u64()).sum::<u64>()
    };
    let packets = counted(&guard);
    assert!(packets > 0);
    guard.kill().unwrap();
    let alone = site.status();
    assert_eq!(
        (
            &alone["interfaces"][0]["name"],
            &alone["interfaces"][0]["attached"]
        ),
        (&"lan0".into(), &true.into()),
        "{alone}"
    );
    let guard = Guard::start_again(&site.lab).unwrap();
    assert!(is_enforcing(&guard), "{}", status(&guard));
    assert!(counted(&guard) >= packets, "its counters continue");
    // A reload with the new name replaces the program on the interface.
    let renamed = host_policy("enforce", OPEN_80).replace(INTERFACE, "lan0");
    write_policy(&site.lab, &renamed).unwrap();
    guard.run(&["reload"]).unwrap();
    let named = status(&guard);
    assert_eq!(
        (&named["enforcing"], &named["warnings"]),
        (&true.into(), &Value::Array(Vec::new())),
        "{named}"
    );
    assert!(counted(&guard) >= packets);
    guard.remove().unwrap();
    let left = site.lab.host.ip("-details link show lan0").unwrap();
    assert!(!left.contains("prog/xdp"), "{left}");
}

/// Makes `wan` a port of a bridge, and moves its address to the bridge.
fn bridge_over_uplink(lab: &Lab) {
    let host = &lab.host;
    // A fixed hardware address: otherwise a bridge takes the lowest address of its ports, and neighbours keep the old
    // one for seconds.
    host.ip("link add br0 address 02:00:00:00:00:b0 type bridge")
        .unwrap();
    host.ip("link set br0 up").unwrap();
    host.ip(&format!("addr del {HOST_V4}/24 dev {INTERFACE}"))
        .unwrap();
    host.ip(&format!("link set {INTERFACE} master br0"))
        .unwrap();
    host.ip(&format!("addr add {HOST_V4}/24 dev br0")).unwrap();
    host.ip("route replace 198.51.100.0/24 via 203.0.113.1")
        .unwrap();
}

#[test]
fn a_guard_moves_from_a_bridge_to_its_port_and_back() {
    let site = Site::new();
    bridge_over_uplink(&site.lab);
    let on = |name: &str| host_policy("enforce", SHUT).replace(INTERFACE, name);
    let guard = Guard::start(&site.lab, &on("br0")).unwrap();
    let guarded = |guard: &Guard, name: &str| {
        let status = status(guard);
        assert_eq!(status["interfaces"][0]["name"], name, "{status}");
        assert_eq!(
            (
                &status["enforcing"],
                status["interfaces"].as_array().unwrap().len()
            ),
            (&true.into(), 1),
            "{status}"
        );
        assert_eq!(site.get(), CLOSED);
    };
    guarded(&guard, "br0");
    write_policy(&site.lab, &on(INTERFACE)).unwrap();
    guard.run(&["reload"]).unwrap();
    guarded(&guard, INTERFACE);
    write_policy(&site.lab, &on("br0")).unwrap();
    guard.run(&["reload"]).unwrap();
    guarded(&guard, "br0");
    // A program that the previous agent left on the bridge is detached first, too.
    guard.kill().unwrap();
    write_policy(&site.lab, &on(INTERFACE)).unwrap();
    let guard = Guard::start_again(&site.lab).unwrap();
    guarded(&guard, INTERFACE);
    // With both interfaces in the policy, the port is guarded.
    let both = host_policy("enforce", SHUT).replace("[\"wan\"]", "[\"br0\", \"wan\"]");
    write_policy(&site.lab, &both).unwrap();
    guard.run(&["reload"]).unwrap();
    assert!(is_enforcing(&guard), "{}", status(&guard));
    assert_eq!(site.get(), CLOSED);
}

#[test]
fn a_guard_stays_on_a_bridge_whose_port_has_another_program() {
    let site = Site::new();
    let on = |name: &str| host_policy("enforce", SHUT).replace(INTERFACE, name);
    let guard = site.start("observe", SHUT);
    let foreign = site.keep_program(&guard);
    guard.run(&["detach"]).unwrap();
    drop(guard);
    site.put_foreign(INTERFACE, &foreign);
    bridge_over_uplink(&site.lab);
    let guard = Guard::start(&site.lab, &on("br0")).unwrap();
    let before = status(&guard)["interfaces"].clone();
    assert_eq!(
        (&before[0]["name"], site.get()),
        (&"br0".into(), CLOSED),
        "{before}"
    );
    write_policy(&site.lab, &on(INTERFACE)).unwrap();
    let refused = output(&site.lab, &["reload"]).unwrap();
    fails(&refused, 1, &["wan already has an XDP program"]);
    // The same program: it was not detached meanwhile.
    assert_eq!(status(&guard)["interfaces"], before);
    assert_eq!(site.get(), CLOSED);
}

#[test]
fn a_bridge_gets_its_program_back_if_a_move_to_its_port_is_refused_elsewhere() {
    let site = Site::new();
    let host = &site.lab.host;
    let guard = site.start("observe", SHUT);
    let foreign = site.keep_program(&guard);
    guard.run(&["detach"]).unwrap();
    drop(guard);
    host.ip("link add other type veth peer name otherpeer")
        .unwrap();
    site.put_foreign("other", &foreign);
    bridge_over_uplink(&site.lab);
    let on = |names: &str| host_policy("enforce", SHUT).replace("[\"wan\"]", names);
    let guard = Guard::start(&site.lab, &on("[\"br0\"]")).unwrap();
    let before = status(&guard)["interfaces"].clone();
    // The program is detached from the bridge and attached to the port; then the other interface refuses its program.
    let both = on("[\"wan\", \"other\"]");
    write_policy(&site.lab, &both).unwrap();
    let refused = output(&site.lab, &["reload"]).unwrap();
    fails(&refused, 1, &["other already has an XDP program"]);
    assert_eq!(status(&guard)["interfaces"], before);
    assert_eq!((site.get(), site.attached()), (CLOSED, String::new()));

    // The same with a bridge program that a previous agent left: the new agent ends, and the kernel still enforces.
    guard.kill().unwrap();
    let refused = Guard::start_again(&site.lab).err().unwrap();
    assert!(
        format!("{refused:#}").contains("other already has an XDP program"),
        "{refused:#}"
    );
    let left = host.ip("-details link show br0").unwrap();
    assert!(left.contains("prog/xdp"), "{left}");
    assert_eq!((site.get(), site.attached()), (CLOSED, String::new()));
    write_policy(&site.lab, &on("[\"br0\"]")).unwrap();
    let guard = Guard::start_again(&site.lab).unwrap();
    assert!(is_enforcing(&guard), "{}", status(&guard));
    assert_eq!(site.get(), CLOSED);
}

#[test]
fn an_address_that_comes_inside_a_container_network_is_this_hosts() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    docker
        .run(&["network", "create", "--subnet", "172.18.0.0/16", "na"])
        .unwrap();
    let _web = Proxy::start(&lab, "127.0.0.1:1").unwrap();
    let guard = Guard::start(&lab, &policy(docker.socket(), "")).unwrap();
    lab.internet
        .ip("route add 172.16.0.0/12 via 203.0.113.10")
        .unwrap();
    let ask = |address: &str| get(&lab, USER_V4, address.parse().unwrap(), 80).unwrap();
    let docker0 = lab.host.ip("-brief -4 addr show docker0").unwrap();
    let docker0 = docker0
        .split_whitespace()
        .nth(2)
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .to_owned();
    assert_eq!((ask("172.18.0.1"), ask(&docker0)), (CLOSED, CLOSED));
    lab.host
        .ip(&format!(
            "addr add 172.18.0.50/16 dev {INTERFACE} noprefixroute"
        ))
        .unwrap();
    until("the new address is open", || ask("172.18.0.50") == OPEN);
    assert_eq!(
        ask("172.18.0.1"),
        CLOSED,
        "the bridge's own address stays closed"
    );
    assert!(is_enforcing(&guard), "{}", status(&guard));
    lab.host
        .ip(&format!("addr del 172.18.0.50/16 dev {INTERFACE}"))
        .unwrap();
    lab.host
        .ip("addr add 172.18.0.50/16 dev docker0 noprefixroute")
        .unwrap();
    until("on a container bridge it is closed", || {
        ask("172.18.0.50") == CLOSED
    });
    // A second address on a container bridge is closed, too.
    lab.host.ip("addr add 172.17.9.9/16 dev docker0").unwrap();
    until("both are closed", || {
        (ask("172.17.9.9"), ask(&docker0)) == (CLOSED, CLOSED)
    });
    docker.run_invoices("web", &[]).unwrap();
    let inside = docker.run(&[
        "inspect",
        "--format",
        "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
        "web",
    ]);
    let inside = inside.unwrap();
    assert_eq!(
        get(&lab, USER_V4, inside.trim().parse().unwrap(), 8000).unwrap(),
        CLOSED
    );
}

#[test]
fn a_container_network_on_the_hosts_own_bridge_cuts_nobody_off() {
    let lab = Lab::new().unwrap();
    bridge_over_uplink(&lab);
    let docker = Docker::start(&lab).unwrap();
    let ssh = Ssh::start(&lab).unwrap();
    for interface in ["br0", INTERFACE] {
        let text = policy(docker.socket(), "").replace(INTERFACE, interface);
        let guard = Guard::start(&lab, &text).unwrap();
        let bridge = "com.docker.network.bridge.name=br0";
        let inhibit = "com.docker.network.bridge.inhibit_ipv4=true";
        docker
            .run(&[
                "network",
                "create",
                "--subnet",
                "203.0.113.0/24",
                "--gateway",
                "203.0.113.10",
                "--opt",
                bridge,
                "--opt",
                inhibit,
                "lan",
            ])
            .unwrap();
        until("the status has the warning", || {
            status(&guard)["docker"]["warnings"]
                .to_string()
                .contains("overlaps")
        });
        let output = ssh.output(&lab, HOST_V4, "true").unwrap();
        assert!(
            output.status.success(),
            "{interface}: {output:?} {}",
            guard.log()
        );
        docker
            .run(&[
                "run",
                "--detach",
                "--name",
                "web",
                "--network",
                "lan",
                "--ip",
                "203.0.113.77",
                IMAGE,
            ])
            .unwrap();
        if interface == INTERFACE {
            // A guard on the bridge itself sees only packets to this host, not those that the bridge forwards.
            until("the container's address is closed", || {
                get(&lab, USER_V4, "203.0.113.77".parse().unwrap(), 8000).unwrap() == CLOSED
            });
        }
        let output = ssh.output(&lab, HOST_V4, "true").unwrap();
        assert!(output.status.success(), "{interface}: {output:?}");
        docker.remove("web").unwrap();
        docker.run(&["network", "rm", "lan"]).unwrap();
        if lab.host.ip("link show br0").is_err() {
            // Docker removes a network's bridge with the network, also a bridge that existed before.
            lab.host
                .ip(&format!("link set {INTERFACE} nomaster"))
                .unwrap();
            create_bridge(&lab);
        }
        guard.remove().unwrap();
    }
}

fn create_bridge(lab: &Lab) {
    let host = &lab.host;
    // A fixed hardware address: otherwise a bridge takes the lowest address of its ports, and neighbours keep the old
    // one for seconds.
    host.ip("link add br0 address 02:00:00:00:00:b0 type bridge")
        .unwrap();
    host.ip("link set br0 up").unwrap();
    host.ip(&format!("link set {INTERFACE} master br0"))
        .unwrap();
    host.ip(&format!("addr add {HOST_V4}/24 dev br0")).unwrap();
    host.ip("route replace 198.51.100.0/24 via 203.0.113.1")
        .unwrap();
}

#[test]
fn a_runtime_that_a_policy_changes_to_and_that_is_silent_is_not_called_enforcing() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    docker.run_invoices("before", &["8000:8000"]).unwrap();
    let guard = Guard::start(&lab, &policy(docker.socket(), "")).unwrap();
    assert!(is_enforcing(&guard));
    write_policy(&lab, &policy(Path::new("/nonexistent.sock"), "")).unwrap();
    guard.run(&["reload"]).unwrap();
    docker.run_invoices("web", &["8001:8000"]).unwrap();
    assert!(!is_enforcing(&guard));
    let why = not_enforcing_because(&guard);
    assert!(why.contains("/nonexistent.sock"), "{why}");
    // With the first policy again both ports are closed, and the guard enforces.
    write_policy(&lab, &policy(docker.socket(), "")).unwrap();
    guard.run(&["reload"]).unwrap();
    until("it enforces", || is_enforcing(&guard));
    for port in [8000, 8001] {
        assert_eq!(
            get(&lab, USER_V4, HOST_V4, port).unwrap(),
            HttpOutcome::TimedOut,
            "{port}"
        );
    }
}

#[test]
fn a_container_that_asks_for_the_hosts_own_port_closes_it_no_sooner_than_it_has_it() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    let ssh = Ssh::start(&lab).unwrap();
    let guard = Guard::start(&lab, &policy(docker.socket(), "")).unwrap();
    let logs_in = || ssh.output(&lab, HOST_V4, "true").unwrap().status.success();
    assert!(logs_in());
    let refused = docker.run_invoices("sneaky", &["22:8000"]);
    assert!(refused.is_err(), "sshd holds the port");
    let created = docker.run(&[
        "ps",
        "--all",
        "--filter",
        "status=created",
        "--format",
        "{{.Names}}",
    ]);
    assert_eq!(created.unwrap().trim(), "sneaky");
    // The port stays open after Docker's events and after a reload.
    for _ in 0..10 {
        assert!(logs_in(), "{}", guard.log());
    }
    guard.run(&["reload"]).unwrap();
    assert!(logs_in(), "{}", guard.log());
    docker.remove("sneaky").unwrap();

    // A publication on another address of the host closes only that address.
    lab.host
        .ip(&format!("addr add 203.0.113.11/24 dev {INTERFACE}"))
        .unwrap();
    let _web = Proxy::start(&lab, "127.0.0.1:1").unwrap();
    docker
        .run_invoices("eleven", &["203.0.113.11:81:8000"])
        .unwrap();
    docker
        .run_invoices("twelve", &["203.0.113.11:2222:8000"])
        .unwrap();
    until("the publication is in the status", || {
        status(&guard)["docker"]["published"]
            .to_string()
            .contains("2222")
    });
    assert_eq!(
        get(&lab, USER_V4, "203.0.113.11".parse().unwrap(), 2222).unwrap(),
        CLOSED
    );
    assert_eq!(
        get(&lab, USER_V4, HOST_V4, 2222).unwrap(),
        HttpOutcome::Refused,
        "no server listens on that address, and the guard does not close the port"
    );
    assert!(logs_in());
    assert!(is_enforcing(&guard), "{}", status(&guard));
}

#[test]
fn a_session_that_a_container_closes_is_told_loudly() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    // A server has ended, a client is still connected, and a container publishes the port.
    let server = lab
        .host
        .enter(|| TcpListener::bind((HOST_V4, 8000)).unwrap())
        .unwrap();
    let client = lab
        .internet
        .enter(|| TcpStream::connect((HOST_V4, 8000)).unwrap())
        .unwrap();
    let (accepted, _) = server.accept().unwrap();
    drop(server);
    let guard = Guard::start(&lab, &policy(docker.socket(), "")).unwrap();
    docker.run_invoices("web", &["8000:8000"]).unwrap();
    until("the status has the warning", || {
        status(&guard)["warnings"]
            .to_string()
            .contains("closes the open session")
    });
    assert!(guard.log().contains("8000"), "{}", guard.log());
    drop((client, accepted));
}

#[test]
fn status_answers_at_once_while_a_large_policy_is_loaded() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    let mut large = String::from("[[source]]\nname = \"list\"\ndeny = true\ncidrs = [\n");
    for n in 0..100_000_u32 {
        let [_, a, b, c] = n.to_be_bytes();
        large.push_str(&format!("\"10.{a}.{b}.{c}\",\n"));
    }
    large.push_str("]\n");
    for n in 0..1_000 {
        large.push_str(&format!(
            "[[service]]\nname = \"s{n}\"\nports = [\"tcp/{}\"]\nlimit.packets = \"{}/s\"\n",
            10_000 + n,
            1_000 + n
        ));
    }
    site.write("enforce", &large);
    let socket = site.lab.folder().join("guard.sock");
    let (mut answers, mut while_loading, mut longest) = (0, 0, Duration::ZERO);
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| guard.run(&["reload"]).unwrap());
        loop {
            let is_over = reload.is_finished();
            let start = Instant::now();
            let answer = ask(&socket, "/v1/status");
            longest = longest.max(start.elapsed());
            assert!(answer.contains("\"enforcing\":true"), "{answer}");
            answers += 1;
            if answer.contains("\"services\":0") {
                while_loading += 1;
            }
            if is_over {
                break;
            }
        }
    });
    // The number of answers during the load shows that none waits for it; the bench measures their time.
    assert!(
        while_loading >= 5,
        "{while_loading} of {answers} answers came while it was loaded, the slowest after {longest:?}"
    );
    assert!(ask(&socket, "/v1/status").contains("\"services\":1000"));
}

/// Sends a GET request to the control socket, without starting a process.
fn ask(socket: &Path, path: &str) -> String {
    use std::{io::Write as _, os::unix::net::UnixStream};
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: guard\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    for line in BufReader::new(stream).lines() {
        text.push_str(&line.unwrap());
    }
    text
}

#[test]
fn a_refused_change_changes_nothing_reads_included() {
    let site = Site::new();
    let guard = site.start("enforce", OPEN_80);
    let pins = site.keep_program(&guard);
    let host = &site.lab.host;
    host.ip("link add other type veth peer name otherpeer")
        .unwrap();
    host.ip("link set other up").unwrap();
    site.put_foreign("other", &pins);
    let before = (status(&guard)["interfaces"].clone(), site.get());
    let both = host_policy("enforce", SHUT).replace("[\"wan\"]", "[\"wan\", \"other\"]");
    let path = write_policy(&site.lab, &both).unwrap();
    for _ in 0..2 {
        let refused = output(&site.lab, &["reload"]).unwrap();
        fails(&refused, 1, &["other", "already has an XDP program"]);
        assert_eq!((status(&guard)["interfaces"].clone(), site.get()), before);
        for command in ["counters", "talkers", "list"] {
            guard.json(command).unwrap();
        }
    }
    assert_eq!(get(&site.lab, FLOODER_V4, HOST_V4, 80).unwrap(), OPEN);
    let tried = output(&site.lab, &["try", path.to_str().unwrap(), "--for", "60s"]).unwrap();
    fails(&tried, 1, &["other", "already has an XDP program"]);
    assert_eq!(
        (
            status(&guard)["interfaces"].clone(),
            status(&guard)["trial"].clone()
        ),
        (before.0, Value::Null)
    );
    assert!(fs::metadata(site.lab.pins()).is_ok());
}

#[test]
fn a_device_and_the_one_below_it_are_guarded_in_whatever_order_a_policy_comes_to_them() {
    let site = Site::new();
    let host = &site.lab.host;
    host.ip("link add mv0 link wan type macvlan mode bridge")
        .unwrap();
    host.ip("link set mv0 up").unwrap();
    let write = |names: &str| {
        let text = host_policy("enforce", SHUT).replace("[\"wan\"]", names);
        write_policy(&site.lab, &text).unwrap();
    };
    write("[\"mv0\"]");
    let guard = Guard::start_again(&site.lab).unwrap();
    // The guard's own program on the upper interface is detached for a moment, so that the lower one can be attached.
    write("[\"mv0\", \"wan\"]");
    guard.run(&["reload"]).unwrap();
    let both = |guard: &Guard| {
        let status = status(guard);
        assert_eq!(status["enforcing"], true, "{status}");
        assert_eq!(
            status["interfaces"].as_array().unwrap().len(),
            2,
            "{status}"
        );
        for name in ["wan", "mv0"] {
            let link = host.ip(&format!("-details link show {name}")).unwrap();
            assert!(link.contains("prog/xdp"), "{link}");
        }
        assert_eq!(site.get(), CLOSED);
    };
    both(&guard);
    // The same with a program that a previous agent left.
    write("[\"mv0\"]");
    guard.run(&["reload"]).unwrap();
    guard.kill().unwrap();
    write("[\"wan\", \"mv0\"]");
    let guard = Guard::start_again(&site.lab).unwrap();
    both(&guard);
    guard.remove().unwrap();
    for name in ["wan", "mv0"] {
        let link = host.ip(&format!("-details link show {name}")).unwrap();
        assert!(!link.contains("prog/xdp"), "{link}");
    }
}

#[test]
fn status_never_denies_a_program_that_is_there_while_the_kernel_is_busy() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    // Many interfaces are added and removed, so the kernel's RTNL lock is held for long.
    let batch = site.lab.folder().join("batch");
    let pairs =
        (0..60).map(|n| format!("link add x{n} type veth peer name y{n}\nlink set x{n} group 7\n"));
    fs::write(&batch, pairs.collect::<String>()).unwrap();
    let over = AtomicBool::new(false);
    let mut denied = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // Some interfaces of the last round may still exist.
                let _result = site.lab.host.ip(&format!("-batch {}", batch.display()));
                let _result = site.lab.host.ip("link del group 7");
            }
        });
        for _ in 0..15 {
            guard.run(&["reload"]).unwrap();
            for _ in 0..3 {
                let status = status(&guard);
                if status["enforcing"] != true {
                    denied.push(status["not_enforcing_because"].to_string());
                }
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(denied.is_empty(), "{denied:?}");
}
