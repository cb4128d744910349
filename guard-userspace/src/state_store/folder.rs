//! The folder of the state store. Only its owner may open it: it shows which sources the guard allows.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
};

use tracing::warn;

const MODE: u32 = 0o700;

/// Creates the folder, and its parents with the usual mode.
pub fn make(folder: &Path) -> io::Result<()> {
    if let Some(above) = folder.parent() {
        fs::create_dir_all(above)?;
    }
    match DirBuilder::new().mode(MODE).create(folder) {
        Err(_) if folder.is_dir() => Ok(()),
        made => made,
    }
}

/// Warns of a folder that other users may open. Its mode is not changed: an administrator may have set it.
pub fn warn_if_open(folder: &Path) {
    let Ok(found) = fs::metadata(folder) else {
        return;
    };
    let mode = found.permissions().mode() & 0o7777;
    if mode & !MODE & 0o777 != 0 {
        warn!(
            "the folder of the state store, {}, is open to others (mode {mode:04o}): `chmod {MODE:o} {0}` closes it",
            folder.display()
        );
    }
}
