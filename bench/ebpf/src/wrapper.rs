//! The empty program, which everything is measured against, and wrappers that give every packet a
//! source or a port of its own before they call the program that is measured.
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

/// The program that is measured.
#[map]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// The first source or port, and how many there are; set before the program is loaded.
#[unsafe(no_mangle)]
static FIRST: u32 = 0;
#[unsafe(no_mangle)]
static COUNT: u32 = 1;

/// Where the wrapper writes. Without tags, this is the source of IPv4, and of IPv6 the lower half of the
/// source's /64.
const SOURCE: usize = 26;

/// And where it writes ports: the destination's, of IPv4 without tags or options.
const PORT: usize = 36;

#[xdp(frags)]
pub fn empty(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[xdp(frags)]
pub fn randomise(ctx: XdpContext) -> u32 {
    let start = ctx.data() + SOURCE;
    if start + size_of::<u32>() > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    let source = pick().to_be();
    // SAFETY: the bounds were checked, and a store of this machine needs no alignment. It is one store: a
    // CPU makes whoever reads two as one word wait until all before them is done, as nothing does that a
    // card has written.
    unsafe { write_volatile(start as *mut u32, source) };
    judge(&ctx)
}

#[xdp(frags)]
pub fn randomise_port(ctx: XdpContext) -> u32 {
    let start = ctx.data() + PORT;
    if start + size_of::<u16>() > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    let port = (pick() as u16).to_be();
    // SAFETY: the bounds were checked, and the place is aligned.
    unsafe { write_volatile(start as *mut u16, port) };
    judge(&ctx)
}

/// Any of the numbers.
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
    // Without a division (Lemire: "Fast random integer generation in an interval", 2019).
    let number = (u64::from(random) * u64::from(count)) >> 32;
    first.wrapping_add(number as u32)
}

#[inline(always)]
fn judge(ctx: &XdpContext) -> u32 {
    // SAFETY: the call does not return.
    unsafe { TARGET.tail_call(ctx, 0) };
    // There is no program to call.
    xdp_action::XDP_ABORTED
}
