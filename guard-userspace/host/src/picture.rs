//! The picture of this host: plain values read from the kernel, and conclusions from them.
//!
//! Nothing here reads from the kernel. Every value can be written by hand, so that tests make plans for hosts that are
//! data.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use guard_common::{address::Family, layout::PortProtocol};
use ipnet::IpNet;

use super::XdpState;

/// The picture of the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    /// By index.
    pub links: Reading<BTreeMap<u32, Link>>,
    pub addresses: Reading<Vec<LinkAddress>>,
    /// Unicast routes of the main table, IPv4 and IPv6.
    pub routes: Reading<Vec<Route>>,
    /// Read only on demand, not after each change.
    pub nat: Reading<NatRules>,
    pub sysctls: Reading<Sysctls>,
    /// Read only on demand, not after each change.
    pub listeners: Reading<Vec<Listener>>,
    /// The kernel's tick, which never changes while it runs.
    pub tick_ns: u64,
}

/// The last value that was read, and why the newest attempt failed, if it did.
///
/// A failed reading keeps the last value: a list that cannot be read is never taken for an empty one.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading<T> {
    /// `None`: no attempt has succeeded yet.
    pub last: Option<T>,
    /// `None`: the newest attempt succeeded, or none was made.
    pub error: Option<String>,
}

impl<T> Reading<T> {
    /// The reading before the first attempt.
    pub const fn unread() -> Self {
        Self {
            last: None,
            error: None,
        }
    }

    /// The last value, however old.
    pub const fn known(&self) -> Option<&T> {
        self.last.as_ref()
    }

    /// Whether the value may be older than the newest attempt, or is missing.
    pub const fn is_stale(&self) -> bool {
        self.error.is_some() || self.last.is_none()
    }

    /// Takes the result of a new attempt: a failure keeps the last value.
    pub fn renew<E: ToString>(&mut self, attempt: Result<T, E>) {
        match attempt {
            Ok(value) => {
                self.last = Some(value);
                self.error = None;
            }
            Err(error) => self.error = Some(error.to_string()),
        }
    }
}

impl<T> Default for Reading<T> {
    fn default() -> Self {
        Self::unread()
    }
}

impl<T> From<T> for Reading<T> {
    fn from(value: T) -> Self {
        Self {
            last: Some(value),
            error: None,
        }
    }
}

/// ARPHRD types whose frames begin with an Ethernet header (linux/if_arp.h).
pub const ARPHRD_ETHER: u16 = 1;
/// The loopback interface.
pub const ARPHRD_LOOPBACK: u16 = 772;

/// An interface, and its lower and upper devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// The kind of device (`veth`, `bridge`, `vlan`, `tun`). `None` for hardware.
    pub kind: Option<String>,
    /// The type of its frames' header (linux/if_arp.h).
    pub arphrd: u16,
    /// Its lower device, or the other end of a veth (IFLA_LINK), in this network namespace.
    pub lower: Option<u32>,
    /// The lower device or other end is in another network namespace, where indices mean other devices.
    pub peer_elsewhere: bool,
    /// The bridge, bond, team or VRF of which it is a port (IFLA_MASTER).
    pub controller: Option<u32>,
    pub mtu: u32,
    pub up: bool,
    pub xdp: Option<XdpState>,
}

/// Kinds whose IFLA_LINK is the other end of a pair, which is not a lower device.
const PAIRS: [&str; 3] = ["veth", "netkit", "vxcan"];

/// Kinds that send through the device of IFLA_LINK, and that the kernel does not treat as its upper device:
/// `netdev_upper_dev_link()` is never called for them.
const TUNNELS: [&str; 13] = [
    "gre",
    "gretap",
    "erspan",
    "ip6gre",
    "ip6gretap",
    "ip6erspan",
    "ipip",
    "sit",
    "ip6tnl",
    "vti",
    "vti6",
    "xfrm",
    "wireguard",
];

impl Link {
    /// A hardware device that is up: the base of most hand-written hosts.
    pub fn ethernet(index: u32, name: impl Into<String>) -> Self {
        Self {
            index,
            name: name.into(),
            kind: None,
            arphrd: ARPHRD_ETHER,
            lower: None,
            peer_elsewhere: false,
            controller: None,
            mtu: 1_500,
            up: true,
            xdp: None,
        }
    }

