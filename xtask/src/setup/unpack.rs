//! chrony's programs without its installation, which would take the place of the daemon that keeps
//! the machine's time. Its package is unpacked beside the user's other caches, where also no AppArmor
//! profile keeps it from the lab's files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use which::which;

use lab::cache;

use super::{announce_and_run, apt};

const PACKAGE: &str = "chrony";
const PROGRAM: &str = "chronyd";

/// Where `chronyd` is or will be; it belongs on the lab's `PATH`.
pub fn programs() -> PathBuf {
    root().join("usr/sbin")
}

fn root() -> PathBuf {
    cache::folder().join(PACKAGE)
}

/// Unpacks `chronyd` and installs the libraries that it loads.
pub fn chrony() -> Result<()> {
    if programs().join(PROGRAM).is_file() {
        return Ok(());
    }
    if which("apt-get").is_err() && which(PROGRAM).is_ok() {
        return Ok(());
    }
    unpack().with_context(|| format!("the lab needs {PROGRAM}"))
}

fn unpack() -> Result<()> {
    let folder = cache::folder().join(format!("{PACKAGE}.{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let unpacked = unpack_in(&folder);
    let removed = fs::remove_dir_all(&folder);
    unpacked?;
    removed.with_context(|| folder.display().to_string())
}

fn unpack_in(folder: &Path) -> Result<()> {
    let archive = apt::download(PACKAGE, folder)?;
    let unpacked = folder.join("unpacked");
    announce_and_run(
        Command::new("dpkg-deb")
            .arg("--extract")
            .args([&archive, &unpacked]),
    )?;
    let program = unpacked.join("usr/sbin").join(PROGRAM);
    if lacks_libraries(&program)? {
        let libraries = apt::libraries_of(&archive)?;
        let libraries: Vec<&str> = libraries.iter().map(String::as_str).collect();
        apt::install(&libraries)?;
        if lacks_libraries(&program)? {
            bail!("{PROGRAM} lacks libraries although {libraries:?} are installed");
        }
    }
    // It is there whole or not at all.
    match fs::rename(&unpacked, root()) {
        // Another setup was faster.
        Err(_) if programs().join(PROGRAM).is_file() => Ok(()),
        renamed => renamed.with_context(|| root().display().to_string()),
    }
}

fn lacks_libraries(program: &Path) -> Result<bool> {
    let output = Command::new("ldd").arg(program).output()?;
    if !output.status.success() {
        bail!("{} is no program of this machine", program.display());
    }
    Ok(String::from_utf8_lossy(&output.stdout).contains("not found"))
}
