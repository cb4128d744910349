//! Applies a policy to an endpoint: the rules of exposure over the policy's tables. It uses no kernel map, so it works
//! without root.

use std::{collections::BTreeSet, net::IpAddr};

use guard_common::{
    exposure::{Exposure, NetworkKind, PortFacts, judge, judge_container_address},
    layout::{NO_SERVICE, PortProtocol, port_index},
    packet::{PacketClass, Transport},
    reason::Mode,
};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;

use super::endpoint::{Endpoint, Level};
use crate::{
    audit::compose::address::is_link_local,
    explain::describe_budgets,
    policy::{From, Policy, PublishedPort, Service, Tables},
};

/// The verdict on the first packet of an unknown source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It passes, and no rule of the policy applies.
    NotGuarded,
    /// It passes, and would be dropped if the policy were enforced.
    WouldBeClosed,
    /// A service lists the port, and admits some sources or all.
    Open,
    /// It is dropped.
    Closed,
}

/// The policy's decision about an endpoint, on some or all of its addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Decision {
    pub fate: Fate,
    /// The addresses to which the decision applies; empty: all where the endpoint answers.
    pub addresses: BTreeSet<IpAddr>,
    pub service: Option<String>,
    /// The service's line in the policy.
    pub line: Option<usize>,
    /// The sources that the service admits: `any`, or prefixes. Empty without a service.
    pub from: Vec<String>,
    /// Why the endpoint is not guarded.
    pub why: Option<&'static str>,
    /// The service's budgets.
    pub limits: Vec<String>,
    /// Whether the policy is enforced here: if not, every source gets through for now.
    pub enforced: bool,
}

pub struct EndpointJudge<'a> {
    /// The policy, with the labels of containers applied.
    pub policy: &'a Policy,
    pub tables: Tables,
    /// Addresses of this host.
    pub own: &'a [IpAddr],
    /// The addresses of interfaces that the policy does not guard.
    pub unguarded: BTreeSet<IpAddr>,
    /// Published ports that the agent does not know.
    pub unknown: Vec<PublishedPort>,
    pub now: Timestamp,
    /// A guard is at work, or is assumed to be.
    pub is_at_work: bool,
}

