//! Scope `host` closes every port that no service lists. Clients on the host and in its containers still get their
//! answers.

use std::{
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::Result;
use aya::util::KernelVersion;
use guard_common::layout;
use lab::{
    docker::Docker,
    flood::Flood,
    guard::Guard,
    image,
    process::{run, wait_for},
    topology::{FLOODER_V4, HOST_V4, HOST_V6, INTERFACE, Lab, USER_V4, USER_V6},
    udp::{self, Servers},
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

/// Runs a client on the host or in a container.
type RunClient<'a> = dyn Fn(&[String]) -> Result<String> + 'a;

const CLIENTS: &str = "guard-lab/clients";

/// The address of a program on the host that receives datagrams.
const LISTENER: SocketAddr = SocketAddr::new(HOST_V4, 40_500);

#[test]
fn dns_ntp_and_quic_clients_of_the_host_and_its_containers_keep_working() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    let image = lab.folder().join("clients");
    image::make_root(&image, &udp::CLIENTS).unwrap();
    docker.import(&image, CLIENTS, &[]).unwrap();
    let mut servers = Servers::start(&lab).unwrap();
    let on_host = |command: &[String]| run(lab.host.command(&command[0]).args(&command[1..]));
    let in_container = |command: &[String]| docker.run_once(&lab, CLIENTS, command);
    wait_for(Duration::from_secs(5), || on_host(&udp::resolve(USER_V4))).unwrap();

    let guard = Guard::start(&lab, &policy(&docker.socket().display().to_string())).unwrap();
    let clients: [(&str, &RunClient); 2] = [("host", &on_host), ("container", &in_container)];
    for (client, run_client) in clients {
        for server in [USER_V4, USER_V6] {
            let answer = run_client(&udp::resolve(server)).unwrap();
            for address in udp::ADDRESSES {
                assert!(answer.contains(address), "{client}: {answer}");
            }
            // The client fails only if no answer comes.
            run_client(&udp::query_time(&lab, server)).unwrap();
        }
        let folder = lab.folder().join(format!("{client}-page"));
        fs::create_dir(&folder).unwrap();
        run_client(&udp::fetch(&folder, USER_V4)).unwrap();
        udp::check_page(&folder).unwrap();
    }
    // From each client at least two answers of each DNS server, one of each NTP server and two of QUIC.
    assert!(guard.packets(&[("reason", json!("reply"))]).unwrap() >= 20);
    let dropped = guard.packets(&[("verdict", json!("drop"))]).unwrap();
    assert_eq!(dropped, 0, "{}", guard.run(&["counters"]).unwrap());

    servers.stop_ntp_and_quic().unwrap();
    docker.run_invoices("invoices", &[]).unwrap();
    let container = address_of(&docker, "invoices");
    assert_unasked_is_dropped(&lab, guard, container);
}

/// Asserts that datagrams without a query are dropped: at the clients' ports, and from the servers' addresses to
/// another port of the host or to a container.
fn assert_unasked_is_dropped(lab: &Lab, guard: Guard, container: IpAddr) {
    Flood::start(lab, FLOODER_V4, 40_000, Duration::from_millis(1), 10)
        .unwrap()
        .wait(Duration::from_secs(10))
        .unwrap();
    let hosts = (40_000..40_100).map(|port| SocketAddr::new(HOST_V4, port));
    send(lab, SocketAddr::new(FLOODER_V4, 53), hosts);
    let closed = || guard.packets(&[("reason", json!("closed_port"))]).unwrap();
    assert_eq!(closed(), 110);
    let to_container = format!("route add {container} via {HOST_V4}");
    lab.internet.ip(&to_container).unwrap();
    let listener = lab.host.enter(|| UdpSocket::bind(LISTENER).unwrap());
    let listener = listener.unwrap();
    let patience = Duration::from_millis(300);
    listener.set_read_timeout(Some(patience)).unwrap();
    let is_reached = || listener.recv(&mut [0; 100]).is_ok();
    for (n, port) in [(1, udp::NTP_PORT), (2, udp::QUIC_PORT)] {
        let server = SocketAddr::new(USER_V4, port);
        send(lab, server, [LISTENER, SocketAddr::new(container, 123)]);
        assert!(!is_reached(), "from port {port}");
        assert_eq!(closed(), 110 + n, "from port {port}");
        let to_containers = [("reason", json!("container_address"))];
        assert_eq!(guard.packets(&to_containers).unwrap(), n);
    }
    // Without the guard the datagram arrives: only the guard had dropped it.
    guard.remove().unwrap();
    send(lab, SocketAddr::new(USER_V4, udp::NTP_PORT), [LISTENER]);
    assert!(is_reached(), "without a guard");
}

/// Sends one datagram from the internet to each address.
fn send(lab: &Lab, from: SocketAddr, to: impl IntoIterator<Item = SocketAddr> + Send) {
    lab.internet
        .enter(|| {
            let socket = UdpSocket::bind(from).unwrap();
            for to in to {
                socket.send_to(b"unasked", to).unwrap();
            }
        })
        .unwrap();
}

fn address_of(docker: &Docker, container: &str) -> IpAddr {
    let format = "{{.NetworkSettings.IPAddress}}";
    let address = docker
        .run(&["inspect", "--format", format, container])
        .unwrap();
    address.trim().parse().unwrap()
}

/// A socket on the internet.
fn server(lab: &Lab, address: IpAddr, port: u16) -> UdpSocket {
    let bind = || UdpSocket::bind(SocketAddr::new(address, port)).unwrap();
    lab.internet.enter(bind).unwrap()
}

/// A socket on the host, on a port that the kernel picks.
fn client(lab: &Lab, address: IpAddr) -> UdpSocket {
    let bind = || UdpSocket::bind(SocketAddr::new(address, 0)).unwrap();
    let client = lab.host.enter(bind).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    client
}

/// Whether the client gets an answer from the server.
fn is_answered(client: &UdpSocket, server: &UdpSocket) -> bool {
    let mut buffer = [0; 100];
    client
        .send_to(b"question", server.local_addr().unwrap())
        .unwrap();
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    server.send_to(b"answer", from).unwrap();
    client.recv(&mut buffer).is_ok()
}

/// The number of the guard's filters below a clsact qdisc. Without tcx (before Linux 6.6) the egress program is
/// attached there.
fn filters(lab: &Lab) -> usize {
    let arguments = ["filter", "show", "dev", INTERFACE, "egress"];
    let filters = run(lab.host.command("tc").args(arguments)).unwrap();
    let lines = filters.lines();
    lines
        .filter(|line| line.contains(layout::EGRESS_PROGRAM))
        .count()
}

/// Whether there is a clsact qdisc.
fn has_clsact(lab: &Lab) -> bool {
    let qdiscs = run(lab
        .host
        .command("tc")
        .args(["qdisc", "show", "dev", INTERFACE]))
    .unwrap();
    qdiscs.contains("clsact")
}

fn has_tcx() -> bool {
    KernelVersion::current().unwrap() >= KernelVersion::new(6, 6, 0)
}

#[test]
fn without_tcx_the_guard_leaves_no_qdisc_behind_that_nobody_else_uses() {
    if has_tcx() {
        // With tcx the guard never creates a qdisc; kernels.rs runs this test on a kernel without tcx.
        return;
    }
    let lab = Lab::new().unwrap();
    let tc = |arguments: &str| {
        let arguments = arguments.split_whitespace();
        run(lab.host.command("tc").args(arguments)).unwrap()
    };
    let guard = Guard::start(&lab, &policy("")).unwrap();
    assert!(has_clsact(&lab));
    guard.remove().unwrap();
    assert!(!has_clsact(&lab));
    // Other software uses the guard's qdisc, so the guard leaves it.
    let guard = Guard::start(&lab, &policy("")).unwrap();
    tc(&format!(
        "filter add dev {INTERFACE} ingress matchall classid 1:1"
    ));
    guard.remove().unwrap();
    assert!(has_clsact(&lab));
    // A qdisc that existed before the guard stays, used or not.
    tc(&format!("filter del dev {INTERFACE} ingress"));
    let guard = Guard::start(&lab, &policy("")).unwrap();
    assert_eq!(filters(&lab), 1);
    guard.remove().unwrap();
    assert_eq!(filters(&lab), 0);
    assert!(has_clsact(&lab));
}

#[test]
fn what_this_host_asks_is_recorded_on_its_way_out_with_tcx_and_without() {
    let lab = Lab::new().unwrap();
    let expected = usize::from(!has_tcx());
    let guard = Guard::start(&lab, &policy("")).unwrap();
    assert_eq!(filters(&lab), expected);
    for (host, user) in [(HOST_V4, USER_V4), (HOST_V6, USER_V6)] {
        let client = client(&lab, host);
        assert!(is_answered(&client, &server(&lab, user, 7777)));
        // A datagram from another port of the peer is dropped.
        let port = client.local_addr().unwrap().port();
        let from = SocketAddr::new(user, 7778);
        send(&lab, from, [SocketAddr::new(host, port)]);
        assert!(client.recv(&mut [0; 100]).is_err());
    }
    let count = |reason| guard.packets(&[("reason", json!(reason))]).unwrap();
    assert_eq!((count("reply"), count("closed_port")), (2, 2));
    // A killed agent leaves its program attached. The next agent takes over the program and its flows.
    let asked = server(&lab, USER_V4, 7779);
    guard.kill().unwrap();
    assert_eq!(filters(&lab), expected);
    assert!(is_answered(&client(&lab, HOST_V4), &asked));
    let guard = Guard::start_again(&lab).unwrap();
    assert_eq!(filters(&lab), expected);
    assert!(is_answered(&client(&lab, HOST_V4), &asked));
    guard.remove().unwrap();
    assert_eq!(filters(&lab), 0);
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
