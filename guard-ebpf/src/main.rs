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

use core::marker::PhantomData;

use aya_ebpf::{
    bindings::{TC_ACT_UNSPEC, xdp_action},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use aya_log_ebpf::debug;
use guard_common::{
    address::{Address, Family},
    exposure::Exposure,
    layout::{Conclusion, NO_SERVICE, Service, feature},
    packet::{Packet, Traits},
    reason::{Mode, Outcome, Reason},
};

use crate::{
    clock::{Clock, KernelClock, ReplayClock},
    exposure::{Destination, find_destination, is_admitted, is_for_host, judge_refused},
    parse::{Frame, Reader, Unread, length_of, parse, parse_plain},
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
    judge_frame::<KernelClock, Act>(&ctx)
}

/// What becomes of a packet that has been judged and counted: the program's return value.
trait Ending {
    fn end(ctx: &XdpContext, counted: &Counted) -> u32;
}

/// Shows a packet to who wants to see it, and does what was concluded.
struct Act;

impl Ending for Act {
    #[inline(always)]
    fn end(ctx: &XdpContext, counted: &Counted) -> u32 {
        if counted.number == 1 {
            // For developers: without the level the verifier removes it.
            debug!(
                ctx,
                "the first packet of outcome {} at service {} on this CPU",
                counted.conclusion.slot,
                counted.conclusion.service
            );
        }
        events::offer(ctx, counted);
        if Outcome::is_dropped(counted.conclusion.slot) {
            xdp_action::XDP_DROP
        } else {
            xdp_action::XDP_PASS
        }
    }
}

/// Says the conclusion.
struct Tell;

impl Ending for Tell {
    #[inline(always)]
    fn end(_: &XdpContext, counted: &Counted) -> u32 {
        counted.conclusion.pack()
    }
}

/// Whether this policy was on trial, and nobody confirmed it in time. Asked by the kernel itself, so
/// that it goes back with no agent alive.
#[inline(always)]
fn is_trial_over() -> bool {
    let end = config::trial_until();
    end != 0 && KernelClock::boot_ns() >= end
}

/// The same with a clock from a map. It says the conclusion, and is never attached.
#[xdp(frags)]
pub fn guard_replay(ctx: XdpContext) -> u32 {
    judge_frame::<ReplayClock, Tell>(&ctx)
}

#[classifier]
pub fn guard_egress(ctx: TcContext) -> i32 {
    flows::record::<KernelClock>(&ctx);
    // The next program and the qdisc decide.
    TC_ACT_UNSPEC
}

#[classifier]
pub fn guard_egress_replay(ctx: TcContext) -> i32 {
    flows::record::<ReplayClock>(&ctx);
    TC_ACT_UNSPEC
}

/// A packet that has been judged and counted.
struct Counted {
    conclusion: Conclusion,
    source: Source,
    /// Of the frame, in bytes.
    length: u64,
    /// How many with this conclusion there were on this CPU.
    number: u64,
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

#[inline(always)]
fn judge_frame<C: Clock, E: Ending>(ctx: &XdpContext) -> u32 {
    let judge = Judge::<C, E> {
        ctx,
        rules: PhantomData,
    };
    if config::is_off() {
        return judge.finish(of_host(Reason::NotGuarded), Source::UNKNOWN, length_of(ctx));
    }
    if let Some(action) = parse_plain(&Frame::of_xdp(ctx), judge) {
        return action;
    }
    let length = length_of(ctx);
    parse(&Frame::of_xdp(ctx), length, judge)
}

/// Every packet is counted once, under its one conclusion.
struct Judge<'a, C, E> {
    ctx: &'a XdpContext,
    rules: PhantomData<(C, E)>,
}

impl<C, E> Clone for Judge<'_, C, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C, E> Copy for Judge<'_, C, E> {}

impl<C: Clock, E: Ending> Judge<'_, C, E> {
    #[inline(always)]
    fn finish(&self, conclusion: Conclusion, source: Source, length: u64) -> u32 {
        let number = counters::count(conclusion, length);
        let Source { family, address } = source;
        if let Some(family) = family {
            talkers::watch(number, family, address, conclusion, length);
        }
        let counted = Counted {
            conclusion,
            source,
            length,
            number,
        };
        E::end(self.ctx, &counted)
    }
}

