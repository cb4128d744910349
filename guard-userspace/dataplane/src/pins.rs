//! The pins, which outlive an agent. `<root>/v<layout version>/<interface>/` has the links and counters of an
//! interface; the folder `%host` beside it has the maps that all interfaces and generations share.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use guard_common::layout;
use guard_host::claim::{Claim, ClaimAttempt};

use super::link_info;
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
    unistd::geteuid,
};

/// The default folder of the pins.
pub const DEFAULT_ROOT: &str = "/sys/fs/bpf/guard";

/// The usual mount point of the BPF file system (systemd mounts it there).
pub const BPFFS: &str = "/sys/fs/bpf";

/// Only root may open the pins.
const FOLDER_MODE: u32 = 0o700;

/// The folder of the shared maps. No interface's name is escaped to this name. An agent of an older layout removes it
/// like the folder of an interface.
const HOST: &str = "%host";

pub(super) const LINK: &str = "link";
pub(super) const EGRESS_LINK: &str = "egress";

/// Why pins cannot be made, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error(
        "the folder {path} for pins is on no BPF file system ({error}): leave out --pins, or mount one with \
         `mount -t bpf bpf FOLDER` and name a folder below it with --pins"
    )]
    NoBpffs { path: String, error: io::Error },
    #[error(
        "only root may open the pins in {0}: join group guard to ask a running agent, or use sudo"
    )]
    NotPermitted(String),
    #[error("{path}: {error}")]
    Io { path: String, error: io::Error },
    #[error(
        "another agent holds the pins in {0}: stop it, or give this one other --pins, --state and \
         --socket"
    )]
    Taken(String),
}

impl PinError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |error| {
            let path = path.display().to_string();
            match error.kind() {
                io::ErrorKind::PermissionDenied if !geteuid().is_root() => Self::NotPermitted(path),
                _ => Self::Io { path, error },
            }
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
    /// The folder of an interface below `root`. It need not exist.
    pub fn new(root: &Path, interface: &str) -> Self {
        Self {
            root: root.to_owned(),
            interface: interface.to_owned(),
            folder: root.join(version_folder()).join(escape(interface)),
        }
    }

