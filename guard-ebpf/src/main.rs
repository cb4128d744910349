//! The kernel side. One XDP program judges every packet that comes in on an interface:
//!
//! ```text
//! parse -> martian? -> control? -> denied? -> later fragment? -> which service? -> does it admit the source?
//!       -> an answer? -> within its budgets? -> count
//! ```
//!
//! The steps work on plain values and the rules are pure functions of `guard-common`; only the modules beside this one
//! touch the packet and the maps. A tc program on the way out records the UDP flows that this host opens. Each program
//! has a copy for replay, which reads its time from a map. The XDP program also has a copy for a policy on trial,
//! because a program that may tail-call another costs more for every packet.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(
    internal_features,
    reason = "the target has no AtomicU64::compare_exchange; the intrinsic behind it works"
)]

mod accounts;
mod answer;
mod barrier;
mod budgets;
mod charge;
mod clock;
mod config;
mod counters;
mod events;
mod exposure;
mod finish;
mod flood;
mod flows;
mod fragments;
mod global;
mod host_buckets;
mod interfaces;
mod judge;
mod maps;
mod martian;
mod networks;
mod parse;
mod path;
mod sample;
mod sources;

use aya_ebpf::{
    bindings::{TC_ACT_UNSPEC, xdp_action},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use guard_common::reason::Reason;

use crate::{
    clock::{Clock, KernelClock, ReplayClock},
    finish::{ReturnCode, finish},
    judge::{Judge, NOT_PARSED, of_host},
    parse::{Frame, length_of, parse, parse_plain},
    path::{FastPath, SlowPath},
};

#[xdp(frags)]
#[inline(always)]
pub fn guard(ctx: XdpContext) -> u32 {
    judge_frame::<KernelClock>(&ctx)
}

/// The copy for a policy on trial. Once the trial is over, it tail-calls the program before it.
#[xdp(frags)]
#[inline(always)]
pub fn guard_on_trial(ctx: XdpContext) -> u32 {
    if is_trial_over() {
        // SAFETY: a tail call drops no values, and this function has none to drop.
        unsafe { maps::PREVIOUS.tail_call(&ctx, interfaces::row(&ctx)) };
        // This interface had no program before this one, so the packet passes.
        return xdp_action::XDP_PASS;
    }
    judge_frame::<KernelClock>(&ctx)
}

/// Whether the trial has ended without a confirmation. The kernel program tests it, so that the previous policy comes
/// back without an agent.
#[inline(always)]
fn is_trial_over() -> bool {
    KernelClock::boot_ns() >= config::trial_until()
}

/// The copy for replay, with the clock of a replay. It returns the conclusion, and is never attached.
#[xdp(frags)]
pub fn guard_replay(ctx: XdpContext) -> u32 {
    judge_frame::<ReplayClock>(&ctx)
}

#[classifier]
pub fn guard_egress(ctx: TcContext) -> i32 {
    flood::record_served::<KernelClock>(&ctx);
    flows::record::<KernelClock>(&ctx);
    // The next program and the qdisc decide.
    TC_ACT_UNSPEC
}

#[classifier]
pub fn guard_egress_replay(ctx: TcContext) -> i32 {
    flood::record_served::<ReplayClock>(&ctx);
    flows::record::<ReplayClock>(&ctx);
    TC_ACT_UNSPEC
}

/// The parser passes the packet to [`judge`], which passes its conclusion to [`finish::finish`]. The conclusion already
/// includes the mode: only `enforce` makes it a drop. `finish` counts it once.
#[inline(always)]
fn judge_frame<C: ReturnCode>(ctx: &XdpContext) -> u32 {
    if config::is_off() {
        let conclusion = of_host(Reason::NotGuarded);
        return finish::<C>(
            ctx,
            conclusion,
            NOT_PARSED,
            length_of(&Frame::of_xdp(ctx), ctx),
        );
    }
    // Most packets are plain, and take the fast path.
    if let Some(action) = parse_plain(&Frame::of_xdp(ctx), Judge::<C, FastPath>::new(ctx)) {
        return action;
    }
    // The others begin again on the slow path.
    let frame = Frame::of_xdp(ctx);
    let length = length_of(&frame, ctx);
    parse(&frame, length, Judge::<C, SlowPath>::new(ctx))
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // An endless loop: the verifier refuses a program that could reach it.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
