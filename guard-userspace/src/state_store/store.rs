//! The state's file.
//!
//! One JSON object a line, so that a file that is cut off or spoilt loses the lines that are, and no
//! others. It is written whole beside its place, synced, and put there by compare-and-swap: a writer takes
//! in what another has written since it looked, and never overwrites it.

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

/// What is being written, and copies of what was broken.
const UNFINISHED: &str = "state.unfinished-";
const BROKEN: &str = "state.broken-";

/// How many copies of broken files are kept.
const MAX_BROKEN: usize = 3;

/// No state is longer: the longest policy, written as JSON, and every entry that there is room for.
const MAX_BYTES: u64 = 1 << 28;

/// How often a writer tries again that others have overtaken.
const ATTEMPTS: usize = 8;

/// A file as it was at a time: every writer makes one of its own, and an editor sets the time.
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

/// What is kept, and the file that keeps it.
///
/// What changes in [`kept`](Self::kept) is in force for its owner at once, and on the disk when
/// [`save`](Self::save) or [`update`](Self::update) has returned without an error.
#[derive(Debug)]
pub struct StateStore {
    folder: PathBuf,
    path: PathBuf,
    pub kept: StoredState,
    /// What the file said when it was read or written last.
    base: StoredState,
    /// The file as it was then; `None`: there was none, or it could not be read.
    seen: Option<Identity>,
    /// The file has lines that would be lost, and no copy yet.
    is_broken: bool,
    /// Others have changed something that the owner has not asked about yet.
    is_news: bool,
}

