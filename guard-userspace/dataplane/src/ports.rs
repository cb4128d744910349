//! The table of ports of one generation, which two threads change: the agent, and who closes ports at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd as _,
    sync::{Arc, Mutex, PoisonError},
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use guard_common::layout::{self, PortEntry, port_index};
use guard_policy::PublishedPort;

use super::{
    LoadError,
    globals::{data_of, read, write},
};

/// The table, to be read and written by one at a time.
#[derive(Clone)]
pub struct Ports(Arc<Mutex<Map>>);

impl Ports {
    pub fn of(ebpf: &Ebpf) -> Result<Self, LoadError> {
        let missing = LoadError::Incomplete(layout::PORTS);
        let data = data_of(ebpf.map(layout::PORTS).ok_or(missing)?)?;
        let fd = data.fd().as_fd().try_clone_to_owned();
        let data = MapData::from_fd(fd.map_err(LoadError::Host)?)?;
        Ok(Self(Arc::new(Mutex::new(Map::from_map_data(data)?))))
    }

    /// Writes what `news` finds to be new, at which indices.
    pub fn change(
        &self,
        news: impl FnOnce(&[PortEntry]) -> Vec<(u32, PortEntry)>,
    ) -> Result<(), LoadError> {
        let Self(map) = self;
        // Whoever panicked with it has changed nothing by halves.
        let map = map.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = read::<PortEntry>(&map)?;
        let news = news(&entries);
        if news.is_empty() {
            return Ok(());
        }
        for (index, entry) in news {
            let place = entries.get_mut(index as usize);
            *place.ok_or(LoadError::Incomplete(layout::PORTS))? = entry;
        }
        write(&map, &entries)
    }

    /// Brings it from one table to another; `early` are ports that were closed meanwhile.
    ///
    /// # Errors
    /// Nothing is written.
    pub fn bring(
        &self,
        before: &BTreeMap<u32, PortEntry>,
        after: &BTreeMap<u32, PortEntry>,
        early: &BTreeSet<PublishedPort>,
    ) -> Result<(), LoadError> {
        let touched = touched(before, after, early);
        if touched.is_empty() {
            return Ok(());
        }
        self.change(|entries| news(entries, touched, after))
    }
}

/// The places that a change looks at. What has been closed early is in no table that is known here: whatever it
/// is, it is looked at. Nothing else is touched that does not change: it may have been closed a moment ago, and
/// nobody here knows yet.
fn touched(
    before: &BTreeMap<u32, PortEntry>,
    after: &BTreeMap<u32, PortEntry>,
    early: &BTreeSet<PublishedPort>,
) -> BTreeSet<u32> {
    let early = early
        .iter()
        .map(|port| port_index(port.protocol, port.port));
    let changed = before.keys().chain(after.keys()).copied();
    let changed = changed.filter(|index| before.get(index) != after.get(index));
    changed.chain(early).collect()
}

/// What of it is not as it shall be in the kernel's table.
fn news(
    entries: &[PortEntry],
    touched: BTreeSet<u32>,
    after: &BTreeMap<u32, PortEntry>,
) -> Vec<(u32, PortEntry)> {
    let news = touched.into_iter().filter_map(|index| {
        let entry = after.get(&index).copied().unwrap_or_default();
        (entries.get(index as usize) != Some(&entry)).then_some((index, entry))
    });
    news.collect()
}

#[cfg(test)]
mod tests {
    use guard_common::layout::PortProtocol;

    use super::*;
    use guard_policy::PublishedFamily;

    fn port(port: u16) -> PublishedPort {
        PublishedPort {
            protocol: PortProtocol::Tcp,
            port,
            family: PublishedFamily::Ipv4,
        }
    }

    fn index(port: u16) -> u32 {
        port_index(PortProtocol::Tcp, port)
    }

    fn published() -> PortEntry {
        PortEntry::default().published_ipv4()
    }

    /// The kernel's table with these ports published.
    fn kernel(ports: &[u16]) -> Vec<PortEntry> {
        let mut entries = vec![PortEntry::default(); 1 << 17];
        for port in ports {
            entries[index(*port) as usize] = published();
        }
        entries
    }

    fn table(ports: &[u16]) -> BTreeMap<u32, PortEntry> {
        let ports = ports.iter();
        ports.map(|port| (index(*port), published())).collect()
    }

    #[test]
    fn what_was_closed_a_moment_ago_stays_closed_while_another_port_changes() {
        // 8001 was closed early, and the agent has not heard of it.
        let entries = kernel(&[8_000, 8_001]);
        let (before, after) = (table(&[8_000]), table(&[8_000, 9_000]));
        let touched = touched(&before, &after, &BTreeSet::new());
        assert_eq!(
            news(&entries, touched, &after),
            [(index(9_000), published())]
        );
    }

    #[test]
    fn what_was_closed_early_is_brought_in_line_once_the_agent_knows() {
        let early = BTreeSet::from([port(8_001), port(8_002)]);
        let entries = kernel(&[8_001, 8_002]);
        // The container at 8001 is there, that at 8002 is gone again.
        let (before, after) = (table(&[]), table(&[8_001]));
        let touched = touched(&before, &after, &early);
        assert_eq!(
            news(&entries, touched, &after),
            [(index(8_002), PortEntry::default())]
        );
    }

    #[test]
    fn what_is_as_it_was_is_not_even_looked_at() {
        let same = table(&[8_000, 8_001]);
        assert!(touched(&same, &same, &BTreeSet::new()).is_empty());
    }
}
