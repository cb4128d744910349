//! Tests the inventory with a fake daemon that misbehaves, over a real socket. A test cannot make dockerd do most of
//! this.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::IpAddr,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{ConnectionState, Container, Runtime, Watch, read};

/// Longer than any machine takes for any state that a test waits for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The answer to a request.
#[derive(Clone)]
enum FakeReply {
    Json(Value),
    /// A body that is sent unchanged, such as a list with null and other oddities.
    Text(String),
    Refused(u16),
    /// No answer, for as long as the client waits.
    Silence,
    /// An answer without an end.
    Endless,
}

#[derive(Default)]
struct FakeDaemonState {
    replies: BTreeMap<String, FakeReply>,
    listeners: Vec<UnixStream>,
    /// The number of requests for each path.
    asked: BTreeMap<String, usize>,
}

/// A daemon whose answers are set by the path of the request, without the version.
#[derive(Clone)]
struct FakeDaemon {
    state: Arc<Mutex<FakeDaemonState>>,
}

impl FakeDaemon {
    fn start(socket: &Path, id: &str, root: &Path) -> Self {
        let daemon = Self {
            state: Arc::default(),
        };
        daemon.set(
            "/version",
            json!({"Version": "99", "ApiVersion": "1.60", "MinAPIVersion": "1.44"}),
        );
        daemon.set("/info", json!({"ID": id, "DockerRootDir": root}));
        daemon.set("/networks", json!([]));
        daemon.set("/containers/json", json!([]));
        let listener = UnixListener::bind(socket).unwrap();
        let serving = daemon.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let daemon = serving.clone();
                // The client may hang up at any moment.
                thread::spawn(move || drop(daemon.serve(client)));
            }
        });
        daemon
    }

    fn reply(&self, path: &str, reply: FakeReply) {
        self.state
            .lock()
            .unwrap()
            .replies
            .insert(path.to_owned(), reply);
    }

    fn set(&self, path: &str, value: Value) {
        self.reply(path, FakeReply::Json(value));
    }

    fn inspect(&self, id: &str, reply: FakeReply) {
        self.reply(&format!("/containers/{id}/json"), reply);
    }

    fn asked(&self, path: &str) -> usize {
        *self.state.lock().unwrap().asked.get(path).unwrap_or(&0)
    }

    /// Sends an event. Docker repeats events since the time that a client names; this daemon waits for the client
    /// instead.
    fn say(&self, line: &str) {
        let end = Instant::now() + PATIENCE;
        while self.state.lock().unwrap().listeners.is_empty() {
            assert!(Instant::now() < end, "no client requests events");
            thread::sleep(Duration::from_millis(5));
        }
        for listener in &mut self.state.lock().unwrap().listeners {
            let chunk = format!("{line}\n");
            let text = format!("{:x}\r\n{chunk}\r\n", chunk.len());
            listener.write_all(text.as_bytes()).unwrap();
        }
    }

    fn event(&self, kind: &str, action: &str, id: &str, attributes: Value) {
        let event = json!({
            "Type": kind, "Action": action, "Actor": {"ID": id, "Attributes": attributes},
            "time": 1_700_000_000, "timeNano": 1_700_000_000_000_000_000_i64,
        });
        self.say(&event.to_string());
    }

    fn hang_up(&self) {
        for listener in self.state.lock().unwrap().listeners.drain(..) {
            listener.shutdown(std::net::Shutdown::Both).unwrap();
        }
    }

    fn serve(&self, mut client: UnixStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(client.try_clone()?).lines();
        let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        while lines
            .next()
            .transpose()?
            .is_some_and(|line| !line.is_empty())
        {}
        let path = request.split(' ').nth(1).unwrap_or_default();
        let path = path.split('?').next().unwrap_or_default();
        let whole_path = path;
        // `/v1.53/info` is `/info`; Podman's own API has another version.
        let behind = |path: &str| path.find('/').map(|start| path[start..].to_owned());
        let path = path.strip_prefix("/v1.").and_then(behind);
        let path = path.unwrap_or_else(|| whole_path.to_owned());
        let reply = {
            let mut state = self.state.lock().unwrap();
            *state.asked.entry(path.clone()).or_default() += 1;
            state.replies.get(&path).cloned()
        };
        let ok = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
        if path == "/events" {
            client.write_all(format!("{ok}Transfer-Encoding: chunked\r\n\r\n").as_bytes())?;
            self.state.lock().unwrap().listeners.push(client);
            return Ok(());
        }
        let whole = |body: &str| format!("{ok}Content-Length: {}\r\n\r\n{body}", body.len());
        match reply {
            Some(FakeReply::Json(body)) => client.write_all(whole(&body.to_string()).as_bytes()),
            Some(FakeReply::Text(body)) => client.write_all(whole(&body).as_bytes()),
            None | Some(FakeReply::Refused(404)) => client.write_all(
                b"HTTP/1.1 404 Not Found\r\nContent-Length: 26\r\n\r\n{\"message\":\"no such thing\"}",
            ),
            Some(FakeReply::Refused(status)) => {
                let body = "{\"message\":\"layer\\ndoes not exist\"}";
                let length = body.len();
                client.write_all(
                    format!("HTTP/1.1 {status} Oh\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes(),
                )
            }
            Some(FakeReply::Silence) => {
                // Until the client hangs up.
                while lines.next().transpose()?.is_some() {}
                Ok(())
            }
            Some(FakeReply::Endless) => {
                client.write_all(format!("{ok}Transfer-Encoding: chunked\r\n\r\n").as_bytes())?;
                let chunk = vec![b' '; 1 << 16];
                loop {
                    client.write_all(b"10000\r\n")?;
                    client.write_all(&chunk)?;
                    client.write_all(b"\r\n")?;
                }
            }
        }
    }
}

