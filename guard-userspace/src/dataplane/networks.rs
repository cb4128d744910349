//! The networks of containers, as the packet path knows them: a bitmap that says where it is worth to ask,
//! and tries that know.

use std::collections::{BTreeMap, BTreeSet};

use aya::Ebpf;
use guard_common::layout::{self, WIDEST_NETWORK_V6, network_bit_v4, network_bit_v6};
use ipnet::IpNet;

use super::{
    LoadError,
    fill::{array, insert_v4, insert_v6, trie},
};
use crate::policy::{ContainerNetwork, split};

/// Brings the tables from some networks to others: what is new is closed before what is gone is opened.
pub fn change(
    ebpf: &mut Ebpf,
    before: &[ContainerNetwork],
    after: &[ContainerNetwork],
) -> Result<(), LoadError> {
    for ContainerNetwork { prefix, kind } in after.iter().filter(|one| !before.contains(one)) {
        match prefix {
            IpNet::V4(prefix) => insert_v4(ebpf, layout::NETWORKS_V4, prefix, *kind as u8)?,
            IpNet::V6(prefix) => insert_v6(ebpf, layout::NETWORKS_V6, prefix, *kind as u8)?,
        }
    }
    for (map, is_v4) in [
        (layout::NETWORK_BITS_V4, true),
        (layout::NETWORK_BITS_V6, false),
    ] {
        let before = words(before, is_v4);
        let after = words(after, is_v4);
        let indices: BTreeSet<u32> = before.keys().chain(after.keys()).copied().collect();
        for index in indices {
            if before.get(&index) != after.get(&index) {
                let word = after.get(&index).copied().unwrap_or_default();
                array::<u64>(ebpf, map)?.set(index, word, 0)?;
            }
        }
    }
    for ContainerNetwork { prefix, .. } in before {
        if after.iter().any(|one| one.prefix == *prefix) {
            continue;
        }
        match prefix {
            IpNet::V4(prefix) => {
                let key = key(prefix.prefix_len(), prefix.network().octets());
                trie::<_, u8>(ebpf, layout::NETWORKS_V4)?.remove(&key)?;
            }
            IpNet::V6(prefix) => {
                let key = key(prefix.prefix_len(), prefix.network().octets());
                trie::<_, u8>(ebpf, layout::NETWORKS_V6)?.remove(&key)?;
            }
        }
    }
    Ok(())
}

fn key<const BYTES: usize>(
    length: u8,
    address: [u8; BYTES],
) -> aya::maps::lpm_trie::Key<[u8; BYTES]> {
    aya::maps::lpm_trie::Key::new(length.into(), address)
}

/// The words of the bitmap that have a bit.
fn words(networks: &[ContainerNetwork], is_v4: bool) -> BTreeMap<u32, u64> {
    let mut words = BTreeMap::new();
    let mut set = |bit: u32| *words.entry(bit / u64::BITS).or_default() |= 1 << (bit % u64::BITS);
    for ContainerNetwork { prefix, .. } in networks {
        match prefix {
            IpNet::V4(prefix) if is_v4 => {
                let first = network_bit_v4(split(prefix.network().into()).1);
                let last = network_bit_v4(split(prefix.broadcast().into()).1);
                (first..=last).for_each(&mut set);
            }
            // Of a wider one every packet asks the trie.
            IpNet::V6(prefix) if !is_v4 && prefix.prefix_len() >= WIDEST_NETWORK_V6 => {
                let subnets = prefix.subnets(prefix.prefix_len().max(64));
                for subnet in subnets.into_iter().flatten() {
                    set(network_bit_v6(split(subnet.network().into()).1));
                }
            }
            IpNet::V4(_) | IpNet::V6(_) => {}
        }
    }
    words
}