impl StateStore {
    /// Reads what is sound. A file that is not whole is set aside, with a warning that says which lines
    /// are lost. One that cannot be read is left as it is, with a warning; nothing is written over it.
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
        // What is wrong with the folder is told by what reads and writes it.
        let _result = folder::make(folder);
        // Who writes has the turn: what lies about is left over.
        if lock::for_writing(folder).is_some() {
            let _result = sweep(folder);
        }
        store.set_aside_what_is_no_file();
        match read_file(&store.path) {
            Ok(None) => {}
            Ok(Some((identity, kept, problems))) => {
                store.seen = Some(identity);
                store.base = kept.clone();
                store.kept = kept;
                store.tell_problems(&problems, "what is sound in it is used");
            }
            Err(error) => warn!("{}: what it says is not known", store.unreadable(error)),
        }
        store
    }

    /// To read a pipe would wait for ever, and a folder is no state.
    fn set_aside_what_is_no_file(&self) {
        let Self { folder, path, .. } = self;
        if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
            let aside = aside(folder);
            let result = fs::rename(path, &aside);
            let what = match result {
                Ok(()) => format!("it is set aside as {}", aside.display()),
                Err(error) => format!("it cannot be set aside: {error}"),
            };
            warn!("{} is no file: {what}", path.display());
        }
    }

    fn tell_problems(&mut self, problems: &[String], what_then: &str) {
        if problems.is_empty() {
            return;
        }
        self.is_broken = true;
        let copied = match self.set_aside() {
            Ok(aside) => format!("a copy is in {}", aside.display()),
            Err(error) => {
                format!(
                    "it is left as it is, and nothing is kept, until it can be copied ({error})"
                )
            }
        };
        let first: Vec<&str> = problems.iter().map(String::as_str).take(3).collect();
        warn!(
            "{}: the state file is broken ({} problem(s): {}): {what_then}, and {copied}",
            self.path.display(),
            problems.len(),
            first.join("; ")
        );
    }

    /// Keeps what lines a newer or a broken file has. A second name takes no room on the disk, and stays
    /// when another file is put in the place of this one.
    fn set_aside(&mut self) -> io::Result<PathBuf> {
        let aside = aside(&self.folder);
        fs::hard_link(&self.path, &aside).or_else(|_| {
            fs::copy(&self.path, &aside).map(drop).inspect_err(|_| {
                // Half a copy is none.
                let _result = fs::remove_file(&aside);
            })
        })?;
        self.is_broken = false;
        Ok(aside)
    }

    /// Makes a change, over whatever others have written meanwhile, and writes it. It is made for the owner
    /// of this also if it cannot be written.
    pub fn update<T>(
        &mut self,
        change: impl FnOnce(&mut StoredState) -> T,
    ) -> (T, Result<(), StoreError>) {
        let _turn = lock::for_writing(&self.folder);
        // If it cannot be read, the writing says so.
        let _result = self.take_in();
        let changed = change(&mut self.kept);
        (changed, self.save_in_turn())
    }

    /// Writes what is kept: all of it, or not at all. What others have written since is taken in first, and
    /// [`changed_outside`](Self::changed_outside) tells.
    pub fn save(&mut self) -> Result<(), StoreError> {
        folder::make(&self.folder).map_err(|error| self.io(error))?;
        let _turn = lock::for_writing(&self.folder);
        self.save_in_turn()
    }

    /// Whether others have changed something since this was asked last, as `guard mode off` and `guard
    /// detach` do while an agent hangs. [`kept`](Self::kept) has it.
    pub fn changed_outside(&mut self) -> bool {
        // What cannot be read has changed nothing; writing tells.
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

    /// Reads the file if it is another one than before.
    fn take_in(&mut self) -> Result<(), StoreError> {
        match fs::symlink_metadata(&self.path) {
            Ok(found) if self.seen == Some(Identity::of(&found)) => return Ok(()),
            Ok(found) if !found.is_file() => {
                return Err(self.io(io::Error::other(
                    "something that is no file is in its place",
                )));
            }
            _ => {}
        }
        let found = read_file(&self.path);
        match found.map_err(|error| self.unreadable(error))? {
            // Somebody has removed it: it is written again.
            None => self.seen = None,
            Some((identity, theirs, problems)) if problems.is_empty() => {
                self.merge_in(&theirs);
                self.base = theirs;
                self.seen = Some(identity);
            }
            // Half a file would look like a change of what it lacks.
            Some((identity, _, problems)) => {
                self.seen = Some(identity);
                self.tell_problems(&problems, "what is in force is kept instead");
            }
        }
        Ok(())
    }

    fn merge_in(&mut self, theirs: &StoredState) {
        let merged = merge(&self.base, &self.kept, theirs);
        self.is_news |= merged != self.kept;
        self.kept = merged;
    }

    /// Puts a new file in the place of the one that was seen. `false`: another has come in between, and has
    /// been taken in.
    fn write(&mut self) -> io::Result<bool> {
        let written = self.kept.clone();
        let (file, identity) = self.write_beside(&written)?;
        let swapped = match self.seen {
            Some(_) => renameat_with(CWD, &*file, CWD, &self.path, RenameFlags::EXCHANGE),
            None => renameat_with(CWD, &*file, CWD, &self.path, RenameFlags::NOREPLACE),
        };
        match swapped {
            Ok(()) => {}
            // Removed or made meanwhile.
            Err(Errno::NOENT | Errno::EXIST) => {
                self.seen = None;
                return Ok(false);
            }
            // A file system that can only rename.
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
        // What was in its place has this file's name now.
        if expected.is_some() && identity_of(&file) != expected {
            match read_file(&file) {
                Ok(Some((_, theirs, problems))) if problems.is_empty() => {
                    let merged = merge(&before, &self.kept, &theirs);
                    self.is_news |= merged != self.kept;
                    self.kept = merged;
                }
                // Whatever it is, it is somebody's.
                _ => fs::rename(&file, aside(&self.folder))?,
            }
            return Ok(false);
        }
        // The rename itself survives a power loss only when the folder is synced.
        fs::File::open(&self.folder)?.sync_all()?;
        Ok(true)
    }

    fn write_beside(&self, kept: &StoredState) -> io::Result<(TempPath, Identity)> {
        let file = Builder::new()
            .prefix(UNFINISHED)
            .tempfile_in(&self.folder)?;
        // A policy's text has a piece for each of its lines, and each would be a system call.
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

/// What a file says, and what is not sound in it. `None`: there is none.
fn read_file(path: &Path) -> io::Result<Option<(Identity, StoredState, Vec<String>)>> {
    let opened = fs::OpenOptions::new()
        .read(true)
        // A pipe that has come in its place must not wait for a writer.
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    if metadata.len() > MAX_BYTES {
        return Err(io::Error::other(format!(
            "it has {} bytes, and no state has more than {MAX_BYTES}",
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

/// Removes what a power loss left of writing, and all but the newest copies of broken files.
fn sweep(folder: &Path) -> io::Result<()> {
    let mut broken = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(UNFINISHED) {
            // A writer that did not get its turn may have just finished it.
            let _result = fs::remove_file(folder.join(name));
        } else if name.starts_with(BROKEN) {
            broken.push(name);
        }
    }
    broken.sort_unstable();
    for name in broken.iter().rev().skip(MAX_BROKEN) {
        // A folder that was set aside stays.
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
    fn what_is_written_is_read_back_and_nothing_lies_beside_it() {
        let (folder, mut store, _) = written(&full());
        store.save().unwrap();
        assert_eq!(StateStore::open(folder.path()).kept, full());
        assert_eq!(names(folder.path()), [FILE]);
    }

    #[test]
    fn what_a_guard_before_this_one_wrote_is_read() {
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
        // And what it would not know is not written where it is not known.
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
            // Without its end, a line runs into the next.
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
    fn a_file_that_breaks_meanwhile_takes_nothing_away_and_is_set_aside() {
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
        // Both have looked at the same file; the agent has something unsaved.
        agent.kept.entries.remove(0);
        let ((), result) = operator.update(off);
        result.unwrap();
        agent.save().unwrap();
        assert!(is_off(&agent.kept), "taken in");
        assert!(agent.changed_outside(), "told");
        assert!(!agent.changed_outside(), "once");
        let found = StateStore::open(folder.path()).kept;
        assert!(is_off(&found) && found.entries.len() == 1, "{found:?}");
        // And over what it did not know.
        agent.update(|kept| kept.modes.host = None).1.unwrap();
        let ((), result) = operator.update(|kept| kept.detached = true);
        result.unwrap();
        let found = StateStore::open(folder.path()).kept;
        assert!(found.detached && found.modes.host.is_none());
    }

    #[test]
    fn a_file_that_comes_after_the_last_look_is_found_in_the_swap() {
        let (folder, mut agent, _) = written(&StoredState::default());
        let ((), result) = StateStore::open(folder.path()).update(off);
        result.unwrap();
        agent.kept.last_id = 9;
        // As when the other came in between the look and the rename.
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
    fn what_cannot_be_read_is_left_as_it_is_until_it_can() {
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
        assert_eq!(found.entries, full().entries, "what it said before");
    }

    #[test]
    fn a_folder_that_cannot_be_made_keeps_nothing_and_nobody_from_starting() {
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
