//! Builds the kernel programs of the bench from source, as guard-userspace/dataplane/build.rs builds guard's.

use std::env;

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain, build_ebpf};

const TOOLCHAIN: &str = "GUARD_EBPF_TOOLCHAIN";

const CPU: [(&str, &str); 3] = [
    ("CARGO_UNSTABLE_PROFILE_RUSTFLAGS", "true"),
    ("CARGO_PROFILE_RELEASE_RUSTFLAGS", "-Ctarget-cpu=v3"),
    (
        "CARGO_PROFILE_RELEASE_BUILD_OVERRIDE_RUSTFLAGS",
        "-Copt-level=0",
    ),
];

fn main() -> Result<()> {
    println!("cargo::rerun-if-env-changed={TOOLCHAIN}");
    let toolchain = env::var(TOOLCHAIN).unwrap_or_else(|_| "nightly".to_owned());
    // SAFETY: the build script has one thread. The target needs core built from source, which a stable compiler does
    // only with this variable; it applies only to the kernel programs.
    unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
    // With several codegen units the program differs, and the verifier may reject it.
    // SAFETY: as above.
    unsafe { env::set_var("CARGO_INCREMENTAL", "0") };
    // For the reason, see guard-userspace/dataplane/build.rs.
    for (key, value) in CPU {
        // SAFETY: as above.
        unsafe { env::set_var(key, value) };
    }
    build_ebpf(
        [Package {
            name: "guard-bench-ebpf",
            root_dir: "ebpf",
            ..Package::default()
        }],
        Toolchain::Custom(&toolchain),
    )
    .with_context(|| {
        format!("the kernel programs of the bench do not build with the toolchain {toolchain:?}")
    })
}
