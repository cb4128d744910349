//! `guard check --live` predicts which open sessions a policy cuts: the tests compare its report with the real
//! sessions.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::{Command, Output},
    time::Duration,
};

use guard::{
    explain::ExplainInput,
    host,
    lockout::{Lockout, judge},
    policy::{Action, Containers, Entry, KernelTick, Policy},
    sessions::{self, ListeningSocket, Session},
};
use lab::{
    docker::Docker,
    guard::{Guard, binary, location_options, write_policy},
    http::{HttpOutcome, get},
    process::{run, wait_for},
    ssh::Ssh,
    topology::{HOST_V4, HOST_V6, INTERFACE, Lab, USER_V4, USER_V6},
};
use serde_json::Value;

/// A lab whose connections from the internet have the user's addresses as source.
fn new_lab() -> Lab {
    let lab = Lab::new().unwrap();
    for (host, user) in [(HOST_V4, USER_V4), (HOST_V6, USER_V6)] {
        let route = format!("route add {host} dev internet src {user}");
        // The kernel needs a moment before a new IPv6 address can be a source, even without DAD.
        wait_for(PATIENCE, || lab.internet.ip(&route)).unwrap();
    }
    lab
}

fn policy(mode: &str, scope: &str, rest: &str) -> String {
    format!(
        "mode = \"{mode}\"\nscope = \"{scope}\"\ninterfaces = [\"{INTERFACE}\"]\n\
         docker.socket = \"\"\n{rest}"
    )
}

fn listen(lab: &Lab, place: &str) -> TcpListener {
    lab.host
        .enter(|| TcpListener::bind(place))
        .unwrap()
        .unwrap()
}

/// A session from the internet to the host, seen from both ends.
struct Open {
    client: TcpStream,
    server: TcpStream,
}

/// Longer than the second after which a lost SYN is retransmitted (RFC 6298).
const PATIENCE: Duration = Duration::from_secs(3);

impl Open {
    fn new(lab: &Lab, listener: &TcpListener, host: IpAddr) -> Self {
        let place = SocketAddr::new(host, listener.local_addr().unwrap().port());
        let client = lab
            .internet
            .enter(|| TcpStream::connect_timeout(&place, PATIENCE))
            .unwrap()
            .unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { client, server }
    }

    fn seen_from_host(&self) -> Session {
        Session {
            local: self.client.peer_addr().unwrap(),
            peer: self.client.local_addr().unwrap(),
        }
    }

    /// The value of SSH_CONNECTION in a shell of this session.
    fn ssh_connection(&self) -> String {
        let Session { local, peer } = self.seen_from_host();
        format!(
            "{} {} {} {}",
            peer.ip(),
            peer.port(),
            local.ip(),
            local.port()
        )
    }

