//! `guard-compose` is `guard audit compose`, and builds where the kernel program cannot be built.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

const GUARD: &str = env!("CARGO_BIN_EXE_guard");

/// Builds the command as a machine does that has no toolchain for the kernel program.
fn guard_compose() -> PathBuf {
    let folder = Path::new(GUARD).ancestors().nth(2).unwrap();
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--package", "guard-compose"])
        .args(["--target-dir".as_ref(), folder.as_os_str()])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("GUARD_EBPF_TOOLCHAIN", "there-is-none")
        // Set for the test harness; build scripts that read it would be compiled again.
        .env_remove("RUSTC_BOOTSTRAP")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{said}");
    folder.join("debug/guard-compose")
}

fn run(program: &Path, first: &[&str], arguments: &[&str]) -> Output {
    Command::new(program)
        .args(first)
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("compose/tests/compose"))
        .env_clear()
        .output()
        .unwrap()
}

/// Standard error without the names of the program and of its command.
fn said(output: &Output, name: &str) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let text = text.replace(&format!("{name}: "), "");
    let text = text.replace("`audit compose`", "the command");
    let help = [" audit compose", ""].map(|command| format!("`{name}{command} --help`"));
    help.iter()
        .fold(text, |text, help| text.replace(help, "`--help`"))
}

#[test]
fn it_prints_and_ends_as_guard_audit_compose_does() {
    let alone = guard_compose();
    for (arguments, code) in [
        (&["clean.yaml"] as &[&str], 0),
        (&["invoice.yaml"], 1),
        (&["invoice.yaml", "--json"], 1),
        (&["invoice.yaml", "--sarif"], 1),
        (&["invoice.yaml", "--level", "critical"], 0),
        (&["windows.yaml", "--level", "critical"], 1),
        (&["broken/quote.yaml"], 2),
        (&["nowhere.yaml"], 2),
        (&["invoice.yaml", "--level", "dreadful"], 2),
        (&["invoice.yaml", "--json", "--sarif"], 2),
        (&[], 2),
    ] {
        let within = run(Path::new(GUARD), &["audit", "compose"], arguments);
        let own = run(&alone, &[], arguments);
        assert_eq!(own.status.code(), Some(code), "{arguments:?}");
        assert_eq!(within.status.code(), Some(code), "{arguments:?}");
        assert_eq!(own.stdout, within.stdout, "{arguments:?}");
        let (own, within) = (said(&own, "guard-compose"), said(&within, "guard"));
        assert_eq!(own, within, "{arguments:?}");
    }
}
