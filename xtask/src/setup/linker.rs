//! Finds or builds bpf-linker for the compiler's version of LLVM: it reads the compiler's bitcode.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use which::which;

use lab::cache;

use super::{announce_and_run, apt};

const VERSION: &str = "0.13.0";

/// The versions of LLVM that this bpf-linker can be built with.
const SUPPORTED: [u32; 3] = [21, 22, 23];

/// A bpf-linker for this version of LLVM, if there is one.
pub fn find(llvm: u32) -> Option<PathBuf> {
    [
        which("bpf-linker").ok(),
        Some(own_root(llvm).join("bin/bpf-linker")),
    ]
    .into_iter()
    .flatten()
    .find(|linker| fits(linker, llvm))
}

/// Whether a bpf-linker for this version of LLVM is installed or can be built.
pub fn is_possible(llvm: u32) -> bool {
    find(llvm).is_some()
        || SUPPORTED.contains(&llvm) && (llvm_prefix(llvm).is_some() || apt::has(&package(llvm)))
}

/// Builds bpf-linker for this version of LLVM.
pub fn install(llvm: u32) -> Result<PathBuf> {
    if !SUPPORTED.contains(&llvm) {
        bail!("bpf-linker {VERSION} does not support LLVM {llvm}");
    }
    if llvm_prefix(llvm).is_none() {
        apt::install(&[&package(llvm)])?;
    }
    let prefix = llvm_prefix(llvm).with_context(|| format!("LLVM {llvm} is not found"))?;
    let root = own_root(llvm);
    announce_and_run(
        Command::new("cargo")
            .args(["install", "--quiet", "--locked", "--force", "--root"])
            .arg(&root)
            .args(["--no-default-features", "--features"])
            .arg(format!("llvm-{llvm}"))
            .arg(format!("bpf-linker@{VERSION}"))
            .env("LLVM_PREFIX", prefix),
    )?;
    find(llvm).context("the bpf-linker that was just built does not run")
}

/// Whether a bpf-linker runs and is linked with this version of LLVM. `bpf-linker --version` does not print it: the
/// folder of this setup's own builds does, and `ldd` shows it for any other.
fn fits(linker: &Path, llvm: u32) -> bool {
    let Ok(output) = Command::new(linker).arg("--version").output() else {
        return false;
    };
    output.status.success() && (linker.starts_with(own_root(llvm)) || links_llvm(linker, llvm))
}

fn links_llvm(linker: &Path, llvm: u32) -> bool {
    let Ok(output) = Command::new("ldd").arg(linker).output() else {
        return false;
    };
    let libraries = String::from_utf8_lossy(&output.stdout);
    libraries.contains(&format!("libLLVM.so.{llvm}."))
        || libraries.contains(&format!("libLLVM-{llvm}."))
}

fn package(llvm: u32) -> String {
    format!("llvm-{llvm}-dev")
}

/// The folder of Debian's package of a version of LLVM.
fn llvm_prefix(llvm: u32) -> Option<PathBuf> {
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    prefix.join("include/llvm-c").is_dir().then_some(prefix)
}

/// The folder of this setup's bpf-linker, apart from any that the user has installed.
fn own_root(llvm: u32) -> PathBuf {
    cache::folder().join(format!("bpf-linker-{VERSION}-llvm-{llvm}"))
}
