//! Containers start and stop while a hammer sends to their ports without pause.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use lab::{
    docker::{Docker, IMAGE},
    guard::Guard,
    hammer::{Hammer, HammerTarget, Reached},
    http::{HttpOutcome, get},
    process::wait_for,
    relay::{Relay, RelayMode},
    topology::{HOST_V4, HOST_V6, INTERFACE, Lab, USER_V4, USER_V6},
};
use serde_json::{Value, json};

use crate::attempt::with_enough_time;

fn policy(docker: &Path, extra: &str) -> String {
    format!(
        "mode = \"enforce\"\ninterfaces = [\"{INTERFACE}\"]\n[docker]\nsocket = \"{}\"\n{extra}",
        docker.display()
    )
}

const BOTH: [IpAddr; 2] = [HOST_V4, HOST_V6];

fn tcp(port: u16) -> [HammerTarget; 2] {
    BOTH.map(|host| HammerTarget::Tcp(SocketAddr::new(host, port)))
}

fn udp(port: u16) -> [HammerTarget; 2] {
    BOTH.map(|host| HammerTarget::Udp(SocketAddr::new(host, port)))
}

fn published(guard: &Guard) -> Vec<String> {
    let status = guard.json("status").unwrap();
    let ports = status["docker"]["published"].as_array().unwrap();
    ports
        .iter()
        .filter_map(|port| Some(port.as_str()?.to_owned()))
        .collect()
}

#[test]
fn no_packet_reaches_a_fixed_port_from_the_first_moment_on() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    let guard = Guard::start(&lab, &policy(docker.socket(), "")).unwrap();
    let reached = Reached::count(&lab).unwrap();
    let targets = [
        tcp(8000),
        tcp(8001),
        udp(8002),
        udp(8003),
        udp(8004),
        tcp(8005),
        tcp(8006),
        tcp(8007),
    ];
    let hammer = Hammer::start(&lab, targets.as_flattened()).unwrap();
    let run = |arguments: &[&str]| docker.run(arguments).unwrap();
    let nothing_reached = |what: &str| {
        let packets = reached.packets().unwrap();
        assert_eq!(packets, 0, "{what}: {}", guard.log());
    };

    for publish in [
        "8000:8000",
        "127.0.0.1:8001:8000",
        "8002-8004:8002-8004/udp",
    ] {
        run(&[
            "run",
            "--detach",
            "--name",
            "web",
            "--publish",
            publish,
            IMAGE,
        ]);
        nothing_reached(publish);
        run(&["stop", "--time", "1", "web"]);
        run(&["start", "web"]);
        nothing_reached("start");
        run(&["restart", "--time", "1", "web"]);
        run(&["kill", "web"]);
        run(&["start", "web"]);
        nothing_reached("kill and start");
        run(&["rm", "--force", "web"]);
    }
    // Inside the host the container answers, so only the guard kept packets from it.
    run(&[
        "run",
        "--detach",
        "--name",
        "web",
        "--publish",
        "8000:8000",
        IMAGE,
    ]);
    // The port is already closed by the early close; the plan behind the status may come a moment later.
    wait_for(Duration::from_secs(15), || {
        let published = published(&guard);
        anyhow::ensure!(published == ["tcp/8000"], "{published:?}");
        Ok(())
    })
    .unwrap();
    run(&["rm", "--force", "web"]);
    wait_for(Duration::from_secs(15), || {
        anyhow::ensure!(published(&guard).is_empty(), "{:?}", published(&guard));
        Ok(())
    })
    .unwrap();

    run(&[
        "network",
        "create",
        "--ipv6",
        "--subnet",
        "2001:db8:7::/64",
        "six",
    ]);
    let six = ["--network", "six", "--publish", "8005:8000"];
    run(&[&["run", "--detach", "--name", "six"][..], &six, &[IMAGE]].concat());
    nothing_reached("a network with IPv6");
    let container: Value = serde_json::from_str(&run(&["inspect", "six"])).unwrap();
    let address = &container[0]["NetworkSettings"]["Networks"]["six"]["GlobalIPv6Address"];
    let address: IpAddr = address.as_str().unwrap().parse().unwrap();
    lab.internet
        .ip(&format!("route add 2001:db8:7::/64 via {HOST_V6}"))
        .unwrap();
    let direct = get(&lab, USER_V6, address, 8000).unwrap();
    assert_eq!(
        direct,
        HttpOutcome::TimedOut,
        "the new network's addresses are closed"
    );

    let project = lab.folder().join("project");
    fs::create_dir(&project).unwrap();
    let compose = format!(
        "version: \"3\"\nservices:\n  api:\n    image: {IMAGE}\n    ports: [\"8006:8000\"]\n  other:\n    \
         image: {IMAGE}\n    ports: [\"8007:8000\"]\n"
    );
    fs::write(project.join("docker-compose.yml"), compose).unwrap();
    let compose = |arguments: &[&str]| {
        lab::process::run(
            Command::new("docker-compose")
                .current_dir(&project)
                .env(
                    "DOCKER_HOST",
                    format!("unix://{}", docker.socket().display()),
                )
                .args(arguments),
        )
        .unwrap()
    };
    compose(&["up", "--detach"]);
    compose(&["restart", "--timeout", "1"]);
    nothing_reached("a compose project");
    compose(&["down", "--timeout", "1"]);

    // A container in the host's network publishes no ports: scope `containers` does not close them.
    let server = ["/bin/busybox", "httpd", "-f", "-p", "8100", "-h", "/www"];
    let host = [
        "run",
        "--detach",
        "--name",
        "host",
        "--network",
        "host",
        IMAGE,
    ];
    run(&[&host[..], &server].concat());
    wait_for(Duration::from_secs(5), || {
        let answer = get(&lab, USER_V4, HOST_V4, 8100)?;
        anyhow::ensure!(answer == HttpOutcome::Status(200), "{answer:?}");
        Ok(())
    })
    .unwrap();
    run(&["rm", "--force", "host"]);
    nothing_reached("at the end");

    // With mode off the rules count packets: the check can fail.
    run(&[
        "run",
        "--detach",
        "--name",
        "web",
        "--publish",
        "8000:8000",
        IMAGE,
    ]);
    guard.run(&["mode", "off"]).unwrap();
    wait_for(Duration::from_secs(5), || {
        let packets = reached.packets()?;
        anyhow::ensure!(packets > 100, "{packets}");
        Ok(())
    })
    .unwrap();
    let attempts = hammer.stop().unwrap();
    println!("{attempts} attempts");
    assert!(attempts > 10_000, "{attempts}");
}

