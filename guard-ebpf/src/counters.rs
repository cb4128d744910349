//! Every packet is counted once, under its service and its outcome.

use guard_common::{layout::counter_index, reason::Outcome};

use crate::maps::COUNTERS;

/// Counts a packet of `length` bytes, and says how many this CPU has counted there. XDP runs to its
/// end on one CPU, so its own counter needs no atomics.
#[inline(always)]
pub fn count(service: u16, outcome: Outcome, length: u64) -> u64 {
    // The index is in range for every service that the tables can name.
    let Some(counter) = COUNTERS.get_ptr_mut(counter_index(service, outcome)) else {
        return 0;
    };
    // SAFETY: the pointer is to this CPU's own value.
    let counter = unsafe { &mut *counter };
    counter.packets += 1;
    counter.bytes += length;
    counter.packets
}
