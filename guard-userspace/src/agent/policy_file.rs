//! Notices that the policy file has changed since it was loaded.

use std::{fs, io::ErrorKind, os::unix::fs::MetadataExt as _, path::Path};

use crate::policy::{AllowedFile, read_file, sha256_of};

/// The identity of a file's contents as far as its metadata shows it: device, inode, size, and the times of the last
/// change of the contents and of the inode, in seconds and nanoseconds.
type FileStamp = (u64, u64, u64, (i64, i64), (i64, i64));

/// The policy file, read again only when its metadata changes.
#[derive(Debug, Default)]
pub struct PolicyFile {
    stamp: Option<FileStamp>,
    /// The hash of its text, or why it cannot be read.
    contents: Option<Result<String, String>>,
}

impl PolicyFile {
    /// How the file differs from the policy with this hash, in words. `None`: it is the same.
    pub fn difference(&mut self, path: &Path, sha256: &str) -> Option<String> {
        let place = path.display();
        match fs::metadata(path) {
            Ok(metadata) => self.read_if_changed(path, &metadata),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                *self = Self::default();
                return Some(format!("{place} does not exist any more"));
            }
            Err(error) => {
                *self = Self::default();
                return Some(format!("{place} cannot be read: {error}"));
            }
        }
        match self.contents.as_ref()? {
            Ok(found) if found == sha256 => None,
            Ok(_) => Some(format!(
                "{place} is not what is in force: `guard diff` shows the difference, `guard reload` puts the file in \
                 force"
            )),
            Err(why) => Some(why.clone()),
        }
    }

    fn read_if_changed(&mut self, path: &Path, metadata: &fs::Metadata) {
        let stamp = (
            metadata.dev(),
            metadata.ino(),
            metadata.len(),
            (metadata.mtime(), metadata.mtime_nsec()),
            (metadata.ctime(), metadata.ctime_nsec()),
        );
        if self.stamp == Some(stamp) {
            return;
        }
        self.stamp = Some(stamp);
        let text = read_file(path, AllowedFile::Regular);
        self.contents = Some(match text {
            Ok(text) => Ok(sha256_of(&text)),
            Err(error) => Err(error.to_string()),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_replaced_or_removed_is_noticed_and_a_return_to_the_same_text_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guard.toml");
        fs::write(&path, "mode = \"observe\"\n").unwrap();
        let sha256 = sha256_of(b"mode = \"observe\"\n");
        let mut file = PolicyFile::default();
        assert_eq!(file.difference(&path, &sha256), None);
        assert_eq!(file.difference(&path, &sha256), None);

        let other = folder.path().join("other.toml");
        fs::write(&other, "mode = \"enforce\"\n").unwrap();
        fs::rename(&other, &path).unwrap();
        let changed = file.difference(&path, &sha256).unwrap();
        assert!(changed.contains("guard diff"), "{changed}");

        fs::write(&path, "mode = \"observe\"\n").unwrap();
        assert_eq!(file.difference(&path, &sha256), None);

        fs::remove_file(&path).unwrap();
        let gone = file.difference(&path, &sha256).unwrap();
        assert!(gone.contains("does not exist"), "{gone}");
        fs::write(&path, "mode = \"observe\"\n").unwrap();
        assert_eq!(file.difference(&path, &sha256), None);
    }

    #[test]
    fn a_folder_in_place_of_the_file_is_a_difference() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = PolicyFile::default();
        assert!(file.difference(folder.path(), "0").is_some());
    }
}
