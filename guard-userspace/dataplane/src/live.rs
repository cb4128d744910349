//! Changes the tables of a running generation: published ports, container networks, denied and allowed sources. The
//! same code fills a new generation, as a change from empty tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::IpAddr,
};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, lpm_trie::Key},
};
use guard_common::layout::{self, AdmittedKey, Expiry, SERVICE_BITS, ServiceSlot, list};
use guard_policy::{PrefixExpiries, Tables, is_single};
use ipnet::IpNet;

use super::{
    Generation, LoadError, batch,
    deny_list::DenyList,
    maps::{change_services, insert_v4, insert_v6, map_mut, trie},
    networks, own_sources,
    ports::PortUpdates,
    steps::{FirstError, gone, raw_os_error},
};

/// The names of two tries with the lists of all services: IPv4 and IPv6.
type Tries = (&'static str, &'static str);

pub const ADMITTED: Tries = (layout::ADMITTED_V4, layout::ADMITTED_V6);
const DENIED_AT: Tries = (layout::DENIED_AT_V4, layout::DENIED_AT_V6);
const ALLOWED: Tries = (layout::ALLOWED_V4, layout::ALLOWED_V6);

impl Generation {
    /// Changes the tables of this running generation to those of `next`, which must have the same policy and service
    /// ids: only entries, published ports and networks may differ.
    ///
    /// # Errors
    /// A change failed. If another generation is needed, [`needs_new_generation`] is true of the error. The changes that
    /// succeeded are in force.
    pub fn change(
        &mut self,
        mut next: Tables,
        news: &mut PortUpdates<'_>,
    ) -> Result<(), LoadError> {
        let Self {
            ebpf,
            tables,
            ports,
            deny_list,
            ..
        } = self;
        let lacks = next.features & !tables.features;
        next.features = tables.features;
        let ports = ports.bring(&tables.ports, &mut next.ports, news);
        let networks = networks::change(ebpf, &tables.networks, &next.networks);
        if networks.is_err() {
            next.networks.clone_from(&tables.networks);
        }
        let mut held = mem::take(&mut tables.own_sources);
        let own = own_sources::change(ebpf, &mut held, &next.own_sources);
        next.own_sources = held;
        if differ_in_addresses(&tables.denied, &next.denied) {
            deny_list.look_up_hashes();
        }
        let lists = change(ebpf, Some(tables), &next, deny_list);
        if lists.is_err() {
            doubt(&mut next.denied, &tables.denied);
            doubt(&mut next.denied_at, &tables.denied_at);
            doubt(&mut next.allowed, &tables.allowed);
        }
        *tables = next;
        ports.and(networks).and(own).and(lists)?;
        if lacks == 0 {
            Ok(())
        } else {
            Err(LoadError::Lacks(lacks))
        }
    }

    /// Changes the table of this host's own addresses to these, and leaves the other tables unchanged.
    ///
    /// # Errors
    /// A step failed. The other steps were carried out.
    pub fn change_own_sources(&mut self, next: &BTreeSet<IpAddr>) -> Result<(), LoadError> {
        let next = guard_policy::fitting(next);
        own_sources::change(&mut self.ebpf, &mut self.tables.own_sources, &next)
    }
}

/// Whether loading another generation helps: a table is full (E2BIG of a hash, ENOSPC of a trie), or the program was
/// loaded without a feature that is needed now.
pub fn needs_new_generation(error: &LoadError) -> bool {
    if matches!(error, LoadError::Lacks(_)) {
        return true;
    }
    matches!(raw_os_error(error), Some(7 | 28))
}

/// Marks entries that a failed change may have left in a table, so that the next change writes or removes them again.
fn doubt<K: Clone + Ord>(after: &mut BTreeMap<K, Expiry>, before: &BTreeMap<K, Expiry>) {
    for (key, expiry) in after.iter_mut() {
        if before.get(key) != Some(expiry) {
            *expiry = Expiry::OVER;
        }
    }
    for key in before.keys() {
        after.entry(key.clone()).or_insert(Expiry::OVER);
    }
}

/// Writes the denied and allowed sources into the empty tables of a new generation, except those in its deny list.
pub(super) fn fill(
    ebpf: &mut Ebpf,
    tables: &Tables,
    deny_list: &DenyList,
) -> Result<(), LoadError> {
    change(ebpf, None, tables, deny_list)
}

/// Whether a single address is denied in one of both and not, or with another end, in the other.
fn differ_in_addresses(before: &BTreeMap<IpNet, Expiry>, after: &BTreeMap<IpNet, Expiry>) -> bool {
    let mut news = news(before, after).chain(news(after, before));
    news.any(|(prefix, _)| is_single(prefix))
}

