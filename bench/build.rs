//! Builds the kernel programs of the bench from source, as guard-userspace/dataplane/build.rs does
//! guard's.

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
    // SAFETY: the build script has one thread. The target needs core built from source, which a
    // stable compiler does only with this; it reaches the kernel programs alone.
    unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
    // Compiled in pieces it is another program, which the verifier may refuse.
    // SAFETY: as above.
    unsafe { env::set_var("CARGO_INCREMENTAL", "0") };
    // As guard's own: see there.
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
