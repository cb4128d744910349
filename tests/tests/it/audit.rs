//! Compares the reports of `guard audit` and the policies of `guard init` with what a client on the network reaches.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::Path,
    process::Output,
    thread,
    time::Duration,
};

use lab::{
    docker::{Docker, IMAGE},
    guard::{Guard, binary, location_options, output, write_policy},
    http::{HttpOutcome, get, get_with_login},
    process::{run, wait_for},
    proxy::{LOGIN, Proxy},
    relay::{Relay, RelayMode},
    ssh::Ssh,
    topology::{FLOODER_V4, HOST_V4, HOST_V6, INTERFACE, Lab, USER_V4, USER_V6},
};
use serde_json::{Value, json};

use crate::site::fails;

const OK: HttpOutcome = HttpOutcome::Status(200);

fn policy(mode: &str, docker: &str, extra: &str) -> String {
    format!(
        "mode = \"{mode}\"\ninterfaces = [\"{INTERFACE}\"]\ndocker.socket = \"{docker}\"\n{extra}"
    )
}

const PROXY: &str = "[[service]]\nname = \"proxy\"\nports = [\"tcp/80\"]\n";

fn socket(docker: &Docker) -> String {
    docker.socket().display().to_string()
}

/// Runs `guard audit`, and returns its exit code and output.
fn audit(lab: &Lab, arguments: &[&str]) -> (i32, String) {
    let arguments = [&["audit"], arguments].concat();
    let Output { status, stdout, .. } = output(lab, &arguments).unwrap();
    let text = String::from_utf8_lossy(&stdout).into_owned();
    (status.code().unwrap(), text)
}

/// Runs `guard audit --json`, and returns its exit code and report.
fn audit_json(lab: &Lab, arguments: &[&str]) -> (i32, Value) {
    let arguments = [&["--json"], arguments].concat();
    let (code, text) = audit(lab, &arguments);
    (code, serde_json::from_str(&text).unwrap())
}

/// The report's endpoint for this port.
#[track_caller]
fn endpoint<'a>(report: &'a Value, protocol: &str, port: u16) -> &'a Value {
    let mut endpoints = report["endpoints"].as_array().unwrap().iter();
    let is_it = |one: &&Value| one["protocol"] == protocol && one["port"] == port;
    endpoints
        .find(is_it)
        .unwrap_or_else(|| panic!("{protocol}/{port} is not in {report:#}"))
}

#[track_caller]
fn assert_says(text: &str, words: &[&str]) {
    // Ignores line breaks: the output is wrapped.
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
}

/// Runs the invoices with Compose's labels.
fn run_shop(docker: &Docker, publish: &str) {
    let project = "com.docker.compose.project=shop";
    let service = "com.docker.compose.service=invoices";
    let run = [
        "run",
        "--detach",
        "--name",
        "shop-invoices-1",
        "--publish",
        publish,
    ];
    let labels = ["--label", project, "--label", service, IMAGE];
    docker.run(&[&run[..], &labels].concat()).unwrap();
}

