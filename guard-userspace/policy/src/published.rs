//! Ports that containers publish, and the port tables compiled from them and from the services of a policy.

use std::{
    collections::BTreeMap,
    fmt, mem,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use guard_common::{
    address::{Address, Family},
    layout::{AddressedKey, PortEntry, PortProtocol, port_index},
};

use super::Ports;

/// A host port that a container publishes on an address that other hosts can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublishedPort {
    pub protocol: PortProtocol,
    pub port: u16,
    pub at: PublishedAt,
}

/// The addresses of the host that a port is published on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PublishedAt {
    EveryIpv4,
    EveryIpv6,
    /// This address alone. It is neither unspecified nor loopback.
    Address(IpAddr),
}

impl PublishedAt {
    /// Every address of the host.
    pub const EVERYWHERE: [Self; 2] = [Self::EveryIpv4, Self::EveryIpv6];

    /// The addresses at which other hosts can reach a port published on `address`; `None`: every address. A port on a
    /// loopback address is not reachable.
    pub fn reachable(address: Option<IpAddr>) -> impl Iterator<Item = Self> {
        // Docker treats an IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2) as the IPv4 address.
        let places = match address.map(|address| address.to_canonical()) {
            None => Self::EVERYWHERE.map(Some),
            Some(address) if address.is_loopback() => [None, None],
            Some(IpAddr::V4(address)) if address.is_unspecified() => [Some(Self::EveryIpv4), None],
            Some(IpAddr::V6(address)) if address.is_unspecified() => [Some(Self::EveryIpv6), None],
            Some(address) => [Some(Self::Address(address)), None],
        };
        places.into_iter().flatten()
    }

    /// IPv4 or IPv6.
    pub fn family(self) -> Family {
        match self {
            Self::EveryIpv4 | Self::Address(IpAddr::V4(_)) => Family::Ipv4,
            Self::EveryIpv6 | Self::Address(IpAddr::V6(_)) => Family::Ipv6,
        }
    }

    /// Whether the port is published on this address.
    pub fn covers(self, address: IpAddr) -> bool {
        match self {
            Self::EveryIpv4 => address.is_ipv4(),
            Self::EveryIpv6 => address.is_ipv6(),
            Self::Address(own) => own == address,
        }
    }
}

impl PublishedPort {
    /// Its index in the port table.
    pub fn index(self) -> u32 {
        port_index(self.protocol, self.port)
    }

    /// Its key in the table of ports on single addresses, if it is published on a single address.
    pub fn key(self) -> Option<AddressedKey> {
        match self.at {
            PublishedAt::EveryIpv4 | PublishedAt::EveryIpv6 => None,
            PublishedAt::Address(address) => Some(key_of(self.index(), address)),
        }
    }

    /// The entry of the port table, with this port published.
    #[must_use]
    pub fn marked(self, entry: PortEntry, local_ports: &RangeInclusive<u16>) -> PortEntry {
        let entry = match self.at {
            PublishedAt::EveryIpv4 | PublishedAt::EveryIpv6 => self.marked_here(entry),
            PublishedAt::Address(_) => entry.addressed(),
        };
        if local_ports.contains(&self.port) {
            entry.ephemeral()
        } else {
            entry
        }
    }

    /// The entry of the table for the address, with this port published.
    #[must_use]
    pub fn marked_here(self, entry: PortEntry) -> PortEntry {
        match self.at.family() {
            Family::Ipv4 => entry.published_ipv4(),
            Family::Ipv6 => entry.published_ipv6(),
        }
    }

    /// Parses a port as it is displayed, or a range of ports: `tcp/8000` on every address, `203.0.113.11:tcp/443`,
    /// `[2001:db8::11]:udp/9000-9010`.
    ///
    /// # Errors
    /// The text is no such port; the error says what to write.
    pub fn parse(text: &str) -> Result<Vec<Self>, String> {
        let (address, ports) = match text.rsplit_once(':') {
            None => (None, text),
            Some((address, ports)) => {
                // Parsed as a socket address, which has an IPv6 address in brackets.
                let socket = format!("{address}:0").parse::<SocketAddr>();
                let socket = socket.map_err(|_| {
                    format!(
                        "{address:?} is not an address to publish ports on: write \"203.0.113.11:tcp/443\" or \
                         \"[2001:db8::11]:tcp/443\""
                    )
                })?;
                (Some(socket.ip()), ports)
            }
        };
        match ports.parse()? {
            Ports::Range { protocol, ports } => {
                let on = |port| {
                    PublishedAt::reachable(address).map(move |at| Self { protocol, port, at })
                };
                Ok(ports.flat_map(on).collect())
            }
            Ports::Protocol { .. } => Err(format!(
                "{ports} cannot be published: name ports, such as tcp/8000"
            )),
        }
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            PublishedAt::EveryIpv4 | PublishedAt::EveryIpv6 => {}
            PublishedAt::Address(IpAddr::V4(address)) => write!(formatter, "{address}:")?,
            PublishedAt::Address(IpAddr::V6(address)) => write!(formatter, "[{address}]:")?,
        }
        write!(formatter, "{}/{}", self.protocol.name(), self.port)
    }
}

/// The contents of the port tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortTables {
    /// The entries of the port table that are not empty.
    pub everywhere: BTreeMap<u32, PortEntry>,
    /// The entries that hold on one address alone. The flag `addressed` of the entry in `everywhere` announces them.
    pub addressed: BTreeMap<AddressedKey, PortEntry>,
}

