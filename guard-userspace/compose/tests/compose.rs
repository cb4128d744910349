//! `guard-compose` on compose files as people write them.
//!
//! Each file or folder of `tests/compose` is a project. A comment `#!` at the end of a line lists the findings of that
//! line, and the project has no others: `#! high every-address, low runs-as-root`. Projects in `tests/compose/broken`
//! are refused: `#! error: ` is in the line that the error names, with words of the error.

mod fixtures;

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use fixtures::{corpus, entries, files, projects};
use guard_compose::{
    ComposeError, ComposeReport, ComposeRequest, Edit, Printed, Rule, audit, sarif,
};

fn run(project: &Path) -> Result<ComposeReport, ComposeError> {
    run_files(files(project))
}

fn run_files(files: Vec<PathBuf>) -> Result<ComposeReport, ComposeError> {
    audit(&ComposeRequest {
        files,
        ..ComposeRequest::default()
    })
}

/// The files of the whole folder.
fn sources(project: &Path) -> Vec<PathBuf> {
    match project.is_file() {
        true => vec![project.to_owned()],
        false => {
            let inside = entries(project).into_iter();
            inside
                .flat_map(|path| match path.is_dir() {
                    true => sources(&path),
                    false => vec![path],
                })
                .collect()
        }
    }
}

type ExpectedFindings = Vec<(PathBuf, usize, String)>;

fn comments(project: &Path) -> ExpectedFindings {
    let mut expected = ExpectedFindings::new();
    for path in sources(project) {
        for (index, line) in fs::read_to_string(&path)
            .unwrap_or_default()
            .lines()
            .enumerate()
        {
            if let Some((_, comment)) = line.split_once("#! ") {
                let each = comment.trim().split(", ");
                expected.extend(each.map(|each| (path.clone(), index + 1, each.to_owned())));
            }
        }
    }
    expected.sort();
    expected
}

fn found(findings: &[Printed]) -> ExpectedFindings {
    let findings = findings.iter();
    let mut found: ExpectedFindings = findings
        .map(|finding| {
            let what = format!("{} {}", finding.severity.name(), finding.rule);
            let file = PathBuf::from(&finding.file);
            (file.canonicalize().unwrap(), finding.line, what)
        })
        .collect();
    found.sort();
    found
}

#[test]
fn every_file_has_the_findings_that_its_comments_say_and_no_others() {
    let projects = projects(&corpus());
    assert!(projects.len() >= 30, "{projects:?}");
    for project in projects {
        let report = run(&project).unwrap_or_else(|error| panic!("{error}"));
        let printed = report.printed();
        assert_eq!(found(&printed), comments(&project), "{}", project.display());
    }
}

#[test]
fn a_refusal_names_its_line() {
    let projects = projects(&corpus().join("broken"));
    assert!(projects.len() >= 10, "{projects:?}");
    for project in projects {
        let Err(error) = run(&project) else {
            panic!("{} is taken", project.display());
        };
        let comments = comments(&project);
        let [(file, line, words)] = comments.as_slice() else {
            panic!(
                "{}: a refused project has exactly one `#! error` line",
                project.display()
            );
        };
        let words = words.strip_prefix("error: ").unwrap();
        assert!(error.problem.contains(words), "{error}");
        assert_eq!(
            PathBuf::from(&error.file).canonicalize().unwrap(),
            *file,
            "{error}"
        );
        assert_eq!(error.line, Some(*line), "{error}");
    }
}

/// The number of findings of each rule in each service.
fn counts(report: &ComposeReport) -> BTreeMap<(String, &'static str), usize> {
    let mut counts = BTreeMap::new();
    for finding in &report.findings {
        for service in &finding.services {
            *counts
                .entry((service.clone(), finding.rule.name()))
                .or_default() += 1;
        }
    }
    counts
}

