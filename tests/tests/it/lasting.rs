//! State that lasts: over reloads, killed agents, trials and changes by operators; and the commands that work without
//! an agent.

use std::{fs, net::IpAddr, path::PathBuf, process::Command, thread, time::Duration};

use lab::{
    guard::{Guard, binary, location_options, output, write_policy},
    http::get,
    process::{run, wait_for},
    ssh::Ssh,
    topology::{HOST_V4, INTERFACE, Lab, USER_V4, USER_V6},
};
use serde_json::{Value, json};

use crate::{
    attempt::with_enough_time,
    site::{CLOSED, OPEN, OPEN_80, SHUT, Site, fails, pins_of, policy},
};

#[test]
fn a_killed_agent_leaves_the_kernel_enforcing_and_the_next_one_goes_on_with_its_counters() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    assert_eq!(site.get(), CLOSED);
    let dropped = guard.packets(&[("verdict", json!("drop"))]).unwrap();
    assert!(dropped > 0);
    guard.kill().unwrap();
    assert_eq!(site.get(), CLOSED, "with no agent");
    let status = site.status();
    assert_eq!(status["enforcing"], true);
    assert_eq!(status["agent"]["running"], false);
    assert_eq!(status["agent"]["trouble"], "it is dead");
    assert!(status["agent"]["last_seen"].as_str().is_some(), "{status}");
    let text = site.guard(&["status"]);
    assert!(
        text.contains("NOT RUNNING: it is dead, last alive "),
        "{text}"
    );
    let counters: Value = serde_json::from_str(&site.guard(&["counters", "--json"])).unwrap();
    let unattended: u64 = counters
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["verdict"] == "drop")
        .filter_map(|row| row["packets"].as_u64())
        .sum();
    assert!(unattended > dropped);
    let guard = Guard::start_again(&site.lab).unwrap();
    assert!(guard.packets(&[("verdict", json!("drop"))]).unwrap() >= unattended);
    let status = guard.json("status").unwrap();
    assert_eq!(status["interfaces"][0]["generation"], 2);
    assert_eq!(status["agent"]["running"], true);
}

#[test]
fn without_an_agent_scope_containers_is_not_called_enforcing() {
    let site = Site::new();
    let in_scope =
        |scope: &str| policy("enforce", SHUT).replace("\"host\"", &format!("\"{scope}\""));
    let guard = Guard::start(&site.lab, &in_scope("containers")).unwrap();
    assert_eq!(guard.json("status").unwrap()["enforcing"], true);
    guard.pause().unwrap();
    let follows = "no agent follows the containers";
    for trouble in ["it hangs", "it is dead"] {
        if trouble == "it is dead" {
            // A hung agent that is killed is reported as dead.
            run(Command::new("kill").args(["-KILL", &guard.pid().to_string()])).unwrap();
        }
        wait_for(Duration::from_secs(10), || {
            let status = site.status();
            anyhow::ensure!(status["agent"]["trouble"] == trouble, "{status}");
            Ok(())
        })
        .unwrap();
        let status = site.status();
        assert_eq!(status["enforcing"], false, "{trouble}: {status}");
        let why = status["not_enforcing_because"].to_string();
        assert!(why.contains(follows), "{trouble}: {why}");
        let text = site.guard(&["status"]);
        assert!(
            text.contains("NOT ENFORCING") && text.contains(&format!("because {follows}")),
            "{text}"
        );
    }
    let audit = output(&site.lab, &["audit", "--docker", "", "--json"]).unwrap();
    let report: Value = serde_json::from_slice(&audit.stdout).unwrap();
    assert_eq!(report["policy"]["guard"], "unknown", "{report:#}");

    // In mode observe no obstacle is reported, and in scope `host` the kernel enforces without an agent.
    drop(guard);
    write_policy(
        &site.lab,
        &in_scope("containers").replace("enforce", "observe"),
    )
    .unwrap();
    Guard::start_again(&site.lab).unwrap().kill().unwrap();
    let status = site.status();
    assert_eq!(status["not_enforcing_because"], json!([]), "{status}");
    write_policy(&site.lab, &in_scope("host")).unwrap();
    Guard::start_again(&site.lab).unwrap().kill().unwrap();
    let status = site.status();
    assert_eq!(
        (&status["enforcing"], &status["not_enforcing_because"]),
        (&json!(true), &json!([])),
        "{status}"
    );
}

#[test]
fn a_reload_swaps_the_policy_and_a_broken_one_leaves_what_was() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    assert_eq!(site.get(), CLOSED);
    site.write("enforce", OPEN_80);
    guard.run(&["reload"]).unwrap();
    assert_eq!(site.get(), OPEN);
    let before = guard.json("status").unwrap();
    for (broken, words) in [
        ("mode = \"enfroce\"\n", "guard.toml:1: "),
        ("interfaces = [\"nowhere\"]\n", "nowhere does not exist"),
    ] {
        write_policy(&site.lab, broken).unwrap();
        let code = if broken.contains("mode") { 2 } else { 1 };
        fails(&output(&site.lab, &["reload"]).unwrap(), code, &[words]);
        assert_eq!(site.get(), OPEN, "{broken}");
        assert_eq!(
            guard.json("status").unwrap()["interfaces"],
            before["interfaces"]
        );
    }
    site.write("enforce", SHUT);
    guard.reload_by_signal().unwrap();
    wait_for(Duration::from_secs(10), || {
        let status = guard.json("status")?;
        anyhow::ensure!(status["interfaces"][0]["generation"] == 3, "{status}");
        Ok(())
    })
    .unwrap();
    assert_eq!(site.get(), CLOSED);
}

