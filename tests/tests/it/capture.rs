//! `guard capture`: its files read with tshark, captures during a flood, and errors.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use lab::{
    flood::Flood,
    guard::{Guard, binary, location_options, output},
    process::{Daemon, run, wait_for},
    topology::{FLOODER_V4, HOST_V4, Lab, USER_V4},
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::site::{OPEN, OPEN_80, Site, fails, pins_of, policy};

const LIMITED: &str = "
[[service]]
name = \"web\"
ports = [\"tcp/80\"]
[service.limit]
connections = { rate = \"1/s\", burst = 3 }
";

const WAIT: Duration = Duration::from_secs(20);

/// Starts a capture in the background.
fn start(lab: &Lab, arguments: &[&str]) -> Daemon {
    let mut command = lab.host.command(binary().unwrap().to_str().unwrap());
    command
        .args(location_options(lab))
        .arg("capture")
        .args(arguments);
    let mut daemon = Daemon::start(&mut command, &lab.folder().join("capture.log")).unwrap();
    daemon.check_alive().unwrap();
    daemon
}

/// Ends a capture as an operator does with Ctrl-C, and returns its output.
fn interrupt(mut capture: Daemon) -> String {
    capture.interrupt().unwrap();
    let status = capture.wait(WAIT).unwrap();
    let log = capture.log();
    assert!(status.success(), "{log}");
    log
}

fn file(lab: &Lab) -> PathBuf {
    lab.folder().join("drops.pcapng")
}

/// These fields of every packet, as tshark reads them.
fn tshark(file: &Path, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command
        .args(["-n", "-T", "fields", "-E", "separator=|", "-r"])
        .arg(file);
    for field in fields {
        command.args(["-e", field]);
    }
    // tshark warns on standard error that it runs as root.
    let text = run(command.stderr(Stdio::null())).unwrap();
    text.lines()
        .map(|line| line.split('|').map(str::to_owned).collect())
        .collect()
}

fn wait_for_bytes(path: &Path, least: u64) {
    wait_for(WAIT, || {
        let length = fs::metadata(path)
            .map(|file| file.len())
            .unwrap_or_default();
        anyhow::ensure!(length >= least, "{length} bytes in {}", path.display());
        Ok(())
    })
    .unwrap();
}

/// Waits until a capture has written this many packets that tshark can read.
fn wait_for_packets(path: &Path, least: usize) {
    wait_for(WAIT, || {
        let mut command = Command::new("tshark");
        command.args(["-n", "-r"]).arg(path);
        let text = run(command.stderr(Stdio::null()))?;
        let count = text.lines().count();
        anyhow::ensure!(count >= least, "{count} packets in {}", path.display());
        Ok(())
    })
    .unwrap();
}

/// The least length of a capture's head, in bytes.
const HEAD: u64 = 60;

fn send(lab: &Lab, from: IpAddr, port: u16, count: u64) {
    let flood = Flood::start(lab, from, port, Duration::from_millis(5), count).unwrap();
    flood.wait(WAIT).unwrap();
}

#[test]
fn tshark_shows_every_packet_with_its_reason() {
    let site = Site::new();
    let lab = &site.lab;
    let guard = site.start("enforce", LIMITED);
    let path = file(lab);
    let capture = start(lab, &["-w", path.to_str().unwrap()]);
    wait_for_bytes(&path, HEAD);
    assert_eq!(site.get(), OPEN);
    send(lab, FLOODER_V4, 8_000, 10);
    send(lab, FLOODER_V4, 80, 10);
    wait_for_packets(&path, 16);
    // Time for a packet too many to arrive.
    thread::sleep(Duration::from_millis(300));
    let log = interrupt(capture);

    let fields = [
        "ip.src",
        "tcp.dstport",
        "frame.comment",
        "frame.interface_name",
    ];
    let rows = tshark(&path, &fields);
    let count = |port: &str, comment: &str| {
        let flooder = FLOODER_V4.to_string();
        let expected = [flooder.as_str(), port, comment, "wan"];
        rows.iter().filter(|row| **row == expected).count()
    };
    assert_eq!(count("8000", "drop: closed_port"), 10, "{rows:?}");
    let limited = count("80", "drop: connection_limit at web");
    assert!(
        (6..=7).contains(&limited),
        "three of the ten passed, or four if the budget refilled: {rows:?}"
    );
    assert_eq!(
        rows.len(),
        10 + limited,
        "the capture has only dropped packets: {rows:?}"
    );
    let dropped = guard.packets(&[("verdict", "drop".into())]).unwrap();
    assert_eq!(
        rows.len() as u64,
        dropped,
        "the capture has all packets that were counted"
    );
    assert!(
        log.contains(&format!("{} packets written to", rows.len())),
        "{log}"
    );
    assert!(log.contains("none missed"), "{log}");
    // `guard replay` can judge the capture again.
    let replayed = site.guard(&[
        "replay",
        "--json",
        "--policy",
        &site.write("enforce", LIMITED),
        path.to_str().unwrap(),
    ]);
    let replayed: Value = serde_json::from_str(&replayed).unwrap();
    assert_eq!(replayed["packets"], rows.len() as u64);
    assert_eq!(replayed["by_reason"]["closed_port"], 10);
}

#[test]
fn below_the_rate_nothing_is_missed_and_the_file_is_its_owners_alone() {
    let site = Site::new();
    let lab = &site.lab;
    let _guard = site.start("enforce", OPEN_80);
    let path = file(lab);
    let capture = start(lab, &["-w", path.to_str().unwrap()]);
    wait_for_bytes(&path, HEAD);
    // At most 400 packets a second with one reason; the grant is 1,000.
    let pause = Duration::from_micros(2_500);
    let flood = Flood::start(lab, FLOODER_V4, 8_000, pause, 600).unwrap();
    flood.wait(WAIT).unwrap();
    wait_for_packets(&path, 600);
    let log = interrupt(capture);
    assert!(log.contains("600 packets"), "{log}");
    assert!(log.contains("none missed"), "{log}");
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn in_observe_it_shows_what_would_be_dropped_and_with_all_what_passes() {
    let site = Site::new();
    let lab = &site.lab;
    let _guard = site.start("observe", OPEN_80);
    let lines = |arguments: &[&str], cause: &dyn Fn()| -> Vec<Value> {
        let log = lab.folder().join("capture.log");
        let mut all = vec!["--json", "--for", "2s"];
        all.extend(arguments);
        let mut capture = start(lab, &all);
        wait_until_capturing(lab);
        cause();
        assert!(capture.wait(WAIT).unwrap().success(), "{}", capture.log());
        let text = fs::read_to_string(log).unwrap();
        let json = text.lines().filter(|line| line.starts_with('{'));
        json.map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let closed = || send(lab, FLOODER_V4, 8_000, 3);
    let seen = lines(&[], &|| {
        closed();
        assert_eq!(site.get(), OPEN);
    });
    assert_eq!(seen.len(), 3, "{seen:?}");
    for line in &seen {
        assert_eq!(
            (line["verdict"].as_str(), line["would"].as_str()),
            (Some("pass"), Some("drop"))
        );
        assert_eq!(line["reason"], "closed_port");
        assert_eq!(line["destination"], format!("{HOST_V4}:8000"));
        assert_eq!(
            (line["length"].as_u64(), line["protocol"].as_str()),
            (Some(54), Some("tcp"))
        );
    }
    let all = lines(&["--all"], &|| assert_eq!(site.get(), OPEN));
    let allowed = all
        .iter()
        .filter(|line| line["reason"] == "allowed" && line["service"] == "web");
    assert!(allowed.count() >= 5, "a whole request: {all:?}");

    // Each filter by itself.
    let both = || {
        closed();
        send(lab, USER_V4, 8_001, 2);
        assert_eq!(site.get(), OPEN);
    };
    let sources = |seen: &[Value]| -> Vec<String> {
        seen.iter()
            .map(|line| {
                line["source"]
                    .as_str()
                    .unwrap()
                    .split(':')
                    .next()
                    .unwrap()
                    .to_owned()
            })
            .collect()
    };
    let network = format!("{USER_V4}/32");
    let from = sources(&lines(&["--from", &network], &both));
    assert_eq!(from, [USER_V4.to_string(), USER_V4.to_string()]);
    let web = lines(&["--all", "--service", "web"], &both);
    assert!(
        web.len() >= 5 && web.iter().all(|line| line["service"] == "web"),
        "{web:?}"
    );
    let none = lines(&["--reason", "byte_limit,malformed"], &both);
    assert_eq!(none.len(), 0, "{none:?}");
    let two = lines(&["--count", "2"], &both);
    assert_eq!(two.len(), 2);
}

#[test]
fn a_flood_leaves_room_for_what_is_rare_and_costs_a_bounded_number() {
    let site = Site::new();
    let lab = &site.lab;
    // Without a refill: however slowly the few packets are sent, three pass.
    let guard = site.start("enforce", &LIMITED.replace("1/s", "1/h"));
    let dropped = || guard.packets(&[("verdict", "drop".into())]).unwrap();
    let before = dropped();
    let path = file(lab);
    let started = Instant::now();
    let capture = start(lab, &["-w", path.to_str().unwrap(), "--rate", "200"]);
    wait_for_bytes(&path, HEAD);
    // A flood as fast as hping3 sends.
    let mut flood = lab.internet.command("hping3");
    flood.args([
        "--flood",
        "--rand-source",
        "--syn",
        "--destport",
        "8000",
        &HOST_V4.to_string(),
    ]);
    let flood = Daemon::start(&mut flood, &lab.folder().join("flood.log")).unwrap();
    thread::sleep(Duration::from_secs(1));
    // Beside the flood, the few packets with another drop reason are all captured.
    send(lab, USER_V4, 80, 8);
    thread::sleep(Duration::from_secs(3));
    drop(flood);
    let after = dropped();
    let log = interrupt(capture);
    let limited = guard.packets(&[("reason", "connection_limit".into())]);
    assert_eq!(limited.unwrap(), 5);
    let most = 200 * (started.elapsed().as_secs() + 2);

    let rows = tshark(&path, &["frame.comment", "ip.src"]);
    let of = |reason: &str| rows.iter().filter(|row| row[0].contains(reason)).count() as u64;
    assert!(
        of("connection_limit") >= 4,
        "{} of {}",
        of("connection_limit"),
        rows.len()
    );
    let flood = after - before;
    assert!(flood > 20_000, "the flood had only {flood} packets");
    assert!(
        (200..most).contains(&(rows.len() as u64)),
        "{} of {flood}, at most {most}",
        rows.len()
    );
    assert!(
        rows.iter()
            .any(|row| row[0].contains("closed_port; one of ")),
        "no packet is marked as a sample"
    );
    assert!(
        log.contains("missed: --rate allows 200 per second"),
        "{log}"
    );
    // Missed and captured packets together are the dropped packets, up to the size of a sample.
    let missed = missed(&path);
    let reported = missed + rows.len() as u64;
    assert!(
        reported.abs_diff(flood) < flood / 5,
        "{reported} reported, {flood} counted"
    );
}

/// The number of missed packets in the last interface statistics block (type 5) of a capture.
fn missed(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let (mut at, mut missed) = (0, 0);
    while at < bytes.len() {
        if word(at) == 5 {
            missed = u64::from(word(at + 36));
        }
        at += word(at + 4) as usize;
    }
    missed
}

#[test]
fn it_goes_on_over_reloads_and_whatever_ends_it_nothing_is_left() {
    let site = Site::new();
    let lab = &site.lab;
    let guard = site.start("enforce", OPEN_80);
    let path = file(lab);
    let capture = start(lab, &["-w", path.to_str().unwrap()]);
    wait_for_bytes(&path, HEAD);
    send(lab, FLOODER_V4, 8_000, 2);
    // A reload under traffic loses no packets: a grant lasts for two seconds of traffic, also if the agent renews it
    // late.
    site.write("enforce", LIMITED);
    let pause = Duration::from_millis(20);
    let flood = Flood::start(lab, FLOODER_V4, 8_001, pause, 100).unwrap();
    site.guard(&["reload"]);
    flood.wait(WAIT).unwrap();
    wait_for_packets(&path, 102);

    // Only one capture runs at a time; a second one fails.
    let second = output(lab, &["capture", "--for", "1s"]).unwrap();
    fails(&second, 1, &["another client captures already"]);
    let mut capture = capture;
    capture.signal(Signal::SIGKILL).unwrap();
    let _killed = capture.wait(WAIT).unwrap();
    let ports: Vec<String> = tshark(&path, &["tcp.dstport"]).concat();
    assert_eq!(ports[..3], ["8000", "8000", "8001"]);
    assert_eq!(ports.len(), 102);
    // The agent notices that the client was killed, so the next capture can start.
    let next = wait_for(WAIT, || {
        let next = output(lab, &["capture", "--for", "1s"])?;
        anyhow::ensure!(next.status.success());
        Ok(next)
    });
    let next = next.unwrap();
    assert!(String::from_utf8_lossy(&next.stderr).contains("0 packets, none missed"));
    // The agent notices that this client has ended, too.
    wait_until_not_capturing(lab);

    // When the agent ends, the capture ends with an error, and its file is complete.
    fs::remove_file(&path).unwrap();
    let capture = start(lab, &["-w", path.to_str().unwrap()]);
    wait_for_bytes(&path, HEAD);
    send(lab, FLOODER_V4, 8_000, 2);
    wait_for_packets(&path, 2);
    guard.kill().unwrap();
    let mut capture = capture;
    let status = capture.wait(WAIT).unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(
        capture.log().contains("the agent has ended"),
        "{}",
        capture.log()
    );
    assert_eq!(tshark(&path, &["tcp.dstport"]).len(), 2);
    // Without a reader the kernel hands over the granted packets, and then none.
    send(lab, FLOODER_V4, 8_000, 300);
    let _guard = Guard::start_again(lab).unwrap();
    let text = output(lab, &["capture", "--json", "--for", "1s"]).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&text.stdout),
        "",
        "a new capture has no packets from before its start"
    );
    wait_until_not_capturing(lab);
}

fn wait_until_capturing(lab: &Lab) {
    wait_for(WAIT, || {
        anyhow::ensure!(is_capturing(lab), "no capture runs");
        Ok(())
    })
    .unwrap();
}

fn wait_until_not_capturing(lab: &Lab) {
    wait_for(WAIT, || {
        anyhow::ensure!(!is_capturing(lab), "packets are still handed over");
        Ok(())
    })
    .unwrap();
}

/// Whether the kernel program is told to hand over any packets.
fn is_capturing(lab: &Lab) -> bool {
    let map = pins_of(lab, "%host").join("_data_capture");
    let mut command = Command::new("bpftool");
    command
        .args(["map", "lookup", "pinned"])
        .arg(map)
        .args(["key", "0", "0", "0", "0", "--json"]);
    let value: Value = serde_json::from_str(&run(&mut command).unwrap()).unwrap();
    let bytes = value["value"].as_array().unwrap();
    bytes
        .iter()
        .take(4 * 64)
        .any(|byte| byte.as_str() != Some("0x00"))
}

#[test]
fn a_reader_that_does_not_read_holds_up_neither_its_own_end_nor_the_next() {
    let site = Site::new();
    let lab = &site.lab;
    let guard = site.start("enforce", OPEN_80);
    let mut flood = lab.internet.command("hping3");
    flood.args([
        "--interval",
        "u300",
        "--data",
        "1200",
        "--syn",
        "--destport",
        "8000",
    ]);
    flood.arg(HOST_V4.to_string());
    let _flood = Daemon::start(&mut flood, &lab.folder().join("flood.log")).unwrap();

    // The reader of the pipe sleeps; the capture still ends after its time.
    let mut stalled = lab.host.command("sh");
    stalled
        .args(["-c", "\"$@\" | sleep 60", "sh"])
        .arg(binary().unwrap());
    stalled
        .args(location_options(lab))
        .args(["capture", "-w", "-", "--for", "3s"]);
    let log = lab.folder().join("stalled.log");
    let stalled = Daemon::start(&mut stalled, &log).unwrap();
    wait_for(Duration::from_secs(15), || {
        let text = fs::read_to_string(&log)?;
        anyhow::ensure!(text.contains("the pipe has no reader"), "{text}");
        Ok(())
    })
    .unwrap();
    stalled.signal(Signal::SIGKILL).unwrap();

    // A capture whose client is stopped is ended for the next one.
    let path = file(lab);
    let stopped = start(lab, &["-w", path.to_str().unwrap(), "--rate", "5000"]);
    wait_for_bytes(&path, HEAD);
    stopped.signal(Signal::SIGSTOP).unwrap();
    let next = wait_for(Duration::from_secs(60), || {
        let next = output(lab, &["capture", "--json", "--count", "3"])?;
        anyhow::ensure!(next.status.success(), "{next:?}");
        Ok(next)
    });
    assert_eq!(
        String::from_utf8_lossy(&next.unwrap().stdout)
            .lines()
            .count(),
        3
    );
    stopped.signal(Signal::SIGCONT).unwrap();
    let mut stopped = stopped;
    assert_eq!(
        stopped.wait(WAIT).unwrap().code(),
        Some(1),
        "{}",
        stopped.log()
    );
    // The log names the user who captured.
    let log = guard.log();
    assert!(
        log.contains("a capture begins") && log.contains("by=\"root, process"),
        "{log}"
    );
}

#[test]
fn a_packet_that_cannot_be_read_is_found_by_its_source() {
    let site = Site::new();
    let lab = &site.lab;
    let _guard = site.start("enforce", OPEN_80);
    let network = format!("{FLOODER_V4}/32");
    let log = lab.folder().join("capture.log");
    let mut capture = start(lab, &["--json", "--for", "3s", "--from", &network]);
    wait_until_capturing(lab);
    // A TCP header with a data offset below the minimum of 5.
    let mut odd = lab.internet.command("hping3");
    odd.args([
        "--count",
        "3",
        "--interval",
        "u10000",
        "--syn",
        "--destport",
        "80",
    ]);
    odd.args([
        "--tcpoff",
        "2",
        "--spoof",
        &FLOODER_V4.to_string(),
        &HOST_V4.to_string(),
    ]);
    let _output = odd.output().unwrap();
    send(lab, USER_V4, 8_000, 2);
    assert!(capture.wait(WAIT).unwrap().success());
    let text = fs::read_to_string(log).unwrap();
    let found = text
        .lines()
        .filter(|line| line.contains("\"malformed\""))
        .count();
    assert_eq!(found, 3, "{text}");
    assert!(!text.contains("closed_port"), "{text}");
}

#[test]
fn what_cannot_be_done_is_said() {
    let site = Site::new();
    let lab = &site.lab;
    let refused = |arguments: &[&str], code: i32, words: &[&str]| {
        let mut all = vec!["capture"];
        all.extend(arguments);
        fails(&output(lab, &all).unwrap(), code, words);
    };
    refused(&["--for", "1s"], 1, &["no agent answers", "guard run"]);
    let _guard = site.start("enforce", OPEN_80);
    refused(
        &["--reason", "closed"],
        2,
        &["\"closed\" is no reason", "closed_port"],
    );
    refused(
        &["--service", "mail"],
        1,
        &["there is no service \"mail\"", "web"],
    );
    refused(&["--from", "somewhere"], 2, &["somewhere"]);
    refused(&["--rate", "0"], 2, &["--rate"]);
    refused(
        &["-w", "/nowhere/x.pcapng", "--for", "1s"],
        1,
        &["/nowhere/x.pcapng cannot be written"],
    );
    refused(&["-w", "-", "--json"], 2, &["exclude each other"]);
    // After these errors the next capture works, also one requested with curl.
    let socket = lab.folder().join("guard.sock");
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--max-time", "2", "--output"])
        .arg(file(lab));
    curl.arg("--unix-socket")
        .arg(&socket)
        .arg("http://guard/v1/capture?all=true");
    let curl = curl.spawn().unwrap();
    wait_until_capturing(lab);
    assert_eq!(site.get(), OPEN);
    let _status = { curl }.wait().unwrap();
    assert!(tshark(&file(lab), &["frame.comment"]).len() >= 5);
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--unix-socket"]).arg(&socket);
    let answer = run(curl.arg("http://guard/v1/capture?reasons=none")).unwrap();
    assert!(answer.contains("is no reason"), "{answer}");
    // A policy on trial is another program: it hands packets over, too.
    let trial = lab.folder().join("tried.toml");
    fs::write(&trial, policy("enforce", LIMITED)).unwrap();
    site.guard(&["try", trial.to_str().unwrap(), "--for", "60s"]);
    let path = file(lab);
    fs::remove_file(&path).unwrap();
    let capture = start(lab, &["-w", path.to_str().unwrap()]);
    wait_for_bytes(&path, HEAD);
    send(lab, FLOODER_V4, 8_000, 2);
    wait_for_packets(&path, 2);
    interrupt(capture);
    assert_eq!(tshark(&path, &["tcp.dstport"]).len(), 2);
}