    /// The pins that all interfaces share.
    pub fn of_host(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            interface: HOST.to_owned(),
            folder: root.join(version_folder()).join(HOST),
        }
    }

    /// The interface's name at this moment.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The name that the interface had when these pins were created. It is the name of their folder.
    pub fn made_for(&self) -> String {
        let folder = self.folder.file_name().map(|name| name.to_string_lossy());
        folder.and_then(|name| unescape(&name)).unwrap_or_default()
    }

    /// Sets the name that the interface has at this moment.
    pub fn set_interface(&mut self, name: &str) {
        name.clone_into(&mut self.interface);
    }

    /// These pins, with the name that the interface of their link has at this moment.
    #[must_use]
    pub fn called(mut self, name_of: impl FnOnce(u32) -> Option<String>) -> Self {
        let index = link_info::interface_of(&self.path(LINK)).ok().flatten();
        if let Some(name) = index.and_then(name_of) {
            self.interface = name;
        }
        self
    }

    /// The interfaces with pins of this layout.
    pub fn existing(root: &Path) -> Result<Vec<Self>, PinError> {
        let folder = root.join(version_folder());
        if !folder.is_dir() {
            // A root that is not a folder is an error. Below the root, another file with the folder's name is not.
            names_in(root)?;
            return Ok(Vec::new());
        }
        let names = names_in(&folder)?;
        let interfaces = names.iter().filter_map(|name| unescape(name));
        Ok(interfaces
            .map(|interface| Self::new(root, &interface))
            .filter(|pins| pins.folder.is_dir())
            .collect())
    }

    /// Whether these pins have the layout of this version of guard.
    pub(super) fn is_of_this_layout(&self) -> bool {
        self.folder.parent() == Some(&self.root.join(version_folder()))
    }

    /// Creates the folder, and mounts a BPF file system for it if there is none.
    pub fn prepare(&self) -> Result<(), PinError> {
        prepare(&self.folder)
    }

    /// The folder below which all pins are.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(file_of(name))
    }

    /// The path at which a map is pinned until the program that uses it is in force.
    pub(super) fn next(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{}_next", file_of(name)))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), PinError> {
        remove_odd(&self.path(name))
    }

    pub(super) fn remove_next(&self, name: &str) -> Result<(), PinError> {
        remove_odd(&self.next(name))
    }

    /// Replaces a map by its waiting successor.
    pub(super) fn take_next(&self, name: &str) -> Result<(), PinError> {
        let path = self.next(name);
        fs::rename(&path, self.path(name)).map_err(PinError::io(&path))
    }

    /// The names of the waiting maps.
    pub(super) fn waiting(&self) -> Result<Vec<String>, PinError> {
        let names = names_in(&self.folder)?;
        let waiting = names.iter().filter_map(|name| name.strip_suffix("_next"));
        let maps = waiting.filter(|name| !self.next(name).is_dir());
        Ok(maps.map(str::to_owned).collect())
    }

    /// The folders of the same interface with other layouts.
    pub(super) fn of_other_layouts(&self) -> Result<Vec<Self>, PinError> {
        let versions = names_in(&self.root)?;
        let others = versions
            .iter()
            .filter(|name| is_version(name) && **name != version_folder());
        let folders = others.map(|version| Self {
            folder: self
                .root
                .join(version)
                .join(self.folder.file_name().unwrap_or_default()),
            ..self.clone()
        });
        Ok(folders.filter(|pins| pins.folder.is_dir()).collect())
    }

    /// Removes every pin, and returns the files that stay, with the reason. Removing a link's pin detaches its program,
    /// unless another process holds the link. The links go first, so that no program judges packets while its state is
    /// removed.
    pub fn remove_all(&self) -> Vec<String> {
        for link in [LINK, EGRESS_LINK] {
            // A link that cannot be removed is reported by `remove_files`.
            let _result = self.remove(link);
        }
        let mut left = self.remove_files();
        left.extend(self.remove_folders());
        left
    }

    /// Removes the files in the folder. Returns those that stay, with the reason.
    pub(super) fn remove_files(&self) -> Vec<String> {
        let names = match names_in(&self.folder) {
            Ok(names) => names,
            Err(error) => return vec![error.to_string()],
        };
        let paths = names.iter().map(|name| self.folder.join(name));
        paths
            .filter_map(|path| remove_odd(&path).err())
            .map(|error| error.to_string())
            .collect()
    }

    /// Removes the folder if it is empty, and those above it if nothing else is in them. Returns an error if the folder
    /// is empty and cannot be removed.
    pub(super) fn remove_folders(&self) -> Option<String> {
        if let Err(error) = remove_folder(&self.folder) {
            // The files in it have been reported already.
            let is_named = names_in(&self.folder).is_ok_and(|names| !names.is_empty());
            return (!is_named).then(|| error.to_string());
        }
        for folder in self.folder.ancestors().skip(1).take(2) {
            if remove_folder(folder).is_err() {
                break;
            }
        }
        None
    }

    /// Whether the pin of the link may hold a program: a folder in its place cannot.
    pub(super) fn may_hold_program(&self) -> bool {
        fs::symlink_metadata(self.path(LINK)).is_ok_and(|found| !found.is_dir())
    }
}

/// The folders below a root.
#[derive(Debug, Default)]
pub struct Found {
    /// The folders of interfaces, of every layout.
    pub interfaces: Vec<Pins>,
    /// The folders with shared maps, of every layout.
    pub hosts: Vec<Pins>,
    /// Messages about files that do not belong to guard or cannot be read.
    pub odd: Vec<String>,
}

/// All folders of all layouts below this root, and other files there.
pub fn all(root: &Path) -> Result<Found, PinError> {
    let mut all = Found::default();
    for version in names_in(root)? {
        let folder = root.join(&version);
        let mut words = ExitMark::ALL.iter();
        if words.any(|word| word.name() == version && word.is_left(root)) {
            continue;
        }
        if !is_version(&version) || !folder.is_dir() {
            all.odd
                .push(format!("{} does not belong to guard", folder.display()));
            continue;
        }
        let names = match names_in(&folder) {
            Ok(names) => names,
            Err(error) => {
                all.odd.push(error.to_string());
                continue;
            }
        };
        for name in names {
            let folder = folder.join(&name);
            let is_folder = folder.is_dir();
            let pins = |interface| Pins {
                root: root.to_owned(),
                interface,
                folder: folder.clone(),
            };
            match unescape(&name) {
                Some(interface) if is_folder => all.interfaces.push(pins(interface)),
                None if is_folder && name == HOST => all.hosts.push(pins(name)),
                _ => all
                    .odd
                    .push(format!("{} does not belong to guard", folder.display())),
            }
        }
    }
    Ok(all)
}

