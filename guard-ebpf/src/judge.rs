//! Judges a packet under the policy, step by step. The steps look up tables; the rules are pure functions of
//! `guard-common`.

use core::marker::PhantomData;

use aya_ebpf::programs::XdpContext;
use guard_common::{
    exposure::Exposure,
    layout::{Conclusion, NO_SERVICE, ServiceSlot, feature, list},
    packet::{IpFields, IpHeader, Packet, PacketClass},
    reason::{Mode, ModeBits, Outcome, Reason},
};

use crate::{
    budgets,
    clock::Clock,
    config::{self, uses},
    exposure::{PortLookup, find_destination, is_admitted, is_for_host, judge_refused},
    finish::{ReturnCode, finish},
    flood, flows, fragments, host_buckets, maps, martian,
    parse::{NotParsed, PlainReader, Reader},
    path::{FastPath, PathKind, SlowPath},
    sources,
};

/// A packet that was not parsed.
pub const NOT_PARSED: Option<&Packet<IpFields>> = None;

/// Judges a parsed packet, and finishes it if there is a verdict.
pub struct Judge<'a, C, P> {
    ctx: &'a XdpContext,
    rules: PhantomData<(C, P)>,
}

impl<'a, C, P> Judge<'a, C, P> {
    #[inline(always)]
    pub fn new(ctx: &'a XdpContext) -> Self {
        Self {
            ctx,
            rules: PhantomData,
        }
    }
}

impl<C, P> Clone for Judge<'_, C, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C, P> Copy for Judge<'_, C, P> {}

/// `None`: the packet is deferred to the slow path.
impl<C: ReturnCode> PlainReader for Judge<'_, C, FastPath> {
    type Output = u32;

    #[inline(always)]
    fn plain(self, packet: &Packet<impl IpHeader>, length: u64) -> Option<u32> {
        let judged = judge::<C, FastPath>(self.ctx, packet, length).ok()?;
        let (ctx, packet) = (self.ctx, Some(packet));
        Some(match judged {
            PolicyDecision::Closed(reason) => finish::<C>(ctx, of_host(reason), packet, length),
            PolicyDecision::Conclusion(conclusion) => finish::<C>(ctx, conclusion, packet, length),
        })
    }
}

impl<C: ReturnCode> Reader for Judge<'_, C, SlowPath> {
    type Output = u32;

    #[inline(always)]
    fn ip(self, packet: &Packet<impl IpHeader>, length: u64) -> u32 {
        let conclusion = match judge::<C, SlowPath>(self.ctx, packet, length) {
            Ok(PolicyDecision::Closed(reason)) => of_host(reason),
            Ok(PolicyDecision::Conclusion(conclusion)) => conclusion,
        };
        fragments::note_first::<C>(packet, is_stopped(conclusion));
        let code = finish::<C>(self.ctx, conclusion, Some(packet), length);
        C::answer(self.ctx, conclusion, code)
    }

    #[inline(always)]
    fn not_parsed(self, why: NotParsed, length: u64) -> u32 {
        let reason = match why {
            NotParsed::NotIp => Reason::NotGuarded,
            NotParsed::Malformed => Reason::Malformed,
        };
        finish::<C>(self.ctx, of_host(reason), NOT_PARSED, length)
    }
}

/// Whether a first fragment is stopped, so that its later fragments do not pass with it. In mode `observe` a fragment
/// that `enforce` would drop counts as stopped, so that both modes count the same.
#[inline(always)]
fn is_stopped(Conclusion { slot, .. }: Conclusion) -> bool {
    match config::mode() {
        Mode::Enforce => Outcome::is_dropped(slot),
        Mode::Observe | Mode::Off => Outcome::has_drop_reason(slot),
    }
}

/// The conclusion for a packet that belongs to no service.
#[inline(always)]
pub fn of_host(reason: Reason) -> Conclusion {
    Conclusion::new(NO_SERVICE, reason, ModeBits::of(config::mode()))
}

/// The policy's decision on a packet.
enum PolicyDecision {
    /// To drop, and belongs to no service: the host's mode applies.
    Closed(Reason),
    /// Anything else, with the mode applied.
    Conclusion(Conclusion),
}

