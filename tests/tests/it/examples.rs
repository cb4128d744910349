//! The policies in `examples/`: each is valid, and gives the verdicts that its first lines name.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
};

use lab::{guard::binary, process::run, topology::Lab};
use serde_json::Value;

use crate::{
    frames::{flags::SYN, *},
    replay::pcap,
};

/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;

/// `from 198.51.100.7 to tcp/443: pass (allowed)`
struct ExpectedVerdict {
    line: usize,
    source: IpAddr,
    protocol: String,
    port: u16,
    verdict: String,
    reason: String,
}

impl ExpectedVerdict {
    fn read(line: usize, text: &str) -> Option<Self> {
        let (source, rest) = text.strip_prefix("#   from ")?.split_once(" to ")?;
        let (destination, outcome) = rest.split_once(": ")?;
        let (protocol, port) = destination.split_once('/')?;
        let (verdict, reason) = outcome.strip_suffix(')')?.split_once(" (")?;
        Some(Self {
            line,
            source: source.parse().unwrap(),
            protocol: protocol.to_owned(),
            port: port.parse().unwrap(),
            verdict: verdict.to_owned(),
            reason: reason.to_owned(),
        })
    }

    fn frame(&self) -> Vec<u8> {
        let (number, payload) = match self.protocol.as_str() {
            "tcp" => (protocol::TCP, tcp(self.port, SYN, &[])),
            "udp" => (protocol::UDP, udp(40_000, self.port, b"hello")),
            other => panic!("line {}: unknown protocol {other}", self.line),
        };
        match self.source {
            IpAddr::V4(source) => ipv4(source, number, &payload),
            IpAddr::V6(source) => ipv6(source, number, &payload),
        }
    }
}

fn examples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let files = fs::read_dir(folder).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    let mut policies: Vec<PathBuf> = paths
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    policies.sort();
    policies
}

#[test]
fn every_example_is_sound_and_does_to_packets_what_it_says() {
    let guard = binary().unwrap();
    let lab = Lab::new().unwrap();
    let examples = examples();
    assert!(examples.len() >= 5, "{examples:?}");
    for path in examples {
        let name = path.display();
        let text = fs::read_to_string(&path).unwrap();
        let checked = Command::new(&guard)
            .arg("check")
            .arg(&path)
            .output()
            .unwrap();
        let warnings = String::from_utf8(checked.stderr).unwrap();
        // The interfaces of an example are those of another host.
        let mut lines = warnings.lines();
        assert!(
            checked.status.success()
                && lines.all(|line| line.ends_with("does not exist on this host")),
            "{name}: {warnings}"
        );
        let lines = text.lines().enumerate();
        let expected: Vec<ExpectedVerdict> = lines
            .filter_map(|(number, line)| ExpectedVerdict::read(number + 1, line))
            .collect();
        for verdict in ["pass", "drop"] {
            let has_verdict = expected.iter().any(|one| one.verdict == verdict);
            assert!(
                has_verdict,
                "{name} has no packet with the verdict {verdict}"
            );
        }
        // The packets are a second apart, so that no budget is used up.
        let frames: Vec<Vec<u8>> = expected.iter().map(ExpectedVerdict::frame).collect();
        let packets: Vec<(u32, u32, &[u8], usize)> = frames
            .iter()
            .enumerate()
            .map(|(number, frame)| (number as u32, 0, frame.as_slice(), frame.len()))
            .collect();
        let capture = lab.folder().join("packets.pcap");
        fs::write(&capture, pcap(ETHERNET, &packets)).unwrap();
        let mut replay = Command::new(&guard);
        replay.args(["replay", "--each", "--policy"]).arg(&path);
        let published = text
            .lines()
            .find_map(|line| line.strip_prefix("# Published by containers: "));
        if let Some(ports) = published {
            replay.args(["--publish", ports]);
        }
        let judged = run(replay.arg(&capture)).unwrap();
        let judged: Vec<Value> = judged
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(judged.len(), expected.len(), "{name}");
        for (expected, judged) in expected.iter().zip(&judged) {
            assert_eq!(
                (judged["verdict"].as_str(), judged["reason"].as_str()),
                (
                    Some(expected.verdict.as_str()),
                    Some(expected.reason.as_str())
                ),
                "{name}, line {}: {judged}",
                expected.line
            );
        }
    }
}
