//! `guard top` in a real terminal, and `--watch`, with three clients: one within its limit, an office that is over its
//! limit, and a flood.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use lab::{
    guard::{Guard, binary, location_options},
    process::{run, wait_for},
    screen::TmuxScreen,
    topology::FLOODER_V4,
};
use serde_json::Value;

use crate::{
    clients::{POLICY, Traffic},
    site::Site,
};

/// The escape sequences for the colours of drops and passes, as tmux prints them.
const RED: &str = "\u{1b}[38;5;1m";
const GREEN: &str = "\u{1b}[38;5;2m";

fn command(site: &Site, arguments: &[&str]) -> Vec<String> {
    let options = location_options(&site.lab).into_iter();
    let options = options.map(|option| option.to_string_lossy().into_owned());
    let mut command = vec![binary().unwrap().display().to_string()];
    command.extend(options);
    command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    command
}

/// The line of a screen with this word.
fn line<'a>(screen: &'a str, word: &str) -> &'a str {
    let line = screen.lines().find(|line| line.contains(word));
    line.unwrap_or_else(|| panic!("{word} is not on the screen:\n{screen}"))
}

#[test]
fn one_screen_names_the_flooding_source_the_blocked_office_and_the_reasons() {
    let site = Site::new();
    let guard = site.start("enforce", POLICY);
    let _traffic = Traffic::start(&site);
    let command = command(&site, &["top", "--every", "1"]);
    let screen = TmuxScreen::start(&site.lab, (80, 24), &command).unwrap();
    let flooder = FLOODER_V4.to_string();
    let seen = [
        "198.51.100.20 office",
        "connection_limit at web",
        &flooder,
        // The closed port, in the row of the reason and in the row of the source.
        "closed_port tcp/8000",
    ];
    let text = screen.wait_for(&seen).unwrap();
    assert!(text.contains("enforcing"), "{text}");
    assert!(
        text.contains("estimated from one packet of sixteen"),
        "{text}"
    );
    // The heaviest source is first, each line has its reason, and no line is cut.
    let (flood, office) = (line(&text, &flooder), line(&text, " office"));
    assert!(
        flood.starts_with("> ") && flood.contains("closed_port tcp/8000"),
        "{text}"
    );
    assert!(office.contains("connection_limit at web"), "{text}");
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );

    if let Some(folder) = std::env::var_os("GUARD_SCREENSHOTS") {
        // Time for a history.
        std::thread::sleep(Duration::from_secs(15));
        let text = screen.text().unwrap();
        std::fs::write(Path::new(&folder).join("top.txt"), text).unwrap();
    }
    press_every_key(&guard, &screen);
    screen.press(&["q"]).unwrap();
    let end = screen.wait_for_end().unwrap();
    assert!(matches!(end, None | Some(0)), "{end:?}");
}

