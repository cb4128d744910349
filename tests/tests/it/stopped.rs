//! An agent that is stopped with SIGSTOP while it loads a program. Before it resumes, an operator uses an emergency
//! exit without the agent, or a capture ends. After an exit the agent puts no program in force.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lab::{
    guard::{Guard, binary, location_options, output},
    process::{Daemon, run, wait_for},
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::site::{CLOSED, OPEN, SHUT, Site, fails};

/// A policy so large that the test can stop the agent while it loads.
fn large_policy() -> String {
    let mut policy = String::from("[[source]]\nname = \"list\"\ndeny = true\ncidrs = [\n");
    for n in 0..100_000_u32 {
        let [_, a, b, c] = n.to_be_bytes();
        policy.push_str(&format!("\"10.{a}.{b}.{c}\",\n"));
    }
    policy.push_str("]\n");
    policy
}

/// The number of BPF maps that an agent has open.
fn maps_of(guard: &Guard) -> Result<usize> {
    let open = fs::read_dir(format!("/proc/{}/fd", guard.pid()))?;
    let names = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let is_map = |name: &std::path::PathBuf| name.to_string_lossy().contains("bpf-map");
    Ok(names.filter(is_map).count())
}

/// How often a program in mode enforce has been put in force, by the log.
fn times_in_force(guard: &Guard) -> usize {
    let log = guard.log();
    let lines = log.lines();
    lines
        .filter(|line| line.contains("in force") && line.contains("enforce"))
        .count()
}