/// Removes the shared maps of other layouts that no interface uses any more. Returns those that stay, with the reason.
pub(super) fn remove_hosts_of_other_layouts(root: &Path) -> Result<Vec<String>, PinError> {
    let Found {
        interfaces, hosts, ..
    } = all(root)?;
    let is_unused = |host: &&Pins| {
        !host.is_of_this_layout()
            && interfaces
                .iter()
                .all(|pins| pins.folder.parent() != host.folder.parent())
    };
    let unused = hosts.iter().filter(is_unused);
    Ok(unused.flat_map(Pins::remove_all).collect())
}

/// The mark of an emergency exit that was taken without an agent. It is created among the pins, which need no disk,
/// before the exit is carried out. While it is there, an agent that wakes up in the middle of a load puts nothing in
/// force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitMark {
    /// Every packet shall pass.
    Off,
    /// The guard was detached.
    Detached,
    /// Every packet shall pass, and the state store could not be written. It tells the next agent; it does not stop a
    /// swap of this one.
    OffUnkept,
}

impl ExitMark {
    const ALL: [Self; 3] = [Self::Off, Self::Detached, Self::OffUnkept];

    const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Detached => "detached",
            Self::OffUnkept => "off-unkept",
        }
    }

    /// Creates the mark: an empty folder below the root of the pins.
    pub fn leave(self, root: &Path) -> Result<(), PinError> {
        prepare(&root.join(self.name()))
    }

    /// Whether the mark is there: an empty folder.
    pub fn is_left(self, root: &Path) -> bool {
        let found = fs::read_dir(root.join(self.name()));
        found.is_ok_and(|mut found| found.next().is_none())
    }

    /// When the mark was created, if it is there.
    pub fn left_at(self, root: &Path) -> Option<SystemTime> {
        let left = self.is_left(root);
        let found = left.then(|| fs::metadata(root.join(self.name())).ok());
        found.flatten()?.modified().ok()
    }

    /// Removes the mark. Returns whether it was there.
    pub fn take(self, root: &Path) -> bool {
        fs::remove_dir(root.join(self.name())).is_ok()
    }
}

/// Removes the root of the pins if it is empty. Callers have reported the files that are left in it.
pub fn remove_root(root: &Path) {
    let _result = fs::remove_dir(root);
}

/// Whether an agent holds the pins below a root, even one that hangs.
pub fn is_held(root: &Path) -> bool {
    let is_held = |attempt| !matches!(attempt, ClaimAttempt::Taken(_));
    root.is_dir() && Hold::lock(root).is_ok_and(is_held)
}

/// A lock on the pins below one root: two agents would take the link of an interface from each other. The kernel
/// releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct Hold {
    root: PathBuf,
    folder: Claim,
}

impl Hold {
    /// Locks the pins below a root, unless another agent has locked them.
    pub fn take(root: &Path) -> Result<ClaimAttempt<Self>, PinError> {
        loop {
            prepare(root)?;
            match Self::lock(root)? {
                // An agent that ends removes an empty root: then this lock is on a folder that is gone.
                ClaimAttempt::Taken(hold) if !hold.is_in_place() => {}
                attempt => return Ok(attempt),
            }
        }
    }

    fn lock(root: &Path) -> Result<ClaimAttempt<Self>, PinError> {
        let folder = fs::File::open(root).map_err(PinError::io(root))?;
        // A user who may open a folder may lock it. Only root may, so that no other user can lock out the agent.
        let mode = folder.metadata().map_err(PinError::io(root))?.mode();
        if mode & 0o077 != 0 {
            let closed = fs::Permissions::from_mode(mode & 0o7700);
            folder.set_permissions(closed).map_err(PinError::io(root))?;
        }
        let attempt = Claim::take(folder).map_err(PinError::io(root))?;
        Ok(attempt.map(|folder| Self {
            root: root.to_owned(),
            folder,
        }))
    }

