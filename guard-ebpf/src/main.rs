//! The kernel side. One XDP program judges every packet that comes in on an interface:
//!
//! ```text
//! parse -> denied? -> which service? -> may this source reach it? -> within its budgets? -> count
//! ```
//!
//! The steps work on plain values and the rules are pure functions of `guard-common`; only the
//! modules beside this one touch the packet and the maps. A tc program on the way out records the
//! UDP flows that this host opens. Each has a copy that takes its time from a map, for replay.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(
    internal_features,
    reason = "the target has no AtomicU64::compare_exchange; the intrinsic behind it works"
)]

mod budgets;
mod clock;
mod config;
mod counters;
mod events;
mod exposure;
mod flows;
mod maps;
mod networks;
mod parse;
mod sources;
mod talkers;

use aya_ebpf::{
    bindings::{TC_ACT_UNSPEC, xdp_action},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use aya_log_ebpf::debug;
use guard_common::{
    address::{Address, Family},
    exposure::Exposure,
    layout::{NO_SERVICE, feature, replay_result},
    packet::Packet,
    reason::{Mode, Outcome, Reason, Verdict},
};

use crate::{
    clock::{Clock, KernelClock, ReplayClock},
    exposure::{Destination, find_destination, is_for_host},
    parse::{Frame, Parsed, parse},
};

#[xdp(frags)]
#[inline(always)]
pub fn guard(ctx: XdpContext) -> u32 {
    if is_trial_over() {
        // SAFETY: nothing has been taken from this context.
        unsafe { maps::PREVIOUS.tail_call(&ctx, 0) };
        // There is no program before this one: a guard that is unsure lets through.
        return xdp_action::XDP_PASS;
    }
    let conclusion = conclude::<KernelClock>(&Frame::of_xdp(&ctx));
    if conclusion.counted == 1 {
        // For developers: without the level the verifier removes it.
        debug!(
            &ctx,
            "the first packet of outcome {} at service {} on this CPU",
            conclusion.outcome.slot(),
            conclusion.service
        );
    }
    events::offer(&ctx, &conclusion);
    match conclusion.outcome.verdict() {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
    }
}

/// Whether this policy was on trial, and nobody confirmed it in time. Asked by the kernel itself, so
/// that it goes back with no agent alive.
#[inline(always)]
fn is_trial_over() -> bool {
    let end = config::trial_until();
    end != 0 && KernelClock::boot_ns() >= end
}

/// The same with a clock from a map. It says the outcome, and is never attached.
#[xdp(frags)]
pub fn guard_replay(ctx: XdpContext) -> u32 {
    let Conclusion {
        service, outcome, ..
    } = conclude::<ReplayClock>(&Frame::of_xdp(&ctx));
    replay_result(service, outcome)
}

#[classifier]
pub fn guard_egress(ctx: TcContext) -> i32 {
    flows::record::<KernelClock>(&Frame::of_skb(&ctx));
    // The next program and the qdisc decide.
    TC_ACT_UNSPEC
}

#[classifier]
pub fn guard_egress_replay(ctx: TcContext) -> i32 {
    flows::record::<ReplayClock>(&Frame::of_skb(&ctx));
    TC_ACT_UNSPEC
}

struct Conclusion {
    service: u16,
    outcome: Outcome,
    source: Source,
    /// Of the frame, in bytes.
    length: u64,
    /// How many with this outcome there were at the service, on this CPU.
    counted: u64,
}

/// The one exit: every packet is counted once, and the mode is applied to what the policy says.
#[inline(always)]
fn conclude<C: Clock>(frame: &Frame) -> Conclusion {
    let Judgement {
        service,
        reason,
        mode,
        source,
        length,
    } = judge::<C>(frame);
    let outcome = Outcome::new(reason, mode);
    let counted = counters::count(service, outcome, length);
    let Source { family, address } = source;
    if let Some(family) = family {
        talkers::watch(counted, family, address, service, outcome, length);
    }
    Conclusion {
        service,
        outcome,
        source,
        length,
        counted,
    }
}

/// What the policy says of a packet, and the mode that applies to it.
struct Judgement {
    service: u16,
    reason: Reason,
    mode: Mode,
    source: Source,
    /// Of the frame, in bytes.
    length: u64,
}

/// Where a packet comes from. The address is always some value: an undefined one would be refused by the
/// verifier where the compiler keeps it.
#[derive(Clone, Copy)]
struct Source {
    /// `None` if the packet names no source that could be read.
    family: Option<Family>,
    address: Address,
}

impl Source {
    const UNKNOWN: Self = Self {
        family: None,
        address: Address::from_ipv4(0),
    };
}

impl Judgement {
    /// For a packet that concerns no service.
    #[inline(always)]
    fn of_host(reason: Reason, source: Source, length: u64) -> Self {
        Self {
            service: NO_SERVICE,
            reason,
            mode: config::mode(),
            source,
            length,
        }
    }

    /// For a packet that names no source.
    #[inline(always)]
    fn of_frame(reason: Reason, frame: &Frame) -> Self {
        Self::of_host(reason, Source::UNKNOWN, frame.length())
    }
}

#[inline(always)]
fn judge<C: Clock>(frame: &Frame) -> Judgement {
    if config::mode() == Mode::Off {
        return Judgement::of_frame(Reason::NotGuarded, frame);
    }
    let (packet, length) = match parse(frame) {
        Parsed::Ip(packet, length) => (packet, length),
        Parsed::NotIp => return Judgement::of_frame(Reason::NotGuarded, frame),
        Parsed::Malformed => return Judgement::of_frame(Reason::Malformed, frame),
    };
    let source = Source {
        family: Some(packet.family),
        address: packet.source,
    };
    if packet.is_control() || packet.is_dhcp_reply() && is_for_host(&packet) {
        return Judgement::of_host(Reason::Control, source, length);
    }
    if sources::is_denied::<C>(packet.family, packet.source)
        && !sources::is_allowed::<C>(packet.family, packet.source, NO_SERVICE)
    {
        return Judgement::of_host(Reason::DeniedSource, source, length);
    }
    let Destination {
        service,
        settings,
        exposure,
    } = find_destination::<C>(&packet);
    let mode = settings.map_or(config::mode(), |settings| Mode::from_raw(settings.mode));
    let is_denied = settings.is_some()
        && sources::is_denied_at::<C>(packet.family, packet.source, service)
        && !sources::is_allowed::<C>(packet.family, packet.source, service);
    let reason = match (mode, exposure) {
        (Mode::Off, _) => Reason::NotGuarded,
        _ if is_denied => Reason::DeniedSource,
        (_, Exposure::Open) => match settings {
            Some(settings) => {
                budgets::charge::<C>(&packet, length, service, settings, Reason::Allowed)
            }
            None => Reason::Allowed,
        },
        (_, Exposure::Pass(reason)) => within_limits::<C>(&packet, length, reason),
        (_, Exposure::ClosedUnlessReply(reason)) => {
            if flows::is_reply::<C>(&packet, settings.is_some()) {
                within_limits::<C>(&packet, length, Reason::Reply)
            } else {
                if mode == Mode::Observe {
                    flows::note_stranger::<C>(&packet);
                }
                reason
            }
        }
        (_, Exposure::Closed(reason)) => reason,
    };
    Judgement {
        service,
        reason,
        mode,
        source,
        length,
    }
}

/// A packet that reaches no service passes for this reason, within the policy's `limits`.
#[inline(always)]
fn within_limits<C: Clock>(packet: &Packet, length: u64, reason: Reason) -> Reason {
    if !config::uses(feature::LIMITS) {
        return reason;
    }
    match maps::SERVICES.get(u32::from(NO_SERVICE)) {
        Some(limits) => budgets::charge::<C>(packet, length, NO_SERVICE, limits, reason),
        None => reason,
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
