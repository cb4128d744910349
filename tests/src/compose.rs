//! Compose as people have it: what `guard audit compose` is held against. The setup unpacks it beside the
//! user's other caches; it reads files without a daemon.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::cache;

/// Debian's package, and where the program is in it.
pub const PACKAGE: &str = "docker-compose";
pub const FOLDER: &str = "usr/libexec/docker/cli-plugins";
pub const PROGRAM: &str = "docker-compose";

/// The suites of Debian's that have Compose 2.40 or later, the newest first.
pub const SUITES: [&str; 2] = ["unstable", "testing"];

/// Where the setup has unpacked it.
pub fn program() -> Result<PathBuf> {
    let program = cache::folder().join(PACKAGE).join(FOLDER).join(PROGRAM);
    if !program.is_file() {
        bail!(
            "{} is missing: `cargo xtask setup` unpacks it from {PACKAGE} of Debian {}",
            program.display(),
            SUITES.join(" or ")
        );
    }
    Ok(program)
}
