//! Martians: packets with addresses that cannot be on a wire, and packets that are similar but valid.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use guard::policy::Containers;
use guard_common::reason::{Reason::*, Verdict};
use lab::{
    docker::Docker,
    guard::{Guard, output},
    http::{HttpOutcome, get},
    process::{run, wait_for},
    topology::{HOST_V4, HOST_V6, INTERFACE, Lab, USER_V4, USER_V6},
};
use serde_json::{Value, json};

use crate::{
    clocked::Simulation,
    frames::{
        CLIENT_V4, CLIENT_V6, IPV4_AT, IPV6_AT, as_fragment, flags::*, icmp, ipv4, ipv6, other,
        patched, protocol, tagged, tcp, tcp_v4, tcp_v6, udp,
    },
};

const OWN_V4: Ipv4Addr = crate::frames::HOST_V4;
const BROADCAST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 255);
const OWN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10);

fn host(policy: &str) -> Simulation {
    let own: [IpAddr; 3] = [OWN_V4.into(), BROADCAST.into(), OWN_V6.into()];
    let own: BTreeSet<IpAddr> = own.into();
    Simulation::of_host(
        &format!("docker.socket = \"\"\n{policy}"),
        &Containers::default(),
        &own,
    )
}

fn from_v4(source: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4(source.parse().unwrap(), protocol, payload)
}

fn to_v4(destination: &str) -> Vec<u8> {
    let destination: Ipv4Addr = destination.parse().unwrap();
    patched(&tcp_v4(80, SYN), IPV4_AT + 16, &destination.octets())
}

fn from_v6(source: &str) -> Vec<u8> {
    ipv6(source.parse().unwrap(), protocol::TCP, &tcp(80, SYN, &[]))
}

fn to_v6(destination: &str) -> Vec<u8> {
    let destination: Ipv6Addr = destination.parse().unwrap();
    patched(&tcp_v6(80, SYN), IPV6_AT + 24, &destination.octets())
}

/// Martians are dropped under every policy: with entries that deny or allow all sources, on an open port, in any scope.
#[test]
fn what_is_on_no_wire_is_martian_before_any_list_and_in_every_scope() {
    let syn = tcp(80, SYN, &[]);
    let v4 = |source| from_v4(source, protocol::TCP, &syn);
    let frames = [
        v4("127.0.0.1"),
        v4("224.0.0.1"),
        v4("255.255.255.255"),
        v4("0.0.0.0"),
        to_v4("127.0.0.1"),
        to_v4("127.254.0.1"),
        from_v6("::1"),
        from_v6("::ffff:198.51.100.7"),
        from_v6("ff02::1"),
        to_v6("::1"),
        to_v6("::ffff:203.0.113.10"),
        v4("203.0.113.10"),
        v4("203.0.113.255"),
        from_v6("2001:db8:113::10"),
        as_fragment(&v4("127.0.0.1"), 9, false),
        tagged(&to_v4("127.0.0.1"), &[0x8100]),
        from_v4("127.0.0.1", protocol::UDP, &udp(67, 68, &[0; 240])),
    ];
    let open = "[[service]]\nname = \"web\"\nports = [\"tcp/80\"]\n";
    let denied = "[[source]]\nname = \"all\"\ncidrs = [\"0.0.0.0/0\", \"::/0\"]\ndeny = true\n";
    let milder = "[[service]]\nname = \"web\"\nports = [\"tcp/80\"]\nmode = \"off\"\n";
    for scope in ["containers", "host"] {
        for rest in [open, denied, milder, ""] {
            for mode in ["enforce", "observe"] {
                let simulation = host(&format!("mode = \"{mode}\"\nscope = \"{scope}\"\n{rest}"));
                for frame in &frames {
                    let (service, outcome) = simulation.judged(frame);
                    assert_eq!((service, outcome.reason), (None, Martian), "{frame:02x?}");
                    let drops = outcome.verdict() == Verdict::Drop;
                    assert_eq!(drops, mode == "enforce");
                }
            }
            let off = host(&format!("mode = \"off\"\nscope = \"{scope}\"\n{rest}"));
            assert_eq!(off.reason(&frames[0]), NotGuarded);
        }
    }
}

