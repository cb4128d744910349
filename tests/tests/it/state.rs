//! The state store and the emergency exits when the disk is full, the state cannot be written or read, or foreign files
//! are among the pins.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::Duration,
};

use lab::{
    guard::{Guard, binary, location_options, output},
    process::{run, wait_for},
    topology::{INTERFACE, USER_V4},
};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

use crate::site::{CLOSED, OPEN, OPEN_80, SHUT, Site, fails, pins_of};

/// Mounts a small file system at the state folder. It is unmounted with the lab's folder.
fn small_state(site: &Site) -> PathBuf {
    let state = site.lab.state();
    fs::create_dir(&state).unwrap();
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k,mode=0700", "state"])
        .arg(&state))
    .unwrap();
    state
}

fn fill(state: &Path) -> PathBuf {
    let path = state.join("filler");
    let mut file = File::create(&path).unwrap();
    while file.write_all(&[0; 4_096]).is_ok() {}
    path
}

fn remount(state: &Path, how: &str) {
    let how = format!("remount,{how}");
    run(Command::new("mount").args(["-o", &how]).arg(state)).unwrap();
}

/// Asserts that the command succeeded with a warning that contains these words.
fn warns(output: &Output, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{output:?}");
    assert!(stderr.contains("warning: "), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in {stderr}");
    }
}

fn ends(site: &Site) {
    wait_for(Duration::from_secs(10), || {
        let status = output(&site.lab, &["status"])?;
        anyhow::ensure!(!status.status.success(), "the agent still answers");
        Ok(())
    })
    .unwrap();
    // Longer than the second after which an agent checks its interfaces again.
    thread::sleep(Duration::from_millis(2_500));
    assert_eq!((site.get(), site.attached()), (OPEN, String::new()));
}

fn not_kept(guard: &Guard) -> Value {
    guard.json("status").unwrap()["not_kept"].clone()
}

#[test]
fn detach_takes_the_guard_off_and_ends_the_agent_though_the_disk_is_full() {
    let site = Site::new();
    let state = small_state(&site);
    let _guard = site.start("enforce", SHUT);
    assert_eq!(site.get(), CLOSED);
    fill(&state);
    let detached = output(&site.lab, &["detach"]).unwrap();
    warns(&detached, &["may attach again", "No space left"]);
    ends(&site);
    assert!(!site.lab.pins().exists(), "not all pins were removed");
}

#[test]
fn without_an_agent_off_and_detach_work_on_a_full_and_on_a_read_only_disk() {
    let site = Site::new();
    let state = small_state(&site);
    let stop = |why: &str| {
        let guard = site.start("enforce", SHUT);
        // A mode off from the round before would still hold.
        guard.run(&["mode", "policy"]).unwrap();
        guard.kill().unwrap();
        assert_eq!(site.get(), CLOSED);
        let filler = match why {
            "No space left" => Some(fill(&state)),
            _ => {
                remount(&state, "ro");
                None
            }
        };
        warns(&output(&site.lab, &["mode", "off"]).unwrap(), &[why]);
        assert_eq!(site.get(), OPEN);
        warns(&output(&site.lab, &["detach"]).unwrap(), &[why]);
        assert_eq!((site.get(), site.attached()), (OPEN, String::new()));
        match filler {
            Some(filler) => fs::remove_file(filler).unwrap(),
            None => remount(&state, "rw"),
        }
    };
    stop("No space left");
    stop("Read-only file system");
}

#[test]
fn an_agent_that_hangs_while_the_disk_is_full_heeds_what_was_done_meanwhile() {
    let site = Site::new();
    let state = small_state(&site);
    let guard = site.start("enforce", SHUT);
    let filler = fill(&state);
    guard.pause().unwrap();
    warns(
        &output(&site.lab, &["mode", "off"]).unwrap(),
        &["No space left"],
    );
    assert_eq!(site.get(), OPEN);
    guard.resume().unwrap();
    wait_for(Duration::from_secs(10), || {
        let status = guard.json("status")?;
        anyhow::ensure!(
            status["mode"] == "off" && status["modes"][0]["mode"] == "off",
            "{status}"
        );
        Ok(())
    })
    .unwrap();
    assert_eq!(site.get(), OPEN, "the resumed agent keeps mode off");
    // The next agent keeps mode off, too, while the disk is still full.
    guard.kill().unwrap();
    warns(
        &output(&site.lab, &["mode", "off"]).unwrap(),
        &["No space left"],
    );
    let guard = Guard::start_again(&site.lab).unwrap();
    assert_eq!(
        (site.get(), guard.json("status").unwrap()["mode"].clone()),
        (OPEN, "off".into())
    );
    guard.run(&["mode", "policy"]).unwrap();
    assert_eq!(site.get(), CLOSED);

    guard.pause().unwrap();
    warns(&output(&site.lab, &["detach"]).unwrap(), &["No space left"]);
    guard.resume().unwrap();
    ends(&site);
    assert!(!site.lab.pins().exists(), "not all pins were removed");
    fs::remove_file(filler).unwrap();
    let _guard = Guard::start_again(&site.lab).unwrap();
    assert_eq!(site.get(), CLOSED, "an operator's start ends the detach");
}

