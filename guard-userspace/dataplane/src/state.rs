//! The state that all interfaces and generations share, in pinned maps: which maps those are, the service ids, and the
//! facts for readers when no agent runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use aya::{
    maps::{Array, Map, MapData, MapError, MapInfo, MapType},
    pin::PinError as AyaPinError,
};
use guard_common::{
    cell::{Cell, HashKey},
    fragment::FragmentSet,
    interfaces::{InterfacePlace, MAX_ROWS, PLACES},
    layout::{
        self, About, COUNTER_PAGES, CaptureFilter, EVENTS_BYTES, FRAGMENT_SETS, FloodState,
        FlowKey, MAX_FLOWS, MAX_NAME, MAX_SERVICE_IDS, NO_SERVICE, ServiceIdSlot, feature, grant,
        host_bucket,
    },
    verified::{self, VerifiedLine},
};
use guard_policy::{ServiceId, ServiceIds, Slice, Tables};

use super::{
    LoadError,
    interface::InterfaceTables,
    pins::{PinError, Pins},
    random_hash_key, rows,
};

/// Whether the pinned generation is that of a policy file with this SHA-256, in hexadecimal, and records this host's
/// flows.
pub fn keeps_flows_of(root: &Path, sha256: &str) -> bool {
    let about = HostState::existing(root).ok().flatten();
    let about = about.and_then(|state| state.about().ok());
    let is_of = |about: About| base16ct::lower::encode_string(&about.sha256) == sha256;
    Pins::of_host(root).has(layout::FLOWS) && about.is_some_and(is_of)
}

/// The name under which packets are counted whose interface has no row, such as a port that was just added to a bond.
pub const UNKNOWN_INTERFACE: &str = "unknown";

/// Why pinned state cannot be read or made.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("a map of the state cannot be used")]
    Map(#[from] MapError),
    #[error("a map of the state cannot be pinned")]
    Pinning(#[from] AyaPinError),
    #[error(
        "the pins below {0} belong to an agent in another network namespace: name another folder with \
         --pins"
    )]
    Elsewhere(String),
}

/// The state that all interfaces share.
pub struct HostState {
    pub(super) pins: Pins,
    /// An array of one [`About`].
    about: Map,
    /// An array of [`ServiceIdSlot`].
    places: Map,
    /// The tables for packets of interfaces without a row.
    pub(super) unknown: InterfaceTables,
}

impl HostState {
    /// Opens the pinned state, or creates it.
    ///
    /// `linked`: the ids of the programs that the pinned links of interfaces hold. If an agent ended while it put a new
    /// generation in force, they tell which of two sets of maps is in use.
    pub(super) fn open(
        root: &Path,
        namespace: u64,
        linked: &BTreeSet<u32>,
    ) -> Result<(Self, ServiceIds), StateError> {
        let pins = Pins::of_host(root);
        pins.prepare()?;
        if let Some(mut state) = Self::existing(root)? {
            let about = state.about()?;
            if about.namespace != namespace && !linked.is_empty() {
                return Err(StateError::Elsewhere(root.display().to_string()));
            }
            if about.namespace == namespace {
                state.settle(linked)?;
                rows::ensure_pinned(&state.pins, &state.unknown)?;
                let service_ids = state.service_ids()?;
                return Ok((state, service_ids));
            }
        }
        let state = Self::create(pins, namespace)?;
        rows::ensure_pinned(&state.pins, &state.unknown)?;
        Ok((state, ServiceIds::default()))
    }

    /// Opens the pinned state. `None`: there is none that this layout can read.
    pub fn existing(root: &Path) -> Result<Option<Self>, StateError> {
        let pins = Pins::of_host(root);
        let about = open_array(&pins, layout::ABOUT, size_of::<About>(), 1)?;
        let places = open_array(
            &pins,
            layout::SERVICE_IDS,
            size_of::<ServiceIdSlot>(),
            MAX_SERVICE_IDS,
        )?;
        let unknown = InterfaceTables::existing(&pins)?;
        let (Some(about), Some(places), Some(unknown)) = (about, places, unknown) else {
            return Ok(None);
        };
        Ok(Some(Self {
            pins,
            about,
            places,
            unknown,
        }))
    }

