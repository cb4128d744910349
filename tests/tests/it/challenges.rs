//! The answers of a protected service under a flood, packet by packet, held against etherparse.

use etherparse::{LaxPacketHeaders, NetHeaders, TcpHeader, TransportHeader};
use guard_common::reason::Reason::*;

use crate::{
    frames::{flags::*, *},
    judge::{ProgramAction, ProgramUnderTest, because, observed},
};

/// The first request of an unknown source passes, and then the service is flooded. `level2`: a power of two, or 0.
fn flooded(mode: &str, level2: u32) -> ProgramUnderTest {
    let policy = format!(
        "mode = \"{mode}\"\nscope = \"host\"\ndocker.socket = \"\"\n[[service]]\nname = \"web\"\nports = [\"tcp/80\"]\n\
         [service.flood]\nprotect = \"auto\"\nattempts = {{ rate = \"1/h\", burst = 1 }}\n\
         lane = {{ rate = \"1/h\", burst = 100 }}\nlevel2 = {level2}\n"
    );
    let program = ProgramUnderTest::new(&policy, &[]);
    let first = ipv4(OTHER_V4, protocol::TCP, &tcp(80, SYN, &[]));
    program.assert("the first", &first, &because(Some("web"), Allowed));
    program
}

/// The segment that answers `frame`, as another parser reads it, with its checksums held against its own.
#[track_caller]
fn answer(program: &ProgramUnderTest, frame: &[u8]) -> TcpHeader {
    let ProgramAction::Send(sent) = program.action(frame) else {
        panic!("no answer");
    };
    assert!(
        sent.len() <= frame.len() && sent.len() >= frame.len().min(60),
        "{} bytes for {}",
        sent.len(),
        frame.len()
    );
    let [before, after] =
        [frame, &sent].map(|frame| LaxPacketHeaders::from_ethernet(frame).unwrap());
    let [link_before, link] =
        [&before, &after].map(|headers| headers.link.clone().unwrap().ethernet2().unwrap());
    assert_eq!(link.destination, link_before.source);
    assert_eq!(link.source, link_before.destination);
    assert_eq!(after.link_exts, before.link_exts, "the tags stay");
    let Some(TransportHeader::Tcp(tcp)) = after.transport else {
        panic!("no TCP: {after:?}");
    };
    assert_eq!(tcp.options.len(), 0);
    assert!(after.payload.slice().is_empty(), "no data");
    match (before.net.unwrap(), after.net.unwrap()) {
        (NetHeaders::Ipv4(before, _), NetHeaders::Ipv4(ip, _)) => {
            assert_eq!(
                (ip.source, ip.destination),
                (before.destination, before.source)
            );
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(&ip, &[]).unwrap());
            assert_eq!(
                (ip.options.len(), ip.total_len, ip.time_to_live),
                (0, 40, 64)
            );
            assert!(ip.dont_fragment && !ip.more_fragments);
        }
        (NetHeaders::Ipv6(before, _), NetHeaders::Ipv6(ip, extensions)) => {
            assert_eq!(
                (ip.source, ip.destination),
                (before.destination, before.source)
            );
            assert_eq!(tcp.checksum, tcp.calc_checksum_ipv6(&ip, &[]).unwrap());
            assert!(extensions.is_empty());
            assert_eq!((ip.payload_length, ip.hop_limit), (20, 64));
        }
        _ => panic!("another version of IP"),
    }
    tcp
}

/// Every form of a request for a connection: with its sequence number, 1.
fn requests() -> Vec<(&'static str, Vec<u8>)> {
    let data = [0; 700];
    let v4 = |data: &[u8]| ipv4(CLIENT_V4, protocol::TCP, &tcp(80, SYN, data));
    let v6 = |data: &[u8]| ipv6(CLIENT_V6, protocol::TCP, &tcp(80, SYN, data));
    let mut padded = v4(&[]);
    padded.resize(60, 0);
    let behind_options = [
        extension(protocol::DESTINATION_OPTIONS, 3),
        extension(protocol::TCP, 1),
        tcp(80, SYN, &[]),
    ];
    vec![
        ("IPv4", v4(&[])),
        ("padded", padded),
        ("with data (TCP Fast Open, RFC 7413)", v4(&data)),
        ("with IPv4 options", with_options(&v4(&[]), 15)),
        ("with options and data", with_options(&v4(&data), 6)),
        ("a tag", tagged(&v4(&[]), &[0x8100])),
        ("two tags and data", tagged(&v4(&data), &[0x88a8, 0x8100])),
        ("IPv6", v6(&[])),
        ("IPv6 with data", v6(&data)),
        ("IPv6 and two tags", tagged(&v6(&[]), &[0x88a8, 0x8100])),
        (
            "IPv6 extension headers",
            ipv6(CLIENT_V6, protocol::HOP_BY_HOP, &behind_options.concat()),
        ),
    ]
}

