//! `cargo xtask build`, and running Cargo with readable output.

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail};

use crate::setup::{self, Toolchain};

pub fn run(release: bool) -> Result<()> {
    let binary = guard(&setup::toolchain()?, release)?;
    println!("{}", binary.display());
    Ok(())
}

/// Builds the binary and returns its path. `guard-compose` is beside it.
pub fn guard(toolchain: &Toolchain, release: bool) -> Result<PathBuf> {
    let profile = if release { "release" } else { "debug" };
    let mut command = toolchain.cargo();
    command
        .args(["build", "--locked", "--package", "guard-userspace"])
        .args(["--package", "guard-compose"]);
    if release {
        command.arg("--release");
    }
    cargo(&mut command)?;
    Ok(target_folder().join(profile).join("guard"))
}

/// Runs Cargo, and passes on its standard output.
pub fn cargo(command: &mut Command) -> Result<()> {
    let child = spawn(command)?;
    finish(child)
}

/// Runs Cargo, and calls `on_line` with each line of its standard output.
pub fn cargo_lines(command: &mut Command, mut on_line: impl FnMut(&str)) -> Result<()> {
    let mut child = spawn(command.stdout(Stdio::piped()))?;
    let stdout = child.stdout.take();
    thread::scope(|scope| {
        let finished = scope.spawn(|| finish(child));
        for line in stdout
            .into_iter()
            .flat_map(|stdout| BufReader::new(stdout).lines())
        {
            on_line(&line?);
        }
        match finished.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn spawn(command: &mut Command) -> Result<Child> {
    command
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{command:?} cannot be started"))
}

/// Passes on standard error until Cargo ends. The inner Cargo, which builds the kernel program, reports its progress as
/// warnings of the build script: those lines are left out.
fn finish(mut child: Child) -> Result<()> {
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).lines() {
            let line = line?;
            if !is_progress(&line) {
                eprintln!("{line}");
            }
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("cargo failed ({status})");
    }
    Ok(())
}

fn is_progress(line: &str) -> bool {
    const PROGRESS: [&str; 9] = [
        "Adding",
        "Blocking",
        "Compiling",
        "Downloaded",
        "Downloading",
        "Finished",
        "Fresh",
        "Locking",
        "Updating",
    ];
    let of = |package: &str| line.strip_prefix(&format!("warning: {package}@"));
    let Some(said) = of("guard-dataplane").or_else(|| of("guard-bench")) else {
        return false;
    };
    let said = said.split_once(": ").map_or(said, |(_version, said)| said);
    PROGRESS
        .iter()
        .any(|word| said.trim_start().starts_with(word))
}

pub fn target_folder() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

pub fn workspace() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().map_or(own.clone(), PathBuf::from)
}
