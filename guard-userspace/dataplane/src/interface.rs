//! The pinned state of one interface: its counters, its talkers, its closed ports, what a capture lost there, and where its programs are.
//! All generations use the same counters.

use std::path::PathBuf;

use aya::maps::{Array, Map, MapData, MapError, MapType, PerCpuArray};
use guard_common::{
    interfaces::UNKNOWN_ROW,
    layout::{
        self, AboutInterface, CLOSED_PORT_ENTRIES, COUNTER_PAGES, ClosedPortSlot, Counters,
        SERVICES_PER_PAGE, TALKER_ENTRIES, TalkerSlot,
    },
    reason::Outcome,
};

use super::{
    pins::Pins,
    state::{SharedMap, StateError, open_new},
};

/// The tables of one interface, or those for interfaces without a row.
pub struct InterfaceTables {
    pub(super) pins: Pins,
    /// Pages of [`Counters`]; there is at least the first.
    pub(super) counters: Vec<Map>,
    pub(super) talkers: Map,
    pub(super) closed_ports: Map,
    pub(super) losses: Map,
}

impl InterfaceTables {
    /// Opens the pinned tables. `None`: they are missing, or of another layout.
    pub(super) fn existing(pins: &Pins) -> Result<Option<Self>, StateError> {
        let mut counters = Vec::new();
        for page in 0..COUNTER_PAGES {
            match open(pins, &page_map(), &page_name(page))? {
                Some(map) => counters.push(map),
                None => break,
            }
        }
        let talkers = open(pins, &talkers_map(), layout::TALKERS)?;
        let closed_ports = open(pins, &closed_ports_map(), layout::CLOSED_PORTS)?;
        let losses = open(pins, &losses_map(), layout::LOSSES)?;
        let (Some(talkers), Some(closed_ports), Some(losses), false) =
            (talkers, closed_ports, losses, counters.is_empty())
        else {
            return Ok(None);
        };
        Ok(Some(Self {
            pins: pins.clone(),
            counters,
            talkers,
            closed_ports,
            losses,
        }))
    }

    pub(super) fn create(pins: &Pins) -> Result<Self, StateError> {
        for page in 0..COUNTER_PAGES {
            pins.remove(&page_name(page))?;
        }
        pins.remove(layout::TALKERS)?;
        pins.remove(layout::CLOSED_PORTS)?;
        pins.remove(layout::LOSSES)?;
        let talkers = PerCpuArray::<_, TalkerSlot>::create(TALKER_ENTRIES, 0)?;
        talkers.pin(pins.path(layout::TALKERS))?;
        let closed_ports = PerCpuArray::<_, ClosedPortSlot>::create(CLOSED_PORT_ENTRIES, 0)?;
        closed_ports.pin(pins.path(layout::CLOSED_PORTS))?;
        let losses = PerCpuArray::<_, u64>::create(Outcome::SLOTS, 0)?;
        losses.pin(pins.path(layout::LOSSES))?;
        Ok(Self {
            counters: vec![create_page(pins, 0)?],
            talkers: open_pinned(pins, layout::TALKERS)?,
            closed_ports: open_pinned(pins, layout::CLOSED_PORTS)?,
            losses: open_pinned(pins, layout::LOSSES)?,
            pins: pins.clone(),
        })
    }

    /// Creates counters for every service up to this number, if they are missing.
    pub(super) fn reach(&mut self, highest: u16) -> Result<(), StateError> {
        let pages = u32::from(highest) / SERVICES_PER_PAGE + 1;
        while (self.counters.len() as u32) < pages.min(COUNTER_PAGES) {
            let page = self.counters.len() as u32;
            self.pins.remove(&page_name(page))?;
            self.counters.push(create_page(&self.pins, page)?);
        }
        Ok(())
    }

    /// Pins tables again whose pins were removed by hand.
    pub(super) fn restore_pins(&self) -> Result<(), StateError> {
        let pages = (0..).zip(&self.counters);
        let pages = pages.map(|(page, map)| (page_name(page), map));
        let rest = [
            (layout::TALKERS.to_owned(), &self.talkers),
            (layout::CLOSED_PORTS.to_owned(), &self.closed_ports),
            (layout::LOSSES.to_owned(), &self.losses),
        ];
        for (name, map) in pages.chain(rest) {
            if !self.pins.has(&name) {
                map.pin(self.pins.path(&name))?;
            }
        }
        Ok(())
    }