    fn create(pins: Pins, namespace: u64) -> Result<Self, StateError> {
        for name in [layout::ABOUT, layout::SERVICE_IDS]
            .into_iter()
            .chain(SHARED)
        {
            pins.remove(name)?;
            pins.remove_next(name)?;
        }
        let mut about = Array::<_, About>::create(1, 0)?;
        let places = Array::<_, ServiceIdSlot>::create(MAX_SERVICE_IDS, 0)?;
        about.set(0, empty_about(random_hash_key()?, namespace), 0)?;
        let state = Self {
            about: open_new(&pins, layout::ABOUT, about)?,
            places: open_new(&pins, layout::SERVICE_IDS, places)?,
            unknown: InterfaceTables::create(&pins)?,
            pins,
        };
        Ok(state)
    }

    /// Pins maps again whose pins were removed by hand.
    pub(super) fn restore_pins(&self) -> Result<(), StateError> {
        self.pins.prepare()?;
        if !self.pins.has(layout::ABOUT) {
            self.about.pin(self.pins.path(layout::ABOUT))?;
        }
        if !self.pins.has(layout::SERVICE_IDS) {
            self.places.pin(self.pins.path(layout::SERVICE_IDS))?;
        }
        self.unknown.restore_pins()
    }

    /// The tables for packets of interfaces without a row.
    pub fn unknown(&self) -> &InterfaceTables {
        &self.unknown
    }

    /// What readers of the pins are told.
    pub fn about(&self) -> Result<About, MapError> {
        Array::<_, About>::try_from(&self.about)?.get(&0, 0)
    }

    /// Writes what readers of the pins are told.
    pub fn set_about(&mut self, about: &About) -> Result<(), MapError> {
        Array::<_, About>::try_from(&mut self.about)?.set(0, *about, 0)
    }

    /// Completes or undoes a change that an agent did not finish: waiting maps belong to a program that a link holds,
    /// or to one that was never in force.
    fn settle(&mut self, linked: &BTreeSet<u32>) -> Result<(), StateError> {
        let about = self.about()?;
        let was_put_in_force = linked.contains(&about.next_program);
        for name in self.pins.waiting()? {
            if was_put_in_force {
                self.pins.take_next(&name)?;
            } else {
                self.pins.remove_next(&name)?;
            }
        }
        self.set_about(&About {
            next_program: 0,
            ..about
        })?;
        Ok(())
    }

    /// Reads the service ids, with those cells that are in the pinned array.
    fn service_ids(&self) -> Result<ServiceIds, StateError> {
        let cells = CELLS.map(|map| map_info(&self.pins, map));
        let cells = cells.into_iter().flatten();
        let lengths: BTreeMap<u32, u32> =
            cells.map(|info| (info.id(), info.max_entries())).collect();
        let mut service_ids = ServiceIds {
            asked: self.about()?.cells,
            ..ServiceIds::default()
        };
        for (number, slot) in self.named()? {
            if let Some(length) = lengths.get(&slot.cells) {
                service_ids.length = *length;
                let slice = Slice {
                    first_cell: slot.first_cell,
                    cell_mask: slot.cell_mask,
                };
                service_ids.slices.insert(name_of(&slot), slice);
            }
            if number != NO_SERVICE {
                let place = ServiceId {
                    number,
                    idle: slot.idle,
                    derived_from: (slot.derived_from != NO_SERVICE).then_some(slot.derived_from),
                };
                service_ids.places.insert(name_of(&slot), place);
            }
        }
        Ok(service_ids)
    }

    /// The names of services by their numbers.
    pub fn names(&self) -> Result<BTreeMap<u16, String>, StateError> {
        let named = self.named()?.into_iter();
        Ok(named
            .filter(|(number, _)| *number != NO_SERVICE)
            .map(|(number, slot)| (number, name_of(&slot)))
            .collect())
    }

    /// The numbers of a service and of those that labels have made from it.
    pub(super) fn numbers_of(&self, service: &str) -> Result<Vec<u16>, StateError> {
        let named = self.named()?;
        let mut own = named.iter().filter(|(_, slot)| name_of(slot) == service);
        let own = own.find_map(|(number, _)| (*number != NO_SERVICE).then_some(*number));
        let Some(own) = own else {
            return Ok(Vec::new());
        };
        let numbers = named.into_iter();
        Ok(numbers
            .filter(|(number, slot)| *number == own || slot.derived_from == own)
            .map(|(number, _)| number)
            .collect())
    }

    fn named(&self) -> Result<Vec<(u16, ServiceIdSlot)>, MapError> {
        let mut named = Vec::new();
        let places = Array::<_, ServiceIdSlot>::try_from(&self.places)?;
        for number in NO_SERVICE..MAX_SERVICE_IDS as u16 {
            let slot = places.get(&number.into(), 0)?;
            // Numbers are assigned in order: an unused one ends the list.
            if number != NO_SERVICE && slot.name[0] == 0 {
                break;
            }
            named.push((number, slot));
        }
        Ok(named)
    }

