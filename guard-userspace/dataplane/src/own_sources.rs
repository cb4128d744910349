//! The packet path's tables of this host's addresses, which no packet from outside has as its source: a bitmap, and the
//! hash that is looked up if the bit of a source is set.

use std::{collections::BTreeSet, net::IpAddr};

use aya::{Ebpf, maps::HashMap};
use guard_common::{
    layout::{self, OwnSource},
    martian::{OWN_WORDS, own_bit},
};
use guard_policy::split;

use super::{
    LoadError, globals,
    maps::map_mut,
    steps::{FirstError, gone},
};

/// Changes the tables to these addresses. `held` has the addresses in the hash, and stays correct if a step fails. The
/// bit of an address is set only while the hash has the address. Old addresses are removed first, to make room.
///
/// # Errors
/// A step failed. The other steps were carried out.
pub fn change(
    ebpf: &mut Ebpf,
    held: &mut BTreeSet<IpAddr>,
    after: &BTreeSet<IpAddr>,
) -> Result<(), LoadError> {
    let mut outcome = FirstError::default();
    let gone_now: Vec<IpAddr> = held.difference(after).copied().collect();
    if !gone_now.is_empty() {
        let stays = held.intersection(after);
        outcome.take(write_bits(ebpf, stays));
    }
    for address in gone_now {
        let removed = hash(ebpf).and_then(|mut hash| Ok(hash.remove(&key(address))?));
        match gone(removed) {
            Ok(()) => drop(held.remove(&address)),
            failed => outcome.take(failed),
        }
    }
    let new: Vec<IpAddr> = after.difference(held).copied().collect();
    for address in new {
        let inserted = hash(ebpf).and_then(|mut hash| Ok(hash.insert(key(address), 1, 0)?));
        if inserted.is_ok() {
            held.insert(address);
        }
        outcome.take(inserted);
    }
    // Written even if nothing differs: an earlier write may have failed.
    outcome.take(write_bits(ebpf, held.intersection(after)));
    outcome.end()
}

fn write_bits<'a>(
    ebpf: &mut Ebpf,
    addresses: impl Iterator<Item = &'a IpAddr>,
) -> Result<(), LoadError> {
    globals::write(map_mut(ebpf, layout::OWN_BITS)?, &bitmap(addresses))
}

fn hash(ebpf: &mut Ebpf) -> Result<HashMap<&mut aya::maps::MapData, OwnSource, u8>, LoadError> {
    Ok(HashMap::try_from(map_mut(ebpf, layout::OWN)?)?)
}

fn key(address: IpAddr) -> OwnSource {
    let (family, address) = split(address);
    OwnSource {
        address,
        family: family as u64,
    }
}

fn bitmap<'a>(addresses: impl Iterator<Item = &'a IpAddr>) -> [u64; OWN_WORDS as usize] {
    let mut bitmap = [0; OWN_WORDS as usize];
    for address in addresses {
        let (family, address) = split(*address);
        let bit = own_bit(address.bytes(family));
        if let Some(word) = bitmap.get_mut((bit / u64::BITS) as usize) {
            *word |= 1 << (bit % u64::BITS);
        }
    }
    bitmap
}
