//! The agent's state file: what must survive a restart and a power loss besides the policy.
//!
//! One JSON object a line, so that a file that is cut off or spoilt loses the lines that are, and no
//! others. It is written whole beside its place, synced, and renamed into it.

mod lines;

use std::{
    collections::BTreeMap,
    fs, io,
    io::{BufWriter, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use guard_common::reason::Mode;
use jiff::Timestamp;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use serde::{Deserialize, Serialize};
use tempfile::Builder;
use tracing::warn;

use self::lines::{Line, read};
use crate::policy::{Containers, Entry, Policy};

/// Where the state file is unless told otherwise.
pub const DEFAULT_FOLDER: &str = "/var/lib/guard";

const FILE: &str = "state.jsonl";

/// What is being written, and copies of what was broken.
const UNFINISHED: &str = "state.unfinished-";
const BROKEN: &str = "state.broken-";

/// How many copies of broken files are kept.
const MAX_BROKEN: usize = 3;

#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error("the state cannot be kept in {path}: {error}")]
    Io { path: String, error: io::Error },
    #[error(
        "another agent keeps its state in {0}: stop it, or give this one another --state, --pins and \
         --socket"
    )]
    Taken(String),
}

impl KeepError {
    fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        |error| Self::Io {
            path: path.display().to_string(),
            error,
        }
    }
}

const LOCK: &str = "lock";

/// Keeps every other agent from the same state for as long as it lives. The kernel ends it with the
/// process.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held for its drop")] Flock<fs::File>);

/// Takes the state of an agent for this one.
pub fn take(folder: &Path) -> Result<Turn, KeepError> {
    fs::create_dir_all(folder).map_err(KeepError::io(folder))?;
    let path = folder.join(LOCK);
    let file = fs::File::create(&path).map_err(KeepError::io(&path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Turn(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Err(KeepError::Taken(folder.display().to_string())),
        Err((_, error)) => Err(KeepError::io(&path)(error.into())),
    }
}

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The last number that an entry was given.
    pub last_id: u64,
    pub entries: Vec<Entry>,
    pub modes: Modes,
    /// The last that Docker said; `None`: it has never said anything.
    pub containers: Option<Containers>,
    /// The policy that was in force last, not counting one on trial.
    pub policy: Option<KeptPolicy>,
    /// The SHA-256 of the policies that were tried and not confirmed, the newest last.
    pub refused: Vec<String>,
    /// A policy that is being tried.
    pub trial: Option<Trial>,
    /// The operator took the guard off; the agent that finds this ends.
    pub detached: bool,
}

/// A policy file as it was when it was put in force.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct KeptPolicy {
    pub path: PathBuf,
    pub text: String,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Trial {
    pub path: PathBuf,
    pub sha256: String,
    pub until: Timestamp,
}

/// Modes that an operator has set and that go before those of the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modes {
    pub host: Option<ChangedMode>,
    pub services: BTreeMap<String, ChangedMode>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct ChangedMode {
    #[serde(with = "mode_name")]
    pub mode: Mode,
    pub since: Timestamp,
    /// The user whose process asked for it, as the kernel says. Older versions wrote what the client said.
    pub by: Option<String>,
    #[serde(default)]
    pub process: Option<u32>,
    /// What the client said, if that is somebody else.
    #[serde(default)]
    pub claimed_by: Option<String>,
}

impl Modes {
    /// The policy with these modes in the place of its own.
    pub fn applied_to(&self, policy: &Policy) -> Policy {
        let mut policy = policy.clone();
        if let Some(changed) = &self.host {
            policy.mode = changed.mode;
        }
        for service in &mut policy.services {
            if let Some(changed) = self.services.get(&service.name) {
                service.mode = changed.mode;
            }
        }
        policy
    }
}

/// The file, and what it holds.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    pub kept: Kept,
    /// The file as it was read or written last: its inode and when it was made.
    seen: Option<(u64, i64, i64)>,
}

