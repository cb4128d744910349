//! Debian's cloud kernels, for virtual machines: fetched from the mirror that this machine's apt uses,
//! and unpacked beside the user's other caches. None is installed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use lab::vm::{IMAGE, Kernel, MODULES, only_entry};

use super::{announce_and_run, apt};

/// A kernel that Debian keeps up to date.
pub struct KernelSeries {
    pub name: &'static str,
    /// The suites that have it. Of several versions the newest counts.
    suites: &'static [&'static str],
}

/// The oldest kernel that is tested, and the stable one.
pub const KEPT: [KernelSeries; 2] = [
    KernelSeries {
        name: "6.1",
        suites: &["bookworm"],
    },
    KernelSeries {
        name: "6.12",
        suites: &["trixie"],
    },
];

/// Whatever Debian has that is newest, in the suites that can be used on this day.
pub const NEWEST: KernelSeries = KernelSeries {
    name: "newest",
    suites: &["stable-backports", "unstable"],
};

/// Depends on the package of the newest version.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// The packages that a kernel is made of. Before 7.0 it is one.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];

/// How long a kernel is used before a newer version is looked for.
const FRESH: Duration = Duration::from_secs(7 * 24 * 60 * 60);

const APT_CONFIG: &str = "apt.conf";

/// Where Debian has the keys of its archive, in its newer and its older releases.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
];

/// Sees to it that the kernel of a series is there: fetched if there is none, or none of this week.
pub fn keep(series: &KernelSeries) -> Result<()> {
    let KernelSeries { name, suites } = series;
    ensure!(
        env::consts::ARCH == "x86_64",
        "kernels are tested on x86-64 alone"
    );
    let kept = Kernel::of_series(name).ok();
    if kept.is_some() && series.is_fresh() {
        return Ok(());
    }
    match (series.fetch(), kept) {
        (Ok(()), _) => Ok(()),
        (Err(error), Some(Kernel { release, .. })) => {
            println!("setup: going on with the kernel {release}: {error:#}");
            Ok(())
        }
        (Err(error), None) => Err(error).with_context(|| {
            let suites = suites.join(" or ");
            format!("the kernel {name} ({PACKAGE} of Debian {suites}) cannot be had")
        }),
    }
}

impl KernelSeries {
    /// Names the folder of the kernel. Its age is that of the last look for a newer one.
    fn note(&self) -> PathBuf {
        Kernel::cache().join(self.name)
    }

    fn is_fresh(&self) -> bool {
        let looked = fs::metadata(self.note()).and_then(|note| note.modified());
        let age = looked.map(|looked| SystemTime::now().duration_since(looked));
        matches!(age, Ok(Ok(age)) if age < FRESH)
    }

    fn fetch(&self) -> Result<()> {
        let own = Kernel::cache().join(format!("{}.{}", self.name, std::process::id()));
        fs::create_dir_all(&own).with_context(|| own.display().to_string())?;
        let fetched = self.fetch_in(&own);
        let removed = fs::remove_dir_all(&own);
        let name = fetched?;
        removed.with_context(|| own.display().to_string())?;
        let before = fs::read_to_string(self.note()).ok();
        fs::write(self.note(), &name).with_context(|| self.note().display().to_string())?;
        if let Some(before) = before.filter(|before| *before != name) {
            let older = Kernel::cache().join(before);
            fs::remove_dir_all(&older).with_context(|| older.display().to_string())?;
        }
        Kernel::of_series(self.name).map(|_kernel| ())
    }

    /// Returns the name of the folder that the kernel is in.
    fn fetch_in(&self, own: &Path) -> Result<String> {
        let archive = Archive::open(self.suites, own)?;
        let packages = archive.kernel_packages()?;
        let files = archive.file_names(&packages)?;
        let image = files.iter().find(|file| file.starts_with("linux-image-"));
        let name = image.context("there is no linux-image among its packages")?;
        let name = name.trim_end_matches(".deb").to_owned();
        let place = Kernel::cache().join(&name);
        if place.is_dir() {
            return Ok(name);
        }
        archive.download(&packages)?;
        let tree = own.join("tree");
        for file in &files {
            announce_and_run(
                Command::new("dpkg-deb")
                    .arg("--extract")
                    .args([&own.join(file), &tree]),
            )?;
        }
        let kernel = own.join("kernel");
        arrange(&tree, &kernel)?;
        // It is there whole or not at all.
        match fs::rename(&kernel, &place) {
            // Another setup was faster.
            Err(_) if place.is_dir() => Ok(name),
            renamed => {
                renamed.with_context(|| place.display().to_string())?;
                Ok(name)
            }
        }
    }
}

