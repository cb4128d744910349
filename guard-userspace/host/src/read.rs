//! Reads the picture from the kernel. Every function blocks.
//!
//! Only the attributes that the picture needs are parsed, by their numbers in linux/if_link.h, if_addr.h, rtnetlink.h
//! and nexthop.h. So another attribute that a later kernel changes makes no list unreadable.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use guard_common::layout::PortProtocol;
use ipnet::IpNet;
use netlink_packet_sock_diag::inet::StateFlags;
use nix::errno::Errno;

use super::{
    Host, Link, LinkAddress, Listener, Route, Sysctls, XdpState,
    dump::{ReadError, address, attributes, dump, u16_at, u32_at},
    local_port_range,
    nat::nat_rules,
    tick_ns,
};
use crate::sock_diag::{SockDiagError, SocketProtocol, dump as dump_sockets, is_v6_only};

impl Host {
    /// Reads the host once, for commands that change nothing. Each part that cannot be read has its error.
    ///
    /// # Errors
    /// If the kernel's tick cannot be read.
    pub fn read_once() -> io::Result<Self> {
        let mut host = Self::unread(tick_ns()?);
        host.read_again();
        Ok(host)
    }

    /// Reads the rules that rewrite destinations.
    pub fn read_nat(&mut self) {
        self.nat.renew(nat_rules());
    }

    /// Reads everything again except the listeners and the NAT rules. A part that cannot be read keeps its last value,
    /// and has the error. Returns whether everything was read.
    pub fn read_again(&mut self) -> bool {
        let Self {
            links: of_links,
            addresses: of_addresses,
            routes: of_routes,
            nat: _,
            sysctls: of_sysctls,
            listeners: _,
            tick_ns: _,
        } = self;
        of_links.renew(links());
        of_addresses.renew(addresses());
        of_routes.renew(routes());
        of_sysctls.renew(sysctls());
        [
            &of_links.error,
            &of_addresses.error,
            &of_routes.error,
            &of_sysctls.error,
        ]
        .iter()
        .all(|error| error.is_none())
    }
}

mod rtm {
    pub const GETLINK: u16 = 18;
    pub const GETADDR: u16 = 22;
    pub const GETROUTE: u16 = 26;
    pub const GETNEXTHOP: u16 = 106;
}

const IFINFOMSG: usize = 16;
const IFF_UP: u32 = 1;
mod ifla {
    pub const IFNAME: u16 = 3;
    pub const MTU: u16 = 4;
    pub const LINK: u16 = 5;
    pub const MASTER: u16 = 10;
    pub const LINKINFO: u16 = 18;
    pub const INFO_KIND: u16 = 1;
    pub const EXT_MASK: u16 = 29;
    pub const LINK_NETNSID: u16 = 37;
    pub const XDP: u16 = 43;
    pub const XDP_ATTACHED: u16 = 2;
    pub const XDP_PROG_ID: u16 = 4;
    pub const XDP_DRV_PROG_ID: u16 = 5;
    pub const XDP_SKB_PROG_ID: u16 = 6;
    pub const XDP_HW_PROG_ID: u16 = 7;
}
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
const XDP_ATTACHED_DRV: u8 = 1;

