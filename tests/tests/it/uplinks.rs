//! Several guarded interfaces of one host: all of them share budgets, flows and entries, and each has its own counters.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use guard_common::layout;
use lab::{
    guard::{Guard, output, write_policy},
    http::{HttpOutcome, get},
    process::{run, wait_for},
    topology::{HOST_V4, INTERFACE, Lab, USER_V4},
};
use serde_json::{Value, json};

use crate::site::{CLOSED, OPEN, OPEN_80, SHUT, Site, fails, pins_of};

/// The second uplink, and the host's address on it.
const SECOND: &str = "wan2";
const HOST_THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 114, 10));

/// Adds a second veth pair between the lab's host and the internet.
fn add_uplink(lab: &Lab) {
    let (internet, host) = (&lab.internet, &lab.host);
    let peer = host.name();
    internet
        .ip(&format!(
            "link add internet2 type veth peer name {SECOND} netns {peer}"
        ))
        .unwrap();
    internet
        .ip("addr add 203.0.114.1/24 dev internet2")
        .unwrap();
    internet.ip("link set internet2 up").unwrap();
    host.ip(&format!("addr add {HOST_THERE}/24 dev {SECOND}"))
        .unwrap();
    host.ip(&format!("link set {SECOND} up")).unwrap();
}

fn policy(interfaces: &[&str], extra: &str) -> String {
    format!(
        "mode = \"enforce\"\ninterfaces = {interfaces:?}\nscope = \"host\"\ndocker.socket = \"\"\n{extra}"
    )
}

const BOTH: [&str; 2] = [INTERFACE, SECOND];

fn fetch(site: &Site, host: IpAddr) -> HttpOutcome {
    get(&site.lab, USER_V4, host, 80).unwrap()
}

/// Waits until port 80 has this outcome on each address: on a slow machine an open port may time out.
fn wait_for_outcome(hosts: &[IpAddr], outcome: HttpOutcome, site: &Site) {
    wait_for(Duration::from_secs(30), || {
        for host in hosts {
            let found = fetch(site, *host);
            anyhow::ensure!(found == outcome, "{host}: {found}");
        }
        Ok(())
    })
    .unwrap();
}

fn on(guard: &Guard, interface: &str, reason: &str) -> u64 {
    guard
        .packets(&[("interface", json!(interface)), ("reason", json!(reason))])
        .unwrap()
}

/// A UDP service with limited packets: each datagram is one packet, without retransmissions on a slow machine.
const GAME: &str = "[[service]]\nname = \"game\"\nports = [\"udp/5000\"]\n";

