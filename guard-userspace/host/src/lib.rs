//! Reads facts about this host: its clock, its local ports, its interfaces, its sockets and its containers. This crate
//! does not depend on how packets are judged.

pub mod causes;
pub mod claim;
mod conntrack;
pub mod docker;
mod dump;
mod firewall;
mod nat;
mod picture;
pub mod privileges;
pub mod read;
pub mod sessions;
pub mod sock_diag;
mod watch;

use std::{
    fs, io,
    net::{self, IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use futures_util::TryStreamExt as _;
use guard_policy::Timebase;
use jiff::Timestamp;
use nix::time::{ClockId, clock_getres, clock_gettime};
use procfs::net::UdpState;
use rtnetlink::{Handle, RouteMessageBuilder, new_connection, packet_route::route::RouteAttribute};

pub use self::{
    conntrack::ConntrackError,
    dump::ReadError,
    firewall::Firewalls,
    nat::NatError,
    picture::{
        ARPHRD_ETHER, ARPHRD_LOOPBACK, Host, Link, LinkAddress, Listener, NatHook, NatRule,
        NatRules, NatTarget, Reading, Route, Sysctls,
    },
    read::listeners,
    watch::HostWatch,
};

/// The kernel's tick in nanoseconds: the resolution of the coarse clocks (clock_getres(2)).
pub fn tick_ns() -> io::Result<u64> {
    let resolution = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)?;
    let seconds = u64::try_from(resolution.tv_sec()).map_err(io::Error::other)?;
    let nanoseconds = u64::try_from(resolution.tv_nsec()).map_err(io::Error::other)?;
    Ok(seconds * 1_000_000_000 + nanoseconds)
}

const LOCAL_PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// The ports that the kernel picks from for connections that this host opens.
pub fn local_port_range() -> io::Result<RangeInclusive<u16>> {
    let text = fs::read_to_string(LOCAL_PORT_RANGE)?;
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok(first..=last),
        _ => Err(io::Error::other(format!(
            "{LOCAL_PORT_RANGE} has {text:?} instead of two ports"
        ))),
    }
}

/// This moment in UTC and on the kernel's clock.
pub fn timebase() -> io::Result<Timebase> {
    let boot = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
    let seconds = u64::try_from(boot.tv_sec()).map_err(io::Error::other)?;
    let nanoseconds = u64::try_from(boot.tv_nsec()).map_err(io::Error::other)?;
    Ok(Timebase {
        world: Timestamp::now(),
        boot_ns: seconds * 1_000_000_000 + nanoseconds,
    })
}

/// A UDP flow that this host opened. Its answers come from `peer` to `local`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpFlow {
    pub local: SocketAddr,
    pub peer: SocketAddr,
}

/// The number of connections that the kernel tracks (`name`: `count`), or can track (`max`). `None`: conntrack is not
/// loaded.
pub fn tracked_connections(name: &str) -> Option<u64> {
    let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The UDP flows that are open at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenFlows {
    pub flows: Vec<UdpFlow>,
    /// Flows whose source this host replaced (SNAT), perhaps by an address that none of its interfaces has.
    pub source_replaced: Vec<UdpFlow>,
    /// Why flows may be missing. Flows of unconnected sockets and of masqueraded containers are only in conntrack.
    pub gap: Option<String>,
}

/// Reads the UDP flows that are open at this moment: those of connected sockets, and those that conntrack tracks, also
/// if only the peer sends. It blocks.
pub fn open_udp_flows() -> OpenFlows {
    let sockets = [procfs::net::udp(), procfs::net::udp6()];
    // A kernel without IPv6 has no second table.
    let sockets = sockets.into_iter().flatten().flatten();
    let connected = sockets.filter(|socket| socket.state == UdpState::Established);
    let connected = connected.map(|socket| UdpFlow {
        local: socket.local_address,
        peer: socket.remote_address,
    });
    let read = conntrack::read().and_then(|tracked| {
        let without = conntrack::families_without_udp(&tracked)?;
        Ok((tracked, without))
    });
    let (tracked, gap) = match read {
        Ok((tracked, without)) => {
            let gap = match without.as_slice() {
                [] => None,
                _ if tracked.connections == 0 => {
                    Some("conntrack tracks no connections on this host".to_owned())
                }
                [version] => Some(format!(
                    "conntrack tracks no UDP over IPv{version} on this host"
                )),
                _ => Some("conntrack tracks no UDP on this host".to_owned()),
            };
            (tracked.udp, gap)
        }
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let (replaced, unchanged): (Vec<_>, Vec<_>) =
        tracked.into_iter().partition(|one| one.is_source_replaced);
    let flow_of = |one: conntrack::TrackedFlow| one.flow;
    OpenFlows {
        flows: connected
            .chain(unchanged.into_iter().map(flow_of))
            .collect(),
        source_replaced: replaced.into_iter().map(flow_of).collect(),
        gap,
    }
}

/// An XDP program on an interface, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpState {
    pub program_id: u32,
    pub native: bool,
}

/// A connection to the kernel over route netlink.
#[derive(Clone)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Opens the connection. Must be called inside a tokio runtime, which runs it.
    pub fn connect() -> io::Result<Self> {
        let (connection, handle, _) = new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Looks up the interface by which packets from one of this host's addresses leave to a peer. `Ok(None)` for a
    /// link-local peer, which may be behind any interface.
    pub async fn interface_towards(
        &self,
        local: IpAddr,
        peer: IpAddr,
    ) -> Result<Option<u32>, rtnetlink::Error> {
        let query = match (local, peer) {
            (IpAddr::V4(local), IpAddr::V4(peer)) if !peer.is_link_local() => {
                RouteMessageBuilder::<net::Ipv4Addr>::new()
                    .source_prefix(local, 32)
                    .destination_prefix(peer, 32)
                    .build()
            }
            (IpAddr::V6(local), IpAddr::V6(peer)) if !peer.is_unicast_link_local() => {
                RouteMessageBuilder::<net::Ipv6Addr>::new()
                    .source_prefix(local, 128)
                    .destination_prefix(peer, 128)
                    .build()
            }
            _ => return Ok(None),
        };
        let route = self.handle.route().get(query).execute().try_next().await?;
        let attributes = route.into_iter().flat_map(|route| route.attributes);
        let mut interfaces = attributes.filter_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(index),
            _ => None,
        });
        Ok(interfaces.next())
    }
}
