//! Compares the policy file with the policy that a reload or a restart would replace.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Mutex, PoisonError},
};

use super::loaded::Loaded;
use crate::{
    difference::fingerprint,
    policy::{AllowedFile, KernelTick, Policy, read_file},
};

/// The identity of a file's contents as far as its metadata shows it: device, inode, size, and the times of the last
/// change of the contents and of the inode, in seconds and nanoseconds.
type FileStamp = (u64, u64, u64, (i64, i64), (i64, i64));

/// The policy that the file is compared with.
#[derive(Clone, Copy, Debug)]
pub struct Accepted<'a> {
    /// The policy that operators have accepted.
    pub loaded: &'a Loaded,
    /// The policy in force instead, on trial.
    pub on_trial: Option<&'a Loaded>,
    /// The hashes of policies that were tried and not confirmed.
    pub refused: &'a [String],
    pub clock: KernelTick,
}

/// How the policy file differs from what is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleFile {
    pub why: String,
    /// The commands to type next.
    pub advice: String,
}

/// The policy file, read again only when its metadata changes.
#[derive(Debug, Default)]
pub struct PolicyFile(Mutex<Option<FileReading>>);

#[derive(Clone, Debug)]
struct FileReading {
    stamp: FileStamp,
    /// The policy in the file, or why it is none.
    contents: Result<FileContents, String>,
}

#[derive(Clone, Debug)]
struct FileContents {
    sha256: String,
    fingerprint: String,
}

impl PolicyFile {
    /// How the file differs from the accepted policy. `None`: no key differs, or the file is on trial.
    pub fn stale(&self, path: &Path, accepted: &Accepted<'_>) -> Option<StaleFile> {
        let place = path.display();
        let contents = match fs::metadata(path) {
            Ok(metadata) => self.read_if_changed(path, &metadata, accepted.clock),
            Err(error) => {
                let why = if error.kind() == ErrorKind::NotFound {
                    format!("{place} does not exist any more")
                } else {
                    format!("{place} cannot be read: {error}")
                };
                let advice = "a reload and a restart need it; what is in force stays".to_owned();
                return Some(StaleFile { why, advice });
            }
        };
        match contents {
            Ok(found) => accepted.difference(path, &found),
            Err(error) => Some(StaleFile {
                why: format!("a reload would refuse the policy file: {error}"),
                advice: format!("`guard check {place}` shows it, and what is in force stays"),
            }),
        }
    }

    fn read_if_changed(
        &self,
        path: &Path,
        metadata: &fs::Metadata,
        clock: KernelTick,
    ) -> Result<FileContents, String> {
        let stamp = (
            metadata.dev(),
            metadata.ino(),
            metadata.len(),
            (metadata.mtime(), metadata.mtime_nsec()),
            (metadata.ctime(), metadata.ctime_nsec()),
        );
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_ref().filter(|known| known.stamp == stamp) {
            return known.contents.clone();
        }
        let contents = read(path, clock);
        *known = Some(FileReading {
            stamp,
            contents: contents.clone(),
        });
        contents
    }
}

fn read(path: &Path, clock: KernelTick) -> Result<FileContents, String> {
    let bytes = read_file(path, AllowedFile::Regular).map_err(|error| error.to_string())?;
    let policy = Policy::from_bytes(&bytes, &path.display().to_string(), clock);
    let policy = policy.map_err(|error| error.to_string())?;
    Ok(FileContents {
        sha256: policy.sha256,
        fingerprint: fingerprint(&String::from_utf8_lossy(&bytes)),
    })
}

