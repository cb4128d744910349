//! A booted Debian: its own systemd, in the network namespace of the lab's host.

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

/// The mount points of systemd's cgroup hierarchy, for version 1 and version 2.
const HIERARCHIES: [&str; 3] = [
    "/sys/fs/cgroup",
    "/sys/fs/cgroup/systemd",
    "/sys/fs/cgroup/unified",
];

/// A booted Debian in a systemd-nspawn container. It ends when this is dropped.
pub struct Machine {
    container: Daemon,
    lab: String,
    bpffs: PathBuf,
    root: PathBuf,
}

impl Machine {
    /// Boots a Debian in the namespace of the host.
    pub fn boot(lab: &Lab, debian: &Debian) -> Result<Self> {
        // systemd mounts the BPF file system on a real machine, but not in a container. The test reads the pins from
        // this folder.
        let bpffs = lab.folder().join("bpffs");
        fs::create_dir(&bpffs)?;
        run(Command::new("mount")
            .args(["-t", "bpf", "-o", "mode=0700", "bpf"])
            .arg(&bpffs))?;
        let mut container = Command::new("sh");
        container
            .arg("-c")
            // In a cgroup of the lab: otherwise systemd-nspawn creates cgroups beside this process's own.
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

    /// A command that runs a program in this machine.
    pub fn command(&self, program: &str) -> Result<Command> {
        // The machine's init is the only child of systemd-nspawn.
        let owner = self.container.pid();
        let children = fs::read_to_string(format!("/proc/{owner}/task/{owner}/children"))?;
        let first = children.split_whitespace().next();
        let mut command = Command::new("nsenter");
        command
            .arg("--all")
            .arg(format!(
                "--target={}",
                first.context("systemd-nspawn has not started init yet")?
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

    /// Writes a file in this machine's root.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.root.join(path.trim_start_matches('/'));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, text)?;
        Ok(())
    }

    /// The paths of the pins in this machine's /sys/fs/bpf.
    pub fn pins(&self) -> Result<Vec<PathBuf>> {
        // The kernel itself creates these files.
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
            eprintln!("the machine cannot be stopped: {error:#}");
        }
        if let Err(error) = sweep::remove_cgroups(&self.lab) {
            eprintln!("the machine's cgroups cannot be removed: {error:#}");
        }
    }
}

/// Creates a cgroup with the lab's name in each of systemd's hierarchies.
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
