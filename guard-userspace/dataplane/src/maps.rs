//! Opens the maps of a generation by name, and writes single entries.

use aya::{
    Ebpf, Pod,
    maps::{LpmTrie, Map, MapData, lpm_trie::Key},
};
use guard_common::layout::{self, ServiceSlot};
use ipnet::{Ipv4Net, Ipv6Net};

use super::{LoadError, globals};

/// Changes the settings of services.
pub(super) fn change_services(
    ebpf: &mut Ebpf,
    change: impl FnOnce(&mut [ServiceSlot]),
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
