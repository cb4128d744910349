//! `guard replay`, `guard explain` and `guard talkers`, for scripts and people.

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, UdpSocket},
    path::Path,
    process::Stdio,
    thread,
    time::Duration,
};

use lab::{
    docker::Docker,
    flood::Flood,
    guard::{Guard, binary, output, write_policy},
    http::{HttpOutcome, get},
    process::{Daemon, run},
    proxy::Proxy,
    topology::{FLOODER_V4, HOST_V4, INTERFACE, Lab, USER_V4},
};
use serde_json::Value;

use crate::frames::{flags::*, *};

const POLICY: &str = "
mode = \"enforce\"
interfaces = [\"wan\"]
scope = \"host\"
docker.socket = \"\"

[[service]]
name = \"web\"
ports = [\"tcp/80\"]
limit.packets = \"200/s\"

[[service]]
name = \"database\"
ports = [\"tcp/5432\"]
from = [\"office\"]

[[source]]
name = \"office\"
cidrs = [\"198.51.100.0/28\"]
factor = 20
owner = \"ana\"
reason = \"head office NAT\"

[[source]]
name = \"scanner\"
cidrs = [\"192.0.2.0/24\"]
deny = true
";

/// A capture in tcpdump's format (pcap-savefile(5)), with times in microseconds.
pub fn pcap(linktype: u32, packets: &[(u32, u32, &[u8], usize)]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, linktype] {
        file.extend(word.to_le_bytes());
    }
    for (seconds, microseconds, data, length) in packets {
        let captured = data.len() as u32;
        for word in [*seconds, *microseconds, captured, *length as u32] {
            file.extend(word.to_le_bytes());
        }
        file.extend(*data);
    }
    file
}

fn replay(lab: &Lab, capture: &Path, extra: &[&str]) -> (String, Option<i32>) {
    let policy = lab.folder().join("guard.toml");
    let mut arguments = vec!["replay", "--policy", policy.to_str().unwrap()];
    arguments.extend(extra);
    arguments.push(capture.to_str().unwrap());
    let output = output(lab, &arguments).unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    (stdout, output.status.code())
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_capture_gets_a_verdict_for_every_packet_and_sums_that_add_up() {
    let lab = Lab::new().unwrap();
    let _web = Proxy::start(&lab, "127.0.0.1:1").unwrap();
    let capture = lab.folder().join("real.pcap");
    let mut tcpdump = Daemon::start(
        lab.host
            .command("tcpdump")
            .args(["-U", "-n", "-i", INTERFACE, "-Z", "root", "-w"])
            .arg(&capture),
        &lab.folder().join("tcpdump.log"),
    )
    .unwrap();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(
        get(&lab, USER_V4, HOST_V4, 80).unwrap(),
        HttpOutcome::Status(502)
    );
    run(lab.internet.command("nmap").args([
        "-n",
        "-Pn",
        "-sS",
        "-p",
        "22,80,8000",
        "-e",
        "internet",
        &HOST_V4.to_string(),
    ]))
    .unwrap();
    let ping = ["ping", "-c", "3", "-W", "1", &HOST_V4.to_string()];
    run(lab.internet.command("busybox").args(ping)).unwrap();
    Flood::start(&lab, FLOODER_V4, 80, Duration::from_micros(200), 2_000)
        .unwrap()
        .wait(Duration::from_secs(20))
        .unwrap();
    thread::sleep(Duration::from_millis(500));
    tcpdump.stop().unwrap();
    write_policy(&lab, POLICY).unwrap();
    let local = HOST_V4.to_string();
    let (text, code) = replay(&lab, &capture, &["--local", &local, "--each"]);
    assert_eq!(code, Some(0));
    let packets = lines(&text);
    let (sums, _) = replay(&lab, &capture, &["--local", &local, "--json"]);
    let sums: Value = serde_json::from_str(&sums).unwrap();
    assert_eq!(sums["packets"], packets.len());
    let count = |key: &str, value: &str| packets.iter().filter(|p| p[key] == value).count();
    assert_eq!(sums["passed"], count("verdict", "pass"));
    assert_eq!(sums["dropped"], count("verdict", "drop"));
    for part in ["by_reason", "by_service"] {
        let sum: u64 = sums[part]
            .as_object()
            .unwrap()
            .values()
            .map(|n| n.as_u64().unwrap())
            .sum();
        assert_eq!(sum, packets.len() as u64, "{part}");
    }
    for (n, packet) in packets.iter().enumerate() {
        assert_eq!(packet["n"], n);
    }
    // nmap probes ports 22 and 8000, and no service lists icmp for the three pings.
    assert!(count("reason", "closed_port") >= 5, "{sums}");
    // 2,000 SYNs and their RSTs come in about half a second; only the burst and 200 packets a second pass.
    assert!(count("reason", "packet_limit") > 1_000, "{sums}");
    // Packets that this host sends are not judged.
    assert!(count("direction", "out") > 100, "{sums}");
    assert!(
        packets
            .iter()
            .all(|p| p["direction"] != "out" || p["verdict"] == "pass")
    );
    // The same capture gives the same verdicts.
    assert_eq!(
        replay(&lab, &capture, &["--local", &local, "--each"]).0,
        text
    );
}

#[test]
fn a_capture_is_judged_by_its_own_clock_and_link_type() {
    let lab = Lab::new().unwrap();
    let policy = POLICY
        .replace("200/s", "1/s")
        .replace("factor = 20", "")
        .replace("\"host\"", "\"containers\"");
    write_policy(&lab, &policy).unwrap();
    let capture = lab.folder().join("made.pcap");
    let syn = tcp_v4(80, SYN);
    let replay_of = |linktype, packets: &[(u32, u32, &[u8], usize)], extra: &[&str]| {
        fs::write(&capture, pcap(linktype, packets)).unwrap();
        let (text, code) = replay(&lab, &capture, &[extra, &["--each"]].concat());
        assert_eq!(code, Some(0));
        let reasons = lines(&text).into_iter();
        let reasons: Vec<String> = reasons
            .map(|line| line["reason"].as_str().unwrap().to_owned())
            .collect();
        reasons
    };
    // The budget is one packet a second: the packet half a second later is over it.
    let at = |ms: u32| {
        (
            1_700_000_000 + ms / 1_000,
            ms % 1_000 * 1_000,
            syn.as_slice(),
            syn.len(),
        )
    };
    let reasons = replay_of(1, &[at(0), at(500), at(1_100), at(900), at(2_200)], &[]);
    assert_eq!(
        reasons,
        [
            "allowed",
            "packet_limit",
            "allowed",
            "packet_limit",
            "allowed"
        ]
    );
    // Link types: raw IP and both cooked formats. The last packet is cut to its headers.
    let raw = &syn[14..];
    assert_eq!(replay_of(101, &[(1, 0, raw, raw.len())], &[]), ["allowed"]);
    let cooked = [&[0u8; 14][..], &[8, 0], raw].concat();
    assert_eq!(
        replay_of(113, &[(1, 0, &cooked, cooked.len())], &[]),
        ["allowed"]
    );
    let sent = patched(&cooked, 1, &[4]);
    assert_eq!(
        replay_of(113, &[(1, 0, &sent, sent.len())], &[]),
        ["not_guarded"]
    );
    let cooked = [&[8u8, 0][..], &[0; 18], raw].concat();
    assert_eq!(
        replay_of(276, &[(1, 0, &cooked, cooked.len())], &[]),
        ["allowed"]
    );
    let long = ipv4(CLIENT_V4, protocol::TCP, &tcp(80, ACK, &[0; 1_000]));
    assert_eq!(
        replay_of(1, &[(1, 0, &long[..60], long.len())], &[]),
        ["allowed"]
    );
    // `--publish` and `--network` replace the facts from Docker.
    let direct = tcp_v4(8000, SYN);
    let direct = [(1, 0, direct.as_slice(), direct.len())];
    assert_eq!(replay_of(1, &direct, &[]), ["not_guarded"]);
    assert_eq!(
        replay_of(1, &direct, &["--publish", "tcp/8000,udp/9000-9010"]),
        ["closed_port"]
    );
    for (publish, reason) in [
        ("203.0.113.10:tcp/8000", "closed_port"),
        (
            "203.0.113.11:tcp/8000,[2001:db8::1]:tcp/8000",
            "not_guarded",
        ),
        ("127.0.0.1:tcp/8000", "not_guarded"),
    ] {
        assert_eq!(replay_of(1, &direct, &["--publish", publish]), [reason]);
    }
    let network = ["--network", "203.0.113.0/24"];
    assert_eq!(replay_of(1, &direct, &network), ["container_address"]);
}

/// A block of pcapng (draft-ietf-opsawg-pcapng), little-endian.
fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    body.resize(body.len().next_multiple_of(4), 0);
    let length = (body.len() as u32 + 12).to_le_bytes();
    [&kind.to_le_bytes()[..], &length, &body, &length].concat()
}

/// A section with one interface of this link type, and an option of it.
fn section(linktype: u16, option: &[u8]) -> Vec<u8> {
    let mut header = 0x1a2b_3c4du32.to_le_bytes().to_vec();
    header.extend([1, 0, 0, 0]);
    header.extend([0xff; 8]);
    let interface = [&linktype.to_le_bytes()[..], &[0; 6], option].concat();
    [block(0x0a0d_0d0a, &header), block(1, &interface)].concat()
}

/// An enhanced packet block; `flags` is its option epb_flags.
fn enhanced(interface: u32, ticks: u64, frame: &[u8], flags: Option<u32>) -> Vec<u8> {
    let mut body = Vec::new();
    let length = frame.len() as u32;
    for word in [
        interface,
        (ticks >> 32) as u32,
        ticks as u32,
        length,
        length,
    ] {
        body.extend(word.to_le_bytes());
    }
    body.extend(frame);
    body.resize(body.len().next_multiple_of(4), 0);
    if let Some(flags) = flags {
        body.extend([2, 0, 4, 0]);
        body.extend(flags.to_le_bytes());
        body.extend([0; 4]);
    }
    block(6, &body)
}

#[test]
fn what_a_capture_says_was_sent_is_not_judged() {
    let lab = Lab::new().unwrap();
    write_policy(&lab, POLICY).unwrap();
    let capture = lab.folder().join("made.pcapng");
    let syn = tcp_v4(8000, SYN);
    let flags = [None, Some(0), Some(1), Some(2), Some(0x0006)];
    let packets = flags.map(|flags| enhanced(0, 1_000_000, &syn, flags));
    fs::write(&capture, [section(1, &[]), packets.concat()].concat()).unwrap();
    let (text, code) = replay(&lab, &capture, &["--each"]);
    assert_eq!(code, Some(0));
    let directions: Vec<Value> = lines(&text)
        .into_iter()
        .map(|line| line["direction"].clone())
        .collect();
    let out = Value::from("out");
    let expected = [Value::Null, Value::Null, Value::Null, out.clone(), out];
    assert_eq!(directions, expected);
}

#[test]
fn the_longest_packets_are_judged_whole() {
    let lab = Lab::new().unwrap();
    write_policy(&lab, POLICY).unwrap();
    let capture = lab.folder().join("made.pcap");
    let v6 = ipv6(
        CLIENT_V6,
        protocol::TCP,
        &tcp(80, ACK, &vec![0; 65_535 - 20]),
    );
    let v4 = ipv4(
        CLIENT_V4,
        protocol::TCP,
        &tcp(80, ACK, &vec![0; 65_535 - 40]),
    );
    for frame in [v6, v4] {
        let frame = tagged(&frame, &[0x88a8, 0x8100]);
        for captured in [&frame[..], &frame[..100]] {
            fs::write(&capture, pcap(1, &[(1, 0, captured, frame.len())])).unwrap();
            let (text, code) = replay(&lab, &capture, &["--each"]);
            assert_eq!(code, Some(0));
            assert_eq!(lines(&text)[0]["reason"], "allowed", "{}", frame.len());
        }
    }
}

#[test]
fn what_is_wrong_with_a_capture_is_said_with_the_file_and_the_packet() {
    let lab = Lab::new().unwrap();
    let policy = write_policy(&lab, POLICY).unwrap();
    let capture = lab.folder().join("made.pcap");
    let syn = tcp_v4(80, SYN);
    let first = (0, 0, &syn[..], syn.len());
    let good = enhanced(0, 1_000_000, &syn, None);
    for (what, bytes, judged, words) in [
        (
            "a link type that is not read",
            pcap(105, &[first]),
            0,
            "packet 0, counted from 0: its link type is 105 (IEEE 802.11),",
        ),
        (
            "an interface that is none",
            [section(1, &[]), good, enhanced(5, 0, &syn, None)].concat(),
            1,
            "packet 1, counted from 0: it came over interface 5",
        ),
        ("no capture", vec![0x55; 500], 0, "is not a capture"),
    ] {
        fs::write(&capture, bytes).unwrap();
        let (policy, file) = (policy.to_str().unwrap(), capture.to_str().unwrap());
        for sums in [&["--json"][..], &[]] {
            let arguments = [&["replay", "--policy", policy, file][..], sums].concat();
            let replayed = output(&lab, &arguments).unwrap();
            assert_eq!(replayed.status.code(), Some(1), "{what}");
            let stderr = String::from_utf8(replayed.stderr).unwrap();
            assert!(
                stderr.contains(file) && stderr.contains(words),
                "{what}: {stderr}"
            );
            assert_eq!(stderr.lines().count(), 1, "{what}: {stderr}");
            let stdout = String::from_utf8(replayed.stdout).unwrap();
            assert_eq!(stdout.is_empty(), judged == 0, "{what}: {stdout}");
            if judged > 0 {
                let said = [
                    format!("\"packets\": {judged}"),
                    format!("{judged} packets"),
                ];
                assert!(
                    said.iter().any(|said| stdout.contains(said)),
                    "{what}: {stdout}"
                );
            }
        }
    }
    let missing = [
        "replay",
        "--policy",
        policy.to_str().unwrap(),
        "/nowhere.pcap",
    ];
    let missing = output(&lab, &missing).unwrap();
    assert!(missing.stdout.is_empty(), "{missing:?}");
}

#[test]
fn a_time_that_cannot_be_costs_a_warning_and_not_the_rest_of_the_file() {
    let lab = Lab::new().unwrap();
    let policy = write_policy(&lab, POLICY).unwrap();
    let capture = lab.folder().join("made.pcap");
    let syn = tcp_v4(80, SYN);
    let at = |seconds: u32| (seconds, 0, &syn[..], syn.len());
    let good = enhanced(0, 1_000_000, &syn, None);
    // An interface with a time unit of 2^-127 seconds, and one whose time offset is far in the future.
    let unit = section(1, &[9, 0, 1, 0, 0xff, 0, 0, 0, 0, 0, 0, 0]);
    let offset = [&[14, 0, 8, 0][..], &i64::MAX.to_le_bytes(), &[0; 4]].concat();
    const NOW: u32 = 1_700_000_000;
    const DAY: u32 = 86_400;
    for (what, bytes, judged, warned) in [
        (
            "one packet of 1970 among others",
            pcap(1, &[at(NOW), at(0), at(NOW + 1)]),
            3,
            vec!["packet 1, counted from 0: its time is far from those before and after it"],
        ),
        (
            "one packet of the next year, and one of last week",
            pcap(
                1,
                &[
                    at(NOW),
                    at(NOW + 300 * DAY),
                    at(NOW + 1),
                    at(NOW - 7 * DAY),
                    at(NOW + 2),
                ],
            ),
            5,
            vec!["packet 1, counted", "packet 3, counted"],
        ),
        (
            "a capture with pauses",
            pcap(
                1,
                &[at(NOW), at(NOW + DAY), at(NOW + 2 * DAY), at(NOW + 9 * DAY)],
            ),
            4,
            vec![],
        ),
        (
            "the first one",
            pcap(1, &[at(0), at(NOW), at(NOW + 1), at(NOW + 2)]),
            4,
            vec!["packet 1,"],
        ),
        (
            "a clock that is set now and then",
            pcap(1, &[at(0), at(1), at(NOW), at(NOW + 1), at(5), at(6)]),
            6,
            vec!["packet 2,", "packet 4,"],
        ),
        (
            "a time beyond counting",
            [section(1, &offset), good.clone(), good.clone()].concat(),
            2,
            vec![
                "packet 0, counted from 0: its time is not between",
                "packet 1,",
            ],
        ),
        (
            "a unit of time beyond counting",
            [unit, good.repeat(9)].concat(),
            9,
            vec![
                "packet 0, counted from 0: its interface counts time",
                "packet 1,",
                "packet 2,",
                "6 more packets",
            ],
        ),
    ] {
        fs::write(&capture, bytes).unwrap();
        let (policy, file) = (policy.to_str().unwrap(), capture.to_str().unwrap());
        let replayed = output(&lab, &["replay", "--policy", policy, file, "--json"]).unwrap();
        assert!(replayed.status.success(), "{what}: {replayed:?}");
        let sums: Value = serde_json::from_slice(&replayed.stdout).unwrap();
        assert_eq!(sums["packets"], judged, "{what}");
        let stderr = String::from_utf8(replayed.stderr).unwrap();
        assert_eq!(stderr.lines().count(), warned.len(), "{what}: {stderr}");
        for (line, words) in stderr.lines().zip(warned) {
            assert!(line.contains(words), "{what}: {line}");
        }
    }
}

/// A capture with one packet and another magic number, in the format of that number.
fn with_magic(magic: u32, linktype: u32, time: [u32; 2], data: &[u8]) -> Vec<u8> {
    let mut file = pcap(linktype, &[]);
    file[..4].copy_from_slice(&magic.to_le_bytes());
    let length = data.len() as u32;
    for word in [time[0], time[1], length, length] {
        file.extend(word.to_le_bytes());
    }
    // Alexey Kuznetzov's libpcap: the interface, the protocol and the packet's type.
    if magic == 0xa1b2_cd34 {
        file.extend([0; 8]);
    }
    file.extend(data);
    file
}

#[test]
fn captures_are_read_in_the_formats_and_from_the_places_that_people_have_them() {
    let lab = Lab::new().unwrap();
    write_policy(&lab, POLICY).unwrap();
    let capture = lab.folder().join("made.pcap");
    let syn = tcp_v4(8000, SYN);
    let (raw, v6) = (
        &syn[14..],
        ipv6(CLIENT_V6, protocol::TCP, &tcp(8000, SYN, &[])),
    );
    let raw_v6 = &v6[14..];
    let behind = |header: &[u8], packet: &[u8]| [header, packet].concat();
    let fcs = behind(&syn, &[0xde, 0xad, 0xbe, 0xef]);
    let time = [1, 500_000_000];
    const MICROSECONDS: u32 = 0xa1b2_c3d4;
    for (what, magic, linktype, data, reason) in [
        ("nanoseconds", 0xa1b2_3c4d, 1, syn.clone(), "closed_port"),
        ("modified", 0xa1b2_cd34, 1, syn.clone(), "closed_port"),
        // As in many public captures: the link type has an FCS length of three words, but the flag that the length is
        // valid is not set.
        (
            "FCS bits",
            MICROSECONDS,
            0x3000_0001,
            syn.clone(),
            "closed_port",
        ),
        ("an FCS", MICROSECONDS, 0x2400_0001, fcs, "closed_port"),
        (
            "BSD loopback",
            MICROSECONDS,
            0,
            behind(&[2, 0, 0, 0], raw),
            "closed_port",
        ),
        (
            "of OpenBSD",
            MICROSECONDS,
            108,
            behind(&[0, 0, 0, 24], raw_v6),
            "closed_port",
        ),
        (
            "of macOS",
            MICROSECONDS,
            0,
            behind(&[30, 0, 0, 0], raw_v6),
            "closed_port",
        ),
        (
            "that is cut off",
            MICROSECONDS,
            0,
            vec![2, 0],
            "not_guarded",
        ),
        (
            "PPP",
            MICROSECONDS,
            9,
            behind(&[0x00, 0x21], raw),
            "closed_port",
        ),
        (
            "in HDLC",
            MICROSECONDS,
            9,
            behind(&[0xff, 0x03, 0x00, 0x57], raw_v6),
            "closed_port",
        ),
        (
            "compressed",
            MICROSECONDS,
            50,
            behind(&[0xff, 0x03, 0x21], raw),
            "closed_port",
        ),
        (
            "LCP",
            MICROSECONDS,
            9,
            behind(&[0xc0, 0x21], raw),
            "not_guarded",
        ),
    ] {
        fs::write(&capture, with_magic(magic, linktype, time, &data)).unwrap();
        let (text, code) = replay(&lab, &capture, &["--each"]);
        assert_eq!(code, Some(0), "{what}");
        let line = &lines(&text)[0];
        assert_eq!(line["reason"], reason, "{what}: {line}");
    }
    let whole = pcap(1, &[(1, 500_000, &syn, syn.len()), (2, 0, &syn, syn.len())]);
    // A named pipe, written in small chunks.
    let pipe = lab.folder().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (place, bytes) = (pipe.clone(), whole.clone());
    let writer = thread::spawn(move || {
        let mut pipe = fs::OpenOptions::new().write(true).open(place).unwrap();
        for piece in bytes.chunks(7) {
            pipe.write_all(piece).unwrap();
        }
    });
    let (text, code) = replay(&lab, &pipe, &["--each"]);
    writer.join().unwrap();
    assert_eq!((lines(&text).len(), code), (2, Some(0)));
    // Standard input.
    let policy = lab.folder().join("guard.toml");
    let mut command = lab.host.command(binary().unwrap().to_str().unwrap());
    command.args([
        "replay",
        "--policy",
        policy.to_str().unwrap(),
        "--each",
        "-",
    ]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&whole).unwrap();
    let replayed = child.wait_with_output().unwrap();
    assert_eq!(lines(&String::from_utf8_lossy(&replayed.stdout)).len(), 2);
}

#[test]
fn observed_a_replay_says_what_would_be_dropped_unless_told_to_enforce() {
    let lab = Lab::new().unwrap();
    write_policy(&lab, &POLICY.replace("\"enforce\"", "\"observe\"")).unwrap();
    let capture = lab.folder().join("made.pcap");
    let syn = tcp_v4(8000, SYN);
    fs::write(&capture, pcap(1, &[(1, 500_000, &syn, syn.len())])).unwrap();
    let (text, _) = replay(&lab, &capture, &["--each"]);
    assert_eq!(
        text.trim(),
        r#"{"n":0,"time":1.5,"verdict":"pass","would":"drop","reason":"closed_port","service":null}"#
    );
    let (text, _) = replay(&lab, &capture, &["--each", "--enforce"]);
    assert_eq!(
        text.trim(),
        r#"{"n":0,"time":1.5,"verdict":"drop","reason":"closed_port","service":null}"#
    );
}

/// Runs a replay, and returns its output and its warnings.
fn replay_with_warnings(lab: &Lab, capture: &Path, extra: &[&str]) -> (String, String) {
    let policy = lab.folder().join("guard.toml");
    let paths = [
        "--policy",
        policy.to_str().unwrap(),
        capture.to_str().unwrap(),
    ];
    let replayed = output(lab, &[&["replay"], &paths[..], extra].concat()).unwrap();
    assert!(replayed.status.success(), "{replayed:?}");
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(replayed.stdout), text(replayed.stderr))
}

#[test]
fn a_replay_lists_what_would_be_dropped_by_source_by_port_and_by_service() {
    let lab = Lab::new().unwrap();
    let observed = POLICY.replace("\"enforce\"", "\"observe\"");
    let observed = observed.replace("198.51.100.0/28", "198.51.100.128/28");
    write_policy(&lab, &observed.replace("200/s", "1/s")).unwrap();
    let capture = lab.folder().join("made.pcap");
    let [closed, web, database] = [8000, 80, 5432].map(|port| tcp_v4(port, SYN));
    let v6 = ipv6(CLIENT_V6, protocol::TCP, &tcp(8000, SYN, &[]));
    let frames = [&closed, &closed, &closed, &web, &web, &database, &v6];
    let packets = frames.map(|frame| (1, 0, frame.as_slice(), frame.len()));
    fs::write(&capture, pcap(1, &packets)).unwrap();
    let (text, warnings) = replay_with_warnings(&lab, &capture, &[]);
    let network = ipnet::Ipv6Net::new(CLIENT_V6, 64).unwrap().trunc();
    for line in [
        "WOULD BE DROPPED, BY SOURCE".to_owned(),
        format!(
            "{CLIENT_V4} 5 closed_port tcp/8000; packet_limit at web; source_not_allowed at database"
        ),
        format!("{network} 1 closed_port tcp/8000"),
        "WOULD BE DROPPED, BY PORT".to_owned(),
        "tcp/8000 4 closed_port".to_owned(),
        "tcp/80 1 packet_limit at web".to_owned(),
        "WOULD BE DROPPED, BY SERVICE".to_owned(),
        "web 1 packet_limit".to_owned(),
    ] {
        let mut lines = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        assert!(
            lines.any(|found| found == line),
            "{line:?} is not in {text}"
        );
    }
    // Scope `host` closes ports that no container publishes, too.
    assert_eq!(warnings, "");
    let (json, _) = replay_with_warnings(&lab, &capture, &["--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["would_drop"], 6, "{json}");
    assert_eq!(json["dropped_by_port"][0]["port"], "tcp/8000", "{json}");
    assert_eq!(json["dropped_by_port"][0]["packets"], 4, "{json}");
    assert_eq!(json["dropped_by_source"][0]["packets"], 5, "{json}");
}

#[test]
fn a_replay_in_scope_containers_says_that_no_published_port_is_known() {
    let lab = Lab::new().unwrap();
    let containers = POLICY.replace("\"host\"", "\"containers\"");
    write_policy(&lab, &containers).unwrap();
    let capture = lab.folder().join("made.pcap");
    let syn = tcp_v4(8000, SYN);
    fs::write(&capture, pcap(1, &[(1, 0, &syn, syn.len())])).unwrap();
    let missing = lab.folder().join("docker.sock").display().to_string();
    let unanswered = containers.replace("socket = \"\"", &format!("socket = \"{missing}\""));
    for (policy, extra, words) in [
        (&containers, &[][..], Some("the policy names no Docker")),
        (&unanswered, &[], Some(missing.as_str())),
        (&containers, &["--publish", "none"], None),
        (&containers, &["--published", "tcp/8000"], None),
    ] {
        write_policy(&lab, policy).unwrap();
        let (json, warnings) = replay_with_warnings(&lab, &capture, &[extra, &["--json"]].concat());
        match words {
            Some(words) => {
                assert_eq!(warnings.lines().count(), 1, "{warnings}");
                assert!(
                    warnings.contains(words) && warnings.contains("--publish"),
                    "{warnings}"
                );
                assert!(json.contains("\"published_from\": \"unknown\""), "{json}");
            }
            None => assert_eq!(warnings, "", "{extra:?}"),
        }
        assert_eq!(
            json.contains("closed_port"),
            extra.contains(&"tcp/8000"),
            "{json}"
        );
    }
}

#[test]
fn a_replay_closes_what_docker_publishes_at_this_moment() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    let socket = docker.socket().display().to_string();
    let containers = POLICY.replace("\"host\"", "\"containers\"");
    let policy = containers.replace("socket = \"\"", &format!("socket = \"{socket}\""));
    write_policy(&lab, &policy).unwrap();
    let capture = lab.folder().join("made.pcap");
    let syn = tcp_v4(8000, SYN);
    fs::write(&capture, pcap(1, &[(1, 0, &syn, syn.len())])).unwrap();
    let (_, warnings) = replay_with_warnings(&lab, &capture, &[]);
    assert!(
        warnings.contains("no container at") && warnings.contains("--publish none"),
        "{warnings}"
    );
    docker.run_invoices("invoices", &["8000:8000"]).unwrap();
    let (text, warnings) = replay_with_warnings(&lab, &capture, &[]);
    assert_eq!(warnings, "");
    assert!(text.contains("at this moment: tcp/8000"), "{text}");
    assert!(text.contains("closed_port"), "{text}");
    let (json, _) = replay_with_warnings(&lab, &capture, &["--json"]);
    assert!(json.contains("\"published_from\": \"docker\""), "{json}");
}

#[test]
fn a_capture_that_is_none_or_cut_off_is_said_so_and_what_is_sound_is_judged() {
    let lab = Lab::new().unwrap();
    write_policy(&lab, POLICY).unwrap();
    let capture = lab.folder().join("made.pcap");
    let syn = tcp_v4(8000, SYN);
    let whole = pcap(1, &[(1, 0, &syn, syn.len()), (2, 0, &syn, syn.len())]);
    for length in 0..whole.len() {
        fs::write(&capture, &whole[..length]).unwrap();
        let (text, code) = replay(&lab, &capture, &["--each"]);
        let first_end = 24 + 16 + syn.len();
        let sound = usize::from(length >= first_end);
        assert_eq!(lines(&text).len(), sound, "cut off at {length}");
        let is_whole = length == 24 || length == first_end;
        assert_eq!(code, Some(i32::from(!is_whole)), "cut off at {length}");
    }
    fs::write(&capture, [0x55; 500]).unwrap();
    assert_eq!(replay(&lab, &capture, &[]).1, Some(1));
}

#[test]
fn explain_says_why_and_which_line_and_agrees_with_the_program() {
    let lab = Lab::new().unwrap();
    let _guard = Guard::start(&lab, POLICY).unwrap();
    for (from, to, reason, line, words) in [
        (
            "198.51.100.23",
            "8000/tcp",
            "closed_port",
            None,
            "no service lists tcp/8000",
        ),
        (
            "198.51.100.23",
            "80/tcp",
            "allowed",
            Some(8),
            "open to any source",
        ),
        (
            "198.51.100.7",
            "80/tcp",
            "allowed",
            Some(8),
            "20 times every budget, as \"office\", owned by ana",
        ),
        (
            "198.51.100.7",
            "5432/tcp",
            "allowed",
            Some(13),
            "open to 198.51.100.0/28",
        ),
        (
            "198.51.100.23",
            "5432/tcp",
            "source_not_allowed",
            Some(13),
            "not among the sources",
        ),
        (
            "192.0.2.9",
            "203.0.113.10:80/tcp",
            "denied_source",
            Some(25),
            "denied as \"scanner\"",
        ),
        (
            "2001:db8::1",
            "[2001:db8:113::10]:80/tcp",
            "allowed",
            Some(8),
            "open to any source",
        ),
        (
            "2001:db8::1",
            "53/udp",
            "closed_port",
            None,
            "no service lists udp/53",
        ),
        (
            "2001:db8::1",
            "icmpv6",
            "closed_port",
            None,
            "no service lists icmpv6",
        ),
        (
            "198.51.100.23",
            "203.0.113.10:112/proto",
            "closed_port",
            None,
            "no service lists proto/112",
        ),
    ] {
        let arguments = ["explain", "--from", from, "--to", to];
        let json = output(&lab, &[&arguments[..], &["--json"]].concat()).unwrap();
        assert!(json.status.success(), "{json:?}");
        let json: Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!(json["reason"], reason, "{from} {to}: {json}");
        assert_eq!(json["line"].as_u64(), line, "{from} {to}: {json}");
        let text = output(&lab, &arguments).unwrap();
        let text = String::from_utf8(text.stdout).unwrap();
        assert!(text.contains(words), "{from} {to}: {text}");
    }
    let wrong = output(&lab, &["explain", "--from", "2001:db8::1", "--to", "icmp"]).unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("write icmpv6"));
    for to in ["80/http", "tcp/http", "1-2/tcp", "70000/tcp", "6/proto", ""] {
        let wrong = output(&lab, &["explain", "--from", "192.0.2.1", "--to", to]).unwrap();
        assert_eq!(wrong.status.code(), Some(2), "{to}");
    }
}

#[test]
fn explain_tells_of_a_services_mode_and_of_limits() {
    let lab = Lab::new().unwrap();
    let explained = |policy: &str, to| {
        let policy = write_policy(&lab, policy).unwrap();
        let policy = policy.to_str().unwrap();
        let arguments = [
            "explain",
            "--from",
            "198.51.100.7",
            "--to",
            to,
            "--policy",
            policy,
        ];
        let output = output(&lab, &arguments).unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let web = "[[service]]\nname = \"web\"\nports = [\"tcp/80\"]\nfrom = [\"192.0.2.0/24\"]\n";
    let enforce = "mode = \"enforce\"\ndocker.socket = \"\"\n";
    let text = explained(&format!("{enforce}{web}mode = \"off\"\n"), "80/tcp");
    assert!(text.contains("PASSES: not_guarded"), "{text}");
    assert!(text.contains("the service's mode is off"), "{text}");
    assert!(!text.contains("not among the sources"), "{text}");
    let text = explained(&format!("{enforce}{web}"), "81/tcp");
    assert!(text.contains("the policy has no [limits]"), "{text}");
    let crowd = "[[source]]\nname = \"office\"\ncidrs = [\"198.51.100.0/24\"]\nfactor = 20\n";
    let limits = "[limits]\npackets = \"5k/s\"\n";
    let limited = format!("{enforce}{limits}{web}{crowd}");
    let text = explained(&limited, "81/tcp");
    assert!(
        text.contains("packets 100k/s"),
        "20 times the policy's: {text}"
    );
    assert!(text.contains("20 times every budget"), "{text}");
    // A packet dropped before the budgets has none.
    let text = explained(&format!("scope = \"host\"\n{limited}"), "81/tcp");
    assert!(text.contains("DROPPED: closed_port"), "{text}");
    assert!(!text.contains("[limits]"), "{text}");
}

#[test]
fn explain_says_first_that_a_source_is_over_its_budget_though_its_first_packet_passes() {
    const SYNS: u64 = 2_000;
    let lab = Lab::new().unwrap();
    let connections = "limit.connections = { rate = \"1/h\", burst = 5 }";
    let policy = POLICY.replace("limit.packets = \"200/s\"", connections);
    let guard = Guard::start(&lab, &policy).unwrap();
    let flood = Flood::start(&lab, FLOODER_V4, 80, Duration::from_millis(1), SYNS).unwrap();
    assert_eq!(flood.wait(Duration::from_secs(60)).unwrap(), SYNS);
    let flooder = FLOODER_V4.to_string();
    let explain = |from: &str, to: &str| {
        let text = guard.run(&["explain", "--from", from, "--to", to]);
        text.unwrap().lines().next().unwrap().to_owned()
    };
    let first = explain(&flooder, "80/tcp");
    assert!(
        first.starts_with("NEW CONNECTIONS DROPPED: about ")
            && first.contains(", the last for connection_limit at web. "),
        "{first}"
    );
    assert!(first.contains(" % of its packets)"), "{first}");
    assert!(
        first.contains("A first packet would pass (guard.toml line ")
            && first.ends_with(": connections 1/h with a burst of 5)."),
        "{first}"
    );
    let json = guard.run(&["explain", "--json", "--from", &flooder, "--to", "80/tcp"]);
    let json: Value = serde_json::from_str(&json.unwrap()).unwrap();
    assert_eq!(json["verdict"], "pass", "{json}");
    let over_budget = &json["over_budget"];
    assert_eq!(over_budget["budget"], "connections", "{json}");
    // All but five packets are over the budget; the number is estimated from a sample.
    let number = |key: &str| over_budget[key].as_u64().unwrap();
    let (over, packets) = (number("over"), number("packets"));
    assert!(
        over > SYNS / 2 && over <= packets && packets < 2 * SYNS,
        "{json}"
    );
    assert_eq!(json["recent"]["dropped"], over, "{json}");
    assert_eq!(json["recent"]["would_drop"], 0, "{json}");
    let advice = json["advice"].as_str().unwrap();
    assert!(
        advice.contains(&format!("guard allow {flooder} --service web")),
        "{json}"
    );

    assert_eq!(explain(&flooder, "81/tcp"), "DROPPED: closed_port");
    assert_eq!(
        explain(&USER_V4.to_string(), "80/tcp"),
        "PASSES: allowed at web"
    );

    // Without a destination: the drops of the last minute, and a line for each service.
    let text = guard.run(&["explain", &flooder]).unwrap();
    assert!(
        text.contains("the last for connection_limit at web"),
        "{text}"
    );
    assert!(text.contains("web (tcp/80)"), "{text}");
    assert!(text.contains("every other port"), "{text}");
    // Once an entry lifts the budget, the first line is what happens now, and there is nothing to type.
    guard.run(&["allow", &flooder, "--for", "1h"]).unwrap();
    for to in ["80", "web"] {
        let now = explain(&flooder, to);
        assert!(
            now.starts_with("PASSES NOW: allowed at web; ")
                && now.ends_with("connection_limit at web, which no longer applies."),
            "{to}: {now}"
        );
    }
    let json = guard.run(&["explain", "--json", &flooder, "--to", "web"]);
    let json: Value = serde_json::from_str(&json.unwrap()).unwrap();
    assert_eq!(json["recent"]["no_longer_applies"], true, "{json}");
    assert!(json.get("advice").is_none(), "{json}");
    let text = guard.run(&["explain", &flooder]).unwrap();
    assert!(text.contains("That reason no longer applies."), "{text}");
    let whole = guard.run(&["explain", "--json", &flooder]).unwrap();
    let whole: Value = serde_json::from_str(&whole).unwrap();
    assert_eq!(whole["services"][0]["service"], "web", "{whole}");
    assert_eq!(whole["entries"][0]["action"], "allow", "{whole}");
}

#[test]
fn explain_works_without_an_agent() {
    let lab = Lab::new().unwrap();
    let policy = write_policy(&lab, POLICY).unwrap();
    let arguments = [
        "explain",
        "--from",
        "198.51.100.23",
        "--to",
        "8000/tcp",
        "--policy",
    ];
    let text = output(
        &lab,
        &[&arguments[..], &[policy.to_str().unwrap()]].concat(),
    )
    .unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.starts_with("DROPPED: closed_port"), "{text}");
}

#[test]
fn the_heaviest_source_leads_the_talkers_amid_a_flood_of_others() {
    let lab = Lab::new().unwrap();
    let _web = Proxy::start(&lab, "127.0.0.1:1").unwrap();
    let guard = Guard::start(&lab, POLICY).unwrap();
    let interval = Duration::from_micros(100);
    let heavy = Flood::start(&lab, FLOODER_V4, 80, interval, 10_000).unwrap();
    // Other sources, each with few packets, in the same slots.
    let mut others = lab.internet.command("hping3");
    others
        .args(["--quiet", "--syn", "--destport", "80", "--interval", "u100"])
        .args(["--count", "10000", "--rand-source", &HOST_V4.to_string()]);
    // hping3 fails, because it gets no answers for spoofed sources.
    let _result = run(&mut others);
    heavy.wait(Duration::from_secs(20)).unwrap();
    let talkers = guard.json("talkers").unwrap();
    let first = &talkers[0];
    assert_eq!(first["source"], FLOODER_V4.to_string(), "{talkers}");
    assert_eq!(first["interface"], INTERFACE);
    let packets = first["packets"].as_u64().unwrap();
    assert!((8_000..25_000).contains(&packets), "{first}");
    assert!(first["dropped"].as_u64().unwrap() > packets / 2, "{first}");
    assert!(talkers.as_array().unwrap().len() <= 20);
}

#[test]
fn sources_that_take_turns_are_all_among_the_talkers() {
    const SOURCES: u8 = 16;
    const ROUNDS: usize = 1_000;
    let lab = Lab::new().unwrap();
    let guard = Guard::start(&lab, POLICY).unwrap();
    let sources = (0..SOURCES).map(|n| IpAddr::from([198, 51, 100, 100 + n]));
    for source in sources.clone() {
        let address = format!("addr add {source}/32 dev lo");
        lab.internet.ip(&address).unwrap();
    }
    lab.internet
        .enter(|| {
            let socket = |source| {
                let socket = UdpSocket::bind((source, 4_000)).unwrap();
                socket.connect((HOST_V4, 9_999)).unwrap();
                socket
            };
            let sockets: Vec<UdpSocket> = sources.clone().map(socket).collect();
            for _ in 0..ROUNDS {
                for socket in &sockets {
                    socket.send(b"x").unwrap();
                }
            }
        })
        .unwrap();
    let talkers = guard.json("talkers").unwrap();
    let mut rows = talkers.as_array().unwrap().iter();
    // For each source the estimate is from a sample of about sixty packets.
    let is_estimated = |row: &&Value| (400..2_500).contains(&row["packets"].as_u64().unwrap());
    let is_one = |row: &&Value| sources.clone().any(|one| row["source"] == one.to_string());
    let found = rows.by_ref().filter(is_one).filter(is_estimated).count();
    // Two sources whose hashes select the same slot may displace each other.
    assert!(found >= usize::from(SOURCES) - 4, "{talkers}");
}
