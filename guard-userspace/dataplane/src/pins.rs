//! Where what outlives an agent is pinned: `<root>/v<layout version>/<interface>/`, with the links that
//! hold the programs on the interface and the maps that generations share.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use guard_common::layout;
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// Where pins are unless told otherwise.
pub const DEFAULT_ROOT: &str = "/sys/fs/bpf/guard";

/// Where the kernel's documentation has the BPF file system (systemd mounts it there).
pub const BPFFS: &str = "/sys/fs/bpf";

/// Only root may open the pins.
const FOLDER_MODE: u32 = 0o700;

pub(super) const LINK: &str = "link";
pub(super) const EGRESS_LINK: &str = "egress";

#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error(
        "{path} is on no BPF file system, and none can be mounted at {BPFFS} ({error}): mount one \
         with `mount -t bpf bpf {BPFFS}`, or name another place with --pins"
    )]
    NoBpffs { path: String, error: io::Error },
    #[error("{path}: {error}")]
    Io { path: String, error: io::Error },
}

impl PinError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |error| Self::Io {
            path: path.display().to_string(),
            error,
        }
    }
}

/// The folder of one interface.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    interface: String,
    folder: PathBuf,
}

impl Pins {
    pub fn new(root: &Path, interface: &str) -> Self {
        Self {
            root: root.to_owned(),
            interface: interface.to_owned(),
            folder: root.join(version_folder()).join(escape(interface)),
        }
    }

    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The interfaces with pins of this layout.
    pub fn existing(root: &Path) -> Result<Vec<Self>, PinError> {
        let folder = root.join(version_folder());
        let names = names_in(&folder)?;
        let interfaces = names.iter().filter_map(|name| unescape(name));
        Ok(interfaces
            .map(|interface| Self::new(root, &interface))
            .collect())
    }

    /// Makes the folder, and mounts a BPF file system for it if there is none.
    pub fn prepare(&self) -> Result<(), PinError> {
        let nearest = self.folder.ancestors().find(|path| path.exists());
        if !nearest.is_some_and(is_bpffs) {
            mount_bpffs(&self.folder)?;
        }
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(FOLDER_MODE);
        builder
            .create(&self.folder)
            .map_err(PinError::io(&self.folder))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(file_of(name))
    }

    /// Where a map waits for the program that uses it to be put in force.
    pub(super) fn next(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{}_next", file_of(name)))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), PinError> {
        remove_file(&self.path(name))
    }

    pub(super) fn remove_next(&self, name: &str) -> Result<(), PinError> {
        remove_file(&self.next(name))
    }

    /// Puts a waiting map in the place of the one before it.
    pub(super) fn take_next(&self, name: &str) -> Result<(), PinError> {
        let path = self.next(name);
        fs::rename(&path, self.path(name)).map_err(PinError::io(&path))
    }

    /// The names of the maps that wait.
    pub(super) fn waiting(&self) -> Result<Vec<String>, PinError> {
        let names = names_in(&self.folder)?;
        let waiting = names.iter().filter_map(|name| name.strip_suffix("_next"));
        Ok(waiting.map(str::to_owned).collect())
    }

    /// The folders of the same interface with other layouts.
    pub(super) fn of_other_layouts(&self) -> Result<Vec<Self>, PinError> {
        let versions = names_in(&self.root)?;
        let others = versions
            .iter()
            .filter(|name| is_version(name) && **name != version_folder());
        let folders = others.map(|version| Self {
            folder: self.root.join(version).join(escape(&self.interface)),
            ..self.clone()
        });
        Ok(folders.filter(|pins| pins.folder.is_dir()).collect())
    }

    /// Removes every pin. Programs whose link nobody else holds leave their interface with it: the
    /// link goes first, so that nothing is judged by a program whose state is going.
    pub fn remove_all(&self) -> Result<(), PinError> {
        self.remove(LINK)?;
        self.remove(EGRESS_LINK)?;
        for name in names_in(&self.folder)? {
            remove_file(&self.folder.join(name))?;
        }
        remove_folder(&self.folder)?;
        // The folders above it, if nothing else is in them.
        for folder in self.folder.ancestors().skip(1).take(2) {
            if remove_folder(folder).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// Every folder of every layout below this root.
pub fn all(root: &Path) -> Result<Vec<Pins>, PinError> {
    let mut all = Vec::new();
    for version in names_in(root)?.into_iter().filter(|name| is_version(name)) {
        let folder = root.join(&version);
        for name in names_in(&folder)? {
            all.extend(unescape(&name).map(|interface| Pins {
                root: root.to_owned(),
                interface,
                folder: folder.join(&name),
            }));
        }
    }
    Ok(all)
}

/// The network namespace of this process, by its inode.
pub fn network_namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/self/ns/net")?.ino())
}

/// No dot, which the names of sections have: the kernel keeps names with one for itself (bpf_lookup in
/// kernel/bpf/inode.c).
fn file_of(name: &str) -> String {
    name.replace('.', "_")
}

fn is_version(name: &str) -> bool {
    let number = name.strip_prefix('v');
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

fn version_folder() -> String {
    format!("v{}", layout::VERSION)
}

/// The kernel refuses names with a dot, which interfaces have.
fn escape(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
}

fn unescape(name: &str) -> Option<String> {
    (!name.contains('.')).then(|| name.replace("%2e", ".").replace("%25", "%"))
}

pub fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}

fn mount_bpffs(folder: &Path) -> Result<(), PinError> {
    let failed = |error| PinError::NoBpffs {
        path: folder.display().to_string(),
        error,
    };
    if !folder.starts_with(BPFFS) {
        return Err(failed(io::Error::other(format!("it is not below {BPFFS}"))));
    }
    // Mounted twice, the second would hide what is pinned in the first.
    let place = fs::File::open(BPFFS).map_err(failed)?;
    let _turn =
        Flock::lock(place, FlockArg::LockExclusive).map_err(|(_, error)| failed(error.into()))?;
    if is_bpffs(Path::new(BPFFS)) {
        return Ok(());
    }
    mount(
        Some("bpf"),
        BPFFS,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        None::<&str>,
    )
    .map_err(|error| failed(error.into()))
}

fn names_in(folder: &Path) -> Result<Vec<String>, PinError> {
    match fs::read_dir(folder) {
        Ok(entries) => entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<_>>()
            .map_err(PinError::io(folder)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(PinError::io(folder)(error)),
    }
}

fn remove_file(path: &Path) -> Result<(), PinError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PinError::io(path)(error)),
        _ => Ok(()),
    }
}

fn remove_folder(path: &Path) -> Result<(), PinError> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PinError::io(path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_refuses_are_escaped_and_read_back() {
        for interface in ["eth0", "eth0.100", "a%2eb", "%", "..."] {
            let name = escape(interface);
            assert!(!name.contains('.'), "{name}");
            assert_eq!(unescape(&name).as_deref(), Some(interface));
        }
    }
}