#[test]
fn a_finding_is_gone_once_its_fix_is_made_and_nothing_else_has_come() {
    let mut fixed = 0;
    for project in projects(&corpus()) {
        let report = run(&project).unwrap();
        let before = counts(&report);
        for finding in &report.findings {
            let Some(text) = finding.fixed() else {
                continue;
            };
            fixed += 1;
            let file = finding.fix_path().unwrap();
            let original = fs::read(&file).unwrap();
            let copy = Copy::of(&project);
            copy.write(&file, &text);
            let says = format!("{}: {}\n{text}", file.display(), finding.why);
            let report = run(&copy.project).unwrap_or_else(|error| panic!("{error}: {says}"));
            let after = counts(&report);
            for service in &finding.services {
                let key = (service.clone(), finding.rule.name());
                let left = after.get(&key).copied().unwrap_or_default();
                assert!(left < before[&key], "{service} still has it: {says}");
            }
            for (key, count) in &after {
                assert!(before.get(key) >= Some(count), "{key:?} came: {says}");
            }
            assert_eq!(original, fs::read(&file).unwrap());
        }
    }
    assert!(fixed > 100, "{fixed}");
}

/// Applies an edit to a text by its lines and columns.
fn edited(text: &str, edit: &Edit) -> String {
    let offset = |line: usize, column: usize| {
        let lines = text.split_inclusive('\n');
        let before: usize = lines.clone().take(line - 1).map(str::len).sum();
        let characters = text[before..].chars().take(column - 1);
        before + characters.map(char::len_utf8).sum::<usize>()
    };
    let start = offset(edit.line, edit.column);
    let end = offset(edit.end_line, edit.end_column);
    [&text[..start], &edit.text, &text[end..]].concat()
}

#[test]
fn an_edit_names_its_own_file_and_shows_whole_lines() {
    let mut alone = 0;
    for project in projects(&corpus()) {
        let report = run(&project).unwrap();
        let printed = report.printed();
        let edits = || printed.iter().filter_map(|printed| printed.fix.as_ref());
        for (finding, printed) in report.findings.iter().zip(&printed) {
            let Some(edit) = &printed.fix else {
                continue;
            };
            let text = fs::read_to_string(&edit.file).unwrap();
            let fixed = edited(&text, edit);
            assert_eq!(Some(&fixed), finding.fixed().as_ref(), "{printed:?}");
            let shares = |other: &&Edit| {
                let is_before = other.last_line() < edit.line || edit.last_line() < other.line;
                other.file == edit.file && !is_before
            };
            if edits().filter(shares).count() > 1 {
                continue;
            }
            alone += 1;
            let count = edit.corrected.lines().count();
            let lines = fixed.lines().skip(edit.line - 1).take(count);
            let lines: Vec<&str> = lines.map(str::trim_end).collect();
            let shown: Vec<&str> = edit.corrected.lines().map(str::trim_end).collect();
            assert_eq!(lines, shown, "{printed:?}");
            let changed = text.lines().count() + count - fixed.lines().count();
            assert_eq!(changed, edit.last_line() - edit.line + 1, "{printed:?}");
        }
    }
    assert!(alone > 50, "{alone}");
}

/// A project in a folder of its own.
struct Copy {
    _folder: tempfile::TempDir,
    project: PathBuf,
    original: PathBuf,
}

impl Copy {
    fn of(project: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join(project.file_name().unwrap());
        for path in sources(project) {
            let target = copy.join(path.strip_prefix(project).unwrap());
            let target = if project.is_file() {
                copy.clone()
            } else {
                target
            };
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(&path, target).unwrap();
        }
        Self {
            _folder: folder,
            project: copy,
            original: project.to_owned(),
        }
    }

    fn write(&self, file: &Path, text: &str) {
        let inside = file.strip_prefix(&self.original).unwrap();
        let target = match inside.as_os_str().is_empty() {
            true => self.project.clone(),
            false => self.project.join(inside),
        };
        fs::write(target, text).unwrap();
    }
}

/// Calls `spoil` with the first file of each project.
fn spoilt(mut spoil: impl FnMut(&Path, &File, &[u8])) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("compose.yaml");
    for project in projects(&corpus()) {
        let bytes = fs::read(files(&project).remove(0)).unwrap();
        fs::write(&path, &bytes).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        spoil(&path, &file, &bytes);
    }
}

#[test]
fn a_file_cut_anywhere_gives_findings_or_an_error() {
    spoilt(|path, file, bytes| {
        for end in (0..bytes.len()).rev() {
            file.set_len(end as u64).unwrap();
            whole_or_refused(path, bytes);
        }
    });
}

