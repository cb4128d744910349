//! Builds the kernel program from source; `dataplane` embeds it.
//!
//! `GUARD_EBPF_TOOLCHAIN` names a rustup toolchain or a folder such as `/usr` with one that has the
//! standard library's source; `nightly` if unset. `cargo xtask` finds one and sets it.

use std::env;

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain, build_ebpf};

const TOOLCHAIN: &str = "GUARD_EBPF_TOOLCHAIN";

fn main() -> Result<()> {
    println!("cargo::rerun-if-env-changed={TOOLCHAIN}");
    println!("cargo::rerun-if-changed=../guard-common/src");
    let toolchain = env::var(TOOLCHAIN).unwrap_or_else(|_| "nightly".to_owned());
    // SAFETY: the build script has one thread. The target needs core built from source, which a
    // stable compiler does only with this; it reaches the kernel program alone.
    unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
    // Compiled in pieces it is another program, which the verifier may refuse.
    // SAFETY: as above.
    unsafe { env::set_var("CARGO_INCREMENTAL", "0") };
    build_ebpf(
        [Package {
            name: "guard-ebpf",
            root_dir: "../guard-ebpf",
            ..Package::default()
        }],
        Toolchain::Custom(&toolchain),
    )
    .with_context(|| {
        format!(
            "the kernel program does not build with the toolchain {toolchain:?}; \
             `cargo xtask build` finds or installs what it needs"
        )
    })
}
