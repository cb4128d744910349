//! Findings of `guard audit` besides published ports and listeners: DNAT rules for ports, containers with their own
//! addresses, services of Docker Swarm, and loopback publications that a neighbour reaches.

use std::{net::IpAddr, process::Output, time::Duration};

use lab::{
    docker::{Docker, IMAGE},
    guard::{Guard, output, write_policy},
    http::{HttpOutcome, get},
    process::{Daemon, run, wait_for},
    topology::{HOST_V4, INTERFACE, Lab, USER_V4},
};
use serde_json::{Value, json};

const OK: HttpOutcome = HttpOutcome::Status(200);

/// Runs `guard audit --json`, and returns its exit code and report.
fn audit(lab: &Lab, arguments: &[&str]) -> (i32, Value) {
    let arguments = [&["audit", "--json"], arguments].concat();
    let Output { status, stdout, .. } = output(lab, &arguments).unwrap();
    (
        status.code().unwrap(),
        serde_json::from_slice(&stdout).unwrap(),
    )
}

#[track_caller]
fn endpoint(report: &Value, port: u16) -> &Value {
    let mut endpoints = report["endpoints"].as_array().unwrap().iter();
    endpoints
        .find(|one| one["protocol"] == "tcp" && one["port"] == port)
        .unwrap_or_else(|| panic!("tcp/{port} is not in {report:#}"))
}

fn notes(report: &Value) -> String {
    let notes = report["notes"].as_array().unwrap().iter();
    notes
        .filter_map(Value::as_str)
        .collect::<Vec<_>>()
        .join("\n")
}

fn policy(lab: &Lab, text: &str) -> String {
    let text = format!("interfaces = [\"{INTERFACE}\"]\n{text}");
    write_policy(lab, &text).unwrap().display().to_string()
}

fn on_host(lab: &Lab, command: &str) -> anyhow::Result<String> {
    let mut words = command.split(' ');
    let mut program = lab.host.command(words.next().unwrap());
    run(program.args(words))
}

