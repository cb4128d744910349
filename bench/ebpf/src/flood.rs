//! A program for a flood of SYNs: it gives every frame a random source and source port, and transmits it on the
//! interface in its context. And a program that drops all packets.
#![no_std]
#![no_main]

mod whole;

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    bindings::xdp_action, helpers::bpf_get_prandom_u32, macros::xdp, programs::XdpContext,
};

/// The first source and the number of sources; set before the program is loaded.
#[unsafe(no_mangle)]
static FIRST: u32 = 0;
#[unsafe(no_mangle)]
static COUNT: u32 = 1;

/// The checksums' sums over the IPv4 and TCP headers without source address and port (RFC 1071).
#[unsafe(no_mangle)]
static IP_SUM: u32 = 0;
#[unsafe(no_mangle)]
static TCP_SUM: u32 = 0;

/// Offsets in an IPv4 frame without tags or options.
const IP_CHECKSUM: usize = 24;
const SOURCE: usize = 26;
const SOURCE_PORT: usize = 34;
const TCP_CHECKSUM: usize = 50;
const TCP_END: usize = 54;

/// The first source port, in the range of client ports.
const FIRST_PORT: u32 = 1 << 15;

#[xdp(frags)]
pub fn flood(ctx: XdpContext) -> u32 {
    let start = ctx.data();
    if start + TCP_END > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: the pointers come from references to statics, which are read as they were loaded; the
    // helper has no preconditions.
    let (first, count, ip, tcp, random, port) = unsafe {
        (
            read_volatile(&raw const FIRST),
            read_volatile(&raw const COUNT),
            read_volatile(&raw const IP_SUM),
            read_volatile(&raw const TCP_SUM),
            bpf_get_prandom_u32(),
            FIRST_PORT | bpf_get_prandom_u32() & (FIRST_PORT - 1),
        )
    };
    // Maps to the interval without a division (Lemire: "Fast random integer generation in an interval", 2019).
    let number = (u64::from(random) * u64::from(count)) >> 32;
    let source = first.wrapping_add(number as u32);
    let address = (source >> 16) + (source & 0xffff);
    // The kernel reuses the frames, so all fields are written, and none depends on its old value.
    let words = [
        (SOURCE, source >> 16),
        (SOURCE + 2, source),
        (SOURCE_PORT, port),
        (IP_CHECKSUM, checksum(ip + address)),
        (TCP_CHECKSUM, checksum(tcp + address + port)),
    ];
    for (offset, word) in words {
        // SAFETY: the bounds were checked, and the places are aligned.
        unsafe { write_volatile((start + offset) as *mut u16, (word as u16).to_be()) };
    }
    xdp_action::XDP_TX
}

#[xdp(frags)]
pub fn drop_all(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

#[inline(always)]
fn checksum(sum: u32) -> u32 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !sum
}
