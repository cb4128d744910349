//! Facts about this host that the guard goes by: its clock, its local ports, its interfaces, its sockets,
//! its containers. Nothing here knows how packets are judged.

pub mod causes;
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
    collections::BTreeMap,
    fs, io,
    net::{self, IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use futures_util::{StreamExt as _, TryStreamExt as _};
use guard_policy::{Policy, Timebase, Warning};
use jiff::Timestamp;
use nix::time::{ClockId, clock_getres, clock_gettime};
use procfs::net::UdpState;
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_connection, new_multicast_connection,
    packet_route::{
        address::AddressAttribute,
        link::{
            LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
        },
        route::{RouteAttribute, RouteMessage, RouteType},
    },
};

pub use self::{
    dump::ReadError,
    nat::NatError,
    picture::{
        ARPHRD_ETHER, ARPHRD_LOOPBACK, Host, Link, LinkAddress, Listener, NatRule, NatRules,
        NatTarget, Reading, Route, Sysctls,
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
pub fn conntrack(name: &str) -> Option<u64> {
    let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

const CONNTRACK: &str = "/proc/net/nf_conntrack";

/// The UDP flows that are open at this moment: those of connected sockets, and of what conntrack
/// knows (which has masqueraded containers too) where the kernel shows it.
pub fn open_udp_flows() -> Vec<UdpFlow> {
    let sockets = [procfs::net::udp(), procfs::net::udp6()];
    // A kernel without IPv6 has no second table.
    let sockets = sockets.into_iter().flatten().flatten();
    let connected = sockets.filter(|socket| socket.state == UdpState::Established);
    let mut flows: Vec<UdpFlow> = connected
        .map(|socket| UdpFlow {
            local: socket.local_address,
            peer: socket.remote_address,
        })
        .collect();
    let conntrack = fs::read_to_string(CONNTRACK).unwrap_or_default();
    flows.extend(conntrack.lines().filter_map(tracked_flow));
    flows
}

/// Reads a line such as `ipv4 2 udp 17 29 src=… dst=… sport=… dport=… src=… dst=… sport=… dport=…`.
/// The second half is how the answers come: their destination is this host as the network sees it.
fn tracked_flow(line: &str) -> Option<UdpFlow> {
    if !line.contains(" udp ") {
        return None;
    }
    let fact = |key: &str| {
        let facts = line.split_whitespace();
        facts.filter_map(|fact| fact.strip_prefix(key)).nth(1)
    };
    let address = |key: &str| fact(key)?.parse::<IpAddr>().ok();
    let port = |key: &str| fact(key)?.parse::<u16>().ok();
    Some(UdpFlow {
        local: SocketAddr::new(address("dst=")?, port("dport=")?),
        peer: SocketAddr::new(address("src=")?, port("sport=")?),
    })
}

/// An XDP program on an interface, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpState {
    pub program_id: u32,
    pub native: bool,
}

/// Tells when an interface comes, goes or changes.
pub struct LinkEvents {
    messages: Box<dyn futures_util::Stream<Item = ()> + Send + Unpin>,
}

impl LinkEvents {
    /// Must be called inside a tokio runtime, which runs the connection.
    pub fn subscribe() -> io::Result<Self> {
        let (connection, _, messages) = new_multicast_connection(&[MulticastGroup::Link])?;
        tokio::spawn(connection);
        Ok(Self {
            messages: Box::new(messages.map(|_| ())),
        })
    }

    /// Waits for the next change. `None`: there will be no more.
    pub async fn next(&mut self) -> Option<()> {
        self.messages.next().await
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            arphrd: u16::from(message.header.link_layer_type),
            up: message.header.flags.contains(LinkFlags::Up),
            ..Self::ethernet(message.header.index, "")
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Link(index) => link.lower = Some(index),
                // The other one is in another network namespace, where indices are others'.
                LinkAttribute::LinkNetNsId(_) => link.peer_elsewhere = true,
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::LinkInfo(facts) => {
                    link.kind = facts.into_iter().find_map(|fact| match fact {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                LinkAttribute::Xdp(facts) => link.xdp = xdp_state(facts),
                _ => {}
            }
        }
        if link.peer_elsewhere {
            link.lower = None;
        }
        link
    }
}

/// The program of an interface. `None`: it has none.
fn xdp_state(facts: Vec<LinkXdp>) -> Option<XdpState> {
    let mut program_id = None;
    let mut native = false;
    for fact in facts {
        match fact {
            LinkXdp::ProgId(id) => program_id = Some(id),
            LinkXdp::Attached(XdpAttached::Driver) => native = true,
            _ => {}
        }
    }
    program_id.map(|program_id| XdpState { program_id, native })
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

    /// Whether the interface's frames start with an Ethernet header, as the program reads them.
    ///
    /// # Errors
    /// The kernel's, which for an interface that does not exist is ENODEV.
    pub async fn is_ethernet(&self, interface: &str) -> Result<bool, rtnetlink::Error> {
        let link = self.link(interface).await?;
        Ok(link.is_some_and(|link| {
            matches!(
                link.header.link_layer_type,
                LinkLayerType::Ether | LinkLayerType::Loopback
            )
        }))
    }

    /// The longest packet that goes over the interface, without Ethernet's header. `Ok(None)`: the
    /// kernel does not say it.
    ///
    /// # Errors
    /// The kernel's, which for an interface that does not exist is ENODEV.
    pub async fn mtu(&self, interface: &str) -> Result<Option<u32>, rtnetlink::Error> {
        let link = self.link(interface).await?;
        let mut attributes = link.into_iter().flat_map(|link| link.attributes);
        Ok(attributes.find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(mtu),
            _ => None,
        }))
    }

    /// The kernel's number of an interface; `None`: there is none of this name.
    pub async fn index(&self, interface: &str) -> Option<u32> {
        let link = self.link(interface).await.ok().flatten();
        link.map(|link| link.header.index)
    }

    async fn link(&self, interface: &str) -> Result<Option<LinkMessage>, rtnetlink::Error> {
        let request = self.handle.link().get().match_name(interface.to_owned());
        request.execute().try_next().await
    }

    /// The XDP program of an interface. `Ok(None)`: the interface has none.
    ///
    /// # Errors
    /// The kernel's, which for an interface that does not exist is ENODEV.
    pub async fn xdp(&self, interface: &str) -> Result<Option<XdpState>, rtnetlink::Error> {
        let link = self.link(interface).await?;
        Ok(link.and_then(|link| Link::from(link).xdp))
    }

    /// The device above an interface whose XDP program keeps the kernel from attaching another below.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn xdp_above(
        &self,
        interface: &str,
    ) -> Result<Option<(String, XdpState)>, rtnetlink::Error> {
        let links = self.links().await?.into_iter();
        let links: BTreeMap<u32, Link> = links.map(|link| (link.index, link)).collect();
        let host = Host {
            links: links.into(),
            ..Host::unread(0)
        };
        let link = host.link_named(interface);
        let above = link.and_then(|link| host.xdp_above(link.index));
        Ok(above.and_then(|above| Some((above.name.clone(), above.xdp?))))
    }

    /// Every interface of this host.
    pub async fn links(&self) -> Result<Vec<Link>, rtnetlink::Error> {
        let links = self.handle.link().get().execute();
        links.map_ok(Link::from).try_collect().await
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

    /// The addresses of every interface of this host.
    pub async fn addresses(&self) -> Result<Vec<IpAddr>, rtnetlink::Error> {
        let addresses = self.addresses_of_links().await?;
        Ok(addresses.into_iter().map(|(_, address)| address).collect())
    }

    /// The same with the indices of the interfaces.
    pub async fn addresses_of_links(&self) -> Result<Vec<(u32, IpAddr)>, rtnetlink::Error> {
        let mut messages = self.handle.address().get().execute();
        let mut addresses = Vec::new();
        while let Some(message) = messages.try_next().await? {
            let index = message.header.index;
            let attributes = message.attributes.into_iter();
            addresses.extend(attributes.filter_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some((index, address)),
                _ => None,
            }));
        }
        Ok(addresses)
    }

    /// The interfaces that a policy guards.
    pub async fn interfaces_of(&self, policy: &Policy) -> Result<Vec<String>, rtnetlink::Error> {
        match &policy.interfaces {
            Some(interfaces) => {
                let names = interfaces.iter().map(|interface| interface.name.clone());
                Ok(names.collect())
            }
            None => self.default_route_interfaces().await,
        }
    }

    /// The interfaces of the default routes, IPv4 and IPv6, each once.
    pub async fn default_route_interfaces(&self) -> Result<Vec<String>, rtnetlink::Error> {
        let mut indices = Vec::new();
        for query in [
            RouteMessageBuilder::<net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<net::Ipv6Addr>::new().build(),
        ] {
            let mut routes = self.handle.route().get(query).execute();
            while let Some(route) = routes.try_next().await? {
                indices.extend(default_route_links(&route));
            }
        }
        indices.sort_unstable();
        indices.dedup();
        let mut names = Vec::new();
        for index in indices {
            let request = self.handle.link().get().match_index(index);
            if let Some(link) = request.execute().try_next().await? {
                names.extend(link.attributes.into_iter().find_map(|attribute| {
                    if let LinkAttribute::IfName(name) = attribute {
                        Some(name)
                    } else {
                        None
                    }
                }));
            }
        }
        Ok(names)
    }
}