#[test]
fn what_hosts_send_without_an_address_and_to_many_passes() {
    let simulation = host("mode = \"enforce\"\nscope = \"containers\"");
    let group = |source: &str, destination: [u8; 4], protocol, payload: &[u8]| {
        patched(
            &from_v4(source, protocol, payload),
            IPV4_AT + 16,
            &destination,
        )
    };
    let reason = |frame: Vec<u8>| simulation.reason(&frame);
    // A DHCP client without an address.
    let discover = udp(68, 67, &[0; 240]);
    let all = [255; 4];
    assert_eq!(
        reason(group("0.0.0.0", all, protocol::UDP, &discover)),
        NotGuarded
    );
    // IGMP queries of a switch without an address (RFC 4541, section 2.1.1).
    let query = group("0.0.0.0", [224, 0, 0, 1], 2, &[0x11, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(reason(patched(&query, IPV4_AT + 8, &[1])), Control);
    // A VRRP advertisement (RFC 9568) of the other router.
    let advertisement = [0x31, 1, 100, 1, 0, 0, 0, 0, 203, 0, 113, 5];
    assert_eq!(
        reason(group("203.0.113.2", [224, 0, 0, 18], 112, &advertisement)),
        NotGuarded
    );
    // An mDNS query.
    let mdns = udp(5353, 5353, &[0; 12]);
    assert_eq!(
        reason(group("203.0.113.2", [224, 0, 0, 251], protocol::UDP, &mdns)),
        NotGuarded
    );
    // Duplicate address detection (RFC 4862, section 5.4.2) and the MLD report before it (RFC 3590) have no source.
    let unspecified = |kind, hops| {
        let frame = ipv6(Ipv6Addr::UNSPECIFIED, protocol::ICMPV6, &icmp(kind));
        patched(&frame, IPV6_AT + 7, &[hops])
    };
    assert_eq!(reason(unspecified(135, 255)), Control);
    assert_eq!(reason(unspecified(143, 1)), Control);
    // A neighbour advertisement from this host's own address: a duplicate (RFC 4862, section 5.4.4).
    let advert = ipv6(OWN_V6, protocol::ICMPV6, &icmp(136));
    assert_eq!(reason(patched(&advert, IPV6_AT + 7, &[255])), Control);
    // Experimental addresses (240.0.0.0/4), which some clouds use, and an address that begins like a mapped one.
    assert_eq!(
        reason(from_v4("240.0.0.1", protocol::TCP, &tcp(80, SYN, &[]))),
        NotGuarded
    );
    assert_eq!(reason(from_v6("64:ff9b::198.51.100.7")), NotGuarded);
}

#[test]
fn what_keeps_the_host_on_its_network_has_a_budget_that_no_network_meets() {
    let mut simulation = host(
        "mode = \"enforce\"\nscope = \"host\"\n\
        [[source]]\nname = \"d\"\ncidrs = [\"2001:db8:51::/48\"]\ndeny = true",
    );
    let solicit = patched(
        &ipv6(CLIENT_V6, protocol::ICMPV6, &icmp(135)),
        IPV6_AT + 7,
        &[255],
    );
    let passed = |simulation: &Simulation, count: u32| {
        let reasons = (0..count).map(|_| simulation.reason(&solicit));
        let control = reasons.filter(|reason| *reason == Control).count();
        assert!([Control, TotalLimit].contains(&simulation.reason(&solicit)));
        control
    };
    // Control packets of a denied source pass, too: it may be the router.
    assert_eq!(passed(&simulation, 12_000), 10_000);
    assert_eq!(simulation.reason(&solicit), TotalLimit);
    assert_eq!(simulation.reason(&other(0x0806)), NotGuarded, "ARP");
    // What looks like a DHCP reply may come from anywhere: it has a budget of its own, and cannot use up that of
    // neighbour discovery.
    let offer = ipv4(CLIENT_V4, protocol::UDP, &udp(67, 68, &[0; 240]));
    let offers = (0..3_000).filter(|_| simulation.reason(&offer) == Control);
    assert_eq!(offers.count(), 2_000);
    simulation.at(crate::clocked::SECOND / 2);
    let offers = (0..3_000).filter(|_| simulation.reason(&offer) == Control);
    assert!((990..=1_000).contains(&offers.count()));
    assert!((4_990..=5_000).contains(&passed(&simulation, 6_000)));
}

fn policy(docker: &Docker, scope: &str) -> String {
    let socket = docker.socket().display();
    format!(
        "mode = \"enforce\"\ninterfaces = [\"{INTERFACE}\"]\nscope = \"{scope}\"\ndocker.socket = \"{socket}\"\n\
         [[service]]\nname = \"loopback\"\nports = [\"tcp/8080\"]\n"
    )
}

/// Docker before 28 applies DNAT to a neighbour's packets to 127.0.0.1:8080, before the kernel drops them as martians
/// (moby/moby#41872).
#[test]
fn a_port_published_on_loopback_is_reached_by_no_neighbour() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    docker
        .run_invoices("invoices", &["127.0.0.1:8080:8000"])
        .unwrap();
    // Since version 28 Docker drops such packets in the raw table.
    run(lab.host.command("iptables").args(["-t", "raw", "-F"])).unwrap();
    // The neighbour rewrites packets to this address: they leave with the host's loopback as destination. Answers are
    // rewritten back.
    const FORGED: &str = "203.0.113.200";
    let links = lab
        .host
        .ip(&format!("-json link show {INTERFACE}"))
        .unwrap();
    let links: Value = serde_json::from_str(&links).unwrap();
    let address = links[0]["address"].as_str().unwrap();
    let neighbour = &lab.internet;
    let entry = format!("neigh add {FORGED} lladdr {address} dev internet");
    neighbour.ip(&entry).unwrap();
    let forging = format!(
        "table netdev lab {{
            chain out {{
                type filter hook egress device internet priority 0;
                ip daddr {FORGED} ip daddr set 127.0.0.1
            }}
            chain in {{
                type filter hook ingress device internet priority 0;
                ip saddr 127.0.0.1 ip saddr set {FORGED}
            }}
        }}"
    );
    run(neighbour.command("nft").arg(forging)).unwrap();
    let ask = || get(&lab, USER_V4, FORGED.parse().unwrap(), 8080).unwrap();
    // Fills the host's neighbour table: an ARP request for the answer would have the source 127.0.0.1.
    get(&lab, USER_V4, HOST_V4, 8080).unwrap();
    assert_eq!(ask(), HttpOutcome::Status(200), "without a guard");
    for scope in ["containers", "host"] {
        // A service without an address opens the port on every address of the host; packets to loopback stay martians.
        let guard = Guard::start(&lab, &policy(&docker, scope)).unwrap();
        assert_eq!(ask(), HttpOutcome::TimedOut, "{scope}");
        let martian = [("reason", json!("martian")), ("would", Value::Null)];
        assert!(guard.packets(&martian).unwrap() > 0, "{scope}");
        guard.remove().unwrap();
    }
}

