//! `cargo xtask lint`: format and clippy, of the kernel program too.

use anyhow::Result;

use crate::{
    build::{cargo, target_folder, workspace},
    setup,
};

pub fn run() -> Result<()> {
    let toolchain = setup::toolchain()?;
    println!("lint: cargo fmt --check");
    cargo(toolchain.cargo().args(["fmt", "--all", "--check"]))?;
    println!("lint: clippy");
    for packages in [&[][..], &["--package", "guard-bench"]] {
        cargo(
            toolchain
                .cargo()
                .args(["clippy", "--quiet", "--locked", "--all-targets"])
                .args(packages)
                .args(["--", "--deny", "warnings"]),
        )?;
    }
    println!(
        "lint: clippy of the kernel programs, with the toolchain {}",
        toolchain.name
    );
    cargo(
        toolchain
            .own_cargo()
            .current_dir(workspace())
            .args([
                "clippy",
                "--quiet",
                "--locked",
                "--package",
                "guard-ebpf",
                "--package",
                "guard-bench-ebpf",
                "--release",
            ])
            .args([
                "--target",
                "bpfel-unknown-none",
                "-Z",
                "build-std=core",
                "--target-dir",
            ])
            .arg(target_folder().join("lint-ebpf"))
            .args(["--", "--deny", "warnings"]),
    )?;
    println!("lint: clean");
    Ok(())
}