/// Writes new entries, then removes old ones: meanwhile a source may be listed twice, but never not at all. The flags
/// of a table are set before its first entry and cleared after its last.
///
/// An entry that finds no room does not stop the others.
fn change(
    ebpf: &mut Ebpf,
    before: Option<&Tables>,
    after: &Tables,
    deny_list: &DenyList,
) -> Result<(), LoadError> {
    let mut outcome = FirstError::default();
    let none = BTreeMap::new();
    let none_at = PrefixExpiries::new();
    let denied = before.map_or(&none, |tables| &tables.denied);
    let denied_at = before.map_or(&none_at, |tables| &tables.denied_at);
    let allowed = before.map_or(&none_at, |tables| &tables.allowed);
    // A flag for an empty table costs a lookup. A missing flag would let sources pass that are only in that table.
    let flags = after.live() | before.map_or(0, Tables::live);
    outcome.take(set_flags(ebpf, deny_list.flags(flags)));
    let mut allowance = FirstError::default();
    let mut is_denied = false;
    for (place, expiry) in news(allowed, &after.allowed) {
        allowance.take(insert_at(ebpf, ALLOWED, *place, *expiry));
    }
    let (had, has) = (services_of(denied_at), services_of(&after.denied_at));
    // A source that is both allowed and denied passes. If an allow entry found no room, deny entries are not written,
    // so that no allowed source is dropped.
    if allowance.is_well() {
        let new = news(denied, &after.denied);
        let written = if before.is_none() {
            let rest = new.filter(|(prefix, expiry)| !deny_list.has(prefix, **expiry));
            deny(ebpf, rest)
        } else {
            deny_again(ebpf, deny_list, denied, new)
        };
        is_denied = written.is_ok();
        outcome.take(written);
        for (place, expiry) in news(denied_at, &after.denied_at) {
            outcome.take(insert_at(ebpf, DENIED_AT, *place, *expiry));
        }
        // Also for services that had entries before: their flag may not have been written.
        outcome.take(mark_denied(ebpf, &has, true));
    }
    outcome.take(allowance.end());
    for prefix in denied.keys().filter(|key| !after.denied.contains_key(key)) {
        // A new prefix inside this one replaces it, and may have found no room: then this one stays.
        if !is_denied && news(denied, &after.denied).any(|(new, _)| prefix.contains(new)) {
            continue;
        }
        if let IpNet::V4(v4) = prefix
            && is_single(prefix)
        {
            outcome.take(deny_list.remove(ebpf, v4.addr()));
        }
        outcome.take(gone(undeny(ebpf, prefix)));
    }
    for place in denied_at
        .keys()
        .filter(|key| !after.denied_at.contains_key(key))
    {
        outcome.take(gone(remove_at(ebpf, DENIED_AT, *place)));
    }
    outcome.take(mark_denied(ebpf, &(&had - &has), false));
    for place in allowed
        .keys()
        .filter(|key| !after.allowed.contains_key(key))
    {
        outcome.take(gone(remove_at(ebpf, ALLOWED, *place)));
    }
    if outcome.is_well() {
        outcome.take(set_flags(ebpf, deny_list.flags(after.live())));
    }
    outcome.end()
}

fn services_of(listed: &PrefixExpiries) -> BTreeSet<u16> {
    listed.keys().map(|(service, _)| *service).collect()
}

/// Sets the flag of each service at which sources are denied.
fn mark_denied(
    ebpf: &mut Ebpf,
    services: &BTreeSet<u16>,
    is_denied: bool,
) -> Result<(), LoadError> {
    if services.is_empty() {
        return Ok(());
    }
    change_services(ebpf, |table| {
        for service in services {
            if let Some(ServiceSlot { lists, .. }) = table.get_mut(usize::from(*service)) {
                *lists &= !list::DENIED;
                if is_denied {
                    *lists |= list::DENIED;
                }
            }
        }
    })
}

/// The entries of `after` that `before` has not, or has with another end.
fn news<'a, K: Ord>(
    before: &'a BTreeMap<K, Expiry>,
    after: &'a BTreeMap<K, Expiry>,
) -> impl Iterator<Item = (&'a K, &'a Expiry)> {
    after
        .iter()
        .filter(|(key, expiry)| before.get(key) != Some(expiry))
}

