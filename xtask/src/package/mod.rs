//! `cargo xtask package`: a Debian package of the release binary, with Debian's own tools.

mod licences;
mod manual;

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use cargo_metadata::{Metadata, MetadataCommand};
use clap::Args;
use lab::process::run as output;

use crate::{
    build::{self, target_folder, workspace},
    setup,
};

#[derive(Args)]
pub struct Options {
    /// Pack this binary, and the guard-compose beside it, instead of building them
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Put the package into this folder instead of target/debian
    #[arg(long, value_name = "FOLDER")]
    into: Option<PathBuf>,
    /// Build faster, without compression: the package is larger
    #[arg(long)]
    fast: bool,
}

pub fn run(options: Options) -> Result<()> {
    let Options { binary, into, fast } = options;
    setup::for_package()?;
    let binary = match binary {
        Some(binary) => binary,
        None => build::guard(&setup::toolchain()?, true)?,
    };
    let into = into.unwrap_or_else(|| target_folder().join("debian"));
    let package = Package::new(binary, &into)?;
    let archive = package.make(&into, fast)?;
    println!("{}", archive.display());
    Ok(())
}

/// A package that is being built.
struct Package {
    binary: PathBuf,
    metadata: Metadata,
    version: String,
    /// The modification time of every file, in seconds since 1970.
    date: String,
    /// The folder in which Debian's tools find `debian/control`.
    work: PathBuf,
    /// The folder that becomes `/` of the package.
    root: PathBuf,
}

const EXECUTABLE: u32 = 0o755;
const FILE: u32 = 0o644;

/// The programs in /usr/bin.
const PROGRAMS: [&str; 2] = ["guard", "guard-compose"];

/// The scripts that dpkg runs.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// The completion files of the shells.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/guard"),
    ("zsh", "usr/share/zsh/vendor-completions/_guard"),
    ("fish", "usr/share/fish/vendor_completions.d/guard.fish"),
];

/// The pages in the package.
const DOCUMENTS: [&str; 15] = [
    "README.md",
    "README.es.md",
    "docs/architecture.md",
    "docs/audit.md",
    "docs/es/exposed-app.md",
    "docs/es/limits.md",
    "docs/exposed-app.md",
    "docs/limits.md",
    "docs/operations.md",
    "docs/policy.md",
    "examples/cdn.toml",
    "examples/game-server.toml",
    "examples/ollama.toml",
    "examples/traefik.toml",
    "examples/two-uplinks.toml",
];

impl Package {
    fn new(binary: PathBuf, into: &Path) -> Result<Self> {
        let metadata = MetadataCommand::new()
            .current_dir(workspace())
            .other_options(["--locked".into(), "--filter-platform".into(), host()?])
            .exec()?;
        let guard = metadata.packages.iter();
        let guard = guard
            .clone()
            .find(|package| *package.name == *"guard-userspace");
        let version = guard
            .context("there is no guard-userspace")?
            .version
            .to_string();
        let said = output(Command::new(&binary).arg("--version"))?;
        ensure!(
            said.trim() == format!("guard {version}"),
            "{} is {}, not guard {version}: build it anew",
            binary.display(),
            said.trim()
        );
        let work = into.join("work");
        if work.exists() {
            fs::remove_dir_all(&work)?;
        }
        let root = work.join("root");
        fs::create_dir_all(&root)?;
        Ok(Self {
            binary,
            metadata,
            // Debian sorts 1.0~rc before 1.0.
            version: version.replacen('-', "~", 1),
            date: date()?,
            work,
            root,
        })
    }

    fn make(&self, into: &Path, fast: bool) -> Result<PathBuf> {
        self.stage_program()?;
        self.stage_manual()?;
        self.stage_documents()?;
        self.stage_control()?;
        // The modes of packaged files must not depend on the builder's umask.
        set_modes(&self.root)?;
        let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
        let name = format!("guard_{}_{}.deb", self.version, architecture.trim());
        let archive = into.join(name);
        output(
            Command::new("dpkg-deb")
                .args(["--root-owner-group", "-Zxz"])
                .arg(if fast { "-z0" } else { "-z6" })
                .arg("--build")
                .args([&self.root, &archive])
                .env("SOURCE_DATE_EPOCH", &self.date),
        )?;
        fs::remove_dir_all(&self.work)?;
        Ok(archive)
    }

    fn stage_program(&self) -> Result<()> {
        let compose = self.binary.with_file_name(PROGRAMS[1]);
        ensure!(
            compose.is_file(),
            "{} is missing: `cargo build --package guard-compose` makes it",
            compose.display()
        );
        for (name, binary) in PROGRAMS.into_iter().zip([&self.binary, &compose]) {
            let program = self.place(&format!("usr/bin/{name}"))?;
            output(
                Command::new("strip")
                    .args(["--strip-unneeded", "--remove-section=.comment", "-o"])
                    .args([&program, binary]),
            )?;
        }
        self.copy(
            "packaging/guard.service",
            "usr/lib/systemd/system/guard.service",
        )?;
        self.copy(
            "packaging/guard.preset",
            "usr/lib/systemd/system-preset/50-guard.preset",
        )?;
        self.copy("packaging/guard.toml", POLICY)?;
        for (shell, place) in COMPLETIONS {
            let script = output(Command::new(&self.binary).args(["completions", shell]))?;
            fs::write(self.place(place)?, script)?;
        }
        Ok(())
    }

