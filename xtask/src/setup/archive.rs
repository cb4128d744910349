//! Reads package lists and packages of Debian suites that this machine does not use, from the mirror of its apt.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Result, bail};

use super::{announce_and_run, apt};

const APT_CONFIG: &str = "apt.conf";

/// The keyrings of Debian's archive, in newer and older releases.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
];

/// Debian suites in an apt configuration of their own: the machine's apt is not changed.
pub struct Archive {
    folder: PathBuf,
    mirror: String,
    architecture: String,
}

impl Archive {
    /// Reads the package lists of these suites from the machine's own mirror. If another suite is usable, a suite with
    /// an expired signature is left out: that of `unstable` is valid for a week, and a mirror may be older.
    pub fn open(suites: &[&str], architecture: &str, folder: &Path) -> Result<Self> {
        let archive = Self::prepare(architecture, folder)?;
        let Err(error) = archive.read(suites) else {
            return Ok(archive);
        };
        let mut usable = suites.to_vec();
        usable.retain(|suite| archive.read(&[suite]).is_ok());
        if usable.is_empty() || usable.len() == suites.len() {
            return Err(error);
        }
        println!("setup: continuing with only Debian's {}", usable.join(", "));
        archive.read(&usable)?;
        Ok(archive)
    }

    fn prepare(architecture: &str, folder: &Path) -> Result<Self> {
        for place in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(place))?;
        }
        // Backports get the same priority as other suites.
        fs::write(
            folder.join("preferences"),
            "Package: *\nPin: release o=Debian\nPin-Priority: 500\n",
        )?;
        // The user `_apt` cannot write to the user's own folder: apt must not switch to it.
        let place = folder.display();
        let config = format!(
            "Dir::State \"{place}/state\";
             Dir::Cache \"{place}/cache\";
             Dir::Etc::sourcelist \"{place}/debian.sources\";
             Dir::Etc::preferences \"{place}/preferences\";
             Dir::Etc::sourceparts \"/dev/null\";
             Dir::Etc::preferencesparts \"/dev/null\";
             Acquire::Languages \"none\";
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";
             APT::Sandbox::User \"root\";\n"
        );
        fs::write(folder.join(APT_CONFIG), config)?;
        Ok(Self {
            folder: folder.to_owned(),
            mirror: mirror()?,
            architecture: architecture.to_owned(),
        })
    }

    /// Reads the package lists of these suites, and replaces those read before.
    fn read(&self, suites: &[&str]) -> Result<()> {
        let Self {
            folder,
            mirror,
            architecture,
        } = self;
        let keyring = KEYRINGS.into_iter().find(|path| Path::new(path).is_file());
        let signed_by = keyring.map_or(String::new(), |path| format!("Signed-By: {path}\n"));
        let suites = suites.join(" ");
        fs::write(
            folder.join("debian.sources"),
            format!(
                "Types: deb\nURIs: {mirror}\nSuites: {suites}\nComponents: main\n\
                 Architectures: {architecture}\n{signed_by}"
            ),
        )?;
        announce_and_run(
            self.apt("apt-get")
                .args(["update", "--quiet", "--error-on=any"])
                .stdout(Stdio::null()),
        )
    }

    pub fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", self.folder.join(APT_CONFIG))
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        command
    }

    /// The file names of packages, which contain their versions.
    pub fn file_names(&self, packages: &[String]) -> Result<Vec<String>> {
        let mut command = self.apt("apt-get");
        command.args(["download", "--print-uris"]).args(packages);
        // `'http://…' linux-image-6.12.1-cloud-amd64_6.12.1-1_amd64.deb 34402644 SHA256:…`
        let lines = lab::process::run(&mut command)?;
        let names = lines.lines().filter_map(|line| line.split(' ').nth(1));
        Ok(names.map(str::to_owned).collect())
    }

    /// Fetches the packages into the archive's folder.
    pub fn download(&self, packages: &[String]) -> Result<()> {
        announce_and_run(
            self.apt("apt-get")
                .args(["download", "--quiet"])
                .args(packages)
                .stdout(Stdio::null()),
        )
    }
}

/// The mirror from which this machine's apt gets Debian.
fn mirror() -> Result<String> {
    let format = "$(CREATED_BY) $(ORIGIN) $(LABEL) $(REPO_URI)";
    apt::update()?;
    let targets =
        lab::process::run(Command::new("apt-get").args(["indextargets", "--format", format]))?;
    let mirror = targets
        .lines()
        .find_map(|target| target.strip_prefix("Packages Debian Debian "));
    let Some(mirror) = mirror else {
        bail!("none of this machine's apt sources is Debian's archive");
    };
    Ok(mirror.trim().to_owned())
}
