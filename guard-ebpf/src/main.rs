//! The kernel side. One XDP program judges every packet that comes in on an interface:
//!
//! ```text
//! parse -> denied? -> which service? -> may this source reach it? -> within its budgets? -> count
//! ```
//!
//! The steps work on plain values and the rules are pure functions of `guard-common`; only the
//! modules beside this one touch the packet and the maps. A tc program on the way out records the
//! UDP flows that this host opens. Each has a copy that takes its time from a map, for replay; and the first
//! has one for a policy on trial, because a program that may call another pays for it with every packet.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(
    internal_features,
    reason = "the target has no AtomicU64::compare_exchange; the intrinsic behind it works"
)]

mod accounts;
mod bill;
mod budgets;
mod clock;
mod config;
mod counters;
mod events;
mod exposure;
mod flows;
mod global;
mod maps;
mod networks;
mod order;
mod pace;
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
    exposure::Exposure,
    layout::{Conclusion, NO_SERVICE, Service, feature, list},
    packet::{Ends, Packet, ReadEnds, Traits},
    reason::{Applied, Outcome, Reason},
};

use crate::{
    clock::{Clock, KernelClock, ReplayClock},
    config::uses,
    exposure::{Destination, find_destination, is_admitted, is_for_host, judge_refused},
    order::unforeseen,
    pace::{Pace, Quick, Thorough},
    parse::{Frame, PlainReader, Reader, Unread, length_of, parse, parse_plain},
};

#[xdp(frags)]
#[inline(always)]
pub fn guard(ctx: XdpContext) -> u32 {
    judge_frame::<KernelClock, Act>(&ctx)
}

/// The same until the trial is over, and the program before it from then on.
#[xdp(frags)]
#[inline(always)]
pub fn guard_on_trial(ctx: XdpContext) -> u32 {
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
    fn end(ctx: &XdpContext, counted: &Counted<'_, impl Ends>) -> u32;
}

/// Shows a packet to who wants to see it, and does what was concluded.
struct Act;

impl Ending for Act {
    #[inline(always)]
    fn end(ctx: &XdpContext, counted: &Counted<'_, impl Ends>) -> u32 {
        // For developers: else the verifier removes it, with the question that is asked behind it.
        if config::is_debugged() && unforeseen(counted.number) == 1 {
            debug!(
                ctx,
                "the first packet of outcome {} at service {} on this CPU",
                counted.conclusion.slot,
                counted.conclusion.service
            );
        }
        events::offer(ctx, counted);
        action(counted.conclusion.slot)
    }
}

/// The program's return value for a slot, without a question: two bits of a word for each quarter of the slots.
#[inline(always)]
const fn action(slot: u32) -> u32 {
    const QUARTER: u32 = Outcome::SLOTS / 4;
    const ACTIONS: u32 = {
        let mut actions = 0;
        let mut quarter = 0;
        while quarter < 4 {
            let action = if Outcome::is_dropped(quarter * QUARTER) {
                xdp_action::XDP_DROP
            } else {
                xdp_action::XDP_PASS
            };
            actions |= action << (2 * quarter);
            quarter += 1;
        }
        actions
    };
    const _: () = assert!(xdp_action::XDP_DROP < 4 && xdp_action::XDP_PASS < 4);
    ACTIONS >> (slot / QUARTER % 4 * 2) & 3
}

/// Says the conclusion.
struct Tell;

impl Ending for Tell {
    #[inline(always)]
    fn end(_: &XdpContext, counted: &Counted<'_, impl Ends>) -> u32 {
        counted.conclusion.pack()
    }
}

/// Whether nobody confirmed the policy in time. Asked by the kernel itself, so that it goes back with no agent
/// alive.
#[inline(always)]
fn is_trial_over() -> bool {
    KernelClock::boot_ns() >= config::trial_until()
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
struct Counted<'a, E> {
    conclusion: Conclusion,
    /// `None` if none could be read.
    ends: Option<&'a E>,
    /// Of the frame, in bytes.
    length: u64,
    /// How many with this conclusion there were on this CPU.
    number: u64,
}

/// The ends of a packet that names none that could be read.
const UNREAD: Option<&ReadEnds> = None;

#[inline(always)]
fn judge_frame<C: Clock, E: Ending>(ctx: &XdpContext) -> u32 {
    if config::is_off() {
        let conclusion = of_host(Reason::NotGuarded);
        return finish::<E>(ctx, conclusion, UNREAD, length_of(&Frame::of_xdp(ctx), ctx));
    }
    if let Some(action) = parse_plain(&Frame::of_xdp(ctx), Judge::<C, E, Quick>::new(ctx)) {
        return action;
    }
    let frame = Frame::of_xdp(ctx);
    let length = length_of(&frame, ctx);
    parse(&frame, length, Judge::<C, E, Thorough>::new(ctx))
}

/// Counts a packet once, under its one conclusion.
#[inline(always)]
fn finish<E: Ending>(
    ctx: &XdpContext,
    conclusion: Conclusion,
    ends: Option<&impl Ends>,
    length: u64,
) -> u32 {
    let counted = Counted {
        conclusion,
        ends,
        length,
        number: counters::count(conclusion, length),
    };
    talkers::watch(&counted);
    E::end(ctx, &counted)
}

/// Judges what has been read, and finishes it if there is an answer.
struct Judge<'a, C, E, P> {
    ctx: &'a XdpContext,
    rules: PhantomData<(C, E, P)>,
}

impl<'a, C, E, P> Judge<'a, C, E, P> {
    #[inline(always)]
    fn new(ctx: &'a XdpContext) -> Self {
        Self {
            ctx,
            rules: PhantomData,
        }
    }
}

