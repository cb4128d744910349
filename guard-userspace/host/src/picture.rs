//! The picture of this host: plain values that the kernel was asked for, and what follows from them.
//!
//! Nothing here asks the kernel. Every value can be written by hand, so that a plan is tested on
//! hosts that are data.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use guard_common::{address::Family, layout::PortProtocol};
use ipnet::IpNet;

use super::XdpState;

/// What the host looks like.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    /// By index.
    pub links: Reading<BTreeMap<u32, Link>>,
    pub addresses: Reading<Vec<LinkAddress>>,
    /// Unicast routes of the main table, IPv4 and IPv6.
    pub routes: Reading<Vec<Route>>,
    /// Read on demand alone, not when something changed.
    pub nat: Reading<NatRules>,
    pub sysctls: Reading<Sysctls>,
    /// Read on demand alone, not when something changed.
    pub listeners: Reading<Vec<Listener>>,
    /// The kernel's tick, which never changes while it runs.
    pub tick_ns: u64,
}

/// What was read last, and why the newest attempt failed, if it did.
///
/// A reading that fails leaves the last value: an unreadable list is never an empty one.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading<T> {
    /// `None`: no attempt has succeeded yet.
    pub last: Option<T>,
    /// `None`: the newest attempt succeeded, or none was made.
    pub error: Option<String>,
}

impl<T> Reading<T> {
    /// Before the first attempt.
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
pub const ARPHRD_LOOPBACK: u16 = 772;

/// An interface, and what it stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// The driver's name for what it is (`veth`, `bridge`, `vlan`, `tun`). `None` for hardware.
    pub kind: Option<String>,
    /// What its frames begin with (linux/if_arp.h).
    pub arphrd: u16,
    /// The device that it stands on, or a veth's other end (IFLA_LINK), in this network namespace.
    pub lower: Option<u32>,
    /// That device is in another network namespace, where indices mean other devices.
    pub peer_elsewhere: bool,
    /// The bridge, bond, team or VRF that it is a port of (IFLA_MASTER).
    pub controller: Option<u32>,
    pub mtu: u32,
    pub up: bool,
    pub xdp: Option<XdpState>,
}

/// Kinds whose IFLA_LINK is the other end of a pair, which neither stands on.
const PAIRS: [&str; 3] = ["veth", "netkit", "vxcan"];

/// Kinds that send through the device of IFLA_LINK, and that the kernel does not link to it as a
/// device above: `netdev_upper_dev_link()` is never called for them.
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
    /// A device without a driver's kind that is up: what most hand-written hosts begin with.
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

    /// Whether its frames begin with an Ethernet header, as the program reads them.
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

    /// The devices that it stands directly on: its own lower device, and nothing for a pair's end.
    fn stands_on(&self, index: u32) -> bool {
        self.lower == Some(index) && !self.peer_elsewhere && !self.is_kind(&PAIRS)
    }

    /// Whether a bridge's port of this kind leads to a container or a virtual machine, and nowhere
    /// else: a veth whose other end has left this network namespace, or a tap. A runtime makes both ends
    /// here: the one that is for the container stays down and apart until it has left.
    fn leads_to_a_guest(&self, host: &Host) -> bool {
        let is_on_its_way = || {
            let other = self.lower.and_then(|index| host.link(index));
            other.is_none_or(|other| !other.up && other.controller.is_none())
        };
        match self.kind.as_deref() {
            Some("veth") => self.peer_elsewhere || is_on_its_way(),
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
    /// The address at the other end, where it was given one: the prefix is then the peer's.
    pub peer: Option<IpAddr>,
    /// Duplicate address detection goes on, or has found somebody else who has it (RFC 4862, section 5.4): it is not this
    /// host's yet.
    pub tentative: bool,
}

impl LinkAddress {
    /// As `ip address add 192.0.2.7/24` has it.
    pub fn new(link: u32, address: IpNet) -> Self {
        Self {
            link,
            address: address.addr(),
            prefix_len: address.prefix_len(),
            peer: None,
            tentative: false,
        }
    }

    /// The prefix that is reached by the link because of this address.
    pub fn network(&self) -> IpNet {
        let Self {
            address,
            prefix_len,
            peer,
            ..
        } = *self;
        let address = peer.unwrap_or(address);
        // The kernel takes no prefix longer than its address.
        IpNet::new(address, prefix_len).map_or_else(|_| address.into(), |net| net.trunc())
    }
}

/// A unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub prefix: IpNet,
    /// More than one for a multipath route; sorted, each once.
    pub links: Vec<u32>,
    /// Empty where the prefix is on the link itself; sorted, each once.
    pub gateways: Vec<IpAddr>,
}

