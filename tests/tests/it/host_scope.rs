//! Scope `host` closes every port that no service lists, and takes nothing from the host's own
//! clients and those of its containers.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use lab::{
    docker::Docker,
    flood::Flood,
    guard::Guard,
    process::{Daemon, run, wait_for},
    topology::{FLOODER_V4, HOST_V4, INTERFACE, Lab, USER_V4, USER_V6},
};
use serde_json::json;

fn policy(docker: &str) -> String {
    format!(
        "mode = \"enforce\"
         interfaces = [\"{INTERFACE}\"]
         scope = \"host\"
         [docker]
         socket = \"{docker}\""
    )
}

/// dnsmasq on the internet, which knows one name.
fn start_dns(lab: &Lab) -> Daemon {
    Daemon::start(
        lab.internet
            .command("dnsmasq")
            .args([
                "--keep-in-foreground",
                "--no-resolv",
                "--no-hosts",
                "--user=root",
            ])
            .args(["--bind-interfaces", "--pid-file=", "--conf-file=/dev/null"])
            .arg(format!("--listen-address={USER_V4},{USER_V6}"))
            .arg("--address=/example.test/192.0.2.53")
            .arg("--address=/example.test/2001:db8::53"),
        &lab.folder().join("dnsmasq.log"),
    )
    .unwrap()
}

/// A QUIC server (ngtcp2) on the internet.
fn start_quic(lab: &Lab) -> Daemon {
    let folder = lab.folder().join("quic");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("index.html"), "hello over QUIC").unwrap();
    let (key, certificate) = (folder.join("key.pem"), folder.join("certificate.pem"));
    run(lab
        .internet
        .command("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args(["-subj", "/CN=example.test", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate))
    .unwrap();
    Daemon::start(
        lab.internet
            .command("gtlsserver")
            .args(["--quiet", "--htdocs"])
            .arg(&folder)
            .args([&USER_V4.to_string(), "443"])
            .args([&key, &certificate]),
        &lab.folder().join("quic.log"),
    )
    .unwrap()
}

#[test]
fn dns_and_quic_clients_of_the_host_and_its_containers_keep_working() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    docker.run_invoices("invoices", &[]).unwrap();
    let _dns = start_dns(&lab);
    let _quic = start_quic(&lab);
    let resolve = |server: &str| {
        let mut command = lab.host.command("busybox");
        run(command.args(["nslookup", "example.test", server]))
    };
    wait_for(Duration::from_secs(5), || resolve(&USER_V4.to_string())).unwrap();
    let guard = Guard::start(&lab, &policy(&docker.socket().display().to_string())).unwrap();
    for server in [USER_V4, USER_V6] {
        let answer = resolve(&server.to_string()).unwrap();
        assert!(
            answer.contains("192.0.2.53") && answer.contains("2001:db8::53"),
            "{answer}"
        );
    }
    let server = USER_V4.to_string();
    let answer = docker
        .run(&[
            "exec",
            "invoices",
            "/bin/busybox",
            "nslookup",
            "example.test",
            &server,
        ])
        .unwrap();
    assert!(answer.contains("192.0.2.53"), "{answer}");
    let page = lab.folder().join("quic-page");
    fs::create_dir(&page).unwrap();
    run(lab
        .host
        .command("gtlsclient")
        .args([
            "--quiet",
            "--exit-on-all-streams-close",
            "--timeout=5s",
            "--download",
        ])
        .arg(&page)
        .args([&server, "443", "https://example.test/index.html"]))
    .unwrap();
    assert_eq!(
        fs::read_to_string(page.join("index.html")).unwrap(),
        "hello over QUIC"
    );
    assert!(guard.packets(&[("reason", json!("reply"))]).unwrap() >= 6);
    let dropped = guard.packets(&[("verdict", json!("drop"))]).unwrap();
    assert_eq!(dropped, 0, "{}", guard.run(&["counters"]).unwrap());
    // Nothing that nobody asked for gets in by the same ports.
    Flood::start(&lab, FLOODER_V4, 40_000, Duration::from_millis(1), 10)
        .unwrap()
        .wait(Duration::from_secs(10))
        .unwrap();
    lab.internet
        .enter(|| {
            let socket = UdpSocket::bind(SocketAddr::new(FLOODER_V4, 53)).unwrap();
            for port in 40_000..40_100 {
                socket
                    .send_to(b"unasked", SocketAddr::new(HOST_V4, port))
                    .unwrap();
            }
        })
        .unwrap();
    let closed = guard.packets(&[("reason", json!("closed_port"))]).unwrap();
    assert_eq!(closed, 110);
}

#[test]
fn a_flow_that_was_open_before_the_guard_came_goes_on() {
    let lab = Lab::new().unwrap();
    let server = lab
        .internet
        .enter(|| UdpSocket::bind(SocketAddr::new(USER_V4, 7777)).unwrap())
        .unwrap();
    let client = lab
        .host
        .enter(|| UdpSocket::bind(SocketAddr::new(HOST_V4, 0)).unwrap())
        .unwrap();
    client.connect(server.local_addr().unwrap()).unwrap();
    client.send(b"question").unwrap();
    let mut buffer = [0; 100];
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    let _guard = Guard::start(&lab, &policy("")).unwrap();
    server.send_to(b"answer", from).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(3)))
        .unwrap();
    let length = client.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"answer");
}
