//! The UDP flows that conntrack follows, asked from the kernel over netlink (nfnetlink). It blocks.
//!
//! `/proc/net/nf_conntrack` has the same, but few kernels have the file (CONFIG_NF_CONNTRACK_PROCFS).

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple},
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_NETFILTER};

use super::UdpFlow;

#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    #[error("conntrack cannot be read: {0}")]
    Socket(#[from] io::Error),
    #[error("what the kernel says of conntrack cannot be read: {0}")]
    Garbled(#[from] DecodeError),
}

/// What conntrack knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tracked {
    /// Of any protocol: a host whose kernel tracks connections always has some.
    pub connections: usize,
    /// As their answers come: to this host as the network sees it, behind its own address translation.
    pub udp: Vec<UdpFlow>,
}

/// What the kernel writes at once is shorter (netlink_dump() in net/netlink/af_netlink.c).
const BUFFER: usize = 64 << 10;

/// Messages start at multiples of this (NLMSG_ALIGNTO in linux/netlink.h).
const ALIGNMENT: usize = 4;

pub fn read() -> Result<Tracked, ConntrackError> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddress::new(0, 0))?;
    socket.send(&request(), 0)?;
    let mut tracked = Tracked::default();
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        buffer.clear();
        match socket.recv(&mut buffer, 0) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        };
        if tracked.take(&buffer)? {
            return Ok(tracked);
        }
    }
}

/// For all connections, of both versions of IP.
fn request() -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let all = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let request = NetfilterMessage::new(all, ConntrackMessage::Get(Vec::new()));
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

impl Tracked {
    /// Takes what is in some messages. Whether the list ends with them.
    fn take(&mut self, mut messages: &[u8]) -> Result<bool, ConntrackError> {
        while !messages.is_empty() {
            let length = NetlinkBuffer::new_checked(messages)?.length();
            // A connection whose attributes cannot be read is one all the same, and of a protocol without ports.
            let message = NetlinkMessage::<NetfilterMessage>::deserialize(messages);
            let payload = message.map(|message| message.into_parts().1);
            match payload.unwrap_or(NetlinkPayload::Noop) {
                NetlinkPayload::InnerMessage(NetfilterMessage {
                    inner: NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)),
                    ..
                }) => {
                    self.connections += 1;
                    self.udp.extend(udp_flow(&attributes));
                }
                NetlinkPayload::Done(_) => return Ok(true),
                // Without a code it is an acknowledgement.
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(error.to_io().into());
                }
                _ => {}
            }
            // At least that of the header, which has been checked.
            let length = (length as usize).next_multiple_of(ALIGNMENT);
            messages = messages.get(length..).unwrap_or_default();
        }
        Ok(false)
    }
}

/// The flow of a UDP connection. Its second tuple is how answers come: they are sent to this host as the network sees it.
fn udp_flow(attributes: &[ConntrackAttribute]) -> Option<UdpFlow> {
    let answers = attributes.iter().find_map(|attribute| match attribute {
        ConntrackAttribute::CtaTupleReply(tuple) => Some(tuple),
        _ => None,
    })?;
    let (mut source, mut destination) = (None, None);
    let (mut source_port, mut destination_port) = (None, None);
    let mut is_udp = false;
    for part in answers {
        match part {
            Tuple::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(address) => source = Some(*address),
                        IPTuple::DestinationAddress(address) => destination = Some(*address),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(facts) => {
                for fact in facts {
                    match fact {
                        ProtoTuple::Protocol(protocol) => is_udp = *protocol == Protocol::Udp,
                        ProtoTuple::SourcePort(port) => source_port = Some(*port),
                        ProtoTuple::DestinationPort(port) => destination_port = Some(*port),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let end = |address: Option<IpAddr>, port| Some(SocketAddr::new(address?, port?));
    is_udp.then_some(UdpFlow {
        local: end(destination, destination_port)?,
        peer: end(source, source_port)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel says it of a container's question, whose address was masqueraded.
    fn masqueraded(protocol: Protocol) -> Vec<u8> {
        let tuple = |source: &str, destination: &str, ports: [u16; 2]| {
            vec![
                Tuple::Ip(vec![
                    IPTuple::SourceAddress(source.parse().unwrap()),
                    IPTuple::DestinationAddress(destination.parse().unwrap()),
                ]),
                Tuple::Proto(vec![
                    ProtoTuple::Protocol(protocol),
                    ProtoTuple::SourcePort(ports[0]),
                    ProtoTuple::DestinationPort(ports[1]),
                ]),
            ]
        };
        let connection = ConntrackMessage::New(vec![
            ConntrackAttribute::CtaTupleOrig(tuple("172.17.0.2", "192.0.2.53", [40_000, 53])),
            ConntrackAttribute::CtaTupleReply(tuple("192.0.2.53", "203.0.113.10", [53, 40_000])),
            ConntrackAttribute::CtaTimeout(29),
        ]);
        let of_ipv4 = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
        let message = NetfilterMessage::new(of_ipv4, connection);
        let mut message =
            NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn a_masqueraded_flow_is_known_as_its_answers_come() {
        let mut tracked = Tracked::default();
        let messages = [masqueraded(Protocol::Udp), masqueraded(Protocol::Tcp)].concat();
        assert!(!tracked.take(&messages).unwrap());
        let flow = UdpFlow {
            local: "203.0.113.10:40000".parse().unwrap(),
            peer: "192.0.2.53:53".parse().unwrap(),
        };
        assert_eq!((tracked.connections, tracked.udp), (2, vec![flow]));
    }

    #[test]
    fn what_is_cut_off_is_an_error_and_no_panic() {
        let whole = masqueraded(Protocol::Udp);
        for length in 1..whole.len() {
            let mut tracked = Tracked::default();
            let _result = tracked.take(&whole[..length]);
        }
    }
}