impl Route {
    pub fn is_default(&self) -> bool {
        self.prefix.prefix_len() == 0
    }
}

/// A socket that waits for others: listening TCP, or UDP that is connected to no peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    pub protocol: PortProtocol,
    /// The unspecified address: every address of its family.
    pub address: SocketAddr,
    /// An IPv6 socket on every address that takes IPv4 as well (IPV6_V6ONLY is off).
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
    /// There are more than are followed.
    pub is_partial: bool,
}

/// A rule that rewrites the destination of what it matches, with the conditions of all jumps that lead to it.
/// Conditions that are not named here narrow it further: packets that it rewrites all match this.
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
    /// The packets come in by it. `None`: by any.
    pub interface: Option<String>,
    pub to: NatTarget,
    /// Where it stands: the family, the table and the chain, such as `ip nat DOCKER`.
    pub chain: String,
}

/// Which packets come to a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NatHook {
    /// What comes in.
    Prerouting,
    /// What this host sends.
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

/// What a rule leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NatTarget {
    /// The host itself: the address of the interface that the packet came by (`redirect`).
    ThisHost { ports: Option<RangeInclusive<u16>> },
    Address {
        address: IpAddr,
        ports: Option<RangeInclusive<u16>>,
    },
    /// By a map or another expression, in the words of the rule.
    Other(String),
}

/// Settings of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctls {
    /// The ports that the kernel picks from for connections that this host opens.
    pub local_ports: RangeInclusive<u16>,
    /// The interfaces by which packets to 127.0.0.0/8 are accepted (`route_localnet`); `all` is one.
    pub route_localnet: BTreeSet<String>,
    /// The interfaces by which packets from this host's own IPv4 addresses are accepted (`accept_local`); `all` is one.
    pub accept_local: BTreeSet<String>,
}

impl Sysctls {
    /// Whether packets to 127.0.0.0/8 are accepted by the interface: the kernel takes the setting of
    /// `all` or its own (IN_DEV_ROUTE_LOCALNET in linux/inetdevice.h).
    pub fn routes_localnet(&self, interface: &str) -> bool {
        is_set(&self.route_localnet, interface)
    }

    /// Whether packets from an IPv4 address of this host are accepted by the interface (IN_DEV_ACCEPT_LOCAL).
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
    /// Before the first attempt to read anything.
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

