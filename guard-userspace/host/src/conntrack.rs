//! Reads the UDP flows that conntrack tracks from the kernel over netlink (nfnetlink). It blocks.
//!
//! `/proc/net/nf_conntrack` has the same data, but few kernels have that file (CONFIG_NF_CONNTRACK_PROCFS).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
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

/// Why the kernel's tracked connections cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    #[error("conntrack cannot be read: {0}")]
    Socket(#[from] io::Error),
    #[error("the kernel's list of tracked connections cannot be read: {0}")]
    Garbled(#[from] DecodeError),
}

/// The connections that conntrack tracks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tracked {
    /// The number of connections of any protocol. A host whose kernel tracks connections always has some.
    pub connections: usize,
    /// The UDP flows, with the addresses that their answers have on the network, before NAT on this host.
    pub udp: Vec<TrackedFlow>,
}

/// A UDP flow that conntrack tracks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackedFlow {
    /// Its answers.
    pub flow: UdpFlow,
    /// This host replaced the source of its first packet (SNAT), so the packet left by this host.
    pub is_source_replaced: bool,
}

/// Longer than what the kernel writes at once (netlink_dump() in net/netlink/af_netlink.c).
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

/// A request for all connections, of IPv4 and IPv6.
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
    /// Adds the connections in some messages. Returns whether the list ends with them.
    fn take(&mut self, mut messages: &[u8]) -> Result<bool, ConntrackError> {
        while !messages.is_empty() {
            let length = NetlinkBuffer::new_checked(messages)?.length();
            // A message whose attributes cannot be parsed is skipped: it is of a protocol without ports.
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
                // An error message without a code is an acknowledgement.
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(error.to_io().into());
                }
                _ => {}
            }
            // The length was checked to be at least that of the header, so the loop ends.
            let length = (length as usize).next_multiple_of(ALIGNMENT);
            messages = messages.get(length..).unwrap_or_default();
        }
        Ok(false)
    }
}

/// The flow of a UDP connection. Its reply tuple has the addresses of answers on the network.
fn udp_flow(attributes: &[ConntrackAttribute]) -> Option<TrackedFlow> {
    let (mut first, mut answers) = (None, None);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => first = udp_ends(tuple),
            ConntrackAttribute::CtaTupleReply(tuple) => answers = udp_ends(tuple),
            _ => {}
        }
    }
    let (peer, local) = answers?;
    Some(TrackedFlow {
        flow: UdpFlow { local, peer },
        is_source_replaced: first.is_some_and(|(source, _)| source.ip() != local.ip()),
    })
}

/// The source and the destination of a UDP tuple.
fn udp_ends(tuple: &[Tuple]) -> Option<(SocketAddr, SocketAddr)> {
    let (mut source, mut destination) = (None, None);
    let (mut source_port, mut destination_port) = (None, None);
    let mut is_udp = false;
    for part in tuple {
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
    let ends = (
        end(source, source_port)?,
        end(destination, destination_port)?,
    );
    is_udp.then_some(ends)
}

/// The versions of IP, 4 or 6, of which conntrack follows no UDP: the kernel tracks each only where a rule needs it, and
/// rules may exempt protocols (`notrack`). Where no flow is listed, a datagram is sent over loopback, to see whether it
/// is tracked.
///
/// # Errors
/// The kernel's list cannot be read.
pub fn families_without_udp(tracked: &Tracked) -> Result<Vec<u8>, ConntrackError> {
    let probes = [
        (4, IpAddr::from(Ipv4Addr::LOCALHOST)),
        (6, Ipv6Addr::LOCALHOST.into()),
    ];
    let is_listed = |loopback: IpAddr| {
        let mut flows = tracked.udp.iter();
        // An earlier probe is listed for half a minute, whatever the rules are by now.
        flows.any(|one| {
            one.flow.peer.is_ipv4() == loopback.is_ipv4() && !one.flow.peer.ip().is_loopback()
        })
    };
    let probes = probes
        .into_iter()
        .filter(|(_, loopback)| !is_listed(*loopback));
    // Without the family on this host, there are no flows of it.
    let sent: Vec<_> = probes
        .filter_map(|(version, loopback)| Some((version, send_probe(loopback).ok()?)))
        .collect();
    if sent.is_empty() {
        return Ok(Vec::new());
    }
    let now = read()?;
    let is_tracked = |[from, to]: [SocketAddr; 2]| {
        let mut flows = now.udp.iter();
        flows.any(|one| one.flow.local == from && one.flow.peer == to)
    };
    let without = sent.iter().filter(|(_, (ends, _))| !is_tracked(*ends));
    Ok(without.map(|(version, _)| *version).collect())
}

/// Sends an empty datagram from one socket to another over loopback. The addresses of both, and the sockets, which keep
/// the ports.
fn send_probe(loopback: IpAddr) -> io::Result<([SocketAddr; 2], [UdpSocket; 2])> {
    let sockets = [
        UdpSocket::bind((loopback, 0))?,
        UdpSocket::bind((loopback, 0))?,
    ];
    let [from, to] = [sockets[0].local_addr()?, sockets[1].local_addr()?];
    sockets[0].send_to(&[], to)?;
    Ok(([from, to], sockets))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's message about a container's query whose address was masqueraded.
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
    fn a_masqueraded_flow_has_the_addresses_of_its_answers() {
        let mut tracked = Tracked::default();
        let messages = [masqueraded(Protocol::Udp), masqueraded(Protocol::Tcp)].concat();
        assert!(!tracked.take(&messages).unwrap());
        let flow = UdpFlow {
            local: "203.0.113.10:40000".parse().unwrap(),
            peer: "192.0.2.53:53".parse().unwrap(),
        };
        let flow = TrackedFlow {
            flow,
            is_source_replaced: true,
        };
        assert_eq!((tracked.connections, tracked.udp), (2, vec![flow]));
    }

    #[test]
    fn a_message_that_is_cut_off_is_an_error_and_no_panic() {
        let whole = masqueraded(Protocol::Udp);
        for length in 1..whole.len() {
            let mut tracked = Tracked::default();
            let _result = tracked.take(&whole[..length]);
        }
    }
}