#[test]
fn the_kill_switch_outlives_every_agent_while_the_disk_is_full() {
    let site = Site::new();
    let state = small_state(&site);
    site.start("enforce", SHUT).kill().unwrap();
    let filler = fill(&state);
    warns(
        &output(&site.lab, &["mode", "off"]).unwrap(),
        &["will not survive a reboot"],
    );
    for restart in 1..=3 {
        let guard = Guard::start_again(&site.lab).unwrap();
        assert_eq!(site.get(), OPEN, "restart {restart}: {}", guard.log());
        guard.kill().unwrap();
    }
    // After a detach the next agent still keeps mode off.
    warns(&output(&site.lab, &["detach"]).unwrap(), &["No space left"]);
    let guard = Guard::start_again(&site.lab).unwrap();
    assert_eq!(site.get(), OPEN);
    // `mode policy` ends mode off, though it cannot be written to the disk either.
    guard.run(&["mode", "policy"]).unwrap();
    assert_eq!(site.get(), CLOSED);
    guard.kill().unwrap();
    let guard = Guard::start_again(&site.lab).unwrap();
    assert_eq!(site.get(), CLOSED);
    guard.run(&["mode", "off"]).unwrap();
    guard.kill().unwrap();
    let guard = Guard::start_again(&site.lab).unwrap();
    assert_eq!(site.get(), OPEN, "mode off that the agent itself had set");
    fs::remove_file(filler).unwrap();
    drop(guard);
}

#[test]
fn an_agent_starts_with_a_state_that_it_cannot_write_and_says_so() {
    let site = Site::new();
    let state = small_state(&site);
    // The folder is empty, without a file to lock.
    remount(&state, "ro");
    let guard = site.start("enforce", SHUT);
    assert_eq!(site.get(), CLOSED);
    assert!(not_kept(&guard).is_string());
    let log = guard.log();
    assert!(log.contains("lost at the next start"), "{log}");
    assert!(
        guard
            .run(&["status"])
            .unwrap()
            .contains("LOST AT THE NEXT START")
    );
    // The state is written as soon as the disk can be written.
    remount(&state, "rw");
    wait_for(Duration::from_secs(20), || {
        anyhow::ensure!(not_kept(&guard).is_null());
        Ok(())
    })
    .unwrap();
    // The state is read, though the disk cannot be written.
    guard.run(&["mode", "observe"]).unwrap();
    guard.kill().unwrap();
    remount(&state, "ro");
    let guard = Guard::start_again(&site.lab).unwrap();
    assert_eq!(guard.json("status").unwrap()["mode"], "observe");
    assert!(not_kept(&guard).is_string());
    warns(
        &output(&site.lab, &["detach"]).unwrap(),
        &["Read-only file system"],
    );
    ends(&site);
}