#[test]
fn a_port_that_docker_chooses_closes_as_soon_as_it_is_known() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    let guard = Guard::start(&lab, &policy(docker.socket(), "")).unwrap();
    for number in 0..5 {
        let name = format!("chosen-{number}");
        let run = [
            "run",
            "--detach",
            "--publish-all",
            "--expose",
            "8000",
            "--name",
            &name,
            IMAGE,
        ];
        docker.run(&run).unwrap();
        let port = docker.run(&["port", &name, "8000/tcp"]).unwrap();
        let port = port
            .lines()
            .next()
            .unwrap()
            .rsplit_once(':')
            .unwrap()
            .1
            .to_owned();
        wait_for(Duration::from_secs(5), || {
            let known = published(&guard);
            anyhow::ensure!(known.contains(&format!("tcp/{port}")), "{known:?}");
            Ok(())
        })
        .unwrap();
        let port = port.parse().unwrap();
        assert_eq!(
            get(&lab, USER_V4, HOST_V4, port).unwrap(),
            HttpOutcome::TimedOut
        );
    }
    let log = guard.log();
    let open: Vec<&str> = log
        .lines()
        .filter_map(|line| {
            line.split("milliseconds=")
                .nth(1)?
                .split_whitespace()
                .next()
        })
        .collect();
    println!("milliseconds from the start of the container to its closed port: {open:?}");
}