/// What is to be looked at again in a policy that guards these interfaces of this host.
pub async fn policy_warnings(
    policy: &Policy,
    interfaces: &[String],
    netlink: &Netlink,
) -> Vec<Warning> {
    let mut warnings = policy.warnings(Timestamp::now());
    for interface in interfaces {
        // One that does not exist is nobody's yet.
        if let Ok(Some(mtu)) = netlink.mtu(interface).await {
            warnings.extend(policy.frame_warnings(interface, mtu));
        }
    }
    warnings
}

/// The interfaces that a default route leads to; none for any other route.
fn default_route_links(route: &RouteMessage) -> Vec<u32> {
    if route.header.destination_prefix_length != 0 || route.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    route
        .attributes
        .iter()
        .flat_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => vec![*index],
            RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
            _ => Vec::new(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masqueraded_flow_is_known_as_its_answers_come() {
        let line = "ipv4     2 udp      17 29 src=172.17.0.2 dst=192.0.2.53 sport=40000 dport=53 \
                    src=192.0.2.53 dst=203.0.113.10 sport=53 dport=40000 mark=0 zone=0 use=2";
        let flow = UdpFlow {
            local: "203.0.113.10:40000".parse().unwrap(),
            peer: "192.0.2.53:53".parse().unwrap(),
        };
        assert_eq!(tracked_flow(line), Some(flow));
        assert_eq!(tracked_flow(&line.replace(" udp ", " tcp ")), None);
        assert_eq!(tracked_flow("ipv4 2 udp 17 29 src=1.2.3.4"), None);
        assert_eq!(tracked_flow(""), None);
    }
}
