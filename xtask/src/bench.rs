//! `cargo xtask bench`: measures the cost of a packet on this machine.

use std::{ffi::OsString, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::{cargo, target_folder, workspace},
    setup,
};

pub fn run(arguments: &[OsString]) -> Result<()> {
    let toolchain = setup::for_bench()?;
    let mut build = toolchain.cargo();
    build.args(["build", "--locked", "--release"]);
    // The bench needs the binary as well: it measures the agent too, not only the kernel program.
    cargo(build.args(["--package", "guard-bench", "--package", "guard-userspace"]))?;
    let program = target_folder().join("release").join("guard-bench");
    let status = Command::new(&program)
        .args(arguments)
        .current_dir(workspace())
        .status()
        .with_context(|| format!("{} cannot be started", program.display()))?;
    if !status.success() {
        bail!("the bench failed, or a row is over its limit ({status})");
    }
    Ok(())
}
