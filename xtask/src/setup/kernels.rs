//! Downloads Debian's cloud kernels for virtual machines, from the mirror of this machine's apt, and unpacks them into
//! the user's caches. No kernel is installed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use lab::vm::{IMAGE, Kernel, MODULES, only_entry};

use super::{announce_and_run, archive::Archive};

/// A kernel that Debian keeps up to date.
pub struct KernelSeries {
    pub name: &'static str,
    /// The suites that have it. Of several versions the newest is used.
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

/// The newest kernel of Debian, in the suites that are usable today.
pub const NEWEST: KernelSeries = KernelSeries {
    name: "newest",
    suites: &["stable-backports", "unstable"],
};

/// The metapackage, which depends on the package of the newest version.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// The prefixes of a kernel's packages. Before 7.0 a kernel is one package.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];

/// The time that a kernel is used before the setup looks for a newer version.
const FRESH: Duration = Duration::from_secs(7 * 24 * 60 * 60);

const ARCHITECTURE: &str = "amd64";

/// Makes the kernel of a series available: downloads it if it is missing, or if the last look is a week old.
pub fn keep(series: &KernelSeries) -> Result<()> {
    let KernelSeries { name, suites } = series;
    ensure!(
        env::consts::ARCH == "x86_64",
        "kernels are tested only on x86-64"
    );
    let kept = Kernel::of_series(name).ok();
    if kept.is_some() && series.is_fresh() {
        return Ok(());
    }
    match (series.fetch(), kept) {
        (Ok(()), _) => Ok(()),
        (Err(error), Some(Kernel { release, .. })) => {
            println!("setup: continuing with the kernel {release}: {error:#}");
            Ok(())
        }
        (Err(error), None) => Err(error).with_context(|| {
            let suites = suites.join(" or ");
            format!("the kernel {name} ({PACKAGE} of Debian {suites}) cannot be downloaded")
        }),
    }
}

impl KernelSeries {
    /// The file that names the kernel's folder. Its modification time is that of the last look for a newer version.
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
        let archive = Archive::open(self.suites, ARCHITECTURE, own)?;
        let packages = kernel_packages(&archive)?;
        let files = archive.file_names(&packages)?;
        let image = files.iter().find(|file| file.starts_with("linux-image-"));
        let name = image.context("the kernel's packages have no linux-image")?;
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
        // The rename is atomic: the folder is complete or absent.
        match fs::rename(&kernel, &place) {
            // Another setup has unpacked it meanwhile.
            Err(_) if place.is_dir() => Ok(name),
            renamed => {
                renamed.with_context(|| place.display().to_string())?;
                Ok(name)
            }
        }
    }
}

/// Gives every kernel the same layout, for any set of packages: its image, and its modules with the index of their
/// dependencies.
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

/// The packages that make up the newest kernel.
fn kernel_packages(archive: &Archive) -> Result<Vec<String>> {
    let mut found: Vec<String> = Vec::new();
    let mut open = vec![PACKAGE.to_owned()];
    while let Some(package) = open.pop() {
        let depends = ["depends", "--important", &package];
        let text = lab::process::run(archive.apt("apt-cache").args(depends))?;
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
