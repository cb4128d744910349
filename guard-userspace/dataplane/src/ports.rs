//! The port tables of one generation. Two threads change them: the agent's loop, and the followers of container
//! runtimes, which close ports early.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    os::fd::AsFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData},
};
use guard_common::layout::{self, AddressedKey, PortEntry};
use guard_policy::{Containers, PortTables, PublishedPort};

use super::{
    LoadError,
    globals::{read, write},
    steps::{FirstError, gone},
};

/// Published ports that a plan does not have yet, while the tables are changed to the plan's.
#[derive(Default)]
pub struct PortUpdates<'a> {
    /// Ports that were closed early, before the plan was made, and that the plan has.
    early: Option<&'a BTreeSet<PublishedPort>>,
    newest: Option<NewestPorts<'a>>,
    /// Ports that the plan opens and that stay closed, because a container publishes them by now. The next plan brings
    /// them in line.
    pub kept: BTreeSet<PublishedPort>,
}

/// The ports that containers publish at the time of the call, which may be more than the plan has.
struct NewestPorts<'a> {
    containers: &'a dyn Fn() -> Arc<Containers>,
    local_ports: &'a RangeInclusive<u16>,
}

impl<'a> PortUpdates<'a> {
    /// Ports that were closed before the plan was made.
    pub fn early(early: &'a BTreeSet<PublishedPort>) -> Self {
        Self {
            early: Some(early),
            ..Self::default()
        }
    }

    /// `containers` is called while the tables are locked. A follower that marks a port as published adds it to
    /// `containers` first and waits for the lock then, so no port is missed.
    #[must_use]
    pub fn with_newest(
        mut self,
        containers: &'a dyn Fn() -> Arc<Containers>,
        local_ports: &'a RangeInclusive<u16>,
    ) -> Self {
        self.newest = Some(NewestPorts {
            containers,
            local_ports,
        });
        self
    }

    /// Only the ports that were closed early.
    #[must_use]
    pub fn early_alone(&self) -> Self {
        Self {
            early: self.early,
            ..Self::default()
        }
    }

    /// Keeps ports closed that a container publishes by now.
    fn keep(
        &mut self,
        places: &BTreeSet<u32>,
        keys: &BTreeSet<AddressedKey>,
        after: &mut PortTables,
    ) {
        let Some(NewestPorts {
            containers,
            local_ports,
        }) = &self.newest
        else {
            return;
        };
        let may_open = |place: &u32| {
            let entry = after.everywhere.get(place).copied().unwrap_or_default();
            !entry.is_published_ipv4() || !entry.is_published_ipv6()
        };
        if !places.iter().any(may_open) {
            return;
        }
        for port in &containers().published {
            let is_touched = match port.key() {
                None => places.contains(&port.index()),
                Some(key) => keys.contains(&key),
            };
            if is_touched && after.publish(*port, local_ports) {
                self.kept.insert(*port);
            }
        }
    }
}

/// The tables behind a lock.
#[derive(Clone)]
pub struct SharedPortMaps(Arc<Mutex<PortMaps>>);

/// The kernel's maps.
struct PortMaps {
    everywhere: Map,
    addressed: HashMap<MapData, AddressedKey, PortEntry>,
    /// The contents of `addressed`. Only this process writes the map.
    held: BTreeMap<AddressedKey, PortEntry>,
}

impl SharedPortMaps {
    /// The empty port tables of a new generation.
    pub fn of(ebpf: &Ebpf) -> Result<Self, LoadError> {
        Ok(Self(Arc::new(Mutex::new(PortMaps {
            everywhere: another(ebpf, layout::PORTS)?,
            addressed: HashMap::try_from(another(ebpf, layout::ADDRESSED)?)?,
            held: BTreeMap::new(),
        }))))
    }

    /// Marks ports as published. Ports that were not marked before are added to `new`, even if this fails.
    pub fn mark(
        &self,
        published: &BTreeSet<PublishedPort>,
        local_ports: &RangeInclusive<u16>,
        new: &mut BTreeSet<PublishedPort>,
    ) -> Result<(), LoadError> {
        let mut kernel = self.lock();
        let entries = read::<PortEntry>(&kernel.everywhere)?;
        let news = marks(&entries, &kernel.held, published, local_ports, new);
        let mut outcome = FirstError::default();
        for (key, entry) in news.addressed {
            outcome.take(kernel.hold(key, entry));
        }
        // An entry that found no room does not stop the other ports from being closed.
        outcome.take(kernel.write(entries, news.everywhere));
        outcome.end()
    }