#[test]
fn the_addresses_of_a_host_are_followed_and_other_hosts_keep_theirs() {
    let lab = Lab::new().unwrap();
    let policy = format!(
        "mode = \"enforce\"\ninterfaces = [\"{INTERFACE}\"]\nscope = \"containers\"\ndocker.socket = \"\"\n"
    );
    let guard = Guard::start(&lab, &policy).unwrap();
    let explain = |from: IpAddr| -> Value {
        let to = if from.is_ipv4() {
            HOST_V4.to_string()
        } else {
            format!("[{}]", HOST_V6)
        };
        let from = from.to_string();
        let explained = guard
            .run(&[
                "explain",
                "--json",
                "--from",
                &from,
                "--to",
                &format!("{to}:80/tcp"),
            ])
            .unwrap();
        serde_json::from_str(&explained).unwrap()
    };
    let is_martian = |from: IpAddr| explain(from)["reason"] == "martian";
    for (name, own) in [("v4", HOST_V4), ("v6", HOST_V6)] {
        assert!(is_martian(own), "{name}");
    }
    for other in [USER_V4, USER_V6] {
        assert!(!is_martian(other), "{other}");
    }
    let text = guard
        .run(&["explain", "--from", &HOST_V4.to_string(), "--to", "80/tcp"])
        .unwrap();
    assert!(text.contains("an address of this host"), "{text}");
    // A new address is followed until it is removed. A link-local address may belong to another host on another link.
    let (new, link_local): (IpAddr, IpAddr) =
        ("203.0.113.77".parse().unwrap(), "fe80::1".parse().unwrap());
    lab.host
        .ip(&format!("addr add {new}/24 dev {INTERFACE}"))
        .unwrap();
    lab.host
        .ip(&format!("addr add {link_local}/64 dev {INTERFACE} nodad"))
        .unwrap();
    let patience = Duration::from_secs(10);
    let until = |wanted: bool| {
        wait_for(patience, || {
            anyhow::ensure!(is_martian(new) == wanted);
            Ok(())
        })
        .unwrap();
    };
    until(true);
    assert!(!is_martian(link_local));
    lab.host
        .ip(&format!("addr del {new}/24 dev {INTERFACE}"))
        .unwrap();
    until(false);
    // With accept_local=1 the kernel accepts IPv4 packets from the host's own addresses, and so does the guard.
    let setting = format!("net/ipv4/conf/{INTERFACE}/accept_local=1");
    run(lab.host.command("sysctl").args(["-qw", &setting])).unwrap();
    guard.run(&["reload"]).unwrap();
    wait_for(patience, || {
        anyhow::ensure!(!is_martian(HOST_V4));
        Ok(())
    })
    .unwrap();
    assert!(is_martian(HOST_V6));
}

#[test]
fn the_loopback_interface_is_not_guarded() {
    let lab = Lab::new().unwrap();
    let text = "mode = \"enforce\"\ninterfaces = [\"lo\"]\ndocker.socket = \"\"\n";
    let path = lab::guard::write_policy(&lab, text).unwrap();
    let refused = output(&lab, &["run", "--policy", path.to_str().unwrap()]).unwrap();
    let words = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{words}");
    assert!(
        words.contains(":2: lo carries what this host sends to itself"),
        "{words}"
    );
}