#[test]
fn docker_that_comes_and_goes_opens_nothing() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    docker.run_invoices("web", &["8000:8000"]).unwrap();
    let socket = lab.folder().join("relay.sock");
    let relay = Relay::start(&socket, docker.socket()).unwrap();
    let guard = Guard::start(&lab, &policy(&socket, "")).unwrap();
    let reached = Reached::count(&lab).unwrap();
    let _hammer = Hammer::start(&lab, tcp(8000).as_slice()).unwrap();
    let connected = |expected: bool, what: &str| {
        wait_for(Duration::from_secs(60), || {
            let status = guard.json("status")?;
            let docker = &status["docker"];
            anyhow::ensure!(docker["connected"] == expected, "{what}: {docker}");
            anyhow::ensure!(
                docker["published"] == json!(["tcp/8000"]),
                "{what}: {docker}"
            );
            anyhow::ensure!(docker["error"].is_null() == expected, "{what}: {docker}");
            Ok(())
        })
        .unwrap();
        assert_eq!(reached.packets().unwrap(), 0, "{what}");
    };
    connected(true, "at first");
    for (mode, is_fine) in [
        (RelayMode::Delay(Duration::from_millis(300)), true),
        (RelayMode::Garbage, false),
        (RelayMode::Silent, false),
    ] {
        relay.set(mode);
        // A restart causes an event, so that the guard queries Docker.
        docker.run(&["restart", "--time", "1", "web"]).unwrap();
        connected(is_fine, &format!("{mode:?}"));
        relay.set(RelayMode::Forward);
        connected(true, "well again");
    }
    drop(relay);
    docker.run(&["restart", "--time", "1", "web"]).unwrap();
    assert_eq!(reached.packets().unwrap(), 0, "Docker's socket is removed");
    assert!(!socket.exists());
}

#[test]
fn docker_that_restarts_under_traffic_opens_nothing() {
    let lab = Lab::new().unwrap();
    let mut docker = Docker::start(&lab).unwrap();
    let run = ["run", "--detach", "--restart", "always", "--name", "web"];
    docker
        .run(&[&run[..], &["--publish", "8000:8000", IMAGE]].concat())
        .unwrap();
    let guard = Guard::start(&lab, &policy(docker.socket(), "")).unwrap();
    let reached = Reached::count(&lab).unwrap();
    let hammer = Hammer::start(&lab, tcp(8000).as_slice()).unwrap();
    docker.restart(&lab).unwrap();
    wait_for(Duration::from_secs(30), || {
        let status = guard.json("status")?;
        anyhow::ensure!(status["docker"]["connected"] == true, "{status}");
        Ok(())
    })
    .unwrap();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(reached.packets().unwrap(), 0);
    let log = guard.log();
    assert!(log.contains("Docker answers again"), "{log}");
    assert!(hammer.stop().unwrap() > 500);
}

#[test]
fn labels_narrow_what_the_policy_allows_while_it_runs() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    let open = "[[service]]\nname = \"api\"\nports = [\"tcp/8000-8010\"]\n";
    let guard = Guard::start(&lab, &policy(docker.socket(), open)).unwrap();
    let ask = |port| get(&lab, USER_V4, HOST_V4, port).unwrap();
    let start = |name: &str, port: u16, labels: &[&str]| {
        let publish = format!("{port}:8000");
        let labels = labels.iter().flat_map(|label| ["--label", label]);
        let run = ["run", "--detach", "--name", name, "--publish", &publish];
        let run: Vec<&str> = run.into_iter().chain(labels).chain([IMAGE]).collect();
        docker.run(&run).unwrap();
    };
    let eventually = |port, answer| {
        wait_for(Duration::from_secs(10), || {
            let found = ask(port);
            anyhow::ensure!(found == answer, "{port}: {found:?}\n{}", guard.log());
            Ok(())
        })
        .unwrap();
    };
    start("plain", 8000, &[]);
    start("inner", 8001, &["guard.from=192.0.2.0/24"]);
    start("more", 9000, &["guard.from=any"]);
    eventually(8000, HttpOutcome::Status(200));
    eventually(8001, HttpOutcome::TimedOut);
    eventually(9000, HttpOutcome::TimedOut);
    let restricted = [
        ("service", json!("api@inner")),
        ("reason", json!("source_not_allowed")),
    ];
    assert!(guard.packets(&restricted).unwrap() > 0);
    let status = guard.json("status").unwrap();
    let warnings = status["docker"]["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 1, "{status}");
    assert!(
        warnings[0]
            .as_str()
            .unwrap()
            .starts_with("container more: "),
        "{status}"
    );
    assert!(guard.log().contains("container more: "), "{}", guard.log());
    // An entry for the service also applies to the services that labels derive from it.
    guard
        .run(&["allow", &USER_V4.to_string(), "--service", "api"])
        .unwrap();
    assert_eq!(ask(8001), HttpOutcome::Status(200));
    guard.run(&["revoke", "1"]).unwrap();
    assert_eq!(ask(8001), HttpOutcome::TimedOut);
    docker.remove("inner").unwrap();
    start("free", 8001, &[]);
    eventually(8001, HttpOutcome::Status(200));
}

