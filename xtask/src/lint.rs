//! `cargo xtask lint`: format, names and clippy, of the kernel program too, what builds without it, and the pages.

use std::process::Command;

use anyhow::{Result, ensure};
use lab::process::run as output;

use crate::{
    build::{cargo, target_folder, workspace},
    old_names, pages, setup, type_names,
};

/// What must build where there is no bpf-linker and no toolchain for the kernel program, such as in CI.
const ALONE: [&str; 2] = ["guard-compose", "guard-policy"];

/// What needs that toolchain, or is of no use without it.
const OF_THE_KERNEL_SIDE: [&str; 5] = [
    "aya",
    "aya-build",
    "aya-obj",
    "guard-dataplane",
    "guard-ebpf",
];

pub fn run() -> Result<()> {
    let toolchain = setup::toolchain()?;
    println!("lint: cargo fmt --check");
    cargo(toolchain.cargo().args(["fmt", "--all", "--check"]))?;
    println!("lint: type names");
    type_names::require_unique(&workspace())?;
    old_names::require_none(&workspace())?;
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
    println!("lint: what builds without a toolchain for the kernel program");
    for package in ALONE {
        require_alone(toolchain.cargo(), package)?;
    }
    println!("lint: links and commands of the pages");
    cargo(toolchain.cargo().args([
        "build",
        "--quiet",
        "--locked",
        "--package",
        "guard-userspace",
    ]))?;
    pages::require_sound(&workspace(), &target_folder().join("debug/guard"))?;
    println!("lint: clean");
    Ok(())
}

/// Fails if the package, or what builds it, needs anything of the kernel side.
fn require_alone(mut cargo: Command, package: &str) -> Result<()> {
    let needed = output(
        cargo
            .args(["tree", "--locked", "--package", package])
            .args(["--edges", "normal,build", "--prefix", "none"]),
    )?;
    let names: Vec<&str> = needed
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    ensure!(
        names.contains(&package),
        "`cargo tree` does not name {package} itself"
    );
    let needless = names.iter().find(|name| OF_THE_KERNEL_SIDE.contains(name));
    ensure!(
        needless.is_none(),
        "{package} depends on {}: it must build without the kernel side's toolchain",
        needless.unwrap_or(&"")
    );
    Ok(())
}