fn press_every_key(guard: &Guard, screen: &TmuxScreen) {
    screen.press(&["/", "office", "Enter"]).unwrap();
    let filtered = screen.wait_for(&["only with \"office\""]).unwrap();
    assert!(!filtered.contains(&FLOODER_V4.to_string()), "{filtered}");
    assert!(line(&filtered, " office").starts_with("> "), "{filtered}");

    screen.press(&["e"]).unwrap();
    screen
        .wait_for(&["Explain 198.51.100.20 to: web_"])
        .unwrap();
    screen.press(&["Enter"]).unwrap();
    // Words that no line is cut between.
    let explained = screen
        .wait_for(&["Estimated from", "connection_limit"])
        .unwrap();
    assert!(explained.contains("TCP SYN"), "{explained}");
    screen.press(&["x"]).unwrap();

    // An action needs a confirmation; without it nothing changes.
    screen.press(&["d"]).unwrap();
    screen
        .wait_for(&["DROP ALL of: 198.51.100.20 for 1h_"])
        .unwrap();
    screen.press(&["Escape"]).unwrap();
    screen.wait_for(&["q quit"]).unwrap();
    assert_eq!(guard.json("list").unwrap(), Value::Array(Vec::new()));
    // The proposed values can be edited.
    screen
        .press(&["d", "BSpace", "BSpace", "30m", "Enter"])
        .unwrap();
    let denied = ["denied 198.51.100.20 until", "(entry 1) — u undoes it"];
    screen.wait_for(&denied).unwrap();
    let entries = guard.json("list").unwrap();
    assert_eq!(entries[0]["action"], "deny", "{entries}");
    assert_eq!(entries[0]["prefix"], "198.51.100.20/32", "{entries}");
    screen.wait_for(&["denied_source"]).unwrap();
    // The undo ends this entry, and no other when the key is pressed again.
    screen.press(&["a", "Enter"]).unwrap();
    screen
        .wait_for(&["allowed 198.51.100.20 until", "(entry 2) — u undoes it"])
        .unwrap();
    screen.press(&["u"]).unwrap();
    screen
        .wait_for(&["revoked entry 2 (allow 198.51.100.20)"])
        .unwrap();
    screen.press(&["u"]).unwrap();
    screen.wait_for(&["nothing to undo"]).unwrap();
    assert_eq!(ids(guard), [1]);
    revoke_in_the_list(guard, screen);
    screen.press(&["Escape"]).unwrap();
    screen
        .wait_for(&["? help", "only with \"office\""])
        .unwrap();
    screen.press(&["Escape"]).unwrap();
    screen.wait_for(&[&FLOODER_V4.to_string()]).unwrap();

    screen.press(&["p"]).unwrap();
    let held = screen
        .wait_for(&["PAUSED", &FLOODER_V4.to_string()])
        .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(screen.text().unwrap(), held);
    screen.press(&["p", "s"]).unwrap();
    screen.wait_for(&["SOURCES by dropped"]).unwrap();
    screen.resize(60, 15).unwrap();
    screen
        .wait_for(&["198.51.100.66", "closed_port", "q quit"])
        .unwrap();
}

/// The numbers of the entries in force.
fn ids(guard: &Guard) -> Vec<u64> {
    let entries = guard.json("list").unwrap();
    let entries = entries.as_array().unwrap().iter();
    entries.map(|entry| entry["id"].as_u64().unwrap()).collect()
}

fn revoke_in_the_list(guard: &Guard, screen: &TmuxScreen) {
    screen.press(&["l"]).unwrap();
    screen
        .wait_for(&["ENTRIES in force", "entry 1 denies 198.51.100.20/32"])
        .unwrap();
    // An entry that another operator makes while the list is open appears.
    guard.run(&["deny", "192.0.2.0/24"]).unwrap();
    screen.wait_for(&["192.0.2.0/24"]).unwrap();
    screen.press(&["r"]).unwrap();
    let question = ["Revoke entry 1 (deny 198.51.100.20)? Enter: yes"];
    screen.wait_for(&question).unwrap();
    screen.press(&["n"]).unwrap();
    wait_for(Duration::from_secs(10), || {
        let text = screen.text()?;
        anyhow::ensure!(!text.contains("Revoke entry"), "{text}");
        Ok(())
    })
    .unwrap();
    assert_eq!(ids(guard), [1, 3]);
    screen.press(&["Enter"]).unwrap();
    screen.wait_for(&question).unwrap();
    screen.press(&["Enter"]).unwrap();
    screen
        .wait_for(&["revoked entry 1", "entry 3 denies 192.0.2.0/24"])
        .unwrap();
    assert_eq!(ids(guard), [3]);
    screen.press(&["r", "y"]).unwrap();
    screen
        .wait_for(&["none: a and d on the screen make one", "revoked entry 3"])
        .unwrap();
    screen.press(&["Escape"]).unwrap();
}

/// `env VARIABLE=VALUE... guard ...`.
fn with_variables(variables: &[&str], command: Vec<String>) -> Vec<String> {
    let words = ["env"].iter().chain(variables);
    words
        .map(|word| (*word).to_owned())
        .chain(command)
        .collect()
}