#[inline(always)]
fn judge<C: Clock, P: PathKind>(
    ctx: &XdpContext,
    packet: &Packet<impl IpHeader>,
    length: u64,
) -> Result<PolicyDecision, P::Deferred> {
    let Packet { ip, transport } = packet;
    let addresses = martian::judge_addresses::<P>(packet)?;
    if addresses.is_martian() {
        return Ok(PolicyDecision::Closed(Reason::Martian));
    }
    if transport.has(PacketClass::CONTROL.or(PacketClass::DHCP_REPLY)) {
        P::defer()?;
        let is_dhcp = !transport.has(PacketClass::CONTROL);
        if !is_dhcp || is_for_host(packet) {
            let reason = if host_buckets::has_room_for_control::<C>(is_dhcp) {
                Reason::Control
            } else {
                Reason::TotalLimit
            };
            return Ok(PolicyDecision::Conclusion(of_host(reason)));
        }
    }
    // After control packets: a neighbour that has this host's address reports the conflict from it (RFC 4862, section
    // 5.4.4).
    if addresses.is_own_source() {
        return Ok(PolicyDecision::Closed(Reason::Martian));
    }
    if sources::is_denied::<C, P>(ip)? && !sources::is_allowed::<C, P>(ip, NO_SERVICE)? {
        return Ok(PolicyDecision::Conclusion(of_host(Reason::DeniedSource)));
    }
    if transport.has(PacketClass::LATER_FRAGMENT) {
        P::defer()?;
        let reason = match fragments::judge_later::<C>(ip, length) {
            Reason::Fragment => within_limits::<C, P>(packet, length, Reason::Fragment)?,
            other => other,
        };
        return Ok(PolicyDecision::Conclusion(of_host(reason)));
    }
    // An open or closed port decides at once. Packets that may be answers, or that are subject to `limits`, continue
    // below.
    let (service, mode, exposure) = match find_destination::<P>(packet)? {
        PortLookup::Unlisted(Exposure::Closed(reason)) => {
            return Ok(PolicyDecision::Closed(reason));
        }
        PortLookup::Service(service, settings, entry) => {
            let mode = settings.mode;
            match judge_at_service::<C, P>(ctx, packet, length, service, settings, mode)? {
                Some(reason) => {
                    let conclusion = Conclusion::new(service, reason, mode);
                    return Ok(PolicyDecision::Conclusion(conclusion));
                }
                None => (service, mode, judge_refused(packet, entry)),
            }
        }
        PortLookup::Unlisted(exposure) => (NO_SERVICE, ModeBits::of(config::mode()), exposure),
    };
    let reason = match exposure {
        Exposure::Closed(reason) => reason,
        Exposure::Pass(reason) => within_limits::<C, P>(packet, length, reason)?,
        Exposure::ClosedUnlessReply(reason) => {
            if flows::is_reply::<C, P>(packet, service != NO_SERVICE)? {
                within_limits::<C, P>(packet, length, Reason::Reply)?
            } else {
                if mode.is_observed() {
                    P::defer()?;
                    flows::note_unsolicited::<C>(packet);
                }
                reason
            }
        }
    };
    Ok(PolicyDecision::Conclusion(Conclusion::new(
        service, reason, mode,
    )))
}

/// The reason for a packet to a service; `None`: the service does not admit the source.
#[inline(always)]
fn judge_at_service<C: Clock, P: PathKind>(
    ctx: &XdpContext,
    packet: &Packet<impl IpHeader>,
    length: u64,
    service: u16,
    settings: &ServiceSlot,
    mode: ModeBits,
) -> Result<Option<Reason>, P::Deferred> {
    let Packet { ip, .. } = packet;
    if mode.is_off() {
        return Ok(Some(Reason::NotGuarded));
    }
    let lists = settings.lists;
    if lists != 0 {
        if lists & list::DENIED != 0
            && sources::is_denied_at::<C, P>(ip, service)?
            && !sources::is_allowed::<C, P>(ip, service)?
        {
            return Ok(Some(Reason::DeniedSource));
        }
        if lists & list::ADMITTED != 0
            && !is_admitted::<C, P>(ip, service)?
            && !sources::is_allowed::<C, P>(ip, service)?
        {
            return Ok(None);
        }
        if lists & list::PROTECTED != 0
            && let Some(stopped) = flood::judge::<C, P>(ctx, packet, service, settings)?
            && !budgets::is_exempt::<C, P>(ip, service)?
        {
            return Ok(Some(stopped));
        }
    }
    budgets::charge::<C, P>(packet, length, service, settings, Reason::Allowed).map(Some)
}

/// Charges a packet that belongs to no service to the policy's `limits`, and returns `reason` if it is within them.
#[inline(always)]
fn within_limits<C: Clock, P: PathKind>(
    packet: &Packet<impl IpHeader>,
    length: u64,
    reason: Reason,
) -> Result<Reason, P::Deferred> {
    if !uses!(feature::LIMITS) {
        return Ok(reason);
    }
    P::defer()?;
    let limits = maps::SERVICES.get(NO_SERVICE.into());
    budgets::charge::<C, P>(packet, length, NO_SERVICE, limits, reason)
}
