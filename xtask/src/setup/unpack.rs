//! Unpacks programs without installing their packages, which would start a daemon or replace a program of the machine.
//! They are unpacked into the user's caches, where no AppArmor profile denies them the lab's files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use which::which;

use lab::{cache, compose};

use super::{announce_and_run, apt, archive::Archive};

/// A program, and its path in its package.
pub struct Unpacked {
    package: &'static str,
    folder: &'static str,
    program: &'static str,
    /// The Debian suites that have the wanted version: the first readable one is used. Empty: the machine's own suite.
    suites: &'static [&'static str],
}

/// Installed, chrony would set the machine's clock.
pub const CHRONY: Unpacked = Unpacked {
    package: "chrony",
    folder: "usr/sbin",
    program: "chronyd",
    suites: &[],
};

/// Only the tool `promtool` is needed.
pub const PROMETHEUS: Unpacked = Unpacked {
    package: "prometheus",
    folder: "usr/bin",
    program: "promtool",
    suites: &[],
};

/// The Compose of the machine's own release is years older than the usual one, and stays on the `PATH`.
pub const COMPOSE: Unpacked = Unpacked {
    package: compose::PACKAGE,
    folder: compose::FOLDER,
    program: compose::PROGRAM,
    suites: &compose::SUITES,
};

/// The folders of the unpacked programs that belong on the lab's `PATH`.
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

    /// Unpacks the program if it is missing, and installs the libraries that it loads.
    pub fn find(&self) -> Result<()> {
        let is_any = self.suites.is_empty();
        if self.is_there() || is_any && which("apt-get").is_err() && which(self.program).is_ok() {
            return Ok(());
        }
        self.unpack().with_context(|| match self.suites {
            [] => format!("the lab needs {}", self.program),
            suites => format!(
                "the lab needs {} from {} of Debian {}",
                self.program,
                self.package,
                suites.join(" or ")
            ),
        })
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
        let archive = match self.suites {
            [] => apt::download(package, folder)?,
            suites => download_from(suites, package, folder)?,
        };
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
        // The rename is atomic: the folder is complete or absent.
        match fs::rename(&unpacked, self.root()) {
            // Another setup has unpacked it meanwhile.
            Err(_) if self.is_there() => Ok(()),
            renamed => renamed.with_context(|| self.root().display().to_string()),
        }
    }
}

/// Downloads a package from the first of these suites whose lists can be read.
fn download_from(suites: &[&str], package: &str, folder: &Path) -> Result<PathBuf> {
    let architecture = lab::process::run(Command::new("dpkg").arg("--print-architecture"))?;
    let mut failure = None;
    for suite in suites {
        let own = folder.join(suite);
        match fetch(suite, architecture.trim(), package, &own) {
            Ok(file) => return Ok(file),
            Err(error) => {
                eprintln!("setup: no {package} from Debian {suite}: {error:#}");
                failure = Some(error);
            }
        }
    }
    Err(failure.context("no suite is named")?)
}

fn fetch(suite: &str, architecture: &str, package: &str, folder: &Path) -> Result<PathBuf> {
    let archive = Archive::open(&[suite], architecture, folder)?;
    let packages = [package.to_owned()];
    let files = archive.file_names(&packages)?;
    let file = files.first().context("it has no such package")?;
    archive.download(&packages)?;
    Ok(folder.join(file))
}

fn lacks_libraries(program: &Path) -> Result<bool> {
    let output = Command::new("ldd").arg(program).output()?;
    if !output.status.success() {
        bail!(
            "{} is not a program that this machine can run",
            program.display()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).contains("not found"))
}
