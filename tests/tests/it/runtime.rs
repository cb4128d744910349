//! The agent's picture of the containers while Docker fails: a real Docker, and a fake one that never ends its answer.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::net::UnixListener,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use lab::{
    docker::{Docker, IMAGE},
    guard::Guard,
    hammer::{Hammer, HammerTarget, Reached},
    http::{HttpOutcome, get},
    process::{run, wait_for},
    relay::{Relay, RelayFault},
    topology::{HOST_V4, INTERFACE, Lab, USER_V4},
};

fn policy(docker: &Path) -> String {
    format!(
        "mode = \"enforce\"\ninterfaces = [\"{INTERFACE}\"]\n[docker]\nsocket = \"{}\"\n",
        docker.display()
    )
}

fn wait_until_published(guard: &Guard, seconds: u64, expected: &[&str]) {
    wait_for(Duration::from_secs(seconds), || {
        let status = guard.json("status")?;
        let docker = &status["docker"];
        let known = docker["published"].to_string();
        let all = expected
            .iter()
            .all(|port| known.contains(&format!("\"{port}\"")));
        anyhow::ensure!(all && docker["connected"] == true, "{docker}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_container_that_cannot_be_inspected_hides_no_other() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    docker.run_invoices("first", &["8000:8000"]).unwrap();
    docker.run_invoices("bad", &["8001:8000"]).unwrap();
    let chosen = ["run", "--detach", "--publish-all", "--expose", "8000"];
    docker
        .run(&[&chosen[..], &["--name", "chosen", IMAGE]].concat())
        .unwrap();
    let port = docker.run(&["port", "chosen", "8000/tcp"]).unwrap();
    let port = port.lines().next().unwrap().rsplit_once(':').unwrap().1;
    let socket = lab.folder().join("relay.sock");
    let relay = Relay::start(&socket, docker.socket()).unwrap();
    for name in ["bad", "chosen"] {
        let id = docker
            .run(&["inspect", "--format", "{{.Id}}", name])
            .unwrap();
        relay.fail_requests(
            &format!("/containers/{}/json", id.trim()),
            RelayFault::Refused,
        );
    }
    let guard = Guard::start(&lab, &policy(&socket)).unwrap();
    let chosen = format!("tcp/{port}");
    wait_until_published(&guard, 5, &["tcp/8000", "tcp/8001", &chosen]);
    let log = guard.log();
    assert!(
        log.contains("cannot be inspected: it answers 500: layer does not exist")
            && log.contains("container=\"bad\"")
            && log.contains("container=\"chosen\""),
        "{log}"
    );
    // Events about that container do not end the event stream; events about other containers are still followed.
    docker.run(&["restart", "--time", "1", "bad"]).unwrap();
    docker.run_invoices("later", &["8002:8000"]).unwrap();
    wait_until_published(&guard, 5, &["tcp/8000", "tcp/8001", "tcp/8002", &chosen]);
    for port in [8000, 8001, 8002, port.parse().unwrap()] {
        assert_eq!(
            get(&lab, USER_V4, HOST_V4, port).unwrap(),
            HttpOutcome::TimedOut,
            "{port}"
        );
    }
    assert!(!guard.log().contains("trying again"), "{}", guard.log());
    docker.remove("bad").unwrap();
    wait_for(Duration::from_secs(5), || {
        let status = guard.json("status")?;
        let known = status["docker"]["published"].to_string();
        anyhow::ensure!(!known.contains("tcp/8001"), "{known}");
        Ok(())
    })
    .unwrap();
}

/// Containers that hang in their start, and the `docker run` clients that wait for them.
struct Hanging<'a> {
    lab: &'a Lab,
    clients: Vec<Child>,
}

const BLACK_HOLE: [&str; 7] = ["OUTPUT", "-p", "tcp", "--dport", "514", "-j", "DROP"];

impl<'a> Hanging<'a> {
    fn start(lab: &'a Lab, docker: &Docker, count: usize) -> Self {
        let filter = |action: &str| {
            run(lab.host.command("iptables").arg(action).args(BLACK_HOLE)).unwrap();
        };
        filter("--insert");
        let mut hanging = Self {
            lab,
            clients: Vec::new(),
        };
        let address = format!("syslog-address=tcp://{USER_V4}:514");
        for _ in 0..count {
            let client = Command::new("docker")
                .arg("--host")
                .arg(format!("unix://{}", docker.socket().display()))
                .args(["run", "--detach", "--log-driver", "syslog", "--log-opt"])
                .args([&address, IMAGE])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            hanging.clients.push(client.unwrap());
        }
        wait_for(Duration::from_secs(50), || {
            let created = ["ps", "--all", "--quiet", "--filter", "status=created"];
            let created = docker.run(&created)?.lines().count();
            anyhow::ensure!(created == count, "{created} of {count} are being started");
            Ok(())
        })
        .unwrap();
        hanging
    }
}

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        // Without the rule the next SYN is answered with RST, and Docker ends the start.
        let delete = self
            .lab
            .host
            .command("iptables")
            .arg("--delete")
            .args(BLACK_HOLE)
            .status();
        if !delete.is_ok_and(|status| status.success()) {
            eprintln!("the DROP rule cannot be removed");
        }
        for client in &mut self.clients {
            // `docker run` ends when the start of its container has ended.
            let _result = client.wait();
        }
    }
}

