//! Mishaps around a running guard: removed pins, odd policy files, a state that cannot be written, and interfaces with
//! another program.

use std::{
    collections::BTreeSet, fs, os::unix::fs::symlink, path::PathBuf, process::Command, thread,
    time::Duration,
};

use lab::{
    guard::{Guard, binary, location_options, output, write_policy},
    process::{run, wait_for},
    topology::{HOST_V4, INTERFACE, USER_V4},
};
use serde_json::{Value, json};

use crate::{
    attempt::with_enough_time,
    site::{CLOSED, OPEN, OPEN_80, SHUT, Site, fails, policy},
};

#[test]
fn pins_that_somebody_removes_are_made_again_and_the_counters_go_on() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    assert_eq!(site.get(), CLOSED);
    let dropped = guard.packets(&[("verdict", json!("drop"))]).unwrap();
    // Removes the pins one by one: bpffs cannot rename over a folder.
    fs::remove_dir_all(site.lab.pins()).unwrap();
    wait_for(Duration::from_secs(15), || {
        let status = guard.json("status")?;
        anyhow::ensure!(status["enforcing"] == true, "{status}");
        anyhow::ensure!(site.lab.pins().is_dir(), "no pins");
        Ok(())
    })
    .unwrap();
    assert_eq!(site.get(), CLOSED);
    assert!(guard.packets(&[("verdict", json!("drop"))]).unwrap() > dropped);
    guard.kill().unwrap();
    assert_eq!(site.get(), CLOSED, "the kernel enforces without the agent");
    Guard::start_again(&site.lab).unwrap().remove().unwrap();
    assert_eq!(site.attached(), "");
}

#[test]
fn a_pipe_in_the_policys_place_is_refused_and_keeps_nothing_waiting() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    let path = PathBuf::from(site.write("enforce", SHUT));
    let place = path.to_str().unwrap();
    // A command that waits for a writer is ended by timeout(1), which fails.
    let run_limited = |arguments: &[&str]| {
        let mut command = site.lab.host.command("timeout");
        command.arg("20").arg(binary().unwrap());
        let command = command.args(location_options(&site.lab)).args(arguments);
        command.output().unwrap()
    };
    let put = |what: &str| {
        fs::remove_file(&path).unwrap();
        match what {
            "a named pipe" => run(Command::new("mkfifo").arg(&path)).map(drop).unwrap(),
            _ => symlink("/dev/zero", &path).unwrap(),
        }
    };
    for what in ["a named pipe", "a character device"] {
        put(what);
        fails(&run_limited(&["reload"]), 2, &["guard.toml: ", what]);
        let deny = run_limited(&["deny", "192.0.2.1"]);
        assert!(deny.status.success(), "{what}: {deny:?}");
        let status = guard.json("status").unwrap();
        assert_eq!(status["enforcing"], true, "{what}: {status}");
        assert_eq!(site.get(), CLOSED, "{what}");
    }
    // A command reads a policy from a pipe with a writer, but not from a device.
    put("a named pipe");
    let text = policy("enforce", SHUT);
    for command in [&["check", place][..], &["try", place]] {
        thread::scope(|scope| {
            scope.spawn(|| fs::write(&path, &text).unwrap());
            let read = run_limited(command);
            assert!(read.status.success(), "{command:?}: {read:?}");
        });
    }
    for other in ["/dev/zero", "/tmp"] {
        let words = [other, "a policy must be a regular file or a pipe"];
        fails(&run_limited(&["check", other]), 2, &words);
    }
    guard.kill().unwrap();
    let before = site.attached();
    // Without a state store there is no last policy to fall back to.
    fs::remove_dir_all(site.lab.state()).unwrap();
    for what in ["a character device", "a named pipe"] {
        put(what);
        let started = run_limited(&["run", "--policy", place]);
        fails(&started, 2, &["guard.toml: ", what]);
        assert_eq!((site.get(), site.attached()), (CLOSED, before.clone()));
    }
}

#[test]
fn a_start_that_one_interface_refuses_changes_nothing_on_the_other() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    let foreign = site.keep_program(&guard);
    guard.kill().unwrap();
    let before = site.attached();
    let host = &site.lab.host;
    let peer = site.lab.internet.name();
    let link = format!("link add second type veth peer name lan.7 netns {peer}");
    host.ip(&link).unwrap();
    host.ip("link set second up").unwrap();
    site.put_foreign("second", &foreign);
    let both = format!("[\"{INTERFACE}\", \"second\"]");
    let both = policy("enforce", OPEN_80).replace(&format!("[\"{INTERFACE}\"]"), &both);
    let path = write_policy(&site.lab, &both).unwrap();
    let refused = output(&site.lab, &["run", "--policy", path.to_str().unwrap()]).unwrap();
    fails(&refused, 1, &["second already has an XDP program"]);
    site.wait_for_attached(&before);
    assert_eq!(site.get(), CLOSED);
    // If no program was attached before, none remains.
    site.guard(&["detach"]);
    let refused = output(&site.lab, &["run", "--policy", path.to_str().unwrap()]).unwrap();
    fails(&refused, 1, &["second already has an XDP program"]);
    site.wait_for_attached("");
    assert_eq!(site.get(), OPEN);
}