#[test]
fn counters_go_on_over_reloads_and_old_generations_are_freed() {
    let site = Site::new();
    let limited = |rate: &str| format!("{OPEN_80}limit.packets = \"{rate}\"\n");
    let guard = site.start("enforce", &limited("1k/s"));
    let bpftool = |arguments: &[&str]| -> Value {
        let text = run(Command::new("bpftool").arg("--json").args(arguments)).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    // All generations use the same counters.
    let pin = pins_of(&site.lab, INTERFACE).join("COUNTERS_0");
    let counters = bpftool(&["map", "show", "pinned", pin.to_str().unwrap()])["id"].clone();
    let programs = || {
        let list = bpftool(&["prog", "list"]);
        let uses_them = |program: &&Value| {
            let maps = program["map_ids"].as_array();
            maps.is_some_and(|maps| maps.contains(&counters))
        };
        list.as_array().unwrap().iter().filter(uses_them).count()
    };
    assert_eq!(site.get(), OPEN);
    let one = programs();
    assert!(one > 0, "bpftool does not see the program");
    let allowed = || guard.packets(&[("service", json!("web"))]).unwrap();
    let mut seen = allowed();
    assert!(seen > 0);
    // Other services come and go before `web` in the policy.
    for round in 0..6 {
        let extra = if round % 2 == 0 {
            "[[service]]\nname = \"ssh\"\nports = [\"tcp/22\"]\nlimit.packets = \"5/s\"\n"
        } else {
            ""
        };
        site.write("enforce", &format!("{extra}{}", limited("2k/s")));
        guard.run(&["reload"]).unwrap();
        assert_eq!(site.get(), OPEN);
        let now = allowed();
        assert!(now > seen, "round {round}: {now} after {seen}");
        seen = now;
    }
    wait_for(Duration::from_secs(5), || {
        anyhow::ensure!(
            programs() == one,
            "{} programs instead of {one}",
            programs()
        );
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_budget_is_not_refilled_by_a_reload_or_a_restart() {
    let site = Site::new();
    let limited = format!("{OPEN_80}limit.connections = {{ rate = \"1/h\", burst = 2 }}\n");
    let guard = site.start("enforce", &limited);
    assert_eq!(site.get(), OPEN);
    assert_eq!(site.get(), OPEN);
    assert_eq!(site.get(), CLOSED, "over its budget");
    guard.run(&["reload"]).unwrap();
    assert_eq!(site.get(), CLOSED, "after a reload");
    guard.kill().unwrap();
    let _guard = Guard::start_again(&site.lab).unwrap();
    assert_eq!(site.get(), CLOSED, "after a restart");
}

#[test]
fn numbers_of_services_that_are_gone_are_used_again_and_nobody_else_loses_anything() {
    let site = Site::new();
    // Only services with limits have cells; `web` keeps its own.
    let web = format!("{OPEN_80}limit.connections = {{ rate = \"1/h\", burst = 2 }}\n");
    let batch = |name: &str| {
        let services = (0..1_000).map(|n| {
            let port = 1_000 + n;
            format!("[[service]]\nname = \"{name}{n}\"\nports = [\"tcp/{port}\"]\nfrom = [\"192.0.2.0/24\"]\n")
        });
        web.clone() + &services.collect::<String>()
    };
    let knock = || get(&site.lab, USER_V4, HOST_V4, 1_000).unwrap();
    let of_batch = |guard: &Guard, name: &str| {
        guard
            .packets(&[("service", json!(format!("{name}0")))])
            .unwrap()
    };
    let guard = site.start("enforce", &batch("a"));
    assert_eq!((site.get(), site.get(), site.get()), (OPEN, OPEN, CLOSED));
    assert_eq!(knock(), CLOSED);
    assert!(of_batch(&guard, "a") > 0);
    let counted = |guard: &Guard| guard.packets(&[("service", json!("web"))]).unwrap();
    let before = counted(&guard);
    for name in ["b", "c"] {
        site.write("enforce", &batch(name));
        guard.run(&["reload"]).unwrap();
        assert_eq!(
            site.get(),
            CLOSED,
            "the budget of web is not refilled at {name}"
        );
        assert!(
            counted(&guard) > before,
            "the counters of web continue at {name}"
        );
    }
    assert_eq!(
        of_batch(&guard, "c"),
        0,
        "c0 has the service id of an a service, and its counters start at 0"
    );
    let all = guard.json("counters").unwrap();
    let of_c = |row: &Value| {
        row["service"]
            .as_str()
            .is_some_and(|name| name.starts_with('c'))
    };
    assert!(!all.as_array().unwrap().iter().any(of_c), "{all}");
    assert_eq!(knock(), CLOSED);
    assert!(of_batch(&guard, "c") > 0);
    let log = guard.log();
    assert!(
        log.contains("are used again") && log.contains(" more"),
        "{log}"
    );
    guard.kill().unwrap();
    let guard = Guard::start_again(&site.lab).unwrap();
    assert!(of_batch(&guard, "c") > 0, "after a restart");
    assert_eq!(site.get(), CLOSED);
}

#[test]
fn what_is_left_at_the_end_is_the_policys_choice() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    assert!(guard.stop().unwrap().success());
    assert_eq!(site.get(), CLOSED, "keep is the default");
    let guard = site.start("enforce", "on_exit = \"detach\"\n");
    assert_eq!(site.get(), CLOSED);
    assert!(guard.stop().unwrap().success());
    assert_eq!(site.get(), OPEN);
    assert_eq!(site.attached(), "");
    assert!(!site.lab.pins().exists(), "not all pins were removed");
}

#[test]
fn off_and_detach_work_with_an_agent_that_hangs_and_with_none() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    assert_eq!(site.get(), CLOSED);
    guard.pause().unwrap();
    let text = site.guard(&["mode", "off"]);
    assert!(text.contains("everything passes on wan"), "{text}");
    assert_eq!(site.get(), OPEN, "mode off, and the agent hangs");
    assert_eq!(site.status()["agent"]["trouble"], "it hangs");
    guard.resume().unwrap();
    wait_for(Duration::from_secs(10), || {
        let status = guard.json("status")?;
        anyhow::ensure!(
            status["mode"] == "off" && status["interfaces"][0]["attached"] == true,
            "{status}"
        );
        Ok(())
    })
    .unwrap();
    assert_eq!(site.get(), OPEN, "the resumed agent keeps mode off");
    guard.run(&["mode", "policy"]).unwrap();
    assert_eq!(site.get(), CLOSED);

    guard.kill().unwrap();
    site.guard(&["mode", "off"]);
    assert_eq!(site.get(), OPEN, "mode off, and no agent");
    let guard = Guard::start_again(&site.lab).unwrap();
    assert_eq!(site.get(), OPEN, "a new agent keeps mode off");
    guard.run(&["mode", "policy"]).unwrap();
    assert_eq!(site.get(), CLOSED);

    guard.pause().unwrap();
    site.guard(&["detach"]);
    assert_eq!((site.get(), site.attached()), (OPEN, String::new()));
    guard.resume().unwrap();
    guard.wait(Duration::from_secs(60)).unwrap();
    assert_eq!(
        site.attached(),
        "",
        "the agent has attached no program again"
    );

    let guard = Guard::start_again(&site.lab).unwrap();
    assert_eq!(site.get(), CLOSED);
    guard.kill().unwrap();
    site.guard(&["detach"]);
    assert_eq!((site.get(), site.attached()), (OPEN, String::new()));
    assert!(!site.lab.pins().exists(), "not all pins were removed");
}

#[test]
fn modes_change_at_once_for_the_host_and_for_a_service() {
    let site = Site::new();
    let restricted = format!("{OPEN_80}from = [\"192.0.2.0/24\"]\n");
    let guard = site.start("enforce", &restricted);
    assert_eq!(site.get(), CLOSED);
    guard.run(&["mode", "observe", "--service", "web"]).unwrap();
    assert_eq!(site.get(), OPEN);
    guard.run(&["mode", "enforce", "--service", "web"]).unwrap();
    assert_eq!(site.get(), CLOSED);
    guard.run(&["mode", "observe"]).unwrap();
    assert_eq!(
        site.get(),
        OPEN,
        "a service is never stricter than the host"
    );
    let status = guard.json("status").unwrap();
    assert_eq!(status["mode"], "observe");
    assert_eq!(status["modes"][0]["by"], "root", "{status}");
    guard.run(&["reload"]).unwrap();
    assert_eq!(site.get(), OPEN, "a reload keeps an operator's mode");
    guard.run(&["mode", "policy"]).unwrap();
    assert_eq!(site.get(), CLOSED);
    let wrong = output(&site.lab, &["mode", "off", "--service", "wbe"]).unwrap();
    fails(&wrong, 1, &["no service \"wbe\"", "web"]);
}

#[test]
fn entries_are_in_force_at_once_end_in_time_and_survive_a_restart() {
    with_enough_time(|attempt| {
        let site = Site::new();
        let restricted = format!("{OPEN_80}from = [\"192.0.2.0/24\"]\n");
        let guard = site.start("enforce", &restricted);
        assert_eq!(site.get(), CLOSED);
        let user = USER_V4.to_string();
        let list = || guard.json("list").unwrap();
        guard
            .run(&[
                "allow",
                &user,
                "--service",
                "web",
                "--for",
                "1h",
                "--owner",
                "ana",
                "--reason",
                "a call",
            ])
            .unwrap();
        assert_eq!(site.get(), OPEN);
        assert_eq!(list()[0]["owner"], "ana");
        assert_eq!(list()[0]["service"], "web");
        guard.run(&["deny", "198.51.100.0/24"]).unwrap();
        assert_eq!(
            site.get(),
            CLOSED,
            "an allow entry for one service lifts no denial"
        );
        guard.run(&["allow", &user]).unwrap();
        assert_eq!(
            site.get(),
            OPEN,
            "an allow entry for all services lifts the denial"
        );
        guard.kill().unwrap();
        assert_eq!(site.get(), OPEN, "with no agent");
        let guard = Guard::start_again(&site.lab).unwrap();
        assert_eq!(site.get(), OPEN, "after a restart");
        assert_eq!(guard.json("list").unwrap().as_array().unwrap().len(), 3);
        for id in ["1", "3"] {
            guard.run(&["revoke", id]).unwrap();
        }
        assert_eq!(site.get(), CLOSED);
        let why = guard
            .run(&["explain", "--from", &user, "--to", "80/tcp"])
            .unwrap();
        assert!(why.contains("denied_source"), "{why}");
        assert!(why.contains("entry 2 denies 198.51.100.0/24"), "{why}");
        fails(
            &output(&site.lab, &["revoke", "1"]).unwrap(),
            1,
            &["no entry 1", "guard list"],
        );
        guard.run(&["revoke", "2"]).unwrap();
        // Revoked by prefix: only the entries of one owner.
        let list = "192.0.2.0/24";
        for (owner, at) in [
            ("feed", &[][..]),
            ("feed", &["--service", "web"]),
            ("ana", &[]),
        ] {
            let deny = [&["deny", list, "--for", "forever", "--owner", owner], at].concat();
            guard.run(&deny).unwrap();
        }
        fails(
            &output(&site.lab, &["revoke", list]).unwrap(),
            2,
            &["several owners", "ana", "feed", "--owner"],
        );
        let text = guard.run(&["revoke", list, "--owner", "feed"]).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        let left = guard.json("list").unwrap();
        assert_eq!(
            (left.as_array().unwrap().len(), &left[0]["owner"]),
            (1, &"ana".into()),
            "{left}"
        );
        fails(
            &output(&site.lab, &["revoke", list, "--owner", "feed"]).unwrap(),
            1,
            &["there is no entry"],
        );
        // All that are left are of one owner.
        guard.run(&["revoke", list]).unwrap();
        guard.run(&["mode", "off", "--service", "web"]).unwrap();
        assert_eq!(site.get(), OPEN);
        attempt.begin(4, |time| {
            guard.run(&["deny", &user, "--for", time]).unwrap();
        });
        guard.pause().unwrap();
        assert_eq!(site.get(), CLOSED);
        attempt.wait_for_end();
        assert_eq!(site.get(), OPEN, "the entry expires in the kernel");
        guard.resume().unwrap();
        wait_for(Duration::from_secs(5), || {
            let list = guard.json("list")?;
            anyhow::ensure!(list == json!([]), "{list}");
            Ok(())
        })
        .unwrap();
    });
}

#[test]
fn a_deny_that_covers_the_operator_is_refused_without_force() {
    let site = Site::new();
    let _guard = site.start("enforce", OPEN_80);
    let deny = |extra: &[&str]| {
        let mut command = site.lab.host.command(binary().unwrap().to_str().unwrap());
        command
            .args(location_options(&site.lab))
            .args(["deny", "198.51.100.0/24"])
            .args(extra)
            .env("SSH_CONNECTION", format!("{USER_V4} 50000 {HOST_V4} 22"))
            .output()
            .unwrap()
    };
    fails(&deny(&[]), 1, &["198.51.100.7", "--force"]);
    assert_eq!(site.get(), OPEN);
    assert!(deny(&["--force"]).status.success());
    assert_eq!(site.get(), CLOSED);
}

#[test]
fn more_entries_than_there_is_room_for_still_get_in() {
    let site = Site::new();
    let guard = site.start("enforce", OPEN_80);
    // More entries than the table of the loaded generation has room for.
    let many = (0..260_u32).map(|n| format!("10.0.{}.{}", n / 256, n % 256));
    deny_all(&site.lab, many);
    assert_eq!(site.get(), OPEN);
    deny_all(&site.lab, [USER_V4.to_string()].into_iter());
    assert_eq!(site.get(), CLOSED);
    let status = guard.json("status").unwrap();
    assert_eq!(
        status["interfaces"][0]["generation"], 2,
        "the first generation had no room"
    );
    assert_eq!(guard.json("list").unwrap().as_array().unwrap().len(), 261);
}

/// Denies each address with one request to the control API, by curl.
fn deny_all(lab: &Lab, addresses: impl Iterator<Item = String>) {
    let socket = lab.folder().join("guard.sock");
    let requests: Vec<String> = addresses
        .map(|address| {
            let body = json!({"action": "deny", "prefix": format!("{address}/32")}).to_string();
            format!(
                "silent\nshow-error\nfail-with-body\nunix-socket = {:?}\njson = {body:?}\n\
                 url = \"http://guard/v1/entries\"\noutput = \"/dev/null\"\n",
                socket.display().to_string()
            )
        })
        .collect();
    let config = lab.folder().join("curl.conf");
    fs::write(&config, requests.join("next\n")).unwrap();
    run(Command::new("curl").arg("--config").arg(&config)).unwrap();
}

fn other_policy(site: &Site, extra: &str) -> PathBuf {
    let path = site.lab.folder().join("other.toml");
    fs::write(&path, policy("enforce", extra)).unwrap();
    path
}

#[test]
fn a_policy_on_trial_goes_back_unless_it_is_confirmed() {
    with_enough_time(|attempt| {
        let site = Site::new();
        let guard = site.start("enforce", OPEN_80);
        let path = other_policy(&site, SHUT);
        let path = path.to_str().unwrap();
        let try_it = |time: &str| {
            guard.run(&["try", path, "--for", time]).unwrap();
        };
        attempt.begin(4, try_it);
        assert_eq!(site.get(), CLOSED);
        assert!(guard.json("status").unwrap()["trial"]["until"].is_string());
        attempt.wait_for_end();
        assert_eq!(site.get(), OPEN, "the trial has ended");
        wait_until_no_trial(&guard);
        fails(
            &output(&site.lab, &["confirm"]).unwrap(),
            1,
            &["no policy is being tried"],
        );
        attempt.begin(3, try_it);
        guard.run(&["confirm"]).unwrap();
        attempt.wait_for_end();
        assert_eq!(site.get(), CLOSED, "confirmed");
        assert!(guard.log().contains("confirmed"), "{}", guard.log());
    });
}

#[test]
fn a_trial_goes_back_in_the_kernel_when_the_agent_dies() {
    with_enough_time(|attempt| {
        let site = Site::new();
        let guard = site.start("enforce", OPEN_80);
        // The trial uses the policy file itself, as after an edit.
        let path = site.write("enforce", SHUT);
        attempt.begin(4, |time| {
            guard.run(&["try", &path, "--for", time]).unwrap();
        });
        guard.kill().unwrap();
        assert_eq!(site.get(), CLOSED);
        attempt.wait_for_end();
        assert_eq!(
            site.get(),
            OPEN,
            "the kernel has not ended the trial by itself"
        );
        let status = site.status();
        assert_eq!(status["agent"]["running"], false);
        assert!(status["policy"]["stale"].is_string(), "{status}");

        let guard = Guard::start_again(&site.lab).unwrap();
        assert_eq!(
            site.get(),
            OPEN,
            "a policy that was not confirmed is not loaded again"
        );
        let status = guard.json("status").unwrap();
        let stale = status["policy"]["stale"].as_str().unwrap();
        assert!(stale.contains("not confirmed"), "{stale}");
        guard.run(&["reload"]).unwrap();
        assert_eq!(site.get(), CLOSED, "a reload loads it");
    });
}

#[test]
fn a_policy_file_that_breaks_while_no_agent_runs_does_not_open_the_host() {
    let site = Site::new();
    let guard = site.start("enforce", SHUT);
    guard.kill().unwrap();
    site.guard(&["detach"]);
    assert_eq!(site.get(), OPEN);
    write_policy(&site.lab, "mode = \"enfo").unwrap();
    let guard = Guard::start_again(&site.lab).unwrap();
    assert_eq!(site.get(), CLOSED, "the last policy in force is loaded");
    assert!(guard.log().contains("guard.toml:1"), "{}", guard.log());
    let status = guard.json("status").unwrap();
    assert!(status["policy"]["stale"].is_string(), "{status}");
}

#[test]
fn a_broken_state_file_is_set_aside_and_what_is_sound_in_it_is_used() {
    let site = Site::new();
    let guard = site.start("enforce", OPEN_80);
    let user = USER_V4.to_string();
    guard.run(&["deny", &user]).unwrap();
    guard.run(&["deny", "192.0.2.1"]).unwrap();
    guard.kill().unwrap();
    let path = site.lab.state().join("state.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let broken = text.replace("192.0.2.1", "192.0.2.1/");
    assert_ne!(text, broken);
    fs::write(&path, &broken[..broken.len() - 3]).unwrap();
    let guard = Guard::start_again(&site.lab).unwrap();
    assert_eq!(site.get(), CLOSED);
    assert_eq!(guard.json("list").unwrap().as_array().unwrap().len(), 1);
    let log = guard.log();
    assert!(log.contains("the state file is broken"), "{log}");
    assert!(log.contains("state.broken-"), "{log}");
}

#[test]
fn an_interface_that_comes_back_is_guarded_again_and_a_second_one_is_too() {
    let site = Site::new();
    let host = &site.lab.host;
    let second = |site: &Site| {
        let peer = site.lab.host.name();
        site.lab
            .internet
            .ip(&format!(
                "link add second type veth peer name lan.7 netns {peer}"
            ))
            .unwrap();
        site.lab.internet.ip("link set second up").unwrap();
        site.lab.host.ip("link set lan.7 up").unwrap();
    };
    let both = policy("enforce", SHUT).replace("[\"wan\"]", "[\"wan\", \"lan.7\"]");
    let guard = Guard::start(&site.lab, &both).unwrap();
    let attached = |expected: [bool; 2]| {
        wait_for(Duration::from_secs(15), || {
            let status = guard.json("status")?;
            let found = [0, 1].map(|n| status["interfaces"][n]["attached"] == true);
            anyhow::ensure!(found == expected, "{status}");
            Ok(())
        })
        .unwrap();
    };
    // An interface that does not exist yet is guarded when it appears.
    attached([true, false]);
    second(&site);
    attached([true, true]);
    host.ip("link del lan.7").unwrap();
    attached([true, false]);
    assert_eq!(guard.json("status").unwrap()["enforcing"], false);
    second(&site);
    attached([true, true]);
    assert_eq!(guard.json("status").unwrap()["enforcing"], true);
    let link = host.ip("-details link show lan.7").unwrap();
    assert!(link.contains("prog/xdp"), "{link}");
}

#[test]
fn somebody_elses_program_is_named_and_taken_off_by_force_alone() {
    let site = Site::new();
    let guard = site.start("enforce", OPEN_80);
    let pins = site.keep_program(&guard);
    guard.remove().unwrap();
    site.put_foreign(INTERFACE, &pins);
    let path = site.write("enforce", SHUT);
    let refused = output(&site.lab, &["run", "--policy", &path]).unwrap();
    fails(
        &refused,
        1,
        &["already has an XDP program, \"guard\"", "--force"],
    );
    let mut command = site.lab.host.command(binary().unwrap().to_str().unwrap());
    command
        .args(location_options(&site.lab))
        .args(["run", "--force", "--policy", &path]);
    let log = site.lab.folder().join("forced.log");
    let _daemon = lab::process::Daemon::start(&mut command, &log).unwrap();
    wait_for(Duration::from_secs(10), || {
        anyhow::ensure!(site.get() == CLOSED, "{}", fs::read_to_string(&log)?);
        Ok(())
    })
    .unwrap();
}

#[test]
fn the_agent_keeps_no_more_privileges_than_it_needs() {
    let site = Site::new();
    let guard = site.start("enforce", OPEN_80);
    let status = fs::read_to_string(format!("/proc/{}/status", guard.pid())).unwrap();
    let mask = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        let number = line.split_whitespace().nth(1).unwrap();
        u64::from_str_radix(number, 16).unwrap()
    };
    // CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF (linux/capability.h).
    let needed = 1 << 12 | 1 << 38 | 1 << 39;
    assert_eq!(mask("CapEff:"), needed);
    assert_eq!(mask("CapPrm:"), needed);
    // These capabilities are enough for a reload, a mode, an entry and a detach.
    site.write("enforce", SHUT);
    guard.run(&["reload"]).unwrap();
    assert_eq!(site.get(), CLOSED);
    guard.run(&["mode", "observe"]).unwrap();
    assert_eq!(site.get(), OPEN);
    let user: IpAddr = USER_V6;
    guard.run(&["deny", &user.to_string()]).unwrap();
    guard.remove().unwrap();
    assert_eq!(site.attached(), "");
}

#[test]
fn a_policy_that_would_cut_the_ssh_session_it_is_applied_from_is_refused_with_the_session_named() {
    let lab = Lab::new().unwrap();
    lab.internet
        .ip(&format!("route add {HOST_V4} dev internet src {USER_V4}"))
        .unwrap();
    let ssh = Ssh::start(&lab).unwrap();
    let open_22 = "[[service]]\nname = \"ssh\"\nports = [\"tcp/22\"]\n";
    let guard = Guard::start(&lab, &policy("enforce", open_22)).unwrap();
    let other = lab.folder().join("other.toml");
    fs::write(&other, policy("enforce", OPEN_80)).unwrap();
    write_policy(&lab, &policy("enforce", OPEN_80)).unwrap();
    let over_ssh = |arguments: &str| {
        let places: Vec<String> = location_options(&lab)
            .iter()
            .map(|place| place.to_string_lossy().into_owned())
            .collect();
        let binary = binary().unwrap();
        // sudo removes SSH_CONNECTION from the environment, as `env -i` does.
        let command = format!(
            "env -i {} {} {arguments}",
            binary.display(),
            places.join(" ")
        );
        ssh.output(&lab, HOST_V4, &format!("{command}; exit $?"))
            .unwrap()
    };
    let before = guard.json("status").unwrap();
    for command in ["reload", &format!("try {} --for 60s", other.display())] {
        let words = ["198.51.100.7", "203.0.113.10:22", "closed_port", "--force"];
        fails(&over_ssh(command), 1, &words);
        let after = guard.json("status").unwrap();
        assert_eq!(after["interfaces"], before["interfaces"], "{command}");
    }
    // In mode observe the policy cuts no session and is accepted. `mode enforce` is then refused, too.
    write_policy(&lab, &policy("observe", OPEN_80)).unwrap();
    let observed = over_ssh("reload");
    assert!(observed.status.success(), "{observed:?}");
    fails(&over_ssh("mode enforce"), 1, &["198.51.100.7", "--force"]);
    assert_eq!(guard.json("status").unwrap()["mode"], "observe");
    assert!(ssh.output(&lab, HOST_V4, "true").unwrap().status.success());
    // A command that does not come over SSH locks out no operator: it is accepted.
    guard.run(&["mode", "enforce"]).unwrap();
    assert_eq!(guard.json("status").unwrap()["mode"], "enforce");
}

#[test]
fn a_bpf_file_system_is_mounted_where_there_is_none_and_elsewhere_the_place_is_named() {
    let site = Site::new();
    let path = site.write("enforce", SHUT);
    let run_at = |pins: &str, mounts: &str| {
        let mut command = site.lab.host.command("unshare");
        // In a mount namespace of the command, so that the mounts end with it.
        let script = format!("{mounts} exec \"$@\"");
        command.args(["--mount", "--", "sh", "-c", &script, "sh"]);
        command.arg(binary().unwrap());
        command
            .arg("--socket")
            .arg(site.lab.folder().join("guard.sock"));
        command
            .args(["--pins", pins, "--state"])
            .arg(site.lab.state());
        command.args(["run", "--policy", &path]);
        command
    };
    let refused = run_at(site.lab.folder().to_str().unwrap(), "")
        .output()
        .unwrap();
    fails(
        &refused,
        1,
        &["is on no BPF file system", "mount -t bpf", "--pins"],
    );
    assert_eq!(site.get(), OPEN);
    // An empty /sys/fs/bpf, without a BPF file system that the machine may have there.
    let bare = "mount -t tmpfs none /sys/fs && mkdir /sys/fs/bpf && ";
    let pins = format!("/sys/fs/bpf/{}", site.lab.name());
    let log = site.lab.folder().join("mounting.log");
    let _agent = lab::process::Daemon::start(&mut run_at(&pins, bare), &log).unwrap();
    wait_for(Duration::from_secs(20), || {
        anyhow::ensure!(site.get() == CLOSED, "{}", fs::read_to_string(&log)?);
        Ok(())
    })
    .unwrap();
}

#[test]
fn what_was_done_while_an_agent_hung_holds_whatever_it_writes_when_it_wakes_up() {
    with_enough_time(|attempt| {
        let site = Site::new();
        let guard = site.start("enforce", SHUT);
        // An entry expires meanwhile, so the resumed agent writes its state.
        attempt.begin(2, |time| {
            guard.run(&["deny", "192.0.2.1", "--for", time]).unwrap();
        });
        guard.pause().unwrap();
        attempt.wait_for_end();
        site.guard(&["mode", "off"]);
        guard.resume().unwrap();
        wait_for(Duration::from_secs(10), || {
            let list = guard.json("list")?;
            anyhow::ensure!(list == json!([]), "{list}");
            Ok(())
        })
        .unwrap();
        assert_eq!(guard.json("status").unwrap()["mode"], "off");
        assert_eq!(site.get(), OPEN);
    });
}

#[test]
fn a_change_during_a_trial_goes_back_to_the_policy_before_it() {
    with_enough_time(|attempt| {
        let site = Site::new();
        let guard = site.start("enforce", SHUT);
        let path = other_policy(&site, OPEN_80);
        attempt.begin(4, |time| {
            guard
                .run(&["try", path.to_str().unwrap(), "--for", time])
                .unwrap();
        });
        assert_eq!(site.get(), OPEN);
        guard.run(&["mode", "observe", "--service", "web"]).unwrap();
        guard.kill().unwrap();
        attempt.wait_for_end();
        assert_eq!(
            site.get(),
            CLOSED,
            "the kernel has ended the trial, with no agent"
        );
        assert_eq!(site.status()["mode"], "enforce");
    });
}

#[test]
fn a_denial_at_one_service_holds_through_whatever_else_changes_and_ends_when_it_does() {
    with_enough_time(|attempt| {
        let site = Site::new();
        let guard = site.start("enforce", OPEN_80);
        let user = USER_V4.to_string();
        let deny = |extra: &[&str]| {
            let command = [&["deny", &user, "--service", "web"], extra].concat();
            site.guard(&command);
        };
        let limited = other_policy(&site, &format!("{OPEN_80}limit.packets = \"1k/s\"\n"));
        let limited = limited.to_str().unwrap().to_owned();
        // The denial holds over modes, a reload and a restart.
        deny(&[]);
        assert_eq!(site.get(), CLOSED);
        guard.run(&["mode", "observe", "--service", "web"]).unwrap();
        assert_eq!(site.get(), OPEN, "observed");
        guard.run(&["mode", "policy", "--service", "web"]).unwrap();
        assert_eq!(site.get(), CLOSED);
        guard
            .run(&[
                "deny",
                &user,
                "--service",
                "web",
                "--for",
                "1h",
                "--owner",
                "other",
            ])
            .unwrap();
        guard.run(&["revoke", "2"]).unwrap();
        assert_eq!(site.get(), CLOSED, "the first denial still holds");
        site.write(
            "enforce",
            &format!("[[service]]\nname = \"ssh\"\nports = [\"tcp/22\"]\n{OPEN_80}"),
        );
        guard.run(&["reload"]).unwrap();
        assert_eq!(site.get(), CLOSED, "after a reload");
        guard.kill().unwrap();
        assert_eq!(site.get(), CLOSED, "with no agent");
        let guard = Guard::start_again(&site.lab).unwrap();
        assert_eq!(site.get(), CLOSED, "after a restart");
        // The denial is revoked during a trial, and the trial ends.
        let try_limited = |guard: &Guard, time: &str| {
            guard.run(&["try", &limited, "--for", time]).unwrap();
        };
        attempt.begin(5, |time| try_limited(&guard, time));
        assert_eq!(site.get(), CLOSED, "on trial");
        guard.run(&["revoke", "1"]).unwrap();
        assert_eq!(site.get(), OPEN, "revoked on trial");
        attempt.wait_for_end();
        assert_eq!(site.get(), OPEN, "revoked, and the trial has ended");
        wait_until_no_trial(&guard);
        // The denial begins during a trial, and the kernel ends the trial by itself.
        attempt.begin(5, |time| try_limited(&guard, time));
        deny(&[]);
        assert_eq!(site.get(), CLOSED);
        guard.kill().unwrap();
        attempt.wait_for_end();
        assert_eq!(
            site.get(),
            CLOSED,
            "the kernel has ended the trial, with no agent"
        );
        let guard = Guard::start_again(&site.lab).unwrap();
        assert_eq!(site.get(), CLOSED);
        // The denial is revoked while a policy without the service is on trial, and the kernel ends the trial.
        let shut = other_policy(&site, SHUT);
        attempt.begin(3, |time| {
            guard
                .run(&["try", shut.to_str().unwrap(), "--for", time])
                .unwrap();
        });
        guard.run(&["revoke", "3"]).unwrap();
        guard.kill().unwrap();
        attempt.wait_for_end();
        assert_eq!(
            site.get(),
            OPEN,
            "the kernel has ended the trial, with no agent"
        );
        let guard = Guard::start_again(&site.lab).unwrap();
        assert_eq!(site.get(), OPEN);
        // The denial expires without an agent, and another one begins after the restart.
        attempt.begin(4, |time| deny(&["--for", time]));
        guard.kill().unwrap();
        assert_eq!(site.get(), CLOSED);
        attempt.wait_for_end();
        assert_eq!(site.get(), OPEN, "the entry expires in the kernel");
        let guard = Guard::start_again(&site.lab).unwrap();
        assert_eq!(site.get(), OPEN);
        deny(&[]);
        assert_eq!(site.get(), CLOSED);
        guard.run(&["allow", &user, "--service", "web"]).unwrap();
        assert_eq!(site.get(), OPEN);
        guard.run(&["revoke", "6"]).unwrap();
        assert_eq!(site.get(), CLOSED);
    });
}

#[test]
fn the_end_is_as_the_policy_says_whoever_is_connected() {
    let site = Site::new();
    let guard = site.start("enforce", "on_exit = \"detach\"\n");
    let socket = site.lab.folder().join("guard.sock");
    let _idle = std::os::unix::net::UnixStream::connect(socket).unwrap();
    assert!(guard.stop().unwrap().success());
    site.wait_for_attached("");
    assert_eq!(site.get(), OPEN);
}

#[test]
fn a_denial_that_is_revoked_is_revoked_in_what_a_trial_goes_back_to_also_where_others_have_no_room()
{
    with_enough_time(|attempt| {
        let site = Site::new();
        let guard = site.start("enforce", OPEN_80);
        let path = other_policy(&site, &format!("{OPEN_80}limit.packets = \"1k/s\"\n"));
        guard
            .run(&["deny", &USER_V4.to_string(), "--service", "web"])
            .unwrap();
        attempt.begin(12, |time| {
            guard
                .run(&["try", path.to_str().unwrap(), "--for", time])
                .unwrap();
        });
        deny_all(
            &site.lab,
            (0..300_u32).map(|n| format!("10.0.{}.{}", n / 256, n % 256)),
        );
        assert_eq!(site.get(), CLOSED);
        guard.run(&["revoke", "1"]).unwrap();
        assert_eq!(site.get(), OPEN);
        thread::sleep(Duration::from_secs(2));
        guard.kill().unwrap();
        assert_eq!(site.get(), OPEN, "on trial");
        attempt.wait_for_end();
        assert_eq!(
            site.get(),
            OPEN,
            "the kernel has ended the trial, with no agent"
        );
    });
}

/// The policy before the trial has no room for all denials, but gets those that fit.
#[test]
fn a_denial_at_one_service_reaches_what_a_trial_goes_back_to_also_where_others_have_no_room() {
    with_enough_time(|attempt| {
        let site = Site::new();
        let guard = site.start("enforce", OPEN_80);
        let path = other_policy(&site, &format!("{OPEN_80}limit.packets = \"1k/s\"\n"));
        attempt.begin(12, |time| {
            guard
                .run(&["try", path.to_str().unwrap(), "--for", time])
                .unwrap();
        });
        deny_all(
            &site.lab,
            (0..300_u32).map(|n| format!("10.0.{}.{}", n / 256, n % 256)),
        );
        assert_eq!(site.get(), OPEN);
        guard
            .run(&["deny", &USER_V4.to_string(), "--service", "web"])
            .unwrap();
        assert_eq!(site.get(), CLOSED);
        thread::sleep(Duration::from_secs(2));
        guard.kill().unwrap();
        assert_eq!(site.get(), CLOSED, "on trial");
        attempt.wait_for_end();
        assert_eq!(
            site.get(),
            CLOSED,
            "the kernel has ended the trial, with no agent"
        );
    });
}

/// Waits until the agent, too, has noticed the end of a trial; the kernel ends it first.
fn wait_until_no_trial(guard: &Guard) {
    wait_for(Duration::from_secs(5), || {
        let status = guard.json("status")?;
        anyhow::ensure!(status["trial"].is_null(), "{status}");
        Ok(())
    })
    .unwrap();
}
