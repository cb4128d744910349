//! Programs without the installation of their package, which would start a daemon or take the place of one
//! of the machine's. The packages are unpacked beside the user's other caches, where also no AppArmor
//! profile keeps them from the lab's files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use which::which;

use lab::cache;

use super::{announce_and_run, apt};

/// A program, and where it is in its package.
pub struct Unpacked {
    package: &'static str,
    folder: &'static str,
    program: &'static str,
}

/// One that would keep the machine's time.
pub const CHRONY: Unpacked = Unpacked {
    package: "chrony",
    folder: "usr/sbin",
    program: "chronyd",
};

/// Of which only the tool is wanted.
pub const PROMETHEUS: Unpacked = Unpacked {
    package: "prometheus",
    folder: "usr/bin",
    program: "promtool",
};

/// Where all of them are or will be: folders that belong on the lab's `PATH`.
pub fn programs() -> [PathBuf; 2] {
    [CHRONY, PROMETHEUS].map(|unpacked| unpacked.programs())
}

impl Unpacked {
    fn programs(&self) -> PathBuf {
        self.root().join(self.folder)
    }

    fn root(&self) -> PathBuf {
        cache::folder().join(self.package)
    }

    fn is_there(&self) -> bool {
        self.programs().join(self.program).is_file()
    }

    /// Unpacks it, and installs the libraries that it loads.
    pub fn find(&self) -> Result<()> {
        if self.is_there() || which("apt-get").is_err() && which(self.program).is_ok() {
            return Ok(());
        }
        self.unpack()
            .with_context(|| format!("the lab needs {}", self.program))
    }

    fn unpack(&self) -> Result<()> {
        let folder = format!("{}.{}", self.package, std::process::id());
        let folder = cache::folder().join(folder);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let unpacked = self.unpack_in(&folder);
        let removed = fs::remove_dir_all(&folder);
        unpacked?;
        removed.with_context(|| folder.display().to_string())
    }

    fn unpack_in(&self, folder: &Path) -> Result<()> {
        let Self {
            package, program, ..
        } = self;
        let archive = apt::download(package, folder)?;
        let unpacked = folder.join("unpacked");
        announce_and_run(
            Command::new("dpkg-deb")
                .arg("--extract")
                .args([&archive, &unpacked]),
        )?;
        let path = unpacked.join(self.folder).join(program);
        if lacks_libraries(&path)? {
            let libraries = apt::libraries_of(&archive)?;
            let libraries: Vec<&str> = libraries.iter().map(String::as_str).collect();
            apt::install(&libraries)?;
            if lacks_libraries(&path)? {
                bail!("{program} lacks libraries although {libraries:?} are installed");
            }
        }
        // It is there whole or not at all.
        match fs::rename(&unpacked, self.root()) {
            // Another setup was faster.
            Err(_) if self.is_there() => Ok(()),
            renamed => renamed.with_context(|| self.root().display().to_string()),
        }
    }
}

fn lacks_libraries(program: &Path) -> Result<bool> {
    let output = Command::new("ldd").arg(program).output()?;
    if !output.status.success() {
        bail!("{} is no program of this machine", program.display());
    }
    Ok(String::from_utf8_lossy(&output.stdout).contains("not found"))
}