    /// Stores the service ids. `cells`: the id of the map that has the slices.
    pub fn set_service_ids(
        &mut self,
        service_ids: &ServiceIds,
        cells: u32,
    ) -> Result<(), MapError> {
        let mut places = Array::<_, ServiceIdSlot>::try_from(&mut self.places)?;
        let host = ServiceId {
            number: NO_SERVICE,
            idle: 0,
            derived_from: None,
        };
        let placed = service_ids.places.iter();
        let placed = placed.map(|(name, place)| (name.as_str(), *place));
        for (name, place) in placed.chain([("", host)]) {
            let ServiceId {
                number,
                idle,
                derived_from,
            } = place;
            let slice = service_ids.slices.get(name);
            let slot = ServiceIdSlot {
                name: bytes_of::<MAX_NAME>(name),
                first_cell: slice.map_or(0, |slice| slice.first_cell),
                cell_mask: slice.map_or(0, |slice| slice.cell_mask),
                cells: slice.map_or(0, |_| cells),
                derived_from: derived_from.unwrap_or(NO_SERVICE),
                idle,
            };
            places.set(number.into(), slot, 0)?;
        }
        // A policy that is put back may have fewer service ids than the one that failed.
        let given = service_ids.places.values().map(|place| place.number).max();
        for number in given.unwrap_or(NO_SERVICE) + 1..MAX_SERVICE_IDS as u16 {
            if places.get(&number.into(), 0)?.name[0] == 0 {
                break;
            }
            places.set(number.into(), empty_slot(), 0)?;
        }
        Ok(())
    }

    /// The pinned maps that a generation with these tables can use. `cells`: its services keep their cells.
    pub(super) fn reusable(&self, tables: &Tables, cells: bool) -> Vec<(&'static str, PathBuf)> {
        let used = shared_maps(tables).into_iter();
        used.filter(|map| cells || !CELLS.contains(&map.name))
            .filter(|map| map.fits(&self.pins, map.name))
            .map(|map| (map.name, self.pins.path(map.name)))
            .collect()
    }

    /// Opens a shared map for reading.
    pub(super) fn map(&self, name: &'static str) -> Result<Map, StateError> {
        let data = MapData::from_pin(self.pins.path(name))?;
        Ok(Map::from_map_data(data)?)
    }
}

/// The maps that can have the cells of sources.
const CELLS: [&str; 2] = [layout::CELLS, layout::NARROW_CELLS];

/// The maps that generations share, if their tables need them.
pub(super) const SHARED: [&str; 19] = [
    layout::INTERFACES,
    layout::COUNTER_ROWS,
    layout::TALKER_ROWS,
    layout::CLOSED_PORT_ROWS,
    layout::LOSS_ROWS,
    layout::CAPTURE,
    layout::GRANT,
    layout::EVENTS,
    layout::TOTALS,
    layout::FRAGMENTS,
    layout::HOST_BUCKETS,
    layout::CELLS,
    layout::NARROW_CELLS,
    layout::FLOWS,
    layout::OPENED_FLOWS,
    layout::UNSOLICITED,
    layout::VERIFIED,
    layout::FLOODS,
    layout::PREVIOUS,
];

/// A map that generations share, and its required properties.
pub(super) struct SharedMap {
    pub name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    entries: u32,
}

impl SharedMap {
    pub(super) const fn array(
        name: &'static str,
        kind: MapType,
        value: usize,
        entries: u32,
    ) -> Self {
        Self {
            name,
            kind,
            key: size_of::<u32>(),
            value,
            entries,
        }
    }

    /// An array of maps with the tables of interfaces.
    pub(super) const fn rows(name: &'static str, entries: u32) -> Self {
        Self::array(name, MapType::ArrayOfMaps, size_of::<u32>(), entries)
    }

    /// Whether the map that is pinned with this name has these properties. Opening a pin does not check them.
    pub(super) fn fits(&self, pins: &Pins, name: &str) -> bool {
        map_info(pins, name).is_some_and(|info| {
            info.map_type().is_ok_and(|kind| kind == self.kind)
                && info.key_size() as usize == self.key
                && info.value_size() as usize == self.value
                && info.max_entries() == self.entries
        })
    }
}