/// Stops the agent after a load has begun and before the program is in force.
fn stop_while_loading(guard: &Guard) {
    wait_for(Duration::from_secs(60), || {
        let (maps, times) = (maps_of(guard)?, times_in_force(guard));
        guard.reload_by_signal()?;
        wait_for(Duration::from_secs(20), || {
            ensure!(maps_of(guard)? > maps, "the load has not begun yet");
            guard.pause()
        })?;
        if times_in_force(guard) > times {
            guard.resume()?;
            anyhow::bail!("the program was in force before the agent was stopped");
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn what_was_being_loaded_is_not_put_in_force_after_an_exit_without_the_agent() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    assert_eq!(site.get(), CLOSED);
    site.write("enforce", &large_policy());

    stop_while_loading(&guard);
    let before = times_in_force(&guard);
    site.guard(&["mode", "off"]);
    assert_eq!(site.get(), OPEN);
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
    assert_eq!(site.get(), OPEN);
    assert_eq!(times_in_force(&guard), before, "{}", guard.log());
    let status = guard.json("status").unwrap();
    assert_eq!(
        status["modes"][0]["by"], "root",
        "the status names the user: {status}"
    );
    guard.run(&["mode", "policy"]).unwrap();
    assert_eq!(site.get(), CLOSED, "an operator has ended mode off");

    stop_while_loading(&guard);
    let before = times_in_force(&guard);
    site.guard(&["detach"]);
    assert_eq!((site.get(), site.attached()), (OPEN, String::new()));
    guard.resume().unwrap();
    wait_for(Duration::from_secs(20), || {
        let answers = output(&site.lab, &["status"])?;
        ensure!(!answers.status.success(), "the agent still answers");
        Ok(())
    })
    .unwrap();
    assert_eq!(times_in_force(&guard), before, "{}", guard.log());
    assert_eq!(
        site.attached(),
        "",
        "the agent has attached no program again"
    );
    assert!(!site.lab.pins().exists(), "not all pins were removed");
}

/// Whether the program in force hands packets over to a capture.
fn hands_over(site: &Site) -> Result<bool> {
    let mut command = Command::new("find");
    let found = run(command.arg(site.lab.pins()).args(["-name", "*capture*"]))?;
    let mut command = Command::new("bpftool");
    let map = run(command.args(["-j", "map", "dump", "pinned", found.trim()]))?;
    let map: Value = serde_json::from_str(&map)?;
    let value = map[0]["value"]
        .as_array()
        .context("the map's entry has no value")?;
    Ok(value.iter().any(|byte| byte != "0x00"))
}

/// Covers a load from the creation of its maps on. The milliseconds between reading the capture's state and creating
/// the maps are not covered: without the check after the load, this test passes, too.
#[test]
fn a_capture_that_ends_while_a_program_is_loaded_leaves_nothing_that_hands_packets_over() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    let file = site.lab.folder().join("drops.pcapng");
    let mut capture = site.lab.host.command(binary().unwrap().to_str().unwrap());
    capture
        .args(location_options(&site.lab))
        .args(["capture", "-w"])
        .arg(&file);
    let mut capture = Daemon::start(&mut capture, &site.lab.folder().join("capture.log")).unwrap();
    wait_for(Duration::from_secs(20), || {
        ensure!(hands_over(&site)?, "the capture has not begun yet");
        Ok(())
    })
    .unwrap();
    site.write("enforce", &large_policy());
    stop_while_loading(&guard);
    let before = times_in_force(&guard);
    // When the agent resumes, it sees that the client has ended, and ends the capture while it loads.
    capture.signal(Signal::SIGKILL).unwrap();
    capture.wait(Duration::from_secs(20)).unwrap();
    guard.resume().unwrap();
    wait_for(Duration::from_secs(20), || {
        ensure!(
            times_in_force(&guard) > before,
            "the program is not in force yet"
        );
        ensure!(!hands_over(&site)?, "packets are still handed over");
        Ok(())
    })
    .unwrap();
}

#[test]
fn what_was_asked_for_before_an_exit_without_the_agent_does_not_undo_it() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    guard.pause().unwrap();
    let mut earlier = site.lab.host.command(binary().unwrap().to_str().unwrap());
    let earlier = earlier
        .args(location_options(&site.lab))
        .args(["mode", "enforce"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The request waits in the socket while the agent is stopped.
    wait_for(Duration::from_secs(20), || {
        let sockets = run(Command::new("ss").args(["-xH", "state", "established"]))?;
        ensure!(
            sockets.contains("guard.sock"),
            "the command has not connected yet"
        );
        Ok(())
    })
    .unwrap();
    site.guard(&["mode", "off"]);
    assert_eq!(site.get(), OPEN);
    guard.resume().unwrap();
    let earlier = earlier.wait_with_output().unwrap();
    fails(&earlier, 1, &["switched off after this request was sent"]);
    wait_for(Duration::from_secs(20), || {
        let status = guard.json("status")?;
        ensure!(status["mode"] == "off", "{status}");
        Ok(())
    })
    .unwrap();
    assert_eq!(site.get(), OPEN);
    guard.run(&["mode", "enforce"]).unwrap();
    assert_eq!(site.get(), CLOSED, "a later request is carried out");
}

#[test]
fn a_detached_guard_stays_off_when_the_agent_that_hung_is_killed_and_started_again() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    let detach = || {
        site.guard(&["detach"]);
        assert_eq!((site.get(), site.attached()), (OPEN, String::new()));
    };
    guard.pause().unwrap();
    detach();
    guard.kill().unwrap();
    // A service manager starts the agent again after a watchdog timeout. The agent exits with 0, so the manager does
    // not start it once more.
    let mut again = site.lab.host.command(binary().unwrap().to_str().unwrap());
    let again = again
        .args(location_options(&site.lab))
        .args(["run", "--policy"])
        .arg(site.lab.folder().join("guard.toml"))
        .output()
        .unwrap();
    fails(&again, 0, &["stays detached", "start the agent again"]);
    assert_eq!((site.get(), site.attached()), (OPEN, String::new()));
    // A second start is an operator's: the agent attaches its programs.
    let guard = Guard::start_again(&site.lab).unwrap();
    assert_eq!(site.get(), CLOSED);

    // A second `detach`, after the agent was killed and before a start, removes the record of the first and the root of
    // the pins.
    guard.pause().unwrap();
    detach();
    guard.kill().unwrap();
    detach();
    assert!(!site.lab.pins().exists(), "not all pins were removed");
    let _guard = Guard::start_again(&site.lab).unwrap();
    assert_eq!(site.get(), CLOSED);
}
