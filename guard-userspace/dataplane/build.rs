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

/// The package, its program, and the file that it becomes.
const PROGRAM: &str = "guard-ebpf";

const TOOLCHAIN: &str = "GUARD_EBPF_TOOLCHAIN";

/// All instructions that Linux 6.1 has: 32-bit arithmetic and every comparison (Linux 5.1), where the oldest
/// machine makes several of one. The builder of the program has its own idea of the flags that are for all profiles.
const CPU: [(&str, &str); 3] = [
    ("CARGO_UNSTABLE_PROFILE_RUSTFLAGS", "true"),
    ("CARGO_PROFILE_RELEASE_RUSTFLAGS", "-Ctarget-cpu=v3"),
    // What runs here while it builds has another machine: instead of the flag above, what is so anyway.
    (
        "CARGO_PROFILE_RELEASE_BUILD_OVERRIDE_RUSTFLAGS",
        "-Copt-level=0",
    ),
];

fn main() -> Result<()> {
    println!("cargo::rerun-if-env-changed={TOOLCHAIN}");
    println!("cargo::rerun-if-changed=../../guard-common/src");
    let toolchain = env::var(TOOLCHAIN).unwrap_or_else(|_| "nightly".to_owned());
    // SAFETY: the build script has one thread. The target needs core built from source, which a
    // stable compiler does only with this; it reaches the kernel program alone.
    unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
    // Compiled in pieces it is another program, which the verifier may refuse.
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
    let out = env::var_os("OUT_DIR").context("Cargo names no folder for what is built")?;
    strip(&Path::new(&out).join(PROGRAM)).context("the kernel program cannot be stripped")
}

/// Leaves out what only a debugger reads, most of the file: the kernel has its own (BTF), and the agent would
/// keep it in memory.
fn strip(path: &Path) -> Result<()> {
    let file = fs::read(path)?;
    let mut program = Builder::read(&*file)?;
    for section in &mut program.sections {
        let name = section.name.to_string();
        section.delete = name.starts_with(".debug_") || name.starts_with(".rel.debug_");
    }
    program.delete_orphans();
    // The linker keeps the names of sections with those of symbols.
    let names = program.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    program.write(&mut stripped)?;
    Ok(fs::write(path, stripped)?)
}
