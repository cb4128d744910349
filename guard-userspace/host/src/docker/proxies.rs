//! Sockets that a container runtime holds for its containers. Docker starts a `docker-proxy` for each port that it
//! publishes, before the container runs: such a socket is no service of this host's.

use std::{io, net::IpAddr, path::Path};

use guard_common::layout::PortProtocol;
use procfs::process::{Process, all_processes};

use super::Inventory;
use crate::{Listener, read};

/// The command of Docker's proxy, as the kernel has it.
const PROXY: &str = "docker-proxy";

/// The first process: hidden where a process sees its own alone (`hidepid` in proc(5)).
const FIRST: &str = "/proc/1";

/// The sockets that services of this host wait at, of those that have a port which a container publishes that does not
/// run. The processes are looked at only if there are such sockets: a new container's ports close before it is started,
/// and to read thousands of processes takes longer.
///
/// # Errors
/// If the sockets cannot be read, or the processes are hidden: then a proxy's socket cannot be told from another.
pub fn own_listeners<'a>(
    inventories: impl Iterator<Item = &'a Inventory> + Clone,
) -> io::Result<Vec<Listener>> {
    let mut listeners = read::listeners().map_err(io::Error::other)?;
    listeners.retain(|listener| {
        let mut inventories = inventories.clone();
        inventories.any(|inventory| inventory.contests(listener))
    });
    if listeners.is_empty() {
        return Ok(listeners);
    }
    if !Path::new(FIRST).exists() {
        return Err(io::Error::other(
            "processes are hidden (hidepid, or systemd's ProtectProc=), so a runtime's proxy cannot be told from a \
             service of this host",
        ));
    }
    // After the sockets: a proxy that holds one of them is there.
    let processes = all_processes().map_err(io::Error::other)?;
    let proxied: Vec<Proxied> = processes
        .filter_map(Result::ok)
        .filter_map(|process| Proxied::by(&process))
        .collect();
    listeners.retain(|listener| !proxied.iter().any(|proxied| proxied.is(listener)));
    Ok(listeners)
}

/// A port that a proxy serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Proxied {
    protocol: PortProtocol,
    address: IpAddr,
    port: u16,
}

impl Proxied {
    /// `None`: the process is no proxy, or has ended.
    fn by(process: &Process) -> Option<Self> {
        let command = process.stat().ok()?.comm;
        (command == PROXY).then(|| Self::parse(&process.cmdline().ok()?))?
    }

    /// Reads `docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 8000 …`.
    fn parse(arguments: &[String]) -> Option<Self> {
        let value = |name: &str| {
            let mut arguments = arguments.iter();
            arguments.find(|argument| argument.trim_start_matches('-') == name)?;
            arguments.next()
        };
        Some(Self {
            protocol: match value("proto")?.as_str() {
                "tcp" => PortProtocol::Tcp,
                "udp" => PortProtocol::Udp,
                "sctp" => PortProtocol::Sctp,
                _ => return None,
            },
            address: value("host-ip")?.parse().ok()?,
            port: value("host-port")?.parse().ok()?,
        })
    }

    fn is(&self, listener: &Listener) -> bool {
        self.protocol == listener.protocol
            && self.port == listener.address.port()
            && self.address.to_canonical() == listener.address.ip()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_known_by_its_arguments() {
        let line = "/usr/bin/docker-proxy -proto tcp -host-ip 203.0.113.11 -host-port 8000 -container-ip \
                    172.17.0.2 -container-port 80 -use-listen-fd";
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let proxied = Proxied::parse(&arguments).unwrap();
        let listener = |address: &str| Listener {
            protocol: PortProtocol::Tcp,
            address: address.parse().unwrap(),
            dual_stack: false,
        };
        assert!(proxied.is(&listener("203.0.113.11:8000")));
        for other in ["203.0.113.10:8000", "203.0.113.11:80", "0.0.0.0:8000"] {
            assert!(!proxied.is(&listener(other)), "{other}");
        }
        assert_eq!(
            Proxied::parse(&["docker-proxy".to_owned(), "-proto".to_owned()]),
            None
        );
    }
}
