//! The guard at work on the lab's host: the real binary, as its user would run it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    process::{Daemon, run, wait_for},
    topology::Lab,
};

/// Where the binary is, if not beside the program that asks.
const BINARY: &str = "GUARD_BINARY";

/// The `guard` binary of this build.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os(BINARY) {
        return Ok(path.into());
    }
    let own = env::current_exe()?;
    let folders = own.ancestors().skip(1).take(2);
    folders
        .map(|folder| folder.join("guard"))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "the guard binary is not beside {}: build it, or name it in {BINARY}",
                own.display()
            )
        })
}

pub struct Guard {
    daemon: Daemon,
    binary: PathBuf,
    socket: PathBuf,
}

impl Guard {
    /// Starts `guard run` in the host and waits until it answers.
    pub fn start(lab: &Lab, policy: &str) -> Result<Self> {
        let binary = binary()?;
        let socket = lab.folder().join("guard.sock");
        let path = write_policy(lab, policy)?;
        let mut daemon = Daemon::start(
            lab.host
                .command(path_str(&binary)?)
                .arg("--socket")
                .arg(&socket)
                .args(["run", "--policy"])
                .arg(path),
            &lab.folder().join("guard.log"),
        )?;
        wait_for(Duration::from_secs(20), || {
            daemon.check_alive()?;
            run(Command::new(&binary)
                .arg("--socket")
                .arg(&socket)
                .arg("status"))
        })?;
        Ok(Self {
            daemon,
            binary,
            socket,
        })
    }

    /// Runs a command against this guard and returns what it prints.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        run(Command::new(&self.binary)
            .arg("--socket")
            .arg(&self.socket)
            .args(arguments))
    }

    /// The same with `--json`, parsed.
    pub fn json(&self, command: &str) -> Result<Value> {
        let text = self.run(&[command, "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("guard {command} --json: {text}"))
    }

    /// How many packets were counted with these facts, over all rows that have them. A fact that is
    /// `Value::Null` asks for its absence.
    pub fn packets(&self, facts: &[(&str, Value)]) -> Result<u64> {
        let counters = self.json("counters")?;
        let rows = counters.as_array().context("counters are no list")?;
        let matching = rows
            .iter()
            .filter(|row| facts.iter().all(|(key, value)| &row[*key] == value));
        Ok(matching.filter_map(|row| row["packets"].as_u64()).sum())
    }

    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// Stops the agent where it is; its program stays attached.
    pub fn pause(&self) -> Result<()> {
        self.daemon.signal(Signal::SIGSTOP)
    }

    pub fn resume(&self) -> Result<()> {
        self.daemon.signal(Signal::SIGCONT)
    }

    /// Ends it as an operator would, and waits.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.daemon.stop()
    }
}

/// Runs the binary in the host where it is expected to end by itself.
pub fn output(lab: &Lab, arguments: &[&str]) -> Result<Output> {
    let binary = binary()?;
    Ok(lab
        .host
        .command(path_str(&binary)?)
        .arg("--socket")
        .arg(lab.folder().join("guard.sock"))
        .args(arguments)
        .output()?)
}

pub fn write_policy(lab: &Lab, policy: &str) -> Result<PathBuf> {
    let path = lab.folder().join("guard.toml");
    fs::write(&path, policy)?;
    Ok(path)
}

fn path_str(path: &Path) -> Result<&str> {
    path.to_str().context("the path is no UTF-8")
}