#[test]
fn a_denial_at_a_service_is_one_at_what_labels_make_of_it_whichever_comes_first() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    let open = "[[service]]\nname = \"api\"\nports = [\"tcp/8000-8010\"]\n";
    let guard = Guard::start(&lab, &policy(docker.socket(), open)).unwrap();
    let ask = |port| get(&lab, USER_V4, HOST_V4, port).unwrap();
    let start = |name: &str, port: u16, labels: &[&str]| {
        let publish = format!("{port}:8000");
        let labels = labels.iter().flat_map(|label| ["--label", label]);
        let run = ["run", "--detach", "--name", name, "--publish", &publish];
        let run: Vec<&str> = run.into_iter().chain(labels).chain([IMAGE]).collect();
        docker.run(&run).unwrap();
    };
    let eventually = |port, answer| {
        wait_for(Duration::from_secs(10), || {
            let found = ask(port);
            anyhow::ensure!(found == answer, "{port}: {found:?}\n{}", guard.log());
            Ok(())
        })
        .unwrap();
    };
    let near = ["guard.from=198.51.100.0/24"];
    start("plain", 8000, &[]);
    start("inner", 8001, &near);
    eventually(8000, HttpOutcome::Status(200));
    eventually(8001, HttpOutcome::Status(200));
    let user = USER_V4.to_string();
    guard.run(&["deny", &user, "--service", "api"]).unwrap();
    for port in [8000, 8001] {
        assert_eq!(ask(port), HttpOutcome::TimedOut, "{port}");
    }
    // A container that starts later, and one that is created again.
    start("later", 8002, &near);
    docker.remove("inner").unwrap();
    start("inner", 8001, &near);
    let denied = |service: &str| {
        let facts = [
            ("service", json!(service)),
            ("reason", json!("denied_source")),
        ];
        guard.packets(&facts).unwrap()
    };
    wait_for(Duration::from_secs(10), || {
        ask(8002);
        anyhow::ensure!(denied("api@later") > 0, "{}", guard.log());
        Ok(())
    })
    .unwrap();
    for port in [8000, 8001, 8002] {
        assert_eq!(ask(port), HttpOutcome::TimedOut, "{port}");
    }
    assert!(denied("api") > 0 && denied("api@inner") > 0);
    guard.run(&["revoke", "1"]).unwrap();
    for port in [8000, 8001, 8002] {
        assert_eq!(ask(port), HttpOutcome::Status(200), "{port}");
    }
}

/// Starts a container with labels, and publishes its port 8000 as `port`.
fn start_labelled(docker: &Docker, name: &str, port: u16, labels: &[&str]) {
    publish_labelled(docker, name, &format!("{port}:8000"), labels);
}

fn publish_labelled(docker: &Docker, name: &str, publish: &str, labels: &[&str]) {
    let labels = labels.iter().flat_map(|label| ["--label", label]);
    let run = ["run", "--detach", "--name", name, "--publish", publish];
    let run: Vec<&str> = run.into_iter().chain(labels).chain([IMAGE]).collect();
    docker.run(&run).unwrap();
}

fn connects(lab: &Lab, to: SocketAddr) -> bool {
    let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(2)).is_ok();
    lab.internet.enter(connect).unwrap()
}

