//! An agent that is stopped in the middle of a load, and what happens before it goes on: an emergency exit without it,
//! after which it puts nothing in force, or the end of a capture.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lab::{
    guard::{Guard, binary, output, whereabouts},
    process::{Daemon, run, wait_for},
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::site::{CLOSED, OPEN, SHUT, Site};

/// Large enough that a load takes many times as long as a look at it.
fn large_policy() -> String {
    let mut policy = String::from("[[source]]\nname = \"list\"\ndeny = true\ncidrs = [\n");
    for n in 0..100_000_u32 {
        let [_, a, b, c] = n.to_be_bytes();
        policy.push_str(&format!("\"10.{a}.{b}.{c}\",\n"));
    }
    policy.push_str("]\n");
    policy
}

/// How many BPF maps an agent has open.
fn maps_of(guard: &Guard) -> Result<usize> {
    let open = fs::read_dir(format!("/proc/{}/fd", guard.pid()))?;
    let names = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let is_map = |name: &std::path::PathBuf| name.to_string_lossy().contains("bpf-map");
    Ok(names.filter(is_map).count())
}

/// How often a program that judges has been put in force.
fn times_in_force(guard: &Guard) -> usize {
    let log = guard.log();
    let lines = log.lines();
    lines
        .filter(|line| line.contains("in force") && line.contains("enforce"))
        .count()
}

/// Stops an agent after a load has begun and before it is put in force.
fn stop_while_loading(guard: &Guard) {
    wait_for(Duration::from_secs(60), || {
        let (maps, times) = (maps_of(guard)?, times_in_force(guard));
        guard.hang_up()?;
        wait_for(Duration::from_secs(20), || {
            ensure!(maps_of(guard)? > maps, "nothing is loaded yet");
            guard.pause()
        })?;
        if times_in_force(guard) > times {
            guard.resume()?;
            anyhow::bail!("it was in force before the agent was stopped");
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn what_was_being_loaded_is_not_put_in_force_after_an_exit_without_the_agent() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    assert_eq!(site.ask(), CLOSED);
    site.write("enforce", &large_policy());

    stop_while_loading(&guard);
    let before = times_in_force(&guard);
    site.guard(&["mode", "off"]);
    assert_eq!(site.ask(), OPEN);
    guard.resume().unwrap();
    wait_for(Duration::from_secs(20), || {
        let status = guard.json("status")?;
        ensure!(
            status["mode"] == "off" && status["agent"]["running"] == true,
            "{status}"
        );
        Ok(())
    })
    .unwrap();
    assert_eq!(site.ask(), OPEN);
    assert_eq!(times_in_force(&guard), before, "{}", guard.log());
    let status = guard.json("status").unwrap();
    assert_eq!(
        status["modes"][0]["by"], "root",
        "who did it is known: {status}"
    );
    guard.run(&["mode", "policy"]).unwrap();
    assert_eq!(site.ask(), CLOSED, "only an operator takes it back");

    stop_while_loading(&guard);
    let before = times_in_force(&guard);
    site.guard(&["detach"]);
    assert_eq!((site.ask(), site.attached()), (OPEN, String::new()));
    guard.resume().unwrap();
    wait_for(Duration::from_secs(20), || {
        let answers = output(&site.lab, &["status"])?;
        ensure!(!answers.status.success(), "the agent is still there");
        Ok(())
    })
    .unwrap();
    assert_eq!(times_in_force(&guard), before, "{}", guard.log());
    assert_eq!(site.attached(), "", "it puts nothing back");
    assert!(
        !site.lab.pins().exists(),
        "something is left below the pins"
    );
}

/// Whether the program in force hands packets over.
fn hands_over(site: &Site) -> Result<bool> {
    let mut command = Command::new("find");
    let found = run(command.arg(site.lab.pins()).args(["-name", "*capture*"]))?;
    let mut command = Command::new("bpftool");
    let map = run(command.args(["-j", "map", "dump", "pinned", found.trim()]))?;
    let map: Value = serde_json::from_str(&map)?;
    let value = map[0]["value"].as_array().context("it has no value")?;
    Ok(value.iter().any(|byte| byte != "0x00"))
}

#[test]
fn a_capture_that_ends_while_a_program_is_loaded_leaves_nothing_that_hands_packets_over() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    let file = site.lab.folder().join("drops.pcapng");
    let mut capture = site.lab.host.command(binary().unwrap().to_str().unwrap());
    capture
        .args(whereabouts(&site.lab))
        .args(["capture", "-w"])
        .arg(&file);
    let mut capture = Daemon::start(&mut capture, &site.lab.folder().join("capture.log")).unwrap();
    wait_for(Duration::from_secs(20), || {
        ensure!(hands_over(&site)?, "it has not begun");
        Ok(())
    })
    .unwrap();
    site.write("enforce", &large_policy());
    stop_while_loading(&guard);
    let before = times_in_force(&guard);
    // The agent hears of it when it goes on, and ends the capture beside the load.
    capture.signal(Signal::SIGKILL).unwrap();
    capture.wait(Duration::from_secs(20)).unwrap();
    guard.resume().unwrap();
    wait_for(Duration::from_secs(20), || {
        ensure!(times_in_force(&guard) > before, "it is not in force yet");
        ensure!(!hands_over(&site)?, "packets are still handed over");
        Ok(())
    })
    .unwrap();
}