impl EndpointJudge<'_> {
    /// Returns one decision if it is the same on every address, and none if packets from outside do not reach the
    /// endpoint.
    pub fn decide(&self, endpoint: &Endpoint) -> Vec<Decision> {
        // Packets from neighbours to a loopback address are martians: no rule about ports applies.
        if endpoint.level > Level::Network || endpoint.neighbours.is_some() {
            return Vec::new();
        }
        let mut decisions: Vec<Decision> = Vec::new();
        for address in self.destinations(endpoint) {
            let decision = self.decide_at(endpoint.protocol, *endpoint.ports.start(), address);
            let same = |other: &&mut Decision| {
                let addresses = other.addresses.clone();
                **other
                    == Decision {
                        addresses,
                        ..decision.clone()
                    }
            };
            match decisions.iter_mut().find(same) {
                Some(other) => other.addresses.extend(decision.addresses),
                None => decisions.push(decision),
            }
        }
        if let [only] = decisions.as_mut_slice() {
            only.addresses.clear();
        }
        decisions.sort_unstable();
        decisions
    }

    /// The addresses that other hosts can send to.
    fn destinations(&self, endpoint: &Endpoint) -> BTreeSet<IpAddr> {
        let mut destinations = BTreeSet::new();
        for address in &endpoint.addresses {
            let before = destinations.len();
            if address.is_unspecified() {
                let own = self.own.iter().copied();
                destinations.extend(own.filter(|own| {
                    own.is_ipv4() == address.is_ipv4() && self.is_from_outside(*own)
                }));
            }
            if destinations.len() == before {
                destinations.insert(*address);
            }
        }
        destinations
    }

    fn is_from_outside(&self, own: IpAddr) -> bool {
        let mut networks = self.tables.networks.iter();
        let is_of_containers = networks.any(|network| network.prefix.contains(&own));
        let is_apart = is_link_local(own) || is_of_containers || self.unguarded.contains(&own);
        !own.is_loopback() && !is_apart
    }

    fn decide_at(&self, protocol: PortProtocol, port: u16, address: IpAddr) -> Decision {
        let network = self.network_at(address);
        let service = match network {
            Some(_) => self.service_for(protocol, port, address),
            None => self.service_at(protocol, port, address),
        };
        let from = service
            .map(|service| self.admitted(service, address))
            .unwrap_or_default();
        let packet = first_packet(protocol, port);
        let exposure = match (network, service) {
            (Some(kind), None) => judge_container_address(packet, kind),
            _ => {
                let target = self.target(protocol, port, address, service);
                judge(&target, packet, self.policy.scope)
            }
        };
        let mode = service.map_or(self.policy.mode, |service| {
            service.mode.min(self.policy.mode)
        });
        let enforced = self.is_at_work && mode == Mode::Enforce;
        let (fate, why) = match exposure {
            _ if self.unguarded.contains(&address) => (Fate::NotGuarded, Some(NOT_ITS_INTERFACE)),
            _ if mode == Mode::Off && service.is_none() => (Fate::NotGuarded, Some(OFF)),
            _ if !from.is_empty() => (Fate::Open, None),
            Exposure::Pass(_) if self.is_unknown(protocol, port) => {
                (Fate::NotGuarded, Some(UNKNOWN_TO_AGENT))
            }
            Exposure::Pass(_) => (Fate::NotGuarded, Some(OUT_OF_SCOPE)),
            Exposure::Closed(_) | Exposure::ClosedUnlessReply(_) if enforced => {
                (Fate::Closed, None)
            }
            Exposure::Closed(_) | Exposure::ClosedUnlessReply(_) => (Fate::WouldBeClosed, None),
        };
        Decision {
            fate,
            why,
            addresses: BTreeSet::from([address]),
            service: service.map(|service| service.name.clone()),
            line: service
                .map(|service| service.line)
                .filter(|line| *line != 0),
            from,
            limits: service.map(limits_of).unwrap_or_default(),
            enforced,
        }
    }

    /// The kind of the container network that has this address, which decides how it is closed.
    fn network_at(&self, address: IpAddr) -> Option<NetworkKind> {
        let mut networks = self.tables.networks.iter();
        let network = networks.find(|network| network.prefix.contains(&address));
        Some(network?.kind).filter(|_| !self.own.contains(&address))
    }

    /// The service that names this address, which the packet path looks up before container networks.
    fn service_for(&self, protocol: PortProtocol, port: u16, address: IpAddr) -> Option<&Service> {
        let index = port_index(protocol, port);
        let lists = |service: &&Service| {
            let mut ports = service.ports.iter();
            service.address == Some(address) && ports.any(|ports| ports.indices().contains(&index))
        };
        self.policy.services.iter().find(lists)
    }

    fn is_unknown(&self, protocol: PortProtocol, port: u16) -> bool {
        let mut unknown = self.unknown.iter();
        unknown.any(|published| (published.protocol, published.port) == (protocol, port))
    }

    fn service_at(&self, protocol: PortProtocol, port: u16, address: IpAddr) -> Option<&Service> {
        let entry = self.tables.ports.at(port_index(protocol, port), address);
        let number = entry.service();
        let name = self
            .tables
            .service_name(number)
            .filter(|_| number != NO_SERVICE)?;
        self.policy
            .services
            .iter()
            .find(|service| service.name == name)
    }

    fn target(
        &self,
        protocol: PortProtocol,
        port: u16,
        address: IpAddr,
        service: Option<&Service>,
    ) -> PortFacts {
        let entry = self.tables.ports.at(port_index(protocol, port), address);
        PortFacts {
            listed: service.is_some(),
            published: if address.is_ipv4() {
                entry.is_published_ipv4()
            } else {
                entry.is_published_ipv6()
            },
            ephemeral: entry.is_ephemeral(),
        }
    }

    /// The sources that a service admits now on an address. Only sources of the address's family can send there.
    fn admitted(&self, service: &Service, address: IpAddr) -> Vec<String> {
        let From::Admitted(admitted) = &service.from else {
            return vec![ANY.to_owned()];
        };
        let is_of_family = |prefix: &IpNet| prefix.addr().is_ipv4() == address.is_ipv4();
        let valid = admitted.iter().filter(|one| {
            one.expires.is_none_or(|end| end > self.now) && is_of_family(&one.prefix)
        });
        valid.map(|one| one.prefix.to_string()).collect()
    }
}

