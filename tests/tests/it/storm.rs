//! A storm of changes: for a minute addresses, routes, links, containers, policies and entries change several times a
//! second. No packet to a closed port passes meanwhile, and a client of the open port loses no datagrams. At the end
//! the tables equal those of a newly started agent.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lab::{
    docker::Docker,
    guard::{Guard, write_policy},
    hammer::{Hammer, HammerTarget, Reached},
    process::{SLOWEST, run, wait_for},
    topology::{HOST_V4, HOST_V6, INTERFACE, Lab, USER_V4},
};
use serde_json::Value;

const DURATION: Duration = Duration::from_secs(60);

/// The least number of changes of each kind.
const FEWEST: usize = 10;

/// The pause between two changes of one kind.
const PAUSE: Duration = Duration::from_millis(150);

/// The port of a service in every policy of the storm.
const OPEN: u16 = 7_777;

/// The time without an answer after which the client sends a datagram again.
const PATIENCE: Duration = Duration::from_secs(2);

/// The most times that the client sends one datagram.
const ATTEMPTS: usize = 10;

/// The ports that the containers of the storm publish.
const CLOSED: [u16; 3] = [8_000, 8_001, 8_002];

fn policy(docker: &Docker, variant: usize) -> String {
    let more = [
        "",
        "[[service]]\nname = \"web\"\nports = [\"tcp/80\"]\nlimit.packets = \"100/s\"\n",
        "[[source]]\nname = \"scanner\"\ncidrs = [\"198.51.100.200/32\", \"192.0.2.0/24\"]\ndeny = true\n",
        "[[service]]\nname = \"inner\"\nports = [\"tcp/9000\", \"udp/9000-9010\"]\nfrom = [\"192.0.2.0/24\"]\n",
    ];
    format!(
        "mode = \"enforce\"\ninterfaces = [\"{INTERFACE}\"]\ndocker.socket = \"{}\"\n\
         [[service]]\nname = \"echo\"\nports = [\"udp/{OPEN}\"]\n{}",
        docker.socket().display(),
        more[variant % more.len()]
    )
}

/// Repeats a change until the storm is over, and counts the changes.
fn repeat(
    over: &AtomicBool,
    count: &AtomicUsize,
    mut change: impl FnMut(usize) -> Result<()>,
) -> Result<()> {
    while !over.load(Ordering::Relaxed) {
        let number = count.load(Ordering::Relaxed);
        change(number).with_context(|| format!("change {number}"))?;
        count.fetch_add(1, Ordering::Relaxed);
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Answers every datagram until the storm is over.
fn echo(socket: &UdpSocket, over: &AtomicBool) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut buffer = [0; 64];
    while !over.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..length], from)?;
        }
    }
    Ok(())
}

/// The client's datagrams, and how many of them had no answer.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    datagrams: u64,
    unanswered: u64,
}

/// Sends datagrams until the storm is over, each after the answer to the one before.
fn client(lab: &Lab, over: &AtomicBool) -> Result<Sent> {
    let socket = lab.internet.enter(|| UdpSocket::bind((USER_V4, 0)))??;
    socket.connect((HOST_V4, OPEN))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut sent = Sent::default();
    let mut number = 0u64;
    while !over.load(Ordering::Relaxed) {
        let before = sent.unanswered;
        while !is_answered(&socket, number)? {
            sent.unanswered += 1;
            ensure!(
                sent.unanswered - before < ATTEMPTS as u64,
                "datagram {number} was lost {ATTEMPTS} times"
            );
        }
        number += 1;
        thread::sleep(Duration::from_millis(2));
    }
    sent.datagrams = number + sent.unanswered;
    Ok(sent)
}

