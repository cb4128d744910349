//! The state file.
//!
//! It has one JSON object per line, so that a truncated or corrupted file loses only the damaged lines. A writer writes
//! a complete new file beside it, syncs that, and replaces the old file by compare-and-swap. If another writer has
//! changed the file since it was read, those changes are merged and never overwritten.

use std::{
    fs,
    io::{self, BufWriter, Read as _, Write as _},
    mem,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use nix::libc;
use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};
use tempfile::{Builder, TempPath};
use tracing::warn;

use super::{
    StoreError, StoredState, folder,
    lines::{StoreLine, read},
    lock,
    merge::merge,
};

const FILE: &str = "state.jsonl";

/// The prefixes of the names of files that are being written, and of copies of broken files.
const UNFINISHED: &str = "state.unfinished-";
const BROKEN: &str = "state.broken-";

/// The limit of copies of broken files.
const MAX_BROKEN: usize = 3;

/// The longest state file: the longest policy as JSON, and as many entries as there is room for.
const MAX_BYTES: u64 = 1 << 28;

/// The number of attempts of a writer that other writers overtake.
const ATTEMPTS: usize = 8;

/// Identifies a version of the file: every writer creates a new inode, and an editor changes the modification time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    inode: u64,
    modified: (i64, i64),
    bytes: u64,
}

impl Identity {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            bytes: metadata.len(),
        }
    }
}

/// The state, and its file.
///
/// A change of [`kept`](Self::kept) is visible to its owner at once. It is on the disk when [`save`](Self::save) or
/// [`update`](Self::update) has returned without an error.
#[derive(Debug)]
pub struct StateStore {
    folder: PathBuf,
    path: PathBuf,
    pub kept: StoredState,
    /// The state in the file when it was last read or written.
    base: StoredState,
    /// The version of the file at that time. `None`: there was no file, or it could not be read.
    seen: Option<Identity>,
    /// The file has lines that would be lost, and there is no copy yet.
    is_broken: bool,
    /// Other writers have changed something since the last call of [`changed_outside`](Self::changed_outside).
    is_news: bool,
}

impl StateStore {
    /// Reads the valid lines. A damaged file is copied aside, with a warning that names the lost lines. A file that
    /// cannot be read gives a warning, and is never overwritten.
    pub fn open(folder: &Path) -> Self {
        let mut store = Self {
            folder: folder.to_owned(),
            path: folder.join(FILE),
            kept: StoredState::default(),
            base: StoredState::default(),
            seen: None,
            is_broken: false,
            is_news: false,
        };
        // An error of the folder is reported when the file is read or written.
        let _result = folder::make(folder);
        // Under the lock of writers, no other process is writing: unfinished files are leftovers.
        if lock::for_writing(folder).is_some() {
            let _result = sweep(folder);
        }
        store.set_aside_other_kind_of_file();
        match read_file(&store.path) {
            Ok(None) => {}
            Ok(Some((identity, kept, problems))) => {
                store.seen = Some(identity);
                store.base = kept.clone();
                store.kept = kept;
                store.report_problems(&problems, "its valid lines are used");
            }
            Err(error) => warn!("{}: its content is not used", store.unreadable(error)),
        }
        store
    }