    /// Whether its frames begin with an Ethernet header, which the program requires.
    pub const fn is_ethernet(&self) -> bool {
        matches!(self.arphrd, ARPHRD_ETHER | ARPHRD_LOOPBACK)
    }

    /// The interface by which a host reaches itself.
    pub const fn is_loopback(&self) -> bool {
        self.arphrd == ARPHRD_LOOPBACK
    }

    fn is_kind(&self, kinds: &[&str]) -> bool {
        let kind = self.kind.as_deref();
        kind.is_some_and(|kind| kinds.contains(&kind))
    }

    /// Whether the device with this index is its lower device. The end of a pair has none.
    fn stands_on(&self, index: u32) -> bool {
        self.lower == Some(index) && !self.peer_elsewhere && !self.is_kind(&PAIRS)
    }

    /// Whether this port of a bridge leads only to a container or a virtual machine: a veth whose other end is in
    /// another network namespace, or a tap. A runtime creates both ends in this namespace: until it moves the
    /// container's end, that end is down and no port of a bridge.
    fn leads_to_a_guest(&self, host: &Host) -> bool {
        let will_be_moved = || {
            let other = self.lower.and_then(|index| host.link(index));
            other.is_none_or(|other| !other.up && other.controller.is_none())
        };
        match self.kind.as_deref() {
            Some("veth") => self.peer_elsewhere || will_be_moved(),
            Some("tun") => self.arphrd == ARPHRD_ETHER,
            _ => false,
        }
    }
}

/// An address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkAddress {
    pub link: u32,
    pub address: IpAddr,
    pub prefix_len: u8,
    /// The address of the other end, if it was configured. Then the prefix is the peer's.
    pub peer: Option<IpAddr>,
    /// Duplicate address detection is not finished, or has found another host with the address (RFC 4862, section 5.4).
    /// The address is not this host's yet.
    pub tentative: bool,
}

impl LinkAddress {
    /// An address as `ip address add 192.0.2.7/24` configures it.
    pub fn new(link: u32, address: IpNet) -> Self {
        Self {
            link,
            address: address.addr(),
            prefix_len: address.prefix_len(),
            peer: None,
            tentative: false,
        }
    }

    /// The prefix that is on the link because of this address.
    pub fn network(&self) -> IpNet {
        let Self {
            address,
            prefix_len,
            peer,
            ..
        } = *self;
        let address = peer.unwrap_or(address);
        // The kernel accepts no prefix length longer than the address.
        IpNet::new(address, prefix_len).map_or_else(|_| address.into(), |net| net.trunc())
    }
}

/// A unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub prefix: IpNet,
    /// The outgoing interfaces, several for a multipath route. Sorted, each once.
    pub links: Vec<u32>,
    /// The gateways. Empty if the prefix is on the link itself. Sorted, each once.
    pub gateways: Vec<IpAddr>,
}

impl Route {
    /// Whether the route is a default route.
    pub fn is_default(&self) -> bool {
        self.prefix.prefix_len() == 0
    }
}

/// A listening socket: TCP that listens, or UDP that is not connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    pub protocol: PortProtocol,
    /// The unspecified address: every address of its family.
    pub address: SocketAddr,
    /// An IPv6 socket on every address that accepts IPv4 as well (IPV6_V6ONLY is off).
    pub dual_stack: bool,
}

impl Listener {
    /// Whether packets to this address reach it, given its port.
    pub fn accepts(&self, address: IpAddr) -> bool {
        match self.address.ip() {
            IpAddr::V4(own) if own.is_unspecified() => address.is_ipv4(),
            IpAddr::V6(own) if own.is_unspecified() => address.is_ipv6() || self.dual_stack,
            own => own == address,
        }
    }
}

/// The rules that rewrite destinations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatRules {
    pub rules: Vec<NatRule>,
    /// There are more rules than are followed.
    pub is_partial: bool,
}

/// A rule that rewrites destinations, with the conditions of all jumps that lead to it. It may have further conditions
/// that are not listed here: all packets that it rewrites match this, but not all that match are rewritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatRule {
    pub hook: NatHook,
    /// `None`: both.
    pub family: Option<Family>,
    /// `None`: every protocol.
    pub protocol: Option<PortProtocol>,
    /// The destination ports before the rewrite. `None`: every port.
    pub ports: Option<RangeInclusive<u16>>,
    /// The destination before the rewrite. `None`: every address.
    pub destination: Option<IpNet>,
    /// `None`: every source.
    pub source: Option<IpNet>,
    /// The interface on which packets come in. `None`: any.
    pub interface: Option<String>,
    pub to: NatTarget,
    /// The family, the table and the chain of the rule, such as `ip nat DOCKER`.
    pub chain: String,
}