#[test]
fn the_invoices_beside_the_proxy_are_named_with_what_to_change_until_it_is_changed() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    run_shop(&docker, "8000:8000");
    let _proxy = Proxy::start_with_login(&lab, "127.0.0.1:8000").unwrap();
    let direct = || get(&lab, USER_V4, HOST_V4, 8000).unwrap();
    let proxied = |login| get_with_login(&lab, USER_V4, HOST_V4, 80, login).unwrap();
    let assert_proxied = || {
        wait_for(Duration::from_secs(10), || {
            anyhow::ensure!(proxied(Some(LOGIN)) == OK, "{}", proxied(Some(LOGIN)));
            Ok(())
        })
        .unwrap();
        assert_eq!(proxied(None), HttpOutcome::Status(401));
    };
    assert_proxied();
    let guard = Guard::start(&lab, &policy("observe", &socket(&docker), PROXY)).unwrap();

    let (code, text) = audit(&lab, &[]);
    assert_eq!(code, 1, "{text}");
    let fix = "ports: [\"127.0.0.1:8000:8000\"] instead of \"8000:8000\"";
    assert_says(
        &text,
        &[
            "in force: mode observe",
            "tcp/8000 every address: invoices of shop, container shop-invoices-1",
            "open now, would be closed if enforced",
            fix,
            "expose: [\"8000\"]",
            "open to anybody, without limits, service proxy (line 5)",
        ],
    );
    assert!(
        text.lines().all(|line| line.chars().count() <= 100),
        "{text}"
    );
    let (_, report) = audit_json(&lab, &[]);
    assert_eq!(report["findings"], 1, "{report:#}");
    let invoices = endpoint(&report, "tcp", 8000);
    assert_eq!(invoices["finding"], true);
    assert_eq!(invoices["level"], "world");
    assert_eq!(invoices["owner"]["project"], "shop");
    assert_eq!(invoices["policy"][0]["fate"], "would_be_closed");
    assert_eq!(
        endpoint(&report, "tcp", 80)["policy"][0]["service"],
        "proxy"
    );

    assert_eq!(direct(), OK);
    let would = [("reason", json!("closed_port")), ("would", json!("drop"))];
    assert!(guard.packets(&would).unwrap() >= 1);

    guard.run(&["mode", "enforce"]).unwrap();
    assert_eq!(direct(), HttpOutcome::TimedOut);
    assert_proxied();
    let (code, text) = audit(&lab, &[]);
    assert_eq!(code, 0, "{text}");
    assert_says(&text, &["CLOSED BY THE POLICY tcp/8000"]);

    // Mode enforce can be switched off. A publication on loopback stays closed.
    guard.run(&["mode", "observe"]).unwrap();
    docker.remove("shop-invoices-1").unwrap();
    run_shop(&docker, "127.0.0.1:8000:8000");
    assert_proxied();
    assert_eq!(direct(), HttpOutcome::Refused);
    // Docker before 28 lets neighbours reach loopback publications, and a guard in mode observe does not drop them.
    let (_, text) = audit(&lab, &[]);
    assert!(!text.contains("ONLY FROM THIS HOST tcp/8000"), "{text}");
    guard.run(&["mode", "enforce"]).unwrap();
    let (code, text) = audit(&lab, &[]);
    assert_eq!(code, 0, "{text}");
    assert_says(
        &text,
        &[
            "ONLY FROM THIS HOST tcp/8000",
            "nothing is open to the world",
        ],
    );
}

#[test]
fn a_model_server_for_one_network_is_open_there_alone_and_warned_of() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    docker.run_invoices("models", &["11434:8000"]).unwrap();
    let ask = |from| get(&lab, from, HOST_V4, 11_434).unwrap();
    wait_for(Duration::from_secs(10), || {
        anyhow::ensure!(
            ask(FLOODER_V4) == OK,
            "the model server has not started yet"
        );
        Ok(())
    })
    .unwrap();
    let service = "[[service]]\nname = \"models\"\nports = [\"tcp/11434\"]\n\
                   from = [\"198.51.100.0/26\"]\nlimit.connections = \"50/s\"\n";
    let policy = policy("enforce", &socket(&docker), service);
    let _guard = Guard::start(&lab, &policy).unwrap();
    assert_eq!((ask(USER_V4), ask(FLOODER_V4)), (OK, HttpOutcome::TimedOut));
    let (code, text) = audit(&lab, &[]);
    assert_eq!(code, 0, "{text}");
    assert_says(
        &text,
        &[
            "tcp/11434 every address: container models, 8000 inside",
            "open to 198.51.100.0/26, limited to connections 50/s",
            "WARNING: 11434 is the port of Ollama, which asks for no login",
            "every model",
        ],
    );
    assert!(!text.contains("127.0.0.1:11434"), "{text}");
    // In mode observe, all sources reach the server.
    let observed = write_policy(&lab, &policy.replace("enforce", "observe")).unwrap();
    let (code, text) = audit(&lab, &["--policy", &observed.display().to_string()]);
    assert_eq!(code, 0, "{text}");
    assert_says(
        &text,
        &["open to anybody now, would be open to 198.51.100.0/26"],
    );
}

