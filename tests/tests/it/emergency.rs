//! The emergency exits while the agent is busy with other work: after an exit the guard stays off.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use guard_common::layout;
use lab::{
    guard::{Guard, binary, location_options, output, write_policy},
    process::{run, wait_for},
    topology::{HOST_V4, INTERFACE, USER_V4},
};

use crate::site::{CLOSED, OPEN, OPEN_80, SHUT, Site, fails, pins_of, policy};

/// A policy with so many denied addresses and services that a load takes the agent some time.
fn large(mode: &str) -> String {
    let denied: Vec<String> = (0..100_000_u32)
        .map(|number| {
            format!(
                "\"10.{}.{}.{}\"",
                number >> 16,
                number >> 8 & 255,
                number & 255
            )
        })
        .collect();
    let services: String = (0..1_000)
        .map(|number| {
            format!(
                "[[service]]\nname = \"s{number}\"\nports = [\"tcp/{}\"]\n",
                10_000 + number
            )
        })
        .collect();
    policy(
        mode,
        &format!(
            "[[source]]\nname = \"them\"\ncidrs = [{}]\ndeny = true\n{services}",
            denied.join(", ")
        ),
    )
}

#[test]
fn off_during_a_load_is_not_undone_by_what_waits_behind_it() {
    let site = Site::new();
    let guard = Guard::start(&site.lab, &large("enforce")).unwrap();
    let mut reloads = Vec::new();
    for _ in 0..3 {
        let mut command = Command::new(binary().unwrap());
        command.args(location_options(&site.lab)).arg("reload");
        reloads.push(command.spawn().unwrap());
    }
    let is_open = || {
        let to = SocketAddr::new(HOST_V4, 80);
        let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(2)).is_ok();
        site.lab.internet.enter(connect).unwrap()
    };
    thread::sleep(Duration::from_millis(400));
    assert!(!is_open());
    thread::scope(|scope| {
        scope.spawn(|| site.guard(&["mode", "off"]));
        while !is_open() {}
        // From now on all packets pass, before and after the command has ended.
        let passing = Instant::now();
        while passing.elapsed() < Duration::from_secs(6) {
            assert!(is_open(), "{:?}: {}", passing.elapsed(), guard.log());
            thread::sleep(Duration::from_millis(10));
        }
    });
    for mut reload in reloads {
        reload.wait().unwrap();
    }
    assert_eq!(guard.json("status").unwrap()["mode"], "off");
}

/// Renames an interface with a foreign program to the policy's second interface, and waits until the status reports it.
fn put_second(site: &Site, guard: &Guard) {
    let foreign = site.keep_program(guard);
    let host = &site.lab.host;
    let peer = site.lab.internet.name();
    let link = format!("link add third type veth peer name lan.7 netns {peer}");
    host.ip(&link).unwrap();
    site.put_foreign("third", &foreign);
    host.ip("link set third name second").unwrap();
    host.ip("link set second up").unwrap();
    wait_for(Duration::from_secs(20), || {
        let status = guard.json("status")?;
        let why = status["not_enforcing_because"].to_string();
        anyhow::ensure!(
            why.contains("second already has an XDP program"),
            "{status}"
        );
        Ok(())
    })
    .unwrap();
}

fn with_second(policy: &str) -> String {
    let both = format!("[\"{INTERFACE}\", \"second\"]");
    policy.replace(&format!("[\"{INTERFACE}\"]"), &both)
}

#[test]
fn off_holds_where_another_interface_refuses_its_program() {
    let site = Site::new();
    let guard = Guard::start(&site.lab, &with_second(&policy("enforce", SHUT))).unwrap();
    put_second(&site, &guard);
    assert_eq!(site.get(), CLOSED);
    guard.run(&["mode", "off"]).unwrap();
    for _ in 0..30 {
        assert_eq!(site.get(), OPEN, "{}", guard.log());
        thread::sleep(Duration::from_millis(100));
    }
    let status = guard.json("status").unwrap();
    assert_eq!(status["mode"], "off");
    assert!(status["not_kept"].is_null(), "{status}");
    guard.kill().unwrap();
    let kept = site.status();
    assert_eq!(kept["mode"], "off", "{kept}");
}

