//! Looks up whether an address lies inside a container network.
//!
//! Most packets are for the host itself. A bitmap has a bit for every /24 (for IPv6: every /64, hashed) that overlaps a
//! container network. It costs one load, and only packets whose bit is set are looked up in the trie.

use aya_ebpf::maps::lpm_trie::Key;
use guard_common::{
    address::{Address, Family},
    exposure::NetworkKind,
    layout::{network_bit_v4, network_bit_v6},
};

use crate::{
    global::Global,
    maps::{NETWORK_BITS_V4, NETWORK_BITS_V6, NETWORKS_V4, NETWORKS_V6},
    sources::{ipv4_key, ipv6_key},
};

/// Whether the trie may have the address.
#[inline(always)]
pub fn may_be_in_network(family: Family, address: Address) -> bool {
    match family {
        Family::Ipv4 => has_bit(&NETWORK_BITS_V4, network_bit_v4(address)),
        Family::Ipv6 => has_bit(&NETWORK_BITS_V6, network_bit_v6(address)),
    }
}

#[inline(always)]
pub fn find_network(family: Family, address: Address) -> Option<NetworkKind> {
    if !may_be_in_network(family, address) {
        return None;
    }
    let kind = match family {
        Family::Ipv4 => NETWORKS_V4.get(Key::new(32, ipv4_key(address))),
        Family::Ipv6 => NETWORKS_V6.get(Key::new(128, ipv6_key(address))),
    };
    kind.copied().map(NetworkKind::from_raw)
}

#[inline(always)]
fn has_bit<const WORDS: usize>(words: &'static Global<u64, WORDS>, bit: u32) -> bool {
    let word = words.get((bit / u64::BITS) as usize);
    word >> (bit % u64::BITS) & 1 != 0
}
