//! The budgets that the host has whatever the policy says: for what passes without one, and for fragments that overtake
//! their first.

use guard_common::{
    address::{Address, Family},
    bucket::{charge_one, charge_pair_with_room, has_room},
    cell::{self, Share},
    fragment::{OVERTAKING, OVERTAKING_IN_ALL, memory},
    gcra::{Price, UNITS_PER_NANOSECOND},
    layout::{CONTROL_RATE, host_bucket},
    packet::IpHeader,
};

use crate::{charge::MapBucket, clock::Clock, config, maps::HOST_BUCKETS};

const SECOND: u64 = 1_000_000_000 * UNITS_PER_NANOSECOND;

/// A second's worth of packets may come at once.
const CONTROL: Price = Price {
    cost: SECOND / CONTROL_RATE,
    burst: SECOND,
};

/// What counts as one source of fragments: an address of IPv4, a /64 of IPv6.
const SOURCE_V6: Address = Address::ipv6_mask(64);

/// Whether there is room for a packet that keeps the host on its network, which is charged.
#[inline(always)]
pub fn has_room_for_control<C: Clock>() -> bool {
    guard_has_room_for_control(C::now()) != 0
}

/// A global function, which the verifier looks at once: as those below.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_has_room_for_control(now: u64) -> u32 {
    match bucket(host_bucket::CONTROL) {
        Some(bucket) => u32::from(charge_one(bucket, now, CONTROL)),
        // Unreachable; a guard that is unsure lets through.
        None => 1,
    }
}

/// Whether there is room for a fragment that came before its first, which is charged to its source and to all: to
/// neither if it is over one.
#[inline(always)]
pub fn has_room_to_overtake(ip: &impl IpHeader, now: u64, length: u64) -> bool {
    let source = match ip.family() {
        Family::Ipv4 => ip.source(),
        Family::Ipv6 => ip.source().masked(SOURCE_V6),
    };
    let hash = cell::hash(config::hash_key(), Share::Base, ip.family(), source);
    guard_has_room_to_overtake(hash, now, length) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_has_room_to_overtake(hash: u64, now: u64, length: u64) -> u32 {
    let [first, second] = cell::indices(
        hash,
        host_bucket::OVERTAKING_OF_SOURCE,
        host_bucket::SOURCE_MASK,
    );
    let (Some(all), Some(first), Some(second)) = (
        bucket(host_bucket::OVERTAKING),
        bucket(first),
        bucket(second),
    ) else {
        // Unreachable; a guard that is unsure lets through.
        return 1;
    };
    let memory = memory(length);
    let in_all = OVERTAKING_IN_ALL.price_of_bytes(memory);
    let has_room = has_room(all, now, in_all)
        && charge_pair_with_room([first, second], now, OVERTAKING.price_of_bytes(memory))
        && charge_one(all, now, in_all);
    u32::from(has_room)
}

/// The loops for whom another CPU was faster stay inline in functions of their own.
#[inline(always)]
fn bucket(index: u32) -> Option<MapBucket<true>> {
    HOST_BUCKETS.get_ptr_mut(index).map(MapBucket)
}
