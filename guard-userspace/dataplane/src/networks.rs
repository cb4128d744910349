//! The packet path's tables of container networks: bitmaps, and the tries behind them.

use aya::Ebpf;
use guard_common::layout::{
    self, NETWORK_WORDS_V4, NETWORK_WORDS_V6, WIDEST_NETWORK_V6, network_bit_v4, network_bit_v6,
};
use guard_policy::{ContainerNetwork, split};
use ipnet::IpNet;

use super::{
    LoadError, globals,
    maps::{insert_v4, insert_v6, map_mut, trie},
    steps::gone,
};

/// Sets the bits of a network, if it is of the bitmap's family.
type Mark = fn(&ContainerNetwork, &mut [u64]);

/// Changes the tables from one set of networks to another: new ones are closed before old ones are opened.
pub fn change(
    ebpf: &mut Ebpf,
    before: &[ContainerNetwork],
    after: &[ContainerNetwork],
) -> Result<(), LoadError> {
    if before == after {
        return Ok(());
    }
    for ContainerNetwork { prefix, kind } in after.iter().filter(|one| !before.contains(one)) {
        match prefix {
            IpNet::V4(prefix) => insert_v4(ebpf, layout::NETWORKS_V4, prefix, *kind as u8)?,
            IpNet::V6(prefix) => insert_v6(ebpf, layout::NETWORKS_V6, prefix, *kind as u8)?,
        }
    }
    let bitmaps: [(_, _, Mark); 2] = [
        (layout::NETWORK_BITS_V4, NETWORK_WORDS_V4, mark_v4),
        (layout::NETWORK_BITS_V6, NETWORK_WORDS_V6, mark_v6),
    ];
    for (map, words, mark) in bitmaps {
        let bitmap = |networks: &[ContainerNetwork]| {
            let mut bitmap = vec![0; words as usize];
            networks.iter().for_each(|one| mark(one, &mut bitmap));
            bitmap
        };
        let after = bitmap(after);
        if bitmap(before) != after {
            globals::write(map_mut(ebpf, map)?, &after)?;
        }
    }
    for ContainerNetwork { prefix, .. } in before {
        if after.iter().any(|one| one.prefix == *prefix) {
            continue;
        }
        match prefix {
            IpNet::V4(prefix) => {
                let key = key(prefix.prefix_len(), prefix.network().octets());
                let removed = trie::<_, u8>(ebpf, layout::NETWORKS_V4)?.remove(&key);
                gone(removed.map_err(LoadError::from))?;
            }
            IpNet::V6(prefix) => {
                let key = key(prefix.prefix_len(), prefix.network().octets());
                let removed = trie::<_, u8>(ebpf, layout::NETWORKS_V6)?.remove(&key);
                gone(removed.map_err(LoadError::from))?;
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

fn mark_v4(network: &ContainerNetwork, bitmap: &mut [u64]) {
    if let IpNet::V4(prefix) = network.prefix {
        let subnets = prefix.subnets(prefix.prefix_len().max(24));
        for subnet in subnets.into_iter().flatten() {
            set(bitmap, network_bit_v4(split(subnet.network().into()).1));
        }
    }
}

/// Sets the bits of an IPv6 network. A wide network has more /64 than the bitmap has bits.
fn mark_v6(network: &ContainerNetwork, bitmap: &mut [u64]) {
    if let IpNet::V6(prefix) = network.prefix {
        if prefix.prefix_len() < WIDEST_NETWORK_V6 {
            bitmap.fill(u64::MAX);
            return;
        }
        let subnets = prefix.subnets(prefix.prefix_len().max(64));
        for subnet in subnets.into_iter().flatten() {
            set(bitmap, network_bit_v6(split(subnet.network().into()).1));
        }
    }
}

fn set(bitmap: &mut [u64], bit: u32) {
    if let Some(word) = bitmap.get_mut((bit / u64::BITS) as usize) {
        *word |= 1 << (bit % u64::BITS);
    }
}
