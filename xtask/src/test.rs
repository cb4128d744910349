//! `cargo xtask test`: every test, after the set-up that they need.

use anyhow::{Result, ensure};

use crate::{build, setup};

pub fn run(filter: Option<&str>) -> Result<()> {
    let toolchain = setup::everything()?;
    ensure!(
        setup::has_docker(),
        "the tests need Docker, which setup did not find"
    );
    let binary = build::guard(&toolchain, false)?;
    // What is interrupted or killed leaves its lab behind; tests that end remove their own.
    ctrlc::set_handler(|| {})?;
    let mut command = toolchain.cargo();
    command
        .args(["test", "--locked", "--no-fail-fast"])
        .args(filter)
        .env("GUARD_BINARY", binary);
    let result = build::cargo(&mut command);
    lab::sweep::dead_labs()?;
    result
}
