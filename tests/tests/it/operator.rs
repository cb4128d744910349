//! What an operator reads and types: which port was closed, the file and what is in force, entries that are repeated.

use std::fs;

use lab::{
    guard::{Guard, output, write_policy},
    topology::{HOST_V4, Lab, USER_V4},
};
use serde_json::{Value, json};

use crate::site::fails;

const POLICY: &str = "
mode = \"enforce\"
scope = \"host\"
interfaces = [\"wan\"]
docker.socket = \"\"
[[service]]
name = \"web\"
ports = [\"tcp/80\"]
";

/// Tries to connect to a port of the host for a second.
fn knock(lab: &Lab, port: u16) {
    let mut command = lab.internet.command("curl");
    command.args(["--silent", "--max-time", "1", "--interface"]);
    command.args([USER_V4.to_string(), format!("http://{HOST_V4}:{port}/")]);
    assert!(!command.output().unwrap().status.success());
}

#[test]
fn counters_and_talkers_name_the_closed_port_that_was_tried_from_the_first_packet_on() {
    let lab = Lab::new().unwrap();
    let guard = Guard::start(&lab, POLICY).unwrap();
    for port in [8_000, 8_000, 5_432] {
        knock(&lab, port);
    }
    let counters = guard.json("counters").unwrap();
    let mut rows = counters.as_array().unwrap().iter();
    let closed = rows.find(|row| row["reason"] == "closed_port").unwrap();
    let ports = closed["ports"].as_array().unwrap();
    assert_eq!(ports[0]["port"], "tcp/8000", "{counters}");
    assert_eq!(ports[1]["port"], "tcp/5432", "{counters}");
    let named: u64 = ports
        .iter()
        .map(|port| port["packets"].as_u64().unwrap())
        .sum();
    assert_eq!(
        closed["packets"], named,
        "a few packets are counted exactly: {counters}"
    );
    let text = guard.run(&["counters"]).unwrap();
    assert!(text.contains("closed_port tcp/8000"), "{text}");
    let exact = guard.run(&[
        "explain",
        "--from",
        &USER_V4.to_string(),
        "--to",
        "tcp/8000",
    ]);
    let exact = exact.unwrap();
    assert!(exact.starts_with("DROPPED: closed_port"), "{exact}");
    assert!(
        exact.contains("ports = [\"tcp/8000\"]"),
        "what to type: {exact}"
    );

    // In mode observe the same port is counted apart.
    guard.run(&["mode", "observe"]).unwrap();
    knock(&lab, 8_000);
    let counters = guard.json("counters").unwrap();
    let mut rows = counters.as_array().unwrap().iter();
    let would = rows.find(|row| row["would"] == "drop").unwrap();
    assert_eq!(would["ports"][0]["port"], "tcp/8000", "{counters}");
    assert_eq!(would["ports"][0]["packets"], would["packets"], "{counters}");
}

#[test]
fn a_file_that_differs_from_what_is_in_force_is_told_and_how() {
    let lab = Lab::new().unwrap();
    let guard = Guard::start(&lab, POLICY).unwrap();
    assert_eq!(
        guard.json("status").unwrap()["policy"]["stale"],
        Value::Null
    );
    let same = guard.run(&["diff"]).unwrap();
    assert!(same.contains("no key differs"), "{same}");

    let changed = POLICY
        .replace("\"enforce\"", "\"observe\"")
        .replace("[\"tcp/80\"]", "[\"tcp/80\", \"tcp/443\"]");
    write_policy(&lab, &changed).unwrap();
    let status = guard.run(&["status"]).unwrap();
    assert!(
        status.contains("STALE") && status.contains("guard diff"),
        "{status}"
    );
    let doctor = output(&lab, &["doctor"]).unwrap();
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.contains("is not what is in force"), "{doctor}");
    let diff = guard.run(&["diff"]).unwrap();
    for line in [
        "mode: \"enforce\" -> \"observe\"",
        "nothing is dropped any more",
        "tcp/443 opens for everybody",
    ] {
        assert!(diff.contains(line), "{line}: {diff}");
    }
    let json: Value = serde_json::from_str(&guard.run(&["diff", "--json"]).unwrap()).unwrap();
    assert_eq!(json["keys"][0]["key"], "mode", "{json}");

    let reloaded = guard.run(&["reload"]).unwrap();
    assert!(reloaded.contains("ENFORCING HAS ENDED"), "{reloaded}");
    assert_eq!(
        guard.json("status").unwrap()["policy"]["stale"],
        Value::Null
    );

    // A file that is gone or wrong is told as well, and what is in force stays.
    write_policy(&lab, &format!("{POLICY}colour = 1\n")).unwrap();
    let status = guard.run(&["status"]).unwrap();
    assert!(
        status.contains("guard.toml:9") && status.contains("`guard check"),
        "{status}"
    );
    assert!(!status.contains("guard reload"), "{status}");
    let doctor = output(&lab, &["doctor"]).unwrap();
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(doctor.matches("guard.toml:9").count(), 1, "{doctor}");
    fs::remove_file(lab.folder().join("guard.toml")).unwrap();
    let stale = guard.json("status").unwrap()["policy"]["stale"].to_string();
    assert!(stale.contains("does not exist"), "{stale}");
    fails(&output(&lab, &["diff"]).unwrap(), 2, &["guard.toml"]);
}

#[test]
fn a_reload_does_not_end_a_trial_by_accident_and_a_confirmed_policy_is_written_when_asked() {
    let lab = Lab::new().unwrap();
    let guard = Guard::start(&lab, POLICY).unwrap();
    let own = lab.folder().join("guard.toml");
    let tried = lab.folder().join("tried.toml");
    fs::write(&tried, POLICY.replace("tcp/80", "tcp/8080")).unwrap();
    let tried = tried.display().to_string();
    guard.run(&["try", &tried, "--for", "10m"]).unwrap();
    let status = guard.run(&["status"]).unwrap();
    assert!(status.contains(" goes back in 9:"), "{status}");
    fails(
        &output(&lab, &["reload"]).unwrap(),
        1,
        &["is on trial", "guard confirm", "--force"],
    );
    assert!(guard.json("status").unwrap()["trial"].is_object());

    let confirmed = guard.run(&["confirm"]).unwrap();
    assert!(
        confirmed.contains("cp ") && confirmed.contains("guard diff"),
        "{confirmed}"
    );
    assert_eq!(fs::read_to_string(&own).unwrap(), POLICY);
    let status = guard.run(&["status"]).unwrap();
    for words in [
        "which was confirmed from",
        "`guard reload` would go back",
        &format!("`cp {tried} {}`", own.display()),
    ] {
        assert!(status.contains(words), "{words}: {status}");
    }
    // The copy is seen at once, also with a comment more.
    let copy = format!(
        "# Tried on Monday.\n{}",
        fs::read_to_string(&tried).unwrap()
    );
    fs::write(&own, copy).unwrap();
    let stale = || guard.json("status").unwrap()["policy"]["stale"].clone();
    assert_eq!(stale(), Value::Null);
    let diff = guard.run(&["diff"]).unwrap();
    assert!(diff.contains("no key differs"), "{diff}");
    fs::write(&own, POLICY).unwrap();
    assert_ne!(stale(), Value::Null);

    guard.run(&["try", &tried, "--for", "10m"]).unwrap();
    let written = guard.run(&["confirm", "--write"]).unwrap();
    assert!(written.contains("has it too"), "{written}");
    assert!(fs::read_to_string(&own).unwrap().contains("tcp/8080"));
    assert_eq!(stale(), Value::Null);

    // The files are the same now: no hint.
    guard.run(&["try", &tried, "--for", "10m"]).unwrap();
    let confirmed = guard.run(&["confirm"]).unwrap();
    assert!(!confirmed.contains("cp "), "{confirmed}");

    guard.run(&["try", &tried, "--for", "10m"]).unwrap();
    guard.run(&["reload", "--force"]).unwrap();
    assert_eq!(guard.json("status").unwrap()["trial"], Value::Null);
}

#[test]
fn an_entry_that_is_repeated_is_updated_and_a_wide_denial_needs_force() {
    let lab = Lab::new().unwrap();
    let guard = Guard::start(&lab, POLICY).unwrap();
    let deny = |more: &[&str]| {
        let arguments = [&["deny", "192.0.2.0/24", "--json"][..], more].concat();
        let text = guard.run(&arguments).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let first = deny(&["--for", "1h"]);
    let again = deny(&["--for", "2h", "--reason", "still"]);
    assert_eq!(
        (&first["updated"], &again["updated"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(first["id"], again["id"]);
    // Another owner or service is another entry.
    deny(&["--owner", "feed"]);
    deny(&["--service", "web"]);
    let entries = guard.json("list").unwrap();
    assert_eq!(entries.as_array().unwrap().len(), 3, "{entries}");
    assert_eq!(entries[0]["reason"], "still", "{entries}");
    let listed = guard.run(&["list"]).unwrap();
    assert!(
        listed.contains("no end") && !listed.contains("revoked"),
        "{listed}"
    );

    for (prefix, shortest) in [
        ("0.0.0.0/0", "/8"),
        ("128.0.0.0/7", "/8"),
        ("2000::/3", "/16"),
    ] {
        fails(
            &output(&lab, &["deny", prefix]).unwrap(),
            1,
            &[shortest, "--force"],
        );
        // To allow that much closes nothing.
        guard.run(&["allow", prefix, "--for", "1h"]).unwrap();
    }
    guard.run(&["deny", "128.0.0.0/7", "--force"]).unwrap();
    let allowed = guard.run(&["allow", "192.0.2.9"]).unwrap();
    assert!(
        allowed.contains("A port that no service lists stays closed"),
        "{allowed}"
    );
    // An allow entry wins, so a denial within it says so, and several entries are revoked at once.
    let id = |text: &str| text.split(' ').nth(1).unwrap().to_owned();
    let number = |id: &str| json!(id.parse::<u64>().unwrap());
    let network = guard.run(&["allow", "198.51.100.64/28"]).unwrap();
    let denied = guard.run(&["deny", "198.51.100.66"]).unwrap();
    let (network, denial) = (id(&network), id(&denied));
    let warning =
        format!("entry {network} allows 198.51.100.64/28 and wins: `guard revoke {network}` first");
    assert!(denied.contains(&warning), "{denied}");
    let listed = guard.run(&["list", "198.51.100.66"]).unwrap();
    assert!(
        listed.contains("deny, overridden by ") && !listed.contains("192.0.2.9"),
        "{listed}"
    );
    let listed = guard.json("list").unwrap();
    let mut listed = listed.as_array().unwrap().iter();
    let listed = listed.find(|entry| entry["id"] == number(&denial)).unwrap();
    let overriding = listed["overridden_by"].as_array().unwrap();
    assert!(overriding.contains(&number(&network)), "{listed}");
    let revoked = guard.run(&["revoke", &network, &denial]).unwrap();
    assert!(
        revoked.contains(&format!(
            "revoked entry {network}, which let through 198.51.100.64/28"
        )) && revoked.contains(&format!(
            "revoked entry {denial}, which denied 198.51.100.66/32"
        )),
        "{revoked}"
    );
}

#[test]
fn colours_reach_a_terminal_and_control_characters_of_others_do_not() {
    let lab = Lab::new().unwrap();
    let guard = Guard::start(&lab, POLICY).unwrap();
    let painted = guard.run(&["--color", "always", "status"]).unwrap();
    assert!(
        painted.starts_with("\x1b[1m\x1b[32mguard is enforcing"),
        "{painted:?}"
    );
    let plain = guard.run(&["--color", "never", "status"]).unwrap();
    assert!(!plain.contains('\x1b'), "{plain:?}");
    for port in [8_000, 5_432] {
        knock(&lab, port);
    }
    let counters = guard.run(&["--color", "always", "counters"]).unwrap();
    assert!(counters.contains("\x1b[31m"), "{counters:?}");
    assert!(!counters.contains('\u{fffd}'), "{counters:?}");
}

#[test]
fn a_denial_where_nothing_is_enforced_says_that_it_drops_nothing() {
    let lab = Lab::new().unwrap();
    let guard = Guard::start(&lab, POLICY).unwrap();
    let enforced = guard
        .run(&["deny", "198.51.100.66", "--for", "1h"])
        .unwrap();
    assert!(!enforced.contains("drops nothing"), "{enforced}");
    guard.run(&["mode", "observe", "--service", "web"]).unwrap();
    let at_web = guard
        .run(&["deny", "198.51.100.66", "--service", "web"])
        .unwrap();
    assert!(
        at_web.contains("service \"web\" is in mode observe"),
        "{at_web}"
    );
    guard.run(&["mode", "observe"]).unwrap();
    let observed = guard
        .run(&["deny", "198.51.100.67", "--for", "1h"])
        .unwrap();
    assert!(
        observed.contains("the host is in mode observe: the entry drops nothing"),
        "{observed}"
    );
}