#[test]
fn a_reload_that_a_second_interface_refuses_changes_nothing_and_reads_go_on() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    let foreign = site.keep_program(&guard);
    let host = &site.lab.host;
    let peer = site.lab.internet.name();
    let link = format!("link add second type veth peer name lan.7 netns {peer}");
    host.ip(&link).unwrap();
    host.ip("link set second up").unwrap();
    site.put_foreign("second", &foreign);
    let facts = || {
        let mut status = guard.json("status").unwrap();
        // The file has changed, and what is in force has not.
        status["policy"]["stale"] = Value::Null;
        status["policy"]["stale_advice"] = Value::Null;
        let ways = ["interfaces", "policy", "mode", "enforcing"];
        (
            site.attached(),
            pinned(&site),
            ways.map(|way| status[way].clone()),
        )
    };
    let before = facts();
    let both = format!("[\"{INTERFACE}\", \"second\"]");
    let both = policy("enforce", OPEN_80).replace(&format!("[\"{INTERFACE}\"]"), &both);
    write_policy(&site.lab, &both).unwrap();
    for _ in 0..2 {
        let refused = output(&site.lab, &["reload"]).unwrap();
        fails(&refused, 1, &["second already has an XDP program"]);
        assert_eq!(facts(), before);
        let dropped = guard.packets(&[("verdict", json!("drop"))]).unwrap();
        assert_eq!(site.get(), CLOSED);
        assert!(guard.packets(&[("verdict", json!("drop"))]).unwrap() > dropped);
        guard.json("talkers").unwrap();
        let source = USER_V4.to_string();
        guard
            .run(&["explain", "--from", &source, "--to", "80/tcp"])
            .unwrap();
    }
    // Changes still work, too.
    guard.run(&["mode", "observe"]).unwrap();
    assert_eq!(site.get(), OPEN);
    host.ip("link set dev second xdp off").unwrap();
    guard.run(&["reload"]).unwrap();
    let status = guard.json("status").unwrap();
    assert_eq!(status["interfaces"][1]["attached"], true, "{status}");
}

/// The paths of all pins and their folders.
fn pinned(site: &Site) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![site.lab.pins()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path);
        }
    }
    found
}

#[test]
fn the_mode_of_a_service_that_is_gone_can_be_taken_back() {
    let site = Site::new();
    let guard = site.start("enforce", OPEN_80);
    guard.run(&["mode", "observe", "--service", "web"]).unwrap();
    site.write("enforce", SHUT);
    guard.run(&["reload"]).unwrap();
    let text = guard.run(&["status"]).unwrap();
    assert!(
        text.contains("`guard mode policy --service web` ends it"),
        "{text}"
    );
    guard.run(&["mode", "policy", "--service", "web"]).unwrap();
    assert_eq!(guard.json("status").unwrap()["modes"], json!([]));
    let again = output(&site.lab, &["mode", "policy", "--service", "web"]).unwrap();
    fails(&again, 1, &["there is no service \"web\""]);
}

#[test]
fn a_deny_made_during_a_trial_holds_when_the_kernel_goes_back_without_an_agent() {
    with_enough_time(|attempt| {
        let site = Site::new();
        let guard = site.start("enforce", OPEN_80);
        let tried = site.lab.folder().join("tried.toml");
        fs::write(&tried, policy("enforce", OPEN_80)).unwrap();
        attempt.begin(5, |time| {
            guard
                .run(&["try", tried.to_str().unwrap(), "--for", time])
                .unwrap();
        });
        assert_eq!(site.get(), OPEN);
        guard.run(&["deny", &USER_V4.to_string()]).unwrap();
        assert_eq!(site.get(), CLOSED);
        guard.kill().unwrap();
        attempt.wait_for_end();
        let status = site.status();
        assert!(
            status["policy"]["stale"].is_string(),
            "the trial has ended: {status}"
        );
        assert_eq!(site.get(), CLOSED);
    });
}

