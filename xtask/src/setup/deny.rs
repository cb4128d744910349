//! Finds or builds cargo-deny, which checks the licences and sources of dependencies.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use which::which;

use lab::cache;

use super::announce_and_run;

const VERSION: &str = "0.18.9";

/// The path of cargo-deny. The first call builds it, which takes some minutes.
///
/// # Errors
/// It cannot be built, such as without a network.
pub fn cargo_deny() -> Result<PathBuf> {
    let root = cache::folder().join(format!("cargo-deny-{VERSION}"));
    let own = root.join("bin/cargo-deny");
    if own.exists() {
        return Ok(own);
    }
    if let Ok(found) = which("cargo-deny") {
        return Ok(found);
    }
    announce_and_run(
        Command::new("cargo")
            // A debug build takes a third of the time, and the check takes a second with either.
            .args(["install", "--quiet", "--locked", "--debug", "--root"])
            .arg(&root)
            .arg(format!("cargo-deny@{VERSION}")),
    )
    .context("cargo-deny cannot be built")?;
    Ok(own)
}
