//! A fresh Debian of the machine's own release, in a folder for chroot.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};

use crate::{cache, process::run, sweep::remove_folder, topology::Lab};

/// The package that is installed besides Debian's required packages.
const INCLUDE: &str = "systemd-sysv";

/// A Debian that ends with its lab. Changes to its files stay in memory.
pub struct Debian {
    root: PathBuf,
}

impl Debian {
    /// A fresh Debian, mounted in the folder of the lab.
    pub fn new(lab: &Lab) -> Result<Self> {
        let base = base()?;
        let changes = lab.folder().join("debian-changes");
        let root = lab.folder().join("debian");
        let [upper, work] = ["upper", "work"].map(|name| changes.join(name));
        fs::create_dir(&changes)?;
        run(Command::new("mount")
            .args(["-t", "tmpfs", "tmpfs"])
            .arg(&changes))?;
        for folder in [&upper, &work, &root] {
            fs::create_dir(folder)?;
        }
        let layers = format!(
            "lowerdir={},upperdir={},workdir={}",
            base.display(),
            upper.display(),
            work.display()
        );
        run(Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &layers])
            .arg(&root))?;
        Ok(Self { root })
    }

    /// Its root folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A command that runs a program with this Debian's files and the machine's network.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("chroot");
        command
            .arg(&self.root)
            .arg(program)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Runs a program with these arguments, which are split at spaces.
    pub fn run(&self, command: &str) -> Result<String> {
        let mut words = command.split_whitespace();
        let program = words.next().context("no program")?;
        run(self.command(program).args(words))
    }

    /// The paths of all files, relative to the root.
    pub fn files(&self) -> Result<Vec<String>> {
        let files = run(Command::new("find")
            .arg(&self.root)
            .args(["-xdev", "-printf", "%P\\n"]))?;
        let mut files: Vec<String> = files.lines().map(str::to_owned).collect();
        files.sort_unstable();
        Ok(files)
    }
}

/// The unchanged Debian below the overlay of each test. It is made once and stays in the cache, because mmdebstrap
/// takes a minute or two.
fn base() -> Result<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let cache = cache::folder();
    let release = release()?;
    let base = cache.join(format!("debian-{release}-{INCLUDE}"));
    if base.is_dir() {
        return Ok(base);
    }
    fs::create_dir_all(&cache)?;
    remove_unfinished(&cache)?;
    let unfinished = cache.join(format!("{UNFINISHED}{}", process::id()));
    let made = run(Command::new("mmdebstrap")
        .args(["--mode=root", "--variant=minbase", "--format=directory"])
        .arg(format!("--include={INCLUDE}"))
        .arg(&release)
        .arg(&unfinished)
        .args(sources()?));
    let finished = made.and_then(|_output| match fs::rename(&unfinished, &base) {
        // Another process has made the folder meanwhile.
        Err(_) if base.is_dir() => Ok(()),
        result => Ok(result?),
    });
    if unfinished.exists() {
        remove_folder(&unfinished)?;
    }
    finished?;
    Ok(base)
}

/// The prefix of an unfinished folder; the id of the process that fills it follows.
const UNFINISHED: &str = "unfinished-debian-";

/// Removes the unfinished folders of processes that were killed.
fn remove_unfinished(cache: &Path) -> Result<()> {
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        let name = entry.file_name();
        let owner = name.to_string_lossy();
        if let Some(owner) = owner.strip_prefix(UNFINISHED)
            && !Path::new("/proc").join(owner).exists()
        {
            remove_folder(&entry.path())?;
        }
    }
    Ok(())
}

/// The name of this machine's release.
fn release() -> Result<String> {
    let about = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let mut facts = about.lines();
    let release = facts.find_map(|fact| fact.strip_prefix("VERSION_CODENAME="));
    Ok(release
        .context("/etc/os-release has no VERSION_CODENAME")?
        .into())
}

/// The Debian archives of this machine's apt, as lines of a sources.list.
fn sources() -> Result<Vec<String>> {
    let known = || {
        run(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "deb $(REPO_URI) $(RELEASE) $(COMPONENT)",
            "Created-By: Packages",
            "Origin: Debian",
        ]))
    };
    let mut sources = known()?;
    if sources.is_empty() {
        // apt has the origin of an archive only after it has read the archive's lists.
        run(Command::new("apt-get").arg("update"))?;
        sources = known()?;
    }
    ensure!(
        !sources.is_empty(),
        "apt has no archive whose origin is Debian"
    );
    Ok(sources.lines().map(str::to_owned).collect())
}
