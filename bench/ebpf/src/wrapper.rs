//! The empty program, with which every program is compared, and wrappers that give every packet a random source or port
//! before they call the measured program.
#![no_std]
#![no_main]

mod whole;

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    bindings::xdp_action,
    helpers::bpf_get_prandom_u32,
    macros::{map, xdp},
    maps::ProgramArray,
    programs::XdpContext,
};

/// The measured program.
#[map]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// The first source or port, and the number of them; set before the program is loaded.
#[unsafe(no_mangle)]
static FIRST: u32 = 0;
#[unsafe(no_mangle)]
static COUNT: u32 = 1;

/// The offset of the EtherType, and IPv6's value as this machine reads it.
const ETHER_TYPE: usize = 12;
const IPV6: u16 = 0x86dd_u16.to_be();

/// The offsets of the 64-bit words of which the wrapper changes a half, in frames without tags. For IPv4 it is the
/// source in the word of source and destination; for IPv6 the lower half of the source's /64. The wrapper writes the
/// whole word. A read that is wider than a recent write would wait until the write has left the CPU's pipeline (no
/// store forwarding). That does not happen with packets that a network card has written.
const ADDRESSES: usize = 26;
const NETWORK: usize = 22;

/// The offset of the destination port, in an IPv4 frame without tags or options.
const PORT: usize = 36;

#[xdp(frags)]
pub fn empty(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[xdp(frags)]
pub fn randomise(ctx: XdpContext) -> u32 {
    let start = ctx.data();
    if start + ADDRESSES + size_of::<u64>() > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    let source = u64::from(pick().to_be());
    // SAFETY: the bounds were checked, and this machine's loads and stores need no alignment. The machine is
    // little-endian.
    unsafe {
        if read_volatile((start + ETHER_TYPE) as *const u16) == IPV6 {
            let word = (start + NETWORK) as *mut u64;
            let kept = read_volatile(word) & u64::from(u32::MAX);
            write_volatile(word, kept | source << u32::BITS);
        } else {
            let word = (start + ADDRESSES) as *mut u64;
            let kept = read_volatile(word) & !u64::from(u32::MAX);
            write_volatile(word, kept | source);
        }
    }
    judge(&ctx)
}

#[xdp(frags)]
pub fn randomise_port(ctx: XdpContext) -> u32 {
    let start = ctx.data() + PORT;
    if start + size_of::<u16>() > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    let port = (pick() as u16).to_be();
    // SAFETY: the bounds were checked, and the address is aligned.
    unsafe { write_volatile(start as *mut u16, port) };
    judge(&ctx)
}

/// A random number of the range.
#[inline(always)]
fn pick() -> u32 {
    // SAFETY: the pointers come from references to statics, which are read as they were loaded; the
    // helper has no preconditions.
    let (first, count, random) = unsafe {
        (
            read_volatile(&raw const FIRST),
            read_volatile(&raw const COUNT),
            bpf_get_prandom_u32(),
        )
    };
    // Maps to the interval without a division (Lemire: "Fast random integer generation in an interval", 2019).
    let number = (u64::from(random) * u64::from(count)) >> 32;
    first.wrapping_add(number as u32)
}

#[inline(always)]
fn judge(ctx: &XdpContext) -> u32 {
    // SAFETY: the call does not return.
    unsafe { TARGET.tail_call(ctx, 0) };
    // The tail call failed: there is no program to call.
    xdp_action::XDP_ABORTED
}
