//! Counts the closed ports that packets are sent to: which packets are counted, and which of the ports that share a
//! place keeps it.

use crate::{
    layout::{CLOSED_PORT_ENTRIES, ClosedPortSlot, PORT_ENTRIES, TALKER_SAMPLE},
    reason::{Outcome, Reason},
    spread::GOLDEN,
};

/// So many packets of each CPU are all counted, so that the counts of a host without a flood are exact. Behind them,
/// the packets of the sample stand for all.
pub const COUNTED_EXACTLY: u64 = 1 << 12;

/// The largest lead of a port over the others of its place, in packets, as in [`crate::talkers`].
const MOST_LEAD: u32 = 1 << 14;

const _: () = assert!(CLOSED_PORT_ENTRIES.is_power_of_two());
const _: () = assert!(PORT_ENTRIES <= ClosedPortKey::USED);

/// A closed port: its index in [`crate::layout::PORTS`], and whether its packets passed only because of the mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedPortKey(u32);

impl ClosedPortKey {
    /// Set in every key, so that no key is 0.
    const USED: u32 = 1 << 30;
    const WOULD_DROP: u32 = 1 << 31;

    /// The key for packets to `port`, an index in [`crate::layout::PORTS`], with the [`Outcome::slot`] of a drop
    /// reason.
    #[inline(always)]
    pub const fn new(port: u32, slot: u32) -> Self {
        let would_drop = if Outcome::is_dropped(slot) {
            0
        } else {
            Self::WOULD_DROP
        };
        Self(port | Self::USED | would_drop)
    }

    /// The key in a slot. `None`: the slot is free.
    pub const fn of_slot(slot: &ClosedPortSlot) -> Option<Self> {
        if slot.key == 0 {
            None
        } else {
            Some(Self(slot.key))
        }
    }

    /// The index of the port in [`crate::layout::PORTS`].
    pub const fn port(self) -> u32 {
        self.0 & !(Self::USED | Self::WOULD_DROP)
    }

    /// Whether its packets passed, and mode `enforce` would drop them.
    pub const fn would_drop(self) -> bool {
        self.0 & Self::WOULD_DROP != 0
    }

    /// Its place in the table of each CPU.
    #[inline(always)]
    pub const fn place(self) -> u32 {
        self.0.wrapping_mul(GOLDEN) >> (u32::BITS - CLOSED_PORT_ENTRIES.ilog2())
    }
}

/// Whether a packet with this outcome was sent to a closed port.
#[inline(always)]
pub const fn is_closed_port(slot: u32) -> bool {
    Outcome::has_drop_reason(slot) && Outcome::reason_of(slot) == Reason::ClosedPort as u8
}

/// How many packets a counted packet stands for. `number`: as in [`crate::talkers::is_sampled`].
#[inline(always)]
pub const fn weight(number: u64) -> u32 {
    if number <= COUNTED_EXACTLY {
        1
    } else {
        TALKER_SAMPLE as u32
    }
}

impl ClosedPortSlot {
    /// Counts `weight` packets for a port, if the port has the place or takes it.
    #[inline(always)]
    pub fn vote(&mut self, key: ClosedPortKey, weight: u32) {
        if self.key == key.0 {
            self.packets += u64::from(weight);
            if self.lead < MOST_LEAD {
                self.lead += weight;
            }
        } else if self.lead >= weight {
            self.lead -= weight;
        } else {
            *self = Self {
                key: key.0,
                lead: weight,
                packets: u64::from(weight),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        layout::{IndexedPort, PortProtocol, port_index, port_of_index, protocol_index},
        reason::{Mode, ModeBits},
    };

    fn slot(reason: Reason, mode: Mode) -> u32 {
        Outcome::slot_of(reason, ModeBits::of(mode))
    }

    fn key(port: u16) -> ClosedPortKey {
        let dropped = slot(Reason::ClosedPort, Mode::Enforce);
        ClosedPortKey::new(port_index(PortProtocol::Tcp, port), dropped)
    }

    #[test]
    fn only_closed_ports_are_counted_in_both_modes() {
        for mode in [Mode::Observe, Mode::Enforce] {
            assert!(is_closed_port(slot(Reason::ClosedPort, mode)));
            assert!(!is_closed_port(slot(Reason::DeniedSource, mode)));
            assert!(!is_closed_port(slot(Reason::Allowed, mode)));
        }
    }

    #[test]
    fn a_key_has_the_port_and_whether_its_packets_were_dropped() {
        let ports = [
            (
                port_index(PortProtocol::Tcp, 0),
                IndexedPort::Port(PortProtocol::Tcp, 0),
            ),
            (
                port_index(PortProtocol::Udp, 53),
                IndexedPort::Port(PortProtocol::Udp, 53),
            ),
            (
                port_index(PortProtocol::Sctp, 65_535),
                IndexedPort::Port(PortProtocol::Sctp, 65_535),
            ),
            (protocol_index(47), IndexedPort::Protocol(47)),
        ];
        for (index, port) in ports {
            for (mode, would_drop) in [(Mode::Enforce, false), (Mode::Observe, true)] {
                let key = ClosedPortKey::new(index, slot(Reason::ClosedPort, mode));
                assert_eq!(key.would_drop(), would_drop);
                assert_eq!(port_of_index(key.port()), Some(port));
                assert!(key.place() < CLOSED_PORT_ENTRIES);
                let mut counted = ClosedPortSlot::default();
                assert_eq!(ClosedPortKey::of_slot(&counted), None);
                counted.vote(key, 1);
                assert_eq!(ClosedPortKey::of_slot(&counted), Some(key));
            }
        }
        assert_eq!(port_of_index(protocol_index(255) + 1), None);
        assert_eq!(port_of_index(u32::MAX), None);
    }

    #[test]
    fn neighbouring_ports_have_places_of_their_own() {
        for first in [1, 8_000, 49_152, 65_280] {
            let places: std::collections::BTreeSet<u32> =
                (first..first + 100).map(|port| key(port).place()).collect();
            assert!(places.len() >= 90, "{first}: {}", places.len());
        }
    }

    #[test]
    fn a_port_that_gets_more_than_the_others_of_its_place_keeps_it_through_a_scan() {
        let mut place = ClosedPortSlot::default();
        for n in 0..1_000u16 {
            let port = if n % 5 < 3 { 8_000 } else { 10_000 + n };
            place.vote(key(port), 1);
        }
        assert_eq!((place.key, place.packets), (key(8_000).0, 600));
    }

    #[test]
    fn a_port_that_gets_nothing_more_loses_its_place() {
        let mut place = ClosedPortSlot::default();
        for _ in 0..1_000_000 {
            place.vote(key(8_000), TALKER_SAMPLE as u32);
        }
        let packets = place.packets;
        assert_eq!(packets, 1_000_000 * TALKER_SAMPLE);
        for _ in 0..MOST_LEAD {
            assert_eq!(place.key, key(8_000).0);
            place.vote(key(8_001), 1);
        }
        place.vote(key(8_001), 1);
        assert_eq!((place.key, place.packets), (key(8_001).0, 1));
    }
}
