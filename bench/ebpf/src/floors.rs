//! What waits for memory and does nothing else: the least that a packet costs whose source nobody has in a
//! cache, on the machine that is measured. They know IPv4 alone.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(
    internal_features,
    reason = "core has no atomics for this target but its intrinsics"
)]

mod ipv4;
mod whole;

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, xdp_action},
    macros::{map, xdp},
    maps::{Array, HashMap},
    programs::XdpContext,
};

use self::ipv4::source;

/// As many as guard has unless told otherwise, and as large: 4 MiB in two rows.
const CELLS_COUNT: u32 = 1 << 19;
const ROW: u32 = CELLS_COUNT / 2;

#[map]
static CELLS: Array<u64> = Array::with_max_entries(CELLS_COUNT, 0);

/// As guard's deny list is, with room for the same.
#[map]
static LISTED: HashMap<u32, u64> = HashMap::with_max_entries(1_500_000, BPF_F_NO_PREALLOC);

/// Two odd numbers, for two places that have nothing to do with each other.
const FACTORS: [u32; 2] = [0x9e37_79b1, 0x85eb_ca77];

/// Counts a packet in two cells of its source, so that no CPU loses a count, as with budgets.
#[xdp(frags)]
pub fn two_exchanges(ctx: XdpContext) -> u32 {
    let Some([first, second]) = cells(&ctx) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: the pointers are to values of the table. SeqCst, because LLVM 22 miscompiles weaker orderings for
    // this target.
    unsafe {
        atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(first, 1);
        atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(second, 1);
    }
    xdp_action::XDP_PASS
}

#[inline(always)]
fn cells(ctx: &XdpContext) -> Option<[*mut u64; 2]> {
    let source = source(ctx)?;
    let [first, second] = FACTORS.map(|factor| source.wrapping_mul(factor) >> 14);
    Some([CELLS.get_ptr_mut(first)?, CELLS.get_ptr_mut(ROW + second)?])
}

/// Looks a source up in a list.
#[xdp(frags)]
pub fn one_lookup(ctx: XdpContext) -> u32 {
    let Some(source) = source(&ctx) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: nothing is removed from the list.
    match unsafe { LISTED.get(source) } {
        Some(_) => xdp_action::XDP_DROP,
        None => xdp_action::XDP_PASS,
    }
}