#[test]
fn an_interface_whose_state_cannot_be_opened_is_not_called_guarded() {
    let site = Site::new();
    let guard = Guard::start(&site.lab, &with_second(&policy("enforce", SHUT))).unwrap();
    // A folder that is not empty, in the place of the guard's map.
    let odd = pins_of(&site.lab, "second").join(layout::ABOUT_INTERFACE);
    fs::create_dir_all(odd.join("theirs")).unwrap();
    let host = &site.lab.host;
    let peer = site.lab.internet.name();
    let link = format!("link add second type veth peer name lan.7 netns {peer}");
    host.ip(&link).unwrap();
    host.ip("link set second up").unwrap();
    wait_for(Duration::from_secs(10), || {
        let status = guard.json("status")?;
        let why = status["not_enforcing_because"].to_string();
        anyhow::ensure!(why.contains("not attached to second"), "{status}");
        anyhow::ensure!(why.contains(layout::ABOUT_INTERFACE), "{status}");
        Ok(())
    })
    .unwrap();
    thread::sleep(Duration::from_secs(3));
    let status = guard.json("status").unwrap();
    assert_eq!(status["enforcing"], false, "{status}");
    assert_eq!(guard.log().matches("not guarded").count(), 1, "logged once");
    fs::remove_dir_all(odd).unwrap();
    host.ip("link set second mtu 1400").unwrap();
    wait_for(Duration::from_secs(15), || {
        let status = guard.json("status")?;
        anyhow::ensure!(status["enforcing"] == true, "{status}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn an_interface_that_refuses_is_not_tried_whenever_an_address_changes() {
    let site = Site::new();
    let guard = Guard::start(&site.lab, &with_second(&large("enforce"))).unwrap();
    put_second(&site, &guard);
    let processor_time = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", guard.pid())).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // utime and stime, in hundredths of a second (proc(5)).
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let (before, start) = (processor_time(), Instant::now());
    for number in 0..20 {
        let address = format!("addr add 192.0.2.{number}/32 dev lo");
        site.lab.host.ip(&address).unwrap();
        thread::sleep(Duration::from_millis(400));
    }
    let (used, took) = (processor_time() - before, start.elapsed());
    assert!(
        u128::from(used) * 10 < took.as_millis() / 3,
        "{used} hundredths of a second in {took:?}"
    );
}

#[test]
fn an_interface_that_refuses_keeps_nobody_from_denying_on_another() {
    let site = Site::new();
    let guard = Guard::start(&site.lab, &with_second(&policy("enforce", OPEN_80))).unwrap();
    put_second(&site, &guard);
    assert_eq!(site.get(), OPEN);
    guard.run(&["deny", &USER_V4.to_string()]).unwrap();
    assert_eq!(site.get(), CLOSED);
    guard.run(&["revoke", "1"]).unwrap();
    assert_eq!(site.get(), OPEN);
    write_policy(&site.lab, &with_second(&policy("enforce", SHUT))).unwrap();
    guard.run(&["reload"]).unwrap();
    assert_eq!(site.get(), CLOSED);
    let status = guard.json("status").unwrap();
    assert_eq!(status["enforcing"], false, "{status}");
}

/// Uses an emergency exit while another BPF file system is mounted over the pins (cilium/cilium#47847).
fn exit_with_hidden_pins(has_agent: bool, exit: &[&str]) {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    let guard = if has_agent {
        Some(guard)
    } else {
        guard.kill().unwrap();
        None
    };
    let place = site.lab.pins().parent().unwrap().to_owned();
    run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&place)).unwrap();
    let exited = output(&site.lab, exit).unwrap();
    let answer = site.get();
    drop(guard);
    // The pins below the mount are visible again.
    run(Command::new("umount").arg("--lazy").arg(&place)).unwrap();
    site.guard(&["detach"]);
    if answer == OPEN {
        assert!(exited.status.success(), "{exited:?}");
    } else {
        fails(&exited, 1, &["still judged", "wan", "--pins"]);
    }
}

#[test]
fn an_exit_does_not_say_that_it_is_done_while_a_program_goes_on() {
    for has_agent in [true, false] {
        for exit in [&["mode", "off"][..], &["detach"]] {
            exit_with_hidden_pins(has_agent, exit);
        }
    }
    // The same with another folder as `--pins`.
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    let elsewhere = site.lab.folder().join("bpf/elsewhere");
    let elsewhere = elsewhere.to_str().unwrap();
    guard.kill().unwrap();
    for exit in [&["mode", "off"][..], &["detach"]] {
        let mut command = site.lab.host.command(binary().unwrap().to_str().unwrap());
        let pins = site.lab.pins();
        let options = location_options(&site.lab).into_iter();
        let options = options.map(|option| match option == *pins {
            true => elsewhere.into(),
            false => option,
        });
        let exited = command.args(options).args(exit).output().unwrap();
        fails(&exited, 1, &["still judged", "wan", "--pins"]);
    }
    site.guard(&["detach"]);
    assert_eq!(site.get(), OPEN);
}
