//! Reads the sources that send most.

use std::{borrow::Borrow, collections::HashMap, net::IpAddr};

use aya::maps::{MapData, PerCpuArray};
use guard_common::{
    address::Family,
    layout::{self, TALKER_ENTRIES, TALKER_SAMPLE, Talker},
};

use super::{
    LoadError,
    state::{State, StateError},
};

/// A source and what it sent, estimated from a sample of its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TalkerRow {
    pub source: IpAddr,
    pub packets: u64,
    /// Those that were dropped, or would have been.
    pub dropped: u64,
    pub bytes: u64,
}

impl State {
    /// The sources that are kept an eye on, in no order.
    pub fn talkers(&self) -> Result<Vec<TalkerRow>, StateError> {
        let map = PerCpuArray::try_from(self.map(layout::TALKERS)?).map_err(LoadError::from)?;
        Ok(read(&map)?)
    }
}

fn read(map: &PerCpuArray<impl Borrow<MapData>, Talker>) -> Result<Vec<TalkerRow>, LoadError> {
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
            });
            row.packets += talker.packets * TALKER_SAMPLE;
            row.dropped += talker.dropped * TALKER_SAMPLE;
            row.bytes += talker.bytes * TALKER_SAMPLE;
        }
    }
    Ok(rows.into_values().collect())
}

/// `None`: nobody has the place.
fn source(talker: &Talker) -> Option<IpAddr> {
    let families = [Family::Ipv4, Family::Ipv6];
    let family = families
        .into_iter()
        .find(|family| *family as u32 == talker.family)?;
    Some(talker.source.to_ip(family))
}
