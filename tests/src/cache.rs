//! Where the setup and the lab keep what takes long to make or to fetch.

use std::{
    env,
    path::{Path, PathBuf},
};

/// Beside the user's other tools, so that a clean clone need not make again what lies there.
pub fn folder() -> PathBuf {
    let home = env::var_os("HOME").unwrap_or_else(|| "/root".into());
    let cache =
        env::var_os("XDG_CACHE_HOME").map_or(Path::new(&home).join(".cache"), PathBuf::from);
    cache.join("guard")
}
