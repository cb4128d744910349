//! Facts about this host that the guard goes by: its clock, its local ports, its interfaces.

use std::{fs, io, net, ops::RangeInclusive};

use futures_util::TryStreamExt as _;
use nix::time::{ClockId, clock_getres};
use rtnetlink::{
    Handle, RouteMessageBuilder, new_connection,
    packet_route::{
        link::{LinkAttribute, LinkXdp, XdpAttached},
        route::{RouteAttribute, RouteMessage, RouteType},
    },
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

/// An XDP program on an interface, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpState {
    pub program_id: u32,
    pub native: bool,
}

/// Questions to the kernel over route netlink.
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

    /// The XDP program of an interface. `Ok(None)`: the interface has none.
    ///
    /// # Errors
    /// The kernel's, which for an interface that does not exist is ENODEV.
    pub async fn xdp(&self, interface: &str) -> Result<Option<XdpState>, rtnetlink::Error> {
        let request = self.handle.link().get().match_name(interface.to_owned());
        let message = request.execute().try_next().await?;
        let attributes = message.into_iter().flat_map(|link| link.attributes);
        let mut program_id = None;
        let mut native = false;
        for attribute in attributes {
            let LinkAttribute::Xdp(xdp) = attribute else {
                continue;
            };
            for fact in xdp {
                match fact {
                    LinkXdp::ProgId(id) => program_id = Some(id),
                    LinkXdp::Attached(XdpAttached::Driver) => native = true,
                    _ => {}
                }
            }
        }
        Ok(program_id.map(|program_id| XdpState { program_id, native }))
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