    /// The pins of the tables that a program for this interface alone uses directly, without a row.
    pub(super) fn pins_of_alone(&self) -> [(&'static str, PathBuf); 4] {
        [
            (layout::COUNTERS, self.pins.path(&page_name(0))),
            (layout::TALKERS, self.pins.path(layout::TALKERS)),
            (layout::CLOSED_PORTS, self.pins.path(layout::CLOSED_PORTS)),
            (layout::LOSSES, self.pins.path(layout::LOSSES)),
        ]
    }
}

/// The state of one interface.
pub struct InterfaceState {
    pub(super) pins: Pins,
    /// An array of one [`AboutInterface`].
    about: Map,
    pub(super) tables: InterfaceTables,
}

impl InterfaceState {
    /// Opens the pinned state. `None`: there is none that this layout can read.
    pub fn existing(pins: &Pins) -> Result<Option<Self>, StateError> {
        let about = open(pins, &about_map(), layout::ABOUT_INTERFACE)?;
        let tables = InterfaceTables::existing(pins)?;
        let (Some(about), Some(tables)) = (about, tables) else {
            return Ok(None);
        };
        Ok(Some(Self {
            pins: pins.clone(),
            about,
            tables,
        }))
    }

    /// Creates the state. `host`: identifies the shared state, see [`AboutInterface::host`].
    pub(super) fn create(pins: Pins, host: u64, row: u32) -> Result<Self, StateError> {
        pins.prepare()?;
        pins.remove(layout::ABOUT_INTERFACE)?;
        let mut about = Array::<_, AboutInterface>::create(1, 0)?;
        let first = AboutInterface {
            host,
            row,
            ..AboutInterface::default()
        };
        about.set(0, first, 0)?;
        Ok(Self {
            tables: InterfaceTables::create(&pins)?,
            about: open_new(&pins, layout::ABOUT_INTERFACE, about)?,
            pins,
        })
    }

    /// Counters, talkers, closed ports and losses.
    pub fn tables(&self) -> &InterfaceTables {
        &self.tables
    }

    /// The state for readers of the pins.
    pub fn about(&self) -> Result<AboutInterface, MapError> {
        Array::<_, AboutInterface>::try_from(&self.about)?.get(&0, 0)
    }

    pub(super) fn set_about(&mut self, about: &AboutInterface) -> Result<(), MapError> {
        Array::<_, AboutInterface>::try_from(&mut self.about)?.set(0, *about, 0)
    }

    pub(super) fn row(&self) -> u32 {
        self.about().map_or(UNKNOWN_ROW, |about| about.row)
    }

    /// Pins maps again whose pins were removed by hand.
    pub(super) fn restore_pins(&self) -> Result<(), StateError> {
        self.pins.prepare()?;
        if !self.pins.has(layout::ABOUT_INTERFACE) {
            self.about.pin(self.pins.path(layout::ABOUT_INTERFACE))?;
        }
        self.tables.restore_pins()
    }
}

fn page_name(page: u32) -> String {
    format!("{}_{page}", layout::COUNTERS)
}

fn create_page(pins: &Pins, page: u32) -> Result<Map, StateError> {
    let name = page_name(page);
    PerCpuArray::<_, Counters>::create(SERVICES_PER_PAGE, 0)?.pin(pins.path(&name))?;
    open_pinned(pins, &name)
}

fn about_map() -> SharedMap {
    SharedMap::array(
        layout::ABOUT_INTERFACE,
        MapType::Array,
        size_of::<AboutInterface>(),
        1,
    )
}

fn page_map() -> SharedMap {
    SharedMap::array(
        layout::COUNTERS,
        MapType::PerCpuArray,
        size_of::<Counters>(),
        SERVICES_PER_PAGE,
    )
}

fn talkers_map() -> SharedMap {
    SharedMap::array(
        layout::TALKERS,
        MapType::PerCpuArray,
        size_of::<TalkerSlot>(),
        TALKER_ENTRIES,
    )
}

fn closed_ports_map() -> SharedMap {
    SharedMap::array(
        layout::CLOSED_PORTS,
        MapType::PerCpuArray,
        size_of::<ClosedPortSlot>(),
        CLOSED_PORT_ENTRIES,
    )
}

fn losses_map() -> SharedMap {
    SharedMap::array(
        layout::LOSSES,
        MapType::PerCpuArray,
        size_of::<u64>(),
        Outcome::SLOTS,
    )
}

fn open(pins: &Pins, expected: &SharedMap, name: &str) -> Result<Option<Map>, StateError> {
    if !expected.fits(pins, name) {
        return Ok(None);
    }
    open_pinned(pins, name).map(Some)
}

pub(super) fn open_pinned(pins: &Pins, name: &str) -> Result<Map, StateError> {
    let data = MapData::from_pin(pins.path(name))?;
    Ok(Map::from_map_data(data)?)
}
