//! Reads the sources that send most.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use aya::maps::{MapData, PerCpuArray};
use guard_common::{
    address::Family,
    layout::{self, TALKER_ENTRIES, TALKER_SAMPLE, TalkerSlot},
    reason::Reason,
};

use super::{
    LoadError,
    state::{InterfaceState, StateError},
};

/// A source and what it sent, estimated from a sample of its packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TalkerRow {
    pub source: IpAddr,
    pub packets: u64,
    /// Those that were dropped, or would have been.
    pub dropped: u64,
    pub bytes: u64,
    /// Why one of the last of `dropped` was, if there are any.
    pub dropped_for: Option<Reason>,
    /// The service that it was dropped at, if one was concerned.
    pub dropped_at: Option<String>,
}

impl InterfaceState {
    /// The sources that are kept an eye on, in no order.
    pub fn talkers(&self) -> Result<Vec<TalkerRow>, StateError> {
        let map = PerCpuArray::try_from(self.map(layout::TALKERS)?).map_err(LoadError::from)?;
        Ok(read(&map, &self.names()?)?)
    }
}

fn read(
    map: &PerCpuArray<impl Borrow<MapData>, TalkerSlot>,
    names: &BTreeMap<u16, String>,
) -> Result<Vec<TalkerRow>, LoadError> {
    let mut rows = HashMap::<IpAddr, TalkerRow>::new();
    for index in 0..TALKER_ENTRIES {
        for talker in map.get(&index, 0)?.iter() {
            let Some(source) = source(talker) else {
                continue;
            };
            let row = rows.entry(source).or_insert(TalkerRow {
                source,
                packets: 0,
                dropped: 0,
                bytes: 0,
                dropped_for: None,
                dropped_at: None,
            });
            row.packets += talker.packets * TALKER_SAMPLE;
            row.dropped += talker.dropped * TALKER_SAMPLE;
            row.bytes += talker.bytes * TALKER_SAMPLE;
            // Of the CPUs' last drops it is any.
            if let Some(reason) = reason(talker) {
                row.dropped_for = Some(reason);
                row.dropped_at = names.get(&talker.dropped_at).cloned();
            }
        }
    }
    Ok(rows.into_values().collect())
}

/// `None`: nobody has the place.
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
