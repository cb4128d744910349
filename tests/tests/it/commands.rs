//! The command line for scripts and people: output, exit codes, and one line for every error.

use std::{
    ffi::OsString,
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use lab::{
    guard::{Guard, binary, location_options, output, write_policy},
    process::{Daemon, run, wait_for},
    topology::{INTERFACE, Lab},
};
use serde_json::Value;

use crate::site::{OPEN, OPEN_80, Site, policy};

const POLICY: &str = "
mode = \"enforce\"
interfaces = [\"wan\"]
docker.socket = \"\"
[[service]]
name = \"web\"
ports = [\"tcp/80\"]
";

/// Asserts this exit code, an empty standard output, and one error line with these words on standard error.
#[track_caller]
fn assert_fails(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    // The agent's log lines come before the error.
    let errors: Vec<&str> = stderr
        .lines()
        .filter(|line| line.starts_with("guard: "))
        .collect();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(errors.len(), 1, "{stderr}");
    assert!(output.stdout.is_empty());
    for word in words {
        assert!(errors[0].contains(word), "{word:?} is not in {stderr}");
    }
    assert!(
        !stderr.contains("backtrace") && !stderr.contains("panicked"),
        "{stderr}"
    );
}

/// Nested exemptions, the narrowest prefix first. All but the widest expire.
fn nested(depth: u8) -> String {
    let source = |n| {
        let end = if n + 1 < depth {
            "expires = 2027-01-31T00:00:00Z"
        } else {
            ""
        };
        format!(
            "[[source]]\nname = \"s{n}\"\ncidrs = [\"198.51.100.0/{}\"]\nexempt = true\n{end}\n",
            32 - n
        )
    };
    (0..depth).map(source).collect()
}

fn assert_nothing_attached(lab: &Lab) {
    let net = run(lab.host.command("bpftool").args(["net", "show"])).unwrap();
    assert!(!net.contains(" id "), "{net}");
}

#[test]
fn a_policy_that_is_wrong_is_refused_with_its_line_and_nothing_is_attached() {
    let lab = Lab::new().unwrap();
    let service = |line: &str| format!("[[service]]\nname = \"web\"\n{line}\n");
    let cases: Vec<(String, usize, &[&str])> = vec![
        (
            POLICY.replace("ports =", "prots ="),
            7,
            &["unknown key `prots`", "did you mean `ports`?"],
        ),
        (
            POLICY.replace("enforce", "enforced"),
            2,
            &["\"enforced\" is not valid", "did you mean \"enforce\"?"],
        ),
        (
            POLICY.replace("tcp/80", "tcp/70000"),
            7,
            &["70000", "1 to 65535"],
        ),
        (
            format!("{POLICY}from = [\"198.51.100.0/33\"]\n"),
            8,
            &["198.51.100.0/33", "CIDR"],
        ),
        (
            format!("{POLICY}from = [\"198.51.100.7/24\"]\n"),
            8,
            &["198.51.100.0/24"],
        ),
        (
            format!("{POLICY}from = [\"office\"]\n"),
            8,
            &["office", "\"any\"", "CIDR"],
        ),
        (format!("{POLICY}from = []\n"), 8, &["no source"]),
        (
            format!("{POLICY}[service.limit]\npackets = \"2k\"\n"),
            9,
            &["\"2k\" is not a rate", "2k/s"],
        ),
        (
            format!("{POLICY}[service.limit]\npackets = \"0/s\"\n"),
            9,
            &["a rate of 0"],
        ),
        (
            format!("{POLICY}[service.limit]\npackets = {{ rate = \"10k/s\", burst = 1 }}\n"),
            9,
            &["tick", "the least is"],
        ),
        (
            format!("{POLICY}[service.limit]\nbytes = \"2M/s\"\n"),
            9,
            &["\"2M/s\" is not a rate", "2MB/s"],
        ),
        (
            format!("{POLICY}[service.limit]\nper = {{ ipv4 = 33 }}\n"),
            9,
            &["33", "1 to 32"],
        ),
        (
            format!("{POLICY}{}", service("ports = [\"tcp/81\"]")),
            9,
            &["\"web\"", "line 6", "once"],
        ),
        (
            format!(
                "{POLICY}{}",
                service("ports = [\"tcp/79-81\"]").replace("web", "other")
            ),
            10,
            &["tcp/79-81", "\"web\"", "line 7"],
        ),
        (
            format!("{POLICY}{}", service("ports = []").replace("web", "other")),
            10,
            &["tcp/80"],
        ),
        (POLICY.replace("\"wan\"", ""), 3, &["no interface"]),
        (
            POLICY.replace("\"wan\"", "\"wan\", \"wan\""),
            3,
            &["line 3", "once"],
        ),
        (
            format!("{POLICY}address = \"203.0.113.5\"\nfrom = [\"2001:db8::/32\"]\n"),
            9,
            &["203.0.113.5", "`from`", "2001:db8::/32"],
        ),
        (
            POLICY.replace("\"tcp/80\"", "\"icmpv6\"") + "address = \"203.0.113.5\"\n",
            7,
            &["icmpv6", "203.0.113.5", "write \"icmp\""],
        ),
        (
            POLICY.replace("\"tcp/80\"", "\"icmp\"") + "address = \"2001:db8::5\"\n",
            7,
            &["write \"icmpv6\""],
        ),
        (
            format!(
                "{POLICY}[[source]]\nname = \"x\"\ncidrs = [\"10.0.0.0/8\"]\n\
                 expires = \"2027-01-31T00:00:00Z\"\n"
            ),
            11,
            &["without quotes", "expires = 2027-01-31T00:00:00Z"],
        ),
        (
            POLICY.replace("\"enforce\"", "enforce"),
            2,
            &["enforce needs quotes"],
        ),
        (
            POLICY.replace("\"tcp/80\"", "\"tcp/80\", \"proto/17\""),
            7,
            &["protocol 17 has ports", "\"udp/443\""],
        ),
        (
            format!("{POLICY}{}", nested(6)),
            10,
            &["198.51.100.0/32", "more than 4"],
        ),
        (
            format!("on_exit = \"leave\"\n{POLICY}"),
            1,
            &["\"leave\" is not valid", "\"keep\""],
        ),
        (
            POLICY.replace("[[service]]", "[[service]"),
            5,
            &["write [[service]]"],
        ),
        ("mode = \"enforce".to_owned(), 1, &["a quote is missing"]),
    ];
    for (policy, line, words) in cases {
        let path = write_policy(&lab, &policy).unwrap();
        let path = path.to_str().unwrap();
        let place = format!("{path}:{line}: ");
        let words: Vec<&str> = words.iter().copied().chain([place.as_str()]).collect();
        assert_fails(&output(&lab, &["check", path]).unwrap(), 2, &words);
        assert_fails(
            &output(&lab, &["run", "--policy", path]).unwrap(),
            2,
            &words,
        );
    }
    assert_nothing_attached(&lab);
}

#[test]
fn what_a_policy_says_cannot_move_the_cursor_and_what_is_no_text_is_said_so() {
    let lab = Lab::new().unwrap();
    let path = write_policy(&lab, &format!("{POLICY}from = [\"\\u001b[2Jx\\r\"]\n")).unwrap();
    let output_of = |path: &Path| output(&lab, &["check", path.to_str().unwrap()]).unwrap();
    let refused = output_of(&path);
    assert_fails(&refused, 2, &["guard.toml:8"]);
    assert!(!refused.stderr.contains(&0x1b) && !refused.stderr.contains(&b'\r'));
    fs::write(&path, [POLICY.as_bytes(), &[0xff]].concat()).unwrap();
    assert_fails(&output_of(&path), 2, &["guard.toml:8", "UTF-8"]);
}

#[test]
fn an_interface_whose_frames_have_no_ethernet_is_refused() {
    let lab = Lab::new().unwrap();
    lab.host.ip("tuntap add dev tun0 mode tun").unwrap();
    let path = write_policy(&lab, &POLICY.replace("wan", "tun0")).unwrap();
    let refused = output(&lab, &["run", "--policy", path.to_str().unwrap()]).unwrap();
    assert_fails(
        &refused,
        1,
        &[
            "guard.toml:3",
            "tun0 is not an Ethernet interface",
            "not supported",
        ],
    );
    assert_nothing_attached(&lab);
}

#[test]
fn what_the_environment_lacks_is_said_in_one_line_and_nothing_is_attached() {
    let lab = Lab::new().unwrap();
    let path = write_policy(&lab, POLICY).unwrap();
    let path = path.to_str().unwrap();
    let run_guard = |policy: &str| {
        write_policy(&lab, policy).unwrap();
        output(&lab, &["run", "--policy", path]).unwrap()
    };
    let words = ["interface nowhere does not exist", "guard.toml:3"];
    assert_fails(&run_guard(&POLICY.replace("wan", "nowhere")), 1, &words);
    let unnamed = POLICY.replace("interfaces = [\"wan\"]", "");
    assert_fails(&run_guard(&unnamed), 1, &["default route", "interfaces = "]);
    assert_nothing_attached(&lab);
}

/// Runs a copy of the binary as user nobody, without groups and capabilities. Every user may run the copy.
fn as_nobody(lab: &Lab, options: &[OsString], arguments: &[&str]) -> Output {
    let copy = lab.folder().join("guard");
    if !copy.exists() {
        fs::copy(binary().unwrap(), &copy).unwrap();
    }
    let mut command = lab.host.command("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg("--bounding-set=-all")
        .arg(copy)
        .args(options)
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn without_root_it_says_what_it_needs() {
    let lab = Lab::new().unwrap();
    let path = write_policy(&lab, POLICY).unwrap();
    let socket = format!("/tmp/{}.sock", lab.name());
    let options = ["--socket".into(), socket.clone().into()];
    let output = as_nobody(&lab, &options, &["run", "--policy", path.to_str().unwrap()]);
    assert_fails(&output, 1, &["needs root"]);
    assert!(!Path::new(&socket).exists(), "the socket was not removed");
    assert_nothing_attached(&lab);
}

#[test]
fn a_user_outside_the_group_is_told_to_join_it_and_not_to_start_an_agent() {
    let lab = Lab::new().unwrap();
    let guard = Guard::start(&lab, POLICY).unwrap();
    let path = lab.folder().join("guard.toml");
    let path = path.to_str().unwrap();
    let options = location_options(&lab);
    let asked = [
        &["status"][..],
        &["status", "--json"],
        &["counters"],
        &["talkers"],
        &["capture"],
        &["explain", "--from", "192.0.2.1", "--to", "80/tcp"],
        &["check", "--live", path],
        &["list"],
        &["allow", "192.0.2.1"],
        &["deny", "192.0.2.1"],
        &["revoke", "1"],
        &["revoke", "192.0.2.1", "--owner", "ana"],
        &["reload"],
        &["try", path, "--for", "5s"],
        &["confirm"],
        &["mode", "observe"],
    ];
    // These commands work without an agent, but only root can open the pins.
    let exits = [&["mode", "off"][..], &["detach"]];
    let words = ["join group guard", "or use sudo"];
    let refused = |arguments: &[&str]| {
        let refused = as_nobody(&lab, &options, arguments);
        assert_fails(&refused, 1, &words);
        let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!stderr.contains("start one"), "{arguments:?}: {stderr}");
    };
    for arguments in asked.iter().chain(&exits) {
        refused(arguments);
    }
    let doctor = as_nobody(&lab, &options, &["doctor", "--policy", path]);
    let text = String::from_utf8(doctor.stdout).unwrap();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
    assert!(!text.contains("systemctl start"), "{text}");
    // The agent still enforces.
    assert_eq!(guard.json("status").unwrap()["mode"], "enforce");

    // Without the agent, the status of the kernel program is refused, too.
    guard.kill().unwrap();
    for arguments in [&["status"][..], &["counters"], &["talkers"]] {
        refused(arguments);
    }
    for arguments in &exits {
        refused(arguments);
    }
}

#[test]
fn a_user_who_may_not_open_dockers_socket_is_told_what_group_may() {
    use std::os::unix::{
        fs::{PermissionsExt as _, chown},
        net::UnixListener,
    };
    let lab = Lab::new().unwrap();
    let socket = lab.folder().join("docker.sock");
    let _docker = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o660)).unwrap();
    let group = nix::unistd::Group::from_name("daemon").unwrap().unwrap();
    let policy = POLICY.replace(
        "docker.socket = \"\"",
        &format!("docker.socket = \"{}\"", socket.display()),
    );
    let path = write_policy(&lab, &policy).unwrap();
    let path = path.to_str().unwrap();
    for (group, remedy) in [
        (Some(group.gid.as_raw()), ": join group daemon, or use sudo"),
        (Some(0), "(os error 13): use sudo"),
    ] {
        chown(&socket, None, group).unwrap();
        let options = location_options(&lab);
        let doctor = as_nobody(&lab, &options, &["doctor", "--policy", path]);
        let text = String::from_utf8(doctor.stdout).unwrap();
        assert!(text.contains(remedy), "{text}");
        let docker = ["--docker", socket.to_str().unwrap()];
        let audit = as_nobody(&lab, &options, &[&["audit"][..], &docker].concat());
        let text = String::from_utf8(audit.stdout).unwrap();
        assert!(text.contains(remedy), "{text}");
    }
}

#[test]
fn commands_without_an_agent_say_so() {
    let lab = Lab::new().unwrap();
    for command in ["status", "counters"] {
        assert_fails(
            &output(&lab, &[command]).unwrap(),
            1,
            &["no agent answers", "guard run"],
        );
    }
    // A missing policy file is an error of the policy: exit code 2.
    let missing = ["run", "--policy", "/nowhere/guard.toml"];
    assert_fails(
        &output(&lab, &missing).unwrap(),
        2,
        &["/nowhere/guard.toml", "name another file"],
    );
}

/// The kernel program logs only at level debug: once for each counter and CPU.
#[test]
fn the_kernel_program_says_what_is_new_to_it_when_it_is_debugged() {
    let site = Site::new();
    let lab = &site.lab;
    write_policy(lab, &policy("enforce", OPEN_80)).unwrap();
    let log = lab.folder().join("debug.log");
    let mut command = lab.host.command(binary().unwrap().to_str().unwrap());
    command
        .args(location_options(lab))
        .args(["run", "--policy"]);
    command
        .arg(lab.folder().join("guard.toml"))
        .env("RUST_LOG", "debug");
    let _agent = Daemon::start(&mut command, &log).unwrap();
    let lines = |least: usize| {
        wait_for(Duration::from_secs(20), || {
            // The port is also open before the guard is attached, so the log is read until enough lines are there.
            anyhow::ensure!(site.get() == OPEN);
            let text = fs::read_to_string(&log)?;
            let lines = text
                .lines()
                .filter(|line| line.contains("the first packet of outcome"));
            let count = lines.count();
            anyhow::ensure!(count >= least, "{count} lines in {text}");
            Ok(count)
        })
        .unwrap()
    };
    lines(1);
    for _ in 0..20 {
        assert_eq!(site.get(), OPEN);
    }
    std::thread::sleep(Duration::from_secs(2));
    let cpus = std::thread::available_parallelism().unwrap().get();
    // The outcomes are `allowed` and control packets: at most three counters on each CPU.
    assert!(lines(1) <= 3 * cpus, "no line per packet");
}

#[test]
fn wrong_usage_exits_with_2() {
    let lab = Lab::new().unwrap();
    for arguments in [&["rnu"][..], &["status", "--yaml"]] {
        assert_fails(
            &output(&lab, arguments).unwrap(),
            2,
            &[arguments.last().unwrap(), "--help"],
        );
    }
    // Without arguments `guard` prints its help.
    assert_eq!(output(&lab, &[]).unwrap().status.code(), Some(2));
}

#[test]
fn check_says_what_a_policy_means() {
    let lab = Lab::new().unwrap();
    let path = write_policy(&lab, POLICY).unwrap();
    let path = path.to_str().unwrap();
    let text = output(&lab, &["check", path]).unwrap();
    assert!(text.status.success());
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(
        text.contains("web: tcp/80 from any, no limit, enforce"),
        "{text}"
    );
    let json = output(&lab, &["check", path, "--json"]).unwrap();
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["services"][0]["ports"][0], "tcp/80");
    assert_eq!(json["mode"], "enforce");
}

#[test]
fn check_shows_limits_and_sources() {
    let lab = Lab::new().unwrap();
    let policy = format!(
        "{POLICY}[limits]\npackets = \"5k/s\"\n[[source]]\nname = \"office\"\n\
         cidrs = [\"198.51.100.0/24\"]\nfactor = 20\nowner = \"ana\"\nreason = \"\\u001b[2JNAT\"\n\
         expires = 9999-12-31T23:59:59Z\n{}",
        nested(5)
    );
    let path = write_policy(&lab, &policy).unwrap();
    let path = path.to_str().unwrap();
    let text = output(&lab, &["check", path]).unwrap();
    assert!(text.status.success() && text.stderr.is_empty(), "{text:?}");
    let text = String::from_utf8(text.stdout).unwrap();
    for part in [
        "packets that match no service: packets 5k/s with a burst of 5000 per source",
        "source office: 198.51.100.0/24, 20 times every budget per source, owned by ana",
        "[2JNAT, until 9999-12-30",
        "source s4: 198.51.100.0/28, never limited",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(!text.contains('\u{1b}'));
    let json = output(&lab, &["check", path, "--json"]).unwrap();
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["limits"]["packets"], "5k/s with a burst of 5000");
    assert_eq!(json["sources"][0]["factor"], 20);
    assert_eq!(json["sources"][1]["exempt"], true);
    assert_eq!(json["warnings"], Value::Array(Vec::new()));
}

#[test]
fn what_can_hardly_be_meant_is_warned_of_and_refuses_nothing() {
    let lab = Lab::new().unwrap();
    lab.host.ip("link set wan mtu 3000").unwrap();
    let policy = format!(
        "{POLICY}limit.bytes = {{ rate = \"100kB/s\", burst = \"2kB\" }}\n[[source]]\n\
         name = \"past\"\ncidrs = [\"192.0.2.0/24\"]\nexpires = 2001-01-01T00:00:00Z\n\
         [[source]]\nname = \"all\"\ncidrs = [\"::/0\"]\ndeny = true\n"
    );
    let path = write_policy(&lab, &policy).unwrap();
    let path = path.to_str().unwrap();
    let expected = [
        (10, "\"past\" ended at 2001-01-01T00:00:00Z"),
        (14, "\"all\" denies ::/0"),
        (6, "frames of wan, whose MTU is 3000, may have 3022"),
    ];
    let checked = output(&lab, &["check", path, "--json"]).unwrap();
    assert!(checked.status.success());
    let json: Value = serde_json::from_slice(&checked.stdout).unwrap();
    let stderr = String::from_utf8(checked.stderr).unwrap();
    let guard = Guard::start(&lab, &policy).unwrap();
    assert_eq!(json["warnings"].as_array().unwrap().len(), expected.len());
    for ((line, problem), warning) in expected.iter().zip(json["warnings"].as_array().unwrap()) {
        assert_eq!(warning["line"], *line, "{warning}");
        assert!(warning["problem"].as_str().unwrap().contains(problem));
        let said = format!("{path}:{line}: ");
        for (command, text) in [("check", &stderr), ("run", &guard.log())] {
            let is_said = |text: &str| text.contains(&said) && text.contains(problem);
            assert!(
                text.lines().any(is_said),
                "guard {command} does not print {problem:?}: {text}"
            );
        }
    }
    // With an MTU of 1500 the burst is large enough: there is no warning.
    lab.host.ip("link set wan mtu 1500").unwrap();
    let checked = output(&lab, &["check", path]).unwrap();
    assert!(!String::from_utf8(checked.stderr).unwrap().contains("MTU"));
}

#[test]
fn a_second_agent_on_the_same_socket_or_interface_is_refused() {
    let lab = Lab::new().unwrap();
    let guard = Guard::start(&lab, POLICY).unwrap();
    let path = write_policy(&lab, POLICY).unwrap();
    let path = path.to_str().unwrap();
    let again = output(&lab, &["run", "--policy", path]).unwrap();
    assert_fails(&again, 1, &["already running"]);
    let elsewhere = |pins: &Path, state: &Path| {
        let mut command = lab.host.command(binary().unwrap().to_str().unwrap());
        command.arg("--socket").arg(lab.folder().join("other.sock"));
        command.arg("--pins").arg(pins).arg("--state").arg(state);
        command.args(["run", "--policy", path]).output().unwrap()
    };
    let same = elsewhere(&lab.pins(), &lab.state());
    assert_fails(&same, 1, &["another agent keeps its state"]);
    let other = elsewhere(&lab.folder().join("bpf/other"), &lab.folder().join("other"));
    let words = [INTERFACE, "already has an XDP program", "--force"];
    assert_fails(&other, 1, &words);
    assert_eq!(
        guard.json("status").unwrap()["interfaces"][0]["attached"],
        true
    );
}

#[test]
fn a_socket_that_a_dead_agent_left_is_replaced_but_a_file_is_not() {
    let lab = Lab::new().unwrap();
    let socket = lab.folder().join("guard.sock");
    // A socket of another program is not touched.
    let foreign = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    let path = write_policy(&lab, POLICY).unwrap();
    let refused = output(&lab, &["run", "--policy", path.to_str().unwrap()]).unwrap();
    assert_fails(&refused, 1, &["guard.sock"]);
    assert!(socket.exists());
    drop(foreign);
    fs::remove_file(&socket).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let guard = Guard::start(&lab, POLICY).unwrap();
    guard.remove().unwrap();
    assert!(!socket.exists(), "the agent did not remove its socket");
    fs::write(&socket, "precious").unwrap();
    let path = write_policy(&lab, POLICY).unwrap();
    let refused = output(&lab, &["run", "--policy", path.to_str().unwrap()]).unwrap();
    assert_fails(&refused, 1, &["exists and is not a socket"]);
    assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
    assert_nothing_attached(&lab);
}

#[test]
fn the_control_socket_speaks_http_and_is_for_root_and_its_group() {
    use std::os::unix::fs::PermissionsExt as _;
    let lab = Lab::new().unwrap();
    let _guard = Guard::start(&lab, POLICY).unwrap();
    let socket = lab.folder().join("guard.sock");
    assert_eq!(
        fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o660
    );
    let curl = |resource: &str| {
        run(Command::new("curl")
            .args(["--silent", "--write-out", "%{http_code}", "--unix-socket"])
            .arg(&socket)
            .arg(format!("http://guard{resource}")))
        .unwrap()
    };
    assert!(curl("/v1/status").ends_with("}200"));
    assert!(curl("/v1/nothing").ends_with("404"));
    // Bytes that are not HTTP get an HTTP error, and the agent answers further requests.
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(&[0xff; 4096]).unwrap();
    let _result = stream.read_to_end(&mut Vec::new());
    assert!(curl("/v1/counters").ends_with("]200"));
}

#[test]
fn a_reader_that_stops_reading_is_no_error_of_ours() {
    let lab = Lab::new().unwrap();
    let guard = Guard::start(&lab, POLICY).unwrap();
    let mut child = Command::new(binary().unwrap())
        .arg("--socket")
        .arg(lab.folder().join("guard.sock"))
        .args(["status", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("panicked"), "{stderr}");
    guard.remove().unwrap();
}