impl StateFile {
    /// Reads what is sound. A file that is not whole is set aside, with a warning that says which lines
    /// are lost.
    ///
    /// # Errors
    /// If the file is there and cannot be read at all, or the folder cannot be made.
    pub fn open(folder: &Path) -> Result<Self, KeepError> {
        let path = folder.join(FILE);
        fs::create_dir_all(folder).map_err(KeepError::io(folder))?;
        sweep(folder).map_err(KeepError::io(folder))?;
        if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
            // To read a pipe would wait for ever, and a folder is no state.
            let aside = folder.join(format!("{BROKEN}{}", Timestamp::now().as_millisecond()));
            fs::rename(&path, &aside).map_err(KeepError::io(&path))?;
            warn!(
                "{} is no file: it is set aside as {}",
                path.display(),
                aside.display()
            );
        }
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self {
                    kept: Kept::default(),
                    path,
                    seen: None,
                });
            }
            Err(error) => return Err(KeepError::io(&path)(error)),
        };
        let (kept, problems) = read(&bytes);
        if !problems.is_empty() {
            let aside = folder.join(format!("{BROKEN}{}", Timestamp::now().as_millisecond()));
            let copied = match fs::write(&aside, &bytes) {
                Ok(()) => format!("a copy is in {}", aside.display()),
                Err(error) => format!("it cannot be copied to {} ({error})", aside.display()),
            };
            let first: Vec<&str> = problems.iter().map(String::as_str).take(3).collect();
            warn!(
                "{}: the state file is broken ({} problem(s): {}): what is sound in it is used, and \
                 {copied}",
                path.display(),
                problems.len(),
                first.join("; ")
            );
        }
        let seen = identity(&path);
        Ok(Self { path, kept, seen })
    }

    /// Writes the file: all of it, or not at all.
    pub fn save(&mut self) -> Result<(), KeepError> {
        self.try_save().map_err(KeepError::io(&self.path))?;
        self.seen = identity(&self.path);
        Ok(())
    }

    fn try_save(&self) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let file = Builder::new().prefix(UNFINISHED).tempfile_in(folder)?;
        // A policy's text has a piece for each of its lines, and each would be a system call.
        let mut buffered = BufWriter::new(file);
        let lines = self.kept.lines();
        let end = Line::End { lines: lines.len() };
        for line in lines.iter().chain([&end]) {
            serde_json::to_writer(&mut buffered, line)?;
            buffered.write_all(b"\n")?;
        }
        let file = buffered
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        // The rename itself survives a power loss only when the folder is synced.
        fs::File::open(folder)?.sync_all()
    }

    /// Reads the file again if somebody else has written it, as `guard mode off` and `guard detach` do
    /// while an agent hangs. Whether that was so.
    pub fn catch_up(&mut self) -> bool {
        let now = identity(&self.path);
        if now.is_none() || now == self.seen {
            return false;
        }
        let Ok(bytes) = fs::read(&self.path) else {
            return false;
        };
        let (kept, problems) = read(&bytes);
        if !problems.is_empty() {
            return false;
        }
        self.kept = kept;
        self.seen = now;
        true
    }
}