#[test]
fn a_refusal_is_shown_whole_and_nothing_is_forced() {
    let site = Site::new();
    let guard = site.start("enforce", POLICY);
    let _traffic = Traffic::start(&site);
    // The operator is logged in from the address that floods.
    let session = format!("SSH_CONNECTION={FLOODER_V4} 50000 203.0.113.10 22");
    let command = with_variables(&[&session], command(&site, &["top", "--every", "1"]));
    let screen = TmuxScreen::start(&site.lab, (80, 24), &command).unwrap();
    screen.wait_for(&[&FLOODER_V4.to_string()]).unwrap();
    screen.press(&["d", "Enter"]).unwrap();
    screen
        .wait_for(&["logged in", "--force", "nevertheless"])
        .unwrap();
    screen.press(&["x"]).unwrap();
    screen.wait_for(&["? help"]).unwrap();
    screen.press(&["u"]).unwrap();
    screen.wait_for(&["nothing to undo"]).unwrap();
    assert!(ids(&guard).is_empty());
}

#[test]
fn colours_are_as_the_option_and_the_environment_say() {
    let site = Site::new();
    let _guard = site.start("enforce", POLICY);
    let _traffic = Traffic::start(&site);
    for (variables, options, is_coloured) in [
        (&["NO_COLOR=1"][..], &[][..], false),
        (&["NO_COLOR=1"], &["--color", "always"], true),
        (&["NO_COLOR="], &[], true),
        (&[], &["--color", "never"], false),
    ] {
        let arguments = [&["top", "--every", "1"], options].concat();
        let command = with_variables(variables, command(&site, &arguments));
        let screen = TmuxScreen::start(&site.lab, (80, 24), &command).unwrap();
        screen.wait_for(&["closed_port tcp/8000"]).unwrap();
        let text = screen.coloured().unwrap();
        assert_eq!(
            text.contains(RED),
            is_coloured,
            "{variables:?} {options:?}: {text:?}"
        );
        screen.press(&["q"]).unwrap();
        screen.wait_for_end().unwrap();
    }
    // The shell stays: below the last screen of a program that has ended, tmux writes a line that moves the others.
    let top = command(&site, &["top"]).join(" ");
    let dumb = format!("TERM=dumb {top}; echo \"code $?\"; read line");
    let dumb = ["sh", "-c", &dumb].map(str::to_owned);
    let screen = TmuxScreen::start(&site.lab, (80, 24), &dumb).unwrap();
    screen
        .wait_for(&["TERM is dumb", "--watch", "code 1"])
        .unwrap();
}

#[test]
fn a_stopped_screen_gives_the_terminal_back_and_continues() {
    let site = Site::new();
    let _guard = site.start("enforce", POLICY);
    let _traffic = Traffic::start(&site);
    let shell = ["bash", "--norc", "--noprofile", "-i"].map(str::to_owned);
    let screen = TmuxScreen::start(&site.lab, (80, 24), &shell).unwrap();
    let type_line = |line: &str| screen.press(&[line, "Enter"]).unwrap();
    let pid = site.lab.folder().join("top.pid");
    let top = command(&site, &["top", "--every", "1"]).join(" ");
    type_line(&format!(
        "bash -c 'echo $$ > {}; exec {top}'",
        pid.display()
    ));
    screen.wait_for(&["closed_port tcp/8000"]).unwrap();
    screen.press(&["C-z"]).unwrap();
    screen.wait_for(&["Stopped"]).unwrap();
    // The shell shows what is typed, and lines end where they began.
    type_line("echo sum $((40 + 2))");
    screen
        .wait_for(&["echo sum $((40 + 2))\nsum 42\n"])
        .unwrap();
    type_line("fg");
    screen
        .wait_for(&["closed_port tcp/8000", "? help"])
        .unwrap();
    // Of a SIGSTOP the program hears nothing before it continues: the shell has set the terminal's mode meanwhile.
    let pid = std::fs::read_to_string(pid).unwrap();
    run(Command::new("kill").args(["-STOP", pid.trim()])).unwrap();
    screen.wait_for(&["Stopped"]).unwrap();
    type_line("fg");
    screen
        .wait_for(&["closed_port tcp/8000", "? help"])
        .unwrap();
    screen.press(&["q"]).unwrap();
    // Keys typed before the shell is back belong to the screen.
    wait_for(Duration::from_secs(10), || {
        let text = screen.text()?;
        anyhow::ensure!(text.trim_end().ends_with('#'), "no prompt:\n{text}");
        Ok(())
    })
    .unwrap();
    type_line("echo sum $((50 + 3))");
    screen
        .wait_for(&["echo sum $((50 + 3))\nsum 53\n"])
        .unwrap();
}

