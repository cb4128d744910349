//! Reads the top talkers.

use std::{
    collections::{BTreeMap, HashMap},
    iter,
    net::IpAddr,
};

use aya::maps::{Map, PerCpuArray, PerCpuValues};
use guard_common::{
    address::Family,
    layout::{NO_SERVICE, TALKER_ENTRIES, TALKER_SAMPLE, TalkerSlot},
    reason::Reason,
};

use guard_policy::Ports;

use super::{LoadError, batch, interface::InterfaceTables};

/// A source and what it sent, estimated from a sample of its packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TalkerRow {
    pub source: IpAddr,
    pub packets: u64,
    /// Packets that were dropped, or would have been in mode enforce.
    pub dropped: u64,
    /// Those of `dropped` that passed only because of the mode.
    pub would_drop: u64,
    pub bytes: u64,
    /// The reason of one of the last packets in `dropped`.
    pub dropped_for: Option<Reason>,
    /// The service at which that packet was dropped; `None`: it reached no service.
    pub dropped_at: Option<String>,
    /// The destination of that packet.
    pub dropped_port: Option<Ports>,
}

impl InterfaceTables {
    /// The top sources, unsorted. `names`: from [`HostState::names`](super::HostState::names).
    pub fn talkers(&self, names: &BTreeMap<u16, String>) -> Result<Vec<TalkerRow>, LoadError> {
        read(&self.talkers, names)
    }

    /// Clears the service at which a source was dropped, if the service's number goes to another service.
    pub(super) fn empty_talkers(&mut self, numbers: &[u16]) -> Result<(), LoadError> {
        let mut talkers = PerCpuArray::try_from(&mut self.talkers)?;
        let is_of_others =
            |talker: &TalkerSlot| talker.dropped_for != 0 && numbers.contains(&talker.dropped_at);
        for index in 0..TALKER_ENTRIES {
            let of_cpus: PerCpuValues<TalkerSlot> = talkers.get(&index, 0)?;
            if !of_cpus.iter().any(is_of_others) {
                continue;
            }
            let of_cpus = of_cpus.iter().map(|talker| {
                let mut talker = *talker;
                if is_of_others(&talker) {
                    (talker.dropped_for, talker.dropped_at) = (0, NO_SERVICE);
                }
                talker
            });
            let of_cpus = PerCpuValues::try_from(of_cpus.collect::<Vec<_>>());
            let of_cpus = of_cpus.map_err(LoadError::Host)?;
            // Packets that the program samples between get and set are lost: talkers are an estimate.
            talkers.set(index, of_cpus, 0)?;
        }
        Ok(())
    }
}

fn read(talkers: &Map, names: &BTreeMap<u16, String>) -> Result<Vec<TalkerRow>, LoadError> {
    let mut rows = HashMap::<IpAddr, TalkerRow>::new();
    let all = iter::once(0..TALKER_ENTRIES);
    batch::read_per_cpu(
        talkers,
        all,
        |_, of_cpus: &mut dyn Iterator<Item = TalkerSlot>| {
            for talker in of_cpus {
                let Some(source) = source(&talker) else {
                    continue;
                };
                let row = rows.entry(source).or_insert(TalkerRow {
                    source,
                    packets: 0,
                    dropped: 0,
                    would_drop: 0,
                    bytes: 0,
                    dropped_for: None,
                    dropped_at: None,
                    dropped_port: None,
                });
                row.packets += talker.packets * TALKER_SAMPLE;
                row.dropped += talker.dropped * TALKER_SAMPLE;
                row.would_drop += u64::from(talker.would_drop) * TALKER_SAMPLE;
                row.bytes += talker.bytes * TALKER_SAMPLE;
                // Each CPU has its own last drop; any of them is used.
                if let Some(reason) = reason(&talker) {
                    row.dropped_for = Some(reason);
                    row.dropped_at = names.get(&talker.dropped_at).cloned();
                    row.dropped_port = Ports::of_index(talker.dropped_port);
                }
            }
        },
    )?;
    Ok(rows.into_values().collect())
}

/// The source of a slot; `None`: the slot is free.
fn source(talker: &TalkerSlot) -> Option<IpAddr> {
    let families = [Family::Ipv4, Family::Ipv6];
    let family = families
        .into_iter()
        .find(|family| *family as u8 == talker.family)?;
    Some(talker.source.to_ip(family))
}

fn reason(talker: &TalkerSlot) -> Option<Reason> {
    let drops = (talker.dropped != 0).then_some(Reason::ALL)?;
    drops
        .into_iter()
        .find(|reason| *reason as u8 == talker.dropped_for)
}
