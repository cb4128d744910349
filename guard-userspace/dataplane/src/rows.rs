//! The tables with a row per interface, and the map from an interface's index to its row.

use std::{collections::BTreeMap, io, os::fd::AsFd as _, os::fd::AsRawFd as _};

use aya::maps::{ArrayOfMaps, Map, MapData};
use guard_common::{
    interfaces::{InterfacePlace, LOOKS, MAX_ROWS, PLACES, first_place},
    layout::{self, COUNTER_PAGES},
};

use super::{
    Generation, LoadError, globals,
    interface::InterfaceTables,
    pins::Pins,
    state::{SharedMap, StateError},
    sys,
};

/// The rows that have been written, and how many pages of counters of each. A new agent writes all rows again.
#[derive(Debug, Default)]
pub struct EnteredRows {
    /// The kernel's id of the map [`layout::COUNTER_ROWS`].
    map: u32,
    pages: BTreeMap<u32, usize>,
}

impl EnteredRows {
    /// Writes the tables of interfaces into the shared arrays of a generation, except those written before. The kernel
    /// waits for all CPUs after each call, so all rows are written in one.
    pub fn enter<'a>(
        &mut self,
        generation: &Generation,
        rows: impl Iterator<Item = (u32, &'a InterfaceTables)>,
    ) -> Result<(), LoadError> {
        let map = array_of_maps(generation.map(layout::COUNTER_ROWS)?)?
            .info()?
            .id();
        if self.map != map {
            *self = Self {
                map,
                ..Self::default()
            };
        }
        let (mut counters, mut talkers) = (Vec::new(), Vec::new());
        let (mut closed_ports, mut losses) = (Vec::new(), Vec::new());
        let mut entered = Vec::new();
        for (row, tables) in rows {
            let known = self.pages.get(&row).copied().unwrap_or_default();
            let pages = (0..).zip(&tables.counters).skip(known);
            counters.extend(pages.map(|(page, map)| (row * COUNTER_PAGES + page, map)));
            if known == 0 {
                talkers.push((row, &tables.talkers));
                closed_ports.push((row, &tables.closed_ports));
                losses.push((row, &tables.losses));
            }
            entered.push((row, tables.counters.len()));
        }
        for (name, maps) in [
            (layout::COUNTER_ROWS, counters),
            (layout::TALKER_ROWS, talkers),
            (layout::CLOSED_PORT_ROWS, closed_ports),
            (layout::LOSS_ROWS, losses),
        ] {
            let maps: Vec<(u32, &MapData)> = maps
                .into_iter()
                .map(|(place, map)| Ok((place, per_cpu_array(map)?)))
                .collect::<Result<_, LoadError>>()?;
            set(generation.map(name)?, &maps)?;
        }
        self.pages.extend(entered);
        Ok(())
    }

    /// Removes the tables of rows whose interfaces are gone.
    pub fn leave(&mut self, generation: &Generation, rows: &[u32]) -> Result<(), LoadError> {
        let mut pages = Vec::new();
        for row in rows {
            let known = self.pages.remove(row).unwrap_or_default() as u32;
            pages.extend((0..known).map(|page| row * COUNTER_PAGES + page));
        }
        for (name, places) in [
            (layout::COUNTER_ROWS, &pages[..]),
            (layout::TALKER_ROWS, rows),
            (layout::CLOSED_PORT_ROWS, rows),
            (layout::LOSS_ROWS, rows),
        ] {
            clear(generation.map(name)?, places)?;
        }
        Ok(())
    }
}

/// Maps each interface's index to its row. Returns the interfaces for which there is no place.
pub fn assign(generation: &Generation, rows: &BTreeMap<u32, u32>) -> Result<Vec<u32>, LoadError> {
    let map = generation.map(layout::INTERFACES)?;
    let before = globals::read::<InterfacePlace>(map)?;
    let mut places = before.clone();
    let without = bring(&mut places, rows);
    if places != before {
        globals::write(map, &places)?;
    }
    Ok(without)
}