/// Sends datagrams from the user to the service `game`, and waits until the guard has counted them.
fn send_datagrams(site: &Site, guard: &Guard, host: IpAddr, count: u64) {
    let seen = || guard.packets(&[("service", json!("game"))]).unwrap();
    let before = seen();
    let send = || {
        let socket = UdpSocket::bind((USER_V4, 0)).unwrap();
        for _ in 0..count {
            socket.send_to(b"move", (host, 5_000)).unwrap();
        }
    };
    site.lab.internet.enter(send).unwrap();
    wait_for(Duration::from_secs(10), || {
        let now = seen();
        anyhow::ensure!(now == before + count, "{now} after {before}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn two_uplinks_do_not_double_a_budget() {
    let site = Site::new();
    add_uplink(&site.lab);
    for budget in ["limit", "total"] {
        let extra = format!("{GAME}{budget}.packets = {{ rate = \"1/h\", burst = 4 }}\n");
        let guard = Guard::start(&site.lab, &policy(&BOTH, &extra)).unwrap();
        for host in [HOST_V4, HOST_THERE, HOST_V4, HOST_THERE] {
            send_datagrams(&site, &guard, host, 3);
        }
        let over = if budget == "limit" {
            "packet_limit"
        } else {
            "total_limit"
        };
        // Each interface counts its own packets. Three and one pass, as on a single interface.
        let counted = BOTH.map(|interface| {
            let on = |reason| on(&guard, interface, reason);
            (on("allowed"), on(over))
        });
        assert_eq!(counted, [(3, 3), (1, 5)], "{budget}");
        guard.remove().unwrap();
    }
}

#[test]
fn an_uplink_that_comes_later_has_the_budgets_and_one_that_goes_leaves_them() {
    let site = Site::new();
    let extra = format!("{GAME}limit.packets = {{ rate = \"1/h\", burst = 3 }}\n");
    let guard = Guard::start(&site.lab, &policy(&[INTERFACE], &extra)).unwrap();
    send_datagrams(&site, &guard, HOST_V4, 1);
    add_uplink(&site.lab);
    write_policy(&site.lab, &policy(&BOTH, &extra)).unwrap();
    guard.run(&["reload"]).unwrap();
    let status = guard.json("status").unwrap();
    let interfaces = status["interfaces"].as_array().unwrap();
    let programs = interfaces.iter().map(|one| {
        let facts = ["program_id", "generation"];
        facts.map(|fact| one[fact].as_u64().unwrap())
    });
    let programs: Vec<[u64; 2]> = programs.collect();
    assert!(
        programs.len() == 2 && programs[0] == programs[1],
        "one program for both: {status}"
    );
    send_datagrams(&site, &guard, HOST_THERE, 1);
    let allowed = |interface| on(&guard, interface, "allowed");
    assert_eq!(BOTH.map(allowed), [1, 1]);

    // The second interface is removed and comes back: with the program in force and its own counters.
    site.lab.host.ip(&format!("link del {SECOND}")).unwrap();
    let enforcing = |expected: bool| {
        wait_for(Duration::from_secs(20), || {
            let status = guard.json("status")?;
            anyhow::ensure!(status["enforcing"] == expected, "{status}");
            Ok(())
        })
        .unwrap();
    };
    enforcing(false);
    add_uplink(&site.lab);
    enforcing(true);
    let status = guard.json("status").unwrap();
    let program = status["interfaces"][1]["program_id"].as_u64();
    assert_eq!(program, Some(programs[0][0]), "no other program was loaded");
    assert_eq!(allowed(SECOND), 1);
    send_datagrams(&site, &guard, HOST_THERE, 3);
    assert_eq!(BOTH.map(allowed), [1, 2], "the third packet, and no more");
    assert_eq!(on(&guard, SECOND, "packet_limit"), 2);

    // Without the second interface, the first continues with the same used-up budget.
    write_policy(&site.lab, &policy(&[INTERFACE], &extra)).unwrap();
    guard.run(&["reload"]).unwrap();
    assert!(!pins_of(&site.lab, SECOND).exists());
    send_datagrams(&site, &guard, HOST_V4, 2);
    assert_eq!(
        (allowed(INTERFACE), on(&guard, INTERFACE, "packet_limit")),
        (1, 2)
    );
    guard.remove().unwrap();
    assert!(!site.lab.pins().exists());
}

#[test]
fn an_uplink_that_is_gone_and_no_longer_named_leaves_nothing_behind() {
    let site = Site::new();
    let (one, both) = (policy(&[INTERFACE], OPEN_80), policy(&BOTH, OPEN_80));
    // The policy changes by a reload, at an agent's start, by a trial, and by a reload before an interface with the
    // name comes back.
    for way in ["reload", "start", "try", "unnamed"] {
        add_uplink(&site.lab);
        let guard = Guard::start(&site.lab, &both).unwrap();
        assert_eq!(guard.json("status").unwrap()["enforcing"], true, "{way}");
        site.lab.host.ip(&format!("link del {SECOND}")).unwrap();
        wait_for(Duration::from_secs(20), || {
            let status = guard.json("status")?;
            anyhow::ensure!(status["enforcing"] == false, "{status}");
            Ok(())
        })
        .unwrap();
        assert!(
            pins_of(&site.lab, SECOND).exists(),
            "{way}: the pins stay while the policy names the interface"
        );
        let guard = match way {
            "start" => {
                guard.kill().unwrap();
                Guard::start(&site.lab, &one).unwrap()
            }
            "try" => {
                let tried = site.lab.folder().join("tried.toml");
                fs::write(&tried, &one).unwrap();
                guard.run(&["try", tried.to_str().unwrap()]).unwrap();
                assert!(pins_of(&site.lab, SECOND).exists(), "the trial may end");
                guard.run(&["confirm"]).unwrap();
                guard
            }
            _ => {
                write_policy(&site.lab, &one).unwrap();
                guard.run(&["reload"]).unwrap();
                guard
            }
        };
        if way == "unnamed" {
            add_uplink(&site.lab);
            wait_for_outcome(&[HOST_THERE], OPEN, &site);
        }
        assert!(!pins_of(&site.lab, SECOND).exists(), "{way}");
        assert_eq!(guard.json("status").unwrap()["enforcing"], true, "{way}");
        guard.kill().unwrap();
        let status = site.status();
        assert_eq!(status["enforcing"], true, "{way}: {status}");
        let interfaces = status["interfaces"].as_array().unwrap();
        assert_eq!(interfaces.len(), 1, "{way}: {status}");
        site.guard(&["detach"]);
        assert!(
            !site.lab.pins().exists(),
            "{way}: not all pins were removed"
        );
        let links = site.lab.host.ip("-brief link").unwrap();
        if links.contains(SECOND) {
            site.lab.host.ip(&format!("link del {SECOND}")).unwrap();
        }
    }
}

#[test]
fn entries_trials_and_exits_reach_every_uplink() {
    let site = Site::new();
    add_uplink(&site.lab);
    let both = |outcome| wait_for_outcome(&[HOST_V4, HOST_THERE], outcome, &site);
    let guard = Guard::start(&site.lab, &policy(&BOTH, OPEN_80)).unwrap();
    both(OPEN);
    guard.run(&["deny", &USER_V4.to_string()]).unwrap();
    both(CLOSED);
    guard.run(&["revoke", "1"]).unwrap();
    both(OPEN);
    // The kernel ends a trial on both interfaces, without an agent.
    let tried = site.lab.folder().join("tried.toml");
    fs::write(&tried, policy(&BOTH, SHUT)).unwrap();
    guard
        .run(&["try", tried.to_str().unwrap(), "--for", "15s"])
        .unwrap();
    wait_for_outcome(&[HOST_THERE], CLOSED, &site);
    guard.kill().unwrap();
    both(OPEN);
    // The next agent guards both with one state; the emergency exits work without an agent. The policy differs from the
    // one tried: an agent does not load a policy that was tried and not confirmed.
    let shut = format!("{SHUT}# another\n");
    let guard = Guard::start(&site.lab, &policy(&BOTH, &shut)).unwrap();
    both(CLOSED);
    guard.kill().unwrap();
    site.guard(&["mode", "off"]);
    both(OPEN);
    let counters: Value = serde_json::from_str(&site.guard(&["counters", "--json"])).unwrap();
    for interface in BOTH {
        let rows = counters.as_array().unwrap();
        let counted = |reason: &str| {
            let mut rows = rows.iter();
            rows.any(|row| row["interface"] == interface && row["reason"] == reason)
        };
        assert!(
            counted("closed_port") && counted("not_guarded"),
            "{interface}: {counters}"
        );
    }
    let guard = Guard::start_again(&site.lab).unwrap();
    assert_eq!(guard.json("status").unwrap()["mode"], "off");
    guard.run(&["mode", "policy"]).unwrap();
    both(CLOSED);
    guard.kill().unwrap();
    site.guard(&["detach"]);
    both(OPEN);
    assert!(!site.lab.pins().exists(), "not all pins were removed");
}

#[test]
fn an_uplink_that_only_a_trial_guards_is_open_when_the_kernel_takes_it_back() {
    let site = Site::new();
    add_uplink(&site.lab);
    let guard = Guard::start(&site.lab, &policy(&[INTERFACE], SHUT)).unwrap();
    wait_for_outcome(&[HOST_V4], CLOSED, &site);
    let tried = site.lab.folder().join("tried.toml");
    fs::write(&tried, policy(&BOTH, &format!("{SHUT}# tried\n"))).unwrap();
    guard
        .run(&["try", tried.to_str().unwrap(), "--for", "15s"])
        .unwrap();
    wait_for_outcome(&[HOST_V4, HOST_THERE], CLOSED, &site);
    guard.kill().unwrap();
    // The interface was not guarded before the trial, so after the trial it is open.
    wait_for_outcome(&[HOST_THERE], OPEN, &site);
    wait_for_outcome(&[HOST_V4], CLOSED, &site);
    let status = site.status();
    let troubles =
        BTreeMap::from_iter(status["interfaces"].as_array().unwrap().iter().map(|one| {
            let name = one["name"].as_str().unwrap();
            (name, one["trouble"].as_str())
        }));
    assert_eq!(troubles[INTERFACE], None);
    let trouble = troubles[SECOND].unwrap();
    assert!(trouble.contains("the trial is over"), "{trouble}");
    let text = site.guard(&["status"]);
    assert!(text.contains(trouble), "{text}");
    Guard::start_again(&site.lab).unwrap().remove().unwrap();
}

/// The status without an agent, once the trial is over.
fn after_trial(site: &Site) -> Value {
    let mut status = Value::Null;
    wait_for(Duration::from_secs(40), || {
        status = site.status();
        anyhow::ensure!(status["policy"]["stale"].is_string(), "{status}");
        Ok(())
    })
    .unwrap();
    status
}

#[test]
fn an_uplink_that_goes_during_a_trial_without_it_is_missed_when_the_trial_ends() {
    let site = Site::new();
    let tried = site.lab.folder().join("tried.toml");
    fs::write(&tried, policy(&[INTERFACE], &format!("{SHUT}# tried\n"))).unwrap();
    let begin = || {
        add_uplink(&site.lab);
        let guard = Guard::start(&site.lab, &policy(&BOTH, SHUT)).unwrap();
        wait_for_outcome(&[HOST_THERE], CLOSED, &site);
        let before = on(&guard, SECOND, "closed_port");
        assert!(before > 0);
        let tried = tried.to_str().unwrap();
        guard.run(&["try", tried, "--for", "15s"]).unwrap();
        site.lab.host.ip(&format!("link del {SECOND}")).unwrap();
        (guard, before)
    };
    // Without an agent the status names it.
    let (guard, _) = begin();
    wait_for(Duration::from_secs(10), || {
        let status = guard.json("status")?;
        let interfaces = status["interfaces"].as_array().unwrap().len();
        anyhow::ensure!(interfaces == 1, "{status}");
        Ok(())
    })
    .unwrap();
    guard.kill().unwrap();
    let status = after_trial(&site);
    assert_eq!(status["enforcing"], false);
    let because = status["not_enforcing_because"].to_string();
    assert!(because.contains(SECOND), "{status}");
    site.guard(&["detach"]);
    // With an agent it goes on with its counters.
    let (guard, before) = begin();
    wait_for(Duration::from_secs(40), || {
        let status = guard.json("status")?;
        anyhow::ensure!(status["trial"].is_null(), "{status}");
        Ok(())
    })
    .unwrap();
    add_uplink(&site.lab);
    wait_for_outcome(&[HOST_THERE], CLOSED, &site);
    assert!(on(&guard, SECOND, "closed_port") > before);
    guard.remove().unwrap();
}

#[test]
fn after_a_trial_without_an_agent_the_status_is_that_of_the_policy_before() {
    let site = Site::new();
    let mut number = 0;
    // Each text is another: an agent refuses a text whose trial nobody confirmed.
    let mut scoped = |scope: &str| {
        number += 1;
        let text = policy(&[INTERFACE], &format!("{SHUT}# {number}\n"));
        text.replace("\"host\"", &format!("{scope:?}"))
    };
    let tried = site.lab.folder().join("tried.toml");
    for (scope, other, enforcing) in [("containers", "host", false), ("host", "containers", true)] {
        let guard = Guard::start(&site.lab, &scoped(scope)).unwrap();
        fs::write(&tried, scoped(other)).unwrap();
        let tried = tried.to_str().unwrap();
        guard.run(&["try", tried, "--for", "5s"]).unwrap();
        guard.kill().unwrap();
        let status = after_trial(&site);
        let found = (&status["scope"], &status["enforcing"]);
        assert_eq!(found, (&json!(scope), &json!(enforcing)), "{status}");
        site.guard(&["detach"]);
    }
    // The only interface of the policy before is gone.
    add_uplink(&site.lab);
    let guard = Guard::start(&site.lab, &policy(&[SECOND], SHUT)).unwrap();
    fs::write(&tried, policy(&[INTERFACE], &format!("{SHUT}# wan"))).unwrap();
    guard
        .run(&["try", tried.to_str().unwrap(), "--for", "10s"])
        .unwrap();
    site.lab.host.ip(&format!("link del {SECOND}")).unwrap();
    guard.kill().unwrap();
    let status = after_trial(&site);
    assert_eq!(status["enforcing"], false, "{status}");
    site.guard(&["detach"]);
}

#[test]
fn a_reload_that_one_of_two_refuses_leaves_both_as_they_were() {
    let site = Site::new();
    add_uplink(&site.lab);
    let guard = Guard::start(&site.lab, &policy(&BOTH, SHUT)).unwrap();
    let foreign = site.keep_program(&guard);
    let (internet, host) = (&site.lab.internet, &site.lab.host);
    let peer = internet.name();
    host.ip(&format!(
        "link add third type veth peer name lan.7 netns {peer}"
    ))
    .unwrap();
    host.ip("link set third up").unwrap();
    site.put_foreign("third", &foreign);
    let facts = || guard.json("status").unwrap()["interfaces"].clone();
    let before = facts();
    let three = [INTERFACE, SECOND, "third"];
    write_policy(&site.lab, &policy(&three, OPEN_80)).unwrap();
    let refused = output(&site.lab, &["reload"]).unwrap();
    fails(&refused, 1, &["third already has an XDP program"]);
    assert_eq!(facts(), before);
    assert!(!pins_of(&site.lab, "third").exists());
    assert_eq!(
        [HOST_V4, HOST_THERE].map(|host| fetch(&site, host)),
        [CLOSED; 2]
    );
    guard.remove().unwrap();
}

#[test]
fn an_answer_comes_in_by_another_uplink_than_the_query_left() {
    let site = Site::new();
    add_uplink(&site.lab);
    let (internet, host) = (&site.lab.internet, &site.lab.host);
    // The host sends over `wan`; the internet answers over the other interface.
    internet
        .ip(&format!(
            "route add {HOST_V4}/32 via {HOST_THERE} dev internet2"
        ))
        .unwrap();
    // A reverse path filter would drop the answer (RFC 3704).
    for interface in ["all", SECOND] {
        let setting = format!("net.ipv4.conf.{interface}.rp_filter=0");
        run(host.command("sysctl").args(["-q", "-w", &setting])).unwrap();
    }
    let server = internet
        .enter(|| UdpSocket::bind((USER_V4, 53)).unwrap())
        .unwrap();
    let client = host
        .enter(|| UdpSocket::bind((HOST_V4, 40_000)).unwrap())
        .unwrap();
    for socket in [&server, &client] {
        let patience = Some(Duration::from_secs(2));
        socket.set_read_timeout(patience).unwrap();
    }
    let guard = Guard::start(&site.lab, &policy(&BOTH, SHUT)).unwrap();
    let mut buffer = [0; 64];
    let us = SocketAddr::new(HOST_V4, 40_000);
    server.send_to(b"unasked", us).unwrap();
    wait_for(Duration::from_secs(5), || {
        anyhow::ensure!(on(&guard, SECOND, "closed_port") == 1);
        Ok(())
    })
    .unwrap();
    client.send_to(b"query", (USER_V4, 53)).unwrap();
    let (length, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from), (&b"query"[..], us));
    server.send_to(b"answer", us).unwrap();
    let (length, _) = client.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"answer");
    assert_eq!(on(&guard, SECOND, "reply"), 1);
    assert_eq!(on(&guard, INTERFACE, "reply"), 0);
}

/// The number of interfaces that a host with containers or tunnels may have.
const MANY: usize = 200;

/// The most memory that the kernel and the agent may use for them.
const MOST_BYTES: u64 = 400_000_000;

#[test]
fn two_hundred_interfaces_take_less_than_400_megabytes() {
    let site = Site::new();
    let (internet, host) = (&site.lab.internet, &site.lab.host);
    let names: Vec<String> = (0..MANY).map(|n| format!("many{n}")).collect();
    let links: String = names
        .iter()
        .map(|name| {
            let peer = internet.name();
            format!(
                "link add {name} type veth peer name x{name} netns {peer}\nlink set {name} up\n"
            )
        })
        .collect();
    let batch = site.lab.folder().join("links");
    fs::write(&batch, links).unwrap();
    run(host.command("ip").arg("-batch").arg(&batch)).unwrap();
    let interfaces: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .chain([INTERFACE])
        .collect();
    let limited = format!("{OPEN_80}limit.packets = \"1k/s\"\n");
    let mut times = BTreeMap::new();
    let guard = Guard::start(&site.lab, &policy(&[INTERFACE], &limited)).unwrap();
    write_policy(&site.lab, &policy(&interfaces, &limited)).unwrap();
    let start = Instant::now();
    guard.run(&["reload"]).unwrap();
    times.insert("attach", start.elapsed());
    wait_for_outcome(&[HOST_V4], OPEN, &site);
    let status = guard.json("status").unwrap();
    assert_eq!(status["enforcing"], true);
    assert_eq!(status["interfaces"].as_array().unwrap().len(), MANY + 1);
    let start = Instant::now();
    guard.run(&["reload"]).unwrap();
    times.insert("reload", start.elapsed());
    assert!(on(&guard, INTERFACE, "allowed") > 0);
    let kernel = bytes_in_kernel(&site.lab);
    let agent = resident(guard.pid());
    let start = Instant::now();
    guard.run(&["mode", "off"]).unwrap();
    times.insert("mode off", start.elapsed());
    println!("{MANY} interfaces: {kernel} bytes in the kernel, {agent} of the agent, {times:?}");
    assert!(
        kernel + agent < MOST_BYTES,
        "{kernel} bytes in the kernel and {agent} of the agent"
    );
    guard.kill().unwrap();
    let start = Instant::now();
    let detached = output(&site.lab, &["detach"]).unwrap();
    assert!(detached.status.success(), "{detached:?}");
    println!("detach without an agent: {:?}", start.elapsed());
    assert!(!site.lab.pins().exists(), "not all pins were removed");
}

/// The bytes of the pinned maps, of the maps of the programs on the lab's interfaces, and of the programs.
fn bytes_in_kernel(lab: &Lab) -> u64 {
    let listed = |what: &str| -> Vec<Value> {
        let text = run(lab.host.command("bpftool").args(["--json", what, "list"])).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let links = run(lab.host.command("ip").args(["-json", "-details", "link"])).unwrap();
    let links: Vec<Value> = serde_json::from_str(&links).unwrap();
    let attached: Vec<u64> = links
        .iter()
        .filter_map(|link| link["xdp"]["prog"]["id"].as_u64())
        .collect();
    let bytes = |one: &Value| one["bytes_memlock"].as_u64().unwrap_or_default();
    let mut maps = BTreeMap::new();
    let mut sum = 0;
    for program in listed("prog") {
        let id = program["id"].as_u64().unwrap();
        if attached.contains(&id) {
            sum += bytes(&program);
            for map in program["map_ids"].as_array().unwrap() {
                maps.insert(map.as_u64().unwrap(), 0);
            }
        }
    }
    pinned_maps(&lab.pins(), &mut maps);
    for map in listed("map") {
        if let Some(known) = maps.get_mut(&map["id"].as_u64().unwrap()) {
            *known = bytes(&map);
        }
    }
    assert!(maps.len() > MANY, "{} maps", maps.len());
    sum + maps.values().sum::<u64>()
}

/// Collects the maps pinned in a folder and its subfolders: the kernel's ids, and their bytes.
fn pinned_maps(folder: &Path, maps: &mut BTreeMap<u64, u64>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            pinned_maps(&path, maps);
            continue;
        }
        let mut command = Command::new("bpftool");
        command.args(["--json", "map", "show", "pinned"]).arg(&path);
        // A link is pinned in the folder, too.
        if let Ok(text) = run(&mut command)
            && let Ok(map) = serde_json::from_str::<Value>(&text)
            && let Some(id) = map["id"].as_u64()
        {
            maps.insert(id, 0);
        }
    }
}

