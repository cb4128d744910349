//! Docker Compose from Debian: tests compare `guard audit compose` with it. `cargo xtask setup` unpacks it into the
//! user's cache; it reads files without a daemon.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::cache;

/// Debian's package, the folder of the program in it, and the program.
pub const PACKAGE: &str = "docker-compose";
/// The folder of the program in the package.
pub const FOLDER: &str = "usr/libexec/docker/cli-plugins";
/// The program.
pub const PROGRAM: &str = "docker-compose";

/// The Debian suites that have Compose 2.40 or later, the newest first.
pub const SUITES: [&str; 2] = ["unstable", "testing"];

/// The path of the unpacked program.
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
