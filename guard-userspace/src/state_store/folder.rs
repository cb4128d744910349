//! The folder of the state, which is for its owner alone: who reads it knows whom the guard lets in.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
};

use tracing::warn;

const MODE: u32 = 0o700;

/// Makes the folder, and those above it as others are made.
pub fn make(folder: &Path) -> io::Result<()> {
    if let Some(above) = folder.parent() {
        fs::create_dir_all(above)?;
    }
    match DirBuilder::new().mode(MODE).create(folder) {
        Err(_) if folder.is_dir() => Ok(()),
        made => made,
    }
}

/// Tells of a folder that others may open. Somebody made it so, and it stays so.
pub fn warn_if_open(folder: &Path) {
    let Ok(found) = fs::metadata(folder) else {
        return;
    };
    let mode = found.permissions().mode() & 0o7777;
    if mode & !MODE & 0o777 != 0 {
        warn!(
            "the folder of the state, {}, is open to others (mode {mode:04o}): `chmod {MODE:o} {0}` closes it",
            folder.display()
        );
    }
}