#[test]
fn when_the_agent_goes_the_screen_says_so_and_goes_on_from_the_kernel_until_it_comes_back() {
    let site = Site::new();
    let guard = site.start("enforce", POLICY);
    let _traffic = Traffic::start(&site);
    let command = command(&site, &["top", "--every", "1", "--no-color"]);
    let screen = TmuxScreen::start(&site.lab, (80, 24), &command).unwrap();
    screen.wait_for(&["198.51.100.20 office"]).unwrap();
    let coloured = screen.coloured().unwrap();
    assert!(
        !coloured.contains(RED) && !coloured.contains(GREEN),
        "{coloured:?}"
    );

    guard.kill().unwrap();
    let gone = screen.wait_for(&["AGENT NOT RUNNING: it is dead"]).unwrap();
    // The service names are still shown.
    assert!(gone.contains("198.51.100.20 office"), "{gone}");
    let packets = |text: &str| line(text, "DROPPED  ").to_owned();
    let before = packets(&gone);
    wait_for(Duration::from_secs(10), || {
        let now = packets(&screen.text()?);
        anyhow::ensure!(now != before, "nothing moves: {now}");
        Ok(())
    })
    .unwrap();
    let _guard = Guard::start_again(&site.lab).unwrap();
    wait_for(Duration::from_secs(10), || {
        let text = screen.text()?;
        anyhow::ensure!(!text.contains("AGENT NOT RUNNING"), "{text}");
        Ok(())
    })
    .unwrap();
    screen
        .wait_for(&["198.51.100.20 office", "closed_port"])
        .unwrap();
}

#[test]
fn watched_counters_and_talkers_have_rates_and_one_document_of_json_in_each_line() {
    let site = Site::new();
    let _guard = site.start("enforce", POLICY);
    let _traffic = Traffic::start(&site);
    for name in ["counters", "talkers", "status"] {
        let command = command(&site, &[name, "--watch", "1", "--json"]);
        let mut child = site.lab.host.command(&command[0]);
        let mut child = child
            .args(&command[1..])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let documents = lines
            .take(3)
            .map(|line| serde_json::from_str(&line.unwrap()).unwrap());
        let documents: Vec<Value> = documents.collect();
        // `--watch` ends when its output is closed.
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}");
        let rate = |document: &Value| {
            let row = document.get(0).unwrap_or(document);
            row["packets_per_second"].as_f64()
        };
        assert_eq!(rate(&documents[0]), None, "{name}: {documents:?}");
        assert!(rate(&documents[2]).is_some(), "{name}: {documents:?}");
    }
    let text = site.guard(&["talkers", "--by", "dropped"]);
    assert!(
        line(&text, "office").contains("connection_limit at web"),
        "{text}"
    );
    assert!(
        text.contains("estimated from one packet of sixteen"),
        "{text}"
    );
    let text = site.guard(&["counters"]);
    assert!(
        line(&text, "closed_port").contains("kB") || text.contains(" MB"),
        "{text}"
    );
    assert!(site.guard(&["status"]).contains("dropped"));
}

#[test]
fn without_a_terminal_it_says_what_prints_lines() {
    let site = Site::new();
    let refused = lab::guard::output(&site.lab, &["top"]).unwrap();
    crate::site::fails(&refused, 1, &["not a terminal", "--watch"]);
}