#[test]
fn an_agent_killed_on_a_full_disk_starts_again_with_what_was_kept_before() {
    let site = Site::new();
    let state = small_state(&site);
    let guard = site.start("enforce", OPEN_80);
    guard.run(&["deny", &USER_V4.to_string()]).unwrap();
    let filler = fill(&state);
    let lost = output(&site.lab, &["deny", "192.0.2.1"]).unwrap();
    assert!(lost.status.success(), "{lost:?}");
    guard.kill().unwrap();
    assert_eq!(site.get(), CLOSED);
    let guard = Guard::start_again(&site.lab).unwrap();
    assert_eq!(site.get(), CLOSED);
    assert_eq!(guard.json("list").unwrap().as_array().unwrap().len(), 1);
    assert!(not_kept(&guard).is_string());
    fs::remove_file(filler).unwrap();
    wait_for(Duration::from_secs(20), || {
        anyhow::ensure!(not_kept(&guard).is_null());
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_state_that_cannot_be_read_is_left_as_it_is_and_the_agent_starts() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    guard.run(&["deny", "192.0.2.1"]).unwrap();
    guard.kill().unwrap();
    let path = site.lab.state().join("state.jsonl");
    let bytes = fs::metadata(&path).unwrap().len();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    // Longer than a state may be. The file is sparse, so it takes no room.
    let long = (1 << 28) + 1;
    file.set_len(long).unwrap();
    let guard = Guard::start_again(&site.lab).unwrap();
    assert_eq!(site.get(), CLOSED);
    let why = not_kept(&guard).to_string();
    assert!(why.contains("is not overwritten"), "{why}");
    assert_eq!(fs::metadata(&path).unwrap().len(), long);
    file.set_len(bytes).unwrap();
    wait_for(Duration::from_secs(20), || {
        anyhow::ensure!(not_kept(&guard).is_null());
        let list = guard.json("list")?;
        anyhow::ensure!(
            list.as_array().is_some_and(|list| list.len() == 1),
            "{list}"
        );
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_folder_in_the_pins_keeps_nothing_else_from_going() {
    let site = Site::new();
    let odd = pins_of(&site.lab, INTERFACE).join("aaa");
    for has_agent in [true, false] {
        let guard = site.start("enforce", SHUT);
        assert_eq!(site.get(), CLOSED);
        fs::create_dir_all(odd.join("inside")).unwrap();
        if !has_agent {
            guard.kill().unwrap();
        }
        let detached = output(&site.lab, &["detach"]).unwrap();
        warns(&detached, &[odd.to_str().unwrap()]);
        ends(&site);
        let left = fs::read_dir(odd.parent().unwrap()).unwrap();
        assert_eq!(left.count(), 1, "only the odd folder remains");
    }
    // An agent can start beside the folder that remains.
    let guard = site.start("enforce", SHUT);
    assert_eq!(site.get(), CLOSED);
    fs::remove_dir_all(&odd).unwrap();
    guard.remove().unwrap();
    assert!(!site.lab.pins().exists(), "not all pins were removed");
}

#[test]
fn a_map_pinned_in_the_place_of_a_link_counts_as_no_link() {
    let site = Site::new();
    let folder = pins_of(&site.lab, INTERFACE);
    fs::create_dir_all(&folder).unwrap();
    for name in ["link", "egress"] {
        // The type number 6 is BPF_MAP_TYPE_PERCPU_ARRAY as well as BPF_LINK_TYPE_XDP (linux/bpf.h).
        let mut command = Command::new("bpftool");
        command.args(["map", "create"]).arg(folder.join(name));
        command.args("type percpu_array key 4 value 8 entries 1 name odd".split(' '));
        run(&mut command).unwrap();
    }
    let off = output(&site.lab, &["mode", "off"]).unwrap();
    assert!(off.status.success(), "{off:?}");
    run(Command::new("bpftool")
        .args(["map", "create"])
        .arg(folder.join("link"))
        .args("type percpu_array key 4 value 8 entries 1 name odd".split(' ')))
    .unwrap();
    let guard = site.start("enforce", SHUT);
    guard.run(&["mode", "policy"]).unwrap();
    assert_eq!(site.get(), CLOSED);
    assert_eq!(guard.json("status").unwrap()["enforcing"], true);
    guard.remove().unwrap();
    assert_eq!((site.get(), site.attached()), (OPEN, String::new()));
}

#[test]
fn a_second_agent_with_the_same_pins_ends_and_says_what_to_change() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    let before = guard.json("status").unwrap()["interfaces"].clone();
    let path = site.write("enforce", OPEN_80);
    let second = || {
        let folder = site.lab.folder();
        let mut command = site.lab.host.command(binary().unwrap().to_str().unwrap());
        command.arg("--socket").arg(folder.join("second.sock"));
        command.arg("--state").arg(folder.join("second"));
        command.arg("--pins").arg(site.lab.pins());
        command.args(["run", "--policy", &path]);
        command
    };
    let refused = second().output().unwrap();
    fails(&refused, 1, &["another agent holds the pins", "--pins"]);
    assert_eq!(site.get(), CLOSED);
    assert_eq!(guard.json("status").unwrap()["interfaces"], before);
    // After the pins were removed, the agent creates and locks them again.
    fs::remove_dir_all(site.lab.pins()).unwrap();
    wait_for(Duration::from_secs(15), || {
        anyhow::ensure!(guard.json("status")?["enforcing"] == true);
        anyhow::ensure!(pins_of(&site.lab, INTERFACE).is_dir());
        Ok(())
    })
    .unwrap();
    fails(
        &second().output().unwrap(),
        1,
        &["another agent holds the pins"],
    );
    // The lock ends with its process, and a new agent waits for a lock that is about to end.
    guard.kill().unwrap();
    let pins = File::open(site.lab.pins()).unwrap();
    let held = Flock::lock(pins, FlockArg::LockExclusiveNonblock).unwrap();
    let releasing = thread::spawn(move || {
        thread::sleep(Duration::from_millis(1_500));
        drop(held);
    });
    let guard = site.start("enforce", SHUT);
    releasing.join().unwrap();
    assert_eq!(guard.json("status").unwrap()["enforcing"], true);
}

#[test]
fn an_agent_that_starts_waits_for_one_that_is_about_to_end() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    // The stopped agent holds the socket, the state and the pins, and ends as soon as it resumes.
    guard.pause().unwrap();
    guard.terminate().unwrap();
    let next = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_secs(1));
            guard.resume().unwrap();
        });
        Guard::start_again(&site.lab)
    });
    assert_eq!(site.get(), CLOSED);
    assert!(guard.wait(Duration::from_secs(60)).unwrap().success());
    let next = next.unwrap();
    let status = next.json("status").unwrap();
    assert_eq!(status["enforcing"], true, "{status}: {}", next.log());
}

