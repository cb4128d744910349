//! The kernel side. One XDP program judges every packet that comes in on an interface:
//!
//! ```text
//! parse -> which service? -> may this source reach it? -> within its budget? -> count -> verdict
//! ```
//!
//! The steps work on plain values and the rules are pure functions of `guard-common`; only the
//! modules beside this one touch the packet and the maps.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(
    internal_features,
    reason = "the target has no AtomicU64::compare_exchange; the intrinsic behind it works"
)]

mod budgets;
mod config;
mod counters;
mod exposure;
mod maps;
mod parse;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use guard_common::{
    exposure::Exposure,
    layout::NO_SERVICE,
    packet::Transport,
    reason::{Mode, Outcome, Reason, Verdict},
};

use crate::{
    exposure::{Destination, find_destination},
    parse::{Frame, Parsed, parse},
};

#[xdp(frags)]
pub fn guard(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    let Judgement {
        service,
        reason,
        mode,
    } = judge(&frame);
    let outcome = Outcome::new(reason, mode);
    counters::count(service, outcome, frame.length);
    match outcome.verdict() {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
    }
}

/// What the policy says of a packet, and the mode that applies to it.
struct Judgement {
    service: u16,
    reason: Reason,
    mode: Mode,
}

impl Judgement {
    /// For a packet that concerns no service.
    #[inline(always)]
    fn of_host(reason: Reason) -> Self {
        Self {
            service: NO_SERVICE,
            reason,
            mode: config::mode(),
        }
    }
}

#[inline(always)]
fn judge(frame: &Frame) -> Judgement {
    if config::mode() == Mode::Off {
        return Judgement::of_host(Reason::NotGuarded);
    }
    let packet = match parse(frame) {
        Parsed::Ip(packet) => packet,
        Parsed::NotIp => return Judgement::of_host(Reason::NotGuarded),
        Parsed::Malformed => return Judgement::of_host(Reason::Malformed),
    };
    if packet.is_control() {
        return Judgement::of_host(Reason::Control);
    }
    if packet.transport == Transport::LaterFragment {
        return Judgement::of_host(Reason::Fragment);
    }
    let Destination {
        service,
        settings,
        exposure,
    } = find_destination(&packet);
    let mode = settings.map_or(config::mode(), |settings| Mode::from_raw(settings.mode));
    let reason = match (mode, exposure) {
        (Mode::Off, _) => Reason::NotGuarded,
        (_, Exposure::Pass(reason) | Exposure::Closed(reason)) => reason,
        (_, Exposure::Open) => match settings {
            Some(settings) if !budgets::within(&packet, service, settings) => Reason::PacketLimit,
            _ => Reason::Allowed,
        },
    };
    Judgement {
        service,
        reason,
        mode,
    }
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
