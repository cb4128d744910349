//! The budget of a source at a service, kept in one cell of each of two rows.

use core::{
    intrinsics::{AtomicOrdering, atomic_cxchg},
    ptr::read_volatile,
};

use aya_ebpf::helpers::bpf_jiffies64;
use guard_common::{
    address::{Address, Family},
    cell,
    gcra::{Budget, Charge, charge},
    layout::Service,
    packet::Packet,
};

use crate::{config, maps::CELLS};

/// How often a charge is tried again when another CPU changed the cell meanwhile.
///
/// A CPU that loses all of them lets its packet through and charges nothing: each loss means that
/// another packet of the same cell was charged in those few nanoseconds, so what slips through is a
/// small share of what is counted, whereas a drop could hit a source within its budget.
const CHARGE_ATTEMPTS: u32 = 8;

/// Whether the packet is within the budget of its source, which is charged if so.
///
/// A packet passes if either cell has room: only a source that shares both of its cells with heavy
/// ones is limited for them. A packet that passes charges both; one that does not, none.
#[inline(always)]
pub fn within(packet: &Packet, service: u16, settings: &Service) -> bool {
    if !config::has_budgets() || !settings.packets.is_limited() {
        return true;
    }
    let prefix = packet.source.masked(source_mask(packet.family, settings));
    let hash = cell::hash(config::hash_key(), service, packet.family, prefix);
    let [first, second] = cell::indices(hash, config::cell_mask());
    let (Some(first), Some(second)) = (CELLS.get_ptr_mut(first), CELLS.get_ptr_mut(second)) else {
        // Unreachable while the mask fits the array; a guard that is unsure lets through.
        return true;
    };
    charge_either(first, second, now(), settings.packets)
}

#[inline(always)]
fn source_mask(family: Family, settings: &Service) -> Address {
    match family {
        Family::Ipv4 => Address::from_ipv4(settings.source_mask_v4),
        Family::Ipv6 => settings.source_mask_v6,
    }
}

/// The time since boot in the units of [`guard_common::gcra`], in steps of one kernel tick.
#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no preconditions (Linux 5.5 and later).
    unsafe { bpf_jiffies64() }.wrapping_mul(config::jiffy())
}

#[inline(always)]
fn charge_either(first: *mut u64, second: *mut u64, now: u64, budget: Budget) -> bool {
    for _ in 0..CHARGE_ATTEMPTS {
        let (seen, charged) = look(first, now, budget);
        // The cell that has room is charged before the other: it decides.
        let (deciding, other, seen, arrival) = if charged.fits {
            (first, second, seen, charged.arrival)
        } else {
            let (seen, charged) = look(second, now, budget);
            if !charged.fits {
                return false;
            }
            (second, first, seen, charged.arrival)
        };
        if exchange(deciding, seen, arrival) {
            charge_also(other, now, budget);
            return true;
        }
    }
    true
}

/// Charges the cell that did not decide, room or not.
#[inline(always)]
fn charge_also(cell: *mut u64, now: u64, budget: Budget) {
    for _ in 0..CHARGE_ATTEMPTS {
        let (seen, charged) = look(cell, now, budget);
        if seen == charged.arrival || exchange(cell, seen, charged.arrival) {
            return;
        }
    }
}

#[inline(always)]
fn look(cell: *mut u64, now: u64, budget: Budget) -> (u64, Charge) {
    // SAFETY: the pointer is to a value of an array map, which lives as long as the program. An
    // aligned 64-bit load is whole; `AtomicU64::load` does not link for this target.
    let seen = unsafe { read_volatile(cell) };
    (seen, charge(seen, now, budget))
}

/// Whether the cell still held `seen` and now holds `new`.
#[inline(always)]
fn exchange(cell: *mut u64, seen: u64, new: u64) -> bool {
    // SAFETY: as in `look`. SeqCst, because LLVM 22 miscompiles weaker orderings for this target.
    let (_, exchanged) = unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(cell, seen, new)
    };
    exchanged
}