impl Accepted<'_> {
    fn difference(&self, path: &Path, found: &FileContents) -> Option<StaleFile> {
        let Self {
            loaded,
            on_trial,
            refused,
            clock: _,
        } = self;
        let mut known = on_trial.iter().chain([loaded]);
        // Comments and the order of keys change nothing.
        if known.any(|known| known.fingerprint == found.fingerprint) {
            return None;
        }
        let place = path.display();
        let shows = "`guard diff` shows the difference";
        let of_file = format!("{place} is not what is in force");
        let (why, advice) = if on_trial.is_some() {
            (of_file, format!("{shows} to the policy on trial"))
        } else if refused.contains(&found.sha256) {
            (
                format!("{place} was tried and not confirmed"),
                format!("{shows}; a restart ignores the file, `guard reload` puts it in force"),
            )
        } else if loaded.path != path {
            let confirmed = loaded.path.display();
            (
                format!("{of_file}, which was confirmed from {confirmed}"),
                format!(
                    "{shows}; `cp {confirmed} {place}` keeps what was confirmed, and `guard reload` would go back to \
                     {place}"
                ),
            )
        } else {
            (
                of_file,
                format!("{shows}, `guard reload` puts the file in force"),
            )
        };
        Some(StaleFile { why, advice })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: KernelTick = KernelTick { tick_ns: 4_000_000 };
    const OBSERVE: &str = "mode = \"observe\"\n";
    const ENFORCE: &str = "mode = \"enforce\"\n";

    fn loaded(text: &str, path: &Path) -> Loaded {
        Loaded::parse(text.into(), path, CLOCK).unwrap()
    }

    fn stale(file: &PolicyFile, path: &Path, loaded: &Loaded) -> Option<StaleFile> {
        let accepted = Accepted {
            loaded,
            on_trial: None,
            refused: &[],
            clock: CLOCK,
        };
        file.stale(path, &accepted)
    }

    #[test]
    fn a_file_that_is_written_replaced_or_removed_is_noticed_and_a_return_to_the_same_text_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guard.toml");
        let in_force = loaded(OBSERVE, &path);
        fs::write(&path, OBSERVE).unwrap();
        let file = PolicyFile::default();
        let now = || stale(&file, &path, &in_force);
        assert_eq!((now(), now()), (None, None));

        let other = folder.path().join("other.toml");
        fs::write(&other, ENFORCE).unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(now().unwrap().advice.contains("guard reload"));

        fs::write(&path, format!("# a comment\n\n{OBSERVE}")).unwrap();
        assert_eq!(now(), None, "no key differs");

        fs::remove_file(&path).unwrap();
        assert!(now().unwrap().why.contains("does not exist"));
        fs::write(&path, OBSERVE).unwrap();
        assert_eq!(now(), None);
    }

    #[test]
    fn a_file_that_a_reload_would_refuse_is_named_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guard.toml");
        fs::write(&path, "mode = \"observe\"\nmode_ = 1\n").unwrap();
        let file = PolicyFile::default();
        let found = stale(&file, &path, &loaded(OBSERVE, &path)).unwrap();
        assert!(found.why.contains("guard.toml:2"), "{found:?}");
        assert!(found.advice.contains("guard check"), "{found:?}");
        assert!(!found.advice.contains("guard reload"), "{found:?}");
        assert!(stale(&file, folder.path(), &loaded(OBSERVE, &path)).is_some());
    }

    #[test]
    fn a_confirmed_policy_from_another_file_is_kept_by_a_copy_and_not_by_a_reload() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guard.toml");
        fs::write(&path, OBSERVE).unwrap();
        let confirmed = loaded(ENFORCE, Path::new("/root/tried.toml"));
        let StaleFile { why, advice } = stale(&PolicyFile::default(), &path, &confirmed).unwrap();
        let shown = format!("{why}: {advice}").replace(&path.display().to_string(), "FILE");
        insta::assert_snapshot!(shown, @"FILE is not what is in force, which was confirmed from /root/tried.toml: `guard diff` shows the difference; `cp /root/tried.toml FILE` keeps what was confirmed, and `guard reload` would go back to FILE");
    }

    #[test]
    fn the_file_on_trial_is_not_stale_and_an_unconfirmed_one_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guard.toml");
        fs::write(&path, ENFORCE).unwrap();
        let (before, tried) = (loaded(OBSERVE, &path), loaded(ENFORCE, &path));
        let file = PolicyFile::default();
        let accepted = Accepted {
            loaded: &before,
            on_trial: Some(&tried),
            refused: &[],
            clock: CLOCK,
        };
        assert_eq!(file.stale(&path, &accepted), None);
        let refused = [tried.policy.sha256.clone()];
        let over = Accepted {
            on_trial: None,
            refused: &refused,
            ..accepted
        };
        let found = file.stale(&path, &over).unwrap();
        assert!(found.why.contains("not confirmed"), "{found:?}");
    }
}