fn is_answered(socket: &UdpSocket, number: u64) -> Result<bool> {
    let mut answer = [0; 8];
    socket.send(&number.to_be_bytes())?;
    loop {
        match socket.recv(&mut answer) {
            // A late answer to an earlier datagram, which was repeated, is ignored.
            Ok(8) if u64::from_be_bytes(answer) < number => {}
            Ok(length) => {
                ensure!(
                    length == 8 && u64::from_be_bytes(answer) == number,
                    "a wrong answer to datagram {number}"
                );
                return Ok(true);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Datagrams that full interface queues dropped, as on a busy machine. Packets that the program drops are not counted
/// there.
fn dropped_by_queues(lab: &Lab) -> Result<u64> {
    let mut dropped = 0;
    for (namespace, which) in [
        (&lab.internet, String::new()),
        (&lab.host, format!("dev {INTERFACE}")),
    ] {
        let links: Value =
            serde_json::from_str(&namespace.ip(&format!("-s -j link show {which}"))?)?;
        let links = links
            .as_array()
            .context("the output is not a list of links")?;
        for link in links {
            for direction in ["rx", "tx"] {
                let count = &link["stats64"][direction]["dropped"];
                dropped += count
                    .as_u64()
                    .with_context(|| format!("the link has no drop count: {link}"))?;
            }
        }
    }
    Ok(dropped)
}

#[test]
fn nothing_gets_through_and_nothing_is_lost_while_everything_changes() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    let guard = Guard::start(&lab, &policy(&docker, 0)).unwrap();
    let reached = Reached::count(&lab).unwrap();
    let targets: Vec<HammerTarget> = [HOST_V4, HOST_V6]
        .into_iter()
        .flat_map(|host| CLOSED.map(|port| HammerTarget::Tcp(SocketAddr::new(host, port))))
        .collect();
    let hammer = Hammer::start(&lab, &targets).unwrap();
    let (over, served) = (AtomicBool::new(false), AtomicBool::new(false));
    let through = AtomicU64::new(0);
    // The changes interfere with each other: a command for a link or address that is already gone may fail.
    let failed_commands = AtomicU64::new(0);
    let host = |command: &str| {
        if lab.host.ip(command).is_err() {
            failed_commands.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    lab.host.ip("link add d0 type veth peer name d1").unwrap();
    lab.host.ip("link set d1 up").unwrap();
    lab.host.ip("link set d0 up").unwrap();
    // The server must be bound before the client sends.
    let bound = lab.host.enter(|| UdpSocket::bind((HOST_V4, OPEN)));
    let bound = bound.unwrap().unwrap();
    let counts = [const { AtomicUsize::new(0) }; 6];
    let fewest = || {
        let counts = counts.iter().map(|count| count.load(Ordering::Relaxed));
        counts.min().unwrap_or_default()
    };
    let sent = thread::scope(|scope| {
        let echo = scope.spawn(|| echo(&bound, &served));
        let client = scope.spawn(|| client(&lab, &over));
        let addresses = scope.spawn(|| {
            repeat(&over, &counts[0], |n| {
                let (address, link) = [
                    ("203.0.113.77/24", INTERFACE),
                    ("172.17.44.4/16", "d0"),
                    ("172.18.0.50/16", "d0"),
                ][n / 2 % 3];
                let verb = ["add", "del"][n % 2];
                host(&format!("addr {verb} {address} dev {link}"))
            })
        });
        let routes = scope.spawn(|| {
            repeat(&over, &counts[1], |n| {
                let route = [
                    "10.9.0.0/16 via 203.0.113.1",
                    "default via 203.0.113.1 metric 50",
                    "172.18.0.0/16 dev d0",
                ][n / 2 % 3];
                let verb = ["replace", "del"][n % 2];
                host(&format!("route {verb} {route}"))
            })
        });
        let links = scope.spawn(|| {
            repeat(&over, &counts[2], |n| match n % 4 {
                0 => host("link add s0 type veth peer name s1"),
                1 => host("link set s0 name s2"),
                2 => host("link add b7 type bridge").and_then(|()| host("link set s2 master b7")),
                _ => host("link del s2").and_then(|()| host("link del b7")),
            })
        });
        let containers = scope.spawn(|| {
            repeat(&over, &counts[3], |n| {
                let port = CLOSED[n % CLOSED.len()];
                let name = format!("storm{n}");
                docker.run_invoices(&name, &[&format!("{port}:8000")])?;
                if n % 3 == 0 {
                    docker.run(&["network", "create", &format!("net{n}")])?;
                    docker.run(&["network", "connect", &format!("net{n}"), &name])?;
                }
                docker.remove(&name)?;
                if n % 3 == 0 {
                    docker.run(&["network", "rm", &format!("net{n}")])?;
                }
                Ok(())
            })
        });
        let policies = scope.spawn(|| {
            repeat(&over, &counts[4], |n| {
                write_policy(&lab, &policy(&docker, n))?;
                guard.run(&["reload"]).map(drop)
            })
        });
        let entries = scope.spawn(|| {
            repeat(&over, &counts[5], |n| {
                let prefix = format!("192.0.2.{}/32", n % 250);
                let made = guard.run(&["deny", &prefix, "--for", "1h", "--owner", "storm"])?;
                let id = made
                    .split_whitespace()
                    .find_map(|word| word.trim_matches([':', ',']).parse::<u64>().ok());
                let id = id.with_context(|| made.clone())?;
                guard.run(&["revoke", &id.to_string()]).map(drop)
            })
        });
        let start = Instant::now();
        let mut observed = Ok(());
        // On a slow machine the storm lasts until there were enough changes.
        let is_over =
            |time: Duration| time >= DURATION && fewest() >= FEWEST || time >= DURATION * SLOWEST;
        while observed.is_ok() && !is_over(start.elapsed()) {
            thread::sleep(Duration::from_secs(1));
            observed = reached.packets().and_then(|packets| {
                through.store(packets, Ordering::Relaxed);
                let status = guard.json("status")?;
                ensure!(status["interfaces"][0]["attached"] == true, "{status}");
                Ok(())
            });
        }
        // No panic may come before all threads are told to end: the scope waits for them.
        over.store(true, Ordering::Relaxed);
        let changes = [addresses, routes, links, containers, policies, entries];
        let changes = changes.map(thread::ScopedJoinHandle::join);
        let datagrams = client.join();
        served.store(true, Ordering::Relaxed);
        let echoed = echo.join();
        observed.unwrap();
        echoed.unwrap().unwrap();
        for change in changes {
            change.unwrap().unwrap();
        }
        datagrams.unwrap().unwrap()
    });
    let attempts = hammer.stop().unwrap();
    let dropped = dropped_by_queues(&lab).unwrap();
    assert!(
        sent.unanswered <= dropped,
        "{sent:?}, and queues dropped {dropped}: {}",
        guard.log()
    );
    assert_eq!(through.load(Ordering::Relaxed), 0, "{}", guard.log());
    assert!(fewest() >= FEWEST, "too few changes: {counts:?}");
    eprintln!("{sent:?}, queues dropped {dropped}, {attempts} attempts");
    assert!(
        sent.datagrams > 1_000 && attempts > 1_000,
        "{sent:?}, {attempts} attempts"
    );

    // Compares the tables of the agent that followed all changes with those of an agent that starts now.
    docker
        .run_invoices("last", &["8000:8000", "203.0.113.10:8001:8000"])
        .unwrap();
    let wait_until_enforcing = |guard: &Guard| {
        wait_for(Duration::from_secs(20), || {
            let status = guard.json("status")?;
            ensure!(status["enforcing"] == true, "{status}");
            ensure!(
                status["docker"]["published"].to_string().contains("8001"),
                "{status}"
            );
            Ok(())
        })
        .unwrap();
    };
    wait_until_enforcing(&guard);
    let followed = tables(&guard).unwrap();
    guard.kill().unwrap();
    let guard = Guard::start_again(&lab).unwrap();
    wait_until_enforcing(&guard);
    let started = tables(&guard).unwrap();
    assert_eq!(
        followed.keys().collect::<Vec<_>>(),
        started.keys().collect::<Vec<_>>()
    );
    assert!(followed.len() > 15, "{:?}", followed.keys());
    for (name, table) in &followed {
        assert_eq!(table.len(), started[name].len(), "{name}");
        for (one, other) in table.iter().zip(&started[name]) {
            assert_eq!(one, other, "{name}");
        }
    }
}

/// Maps with state or scratch data, which are not compared.
const STATE: [&str; 17] = [
    // The maps of each interface: counters, talkers, closed ports and losses.
    "standalone_perc",
    "COUNTER_ROWS",
    "TALKER_ROWS",
    "CLOSED_PORT_RO",
    "LOSS_ROWS",
    "CELLS",
    "NARROW_CELLS",
    "TOTALS",
    "HOST_BUCKETS",
    "FRAGMENTS",
    "FLOWS",
    "UNSOLICITED",
    "ACCOUNTS",
    "EVENTS",
    "GRANT",
    ".data.capture",
    "AYA_LOGS",
];

/// The sorted entries of every table of the program in force. The key is the table's index in the program and its name.
fn tables(guard: &Guard) -> Result<BTreeMap<String, Vec<String>>> {
    let id = guard.json("status")?["interfaces"][0]["program_id"].to_string();
    let program = bpftool(&["prog", "show", "id", &id])?;
    let maps = program["map_ids"]
        .as_array()
        .context("the program has no maps")?
        .clone();
    let mut tables = BTreeMap::new();
    for (place, map) in maps.iter().enumerate() {
        let map = map.to_string();
        let shown = bpftool(&["map", "show", "id", &map])?;
        let name = shown["name"].as_str().unwrap_or_default().to_owned();
        if STATE.contains(&name.as_str()) {
            continue;
        }
        let entries = bpftool(&["map", "dump", "id", &map])?;
        let entries = entries.as_array().into_iter().flatten();
        let mut entries: Vec<String> = entries
            .map(|entry| format!("{} {}", entry["key"], entry["value"]))
            .collect();
        entries.sort_unstable();
        tables.insert(format!("{place} {name}"), entries);
    }
    Ok(tables)
}

fn bpftool(arguments: &[&str]) -> Result<Value> {
    let text = run(Command::new("bpftool").arg("--json").args(arguments))?;
    Ok(serde_json::from_str(&text)?)
}
