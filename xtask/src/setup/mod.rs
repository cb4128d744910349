//! Finds the tools of a build and of the lab, and installs missing ones.

mod apt;
mod archive;
mod deny;
mod kernels;
mod linker;
mod rust;
mod unpack;

pub use self::deny::cargo_deny;

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use lab::interrupt;
use nix::unistd::geteuid;
use which::which;

pub use self::rust::Toolchain;

/// Sets up a build: a compiler with the standard library's source, and the linker for it.
pub fn toolchain() -> Result<Toolchain> {
    rust::find_or_install()
}

/// Sets up the demo: a toolchain and the programs of the lab, with Docker if it can be installed.
pub fn for_demo() -> Result<Toolchain> {
    let toolchain = toolchain()?;
    require_root()?;
    find_tools(&LAB)?;
    if let Err(error) = find_tools(&DOCKER) {
        println!("setup: continuing without Docker: {error:#}");
    }
    ready(toolchain)
}

/// Sets up the tests: a toolchain and the programs of the lab, with Docker.
pub fn for_tests() -> Result<Toolchain> {
    let toolchain = toolchain()?;
    require_root()?;
    find_tools(&[LAB.as_slice(), &DOCKER, &TESTS, &PACKAGE].concat())?;
    for unpacked in [unpack::CHRONY, unpack::PROMETHEUS, unpack::COMPOSE] {
        unpacked.find()?;
    }
    for series in &kernels::KEPT {
        kernels::keep(series)?;
    }
    ready(toolchain)
}

/// Sets up the tests on all kernels.
pub fn for_kernels() -> Result<Toolchain> {
    let toolchain = for_tests()?;
    kernels::keep(&kernels::NEWEST)?;
    Ok(toolchain)
}

/// Sets up the bench: a toolchain, the programs of the lab, and the programs that guard is compared with.
pub fn for_bench() -> Result<Toolchain> {
    let toolchain = toolchain()?;
    require_root()?;
    find_tools(&[LAB.as_slice(), &BENCH].concat())?;
    Ok(toolchain)
}

/// Sets up Debian's packaging tools, besides the toolchain.
pub fn for_package() -> Result<()> {
    find_tools(&PACKAGE)
}

fn ready(toolchain: Toolchain) -> Result<Toolchain> {
    println!(
        "setup: ready, with the toolchain {} and {}",
        toolchain.name,
        toolchain.linker.display()
    );
    Ok(toolchain)
}

/// A program of the lab, and the Debian package that has it.
#[derive(Clone, Copy)]
struct Tool {
    program: &'static str,
    package: &'static str,
}

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package }
}

/// The programs that the lab always needs.
const LAB: [Tool; 12] = [
    tool("ip", "iproute2"),
    tool("nsenter", "util-linux"),
    tool("sysctl", "procps"),
    tool("tar", "tar"),
    tool("curl", "curl"),
    tool("busybox", "busybox-static"),
    tool("nginx", "nginx-light"),
    tool("nft", "nftables"),
    tool("iptables", "iptables"),
    tool("hping3", "hping3"),
    tool("nmap", "nmap"),
    tool("bpftool", "bpftool"),
];

/// The programs that only the tests need: real clients and servers of UDP and SSH, a terminal, a new Debian with its
/// systemd, and virtual machines with Debian's kernels.
const TESTS: [Tool; 17] = [
    tool("chromium", "chromium"),
    tool("cpio", "cpio"),
    tool("depmod", "kmod"),
    tool("qemu-system-x86_64", "qemu-system-x86"),
    tool("xz", "xz-utils"),
    tool("dnsmasq", "dnsmasq-base"),
    tool("gtlsclient", "ngtcp2-client"),
    tool("gtlsserver", "ngtcp2-server"),
    tool("mmdebstrap", "mmdebstrap"),
    tool("openssl", "openssl"),
    tool("systemd-nspawn", "systemd-container"),
    tool("tcpdump", "tcpdump"),
    tool("tshark", "tshark"),
    tool("dropbear", "dropbear-bin"),
    tool("dropbearkey", "dropbear-bin"),
    tool("dbclient", "dropbear-bin"),
    tool("tmux", "tmux"),
];

/// The programs that guard is compared with, and those that set up a flood.
const BENCH: [Tool; 3] = [
    tool("ethtool", "ethtool"),
    tool("taskset", "util-linux"),
    tool("xdp-filter", "xdp-tools"),
];

/// Debian's tools for packages.
const PACKAGE: [Tool; 5] = [
    tool("dpkg-deb", "dpkg"),
    tool("dpkg-gencontrol", "dpkg-dev"),
    tool("dpkg-shlibdeps", "dpkg-dev"),
    tool("gzip", "gzip"),
    tool("strip", "binutils"),
];

/// A real Docker.
const DOCKER: [Tool; 4] = [
    tool("docker", "docker.io"),
    tool("dockerd", "docker.io"),
    tool("containerd", "containerd"),
    tool("docker-compose", "docker-compose"),
];

fn find_tools(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools.iter().filter(|tool| !tool.is_there()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    packages.dedup();
    if let Err(error) = apt::install(&packages) {
        let programs: Vec<&str> = missing.iter().map(|tool| tool.program).collect();
        bail!("this needs {}: {error:#}", programs.join(", "));
    }
    for tool in missing {
        if !tool.is_there() {
            bail!(
                "{} is still missing although {} is installed",
                tool.program,
                tool.package
            );
        }
    }
    Ok(())
}

impl Tool {
    fn is_there(&self) -> bool {
        which(self.program).is_ok()
    }
}

/// Whether a real Docker can be started.
pub fn has_docker() -> bool {
    DOCKER.iter().all(Tool::is_there)
}

pub fn require_root() -> Result<()> {
    if geteuid().is_root() {
        return Ok(());
    }
    bail!("the lab makes network namespaces and loads kernel programs: run this as root")
}

/// Runs a step of the setup, with its output on the terminal.
fn announce_and_run(command: &mut Command) -> Result<()> {
    interrupt::check()?;
    // Standard output is for the result of the command, which a program may read.
    eprintln!("setup: {}", describe(command));
    let status = command
        .status()
        .with_context(|| format!("{command:?} cannot be started"))?;
    if !status.success() {
        bail!("`{}` failed ({status})", describe(command));
    }
    Ok(())
}

fn describe(command: &Command) -> String {
    let words = [command.get_program()]
        .into_iter()
        .chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}
