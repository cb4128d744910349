//! Clippy, and beside its warnings each public item without documentation.

use std::{
    collections::BTreeSet,
    io::BufReader,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use cargo_metadata::{Message, diagnostic::Diagnostic};

/// The lint of rustc that finds items without documentation.
const LINT: &str = "missing_docs";

/// Fields and variants may stay without: a name such as `packets: u64` often says all there is, and a comment that
/// repeats it would be noise.
const MAY_STAY: [&str; 2] = ["a struct field", "a variant"];

/// Runs clippy over these packages (none: the default ones), prints what it finds, and fails on any finding.
pub fn clippy(mut cargo: Command, packages: &[&str]) -> Result<()> {
    let mut child = cargo
        .args(["clippy", "--quiet", "--locked", "--all-targets"])
        .arg("--message-format=json-diagnostic-rendered-ansi")
        .args(packages)
        // Not denied with the rest: fields and variants are findings of the same lint.
        .args(["--", "--deny", "warnings", "--force-warn", LINT])
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo cannot be run")?;
    let output = child.stdout.take().context("cargo has no output")?;
    // A library is compiled for its tests as well.
    let mut printed = BTreeSet::new();
    let mut undocumented = 0;
    for message in Message::parse_stream(BufReader::new(output)) {
        let Message::CompilerMessage(message) = message? else {
            continue;
        };
        let Diagnostic {
            message,
            code,
            rendered,
            ..
        } = message.message;
        let is_of_docs = code.is_some_and(|code| code.code == LINT);
        if is_of_docs && MAY_STAY.iter().any(|kind| message.ends_with(kind)) {
            continue;
        }
        let rendered = rendered.unwrap_or(message);
        if printed.insert(rendered.clone()) {
            eprint!("{rendered}");
            undocumented += usize::from(is_of_docs);
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "clippy failed ({status})");
    ensure!(
        undocumented == 0,
        "{undocumented} public items have no documentation: say what each is, returns and fails with"
    );
    Ok(())
}
