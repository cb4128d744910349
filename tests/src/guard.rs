//! Runs the real `guard` binary on the lab's host, as an operator does.

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

/// The variable with the binary's path, if the binary is not beside this program.
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
                "the guard binary is not beside {}: build it, or set {BINARY} to its path",
                own.display()
            )
        })
}

/// A running agent.
pub struct Guard {
    daemon: Daemon,
    binary: PathBuf,
    location_options: Vec<OsString>,
}

/// The options with the socket, the pins and the state folder of this lab's guard.
pub fn location_options(lab: &Lab) -> Vec<OsString> {
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
    /// Writes the policy, starts `guard run` in the host, and waits until the agent answers.
    pub fn start(lab: &Lab, policy: &str) -> Result<Self> {
        write_policy(lab, policy)?;
        Self::start_again(lab)
    }

    /// Starts `guard run` with the policy file as it is, as a service manager does.
    pub fn start_again(lab: &Lab) -> Result<Self> {
        Self::start_binary(lab, &binary()?)
    }

    /// [`start_again`](Self::start_again) with another build of the binary.
    pub fn start_binary(lab: &Lab, binary: &Path) -> Result<Self> {
        let mut daemon = Daemon::start(
            // The priority that the unit gives: a container that starts does not wait for a busy agent.
            lab.host
                .command("nice")
                .args(["--adjustment=-10", path_str(binary)?])
                .args(location_options(lab))
                .args(["run", "--policy"])
                .arg(lab.folder().join(POLICY)),
            &lab.folder().join("guard.log"),
        )?;
        let location_options = location_options(lab);
        wait_for(Duration::from_secs(20), || {
            if let Err(ended) = daemon.check_alive() {
                // An agent that has ended does not answer later.
                return Ok(Err(ended));
            }
            // `guard status` succeeds without an agent, too.
            let status = run(Command::new(binary).args(&location_options).arg("status"))?;
            anyhow::ensure!(!status.contains("NOT RUNNING"), "{status}");
            Ok(Ok(()))
        })??;
        Ok(Self {
            daemon,
            binary: binary.to_owned(),
            location_options,
        })
    }

    /// Runs a `guard` command with this guard's options, and returns its output.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        run(Command::new(&self.binary)
            .args(&self.location_options)
            .args(arguments))
    }

    /// Runs a command with `--json`, and parses its output.
    pub fn json(&self, command: &str) -> Result<Value> {
        let text = self.run(&[command, "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("guard {command} --json: {text}"))
    }

    /// The packets of all counter rows with these values. `Value::Null` matches a row without the key.
    pub fn packets(&self, facts: &[(&str, Value)]) -> Result<u64> {
        let counters = self.json("counters")?;
        let rows = counters.as_array().context("the counters are not a list")?;
        let matching = rows
            .iter()
            .filter(|row| facts.iter().all(|(key, value)| &row[*key] == value));
        Ok(matching.filter_map(|row| row["packets"].as_u64()).sum())
    }

    /// The output of the agent so far.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// Stops the agent with SIGSTOP; its program stays attached.
    pub fn pause(&self) -> Result<()> {
        self.daemon.signal(Signal::SIGSTOP)
    }

    /// Sends SIGTERM and does not wait.
    pub fn terminate(&self) -> Result<()> {
        self.daemon.signal(Signal::SIGTERM)
    }

    /// Makes the agent reload its policy, with SIGHUP.
    pub fn reload_by_signal(&self) -> Result<()> {
        self.daemon.signal(Signal::SIGHUP)
    }

    /// Continues a stopped agent, with SIGCONT.
    pub fn resume(&self) -> Result<()> {
        self.daemon.signal(Signal::SIGCONT)
    }

    /// Kills the agent with SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.daemon.signal(Signal::SIGKILL)?;
        self.daemon.wait(Duration::from_secs(5))?;
        Ok(())
    }

    /// The process id of the agent.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Detaches the programs, ends the agent, and waits until it has ended.
    pub fn remove(self) -> Result<()> {
        self.run(&["detach"])?;
        self.stop()?;
        Ok(())
    }

    /// Waits until the agent has ended by itself.
    pub fn wait(mut self, patience: Duration) -> Result<ExitStatus> {
        self.daemon.wait(patience)
    }

    /// Ends the agent with SIGTERM, and waits until it has ended.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.daemon.stop()
    }
}

/// Runs a `guard` command in the host until it ends, and returns its output and exit status.
pub fn output(lab: &Lab, arguments: &[&str]) -> Result<Output> {
    let binary = binary()?;
    Ok(lab
        .host
        .command(path_str(&binary)?)
        .args(location_options(lab))
        .args(arguments)
        .output()?)
}

/// Writes the policy file of the lab.
pub fn write_policy(lab: &Lab, policy: &str) -> Result<PathBuf> {
    let path = lab.folder().join(POLICY);
    fs::write(&path, policy)?;
    Ok(path)
}

fn path_str(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}