#[test]
fn every_request_gets_a_challenge_that_is_no_longer_and_that_another_parser_reads() {
    let [weak, strong] = [flooded("enforce", 0), flooded("enforce", 1)];
    for (what, frame) in requests() {
        println!("{what}");
        let ack = answer(&weak, &frame);
        assert!(
            ack.ack && !ack.syn && !ack.rst && !ack.fin,
            "{what}: {ack:?}"
        );
        assert_eq!(
            (ack.sequence_number, ack.window_size),
            (0, 65_535),
            "{what}"
        );
        // Never acceptable, and in the window before the SYN (RFC 9293, section 3.10.7.3).
        assert!(
            1u32.wrapping_sub(ack.acknowledgment_number) < 1 << 16,
            "{what}"
        );
        assert_eq!(
            (ack.source_port, ack.destination_port),
            (80, 40_000),
            "{what}"
        );
        let syn_ack = answer(&strong, &frame);
        assert!(syn_ack.syn && syn_ack.ack && !syn_ack.rst, "{what}");
        assert_eq!(syn_ack.acknowledgment_number, 2, "{what}");
    }
    weak.assert(
        "counted with its whole length",
        &requests()[2].1,
        &because(Some("web"), Challenged),
    );
}

/// The client's segment with these numbers.
fn segment(flags: u8, sequence: u32, acknowledgment: u32) -> Vec<u8> {
    let mut header = tcp(80, flags, &[]);
    header[4..8].copy_from_slice(&sequence.to_be_bytes());
    header[8..12].copy_from_slice(&acknowledgment.to_be_bytes());
    ipv4(CLIENT_V4, protocol::TCP, &header)
}

#[test]
fn a_reset_with_the_cookie_buys_two_requests_and_any_other_reset_passes() {
    let program = flooded("enforce", 0);
    let request = tcp_v4(80, SYN);
    let ack = answer(&program, &request);
    let reset = segment(RST, ack.acknowledgment_number, 0);
    let other = segment(RST, ack.acknowledgment_number ^ 1, 0);
    let allowed = because(Some("web"), Allowed);
    program.assert("another reset", &other, &allowed);
    program.assert("still unknown", &request, &because(Some("web"), Challenged));
    program.assert("the reset", &reset, &because(Some("web"), Handshake));
    program.assert("the first request", &request, &allowed);
    program.assert("the second", &request, &allowed);
    program.assert("the third", &request, &because(Some("web"), Challenged));
    // Resets make nobody strong, however many come.
    for _ in 0..100 {
        assert_eq!(program.action(&reset), ProgramAction::Drop);
    }
    let passed = (0..100).filter(|_| program.action(&request) == ProgramAction::Pass);
    // 64 credits at most.
    assert_eq!(passed.count(), 64);
    // Another source with the same cookie is another source.
    let stranger = ipv4(OTHER_V4, protocol::TCP, &reset[34..]);
    program.assert("a stranger's", &stranger, &allowed);
}

#[test]
fn whoever_completes_the_handshake_is_served_from_then_on() {
    let program = flooded("enforce", 1);
    let request = tcp_v4(80, SYN);
    let syn_ack = answer(&program, &request);
    let wrong = segment(ACK, 2, syn_ack.sequence_number.wrapping_add(2));
    let allowed = because(Some("web"), Allowed);
    program.assert("a wrong number", &wrong, &allowed);
    program.assert("still unknown", &request, &because(Some("web"), Challenged));
    let ack = segment(ACK, 2, syn_ack.sequence_number.wrapping_add(1));
    // The client's connection is reset, and it tries again.
    let reset = answer(&program, &ack);
    assert!(reset.rst && !reset.syn && !reset.ack, "{reset:?}");
    assert_eq!(
        reset.sequence_number,
        syn_ack.sequence_number.wrapping_add(1)
    );
    for _ in 0..200 {
        program.assert("a client", &request, &allowed);
    }
    // Its segments pass, also this one.
    program.assert("a segment", &ack, &allowed);
}

#[test]
fn observe_sends_nothing_and_counts_what_it_would_do() {
    let program = flooded("observe", 0);
    let request = tcp_v4(80, SYN);
    assert_eq!(program.action(&request), ProgramAction::Pass);
    program.assert("a request", &request, &observed(Some("web"), Challenged));
}

#[test]
fn an_exempt_source_and_other_ports_are_not_challenged() {
    let policy = "mode = \"enforce\"\nscope = \"host\"\ndocker.socket = \"\"\n[[service]]\nname = \"web\"\nports = \
                  [\"tcp/80\"]\n[service.flood]\nprotect = \"auto\"\nattempts = { rate = \"1/h\", burst = 1 }\n\
                  [[service]]\nname = \"other\"\nports = [\"tcp/81\"]\n[[source]]\nname = \"office\"\ncidrs = \
                  [\"198.51.100.0/24\"]\nexempt = true\n";
    let program = ProgramUnderTest::new(policy, &[]);
    let stranger = |port| ipv4(OTHER_V4, protocol::TCP, &tcp(port, SYN, &[]));
    for _ in 0..3 {
        program.action(&stranger(80));
    }
    program.assert(
        "a stranger",
        &stranger(80),
        &because(Some("web"), Challenged),
    );
    program.assert(
        "another service",
        &stranger(81),
        &because(Some("other"), Allowed),
    );
    program.assert(
        "the office",
        &tcp_v4(80, SYN),
        &because(Some("web"), Allowed),
    );
}
