//! Looks up a packet's destination and source in the tables, and applies the rules of exposure to them.

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

/// The result of looking up a packet's destination.
pub enum PortLookup {
    /// A service lists it: the service id, its settings, and the port's entry.
    Service(u16, &'static ServiceSlot, PortEntry),
    /// No service lists it.
    Unlisted(Exposure),
}

#[inline(always)]
pub fn find_destination<P: PathKind>(
    packet: &Packet<impl IpHeader>,
) -> Result<PortLookup, P::Deferred> {
    let entry = find_entry(packet);
    // Most packets of a flood go to a port with an empty entry. No service lists such a port, no container publishes
    // it, and no address has an entry of its own for it.
    if P::IS_FAST && entry.is_empty() {
        let Packet { ip, .. } = packet;
        if uses!(feature::ADDRESSED | feature::NETWORKS)
            && may_be_in_network(ip.family(), ip.destination())
        {
            P::defer()?;
        }
        return Ok(PortLookup::Unlisted(judge_closed(
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
            // A service that names this address comes before the container networks.
            if here.service() == NO_SERVICE
                && let Some(network) = find_network(family, destination)
            {
                let exposure = judge_container_address(*transport, network);
                return Ok(PortLookup::Unlisted(exposure));
            }
        }
    }
    let service = known.service();
    if service != NO_SERVICE {
        let settings = SERVICES.get(service.into());
        return Ok(PortLookup::Service(service, settings, known));
    }
    Ok(PortLookup::Unlisted(judge_closed(packet, known, false)))
}

/// Judges a packet whose port a service lists, but not for this source.
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

/// Whether the packet is for the host itself: its destination is no container's address, and no container publishes its
/// port.
#[inline(always)]
pub fn is_for_host(packet: &Packet<impl IpHeader>) -> bool {
    let Packet { ip, transport } = packet;
    let (family, destination) = (ip.family(), ip.destination());
    let entry = find_entry(packet);
    let here = find_addressed(family, destination, transport.place(), entry);
    !is_published(family, entry.on_address(here)) && find_network(family, destination).is_none()
}

/// Whether a container publishes the port, on every address of this family or on the entry's own address.
#[inline(always)]
pub fn is_published(family: Family, entry: PortEntry) -> bool {
    match family {
        Family::Ipv4 => entry.is_published_ipv4(),
        Family::Ipv6 => entry.is_published_ipv6(),
    }
}

/// The port's entry for this one address, for [`PortEntry::on_address`]; empty if there is none. It returns no
/// `Option`: the compiler may read the value of a `None`, which the verifier of Linux 6.1 refuses.
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

/// Whether a restricted service admits the source.
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