impl<C: Clock, E: Ending> Reader for Judge<'_, C, E> {
    type Output = u32;

    #[inline(always)]
    fn ip(self, packet: &Packet, length: u64) -> u32 {
        let source = Source {
            family: Some(packet.family),
            address: packet.source,
        };
        self.finish(judge::<C>(packet, length), source, length)
    }

    #[inline(always)]
    fn unread(self, why: Unread, length: u64) -> u32 {
        let reason = match why {
            Unread::NotIp => Reason::NotGuarded,
            Unread::Malformed => Reason::Malformed,
        };
        self.finish(of_host(reason), Source::UNKNOWN, length)
    }
}

/// The conclusion for a packet that concerns no service.
#[inline(always)]
fn of_host(reason: Reason) -> Conclusion {
    Conclusion::new(NO_SERVICE, Outcome::new(reason, config::mode()))
}

/// What the policy says of a packet, with the mode applied.
#[inline(always)]
fn judge<C: Clock>(packet: &Packet, length: u64) -> Conclusion {
    let Packet {
        family,
        source,
        transport,
        ..
    } = *packet;
    if transport.has(Traits::CONTROL.or(Traits::DHCP_REPLY))
        && (transport.has(Traits::CONTROL) || is_for_host(packet))
    {
        return of_host(Reason::Control);
    }
    if sources::is_denied::<C>(family, source)
        && !sources::is_allowed::<C>(family, source, NO_SERVICE)
    {
        return of_host(Reason::DeniedSource);
    }
    // What is open or closed is decided at once; the rest may answer somebody, or has limits.
    let (service, mode, exposure) = match find_destination(packet) {
        Destination::Nobody(Exposure::Closed(reason)) => return of_host(reason),
        Destination::Service(service, settings, entry) => {
            let mode = Mode::from_raw(settings.mode);
            match judge_at_service::<C>(packet, length, service, settings, mode) {
                Some(reason) => return Conclusion::new(service, Outcome::new(reason, mode)),
                None => (service, mode, judge_refused(packet, entry)),
            }
        }
        Destination::Nobody(exposure) => (NO_SERVICE, config::mode(), exposure),
    };
    let reason = match exposure {
        Exposure::Closed(reason) => reason,
        Exposure::Pass(reason) => within_limits::<C>(packet, length, reason),
        Exposure::ClosedUnlessReply(reason) => {
            if flows::is_reply::<C>(packet, service != NO_SERVICE) {
                within_limits::<C>(packet, length, Reason::Reply)
            } else {
                if mode == Mode::Observe {
                    flows::note_stranger::<C>(packet);
                }
                reason
            }
        }
    };
    Conclusion::new(service, Outcome::new(reason, mode))
}

/// The reason of a packet that a service lists; `None`: it does not admit the source.
#[inline(always)]
fn judge_at_service<C: Clock>(
    packet: &Packet,
    length: u64,
    service: u16,
    settings: &Service,
    mode: Mode,
) -> Option<Reason> {
    let Packet { family, source, .. } = *packet;
    if mode == Mode::Off {
        return Some(Reason::NotGuarded);
    }
    if sources::is_denied_at::<C>(family, source, service)
        && !sources::is_allowed::<C>(family, source, service)
    {
        return Some(Reason::DeniedSource);
    }
    let is_admitted = settings.restricted == 0
        || is_admitted::<C>(packet, service)
        || sources::is_allowed::<C>(family, source, service);
    is_admitted.then(|| budgets::charge::<C>(packet, length, service, settings, Reason::Allowed))
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
