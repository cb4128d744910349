//! Looks up what the tables know of a packet's destination and source, and has the rules of
//! exposure judge it.

use guard_common::{
    address::{Address, Family},
    exposure::{Exposure, PortFacts, judge, judge_container_address},
    layout::{AddressedKey, NO_SERVICE, PortEntry, ServiceSlot, feature},
    packet::{IpHeader, Packet},
};

use crate::{
    clock::Clock,
    config::{self, uses},
    maps::{ADDRESSED, ADMITTED_V4, ADMITTED_V6, PORTS, SERVICES},
    networks::{find_network, may_be_in_network},
    path::PathKind,
    sources::is_listed,
};

/// Where a packet wants to go.
pub enum PortLookup {
    /// To a service, with its settings and what else the table of ports says of the place.
    Service(u16, &'static ServiceSlot, PortEntry),
    /// To a place that no service lists.
    Nobody(Exposure),
}

#[inline(always)]
pub fn find_destination<P: PathKind>(
    packet: &Packet<impl IpHeader>,
) -> Result<PortLookup, P::Deferred> {
    let entry = find_entry(packet);
    // What most of a flood is sent to: with one question, three others are answered.
    if P::IS_FAST && entry.is_empty() {
        let Packet { ip, .. } = packet;
        if uses!(feature::ADDRESSED | feature::NETWORKS)
            && may_be_in_network(ip.family(), ip.destination())
        {
            P::defer()?;
        }
        return Ok(PortLookup::Nobody(judge_closed(
            packet,
            PortEntry::default(),
            false,
        )));
    }
    let mut known = entry;
    if uses!(feature::ADDRESSED | feature::NETWORKS) {
        let Packet { ip, transport } = packet;
        let (family, destination) = (ip.family(), ip.destination());
        if entry.is_addressed() || may_be_in_network(family, destination) {
            P::defer()?;
            let here = find_addressed(family, destination, transport.place(), entry);
            known = entry.on_address(here);
            // A service that names this very address is asked before the container networks.
            if here.service() == NO_SERVICE
                && let Some(network) = find_network(family, destination)
            {
                let exposure = judge_container_address(*transport, network);
                return Ok(PortLookup::Nobody(exposure));
            }
        }
    }
    let service = known.service();
    if service != NO_SERVICE {
        let settings = SERVICES.get(service.into());
        return Ok(PortLookup::Service(service, settings, known));
    }
    Ok(PortLookup::Nobody(judge_closed(packet, known, false)))
}

/// Decides on a packet that a service lists, but not for its source.
#[inline(always)]
pub fn judge_refused(packet: &Packet<impl IpHeader>, entry: PortEntry) -> Exposure {
    judge_closed(packet, entry, true)
}

#[inline(always)]
fn judge_closed(packet: &Packet<impl IpHeader>, entry: PortEntry, listed: bool) -> Exposure {
    let target = PortFacts {
        listed,
        published: is_published(packet.ip.family(), entry),
        ephemeral: entry.is_ephemeral(),
    };
    judge(&target, packet.transport, config::scope())
}

#[inline(always)]
fn find_entry(packet: &Packet<impl IpHeader>) -> PortEntry {
    *PORTS.get_behind_swap(packet.transport.place() as usize)
}

/// Whether the host itself gets the packet, if anybody does: it is sent to no container's address, and
/// to no port that a container publishes.
#[inline(always)]
pub fn is_for_host(packet: &Packet<impl IpHeader>) -> bool {
    let Packet { ip, transport } = packet;
    let (family, destination) = (ip.family(), ip.destination());
    let entry = find_entry(packet);
    let here = find_addressed(family, destination, transport.place(), entry);
    !is_published(family, entry.on_address(here)) && find_network(family, destination).is_none()
}

/// Whether a container publishes the port: on every address of this family, or on the one that the entry is of.
#[inline(always)]
pub fn is_published(family: Family, entry: PortEntry) -> bool {
    match family {
        Family::Ipv4 => entry.is_published_ipv4(),
        Family::Ipv6 => entry.is_published_ipv6(),
    }
}

/// What is known of the port on this very address, for [`PortEntry::on_address`]. No option: of one that is none the
/// compiler may read the value all the same, which the verifier of Linux 6.1 refuses.
#[inline(always)]
pub fn find_addressed(family: Family, address: Address, port: u32, entry: PortEntry) -> PortEntry {
    if !entry.is_addressed() || !uses!(feature::ADDRESSED) {
        return PortEntry::default();
    }
    let key = AddressedKey {
        port,
        family: family as u32,
        address,
    };
    // SAFETY: the value is one word, read at once.
    match unsafe { ADDRESSED.get(key) } {
        Some(here) => *here,
        None => PortEntry::default(),
    }
}

/// Whether the service, which is restricted, allows the source.
#[inline(always)]
pub fn is_admitted<C: Clock, P: PathKind>(
    ip: &impl IpHeader,
    service: u16,
) -> Result<bool, P::Deferred> {
    if !uses!(feature::RESTRICTED) {
        return Ok(true);
    }
    is_listed::<C, P>(&ADMITTED_V4, &ADMITTED_V6, ip, service)
}
