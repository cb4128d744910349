//! Services on one address, and addresses inside container networks.

use guard::policy::{ContainerNetwork, Containers, PublishedAt, PublishedPort};
use guard_common::{
    exposure::NetworkKind,
    layout::PortProtocol,
    reason::Reason::{self, *},
};

use crate::{
    clocked::Simulation,
    frames::{flags::*, protocol::*, *},
};

#[test]
fn a_service_on_one_address_is_closed_on_the_others() {
    let policy = "scope = \"host\"
        [[service]]
        name = \"one\"
        ports = [\"tcp/80\", \"tcp/90\"]
        address = \"203.0.113.5\"
        [[service]]
        name = \"other\"
        ports = [\"tcp/80\"]
        address = \"2001:db8:113::5\"
        from = [\"2001:db8:51::/48\"]";
    let simulation = Simulation::new(policy);
    let syn = tcp_v4(80, SYN);
    assert_eq!(simulation.reason(&to_v4(&syn, "203.0.113.5")), Allowed);
    assert_eq!(simulation.reason(&to_v4(&syn, "203.0.113.6")), ClosedPort);
    let syn = tcp_v6(80, SYN);
    assert_eq!(simulation.reason(&to_v6(&syn, "2001:db8:113::5")), Allowed);
    assert_eq!(
        simulation.reason(&to_v6(&syn, "2001:db8:113::6")),
        ClosedPort
    );
    let elsewhere = ipv6(OTHER_V6, TCP, &tcp(80, SYN, &[]));
    let elsewhere = to_v6(&elsewhere, "2001:db8:113::5");
    assert_eq!(simulation.reason(&elsewhere), SourceNotAllowed);
}

fn networks() -> Containers {
    let network = |prefix: &str, kind| ContainerNetwork {
        prefix: prefix.parse().unwrap(),
        kind,
    };
    Containers {
        published: vec![PublishedPort {
            protocol: PortProtocol::Tcp,
            port: 8000,
            at: PublishedAt::EveryIpv4,
        }],
        networks: vec![
            network("172.17.0.0/16", NetworkKind::Masqueraded),
            network("10.9.8.128/25", NetworkKind::Masqueraded),
            network("10.50.0.0/16", NetworkKind::Routed),
            network("2001:db8:d0c::/64", NetworkKind::Routed),
            network("fd00:d0c::/48", NetworkKind::Routed),
        ],
        labelled: Vec::new(),
    }
}

#[test]
fn an_address_inside_a_container_network_gets_nothing_from_outside() {
    let policy = "[[service]]
        name = \"web\"
        ports = [\"tcp/80\"]
        [[service]]
        name = \"direct\"
        ports = [\"tcp/81\"]
        address = \"172.17.0.9\"";
    for scope in ["containers", "host"] {
        let policy = format!("scope = \"{scope}\"\n{policy}");
        let simulation = Simulation::with_containers(&policy, &networks());
        let reason =
            |frame: &[u8], address| -> Reason { simulation.reason(&to_v4(frame, address)) };
        for frame in [
            tcp_v4(80, SYN),
            tcp_v4(80, ACK),
            tcp_v4(9999, SYN),
            udp_v4(9999),
            ipv4(CLIENT_V4, ICMP, &icmp(8)),
            ipv4(CLIENT_V4, 47, &[0; 8]),
        ] {
            for address in ["172.17.0.0", "172.17.0.2", "172.17.255.255", "10.9.8.128"] {
                assert_eq!(reason(&frame, address), ContainerAddress, "{address}");
            }
        }
        for address in ["172.16.255.255", "172.18.0.0", "10.9.8.127", "10.9.9.128"] {
            assert_eq!(reason(&tcp_v4(80, SYN), address), Allowed, "{address}");
        }
        // A policy may list a container's own address.
        assert_eq!(reason(&tcp_v4(81, SYN), "172.17.0.9"), Allowed);
        assert_eq!(reason(&tcp_v4(81, SYN), "172.17.0.8"), ContainerAddress);
    }
}

#[test]
fn a_routed_container_network_gets_answers_and_no_attempts() {
    let simulation = Simulation::with_containers("", &networks());
    for address in ["2001:db8:d0c::2", "fd00:d0c:0:7::2"] {
        let reason = |frame: &[u8]| simulation.reason(&to_v6(frame, address));
        assert_eq!(reason(&tcp_v6(80, SYN)), ContainerAddress);
        assert_eq!(reason(&tcp_v6(80, ACK)), Established);
        assert_eq!(reason(&udp_v6(9999)), ContainerAddress);
        assert_eq!(
            reason(&ipv6(CLIENT_V6, ICMPV6, &icmp(128))),
            ContainerAddress
        );
        assert_eq!(reason(&ipv6(CLIENT_V6, ICMPV6, &icmp(2))), Reply);
        assert_eq!(reason(&ipv6(CLIENT_V6, ICMPV6, &icmp(129))), Reply);
    }
    assert_eq!(
        simulation.reason(&tcp_v6(80, SYN)),
        NotGuarded,
        "the host itself"
    );
    // A container's query, and its answer.
    let query = ipv6(
        "2001:db8:d0c::2".parse().unwrap(),
        UDP,
        &udp(5000, 53, b"query"),
    );
    simulation.sent(&to_v6(&query, "2001:db8:99::9"));
    let answer = ipv6(OTHER_V6, UDP, &udp(53, 5000, b"answer"));
    assert_eq!(simulation.reason(&to_v6(&answer, "2001:db8:d0c::2")), Reply);
    assert_eq!(
        simulation.reason(&to_v6(&answer, "2001:db8:d0c::3")),
        ContainerAddress
    );
}

#[test]
fn a_dhcp_reply_is_control_for_the_host_alone() {
    let denied = "[[source]]\nname = \"scanner\"\ncidrs = [\"192.0.2.0/24\"]\ndeny = true\n";
    let reply = ipv4(OTHER_V4, UDP, &udp(67, 68, &[0; 240]));
    let publishing = |port| {
        let mut containers = networks();
        containers.published.push(PublishedPort {
            protocol: PortProtocol::Udp,
            port,
            at: PublishedAt::EveryIpv4,
        });
        containers
    };
    for (denied, container, published) in [
        ("", ContainerAddress, ClosedPort),
        (denied, DeniedSource, DeniedSource),
    ] {
        let simulation = Simulation::with_containers(denied, &publishing(67));
        for own in ["203.0.113.10", "255.255.255.255"] {
            assert_eq!(simulation.reason(&to_v4(&reply, own)), Control, "{own}");
        }
        for inside in ["172.17.0.2", "10.50.0.2"] {
            let reply = to_v4(&reply, inside);
            assert_eq!(simulation.reason(&reply), container, "{inside}");
        }
        let simulation = Simulation::with_containers(denied, &publishing(68));
        assert_eq!(simulation.reason(&reply), published);
    }
    // A port published on one address belongs to the host on the other addresses.
    let mut containers = networks();
    containers.published = PublishedPort::parse("203.0.113.11:udp/68").unwrap();
    let simulation = Simulation::with_containers("", &containers);
    for (own, reason) in [
        ("203.0.113.10", Control),
        ("255.255.255.255", Control),
        ("203.0.113.11", ClosedPort),
    ] {
        assert_eq!(simulation.reason(&to_v4(&reply, own)), reason, "{own}");
    }
}

#[test]
fn an_answer_gets_in_whether_its_address_publishes_the_port_or_not() {
    let containers = Containers {
        published: [
            PublishedPort::parse("203.0.113.11:udp/9000").unwrap(),
            PublishedPort::parse("[2001:db8:113::11]:udp/9000").unwrap(),
        ]
        .concat(),
        ..Containers::default()
    };
    for (scope, own_v4, own_v6, flows, unasked, reason) in [
        (
            "host",
            "203.0.113.10",
            "2001:db8:113::10",
            2,
            ClosedPort,
            Reply,
        ),
        (
            "host",
            "203.0.113.11",
            "2001:db8:113::11",
            2,
            ClosedPort,
            Reply,
        ),
        // On that address the scope closes no port, so the flow is not recorded.
        (
            "containers",
            "203.0.113.10",
            "2001:db8:113::10",
            0,
            NotGuarded,
            NotGuarded,
        ),
        (
            "containers",
            "203.0.113.11",
            "2001:db8:113::11",
            2,
            ClosedPort,
            Reply,
        ),
    ] {
        let scope = format!("scope = \"{scope}\"");
        let simulation = Simulation::with_containers(&scope, &containers);
        let (v4, v6) = (own_v4.parse().unwrap(), own_v6.parse().unwrap());
        let (peer_v4, peer_v6) = (OTHER_V4.to_string(), OTHER_V6.to_string());
        let answer = udp(53, 9_000, b"answer");
        let answers = [
            to_v4(&ipv4(OTHER_V4, UDP, &answer), own_v4),
            to_v6(&ipv6(OTHER_V6, UDP, &answer), own_v6),
        ];
        for answer in &answers {
            assert_eq!(simulation.reason(answer), unasked, "{scope}, {own_v4}");
        }
        let question = udp(9_000, 53, b"question");
        simulation.sent(&to_v4(&ipv4(v4, UDP, &question), &peer_v4));
        simulation.sent(&to_v6(&ipv6(v6, UDP, &question), &peer_v6));
        assert_eq!(simulation.flows(), flows, "{scope}, {own_v4}");
        for answer in &answers {
            assert_eq!(simulation.reason(answer), reason, "{scope}, {own_v4}");
        }
    }
}