#[test]
fn labels_open_a_port_for_the_family_that_it_is_published_on_and_no_other() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    let policy = policy(docker.socket(), "labels = \"full\"\n");
    let guard = Guard::start(&lab, &format!("scope = \"host\"\n{policy}")).unwrap();
    let own = SocketAddr::new(HOST_V6, 8001);
    let server = lab.host.enter(|| TcpListener::bind(own)).unwrap().unwrap();
    publish_labelled(&docker, "six", "[::]:8000:8000", &[]);
    publish_labelled(&docker, "four", "0.0.0.0:8000:8000", &["guard.from=any"]);
    publish_labelled(&docker, "other", "0.0.0.0:8001:8000", &["guard.from=any"]);
    for port in [8000, 8001] {
        wait_for(Duration::from_secs(10), || {
            let found = get(&lab, USER_V4, HOST_V4, port)?;
            anyhow::ensure!(found == HttpOutcome::Status(200), "{port}: {found:?}");
            Ok(())
        })
        .unwrap();
    }
    let six = get(&lab, USER_V6, HOST_V6, 8000).unwrap();
    assert_eq!(six, HttpOutcome::TimedOut, "{}", guard.log());
    assert!(!connects(&lab, own), "the host's own: {}", guard.log());
    drop(server);
}

#[test]
fn labels_narrow_a_port_for_the_family_that_it_is_published_on_and_no_other() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    let own = SocketAddr::new(HOST_V6, 8000);
    let server = lab.host.enter(|| TcpListener::bind(own)).unwrap().unwrap();
    let open = "[[service]]\nname = \"web\"\nports = [\"tcp/8000\"]\n";
    let guard = Guard::start(&lab, &policy(docker.socket(), open)).unwrap();
    assert!(connects(&lab, own));
    publish_labelled(
        &docker,
        "four",
        "0.0.0.0:8000:8000",
        &["guard.from=192.0.2.0/24"],
    );
    wait_for(Duration::from_secs(10), || {
        let found = get(&lab, USER_V4, HOST_V4, 8000)?;
        anyhow::ensure!(found == HttpOutcome::TimedOut, "{found:?}");
        Ok(())
    })
    .unwrap();
    assert!(connects(&lab, own), "the host's own: {}", guard.log());
    docker.remove("four").unwrap();
    let label = format!("guard.from={USER_V4}");
    publish_labelled(&docker, "four", "0.0.0.0:8000:8000", &[&label]);
    wait_for(Duration::from_secs(10), || {
        let found = get(&lab, USER_V4, HOST_V4, 8000)?;
        anyhow::ensure!(found == HttpOutcome::Status(200), "{found:?}");
        Ok(())
    })
    .unwrap();
    assert!(connects(&lab, own), "the host's own: {}", guard.log());
    drop(server);
}

#[test]
fn a_denial_at_a_service_with_a_long_name_and_a_from_that_is_too_long_are_heeded() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    let long = "s".repeat(60);
    let open = format!("[[service]]\nname = \"{long}\"\nports = [\"tcp/8000-8010\"]\n");
    let guard = Guard::start(&lab, &policy(docker.socket(), &open)).unwrap();
    let ask = |port| get(&lab, USER_V4, HOST_V4, port).unwrap();
    let eventually = |port, answer| {
        wait_for(Duration::from_secs(10), || {
            let found = ask(port);
            anyhow::ensure!(found == answer, "{port}: {found:?}\n{}", guard.log());
            Ok(())
        })
        .unwrap();
    };
    // Every second address, so that no prefixes can be merged; the user's address is one of them.
    let many: Vec<String> = (0..257)
        .map(|n| format!("198.51.{}.{}", n / 128, 2 * n % 256 + 1))
        .collect();
    let many = format!("guard.from={},198.51.100.0/24", many.join(","));
    let hostile = "guard.x\n\u{202e}forged=1";
    start_labelled(&docker, "plain", 8000, &[]);
    start_labelled(&docker, "greedy", 8001, &[&many, hostile]);
    start_labelled(&docker, "modest", 8002, &["guard.from=192.0.2.0/24"]);
    start_labelled(&docker, "website", 8003, &["guard.from=198.51.100.0/24"]);
    eventually(8000, HttpOutcome::Status(200));
    eventually(8001, HttpOutcome::TimedOut);
    eventually(8002, HttpOutcome::TimedOut);
    eventually(8003, HttpOutcome::Status(200));
    let status = guard.json("status").unwrap();
    let warnings = status["docker"]["warnings"].to_string();
    assert!(
        warnings.contains("container greedy: its ports are closed"),
        "{warnings}"
    );
    let text = guard.run(&["status"]).unwrap() + &guard.log();
    assert!(text.contains("u{202e}forged"), "{text}");
    assert!(
        !text.lines().any(|line| line.starts_with("forged")),
        "{text}"
    );
    assert!(!text.contains('\u{202e}'), "{text}");

    let user = USER_V4.to_string();
    guard.run(&["deny", &user, "--service", &long]).unwrap();
    assert_eq!(ask(8000), HttpOutcome::TimedOut);
    assert_eq!(
        ask(8003),
        HttpOutcome::TimedOut,
        "the service derived by labels"
    );
    guard.run(&["revoke", "1"]).unwrap();
    assert_eq!(ask(8000), HttpOutcome::Status(200));
    assert_eq!(ask(8003), HttpOutcome::Status(200));
}

