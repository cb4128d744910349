//! Facts about this host that the guard goes by: its clock, its local ports, its interfaces, its sockets,
//! its containers. Nothing here knows how packets are judged.

pub mod causes;
pub mod claim;
mod conntrack;
pub mod docker;
mod dump;
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
    nat::NatError,
    picture::{
        ARPHRD_ETHER, ARPHRD_LOOPBACK, Host, Link, LinkAddress, Listener, NatHook, NatRule,
        NatRules, NatTarget, Reading, Route, Sysctls,
    },
    read::listeners,
    watch::HostWatch,
};

/// The kernel's tick in nanoseconds: what the coarse clocks step by (clock_getres(2)).
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
            "{LOCAL_PORT_RANGE} holds {text:?}, not two ports"
        ))),
    }
}

/// This moment on the world's clock and on the kernel's.
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

/// How many connections the kernel tracks (`count`), or can (`max`). `None`: it tracks none.
pub fn tracked_connections(name: &str) -> Option<u64> {
    let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The UDP flows that are open at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenFlows {
    pub flows: Vec<UdpFlow>,
    /// Why these are not all: those of unconnected sockets, and of masqueraded containers, only conntrack knows.
    pub gap: Option<String>,
}

/// The UDP flows that are open at this moment: those of connected sockets, and those that conntrack follows, also where
/// only the peer speaks. It blocks.
pub fn open_udp_flows() -> OpenFlows {
    let sockets = [procfs::net::udp(), procfs::net::udp6()];
    // A kernel without IPv6 has no second table.
    let sockets = sockets.into_iter().flatten().flatten();
    let connected = sockets.filter(|socket| socket.state == UdpState::Established);
    let connected = connected.map(|socket| UdpFlow {
        local: socket.local_address,
        peer: socket.remote_address,
    });
    let (tracked, gap) = match conntrack::read() {
        Ok(tracked) if tracked.connections == 0 => (
            tracked.udp,
            Some("conntrack follows nothing on this host".to_owned()),
        ),
        Ok(tracked) => (tracked.udp, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    OpenFlows {
        flows: connected.chain(tracked).collect(),
        gap,
    }
}

/// An XDP program on an interface, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpState {
    pub program_id: u32,
    pub native: bool,
}

/// Questions to the kernel over route netlink.
#[derive(Clone)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Must be called inside a tokio runtime, which runs the connection.
    pub fn connect() -> io::Result<Self> {
        let (connection, handle, _) = new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The interface that packets from one of this host's addresses to a peer leave by. `Ok(None)`
    /// for a link-local peer, which may be behind any.
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
