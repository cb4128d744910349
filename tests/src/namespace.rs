//! A network namespace that ends with its owner.

use std::{fs::File, path::PathBuf, process::Command, thread};

use anyhow::Result;
use nix::sched::{CloneFlags, setns};

use crate::process::run;

/// A network namespace. It is removed when this is dropped.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace with loopback up and no other interface: no route leads out of it.
    pub fn new(name: String) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name };
        namespace.ip("link set lo up")?;
        // Without DAD addresses are usable at once, and without RA no router can set a default route.
        for setting in [
            "conf/all/accept_dad",
            "conf/default/accept_dad",
            "conf/all/accept_ra",
            "conf/default/accept_ra",
        ] {
            let key = format!("net/ipv6/{setting}");
            run(namespace
                .command("sysctl")
                .args(["-qw", &format!("{key}=0")]))?;
        }
        Ok(namespace)
    }

    /// The name, for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file of the namespace in /run/netns.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A command that runs a program in this namespace, with the machine's files.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program);
        command
    }

    /// Runs `ip` with these arguments, which are split at spaces.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        run(self.command("ip").args(arguments.split_whitespace()))
    }
}

impl Namespace {
    /// Runs a function on a thread in this namespace. Sockets that the function opens stay in the namespace.
    pub fn enter<T: Send>(&self, function: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = File::open(self.path())?;
        let entered = thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET)?;
                Ok(function())
            });
            thread.join()
        });
        match entered {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("the namespace {} cannot be removed: {error:#}", self.name);
        }
    }
}