#[test]
fn a_new_containers_ports_close_at_once_while_many_others_hang_in_their_start() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    docker.run_invoices("before", &["8000:8000"]).unwrap();
    let hanging = Hanging::start(&lab, &docker, 33);
    let started = Instant::now();
    let guard = Guard::start(&lab, &policy(docker.socket())).unwrap();
    println!("the agent was ready after {:?}", started.elapsed());
    let reached = Reached::count(&lab).unwrap();
    let targets = [12_345, 8000].map(|port| HammerTarget::Tcp(SocketAddr::new(HOST_V4, port)));
    let hammer = Hammer::start(&lab, &targets).unwrap();
    docker.run_invoices("new", &["12345:8000"]).unwrap();
    let created = Instant::now();
    wait_until_published(&guard, 10, &["tcp/8000", "tcp/12345"]);
    println!("published {:?} after the container runs", created.elapsed());
    thread::sleep(Duration::from_secs(1));
    assert_eq!(reached.packets().unwrap(), 0, "{}", guard.log());
    assert!(hammer.stop().unwrap() > 100);
    let log = guard.log();
    assert!(log.contains("no answer within 2 s"), "they hang: {log}");
    // With mode off the port answers: the guard had closed it, not Docker.
    guard.run(&["mode", "off"]).unwrap();
    wait_for(Duration::from_secs(5), || {
        let answer = get(&lab, USER_V4, HOST_V4, 12_345)?;
        anyhow::ensure!(answer == HttpOutcome::Status(200), "{answer:?}");
        Ok(())
    })
    .unwrap();
    drop(hanging);
}

#[test]
fn an_answer_that_never_ends_fills_no_memory() {
    let lab = Lab::new().unwrap();
    let socket = lab.folder().join("endless.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut request = [0; 4096];
                let length = client.read(&mut request)?;
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";
                client.write_all(head.as_bytes())?;
                if request[..length].starts_with(b"GET /version") {
                    return client.write_all(b"{\"ApiVersion\": \"1.41\"}");
                }
                let spaces = [b' '; 1 << 16];
                loop {
                    // Until the client closes the connection.
                    client.write_all(&spaces)?;
                }
            });
        }
    });
    let guard = Guard::start(&lab, &policy(&socket)).unwrap();
    thread::sleep(Duration::from_secs(8));
    let status = guard.json("status").unwrap();
    let error = status["docker"]["error"].as_str().unwrap();
    assert!(
        error.contains("larger than 64 MiB") || error.contains("within 5 s"),
        "{error}"
    );
    assert_eq!(
        status["enforcing"], false,
        "the published ports are not known"
    );
    let memory = fs::read_to_string(format!("/proc/{}/status", guard.pid())).unwrap();
    let peak = memory.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak_kb: u64 = peak
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    println!("the agent's peak memory: {peak_kb} kB");
    assert!(peak_kb < 400_000, "{peak_kb} kB");
}
