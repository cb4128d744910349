//! Places in the port table: those that a container publishes, those that a service lists, and what is left of them.

use std::{collections::BTreeSet, net::IpAddr, ops::RangeInclusive};

use guard_common::layout::{PortProtocol, port_index};

use super::families;
use crate::{Labelled, Ports, PublishedAt, untrusted};

/// What a container publishes, as places in the port table, and where. What is published on every address of a family
/// is not named for one of them again.
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

/// `None`: every address of a family.
pub fn address_of(at: PublishedAt) -> Option<IpAddr> {
    match at {
        PublishedAt::EveryIpv4 | PublishedAt::EveryIpv6 => None,
        PublishedAt::Address(address) => Some(address),
    }
}

/// Whether what is published there can be reached at an address of a service; `None` stands for every one.
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

/// The places in the port table of ports that containers can publish.
pub fn places_of(ports: &[Ports]) -> impl Iterator<Item = RangeInclusive<u32>> {
    let ranges = ports
        .iter()
        .filter(|ports| matches!(ports, Ports::Range { .. }));
    ranges.map(Ports::indices)
}

/// What is left of some ports without others.
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

/// Places of one protocol in the port table, as ports.
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

/// Places in the port table as ranges of ports.
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

/// The other way round from [`port_index`].
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

/// Places in the port table, as a policy writes them. `None`: on every address of both families.
pub fn display(places: &BTreeSet<u32>, at: Option<PublishedAt>) -> String {
    let ranges = ranges(places);
    let ports = untrusted::listed(ranges.iter().map(Ports::to_string), 8);
    match at {
        None => ports,
        Some(PublishedAt::Address(address)) => format!("{ports} on {address}"),
        Some(at) => format!("{ports} on every {} address", families::name(at.family())),
    }
}