    /// The lock.
    pub fn claim(&self) -> &Claim {
        &self.folder
    }

    /// Whether the locked folder still is the one at the path of the root.
    pub fn is_in_place(&self) -> bool {
        let identity = |found: fs::Metadata| (found.dev(), found.ino());
        let held = self.folder.metadata().map(identity).ok();
        held.is_some() && held == fs::metadata(&self.root).map(identity).ok()
    }

    /// Renews the lock: if the folder was removed, it is created and locked again.
    ///
    /// # Errors
    /// Another agent has locked the pins in the meantime: this agent must end, and leave them to it.
    pub fn renew(&mut self) -> Result<(), PinError> {
        if self.is_in_place() {
            return Ok(());
        }
        match Self::take(&self.root)? {
            ClaimAttempt::Taken(hold) => *self = hold,
            _ => return Err(Self::taken(&self.root)),
        }
        Ok(())
    }

    /// The error that another agent holds the pins.
    pub fn taken(root: &Path) -> PinError {
        PinError::Taken(root.display().to_string())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // A start that failed leaves no folder. A folder that is not empty stays, and so does that of another agent.
        if self.is_in_place() {
            let _result = fs::remove_dir(&self.root);
        }
    }
}

/// Creates a folder, and mounts a BPF file system for it if there is none.
fn prepare(folder: &Path) -> Result<(), PinError> {
    let nearest = folder.ancestors().find(|path| path.exists());
    if !nearest.is_some_and(is_bpffs) {
        mount_bpffs(folder)?;
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(FOLDER_MODE);
    builder.create(folder).map_err(PinError::io(folder))
}

/// The network namespace of this process, by its inode.
pub fn network_namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/self/ns/net")?.ino())
}

/// Replaces the dots of section names: the kernel reserves names with a dot (bpf_lookup in kernel/bpf/inode.c).
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

/// Escapes an interface's name: the kernel refuses names with a dot.
fn escape(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
}

fn unescape(name: &str) -> Option<String> {
    (!name.contains('.') && name != HOST).then(|| name.replace("%2e", ".").replace("%25", "%"))
}

/// Whether a BPF file system is mounted at the path.
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
    // A second mount would hide the pins of the first, so only one process mounts at a time.
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