    /// Changes the tables from `before` to `after`.
    ///
    /// # Errors
    /// The ports on every address are unchanged. `after` has the contents of the tables now: entries on single
    /// addresses that found room are in force.
    pub fn bring(
        &self,
        before: &PortTables,
        after: &mut PortTables,
        news: &mut PortUpdates<'_>,
    ) -> Result<(), LoadError> {
        let early = || news.early.into_iter().flatten();
        let early_keys = early().filter_map(|port| port.key());
        let keys = touched(&before.addressed, &after.addressed, early_keys);
        let early_places = early().map(|port| port.index());
        let places = touched(&before.everywhere, &after.everywhere, early_places);
        if keys.is_empty() && places.is_empty() {
            return Ok(());
        }
        let mut kernel = self.lock();
        news.keep(&places, &keys, after);
        let mut outcome = FirstError::default();
        // Entries on single addresses are written before the port's entry announces them, and removed after it.
        let mut waiting = Vec::new();
        for key in &keys {
            if let Some(entry) = after.addressed.get(key)
                && kernel.hold(*key, *entry).is_err()
            {
                waiting.push((*key, *entry));
            }
        }
        match kernel.bring(places, &after.everywhere) {
            Ok(()) => {
                for key in keys.iter().filter(|key| !after.addressed.contains_key(key)) {
                    outcome.take(kernel.release(key));
                }
            }
            Err(error) => {
                outcome.take(Err(error));
                after.everywhere.clone_from(&before.everywhere);
            }
        }
        // The entries removed above may have made room.
        for (key, entry) in waiting {
            outcome.take(kernel.hold(key, entry));
        }
        for key in keys {
            match kernel.held.get(&key) {
                Some(entry) => after.addressed.insert(key, *entry),
                None => after.addressed.remove(&key),
            };
        }
        outcome.end()
    }

    fn lock(&self) -> MutexGuard<'_, PortMaps> {
        let Self(kernel) = self;
        // A thread that panicked while it held the lock has left no half-made change.
        kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PortMaps {
    /// Writes an entry that holds on one address.
    fn hold(&mut self, key: AddressedKey, entry: PortEntry) -> Result<(), LoadError> {
        if self.held.get(&key) != Some(&entry) {
            self.addressed.insert(key, entry, 0)?;
            self.held.insert(key, entry);
        }
        Ok(())
    }

    fn release(&mut self, key: &AddressedKey) -> Result<(), LoadError> {
        if self.held.contains_key(key) {
            gone(self.addressed.remove(key).map_err(LoadError::from))?;
            self.held.remove(key);
        }
        Ok(())
    }

    /// Changes these places of the port table to `after`, all of them or none.
    fn bring(
        &mut self,
        places: BTreeSet<u32>,
        after: &BTreeMap<u32, PortEntry>,
    ) -> Result<(), LoadError> {
        if places.is_empty() {
            return Ok(());
        }
        let entries = read::<PortEntry>(&self.everywhere)?;
        let news = news(&entries, places, after);
        self.write(entries, news)
    }

    fn write(
        &mut self,
        mut entries: Vec<PortEntry>,
        news: BTreeMap<u32, PortEntry>,
    ) -> Result<(), LoadError> {
        if news.is_empty() {
            return Ok(());
        }
        for (index, entry) in news {
            let place = entries.get_mut(index as usize);
            *place.ok_or(LoadError::Incomplete(layout::PORTS))? = entry;
        }
        write(&self.everywhere, &entries)
    }
}

/// Opens another handle of a map.
fn another(ebpf: &Ebpf, name: &'static str) -> Result<Map, LoadError> {
    let (Map::Array(data) | Map::HashMap(data)) =
        ebpf.map(name).ok_or(LoadError::Incomplete(name))?
    else {
        return Err(LoadError::Incomplete(name));
    };
    let fd = data.fd().as_fd().try_clone_to_owned();
    let data = MapData::from_fd(fd.map_err(LoadError::Host)?)?;
    Ok(Map::from_map_data(data)?)
}

/// The entries that a change reads and may write: those that differ, and those that were closed early, which are in
/// none of both tables. No other entry is written: the port may have been closed early a moment ago.
fn touched<K: Copy + Ord>(
    before: &BTreeMap<K, PortEntry>,
    after: &BTreeMap<K, PortEntry>,
    early: impl Iterator<Item = K>,
) -> BTreeSet<K> {
    let changed = before.keys().chain(after.keys()).copied();
    let changed = changed.filter(|key| before.get(key) != after.get(key));
    changed.chain(early).collect()
}

/// The touched entries whose value in the kernel differs from the wanted one.
fn news(
    entries: &[PortEntry],
    touched: BTreeSet<u32>,
    after: &BTreeMap<u32, PortEntry>,
) -> BTreeMap<u32, PortEntry> {
    let news = touched.into_iter().filter_map(|index| {
        let entry = after.get(&index).copied().unwrap_or_default();
        (entries.get(index as usize) != Some(&entry)).then_some((index, entry))
    });
    news.collect()
}

/// The entries that mark these ports as published, and the ports for which that is a change.
fn marks(
    entries: &[PortEntry],
    held: &BTreeMap<AddressedKey, PortEntry>,
    published: &BTreeSet<PublishedPort>,
    local_ports: &RangeInclusive<u16>,
    new: &mut BTreeSet<PublishedPort>,
) -> PortTables {
    let mut news = PortTables::default();
    for port in published {
        let index = port.index();
        let before = entries.get(index as usize).copied().unwrap_or_default();
        let before = news.everywhere.get(&index).copied().unwrap_or(before);
        let after = port.marked(before, local_ports);
        if after != before {
            news.everywhere.insert(index, after);
            new.insert(*port);
        }
        if let Some(key) = port.key() {
            let before = held.get(&key).copied().unwrap_or_default();
            let after = port.marked_here(before);
            if after != before {
                news.addressed.insert(key, after);
                new.insert(*port);
            }
        }
    }
    news
}

#[cfg(test)]
mod tests {
    use std::iter;

