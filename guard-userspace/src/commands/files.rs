//! Replaces a policy file that the agent and other programs may read meanwhile.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, fchown},
    path::Path,
};

use tempfile::NamedTempFile;

/// Replaces an existing file in one step, with its permissions and its owner: a reader finds the old text or the new
/// one, never a part. A symbolic link stays, and its target is replaced.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    let metadata = fs::metadata(&path)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut new = NamedTempFile::new_in(folder)?;
    new.write_all(text.as_bytes())?;
    let file = new.as_file();
    fchown(file, Some(metadata.uid()), Some(metadata.gid()))?;
    file.set_permissions(metadata.permissions())?;
    file.sync_all()?;
    new.persist(&path).map_err(|error| error.error)?;
    Ok(())
}