    /// Moves away a pipe, which would block the reader for ever, or a folder in the place of the file.
    fn set_aside_other_kind_of_file(&self) {
        let Self { folder, path, .. } = self;
        if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
            let aside = aside(folder);
            let result = fs::rename(path, &aside);
            let what = match result {
                Ok(()) => format!("it is set aside as {}", aside.display()),
                Err(error) => format!("it cannot be set aside: {error}"),
            };
            warn!("{} is not a regular file: {what}", path.display());
        }
    }

    fn report_problems(&mut self, problems: &[String], consequence: &str) {
        if problems.is_empty() {
            return;
        }
        self.is_broken = true;
        let copied = match self.set_aside() {
            Ok(aside) => format!("a copy is in {}", aside.display()),
            Err(error) => {
                format!("the state is not saved until the file can be copied ({error})")
            }
        };
        let first: Vec<&str> = problems.iter().map(String::as_str).take(3).collect();
        warn!(
            "{}: the state file is broken ({} problem(s): {}): {consequence}, and {copied}",
            self.path.display(),
            problems.len(),
            first.join("; ")
        );
    }

    /// Preserves the lines of a newer or a broken file under a second name. A hard link takes no room on the disk, and
    /// stays when the file is replaced.
    fn set_aside(&mut self) -> io::Result<PathBuf> {
        let aside = aside(&self.folder);
        fs::hard_link(&self.path, &aside).or_else(|_| {
            fs::copy(&self.path, &aside).map(drop).inspect_err(|_| {
                // An incomplete copy is useless.
                let _result = fs::remove_file(&aside);
            })
        })?;
        self.is_broken = false;
        Ok(aside)
    }

    /// Merges the changes of other writers, makes a change, and writes the state. The change is made in
    /// [`kept`](Self::kept) even if it cannot be written.
    pub fn update<T>(
        &mut self,
        change: impl FnOnce(&mut StoredState) -> T,
    ) -> (T, Result<(), StoreError>) {
        let _turn = lock::for_writing(&self.folder);
        // If the file cannot be read, writing it returns the error.
        let _result = self.take_in();
        let changed = change(&mut self.kept);
        (changed, self.save_in_turn())
    }

    /// Writes the whole state, or nothing. Changes of other writers are merged first, and
    /// [`changed_outside`](Self::changed_outside) reports them.
    pub fn save(&mut self) -> Result<(), StoreError> {
        folder::make(&self.folder).map_err(|error| self.io(error))?;
        let _turn = lock::for_writing(&self.folder);
        self.save_in_turn()
    }

    /// Whether other writers have changed something since the last call, as `guard mode off` and `guard detach` do
    /// while an agent hangs. The change is in [`kept`](Self::kept).
    pub fn changed_outside(&mut self) -> bool {
        // A file that cannot be read counts as not changed. Writing it returns the error.
        let _result = self.take_in();
        mem::take(&mut self.is_news)
    }

    fn save_in_turn(&mut self) -> Result<(), StoreError> {
        for _ in 0..ATTEMPTS {
            self.take_in()?;
            if self.is_broken {
                self.set_aside().map_err(|error| self.io(error))?;
            }
            if self.write().map_err(|error| self.io(error))? {
                return Ok(());
            }
        }
        Err(StoreError::Busy(self.path.display().to_string()))
    }

    /// Reads the file if it has changed, and merges its changes.
    fn take_in(&mut self) -> Result<(), StoreError> {
        match fs::symlink_metadata(&self.path) {
            Ok(found) if self.seen == Some(Identity::of(&found)) => return Ok(()),
            Ok(found) if !found.is_file() => {
                return Err(self.io(io::Error::other(
                    "there is something other than a regular file in its place",
                )));
            }
            _ => {}
        }
        let found = read_file(&self.path);
        match found.map_err(|error| self.unreadable(error))? {
            // The file was removed: it is written again.
            None => self.seen = None,
            Some((identity, theirs, problems)) if problems.is_empty() => {
                self.merge_in(&theirs);
                self.base = theirs;
                self.seen = Some(identity);
            }
            // Not merged: the missing lines of a damaged file would look like removals.
            Some((identity, _, problems)) => {
                self.seen = Some(identity);
                self.report_problems(&problems, "the state in memory will replace it");
            }
        }
        Ok(())
    }

    fn merge_in(&mut self, theirs: &StoredState) {
        let merged = merge(&self.base, &self.kept, theirs);
        self.is_news |= merged != self.kept;
        self.kept = merged;
    }

    /// Replaces the file that was last read by a new one. `false`: another writer has changed the file in between. Its
    /// changes are merged, and the caller tries again.
    fn write(&mut self) -> io::Result<bool> {
        let written = self.kept.clone();
        let (file, identity) = self.write_beside(&written)?;
        let swapped = match self.seen {
            Some(_) => renameat_with(CWD, &*file, CWD, &self.path, RenameFlags::EXCHANGE),
            None => renameat_with(CWD, &*file, CWD, &self.path, RenameFlags::NOREPLACE),
        };
        match swapped {
            Ok(()) => {}
            // The file was removed or created meanwhile.
            Err(Errno::NOENT | Errno::EXIST) => {
                self.seen = None;
                return Ok(false);
            }
            // The file system has no RENAME_EXCHANGE and RENAME_NOREPLACE (Linux 3.15, renameat2(2)).
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                if identity_of(&self.path) != self.seen {
                    return Ok(false);
                }
                fs::rename(&file, &self.path)?;
                self.seen = None;
            }
            Err(error) => return Err(error.into()),
        }
        let expected = self.seen.replace(identity);
        let before = mem::replace(&mut self.base, written);
        // After the exchange, the name of the new file has the old one. It must be the version that was last read.
        if expected.is_some() && identity_of(&file) != expected {
            match read_file(&file) {
                Ok(Some((_, theirs, problems))) if problems.is_empty() => {
                    let merged = merge(&before, &self.kept, &theirs);
                    self.is_news |= merged != self.kept;
                    self.kept = merged;
                }
                // Not a valid state file: it is set aside, because it is not the guard's to remove.
                _ => fs::rename(&file, aside(&self.folder))?,
            }
            return Ok(false);
        }
        // The rename survives a power loss only after the folder is synced.
        fs::File::open(&self.folder)?.sync_all()?;
        Ok(true)
    }

    fn write_beside(&self, kept: &StoredState) -> io::Result<(TempPath, Identity)> {
        let file = Builder::new()
            .prefix(UNFINISHED)
            .tempfile_in(&self.folder)?;
        // Buffered: serde_json writes a string in a piece per escaped line break, and each would be a system call.
        let mut buffered = BufWriter::new(file);
        let lines = kept.lines();
        let end = StoreLine::End { lines: lines.len() };
        for line in lines.iter().chain([&end]) {
            serde_json::to_writer(&mut buffered, line)?;
            buffered.write_all(b"\n")?;
        }
        let file = buffered
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        let identity = Identity::of(&file.as_file().metadata()?);
        Ok((file.into_temp_path(), identity))
    }

    fn io(&self, error: io::Error) -> StoreError {
        StoreError::Io {
            path: self.path.display().to_string(),
            error,
        }
    }

    fn unreadable(&self, error: io::Error) -> StoreError {
        StoreError::Unreadable {
            path: self.path.display().to_string(),
            error,
        }
    }
}