    /// What could not be read at the newest attempt, each with the reason.
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

    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.known()?.get(&index)
    }

    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.all_links().find(|link| link.name == name)
    }

    fn all_links(&self) -> impl Iterator<Item = &Link> {
        self.links.known().into_iter().flat_map(BTreeMap::values)
    }

    /// The interfaces that the default routes of the main table lead to, IPv4 and IPv6. `None`: the
    /// routes were never read.
    ///
    /// A VPN that takes all traffic over (wg-quick, Tailscale) does so in a table of its own, while
    /// its own packets still go by the main table's route.
    pub fn default_route_links(&self) -> Option<BTreeSet<u32>> {
        let routes = self.routes.known()?.iter();
        let defaults = routes.filter(|route| route.is_default());
        Some(defaults.flat_map(|route| &route.links).copied().collect())
    }

    /// Every address of this host. `None`: they were never read.
    pub fn own_addresses(&self) -> Option<BTreeSet<IpAddr>> {
        let addresses = self.addresses.known()?.iter();
        Some(addresses.map(|own| own.address).collect())
    }

    /// What no packet that comes in by these interfaces has as its source: this host's own addresses, and the
    /// broadcast addresses of its IPv4 networks, of which Linux takes no packet either. `None`: they were never read.
    ///
    /// Not among them: link-local addresses, which another host may have on another link; addresses that are not this
    /// host's yet; and those of IPv4 where one of the interfaces accepts them (`accept_local`).
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

    /// The devices directly above: those that stand on it, and the bridge, bond or VRF that it is a
    /// port of.
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
            // Each is followed once: a read between two changes may show a circle.
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

    /// The device above that keeps the kernel from attaching a program to this one, because it has
    /// one itself.
    ///
    /// The kernel looks at the devices directly above alone (dev_xdp_attach() in net/core/dev.c,
    /// Linux 5.9), and also at those in other network namespaces, which cannot be seen from here.
    pub fn xdp_above(&self, index: u32) -> Option<&Link> {
        self.directly_above(index)
            .find(|link| link.xdp.is_some() && !link.is_kind(&TUNNELS))
    }

    /// Whether a bridge connects containers with this host and with nothing else, so that its
    /// addresses and prefix are the containers'.
    ///
    /// A bridge is none, and its addresses are the host's own like any other, where
    /// - a port is neither a veth nor a tap: a network card, a VLAN, a bond or a VXLAN leads outside;
    /// - a port is a veth whose other end is in this namespace: it leads to whatever that one does;
    /// - a port or the bridge itself is guarded: the policy says that the outside is there;
    /// - a route of the main table goes by it to a gateway, or it has a default route: others are
    ///   behind it.
    ///
    /// A bridge that is not known is none: the host's own addresses are the ones not to close.
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
    fn what_is_above_stands_on_it_or_has_it_as_a_port_at_any_height() {
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
    fn a_circle_of_devices_ends() {
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
        // Two devices up the kernel does not look.
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
        let nobody = BTreeSet::new();
        let is = |ports: Vec<Link>, guarded: &BTreeSet<u32>| {
            let host = host([bridge()].into_iter().chain(ports));
            host.is_container_bridge("br0", guarded)
        };
        assert!(is(vec![], &nobody), "none yet");
        assert!(is(vec![veth(), port(link(4, "tap0", "tun"))], &nobody));
        assert!(!is(
            vec![veth(), port(Link::ethernet(2, "uplink"))],
            &nobody
        ));
        assert!(!is(vec![port(link(4, "uplink.7", "vlan"))], &nobody));
        assert!(!is(vec![port(link(4, "vxlan0", "vxlan"))], &nobody));
        assert!(!is(vec![veth()], &[3].into()), "a guarded port");
        assert!(!is(vec![veth()], &[9].into()), "guarded itself");
        let mut near = port(link(4, "near", "veth"));
        near.lower = Some(5);
        let far = |up| Link {
            up,
            ..link(5, "far", "veth")
        };
        let stays = vec![near.clone(), far(true)];
        assert!(!is(stays, &nobody), "a veth that stays here");
        let leaves = vec![near, far(false)];
        assert!(is(leaves, &nobody), "a veth on its way to a container");

        let mut host = host([bridge(), veth()]);
        host.routes = vec![route("172.17.0.0/16", 9, None)].into();
        assert!(host.is_container_bridge("br0", &nobody));
        for route in [
            route("0.0.0.0/0", 9, Some("192.0.2.1")),
            route("10.8.0.0/24", 9, Some("172.17.0.5")),
            route("::/0", 9, None),
        ] {
            host.routes = vec![route].into();
            assert!(!host.is_container_bridge("br0", &nobody));
        }
        host.routes = Reading::unread();
        assert!(!host.is_container_bridge("br0", &nobody), "not known");
        assert!(!host.is_container_bridge("br7", &nobody), "no such device");
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
    fn nobody_else_sends_from_an_address_of_this_host() {
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
        // Where an interface that is guarded takes packets from its host's addresses.
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