/// Waits until a client gets the invoices.
#[track_caller]
fn assert_served(lab: &Lab, host: IpAddr, port: u16) {
    wait_for(Duration::from_secs(20), || {
        let outcome = get(lab, USER_V4, host, port)?;
        anyhow::ensure!(outcome == OK, "{outcome}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn ports_that_rules_lead_elsewhere_are_listed_whoever_wrote_the_rules() {
    let lab = Lab::new().unwrap();
    let folder = lab.folder().join("www");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("invoices.json"), "mail").unwrap();
    let mut httpd = lab.host.command("busybox");
    httpd.args(["httpd", "-f", "-p", "2525", "-h"]).arg(&folder);
    let _httpd = Daemon::start(&mut httpd, &lab.folder().join("httpd.log")).unwrap();
    for command in [
        "nft add table inet own",
        "nft add chain inet own in { type nat hook prerouting priority -90; }",
        "nft add set inet own mail { type inet_service; elements = { 25, 465 }; }",
        "nft add rule inet own in tcp dport @mail redirect to :2525",
        "iptables-nft -t nat -N MAIL",
        "iptables-nft -t nat -A PREROUTING -p tcp -d 203.0.113.10 -j MAIL",
        "iptables-nft -t nat -A MAIL -p tcp --dport 587 -j DNAT --to-destination 10.66.0.2:587",
        "iptables-nft -t nat -A PREROUTING -p tcp --dport 588 -i lo -j DNAT --to-destination 10.66.0.2",
        "iptables-legacy -t nat -A PREROUTING -p tcp --dport 26 -j REDIRECT --to-ports 2525",
    ] {
        on_host(&lab, command).unwrap();
    }
    for port in [25, 26] {
        assert_served(&lab, HOST_V4, port);
    }
    let observed = policy(&lab, "mode = \"enforce\"\ndocker.socket = \"\"\n");
    let (code, report) = audit(&lab, &["--policy", &observed]);
    assert_eq!(code, 1, "{report:#}");
    for (port, kind, to, chain) in [
        (25, "process", "this host:2525", "inet own in"),
        (465, "process", "this host:2525", "inet own in"),
        (26, "process", "this host:2525", "ip nat PREROUTING"),
        (587, "nat", "10.66.0.2:587", "ip nat MAIL"),
    ] {
        let found = endpoint(&report, port);
        assert_eq!(found["finding"], true, "{found:#}");
        assert_eq!(found["level"], "world", "{found:#}");
        assert_eq!(found["owner"]["kind"], kind, "{found:#}");
        let rewrite = &found["owner"]["rewrite"];
        assert_eq!(
            (&rewrite["to"], &rewrite["chain"]),
            (&json!(to), &json!(chain))
        );
        let change = found["changes"][0].as_str().unwrap();
        assert!(change.contains(chain), "{change}");
    }
    assert_eq!(endpoint(&report, 588)["level"], "localhost", "{report:#}");
    assert_eq!(endpoint(&report, 587)["addresses"], json!(["203.0.113.10"]));

    // In scope `host` the guard drops the packets before the NAT rules.
    let text = format!(
        "mode = \"enforce\"\nscope = \"host\"\ndocker.socket = \"\"\ninterfaces = [\"{INTERFACE}\"]\n"
    );
    let _guard = Guard::start(&lab, &text).unwrap();
    let (code, report) = audit(&lab, &[]);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(endpoint(&report, 25)["policy"][0]["fate"], "closed");
    assert_eq!(
        get(&lab, USER_V4, HOST_V4, 25).unwrap(),
        HttpOutcome::TimedOut
    );
}

#[test]
fn an_address_that_nobody_has_is_named() {
    let lab = Lab::new().unwrap();
    let service = "[[service]]\nname = \"old\"\nports = [\"tcp/80\"]\naddress = \"203.0.113.99\"\n";
    let path = policy(&lab, &format!("docker.socket = \"\"\n{service}"));
    let (_, report) = audit(&lab, &["--policy", &path]);
    let notes = notes(&report);
    assert!(
        notes.contains("service old has the address 203.0.113.99, which neither"),
        "{notes}"
    );
    let here = service.replace("203.0.113.99", "203.0.113.10");
    let path = policy(&lab, &format!("docker.socket = \"\"\n{here}"));
    let (_, report) = audit(&lab, &["--policy", &path]);
    assert_eq!(report["notes"], json!([]), "{report:#}");
}

#[test]
fn a_container_in_a_macvlan_network_is_listed_at_its_own_address() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    let socket = docker.socket().display().to_string();
    let parent = format!("parent={INTERFACE}");
    let create = ["network", "create", "--driver", "macvlan", "--opt", &parent];
    let nets = [
        "--subnet",
        "203.0.113.0/24",
        "--gateway",
        "203.0.113.1",
        "lan",
    ];
    docker.run(&[&create[..], &nets].concat()).unwrap();
    let attach = ["run", "--detach", "--name", "camera", "--network", "lan"];
    let own: IpAddr = "203.0.113.50".parse().unwrap();
    docker
        .run(&[&attach[..], &["--ip", "203.0.113.50", IMAGE]].concat())
        .unwrap();
    assert_served(&lab, own, 8000);
    let text = format!("mode = \"enforce\"\ndocker.socket = \"{socket}\"\n");
    let path = policy(&lab, &text);
    let (code, report) = audit(&lab, &["--policy", &path]);
    assert_eq!(code, 1, "{report:#}");
    let camera = endpoint(&report, 8000);
    assert_eq!(camera["own_address"], true, "{camera:#}");
    assert_eq!(camera["addresses"], json!(["203.0.113.50"]));
    assert_eq!(camera["owner"]["container"], "camera");
    assert_eq!(camera["finding"], true);
    assert_eq!(camera["policy"][0]["fate"], "not_guarded");

    let text = format!("{text}scope = \"host\"\ninterfaces = [\"{INTERFACE}\"]\n");
    let _guard = Guard::start(&lab, &text).unwrap();
    let (code, report) = audit(&lab, &[]);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(endpoint(&report, 8000)["policy"][0]["fate"], "closed");
    assert_eq!(
        get(&lab, USER_V4, own, 8000).unwrap(),
        HttpOutcome::TimedOut
    );
}

#[test]
fn what_a_service_of_a_swarm_publishes_is_listed_and_dockerds_own_ports_are_no_publication() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    let socket = docker.socket().display().to_string();
    let here = HOST_V4.to_string();
    docker
        .run(&["swarm", "init", "--advertise-addr", &here])
        .unwrap();
    // The image does not matter: the port is open on every node of the Swarm.
    let create = [
        "service",
        "create",
        "--detach",
        "--no-resolve-image",
        "--name",
        "web",
    ];
    let rest = ["--replicas", "0", "--publish", "8080:80", IMAGE];
    docker.run(&[&create[..], &rest].concat()).unwrap();
    let path = policy(
        &lab,
        &format!("mode = \"enforce\"\ndocker.socket = \"{socket}\"\n"),
    );
    let (code, report) = audit(&lab, &["--policy", &path]);
    assert_eq!(code, 1, "{report:#}");
    let web = endpoint(&report, 8080);
    assert_eq!(web["owner"]["kind"], "swarm", "{web:#}");
    assert_eq!(web["owner"]["service"], "web");
    assert_eq!(
        (&web["level"], &web["finding"]),
        (&json!("world"), &json!(true))
    );
    assert_eq!(web["policy"][0]["fate"], "not_guarded");
    let change = |port| endpoint(&report, port)["changes"].to_string();
    assert!(
        change(8080).contains("--publish-rm 8080 web"),
        "{}",
        change(8080)
    );
    assert!(
        change(2377).contains("docker swarm leave"),
        "{}",
        change(2377)
    );
    assert!(!change(2377).contains("published"), "{}", change(2377));
    docker.run(&["swarm", "leave", "--force"]).unwrap();
}

