//! Programs that do one operation and nothing else. They measure the least cost of the operation on this machine, and
//! parse only IPv4.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(
    internal_features,
    reason = "core has no atomics for this target but its intrinsics"
)]

mod ipv4;
mod whole;

use core::{
    intrinsics::{AtomicOrdering, atomic_xadd},
    mem::offset_of,
    ptr::read_unaligned,
};

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, xdp_action},
    macros::{map, xdp},
    maps::{Array, HashMap, PerCpuArray},
    programs::XdpContext,
};
use network_types::{eth::EthHdr, ip::Ipv4Hdr, tcp::TcpHdr};

use self::ipv4::{ETHER_TYPE_IPV4, source};

/// The default number of guard's cells, in the same size: 4 MiB in two rows.
const CELLS_COUNT: u32 = 1 << 19;
const ROW: u32 = CELLS_COUNT / 2;

#[map]
static CELLS: Array<u64> = Array::with_max_entries(CELLS_COUNT, 0);

/// A list with as much room as guard's deny list.
#[map]
static LISTED: HashMap<u32, u64> = HashMap::with_max_entries(1_500_000, BPF_F_NO_PREALLOC);

/// The first byte of an IPv4 header without options, and TCP's protocol number.
const PLAIN: u8 = 0x45;
const TCP: u8 = 6;

/// For each port, whether it is open.
#[map]
static PORTS: Array<u32> = Array::with_max_entries(1 << 16, 0);

/// The number of dropped packets, for each CPU.
#[map]
static DROPPED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Drops a TCP segment to a closed port, and counts it.
#[xdp(frags)]
pub fn one_port(ctx: XdpContext) -> u32 {
    let Some(port) = destination_port(&ctx) else {
        return xdp_action::XDP_PASS;
    };
    if PORTS.get(port.into()).is_some_and(|is_open| *is_open != 0) {
        return xdp_action::XDP_PASS;
    }
    if let Some(dropped) = DROPPED.get_ptr_mut(0) {
        // SAFETY: the pointer is to this CPU's own value.
        unsafe { *dropped += 1 };
    }
    xdp_action::XDP_DROP
}

/// The destination port of TCP over IPv4 without options, in host byte order. `None` for other packets.
#[inline(always)]
fn destination_port(ctx: &XdpContext) -> Option<u16> {
    let start = ctx.data();
    if start + EthHdr::LEN + Ipv4Hdr::LEN + TcpHdr::LEN > ctx.data_end() {
        return None;
    }
    let ip = start + EthHdr::LEN;
    // SAFETY: the bounds were checked.
    unsafe {
        let ether_type = (start + offset_of!(EthHdr, ether_type)) as *const u16;
        let version_and_length = (ip + offset_of!(Ipv4Hdr, vihl)) as *const u8;
        let protocol = (ip + offset_of!(Ipv4Hdr, proto)) as *const u8;
        if u16::from_be(read_unaligned(ether_type)) != ETHER_TYPE_IPV4
            || *version_and_length != PLAIN
            || *protocol != TCP
        {
            return None;
        }
        let port = (ip + Ipv4Hdr::LEN + offset_of!(TcpHdr, dest)) as *const u16;
        Some(u16::from_be(read_unaligned(port)))
    }
}

/// Two odd factors, for two independent hashes.
const FACTORS: [u32; 2] = [0x9e37_79b1, 0x85eb_ca77];

/// Counts a packet in two cells of its source, atomically, as with budgets.
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
