//! A Debian that is booted: its own systemd, with the network of the lab's host.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    debian::Debian,
    process::{Daemon, run, wait_for},
    sweep,
    topology::Lab,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Where systemd keeps its processes in either version of cgroups.
const HIERARCHIES: [&str; 3] = [
    "/sys/fs/cgroup",
    "/sys/fs/cgroup/systemd",
    "/sys/fs/cgroup/unified",
];

pub struct Machine {
    container: Daemon,
    lab: String,
    bpffs: PathBuf,
    root: PathBuf,
}

impl Machine {
    pub fn boot(lab: &Lab, debian: &Debian) -> Result<Self> {
        // systemd mounts it on a real machine, and not in a container. From here the test sees, too,
        // what is pinned.
        let bpffs = lab.folder().join("bpffs");
        fs::create_dir(&bpffs)?;
        run(Command::new("mount")
            .args(["-t", "bpf", "-o", "mode=0700", "bpf"])
            .arg(&bpffs))?;
        let mut container = Command::new("sh");
        container
            .arg("-c")
            // In a cgroup of its own, or it would make its own beside whatever else runs here.
            .arg("for place in $CGROUPS; do echo $$ > $place/cgroup.procs; done; exec \"$@\"")
            .arg("sh")
            .env("CGROUPS", make_cgroups(lab.name())?)
            .args(["systemd-nspawn", "--quiet", "--boot", "--console=pipe"])
            .args(["--register=no", "--keep-unit"])
            .arg(format!("--machine={}", lab.name()))
            .arg(format!("--directory={}", debian.root().display()))
            .arg(format!("--bind={}:/sys/fs/bpf", bpffs.display()))
            .arg(format!(
                "--network-namespace-path={}",
                lab.host.path().display()
            ))
            .arg("--capability=CAP_BPF,CAP_NET_ADMIN,CAP_PERFMON")
            .arg("--system-call-filter=bpf");
        let log = lab.folder().join("machine.log");
        let container = Daemon::start(&mut container, &log)?;
        let mut machine = Self {
            container,
            lab: lab.name().to_owned(),
            bpffs,
            root: debian.root().to_owned(),
        };
        wait_for(PATIENCE, || {
            machine.container.check_alive()?;
            machine.run("systemctl is-system-running")
        })?;
        Ok(machine)
    }

    /// A program that will run in this machine.
    pub fn command(&self, program: &str) -> Result<Command> {
        // The container's first process is the only child of the program that made it.
        let owner = self.container.pid();
        let children = fs::read_to_string(format!("/proc/{owner}/task/{owner}/children"))?;
        let first = children.split_whitespace().next();
        let mut command = Command::new("nsenter");
        command
            .arg("--all")
            .arg(format!(
                "--target={}",
                first.context("it does not run yet")?
            ))
            .arg("--")
            .arg(program)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        Ok(command)
    }

    /// Runs a program with these arguments, which are split at spaces.
    pub fn run(&self, command: &str) -> Result<String> {
        let mut words = command.split_whitespace();
        let program = words.next().context("no program")?;
        run(self.command(program)?.args(words))
    }

    /// Writes a file of this machine's.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.root.join(path.trim_start_matches('/'));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, text)?;
        Ok(())
    }

    /// What is pinned in this machine's /sys/fs/bpf.
    pub fn pins(&self) -> Result<Vec<PathBuf>> {
        // What the kernel itself puts there.
        const KERNELS: [&str; 2] = ["maps.debug", "progs.debug"];
        let found = run(Command::new("find").arg(&self.bpffs).args([
            "-mindepth",
            "1",
            "-printf",
            "%P\\n",
        ]))?;
        let pins = found.lines().filter(|name| !KERNELS.contains(name));
        Ok(pins.map(PathBuf::from).collect())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.container.stop() {
            eprintln!("the machine is left: {error:#}");
        }
        if let Err(error) = sweep::remove_cgroups(&self.lab) {
            eprintln!("the machine's cgroups are left: {error:#}");
        }
    }
}

/// A cgroup of the lab's name wherever systemd keeps processes.
fn make_cgroups(lab: &str) -> Result<String> {
    let hierarchies = HIERARCHIES.map(Path::new);
    let hierarchies = hierarchies
        .into_iter()
        .filter(|place| place.join("cgroup.procs").exists());
    let mut places = Vec::new();
    for hierarchy in hierarchies {
        let place = hierarchy.join(lab);
        fs::create_dir(&place).with_context(|| place.display().to_string())?;
        places.push(place.display().to_string());
    }
    ensure!(!places.is_empty(), "this machine has no cgroups");
    Ok(places.join(" "))
}