/// Every interface of this network namespace, by index.
pub fn links() -> Result<BTreeMap<u32, Link>, ReadError> {
    let mut request = vec![0; IFINFOMSG];
    // The counters are most of a message, and are not needed.
    request.extend(8_u16.to_ne_bytes());
    request.extend(ifla::EXT_MASK.to_ne_bytes());
    request.extend(RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    let links = dump(rtm::GETLINK, &request, |body| link(body).map(Some))?;
    Ok(links.into_iter().map(|link| (link.index, link)).collect())
}

fn link(body: &[u8]) -> Option<Link> {
    let mut link = Link {
        arphrd: u16_at(body, 2)?,
        up: u32_at(body, 8)? & IFF_UP != 0,
        ..Link::ethernet(u32_at(body, 4)?, "")
    };
    for (kind, value) in attributes(body.get(IFINFOMSG..)?) {
        match kind {
            ifla::IFNAME => link.name = text(value),
            ifla::MTU => link.mtu = u32_at(value, 0)?,
            ifla::LINK => link.lower = u32_at(value, 0),
            ifla::MASTER => link.controller = u32_at(value, 0),
            ifla::LINK_NETNSID => link.peer_elsewhere = true,
            ifla::LINKINFO => {
                let mut facts = attributes(value);
                let kind = facts.find(|(kind, _)| *kind == ifla::INFO_KIND);
                link.kind = kind.map(|(_, value)| text(value));
            }
            ifla::XDP => link.xdp = xdp(value),
            _ => {}
        }
    }
    // A tunnel without a lower device has 0. An index of another namespace would mean another device here.
    let is_here = |lower: &u32| !link.peer_elsewhere && *lower != 0 && *lower != link.index;
    link.lower = link.lower.filter(is_here);
    Some(link)
}

fn text(value: &[u8]) -> String {
    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

fn xdp(value: &[u8]) -> Option<XdpState> {
    let mut program_id = None;
    let mut native = false;
    for (kind, value) in attributes(value) {
        match kind {
            ifla::XDP_ATTACHED => native |= value.first() == Some(&XDP_ATTACHED_DRV),
            // If several programs are attached (XDP_ATTACHED_MULTI), PROG_ID is missing: the driver's program runs
            // first.
            ifla::XDP_DRV_PROG_ID => {
                native = true;
                program_id = u32_at(value, 0);
            }
            ifla::XDP_PROG_ID | ifla::XDP_SKB_PROG_ID | ifla::XDP_HW_PROG_ID => {
                program_id = program_id.or(u32_at(value, 0));
            }
            _ => {}
        }
    }
    program_id.map(|program_id| XdpState { program_id, native })
}

const IFADDRMSG: usize = 8;
mod ifa {
    pub const ADDRESS: u16 = 1;
    pub const LOCAL: u16 = 2;
    /// Flags in linux/if_addr.h.
    pub const F_DADFAILED: u8 = 0x08;
    pub const F_TENTATIVE: u8 = 0x40;
}

/// Every address of this network namespace, IPv4 and IPv6.
pub fn addresses() -> Result<Vec<LinkAddress>, ReadError> {
    dump(rtm::GETADDR, &[0; IFADDRMSG], |body| {
        let prefix_len = *body.get(1)?;
        let flags = *body.get(2)?;
        let link = u32_at(body, 4)?;
        let find = |wanted| {
            let mut facts = attributes(body.get(IFADDRMSG..)?);
            address(facts.find(|(kind, _)| *kind == wanted)?.1)
        };
        // With a peer, ADDRESS is the peer's address and LOCAL this host's. Without a peer, IPv4 has both attributes,
        // and IPv6 has ADDRESS alone.
        let (own, of_peer) = match (find(ifa::LOCAL), find(ifa::ADDRESS)) {
            (Some(local), peer) => (local, peer.filter(|peer| *peer != local)),
            (None, Some(own)) => (own, None),
            (None, None) => return Some(None),
        };
        Some(Some(LinkAddress {
            link,
            address: own,
            prefix_len,
            peer: of_peer,
            tentative: flags & (ifa::F_TENTATIVE | ifa::F_DADFAILED) != 0,
        }))
    })
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const RTMSG: usize = 12;
const RTNEXTHOP: usize = 8;
const RT_TABLE_MAIN: u8 = 254;
const RTN_UNICAST: u8 = 1;
const RTM_F_CLONED: u32 = 0x200;
mod rta {
    pub const DST: u16 = 1;
    pub const OIF: u16 = 4;
    pub const GATEWAY: u16 = 5;
    pub const MULTIPATH: u16 = 9;
    pub const TABLE: u16 = 15;
    pub const VIA: u16 = 18;
    pub const NH_ID: u16 = 30;
}

/// A route, and its nexthop object if it has no links itself.
struct RouteBy {
    route: Route,
    object: Option<u32>,
}

/// The unicast routes of the main table, IPv4 and IPv6. Sorted.
pub fn routes() -> Result<Vec<Route>, ReadError> {
    let mut routes = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut request = [0; RTMSG];
        request[0] = family;
        request[4] = RT_TABLE_MAIN;
        match dump(rtm::GETROUTE, &request, |body| route(body, family)) {
            Ok(some) => routes.extend(some),
            // The kernel creates the table with its first route (fib_new_table() in net/ipv4/fib_frontend.c).
            Err(ReadError::Kernel(error)) if is(&error, Errno::ENOENT) => {}
            // A kernel without IPv6 has no IPv6 routes.
            Err(ReadError::Kernel(error))
                if family == AF_INET6 && is(&error, Errno::EOPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
    }
    // Routes have only the id of their nexthop object if net.ipv4.nexthop_compat_mode is 0 (Linux 5.8).
    if routes.iter().any(|route| route.object.is_some()) {
        let objects = nexthops()?;
        for RouteBy { route, object } in &mut routes {
            if let Some(object) = object {
                resolve(route, *object, &objects);
            }
        }
    }
    let mut routes: Vec<Route> = routes.into_iter().map(|by| by.route.in_order()).collect();
    routes.sort_unstable();
    Ok(routes)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

impl Route {
    fn in_order(mut self) -> Self {
        self.links.sort_unstable();
        self.links.dedup();
        self.gateways.sort_unstable();
        self.gateways.dedup();
        self
    }
}

fn route(body: &[u8], family: u8) -> Option<Option<RouteBy>> {
    let header = body.first_chunk::<RTMSG>()?;
    let [of, prefix_len, _, _, table, _, _, kind, ..] = *header;
    let is_copy = u32_at(body, 8)? & RTM_F_CLONED != 0;
    let mut table = u32::from(table);
    let mut prefix = None;
    let mut links = Vec::new();
    let mut gateways = Vec::new();
    let mut object = None;
    for (kind, value) in attributes(body.get(RTMSG..)?) {
        match kind {
            rta::DST => prefix = address(value),
            // The header has no room for tables above 255.
            rta::TABLE => table = u32_at(value, 0)?,
            rta::NH_ID => object = u32_at(value, 0),
            rta::MULTIPATH => hops(value, &mut links, &mut gateways)?,
            _ => hop(kind, value, &mut links, &mut gateways),
        }
    }
    // Without the requested family, the kernel lists the routes of other families.
    if of != family || kind != RTN_UNICAST || is_copy || table != u32::from(RT_TABLE_MAIN) {
        return Some(None);
    }
    let any = match family {
        AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let prefix = IpNet::new(prefix.unwrap_or(any), prefix_len).ok()?;
    let object = object.filter(|_| links.is_empty());
    let route = Route {
        prefix,
        links,
        gateways,
    };
    Some(Some(RouteBy { route, object }))
}

/// Reads one attribute of a route or of one of its hops.
fn hop(kind: u16, value: &[u8], links: &mut Vec<u32>, gateways: &mut Vec<IpAddr>) {
    match kind {
        rta::OIF => links.extend(u32_at(value, 0)),
        rta::GATEWAY => gateways.extend(address(value)),
        // A gateway of another family: the family's number, then the address (struct rtvia).
        rta::VIA => gateways.extend(value.get(2..).and_then(address)),
        _ => {}
    }
}

/// Reads the hops of a multipath route (struct rtnexthop).
fn hops(mut value: &[u8], links: &mut Vec<u32>, gateways: &mut Vec<IpAddr>) -> Option<()> {
    while !value.is_empty() {
        let length = usize::from(u16_at(value, 0)?);
        links.push(u32_at(value, 4)?);
        for (kind, value) in attributes(value.get(RTNEXTHOP..length)?) {
            hop(kind, value, links, gateways);
        }
        value = value.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(())
}

const NHMSG: usize = 8;
const NEXTHOP_GROUP_ENTRY: usize = 8;
mod nha {
    pub const ID: u16 = 1;
    pub const GROUP: u16 = 2;
    pub const OIF: u16 = 5;
    pub const GATEWAY: u16 = 6;
}

/// A nexthop object (Linux 5.3).
#[derive(Default)]
struct Nexthop {
    link: Option<u32>,
    gateway: Option<IpAddr>,
    /// The objects of a group.
    group: Vec<u32>,
}

fn nexthops() -> Result<HashMap<u32, Nexthop>, ReadError> {
    let objects = dump(rtm::GETNEXTHOP, &[0; NHMSG], |body| {
        let mut id = None;
        let mut object = Nexthop::default();
        for (kind, value) in attributes(body.get(NHMSG..)?) {
            match kind {
                nha::ID => id = u32_at(value, 0),
                nha::OIF => object.link = u32_at(value, 0),
                nha::GATEWAY => object.gateway = address(value),
                nha::GROUP => {
                    let entries = value.chunks_exact(NEXTHOP_GROUP_ENTRY);
                    object.group = entries.filter_map(|entry| u32_at(entry, 0)).collect();
                }
                _ => {}
            }
        }
        Some(id.map(|id| (id, object)))
    })?;
    Ok(objects.into_iter().collect())
}

/// Adds the links and gateways of a nexthop object to a route. The members of a group are no groups, except in
/// resilient groups, one level down (net/ipv4/nexthop.c).
fn resolve(route: &mut Route, object: u32, objects: &HashMap<u32, Nexthop>) {
    let Some(object) = objects.get(&object) else {
        return;
    };
    let members = object.group.iter().filter_map(|id| objects.get(id));
    for Nexthop { link, gateway, .. } in [object].into_iter().chain(members) {
        route.links.extend(link);
        route.gateways.extend(gateway);
    }
}

const CONF: &str = "/proc/sys/net/ipv4/conf";

/// Reads the settings of this network namespace.
pub fn sysctls() -> io::Result<Sysctls> {
    Ok(Sysctls {
        local_ports: local_port_range()?,
        route_localnet: interfaces_with("route_localnet")?,
        accept_local: interfaces_with("accept_local")?,
    })
}

/// The interfaces whose setting of this name is not 0, and `all` if its setting is not 0.
fn interfaces_with(setting: &str) -> io::Result<BTreeSet<String>> {
    let mut with = BTreeSet::new();
    for interface in fs::read_dir(CONF)? {
        let interface = interface?;
        let value = match fs::read_to_string(interface.path().join(setting)) {
            // The interface was removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            value => value?,
        };
        if value.trim() != "0" {
            with.insert(interface.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(with)
}

/// Reads every TCP socket that listens, and every UDP socket without a peer. Sorted, each once.
pub fn listeners() -> Result<Vec<Listener>, SockDiagError> {
    let mut listeners = Vec::new();
    // A UDP socket without a peer is in the state CLOSE.
    for (transport, protocol, state) in [
        (SocketProtocol::Tcp, PortProtocol::Tcp, StateFlags::LISTEN),
        (SocketProtocol::Udp, PortProtocol::Udp, StateFlags::CLOSE),
    ] {
        dump_sockets(transport, state, |response| {
            let socket = &response.header.socket_id;
            let address = socket.source_address;
            listeners.push(Listener {
                protocol,
                address: SocketAddr::new(address.to_canonical(), socket.source_port),
                dual_stack: address == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !is_v6_only(&response),
            });
        })?;
    }
    // A UDP socket that is not bound has no port yet.
    listeners.retain(|listener| listener.address.port() != 0);
    listeners.sort_unstable();
    listeners.dedup();
    Ok(listeners)
}