/// A fake daemon and its files.
struct DaemonFixture {
    folder: TempDir,
    daemon: FakeDaemon,
}

impl DaemonFixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let daemon = FakeDaemon::start(&folder.path().join("a.sock"), "A", folder.path());
        Self { folder, daemon }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("a.sock")
    }

    fn follow(&self) -> Watch {
        self.follow_at(Duration::from_secs(600))
    }

    fn follow_at(&self, look_again: Duration) -> Watch {
        Watch::start_at(self.socket().to_str().unwrap(), look_again, |_| {})
    }

    /// Writes Docker's file of a container that will publish a port.
    fn configure(&self, id: &str, port: u16) {
        let folder = self.folder.path().join("containers").join(id);
        fs::create_dir_all(&folder).unwrap();
        let config =
            json!({"PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": port.to_string()}]}});
        fs::write(folder.join("hostconfig.json"), config.to_string()).unwrap();
    }
}

fn listed(id: &str, state: &str, ports: Value) -> Value {
    json!({"Id": id, "Names": [format!("/{id}")], "Image": "web", "Labels": {"guard.from": "any"},
        "State": state, "Ports": ports,
        "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.9", "GlobalIPv6Address": ""}}}})
}

fn inspected(id: &str, port: u16, address: &str) -> Value {
    json!({"Id": id, "Name": format!("/{id}"), "Config": {"Image": "web", "Labels": null},
        "HostConfig": {"NetworkMode": "default",
            "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": port.to_string()}]}},
        "NetworkSettings": {"Ports": {}, "Networks": {"bridge": {"IPAddress": address}}},
        "State": {"Running": true}})
}