impl PortTables {
    /// The combined entry of an index on an address.
    pub fn at(&self, index: u32, address: IpAddr) -> PortEntry {
        let entry = self.everywhere.get(&index).copied().unwrap_or_default();
        let here = self.addressed.get(&key_of(index, address));
        entry.on_address(here.copied().unwrap_or_default())
    }

    /// Lists an index for a service, on one address; `None`: on every address.
    pub fn list(&mut self, index: u32, address: Option<IpAddr>, service: u16) {
        let entry = self.everywhere.entry(index).or_default();
        let Some(address) = address else {
            *entry = entry.with_service(service);
            return;
        };
        *entry = entry.addressed();
        let here = self.addressed.entry(key_of(index, address)).or_default();
        *here = here.with_service(service);
    }

    /// Marks a port as published. Returns whether this changed a table.
    pub fn publish(&mut self, port: PublishedPort, local_ports: &RangeInclusive<u16>) -> bool {
        let entry = self.everywhere.entry(port.index()).or_default();
        let before = mem::replace(entry, port.marked(*entry, local_ports));
        let mut is_news = before != *entry;
        if let Some(key) = port.key() {
            let here = self.addressed.entry(key).or_default();
            let before = mem::replace(here, port.marked_here(*here));
            is_news |= before != *here;
        }
        is_news
    }
}

/// An address as the packet path stores it.
pub fn split(address: IpAddr) -> (Family, Address) {
    match address {
        IpAddr::V4(address) => (Family::Ipv4, Address::from_ipv4(address.to_bits())),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            let address = Address {
                high: (bits >> 64) as u64,
                low: bits as u64,
            };
            (Family::Ipv6, address)
        }
    }
}

fn key_of(port: u32, address: IpAddr) -> AddressedKey {
    let (family, address) = split(address);
    AddressedKey {
        port,
        family: family as u32,
        address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL_PORTS: RangeInclusive<u16> = 32_768..=60_999;

    fn one(text: &str) -> PublishedPort {
        let ports = PublishedPort::parse(text).unwrap();
        assert_eq!(ports.len(), 1, "{text}");
        ports[0]
    }

    #[test]
    fn ports_on_an_address_are_parsed_as_they_are_displayed() {
        for text in ["203.0.113.11:tcp/443", "[2001:db8::11]:udp/53"] {
            assert_eq!(one(text).to_string(), text);
        }
        for (text, count) in [
            ("tcp/8000", 2),
            ("udp/9000-9010", 22),
            ("203.0.113.11:udp/9000-9010", 11),
            ("0.0.0.0:tcp/80", 1),
            ("[::]:tcp/80", 1),
            ("127.0.0.1:tcp/80", 0),
            ("[::1]:tcp/80", 0),
        ] {
            assert_eq!(PublishedPort::parse(text).unwrap().len(), count, "{text}");
        }
        assert_eq!(one("0.0.0.0:tcp/80").at, PublishedAt::EveryIpv4);
        assert_eq!(one("[::]:tcp/80").at, PublishedAt::EveryIpv6);
        let mapped = one("[::ffff:203.0.113.11]:tcp/80");
        assert_eq!(mapped.to_string(), "203.0.113.11:tcp/80");
        for text in ["icmp", "203.0.113.11:icmp"] {
            let error = PublishedPort::parse(text).unwrap_err();
            assert!(error.starts_with("icmp cannot be published"), "{error}");
        }
        for text in [
            "web:tcp/80",
            "2001:db8::11:tcp/80",
            ":tcp/80",
            "203.0.113.11:80:tcp/80",
        ] {
            let error = PublishedPort::parse(text).unwrap_err();
            assert!(error.contains("is not an address"), "{error}");
        }
        assert!(PublishedPort::parse("203.0.113.11:tcp/0").is_err());
    }

    #[test]
    fn a_port_published_on_one_address_leaves_the_other_addresses_unchanged() {
        let mut tables = PortTables::default();
        for text in ["203.0.113.11:tcp/443", "[2001:db8::11]:tcp/443"] {
            tables.publish(one(text), &LOCAL_PORTS);
        }
        let index = one("203.0.113.11:tcp/443").index();
        let published = |address: &str| {
            let entry = tables.at(index, address.parse().unwrap());
            (entry.is_published_ipv4(), entry.is_published_ipv6())
        };
        assert_eq!(published("203.0.113.11"), (true, false));
        assert_eq!(published("203.0.113.10"), (false, false));
        assert_eq!(published("2001:db8::11"), (false, true));
        assert_eq!(published("2001:db8::10"), (false, false));
    }

    #[test]
    fn a_service_and_a_container_meet_on_one_address_in_any_order() {
        let port = one("203.0.113.11:tcp/40000");
        let own = "203.0.113.11".parse().unwrap();
        let (mut one_way, mut other_way) = (PortTables::default(), PortTables::default());
        one_way.list(port.index(), Some(own), 3);
        one_way.list(port.index(), None, 4);
        one_way.publish(port, &LOCAL_PORTS);
        other_way.publish(port, &LOCAL_PORTS);
        other_way.list(port.index(), None, 4);
        other_way.list(port.index(), Some(own), 3);
        assert_eq!(one_way, other_way);
        let here = one_way.at(port.index(), own);
        assert_eq!((here.service(), here.is_published_ipv4()), (3, true));
        assert!(here.is_ephemeral());
        let elsewhere = one_way.at(port.index(), "203.0.113.10".parse().unwrap());
        let found = (elsewhere.service(), elsewhere.is_published_ipv4());
        assert_eq!(found, (4, false));
    }
}
