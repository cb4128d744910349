//! Fills the maps of a new generation.

use std::collections::BTreeSet;

use aya::{Ebpf, maps::Array, util::nr_cpus};
use guard_common::{
    account::Advance,
    cell::ROWS,
    interfaces::MAX_ROWS,
    layout::{
        self, CLOSED_PORT_ENTRIES, COUNTER_PAGES, MAX_FLOWS, MAX_SERVICE_IDS, NO_SERVICE,
        TALKER_ENTRIES, feature,
    },
    reason::Outcome,
    verified,
};
use guard_policy::{PortTables, Tables, is_single};
use ipnet::IpNet;

use super::{
    LoadError,
    deny_list::DenyList,
    live,
    maps::{change_services, insert_v4, insert_v6},
    networks, own_sources,
    ports::{PortUpdates, SharedPortMaps},
};

/// Entries that can be added while the generation runs. When there is no room left, the agent loads another generation
/// with more.
const HEADROOM: u32 = 1 << 8;

/// The headroom of the hash beside a deny list. The list has most addresses, so the hash is nearly empty.
const HEADROOM_BESIDE_LIST: u32 = 1 << 14;

/// The smallest map of any kind, for features that a policy does not use.
const UNUSED: u32 = 1;
const UNUSED_LRU: u32 = 1 << 10;

/// The sizes of the maps whose size depends on the policy, or on whether the generation is attached to interfaces.
pub fn sizes(
    tables: &Tables,
    deny_list: &DenyList,
    is_attached: bool,
) -> [(&'static str, u32); 19] {
    let singles = |is_v4: bool| {
        let entries = tables.denied.iter().filter(|(prefix, expiry)| {
            is_single(prefix)
                && prefix.addr().is_ipv4() == is_v4
                && !deny_list.has(prefix, **expiry)
        });
        let count = entries.count();
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        // Each generation has room for half as many more, so that few reloads are needed.
        let headroom = if is_v4 && deny_list.line_bits() != 0 {
            HEADROOM_BESIDE_LIST
        } else {
            HEADROOM
        };
        count.saturating_add(headroom.max(count / 2))
    };
    let if_used = |feature, size, unused| if tables.uses(feature) { size } else { unused };
    let cells = |map| {
        if map == tables.cells_map() {
            if_used(feature::BUDGETS, tables.cells, ROWS)
        } else {
            ROWS
        }
    };
    let of_rows = |rows| if is_attached { rows } else { UNUSED };
    let addressed = u32::try_from(tables.ports.addressed.len()).unwrap_or(u32::MAX);
    let addressed = addressed.saturating_add(HEADROOM.max(addressed / 2));
    [
        (layout::COUNTER_ROWS, of_rows(MAX_ROWS * COUNTER_PAGES)),
        (layout::TALKER_ROWS, of_rows(MAX_ROWS)),
        (layout::CLOSED_PORT_ROWS, of_rows(MAX_ROWS)),
        (layout::LOSS_ROWS, of_rows(MAX_ROWS)),
        (
            layout::COUNTERS,
            if_used(feature::ALONE, MAX_SERVICE_IDS, UNUSED),
        ),
        (
            layout::TALKERS,
            if_used(feature::ALONE, TALKER_ENTRIES, UNUSED),
        ),
        (
            layout::CLOSED_PORTS,
            if_used(feature::ALONE, CLOSED_PORT_ENTRIES, UNUSED),
        ),
        (
            layout::LOSSES,
            if_used(feature::ALONE, Outcome::SLOTS, UNUSED),
        ),
        (layout::CELLS, cells(layout::CELLS)),
        (layout::NARROW_CELLS, cells(layout::NARROW_CELLS)),
        (layout::DENIED_LINES, deny_list.size()),
        (layout::DENIED_V4, singles(true)),
        (layout::DENIED_V6, singles(false)),
        (
            layout::ADDRESSED,
            if_used(feature::ADDRESSED, addressed, UNUSED),
        ),
        (
            layout::VERIFIED,
            if_used(feature::FLOODS, verified::LINES, UNUSED),
        ),
        (
            layout::FLOOD_SETTINGS,
            if_used(feature::FLOODS, MAX_SERVICE_IDS, UNUSED),
        ),
        (
            layout::FLOODS,
            if_used(feature::FLOODS, MAX_SERVICE_IDS, UNUSED),
        ),
        (
            layout::FLOWS,
            if_used(feature::FLOWS, MAX_FLOWS, UNUSED_LRU),
        ),
        (
            layout::UNSOLICITED,
            if_used(feature::FLOWS, MAX_FLOWS, UNUSED_LRU),
        ),
    ]
}

pub fn fill(
    ebpf: &mut Ebpf,
    ports: &SharedPortMaps,
    tables: &Tables,
    deny_list: &DenyList,
) -> Result<(), LoadError> {
    let settings = tables.services.iter();
    let settings = settings.map(|service| (service.number, service.settings));
    let cpus = nr_cpus().map_err(|(_, error)| LoadError::Host(error))? as u64;
    change_services(ebpf, |services| {
        for (number, mut settings) in settings.chain([(NO_SERVICE, tables.limits)]) {
            if let Some(place) = services.get_mut(usize::from(number)) {
                settings.advance = Advance::of(settings.source, cpus);
                *place = settings;
            }
        }
    })?;
    for service in &tables.services {
        if let Some(mut flood) = service.flood {
            flood.answers.cost *= cpus;
            let floods = ebpf.map_mut(layout::FLOOD_SETTINGS);
            let floods = floods.ok_or(LoadError::Incomplete(layout::FLOOD_SETTINGS))?;
            Array::try_from(floods)?.set(service.number.into(), flood, 0)?;
        }
        for (prefix, expiry) in &service.admitted {
            let place = (service.number, *prefix);
            live::insert_at(ebpf, live::ADMITTED, place, *expiry)?;
        }
    }
    let nothing = PortTables::default();
    ports.bring(
        &nothing,
        &mut tables.ports.clone(),
        &mut PortUpdates::default(),
    )?;
    networks::change(ebpf, &[], &tables.networks)?;
    own_sources::change(ebpf, &mut BTreeSet::new(), &tables.own_sources)?;
    live::fill(ebpf, tables, deny_list)?;
    for (prefix, exemption) in &tables.exemptions {
        match prefix {
            IpNet::V4(prefix) => insert_v4(ebpf, layout::EXEMPTIONS_V4, prefix, *exemption)?,
            IpNet::V6(prefix) => insert_v6(ebpf, layout::EXEMPTIONS_V6, prefix, *exemption)?,
        }
    }
    Ok(())
}
