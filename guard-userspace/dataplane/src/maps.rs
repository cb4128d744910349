//! The tables of a generation by their names, and single entries of them.

use std::io;

use aya::{
    Ebpf, Pod,
    maps::{LpmTrie, Map, MapData, lpm_trie::Key},
};
use guard_common::layout::{self, Service};
use guard_host::causes::io_error;
use ipnet::{Ipv4Net, Ipv6Net};

use super::{LoadError, globals};

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

/// What is not there need not be removed: it may have found no room.
pub(super) fn gone(removed: Result<(), LoadError>) -> Result<(), LoadError> {
    match &removed {
        Err(error) if raw_os_error(error) == Some(NOT_THERE) => Ok(()),
        _ => removed,
    }
}

/// ENOENT.
const NOT_THERE: i32 = 2;

pub(super) fn raw_os_error(error: &LoadError) -> Option<i32> {
    io_error(error).and_then(io::Error::raw_os_error)
}
