//! Every packet is counted once, under its interface, its service and its outcome.

use aya_ebpf::programs::XdpContext;
use guard_common::{
    layout::{COUNTER_PAGES, Conclusion, CounterSlot, Counters, SERVICES_PER_PAGE, feature},
    packet::Packet,
    reason::Outcome,
};

use crate::{
    barrier::masked,
    config::uses,
    interfaces::row,
    maps::{COUNTER_ROWS, COUNTERS},
};

const _: () = assert!(Outcome::SLOTS.is_power_of_two());

/// A packet that has been judged and counted.
pub struct Counted<'a, E> {
    pub conclusion: Conclusion,
    /// `None`: the packet was not parsed.
    pub packet: Option<&'a Packet<E>>,
    /// The frame's length, in bytes.
    pub length: u64,
    /// How many packets with this conclusion this CPU has counted, this packet included.
    pub number: u64,
}

/// Counts a packet of `length` bytes, and returns how many packets this CPU has counted with this conclusion. XDP runs
/// to its end on one CPU, so its own counter needs no atomics.
#[inline(always)]
pub fn count(ctx: &XdpContext, conclusion: Conclusion, length: u64) -> u64 {
    // Unreachable: there are counters for every service id in the tables.
    let Some(counters) = find(ctx, conclusion.service) else {
        return 0;
    };
    let slot = masked::<{ Outcome::SLOTS as u64 - 1 }>(conclusion.slot.into());
    // SAFETY: the pointer is to this CPU's own value, and the slot is within it.
    let counter = unsafe { &mut *counters.cast::<CounterSlot>().add(slot as usize) };
    counter.packets += 1;
    counter.bytes += length;
    counter.packets
}

#[inline(always)]
fn find(ctx: &XdpContext, service: u32) -> Option<*mut Counters> {
    if uses!(feature::ALONE)
        && let Some(counters) = COUNTERS.get_ptr_mut(service)
    {
        return Some(counters);
    }
    let page = row(ctx) * COUNTER_PAGES + service / SERVICES_PER_PAGE;
    COUNTER_ROWS.get_value_ptr_mut(page, &(service % SERVICES_PER_PAGE))
}