/// The packets that pass a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NatHook {
    /// Packets that come in.
    Prerouting,
    /// Packets that this host sends.
    Output,
}

impl fmt::Display for NatRule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            hook,
            family,
            protocol,
            ports,
            destination,
            source,
            interface,
            to,
            chain,
        } = self;
        let hook = match hook {
            NatHook::Prerouting => "prerouting",
            NatHook::Output => "output",
        };
        write!(formatter, "{hook} {chain}:")?;
        if let Some(interface) = interface {
            write!(formatter, " {interface}")?;
        }
        match (destination, family) {
            (Some(net), _) => write!(formatter, " {net}")?,
            (None, Some(Family::Ipv4)) => formatter.write_str(" IPv4")?,
            (None, Some(Family::Ipv6)) => formatter.write_str(" IPv6")?,
            (None, None) => {}
        }
        if let Some(net) = source {
            write!(formatter, " from {net}")?;
        }
        match (protocol, ports) {
            (Some(protocol), Some(ports)) => {
                write!(formatter, " {}/{}", protocol.name(), PortRange(ports))?;
            }
            (Some(protocol), None) => write!(formatter, " {}", protocol.name())?,
            (None, Some(ports)) => write!(formatter, " {}", PortRange(ports))?,
            (None, None) => {}
        }
        write!(formatter, " -> {to}")
    }
}

struct PortRange<'a>(&'a RangeInclusive<u16>);

impl fmt::Display for PortRange<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(range) = self;
        match (range.start(), range.end()) {
            (first, last) if first == last => write!(formatter, "{first}"),
            (first, last) => write!(formatter, "{first}-{last}"),
        }
    }
}

impl fmt::Display for NatTarget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = match self {
            Self::ThisHost { ports } => {
                formatter.write_str("this host")?;
                ports
            }
            Self::Address { address, ports } => {
                match address {
                    IpAddr::V6(address) if ports.is_some() => write!(formatter, "[{address}]")?,
                    address => write!(formatter, "{address}")?,
                }
                ports
            }
            Self::Other(text) => return formatter.write_str(text),
        };
        match ports {
            Some(ports) => write!(formatter, ":{}", PortRange(ports)),
            None => Ok(()),
        }
    }
}

/// The new destination that a rule writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NatTarget {
    /// This host: the address of the interface on which the packet came in (`redirect`).
    ThisHost { ports: Option<RangeInclusive<u16>> },
    Address {
        address: IpAddr,
        ports: Option<RangeInclusive<u16>>,
    },
    /// A map or another expression, as the rule writes it.
    Other(String),
}

/// Settings of the kernel (sysctl).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctls {
    /// The ports that the kernel picks from for connections that this host opens.
    pub local_ports: RangeInclusive<u16>,
    /// The interfaces that accept packets to 127.0.0.0/8 (`route_localnet`). `all` may be among them.
    pub route_localnet: BTreeSet<String>,
    /// The interfaces that accept packets from this host's own IPv4 addresses (`accept_local`). `all` may be among
    /// them.
    pub accept_local: BTreeSet<String>,
}

impl Sysctls {
    /// Whether the interface accepts packets to 127.0.0.0/8, by its own setting or that of `all`
    /// (IN_DEV_ROUTE_LOCALNET in linux/inetdevice.h).
    pub fn routes_localnet(&self, interface: &str) -> bool {
        is_set(&self.route_localnet, interface)
    }

    /// Whether the interface accepts packets from an IPv4 address of this host (IN_DEV_ACCEPT_LOCAL).
    pub fn accepts_local(&self, interface: &str) -> bool {
        is_set(&self.accept_local, interface)
    }
}

fn is_set(interfaces: &BTreeSet<String>, interface: &str) -> bool {
    ["all", interface]
        .iter()
        .any(|name| interfaces.contains(*name))
}

