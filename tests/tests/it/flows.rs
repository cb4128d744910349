//! The UDP flows that this host opens: which flows are recorded, which answers pass, and when flows end.

use guard::policy::Containers;
use guard_common::{exposure::NetworkKind, reason::Reason};

use crate::{
    clocked::{SECOND, Simulation},
    frames::*,
};

#[test]
fn what_leaves_an_open_service_makes_no_flow_and_what_leaves_a_container_does() {
    let service = "[[service]]
        name = \"dns\"
        ports = [\"udp/53\"]
        address = \"203.0.113.10\"";
    let from_host = ipv4(HOST_V4, protocol::UDP, &udp(53, 4_000, b"answer"));
    let from_host = patched(&from_host, IPV4_AT + 16, &OTHER_V4.octets());
    // The port is open on one address. An answer from that address opens no flow; from another address it does.
    let simulation = Simulation::new(&format!("scope = \"host\"\n{service}"));
    simulation.sent(&from_host);
    assert_eq!(simulation.flows(), 0);
    let elsewhere = patched(&from_host, IPV4_AT + 15, &[11]);
    simulation.sent(&elsewhere);
    assert_eq!(simulation.flows(), 1);
    // A service of the host does not list a container's port with the same number.
    let networks = Containers {
        networks: vec![guard::policy::ContainerNetwork {
            prefix: "2001:db8:d0c::/64".parse().unwrap(),
            kind: NetworkKind::Routed,
        }],
        ..Containers::default()
    };
    let ntp = "[[service]]\nname = \"ntp\"\nports = [\"udp/123\"]";
    let simulation = Simulation::with_containers(ntp, &networks);
    let container = "2001:db8:d0c::2".parse().unwrap();
    let question = ipv6(container, protocol::UDP, &udp(123, 123, b"time"));
    simulation.sent(&patched(&question, IPV6_AT + 24, &OTHER_V6.octets()));
    let answer = ipv6(OTHER_V6, protocol::UDP, &udp(123, 123, b"time"));
    let answer = patched(&answer, IPV6_AT + 24, &container.octets());
    assert_eq!(simulation.reason(&answer), Reason::Reply);
}

#[test]
fn while_observing_an_answer_to_a_stranger_is_no_flow_of_this_host() {
    let policy = "mode = \"observe\"\nscope = \"host\"\ndocker.socket = \"\"";
    let simulation = Simulation::with_text(policy, &Containers::default());
    let question = ipv4(OTHER_V4, protocol::UDP, &udp(4_000, 51_820, b"question"));
    let answer = ipv4(HOST_V4, protocol::UDP, &udp(51_820, 4_000, b"answer"));
    let answer = patched(&answer, IPV4_AT + 16, &OTHER_V4.octets());
    for _ in 0..10 {
        let outcome = simulation.judged(&question).1;
        assert_eq!(outcome.reason, Reason::ClosedPort);
        assert!(outcome.would_drop);
        simulation.sent(&answer);
    }
}

/// A datagram from a spoofed source to this port, and the host's answer. Each number is another source.
fn spoofed(n: u32, to: &str, port: u16) -> (Vec<u8>, Vec<u8>) {
    let (to, source) = (to.parse().unwrap(), (0x2001_0000 + n).to_be_bytes().into());
    let question = ipv4(source, protocol::UDP, &udp(4_000, port, b"?"));
    let answer = ipv4(to, protocol::UDP, &udp(port, 4_000, b"!"));
    (
        patched(&question, IPV4_AT + 16, &to.octets()),
        patched(&answer, IPV4_AT + 16, &source.octets()),
    )
}

#[test]
fn no_flood_of_spoofed_questions_leaves_flows_behind() {
    const CONTAINER: &str = "10.50.0.2";
    const HOST: &str = "203.0.113.10";
    let containers = Containers {
        published: vec![guard::policy::PublishedPort {
            protocol: guard_common::layout::PortProtocol::Udp,
            port: 9_000,
            at: guard::policy::PublishedAt::EveryIpv4,
        }],
        networks: [
            ("10.50.0.0/16", NetworkKind::Routed),
            ("10.51.0.0/16", NetworkKind::Masqueraded),
        ]
        .map(|(prefix, kind)| guard::policy::ContainerNetwork {
            prefix: prefix.parse().unwrap(),
            kind,
        })
        .into(),
        labelled: Vec::new(),
    };
    let dns = |more: &str| format!("[[service]]\nname = \"dns\"\nports = [\"udp/53\"]\n{more}\n");
    let restricted = |mode: &str| dns(&format!("from = [\"192.0.2.0/24\"]\nmode = \"{mode}\""));
    for (what, mode, services, to, port, reason, would) in [
        (
            "open to all sources",
            "enforce",
            dns(""),
            HOST,
            53,
            Reason::Allowed,
            false,
        ),
        (
            "open to all sources, on a container's own address",
            "enforce",
            dns("address = \"10.50.0.2\""),
            CONTAINER,
            53,
            Reason::Allowed,
            false,
        ),
        (
            "restricted, service in mode observe",
            "enforce",
            restricted("observe"),
            HOST,
            53,
            Reason::SourceNotAllowed,
            true,
        ),
        (
            "restricted, and off",
            "enforce",
            restricted("off"),
            HOST,
            53,
            Reason::NotGuarded,
            false,
        ),
        (
            "restricted, host in mode observe",
            "observe",
            restricted("enforce"),
            HOST,
            53,
            Reason::SourceNotAllowed,
            true,
        ),
        (
            "closed",
            "observe",
            dns(""),
            HOST,
            54,
            Reason::ClosedPort,
            true,
        ),
        (
            "published",
            "observe",
            dns(""),
            HOST,
            9_000,
            Reason::ClosedPort,
            true,
        ),
        (
            "a container's own address",
            "observe",
            dns(""),
            "10.51.0.2",
            53,
            Reason::ContainerAddress,
            true,
        ),
    ] {
        let policy =
            format!("mode = \"{mode}\"\nscope = \"host\"\ndocker.socket = \"\"\n{services}");
        let simulation = Simulation::with_text(&policy, &containers);
        for n in 0..200 {
            let (question, answer) = spoofed(n, to, port);
            let outcome = simulation.judged(&question).1;
            assert_eq!(
                (outcome.reason, outcome.would_drop),
                (reason, would),
                "{what}"
            );
            simulation.sent(&answer);
            // The answer has not opened a flow: the next datagram gets the same outcome.
            let again = simulation.judged(&question).1;
            assert_eq!(again, outcome, "{what}, again");
        }
        assert_eq!(simulation.flows(), 0, "{what}");
    }
}

#[test]
fn a_service_that_is_only_observed_knows_this_hosts_own_flows() {
    let policy = vpn("2026-01-01T00:01:00Z")
        .replace("[\"contractor\"]", "[\"contractor\"]\nmode = \"observe\"");
    let simulation = Simulation::new(&policy);
    let (_, question) = spoofed(1, "203.0.113.10", 51_820);
    let (answer, _) = spoofed(1, "203.0.113.10", 51_820);
    simulation.sent(&question);
    assert_eq!(simulation.reason(&answer), Reason::Reply);
}

#[test]
fn a_stranger_is_one_only_briefly_after_its_last_packet() {
    let policy = "mode = \"observe\"\nscope = \"host\"\ndocker.socket = \"\"";
    let mut simulation = Simulation::with_text(policy, &Containers::default());
    // Both ends use the same port, so the peer's queries look like answers to this host's queries.
    let theirs = ipv4(OTHER_V4, protocol::UDP, &udp(51_820, 51_820, b"?"));
    let ours = ipv4(HOST_V4, protocol::UDP, &udp(51_820, 51_820, b"!"));
    let ours = patched(&ours, IPV4_AT + 16, &OTHER_V4.octets());
    for second in [0, 1, 2] {
        simulation.at(second * SECOND);
        assert_eq!(simulation.reason(&theirs), Reason::ClosedPort, "{second}");
        simulation.at(second * SECOND + SECOND * 9 / 10);
        simulation.sent(&ours);
    }
    assert_eq!(simulation.flows(), 0);
    // Now this host sends first.
    simulation.at(10 * SECOND);
    simulation.sent(&ours);
    for second in [11, 12, 100, 200] {
        simulation.at(second * SECOND);
        assert_eq!(simulation.reason(&theirs), Reason::Reply, "{second}");
    }
}

#[test]
fn answers_to_udp_flows_of_this_host_get_in_and_idle_ones_end() {
    let mut simulation = Simulation::new("scope = \"host\"");
    let query_v4 = |peer: std::net::Ipv4Addr, port| {
        let frame = ipv4(HOST_V4, protocol::UDP, &udp(40_000, port, b"query"));
        patched(&frame, IPV4_AT + 16, &peer.octets())
    };
    let answer = |from, port| ipv4(from, protocol::UDP, &udp(port, 40_000, b"answer"));
    assert_eq!(simulation.reason(&answer(OTHER_V4, 53)), Reason::ClosedPort);
    simulation.sent(&query_v4(OTHER_V4, 53));
    assert_eq!(simulation.reason(&answer(OTHER_V4, 53)), Reason::Reply);
    assert_eq!(
        simulation.reason(&answer(OTHER_V4, 54)),
        Reason::ClosedPort,
        "another port"
    );
    assert_eq!(
        simulation.reason(&answer(CLIENT_V4, 53)),
        Reason::ClosedPort,
        "another peer"
    );
    // Packets in either direction keep a flow open.
    for minute in 1..10 {
        simulation.at(minute * 60 * SECOND);
        assert_eq!(simulation.reason(&answer(OTHER_V4, 53)), Reason::Reply);
    }
    // A flow ends two minutes after its last packet.
    simulation.at((9 * 60 + 119) * SECOND);
    assert_eq!(simulation.reason(&answer(OTHER_V4, 53)), Reason::Reply);
    simulation.at((9 * 60 + 119 + 121) * SECOND);
    assert_eq!(
        simulation.reason(&answer(OTHER_V4, 53)),
        Reason::ClosedPort,
        "the flow is idle"
    );
    // The same over IPv6.
    let query = ipv6(HOST_V6, protocol::UDP, &udp(40_000, 443, b"query"));
    simulation.sent(&patched(&query, IPV6_AT + 24, &OTHER_V6.octets()));
    let answer = ipv6(OTHER_V6, protocol::UDP, &udp(443, 40_000, b"answer"));
    assert_eq!(simulation.reason(&answer), Reason::Reply);
}

#[test]
fn every_packet_that_this_host_sends_keeps_its_flow() {
    let mut simulation = Simulation::new("scope = \"host\"");
    let query = ipv4(HOST_V4, protocol::UDP, &udp(40_000, 53, b"query"));
    let query = patched(&query, IPV4_AT + 16, &OTHER_V4.octets());
    let answer = ipv4(OTHER_V4, protocol::UDP, &udp(53, 40_000, b"answer"));
    simulation.sent(&query);
    simulation.at(100 * SECOND);
    simulation.sent(&query);
    simulation.at(219 * SECOND);
    assert_eq!(simulation.reason(&answer), Reason::Reply);
}

/// A policy with a service for a contractor at 198.51.100.0/24 and 2001:db8:51::/48, whose access expires.
fn vpn(expires: &str) -> String {
    format!(
        "scope = \"host\"
         [[service]]
         name = \"vpn\"
         ports = [\"udp/51820\"]
         from = [\"contractor\"]
         [[source]]
         name = \"contractor\"
         cidrs = [\"198.51.100.0/24\", \"2001:db8:51::/48\"]
         expires = {expires}"
    )
}

/// The contractor's query to the service and the answer, over IPv4 and IPv6.
fn vpn_exchanges() -> [(Vec<u8>, Vec<u8>); 2] {
    let (question, answer) = (udp(4_000, 51_820, b"?"), udp(51_820, 4_000, b"!"));
    let answer_v4 = ipv4(HOST_V4, protocol::UDP, &answer);
    let answer_v6 = ipv6(HOST_V6, protocol::UDP, &answer);
    [
        (
            ipv4(CLIENT_V4, protocol::UDP, &question),
            patched(&answer_v4, IPV4_AT + 16, &CLIENT_V4.octets()),
        ),
        (
            ipv6(CLIENT_V6, protocol::UDP, &question),
            patched(&answer_v6, IPV6_AT + 24, &CLIENT_V6.octets()),
        ),
    ]
}

#[test]
fn answers_to_an_admitted_source_do_not_outlast_its_access() {
    for (question, answer) in vpn_exchanges() {
        let mut simulation = Simulation::new(&vpn("2026-01-01T00:01:00Z"));
        for second in (0..60).step_by(5) {
            simulation.at(second * SECOND);
            assert_eq!(simulation.reason(&question), Reason::Allowed);
            simulation.sent(&answer);
        }
        // Further packets of this host do not let the source in again.
        for second in (60..600).step_by(5) {
            simulation.at(second * SECOND);
            assert_eq!(
                simulation.reason(&question),
                Reason::SourceNotAllowed,
                "after {second} s"
            );
            simulation.sent(&answer);
        }
        assert_eq!(simulation.flows(), 0);
    }
}

#[test]
fn what_is_sent_to_a_source_that_ended_before_the_guard_came_opens_no_flow() {
    for (question, answer) in vpn_exchanges() {
        let simulation = Simulation::new(&vpn("2025-12-31T00:00:00Z"));
        simulation.sent(&answer);
        assert_eq!(simulation.reason(&question), Reason::SourceNotAllowed);
    }
}

#[test]
fn a_flow_at_a_listed_port_lasts_only_while_this_host_sends() {
    let mut simulation = Simulation::new(&vpn("2026-01-01T00:01:00Z"));
    let peer = ipv4(OTHER_V4, protocol::UDP, &udp(51_820, 51_820, b"?"));
    let ours = ipv4(HOST_V4, protocol::UDP, &udp(51_820, 51_820, b"!"));
    let ours = patched(&ours, IPV4_AT + 16, &OTHER_V4.octets());
    assert_eq!(simulation.reason(&peer), Reason::SourceNotAllowed);
    simulation.sent(&ours);
    for second in [1, 60, 119] {
        simulation.at(second * SECOND);
        assert_eq!(simulation.reason(&peer), Reason::Reply, "{second}");
    }
    simulation.at(121 * SECOND);
    assert_eq!(simulation.reason(&peer), Reason::SourceNotAllowed);
    for second in (121..900).step_by(100) {
        simulation.at(second * SECOND);
        simulation.sent(&ours);
        assert_eq!(simulation.reason(&peer), Reason::Reply, "{second}");
    }
}

#[test]
fn a_restricted_service_shares_its_port_with_a_client_of_this_host() {
    let policy = "[[service]]
         name = \"ntp\"
         ports = [\"udp/123\"]
         from = [\"198.51.100.0/24\"]";
    let simulation = Simulation::new(policy);
    let from = |source| ipv4(source, protocol::UDP, &udp(123, 123, b"time"));
    assert_eq!(simulation.reason(&from(CLIENT_V4)), Reason::Allowed);
    assert_eq!(simulation.reason(&from(OTHER_V4)), Reason::SourceNotAllowed);
    let query = ipv4(HOST_V4, protocol::UDP, &udp(123, 123, b"time"));
    simulation.sent(&patched(&query, IPV4_AT + 16, &OTHER_V4.octets()));
    assert_eq!(simulation.reason(&from(OTHER_V4)), Reason::Reply);
}

#[test]
fn an_answer_gets_in_at_a_published_port_in_either_scope_and_nothing_else_does() {
    use guard::policy::{PublishedAt, PublishedPort};
    use guard_common::layout::PortProtocol;
    // A range as coturn publishes it: masquerading may give another container's query a source port in it.
    let published = (50_000..50_010).flat_map(|port| {
        [PublishedAt::EveryIpv4, PublishedAt::EveryIpv6].map(|at| PublishedPort {
            protocol: PortProtocol::Udp,
            port,
            at,
        })
    });
    let containers = Containers {
        published: published.collect(),
        ..Containers::default()
    };
    let query = |port| {
        let frame = ipv4(HOST_V4, protocol::UDP, &udp(port, 53, b"query"));
        patched(&frame, IPV4_AT + 16, &OTHER_V4.octets())
    };
    let answer = |from, port| ipv4(from, protocol::UDP, &udp(53, port, b"answer"));
    for scope in ["containers", "host"] {
        let listed =
            "[[service]]\nname = \"turn\"\nports = [\"udp/50005\"]\nfrom = [\"10.0.0.0/8\"]";
        let policy = format!("scope = \"{scope}\"\n{listed}");
        let mut simulation = Simulation::with_containers(&policy, &containers);
        for (port, refused) in [
            (50_000, Reason::ClosedPort),
            (50_005, Reason::SourceNotAllowed),
        ] {
            simulation.at(0);
            assert_eq!(
                simulation.reason(&answer(OTHER_V4, port)),
                refused,
                "{scope}"
            );
            simulation.sent(&query(port));
            assert_eq!(
                simulation.reason(&answer(OTHER_V4, port)),
                Reason::Reply,
                "{scope}"
            );
            assert_eq!(
                simulation.reason(&answer(CLIENT_V4, port)),
                refused,
                "another peer"
            );
            simulation.at(121 * SECOND);
            assert_eq!(
                simulation.reason(&answer(OTHER_V4, port)),
                refused,
                "the flow is idle"
            );
        }
        assert_eq!(
            simulation.reason(&answer(OTHER_V4, 50_001)),
            Reason::ClosedPort,
            "no query was sent from that port"
        );
        let query_v6 = ipv6(HOST_V6, protocol::UDP, &udp(50_002, 53, b"query"));
        simulation.sent(&patched(&query_v6, IPV6_AT + 24, &OTHER_V6.octets()));
        let answer_v6 = ipv6(OTHER_V6, protocol::UDP, &udp(53, 50_002, b"answer"));
        assert_eq!(simulation.reason(&answer_v6), Reason::Reply, "{scope}");
        // In scope `containers` an unpublished port is open, so its flow is not recorded.
        let before = simulation.flows();
        simulation.sent(&query(40_000));
        let recorded = simulation.flows() - before;
        assert_eq!(recorded, usize::from(scope == "host"), "{scope}");
    }
}

#[test]
fn while_observing_an_answer_from_a_published_port_to_a_stranger_opens_no_flow() {
    let containers = Containers {
        published: vec![guard::policy::PublishedPort {
            protocol: guard_common::layout::PortProtocol::Udp,
            port: 9_000,
            at: guard::policy::PublishedAt::EveryIpv4,
        }],
        ..Containers::default()
    };
    let policy = "mode = \"observe\"\ndocker.socket = \"\"";
    let simulation = Simulation::with_text(policy, &containers);
    for n in 0..200 {
        let (question, answer) = spoofed(n, "203.0.113.10", 9_000);
        let outcome = simulation.judged(&question).1;
        assert!(outcome.would_drop, "{outcome:?}");
        simulation.sent(&answer);
        assert_eq!(simulation.judged(&question).1, outcome);
    }
    assert_eq!(simulation.flows(), 0);
}