#[test]
fn the_folder_of_the_state_is_for_root_alone_and_one_that_is_open_is_told_of() {
    let site = Site::new();
    let mode = || fs::metadata(site.lab.state()).unwrap().permissions().mode() & 0o777;
    let guard = site.start("observe", SHUT);
    assert_eq!(mode(), 0o700);
    assert!(
        !guard.log().contains("is open to others"),
        "{}",
        guard.log()
    );
    guard.stop().unwrap();
    fs::set_permissions(site.lab.state(), fs::Permissions::from_mode(0o755)).unwrap();
    let guard = Guard::start_again(&site.lab).unwrap();
    let warning = "is open to others (mode 0755): `chmod 700 ";
    assert!(guard.log().contains(warning), "{}", guard.log());
    assert_eq!(
        mode(),
        0o755,
        "the agent does not change the mode that an operator chose"
    );
    guard.remove().unwrap();

    // A command without an agent creates the folder with the same mode.
    fs::remove_dir_all(site.lab.state()).unwrap();
    site.start("observe", SHUT).kill().unwrap();
    fs::remove_dir_all(site.lab.state()).unwrap();
    site.guard(&["mode", "off"]);
    assert_eq!(mode(), 0o700);
}

#[test]
fn a_mode_set_without_an_agent_names_who_did_it_and_an_agent_that_starts_warns_of_it() {
    let site = Site::new();
    site.start("enforce", SHUT).kill().unwrap();
    let mut command = site.lab.host.command(binary().unwrap().to_str().unwrap());
    command
        .args(location_options(&site.lab))
        .args(["mode", "off"]);
    let off = command.env("SUDO_USER", "somebody-else").output().unwrap();
    assert!(off.status.success(), "{off:?}");
    assert!(off.stderr.is_empty(), "{off:?}");
    let guard = Guard::start_again(&site.lab).unwrap();
    let mode = guard.json("status").unwrap()["modes"][0].clone();
    let by = mode["by"].as_str().unwrap();
    assert!(by.starts_with("root"), "{mode}");
    assert_eq!(mode["claimed_by"], "somebody-else", "{mode}");
    let log = guard.log();
    let warned = log
        .lines()
        .find(|line| line.contains("`guard mode policy`"));
    let warned = warned.unwrap_or_else(|| panic!("{log}"));
    for word in ["WARN", "mode off", "root", "just now"] {
        assert!(warned.contains(word), "{word}: {warned}");
    }
}
