//! Looks up what the tables know of a packet's destination and source, and has the rules of
//! exposure judge it.

use guard_common::{
    address::{Address, Family},
    exposure::{Exposure, Target, judge, judge_container_address},
    layout::{
        AddressedKey, NO_SERVICE, PortEntry, PortProtocol, Service, feature, port_index,
        protocol_index,
    },
    packet::{Packet, View},
    reason::Reason,
};

use crate::{
    clock::Clock,
    config,
    maps::{ADDRESSED, ADMITTED_V4, ADMITTED_V6, PORTS, SERVICES},
    networks::find_network,
    parse::protocol,
    sources::{is_allowed, is_listed},
};

/// Where a packet wants to go.
pub struct Destination {
    pub service: u16,
    /// `None` if no service lists the place.
    pub settings: Option<&'static Service>,
    pub exposure: Exposure,
}

impl Destination {
    /// A place that no service lists.
    #[inline(always)]
    fn of_host(exposure: Exposure) -> Self {
        Self {
            service: NO_SERVICE,
            settings: None,
            exposure,
        }
    }
}

#[inline(always)]
pub fn find_destination<C: Clock>(packet: &Packet) -> Destination {
    if packet.transport.view() == View::LaterFragment {
        return Destination::of_host(Exposure::Pass(Reason::Fragment));
    }
    let index = place(packet);
    let entry = PORTS.get(index).copied().unwrap_or_default();
    let on_this_address = find_addressed(packet.family, packet.destination, index, entry);
    // A service that names this very address is asked before the container networks.
    if on_this_address.is_none()
        && let Some(network) = find_network(packet.family, packet.destination)
    {
        return Destination::of_host(judge_container_address(packet, network));
    }
    let service = on_this_address.unwrap_or(entry.service());
    let settings = if service == NO_SERVICE {
        None
    } else {
        SERVICES.get(u32::from(service))
    };
    let target = Target {
        listed: settings.is_some(),
        admitted: settings.is_some_and(|settings| {
            settings.restricted == 0
                || is_admitted::<C>(packet, service)
                || is_allowed::<C>(packet.family, packet.source, service)
        }),
        published: is_published(packet.family, entry),
        ephemeral: entry.is_ephemeral(),
    };
    Destination {
        service,
        settings,
        exposure: judge(&target, packet, config::scope()),
    }
}

/// Whether the host itself gets the packet, if anybody does: it is sent to no container's address, and
/// to no port that a container publishes.
#[inline(always)]
pub fn is_for_host(packet: &Packet) -> bool {
    let entry = PORTS.get(place(packet)).copied().unwrap_or_default();
    !is_published(packet.family, entry) && find_network(packet.family, packet.destination).is_none()
}

/// Whether a container publishes the port on addresses of this family.
#[inline(always)]
pub fn is_published(family: Family, entry: PortEntry) -> bool {
    match family {
        Family::Ipv4 => entry.is_published_ipv4(),
        Family::Ipv6 => entry.is_published_ipv6(),
    }
}

/// The packet's place in the table of ports.
#[inline(always)]
fn place(packet: &Packet) -> u32 {
    match packet.transport.view() {
        View::Tcp {
            destination_port, ..
        } => port_index(PortProtocol::Tcp, destination_port),
        View::Udp {
            destination_port, ..
        } => port_index(PortProtocol::Udp, destination_port),
        View::Sctp { destination_port } => port_index(PortProtocol::Sctp, destination_port),
        View::Icmp { .. } => protocol_index(match packet.family {
            Family::Ipv4 => protocol::ICMP,
            Family::Ipv6 => protocol::ICMPV6,
        }),
        // A later fragment has no port, and is judged without.
        View::LaterFragment => protocol_index(protocol::FRAGMENT),
        View::Igmp { .. } => protocol_index(protocol::IGMP),
        View::Other { protocol } => protocol_index(protocol),
    }
}

/// The service that lists the port on this very address.
#[inline(always)]
pub fn find_addressed(
    family: Family,
    address: Address,
    port: u32,
    entry: PortEntry,
) -> Option<u16> {
    if !config::uses(feature::ADDRESSED) || !entry.is_addressed() {
        return None;
    }
    let key = AddressedKey {
        port,
        family: family as u32,
        address,
    };
    // SAFETY: the value is one word, read at once.
    let service = unsafe { ADDRESSED.get(key) }?;
    Some(*service as u16)
}

/// Whether the service, which is restricted, allows the packet's source.
#[inline(always)]
pub fn is_admitted<C: Clock>(packet: &Packet, service: u16) -> bool {
    let Packet { family, source, .. } = packet;
    !config::uses(feature::RESTRICTED)
        || is_listed::<C>(&ADMITTED_V4, &ADMITTED_V6, *family, *source, service)
}