/// Waits until the state of the daemon meets a condition.
fn wait(watch: &Watch, what: &str, is_so: impl Fn(&Runtime) -> bool) -> Runtime {
    let end = Instant::now() + PATIENCE;
    loop {
        let runtime = watch.seen().runtime;
        if is_so(&runtime) {
            return runtime;
        }
        assert!(Instant::now() < end, "{what}: {runtime:#?}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn connected(runtime: &Runtime) -> bool {
    runtime.connection == ConnectionState::Connected
}

fn ports(container: &Container) -> Vec<u16> {
    container
        .publishes
        .iter()
        .map(|publication| publication.first)
        .collect()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_container_that_cannot_be_inspected_is_half_known_and_hides_no_other() {
    let world = DaemonFixture::new();
    let given = json!([{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 49_153, "Type": "tcp"}]);
    world.daemon.set(
        "/containers/json",
        json!([
            listed("a1", "running", json!([])),
            listed("bad", "running", given),
            listed("z1", "exited", Value::Null)
        ]),
    );
    for (id, port) in [("a1", 8001), ("z1", 8003)] {
        world
            .daemon
            .inspect(id, FakeReply::Json(inspected(id, port, "172.17.0.2")));
    }
    world.daemon.inspect("bad", FakeReply::Refused(500));
    world.configure("bad", 8002);
    let watch = world.follow();
    let runtime = wait(&watch, "the daemon is read whole", connected);
    let containers = &runtime.inventory.containers;
    assert_eq!(ports(&containers["a1"]), [8001]);
    assert_eq!(ports(&containers["z1"]), [8003]);
    assert_eq!(containers["z1"].half_known, None);
    let bad = &containers["bad"];
    assert_eq!(ports(bad), [8002, 49_153], "its file and the list");
    assert_eq!(bad.name, "bad");
    assert!(bad.running);
    assert_eq!(bad.labels["guard.from"], "any");
    assert_eq!(bad.addresses, [address("172.17.0.9")].into());
    let why = bad.half_known.as_deref().unwrap();
    assert_eq!(why, "it answers 500: layer\\ndoes not exist");

    // a1 was known, an event names it, and it cannot be inspected any more.
    world.daemon.inspect("a1", FakeReply::Refused(500));
    world.daemon.event("container", "die", "a1", json!({}));
    let is_half = |id: &'static str| {
        move |runtime: &Runtime| runtime.inventory.containers[id].half_known.is_some()
    };
    let runtime = wait(&watch, "half known", is_half("a1"));
    assert_eq!(ports(&runtime.inventory.containers["a1"]), [8001]);
    assert!(connected(&runtime), "{runtime:?}");
    // a1 can be inspected again.
    world
        .daemon
        .inspect("a1", FakeReply::Json(inspected("a1", 9001, "172.17.0.2")));
    world.daemon.event("container", "start", "a1", json!({}));
    let runtime = wait(&watch, "known again", |runtime| !is_half("a1")(runtime));
    assert_eq!(ports(&runtime.inventory.containers["a1"]), [9001]);

    // Reading once gives the same containers.
    let asked = tokio_block(read(world.socket().to_str().unwrap())).unwrap();
    assert_eq!(asked.containers, runtime.inventory.containers);
}

fn tokio_block<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(future)
}

#[test]
fn a_new_container_is_closed_at_once_and_the_others_are_read_while_many_hang() {
    let world = DaemonFixture::new();
    let hanging: Vec<String> = (0..33).map(|number| format!("hang{number}")).collect();
    let mut list: Vec<Value> = hanging
        .iter()
        .map(|id| listed(id, "created", json!([])))
        .collect();
    for id in &hanging {
        world.daemon.inspect(id, FakeReply::Silence);
    }
    list.push(listed("last", "running", json!([])));
    world.daemon.inspect(
        "last",
        FakeReply::Json(inspected("last", 8000, "172.17.0.2")),
    );
    world.daemon.set("/containers/json", json!(list));
    world.daemon.inspect("new", FakeReply::Silence);
    world.configure("new", 12_345);
    let watch = world.follow();
    wait(&watch, "the list is published immediately", |runtime| {
        runtime.inventory.containers.len() == 34
    });
    world.daemon.event(
        "container",
        "create",
        "new",
        json!({"name": "new", "image": "web", "guard.from": "any"}),
    );
    let runtime = wait(&watch, "the new one", |runtime| {
        runtime.inventory.containers.contains_key("new")
    });
    assert_eq!(ports(&runtime.inventory.containers["new"]), [12_345]);
    assert_eq!(
        runtime.connection,
        ConnectionState::Reading,
        "the time for the others is not over"
    );
    let runtime = wait(&watch, "the time for each is over", connected);
    assert_eq!(ports(&runtime.inventory.containers["last"]), [8000]);
    assert_eq!(runtime.inventory.containers["last"].half_known, None);
    for id in &hanging {
        let container = &runtime.inventory.containers[id];
        assert_eq!(
            (container.half_known.as_deref(), container.is_file_unread),
            (Some("no answer within 2 s"), true)
        );
        // Docker goes on with a request that is given up, so a second one is not sent.
        world.daemon.event("container", "start", id, json!({}));
    }
    thread::sleep(Duration::from_secs(1));
    assert_eq!(world.daemon.asked("/containers/hang0/json"), 1);
}

#[test]
fn an_answer_without_an_end_is_bounded() {
    let world = DaemonFixture::new();
    world.daemon.set(
        "/containers/json",
        json!([
            listed("a1", "running", json!([])),
            listed("b1", "running", json!([]))
        ]),
    );
    world.daemon.inspect("a1", FakeReply::Endless);
    world
        .daemon
        .inspect("b1", FakeReply::Json(inspected("b1", 8000, "172.17.0.2")));
    let watch = world.follow();
    let runtime = wait(&watch, "whole", connected);
    let why = runtime.inventory.containers["a1"]
        .half_known
        .clone()
        .unwrap();
    assert!(
        why.starts_with("its answer is larger than 8 MiB")
            || why.starts_with("no answer within 2 s"),
        "{why}"
    );
    assert_eq!(ports(&runtime.inventory.containers["b1"]), [8000]);

    // An event is too long: the next events are processed, and everything is read again.
    let asked = world.daemon.asked("/containers/json");
    world.daemon.say(&"x".repeat(20 << 20));
    world.daemon.event("container", "destroy", "b1", json!({}));
    wait(&watch, "the event behind it", |runtime| {
        !runtime.inventory.containers.contains_key("b1")
    });
    let end = Instant::now() + Duration::from_secs(5);
    while world.daemon.asked("/containers/json") == asked {
        assert!(Instant::now() < end, "the list is not requested again");
        thread::sleep(Duration::from_millis(20));
    }

    let world = DaemonFixture::new();
    world.daemon.reply("/containers/json", FakeReply::Endless);
    let watch = world.follow();
    let runtime = wait(&watch, "the trouble is published", |runtime| {
        runtime.connection != ConnectionState::Reading
    });
    let ConnectionState::NeverAnswered { error } = runtime.connection else {
        panic!("{:?}", runtime.connection);
    };
    assert!(
        error.contains("larger than 64 MiB") || error.contains("no answer within 5 s"),
        "{error}"
    );
    // Events are followed although the list failed.
    world.daemon.inspect("new", FakeReply::Silence);
    world.configure("new", 12_345);
    world
        .daemon
        .event("container", "create", "new", json!({"name": "new"}));
    wait(&watch, "the new one", |runtime| {
        runtime
            .inventory
            .containers
            .get("new")
            .is_some_and(|new| ports(new) == [12_345])
    });
}

#[test]
fn the_containers_of_two_daemons_are_kept_apart() {
    let world = DaemonFixture::new();
    world.daemon.set(
        "/containers/json",
        json!([listed("a1", "running", json!([]))]),
    );
    world
        .daemon
        .inspect("a1", FakeReply::Json(inspected("a1", 8001, "172.17.0.2")));
    world.daemon.set(
        "/networks",
        json!([{"Id": "a".repeat(64), "Name": "na", "Driver": "bridge"}]),
    );
    let watch = world.follow();
    let runtime = wait(&watch, "A", connected);
    let of_a = format!("A at {}", world.folder.path().display());
    assert_eq!(runtime.daemon, Some(of_a.clone()));

    // Another daemon listens at the same path, while the first one still runs.
    let path = world.folder.path().join("b.sock");
    let other = FakeDaemon::start(&path, "B", world.folder.path());
    other.set(
        "/containers/json",
        json!([
            listed("b1", "running", json!([])),
            listed("b2", "running", json!([]))
        ]),
    );
    other.inspect("b1", FakeReply::Json(inspected("b1", 8002, "172.17.0.3")));
    other.inspect("b2", FakeReply::Silence);
    other.set(
        "/networks",
        json!([{"Id": "b".repeat(64), "Name": "nb", "Driver": "bridge"}]),
    );
    fs::rename(&path, world.socket()).unwrap();
    let runtime = wait(&watch, "B is being read", |runtime| {
        runtime.inventory.containers.contains_key("b1")
    });
    assert_eq!(runtime.connection, ConnectionState::Reading);
    assert!(
        runtime.inventory.containers.contains_key("a1"),
        "closed until B is known"
    );
    assert!(
        runtime
            .inventory
            .networks
            .iter()
            .any(|network| network.name == "na")
    );
    let runtime = wait(&watch, "B", connected);
    assert_eq!(runtime.daemon, Some(of_a.replace("A at", "B at")));
    assert_eq!(
        runtime.inventory.containers.keys().collect::<Vec<_>>(),
        ["b1", "b2"]
    );
    assert_eq!(runtime.inventory.networks.len(), 1);

    // The same daemon after a restart: containers that went in the meantime are removed.
    other.set(
        "/containers/json",
        json!([listed("b2", "running", json!([]))]),
    );
    other.hang_up();
    wait(&watch, "b1 is gone", |runtime| {
        connected(runtime) && runtime.inventory.containers.len() == 1
    });
}

#[test]
fn a_daemon_that_is_lost_keeps_its_last_inventory_with_the_time() {
    let world = DaemonFixture::new();
    world.daemon.set(
        "/containers/json",
        json!([listed("a1", "running", json!([]))]),
    );
    world
        .daemon
        .inspect("a1", FakeReply::Json(inspected("a1", 8001, "172.17.0.2")));
    let watch = world.follow();
    wait(&watch, "A", connected);
    let before = jiff::Timestamp::now();
    fs::remove_file(world.socket()).unwrap();
    let is_lost = |runtime: &Runtime| matches!(runtime.connection, ConnectionState::Lost { .. });
    wait(
        &watch,
        "no socket: a daemon that cannot be reached is lost",
        |runtime| {
            world.daemon.hang_up();
            is_lost(runtime)
        },
    );
    thread::sleep(Duration::from_millis(500));
    let runtime = watch.seen().runtime;
    let ConnectionState::Lost { since, .. } = &runtime.connection else {
        panic!("{runtime:?}");
    };
    assert!(
        *since >= before && since.duration_since(before).as_secs() < 5,
        "{since}"
    );
    assert_eq!(ports(&runtime.inventory.containers["a1"]), [8001]);
    assert!(runtime.daemon.is_some());
}

#[test]
fn an_odd_answer_hides_nothing_but_its_own_element() {
    let world = DaemonFixture::new();
    // Podman's states, nulls, numbers that are too large, an element that is no container, and one without a name.
    let list = r#"[
        {"Id": "odd1", "Names": null, "Image": null, "Labels": null, "State": "stopped", "Ports": null},
        {"Id": "odd2", "Names": ["/odd2"], "Ports": [{"PrivatePort": -1, "PublicPort": 99999999999999999999, "Type": "tcp"}]},
        {"Id": "odd3", "Names": 7, "SizeRw": 1e999}, {"Id": "../../etc"}, {}, null, 17, "x",
        {"Id": "gone"}, {"Id": "late1"}]"#;
    world
        .daemon
        .reply("/containers/json", FakeReply::Text(list.to_owned()));
    for (id, port) in [("odd1", 8001), ("odd2", 8002), ("late1", 8004)] {
        world
            .daemon
            .inspect(id, FakeReply::Json(inspected(id, port, "")));
    }
    world
        .daemon
        .inspect("odd3", FakeReply::Json(json!({"Name": ["a list"]})));
    world.daemon.reply("/networks", FakeReply::Text(r#"[{"Id": 7}, {"Id": "n1", "Name": "n1", "Driver": "bridge",
        "IPAM": {"Config": [{"Subnet": "172.20.0.0/16", "Gateway": "172.20.0.1/16"}, {"Subnet": "x"}]}}]"#.to_owned()));
    let watch = world.follow();
    let runtime = wait(&watch, "whole", connected);
    let containers = &runtime.inventory.containers;
    assert_eq!(
        containers.keys().collect::<Vec<_>>(),
        ["late1", "odd1", "odd2", "odd3"]
    );
    assert_eq!(ports(&containers["odd1"]), [8001]);
    assert_eq!(ports(&containers["odd2"]), [8002]);
    let why = containers["odd3"].half_known.as_deref().unwrap();
    assert!(why.starts_with("its answer cannot be read"), "{why}");
    assert_eq!(runtime.inventory.networks.len(), 1);
    assert_eq!(runtime.inventory.networks_left_out.len(), 1, "{runtime:?}");
    let network = &runtime.inventory.networks[0];
    assert_eq!(network.gateways, [address("172.20.0.1")]);
    assert_eq!(network.subnets.len(), 1);
    // Lines that are no events do not end the stream.
    for line in [
        "x",
        "",
        "{}",
        "[]",
        r#"{"Type": "container", "Action": "start", "Actor": null}"#,
    ] {
        world.daemon.say(line);
    }
    world.daemon.say(
        r#"{"Type": "container", "Action": "destroy", "Actor": {"ID": "odd1"}, "timeNano": 1e999}"#,
    );
    let runtime = wait(&watch, "an odd time loses no event", |runtime| {
        !runtime.inventory.containers.contains_key("odd1")
    });
    assert!(connected(&runtime));
    // Networks stay unchanged if they cannot be listed.
    world.daemon.reply("/networks", FakeReply::Refused(500));
    world.daemon.event("network", "create", "n2", json!({}));
    let runtime = wait(&watch, "the trouble is published", |runtime| {
        runtime
            .inventory
            .networks_left_out
            .iter()
            .any(|why| why.contains("500"))
    });
    assert_eq!(runtime.inventory.networks.len(), 1);
    assert!(connected(&runtime));
}

