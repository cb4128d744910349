//! `cargo xtask soak`: reloads, kills, upgrades and tries a guard for a long time while packets keep coming.

use anyhow::Result;

use crate::{
    build::{self, cargo},
    setup,
};

pub fn run() -> Result<()> {
    let toolchain = setup::for_tests()?;
    let binary = build::guard(&toolchain, false)?;
    // The older build for upgrades: the same program with another layout of its maps.
    let mut older = toolchain.cargo();
    older
        .args(["build", "--locked", "--package", "guard-userspace"])
        .args(["--features", "older-layout", "--target-dir", "target/older"]);
    cargo(&mut older)?;
    let older = std::env::current_dir()?.join("target/older/debug/guard");
    let mut command = toolchain.cargo();
    command
        .args([
            "test",
            "--locked",
            "--package",
            "guard-tests",
            "--test",
            "it",
        ])
        .args(["soak::soak_long", "--", "--exact", "--nocapture"])
        .env("GUARD_BINARY", binary)
        .env("GUARD_OLDER_BINARY", older);
    let result = cargo(&mut command);
    lab::sweep::dead_labs()?;
    result
}
