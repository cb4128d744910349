//! A table of packets, each with the verdict, reason and counter that it must get.

use guard::policy::{PublishedAt, PublishedPort};
use guard_common::{
    layout::PortProtocol,
    reason::Reason::{self, *},
};

use crate::{
    clocked::Simulation,
    frames::{flags::*, *},
    judge::{Expected, ProgramUnderTest, because, observed},
};

/// A proxy for all sources, a database for one network, and others. Docker publishes 8000 and 5432 with TCP, 9000 with
/// UDP, 40000 inside the local port range, and 8080 only for IPv4.
const SERVICES: &str = r#"
    [docker]
    socket = ""
    [[service]]
    name = "proxy"
    ports = ["tcp/80", "tcp/443", "udp/443", "tcp/7000-7010"]
    [[service]]
    name = "database"
    ports = ["tcp/5432", "udp/5432", "tcp/22"]
    from = ["198.51.100.0/24", "2001:db8:51::/48"]
    [[service]]
    name = "narrow"
    ports = ["tcp/7777"]
    from = ["2001:db8:99::/112", "192.0.2.9"]
    [[service]]
    name = "ping"
    ports = ["icmp"]
    from = ["198.51.100.0/24"]
    [[service]]
    name = "routing"
    ports = ["proto/112", "proto/89", "proto/51"]
    from = ["198.51.100.0/24", "2001:db8:51::/48"]
"#;

fn published() -> Vec<PublishedPort> {
    let both =
        |protocol, port| PublishedAt::EVERYWHERE.map(|at| PublishedPort { protocol, port, at });
    let mut published = Vec::new();
    for port in [8000, 5432, 40_000, 7005] {
        published.extend(both(PortProtocol::Tcp, port));
    }
    published.extend(both(PortProtocol::Sctp, 9899));
    published.extend(both(PortProtocol::Udp, 9000));
    published.extend(both(PortProtocol::Udp, 40_001));
    published.push(PublishedPort {
        protocol: PortProtocol::Tcp,
        port: 8080,
        at: PublishedAt::EveryIpv4,
    });
    published
}

fn judge(mode: &str, scope: &str) -> ProgramUnderTest {
    let policy = format!("mode = \"{mode}\"\nscope = \"{scope}\"\n{SERVICES}");
    ProgramUnderTest::new(&policy, &published())
}

