//! Builds the kernel program from source; `object.rs` embeds it.
//!
//! `GUARD_EBPF_TOOLCHAIN` names a rustup toolchain or a folder such as `/usr` with one that has the
//! standard library's source; `nightly` if unset. `cargo xtask` finds one and sets it.

use std::{env, fs, path::Path};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain, build_ebpf};
use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

/// The name of the package, of its program, and of the built file.
const PROGRAM: &str = "guard-ebpf";

const TOOLCHAIN: &str = "GUARD_EBPF_TOOLCHAIN";

/// Selects BPF CPU v3, all of whose instructions Linux 6.1 has: 32-bit arithmetic and every comparison (Linux 5.1). The
/// default CPU needs several instructions for one of these. The flags are set for the profile, because aya-build sets
/// those for all profiles itself.
const CPU: [(&str, &str); 3] = [
    ("CARGO_UNSTABLE_PROFILE_RUSTFLAGS", "true"),
    ("CARGO_PROFILE_RELEASE_RUSTFLAGS", "-Ctarget-cpu=v3"),
    // Build scripts run on this machine's CPU: for them, the flag above is replaced by the default.
    (
        "CARGO_PROFILE_RELEASE_BUILD_OVERRIDE_RUSTFLAGS",
        "-Copt-level=0",
    ),
];

fn main() -> Result<()> {
    println!("cargo::rerun-if-env-changed={TOOLCHAIN}");
    println!("cargo::rerun-if-changed=../../guard-common/src");
    let toolchain = env::var(TOOLCHAIN).unwrap_or_else(|_| "nightly".to_owned());
    // SAFETY: the build script has one thread. The target needs core built from source, which a stable compiler does
    // only with this variable; it affects only the kernel program.
    unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
    // Incremental compilation gives a different program, which the verifier may refuse.
    // SAFETY: as above.
    unsafe { env::set_var("CARGO_INCREMENTAL", "0") };
    for (key, value) in CPU {
        // SAFETY: as above.
        unsafe { env::set_var(key, value) };
    }
    build_ebpf(
        [Package {
            name: PROGRAM,
            root_dir: "../../guard-ebpf",
            ..Package::default()
        }],
        Toolchain::Custom(&toolchain),
    )
    .with_context(|| {
        format!(
            "the kernel program does not build with the toolchain {toolchain:?}; \
             `cargo xtask build` finds or installs what it needs"
        )
    })?;
    let out = env::var_os("OUT_DIR").context("Cargo does not set OUT_DIR")?;
    strip(&Path::new(&out).join(PROGRAM)).context("the kernel program cannot be stripped")
}

/// Removes the debug sections, which are most of the file: the kernel uses BTF instead, and the agent would keep them
/// in memory.
fn strip(path: &Path) -> Result<()> {
    let file = fs::read(path)?;
    let mut program = Builder::read(&*file)?;
    for section in &mut program.sections {
        let name = section.name.to_string();
        section.delete = name.starts_with(".debug_") || name.starts_with(".rel.debug_");
    }
    program.delete_orphans();
    // The linker has put the names of sections into the same table as those of symbols.
    let names = program.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    program.write(&mut stripped)?;
    Ok(fs::write(path, stripped)?)
}
