//! The clsact qdisc, to which tc programs are attached on kernels without tcx (before Linux 6.6).

use std::io;

use aya::programs::tc::{TcError, qdisc_add_clsact};
use guard_host::causes::io_error;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    tc::{TcHandle, TcMessage},
};

/// Adds the qdisc to the interface if it has none; returns whether it was added.
pub fn make(interface: &str) -> Result<bool, TcError> {
    match qdisc_add_clsact(interface) {
        Ok(()) => Ok(true),
        Err(error) => match io_error(&error).map(io::Error::kind) {
            Some(io::ErrorKind::AlreadyExists) => Ok(false),
            _ => Err(error),
        },
    }
}

/// Removes the qdisc if no filter is attached to it.
pub fn remove_unused(interface: &str) -> io::Result<()> {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(if_nametoindex(interface)?).map_err(io::Error::other)?;
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    for minor in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS] {
        message.header.parent = TcHandle {
            minor,
            ..TcHandle::CLSACT
        };
        let filters = RouteNetlinkMessage::GetTrafficFilter(message.clone());
        if ask(&socket, filters, NLM_F_DUMP)? > 0 {
            return Ok(());
        }
    }
    message.header.parent = TcHandle::CLSACT;
    let removal = RouteNetlinkMessage::DelQueueDiscipline(message);
    ask(&socket, removal, NLM_F_ACK)?;
    Ok(())
}

/// Sends a request, and counts the messages of its answer before the final one.
fn ask(socket: &Socket, request: RouteNetlinkMessage, flags: u16) -> io::Result<usize> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, request.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut found = 0;
    loop {
        let (answer, _from) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::InnerMessage(_) => found += 1,
                NetlinkPayload::Done(_) => return Ok(found),
                // An error message without a code is the acknowledgement.
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(found),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            rest = rest
                .get(message.header.length as usize..)
                .unwrap_or_default();
        }
    }
}