/// A row with the expectation in each scope: (name, frame, in `containers`, in `host`).
type ScopeRow = (&'static str, Vec<u8>, Expected, Expected);

fn same(
    what: &'static str,
    frame: Vec<u8>,
    service: Option<&'static str>,
    reason: Reason,
) -> ScopeRow {
    let expected = because(service, reason);
    (what, frame, expected, expected)
}

fn by_scope(what: &'static str, frame: Vec<u8>, containers: Reason, host: Reason) -> ScopeRow {
    (what, frame, because(None, containers), because(None, host))
}

fn exposure() -> Vec<ScopeRow> {
    let proxy = Some("proxy");
    let database = Some("database");
    let v4 = |protocol, payload: &[u8]| ipv4(OTHER_V4, protocol, payload);
    let v6 = |protocol, payload: &[u8]| ipv6(OTHER_V6, protocol, payload);
    let igmp = igmp([224, 0, 0, 22]);
    vec![
        same("listed port, IPv4", tcp_v4(80, SYN), proxy, Allowed),
        same("listed port, IPv6", tcp_v6(80, SYN), proxy, Allowed),
        same(
            "listed port, later segment",
            tcp_v4(80, ACK),
            proxy,
            Allowed,
        ),
        same("listed port, UDP", udp_v4(443), proxy, Allowed),
        same("listed port, UDP over IPv6", udp_v6(443), proxy, Allowed),
        same("first of a range", tcp_v4(7000, SYN), proxy, Allowed),
        same("last of a range", tcp_v4(7010, SYN), proxy, Allowed),
        same("listed and published", tcp_v4(7005, SYN), proxy, Allowed),
        by_scope("below the range", tcp_v4(6999, SYN), NotGuarded, ClosedPort),
        by_scope("above the range", tcp_v4(7011, SYN), NotGuarded, ClosedPort),
        same("published port", tcp_v4(8000, SYN), None, ClosedPort),
        same("published port, IPv6", tcp_v6(8000, SYN), None, ClosedPort),
        same(
            "published port, later segment",
            tcp_v4(8000, ACK),
            None,
            ClosedPort,
        ),
        same("published port, reset", tcp_v4(8000, RST), None, ClosedPort),
        same("published UDP port", udp_v4(9000), None, ClosedPort),
        same("published UDP port, IPv6", udp_v6(9000), None, ClosedPort),
        by_scope(
            "published with TCP only",
            udp_v4(8000),
            NotGuarded,
            ClosedPort,
        ),
        same(
            "published for IPv4 only",
            tcp_v4(8080, SYN),
            None,
            ClosedPort,
        ),
        by_scope(
            "published for IPv4 only, IPv6",
            tcp_v6(8080, SYN),
            NotGuarded,
            ClosedPort,
        ),
        same(
            "published in the local range, attempt",
            tcp_v4(40_000, SYN),
            None,
            ClosedPort,
        ),
        same(
            "published in the local range, segment",
            tcp_v4(40_000, ACK),
            None,
            Established,
        ),
        same(
            "published in the local range, SYN+ACK",
            tcp_v4(40_000, SYN | ACK),
            None,
            Established,
        ),
        same(
            "published in the local range, Xmas",
            tcp_v4(40_000, FIN | PSH | 0x20),
            None,
            ClosedPort,
        ),
        by_scope(
            "FIN of no connection",
            tcp_v4(6999, FIN),
            NotGuarded,
            ClosedPort,
        ),
        by_scope("no flags, IPv6", tcp_v6(6999, 0), NotGuarded, ClosedPort),
        by_scope(
            "SYN+ACK+FIN",
            tcp_v4(6999, SYN | ACK | FIN),
            NotGuarded,
            ClosedPort,
        ),
        by_scope(
            "SYN+ACK+RST",
            tcp_v4(6999, SYN | ACK | RST),
            NotGuarded,
            ClosedPort,
        ),
        by_scope("FIN+ACK", tcp_v4(6999, FIN | ACK), NotGuarded, Established),
        by_scope("reset", tcp_v4(6999, RST), NotGuarded, Established),
        same("listed port, FIN alone", tcp_v4(80, FIN), proxy, Allowed),
        same(
            "published in the local range, UDP",
            udp_v4(40_001),
            None,
            ClosedPort,
        ),
        same(
            "restricted, from the network",
            tcp_v4(5432, SYN),
            database,
            Allowed,
        ),
        same(
            "restricted, from the network, IPv6",
            tcp_v6(5432, SYN),
            database,
            Allowed,
        ),
        same(
            "restricted, from elsewhere",
            v4(protocol::TCP, &tcp(5432, SYN, &[])),
            database,
            SourceNotAllowed,
        ),
        same(
            "restricted, from elsewhere, IPv6",
            v6(protocol::TCP, &tcp(5432, SYN, &[])),
            database,
            SourceNotAllowed,
        ),
        same(
            "restricted and published, later segment from elsewhere",
            v4(protocol::TCP, &tcp(5432, ACK, &[])),
            database,
            SourceNotAllowed,
        ),
        same(
            "restricted UDP from elsewhere",
            v4(protocol::UDP, &udp(1, 5432, &[])),
            database,
            SourceNotAllowed,
        ),
        same(
            "restricted host port, later segment from elsewhere",
            v4(protocol::TCP, &tcp(22, ACK, &[])),
            database,
            Established,
        ),
        by_scope(
            "a port neither listed nor published",
            tcp_v4(9999, SYN),
            NotGuarded,
            ClosedPort,
        ),
        by_scope(
            "a port neither listed nor published, segment",
            tcp_v4(9999, ACK),
            NotGuarded,
            Established,
        ),
        by_scope(
            "a UDP port neither listed nor published",
            udp_v4(9999),
            NotGuarded,
            ClosedPort,
        ),
        by_scope(
            "a high UDP port without a flow",
            udp_v4(50_000),
            NotGuarded,
            ClosedPort,
        ),
        same(
            "ping, listed",
            ipv4(CLIENT_V4, protocol::ICMP, &icmp(8)),
            Some("ping"),
            Allowed,
        ),
        same(
            "ping from elsewhere",
            v4(protocol::ICMP, &icmp(8)),
            Some("ping"),
            SourceNotAllowed,
        ),
        by_scope(
            "ping over IPv6",
            v6(protocol::ICMPV6, &icmp(128)),
            NotGuarded,
            ClosedPort,
        ),
        same(
            "beyond a long IPv6 prefix",
            ipv6(
                "2001:db8:99::1:9".parse().unwrap(),
                protocol::TCP,
                &tcp(7777, SYN, &[]),
            ),
            Some("narrow"),
            SourceNotAllowed,
        ),
        same(
            "within a long IPv6 prefix",
            v6(protocol::TCP, &tcp(7777, SYN, &[])),
            Some("narrow"),
            Allowed,
        ),
        same(
            "one IPv4 address",
            v4(protocol::TCP, &tcp(7777, SYN, &[])),
            Some("narrow"),
            Allowed,
        ),
        same(
            "published SCTP port",
            v4(protocol::SCTP, &sctp(9899)),
            None,
            ClosedPort,
        ),
        same(
            "published SCTP port, IPv6",
            v6(protocol::SCTP, &sctp(9899)),
            None,
            ClosedPort,
        ),
        by_scope(
            "another SCTP port",
            v4(protocol::SCTP, &sctp(9898)),
            NotGuarded,
            ClosedPort,
        ),
        same(
            "destination unreachable, though ping is restricted",
            v4(protocol::ICMP, &icmp(3)),
            Some("ping"),
            Reply,
        ),
        by_scope(
            "packet too big",
            v6(protocol::ICMPV6, &icmp(2)),
            NotGuarded,
            Reply,
        ),
        by_scope("GRE", v4(47, &[0; 8]), NotGuarded, ClosedPort),
        same(
            "VRRP, listed",
            ipv4(CLIENT_V4, 112, &[0; 8]),
            Some("routing"),
            Allowed,
        ),
        same(
            "VRRP from elsewhere",
            v4(112, &[0; 8]),
            Some("routing"),
            SourceNotAllowed,
        ),
        same(
            "OSPF over IPv6, listed",
            ipv6(CLIENT_V6, 89, &[0; 8]),
            Some("routing"),
            Allowed,
        ),
        same(
            "AH over IPv4, listed",
            ipv4(CLIENT_V4, 51, &authentication(protocol::TCP, 6)),
            Some("routing"),
            Allowed,
        ),
        by_scope("IPIP", v4(4, &tcp_v4(80, SYN)), NotGuarded, ClosedPort),
        by_scope(
            "IGMP with a TTL above 1",
            patched(&igmp, IPV4_AT + 8, &[2]),
            NotGuarded,
            ClosedPort,
        ),
        by_scope(
            "IGMP to the host's own address",
            patched(&igmp, IPV4_AT + 16, &HOST_V4.octets()),
            NotGuarded,
            ClosedPort,
        ),
        by_scope(
            "IGMP's number over IPv6",
            patched(&v6(2, &[0; 8]), IPV6_AT + 7, &[1]),
            NotGuarded,
            ClosedPort,
        ),
        by_scope(
            "an unassigned protocol",
            v4(253, &[]),
            NotGuarded,
            ClosedPort,
        ),
    ]
}

/// Packets to the published port 8000 that the host parses, and that a guard with a simpler parser would miss.
fn bypasses() -> Vec<ScopeRow> {
    const VLAN: u16 = 0x8100;
    const SERVICE_VLAN: u16 = 0x88a8;
    let closed = |what, frame| same(what, frame, None, ClosedPort);
    let syn = tcp_v4(8000, SYN);
    let segment = tcp(8000, SYN, &[]);
    let v6 = |next, chain: &[Vec<u8>]| {
        let payload: Vec<u8> = chain.iter().flatten().chain(&segment).copied().collect();
        ipv6(CLIENT_V6, next, &payload)
    };
    use protocol::*;
    vec![
        closed("a VLAN tag", tagged(&syn, &[VLAN])),
        closed("an 802.1ad tag", tagged(&syn, &[SERVICE_VLAN])),
        closed("QinQ", tagged(&syn, &[SERVICE_VLAN, VLAN])),
        closed("two 802.1Q tags", tagged(&syn, &[VLAN, VLAN])),
        closed(
            "QinQ frame built by other software",
            foreign_double_tagged(8000),
        ),
        closed("a VLAN tag, IPv6", tagged(&tcp_v6(8000, SYN), &[VLAN])),
        closed("IHL 6", with_options(&syn, 6)),
        closed("IHL 15", with_options(&syn, 15)),
        closed(
            "QinQ and IHL 15",
            tagged(&with_options(&syn, 15), &[SERVICE_VLAN, VLAN]),
        ),
        closed("hop-by-hop options", v6(HOP_BY_HOP, &[extension(TCP, 1)])),
        closed("routing header", v6(ROUTING, &[extension(TCP, 3)])),
        closed(
            "destination options",
            v6(DESTINATION_OPTIONS, &[extension(TCP, 1)]),
        ),
        closed(
            "the longest destination options",
            v6(DESTINATION_OPTIONS, &[extension(TCP, 255)]),
        ),
        closed(
            "authentication header",
            v6(AUTHENTICATION, &[authentication(TCP, 6)]),
        ),
        closed("atomic fragment", v6(FRAGMENT, &[fragment(TCP, 0, false)])),
        closed(
            "first fragment, IPv6",
            v6(FRAGMENT, &[fragment(TCP, 0, true)]),
        ),
        closed(
            "a chain of every extension header",
            v6(
                HOP_BY_HOP,
                &[
                    extension(DESTINATION_OPTIONS, 1),
                    extension(ROUTING, 1),
                    extension(FRAGMENT, 1),
                    fragment(AUTHENTICATION, 0, false),
                    authentication(DESTINATION_OPTIONS, 6),
                    extension(TCP, 2),
                ],
            ),
        ),
        closed("first fragment", as_fragment(&syn, 0, true)),
        same(
            "IPv4-mapped addresses",
            {
                let mapped = CLIENT_V4.to_ipv6_mapped();
                let frame = ipv6(mapped, TCP, &segment);
                patched(&frame, IPV6_AT + 24, &HOST_V4.to_ipv6_mapped().octets())
            },
            None,
            Martian,
        ),
        closed("first fragment whose TCP options come in the next", {
            as_fragment(&patched(&syn, IPV4_PAYLOAD_AT + 12, &[0xf0]), 0, true)
        }),
        closed("SYN+ECE", tcp_v4(8000, SYN | ECE)),
        closed("SYN+CWR", tcp_v4(8000, SYN | CWR)),
        closed("SYN+ECE+CWR", tcp_v4(8000, SYN | ECE | CWR)),
        closed("SYN+PSH", tcp_v4(8000, SYN | PSH)),
        closed("SYN+FIN", tcp_v4(8000, SYN | FIN)),
        closed("SYN+RST", tcp_v4(8000, SYN | RST)),
        closed("SYN+FIN in the local range", tcp_v4(40_000, SYN | FIN)),
        closed(
            "SYN+ECE+CWR in the local range",
            tcp_v4(40_000, SYN | ECE | CWR),
        ),
        closed(
            "SYN with data",
            ipv4(CLIENT_V4, TCP, &tcp(8000, SYN, b"GET / HTTP/1.1\r\n\r\n")),
        ),
        closed("no flags at all", tcp_v4(8000, 0)),
        closed("the longest TCP header", {
            let mut segment = tcp(8000, SYN, &[1; 40]);
            segment[12] = 0xf0;
            ipv4(CLIENT_V4, TCP, &segment)
        }),
        closed(
            "padding behind the packet",
            [syn.clone(), vec![0; 20]].concat(),
        ),
        closed("UDP over IPv6 with length 0", {
            let mut datagram = udp(1, 9000, b"hello");
            datagram[4..6].fill(0);
            ipv6(CLIENT_V6, UDP, &datagram)
        }),
        closed("UDP shorter than its packet", {
            let mut datagram = udp(1, 9000, b"hello");
            datagram[5] = 8;
            ipv4(CLIENT_V4, UDP, &datagram)
        }),
        closed("first fragment of a longer UDP datagram", {
            let mut datagram = udp(1, 9000, &[0; 24]);
            datagram[4..6].copy_from_slice(&2000u16.to_be_bytes());
            as_fragment(&ipv4(CLIENT_V4, UDP, &datagram), 0, true)
        }),
        closed(
            "a jumbo frame",
            ipv4(CLIENT_V4, TCP, &tcp(8000, SYN, &[0; 8900])),
        ),
    ]
}

/// The longest IP packets, behind two tags: a length of 65,535, which for IPv6 does not include the header. Most of
/// each is in fragments of the buffer (`xdp.frags`).
fn longest() -> [(&'static str, Vec<u8>, usize); 2] {
    use protocol::*;
    const TAGGED: usize = 14 + 8;
    let attempt = |ip: usize| tcp(8000, SYN, &vec![0; 65_535 - ip - 20]);
    let two_tags = |frame: &[u8]| tagged(frame, &[0x88a8, 0x8100]);
    [
        (
            "the longest IPv4 packet",
            two_tags(&ipv4(CLIENT_V4, TCP, &attempt(20))),
            TAGGED + 65_535,
        ),
        (
            "the longest IPv6 packet",
            two_tags(&ipv6(CLIENT_V6, TCP, &attempt(0))),
            TAGGED + 40 + 65_535,
        ),
    ]
}

/// IP packets that cannot be read up to the transport header.
fn malformed() -> Vec<ScopeRow> {
    use protocol::*;
    let malformed = |what, frame| same(what, frame, None, Malformed);
    let syn = tcp_v4(8000, SYN);
    let syn_v6 = tcp_v6(8000, SYN);
    let total_length =
        |frame: &[u8], length: u16| patched(frame, IPV4_AT + 2, &length.to_be_bytes());
    let payload_length =
        |frame: &[u8], length: u16| patched(frame, IPV6_AT + 4, &length.to_be_bytes());
    let options = |count: usize| {
        let mut payload: Vec<u8> = (1..count)
            .flat_map(|_| extension(DESTINATION_OPTIONS, 1))
            .collect();
        payload.extend(extension(TCP, 1));
        payload.extend(tcp(8000, SYN, &[]));
        ipv6(CLIENT_V6, DESTINATION_OPTIONS, &payload)
    };
    vec![
        malformed("three VLAN tags", tagged(&syn, &[0x8100, 0x8100, 0x8100])),
        malformed(
            "a tag without anything behind it",
            tagged(&syn[..12], &[0x8100])[..14].to_vec(),
        ),
        malformed("IPv4 cut off", syn[..IPV4_AT + 19].to_vec()),
        malformed("version 5 as IPv4", patched(&syn, IPV4_AT, &[0x55])),
        malformed("version 6 as IPv4", patched(&syn, IPV4_AT, &[0x65])),
        malformed("IHL 4", patched(&syn, IPV4_AT, &[0x44])),
        malformed("IHL 15 without room", patched(&syn, IPV4_AT, &[0x4f])),
        malformed("total length beyond the frame", total_length(&syn, 41)),
        malformed(
            "total length shorter than the header",
            total_length(&syn, 19),
        ),
        malformed("total length cuts the TCP header", total_length(&syn, 39)),
        malformed("total length 0", total_length(&syn, 0)),
        malformed("a first fragment without its TCP flags", {
            as_fragment(&ipv4(CLIENT_V4, TCP, &tcp(8000, SYN, &[])[..8]), 0, true)
        }),
        malformed("a first fragment without its ports", {
            as_fragment(&ipv4(CLIENT_V4, TCP, &[]), 0, true)
        }),
        malformed("a tiny first fragment whose flags would be padding", {
            let tiny = ipv4(CLIENT_V4, TCP, &tcp(8000, SYN, &[])[..8]);
            [as_fragment(&tiny, 0, true), vec![0x50; 26]].concat()
        }),
        malformed("an atomic fragment with a wrong UDP length", {
            let mut payload = fragment(UDP, 0, false);
            payload.extend(patched(&udp(1, 9000, b"hello"), 4, &[0, 200]));
            ipv6(CLIENT_V6, FRAGMENT, &payload)
        }),
        malformed("SCTP cut off", ipv4(CLIENT_V4, SCTP, &sctp(9899)[..11])),
        malformed(
            "a TCP header of 16 bytes",
            patched(&syn, IPV4_PAYLOAD_AT + 12, &[0x40]),
        ),
        malformed(
            "a TCP header that does not fit",
            patched(&syn, IPV4_PAYLOAD_AT + 12, &[0x60]),
        ),
        malformed("UDP cut off", ipv4(CLIENT_V4, UDP, &udp(1, 9000, &[])[..7])),
        malformed("UDP longer than its packet", {
            patched(&udp_v4(9000), IPV4_PAYLOAD_AT + 4, &[0, 14])
        }),
        malformed("UDP shorter than its header", {
            patched(&udp_v4(9000), IPV4_PAYLOAD_AT + 4, &[0, 7])
        }),
        malformed(
            "UDP with length 0",
            patched(&udp_v4(9000), IPV4_PAYLOAD_AT + 4, &[0, 0]),
        ),
        malformed("ICMP cut off", ipv4(CLIENT_V4, ICMP, &[8, 0, 0])),
        malformed("IPv6 cut off", syn_v6[..IPV6_AT + 39].to_vec()),
        malformed("version 4 as IPv6", patched(&syn_v6, IPV6_AT, &[0x45])),
        malformed(
            "payload length beyond the frame",
            payload_length(&syn_v6, 21),
        ),
        malformed(
            "payload length cuts the TCP header",
            payload_length(&syn_v6, 19),
        ),
        malformed("payload length 0", payload_length(&syn_v6, 0)),
        malformed("a jumbogram", {
            let payload: Vec<u8> = [extension(TCP, 1), tcp(8000, SYN, &[])].concat();
            payload_length(&ipv6(CLIENT_V6, HOP_BY_HOP, &payload), 0)
        }),
        malformed("nine extension headers", options(9)),
        malformed("an extension header longer than the packet", {
            let mut payload = extension(TCP, 1);
            payload[1] = 200;
            payload.extend(tcp(8000, SYN, &[]));
            ipv6(CLIENT_V6, DESTINATION_OPTIONS, &payload)
        }),
        // Found by the model: the program read the fragment header from the padding, and the packet passed as a later
        // fragment.
        malformed("a fragment header behind the end of the packet", {
            let frame = ipv6(CLIENT_V6, ROUTING, &extension(FRAGMENT, 1));
            [frame, fragment(TCP, 185, false)].concat()
        }),
        malformed(
            "an extension header cut off",
            ipv6(CLIENT_V6, ROUTING, &[TCP, 0, 0]),
        ),
        malformed("a first fragment with the port cut off, IPv6", {
            let mut payload = fragment(TCP, 0, true);
            payload.extend(&tcp(8000, SYN, &[])[..2]);
            ipv6(CLIENT_V6, FRAGMENT, &payload)
        }),
        malformed("ICMPv6 cut off", ipv6(CLIENT_V6, ICMPV6, &[135])),
        // Eight extension headers are still read.
        same("eight extension headers", options(8), None, ClosedPort),
    ]
}

/// Packets that always pass.
fn passing() -> Vec<ScopeRow> {
    use protocol::*;
    let on_link = |kind| patched(&ipv6(CLIENT_V6, ICMPV6, &icmp(kind)), IPV6_AT + 7, &[255]);
    let neighbour = "fe80::1".parse().unwrap();
    let control = |what, frame| same(what, frame, None, Control);
    vec![
        same("ARP", other(0x0806), None, NotGuarded),
        same("LLDP", other(0x88cc), None, NotGuarded),
        same(
            "ARP behind a tag",
            tagged(&other(0x0806), &[0x8100]),
            None,
            NotGuarded,
        ),
        same("LLC", other(46), None, NotGuarded),
        same("a PPPoE session", other(0x8864), None, NotGuarded),
        control("router solicitation", on_link(133)),
        control("router advertisement", on_link(134)),
        control("neighbour solicitation", on_link(135)),
        control("neighbour advertisement", on_link(136)),
        control("redirect", on_link(137)),
        control("MLD query", ipv6(neighbour, ICMPV6, &icmp(130))),
        control("MLDv2 report", ipv6(neighbour, ICMPV6, &icmp(143))),
        control("MLDv2 report behind a router alert", {
            let payload: Vec<u8> = [extension(ICMPV6, 1), icmp(143)].concat();
            ipv6(neighbour, HOP_BY_HOP, &payload)
        }),
        control("IGMP query", igmp([224, 0, 0, 1])),
        control("IGMP report", igmp([239, 255, 255, 250])),
        control(
            "IGMP with the router alert option",
            with_options(&igmp([224, 0, 0, 22]), 6),
        ),
        control("DHCP reply", ipv4(OTHER_V4, UDP, &udp(67, 68, &[0; 240]))),
        control(
            "DHCPv6 reply",
            ipv6(neighbour, UDP, &udp(547, 546, &[0; 40])),
        ),
        by_scope(
            "DHCPv6 reply from beyond a router",
            ipv6(CLIENT_V6, UDP, &udp(547, 546, &[0; 40])),
            NotGuarded,
            ClosedPort,
        ),
        by_scope(
            "neighbour solicitation from beyond a router",
            ipv6(CLIENT_V6, ICMPV6, &icmp(135)),
            NotGuarded,
            ClosedPort,
        ),
        by_scope(
            "MLD query from beyond a router",
            ipv6(CLIENT_V6, ICMPV6, &icmp(130)),
            NotGuarded,
            ClosedPort,
        ),
        same(
            "a later fragment",
            as_fragment(&tcp_v4(8000, SYN), 1, false),
            None,
            Fragment,
        ),
        same(
            "a later fragment, more to come",
            as_fragment(&tcp_v4(8000, SYN), 9, true),
            None,
            Fragment,
        ),
        same(
            "a later fragment, IPv6",
            {
                let mut payload = fragment(TCP, 9, false);
                payload.extend([0; 32]);
                ipv6(CLIENT_V6, FRAGMENT, &payload)
            },
            None,
            Fragment,
        ),
    ]
}

fn every_row() -> Vec<ScopeRow> {
    [exposure(), bypasses(), malformed(), passing()].concat()
}

#[test]
fn enforced_in_scope_containers() {
    let judge = judge("enforce", "containers");
    for (what, frame, expected, _) in every_row() {
        judge.assert(what, &frame, &expected);
    }
}

#[test]
fn enforced_in_scope_host() {
    let judge = judge("enforce", "host");
    for (what, frame, _, expected) in every_row() {
        judge.assert(what, &frame, &expected);
    }
}

#[test]
fn observed_nothing_is_dropped_and_every_drop_is_counted_as_one_that_would_be() {
    let judge = judge("observe", "containers");
    for (what, frame, mut expected, _) in every_row() {
        let Expected { service, outcome } = expected;
        if outcome.reason.verdict() == guard_common::reason::Verdict::Drop {
            expected = observed(service, outcome.reason);
        }
        judge.assert(what, &frame, &expected);
    }
}

#[test]
fn the_longest_packets_are_judged_and_counted_to_the_last_byte_and_replayed() {
    let judge = judge("enforce", "host");
    let simulation = Simulation::new("scope = \"host\"");
    for (what, frame, length) in longest() {
        assert_eq!(frame.len(), length, "{what}");
        let cut_off = &frame[..length - 1];
        judge.assert(what, &frame, &because(None, ClosedPort));
        judge.assert(what, cut_off, &because(None, Malformed));
        assert_eq!(simulation.reason(&frame), ClosedPort, "{what}, replayed");
        assert_eq!(simulation.reason(cut_off), Malformed, "{what}, replayed");
    }
}

/// Ports published only on 203.0.113.11 and 2001:db8:113::11, and services with the same ports there and on .10.
#[test]
fn what_is_published_on_one_address_is_closed_there_and_nowhere_else() {
    const SERVICES: &str = r#"
        [docker]
        socket = ""
        [[service]]
        name = "web"
        ports = ["tcp/443"]
        address = "203.0.113.10"
        [[service]]
        name = "database"
        ports = ["tcp/5432", "udp/5432"]
        address = "203.0.113.11"
        from = ["198.51.100.0/24"]
        [[service]]
        name = "mail"
        ports = ["tcp/25"]
        from = ["2001:db8:51::/48"]
    "#;
    let published: Vec<PublishedPort> = [
        "203.0.113.11:tcp/443",
        "203.0.113.11:tcp/22",
        "203.0.113.11:tcp/5432",
        "203.0.113.11:udp/5432",
        "203.0.113.11:tcp/40001",
        "203.0.113.11:udp/9000",
        "203.0.113.11:sctp/9899",
        "203.0.113.11:tcp/25",
        "[2001:db8:113::11]:tcp/443",
        "[2001:db8:113::11]:tcp/25",
        "0.0.0.0:tcp/8080",
        "203.0.113.11:tcp/8080",
    ]
    .iter()
    .flat_map(|text| PublishedPort::parse(text).unwrap())
    .collect();
    let on_v4 = |end: u8, frame: &[u8]| to_v4(frame, &format!("203.0.113.{end}"));
    let on_v6 = |end: u8, frame: &[u8]| to_v6(frame, &format!("2001:db8:113::{end}"));
    let other = |flags| ipv4(OTHER_V4, protocol::TCP, &tcp(5432, flags, &[]));
    let (web, database, mail) = (Some("web"), Some("database"), Some("mail"));
    let rows = [
        same(
            "closed on .11",
            on_v4(11, &tcp_v4(443, SYN)),
            None,
            ClosedPort,
        ),
        same(
            "a later segment on .11",
            on_v4(11, &tcp_v4(443, ACK)),
            None,
            ClosedPort,
        ),
        same(
            "a service on .10",
            on_v4(10, &tcp_v4(443, SYN)),
            web,
            Allowed,
        ),
        by_scope(
            "on .12",
            on_v4(12, &tcp_v4(443, SYN)),
            NotGuarded,
            ClosedPort,
        ),
        same(
            "closed on ::11",
            on_v6(11, &tcp_v6(443, SYN)),
            None,
            ClosedPort,
        ),
        by_scope(
            "on ::10",
            on_v6(10, &tcp_v6(443, SYN)),
            NotGuarded,
            ClosedPort,
        ),
        same(
            "no service on .11",
            on_v4(11, &tcp_v4(22, SYN)),
            None,
            ClosedPort,
        ),
        by_scope(
            "a port of the host on .10",
            on_v4(10, &tcp_v4(22, SYN)),
            NotGuarded,
            ClosedPort,
        ),
        by_scope(
            "a session of the host on .10",
            on_v4(10, &tcp_v4(22, ACK)),
            NotGuarded,
            Established,
        ),
        by_scope(
            "the other address family",
            on_v6(11, &tcp_v6(22, SYN)),
            NotGuarded,
            ClosedPort,
        ),
        same(
            "with a service, a permitted source",
            on_v4(11, &tcp_v4(5432, SYN)),
            database,
            Allowed,
        ),
        same(
            "with a service, another source",
            on_v4(11, &other(SYN)),
            database,
            SourceNotAllowed,
        ),
        same(
            "with a service, a later segment of another source",
            on_v4(11, &other(ACK)),
            database,
            SourceNotAllowed,
        ),
        by_scope(
            "beside it",
            on_v4(10, &tcp_v4(5432, SYN)),
            NotGuarded,
            ClosedPort,
        ),
        same(
            "with a service on every address, on ::11",
            on_v6(11, &tcp_v6(25, SYN)),
            mail,
            Allowed,
        ),
        same(
            "with a service on every address, a later segment of another source on .11",
            on_v4(11, &tcp_v4(25, ACK)),
            mail,
            SourceNotAllowed,
        ),
        same(
            "with a service on every address, a later segment of another source on .10",
            on_v4(10, &tcp_v4(25, ACK)),
            mail,
            Established,
        ),
        same(
            "local range, attempt",
            on_v4(11, &tcp_v4(40_001, SYN)),
            None,
            ClosedPort,
        ),
        same(
            "local range, segment",
            on_v4(11, &tcp_v4(40_001, ACK)),
            None,
            Established,
        ),
        by_scope(
            "a port of the local range",
            on_v4(10, &tcp_v4(40_001, SYN)),
            NotGuarded,
            ClosedPort,
        ),
        same("UDP", on_v4(11, &udp_v4(9000)), None, ClosedPort),
        by_scope(
            "UDP beside it",
            on_v4(10, &udp_v4(9000)),
            NotGuarded,
            ClosedPort,
        ),
        same(
            "SCTP",
            on_v4(11, &ipv4(CLIENT_V4, protocol::SCTP, &sctp(9899))),
            None,
            ClosedPort,
        ),
        by_scope(
            "SCTP beside it",
            on_v4(10, &ipv4(CLIENT_V4, protocol::SCTP, &sctp(9899))),
            NotGuarded,
            ClosedPort,
        ),
        same(
            "also everywhere, on .11",
            on_v4(11, &tcp_v4(8080, SYN)),
            None,
            ClosedPort,
        ),
        same(
            "also everywhere, on .10",
            on_v4(10, &tcp_v4(8080, SYN)),
            None,
            ClosedPort,
        ),
    ];
    for scope in ["containers", "host"] {
        let policy = format!("mode = \"enforce\"\nscope = \"{scope}\"\n{SERVICES}");
        let judge = ProgramUnderTest::new(&policy, &published);
        for (what, frame, containers, host) in &rows {
            let expected = if scope == "host" { host } else { containers };
            judge.assert(&format!("{what}, {scope}"), frame, expected);
        }
    }
}

#[test]
fn off_nothing_is_judged() {
    let judge = judge("off", "host");
    for (what, frame, ..) in every_row() {
        judge.assert(what, &frame, &because(None, NotGuarded));
    }
}

#[test]
fn a_service_can_be_milder_than_the_host_but_not_stricter() {
    let policy = |host: &str, service: &str| {
        format!(
            "mode = \"{host}\"
             docker.socket = \"\"
             [[service]]
             name = \"database\"
             ports = [\"tcp/5432\"]
             from = [\"192.0.2.0/24\"]
             mode = \"{service}\""
        )
    };
    let attempt = tcp_v4(5432, SYN);
    let database = Some("database");
    for (host, service, expected) in [
        ("enforce", "enforce", because(database, SourceNotAllowed)),
        ("enforce", "observe", observed(database, SourceNotAllowed)),
        ("enforce", "off", because(database, NotGuarded)),
        ("observe", "enforce", observed(database, SourceNotAllowed)),
        ("observe", "off", because(database, NotGuarded)),
        ("off", "enforce", because(None, NotGuarded)),
    ] {
        let judge = ProgramUnderTest::new(&policy(host, service), &published());
        judge.assert(&format!("{host}, {service}"), &attempt, &expected);
        if host == "enforce" {
            judge.assert(
                "the host's own mode",
                &tcp_v4(8000, SYN),
                &because(None, ClosedPort),
            );
        }
    }
}

/// A packet may end with the linear part of its buffer, while the frame continues in fragments.
#[test]
fn what_lies_in_fragments_behind_a_packet_counts_as_part_of_its_frame() {
    use protocol::*;
    const WHOLE: usize = 9_014;
    // In a test run the linear part is a page without its headroom and tailroom.
    let (headroom, page, tailroom) = (256, 4_096, 320);
    let full = page - headroom - tailroom;
    for (mode, service, reason) in [("enforce", None, ClosedPort), ("off", None, NotGuarded)] {
        let judge = judge(mode, "host");
        for length in full - 64..=full + 64 {
            let data = |headers: usize| vec![0; length - headers];
            let [v4, v6] = [
                ipv4(CLIENT_V4, TCP, &tcp(8000, SYN, &data(54))),
                ipv6(CLIENT_V6, TCP, &tcp(8000, SYN, &data(74))),
            ];
            for packet in [v4, v6] {
                assert_eq!(packet.len(), length);
                let frame = [packet, vec![0; WHOLE - length]].concat();
                let what = format!("{mode}, {length} bytes");
                judge.assert(&what, &frame, &because(service, reason));
            }
        }
    }
}
