//! Reads this host's sockets from the kernel (sock_diag(7)).

use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_SOCK_DIAG};
use nix::errno::Errno;

/// Why the sockets of the host cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SockDiagError {
    #[error(
        "the kernel has no sock_diag for TCP and UDP: `modprobe -a tcp_diag udp_diag` loads it"
    )]
    NotSupported,
    #[error("the sockets of this host cannot be listed: {0}")]
    Socket(io::Error),
    #[error("the kernel's list of sockets cannot be read: {0}")]
    Garbled(DecodeError),
}

/// The transport protocol of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketProtocol {
    Tcp,
    Udp,
}

impl SocketProtocol {
    const fn number(self) -> u8 {
        match self {
            Self::Tcp => IPPROTO_TCP,
            Self::Udp => IPPROTO_UDP,
        }
    }
}

/// Whether an IPv6 socket accepts no IPv4 packets (IPV6_V6ONLY).
pub fn is_v6_only(response: &InetResponse) -> bool {
    response.nlas.contains(&Nla::SkV6Only(true))
}

/// Longer than what the kernel writes at once (netlink_dump() in net/netlink/af_netlink.c).
const BUFFER: usize = 64 << 10;

/// Messages start at multiples of this (NLMSG_ALIGNTO in linux/netlink.h).
const ALIGNMENT: usize = 4;

/// Calls `visit` for each socket in these states.
pub fn dump(
    transport: SocketProtocol,
    states: StateFlags,
    mut visit: impl FnMut(InetResponse),
) -> Result<(), SockDiagError> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG).map_err(SockDiagError::Socket)?;
    socket.bind_auto().map_err(SockDiagError::Socket)?;
    let kernel = NetlinkAddress::new(0, 0);
    socket.connect(&kernel).map_err(SockDiagError::Socket)?;
    for (family, socket_id) in [
        (AF_INET, SocketId::new_v4()),
        (AF_INET6, SocketId::new_v6()),
    ] {
        let request = InetRequest {
            family,
            protocol: transport.number(),
            extensions: ExtensionFlags::empty(),
            states: states.clone(),
            socket_id,
        };
        send(&socket, request)?;
        receive(&socket, &mut visit)?;
    }
    Ok(())
}

fn send(socket: &Socket, request: InetRequest) -> Result<(), SockDiagError> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).map_err(SockDiagError::Socket)?;
    Ok(())
}

/// Reads to the end of one dump.
fn receive(socket: &Socket, mut visit: impl FnMut(InetResponse)) -> Result<(), SockDiagError> {
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        buffer.clear();
        match socket.recv(&mut buffer, 0) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result.map_err(SockDiagError::Socket)?,
        };
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                .map_err(SockDiagError::Garbled)?;
            let (header, payload) = message.into_parts();
            match payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    visit(*response);
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return Err(refused(error.to_io())),
                _ => {}
            }
            // The message was parsed, so it is at least as long as its header, and the loop ends.
            let length = (header.length as usize).next_multiple_of(ALIGNMENT);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn refused(error: io::Error) -> SockDiagError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => SockDiagError::NotSupported,
        _ => SockDiagError::Socket(error),
    }
}