/// Sockets that listen on the host until this is dropped.
struct Listeners {
    _tcp: Vec<TcpListener>,
    _udp: Vec<UdpSocket>,
}

impl Listeners {
    fn start(lab: &Lab, tcp: &[SocketAddr], udp: &[SocketAddr]) -> Self {
        let start = || Self {
            _tcp: tcp
                .iter()
                .map(|at| TcpListener::bind(at).unwrap())
                .collect(),
            _udp: udp.iter().map(|at| UdpSocket::bind(at).unwrap()).collect(),
        };
        lab.host.enter(start).unwrap()
    }
}

const V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

fn listeners(lab: &Lab) -> Listeners {
    let private = format!("addr add 10.1.2.3/24 dev {INTERFACE}");
    lab.host.ip(&private).unwrap();
    let tcp = [
        SocketAddr::new(V6, 9100),
        "0.0.0.0:6379".parse().unwrap(),
        SocketAddr::new(HOST_V6, 8443),
        "10.1.2.3:5432".parse().unwrap(),
        "127.0.0.1:3306".parse().unwrap(),
        "[::1]:3306".parse().unwrap(),
    ];
    let udp = [
        "0.0.0.0:1900".parse().unwrap(),
        "0.0.0.0:40123".parse().unwrap(),
    ];
    Listeners::start(lab, &tcp, &udp)
}

#[test]
fn listeners_of_the_host_are_told_by_how_far_they_can_be_reached() {
    let lab = Lab::new().unwrap();
    let _listeners = listeners(&lab);
    let path = write_policy(&lab, &policy("enforce", "", "")).unwrap();
    let path = path.display().to_string();
    let (code, report) = audit_json(&lab, &["--policy", &path]);
    assert_eq!(code, 1, "{report:#}");
    let own = i64::from(std::process::id());
    for (protocol, port, level, addresses, finding) in [
        ("tcp", 9100, "world", json!(["0.0.0.0", "::"]), true),
        ("tcp", 6379, "world", json!(["0.0.0.0"]), true),
        ("tcp", 8443, "world", json!([HOST_V6]), true),
        ("tcp", 5432, "network", json!(["10.1.2.3"]), false),
        ("tcp", 3306, "localhost", json!(["127.0.0.1", "::1"]), false),
        ("udp", 1900, "world", json!(["0.0.0.0"]), true),
        ("udp", 40_123, "world", json!(["0.0.0.0"]), false),
    ] {
        let found = endpoint(&report, protocol, port);
        assert_eq!(found["level"], level, "{found:#}");
        assert_eq!(found["addresses"], addresses, "{found:#}");
        assert_eq!(found["finding"], finding, "{found:#}");
        assert_eq!(found["owner"]["kind"], "process", "{found:#}");
        // A program that another test is about to start holds this process's sockets until it is executed.
        let pids = found["owner"]["pids"].as_array().unwrap();
        assert!(pids.contains(&json!(own)), "{found:#}");
    }
    assert_eq!(endpoint(&report, "tcp", 6379)["danger"]["service"], "Redis");
    assert_eq!(
        endpoint(&report, "tcp", 9100)["policy"][0]["fate"],
        "not_guarded"
    );
    let (_, text) = audit(&lab, &["--policy", &path]);
    assert_says(
        &text,
        &["to 127.0.0.1", "close it in the policy: scope = \"host\""],
    );

    // In scope `host`, with a service on the IPv6 address only.
    let service = format!(
        "[[service]]\nname = \"metrics\"\nports = [\"tcp/9100\"]\naddress = \"{HOST_V6}\"\n"
    );
    let host = policy("enforce", "", &format!("scope = \"host\"\n{service}"));
    fs::write(&path, host).unwrap();
    let (code, report) = audit_json(&lab, &["--policy", &path]);
    assert_eq!(code, 0, "{report:#}");
    let fates = endpoint(&report, "tcp", 9100)["policy"].as_array().unwrap();
    let fates: Vec<_> = fates
        .iter()
        .map(|one| (&one["fate"], &one["addresses"]))
        .collect();
    let (open, closed) = (json!("open"), json!("closed"));
    assert_eq!(
        fates,
        [
            (&open, &json!([HOST_V6])),
            (&closed, &json!(["10.1.2.3", HOST_V4]))
        ]
    );

    // The real program agrees.
    for (from, to, verdict) in [
        (USER_V6, format!("[{HOST_V6}]:9100/tcp"), "pass"),
        (USER_V4, format!("{HOST_V4}:9100/tcp"), "drop"),
        (USER_V4, format!("{HOST_V4}:6379/tcp"), "drop"),
        (USER_V4, format!("{HOST_V4}:1900/udp"), "drop"),
    ] {
        let from = from.to_string();
        let question = [
            "explain", "--policy", &path, "--json", "--from", &from, "--to", &to,
        ];
        let Output { stdout, .. } = output(&lab, &question).unwrap();
        let explanation: Value = serde_json::from_slice(&stdout).unwrap();
        assert_eq!(explanation["verdict"], verdict, "{to}: {explanation:#}");
    }
    let missing = output(&lab, &["audit", "--policy", "/nonexistent"]).unwrap();
    fails(&missing, 2, &["/nonexistent", "cannot be read"]);
}