/// The resident memory of a process, in bytes.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = resident.unwrap().trim().trim_end_matches(" kB");
    kilobytes.parse::<u64>().unwrap() * 1_024
}

#[test]
fn the_pins_of_all_interfaces_have_one_state() {
    let site = Site::new();
    add_uplink(&site.lab);
    let guard = Guard::start(&site.lab, &policy(&BOTH, OPEN_80)).unwrap();
    let shared = pins_of(&site.lab, "%host");
    for map in [
        layout::ABOUT,
        layout::SERVICE_IDS,
        layout::TOTALS,
        layout::FLOWS,
    ] {
        assert!(shared.join(map).exists(), "{map}");
        for interface in BOTH {
            assert!(!pins_of(&site.lab, interface).join(map).exists(), "{map}");
        }
    }
    // After a manual removal the pins are created again, with the same counters and budgets.
    assert_eq!(fetch(&site, HOST_THERE), OPEN);
    let counted = on(&guard, SECOND, "allowed");
    fs::remove_dir_all(&shared).unwrap();
    wait_for(Duration::from_secs(15), || {
        anyhow::ensure!(shared.join(layout::FLOWS).exists());
        Ok(())
    })
    .unwrap();
    assert_eq!(on(&guard, SECOND, "allowed"), counted);
    guard.remove().unwrap();
    assert!(!site.lab.pins().exists());
}