/// Removes interfaces that are not wanted and adds those that are missing. The others keep their places, so that
/// packets find them during the change.
fn bring(places: &mut [InterfacePlace], rows: &BTreeMap<u32, u32>) -> Vec<u32> {
    for place in &mut *places {
        if rows.get(&place.interface) != Some(&place.row) {
            *place = InterfacePlace::default();
        }
    }
    let mut without = Vec::new();
    for (interface, row) in rows {
        let own = InterfacePlace {
            interface: *interface,
            row: *row,
        };
        let looks = |wanted| {
            let at = (0..LOOKS as usize).map(|look| (first_place(*interface) + look) % PLACES);
            let mut at = at;
            at.find(|at| places.get(*at) == Some(&wanted))
        };
        let (has, free) = (looks(own), looks(InterfacePlace::default()));
        match (has, free.and_then(|at| places.get_mut(at))) {
            (Some(_), _) => {}
            (None, Some(place)) => *place = own,
            (None, None) => without.push(*interface),
        }
    }
    without
}

/// Creates and pins the arrays of maps for the tables of interfaces, if they are missing. Loading a program would
/// create them as well, from maps with BTF. Until Linux 6.2, the kernel accepts no maps without BTF in such arrays
/// (`timer_off` in bpf_map_meta_equal(), kernel/bpf/map_in_map.c).
pub fn ensure_pinned(pins: &Pins, like: &InterfaceTables) -> Result<(), StateError> {
    let page = like.counters.first();
    let page = page.ok_or(LoadError::Incomplete("counters"))?;
    for (name, rows, like) in [
        (layout::COUNTER_ROWS, MAX_ROWS * COUNTER_PAGES, page),
        (layout::TALKER_ROWS, MAX_ROWS, &like.talkers),
        (layout::CLOSED_PORT_ROWS, MAX_ROWS, &like.closed_ports),
        (layout::LOSS_ROWS, MAX_ROWS, &like.losses),
    ] {
        if SharedMap::rows(name, rows).fits(pins, name) {
            continue;
        }
        pins.remove(name)?;
        let like = per_cpu_array(like)?.fd().as_fd();
        let made = sys::create_array_of_maps(name, like, rows);
        let pinned = made.and_then(|map| sys::pin(&pins.path(name), map.as_fd()));
        pinned.map_err(LoadError::Host)?;
    }
    Ok(())
}

fn array_of_maps(map: &Map) -> Result<&MapData, LoadError> {
    match map {
        Map::ArrayOfMaps(data) => Ok(data),
        _ => Err(LoadError::Incomplete("array of maps")),
    }
}

fn per_cpu_array(map: &Map) -> Result<&MapData, LoadError> {
    match map {
        Map::PerCpuArray(data) => Ok(data),
        _ => Err(LoadError::Incomplete("per-CPU array")),
    }
}

/// The fields of `union bpf_attr` that a batch reads and writes.
#[repr(C)]
struct PlacesAttributes {
    after: u64,
    last: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    entry_flags: u64,
    flags: u64,
}

/// Sets elements of an array of maps: in one call where the kernel supports it (Linux 5.19), otherwise one by one.
fn set(outer: &Map, maps: &[(u32, &MapData)]) -> Result<(), LoadError> {
    let data = array_of_maps(outer)?;
    let keys: Vec<u32> = maps.iter().map(|(place, _)| *place).collect();
    let values: Vec<u32> = maps
        .iter()
        .map(|(_, map)| map.fd().as_fd().as_raw_fd().cast_unsigned())
        .collect();
    if set_at_once(data, &keys, &values).is_ok() {
        return Ok(());
    }
    for (place, map) in maps {
        one_by_one(data)?.set(*place, map.fd(), 0)?;
    }
    Ok(())
}