#[test]
fn what_a_guard_would_close_is_open_while_none_is_at_work_or_its_interface_is_not_guarded() {
    let lab = Lab::new().unwrap();
    lab.host.ip("link add lan type bridge").unwrap();
    lab.host.ip("link set lan up").unwrap();
    lab.host.ip("addr add 10.9.9.9/24 dev lan").unwrap();
    let tcp = ["10.9.9.9:5432", "0.0.0.0:8000"].map(|at| at.parse().unwrap());
    let _listeners = Listeners::start(&lab, &tcp, &[]);
    let host = policy("enforce", "", "scope = \"host\"\n");
    let guard = Guard::start(&lab, &host).unwrap();
    let (code, report) = audit_json(&lab, &[]);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(report["policy"]["guard"], "at_work");
    assert_eq!(
        endpoint(&report, "tcp", 8000)["policy"][0]["fate"],
        "closed"
    );
    assert_eq!(
        endpoint(&report, "tcp", 5432)["policy"][0]["fate"],
        "not_guarded"
    );
    let (_, text) = audit(&lab, &[]);
    assert_says(
        &text,
        &[
            "the policy does not guard lan",
            "WARNING: 5432 is the port of PostgreSQL",
        ],
    );

    // The kernel enforces without the agent.
    guard.kill().unwrap();
    let (code, report) = audit_json(&lab, &[]);
    assert_eq!(
        (code, &report["policy"]["guard"]),
        (0, &json!("at_work")),
        "{report:#}"
    );
    let detached = output(&lab, &["detach"]).unwrap();
    assert!(detached.status.success(), "{detached:?}");
    let (code, report) = audit_json(&lab, &["--docker", ""]);
    assert_eq!(
        (code, &report["policy"]["guard"]),
        (1, &Value::Null),
        "{report:#}"
    );
}

/// A copy of the binary that every user may run.
pub fn public_binary(lab: &Lab) -> String {
    let path = Path::new("/tmp").join(format!("{}-guard", lab.name()));
    fs::copy(binary().unwrap(), &path).unwrap();
    path.display().to_string()
}

