//! Places (indices of the port table): those that a container publishes, those that a service lists, and the rest when
//! some are removed.

use std::{collections::BTreeSet, net::IpAddr, ops::RangeInclusive};

use guard_common::layout::{PortProtocol, port_index};

use super::families;
use crate::{Labelled, Ports, PublishedAt, untrusted};

/// The places that a container publishes, and where. A place that is published on every address of a family does not
/// occur again for a single address.
pub fn places_of_container(labelled: &Labelled) -> BTreeSet<(u32, PublishedAt)> {
    let published = labelled.published.iter();
    let places: BTreeSet<_> = published
        .map(|port| (port_index(port.protocol, port.port), port.at))
        .collect();
    let is_everywhere = |place: u32, address: IpAddr| {
        let every = match address {
            IpAddr::V4(_) => PublishedAt::EveryIpv4,
            IpAddr::V6(_) => PublishedAt::EveryIpv6,
        };
        places.contains(&(place, every))
    };
    let named = places.iter().copied().filter(|(place, at)| {
        let address = address_of(*at);
        !address.is_some_and(|address| is_everywhere(*place, address))
    });
    named.collect()
}

/// The single address; `None`: every address of a family.
pub fn address_of(at: PublishedAt) -> Option<IpAddr> {
    match at {
        PublishedAt::EveryIpv4 | PublishedAt::EveryIpv6 => None,
        PublishedAt::Address(address) => Some(address),
    }
}

/// Whether a port published there can be reached at the address of a service; `None`: every address.
pub fn overlaps(at: PublishedAt, address: Option<IpAddr>) -> bool {
    let Some(address) = address else {
        return true;
    };
    match at {
        PublishedAt::EveryIpv4 => address.is_ipv4(),
        PublishedAt::EveryIpv6 => address.is_ipv6(),
        PublishedAt::Address(published) => published == address,
    }
}

/// The places of those ports that containers can publish (not of protocols without ports).
pub fn places_of(ports: &[Ports]) -> impl Iterator<Item = RangeInclusive<u32>> {
    let ranges = ports
        .iter()
        .filter(|ports| matches!(ports, Ports::Range { .. }));
    ranges.map(Ports::indices)
}

/// The ports without the places in `taken`.
pub fn without(ports: &[Ports], taken: &BTreeSet<u32>) -> Vec<Ports> {
    let (ranges, mut left): (Vec<Ports>, Vec<Ports>) = ports
        .iter()
        .cloned()
        .partition(|ports| matches!(ports, Ports::Range { .. }));
    for range in places_of(&ranges) {
        let mut start = *range.start();
        for place in taken.range(range.clone()) {
            left.extend(range_of(start..=place.saturating_sub(1)));
            start = place + 1;
        }
        left.extend(range_of(start..=*range.end()));
    }
    left
}

/// Converts a range of places of one protocol to ports.
fn range_of(places: RangeInclusive<u32>) -> Option<Ports> {
    if places.is_empty() {
        return None;
    }
    let (protocol, first) = port_at(*places.start())?;
    let (_, last) = port_at(*places.end())?;
    Some(Ports::Range {
        protocol,
        ports: first..=last,
    })
}

/// Converts places to ranges of ports.
pub fn ranges(places: &BTreeSet<u32>) -> Vec<Ports> {
    let mut ranges: Vec<Ports> = Vec::new();
    for place in places {
        let Some((protocol, port)) = port_at(*place) else {
            continue;
        };
        match ranges.last_mut() {
            Some(Ports::Range {
                protocol: last,
                ports,
            }) if *last == protocol && ports.end().checked_add(1) == Some(port) => {
                *ports = *ports.start()..=port;
            }
            _ => ranges.push(Ports::Range {
                protocol,
                ports: port..=port,
            }),
        }
    }
    ranges
}

/// The inverse of [`port_index`].
fn port_at(place: u32) -> Option<(PortProtocol, u16)> {
    let protocols = [PortProtocol::Tcp, PortProtocol::Udp, PortProtocol::Sctp];
    let protocol = protocols.into_iter().find(|protocol| {
        (port_index(*protocol, 0)..=port_index(*protocol, u16::MAX)).contains(&place)
    })?;
    Some((
        protocol,
        u16::try_from(place - port_index(protocol, 0)).ok()?,
    ))
}

/// The ports of some places, as a policy writes them, and where they are. `None`: on every address of both families.
pub fn display(places: &BTreeSet<u32>, at: Option<PublishedAt>) -> String {
    let ranges = ranges(places);
    let ports = untrusted::listed(ranges.iter().map(Ports::to_string), 8);
    match at {
        None => ports,
        Some(PublishedAt::Address(address)) => format!("{ports} on {address}"),
        Some(at) => format!("{ports} on every {} address", families::name(at.family())),
    }
}
