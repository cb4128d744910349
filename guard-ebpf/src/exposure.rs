//! Looks up what the tables know of a packet's destination and source, and has the rules of
//! exposure judge it.

use aya_ebpf::maps::lpm_trie::Key;
use guard_common::{
    address::{Address, Family},
    exposure::{Exposure, Target, judge},
    layout::{
        AdmittedKey, NO_SERVICE, PortEntry, PortProtocol, SERVICE_BITS, Service, port_index,
        protocol_index,
    },
    packet::{Packet, Transport},
};

use crate::{
    config,
    maps::{ADMITTED_V4, ADMITTED_V6, PORTS, SERVICES},
};

/// IANA protocol number of ICMPv6.
const ICMPV6: u8 = 58;

/// Where a packet wants to go.
pub struct Destination {
    pub service: u16,
    /// `None` if no service lists the place.
    pub settings: Option<&'static Service>,
    pub exposure: Exposure,
}

#[inline(always)]
pub fn find_destination(packet: &Packet) -> Destination {
    let entry = lookup_port(packet.transport);
    let service = entry.service();
    let settings = if service == NO_SERVICE {
        None
    } else {
        SERVICES.get(u32::from(service))
    };
    let target = Target {
        listed: settings.is_some(),
        admitted: settings
            .is_some_and(|settings| settings.restricted == 0 || is_admitted(packet, service)),
        published: match packet.family {
            Family::Ipv4 => entry.is_published_ipv4(),
            Family::Ipv6 => entry.is_published_ipv6(),
        },
        ephemeral: entry.is_ephemeral(),
    };
    Destination {
        service,
        settings,
        exposure: judge(target, packet.transport, config::scope()),
    }
}

#[inline(always)]
fn lookup_port(transport: Transport) -> PortEntry {
    let index = match transport {
        Transport::Tcp {
            destination_port, ..
        } => port_index(PortProtocol::Tcp, destination_port),
        Transport::Udp {
            destination_port, ..
        } => port_index(PortProtocol::Udp, destination_port),
        Transport::Icmpv6 { .. } => protocol_index(ICMPV6),
        Transport::Other { protocol } => protocol_index(protocol),
        Transport::LaterFragment => return PortEntry::default(),
    };
    PORTS.get(index).copied().unwrap_or_default()
}

#[inline(always)]
fn is_admitted(packet: &Packet, service: u16) -> bool {
    if !config::has_restricted() {
        return true;
    }
    let service = u32::from(service);
    let Address { high, low } = packet.source;
    match packet.family {
        Family::Ipv4 => {
            let address = (low as u32).to_be_bytes();
            let key = AdmittedKey { service, address };
            ADMITTED_V4.get(Key::new(SERVICE_BITS + 32, key)).is_some()
        }
        Family::Ipv6 => {
            let mut address = [0; 16];
            address[..8].copy_from_slice(&high.to_be_bytes());
            address[8..].copy_from_slice(&low.to_be_bytes());
            let key = AdmittedKey { service, address };
            ADMITTED_V6.get(Key::new(SERVICE_BITS + 128, key)).is_some()
        }
    }
}