#[test]
fn without_root_it_tells_what_can_be_told_and_what_cannot() {
    let lab = Lab::new().unwrap();
    let _listeners = listeners(&lab);
    let binary = public_binary(&lab);
    let mut command = lab.host.command("setpriv");
    command.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        &binary,
        "audit",
    ]);
    let output = command.args(["--docker", ""]).output().unwrap();
    fs::remove_file(&binary).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_says(
        &text,
        &[
            "without root, the processes of other users are not known",
            "tcp/9100 every address: an unknown process of user root",
            "REACHED FROM SOME NETWORKS",
            "ONLY FROM THIS HOST tcp/3306 127.0.0.1, ::1",
        ],
    );
    assert!(!text.contains("container"), "{text}");
}

/// `guard audit --docker ""` as another user, who sees an `/etc` with this policy alone.
fn audit_as_nobody(lab: &Lab, binary: &str, policy: Option<&Path>) -> Output {
    let policy = policy.map(|path| path.display().to_string());
    let mut command = lab.host.command("unshare");
    command.args(["--mount", "sh", "-ec"]);
    command.arg(
        "mount -t tmpfs tmpfs /etc; mkdir /etc/guard; test -z \"$1\" || cp \"$1\" /etc/guard/guard.toml; shift; \
         exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"",
    );
    command.args(["sh", policy.as_deref().unwrap_or_default(), binary]);
    command.args(location_options(lab));
    command.args(["audit", "--docker", ""]).output().unwrap()
}

#[test]
fn a_guard_that_this_user_may_not_read_is_never_called_not_in_force() {
    let lab = Lab::new().unwrap();
    let _listeners = listeners(&lab);
    let guard = Guard::start(&lab, &policy("enforce", "", "")).unwrap();
    let binary = public_binary(&lab);
    let path = lab.folder().join("guard.toml");
    let bpffs = lab.pins().parent().unwrap().to_owned();
    let hidden = |output: &Output| {
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("may not read its state"), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
    };
    let perhaps = |output: &Output| {
        let text = String::from_utf8_lossy(&output.stdout);
        assert_says(
            &text,
            &["guard.toml, perhaps in force", "may not read its state"],
        );
        assert!(!text.contains("open now, would be closed"), "{text}");
    };
    for mode in [0o777, 0o700] {
        fs::set_permissions(&bpffs, fs::Permissions::from_mode(mode)).unwrap();
        hidden(&audit_as_nobody(&lab, &binary, None));
        perhaps(&audit_as_nobody(&lab, &binary, Some(&path)));
    }
    // Neither is a guard without an agent.
    guard.kill().unwrap();
    fs::remove_file(lab.folder().join("guard.sock")).unwrap();
    hidden(&audit_as_nobody(&lab, &binary, None));
    perhaps(&audit_as_nobody(&lab, &binary, Some(&path)));
    fs::remove_file(&binary).unwrap();
}

#[test]
fn docker_that_is_not_there_or_talks_nonsense_is_told_and_the_rest_is_audited() {
    let lab = Lab::new().unwrap();
    let _listeners = listeners(&lab);
    let nonsense = lab.folder().join("nonsense.sock");
    let listener = UnixListener::bind(&nonsense).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _read = stream.read(&mut [0; 4096]);
            let _written =
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"x\": [");
        }
    });
    let nonsense = nonsense.display().to_string();
    for socket in [nonsense.as_str(), "/nonexistent/docker.sock"] {
        let path = write_policy(&lab, &policy("observe", socket, "")).unwrap();
        let (code, report) = audit_json(&lab, &["--policy", &path.display().to_string()]);
        assert_eq!(code, 1);
        assert_eq!(report["docker"]["answered"], false, "{report:#}");
        assert!(report["docker"]["error"].as_str().unwrap().contains(socket));
        assert_eq!(endpoint(&report, "tcp", 9100)["finding"], true);
    }
}