    use guard_common::layout::{PortProtocol, port_index};

    use super::*;
    use guard_policy::PublishedAt;

    const LOCAL_PORTS: RangeInclusive<u16> = 32_768..=60_999;

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
    fn a_port_closed_early_stays_closed_while_another_port_changes() {
        // 8001 was closed early, and the plan does not have it yet.
        let entries = kernel(&[8_000, 8_001]);
        let (before, after) = (table(&[8_000]), table(&[8_000, 9_000]));
        let touched = touched(&before, &after, iter::empty());
        assert_eq!(
            news(&entries, touched, &after),
            BTreeMap::from([(index(9_000), published())])
        );
    }

    #[test]
    fn a_port_closed_early_is_brought_in_line_by_the_next_plan() {
        let early = [8_001, 8_002].map(index).into_iter();
        let entries = kernel(&[8_001, 8_002]);
        // The container at 8001 exists, and the container at 8002 is gone again.
        let (before, after) = (table(&[]), table(&[8_001]));
        let touched = touched(&before, &after, early);
        assert_eq!(
            news(&entries, touched, &after),
            BTreeMap::from([(index(8_002), PortEntry::default())])
        );
    }

    #[test]
    fn a_port_that_a_plan_opens_stays_closed_if_a_container_publishes_it_by_now() {
        let port = |port| PublishedPort {
            protocol: PortProtocol::Tcp,
            port,
            at: PublishedAt::EveryIpv4,
        };
        // The plan has that 8001 and 8002 are gone. It does not have that 8002 was published again, and 9000 as well.
        let (before, mut after) = (table(&[8_000, 8_001, 8_002]), table(&[8_000]));
        let places = touched(&before, &after, iter::empty());
        let containers = Arc::new(Containers {
            published: [8_000, 8_002, 9_000].map(port).into(),
            ..Containers::default()
        });
        let newest = || Arc::clone(&containers);
        let mut news = PortUpdates::default().with_newest(&newest, &LOCAL_PORTS);
        let mut tables = PortTables {
            everywhere: after.clone(),
            ..PortTables::default()
        };
        news.keep(&places, &BTreeSet::new(), &mut tables);
        after.insert(index(8_002), published());
        assert_eq!(tables.everywhere, after);
        assert_eq!(news.kept, BTreeSet::from([port(8_002)]));
    }

    #[test]
    fn unchanged_entries_are_not_read() {
        let same = table(&[8_000, 8_001]);
        assert!(touched(&same, &same, iter::empty()).is_empty());
    }

    #[test]
    fn a_port_closed_early_on_one_address_is_marked_there_and_reported_once() {
        let port = |at| PublishedPort {
            protocol: PortProtocol::Tcp,
            port: 8_000,
            at,
        };
        let address = port(PublishedAt::Address("203.0.113.11".parse().unwrap()));
        let key = address.key().unwrap();
        let ports = BTreeSet::from([port(PublishedAt::EveryIpv6), address]);
        let service = PortEntry::default().with_service(3);
        let mut held = BTreeMap::from([(key, service)]);
        let mut entries = kernel(&[]);
        let mut new = BTreeSet::new();
        let news = marks(&entries, &held, &ports, &LOCAL_PORTS, &mut new);
        let everywhere = PortEntry::default().published_ipv6().addressed();
        assert_eq!(
            news,
            PortTables {
                everywhere: BTreeMap::from([(index(8_000), everywhere)]),
                addressed: BTreeMap::from([(key, service.published_ipv4())]),
            }
        );
        assert_eq!(new, ports);
        entries[index(8_000) as usize] = everywhere;
        held.extend(news.addressed);
        new.clear();
        let news = marks(&entries, &held, &ports, &LOCAL_PORTS, &mut new);
        assert_eq!((news, new), (PortTables::default(), BTreeSet::new()));
    }
}
