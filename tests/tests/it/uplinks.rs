//! Several guarded interfaces are one host: budgets, flows and entries are shared by all of them, and each has counters
//! of its own.

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

/// The second uplink, and the host's address there.
const SECOND: &str = "wan2";
const HOST_THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 114, 10));

/// Gives the lab's host another wire to the internet.
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

fn ask(site: &Site, host: IpAddr) -> HttpOutcome {
    get(&site.lab, USER_V4, host, 80).unwrap()
}

/// Waits until the port is so on each of these addresses: what is slow may be open all the same.
fn becomes(hosts: &[IpAddr], outcome: HttpOutcome, site: &Site) {
    wait_for(Duration::from_secs(30), || {
        for host in hosts {
            let found = ask(site, *host);
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

/// A service whose packets are limited: a datagram costs one, whoever is slow.
const GAME: &str = "[[service]]\nname = \"game\"\nports = [\"udp/5000\"]\n";

/// Sends datagrams to the game from the user, and waits until the guard has counted them.
fn play(site: &Site, guard: &Guard, host: IpAddr, count: u64) {
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
            play(&site, &guard, host, 3);
        }
        let over = if budget == "limit" {
            "packet_limit"
        } else {
            "total_limit"
        };
        // Each counts what came in on it: three and one pass, as if they had come in on one.
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
    play(&site, &guard, HOST_V4, 1);
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
    play(&site, &guard, HOST_THERE, 1);
    let allowed = |interface| on(&guard, interface, "allowed");
    assert_eq!(BOTH.map(allowed), [1, 1]);

    // It goes and comes back: with the program in force, and its own counters.
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
    assert_eq!(program, Some(programs[0][0]), "no other was loaded");
    assert_eq!(allowed(SECOND), 1);
    play(&site, &guard, HOST_THERE, 3);
    assert_eq!(BOTH.map(allowed), [1, 2], "the third, and no more");
    assert_eq!(on(&guard, SECOND, "packet_limit"), 2);

    // Without it the other goes on, with what the source has left: nothing.
    write_policy(&site.lab, &policy(&[INTERFACE], &extra)).unwrap();
    guard.run(&["reload"]).unwrap();
    assert!(!pins_of(&site.lab, SECOND).exists());
    play(&site, &guard, HOST_V4, 2);
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
    // By a reload, by the start of an agent, by a trial, and by one that comes back under its name.
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
        assert!(pins_of(&site.lab, SECOND).exists(), "{way}: it may return");
        let guard = match way {
            "start" => {
                guard.kill().unwrap();
                Guard::start(&site.lab, &one).unwrap()
            }
            "try" => {
                let tried = site.lab.folder().join("tried.toml");
                fs::write(&tried, &one).unwrap();
                guard.run(&["try", tried.to_str().unwrap()]).unwrap();
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
            becomes(&[HOST_THERE], OPEN, &site);
        }
        assert!(!pins_of(&site.lab, SECOND).exists(), "{way}");
        assert_eq!(guard.json("status").unwrap()["enforcing"], true, "{way}");
        guard.kill().unwrap();
        let status = site.status();
        assert_eq!(status["enforcing"], true, "{way}: {status}");
        let interfaces = status["interfaces"].as_array().unwrap();
        assert_eq!(interfaces.len(), 1, "{way}: {status}");
        site.guard(&["detach"]);
        assert!(!site.lab.pins().exists(), "{way}: pins are left");
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
    let both = |outcome| becomes(&[HOST_V4, HOST_THERE], outcome, &site);
    let guard = Guard::start(&site.lab, &policy(&BOTH, OPEN_80)).unwrap();
    both(OPEN);
    guard.run(&["deny", &USER_V4.to_string()]).unwrap();
    both(CLOSED);
    guard.run(&["revoke", "1"]).unwrap();
    both(OPEN);
    // The kernel takes a trial back on both, with nobody alive.
    let tried = site.lab.folder().join("tried.toml");
    fs::write(&tried, policy(&BOTH, SHUT)).unwrap();
    guard
        .run(&["try", tried.to_str().unwrap(), "--for", "15s"])
        .unwrap();
    becomes(&[HOST_THERE], CLOSED, &site);
    guard.kill().unwrap();
    both(OPEN);
    // The next agent has both, with one state; the exits need none. What was tried and not confirmed it refuses.
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
    assert!(!site.lab.pins().exists(), "pins are left");
}

#[test]
fn an_uplink_that_only_a_trial_guards_is_open_when_the_kernel_takes_it_back() {
    let site = Site::new();
    add_uplink(&site.lab);
    let guard = Guard::start(&site.lab, &policy(&[INTERFACE], SHUT)).unwrap();
    becomes(&[HOST_V4], CLOSED, &site);
    let tried = site.lab.folder().join("tried.toml");
    fs::write(&tried, policy(&BOTH, &format!("{SHUT}# tried\n"))).unwrap();
    guard
        .run(&["try", tried.to_str().unwrap(), "--for", "15s"])
        .unwrap();
    becomes(&[HOST_V4, HOST_THERE], CLOSED, &site);
    guard.kill().unwrap();
    // What was not guarded before is not closed by the policy before, which was never meant for it.
    becomes(&[HOST_THERE], OPEN, &site);
    becomes(&[HOST_V4], CLOSED, &site);
    let status = site.status();
    let troubles =
        BTreeMap::from_iter(status["interfaces"].as_array().unwrap().iter().map(|one| {
            let name = one["name"].as_str().unwrap();
            (name, one["trouble"].as_str())
        }));
    assert_eq!(troubles[INTERFACE], None);
    let trouble = troubles[SECOND].unwrap();
    assert!(trouble.contains("the trial is over"), "{trouble}");
    let told = site.guard(&["status"]);
    assert!(told.contains(trouble), "{told}");
    Guard::start_again(&site.lab).unwrap().remove().unwrap();
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
        [HOST_V4, HOST_THERE].map(|host| ask(&site, host)),
        [CLOSED; 2]
    );
    guard.remove().unwrap();
}

#[test]
fn an_answer_comes_in_by_another_uplink_than_the_query_left() {
    let site = Site::new();
    add_uplink(&site.lab);
    let (internet, host) = (&site.lab.internet, &site.lab.host);
    // The host's way out is `wan`; what is for it comes back over the other wire.
    internet
        .ip(&format!(
            "route add {HOST_V4}/32 via {HOST_THERE} dev internet2"
        ))
        .unwrap();
    // As reverse path filters would drop it (RFC 3704).
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

/// How many interfaces a host of containers or tunnels may have.
const MANY: usize = 200;

/// What the kernel may keep for them, with the agent.
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
    becomes(&[HOST_V4], OPEN, &site);
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
    assert!(!site.lab.pins().exists(), "pins are left");
}

/// What the maps that are pinned below a lab's pins and those of the programs on its interfaces take, and the programs.
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

/// The maps that are pinned in a folder and those below it, by the kernel's numbers.
fn pinned_maps(folder: &Path, maps: &mut BTreeMap<u64, u64>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            pinned_maps(&path, maps);
            continue;
        }
        let mut command = Command::new("bpftool");
        command.args(["--json", "map", "show", "pinned"]).arg(&path);
        // A link is pinned there as well.
        if let Ok(text) = run(&mut command)
            && let Ok(map) = serde_json::from_str::<Value>(&text)
            && let Some(id) = map["id"].as_u64()
        {
            maps.insert(id, 0);
        }
    }
}

/// What a process has in memory, in bytes.
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
    // Removed by hand, it is there again, with what was counted and charged.
    assert_eq!(ask(&site, HOST_THERE), OPEN);
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
