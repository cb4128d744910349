//! `guard doctor` on a healthy host, and on hosts with faults.

use std::process::Output;

use lab::{
    guard::{location_options, output},
    topology::INTERFACE,
};
use serde_json::Value;

use crate::{
    audit::public_binary,
    site::{OPEN_80, Site, fails},
};

/// The result of this check.
fn health<'a>(findings: &'a Value, check: &str) -> &'a Value {
    let mut findings = findings.as_array().unwrap().iter();
    let found = findings.find(|finding| finding["check"] == check);
    &found.unwrap_or_else(|| panic!("{check} is not among the checks"))["health"]
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_host_that_is_well_is_said_to_be_and_a_dead_agent_is_a_failure() {
    let site = Site::new();
    let guard = site.start("enforce", OPEN_80);
    site.get();
    let well = output(&site.lab, &["doctor", "--json"]).unwrap();
    let findings = json(&well);
    assert!(well.status.success(), "{findings:#}");
    for check in [
        "kernel",
        "btf",
        "bpffs",
        "capabilities",
        "tick",
        "policy",
        "agent",
        "xdp",
        "mtu",
        "lro",
        "packets",
        "local_ports",
        "conntrack",
        "docker",
    ] {
        assert_eq!(health(&findings, check), "ok", "{check}: {findings:#}");
    }
    let text = site.guard(&["doctor"]);
    assert!(text.contains(&format!("{INTERFACE} xdp")), "{text}");

    guard.kill().unwrap();
    let dead = output(&site.lab, &["doctor", "--json"]).unwrap();
    assert_eq!(health(&json(&dead), "agent"), "failure");
    fails(&dead, 1, &["1 check fails"]);
}

#[test]
fn without_agent_policy_and_docker_it_says_what_it_can() {
    let site = Site::new();
    let path = site.write("observe", "");
    let text = site.guard(&["doctor", "--policy", &path]);
    assert!(text.contains("no agent answers"), "{text}");
    assert!(text.contains("-> `systemctl start guard`"), "{text}");
    let broken = site.write("observ", "");
    let broken = output(&site.lab, &["doctor", "--policy", &broken, "--json"]).unwrap();
    assert_eq!(health(&json(&broken), "policy"), "failure");
    fails(&broken, 1, &[]);
}

#[test]
fn somebody_elses_program_is_a_failure_with_its_number() {
    let site = Site::new();
    let guard = site.start("observe", "");
    let pins = site.keep_program(&guard);
    guard.remove().unwrap();
    site.put_foreign(INTERFACE, &pins);
    let path = site.write("observe", "");
    let found = output(&site.lab, &["doctor", "--policy", &path]).unwrap();
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(text.contains("another XDP program is attached"), "{text}");
    fails(&found, 1, &["1 check fails"]);
}

#[test]
fn without_rights_it_says_what_it_cannot_see() {
    let site = Site::new();
    let path = site.write("observe", "");
    // A user without capabilities, in the same network namespace.
    let options = lab::guard::location_options(&site.lab);
    let mut command = site.lab.host.command("setpriv");
    command.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
    ]);
    command
        .args(["--bounding-set=-all"])
        .arg(lab::guard::binary().unwrap());
    let found = command
        .args(options)
        .args(["doctor", "--json", "--policy", &path])
        .output();
    let findings = json(&found.unwrap());
    assert_eq!(health(&findings, "capabilities"), "warning", "{findings:#}");
    assert_eq!(health(&findings, "kernel"), "ok", "{findings:#}");
}

#[test]
fn a_user_who_cannot_see_whose_program_it_is_does_not_hear_that_it_is_anothers() {
    let site = Site::new();
    let _guard = site.start("enforce", OPEN_80);
    let binary = public_binary(&site.lab);
    let mut command = site.lab.host.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", &binary]);
    command.args(location_options(&site.lab));
    let output = command
        .args(["doctor", "--policy"])
        .arg(site.lab.folder().join("guard.toml"));
    let output = output.output().unwrap();
    std::fs::remove_file(&binary).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("this user cannot see whose it is"),
        "{output:?}"
    );
    assert!(!text.contains("run --force"), "{text}");
}