impl Host {
    /// The picture before the first attempt to read anything.
    pub const fn unread(tick_ns: u64) -> Self {
        Self {
            links: Reading::unread(),
            addresses: Reading::unread(),
            routes: Reading::unread(),
            nat: Reading::unread(),
            sysctls: Reading::unread(),
            listeners: Reading::unread(),
            tick_ns,
        }
    }

    /// The parts that could not be read at the newest attempt, each with the error.
    pub fn errors(&self) -> Vec<(&'static str, &str)> {
        let Self {
            links,
            addresses,
            routes,
            nat,
            sysctls,
            listeners,
            tick_ns: _,
        } = self;
        [
            ("interfaces", &links.error),
            ("addresses", &addresses.error),
            ("routes", &routes.error),
            ("NAT rules", &nat.error),
            ("sysctls", &sysctls.error),
            ("listening sockets", &listeners.error),
        ]
        .into_iter()
        .filter_map(|(what, error)| Some((what, error.as_deref()?)))
        .collect()
    }

    /// The interface with this index.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.known()?.get(&index)
    }

    /// The interface with this name.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.all_links().find(|link| link.name == name)
    }

    /// Every interface of this host.
    pub fn all_links(&self) -> impl Iterator<Item = &Link> {
        self.links.known().into_iter().flat_map(BTreeMap::values)
    }

    /// The interfaces of the default routes in the main table, IPv4 and IPv6. `None`: the routes were never read.
    ///
    /// A VPN that routes all traffic (wg-quick, Tailscale) uses another table, while its own packets still use the
    /// route of the main table.
    pub fn default_route_links(&self) -> Option<BTreeSet<u32>> {
        let routes = self.routes.known()?.iter();
        let defaults = routes.filter(|route| route.is_default());
        Some(defaults.flat_map(|route| &route.links).copied().collect())
    }

    /// Every address of this host. `None`: the addresses were never read.
    pub fn own_addresses(&self) -> Option<BTreeSet<IpAddr>> {
        let addresses = self.addresses.known()?.iter();
        Some(addresses.map(|own| own.address).collect())
    }

    /// The sources that no packet coming in on these interfaces has: this host's own addresses, and the broadcast
    /// addresses of its IPv4 networks, from which Linux accepts no packet either. `None`: addresses or sysctls were
    /// never read.
    ///
    /// Not included are link-local addresses, which another host may have on another link, addresses that are not this
    /// host's yet, and IPv4 addresses if one of the interfaces accepts them (`accept_local`).
    pub fn own_sources(&self, interfaces: &BTreeSet<u32>) -> Option<BTreeSet<IpAddr>> {
        let sysctls = self.sysctls.known()?;
        let mut names = interfaces.iter().filter_map(|index| self.link(*index));
        let accepts_local = names.any(|link| sysctls.accepts_local(&link.name));
        let mut sources = BTreeSet::new();
        for own in self.addresses.known()?.iter().filter(|own| !own.tentative) {
            match own.address {
                IpAddr::V4(_) if accepts_local => {}
                IpAddr::V4(address) if address.is_loopback() || address.is_link_local() => {}
                IpAddr::V6(address) if address.is_loopback() || address.is_unicast_link_local() => {
                }
                address => {
                    sources.insert(address);
                    // A prefix of 31 bits has no broadcast address (RFC 3021).
                    if let (IpNet::V4(network), None) = (own.network(), own.peer)
                        && network.prefix_len() < 31
                    {
                        sources.insert(network.broadcast().into());
                    }
                }
            }
        }
        Some(sources)
    }

    /// The addresses of one interface.
    pub fn addresses_of(&self, index: u32) -> impl Iterator<Item = &LinkAddress> {
        let addresses = self.addresses.known().into_iter().flatten();
        addresses.filter(move |own| own.link == index)
    }

    /// The devices directly above: those whose lower device it is, and the bridge, bond or VRF of which it is a port.
    fn directly_above(&self, index: u32) -> impl Iterator<Item = &Link> {
        let controller = self.link(index).and_then(|link| link.controller);
        self.all_links().filter(move |link| {
            link.index != index && (link.stands_on(index) || controller == Some(link.index))
        })
    }

    /// The indices of all devices above, at any height.
    pub fn uppers(&self, index: u32) -> BTreeSet<u32> {
        let mut above = BTreeSet::new();
        let mut next = vec![index];
        while let Some(index) = next.pop() {
            // Each device is followed once: a reading between two changes may have a cycle.
            next.extend(
                self.directly_above(index)
                    .map(|link| link.index)
                    .filter(|index| above.insert(*index)),
            );
        }
        above.remove(&index);
        above
    }

    /// The ports of a bridge, bond, team or VRF.
    pub fn ports_of(&self, controller: u32) -> impl Iterator<Item = &Link> {
        let links = self.all_links();
        links.filter(move |link| link.controller == Some(controller))
    }

    /// The upper device whose program prevents the kernel from attaching one to this device.
    ///
    /// The kernel tests only the devices directly above (dev_xdp_attach() in net/core/dev.c, Linux 5.9). It also tests
    /// devices in other network namespaces, which cannot be seen from here.
    pub fn xdp_above(&self, index: u32) -> Option<&Link> {
        self.directly_above(index)
            .find(|link| link.xdp.is_some() && !link.is_kind(&TUNNELS))
    }

    /// Whether a bridge connects only containers and this host, so that its addresses and prefix are the containers'.
    ///
    /// It does not, and its addresses are the host's own, if
    /// - a port is neither a veth nor a tap: a network card, a VLAN, a bond or a VXLAN leads outside;
    /// - a port is a veth whose other end stays in this namespace: that end may lead outside;
    /// - a port or the bridge itself is guarded: the policy says that it leads outside;
    /// - the main table has a route over it to a gateway, or a default route: other hosts are behind it.
    ///
    /// An unknown bridge counts as not one of containers, so that the host's own addresses are never closed.
    pub fn is_container_bridge(&self, name: &str, guarded: &BTreeSet<u32>) -> bool {
        let Some(bridge) = self.link_named(name) else {
            return false;
        };
        let Some(routes) = self.routes.known() else {
            return false;
        };
        let leads_on = |route: &Route| {
            route.links.contains(&bridge.index)
                && (route.is_default() || !route.gateways.is_empty())
        };
        bridge.kind.as_deref() == Some("bridge")
            && !guarded.contains(&bridge.index)
            && self
                .ports_of(bridge.index)
                .all(|port| port.leads_to_a_guest(self) && !guarded.contains(&port.index))
            && !routes.iter().any(leads_on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(links: impl IntoIterator<Item = Link>) -> Host {
        let links: BTreeMap<u32, Link> = links.into_iter().map(|link| (link.index, link)).collect();
        Host {
            links: links.into(),
            addresses: Vec::new().into(),
            routes: Vec::new().into(),
            ..Host::unread(4_000_000)
        }
    }

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link {
            kind: Some(kind.to_owned()),
            ..Link::ethernet(index, name)
        }
    }

    fn route(prefix: &str, link: u32, gateway: Option<&str>) -> Route {
        Route {
            prefix: prefix.parse().unwrap(),
            links: vec![link],
            gateways: gateway
                .iter()
                .map(|gateway| gateway.parse().unwrap())
                .collect(),
        }
    }

    const PROGRAM: XdpState = XdpState {
        program_id: 7,
        native: false,
    };

    #[test]
    fn a_failed_reading_keeps_the_last_value_and_says_so() {
        let mut reading = Reading::unread();
        assert!(reading.is_stale());
        reading.renew(Err::<Vec<u32>, _>("out of files"));
        assert_eq!(reading.known(), None);
        reading.renew(Ok::<_, String>(vec![1]));
        assert!(!reading.is_stale());
        reading.renew(Err("out of files"));
        assert!(reading.is_stale());
        assert_eq!(reading.known(), Some(&vec![1]));
        assert_eq!(reading.error.as_deref(), Some("out of files"));
        reading.renew(Ok::<_, String>(vec![]));
        assert_eq!(
            (reading.known(), reading.is_stale()),
            (Some(&vec![]), false)
        );
    }

    #[test]
    fn default_routes_are_unknown_until_routes_are_read() {
        let mut host = host([]);
        host.routes = vec![
            route("0.0.0.0/0", 2, Some("192.0.2.1")),
            route("::/0", 3, None),
            route("10.0.0.0/8", 4, None),
        ]
        .into();
        assert_eq!(host.default_route_links(), Some([2, 3].into()));
        host.routes = Reading::unread();
        assert_eq!(host.default_route_links(), None);
    }

    #[test]
    fn upper_devices_are_found_at_any_height() {
        let on = |link: Link, lower| Link {
            lower: Some(lower),
            ..link
        };
        let mut uplink = Link::ethernet(2, "uplink");
        uplink.controller = Some(9);
        let host = host([
            uplink,
            on(link(3, "uplink.7", "vlan"), 2),
            on(link(4, "macvlan", "macvlan"), 3),
            on(link(5, "veth", "veth"), 2),
            Link {
                peer_elsewhere: true,
                ..on(link(6, "stranger", "macvlan"), 2)
            },
            link(9, "br0", "bridge"),
            on(link(10, "br0.5", "vlan"), 9),
        ]);
        assert_eq!(host.uppers(2), [3, 4, 9, 10].into());
        assert_eq!(host.uppers(9), [10].into());
        assert_eq!(host.uppers(4), [].into());
    }

    #[test]
    fn a_cycle_of_devices_ends() {
        let mut first = link(2, "a", "vlan");
        first.lower = Some(3);
        let mut second = link(3, "b", "vlan");
        second.lower = Some(2);
        assert_eq!(host([first, second]).uppers(2), [3].into());
    }

    #[test]
    fn a_program_directly_above_is_in_the_way_and_one_on_a_tunnel_is_not() {
        let above = |kind| Link {
            lower: Some(2),
            xdp: Some(PROGRAM),
            ..link(3, "above", kind)
        };
        for (kind, is_in_the_way) in [
            ("macvlan", true),
            ("vlan", true),
            ("gretap", false),
            ("veth", false),
        ] {
            let host = host([Link::ethernet(2, "uplink"), above(kind)]);
            assert_eq!(host.xdp_above(2).is_some(), is_in_the_way, "{kind}");
        }
        let mut port = Link::ethernet(2, "uplink");
        port.controller = Some(9);
        let mut bridge = link(9, "br0", "bridge");
        bridge.xdp = Some(PROGRAM);
        let mut higher = link(10, "br0.5", "vlan");
        higher.lower = Some(9);
        assert_eq!(
            host([port.clone(), bridge.clone()]).xdp_above(2),
            Some(&bridge)
        );
        // The kernel does not test the second device above.
        higher.xdp = bridge.xdp.take();
        let host = host([port, bridge, higher.clone()]);
        assert_eq!(host.xdp_above(2), None);
        assert_eq!(host.xdp_above(9), Some(&higher));
    }

    #[test]
    fn a_bridge_with_a_way_outside_is_no_container_bridge() {
        let port = |link: Link| Link {
            controller: Some(9),
            ..link
        };
        let bridge = || link(9, "br0", "bridge");
        let veth = || Link {
            peer_elsewhere: true,
            ..port(link(3, "veth1", "veth"))
        };
        let no_guarded = BTreeSet::new();
        let is = |ports: Vec<Link>, guarded: &BTreeSet<u32>| {
            let host = host([bridge()].into_iter().chain(ports));
            host.is_container_bridge("br0", guarded)
        };
        assert!(is(vec![], &no_guarded), "none yet");
        assert!(is(vec![veth(), port(link(4, "tap0", "tun"))], &no_guarded));
        assert!(!is(
            vec![veth(), port(Link::ethernet(2, "uplink"))],
            &no_guarded
        ));
        assert!(!is(vec![port(link(4, "uplink.7", "vlan"))], &no_guarded));
        assert!(!is(vec![port(link(4, "vxlan0", "vxlan"))], &no_guarded));
        assert!(!is(vec![veth()], &[3].into()), "a guarded port");
        assert!(!is(vec![veth()], &[9].into()), "guarded itself");
        let mut near = port(link(4, "near", "veth"));
        near.lower = Some(5);
        let far = |up| Link {
            up,
            ..link(5, "far", "veth")
        };
        let stays = vec![near.clone(), far(true)];
        assert!(!is(stays, &no_guarded), "a veth that stays here");
        let leaves = vec![near, far(false)];
        assert!(is(leaves, &no_guarded), "a veth on its way to a container");

        let mut host = host([bridge(), veth()]);
        host.routes = vec![route("172.17.0.0/16", 9, None)].into();
        assert!(host.is_container_bridge("br0", &no_guarded));
        for route in [
            route("0.0.0.0/0", 9, Some("192.0.2.1")),
            route("10.8.0.0/24", 9, Some("172.17.0.5")),
            route("::/0", 9, None),
        ] {
            host.routes = vec![route].into();
            assert!(!host.is_container_bridge("br0", &no_guarded));
        }
        host.routes = Reading::unread();
        assert!(!host.is_container_bridge("br0", &no_guarded), "not known");
        assert!(
            !host.is_container_bridge("br7", &no_guarded),
            "no such device"
        );
    }

    #[test]
    fn the_network_of_an_address_is_its_prefix_or_its_peers() {
        let mut address = LinkAddress::new(2, "192.0.2.7/24".parse().unwrap());
        assert_eq!(address.network(), "192.0.2.0/24".parse().unwrap());
        address.prefix_len = 32;
        address.peer = Some("198.51.100.1".parse().unwrap());
        assert_eq!(address.network(), "198.51.100.1/32".parse().unwrap());
    }

    #[test]
    fn localnet_is_routed_by_an_interface_or_by_all() {
        let of = |names: &[&str]| Sysctls {
            local_ports: 32_768..=60_999,
            route_localnet: names.iter().map(|&name| name.to_owned()).collect(),
            accept_local: BTreeSet::new(),
        };
        assert!(of(&["eth0"]).routes_localnet("eth0"));
        assert!(of(&["all"]).routes_localnet("eth0"));
        assert!(!of(&["eth1", "default"]).routes_localnet("eth0"));
    }

    #[test]
    fn own_sources_are_the_addresses_of_this_host_that_no_other_host_sends_from() {
        let own = |link, address: &str| LinkAddress::new(link, address.parse().unwrap());
        let mut host = host([Link::ethernet(2, "eth0"), Link::ethernet(3, "eth1")]);
        assert_eq!(host.own_sources(&[2].into()), None, "nothing is known");
        host.sysctls = Sysctls {
            local_ports: 32_768..=60_999,
            route_localnet: BTreeSet::new(),
            accept_local: BTreeSet::new(),
        }
        .into();
        host.addresses = vec![
            own(1, "127.0.0.1/8"),
            own(1, "::1/128"),
            own(2, "192.0.2.7/24"),
            own(2, "198.51.100.1/31"),
            own(2, "fe80::1/64"),
            own(2, "2001:db8::7/64"),
            own(3, "203.0.113.9/32"),
            LinkAddress {
                tentative: true,
                ..own(3, "2001:db8::8/64")
            },
            LinkAddress {
                peer: Some("10.0.0.1".parse().unwrap()),
                ..own(3, "10.0.0.2/24")
            },
        ]
        .into();
        let sources = |host: &Host, interfaces: &[u32]| {
            let interfaces = interfaces.iter().copied().collect();
            host.own_sources(&interfaces).unwrap()
        };
        let set = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|address| address.parse().unwrap());
            addresses.collect::<BTreeSet<IpAddr>>()
        };
        let v4 = [
            "192.0.2.7",
            "192.0.2.255",
            "198.51.100.1",
            "203.0.113.9",
            "10.0.0.2",
        ];
        let all = [v4.as_slice(), &["2001:db8::7"]].concat();
        assert_eq!(sources(&host, &[2, 3]), set(&all));
        // A guarded interface accepts packets from addresses of its own host.
        host.sysctls.last.as_mut().unwrap().accept_local = ["eth1".to_owned()].into();
        assert_eq!(sources(&host, &[2]), set(&all));
        assert_eq!(sources(&host, &[2, 3]), set(&["2001:db8::7"]));
        host.sysctls.last.as_mut().unwrap().accept_local = ["all".to_owned()].into();
        assert_eq!(sources(&host, &[2]), set(&["2001:db8::7"]));
    }

    #[test]
    fn a_listener_accepts_on_its_address_or_on_all_of_its_family() {
        for (address, dual_stack, to, accepts) in [
            ("203.0.113.10:22", false, "203.0.113.10", true),
            ("203.0.113.10:22", false, "203.0.113.11", false),
            ("0.0.0.0:22", false, "203.0.113.10", true),
            ("0.0.0.0:22", false, "2001:db8::1", false),
            ("[::]:22", true, "203.0.113.10", true),
            ("[::]:22", false, "203.0.113.10", false),
        ] {
            let listener = Listener {
                protocol: PortProtocol::Tcp,
                address: address.parse().unwrap(),
                dual_stack,
            };
            assert_eq!(
                listener.accepts(to.parse().unwrap()),
                accepts,
                "{listener:?} {to}"
            );
        }
    }
}