/// Lays out a kernel in the same way whichever packages it came in: its image, and its modules with an
/// index of what each needs.
fn arrange(tree: &Path, kernel: &Path) -> Result<()> {
    let modules = [MODULES, "usr/lib/modules"].map(|place| tree.join(place));
    let modules = modules.into_iter().find(|place| place.is_dir());
    let modules = modules.context("its packages have no modules")?;
    let release = only_entry(&modules)?;
    let images = [
        tree.join("boot").join(format!("vmlinuz-{release}")),
        modules.join(&release).join("vmlinuz"),
    ];
    let image = images.iter().find(|image| image.is_file());
    let image = image.context("its packages have no vmlinuz")?;
    fs::create_dir_all(kernel.join("lib"))?;
    fs::rename(image, kernel.join(IMAGE))?;
    fs::rename(&modules, kernel.join(MODULES))?;
    announce_and_run(
        Command::new("depmod")
            .arg("--basedir")
            .arg(kernel)
            .arg(&release),
    )
}

/// Suites of Debian's, as an apt of their own sees them: the machine's apt is not touched.
struct Archive {
    folder: PathBuf,
    mirror: String,
}

impl Archive {
    /// Reads the package lists of these suites from the machine's own mirror. A suite whose signature does not hold is
    /// left out if there is another: that of `unstable` is good for a week, and a mirror may be older.
    fn open(suites: &[&str], folder: &Path) -> Result<Self> {
        let archive = Self::prepare(folder)?;
        let Err(error) = archive.read(suites) else {
            return Ok(archive);
        };
        let mut usable = suites.to_vec();
        usable.retain(|suite| archive.read(&[suite]).is_ok());
        if usable.is_empty() || usable.len() == suites.len() {
            return Err(error);
        }
        println!("setup: going on with Debian's {} alone", usable.join(", "));
        archive.read(&usable)?;
        Ok(archive)
    }

    fn prepare(folder: &Path) -> Result<Self> {
        for place in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(place))?;
        }
        // Backports count as much as others.
        fs::write(
            folder.join("preferences"),
            "Package: *\nPin: release o=Debian\nPin-Priority: 500\n",
        )?;
        // The folder is the user's own, where the user `_apt` has no business.
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
        })
    }

    /// Reads the package lists of these suites, in the place of what was read before.
    fn read(&self, suites: &[&str]) -> Result<()> {
        let Self { folder, mirror } = self;
        let keyring = KEYRINGS.into_iter().find(|path| Path::new(path).is_file());
        let signed_by = keyring.map_or(String::new(), |path| format!("Signed-By: {path}\n"));
        let suites = suites.join(" ");
        fs::write(
            folder.join("debian.sources"),
            format!(
                "Types: deb\nURIs: {mirror}\nSuites: {suites}\nComponents: main\n\
                 Architectures: amd64\n{signed_by}"
            ),
        )?;
        announce_and_run(
            self.apt("apt-get")
                .args(["update", "--quiet", "--error-on=any"])
                .stdout(Stdio::null()),
        )
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", self.folder.join(APT_CONFIG))
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        command
    }

    /// The packages that make up the newest kernel.
    fn kernel_packages(&self) -> Result<Vec<String>> {
        let mut found: Vec<String> = Vec::new();
        let mut open = vec![PACKAGE.to_owned()];
        while let Some(package) = open.pop() {
            let depends = ["depends", "--important", &package];
            let text = lab::process::run(self.apt("apt-cache").args(depends))?;
            // `  Depends: linux-modules-7.0.1-cloud-amd64`
            let names = text
                .lines()
                .filter_map(|line| line.split_once("Depends: ").map(|(_, name)| name.trim()));
            for name in names {
                let is_part = PARTS.iter().any(|part| name.starts_with(part));
                if is_part && !found.iter().any(|known| known == name) {
                    found.push(name.to_owned());
                    open.push(name.to_owned());
                }
            }
        }
        // Packages that only depend on others have no version in their names.
        found.retain(|name| name.contains('.'));
        ensure!(!found.is_empty(), "{PACKAGE} depends on no kernel");
        Ok(found)
    }

    /// What the packages' files are called, which says their versions.
    fn file_names(&self, packages: &[String]) -> Result<Vec<String>> {
        let mut command = self.apt("apt-get");
        command.args(["download", "--print-uris"]).args(packages);
        // `'http://…' linux-image-6.12.1-cloud-amd64_6.12.1-1_amd64.deb 34402644 SHA256:…`
        let lines = lab::process::run(&mut command)?;
        let names = lines.lines().filter_map(|line| line.split(' ').nth(1));
        Ok(names.map(str::to_owned).collect())
    }

    /// Fetches the packages into the archive's folder.
    fn download(&self, packages: &[String]) -> Result<()> {
        announce_and_run(
            self.apt("apt-get")
                .args(["download", "--quiet"])
                .args(packages)
                .stdout(Stdio::null()),
        )
    }
}

/// Where this machine's apt gets Debian from.
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
