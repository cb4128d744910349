//! The control socket with broken and hostile clients.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use jsonschema::Validator;
use lab::{
    guard::{Guard, output},
    process::{SLOWEST, run, wait_for},
};
use serde_json::{Value, json};

use crate::site::{OPEN_80, Site, fails};

fn connect(socket: &PathBuf) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    stream
}

fn ask(socket: &PathBuf) -> String {
    let mut stream = connect(socket);
    stream
        .write_all(b"GET /v1/status HTTP/1.1\r\nHost: guard\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Asserts that the next valid request is answered quickly.
fn assert_answers(socket: &PathBuf, guard: &Guard, what: &str) {
    let start = Instant::now();
    let answer = ask(socket);
    assert!(answer.starts_with("HTTP/1.1 200"), "{what}: {answer}");
    assert!(start.elapsed() < Duration::from_secs(2) * SLOWEST, "{what}");
    assert_eq!(guard.json("status").unwrap()["enforcing"], true, "{what}");
}

/// A request that waited in the socket while the agent hung is rejected after its deadline.
#[test]
fn what_a_client_does_not_wait_for_any_more_is_not_done() {
    let site = Site::new();
    let guard = site.start("enforce", OPEN_80);
    let socket = site.lab.folder().join("guard.sock");
    let switch_off = |deadline: u64| {
        let body = r#"{"mode": "off"}"#;
        let mut stream = connect(&socket);
        let head = format!(
            "POST /v1/mode HTTP/1.1\r\nHost: guard\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nguard-deadline: {deadline}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let late = switch_off(1);
    assert!(late.starts_with("HTTP/1.1 408"), "{late}");
    assert_eq!(guard.json("status").unwrap()["mode"], "enforce");
    let in_time = switch_off(u64::MAX);
    assert!(in_time.starts_with("HTTP/1.1 200"), "{in_time}");
    assert_eq!(guard.json("status").unwrap()["mode"], "off");
}

/// Capabilities belong to threads, and other threads than the first read the requests.
#[test]
fn no_thread_of_the_agent_keeps_more_of_roots_powers_than_it_needs() {
    let site = Site::new();
    let guard = site.start("enforce", OPEN_80);
    let socket = site.lab.folder().join("guard.sock");
    // CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF.
    let needed = format!("CapEff:\t{:016x}", (1_u64 << 12) | (1 << 38) | (1 << 39));
    let permitted = needed.replace("Eff", "Prm");
    wait_for(Duration::from_secs(10), || {
        // A sleeping thread drops its capabilities when it wakes up.
        ask(&socket);
        let threads = fs::read_dir(format!("/proc/{}/task", guard.pid()))?;
        for thread in threads {
            let status = fs::read_to_string(thread?.path().join("status"))?;
            let is_small = status.contains(&needed) && status.contains(&permitted);
            anyhow::ensure!(is_small, "{status}");
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn whatever_clients_do_the_next_good_request_is_answered() {
    let site = Site::new();
    let guard = site.start("enforce", OPEN_80);
    let socket = site.lab.folder().join("guard.sock");
    assert_answers(&socket, &guard, "at first");

    let clients: Vec<_> = (0..1_000)
        .map(|_| {
            let socket = socket.clone();
            thread::spawn(move || ask(&socket))
        })
        .collect();
    let answers = clients.into_iter().map(|client| client.join().unwrap());
    let answered = answers.filter(|answer| answer.starts_with("HTTP/1.1 200"));
    assert_eq!(
        answered.count(),
        1_000,
        "all of a thousand parallel requests"
    );
    assert_answers(&socket, &guard, "a thousand parallel requests");

    let silent: Vec<UnixStream> = (0..1_000).map(|_| connect(&socket)).collect();
    assert_answers(&socket, &guard, "a thousand silent connections");
    let half: Vec<UnixStream> = (0..1_000)
        .map(|_| {
            let mut stream = connect(&socket);
            stream
                .write_all(b"POST /v1/reload HTTP/1.1\r\nHost: gu")
                .unwrap();
            stream
        })
        .collect();
    assert_answers(&socket, &guard, "a thousand half requests");
    drop((silent, half));

    let mut slow = connect(&socket);
    let head = "POST /v1/mode HTTP/1.1\r\nHost: guard\r\nContent-Type: application/json\r\n\
                Content-Length: 100\r\n\r\n{\"mode\":";
    slow.write_all(head.as_bytes()).unwrap();
    assert_answers(&socket, &guard, "a body that does not come");
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 400"),
        "the client gets an error: {answer}"
    );

    let mut rng = fastrand::Rng::with_seed(1);
    let garbage: Vec<u8> = (0..1 << 20).map(|_| rng.u8(..)).collect();
    // The agent may close the connection before all bytes are written.
    let _result = connect(&socket).write_all(&garbage);
    assert_answers(&socket, &guard, "a megabyte of garbage");
    let mut long = connect(&socket);
    let _result = long.write_all(
        b"POST /v1/try HTTP/1.1\r\nHost: guard\r\nContent-Type: \
        application/json\r\nContent-Length: 1000000000\r\n\r\n",
    );
    let mut answer = String::new();
    long.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 4"),
        "the body is too long: {answer}"
    );
    assert_answers(&socket, &guard, "an announced body of a gigabyte");
}

/// Sends a request, and returns the status and the body.
fn request(site: &Site, method: &str, resource: &str, body: Option<&Value>) -> (u16, Value) {
    let socket = site.lab.folder().join("guard.sock");
    let mut command = Command::new("curl");
    command
        .args([
            "--silent",
            "--write-out",
            "\n%{http_code}",
            "--request",
            method,
        ])
        .arg("--unix-socket")
        .arg(socket);
    if let Some(body) = body {
        command.args(["--json", &body.to_string()]);
    }
    let output = run(command.arg(format!("http://guard{resource}"))).unwrap();
    let (body, code) = output.rsplit_once('\n').unwrap();
    (
        code.parse().unwrap(),
        serde_json::from_str(body).unwrap_or_default(),
    )
}

/// Sends a request as user nobody. The process keeps CAP_DAC_OVERRIDE to open the socket in spite of its mode.
fn request_by_nobody(site: &Site, method: &str, resource: &str, body: &Value) -> (u16, Value) {
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=nobody",
        "--clear-groups",
        "--inh-caps=+dac_override",
    ]);
    command.args(["--ambient-caps=+dac_override", "curl", "--silent"]);
    command.args(["--write-out", "\n%{http_code}", "--request", method]);
    command.arg("--unix-socket");
    command.arg(site.lab.folder().join("guard.sock"));
    // The body is longer than a command line argument may be.
    command.args(["--json", "@-", &format!("http://guard{resource}")]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(body.to_string().as_bytes()).unwrap();
    drop(stdin);
    let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let (body, code) = output.rsplit_once('\n').unwrap();
    let answer = serde_json::from_str(body).unwrap_or_else(|_| Value::from(body));
    (code.parse().unwrap(), answer)
}

#[test]
fn a_change_names_the_kernels_user_and_the_user_that_the_client_claims() {
    let site = Site::new();
    let guard = site.start("enforce", OPEN_80);
    let entry = |owner: &str, reason: &str| {
        json!({"action": "deny", "prefix": "192.0.2.0/24", "service": null, "owner": owner,
               "reason": reason, "seconds": 600, "operator": null})
    };
    let (code, entered) = request_by_nobody(
        &site,
        "POST",
        "/v1/entries",
        &entry("root", "mine, \"honest\""),
    );
    assert_eq!(code, 200, "{entered}");
    let mode = json!({"service": "web", "mode": "observe", "by": "root", "operator": null});
    let (code, answer) = request_by_nobody(&site, "POST", "/v1/mode", &mode);
    assert_eq!(code, 200, "{answer}");
    let policy = fs::read_to_string(site.lab.folder().join("guard.toml")).unwrap();
    let trial = json!({"path": "tried.toml", "text": policy, "seconds": 60, "operator": null});
    let (code, answer) = request_by_nobody(&site, "POST", "/v1/try", &trial);
    assert_eq!(code, 200, "{answer}");

    let list = guard.json("list").unwrap();
    assert_eq!(list[0]["by"], "nobody", "{list}");
    assert!(list[0]["process"].as_u64().unwrap() > 1, "{list}");
    assert_eq!(
        list[0]["owner"], "root",
        "the owner that the client names: {list}"
    );
    let list = guard.run(&["list"]).unwrap();
    for words in ["nobody", "\"root\"", r#""mine, \"honest\"""#] {
        assert!(list.contains(words), "{words} is not in {list}");
    }
    let status = guard.json("status").unwrap();
    let mode = &status["modes"][0];
    assert_eq!(mode["by"], "nobody", "{status}");
    assert!(mode["process"].as_u64().unwrap() > 1, "{status}");
    assert_eq!(mode["claimed_by"], "root", "{status}");
    assert_eq!(status["trial"]["by"], "nobody", "{status}");
    let status = guard.run(&["status"]).unwrap();
    assert!(status.contains(" by nobody, process "), "{status}");
    assert!(status.contains("(the client names \"root\")"), "{status}");
    let log = guard.log();
    let is_logged = |words: [&str; 2]| {
        let mut lines = log.lines();
        lines.any(|line| words.iter().all(|word| line.contains(word)))
    };
    for what in ["entry added", "mode changed", "a policy is on trial"] {
        assert!(is_logged([what, "by=\"nobody, process "]), "{what}: {log}");
    }

    // Values with line breaks, control characters or too many characters are rejected.
    let long = "x".repeat(100_000);
    for (text, words) in [
        ("a\n1 allow 0.0.0.0/0", "U+000A"),
        ("\u{202e}toor", "U+202E"),
        ("\u{1b}[2J", "U+001B"),
        (&long, "100000 characters"),
    ] {
        let mode = json!({"service": null, "mode": "off", "by": text, "operator": null});
        let trial = json!({"path": text, "text": "", "seconds": 60, "operator": null});
        for (resource, key, body) in [
            ("/v1/entries", "owner", &entry(text, "")),
            ("/v1/entries", "reason", &entry("ana", text)),
            ("/v1/mode", "by", &mode),
            ("/v1/try", "path", &trial),
        ] {
            let (code, answer) = request_by_nobody(&site, "POST", resource, body);
            assert_eq!(code, 400, "{resource}: {answer}");
            let error = answer["error"].as_str().unwrap();
            assert!(error.contains(key) && error.contains(words), "{error}");
            assert!(error.len() < 400, "{error}");
        }
    }
    let wrong = output(&site.lab, &["deny", "192.0.2.1", "--reason", "a\nb"]).unwrap();
    fails(&wrong, 2, &["--reason", "U+000A"]);
    let wrong = output(&site.lab, &["deny", "192.0.2.1", "--owner", &long]).unwrap();
    fails(&wrong, 2, &["--owner", "100000 characters"]);
    assert!(wrong.stderr.len() < 400);
    assert_eq!(guard.json("list").unwrap().as_array().unwrap().len(), 1);
}

/// The schema of an answer, with all schemas that it refers to.
fn schema(document: &Value, method: &str, path: &str, code: &str) -> Validator {
    schema_of(document, method, path, code, "application/json")
}

fn schema_of(document: &Value, method: &str, path: &str, code: &str, form: &str) -> Validator {
    let answer = &document["paths"][path][method]["responses"][code];
    let mut schema = answer["content"][form]["schema"].clone();
    assert!(schema.is_object(), "{method} {path} {code}: {answer}");
    schema["components"] = document["components"].clone();
    jsonschema::validator_for(&schema).unwrap()
}

#[test]
fn the_server_is_as_its_openapi_document_says() {
    let site = Site::new();
    let guard = site.start("enforce", OPEN_80);
    let (code, document) = request(&site, "GET", "/v1/openapi.json", None);
    assert_eq!(code, 200);
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    site.get();
    let policy = fs::read_to_string(site.lab.folder().join("guard.toml")).unwrap();
    let trial = json!({"path": "tried.toml", "text": policy, "seconds": 60, "operator": null});
    let entry = json!({"action": "deny", "prefix": "192.0.2.0/24", "service": null, "owner": "ana",
        "reason": null, "seconds": 60, "operator": null});
    let mode = json!({"service": "web", "mode": "observe", "by": "ana", "operator": null});
    let reload = json!({"operator": null});
    let mut asked = BTreeSet::new();
    for (method, path, resource, body) in [
        ("get", "/v1/openapi.json", "/v1/openapi.json", None),
        ("get", "/v1/status", "/v1/status", None),
        ("get", "/v1/policy", "/v1/policy", None),
        ("get", "/v1/counters", "/v1/counters", None),
        ("get", "/v1/talkers", "/v1/talkers", None),
        (
            "get",
            "/v1/explain",
            "/v1/explain?from=192.0.2.1&to=80/tcp",
            None,
        ),
        ("get", "/v1/source", "/v1/source?from=192.0.2.1", None),
        ("post", "/v1/entries", "/v1/entries", Some(&entry)),
        ("get", "/v1/entries", "/v1/entries", None),
        (
            "delete",
            "/v1/entries/{id}",
            "/v1/entries/1?force=true",
            None,
        ),
        ("post", "/v1/mode", "/v1/mode", Some(&mode)),
        ("get", "/v1/status", "/v1/status", None),
        ("post", "/v1/reload", "/v1/reload", Some(&reload)),
        ("post", "/v1/try", "/v1/try", Some(&trial)),
        ("get", "/v1/status", "/v1/status", None),
        ("post", "/v1/confirm", "/v1/confirm", None),
    ] {
        let (code, answer) = request(&site, &method.to_uppercase(), resource, body);
        assert_eq!(code, 200, "{method} {resource}: {answer}");
        let errors: Vec<String> = schema(&document, method, path, "200")
            .iter_errors(&answer)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(
            errors.is_empty(),
            "{method} {resource}: {errors:?}\n{answer}"
        );
        asked.insert((path.to_owned(), method.to_owned()));
    }
    each_line_of_a_capture_is_as_described(&site, &document);
    asked.insert(("/v1/capture".to_owned(), "get".to_owned()));
    let wrong = schema(&document, "post", "/v1/entries", "4XX");
    for (method, resource, body) in [
        ("POST", "/v1/entries", Some(json!({"action": "burn"}))),
        ("DELETE", "/v1/entries/77", None),
        ("GET", "/v1/explain?from=nobody", None),
        ("GET", "/v1/source?from=nobody", None),
        ("GET", "/v1/capture?rate=0", None),
        ("GET", "/v1/capture?source=nobody", None),
        ("POST", "/v1/confirm", None),
        ("GET", "/v1/nothing", None),
    ] {
        let (code, answer) = request(&site, method, resource, body.as_ref());
        assert!((400..500).contains(&code), "{method} {resource}: {code}");
        assert!(wrong.is_valid(&answer), "{method} {resource}: {answer}");
    }
    assert!(
        !schema(&document, "get", "/v1/status", "200").is_valid(&json!({})),
        "the schema rejects a wrong document"
    );
    let (code, _) = request(&site, "POST", "/v1/detach", None);
    assert_eq!(code, 204);
    asked.insert(("/v1/detach".to_owned(), "post".to_owned()));
    let described = document["paths"].as_object().unwrap();
    let described = described.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap();
        methods.keys().map(|method| (path.clone(), method.clone()))
    });
    assert_eq!(
        asked,
        described.collect(),
        "the document describes all resources, and the test has requested all"
    );
    drop(guard);
}

fn each_line_of_a_capture_is_as_described(site: &Site, document: &Value) {
    let form = "application/x-ndjson";
    let schema = schema_of(document, "get", "/v1/capture", "200", form);
    let mut command = Command::new("curl");
    command.args(["--silent", "--max-time", "3", "--unix-socket"]);
    command.arg(site.lab.folder().join("guard.sock"));
    command.arg("http://guard/v1/capture?all=true&form=json");
    let curl = command.stdout(Stdio::piped()).spawn().unwrap();
    thread::sleep(Duration::from_millis(700));
    site.get();
    let output = curl.wait_with_output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(lines.iter().all(|line| schema.is_valid(line)), "{lines:?}");
    let packets = lines
        .iter()
        .filter(|line| line["reason"] == "allowed")
        .count();
    let missed = lines.iter().filter(|line| line["missed"] == 0).count();
    assert!(packets >= 5 && missed >= 1, "{lines:?}");
}
