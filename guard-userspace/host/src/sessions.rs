//! Reads the TCP sessions that other hosts have opened to this host from the kernel (sock_diag(7)).
//!
//! Only sessions with a socket in this network namespace are listed. A session that Docker's NAT sends to a container
//! has its socket in the container's namespace.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use netlink_packet_sock_diag::inet::{SocketId, StateFlags};
use serde::{Deserialize, Serialize};

use crate::sock_diag::{SockDiagError, SocketProtocol, dump, is_v6_only};

/// A TCP connection, as this host sees it. IPv4-mapped addresses are converted to IPv4.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Session {
    pub local: SocketAddr,
    pub peer: SocketAddr,
}

/// A TCP socket that waits for connections.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ListeningSocket {
    /// The unspecified address: every address.
    pub local: SocketAddr,
    /// An IPv6 socket that accepts no IPv4 connections (IPV6_V6ONLY).
    pub v6_only: bool,
}

/// The established sessions that other hosts opened: a socket of this host listens on their local port. Sessions from
/// loopback to loopback, which never leave the host, are left out. Sorted.
///
/// Blocks while the kernel walks its sockets: a fraction of a second with 100,000 of them.
pub fn inbound() -> Result<Vec<Session>, SockDiagError> {
    // Sessions are read before listeners, so that the listener of each session is found if it still listens.
    let mut sessions = established()?;
    let mut by_port: HashMap<u16, Vec<ListeningSocket>> = HashMap::new();
    for listener in listeners()? {
        let port = listener.local.port();
        by_port.entry(port).or_default().push(listener);
    }
    sessions.retain(|Session { local, peer }| {
        let listeners = by_port.get(&local.port());
        let is_accepted = listeners.is_some_and(|listeners| {
            let mut listeners = listeners.iter();
            listeners.any(|listener| listener.accepts(local.ip()))
        });
        is_accepted && !(local.ip().is_loopback() && peer.ip().is_loopback())
    });
    sessions.sort_unstable();
    Ok(sessions)
}

/// The established sessions to these local ports, whether or not a socket still listens there. Sorted.
///
/// Blocks as [`inbound`] does.
pub fn at_ports(ports: &BTreeSet<u16>) -> Result<Vec<Session>, SockDiagError> {
    let mut sessions = established()?;
    sessions.retain(|Session { local, peer }| {
        ports.contains(&local.port()) && !(local.ip().is_loopback() && peer.ip().is_loopback())
    });
    sessions.sort_unstable();
    Ok(sessions)
}

/// Every socket that waits for TCP connections. Sorted.
pub fn listeners() -> Result<Vec<ListeningSocket>, SockDiagError> {
    let mut listeners = Vec::new();
    dump(SocketProtocol::Tcp, StateFlags::LISTEN, |response| {
        let v6_only = is_v6_only(&response);
        let SocketId {
            source_address,
            source_port,
            ..
        } = response.header.socket_id;
        listeners.push(ListeningSocket {
            local: SocketAddr::new(source_address.to_canonical(), source_port),
            v6_only,
        });
    })?;
    listeners.sort_unstable();
    // Sockets that share a port (SO_REUSEPORT) are listed once.
    listeners.dedup();
    Ok(listeners)
}

fn established() -> Result<Vec<Session>, SockDiagError> {
    let mut sessions = Vec::new();
    dump(SocketProtocol::Tcp, StateFlags::ESTABLISHED, |response| {
        let SocketId {
            source_port,
            destination_port,
            source_address,
            destination_address,
            ..
        } = response.header.socket_id;
        sessions.push(Session {
            local: SocketAddr::new(source_address.to_canonical(), source_port),
            peer: SocketAddr::new(destination_address.to_canonical(), destination_port),
        });
    })?;
    Ok(sessions)
}

impl ListeningSocket {
    /// Whether connections to this address reach it, given its port.
    pub fn accepts(&self, address: IpAddr) -> bool {
        let Self { local, v6_only } = self;
        match local.ip() {
            IpAddr::V4(own) if own.is_unspecified() => address.is_ipv4(),
            IpAddr::V6(own) if own.is_unspecified() => address.is_ipv6() || !v6_only,
            own => own == address,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_listener_accepts_on_its_address_or_on_all_of_its_family() {
        let cases = [
            ("203.0.113.10:22", false, "203.0.113.10", true),
            ("203.0.113.10:22", false, "203.0.113.11", false),
            ("0.0.0.0:22", false, "203.0.113.10", true),
            ("0.0.0.0:22", false, "2001:db8::1", false),
            ("[::]:22", false, "2001:db8::1", true),
            ("[::]:22", false, "203.0.113.10", true),
            ("[::]:22", true, "203.0.113.10", false),
            ("[2001:db8::1]:22", false, "2001:db8::1", true),
            ("[2001:db8::1]:22", false, "203.0.113.10", false),
        ];
        for (local, v6_only, address, accepts) in cases {
            let listener = ListeningSocket {
                local: local.parse().unwrap(),
                v6_only,
            };
            let address = address.parse().unwrap();
            assert_eq!(listener.accepts(address), accepts, "{listener:?} {address}");
        }
    }

    #[test]
    fn the_kernel_lists_listeners_and_leaves_loopback_out() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let _client = TcpStream::connect(local).unwrap();
        let found = ListeningSocket {
            local,
            v6_only: false,
        };
        assert!(listeners().unwrap().contains(&found));
        let server = |session: &Session| session.local == local;
        assert!(established().unwrap().iter().any(server));
        assert!(!inbound().unwrap().iter().any(server));
    }
}