    /// Whether the client's data still arrives.
    fn is_alive(&mut self) -> bool {
        self.client.write_all(b"x").unwrap();
        loop {
            match self.server.read(&mut [0]) {
                Ok(length) => return length == 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // A read with a timeout returns EINTR if the machine was frozen for a moment (signal(7)).
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn can_connect(lab: &Lab, place: SocketAddr) -> bool {
    let connect = || TcpStream::connect_timeout(&place, PATIENCE).is_ok();
    lab.internet.enter(connect).unwrap()
}

/// `guard check --live` on the host, with this SSH_CONNECTION.
fn check_command(lab: &Lab, policy: &str, ssh_connection: Option<&str>) -> Command {
    let binary = binary().unwrap();
    let mut command = lab.host.command(binary.to_str().unwrap());
    command
        .args(location_options(lab))
        .args(["check", "--live"])
        .arg(write_policy(lab, policy).unwrap());
    match ssh_connection {
        Some(value) => command.env("SSH_CONNECTION", value),
        None => command.env_remove("SSH_CONNECTION"),
    };
    command
}

fn json(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{error}"))
}

fn check_live(lab: &Lab, policy: &str, ssh_connection: Option<&str>) -> (Option<i32>, Value) {
    let mut command = check_command(lab, policy, ssh_connection);
    let output = command.arg("--json").output().unwrap();
    (output.status.code(), json(&output)["live"].clone())
}

const SSH: &str = "[[service]]\nname = \"ssh\"\nports = [\"tcp/22\"]\n";

#[test]
fn inbound_sessions_are_those_that_others_opened() {
    let lab = new_lab();
    let everywhere = listen(&lab, "[::]:22");
    let v4 = listen(&lab, "203.0.113.10:5432");
    let v6_only = ["-qw", "net.ipv6.bindv6only=1"];
    run(lab.host.command("sysctl").args(v6_only)).unwrap();
    let _v6 = listen(&lab, "[::]:5433");
    let open = [
        Open::new(&lab, &everywhere, HOST_V4),
        Open::new(&lab, &everywhere, HOST_V6),
        Open::new(&lab, &v4, HOST_V4),
    ];
    // Sessions that the host opens, and sessions over loopback, are not inbound.
    let abroad = lab
        .internet
        .enter(|| TcpListener::bind("203.0.113.1:5432"))
        .unwrap()
        .unwrap();
    let _outbound = lab
        .host
        .enter(|| TcpStream::connect(abroad.local_addr().unwrap()))
        .unwrap()
        .unwrap();
    let _loopback = lab
        .host
        .enter(|| TcpStream::connect("127.0.0.1:22"))
        .unwrap()
        .unwrap();
    let mut expected: Vec<Session> = open.iter().map(Open::seen_from_host).collect();
    expected.sort_unstable();
    let found = lab.host.enter(sessions::inbound).unwrap().unwrap();
    assert_eq!(found, expected);
    let listeners = lab.host.enter(sessions::listeners).unwrap().unwrap();
    let listener = |(local, v6_only): (&str, bool)| ListeningSocket {
        local: local.parse().unwrap(),
        v6_only,
    };
    let expected = [
        ("203.0.113.10:5432", false),
        ("[::]:22", false),
        ("[::]:5433", true),
    ];
    assert_eq!(listeners, expected.map(listener));
}

/// A policy, and its effect on a session from the user to port 22.
struct LockoutCase {
    policy: String,
    from: IpAddr,
    /// The drop reason, and whether the open session is cut at once.
    cut: Option<(&'static str, bool)>,
    /// The session would be cut if the policy were enforced.
    would: bool,
    line: Option<u64>,
}

fn cases() -> Vec<LockoutCase> {
    let case = |policy, cut| LockoutCase {
        policy,
        from: USER_V4,
        cut,
        would: false,
        line: None,
    };
    let line = |line, case| LockoutCase {
        line: Some(line),
        ..case
    };
    let would = |case| LockoutCase {
        would: true,
        ..case
    };
    let closed = Some(("closed_port", false));
    let others = format!("{SSH}from = [\"192.0.2.0/24\"]\n");
    let denied = |prefix: &str| {
        format!("{SSH}[[source]]\nname = \"bad\"\ncidrs = [\"{prefix}\"]\ndeny = true\n")
    };
    vec![
        case(policy("enforce", "host", ""), closed),
        LockoutCase {
            from: USER_V6,
            ..case(policy("enforce", "host", ""), closed)
        },
        would(case(policy("observe", "host", ""), closed)),
        would(case(policy("off", "host", ""), closed)),
        case(policy("enforce", "host", SSH), None),
        case(policy("enforce", "containers", ""), None),
        line(
            6,
            case(
                policy("enforce", "host", &others),
                Some(("source_not_allowed", false)),
            ),
        ),
        line(
            6,
            would(case(
                policy("enforce", "host", &format!("{others}mode = \"observe\"\n")),
                Some(("source_not_allowed", false)),
            )),
        ),
        line(
            9,
            case(
                policy("enforce", "containers", &denied("198.51.100.0/24")),
                Some(("denied_source", true)),
            ),
        ),
        case(policy("enforce", "host", &denied("192.0.2.0/24")), None),
    ]
}

#[test]
fn what_check_live_says_of_a_session_is_what_becomes_of_it() {
    let lab = new_lab();
    let listener = listen(&lab, "[::]:22");
    for (n, case) in cases().into_iter().enumerate() {
        let LockoutCase {
            policy,
            from,
            cut,
            would,
            line,
        } = case;
        let host = if from.is_ipv4() { HOST_V4 } else { HOST_V6 };
        let mut open = Open::new(&lab, &listener, host);
        assert_eq!(open.seen_from_host().peer.ip(), from);
        let (code, live) = check_live(&lab, &policy, None);
        let is_cut = cut.is_some() && !would;
        assert_eq!(code, Some(is_cut.into()), "{policy} {live:#}");
        assert_eq!(live["sessions"], 1, "{policy} {live:#}");
        let found = &live["cut"][0];
        match cut {
            None => assert_eq!(live["cut"], Value::Array(Vec::new()), "{policy}"),
            Some((reason, at_once)) => {
                assert_eq!(found["reason"], reason, "{policy}");
                assert_eq!(found["at_once"], at_once, "{policy}");
                assert_eq!(found["line"].as_u64(), line, "{policy} {found:#}");
                let verdict = if would { "pass" } else { "drop" };
                assert_eq!(found["verdict"], verdict, "{policy}");
            }
        }
        // The same session as the operator's SSH session.
        let (operator_code, live) = check_live(&lab, &policy, Some(&open.ssh_connection()));
        assert_eq!(operator_code, code, "{policy}");
        assert_eq!(live["operator"]["reason"], found["reason"], "{policy}");
        assert_eq!(live["operator"]["verdict"], found["verdict"], "{policy}");
        assert_eq!(
            live["cut"],
            Value::Array(Vec::new()),
            "the operator's session is not listed again: {policy}"
        );

        let guard = Guard::start(&lab, &policy).unwrap();
        let at_once = cut.is_some_and(|(_, at_once)| at_once);
        assert_eq!(open.is_alive(), !(is_cut && at_once), "{n}: {policy}");
        let place = open.seen_from_host().local;
        assert_eq!(can_connect(&lab, place), !is_cut, "{n}: {policy}");
        guard.remove().unwrap();
        while let Some(Ok(_)) = pending(&listener) {}
    }
}

/// Accepts a pending connection, if there is one.
fn pending(listener: &TcpListener) -> Option<io::Result<TcpStream>> {
    listener.set_nonblocking(true).unwrap();
    let accepted = listener.accept();
    listener.set_nonblocking(false).unwrap();
    match accepted {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        accepted => Some(accepted.map(|(stream, _)| stream)),
    }
}

#[test]
fn what_it_says_to_write_keeps_the_way_in_open() {
    let lab = new_lab();
    let listener = listen(&lab, "203.0.113.10:22");
    let open = Open::new(&lab, &listener, HOST_V4);
    let connection = open.ssh_connection();
    let elsewhere =
        "[[service]]\nname = \"ssh\"\nports = [\"tcp/22\"]\naddress = \"203.0.113.9\"\n";
    for listed in [
        "",
        "[[service]]\nname = \"ssh\"\nports = [\"tcp/222\"]\n",
        elsewhere,
    ] {
        let closed = policy("enforce", "host", listed);
        let (code, live) = check_live(&lab, &closed, Some(&connection));
        assert_eq!(code, Some(1), "{live:#}");
        let keep_open = live["operator"]["keep_open"].as_str().unwrap();
        assert!(
            keep_open.contains("from = [\"198.51.100.7\"]"),
            "{keep_open}"
        );
        let opened = format!("{closed}{keep_open}");
        let (code, live) = check_live(&lab, &opened, Some(&connection));
        assert_eq!(
            (code, &live["operator"]),
            (Some(0), &Value::Null),
            "{opened} {live:#}"
        );
    }
}

#[test]
fn the_operator_is_found_behind_a_shell_that_lost_the_variable_and_nonsense_is_nobody() {
    let lab = new_lab();
    let listener = listen(&lab, "203.0.113.10:22");
    let open = Open::new(&lab, &listener, HOST_V4);
    let closed = policy("enforce", "host", "");
    let path = write_policy(&lab, &closed).unwrap();
    let binary = binary().unwrap();
    // Without the variable, as under sudo. The shell is the ancestor that still has it.
    let script = format!(
        "env -u SSH_CONNECTION {} --socket {}/none check --live --json {}; exit $?",
        binary.display(),
        lab.folder().display(),
        path.display()
    );
    let output = lab
        .host
        .command("sh")
        .args(["-c", &script])
        .env("SSH_CONNECTION", open.ssh_connection())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let live = &json(&output)["live"];
    let Session { local, peer } = open.seen_from_host();
    assert_eq!(live["ssh_session"]["client"], peer.to_string());
    assert_eq!(live["operator"]["local"], local.to_string());
    let elsewhere = "198.51.100.7 50000 192.0.2.1 22";
    let loopback = "127.0.0.1 50000 127.0.0.1 22";
    for nonsense in [
        "",
        "\u{1b}[2J",
        "198.51.100.7 x 203.0.113.10 22",
        elsewhere,
        loopback,
    ] {
        let (code, live) = check_live(&lab, &closed, Some(nonsense));
        assert_eq!(
            code,
            Some(1),
            "{nonsense:?}: the session is in the list of cut sessions"
        );
        assert_eq!(live["operator"], Value::Null, "{nonsense:?}");
        assert_eq!(live["cut"][0]["peer"], peer.to_string());
    }
}

#[test]
fn people_read_their_own_session_first() {
    let lab = new_lab();
    let ssh = listen(&lab, "203.0.113.10:22");
    let database = listen(&lab, "203.0.113.10:5432");
    let open = Open::new(&lab, &ssh, HOST_V4);
    let _others = [(); 25].map(|()| Open::new(&lab, &database, HOST_V4));
    let text = |mode| {
        let policy = policy(mode, "host", "");
        let output = check_command(&lab, &policy, Some(&open.ssh_connection()))
            .output()
            .unwrap();
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (output.status.code(), stdout, stderr)
    };
    let (code, stdout, stderr) = text("enforce");
    assert_eq!(code, Some(1));
    assert_eq!(
        stderr,
        "guard: this policy would close your own way in, and 25 sessions more\n"
    );
    for words in [
        "YOUR OWN WAY IN WOULD BE CLOSED: SSH from 198.51.100.7 to 203.0.113.10:22",
        "closed_port, no service lists tcp/22",
        "no new one can be opened",
        "ports = [\"tcp/22\"]",
        "25 sessions would be cut",
        "and 5 more; --json lists all",
    ] {
        assert!(stdout.contains(words), "{words:?} is not in {stdout}");
    }
    let at = |words| stdout.find(words).unwrap();
    assert!(at("YOUR OWN") < at("25 sessions would be"), "{stdout}");
    let (code, stdout, stderr) = text("observe");
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.contains("enforced, it would be closed"), "{stdout}");
    assert!(stdout.contains("cut if it were enforced"), "{stdout}");
}

#[test]
fn only_what_crosses_a_guarded_interface_is_judged() {
    let lab = new_lab();
    let (host, internet) = (&lab.host, &lab.internet);
    // The guarded interface is a port of a bridge that has the address. A second link, such as a VPN, is not guarded.
    for command in [
        "link add bridge type bridge",
        "addr del 203.0.113.10/24 dev wan",
        "addr add 203.0.113.10/24 dev bridge",
        "link set wan master bridge",
        "link set bridge up",
        "route add 198.51.100.0/24 via 203.0.113.1",
    ] {
        host.ip(command).unwrap();
    }
    let peer = host.name();
    internet
        .ip(&format!(
            "link add vpn type veth peer name vpn netns {peer}"
        ))
        .unwrap();
    for (place, address) in [(internet, "10.9.1.1/24"), (host, "10.9.1.2/24")] {
        place.ip(&format!("addr add {address} dev vpn")).unwrap();
        place.ip("link set vpn up").unwrap();
    }
    let listener = listen(&lab, "0.0.0.0:22");
    let open = ["203.0.113.10", "10.9.1.2"]
        .map(|address| Open::new(&lab, &listener, address.parse().unwrap()));
    let closed = policy("enforce", "host", "");
    let (_, live) = check_live(&lab, &closed, None);
    let cut: Vec<&str> = live["cut"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cut| cut["local"].as_str().unwrap())
        .collect();
    assert_eq!(cut, ["203.0.113.10:22"]);
    // An interface that does not exist yet may carry any session.
    let (_, live) = check_live(&lab, &closed.replace(INTERFACE, "nowhere"), None);
    assert_eq!(live["cut"].as_array().unwrap().len(), 2);
    let over_vpn = open[1].ssh_connection();
    let (_, live) = check_live(&lab, &closed, Some(&over_vpn));
    assert_eq!(live["operator"], Value::Null);
    assert_eq!(live["ssh_session"]["server"], "10.9.1.2:22");
    // The real guard does the same.
    let guard = Guard::start(&lab, &closed).unwrap();
    let reachable = open
        .each_ref()
        .map(|open| can_connect(&lab, open.seen_from_host().local));
    assert_eq!(reachable, [false, true]);
    guard.remove().unwrap();
}

#[test]
fn a_session_on_a_closed_published_port_dies_at_once() {
    let lab = new_lab();
    let docker = Docker::start(&lab).unwrap();
    docker.run_invoices("invoices", &["8000:8000"]).unwrap();
    // Without DNAT, Docker's proxy accepts the session: it ends at a socket of the host.
    run(lab.host.command("iptables").args([
        "-t",
        "nat",
        "-I",
        "PREROUTING",
        "-p",
        "tcp",
        "--dport",
        "8000",
        "-j",
        "ACCEPT",
    ]))
    .unwrap();
    let place = SocketAddr::new(HOST_V4, 8000);
    // Until the container answers, Docker's proxy closes the connection.
    wait_for(Duration::from_secs(10), || {
        let answer = get(&lab, USER_V4, HOST_V4, place.port())?;
        anyhow::ensure!(answer == HttpOutcome::Status(200), "{answer}");
        Ok(())
    })
    .unwrap();
    let connect = || TcpStream::connect_timeout(&place, PATIENCE);
    let client = lab.internet.enter(connect).unwrap().unwrap();
    let policy = policy("enforce", "containers", "")
        .replace("\"\"", &format!("\"{}\"", docker.socket().display()));
    let (code, live) = check_live(&lab, &policy, None);
    assert_eq!(code, Some(1));
    let cut = &live["cut"][0];
    assert_eq!(cut["peer"], client.local_addr().unwrap().to_string());
    assert_eq!(cut["reason"], "closed_port");
    assert_eq!(cut["at_once"], true);
    assert!(
        cut["because"]
            .as_str()
            .unwrap()
            .contains("a container publishes it")
    );
    assert_eq!(live["docker_error"], Value::Null);
    docker.remove("invoices").unwrap();
}

#[test]
fn docker_that_does_not_answer_is_said_so() {
    let lab = new_lab();
    let policy = policy("enforce", "containers", "").replace("\"\"", "\"/nowhere.sock\"");
    let output = check_command(&lab, &policy, None).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("the ports that containers publish are not known"),
        "{text}"
    );
}

#[test]
fn a_real_ssh_session_is_named_before_the_policy_that_would_cut_it_applies() {
    let lab = new_lab();
    let ssh = Ssh::start(&lab).unwrap();
    let path = write_policy(&lab, &policy("enforce", "host", "")).unwrap();
    let check = |prefix: &str| {
        let command = format!(
            "{prefix} {} --socket {}/none check --live {}; exit $?",
            binary().unwrap().display(),
            lab.folder().display(),
            path.display()
        );
        ssh.output(&lab, HOST_V4, &command).unwrap()
    };
    for prefix in ["", "env -u SSH_CONNECTION", "env -i"] {
        let output = check(prefix);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let error = "guard: this policy would close your own way in\n";
        assert!(stderr.ends_with(error), "{stderr}");
        let text = String::from_utf8_lossy(&output.stdout);
        let named = "YOUR OWN WAY IN WOULD BE CLOSED: SSH from 198.51.100.7 to 203.0.113.10:22";
        assert!(text.contains(named), "{text}");
        assert!(
            text.contains("no other session would be cut, of 1 session"),
            "{text}"
        );
    }
    write_policy(&lab, &policy("enforce", "host", SSH)).unwrap();
    let output = check("");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(
        text.contains("SSH from 198.51.100.7 to 203.0.113.10:22, stays open"),
        "{text}"
    );
}

/// Judges sessions from `count` addresses to port 22 under a policy.
fn judge_crowd(policy: &str, count: u32, entries: &[Entry]) -> Lockout {
    let tick_ns = host::tick_ns().unwrap();
    let policy = Policy::parse(policy, "test.toml", KernelTick { tick_ns }).unwrap();
    let situation = ExplainInput {
        policy: &policy,
        containers: &Containers::default(),
        local_ports: 32_768..=60_999,
        now: host::timebase().unwrap(),
        tick_ns,
        own: &[HOST_V4],
        own_sources: &BTreeSet::new(),
        entries,
    };
    let crowd = (0..count).map(|n| Session {
        local: SocketAddr::new(HOST_V4, 22),
        peer: SocketAddr::new(IpAddr::V4((0x0a00_0000 + n).into()), 50_000),
    });
    let sessions: Vec<Session> = crowd.collect();
    judge(&situation, &sessions, None).unwrap()
}

#[test]
fn a_source_over_its_budget_is_slow_but_not_locked_out() {
    let budget = "{ rate = \"1/h\", burst = 1 }";
    let rest = format!(
        "limits.packets = {budget}\nlimits.per.ipv4 = 8\n{SSH}total.connections = {budget}\n\
         limit.packets = {budget}\nlimit.per.ipv4 = 8\n"
    );
    let Lockout { cut, .. } = judge_crowd(&policy("enforce", "host", &rest), 10, &[]);
    assert_eq!(cut, []);
    // With the service on another port, port 22 is closed, but later segments pass.
    let rest = rest.replace("tcp/22", "tcp/23");
    let Lockout { cut, .. } = judge_crowd(&policy("enforce", "host", &rest), 10, &[]);
    assert_eq!(cut.len(), 10);
    assert!(
        cut.iter()
            .all(|cut| !cut.at_once && cut.reason == "closed_port")
    );
}

#[test]
fn what_operators_have_entered_is_judged_too() {
    let entry = |id, action, service: Option<&str>| Entry {
        id,
        action,
        prefix: "10.0.0.0/8".parse().unwrap(),
        service: service.map(str::to_owned),
        owner: None,
        reason: None,
        by: None,
        process: None,
        created: "2026-01-01T00:00:00Z".parse().unwrap(),
        expires: None,
    };
    let closed = policy("enforce", "host", SSH);
    for service in [None, Some("ssh")] {
        let entries = [entry(7, Action::Deny, service)];
        let Lockout { cut, .. } = judge_crowd(&closed, 1, &entries);
        assert_eq!(cut[0].reason, "denied_source");
        assert!(cut[0].at_once);
        assert!(
            cut[0].because.starts_with("entry 7 denies 10.0.0.0/8"),
            "{cut:?}"
        );
        let entries = [
            entry(7, Action::Deny, service),
            entry(8, Action::Allow, None),
        ];
        assert_eq!(judge_crowd(&closed, 1, &entries).cut, []);
    }
    let others = policy(
        "enforce",
        "host",
        &format!("{SSH}from = [\"192.0.2.0/24\"]\n"),
    );
    let allowed = [entry(8, Action::Allow, Some("ssh"))];
    assert_eq!(judge_crowd(&others, 1, &allowed).cut, []);
}

#[test]
fn the_operator_who_is_denied_for_a_while_reads_which_entry_it_is() {
    let lab = new_lab();
    let listener = listen(&lab, "203.0.113.10:22");
    let open = Open::new(&lab, &listener, HOST_V4);
    let listed = policy("enforce", "host", SSH);
    let guard = Guard::start(&lab, &policy("observe", "host", SSH)).unwrap();
    guard.run(&["deny", "198.51.100.0/24", "--force"]).unwrap();
    let (code, live) = check_live(&lab, &listed, Some(&open.ssh_connection()));
    assert_eq!(code, Some(1));
    assert_eq!(live["operator"]["reason"], "denied_source");
    let keep_open = live["operator"]["keep_open"].as_str().unwrap();
    assert!(keep_open.contains("guard revoke 1"), "{keep_open}");
    guard.run(&["revoke", "1"]).unwrap();
    let (code, _) = check_live(&lab, &listed, Some(&open.ssh_connection()));
    assert_eq!(code, Some(0));
    guard.remove().unwrap();
}

#[test]
fn a_hundred_thousand_sessions_are_judged_in_seconds() {
    let start = cpu_time();
    let Lockout { cut, .. } = judge_crowd(&policy("enforce", "host", ""), 100_000, &[]);
    let spent = cpu_time() - start;
    assert_eq!(cut.len(), 100_000);
    assert!(spent < Duration::from_secs(10), "{spent:?}");
}

/// The CPU time of this thread, which does not grow while other processes run. It is the first number in schedstat
/// (proc(5)).
fn cpu_time() -> Duration {
    let times = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let on_cpu = times.split_whitespace().next().unwrap();
    Duration::from_nanos(on_cpu.parse().unwrap())
}
