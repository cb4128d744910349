//! An agent that is stopped in the middle of a load, an emergency exit without it, and what it puts in force when it
//! goes on: nothing.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use lab::{
    guard::{Guard, output},
    process::wait_for,
};

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