/// Removes a pin, or an empty folder that lies in its place.
fn remove_odd(path: &Path) -> Result<(), PinError> {
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
        return remove_folder(path);
    }
    remove_file(path)
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

    /// Creates folders as on a BPF file system, in a temporary folder.
    fn folders(names: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for name in names {
            fs::create_dir_all(root.path().join(name)).unwrap();
        }
        root
    }

    fn interfaces(pins: &[Pins]) -> Vec<&str> {
        let mut names: Vec<&str> = pins.iter().map(Pins::interface).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn other_files_than_folders_of_interfaces_are_skipped_and_reported() {
        let ours = version_folder();
        let wan = format!("{ours}/wan");
        let host = format!("{ours}/%host");
        let root = folders(&[&wan, &host, "v0/lan%2e7", "v0/%host", "junk/eth0"]);
        fs::write(root.path().join("file"), "").unwrap();
        fs::write(root.path().join(&ours).join("odd"), "").unwrap();
        let Found {
            interfaces: pins,
            hosts,
            odd,
        } = all(root.path()).unwrap();
        assert_eq!(interfaces(&pins), ["lan.7", "wan"]);
        assert_eq!(hosts.len(), 2, "{hosts:?}");
        assert_eq!(odd.len(), 3, "{odd:?}");
        let existing = Pins::existing(root.path()).unwrap();
        assert_eq!(interfaces(&existing), ["wan"]);
        assert!(existing.iter().all(Pins::is_of_this_layout));
        assert!(!pins.iter().all(Pins::is_of_this_layout));
        // The shared maps of another layout are removed after its last interface.
        assert!(
            remove_hosts_of_other_layouts(root.path())
                .unwrap()
                .is_empty()
        );
        assert_eq!(all(root.path()).unwrap().hosts.len(), 2);
        fs::remove_dir(root.path().join("v0/lan%2e7")).unwrap();
        assert!(
            remove_hosts_of_other_layouts(root.path())
                .unwrap()
                .is_empty()
        );
        let left = all(root.path()).unwrap().hosts;
        assert!(left.len() == 1 && left[0].is_of_this_layout(), "{left:?}");
    }

    #[test]
    fn the_mark_of_an_exit_is_not_reported_and_is_taken_once() {
        let root = folders(&["off", "detached", "off-unkept"]);
        assert_eq!(all(root.path()).unwrap().odd, Vec::<String>::new());
        for word in ExitMark::ALL {
            assert!(word.take(root.path()));
            assert!(!word.take(root.path()));
        }
    }

    #[test]
    fn a_folder_that_is_not_empty_is_no_mark_and_is_reported() {
        let root = folders(&["off/inside"]);
        assert!(!ExitMark::Off.is_left(root.path()) && !ExitMark::Off.take(root.path()));
        let odd = all(root.path()).unwrap().odd;
        assert!(odd.len() == 1 && odd[0].contains("off"), "{odd:?}");
        fs::remove_dir(root.path().join("off/inside")).unwrap();
        assert!(ExitMark::Off.is_left(root.path()) && ExitMark::Off.left_at(root.path()).is_some());
        assert!(all(root.path()).unwrap().odd.is_empty());
        assert!(ExitMark::Off.take(root.path()) && !ExitMark::Off.is_left(root.path()));
    }

    #[test]
    fn a_missing_root_has_no_pins_and_one_that_is_a_file_is_an_error() {
        let root = folders(&[]);
        let missing = root.path().join("missing");
        assert!(Pins::existing(&missing).unwrap().is_empty());
        assert!(all(&missing).unwrap().interfaces.is_empty());
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(Pins::existing(&file).is_err());
        assert!(all(&file).is_err());
        // A file in the place of the layout's folder is reported.
        fs::write(root.path().join(version_folder()), "").unwrap();
        assert!(Pins::existing(root.path()).unwrap().is_empty());
        assert_eq!(all(root.path()).unwrap().odd.len(), 2);
    }

    #[test]
    fn all_pins_that_can_be_removed_are_and_the_rest_is_reported() {
        let ours = version_folder();
        let [full, empty] = ["full/inside", "empty"].map(|name| format!("{ours}/wan/{name}"));
        let root = folders(&[&full, &empty]);
        let pins = Pins::new(root.path(), "wan");
        for name in [LINK, EGRESS_LINK, "COUNTERS", "zzz_next"] {
            fs::write(pins.path(name), "").unwrap();
        }
        let left = pins.remove_all();
        assert!(
            matches!(&left[..], [left] if left.contains("wan/full")),
            "{left:?}"
        );
        assert_eq!(names_in(&pins.folder).unwrap(), ["full"]);
        fs::remove_dir_all(pins.folder.join("full")).unwrap();
        assert_eq!(pins.remove_all(), Vec::<String>::new());
        assert!(
            !root.path().exists(),
            "the folders above go with the last one"
        );
    }

    #[test]
    fn a_folder_that_is_made_again_is_taken_again_unless_another_agent_has_it() {
        let place = folders(&["guard"]);
        let root = place.path().join("guard");
        // `lock` works on any file system; `take` needs a BPF file system.
        let lock = || match Hold::lock(&root).unwrap() {
            ClaimAttempt::Taken(hold) => Some(hold),
            _ => None,
        };
        let mut hold = lock().unwrap();
        assert!(lock().is_none());
        let mode = fs::metadata(&root).unwrap().mode();
        assert_eq!(mode & 0o077, 0, "no other user may lock it");
        fs::remove_dir(&root).unwrap();
        fs::create_dir(&root).unwrap();
        assert!(!hold.is_in_place());
        let second = lock().unwrap();
        assert!(second.is_in_place());
        assert!(hold.renew().is_err());
        drop(second);
        assert!(!root.exists(), "it was empty");
    }

    #[test]
    fn names_that_the_kernel_refuses_are_escaped_and_read_back() {
        for interface in ["eth0", "eth0.100", "a%2eb", "%", "...", HOST] {
            let name = escape(interface);
            assert!(!name.contains('.'), "{name}");
            assert_eq!(unescape(&name).as_deref(), Some(interface));
        }
    }
}