#[test]
fn addresses_names_and_states_follow_their_events() {
    let world = DaemonFixture::new();
    world.daemon.set(
        "/containers/json",
        json!([listed("a1", "running", json!([]))]),
    );
    world
        .daemon
        .inspect("a1", FakeReply::Json(inspected("a1", 8001, "172.17.0.2")));
    let watch = world.follow();
    let runtime = wait(&watch, "A", connected);
    assert_eq!(
        runtime.inventory.containers["a1"].addresses,
        [address("172.17.0.2")].into()
    );
    let mut changed = inspected("a1", 8001, "172.17.0.2");
    changed["NetworkSettings"]["Networks"]["more"] =
        json!({"IPAddress": "172.18.0.2", "GlobalIPv6Address": "fd00::2"});
    changed["NetworkSettings"]["Networks"]["none"] = Value::Null;
    world.daemon.inspect("a1", FakeReply::Json(changed));
    world
        .daemon
        .event("network", "connect", "n1", json!({"container": "a1"}));
    wait(&watch, "connected to another network", |runtime| {
        let expected = ["172.17.0.2", "172.18.0.2", "fd00::2"].map(address);
        runtime.inventory.containers["a1"].addresses == expected.into()
    });
    world
        .daemon
        .inspect("a1", FakeReply::Json(inspected("other", 8001, "")));
    world
        .daemon
        .event("container", "rename", "a1", json!({"oldName": "a1"}));
    let runtime = wait(&watch, "renamed", |runtime| {
        runtime.inventory.containers["a1"].name == "other"
    });
    assert!(runtime.inventory.containers["a1"].addresses.is_empty());
    let asked = world.daemon.asked("/containers/a1/json");
    for action in ["exec_start: sh", "health_status: healthy", "top", "resize"] {
        world.daemon.event("container", action, "a1", json!({}));
    }
    // Podman's name for the event of a removed container.
    world.daemon.inspect("a1", FakeReply::Refused(404));
    world.daemon.event("container", "remove", "a1", json!({}));
    wait(&watch, "gone", |runtime| {
        runtime.inventory.containers.is_empty()
    });
    assert_eq!(
        world.daemon.asked("/containers/a1/json"),
        asked + 1,
        "a health check causes no request"
    );
}

