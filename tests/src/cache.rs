//! The cache of files that take long to make or to fetch, for the setup and the lab.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The cache's folder. It is outside the repository, so that a fresh clone can use its files.
pub fn folder() -> PathBuf {
    let home = env::var_os("HOME").unwrap_or_else(|| "/root".into());
    let cache =
        env::var_os("XDG_CACHE_HOME").map_or(Path::new(&home).join(".cache"), PathBuf::from);
    cache.join("guard")
}