/// The maps that a generation with these tables shares with others.
pub(super) fn shared_maps(tables: &Tables) -> Vec<SharedMap> {
    let array = SharedMap::array;
    let rows = SharedMap::rows;
    let flows = |name| SharedMap {
        name,
        kind: MapType::LruHash,
        key: size_of::<FlowKey>(),
        value: size_of::<u64>(),
        entries: MAX_FLOWS,
    };
    let cell = size_of::<Cell>();
    let places = size_of::<[InterfacePlace; PLACES]>();
    let mut maps = vec![
        array(layout::INTERFACES, MapType::Array, places, 1),
        rows(layout::COUNTER_ROWS, MAX_ROWS * COUNTER_PAGES),
        rows(layout::TALKER_ROWS, MAX_ROWS),
        rows(layout::CLOSED_PORT_ROWS, MAX_ROWS),
        rows(layout::LOSS_ROWS, MAX_ROWS),
        array(layout::TOTALS, MapType::Array, cell, MAX_SERVICE_IDS),
        array(
            layout::FRAGMENTS,
            MapType::Array,
            size_of::<FragmentSet>(),
            FRAGMENT_SETS,
        ),
        array(
            layout::HOST_BUCKETS,
            MapType::Array,
            size_of::<u64>(),
            host_bucket::COUNT,
        ),
        array(
            layout::CAPTURE,
            MapType::Array,
            size_of::<CaptureFilter>(),
            1,
        ),
        array(
            layout::GRANT,
            MapType::Array,
            size_of::<u64>(),
            grant::COUNT,
        ),
        SharedMap {
            name: layout::EVENTS,
            kind: MapType::RingBuf,
            key: 0,
            value: 0,
            entries: EVENTS_BYTES,
        },
    ];
    if tables.uses(feature::BUDGETS) {
        let value = if tables.uses(feature::NARROW) {
            size_of::<u64>()
        } else {
            cell
        };
        let name = tables.cells_map();
        maps.push(array(name, MapType::Array, value, tables.cells));
    }
    if tables.uses(feature::FLOODS) {
        let (line, state) = (size_of::<VerifiedLine>(), size_of::<FloodState>());
        maps.extend([
            array(layout::VERIFIED, MapType::Array, line, verified::LINES),
            array(layout::FLOODS, MapType::Array, state, MAX_SERVICE_IDS),
        ]);
    }
    if tables.uses(feature::FLOWS) {
        let opened = array(
            layout::OPENED_FLOWS,
            MapType::PerCpuArray,
            size_of::<u64>(),
            1,
        );
        maps.extend([flows(layout::FLOWS), opened, flows(layout::UNSOLICITED)]);
    }
    maps
}

pub(super) fn map_info(pins: &Pins, name: &str) -> Option<MapInfo> {
    let path = pins.path(name);
    path.exists()
        .then(|| MapInfo::from_pin(path).ok())
        .flatten()
}

fn open_array(
    pins: &Pins,
    name: &'static str,
    value: usize,
    entries: u32,
) -> Result<Option<Map>, StateError> {
    let expected = SharedMap::array(name, MapType::Array, value, entries);
    if !expected.fits(pins, name) {
        return Ok(None);
    }
    let data = MapData::from_pin(pins.path(name))?;
    Ok(Some(Map::from_map_data(data)?))
}

/// Pins a map, and opens it from the pin.
pub(super) fn open_new<V: aya::Pod>(
    pins: &Pins,
    name: &'static str,
    map: Array<MapData, V>,
) -> Result<Map, StateError> {
    let path = pins.path(name);
    map.pin(&path)?;
    let data = MapData::from_pin(path)?;
    Ok(Map::from_map_data(data)?)
}

fn empty_about(hash_key: HashKey, namespace: u64) -> About {
    About {
        hash_key,
        generation: 0,
        namespace,
        seen_ns: 0,
        trial_until: 0,
        loaded_ms: 0,
        ended_flows: 0,
        evicted_flows: 0,
        cells: 0,
        agent: 0,
        program: 0,
        next_program: 0,
        mode: 0,
        scope: 0,
        services: 0,
        mode_before: 0,
        scope_before: 0,
        sha256: [0; 32],
        version: [0; 32],
        policy: [0; 256],
    }
}

fn empty_slot() -> ServiceIdSlot {
    ServiceIdSlot {
        name: [0; MAX_NAME],
        first_cell: 0,
        cell_mask: 0,
        cells: 0,
        derived_from: NO_SERVICE,
        idle: 0,
    }
}

/// The text in a field of fixed size, padded with zeros.
pub fn text_of(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// A text as a field of fixed size: truncated, or padded with zeros.
pub(super) fn bytes_of<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    for (to, from) in bytes.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    bytes
}

fn name_of(slot: &ServiceIdSlot) -> String {
    text_of(&slot.name)
}
