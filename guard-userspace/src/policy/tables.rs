//! A policy and what containers publish, as the tables of the packet path.

use std::{collections::BTreeMap, fmt, ops::RangeInclusive};

use guard_common::{
    address::Address,
    exposure::Scope,
    gcra,
    layout::{self, PortEntry, PortProtocol, port_index},
    reason::Mode,
};
use ipnet::IpNet;

use super::{From, Per, Policy, Service};

/// A host port that a container publishes, on an address that others can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublishedPort {
    pub protocol: PortProtocol,
    pub port: u16,
    pub family: PublishedFamily,
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.protocol.name(), self.port)
    }
}

/// The family whose addresses it is published on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PublishedFamily {
    Ipv4,
    Ipv6,
}

/// Everything that one generation of the kernel program is filled with.
#[derive(Clone, Debug)]
pub struct Tables {
    pub mode: Mode,
    pub scope: Scope,
    /// In the order of their numbers, which count from 1.
    pub services: Vec<ServiceTable>,
    /// The entries of the port table that say anything.
    pub ports: BTreeMap<u32, PortEntry>,
}

#[derive(Clone, Debug)]
pub struct ServiceTable {
    pub name: String,
    pub settings: layout::Service,
    /// The sources it allows, if it is restricted.
    pub admitted: Vec<IpNet>,
}

impl Tables {
    /// `local_ports` is the host's `net.ipv4.ip_local_port_range`.
    pub fn compile(
        policy: &Policy,
        published: &[PublishedPort],
        local_ports: &RangeInclusive<u16>,
    ) -> Self {
        let mut ports = BTreeMap::<u32, PortEntry>::new();
        for (number, service) in (1..).zip(&policy.services) {
            for index in service.ports.iter().flat_map(super::Ports::indices) {
                let entry = ports.entry(index).or_default();
                *entry = entry.with_service(number);
            }
        }
        for PublishedPort {
            protocol,
            port,
            family,
        } in published
        {
            let entry = ports.entry(port_index(*protocol, *port)).or_default();
            *entry = match family {
                PublishedFamily::Ipv4 => entry.published_ipv4(),
                PublishedFamily::Ipv6 => entry.published_ipv6(),
            };
            if local_ports.contains(port) {
                *entry = entry.ephemeral();
            }
        }
        Self {
            mode: policy.mode,
            scope: policy.scope,
            services: policy
                .services
                .iter()
                .map(|service| ServiceTable::compile(service, policy.mode))
                .collect(),
            ports,
        }
    }

    /// The name of the service with this number; `None` for "no service".
    pub fn service_name(&self, number: u16) -> Option<&str> {
        let index = usize::from(number).checked_sub(1)?;
        self.services
            .get(index)
            .map(|service| service.name.as_str())
    }
}

impl ServiceTable {
    fn compile(service: &Service, host_mode: Mode) -> Self {
        let Service {
            name,
            ports: _,
            from,
            mode,
            per: Per { ipv4, ipv6 },
            packets,
        } = service;
        let (restricted, admitted) = match from {
            From::Any => (0, Vec::new()),
            From::Prefixes(prefixes) => (1, IpNet::aggregate(prefixes)),
        };
        Self {
            name: name.clone(),
            settings: layout::Service {
                mode: (*mode).min(host_mode) as u8,
                restricted,
                reserved: [0; 2],
                source_mask_v4: Address::ipv4_mask(*ipv4).low as u32,
                source_mask_v6: Address::ipv6_mask(*ipv6),
                packets: packets.map_or(gcra::Budget::UNLIMITED, super::Budget::to_units),
            },
            admitted,
        }
    }
}
