//! The UDP flows that this host opens, so that their answers get in: recorded on the way out, where
//! addresses are already masqueraded as the answers will carry them.
//!
//! Only what leaves this host makes an entry, and what answers a service that is open to all makes
//! none: a flood of spoofed packets cannot fill the table.

use guard_common::{
    address::{Address, Family},
    gcra::UNITS_PER_NANOSECOND,
    layout::{FLOW_IDLE_NS, FlowKey, PortProtocol, feature, port_index},
    packet::{Packet, Transport},
};

use crate::{
    clock::Clock,
    config,
    maps::{FLOWS, PORTS, SERVICES},
    parse::{Frame, Parsed, parse},
};

const IDLE: u64 = FLOW_IDLE_NS * UNITS_PER_NANOSECOND;

/// An entry younger than this is not written again.
const REFRESH: u64 = 1_000_000_000 * UNITS_PER_NANOSECOND;

/// Records the flow of a packet that leaves this host.
#[inline(always)]
pub fn record<C: Clock>(frame: &Frame) {
    let Parsed::Ip(packet) = parse(frame) else {
        return;
    };
    let Transport::Udp {
        source_port,
        destination_port,
    } = packet.transport
    else {
        return;
    };
    if is_open_to_all(source_port) {
        return;
    }
    let key = flow(
        packet.family,
        (packet.source, source_port),
        (packet.destination, destination_port),
    );
    touch::<C>(&key);
}

/// Whether the packet answers a flow that this host opened. What answers keeps its flow alive.
#[inline(always)]
pub fn is_reply<C: Clock>(packet: &Packet) -> bool {
    let Transport::Udp {
        source_port,
        destination_port,
    } = packet.transport
    else {
        return false;
    };
    if !config::uses(feature::FLOWS) {
        return false;
    }
    let key = flow(
        packet.family,
        (packet.destination, destination_port),
        (packet.source, source_port),
    );
    let now = C::now();
    match age(&key, now) {
        Some(age) if age <= IDLE => {
            if age > REFRESH {
                refresh(&key, now);
            }
            true
        }
        _ => false,
    }
}

#[inline(always)]
fn touch<C: Clock>(key: &FlowKey) {
    let now = C::now();
    match age(key, now) {
        Some(age) if age <= REFRESH => {}
        _ => refresh(key, now),
    }
}

/// The time since the flow's last packet. A clock that went back finds it fresh.
#[inline(always)]
fn age(key: &FlowKey, now: u64) -> Option<u64> {
    // SAFETY: the value is one word, read at once.
    let seen = unsafe { FLOWS.get(key) }.copied()?;
    Some(now.saturating_sub(seen))
}

#[inline(always)]
fn refresh(key: &FlowKey, now: u64) {
    // The map evicts its oldest entry rather than refuse one. If it fails all the same, the answer
    // is judged as any other packet.
    let _result = FLOWS.insert(key, now, 0);
}

#[inline(always)]
fn flow(family: Family, local: (Address, u16), peer: (Address, u16)) -> FlowKey {
    FlowKey {
        local: local.0,
        peer: peer.0,
        local_port: local.1,
        peer_port: peer.1,
        family: family as u32,
    }
}

/// Whether a service lists this UDP port for every source: answers to it get in anyway.
#[inline(always)]
fn is_open_to_all(port: u16) -> bool {
    let entry = PORTS.get(port_index(PortProtocol::Udp, port));
    let service = entry.map_or(0, |entry| entry.service());
    let settings = SERVICES.get(u32::from(service));
    service != 0 && settings.is_some_and(|settings| settings.restricted == 0)
}