/// Reads a file: its version, its valid lines, and the problems of the others. `None`: there is no file.
fn read_file(path: &Path) -> io::Result<Option<(Identity, StoredState, Vec<String>)>> {
    let opened = fs::OpenOptions::new()
        .read(true)
        // If a pipe is in its place, the call must not wait for a writer.
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if metadata.len() > MAX_BYTES {
        return Err(io::Error::other(format!(
            "it has {} bytes, and the most is {MAX_BYTES}",
            metadata.len()
        )));
    }
    let mut bytes = Vec::new();
    (&file).take(MAX_BYTES).read_to_end(&mut bytes)?;
    let (kept, problems) = read(&bytes);
    Ok(Some((Identity::of(&metadata), kept, problems)))
}

fn identity_of(path: &Path) -> Option<Identity> {
    let metadata = fs::symlink_metadata(path).ok()?;
    metadata.is_file().then(|| Identity::of(&metadata))
}

fn aside(folder: &Path) -> PathBuf {
    folder.join(format!("{BROKEN}{}", Timestamp::now().as_millisecond()))
}

/// Removes unfinished files, which a power loss leaves, and all but the newest copies of broken files.
fn sweep(folder: &Path) -> io::Result<()> {
    let mut broken = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(UNFINISHED) {
            // An error is harmless: a writer without the lock may just have renamed its file.
            let _result = fs::remove_file(folder.join(name));
        } else if name.starts_with(BROKEN) {
            broken.push(name);
        }
    }
    broken.sort_unstable();
    for name in broken.iter().rev().skip(MAX_BROKEN) {
        // An error is harmless: a folder that was set aside stays.
        let _result = fs::remove_file(folder.join(name));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use guard_common::reason::Mode;

    use super::*;
    use crate::state_store::{ChangedMode, tests::full};

    fn off(kept: &mut StoredState) {
        kept.modes.host = Some(ChangedMode {
            mode: Mode::Off,
            since: Timestamp::UNIX_EPOCH,
            by: None,
            process: None,
            claimed_by: None,
        });
    }

    fn is_off(kept: &StoredState) -> bool {
        kept.modes
            .host
            .as_ref()
            .is_some_and(|changed| changed.mode == Mode::Off)
    }

    fn written(kept: &StoredState) -> (tempfile::TempDir, StateStore, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let mut store = StateStore::open(folder.path());
        assert_eq!(store.kept, StoredState::default());
        store.kept = kept.clone();
        store.save().unwrap();
        let bytes = fs::read(&store.path).unwrap();
        (folder, store, bytes)
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
        entries
            .map(|entry| name(entry).to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn a_saved_state_is_read_back_and_leaves_no_other_file() {
        let (folder, mut store, _) = written(&full());
        store.save().unwrap();
        assert_eq!(StateStore::open(folder.path()).kept, full());
        assert_eq!(names(folder.path()), [FILE]);
    }

    #[test]
    fn a_file_of_an_older_version_is_read_and_unknown_fields_are_not_written() {
        let lines = [
            r#"{"what":"guard","version":1}"#,
            r#"{"what":"last_id","id":3}"#,
            r#"{"what":"docker"}"#,
            r#"{"what":"published","port":"tcp/8000","ipv6":false}"#,
            r#"{"what":"end","lines":4}"#,
        ];
        let (kept, problems) = read(lines.join("\n").as_bytes());
        assert_eq!(problems, Vec::<String>::new());
        let known = kept.containers.unwrap();
        assert_eq!((known.socket, known.daemon), (None, None));
        assert_eq!(known.containers.published.len(), 1);
        // Unknown values are not written: older versions refuse a line with fields that they do not know.
        let (_, _, bytes) = written(&StoredState {
            containers: Some(crate::state_store::KnownContainers::default()),
            ..StoredState::default()
        });
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains("{\"what\":\"docker\"}\n"), "{text}");
    }

    #[test]
    fn cut_off_at_any_byte_it_yields_its_whole_lines_and_says_that_some_are_lost() {
        let (_folder, _, bytes) = written(&full());
        let whole = bytes.len();
        for end in 0..whole - 1 {
            let (kept, problems) = read(&bytes[..end]);
            assert!(!problems.is_empty(), "cut off at {end} of {whole}");
            let lines = bytes[..end].split_inclusive(|byte| *byte == b'\n');
            let whole_lines: Vec<u8> = lines
                .filter(|line| line.ends_with(b"\n"))
                .flatten()
                .copied()
                .collect();
            let (sound, _) = read(&whole_lines);
            assert!(kept == sound || kept.entries.len() >= sound.entries.len());
        }
        assert_eq!(read(&bytes).1, Vec::<String>::new());
    }

    #[test]
    fn noise_in_any_line_loses_that_line_alone() {
        let (_folder, _, bytes) = written(&full());
        let mut rng = fastrand::Rng::with_seed(1);
        for place in 0..bytes.len() {
            let mut noisy = bytes.clone();
            noisy[place] = rng.u8(..);
            let (kept, _) = read(&noisy);
            let lost = full().entries.len().saturating_sub(kept.entries.len());
            // Without its line break, a line and the next one are lost.
            let spoilt = if bytes[place] == b'\n' { 2 } else { 1 };
            assert!(lost <= spoilt, "at {place}");
        }
        for _ in 0..1_000 {
            let noise: Vec<u8> = (0..rng.usize(..500)).map(|_| rng.u8(..)).collect();
            let (kept, problems) = read(&noise);
            assert_eq!(kept, StoredState::default());
            assert!(!problems.is_empty());
        }
    }

    fn broken_copies(folder: &Path) -> Vec<Vec<u8>> {
        let names = names(folder).into_iter();
        let broken = names.filter(|name| name.starts_with(BROKEN));
        broken
            .map(|name| fs::read(folder.join(name)).unwrap())
            .collect()
    }

    #[test]
    fn a_broken_file_is_set_aside_and_its_sound_lines_are_used() {
        let (folder, store, bytes) = written(&full());
        let half = &bytes[..bytes.len() / 2];
        fs::write(&store.path, half).unwrap();
        let mut store = StateStore::open(folder.path());
        assert_eq!(store.kept.modes, full().modes);
        store.save().unwrap();
        assert_eq!(broken_copies(folder.path()), [half]);
    }

    #[test]
    fn a_file_that_breaks_while_it_is_in_use_removes_no_state_and_is_set_aside() {
        let (folder, mut store, bytes) = written(&full());
        let half = &bytes[..bytes.len() / 2];
        fs::write(&store.path, half).unwrap();
        assert!(!store.changed_outside());
        store.save().unwrap();
        assert_eq!(StateStore::open(folder.path()).kept, full());
        assert_eq!(broken_copies(folder.path()), [half]);
    }

    #[test]
    fn a_change_made_by_another_writer_is_never_overwritten() {
        let before = StoredState {
            entries: full().entries,
            ..StoredState::default()
        };
        let (folder, mut agent, _) = written(&before);
        let mut operator = StateStore::open(folder.path());
        // Both have read the same file. The agent has an unsaved change.
        agent.kept.entries.remove(0);
        let ((), result) = operator.update(off);
        result.unwrap();
        agent.save().unwrap();
        assert!(is_off(&agent.kept), "merged");
        assert!(agent.changed_outside(), "reported");
        assert!(!agent.changed_outside(), "once");
        let found = StateStore::open(folder.path()).kept;
        assert!(is_off(&found) && found.entries.len() == 1, "{found:?}");
        // The operator's next change does not undo the agent's, which it has not read yet.
        agent.update(|kept| kept.modes.host = None).1.unwrap();
        let ((), result) = operator.update(|kept| kept.detached = true);
        result.unwrap();
        let found = StateStore::open(folder.path()).kept;
        assert!(found.detached && found.modes.host.is_none());
    }

    #[test]
    fn a_file_that_is_written_after_the_last_read_is_found_by_the_swap() {
        let (folder, mut agent, _) = written(&StoredState::default());
        let ((), result) = StateStore::open(folder.path()).update(off);
        result.unwrap();
        agent.kept.last_id = 9;
        // As if the other writer came between the read and the rename.
        assert!(!agent.write().unwrap());
        assert!(is_off(&agent.kept));
        agent.save().unwrap();
        let found = StateStore::open(folder.path()).kept;
        assert!(is_off(&found) && found.last_id == 9);
    }

    #[test]
    fn many_writers_at_once_lose_nothing() {
        let (folder, _, _) = written(&StoredState::default());
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let folder = folder.path();
                scope.spawn(move || {
                    let mut store = StateStore::open(folder);
                    for round in 0..10 {
                        let name = format!("{writer}-{round}");
                        let changed = ChangedMode {
                            mode: Mode::Observe,
                            since: Timestamp::UNIX_EPOCH,
                            by: None,
                            process: None,
                            claimed_by: None,
                        };
                        let ((), result) = store.update(|kept| {
                            kept.modes.services.insert(name, changed);
                        });
                        result.unwrap();
                    }
                });
            }
        });
        assert_eq!(
            StateStore::open(folder.path()).kept.modes.services.len(),
            40
        );
        assert_eq!(names(folder.path()), [FILE]);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_overwritten() {
        let (folder, store, bytes) = written(&full());
        let path = store.path;
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        // A hole takes no room.
        file.set_len(MAX_BYTES + 1).unwrap();
        let mut store = StateStore::open(folder.path());
        assert_eq!(store.kept, StoredState::default());
        let ((), result) = store.update(off);
        assert!(
            matches!(result, Err(StoreError::Unreadable { .. })),
            "{result:?}"
        );
        assert!(is_off(&store.kept), "in force");
        assert_eq!(
            fs::metadata(&path).unwrap().len(),
            MAX_BYTES + 1,
            "untouched"
        );
        file.set_len(bytes.len() as u64).unwrap();
        store.save().unwrap();
        let found = StateStore::open(folder.path()).kept;
        assert!(is_off(&found));
        assert_eq!(found.entries, full().entries, "from the file");
    }

    #[test]
    fn a_folder_that_cannot_be_created_prevents_saving_and_not_opening() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("file");
        fs::write(&file, "").unwrap();
        let folder = file.join("state");
        let mut store = StateStore::open(&folder);
        assert!(store.update(off).1.is_err());
        assert!(store.save().is_err());
        assert!(is_off(&store.kept));
        fs::remove_file(&file).unwrap();
        store.save().unwrap();
        assert!(is_off(&StateStore::open(&folder).kept));
    }
}