/// Removes what a power loss left of writing, and all but the newest copies of broken files.
fn sweep(folder: &Path) -> io::Result<()> {
    let mut broken = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(UNFINISHED) {
            // Another process may have just finished it.
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

/// Every writer makes a file of its own.
fn identity(path: &Path) -> Option<(u64, i64, i64)> {
    let metadata = fs::symlink_metadata(path)
        .ok()
        .filter(fs::Metadata::is_file)?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}

/// How many refused policies are remembered.
const MAX_REFUSED: usize = 16;

impl Kept {
    /// Remembers that nobody confirmed a policy.
    pub fn refuse(&mut self, sha256: String) {
        self.accept(&sha256);
        self.refused.push(sha256);
        let surplus = self.refused.len().saturating_sub(MAX_REFUSED);
        self.refused.drain(..surplus);
    }

    /// An operator wants this policy.
    pub fn accept(&mut self, sha256: &str) {
        self.refused.retain(|refused| refused != sha256);
    }
}

/// Modes by their names.
mod mode_name {
    use guard_common::reason::Mode;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(mode: &Mode, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(mode.name())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mode, D::Error> {
        let name = String::deserialize(deserializer)?;
        let modes = [Mode::Off, Mode::Observe, Mode::Enforce];
        let mode = modes.into_iter().find(|mode| mode.name() == name);
        mode.ok_or_else(|| D::Error::custom(format!("{name:?} is no mode")))
    }
}

#[cfg(test)]
mod tests {
    use guard_common::{exposure::NetworkKind, layout::PortProtocol};

    use super::*;
    use crate::policy::{Action, ContainerNetwork, Labelled, PublishedFamily, PublishedPort};

    fn full() -> Kept {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let changed = |mode| ChangedMode {
            mode,
            since: now,
            by: Some("root".to_owned()),
            process: Some(4_711),
            claimed_by: Some("ana".to_owned()),
        };
        let entry = |id, action| Entry {
            id,
            action,
            prefix: "198.51.100.0/24".parse().unwrap(),
            service: (id == 2).then(|| "web".to_owned()),
            owner: Some("ana".to_owned()),
            reason: Some("a \"flood\"\nof theirs".to_owned()),
            by: Some("root".to_owned()),
            process: Some(4_711),
            created: now,
            expires: Some(now),
        };
        Kept {
            last_id: 7,
            entries: vec![entry(1, Action::Deny), entry(2, Action::Allow)],
            modes: Modes {
                host: Some(changed(Mode::Off)),
                services: BTreeMap::from([("web".to_owned(), changed(Mode::Observe))]),
            },
            containers: Some(Containers {
                published: vec![PublishedPort {
                    protocol: PortProtocol::Udp,
                    port: 53,
                    family: PublishedFamily::Ipv6,
                }],
                networks: vec![ContainerNetwork {
                    prefix: "172.17.0.0/16".parse().unwrap(),
                    kind: NetworkKind::Masqueraded,
                }],
                labelled: vec![Labelled {
                    container: "api-1".to_owned(),
                    published: vec![PublishedPort {
                        protocol: PortProtocol::Tcp,
                        port: 8000,
                        family: PublishedFamily::Ipv4,
                    }],
                    labels: BTreeMap::from([("guard.from".to_owned(), "office".to_owned())]),
                }],
            }),
            policy: Some(KeptPolicy {
                path: "/etc/guard/guard.toml".into(),
                text: "mode = \"enforce\"\n".to_owned(),
            }),
            refused: vec!["00ff".to_owned(), "ff00".to_owned()],
            trial: Some(Trial {
                path: "/etc/guard/new.toml".into(),
                sha256: "00ff".to_owned(),
                until: now,
            }),
            detached: true,
        }
    }

    fn written(kept: &Kept) -> (tempfile::TempDir, StateFile, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let mut file = StateFile::open(folder.path()).unwrap();
        assert_eq!(file.kept, Kept::default());
        file.kept = kept.clone();
        file.save().unwrap();
        let bytes = fs::read(&file.path).unwrap();
        (folder, file, bytes)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let (folder, _, _) = written(&full());
        let file = StateFile::open(folder.path()).unwrap();
        assert_eq!(file.kept, full());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn cut_off_at_any_byte_it_yields_its_whole_lines_and_says_that_some_are_lost() {
        let (_, _, bytes) = written(&full());
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
        let (_, _, bytes) = written(&full());
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
            assert_eq!(kept, Kept::default());
            assert!(!problems.is_empty());
        }
    }

    #[test]
    fn a_broken_file_is_set_aside_and_its_sound_lines_are_used() {
        let (folder, file, bytes) = written(&full());
        fs::write(&file.path, &bytes[..bytes.len() / 2]).unwrap();
        let file = StateFile::open(folder.path()).unwrap();
        assert_eq!(file.kept.modes, full().modes);
        let names = fs::read_dir(folder.path()).unwrap();
        let aside = names.filter_map(Result::ok).find(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with("state.broken-")
        });
        assert_eq!(
            fs::read(aside.unwrap().path()).unwrap(),
            bytes[..bytes.len() / 2]
        );
    }
}
