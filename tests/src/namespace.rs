//! A network namespace that ends with its owner.

use std::{fs::File, path::PathBuf, process::Command, thread};

use anyhow::Result;
use nix::sched::{CloneFlags, setns};

use crate::process::run;

pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace with loopback up and nothing else: no route leads out of it.
    pub fn new(name: String) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name };
        namespace.ip("link set lo up")?;
        // Addresses are usable at once, and no router can give this namespace a default route.
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

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A program that will run in this namespace, and see the machine's files.
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
    /// Runs a function on a thread that is in this namespace. Sockets that it makes stay there.
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
            eprintln!("the namespace {} is left: {error:#}", self.name);
        }
    }
}