impl<C, E, P> Clone for Judge<'_, C, E, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C, E, P> Copy for Judge<'_, C, E, P> {}

/// `None`: the packet needs a closer look.
impl<C: Clock, E: Ending> PlainReader for Judge<'_, C, E, Quick> {
    type Output = u32;

    #[inline(always)]
    fn plain(self, packet: &Packet<impl Ends>, length: u64) -> Option<u32> {
        let judged = judge::<C, Quick>(packet, length).ok()?;
        let (ctx, ends) = (self.ctx, Some(&packet.ends));
        Some(match judged {
            Judged::Closed(reason) => finish::<E>(ctx, of_host(reason), ends, length),
            Judged::Otherwise(conclusion) => finish::<E>(ctx, conclusion, ends, length),
        })
    }
}

impl<C: Clock, E: Ending> Reader for Judge<'_, C, E, Thorough> {
    type Output = u32;

    #[inline(always)]
    fn ip(self, packet: &Packet<impl Ends>, length: u64) -> u32 {
        let conclusion = match judge::<C, Thorough>(packet, length) {
            Ok(Judged::Closed(reason)) => of_host(reason),
            Ok(Judged::Otherwise(conclusion)) => conclusion,
        };
        finish::<E>(self.ctx, conclusion, Some(&packet.ends), length)
    }

    #[inline(always)]
    fn unread(self, why: Unread, length: u64) -> u32 {
        let reason = match why {
            Unread::NotIp => Reason::NotGuarded,
            Unread::Malformed => Reason::Malformed,
        };
        finish::<E>(self.ctx, of_host(reason), UNREAD, length)
    }
}

/// The conclusion for a packet that concerns no service.
#[inline(always)]
fn of_host(reason: Reason) -> Conclusion {
    Conclusion::new(NO_SERVICE, reason, Applied::of(config::mode()))
}

/// What the policy says of a packet.
enum Judged {
    /// That nobody may reach the place.
    Closed(Reason),
    /// Anything else, with the mode applied.
    Otherwise(Conclusion),
}

#[inline(always)]
fn judge<C: Clock, P: Pace>(packet: &Packet<impl Ends>, length: u64) -> Result<Judged, P::Unsure> {
    let Packet { ends, transport } = packet;
    if transport.has(Traits::CONTROL.or(Traits::DHCP_REPLY)) {
        P::look_closer()?;
        if transport.has(Traits::CONTROL) || is_for_host(packet) {
            return Ok(Judged::Otherwise(of_host(Reason::Control)));
        }
    }
    if sources::is_denied::<C, P>(ends)? && !sources::is_allowed::<C, P>(ends, NO_SERVICE)? {
        return Ok(Judged::Otherwise(of_host(Reason::DeniedSource)));
    }
    // What is open or closed is decided at once; the rest may answer somebody, or has limits.
    let (service, mode, exposure) = match find_destination::<P>(packet)? {
        Destination::Nobody(Exposure::Closed(reason)) => return Ok(Judged::Closed(reason)),
        Destination::Service(service, settings, entry) => {
            let mode = settings.mode;
            match judge_at_service::<C, P>(packet, length, service, settings, mode)? {
                Some(reason) => {
                    let conclusion = Conclusion::new(service, reason, mode);
                    return Ok(Judged::Otherwise(conclusion));
                }
                None => (service, mode, judge_refused(packet, entry)),
            }
        }
        Destination::Nobody(exposure) => (NO_SERVICE, Applied::of(config::mode()), exposure),
    };
    let reason = match exposure {
        Exposure::Closed(reason) => reason,
        Exposure::Pass(reason) => within_limits::<C, P>(packet, length, reason)?,
        Exposure::ClosedUnlessReply(reason) => {
            if flows::is_reply::<C, P>(packet, service != NO_SERVICE)? {
                within_limits::<C, P>(packet, length, Reason::Reply)?
            } else {
                if mode.is_observed() {
                    P::look_closer()?;
                    flows::note_stranger::<C>(packet);
                }
                reason
            }
        }
    };
    Ok(Judged::Otherwise(Conclusion::new(service, reason, mode)))
}

/// The reason of a packet that a service lists; `None`: it does not admit the source.
#[inline(always)]
fn judge_at_service<C: Clock, P: Pace>(
    packet: &Packet<impl Ends>,
    length: u64,
    service: u16,
    settings: &Service,
    mode: Applied,
) -> Result<Option<Reason>, P::Unsure> {
    let Packet { ends, .. } = packet;
    if mode.is_off() {
        return Ok(Some(Reason::NotGuarded));
    }
    let lists = settings.lists;
    if lists != 0 {
        if lists & list::DENIED != 0
            && sources::is_denied_at::<C, P>(ends, service)?
            && !sources::is_allowed::<C, P>(ends, service)?
        {
            return Ok(Some(Reason::DeniedSource));
        }
        if lists & list::ADMITTED != 0
            && !is_admitted::<C, P>(ends, service)?
            && !sources::is_allowed::<C, P>(ends, service)?
        {
            return Ok(None);
        }
    }
    budgets::charge::<C, P>(packet, length, service, settings, Reason::Allowed).map(Some)
}

/// A packet that reaches no service passes for this reason, within the policy's `limits`.
#[inline(always)]
fn within_limits<C: Clock, P: Pace>(
    packet: &Packet<impl Ends>,
    length: u64,
    reason: Reason,
) -> Result<Reason, P::Unsure> {
    if !uses!(feature::LIMITS) {
        return Ok(reason);
    }
    P::look_closer()?;
    let limits = maps::SERVICES.get(NO_SERVICE.into());
    budgets::charge::<C, P>(packet, length, NO_SERVICE, limits, reason)
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
