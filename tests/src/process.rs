//! Runs the programs of the lab: to their end, or as daemons that end with their owner.

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::interrupt;
use anyhow::{Context as _, Result, bail};
use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::Pid,
};

/// Runs a program to its end and returns its standard output. The error has the command, its status and its output.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?} cannot be started"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    bail!("{command:?} failed ({}): {stdout}{stderr}", output.status)
}

/// The factor on all timeouts, for the slowest machine. Only a failing test waits that long.
pub const SLOWEST: u32 = 6;

/// Repeats an attempt until it succeeds.
///
/// # Errors
/// The last failure, once [`SLOWEST`] times `patience` has passed; or the user's interrupt.
pub fn wait_for<T>(patience: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    retry(patience, || match interrupt::check() {
        Ok(()) => attempt().map(Ok),
        // An interrupt ends the retries.
        Err(interrupted) => Ok(Err(interrupted)),
    })?
}

/// [`wait_for`], but an interrupt does not end it: for cleanup.
pub(crate) fn retry<T>(patience: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let patience = patience * SLOWEST;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > patience => {
                return Err(error.context(format!("not within {} s", patience.as_secs())));
            }
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// A program in the background, with its output in a file. It ends when this is dropped or this process is killed.
pub struct Daemon {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Daemon {
    /// Starts a program whose output goes to a file.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let name = command.get_args().chain([command.get_program()]).next();
        let name = name.unwrap_or_default().to_string_lossy().into_owned();
        let file = File::create(log).with_context(|| format!("{}", log.display()))?;
        // SAFETY: prctl is async-signal-safe, and nothing else runs between fork and exec.
        unsafe {
            command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGTERM).map_err(io::Error::from));
        }
        let child = command
            // Ctrl-C does not reach the program: its owner stops it.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("{command:?} cannot be started"))?;
        Ok(Self {
            child,
            name,
            log: log.to_owned(),
        })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The program's output so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Checks that the program runs; the error has its output.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}): {}", self.name, self.log()),
        }
    }

    /// Waits until the program has ended.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        retry(patience, || {
            let status = self.child.try_wait()?;
            status.with_context(|| format!("{} still runs: {}", self.name, self.log()))
        })
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?);
        kill(pid, signal).with_context(|| format!("{} cannot be signalled", self.name))
    }

    /// Sends SIGINT, as Ctrl-C does.
    pub fn interrupt(&self) -> Result<()> {
        self.signal(Signal::SIGINT)
    }

    /// Sends SIGTERM, and SIGKILL if the program does not end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        // A stopped process does not handle SIGTERM.
        if !self.is_stopped()
            && let Ok(status) = self.wait(Duration::from_secs(20))
        {
            return Ok(status);
        }
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// Whether SIGSTOP has stopped it (proc(5), "State").
    fn is_stopped(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        status.is_ok_and(|status| status.contains("\nState:\tT"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{} cannot be stopped: {error:#}", self.name);
        }
    }
}