#[test]
fn containers_with_limits_that_come_and_go_refill_nobody_elses_budget() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    let open = "[[service]]\nname = \"api\"\nports = [\"tcp/8000-8010\"]\n\
                limit.connections = { rate = \"1/h\", burst = 30 }\n";
    let guard = Guard::start(&lab, &policy(docker.socket(), open)).unwrap();
    let ask = |port| get(&lab, USER_V4, HOST_V4, port).unwrap();
    let exhaust = |port| {
        let asked = (0..40).find(|_| ask(port) == HttpOutcome::TimedOut);
        assert!(asked.is_some(), "{port} is not limited: {}", guard.log());
    };
    let limited = |service: &str| {
        let facts = [
            ("service", json!(service)),
            ("reason", json!("connection_limit")),
        ];
        guard.packets(&facts).unwrap()
    };
    start_labelled(&docker, "plain", 8000, &[]);
    exhaust(8000);
    assert!(limited("api") > 0);
    let few = "guard.limit.connections={ rate = \"1/h\", burst = 9 }";
    for number in 0..4 {
        let name = format!("limited-{number}");
        // Every other container adds a second kind of budget, which needs another array and removes it again.
        let packets = "guard.limit.packets=1k/s";
        let labels = if number % 2 == 1 {
            &[few, packets][..]
        } else {
            &[few][..]
        };
        start_labelled(&docker, &name, 8001, labels);
        let service = format!("api@{name}");
        wait_for(Duration::from_secs(20), || {
            ask(8001);
            anyhow::ensure!(limited(&service) > 0, "{service}: {}", guard.log());
            Ok(())
        })
        .unwrap();
        assert_eq!(ask(8000), HttpOutcome::TimedOut, "{name} came");
        if number < 3 {
            docker.remove(&name).unwrap();
            wait_for(Duration::from_secs(10), || {
                anyhow::ensure!(!published(&guard).contains(&"tcp/8001".to_owned()));
                Ok(())
            })
            .unwrap();
            assert_eq!(ask(8000), HttpOutcome::TimedOut, "{name} is gone");
        }
    }
    guard.kill().unwrap();
    let _guard = Guard::start_again(&lab).unwrap();
    assert_eq!(ask(8000), HttpOutcome::TimedOut, "after a restart");
    assert_eq!(ask(8001), HttpOutcome::TimedOut, "after a restart");
}

#[test]
fn nothing_opens_while_the_agent_is_busy() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    let guard = Guard::start(&lab, &policy(docker.socket(), "")).unwrap();
    let reached = Reached::count(&lab).unwrap();
    let _hammer = Hammer::start(&lab, tcp(8000).as_slice()).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                guard.run(&["reload"]).unwrap();
            }
        });
        for round in 0..6 {
            docker.run_invoices("web", &["8000:8000"]).unwrap();
            docker.remove("web").unwrap();
            println!("round {round}: {} reached", reached.packets().unwrap());
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(reached.packets().unwrap(), 0);
}

#[test]
fn a_network_over_the_hosts_own_addresses_locks_nobody_out() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    let _web = lab::proxy::Proxy::start(&lab, "127.0.0.1:1").unwrap();
    let guard = Guard::start(&lab, &policy(docker.socket(), "")).unwrap();
    let create = ["network", "create", "--subnet", "203.0.113.0/24"];
    let gateway = ["--gateway", "203.0.113.254", "--opt"];
    let option = "com.docker.network.bridge.inhibit_ipv4=true";
    docker
        .run(&[&create[..], &gateway, &[option, "over"]].concat())
        .unwrap();
    wait_for(Duration::from_secs(10), || {
        let log = guard.log();
        anyhow::ensure!(
            log.contains("overlaps a network of this host's own"),
            "{log}"
        );
        Ok(())
    })
    .unwrap();
    assert_eq!(
        get(&lab, USER_V4, HOST_V4, 80).unwrap(),
        HttpOutcome::Status(502)
    );
}

