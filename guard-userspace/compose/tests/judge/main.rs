//! `guard audit compose` reads projects as Compose itself does: the same ports, on the same addresses, and the
//! same refusals where the refusal concerns ports.
//!
//! The judge is Debian's docker-compose, which `cargo xtask setup` unpacks. `SEED=N` generates other projects, and
//! `PROJECTS=N` sets their number.

#[path = "../fixtures/mod.rs"]
mod fixtures;
mod generate;
mod judge;
mod reported;

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use generate::ProjectGenerator;
use judge::{Agreement, ProjectInput, ProjectPorts, ReadResult, compare, of_compose, of_guard};
use reported::{REPORTED, Reported};

fn compose() -> PathBuf {
    lab::compose::program().unwrap_or_else(|error| panic!("{error:#}"))
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no number")),
    )
}

/// More disagreements are not printed.
const MOST_SHOWN: usize = 12;

#[test]
fn generated_projects_publish_what_compose_says() {
    let seed = number("SEED").unwrap_or(1);
    let projects = number("PROJECTS").unwrap_or(1_000);
    println!("SEED={seed} PROJECTS={projects}");
    let compose = compose();
    let next = AtomicU64::new(0);
    let agreements = Mutex::new(Vec::new());
    let disagreements = Mutex::new(Vec::new());
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= projects || disagreements.lock().unwrap().len() >= MOST_SHOWN {
                        return;
                    }
                    let generated = ProjectGenerator::new(seed.wrapping_add(index)).project();
                    let folder = tempfile::tempdir().unwrap();
                    let input = generated.write(folder.path());
                    let theirs = of_compose(&compose, &input);
                    match compare(&theirs, &of_guard(&input)) {
                        Ok(agreement) => agreements.lock().unwrap().push(agreement),
                        Err(problem) => {
                            let seed = seed.wrapping_add(index);
                            let text = generated.describe();
                            let text = format!("SEED={seed} PROJECTS=1: {problem}\n{text}");
                            disagreements.lock().unwrap().push(text);
                        }
                    }
                }
            });
        }
    });
    let disagreements = disagreements.into_inner().unwrap();
    assert!(disagreements.is_empty(), "{}", disagreements.join("\n"));
    let agreements = agreements.into_inner().unwrap();
    let count = |is: &dyn Fn(&Agreement) -> bool| agreements.iter().filter(|one| is(one)).count();
    let refused = count(&|one| *one == Agreement::Refused);
    let not_judged = count(&|one| *one == Agreement::NotJudged);
    let ports: usize = agreements
        .iter()
        .map(|one| match one {
            Agreement::Ports(ports) => *ports,
            Agreement::Refused | Agreement::NotJudged => 0,
        })
        .sum();
    println!("{ports} ports are the same, {refused} projects refused, {not_judged} not judged");
    if projects >= 500 {
        let all = agreements.len();
        assert!(ports > 3 * all, "too few ports: {ports} of {all} projects");
        assert!(
            refused * 20 > all && refused * 2 < all,
            "{refused} of {all} are refused"
        );
        assert!(
            not_judged * 10 < all,
            "{not_judged} of {all} are not judged"
        );
    }
}

/// Fixtures that Compose refuses for another reason than their ports and variables, and words of its error.
const REFUSED_OTHERWISE: [(&str, &str); 17] = [
    ("include-circle", "include cycle"),
    ("include-conflict", "conflicts with imported resource"),
    ("networks.yaml", "undefined network"),
    ("users.yaml", "user must be a string"),
    ("unicode.yaml", "additional properties"),
    ("duplicate-key.yaml", "already defined"),
    ("extends-missing.yaml", "not found"),
    ("extends-no-file.yaml", "no such file"),
    ("indentation.yaml", "yaml"),
    ("list.yaml", "yaml"),
    ("merge-scalar.yaml", "yaml"),
    ("no-services.yaml", "additional properties"),
    ("quote.yaml", "yaml"),
    ("service-text.yaml", "must be a mapping"),
    ("tab.yaml", "yaml"),
    ("unknown-anchor.yaml", "yaml"),
    ("unknown-rule.yaml", "neither an image"),
];

