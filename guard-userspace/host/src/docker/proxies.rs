//! Tells the sockets of this host's services from those that a runtime holds for its containers. Docker starts a
//! `docker-proxy` for each port that it publishes, before the container runs.

use std::{io, net::IpAddr, path::Path};

use guard_common::layout::PortProtocol;
use procfs::process::{Process, all_processes};

use super::Inventory;
use crate::{Listener, read};

/// The command name (comm) of Docker's proxy.
const PROXY: &str = "docker-proxy";

/// The first process. It is hidden if a process sees only processes of its own user (`hidepid` in proc(5)).
const FIRST: &str = "/proc/1";

/// The listening sockets of this host's services that hold a port of a container that does not run. Processes are read
/// only if there are such sockets: a new container's ports must close before it is started, and reading thousands of
/// processes takes longer.
///
/// # Errors
/// The sockets cannot be read, or the processes are hidden, so that a proxy's socket cannot be told from another.
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
            "processes are hidden (hidepid, or systemd's ProtectProc=), so the socket of a runtime's proxy cannot be \
             told from that of a service of this host",
        ));
    }
    // Read after the sockets, so that every proxy that holds one of them is found.
    let processes = all_processes().map_err(io::Error::other)?;
    let proxied: Vec<Proxied> = processes
        .filter_map(Result::ok)
        .filter_map(|process| Proxied::by(&process))
        .collect();
    listeners.retain(|listener| !proxied.iter().any(|proxied| proxied.is(listener)));
    Ok(listeners)
}

/// A port for which a proxy listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Proxied {
    protocol: PortProtocol,
    address: IpAddr,
    port: u16,
}

impl Proxied {
    /// The port of a process; `None`: the process is not a proxy, or has ended.
    fn by(process: &Process) -> Option<Self> {
        let command = process.stat().ok()?.comm;
        (command == PROXY).then(|| Self::parse(&process.cmdline().ok()?))?
    }

    /// Parses `docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 8000 …`.
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
    fn a_proxys_port_is_parsed_from_its_arguments() {
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