    fn stage_manual(&self) -> Result<()> {
        let commands = self.place("usr/share/man/man1/guard.1")?;
        let commands = commands.parent().context("no folder for the manual")?;
        output(Command::new(&self.binary).arg("man").arg(commands))?;
        for page in fs::read_dir(commands)? {
            compress(&page?.path())?;
        }
        let policy = fs::read_to_string(workspace().join("docs/policy.md"))?;
        let page = self.place("usr/share/man/man5/guard.toml.5")?;
        fs::write(&page, manual::policy_page(&policy, &self.version))?;
        compress(&page)
    }

    fn stage_documents(&self) -> Result<()> {
        const FOLDER: &str = "usr/share/doc/guard";
        for document in DOCUMENTS {
            self.copy(document, &format!("{FOLDER}/{document}"))?;
        }
        self.copy("packaging/debian/copyright", &format!("{FOLDER}/copyright"))?;
        let texts = [
            ("THIRD-PARTY", licences::third_party(&self.metadata)?),
            (
                "CHANGELOG.md",
                fs::read_to_string(workspace().join("CHANGELOG.md"))?,
            ),
            ("changelog", self.changelog()?),
        ];
        for (name, text) in texts {
            let place = self.place(&format!("{FOLDER}/{name}"))?;
            fs::write(&place, text)?;
            compress(&place)?;
        }
        Ok(())
    }

    /// The changelog in Debian's format, from which its tools read the version.
    fn changelog(&self) -> Result<String> {
        let Self { version, date, .. } = self;
        let control = fs::read_to_string(workspace().join("packaging/debian/control"))?;
        let maintainer = control
            .lines()
            .find_map(|line| line.strip_prefix("Maintainer: "));
        let maintainer = maintainer.context("debian/control names no maintainer")?;
        let written = Command::new("date")
            .args(["--utc", "--rfc-email", "--date", &format!("@{date}")])
            .env("LC_ALL", "C")
            .output()?;
        let written = String::from_utf8(written.stdout)?;
        Ok(format!(
            "guard ({version}) unstable; urgency=medium\n\n  * CHANGELOG.md says what changed.\n\n \
             -- {maintainer}  {}\n",
            written.trim()
        ))
    }

    /// Writes the files that dpkg reads: the package's facts, its scripts, the checksum of each file.
    fn stage_control(&self) -> Result<()> {
        let debian = self.work.join("debian");
        fs::create_dir(&debian)?;
        fs::copy(
            workspace().join("packaging/debian/control"),
            debian.join("control"),
        )?;
        fs::write(debian.join("changelog"), self.changelog()?)?;
        for script in SCRIPTS {
            self.copy(
                &format!("packaging/debian/{script}"),
                &format!("DEBIAN/{script}"),
            )?;
        }
        fs::write(self.place("DEBIAN/conffiles")?, format!("/{POLICY}\n"))?;
        output(
            Command::new("sh")
                .args(["-c", "find usr -type f -print0 | sort -z | xargs -0 md5sum"])
                .env("LC_ALL", "C")
                .current_dir(&self.root),
        )
        .and_then(|sums| Ok(fs::write(self.place("DEBIAN/md5sums")?, sums)?))?;
        // The packages of the shared libraries that the program needs.
        output(
            Command::new("dpkg-shlibdeps")
                .args(PROGRAMS.map(|name| format!("root/usr/bin/{name}")))
                .current_dir(&self.work),
        )?;
        output(
            Command::new("dpkg-gencontrol")
                .args(["-pguard", "-Proot"])
                .current_dir(&self.work),
        )?;
        Ok(())
    }

    /// The path of a file in the package. Creates its folders.
    fn place(&self, name: &str) -> Result<PathBuf> {
        let place = self.root.join(name);
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder)?;
        }
        Ok(place)
    }

    /// Copies a file of the repository.
    fn copy(&self, from: &str, to: &str) -> Result<()> {
        let from = workspace().join(from);
        fs::copy(&from, self.place(to)?).with_context(|| from.display().to_string())?;
        Ok(())
    }
}

const POLICY: &str = "etc/guard/guard.toml";

/// The time of the last change of the source, or SOURCE_DATE_EPOCH if it is set (reproducible-builds.org).
fn date() -> Result<String> {
    if let Ok(date) = env::var("SOURCE_DATE_EPOCH") {
        return Ok(date);
    }
    let commit = Command::new("git")
        .args(["log", "-1", "--format=%ct"])
        .current_dir(workspace())
        .output();
    match commit {
        Ok(commit) if commit.status.success() => {
            Ok(String::from_utf8(commit.stdout)?.trim().into())
        }
        _ => bail!("no date for the package: set SOURCE_DATE_EPOCH to that of the source"),
    }
}

/// The target platform of the binary.
fn host() -> Result<String> {
    let about = output(Command::new("rustc").arg("-vV"))?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc names no host")?.to_owned())
}

/// Compresses a file without its name and date, so that the same text gives the same file.
fn compress(path: &Path) -> Result<()> {
    output(Command::new("gzip").args(["-9", "--no-name"]).arg(path))?;
    Ok(())
}

fn set_modes(folder: &Path) -> Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(EXECUTABLE))?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            set_modes(&path)?;
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_script = path
            .parent()
            .is_some_and(|folder| folder.ends_with("DEBIAN"))
            && SCRIPTS.contains(&&*name);
        let is_program = path
            .parent()
            .is_some_and(|folder| folder.ends_with("usr/bin"));
        let mode = if is_program || is_script {
            EXECUTABLE
        } else {
            FILE
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}
