//! The guard at work on the lab's host: the real binary, as its user would run it.

use std::{
    env,
    ffi::OsString,
    fs,
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

/// The policy file, in the lab's folder.
const POLICY: &str = "guard.toml";

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
    whereabouts: Vec<OsString>,
}

/// The options that say where the guard of this lab is.
pub fn whereabouts(lab: &Lab) -> Vec<OsString> {
    let places = [
        ("--socket", lab.folder().join("guard.sock")),
        ("--pins", lab.pins()),
        ("--state", lab.state()),
    ];
    let options = places.into_iter();
    options
        .flat_map(|(option, place)| [option.into(), place.into()])
        .collect()
}

impl Guard {
    /// Starts `guard run` in the host and waits until it answers.
    pub fn start(lab: &Lab, policy: &str) -> Result<Self> {
        write_policy(lab, policy)?;
        Self::start_again(lab)
    }

    /// Starts it with the policy that is there, as a service manager would.
    pub fn start_again(lab: &Lab) -> Result<Self> {
        Self::start_binary(lab, &binary()?)
    }

    /// The same with another build of it.
    pub fn start_binary(lab: &Lab, binary: &Path) -> Result<Self> {
        let mut daemon = Daemon::start(
            lab.host
                .command(path_str(binary)?)
                .args(whereabouts(lab))
                .args(["run", "--policy"])
                .arg(lab.folder().join(POLICY)),
            &lab.folder().join("guard.log"),
        )?;
        let whereabouts = whereabouts(lab);
        wait_for(Duration::from_secs(20), || {
            if let Err(ended) = daemon.check_alive() {
                // No reason to try again.
                return Ok(Err(ended));
            }
            // The status is there without an agent, too.
            let status = run(Command::new(binary).args(&whereabouts).arg("status"))?;
            anyhow::ensure!(!status.contains("NOT RUNNING"), "{status}");
            Ok(Ok(()))
        })??;
        Ok(Self {
            daemon,
            binary: binary.to_owned(),
            whereabouts,
        })
    }

    /// Runs a command against this guard and returns what it prints.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        run(Command::new(&self.binary)
            .args(&self.whereabouts)
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

    /// Asks it to end, and does not wait for that.
    pub fn terminate(&self) -> Result<()> {
        self.daemon.signal(Signal::SIGTERM)
    }

    /// Asks it to read its policy again, as `systemctl reload` could.
    pub fn hang_up(&self) -> Result<()> {
        self.daemon.signal(Signal::SIGHUP)
    }

    pub fn resume(&self) -> Result<()> {
        self.daemon.signal(Signal::SIGCONT)
    }

    /// Ends it without a word.
    pub fn kill(mut self) -> Result<()> {
        self.daemon.signal(Signal::SIGKILL)?;
        self.daemon.wait(Duration::from_secs(5))?;
        Ok(())
    }

    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Ends it, takes its programs off, and waits.
    pub fn remove(self) -> Result<()> {
        self.run(&["detach"])?;
        self.stop()?;
        Ok(())
    }

    /// Waits until it has ended by itself.
    pub fn wait(mut self, patience: Duration) -> Result<ExitStatus> {
        self.daemon.wait(patience)
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
        .args(whereabouts(lab))
        .args(arguments)
        .output()?)
}

pub fn write_policy(lab: &Lab, policy: &str) -> Result<PathBuf> {
    let path = lab.folder().join(POLICY);
    fs::write(&path, policy)?;
    Ok(path)
}

fn path_str(path: &Path) -> Result<&str> {
    path.to_str().context("the path is no UTF-8")
}