#[test]
fn a_file_with_a_byte_changed_gives_findings_or_an_error() {
    const CHANGES: &[u8] = b"\0\t\n\r \"#$%&'*,-:?@[]`{|}\xff";
    let mut random = fastrand::Rng::with_seed(1);
    spoilt(|path, file, bytes| {
        for index in (0..bytes.len()).step_by(3) {
            let offset = index as u64;
            let byte = CHANGES[random.usize(..CHANGES.len())];
            file.write_all_at(&[byte], offset).unwrap();
            whole_or_refused(path, bytes);
            file.write_all_at(&bytes[index..=index], offset).unwrap();
        }
    });
}

/// The findings or the error name only lines that exist. A change adds at most one line.
fn whole_or_refused(file: &Path, original: &[u8]) {
    let lines = original.iter().filter(|byte| **byte == b'\n').count() + 2;
    match run(file) {
        Ok(report) => {
            for finding in report.printed() {
                assert!((1..=lines).contains(&finding.line), "{finding:?}");
            }
        }
        Err(error) => {
            assert!(!error.problem.is_empty());
            assert!(
                error.line.is_none_or(|line| (1..=lines).contains(&line)),
                "{error}"
            );
        }
    }
}

/// Changes lines as people and their tools do.
fn mutated(random: &mut fastrand::Rng, text: &str, other: &str) -> String {
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    let words: Vec<&str> = text.split(' ').chain(other.split(' ')).collect();
    let others: Vec<&str> = other.split_inclusive('\n').collect();
    for _ in 0..random.usize(1..4) {
        let Some(line) = random.choice(&lines).cloned() else {
            break;
        };
        let index = lines.iter().position(|other| *other == line).unwrap();
        let word = random.choice(&words).unwrap();
        match random.u8(..12) {
            0 => {
                lines.remove(index);
            }
            1 => lines.insert(index, line),
            2 => lines[index] = format!("  {line}"),
            3 => lines[index] = line.strip_prefix("  ").unwrap_or(&line).to_owned(),
            4 => lines[index] = line.trim_end().to_owned(),
            5 => lines.insert(index, format!("    # {}\n", word.trim())),
            6 => lines[index] = line.replacen(": ", ": &anchor ", 1),
            7 => lines[index] = line.replacen("- ", "- !!str ", 1),
            8 => {
                let at = random.usize(..lines.len());
                lines.swap(index, at);
            }
            9 => {
                let own = random.choice(line.split(' ').collect::<Vec<_>>()).unwrap();
                lines[index] = line.replacen(own, word, 1);
            }
            10 => lines.insert(index, random.choice(&others).unwrap().to_string()),
            _ => lines[index] = line.replacen(['"', ':', '-', '[', '{', ','], word, 1),
        }
    }
    lines.concat()
}