/// Clears elements. The kernel has no batch command for that.
fn clear(outer: &Map, places: &[u32]) -> Result<(), LoadError> {
    #[repr(C)]
    struct DeletedPlace {
        map: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let data = array_of_maps(outer)?;
    for place in places {
        let mut attributes = DeletedPlace {
            map: data.fd().as_fd().as_raw_fd().cast_unsigned(),
            padding: 0,
            key: (&raw const *place) as u64,
            value: 0,
            flags: 0,
        };
        // SAFETY: laid out as the kernel has it for one element, whose key is a word.
        let cleared = unsafe { sys::bpf(sys::DELETE_ELEM, &mut attributes) };
        match cleared {
            // The element is empty already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(LoadError::Host(error)),
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Opens another handle of the map.
fn one_by_one(data: &MapData) -> Result<ArrayOfMaps<MapData, aya::maps::MapFd>, LoadError> {
    let fd = data.fd().as_fd().try_clone_to_owned();
    let data = MapData::from_fd(fd.map_err(LoadError::Host)?)?;
    Ok(Map::from_map_data(data)?.try_into()?)
}

/// `values` must have as many elements as `places`.
fn set_at_once(data: &MapData, places: &[u32], values: &[u32]) -> io::Result<()> {
    if places.is_empty() {
        return Ok(());
    }
    let mut attributes = PlacesAttributes {
        after: 0,
        last: 0,
        keys: places.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: places.len().min(values.len()) as u32,
        map: data.fd().as_fd().as_raw_fd().cast_unsigned(),
        entry_flags: 0,
        flags: 0,
    };
    // SAFETY: laid out as the kernel has it for batches. Keys and values are words, and there are at least `count`.
    unsafe { sys::bpf(sys::UPDATE_BATCH, &mut attributes) }.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Vec<InterfacePlace> {
        vec![InterfacePlace::default(); PLACES]
    }

    /// Looks up an interface as the kernel program does.
    fn find(places: &[InterfacePlace], interface: u32) -> Option<u32> {
        let looks =
            (0..LOOKS as usize).map(|look| places[(first_place(interface) + look) % PLACES]);
        looks
            .into_iter()
            .find(|place| place.interface == interface)
            .map(|place| place.row)
    }

    #[test]
    fn every_interface_finds_its_row_for_any_index() {
        // Consecutive indices, indices in steps, and indices far apart; as many as there are rows.
        for (first, step) in [(1, 1), (2_000_000, 1), (7, 4_096), (5, 3), (1, 65_537)] {
            let rows: BTreeMap<u32, u32> = (1..MAX_ROWS)
                .map(|row| (first + (row - 1) * step, row))
                .collect();
            let mut places = empty();
            assert_eq!(
                bring(&mut places, &rows),
                Vec::<u32>::new(),
                "{first}, {step}"
            );
            for (interface, row) in &rows {
                assert_eq!(find(&places, *interface), Some(*row));
            }
        }
    }

    #[test]
    fn an_interface_keeps_its_place_while_others_come_and_go() {
        let rows: BTreeMap<u32, u32> = (1..600).map(|row| (row * 7, row)).collect();
        let mut places = empty();
        bring(&mut places, &rows);
        let before = places.clone();
        let fewer: BTreeMap<u32, u32> = rows
            .iter()
            .map(|(a, b)| (*a, *b))
            .skip(1)
            .step_by(2)
            .collect();
        let mut more = fewer.clone();
        more.extend((600..900).map(|row| (row * 11 + 1, row)));
        bring(&mut places, &more);
        for interface in fewer.keys() {
            let at = |places: &[InterfacePlace]| {
                places.iter().position(|one| one.interface == *interface)
            };
            assert_eq!(at(&places), at(&before));
        }
        assert_eq!(find(&places, 7), None, "the interface is gone");
        assert_eq!(find(&places, 600 * 11 + 1), Some(600));
        // An interface that comes back under another index has its row under that one alone.
        let moved = BTreeMap::from([(9_999, 1)]);
        bring(&mut places, &moved);
        assert_eq!((find(&places, 9_999), find(&places, 14)), (Some(1), None));
    }
}