#[test]
fn a_silent_stream_of_events_is_opened_again() {
    let world = DaemonFixture::new();
    let watch = world.follow_at(Duration::from_millis(500));
    wait(&watch, "A", connected);
    assert_eq!(world.daemon.asked("/events"), 1);
    // No event reports it.
    world.daemon.set(
        "/containers/json",
        json!([listed("a1", "running", json!([]))]),
    );
    world
        .daemon
        .inspect("a1", FakeReply::Json(inspected("a1", 8001, "172.17.0.2")));
    wait(&watch, "found by the list", |runtime| {
        runtime
            .inventory
            .containers
            .get("a1")
            .is_some_and(|found| found.half_known.is_none())
    });
    let end = Instant::now() + Duration::from_secs(5);
    while world.daemon.asked("/events") < 2 {
        assert!(Instant::now() < end, "events are not followed anew");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_list_that_fails_for_a_moment_loses_no_event() {
    let world = DaemonFixture::new();
    world
        .daemon
        .reply("/containers/json", FakeReply::Refused(500));
    world.configure("new", 12_345);
    let watch = world.follow();
    wait(&watch, "the failure is published", |runtime| {
        matches!(runtime.connection, ConnectionState::NeverAnswered { .. })
    });
    world.daemon.inspect("new", FakeReply::Silence);
    world
        .daemon
        .event("container", "create", "new", json!({"name": "new"}));
    wait(&watch, "closed all the same", |runtime| {
        runtime.inventory.containers.contains_key("new")
    });
    world.daemon.set(
        "/containers/json",
        json!([listed("new", "created", json!([]))]),
    );
    wait(&watch, "it answers again", connected);
}

#[test]
fn only_labels_that_guard_uses_are_kept() {
    let world = DaemonFixture::new();
    let mut labels = serde_json::Map::new();
    for number in 0..100_000 {
        labels.insert(format!("other.{number}"), json!("x".repeat(20)));
    }
    for number in 0..1000 {
        labels.insert(format!("guard.x{number:04}"), json!("1"));
    }
    labels.insert("guard.\n\u{202e}".to_owned(), json!("1"));
    labels.insert("guard.from".to_owned(), json!("192.0.2.0/24,".repeat(1000)));
    labels.insert("com.docker.compose.project".to_owned(), json!("shop"));
    let mut container = inspected("a1", 8001, "");
    container["Config"]["Labels"] = Value::Object(labels);
    world.daemon.set(
        "/containers/json",
        json!([listed("a1", "running", json!([]))]),
    );
    world.daemon.inspect("a1", FakeReply::Json(container));
    let watch = world.follow();
    let runtime = wait(&watch, "whole", connected);
    let found = &runtime.inventory.containers["a1"];
    assert_eq!(found.half_known, None);
    assert_eq!(found.labels.len(), 65, "64 of the guard, and Compose's");
    assert_eq!(
        found.labels_left_out,
        1002 - 64 + 1,
        "the rest, and what has been cut"
    );
    assert!(
        found
            .labels
            .keys()
            .all(|name| !name.contains(char::is_control))
    );
    let from = &found.labels["guard.from"];
    assert!(
        from.len() <= 4096 && from.ends_with("192.0.2.0/24"),
        "{from}"
    );
}

#[test]
fn many_overlapping_ranges_are_merged_into_one() {
    let world = DaemonFixture::new();
    let bindings: Vec<Value> = (0..2000)
        .map(|number| json!({"HostIp": format!("10.0.{}.{}", number / 250, number % 250), "HostPort": "1000-65000"}))
        .collect();
    let mut container = inspected("a1", 8001, "");
    container["HostConfig"]["PortBindings"] = json!({"80/tcp": bindings});
    world.daemon.set(
        "/containers/json",
        json!([listed("a1", "running", json!([]))]),
    );
    world.daemon.inspect("a1", FakeReply::Json(container));
    let watch = world.follow();
    let runtime = wait(&watch, "whole", connected);
    let published = &runtime.inventory.containers["a1"].publishes;
    assert_eq!(published.len(), 1, "{published:?}");
    assert_eq!(published.first().unwrap().ports(), 1000..=65_000);
}

#[test]
fn podman_names_its_bridges_in_its_own_api_and_itself_by_its_folder() {
    let world = DaemonFixture::new();
    world.daemon.set(
        "/version",
        json!({"Version": "5.4", "ApiVersion": "1.41", "MinAPIVersion": "1.24",
            "Components": [{"Name": "Podman Engine"}]}),
    );
    world.daemon.set(
        "/info",
        json!({"ID": "another one each time", "DockerRootDir": "/var/lib/containers/storage"}),
    );
    world.daemon.set(
        "/networks",
        json!([{"Id": "n1", "Name": "podman", "Driver": "bridge"}]),
    );
    world.daemon.set(
        "/v4.0.0/libpod/networks/json",
        json!([{"id": "n1", "name": "podman", "network_interface": "podman0"}]),
    );
    let watch = world.follow();
    let runtime = wait(&watch, "whole", connected);
    assert_eq!(
        runtime.inventory.networks[0].bridge.as_deref(),
        Some("podman0")
    );
    assert_eq!(
        runtime.daemon.as_deref(),
        Some("Podman at /var/lib/containers/storage")
    );
}

#[test]
fn bridges_are_named_as_docker_names_them() {
    let world = DaemonFixture::new();
    let long = "0123456789ab".to_owned() + &"c".repeat(52);
    world.daemon.set("/networks", json!([
        {"Id": "d1", "Name": "bridge", "Driver": "bridge",
            "Options": {"com.docker.network.bridge.name": "docker0", "com.docker.network.bridge.default_bridge": "true"}},
        {"Id": "d2", "Name": "bridge", "Driver": "bridge", "Options": {"com.docker.network.bridge.default_bridge": "true"}},
        {"Id": "d3", "Name": "forged", "Driver": "bridge", "Options": {"com.docker.network.bridge.name": "../../etc"}},
        {"Id": "e1", "Name": "lan", "Driver": "macvlan", "Options": {"parent": "eth0"},
            "IPAM": {"Config": [{"Subnet": "192.0.2.0/24"}]}},
        {"Id": long, "Name": "shop", "Driver": "bridge", "Options": {"com.docker.network.bridge.gateway_mode_ipv4": "routed"},
            "IPAM": {"Config": [{"Subnet": "172.20.0.0/16"}, {"Subnet": "fd00::/64"}]}},
    ]));
    let watch = world.follow();
    let runtime = wait(&watch, "whole", connected);
    let bridges: BTreeMap<&str, Option<&str>> = runtime
        .inventory
        .networks
        .iter()
        .map(|network| (network.id.as_str(), network.bridge.as_deref()))
        .collect();
    let expected = [
        ("d1", Some("docker0")),
        ("d2", Some("docker0")),
        ("d3", None),
        ("e1", None),
        (long.as_str(), Some("br-0123456789ab")),
    ];
    assert_eq!(bridges, expected.into());
    let closed: Vec<String> = runtime
        .inventory
        .containers(None)
        .networks
        .iter()
        .map(|network| format!("{} {:?}", network.prefix, network.kind))
        .collect();
    assert_eq!(
        closed,
        ["172.20.0.0/16 Routed", "fd00::/64 Routed"],
        "bridges alone"
    );
}
