//! The guard with a real Docker: the published ports are closed, and Docker's DNAT rules do not change.

use std::net::{Ipv4Addr, UdpSocket};

use lab::{
    docker::{CONTAINER_PORT, Docker, IMAGE},
    guard::Guard,
    http::{HttpOutcome, get},
    process::run,
    proxy::Proxy,
    topology::{HOST_V4, HOST_V6, INTERFACE, Lab, USER_V4, USER_V6},
    udp::{self, Servers},
};
use serde_json::{Value, json};

fn policy(mode: &str, docker: &Docker, extra: &str) -> String {
    format!(
        "mode = \"{mode}\"
         interfaces = [\"{INTERFACE}\"]
         [docker]
         socket = \"{}\"
         [[service]]
         name = \"proxy\"
         ports = [\"tcp/80\"]
         {extra}",
        docker.socket().display()
    )
}

#[test]
fn a_published_port_is_closed_below_the_dnat_and_the_proxy_stays_the_way_in() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    docker
        .run_invoices("invoices", &["8000:8000", "127.0.0.1:8001:8000"])
        .unwrap();
    let _proxy = Proxy::start(&lab, "127.0.0.1:8000").unwrap();
    let ok = HttpOutcome::Status(200);
    let ask = |port| {
        [(USER_V4, HOST_V4), (USER_V6, HOST_V6)]
            .map(|(user, host)| get(&lab, user, host, port).unwrap())
    };
    lab::process::wait_for(std::time::Duration::from_secs(10), || {
        anyhow::ensure!(ask(8000) == [ok; 2], "{:?}", ask(8000));
        Ok(())
    })
    .unwrap();
    assert_eq!(ask(80), [ok; 2], "before");

    let guard = Guard::start(&lab, &policy("observe", &docker, "")).unwrap();
    assert_eq!((ask(8000), ask(80)), ([ok; 2], [ok; 2]), "observe");
    let would = [
        ("reason", json!("closed_port")),
        ("would", json!("drop")),
        ("verdict", json!("pass")),
    ];
    assert!(guard.packets(&would).unwrap() >= 2);
    assert_eq!(guard.packets(&[("verdict", json!("drop"))]).unwrap(), 0);
    guard.remove().unwrap();

    let guard = Guard::start(&lab, &policy("enforce", &docker, "")).unwrap();
    assert_eq!(ask(8000), [HttpOutcome::TimedOut; 2], "enforce");
    assert_eq!(ask(80), [ok; 2], "enforce");
    assert!(
        guard
            .packets(&[("reason", json!("closed_port")), ("would", Value::Null)])
            .unwrap()
            >= 2
    );

    let status = guard.json("status").unwrap();
    assert_eq!(status["enforcing"], true);
    assert_eq!(status["docker"]["connected"], true);
    assert_eq!(
        status["docker"]["published"],
        json!(["tcp/8000"]),
        "8001 is published on loopback only"
    );

    let nat = run(lab
        .host
        .command("iptables")
        .args(["-t", "nat", "-S", "DOCKER"]))
    .unwrap();
    assert!(nat.contains("--dport 8000 -j DNAT"), "{nat}");
    let nmap = run(lab.internet.command("nmap").args([
        "-n",
        "-Pn",
        "-sS",
        "-p",
        "80,8000",
        "-e",
        "internet",
        "-oG",
        "-",
        &HOST_V4.to_string(),
    ]))
    .unwrap();
    assert!(nmap.contains("80/open/tcp"), "{nmap}");
    assert!(nmap.contains("8000/filtered/tcp"), "{nmap}");
    guard.remove().unwrap();

    assert_eq!(ask(8000), [ok; 2], "after");

    // A service that lists the port opens it again.
    let listed = "[[service]]
         name = \"invoices\"
         ports = [\"tcp/8000\"]
         from = [\"198.51.100.0/24\"]";
    let guard = Guard::start(&lab, &policy("enforce", &docker, listed)).unwrap();
    assert_eq!(
        ask(8000),
        [ok, HttpOutcome::TimedOut],
        "open to one IPv4 network"
    );
    let elsewhere = [
        ("service", json!("invoices")),
        ("reason", json!("source_not_allowed")),
    ];
    assert!(guard.packets(&elsewhere).unwrap() >= 1);
}

#[test]
fn a_container_reaches_the_internet_while_its_ports_are_closed() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    docker.run_invoices("invoices", &["8000:8000"]).unwrap();
    let guard = Guard::start(&lab, &policy("enforce", &docker, "")).unwrap();
    let pong = docker
        .run(&[
            "exec",
            "invoices",
            "/bin/busybox",
            "ping",
            "-c",
            "3",
            "-W",
            "2",
            &USER_V4.to_string(),
        ])
        .unwrap();
    assert!(pong.contains(" 0% packet loss"), "{pong}");
    // A connection that the container opens, to a web server on the internet.
    let root = lab.folder().join("internet");
    lab::docker::make_invoices_root(&root).unwrap();
    let [program, arguments @ ..] = &lab::docker::invoices_command(&root.display().to_string());
    let _server = lab::process::Daemon::start(
        lab.internet.command(program).args(arguments),
        &lab.folder().join("internet.log"),
    )
    .unwrap();
    let ask = format!(
        "printf 'GET /invoices.json HTTP/1.0\\r\\n\\r\\n' | /bin/busybox nc -w 2 {USER_V4} {}",
        lab::docker::CONTAINER_PORT
    );
    let page = lab::process::wait_for(std::time::Duration::from_secs(5), || {
        docker.run(&["exec", "invoices", "/bin/busybox", "sh", "-c", &ask])
    })
    .unwrap();
    assert!(page.ends_with(lab::docker::INVOICES), "{page}");
    assert_eq!(guard.packets(&[("verdict", json!("drop"))]).unwrap(), 0);
}

/// Docker's option for routing instead of masquerading; since Docker 27 there are gateway modes for it.
const ROUTED: &str = "com.docker.network.bridge.enable_ip_masquerade=false";

#[test]
fn a_network_that_is_routed_gets_answers_and_no_attempts() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    let container = Ipv4Addr::new(172, 31, 7, 2);
    let create = ["network", "create", "--opt", ROUTED];
    let create = [&create[..], &["--subnet", "172.31.7.0/24", "routed"]].concat();
    docker.run(&create).unwrap();
    let run = ["run", "--detach", "--name", "invoices"];
    let address = container.to_string();
    let run = [&run[..], &["--network", "routed", "--ip", &address, IMAGE]].concat();
    docker.run(&run).unwrap();
    let there = format!("route add 172.31.7.0/24 via {HOST_V4}");
    lab.internet.ip(&there).unwrap();
    let _servers = Servers::start(&lab).unwrap();
    let guard = Guard::start(&lab, &policy("enforce", &docker, "")).unwrap();
    let packets = |reason: &str| guard.packets(&[("reason", json!(reason))]).unwrap();

    let in_container = |command: &str| {
        let exec = ["exec", "invoices", "/bin/busybox", "sh", "-c", command];
        docker.run(&exec)
    };
    let resolve = format!("/bin/{}", udp::resolve(USER_V4).join(" "));
    let answer = in_container(&resolve).unwrap();
    assert!(answer.contains(udp::ADDRESSES[0]), "{answer}");
    assert!(packets("reply") >= 2, "{answer}");
    // The DNS server also listens on TCP.
    in_container(&format!("/bin/busybox nc -w 1 {USER_V4} 53 </dev/null")).unwrap();
    assert!(packets("established") >= 2);
    assert_eq!(guard.packets(&[("verdict", json!("drop"))]).unwrap(), 0);

    let direct = get(&lab, USER_V4, container.into(), CONTAINER_PORT).unwrap();
    assert_eq!(direct, HttpOutcome::TimedOut);
    let attempts = packets("container_address");
    assert!(attempts >= 1);
    let unasked = lab.internet.enter(|| {
        let socket = UdpSocket::bind((USER_V4, 0)).unwrap();
        socket.send_to(b"unasked", (container, 123)).unwrap();
    });
    unasked.unwrap();
    assert_eq!(packets("container_address"), attempts + 1);
}

#[test]
fn docker_that_is_gone_is_told_and_is_not_called_enforcing() {
    let lab = Lab::new().unwrap();
    let policy = format!(
        "mode = \"enforce\"
         interfaces = [\"{INTERFACE}\"]
         [docker]
         socket = \"{}/no-docker.sock\"",
        lab.folder().display()
    );
    let guard = Guard::start(&lab, &policy).unwrap();
    let status = guard.json("status").unwrap();
    assert_eq!(status["docker"]["connected"], false);
    assert_eq!(status["enforcing"], false);
    assert!(
        status["docker"]["error"]
            .as_str()
            .unwrap()
            .contains("no-docker.sock")
    );
    assert!(guard.log().contains("stay open"), "{}", guard.log());
}
