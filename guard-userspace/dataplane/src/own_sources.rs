//! The addresses of this host, which no packet from outside comes from: a bitmap that says where it is worth to ask, and
//! a hash that knows.

use std::{collections::BTreeSet, net::IpAddr};

use aya::{Ebpf, maps::HashMap};
use guard_common::{
    layout::{self, OwnSource},
    martian::{OWN_WORDS, own_bit},
};
use guard_policy::split;

use super::{LoadError, globals, maps::map_mut, steps::gone};

/// Changes the tables from one set of addresses to another. The bitmap gets an address after the hash has it, and loses
/// it before the hash does.
pub fn change(
    ebpf: &mut Ebpf,
    before: &BTreeSet<IpAddr>,
    after: &BTreeSet<IpAddr>,
) -> Result<(), LoadError> {
    if before == after {
        return Ok(());
    }
    for address in after.difference(before) {
        hash(ebpf)?.insert(key(*address), 1, 0)?;
    }
    globals::write(map_mut(ebpf, layout::OWN_BITS)?, &bitmap(after))?;
    for address in before.difference(after) {
        let removed = hash(ebpf)?.remove(&key(*address));
        gone(removed.map_err(LoadError::from))?;
    }
    Ok(())
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

fn bitmap(addresses: &BTreeSet<IpAddr>) -> [u64; OWN_WORDS as usize] {
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
