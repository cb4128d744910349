//! Runs Debian's package manager.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context as _, Result, bail};
use which::which;

use super::announce_and_run;

/// Installs packages without starting their services.
pub fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if which("apt-get").is_err() {
        bail!(
            "this machine has no apt-get: install with its own package manager, by their Debian names: \
             {list}"
        );
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("installing needs root: `apt-get install {list}`");
    }
    update()?;
    let _quiet = NoServices::new().context("services cannot be kept from starting")?;
    announce_and_run(
        Command::new("apt-get")
            .args(["install", "--yes", "--quiet", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null()),
    )
}

/// Downloads a package into this folder without installing it, and returns its path.
pub fn download(package: &str, folder: &Path) -> Result<PathBuf> {
    if which("apt-get").is_err() {
        bail!(
            "this machine has no apt-get: install {package} (its name in Debian) with another package manager"
        );
    }
    update()?;
    announce_and_run(
        Command::new("apt-get")
            // The user `_apt` cannot write to the user's own folder: apt must not switch to it.
            .args(["download", "--quiet", "-o", "APT::Sandbox::User=root"])
            .arg(package)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null()),
    )?;
    let mut files = fs::read_dir(folder)?;
    let file = files.next().context("apt-get download left no file")??;
    Ok(file.path())
}

/// The libraries among the dependencies of a package.
pub fn libraries_of(archive: &Path) -> Result<Vec<String>> {
    let output = Command::new("dpkg-deb")
        .arg("--field")
        .arg(archive)
        .arg("Depends")
        .output()?;
    if !output.status.success() {
        bail!("{} is not a package", archive.display());
    }
    // `libc6 (>= 2.34), libcap2 (>= 1:2.10), …`
    let depends = String::from_utf8_lossy(&output.stdout);
    let names = depends
        .split(',')
        .filter_map(|one| one.split_whitespace().next());
    Ok(names
        .filter(|name| name.starts_with("lib"))
        .map(str::to_owned)
        .collect())
}

/// Whether the package could be installed.
pub fn has(package: &str) -> bool {
    if which("apt-get").is_err() || update().is_err() {
        return false;
    }
    let policy = Command::new("apt-cache").args(["policy", package]).output();
    policy.is_ok_and(|policy| {
        let text = String::from_utf8_lossy(&policy.stdout);
        text.lines()
            .any(|line| line.trim().starts_with("Candidate:") && !line.contains("(none)"))
    })
}

/// Reads the package lists, once in this process.
pub fn update() -> Result<()> {
    static UPDATED: OnceLock<bool> = OnceLock::new();
    let updated = *UPDATED.get_or_init(|| {
        let mut update = Command::new("apt-get");
        update.args(["update", "--quiet"]).stdout(Stdio::null());
        announce_and_run(&mut update).is_ok()
    });
    if !updated {
        bail!("`apt-get update` failed");
    }
    Ok(())
}

/// Debian's packages run this program before they start a service (policy-rc.d); exit code 101 forbids it.
const POLICY: &str = "/usr/sbin/policy-rc.d";

const FORBID: &str = "#!/bin/sh\n# Placed by guard's xtask while it installs packages.\nexit 101\n";

/// While this value exists, no package starts a service: the demo must not leave a web server on the machine. A service
/// of systemd does not start at the next boot either.
struct NoServices {
    placed: bool,
}

impl NoServices {
    fn new() -> io::Result<Self> {
        // A file of this program is left behind if an earlier run was killed.
        let is_foreign = fs::read_to_string(POLICY).is_ok_and(|text| text != FORBID);
        let placed = !is_foreign;
        if placed {
            fs::write(POLICY, FORBID)?;
            fs::set_permissions(POLICY, Permissions::from_mode(0o755))?;
        }
        Ok(Self { placed })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.placed
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!(
                "setup: {POLICY} cannot be removed, and keeps services from starting: {error}"
            );
        }
    }
}