#[test]
fn a_state_that_cannot_be_written_keeps_nobody_from_stopping_a_flood() {
    let site = Site::new();
    let guard = site.start("enforce", OPEN_80);
    let file = site.lab.state().join("state.jsonl");
    // The state cannot be written: a file cannot be renamed over a folder.
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let denied = output(&site.lab, &["deny", &USER_V4.to_string()]).unwrap();
    let stderr = String::from_utf8_lossy(&denied.stderr);
    assert!(denied.status.success(), "{stderr}");
    assert!(
        stderr.contains("lost at the agent's next start"),
        "{stderr}"
    );
    assert_eq!(site.get(), CLOSED);
    let status = guard.json("status").unwrap();
    assert!(status["not_kept"].is_string(), "{status}");
    let tried = output(&site.lab, &["try", site.write("enforce", OPEN_80).as_str()]).unwrap();
    fails(&tried, 1, &["the state cannot be written to"]);
    guard.run(&["mode", "off"]).unwrap();
    assert_eq!(site.get(), OPEN);
    fs::remove_dir(&file).unwrap();
    wait_for(Duration::from_secs(20), || {
        let status = guard.json("status")?;
        anyhow::ensure!(status["not_kept"].is_null(), "{status}");
        Ok(())
    })
    .unwrap();
    guard.kill().unwrap();
    let guard = Guard::start_again(&site.lab).unwrap();
    assert_eq!(guard.json("status").unwrap()["mode"], "off");
    assert_eq!(guard.json("list").unwrap().as_array().unwrap().len(), 1);
}

#[test]
fn an_allow_entry_that_keeps_the_operator_in_is_not_revoked_without_force() {
    let site = Site::new();
    let from = format!("{OPEN_80}from = [\"192.0.2.0/24\"]\n");
    let guard = site.start("enforce", &from);
    guard.run(&["allow", &USER_V4.to_string()]).unwrap();
    assert_eq!(site.get(), OPEN);
    let session = format!("{USER_V4} 50000 {HOST_V4} 80");
    let revoke = |arguments: &[&str]| {
        let mut command = site.lab.host.command(binary().unwrap().to_str().unwrap());
        command
            .args(location_options(&site.lab))
            .args(["revoke", "1"]);
        command
            .args(arguments)
            .env("SSH_CONNECTION", &session)
            .output()
            .unwrap()
    };
    fails(&revoke(&[]), 1, &["your own way in", "--force"]);
    assert_eq!(site.get(), OPEN);
    assert!(revoke(&["--force"]).status.success());
    assert_eq!(site.get(), CLOSED);
}

#[test]
fn a_trial_that_confirm_would_refuse_is_refused_and_confirm_names_the_agents_own_file() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    let tried = site.lab.folder().join("tried.toml");
    let path = tried.to_str().unwrap();
    let good = policy("enforce", OPEN_80);
    let named = format!("interfaces = [\"{INTERFACE}\"]");
    assert!(good.contains(&named));
    // While the trial lasts, the interfaces of the policy before stay guarded: it would look as if all were well.
    for (interfaces, problem) in [
        ("interfaces = [\"nowhere\"]", "nowhere does not exist"),
        ("", "no default route"),
    ] {
        fs::write(&tried, good.replace(&named, interfaces)).unwrap();
        let checked = output(&site.lab, &["check", path]).unwrap();
        let warning = String::from_utf8(checked.stderr).unwrap();
        assert!(checked.status.success() && !warning.is_empty(), "{warning}");
        let refused = output(&site.lab, &["try", path]).unwrap();
        fails(&refused, 1, &[problem]);
        assert!(guard.json("status").unwrap()["trial"].is_null());
    }
    fs::write(&tried, &good).unwrap();
    guard.run(&["try", path]).unwrap();
    let confirmed = guard.run(&["confirm"]).unwrap();
    let own = site.lab.folder().join("guard.toml");
    let copy = format!("`cp {path} {}`", own.display());
    assert!(confirmed.contains(&copy), "{confirmed}");
    // The file that the agent reads needs no hint.
    fs::copy(&tried, &own).unwrap();
    guard.run(&["try", own.to_str().unwrap()]).unwrap();
    assert!(!guard.run(&["confirm"]).unwrap().contains("cp "));
}

#[test]
fn without_an_agent_explain_finds_the_policy_and_status_says_that_nothing_is_attached() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    guard.kill().unwrap();
    let user = USER_V4.to_string();
    let explained = output(&site.lab, &["explain", "--from", &user, "--to", "80/tcp"]).unwrap();
    assert!(explained.status.success(), "{explained:?}");
    let (text, warning) = (explained.stdout, explained.stderr);
    let (text, warning) = (
        String::from_utf8_lossy(&text),
        String::from_utf8_lossy(&warning),
    );
    assert!(
        text.starts_with("PERHAPS (no agent answers") && text.contains("DROPPED: closed_port"),
        "the kernel may have another policy: {text}"
    );
    assert!(
        warning.contains("no agent answers") && warning.contains("guard.toml"),
        "{warning}"
    );
    site.guard(&["detach"]);
    let status = output(&site.lab, &["status"]).unwrap();
    fails(&status, 1, &["guard is not attached", "no agent answers"]);
}