/// Variables that fixtures require: without them Compose refuses the fixture, and guard judges it in part.
const SET: [(&str, &str); 3] = [
    ("UNSET_FOLDER", "/srv"),
    ("UNSET_PORT", "8006"),
    ("UNSET_SOCKET", "/srv/socket"),
];

/// Values of required variables.
const REQUIRED: [(&str, &str); 7] = [
    ("AGENT_TOKEN", "x"),
    ("API_TOKEN", "x"),
    ("DB_PASSWORD", "x"),
    ("JWT_SECRET", "x"),
    ("NEEDED", "127.0.0.1"),
    ("SECRET_KEY", "x"),
    ("UNSET", "1000"),
];

/// Reads a project with Compose, and sets the variables that it requires.
fn with_required(compose: &Path, input: &mut ProjectInput) -> ReadResult {
    loop {
        let result = of_compose(compose, input);
        let ReadResult::Refused(why) = &result else {
            return result;
        };
        let Some((_, required)) = why.split_once("required variable ") else {
            return result;
        };
        let required = required.split(' ').next();
        let mut known = REQUIRED.iter();
        let known = known.find(|(name, _)| Some(*name) == required);
        let (name, value) = known.unwrap_or_else(|| panic!("{why}"));
        let before = input
            .environment
            .insert((*name).to_owned(), (*value).to_owned());
        assert_eq!(before, None, "{why}");
    }
}

#[test]
fn fixtures_publish_what_compose_says() {
    let compose = compose();
    let (mut published, mut refused) = (0, 0);
    let broken = fixtures::corpus().join("broken");
    let all = [fixtures::corpus(), broken];
    for project in all.iter().flat_map(|folder| fixtures::projects(folder)) {
        let name = project.file_name().unwrap().to_string_lossy().into_owned();
        let files = fixtures::files(&project);
        let mut input = ProjectInput {
            folder: files[0].parent().unwrap().to_owned(),
            environment: SET
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            files,
            ..ProjectInput::default()
        };
        let theirs = with_required(&compose, &mut input);
        let mut otherwise = REFUSED_OTHERWISE.iter();
        if let Some((_, words)) = otherwise.find(|(file, _)| *file == name) {
            assert!(
                matches!(&theirs, ReadResult::Refused(why) if why.contains(words)),
                "{name}: {theirs:?}"
            );
            continue;
        }
        match compare(&theirs, &of_guard(&input)) {
            Ok(Agreement::Ports(ports)) => published += ports,
            Ok(Agreement::Refused) => refused += 1,
            other => panic!("{name}: {other:?}"),
        }
    }
    assert!(published > 300 && refused > 5, "{published} {refused}");
}

#[test]
fn what_was_reported_of_others_is_read_right() {
    let compose = compose();
    for Reported { by, files, ports } in &REPORTED {
        let folder = tempfile::tempdir().unwrap();
        let names = (0..files.len()).map(|index| PathBuf::from(format!("{index}.yaml")));
        let input = ProjectInput {
            folder: folder.path().to_owned(),
            files: names.collect(),
            ..ProjectInput::default()
        };
        for (name, text) in input.files.iter().zip(*files) {
            fs::write(folder.path().join(name), text).unwrap();
        }
        for result in [of_compose(&compose, &input), of_guard(&input)] {
            match (&result, ports) {
                (ReadResult::Ports(found), Ok(ports)) => {
                    let ports: ProjectPorts =
                        ports.iter().map(|port| port.parse().unwrap()).collect();
                    assert_eq!(*found, ports, "{by}");
                }
                (ReadResult::Refused(_), Err(())) => {}
                _ => panic!("{by}: {result:?}"),
            }
        }
    }
}
