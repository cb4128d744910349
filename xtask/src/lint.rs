//! `cargo xtask lint`: checks format, names and clippy, also of the kernel program, the packages that must build
//! without it, and the pages.

use std::process::Command;

use anyhow::{Result, ensure};
use lab::process::run as output;

use crate::{
    build::{cargo, target_folder, workspace},
    old_names, pages, public_docs, setup, type_names,
};

/// The packages that must build without bpf-linker and a toolchain for the kernel program, such as in CI.
const ALONE: [&str; 2] = ["guard-compose", "guard-policy"];

/// The packages that need that toolchain, or are useless without it.
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
    println!("lint: clippy, and public items without documentation");
    for packages in [&[][..], &["--package", "guard-bench"]] {
        public_docs::clippy(toolchain.cargo(), packages)?;
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
    println!("lint: packages that build without a toolchain for the kernel program");
    for package in ALONE {
        require_alone(toolchain.cargo(), package)?;
    }
    println!("lint: licences and sources of dependencies");
    match setup::cargo_deny() {
        // Advisories are left out: a new one must not break a commit that was sound.
        Ok(deny) => cargo(
            Command::new(deny)
                .current_dir(workspace())
                .args(["--log-level", "error", "check", "--hide-inclusion-graph"])
                .args(["licenses", "bans", "sources"]),
        )?,
        Err(error) => println!("lint: licences and sources were NOT checked: {error:#}"),
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

/// Fails if the package, also by its build dependencies, needs a package of the kernel side.
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
