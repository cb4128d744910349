//! Lists the sockets of this host that receive packets from other hosts, and the processes that hold them.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::SocketAddr,
};

use guard_common::layout::PortProtocol;
use netlink_packet_sock_diag::inet::{SocketId, StateFlags};
use procfs::process::{FDTarget, Process, all_processes};

use crate::sock_diag::{SockDiagError, SocketProtocol, dump, is_v6_only};

/// A listening TCP socket, or a UDP socket without a peer, which receives from every source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    pub protocol: PortProtocol,
    /// The unspecified address: every address.
    pub local: SocketAddr,
    /// The socket option IPV6_V6ONLY: the socket receives no IPv4 packets.
    pub v6_only: bool,
    /// The index of the only interface that the socket receives from; zero: every interface.
    pub interface: u32,
    /// Zero: the socket is the kernel's own.
    pub inode: u32,
    pub uid: u32,
}

/// A process that holds a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub pid: i32,
    pub name: String,
    /// The identifier of its container.
    pub container: Option<String>,
}

/// The processes that hold sockets, by inode.
#[derive(Debug, Default)]
pub struct Holders {
    pub by_inode: HashMap<u64, Vec<Holder>>,
    /// The open files of every process could be read.
    pub complete: bool,
}

pub fn sockets() -> Result<Vec<Socket>, SockDiagError> {
    let mut sockets = Vec::new();
    // A UDP socket without a peer has the state TCP_CLOSE.
    for (transport, protocol, state) in [
        (SocketProtocol::Tcp, PortProtocol::Tcp, StateFlags::LISTEN),
        (SocketProtocol::Udp, PortProtocol::Udp, StateFlags::CLOSE),
    ] {
        dump(transport, state, |response| {
            let v6_only = is_v6_only(&response);
            let SocketId {
                source_address,
                source_port,
                interface_id,
                ..
            } = response.header.socket_id;
            sockets.push(Socket {
                protocol,
                local: SocketAddr::new(source_address.to_canonical(), source_port),
                v6_only,
                interface: interface_id,
                inode: response.header.inode,
                uid: response.header.uid,
            });
        })?;
    }
    sockets.retain(|socket| socket.local.port() != 0);
    Ok(sockets)
}

/// Reads the open files of every process.
pub fn holders(sockets: &[Socket]) -> Holders {
    let wanted: HashSet<u64> = sockets.iter().map(|socket| socket.inode.into()).collect();
    let mut holders = Holders {
        complete: true,
        ..Holders::default()
    };
    // Without /proc, no process is known.
    let Ok(processes) = all_processes() else {
        holders.complete = false;
        return holders;
    };
    // If this process runs in a container, the processes of that container count as the host's.
    let own = Process::myself().ok().as_ref().and_then(container_of);
    for process in processes.flatten() {
        let Some(held) = held(&process, &wanted) else {
            // A process that has ended meanwhile holds no socket.
            holders.complete &= !process.is_alive();
            continue;
        };
        if held.is_empty() {
            continue;
        }
        let holder = Holder {
            pid: process.pid,
            name: process.stat().map(|stat| stat.comm).unwrap_or_default(),
            container: container_of(&process).filter(|id| Some(id) != own.as_ref()),
        };
        for inode in held {
            holders
                .by_inode
                .entry(inode)
                .or_default()
                .push(holder.clone());
        }
    }
    holders
}

/// The wanted sockets that the process holds. `None`: its open files cannot be read.
fn held(process: &Process, wanted: &HashSet<u64>) -> Option<BTreeSet<u64>> {
    let files: Vec<_> = process.fd().ok()?.collect();
    // Without CAP_SYS_PTRACE, the open files of other processes can be listed, but not read.
    if !files.is_empty() && files.iter().all(Result::is_err) {
        return None;
    }
    let files = files.into_iter().flatten();
    let held = files.filter_map(|file| match file.target {
        FDTarget::Socket(inode) if wanted.contains(&inode) => Some(inode),
        _ => None,
    });
    Some(held.collect())
}

fn container_of(process: &Process) -> Option<String> {
    let groups = process.cgroups().ok()?.into_iter();
    groups
        .filter_map(|group| container_in(&group.pathname).map(str::to_owned))
        .next()
}

/// The length of container identifiers, in hexadecimal digits.
const IDENTIFIER: usize = 64;

/// The innermost identifier of a container in the path of a control group, such as
/// `/system.slice/docker-….scope`, `/docker/…` or `/machine.slice/libpod-….scope`.
fn container_in(path: &str) -> Option<&str> {
    let words = path.rsplit(|c: char| !c.is_ascii_alphanumeric());
    let mut identifiers = words.filter(|word| {
        word.len() == IDENTIFIER && word.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    identifiers.next()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn a_container_is_recognised_by_its_control_group() {
        let id = "0123456789abcdef".repeat(4);
        for path in [
            format!("/docker/{id}"),
            format!("/system.slice/docker-{id}.scope"),
            format!("/machine.slice/libpod-{id}.scope/container"),
            format!("/kubepods.slice/kubepods-pod12.slice/cri-containerd-{id}.scope"),
        ] {
            assert_eq!(container_in(&path), Some(id.as_str()), "{path}");
        }
        for path in ["/", "/system.slice/ssh.service", "/user.slice/0123.scope"] {
            assert_eq!(container_in(path), None, "{path}");
        }
    }

    #[test]
    fn sockets_are_found_with_their_processes() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let sockets = sockets().unwrap();
        let holders = holders(&sockets);
        for (protocol, local) in [
            (PortProtocol::Tcp, tcp.local_addr().unwrap()),
            (PortProtocol::Udp, udp.local_addr().unwrap()),
        ] {
            let mut all = sockets.iter();
            let socket = all.find(|socket| (socket.protocol, socket.local) == (protocol, local));
            let inode = socket.unwrap().inode.into();
            let pids: Vec<_> = holders.by_inode[&inode].iter().map(|one| one.pid).collect();
            assert!(pids.contains(&std::process::id().cast_signed()), "{pids:?}");
        }
    }

    #[test]
    fn a_udp_socket_with_a_peer_is_not_listed() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect("127.0.0.1:9").unwrap();
        let local = socket.local_addr().unwrap();
        let found = sockets().unwrap();
        let is_it = |socket: &Socket| (socket.protocol, socket.local) == (PortProtocol::Udp, local);
        assert!(!found.iter().any(is_it));
    }
}
