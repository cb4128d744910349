//! The condition of a NAT rule, as far as it is understood.

use std::ops::RangeInclusive;

use guard_common::{address::Family, layout::PortProtocol};
use ipnet::IpNet;

/// The packets that a rule matches. A field that is `None` matches everything, and so does a condition that is not
/// understood: a rule may be reported for too many packets, and never for too few.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatCondition {
    pub family: Option<Family>,
    pub protocol: Option<PortProtocol>,
    /// Destination ports.
    pub ports: Option<RangeInclusive<u16>>,
    pub destination: Option<IpNet>,
    pub source: Option<IpNet>,
    /// The interface on which packets come in.
    pub interface: Option<String>,
}

impl NatCondition {
    pub fn of_ports(ports: RangeInclusive<u16>) -> Self {
        Self {
            ports: Some(ports),
            ..Self::default()
        }
    }

    pub fn of_protocol(protocol: PortProtocol) -> Self {
        Self {
            protocol: Some(protocol),
            ..Self::default()
        }
    }

    pub fn of_destination(net: IpNet) -> Self {
        Self {
            family: Some(family_of(&net)),
            destination: Some(net),
            ..Self::default()
        }
    }

    pub fn of_source(net: IpNet) -> Self {
        Self {
            family: Some(family_of(&net)),
            source: Some(net),
            ..Self::default()
        }
    }

    pub fn of_interface(name: impl Into<String>) -> Self {
        Self {
            interface: Some(name.into()),
            ..Self::default()
        }
    }

    pub const fn of_family(family: Family) -> Self {
        Self {
            family: Some(family),
            protocol: None,
            ports: None,
            destination: None,
            source: None,
            interface: None,
        }
    }

    /// The packets that both match; `None`: no packet.
    pub fn and(&self, other: &Self) -> Option<Self> {
        Some(Self {
            family: same(&self.family, &other.family)?,
            protocol: same(&self.protocol, &other.protocol)?,
            ports: narrower(&self.ports, &other.ports, common_ports)?,
            destination: narrower(&self.destination, &other.destination, common_net)?,
            source: narrower(&self.source, &other.source, common_net)?,
            interface: same(&self.interface, &other.interface)?,
        })
    }
}

pub fn family_of(net: &IpNet) -> Family {
    match net {
        IpNet::V4(_) => Family::Ipv4,
        IpNet::V6(_) => Family::Ipv6,
    }
}

/// The intersection of two fields. `Some(None)`: everything; `None`: nothing.
fn narrower<T: Clone>(
    one: &Option<T>,
    other: &Option<T>,
    common: impl Fn(&T, &T) -> Option<T>,
) -> Option<Option<T>> {
    match (one, other) {
        (Some(one), Some(other)) => common(one, other).map(Some),
        (one, other) => Some(one.clone().or_else(|| other.clone())),
    }
}

fn same<T: Clone + PartialEq>(one: &Option<T>, other: &Option<T>) -> Option<Option<T>> {
    narrower(one, other, |one, other| (one == other).then(|| one.clone()))
}

fn common_ports(
    one: &RangeInclusive<u16>,
    other: &RangeInclusive<u16>,
) -> Option<RangeInclusive<u16>> {
    let both = *one.start().max(other.start())..=*one.end().min(other.end());
    (!both.is_empty()).then_some(both)
}

/// The intersection of two prefixes: the longer one, if the shorter one contains it.
fn common_net(one: &IpNet, other: &IpNet) -> Option<IpNet> {
    match (one.contains(other), other.contains(one)) {
        (true, _) => Some(*other),
        (_, true) => Some(*one),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_conditions_match_what_both_do() {
        let net = |text: &str| NatCondition::of_destination(text.parse().unwrap());
        let wide = net("192.0.2.0/24");
        let narrow = net("192.0.2.7/32");
        assert_eq!(wide.and(&narrow), Some(narrow.clone()));
        assert_eq!(narrow.and(&wide), Some(narrow.clone()));
        assert_eq!(narrow.and(&net("192.0.2.8/32")), None);
        assert_eq!(narrow.and(&net("2001:db8::/32")), None);
        let ports = NatCondition::of_ports;
        assert_eq!(ports(1..=9).and(&ports(5..=20)), Some(ports(5..=9)));
        assert_eq!(ports(1..=4).and(&ports(5..=20)), None);
        let all = NatCondition::default();
        assert_eq!(all.and(&wide), Some(wide.clone()));
        let tcp = NatCondition::of_protocol(PortProtocol::Tcp);
        assert_eq!(tcp.and(&NatCondition::of_protocol(PortProtocol::Udp)), None);
        assert_eq!(
            tcp.and(&ports(22..=22)),
            Some(NatCondition {
                protocol: Some(PortProtocol::Tcp),
                ..ports(22..=22)
            })
        );
    }
}
