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

/// Runs a program to its end and returns what it printed. A failure says what it was and why.
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

/// How many times as long as they should everything takes on the slowest machine. Only a failure waits for so long.
pub const SLOWEST: u32 = 6;

/// Tries until it works, the user interrupts, or it takes far longer than `patience`, which is what it should take at
/// most; the last failure is the reason.
pub fn wait_for<T>(patience: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    retry(patience, || match interrupt::check() {
        Ok(()) => attempt().map(Ok),
        // No reason to try again.
        Err(interrupted) => Ok(Err(interrupted)),
    })?
}

/// The same for what must be done after an interrupt, too.
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

/// A program in the background, with its output in a file. It ends when this is dropped, and also if
/// this process is killed.
pub struct Daemon {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Daemon {
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let name = command.get_args().chain([command.get_program()]).next();
        let name = name.unwrap_or_default().to_string_lossy().into_owned();
        let file = File::create(log).with_context(|| format!("{}", log.display()))?;
        // SAFETY: prctl is async-signal-safe, and nothing else runs between fork and exec.
        unsafe {
            command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGTERM).map_err(io::Error::from));
        }
        let child = command
            // Ctrl-C is for its owner, which ends it when it is time.
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

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// An error with its last words, if it has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}): {}", self.name, self.log()),
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        retry(patience, || {
            let status = self.child.try_wait()?;
            status.with_context(|| format!("{} does not end: {}", self.name, self.log()))
        })
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?);
        kill(pid, signal).with_context(|| format!("{} cannot be signalled", self.name))
    }

    /// Sends what Ctrl-C sends.
    pub fn interrupt(&self) -> Result<()> {
        self.signal(Signal::SIGINT)
    }

    /// Asks it to end, and ends it if it does not.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        // A process that stands still hears nothing.
        if !self.stands_still()
            && let Ok(status) = self.wait(Duration::from_secs(20))
        {
            return Ok(status);
        }
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// Whether SIGSTOP has stopped it (proc(5), "State").
    fn stands_still(&self) -> bool {
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
