//! Fills the tables of a fresh generation.

use std::collections::BTreeSet;

use aya::{
    Ebpf, Pod,
    maps::{LpmTrie, Map, MapData, lpm_trie::Key},
    util::nr_cpus,
};
use guard_common::{
    account::Advance,
    cell::ROWS,
    layout::{self, MAX_FLOWS, NO_SERVICE, Service, feature},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{LoadError, deny_list::DenyList, globals, live, networks, ports::Ports};
use crate::policy::{PortTables, Tables, is_single};

/// Room for entries that come while the generation runs. What does not fit makes the agent load another
/// generation, with more room.
const HEADROOM: u32 = 1 << 8;

/// The same beside a long list, whose hash has hardly anything.
const HEADROOM_BESIDE_LIST: u32 = 1 << 14;

/// The smallest table that the kernel makes of any kind, for what a policy does not use.
const UNUSED: u32 = 1;
const UNUSED_LRU: u32 = 1 << 10;

/// How large the tables are whose size a policy decides.
pub fn sizes(tables: &Tables, deny_list: &DenyList) -> [(&'static str, u32); 8] {
    let singles = |is_v4: bool| {
        let entries = tables.denied.iter().filter(|(prefix, expiry)| {
            is_single(prefix)
                && prefix.addr().is_ipv4() == is_v4
                && !deny_list.has(prefix, **expiry)
        });
        let count = entries.count();
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        // With every generation there is room for half as many again, so that few are needed.
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
    let addressed = u32::try_from(tables.ports.addressed.len()).unwrap_or(u32::MAX);
    let addressed = addressed.saturating_add(HEADROOM.max(addressed / 2));
    [
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
            layout::FLOWS,
            if_used(feature::FLOWS, MAX_FLOWS, UNUSED_LRU),
        ),
        (
            layout::STRANGERS,
            if_used(feature::FLOWS, MAX_FLOWS, UNUSED_LRU),
        ),
    ]
}

pub fn fill(
    ebpf: &mut Ebpf,
    ports: &Ports,
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
        for (prefix, expiry) in &service.admitted {
            let place = (service.number, *prefix);
            live::insert_at(ebpf, live::ADMITTED, place, *expiry)?;
        }
    }
    let nothing = PortTables::default();
    ports.bring(&nothing, &mut tables.ports.clone(), &BTreeSet::new())?;
    networks::change(ebpf, &[], &tables.networks)?;
    live::fill(ebpf, tables, deny_list)?;
    for (prefix, relief) in &tables.reliefs {
        match prefix {
            IpNet::V4(prefix) => insert_v4(ebpf, layout::RELIEFS_V4, prefix, *relief)?,
            IpNet::V6(prefix) => insert_v6(ebpf, layout::RELIEFS_V6, prefix, *relief)?,
        }
    }
    Ok(())
}

/// Changes the settings of services.
pub(super) fn change_services(
    ebpf: &mut Ebpf,
    change: impl FnOnce(&mut [Service]),
) -> Result<(), LoadError> {
    let map = map_mut(ebpf, layout::SERVICES)?;
    let before = globals::read(map)?;
    let mut services = before.clone();
    change(&mut services);
    if services == before {
        return Ok(());
    }
    globals::write(map, &services)
}

pub(super) fn insert_v4<V: Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
    prefix: &Ipv4Net,
    value: V,
) -> Result<(), LoadError> {
    let key = Key::new(prefix.prefix_len().into(), prefix.network().octets());
    Ok(trie(ebpf, name)?.insert(&key, value, 0)?)
}

pub(super) fn insert_v6<V: Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
    prefix: &Ipv6Net,
    value: V,
) -> Result<(), LoadError> {
    let key = Key::new(prefix.prefix_len().into(), prefix.network().octets());
    Ok(trie(ebpf, name)?.insert(&key, value, 0)?)
}

pub(super) fn map_mut<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut Map, LoadError> {
    ebpf.map_mut(name).ok_or(LoadError::Incomplete(name))
}

pub(super) fn trie<'a, K: Pod, V: Pod>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<LpmTrie<&'a mut MapData, K, V>, LoadError> {
    Ok(LpmTrie::try_from(map_mut(ebpf, name)?)?)
}
