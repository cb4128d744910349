//! `cargo xtask fuzz`: compares the program with the independent model for a given time. Inputs that reach new code
//! are kept in `tests/corpus`.

use anyhow::Result;

use crate::{build::cargo, setup};

pub fn run(minutes: u64, seed: Option<u64>) -> Result<()> {
    let toolchain = setup::toolchain()?;
    setup::require_root()?;
    let mut command = toolchain.cargo();
    command
        .args([
            "test",
            "--locked",
            "--release",
            "--package",
            "guard-tests",
            "--test",
            "it",
        ])
        .args(["model::fuzz", "--", "--exact", "--nocapture"])
        .env("GUARD_FUZZ_MINUTES", minutes.to_string());
    if let Some(seed) = seed {
        command.env("GUARD_FUZZ_SEED", seed.to_string());
    }
    cargo(&mut command)?;
    println!("fuzz: the program and the model agreed for {minutes} minutes");
    Ok(())
}