pub const NOT_ITS_INTERFACE: &str = "the policy does not guard its interface";
const OFF: &str = "no service lists it, and the mode is off";
const UNKNOWN_TO_AGENT: &str = "the agent does not know that a container publishes it";
pub const OUT_OF_SCOPE: &str = "no service lists it, and the scope is `containers`";

pub const ANY: &str = "any";

/// The first packet of a connection or exchange.
fn first_packet(protocol: PortProtocol, port: u16) -> Transport {
    let traits = match protocol {
        PortProtocol::Tcp => PacketClass::CONNECTION_REQUEST,
        PortProtocol::Udp => PacketClass::DATAGRAM,
        PortProtocol::Sctp => PacketClass::NONE,
    };
    Transport::new(port_index(protocol, port), traits)
}

fn limits_of(service: &Service) -> Vec<String> {
    let mut limits = describe_budgets(&service.limit.budgets, "for each source");
    limits.extend(describe_budgets(&service.total, "for all sources together"));
    limits
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use super::*;
    use crate::{
        audit::host::owner::Owner,
        policy::{ContainerNetwork, Containers, KernelTick, PublishedPort, Timebase},
    };

    const NOW: &str = "2026-01-01T00:00:00Z";

    /// Decides about a port on every IPv4 address. Containers publish 8000 on every address and 8443 on one.
    fn decide(text: &str, protocol: PortProtocol, port: u16, is_at_work: bool) -> Vec<Decision> {
        decide_at(text, protocol, port, is_at_work, "0.0.0.0")
    }

    fn network(prefix: &str, kind: NetworkKind) -> ContainerNetwork {
        ContainerNetwork {
            prefix: prefix.parse().unwrap(),
            kind,
        }
    }

    fn decide_at(
        text: &str,
        protocol: PortProtocol,
        port: u16,
        is_at_work: bool,
        at: &str,
    ) -> Vec<Decision> {
        let clock = KernelTick { tick_ns: 4_000_000 };
        let policy = Policy::parse(text, "test.toml", clock).unwrap();
        let containers = Containers {
            published: ["0.0.0.0:tcp/8000", "203.0.113.5:tcp/8443"]
                .iter()
                .flat_map(|text| PublishedPort::parse(text).unwrap())
                .collect(),
            networks: vec![
                network("2001:db8:17::/64", NetworkKind::Routed),
                network("172.17.0.0/16", NetworkKind::Masqueraded),
            ],
            ..Containers::default()
        };
        let now = Timebase {
            world: NOW.parse().unwrap(),
            boot_ns: 0,
        };
        let local_ports: RangeInclusive<u16> = 32_768..=60_999;
        let judge = EndpointJudge {
            policy: &policy,
            tables: Tables::compile(&policy, &containers, &local_ports, now),
            own: &["203.0.113.5", "203.0.113.6", "10.0.0.1", "127.0.0.1"]
                .map(|address| address.parse().unwrap()),
            unguarded: BTreeSet::from(["10.0.0.1".parse().unwrap()]),
            unknown: Vec::new(),
            now: now.world,
            is_at_work,
        };
        let addresses = BTreeSet::from([at.parse().unwrap()]);
        let owner = Owner::default();
        let endpoint = Endpoint::new(protocol, port, addresses, Level::World, owner);
        judge.decide(&endpoint)
    }

    fn fate(text: &str, port: u16, is_at_work: bool) -> Fate {
        let decisions = decide(text, PortProtocol::Tcp, port, is_at_work);
        assert_eq!(decisions.len(), 1, "{decisions:?}");
        decisions[0].fate
    }

    #[test]
    fn the_mode_the_scope_and_the_guard_decide() {
        for (text, published, listening) in [
            ("mode = \"enforce\"", Fate::Closed, Fate::NotGuarded),
            ("mode = \"observe\"", Fate::WouldBeClosed, Fate::NotGuarded),
            ("mode = \"off\"", Fate::NotGuarded, Fate::NotGuarded),
            (
                "mode = \"enforce\"\nscope = \"host\"",
                Fate::Closed,
                Fate::Closed,
            ),
        ] {
            assert_eq!(fate(text, 8000, true), published, "{text}");
            assert_eq!(fate(text, 9100, true), listening, "{text}");
        }
        assert_eq!(fate("mode = \"enforce\"", 8000, false), Fate::WouldBeClosed);
    }

    #[test]
    fn a_decision_has_the_sources_and_limits_of_its_service() {
        let text = "mode = \"enforce\"
            [[service]]
            name = \"app\"
            ports = [\"tcp/8000\"]
            from = [\"198.51.100.0/24\", \"past\"]
            limit.connections = \"50/s\"
            total.packets = \"1k/s\"
            [[source]]
            name = \"past\"
            cidrs = [\"192.0.2.0/24\"]
            expires = 2001-01-01T00:00:00Z";
        let decisions = decide(text, PortProtocol::Tcp, 8000, true);
        let [decision] = decisions.as_slice() else {
            panic!("{decisions:?}")
        };
        assert_eq!(decision.fate, Fate::Open);
        assert_eq!(decision.service.as_deref(), Some("app"));
        assert_eq!(decision.from, ["198.51.100.0/24"]);
        assert_eq!(decision.limits.len(), 2, "{decision:?}");
        assert!(decision.limits[0].starts_with("connections 50/s"));
        assert_eq!(
            fate(&text.replace("\"198.51.100.0/24\", ", ""), 8000, true),
            Fate::Closed
        );
        assert_eq!(
            fate(
                &text.replace("198.51.100.0/24", "2001:db8::/32"),
                8000,
                true
            ),
            Fate::Closed,
            "no IPv6 source reaches an IPv4 address"
        );
        let udp = decide(text, PortProtocol::Udp, 8000, true);
        assert_eq!(udp[0].fate, Fate::NotGuarded, "another protocol");
    }

    #[test]
    fn a_port_published_on_one_address_is_closed_there_alone() {
        let decisions = decide("mode = \"enforce\"", PortProtocol::Tcp, 8443, true);
        let closed = decisions.iter().filter(|one| one.fate == Fate::Closed);
        let closed: Vec<_> = closed.flat_map(|one| &one.addresses).collect();
        assert_eq!(closed, [&"203.0.113.5".parse::<IpAddr>().unwrap()]);
        let open = decisions.iter().find(|one| one.fate == Fate::NotGuarded);
        let open = &open.unwrap().addresses;
        assert!(open.contains(&"203.0.113.6".parse().unwrap()), "{open:?}");
    }

    #[test]
    fn a_containers_own_address_is_closed_unless_a_service_names_it() {
        let fate = |text: &str, address: &str, is_at_work| {
            let decisions = decide_at(text, PortProtocol::Tcp, 80, is_at_work, address);
            assert_eq!(decisions.len(), 1, "{decisions:?}");
            decisions[0].fate
        };
        let listed = "mode = \"enforce\"\n[[service]]\nname = \"web\"\nports = [\"tcp/80\"]\n";
        let here = format!("{listed}address = \"2001:db8:17::2\"\n");
        let routed = "2001:db8:17::2";
        assert_eq!(fate("mode = \"enforce\"", routed, true), Fate::Closed);
        assert_eq!(
            fate("mode = \"enforce\"", routed, false),
            Fate::WouldBeClosed
        );
        // A service without an address does not apply inside a routed or masqueraded container network.
        assert_eq!(fate(listed, routed, true), Fate::Closed);
        assert_eq!(fate(&here, routed, true), Fate::Open);
        assert_eq!(fate(&here, "172.17.0.2", true), Fate::Closed);
        // In a macvlan network, the container is like another machine in the uplink's network.
        assert_eq!(fate(listed, "192.168.1.50", true), Fate::Open);
        assert_eq!(
            fate("mode = \"enforce\"", "192.168.1.50", true),
            Fate::NotGuarded
        );
        let host = "mode = \"enforce\"\nscope = \"host\"";
        assert_eq!(fate(host, "192.168.1.50", true), Fate::Closed);
    }

    #[test]
    fn a_service_on_one_address_leaves_the_others_closed() {
        let text = "mode = \"enforce\"
            [[service]]
            name = \"app\"
            ports = [\"tcp/8000\"]
            address = \"203.0.113.5\"";
        let decisions = decide(text, PortProtocol::Tcp, 8000, true);
        let found: Vec<_> = decisions
            .iter()
            .map(|one| (one.fate, one.addresses.len()))
            .collect();
        assert_eq!(found, [(Fate::Open, 1), (Fate::Closed, 1)]);
    }
}