#[test]
fn what_is_published_during_a_trial_without_docker_is_closed_when_the_kernel_goes_back() {
    with_enough_time(|attempt| {
        let lab = Lab::new().unwrap();
        let docker = Docker::start(&lab).unwrap();
        docker.run_invoices("before", &["8000:8000"]).unwrap();
        let guard = Guard::start(&lab, &policy(docker.socket(), "")).unwrap();
        let ask = |port| get(&lab, USER_V4, HOST_V4, port).unwrap();
        assert_eq!(ask(8000), HttpOutcome::TimedOut);
        let tried = lab.folder().join("tried.toml");
        fs::write(&tried, policy(Path::new(""), "")).unwrap();
        attempt.begin(8, |time| {
            guard
                .run(&["try", tried.to_str().unwrap(), "--for", time])
                .unwrap();
        });
        assert_eq!(
            ask(8000),
            HttpOutcome::Status(200),
            "the policy on trial has no Docker"
        );
        docker.run_invoices("meanwhile", &["8001:8000"]).unwrap();
        wait_for(Duration::from_secs(5), || {
            anyhow::ensure!(
                ask(8001) == HttpOutcome::Status(200),
                "the container does not answer yet"
            );
            Ok(())
        })
        .unwrap();
        guard.kill().unwrap();
        attempt.wait_for_end();
        assert_eq!([ask(8000), ask(8001)], [HttpOutcome::TimedOut; 2]);
        // The next agent gets no answer from Docker, but has the ports published before the trial from the state store.
        let same = policy(docker.socket(), "");
        drop(docker);
        let guard = Guard::start(&lab, &same).unwrap();
        assert!(published(&guard).contains(&"tcp/8000".to_owned()));
    });
}

#[test]
fn what_is_published_on_one_address_leaves_the_host_the_port_on_the_others() {
    const OTHER: &str = "203.0.113.11";
    let lab = Lab::new().unwrap();
    lab.host
        .ip(&format!("address add {OTHER}/24 dev {INTERFACE}"))
        .unwrap();
    let other: IpAddr = OTHER.parse().unwrap();
    let docker = Docker::start(&lab).unwrap();
    // A server of the host on the same port: scope `containers` must not close it.
    let own = lab
        .host
        .enter(|| TcpListener::bind((HOST_V4, 8_008)))
        .unwrap()
        .unwrap();
    let connects = || {
        lab.internet
            .enter(|| {
                let to = SocketAddr::new(HOST_V4, 8_008);
                TcpStream::connect_timeout(&to, Duration::from_secs(2)).is_ok()
            })
            .unwrap()
    };
    let ask = || get(&lab, USER_V4, other, 8_008).unwrap();
    let publish = format!("{OTHER}:8008:8000");
    docker.run_invoices("web", &[&publish]).unwrap();
    wait_for(Duration::from_secs(10), || {
        anyhow::ensure!(ask() == HttpOutcome::Status(200), "{}", ask());
        Ok(())
    })
    .unwrap();
    docker.remove("web").unwrap();

    let guard = Guard::start(&lab, &policy(docker.socket(), "")).unwrap();
    for when in ["created while it runs", "created again"] {
        docker.run_invoices("web", &[&publish]).unwrap();
        assert_eq!(ask(), HttpOutcome::TimedOut, "{when}");
        assert!(connects(), "{when}: {}", guard.log());
        assert_eq!(published(&guard), [format!("{OTHER}:tcp/8008")]);
        docker.remove("web").unwrap();
        wait_for(Duration::from_secs(5), || {
            anyhow::ensure!(ask() == HttpOutcome::Refused, "{when}: {}", ask());
            Ok(())
        })
        .unwrap();
    }
    // The port is published before the agent starts.
    docker.run_invoices("web", &[&publish]).unwrap();
    guard.remove().unwrap();
    let _guard = Guard::start(&lab, &policy(docker.socket(), "")).unwrap();
    assert_eq!(ask(), HttpOutcome::TimedOut);
    assert!(connects());
    drop(own);
}
