//! Budgets that apply under every policy: for control packets, and for fragments that overtake their first fragment.

use guard_common::{
    address::{Address, Family},
    bucket::{charge_one, charge_pair_with_room, has_room},
    cell::{self, Share},
    fragment::{OVERTAKING, OVERTAKING_IN_ALL, memory},
    gcra::{Price, UNITS_PER_NANOSECOND},
    layout::{CONTROL_RATE, DHCP_REPLY_RATE, host_bucket},
    packet::IpHeader,
};

use crate::{charge::MapBucket, clock::Clock, config, maps::HOST_BUCKETS};

const SECOND: u64 = 1_000_000_000 * UNITS_PER_NANOSECOND;

/// The burst is one second's worth of packets.
const fn per_second(rate: u64) -> Price {
    Price {
        cost: SECOND / rate,
        burst: SECOND,
    }
}

const CONTROL: Price = per_second(CONTROL_RATE);
const DHCP_REPLY: Price = per_second(DHCP_REPLY_RATE);

/// One source of fragments is an IPv4 address, or an IPv6 /64.
const SOURCE_V6: Address = Address::ipv6_mask(64);

/// Charges a control packet; `false`: the budget is used up. `is_dhcp`: a DHCP reply over IPv4, which may have crossed
/// routers, so it has a budget of its own.
#[inline(always)]
pub fn has_room_for_control<C: Clock>(is_dhcp: bool) -> bool {
    guard_has_room_for_control(C::now(), u32::from(is_dhcp)) != 0
}

/// A global function, like those below: the verifier checks it once (Linux 5.6).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_has_room_for_control(now: u64, is_dhcp: u32) -> u32 {
    let (index, price) = if is_dhcp != 0 {
        (host_bucket::DHCP_REPLY, DHCP_REPLY)
    } else {
        (host_bucket::CONTROL, CONTROL)
    };
    match bucket(index) {
        Some(bucket) => u32::from(charge_one(bucket, now, price)),
        // Unreachable. If it happens, the packet passes.
        None => 1,
    }
}

/// Charges a fragment that arrived before its first fragment to its source and to all sources. `false`: it is over one
/// of the two budgets, and is charged to neither, unless another CPU took the room of the second meanwhile.
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
        // Unreachable. If it happens, the packet passes.
        return 1;
    };
    let memory = memory(length);
    let in_all = OVERTAKING_IN_ALL.price_of_bytes(memory);
    let has_room = has_room(all, now, in_all)
        && charge_pair_with_room([first, second], now, OVERTAKING.price_of_bytes(memory))
        && charge_one(all, now, in_all);
    u32::from(has_room)
}

/// A bucket of the map. Its retry loops, for a bucket that another CPU changed meanwhile, are inlined into the
/// functions above.
#[inline(always)]
fn bucket(index: u32) -> Option<MapBucket<true>> {
    HOST_BUCKETS.get_ptr_mut(index).map(MapBucket)
}
