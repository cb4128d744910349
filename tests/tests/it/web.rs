//! The metrics, read with Prometheus' own tools, and the listener.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use lab::{
    guard::Guard,
    http::get,
    process::{run, wait_for},
    topology::{FLOODER_V4, HOST_V4, USER_V4},
};
use serde_json::Value;

use crate::site::{OPEN, Site};

pub const LISTEN: &str = "127.0.0.1:9469";

const POLICY: &str = "web.listen = \"127.0.0.1:9469\"\n[[service]]\nname = \"web\"\n\
                      ports = [\"tcp/80\"]\nlimit.packets = \"20/s\"\n";

fn curl(site: &Site, arguments: &[&str], resource: &str) -> String {
    let url = format!("http://{LISTEN}{resource}");
    let mut command = site.lab.host.command("curl");
    let curl = ["--silent", "--show-error", "--max-time", "10"];
    run(command.args(curl).args(arguments).arg(url)).unwrap()
}

fn start(site: &Site, mode: &str) -> Guard {
    let guard = site.start(mode, POLICY);
    wait_for(Duration::from_secs(10), || {
        let mut command = site.lab.host.command("curl");
        run(command.args(["--silent", "--fail", &format!("http://{LISTEN}/metrics")]))
    })
    .unwrap();
    guard
}

/// Runs `promtool` with this standard input, and returns whether it succeeded and its output.
fn promtool(arguments: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[test]
fn metrics_are_as_prometheus_wants_them_and_true() {
    let site = Site::new();
    let guard = start(&site, "enforce");
    assert_eq!(site.get(), OPEN);
    let text = curl(&site, &[], "/metrics");
    assert_eq!(
        promtool(&["check", "metrics"], &text),
        (true, String::new()),
        "{text}"
    );
    let (is_fine, _) = promtool(&["check", "metrics"], "guard_x_total{ 1\n");
    assert!(!is_fine, "promtool rejects a wrong file");
    for line in [
        "guard_enforcing 1",
        "guard_mode{mode=\"enforce\"} 1",
        &format!("guard_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")),
        "guard_entries{action=\"deny\"} 0",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in\n{text}"
        );
    }
    let allowed = text
        .lines()
        .find(|line| line.starts_with("guard_packets_total{") && line.contains("\"allowed\""))
        .unwrap();
    for label in [
        "interface=\"wan\"",
        "service=\"web\"",
        "verdict=\"pass\"",
        "would=\"\"",
    ] {
        assert!(allowed.contains(label), "{allowed}");
    }
    let counted: u64 = allowed.rsplit_once(' ').unwrap().1.parse().unwrap();
    let facts = [("service", "web".into()), ("reason", "allowed".into())];
    assert_eq!(counted, guard.packets(&facts).unwrap());
    for address in [USER_V4, FLOODER_V4] {
        assert!(!text.contains(&address.to_string()), "no label is a source");
    }
    // Packets that pass only because of the mode have the label would="drop".
    guard.run(&["mode", "observe"]).unwrap();
    get(&site.lab, USER_V4, HOST_V4, 81).unwrap();
    let text = curl(&site, &[], "/metrics");
    let labels = "verdict=\"pass\",reason=\"closed_port\",would=\"drop\"}";
    let would = text
        .lines()
        .find(|line| line.starts_with("guard_packets_total{") && line.contains(labels))
        .unwrap_or_else(|| panic!("{text}"));
    let counted: u64 = would.rsplit_once(' ').unwrap().1.parse().unwrap();
    let facts = [("would", "drop".into()), ("reason", "closed_port".into())];
    assert!(
        (1..=guard.packets(&facts).unwrap()).contains(&counted),
        "{would}"
    );
    // A request with a foreign Host header, as in DNS rebinding.
    let foreign = curl(&site, &["--header", "Host: evil.example"], "/v1/status");
    assert!(foreign.contains("an IP address or localhost"), "{foreign}");
    // The listener ends when the policy no longer has `web.listen`.
    site.write("enforce", "");
    guard.run(&["reload"]).unwrap();
    wait_for(Duration::from_secs(5), || {
        let mut command = site.lab.host.command("curl");
        let gone = command
            .args(["--silent", &format!("http://{LISTEN}/")])
            .output()?;
        anyhow::ensure!(!gone.status.success(), "the listener still answers");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_scrape_during_a_flood_takes_under_a_tenth_of_a_second() {
    let site = Site::new();
    let _guard = start(&site, "enforce");
    let mut hping = site.lab.internet.command("hping3");
    let mut flood = hping
        .args([
            "--flood",
            "--rand-source",
            "--syn",
            "-p",
            "81",
            &HOST_V4.to_string(),
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut times = Vec::new();
    for _ in 0..21 {
        let mut command = site.lab.host.command("curl");
        let format = [
            "--silent",
            "--output",
            "/dev/null",
            "--write-out",
            "%{time_total}",
        ];
        let time = run(command.args(format).arg(format!("http://{LISTEN}/metrics"))).unwrap();
        times.push(time.trim().parse::<f64>().unwrap());
    }
    flood.kill().unwrap();
    flood.wait().unwrap();
    times.sort_unstable_by(f64::total_cmp);
    println!("seconds: {times:?}");
    assert!(times[10] < 0.1, "{times:?}");
}

#[test]
fn alert_rules_pass_their_own_tests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/prometheus");
    for arguments in [
        ["check", "guard.rules.yml"],
        ["test", "guard.rules.test.yml"],
    ] {
        let [what, file] = arguments;
        let mut command = Command::new("promtool");
        run(command.current_dir(&folder).args([what, "rules", file])).unwrap();
    }
    let dashboard = folder.join("../grafana/guard.json");
    let dashboard: Value = serde_json::from_slice(&fs::read(dashboard).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(
        panels
            .iter()
            .all(|panel| panel["targets"][0]["expr"].is_string())
    );
}

#[test]
fn an_agent_that_ends_does_not_begin_to_serve_again() {
    let site = Site::new();
    let guard = start(&site, "observe");
    guard.run(&["detach"]).unwrap();
    guard.wait(Duration::from_secs(20)).unwrap();
    let log = fs::read_to_string(site.lab.folder().join("guard.log")).unwrap();
    let begun = log.matches("metrics and the page are at").count();
    assert_eq!(begun, 1, "{log}");
}