/// Addresses are written into hashes and prefixes into tries: a trie with a million entries is slow to look up, and
/// slower to free.
fn deny<'a>(
    ebpf: &mut Ebpf,
    news: impl Iterator<Item = (&'a IpNet, &'a Expiry)>,
) -> Result<(), LoadError> {
    let (mut keys_v4, mut values_v4) = (Vec::new(), Vec::new());
    let (mut keys_v6, mut values_v6) = (Vec::new(), Vec::new());
    for (prefix, expiry) in news {
        match prefix {
            IpNet::V4(v4) if is_single(prefix) => {
                keys_v4.push(v4.addr().octets());
                values_v4.push(*expiry);
            }
            IpNet::V6(v6) if is_single(prefix) => {
                keys_v6.push(v6.addr().octets());
                values_v6.push(*expiry);
            }
            IpNet::V4(v4) => insert_v4(ebpf, layout::DENIED_PREFIXES_V4, v4, *expiry)?,
            IpNet::V6(v6) => insert_v6(ebpf, layout::DENIED_PREFIXES_V6, v6, *expiry)?,
        }
    }
    batch::insert(map_mut(ebpf, layout::DENIED_V4)?, &keys_v4, &values_v4)?;
    batch::insert(map_mut(ebpf, layout::DENIED_V6)?, &keys_v6, &values_v6)
}

/// The same in a running generation, whose deny list has room as well.
fn deny_again<'a>(
    ebpf: &mut Ebpf,
    deny_list: &DenyList,
    before: &BTreeMap<IpNet, Expiry>,
    news: impl Iterator<Item = (&'a IpNet, &'a Expiry)>,
) -> Result<(), LoadError> {
    let mut rest = Vec::new();
    for (prefix, expiry) in news {
        if !deny_list.add(ebpf, prefix, *expiry)? {
            rest.push((prefix, expiry));
        }
    }
    deny(ebpf, rest.iter().copied())?;
    // These addresses are in the hash now. The list may have one only if it was denied without an end before, or if an
    // earlier change failed (`Expiry::OVER`).
    for (prefix, _) in rest {
        if let IpNet::V4(v4) = prefix
            && is_single(prefix)
            && matches!(before.get(prefix), Some(&Expiry::NEVER | &Expiry::OVER))
        {
            deny_list.remove(ebpf, v4.addr())?;
        }
    }
    Ok(())
}

fn undeny(ebpf: &mut Ebpf, prefix: &IpNet) -> Result<(), LoadError> {
    match prefix {
        IpNet::V4(v4) if is_single(prefix) => {
            hash::<[u8; 4]>(ebpf, layout::DENIED_V4)?.remove(&v4.addr().octets())?;
        }
        IpNet::V6(v6) if is_single(prefix) => {
            hash::<[u8; 16]>(ebpf, layout::DENIED_V6)?.remove(&v6.addr().octets())?;
        }
        IpNet::V4(v4) => {
            let key = Key::new(v4.prefix_len().into(), v4.network().octets());
            trie::<_, Expiry>(ebpf, layout::DENIED_PREFIXES_V4)?.remove(&key)?;
        }
        IpNet::V6(v6) => {
            let key = Key::new(v6.prefix_len().into(), v6.network().octets());
            trie::<_, Expiry>(ebpf, layout::DENIED_PREFIXES_V6)?.remove(&key)?;
        }
    }
    Ok(())
}

pub(super) fn insert_at(
    ebpf: &mut Ebpf,
    (v4, v6): Tries,
    (service, prefix): (u16, IpNet),
    expiry: Expiry,
) -> Result<(), LoadError> {
    match prefix {
        IpNet::V4(prefix) => {
            let key = key_at(service, prefix.prefix_len(), prefix.network().octets());
            trie(ebpf, v4)?.insert(&key, expiry, 0)?;
        }
        IpNet::V6(prefix) => {
            let key = key_at(service, prefix.prefix_len(), prefix.network().octets());
            trie(ebpf, v6)?.insert(&key, expiry, 0)?;
        }
    }
    Ok(())
}

fn remove_at(
    ebpf: &mut Ebpf,
    (v4, v6): Tries,
    (service, prefix): (u16, IpNet),
) -> Result<(), LoadError> {
    match prefix {
        IpNet::V4(prefix) => {
            let key = key_at(service, prefix.prefix_len(), prefix.network().octets());
            trie::<_, Expiry>(ebpf, v4)?.remove(&key)?;
        }
        IpNet::V6(prefix) => {
            let key = key_at(service, prefix.prefix_len(), prefix.network().octets());
            trie::<_, Expiry>(ebpf, v6)?.remove(&key)?;
        }
    }
    Ok(())
}

fn key_at<const BYTES: usize>(
    service: u16,
    length: u8,
    address: [u8; BYTES],
) -> Key<AdmittedKey<BYTES>> {
    let service = service.into();
    Key::new(
        SERVICE_BITS + u32::from(length),
        AdmittedKey { service, address },
    )
}

fn hash<'a, K: Pod>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<HashMap<&'a mut aya::maps::MapData, K, Expiry>, LoadError> {
    Ok(HashMap::try_from(map_mut(ebpf, name)?)?)
}

fn set_flags(ebpf: &mut Ebpf, flags: u32) -> Result<(), LoadError> {
    let mut section = Array::<_, u32>::try_from(map_mut(ebpf, layout::LIVE)?)?;
    Ok(section.set(0, flags, 0)?)
}