#[test]
fn lines_of_a_spoilt_file_are_where_the_findings_say_and_fixes_still_mend_them() {
    let rounds = std::env::var("ROUNDS").map_or(10, |rounds| rounds.parse().unwrap());
    let seed = std::env::var("SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut random = fastrand::Rng::with_seed(seed);
    let texts: Vec<String> = projects(&corpus())
        .iter()
        .map(|project| fs::read_to_string(files(project).remove(0)).unwrap())
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let paths = ["compose.yaml", "compose.override.yaml"].map(|name| folder.path().join(name));
    let mut judged = 0;
    for text in texts.iter().cycle().take(texts.len() * rounds) {
        let other = random.choice(&texts).unwrap();
        // The upper file is another project's, or this one's own, which sets every value once more.
        let above = random.choice([other, text]).unwrap();
        let files = paths[..random.usize(1..=2)].to_vec();
        let texts = [text, above].map(|text| mutated(&mut random, text, other));
        let texts: HashMap<&PathBuf, &String> = files.iter().zip(&texts).collect();
        texts
            .iter()
            .for_each(|(path, text)| fs::write(path, text).unwrap());
        let Ok(report) = run_files(files.clone()) else {
            continue;
        };
        let before = counts(&report);
        for (finding, printed) in report.findings.iter().zip(report.printed()) {
            judged += 1;
            let text = texts[&PathBuf::from(&printed.file)];
            let line = text.lines().nth(printed.line - 1).unwrap_or_default();
            let named = line.chars().nth(printed.column - 1);
            assert!(
                named.is_some_and(|c| !c.is_whitespace() && c != '#'),
                "{printed:?}\n{texts:?}"
            );
            // If two lines set the same value, a change of one may have no effect.
            let is_twice = texts.len() > 1 || text.matches(line.trim()).count() > 1;
            let (Some(fixed), Some(path)) = (finding.fixed(), finding.fix_path()) else {
                continue;
            };
            fs::write(&path, &fixed).unwrap();
            let says = || format!("{printed:?}\n{texts:?}\n=====\n{fixed}");
            let after =
                run_files(files.clone()).unwrap_or_else(|error| panic!("{error}: {}", says()));
            fs::write(&path, texts[&path]).unwrap();
            let place = |printed: &Printed| (printed.line, printed.column, printed.why.clone());
            let is_elsewhere = !after
                .printed()
                .iter()
                .any(|other| place(other) == place(&printed));
            let after = counts(&after);
            for service in &finding.services {
                let key = (service.clone(), finding.rule.name());
                let is_fewer = after.get(&key) < before.get(&key);
                assert!(is_twice || is_elsewhere || is_fewer, "{}", says());
            }
        }
    }
    assert!(judged > 50 * rounds, "{judged}");
}

fn refused(text: &str) -> ComposeError {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("compose.yaml");
    fs::write(&file, text).unwrap();
    let Err(error) = run(&file) else {
        panic!("taken: {}", &text[..text.len().min(200)]);
    };
    error
}

#[test]
fn malicious_files_are_refused() {
    let mut laughs = String::from("x0: &x0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
    for level in 1..12 {
        let aliases = vec![format!("*x{}", level - 1); 10].join(", ");
        laughs.push_str(&format!("x{level}: &x{level} [{aliases}]\n"));
    }
    assert!(refused(&laughs).problem.contains("too large"));
    let mut merges = String::from("x0: &x0 {a: b}\n");
    for level in 1..200 {
        merges.push_str(&format!(
            "x{level}: &x{level} {{k{level}: *x{}}}\n",
            level - 1
        ));
    }
    assert!(refused(&merges).problem.contains("too deep"));
    assert!(
        refused("services: &a\n  web: *a\n")
            .problem
            .contains("part of")
    );
    assert!(refused("x: &a [*a]\n").problem.contains("part of"));
    refused(&"[".repeat(100_000));
    refused(&"{a: ".repeat(100_000));
    refused(&"- ".repeat(100_000));
    refused(&"a:\n ".repeat(1000));
    refused(&"? ".repeat(100_000));
    refused(&format!(
        "services: {{a: {{image: \"{}\"}}}}",
        "${A:-".repeat(50_000)
    ));
    refused("services:\r  web: {}\r");
    refused(&" ".repeat(5 << 20));
    refused(&format!("x: [{}]", "a, ".repeat(600_000)));
    let many = format!("services: {{a: {{ports: [{}]}}}}", "80, ".repeat(90_000));
    assert!(refused(&many).problem.contains("findings"));
    let mut chain = String::from("services:\n  s0: {image: a}\n");
    for level in 1..1000 {
        chain.push_str(&format!("  s{level}: {{extends: s{}}}\n", level - 1));
    }
    assert!(refused(&chain).problem.contains("extends more than"));
    assert!(
        refused("services:\n  a: {extends: b}\n  b: {extends: a}\n")
            .problem
            .contains("circle")
    );
}

#[test]
fn a_path_that_is_not_a_file_is_refused() {
    for (path, words) in [
        ("/dev/zero", "not a file"),
        ("/", "folder"),
        ("/nonexistent/compose.yaml", "cannot be read"),
    ] {
        let Err(error) = run_files(vec![path.into()]) else {
            panic!("{path} is taken");
        };
        assert!(error.problem.contains(words), "{error}");
    }
}

#[test]
fn profiles_are_selected_and_the_process_comes_before_the_files() {
    let services = |profiles: &[&str]| {
        let report = audit(&ComposeRequest {
            files: vec![corpus().join("profiles.yaml")],
            profiles: profiles.iter().map(ToString::to_string).collect(),
            ..ComposeRequest::default()
        });
        let findings = report.unwrap().printed().into_iter();
        let mut names: Vec<String> = findings.flat_map(|finding| finding.services).collect();
        names.dedup();
        names
    };
    assert_eq!(services(&["dev"]), ["mailpit", "phpmyadmin"]);
    assert_eq!(services(&["debug"]), ["phpmyadmin"]);
    assert_eq!(services(&["other"]), [""; 0]);
    assert_eq!(services(&["*"]), services(&[]));

    let lines = |environment: &[(&str, &str)]| {
        let pairs = environment.iter();
        let environment: HashMap<String, String> = pairs
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let report = audit(&ComposeRequest {
            files: vec![corpus().join("env/compose.yaml")],
            environment,
            ..ComposeRequest::default()
        })
        .unwrap();
        let ports = report.printed().into_iter();
        let ports = ports.filter(|finding| finding.rule == "every-address");
        ports.map(|finding| finding.line).collect::<Vec<_>>()
    };
    assert_eq!(lines(&[]), [6, 8, 10, 12]);
    let bound = [
        ("BIND", "127.0.0.1"),
        ("LOCAL", "0.0.0.0"),
        ("NEEDED", "0.0.0.0"),
    ];
    assert_eq!(lines(&bound), [7, 8, 10, 11, 12]);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (weak, strong) = (
        file("weak", "BIND=0.0.0.0\n"),
        file("strong", "BIND=[::1]\n"),
    );
    let named = [("COMPOSE_ENV_FILES", format!("{weak},{strong}"))];
    let named = named
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    assert_eq!(lines(&named), [7, 8, 10]);
}

/// The exit code, standard output and standard error.
fn guard(arguments: &[&str]) -> (Option<i32>, String, String) {
    guard_reading(Path::new("/dev/null"), arguments)
}

fn guard_reading(input: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_guard-compose"))
        .args(arguments)
        .current_dir(corpus())
        .env_clear()
        .stdin(File::open(input).unwrap())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn the_exit_code_follows_the_level_and_errors_are_one_line() {
    for (arguments, code, error) in [
        (&["clean.yaml"] as &[&str], 0, ""),
        (
            &["invoice.yaml"],
            1,
            "guard-compose: 3 findings have the severity medium or higher",
        ),
        (&["invoice.yaml", "--level", "critical"], 0, ""),
        (
            &["windows.yaml", "--level", "critical"],
            1,
            "guard-compose: 2 findings have the severity critical or higher",
        ),
        (&["nextcloud.yaml"], 0, ""),
        (
            &["nextcloud.yaml", "--level", "low"],
            1,
            "guard-compose: 3 findings have the severity low or higher",
        ),
        (
            &["broken/quote.yaml"],
            2,
            "guard-compose: broken/quote.yaml:5: is no YAML",
        ),
        (
            &["nowhere.yaml"],
            2,
            "guard-compose: nowhere.yaml: cannot be read",
        ),
        (
            &["clean.yaml", "--env-file", "nowhere"],
            2,
            "guard-compose: nowhere: cannot be read",
        ),
        (
            &["clean.yaml", "--level", "dreadful"],
            2,
            "guard-compose: \"dreadful\" is no value of --level: write low, medium, high or critical",
        ),
        (
            &["clean.yaml", "--json", "--sarif"],
            2,
            "guard-compose: --json and --sarif exclude each other",
        ),
        (&[], 2, "guard-compose: the command needs <FILE>..."),
    ] {
        let (found, _, errors) = guard(arguments);
        assert_eq!(found, Some(code), "{arguments:?}: {errors}");
        assert!(errors.starts_with(error), "{arguments:?}: {errors}");
        assert!(errors.lines().count() <= 1, "{arguments:?}: {errors}");
    }
}

#[test]
fn only_edits_that_leave_the_service_running_are_ready_made() {
    const EDITED: [Rule; 6] = [
        Rule::DangerousPort,
        Rule::PublishedBesideProxy,
        Rule::EveryAddress,
        Rule::PublicAddress,
        Rule::Base60Port,
        Rule::SecretInEnvironment,
    ];
    for project in projects(&corpus()) {
        for finding in run(&project).unwrap().findings {
            let is_edited = finding.fix.is_some();
            assert!(
                !is_edited || EDITED.contains(&finding.rule),
                "{}",
                finding.why
            );
            // What has no edit says what to do instead.
            let says = finding.advice.is_some() || is_edited || EDITED.contains(&finding.rule);
            assert!(says, "{}", finding.why);
        }
    }
}

#[test]
fn the_gravest_come_first_and_low_ones_are_counted() {
    let severities = |arguments: &[&str]| {
        let (_, text, _) = guard(arguments);
        let heads = text
            .lines()
            .filter(|line| line.starts_with("grafana-stack.yaml:"));
        let severity = |line: &str| line.split(": ").nth(1).unwrap().to_owned();
        (heads.map(severity).collect::<Vec<_>>(), text)
    };
    let (shown, text) = severities(&["grafana-stack.yaml"]);
    let rank = |name: &String| {
        ["critical", "high", "medium", "low"]
            .iter()
            .position(|n| n == name)
    };
    assert!(shown.is_sorted_by_key(rank), "{shown:?}");
    assert!(!shown.contains(&"low".to_owned()), "{shown:?}");
    let first = text.lines().next().unwrap();
    assert_eq!(first, "found: 2 critical, 4 high, 4 medium, 4 low");
    let last = text.lines().last().unwrap();
    assert_eq!(last, "4 low findings are not shown: `--all` lists them");
    // A low finding that decides the exit status is listed.
    for arguments in [
        &["grafana-stack.yaml", "--all"] as &[&str],
        &["grafana-stack.yaml", "--level", "low"],
    ] {
        let (shown, text) = severities(arguments);
        assert_eq!(shown.iter().filter(|name| *name == "low").count(), 4);
        assert!(!text.contains("not shown"), "{text}");
    }
    // Programs get all of them, in the order of the file.
    let (_, json, _) = guard(&["grafana-stack.yaml", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let findings = json["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 14);
    let line = |finding: &serde_json::Value| finding["line"].as_u64();
    assert!(findings.is_sorted_by_key(line));
    let (_, sarif, _) = guard(&["grafana-stack.yaml", "--sarif"]);
    let sarif: serde_json::Value = serde_json::from_str(&sarif).unwrap();
    assert_eq!(sarif["runs"][0]["results"].as_array().unwrap().len(), 14);
}

#[test]
fn a_port_that_may_be_for_everybody_names_the_line_that_accepts_it() {
    let (_, json, _) = guard(&["everybody.yaml", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let accepts = json["findings"].as_array().unwrap().iter().map(|finding| {
        let service = finding["services"][0].as_str().unwrap();
        let accept = finding["accept"].as_str().unwrap_or("-");
        format!("{service} {} {accept}", finding["line"])
    });
    insta::assert_snapshot!(accepts.collect::<Vec<_>>().join("\n"), @r#"
mc 7 x-guard-accept: [every-address]
mc 8 -
mc 9 x-guard-accept: [every-address]
valheim 13 x-guard-accept: [every-address]
mail 18 x-guard-accept: [every-address]
mail 19 x-guard-accept: [every-address]
names 24 x-guard-accept: [every-address]
names 25 x-guard-accept: [every-address]
names 26 -
vpn 31 x-guard-accept: [every-address]
vpn 32 -
things 37 x-guard-accept: [runs-as-root, dangerous-port]
quic 41 -
"#);
}

#[test]
fn a_small_project_reads_like_this() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write(
        "compose.yaml",
        "\
services:
  proxy:
    image: traefik:v3
    command: [--api.insecure=true, --providers.docker]
    ports: ['80:80', '443:443', '8080:8080']
    volumes: ['/var/run/docker.sock:/var/run/docker.sock:ro']
  chat:
    image: ghcr.io/open-webui/open-webui:main
    environment:
      WEBUI_AUTH: 'False'
      WEBUI_SECRET_KEY: ${WEBUI_SECRET_KEY}
    ports: ['3000:8080']
  db:
    image: postgres:16
    user: postgres
    environment: [POSTGRES_PASSWORD=changeme, BACKUP_PASSWORD=hj3kq9sV]
  panel:
    image: portainer/portainer-ce
    privileged: true
    network_mode: bridge
    ports: ['9443:9443']
  game:
    image: itzg/minecraft-server
    user: '1000'
    ports: ['25565:25565']
",
    );
    write(".env", "WEBUI_SECRET_KEY=your-secret-key\n");
    let output = Command::new(env!("CARGO_BIN_EXE_guard-compose"))
        .arg("compose.yaml")
        .current_dir(&folder)
        .env_clear()
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    insta::assert_snapshot!(text, @r#"
found: 5 critical, 4 high, 2 medium, 3 low

compose.yaml:4:15: critical: login-off: proxy
    --api.insecure=true turns the login of Traefik's dashboard off, and 8080/tcp is published on every address. An intruder gets every route with its middlewares, and the addresses of the services behind
    remove it, and route api@internal with a basicauth middleware if you need the dashboard (https://doc.traefik.io/traefik/operations/api/)

compose.yaml:10:7: critical: login-off: chat
    WEBUI_AUTH=False turns the login of Open WebUI off, and 3000/tcp, which is 8080/tcp of the container, is published on every address. An intruder gets every chat, the models, and code that its tools run
    remove the line: the first account that signs up is the administrator. Users need accounts from then on (https://docs.openwebui.com/getting-started/advanced-topics/env-configuration)

compose.yaml:11:7: critical: secret-in-environment: chat
    WEBUI_SECRET_KEY gets a value that everybody knows, from examples and lists of passwords: the environment or .env sets it
    set it there to what `openssl rand -hex 32` prints

compose.yaml:16:19: critical: secret-in-environment: db
    POSTGRES_PASSWORD holds a value that everybody knows, from examples and lists of passwords
    in .env, set POSTGRES_PASSWORD to what `openssl rand -hex 32` prints. An account or database that exists keeps the old one until you change it there
    write in line 16:
            environment: ["POSTGRES_PASSWORD=${POSTGRES_PASSWORD:?}", "BACKUP_PASSWORD=${BACKUP_PASSWORD:?}"]

compose.yaml:19:5: critical: privileged: panel
    the container has every capability and every device of the host: root in it is root on the host
    remove the line, start it, and give it what its log then misses, with cap_add or devices

compose.yaml:6:15: high: docker-socket: proxy
    the container can use the API behind /run/docker.sock, which on most hosts gives root, even with `ro`
    put a proxy between that passes only the needed requests, such as tecnativa/docker-socket-proxy, and give the container DOCKER_HOST=tcp://NAME:2375

compose.yaml:12:13: high: published-beside-proxy: chat
    3000/tcp, which is 8080/tcp of the container, is published on every address beside the proxy "proxy": clients of this port bypass the proxy, with its TLS, logins and limits
    write in line 12:
            ports: ['127.0.0.1:3000:8080']

compose.yaml:16:47: high: secret-in-environment: db
    BACKUP_PASSWORD holds a secret, judging by its name: every user who reads this file or inspects the container sees it
    move it to .env or to a file under secrets:
    write in line 16:
            environment: ["POSTGRES_PASSWORD=${POSTGRES_PASSWORD:?}", "BACKUP_PASSWORD=${BACKUP_PASSWORD:?}"]

compose.yaml:21:13: high: dangerous-port: panel
    9443/tcp is published on every address: 9443 is the port of Portainer, which only its own login protects. An intruder gets every container of this host, and with a new one root on it
    write in line 21:
            ports: ['127.0.0.1:9443:9443']

compose.yaml:5:33: medium: dangerous-port: proxy
    8080/tcp is published on every address: 8080 is the port of Traefik's dashboard, which asks for no login in some versions and configurations. An intruder gets every route with its middlewares, and the addresses of the services behind
    write in line 5:
            ports: ['80:80', '443:443', '127.0.0.1:8080:8080']

compose.yaml:25:13: medium: every-address: game
    25565/tcp is published on every address: it bypasses the INPUT rules of ufw and firewalld, as Docker forwards it
    write in line 25:
            ports: ['127.0.0.1:25565:25565']
    meant for everybody? x-guard-accept: [every-address]

3 low findings are not shown: `--all` lists them
"#);
}

#[test]
fn findings_are_printed_for_people_and_for_programs() {
    let (_, text, _) = guard(&["invoice.yaml"]);
    assert!(
        text.contains("invoice.yaml:12:9: high: published-beside-proxy: invoices"),
        "{text}"
    );
    assert!(
        text.contains("        \x20     - \"127.0.0.1:8000:8000\""),
        "{text}"
    );
    let (_, json, _) = guard(&["env/compose.yaml", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["warnings"][0]["line"], 11);
    assert_eq!(json["findings"][0]["services"][0], "web");
    let (_, json, _) = guard(&["clean.yaml", "--sarif"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["runs"][0]["results"], serde_json::json!([]));
}

#[test]
fn standard_input_is_a_file_and_a_pipe_is_none() {
    let (code, text, _) = guard_reading(&corpus().join("invoice.yaml"), &["-"]);
    assert!(
        text.contains("-:12:9: high: published-beside-proxy"),
        "{text}"
    );
    assert_eq!(code, Some(1));
    let below = corpus().join("overrides/compose.yaml");
    let (_, text, _) = guard_reading(&below, &["-", "overrides/compose.prod.yaml"]);
    assert!(text.contains("overrides/compose.prod.yaml:4:5: "), "{text}");
    let (code, _, error) = guard(&["-"]);
    assert_eq!(
        (code, error.as_str()),
        (Some(2), "guard-compose: -: is empty: it has no services\n")
    );
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (code, _, error) = guard(&[&pipe.display().to_string()]);
    assert_eq!(code, Some(2));
    assert!(
        error.contains("is a pipe or a device, not a file"),
        "{error}"
    );
}

#[test]
fn a_file_that_compose_would_put_on_top_is_named_if_it_was_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let warnings = |files: &[&PathBuf]| {
        let report = run_files(files.iter().map(|file| (*file).clone()).collect()).unwrap();
        let problems = report.warnings.into_iter();
        problems.map(|warning| warning.problem).collect::<Vec<_>>()
    };
    let base = "services: {web: {image: a}}";
    let over = "services: {web: {ports: ['8000:8000']}}";
    let compose = write("compose.yaml", base);
    let other = write("prod.yaml", base);
    assert_eq!(warnings(&[&compose]), [""; 0]);
    for name in [
        "docker-compose.override.yaml",
        "docker-compose.override.yml",
        "compose.override.yaml",
        "compose.override.yml",
    ] {
        // Of several files, Compose reads the first of its own list.
        let beside = write(name, over);
        let found = warnings(&[&compose]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(name), "{found:?}");
        assert_eq!(warnings(&[&compose, &beside]), [""; 0]);
        // If another file is named, Compose reads only that file.
        assert_eq!(warnings(&[&other]), [""; 0]);
    }
}

#[test]
fn the_ports_of_a_project_are_listed_as_compose_reads_them() {
    let (_, json, _) = guard(&["networks.yaml", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let ports = json["ports"].as_array().unwrap();
    let of = |service: &str| {
        ports
            .iter()
            .find(|port| port["service"] == service)
            .unwrap()
    };
    let port = |line: usize, address: Option<&str>, number: Option<u16>, target: u16| {
        serde_json::json!({
            "service": "bound",
            "file": "networks.yaml",
            "line": line,
            "host_ip": address,
            "published": number.map(|number| [number, number]),
            "target": [target, target],
            "protocol": "tcp",
        })
    };
    assert_eq!(*of("bound"), port(27, None, Some(8000), 8000));
    assert_eq!(of("public-alone")["published"], serde_json::Value::Null);
    let (_, json, _) = guard(&["profiles.yaml", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let ports = json["ports"].as_array().unwrap();
    assert!(
        ports.iter().any(|port| port["profiles"][0] == "dev"),
        "{json}"
    );
}

#[test]
fn secrets_are_never_printed() {
    let project = corpus().join("tokens.yaml");
    let report = run(&project).unwrap();
    let printed = report.printed();
    let text =
        serde_json::to_string(&printed).unwrap() + &sarif(&printed, &report.warnings).to_string();
    for secret in ["ghp_", "xoxb-", "guest:guest", "not-yet"] {
        assert!(!text.contains(secret), "{secret}");
    }
}

#[test]
fn the_documentation_has_every_rule() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/audit.md");
    let page = fs::read_to_string(page).unwrap();
    for rule in Rule::ALL {
        assert!(
            page.contains(&format!("| `{}` |", rule.name())),
            "{}",
            rule.name()
        );
    }
}

#[test]
fn sarif_has_what_the_standard_asks_for() {
    for project in projects(&corpus()) {
        let report = run(&project).unwrap();
        let findings = report.printed();
        let log = sarif(&findings, &report.warnings);
        assert_eq!(log["version"], "2.1.0");
        let run = &log["runs"][0];
        let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
        assert_eq!(run["results"].as_array().unwrap().len(), findings.len());
        for result in run["results"].as_array().unwrap() {
            let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
            assert_eq!(rules[index]["id"], result["ruleId"]);
            assert!(["note", "warning", "error"].contains(&result["level"].as_str().unwrap()));
            assert!(!result["message"]["text"].as_str().unwrap().is_empty());
            let location = &result["locations"][0]["physicalLocation"];
            assert!(location["artifactLocation"]["uri"].is_string());
            assert!(location["region"]["startLine"].as_u64().unwrap() > 0);
            assert!(location["region"]["startColumn"].as_u64().unwrap() > 0);
        }
    }
}
