//! Reads the packets that the kernel program copies for `guard capture`.
//!
//! Two bounds limit the cost during a flood. The program copies as many packets as are granted for a round, and it
//! samples one packet of many where too many match, so that it need not refuse each of the others. Each outcome has a
//! sample of its own: a flood that is dropped for one reason does not displace the few packets that are dropped for
//! another.

use std::{
    collections::BTreeMap,
    iter, mem,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::maps::{Array, MapData, RingBuf};
use bytes::Bytes;
use etherparse::{LaxNetSlice, LaxSlicedPacket};
use guard_common::{
    address::Address,
    interfaces::UNKNOWN_ROW,
    layout::{self, CaptureFilter, Event, grant},
    reason::Outcome,
};
use guard_host::read;
use guard_policy::split;
use ipnet::IpNet;

use super::{
    LoadError, batch,
    interface::{InterfaceState, InterfaceTables},
    pins::Pins,
    state::{HostState, StateError, UNKNOWN_INTERFACE},
};

const SLOTS: usize = Outcome::SLOTS as usize;

/// Rounds per second.
pub const ROUNDS: u32 = 10;

/// The smallest sample: a CPU that drops every packet of 100 Gbit/s still copies some each second.
const THINNEST: u64 = 1 << 20;

/// The packets that a capture matches.
#[derive(Clone, Debug)]
pub struct PacketFilter {
    pub outcomes: Vec<Outcome>,
    /// A service, with the services that labels have made from it; `None`: all packets, also those that reach no
    /// service.
    pub service: Option<String>,
    pub source: Option<IpNet>,
    /// The most packets per second.
    pub per_second: u32,
}

/// A captured packet.
#[derive(Clone, Debug)]
pub struct CapturedPacket {
    /// The interface on which it came in.
    pub interface: Arc<str>,
    /// In nanoseconds of CLOCK_BOOTTIME.
    pub boot_ns: u64,
    /// `None`: the packet reached no service.
    pub service: Option<String>,
    pub outcome: Outcome,
    /// The whole length of the frame in bytes.
    pub length: u32,
    /// The captured part of the frame, copied out of the ring buffer.
    pub frame: Bytes,
    /// The number of packets for which this sampled packet stands.
    pub one_of: u32,
}

/// The packets of one round.
#[derive(Debug, Default)]
pub struct Round {
    pub packets: Vec<CapturedPacket>,
    /// The number of packets that matched and are not among these, by interface. With sampling it is an estimate.
    pub missed: BTreeMap<Arc<str>, u64>,
}

/// A running capture of all interfaces. Dropping it ends the capture.
pub struct Tap {
    root: PathBuf,
    state: HostState,
    wanted: PacketFilter,
    events: RingBuf<MapData>,
    filter: Array<MapData, CaptureFilter>,
    grant: Array<MapData, u64>,
    /// The interfaces, by their rows.
    interfaces: BTreeMap<u32, TappedInterface>,
    rounds: u32,
    /// As long as it is held, a capture is running.
    _held: Arc<()>,
}

/// An interface, with the counters of packets that a capture lost there.
struct TappedInterface {
    name: Arc<str>,
    tables: InterfaceTables,
    lost: [u64; SLOTS],
}

impl Tap {
    /// Starts a capture. `root`: the folder of the pins.
    pub fn open(root: &Path, wanted: PacketFilter, held: Arc<()>) -> Result<Self, StateError> {
        let state = HostState::existing(root)?;
        let state = state.ok_or(LoadError::Incomplete("state"))?;
        let mut tap = Self {
            events: state.map(layout::EVENTS)?.try_into()?,
            filter: filter_of(&state)?,
            grant: state.map(layout::GRANT)?.try_into()?,
            interfaces: BTreeMap::new(),
            rounds: 0,
            root: root.to_owned(),
            state,
            wanted,
            _held: held,
        };
        // Drops the packets that an earlier reader has left.
        while tap.events.next().is_some() {}
        tap.look_for_interfaces()?;
        let mut filter = tap.filter()?;
        for outcome in &tap.wanted.outcomes {
            filter.one_of[outcome.slot() as usize] = 1;
        }
        tap.apply(filter, u64::MAX)?;
        Ok(tap)
    }

    /// The interfaces whose packets the capture reads at this moment.
    pub fn interfaces(&self) -> impl Iterator<Item = &Arc<str>> {
        let interfaces = self
            .interfaces
            .iter()
            .filter(|(row, _)| **row != UNKNOWN_ROW);
        interfaces.map(|(_, one)| &one.name)
    }

    /// Updates the interfaces, which come and go and may be renamed.
    fn look_for_interfaces(&mut self) -> Result<(), StateError> {
        let links = read::links().unwrap_or_default();
        let mut found = BTreeMap::new();
        for pins in Pins::existing(&self.root)? {
            let pins = pins.called(|index| Some(links.get(&index)?.name.clone()));
            // An interface that cannot be opened is about to go, and is left out.
            if let Ok(Some(state)) = InterfaceState::existing(&pins) {
                let row = state.row();
                found.insert(row, (Arc::from(pins.interface()), state.tables));
            }
        }
        if let Some(unknown) = InterfaceTables::existing(&self.state.pins)? {
            found.insert(UNKNOWN_ROW, (Arc::from(UNKNOWN_INTERFACE), unknown));
        }
        let mut before = mem::take(&mut self.interfaces);
        for (row, (name, tables)) in found {
            let lost = match before.remove(&row) {
                Some(before) if before.name == name => before.lost,
                _ => losses(&tables)?,
            };
            let interface = TappedInterface { name, tables, lost };
            self.interfaces.insert(row, interface);
        }
        Ok(())
    }

    /// Takes the packets since the last round, and grants the next round.
    pub fn round(&mut self) -> Result<Round, StateError> {
        self.rounds += 1;
        if self.rounds.is_multiple_of(ROUNDS) {
            self.look_for_interfaces()?;
        }
        let names = self.state.names()?;
        let mut round = Round::default();
        // Packets, each copy and each loss for as many as it stood for when it was sampled.
        let mut offered = [0u64; SLOTS];
        while let Some(event) = self.events.next() {
            let Some((event, outcome, frame)) = read(&event) else {
                continue;
            };
            offered[outcome.slot() as usize] += u64::from(event.one_of);
            if let Some(wanted) = &self.wanted.source
                && !source_of(frame).is_some_and(|source| wanted.contains(&source))
            {
                // The program hands over packets whose source it could not read.
                continue;
            }
            let interface = self.interfaces.get(&event.row);
            let interface =
                interface.map_or_else(|| UNKNOWN_INTERFACE.into(), |one| Arc::clone(&one.name));
            *round.missed.entry(Arc::clone(&interface)).or_default() += u64::from(event.one_of) - 1;
            round.packets.push(CapturedPacket {
                interface,
                boot_ns: event.boot_ns,
                service: names.get(&event.service).cloned(),
                outcome,
                length: event.length,
                frame: Bytes::copy_from_slice(frame),
                one_of: event.one_of,
            });
        }
        for one in self.interfaces.values_mut() {
            let now = losses(&one.tables)?;
            let before = mem::replace(&mut one.lost, now);
            let missed = round.missed.entry(Arc::clone(&one.name)).or_default();
            for outcome in &self.wanted.outcomes {
                let slot = outcome.slot() as usize;
                let lost = now[slot].wrapping_sub(before[slot]);
                offered[slot] += lost;
                *missed += lost;
            }
        }
        // Services come and go with labels.
        let mut filter = self.filter()?;
        let share = share(&offered, u64::from(self.per_round()));
        for outcome in &self.wanted.outcomes {
            let slot = outcome.slot() as usize;
            filter.one_of[slot] = thinned(offered[slot], share);
        }
        self.apply(filter, share)?;
        Ok(round)
    }

    fn per_round(&self) -> u32 {
        self.wanted.per_second.div_ceil(ROUNDS)
    }

    /// `share`: of the grant, for each outcome. One is reserved for outcomes of which every packet is copied.
    fn apply(&mut self, filter: CaptureFilter, share: u64) -> Result<(), StateError> {
        self.filter.set(0, filter, 0)?;
        let all = u64::from(self.per_round());
        let reserve = share.min(all / 2);
        self.grant.set(grant::RESERVE, reserve, 0)?;
        Ok(self.grant.set(grant::SHARED, all - reserve, 0)?)
    }

    /// The filter of this capture, without sampling rates.
    fn filter(&self) -> Result<CaptureFilter, StateError> {
        let mut filter = CaptureFilter {
            on: 1,
            ..CaptureFilter::NONE
        };
        match &self.wanted.service {
            None => filter.services.fill(u64::MAX),
            Some(wanted) => {
                for number in self.state.numbers_of(wanted)? {
                    filter.services[usize::from(number) / 64] |= 1 << (number % 64);
                }
            }
        }
        if let Some(source) = self.wanted.source {
            let (family, prefix) = split(source.network());
            let mask = match source {
                IpNet::V4(source) => Address::ipv4_mask(source.prefix_len()),
                IpNet::V6(source) => Address::ipv6_mask(source.prefix_len()),
            };
            (filter.family, filter.mask, filter.prefix) = (family as u32, mask, prefix);
        }
        Ok(filter)
    }
}

/// The packets that matched and were not copied on an interface, since its tables were created, estimated from the
/// sample.
fn losses(tables: &InterfaceTables) -> Result<[u64; SLOTS], StateError> {
    let mut lost = [0; SLOTS];
    let all = iter::once(0..SLOTS as u32);
    batch::read_per_cpu(
        &tables.losses,
        all,
        |slot, of_cpus: &mut dyn Iterator<Item = u64>| {
            if let Some(lost) = lost.get_mut(slot as usize) {
                *lost = of_cpus.sum();
            }
        },
    )?;
    Ok(lost)
}

/// The current filter, which loading a program would overwrite.
pub(super) fn current_filter(state: &HostState) -> CaptureFilter {
    let read = || Ok::<_, StateError>(filter_of(state)?.get(&0, 0)?);
    // If it cannot be read, a running capture writes its filter within a round.
    read().unwrap_or(CaptureFilter::NONE)
}

/// Ends a capture that has no reader any more.
pub(super) fn end(state: &HostState) -> Result<(), StateError> {
    Ok(filter_of(state)?.set(0, CaptureFilter::NONE, 0)?)
}

fn filter_of(state: &HostState) -> Result<Array<MapData, CaptureFilter>, StateError> {
    Ok(state.map(layout::CAPTURE)?.try_into()?)
}

impl Drop for Tap {
    fn drop(&mut self) {
        // If this fails, the capture ends when the grant is used up.
        let _result = self.filter.set(0, CaptureFilter::NONE, 0);
        for index in 0..grant::COUNT {
            let _result = self.grant.set(index, 0, 0);
        }
    }
}

/// The share of the grant for each outcome. `offered`: the packets of each in a round. Outcomes that need less leave
/// the rest to the others, and one share is reserved for an outcome that appears next.
fn share(offered: &[u64], grant: u64) -> u64 {
    if offered
        .iter()
        .fold(0, |sum: u64, one| sum.saturating_add(*one))
        <= grant
    {
        return grant;
    }
    let mut left = grant;
    let mut rest: Vec<u64> = offered.iter().copied().filter(|one| *one > 0).collect();
    rest.sort_unstable();
    let mut takers = rest.len() as u64 + 1;
    for offered in rest {
        if offered > left / takers {
            break;
        }
        left -= offered;
        takers -= 1;
    }
    left / takers
}

/// The sampling rate (one packet of how many) for `offered` packets a round and a share of the grant.
fn thinned(offered: u64, share: u64) -> u32 {
    let times = offered.div_ceil(share.max(1)).clamp(1, THINNEST);
    // The smallest power of two that is not below it.
    times.next_power_of_two() as u32
}

/// The source address of a frame, even if the packet is malformed.
pub fn source_of(frame: &[u8]) -> Option<IpAddr> {
    match LaxSlicedPacket::from_ethernet(frame).ok()?.net? {
        LaxNetSlice::Ipv4(ipv4) => Some(ipv4.header().source_addr().into()),
        LaxNetSlice::Ipv6(ipv6) => Some(ipv6.header().source_addr().into()),
        LaxNetSlice::Arp(_) => None,
    }
}

/// Reads an event in place: the event, its outcome and the captured part of the frame. `None`: not an event of this
/// layout.
fn read(bytes: &[u8]) -> Option<(&Event, Outcome, &[u8])> {
    let bytes: &[u8; size_of::<Event>()] = bytes.try_into().ok()?;
    let event = bytes.as_ptr().cast::<Event>();
    // The kernel aligns the records of a ring buffer to 8 bytes, as `Event` is (kernel/bpf/ringbuf.c).
    if !event.is_aligned() {
        return None;
    }
    // SAFETY: `Event` is made of integers without padding, so every bit pattern is a value; it is as long as
    // `bytes`, aligned, and lives as long.
    let event = unsafe { &*event };
    let outcome = Outcome::from_slot(event.slot.into())?;
    let frame = event.frame.get(..event.captured as usize)?;
    (event.one_of != 0).then_some((event, outcome, frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sampling_rate_follows_the_number_of_packets() {
        for (offered, share, one_of) in [
            (0, 10, 1),
            (10, 10, 1),
            (11, 10, 2),
            (40, 10, 4),
            (500_000, 10, 65_536),
            (u64::MAX, 1, 1 << 20),
            (7, 0, 8),
        ] {
            assert_eq!(thinned(offered, share), one_of, "{offered} for {share}");
        }
    }

    #[test]
    fn outcomes_with_few_packets_leave_their_share_to_the_others() {
        for (offered, grant, expected) in [
            (&[][..], 100, 100),
            (&[0, 0, 30, 0], 100, 100),
            (&[0, 99, 1], 100, 100),
            // The other half is for an outcome that appears next.
            (&[0, 1_000, 0], 100, 50),
            (&[1_000, 2_000], 100, 33),
            (&[10, 1_000, 10_000, 0], 100, 30),
            (&[u64::MAX, u64::MAX], 1, 0),
        ] {
            assert_eq!(share(offered, grant), expected, "{offered:?} of {grant}");
        }
    }
}
