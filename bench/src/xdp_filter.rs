//! xdp-filter (xdp-tools), the usual choice to close only ports and addresses with XDP.
//!
//! Its own command loads it onto an interface of the lab, and unloads it again; the program stays loaded while this
//! process holds it. libxdp's dispatcher, which costs a few more nanoseconds, is left out in its favour.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use aya::programs::Xdp;
use aya_obj::programs::XdpAttachType;
use lab::{
    process::run,
    topology::{INTERFACE, Lab},
};

/// xdp-filter pins its tables below the first BPF file system that it finds: this makes it the lab's.
const IN_BPFFS: &str = "mount --bind \"$0\" /sys/fs/bpf && exec xdp-filter \"$@\"";

/// The features that it is loaded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filter {
    /// The fewest features that close a TCP port.
    Port(u16),
    /// The fewest features that deny an IPv4 address.
    Address(Ipv4Addr),
    /// All features, and both rules.
    All(u16, Ipv4Addr),
}

impl Filter {
    /// The features on its command line, and the program that has them.
    const fn features(self) -> (&'static str, &'static str) {
        match self {
            Self::Port(_) => ("tcp", "xdpfilt_alw_tcp"),
            Self::Address(_) => ("ipv4", "xdpfilt_alw_ip"),
            Self::All(..) => ("all", "xdpfilt_alw_all"),
        }
    }

    pub fn load(self, lab: &Lab) -> Result<Xdp> {
        let bpffs = bpffs(lab)?;
        let bpffs = bpffs.as_path();
        let command = || command(lab, bpffs);
        let (features, name) = self.features();
        run(command().args(["load", "--features", features, INTERFACE]))?;
        let program = self.rule(command).and_then(|()| open(bpffs, name));
        run(command().args(["unload", INTERFACE]))?;
        program
    }

    fn rule(self, command: impl Fn() -> Command) -> Result<()> {
        let (port, address) = match self {
            Self::Port(port) => (Some(port), None),
            Self::Address(address) => (None, Some(address)),
            Self::All(port, address) => (Some(port), Some(address)),
        };
        if let Some(port) = port {
            let rule = ["--mode", "dst", "--proto", "tcp"];
            run(command().arg("port").arg(port.to_string()).args(rule))?;
        }
        if let Some(address) = address {
            run(command()
                .arg("ip")
                .arg(address.to_string())
                .args(["--mode", "src"]))?;
        }
        Ok(())
    }
}

/// Attaches it to the interface of a lab's host, with a port closed, until the lab ends.
pub fn protect(lab: &Lab, port: u16) -> Result<()> {
    let bpffs = bpffs(lab)?;
    let filter = Filter::Port(port);
    let (features, _) = filter.features();
    run(command(lab, &bpffs)
        .args(["load", "--mode", "native"])
        .args(["--features", features, INTERFACE]))?;
    filter.rule(|| command(lab, &bpffs))
}

fn bpffs(lab: &Lab) -> Result<PathBuf> {
    let pins = lab.pins();
    let bpffs = pins.parent().context("the lab has no BPF file system")?;
    Ok(bpffs.to_owned())
}

fn command(lab: &Lab, bpffs: &Path) -> Command {
    let mut command = lab.host.command("unshare");
    command
        .args(["--mount", "sh", "-c", IN_BPFFS])
        .arg(bpffs)
        .env("LIBXDP_SKIP_DISPATCHER", "1");
    command
}

fn open(bpffs: &Path, name: &str) -> Result<Xdp> {
    let pin = bpffs.join("xdp-filter/programs").join(INTERFACE).join(name);
    let program = Xdp::from_pin(&pin, XdpAttachType::Interface);
    program.with_context(|| format!("xdp-filter has not pinned {}", pin.display()))
}
