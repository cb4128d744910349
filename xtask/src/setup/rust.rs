//! Finds or installs a Rust toolchain that can build for the BPF virtual machine: it needs the standard library's
//! source, and a bpf-linker for its LLVM.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use which::which;

use super::{announce_and_run, apt, linker, unpack};

/// The toolchain that builds the kernel program.
pub struct Toolchain {
    /// The name in rustup, or the folder of a toolchain that rustup did not install.
    pub name: String,
    pub linker: PathBuf,
}

/// Read by `guard-userspace/dataplane/build.rs`.
const VARIABLE: &str = "GUARD_EBPF_TOOLCHAIN";

const NIGHTLY: &str = "nightly";

/// Debian's compiler, which is built against Debian's LLVM.
const DEBIAN: &str = "/usr";
const DEBIAN_PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy"];
const DEBIAN_LLVM: u32 = 22;

/// The oldest compiler that the workspace accepts.
const OLDEST: (u32, u32) = (1, 88);

impl Toolchain {
    /// A Cargo that finds this toolchain.
    pub fn cargo(&self) -> Command {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        self.equip(&mut command);
        command
    }

    /// This toolchain's own Cargo.
    pub fn own_cargo(&self) -> Command {
        let mut command = in_toolchain(&self.name, "cargo");
        command.env("RUSTC_BOOTSTRAP", "1");
        // The Cargo that runs this program sets these for its own toolchain.
        for variable in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN"] {
            command.env_remove(variable);
        }
        self.equip(&mut command);
        command
    }

    fn equip(&self, command: &mut Command) {
        command.env(VARIABLE, &self.name).env("PATH", self.path());
    }

    fn path(&self) -> OsString {
        let linker = self.linker.parent().map(Path::to_owned);
        let path = env::var_os("PATH").unwrap_or_default();
        let own = linker.into_iter().chain(unpack::programs());
        let folders = own.chain(env::split_paths(&path));
        // A folder with a colon in its name cannot be on `PATH`.
        env::join_paths(folders).unwrap_or(path)
    }

    pub fn print_exports(&self) {
        println!("export {VARIABLE}={}", self.name);
        println!("export PATH={}", self.path().to_string_lossy());
    }
}

/// A compiler's version and that of its LLVM.
struct Compiler {
    name: String,
    version: (u32, u32),
    llvm: u32,
    has_source: bool,
}

impl Compiler {
    /// `None`: there is no compiler of this name.
    fn find(name: &str) -> Option<Self> {
        let about = output(in_toolchain(name, "rustc").arg("-vV"))?;
        let fact = |key: &str| about.lines().find_map(|line| line.strip_prefix(key));
        let mut numbers = fact("release: ")?.split('.').map(str::parse);
        let version = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        let llvm = fact("LLVM version: ")?.split('.').next()?.parse().ok()?;
        let sysroot = output(in_toolchain(name, "rustc").args(["--print", "sysroot"]))?;
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
        Some(Self {
            name: name.to_owned(),
            version,
            llvm,
            has_source: source.is_file(),
        })
    }

    fn is_usable(&self) -> bool {
        self.version >= OLDEST && self.has_source && linker::is_possible(self.llvm)
    }

    fn equip(self) -> Result<Toolchain> {
        let linker = match linker::find(self.llvm) {
            Some(linker) => linker,
            None => linker::install(self.llvm)?,
        };
        Ok(Toolchain {
            name: self.name,
            linker,
        })
    }
}

pub fn find_or_install() -> Result<Toolchain> {
    if which("rustup").is_err() {
        bail!("rustup is missing, which manages several toolchains: install it");
    }
    if let Some(name) = env::var_os(VARIABLE) {
        let name = name.to_string_lossy();
        let compiler = Compiler::find(&name)
            .with_context(|| format!("{VARIABLE}={name}: there is no such toolchain"))?;
        if !compiler.has_source {
            bail!(
                "{VARIABLE}={name}: the toolchain has no source of the standard library (rust-src)"
            );
        }
        return compiler.equip();
    }
    let found = [NIGHTLY, DEBIAN].into_iter().filter_map(Compiler::find);
    if let Some(compiler) = found.into_iter().find(Compiler::is_usable) {
        return compiler.equip();
    }
    for install in [add_source_to_nightly, install_debian, install_nightly] {
        match install() {
            Ok(compiler) if compiler.is_usable() => return compiler.equip(),
            Ok(compiler) => eprintln!(
                "setup: the toolchain {} does not do: it needs Rust {}.{}, the standard library's \
                 source and an LLVM that bpf-linker knows",
                compiler.name, OLDEST.0, OLDEST.1
            ),
            Err(error) => eprintln!("setup: {error:#}"),
        }
    }
    bail!(
        "no toolchain can build the kernel program: it takes a rustup nightly with the component \
         rust-src, or Debian's {}, and the development files of its LLVM",
        DEBIAN_PACKAGES.join(", ")
    )
}

fn add_source_to_nightly() -> Result<Compiler> {
    Compiler::find(NIGHTLY).context("there is no nightly toolchain to add rust-src to")?;
    announce_and_run(Command::new("rustup").args([
        "component",
        "add",
        "rust-src",
        "--toolchain",
        NIGHTLY,
    ]))?;
    Compiler::find(NIGHTLY).context("the nightly toolchain does not run")
}

fn install_debian() -> Result<Compiler> {
    let llvm = format!("llvm-{DEBIAN_LLVM}-dev");
    let packages: Vec<&str> = DEBIAN_PACKAGES.into_iter().chain([llvm.as_str()]).collect();
    if let Some(missing) = packages.iter().find(|package| !apt::has(package)) {
        bail!("the package manager does not have Debian's {missing}");
    }
    apt::install(&packages)?;
    Compiler::find(DEBIAN).context("Debian's toolchain does not run")
}

fn install_nightly() -> Result<Compiler> {
    announce_and_run(Command::new("rustup").args([
        "toolchain",
        "install",
        NIGHTLY,
        "--profile",
        "minimal",
        "--component",
        "rust-src",
        "--component",
        "clippy",
    ]))?;
    Compiler::find(NIGHTLY).context("the nightly toolchain does not run")
}

fn in_toolchain(name: &str, program: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", name, program]);
    command
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then_some(text)
}