#[test]
fn what_the_agent_does_not_know_of_is_not_said_to_be_closed() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    docker.run_invoices("known", &["8000:8000"]).unwrap();
    let relayed = lab.folder().join("relay.sock");
    let relay = Relay::start(&relayed, docker.socket()).unwrap();
    let relayed = relayed.display().to_string();
    let guard = Guard::start(&lab, &policy("enforce", &relayed, "")).unwrap();
    let own = socket(&docker);
    let fate = |report: &Value, port| endpoint(report, "tcp", port)["policy"][0]["fate"].clone();
    let reached = |port| get(&lab, USER_V4, HOST_V4, port).unwrap();

    // Agent and audit have the same list of containers: all published ports are closed.
    let (code, report) = audit_json(&lab, &["--docker", &own]);
    assert_eq!(
        (code, fate(&report, 8000)),
        (0, json!("closed")),
        "{report:#}"
    );

    relay.set(RelayMode::Silent);
    docker.run_invoices("unknown", &["8001:8000"]).unwrap();
    wait_for(Duration::from_secs(10), || {
        anyhow::ensure!(reached(8001) == OK, "{}", reached(8001));
        Ok(())
    })
    .unwrap();
    assert_eq!(reached(8000), HttpOutcome::TimedOut);
    let (code, report) = audit_json(&lab, &["--docker", &own]);
    assert_eq!(code, 1, "{report:#}");
    assert_eq!(report["docker"]["answered"], true, "{report:#}");
    assert_eq!(fate(&report, 8000), "closed", "{report:#}");
    assert_eq!(fate(&report, 8001), "not_guarded", "{report:#}");
    assert_eq!(endpoint(&report, "tcp", 8001)["finding"], true);
    let (_, text) = audit(&lab, &["--docker", &own]);
    assert_says(
        &text,
        &[
            "the agent does not know that containers publish tcp/8001",
            "the agent does not know that a container publishes it",
        ],
    );

    relay.set(RelayMode::Forward);
    docker.run_invoices("another", &["8002:8000"]).unwrap();
    wait_for(Duration::from_secs(60), || {
        let published = guard.json("status")?["docker"]["published"].clone();
        let all = json!(["tcp/8000", "tcp/8001", "tcp/8002"]);
        anyhow::ensure!(published == all, "{published}");
        Ok(())
    })
    .unwrap();
    let (code, report) = audit_json(&lab, &["--docker", &own]);
    assert_eq!(
        (code, fate(&report, 8001)),
        (0, json!("closed")),
        "{report:#}"
    );
}

#[test]
fn a_container_on_the_hosts_network_is_named_and_docker_proxy_is_its_container() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    docker
        .run(&[
            "run",
            "--detach",
            "--name",
            "naked",
            "--network",
            "host",
            IMAGE,
        ])
        .unwrap();
    docker
        .run_invoices(
            "dressed",
            &["8002-8004:8000-8002/udp", "127.0.0.1:8001:8000"],
        )
        .unwrap();
    docker
        .run(&[
            "run", "--detach", "--name", "inner", "--expose", "7000", IMAGE,
        ])
        .unwrap();
    let path = write_policy(&lab, &policy("enforce", &socket(&docker), "")).unwrap();
    let arguments = ["--policy", &path.display().to_string()];
    wait_for(Duration::from_secs(10), || {
        let (_, text) = audit(&lab, &arguments);
        anyhow::ensure!(
            text.contains("container naked, on the host's network"),
            "{text}"
        );
        Ok(())
    })
    .unwrap();
    let (code, report) = audit_json(&lab, &arguments);
    assert_eq!((code, &report["findings"]), (1, &json!(1)), "{report:#}");
    let naked = endpoint(&report, "tcp", 8000);
    assert_eq!(naked["owner"]["container"], "naked", "{naked:#}");
    assert_eq!(naked["owner"]["host_network"], true);
    assert_eq!(naked["policy"][0]["fate"], "not_guarded");
    let range = endpoint(&report, "udp", 8002);
    assert_eq!(
        (&range["last_port"], &range["container_port"]),
        (&json!(8004), &json!(8000))
    );
    assert_eq!(range["policy"][0]["fate"], "closed");
    assert_eq!(endpoint(&report, "tcp", 8001)["level"], "localhost");
    assert_eq!(endpoint(&report, "tcp", 7000)["level"], "containers");
    let all = report["endpoints"].as_array().unwrap().iter();
    let names = all.flat_map(|one| one["owner"]["processes"].as_array().unwrap());
    let names: Vec<_> = names.filter_map(Value::as_str).collect();
    assert!(!names.contains(&"docker-proxy"), "{names:?}");
}