/// Routes 127.0.0.1 in the internet namespace to the host, as a neighbour on the host's network can.
fn become_neighbour(lab: &Lab) {
    let internet = &lab.internet;
    for route in ["local 127.0.0.0/8 dev lo", "local 127.0.0.1 dev lo"] {
        // Either route may be missing.
        let _result = internet.ip(&format!("route del table local {route}"));
    }
    internet
        .ip(&format!(
            "route add 127.0.0.1/32 via {HOST_V4} dev internet"
        ))
        .unwrap();
    // Fills the host's neighbour table: an ARP request of the host for its answer would have the source 127.0.0.1.
    let closed = get(lab, USER_V4, HOST_V4, 9).unwrap();
    assert_eq!(closed, HttpOutcome::Refused);
}

/// Whether a SYN to 127.0.0.1 on the wire is answered with SYN+ACK. hping3 sees the answer before the neighbour's
/// kernel drops it.
fn answers_neighbour(lab: &Lab, port: u16) -> bool {
    let port = port.to_string();
    let mut hping = lab.internet.command("hping3");
    let syn = [
        "--syn",
        "--count",
        "3",
        "--interval",
        "u300000",
        "--destport",
        &port,
    ];
    hping
        .args(syn)
        .args(["--interface", "internet", "127.0.0.1"]);
    let output = hping.output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains("flags=SA")
}

#[track_caller]
fn assert_answered(lab: &Lab, port: u16) {
    wait_for(Duration::from_secs(20), || {
        anyhow::ensure!(answers_neighbour(lab, port), "no SYN+ACK from port {port}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn loopback_is_for_this_host_alone_only_where_that_is_true() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    let socket = docker.socket().display().to_string();
    docker
        .run_invoices("inner", &["127.0.0.1:8001:8000"])
        .unwrap();
    let mut httpd = lab.host.command("busybox");
    httpd
        .args(["httpd", "-f", "-p", "127.0.0.1:8002", "-h"])
        .arg(lab.folder());
    let _httpd = Daemon::start(&mut httpd, &lab.folder().join("httpd.log")).unwrap();
    become_neighbour(&lab);

    // Docker's DNAT rule comes before the kernel's routing decision for 127.0.0.1.
    assert_answered(&lab, 8001);
    let version = docker
        .run(&["version", "--format", "{{.Server.Version}}"])
        .unwrap();
    let version = version.trim();
    let major: u32 = version.split('.').next().unwrap().parse().unwrap();
    assert!(
        major < 28,
        "since version 28 Docker drops the packet itself: {version}"
    );
    let (_, report) = audit(&lab, &["--docker", &socket]);
    let inner = endpoint(&report, 8001);
    assert_eq!(inner["level"], "network", "{inner:#}");
    assert_eq!(inner["neighbours"]["interfaces"], json!([INTERFACE]));
    let why = inner["neighbours"]["why"].as_str().unwrap();
    assert!(why.contains(version), "{why}");
    let changes = inner["changes"].to_string();
    assert!(changes.contains("version 28"), "{changes}");

    // The kernel routes no such packet to a process until route_localnet is set.
    assert!(!answers_neighbour(&lab, 8002));
    assert_eq!(endpoint(&report, 8002)["level"], "localhost");
    let setting = format!("net.ipv4.conf.{INTERFACE}.route_localnet=1");
    on_host(&lab, &format!("sysctl -q -w {setting}")).unwrap();
    assert_answered(&lab, 8002);
    let (_, report) = audit(&lab, &["--docker", &socket]);
    let process = endpoint(&report, 8002);
    assert_eq!(process["level"], "network", "{process:#}");
    assert_eq!(process["neighbours"]["interfaces"], json!([INTERFACE]));

    // An enforcing guard drops both packets.
    let path = policy(
        &lab,
        &format!("mode = \"enforce\"\ndocker.socket = \"{socket}\"\n"),
    );
    let (_, report) = audit(&lab, &["--policy", &path]);
    for port in [8001, 8002] {
        assert_eq!(endpoint(&report, port)["level"], "localhost", "{report:#}");
    }
}
