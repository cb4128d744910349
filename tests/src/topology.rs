//! Two namespaces joined by a veth pair: the internet, with several clients, and the guarded host.
//!
//! ```text
//! internet                                     host
//! 198.51.100.7, .66  2001:db8:51::7, ::66
//! 203.0.113.1 ------------- veth ------------- 203.0.113.10  (interface `wan`)
//! 2001:db8:113::1                              2001:db8:113::10
//! ```
//!
//! The addresses are reserved for documentation (RFC 5737, RFC 3849).

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};

use crate::{namespace::Namespace, process::run, sweep};

/// The guarded interface.
pub const INTERFACE: &str = "wan";

/// The IPv4 address of the guarded host.
pub const HOST_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));
/// Its IPv6 address.
pub const HOST_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10));

/// A well-behaved client.
pub const USER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
/// The same client's IPv6 address.
pub const USER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 7));

/// A flooding client. Its IPv6 address is in another /64 than the user's.
pub const FLOODER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 66));
/// The same client's IPv6 address.
pub const FLOODER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x51, 1, 0, 0, 0, 0x66));

/// The prefix of every lab's name; the owner's process id follows.
pub const NAME: &str = "guardlab";

/// The folder in the lab's folder where its BPF file system is mounted.
const BPFFS: &str = "bpf";

/// A guarded host and the internet, as two namespaces joined by a veth pair.
pub struct Lab {
    pub internet: Namespace,
    pub host: Namespace,
    folder: Folder,
}

impl Lab {
    /// A lab of its own name. It removes labs of processes that have ended.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        sweep::dead_labs()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{NAME}-{}-{number}", process::id());
        let lab = Self {
            internet: Namespace::new(format!("{name}-internet"))?,
            host: Namespace::new(format!("{name}-host"))?,
            folder: Folder::new(sweep::folder(&name))?,
        };
        let bpffs = lab.folder().join(BPFFS);
        fs::create_dir(&bpffs)?;
        run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&bpffs))?;
        let Self { internet, host, .. } = &lab;
        let peer = host.name();
        internet.ip(&format!(
            "link add internet type veth peer name {INTERFACE} netns {peer}"
        ))?;
        internet.ip("addr add 203.0.113.1/24 dev internet")?;
        internet.ip("addr add 2001:db8:113::1/64 dev internet nodad")?;
        for client in [USER_V4, FLOODER_V4, USER_V6, FLOODER_V6] {
            internet.ip(&format!("addr add {client} dev lo"))?;
        }
        internet.ip("link set internet up")?;
        host.ip(&format!("addr add {HOST_V4}/24 dev {INTERFACE}"))?;
        host.ip(&format!("addr add {HOST_V6}/64 dev {INTERFACE} nodad"))?;
        host.ip(&format!("link set {INTERFACE} up"))?;
        host.ip("route add 198.51.100.0/24 via 203.0.113.1")?;
        host.ip("route add 2001:db8:51::/48 via 2001:db8:113::1")?;
        Ok(lab)
    }

    /// This lab's folder, removed with the lab.
    pub fn folder(&self) -> &Path {
        let Folder(path) = &self.folder;
        path
    }

    /// The pins of this lab's guard, on a BPF file system that ends with the lab.
    pub fn pins(&self) -> PathBuf {
        self.folder().join(BPFFS).join("guard")
    }

    /// The state folder of this lab's guard.
    pub fn state(&self) -> PathBuf {
        self.folder().join("state")
    }

    /// The prefix of the names of this lab's namespaces, folder and cgroups.
    pub fn name(&self) -> &str {
        self.host.name().trim_end_matches("-host")
    }
}

struct Folder(PathBuf);

impl Folder {
    fn new(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let Self(path) = self;
        if let Err(error) = sweep::remove_folder(path) {
            eprintln!("{} cannot be removed: {error:#}", path.display());
        }
    }
}