#[test]
fn a_first_policy_lists_the_proxy_and_ssh_and_closes_the_rest() {
    let lab = Lab::new().unwrap();
    let docker = Docker::start(&lab).unwrap();
    run_shop(&docker, "8000:8000");
    docker.run_invoices("models", &["11434:8000"]).unwrap();
    let _proxy = Proxy::start(&lab, "127.0.0.1:8000").unwrap();
    let ssh = Ssh::start(&lab).unwrap();
    let path = lab.folder().join("etc/first.toml").display().to_string();
    let binary = binary().unwrap().display().to_string();
    let init = format!("{binary} init --docker {} -o {path}", socket(&docker));
    let done = ssh.output(&lab, HOST_V4, &init).unwrap();
    assert!(done.status.success(), "{done:?}");
    assert_says(
        &String::from_utf8_lossy(&done.stdout),
        &[
            &format!("wrote {path}: mode observe"),
            "here \"host\" fits: no other firewall closes ports of this host",
            "open in this policy: ssh (tcp/22), proxy (tcp/80), ping (icmp, icmpv6)",
            "closed by it once enforced: models (tcp/11434), shop-invoices (tcp/8000)",
            &format!("guard check --live {path} #"),
            &format!("guard run --policy {path} #"),
            "guard status #",
        ],
    );
    let text = fs::read_to_string(&path).unwrap();
    assert_says(
        &text,
        &[
            "mode = \"observe\"",
            "interfaces = [\"wan\"]",
            "you came in here, from ",
            "name = \"ssh\" ports = [\"tcp/22\"]",
            "name = \"proxy\" ports = [\"tcp/80\"]",
            "# tcp/8000: published by invoices of shop, container shop-invoices-1 # [[service]]",
            "# WARNING: 11434 is the port of Ollama",
            "# name = \"models\" # ports = [\"tcp/11434\"]",
        ],
    );
    let check = |path: &str| output(&lab, &["check", path]).unwrap();
    assert!(check(&path).status.success(), "{text}");
    let opened = lab.folder().join("opened.toml").display().to_string();
    let is_service = |line: &str| {
        ["[[service]]", "name = ", "ports = ", "from = "]
            .iter()
            .any(|key| line.starts_with(&format!("# {key}")))
    };
    let lines = text
        .lines()
        .map(|line| if is_service(line) { &line[2..] } else { line });
    fs::write(&opened, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let checked = check(&opened);
    assert!(checked.status.success(), "{checked:?} {text}");
    assert_says(
        &String::from_utf8_lossy(&checked.stdout),
        &["models: tcp/11434", "shop-invoices: tcp/8000"],
    );

    // The findings are the two ports that this policy closes in mode enforce.
    let (code, report) = audit_json(&lab, &["--policy", &path]);
    assert_eq!((code, &report["findings"]), (1, &json!(2)), "{report:#}");
    fs::write(&opened, text.replace("\"observe\"", "\"enforce\"")).unwrap();
    let (code, report) = audit_json(&lab, &["--policy", &opened]);
    assert_eq!(code, 0, "{report:#}");

    let again = output(&lab, &["init", "--docker", "", "-o", &path]).unwrap();
    fails(
        &again,
        1,
        &[&path, "is there already", "--print", "--force"],
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    let forced = output(&lab, &["init", "--docker", "", "-o", &path, "--force"]).unwrap();
    assert!(forced.status.success(), "{forced:?}");
    assert_eq!(fs::read_to_string(format!("{path}.old")).unwrap(), text);
    assert_ne!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn the_packages_policy_is_replaced_by_a_first_one_and_kept_beside_it() {
    const PACKAGED: &str = include_str!("../../../packaging/guard.toml");
    let lab = Lab::new().unwrap();
    let path = lab.folder().join("guard.toml").display().to_string();
    fs::write(&path, PACKAGED).unwrap();
    let init = || output(&lab, &["init", "--docker", "", "-o", &path]).unwrap();
    let done = init();
    assert!(done.status.success(), "{done:?}");
    let kept = format!("{path}.packaged");
    assert_says(&String::from_utf8_lossy(&done.stdout), &[&kept]);
    assert_eq!(fs::read_to_string(&kept).unwrap(), PACKAGED);
    assert!(output(&lab, &["check", &path]).unwrap().status.success());
    // The first policy is the operator's own.
    fails(&init(), 1, &["is there already"]);
}

#[test]
fn a_first_policy_leaves_the_hosts_ports_to_another_firewall_beside_docker() {
    let lab = Lab::new().unwrap();
    let missing = lab.folder().join("docker.sock").display().to_string();
    let init = |docker: &str| {
        let printed = output(&lab, &["init", "--print", "--docker", docker]).unwrap();
        String::from_utf8_lossy(&printed.stdout).into_owned()
    };
    let host = "On this host \"host\" fits: no other firewall closes ports of this host";
    assert_says(&init(&missing), &["scope = \"host\"", host]);
    let nft = |rule: &str| run(lab.host.command("nft").arg(rule)).unwrap();
    nft("add table inet own");
    nft("add chain inet own input { type filter hook input priority 0 ; policy drop ; }");
    let containers = "\"containers\" fits: nftables (table inet own) filters the host's own";
    assert_says(&init(&missing), &["scope = \"containers\"", containers]);
    // Without Docker, that scope would close nothing.
    assert_says(
        &init(""),
        &["scope = \"host\"", "no Docker or Podman was found"],
    );
}

#[test]
fn a_first_policy_for_a_host_with_nothing_on_it_is_a_policy() {
    let lab = Lab::new().unwrap();
    let printed = output(&lab, &["init", "--print", "--docker", ""]).unwrap();
    assert!(printed.status.success(), "{printed:?}");
    let path = lab.folder().join("first.toml");
    fs::write(&path, &printed.stdout).unwrap();
    let check = || {
        let path = path.display().to_string();
        let checked = output(&lab, &["check", &path]).unwrap();
        assert!(checked.status.success(), "{checked:?}");
        String::from_utf8_lossy(&checked.stdout).into_owned()
    };
    let checked = check();
    assert_says(
        &checked,
        &[
            "mode observe, scope host, interfaces wan",
            "ping: icmp, icmpv6",
        ],
    );
    assert!(!checked.contains("NOT FOR THIS HOST"), "{checked}");

    // This host has no default route, so the agent would refuse a policy that names no interface.
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\ninterfaces =", "\n# interfaces =")).unwrap();
    let checked = check();
    assert!(
        checked.starts_with("NOT FOR THIS HOST: `guard run` would refuse"),
        "{checked}"
    );
}

#[test]
fn a_first_policy_beside_a_guard_that_enforces_says_that_it_would_end_that() {
    let lab = Lab::new().unwrap();
    let _guard = Guard::start(&lab, &policy("enforce", "", "")).unwrap();
    let path = lab.folder().join("guard.toml").display().to_string();
    let done = output(&lab, &["init", "--docker", "", "-o", &path, "--force"]).unwrap();
    assert!(done.status.success(), "{done:?}");
    assert_says(
        &String::from_utf8_lossy(&done.stdout),
        &["THE GUARD ENFORCES NOW", &format!("guard diff {path}")],
    );
}
