//! Meets floods of requests for TCP connections: a source that is not verified is challenged before it is served.
//!
//! While a service is not flooded, requests of sources that are not verified are charged to its budget of attempts.
//! Once that is used up, they are answered with challenges ([`guard_common::challenge`]), and pass only as far as weak
//! sources have credit and the service's lane has room. Requests of strong sources go to the budgets as always.
//!
//! A challenged request is charged to no budget: otherwise a flood would use up the total that verified clients need.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    bindings::xdp_md,
    helpers::bpf_get_prandom_u32,
    programs::{TcContext, XdpContext},
};
use guard_common::{
    bucket::charge_one,
    cell::{self, Share},
    challenge::{Cookie, CookiePeriod, answers_strong, answers_weak},
    gcra::Price,
    layout::{
        ANSWERED_FOR, FLOOD_FOR, FloodSettings, FloodState, NO_SERVICE, PortProtocol,
        STRONG_PERIOD, ServiceSlot, feature, list, port_index,
    },
    packet::{IpHeader, Packet, PacketClass, tcp_flags},
    reason::Reason,
    verified::{self, RENEWED_AFTER, STRONG, Second, VerifiedPlace, WEAK},
};

use crate::{
    answer::Answer,
    charge::{MapBucket, prefix, source_mask},
    clock::{Clock, KernelClock},
    config::{self, uses},
    exposure::find_addressed,
    maps::{ANSWERS, FLOOD_SETTINGS, FLOODED, FLOODS, PORTS, SERVICES, VERIFIED},
    parse::{Frame, Segment},
    path::PathKind,
};

/// Judges a TCP segment to a protected service. `None`: it goes to the budgets.
#[inline(always)]
pub fn judge<C: Clock, P: PathKind>(
    ctx: &XdpContext,
    packet: &Packet<impl IpHeader>,
    service: u16,
    settings: &ServiceSlot,
) -> Result<Option<Reason>, P::Deferred> {
    if !uses!(feature::FLOODS) {
        return Ok(None);
    }
    let is_request = packet.transport.has(PacketClass::CONNECTION_REQUEST);
    if !is_request && (!packet.transport.has(PacketClass::SEGMENT) || FLOODED.load() == 0) {
        return Ok(None);
    }
    P::defer()?;
    let Packet { ip, .. } = packet;
    let source = prefix(ip, settings);
    let hash = cell::hash(config::hash_key(), Share::Base, ip.family(), source);
    let segment = if is_request { REQUEST } else { 0 };
    let segment = segment | u32::from(service);
    let verdict = guard_judge_flood(ctx.ctx, segment, hash, C::now());
    Ok(REASONS.into_iter().find(|reason| *reason as u32 == verdict))
}

/// What [`guard_judge_flood`] returns for a segment that goes to the budgets: no [`Reason`] to drop.
const TO_BUDGETS: u32 = 0;
const REASONS: [Reason; 3] = [Reason::Challenged, Reason::Unverified, Reason::Handshake];

/// Above the service id: the segment requests a connection.
const REQUEST: u32 = 1 << 16;

/// A global function: the verifier checks it once (Linux 5.6), and not behind each path of a packet.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_judge_flood(ctx: *mut xdp_md, segment: u32, hash: u64, now: u64) -> u32 {
    let service = segment as u16;
    let place = VerifiedPlace::of(hash);
    let (Some(settings), Some(state), Some(line)) = (
        FLOOD_SETTINGS.get(service.into()),
        FLOODS.get_ptr_mut(service.into()),
        VERIFIED.get_ptr_mut(place.line),
    ) else {
        // Unreachable. If it happens, the packet goes to the budgets.
        return TO_BUDGETS;
    };
    let source = SourceLine {
        hash,
        place,
        line: line.cast(),
    };
    if source.is_strong(now) {
        return TO_BUDGETS;
    }
    let flood = FloodedService {
        service,
        settings,
        state: FloodFields::of(state),
        now,
    };
    let ctx = XdpContext::new(ctx);
    let stopped = if segment & REQUEST != 0 {
        flood.judge_request(&ctx, &source)
    } else {
        flood.judge_answer(&ctx, &source)
    };
    match stopped {
        Some(reason) => reason as u32,
        None => TO_BUDGETS,
    }
}

/// A source, and its line in the table of verified sources.
struct SourceLine {
    hash: u64,
    place: VerifiedPlace,
    /// The entries of its line: first the strong, then the weak.
    line: *mut u64,
}

impl SourceLine {
    #[inline(always)]
    fn is_strong(&self, now: u64) -> bool {
        verified::is_strong(self.strong_age(now))
    }

    #[inline(always)]
    fn strong_age(&self, now: u64) -> u32 {
        verified::strong_age(self.strong(), self.place, Second::of(now))
    }

    #[inline(always)]
    fn strong(&self) -> [u64; STRONG] {
        [0, 1, 2, 3, 4, 5].map(|nth| self.read(nth))
    }

    #[inline(always)]
    fn weak(&self) -> [u64; WEAK] {
        [0, 1].map(|nth| self.read(STRONG + nth))
    }

    #[inline(always)]
    fn read(&self, nth: usize) -> u64 {
        // SAFETY: the entry lies in the value of an array map. An aligned 64-bit load does not tear.
        unsafe { read_volatile(self.line.add(nth)) }
    }

    /// If two CPUs write the same entry at once, one of the two sources has to prove itself again.
    #[inline(always)]
    fn write(&self, nth: usize, entry: u64) {
        // SAFETY: as above. The mask keeps the index in the value.
        unsafe { write_volatile(self.line.add(nth & (STRONG + WEAK - 1)), entry) };
    }

    #[inline(always)]
    fn become_strong(&self, now: u64) {
        let (nth, entry) = verified::strong_entry(self.strong(), self.place, Second::of(now));
        self.write(nth, entry);
    }

    #[inline(always)]
    fn earn(&self, now: u64) {
        let (nth, entry) = verified::earn(self.weak(), self.place, Second::of(now));
        self.write(STRONG + nth, entry);
    }
}

/// The fields of a [`FloodState`], which all CPUs read and write.
struct FloodFields {
    attempts: *mut u64,
    lane: *mut u64,
    until: *mut u64,
    lane_full: *mut u64,
    since_ns: *mut u64,
    seen_ns: *mut u64,
}

impl FloodFields {
    /// `state`: points to a value of the map.
    #[inline(always)]
    fn of(state: *mut FloodState) -> Self {
        // SAFETY: the pointer is to a value of an array map.
        unsafe {
            Self {
                attempts: &raw mut (*state).attempts,
                lane: &raw mut (*state).lane,
                until: &raw mut (*state).until,
                lane_full: &raw mut (*state).lane_full,
                since_ns: &raw mut (*state).since_ns,
                seen_ns: &raw mut (*state).seen_ns,
            }
        }
    }
}

#[inline(always)]
fn load(field: *mut u64) -> u64 {
    // SAFETY: the field lies in the value of an array map. An aligned 64-bit load does not tear.
    unsafe { read_volatile(field) }
}

#[inline(always)]
fn store(field: *mut u64, time: u64) {
    // SAFETY: as above.
    unsafe { write_volatile(field, time) }
}

/// A service at which a segment of a source that is not strong has arrived.
struct FloodedService<'a> {
    service: u16,
    settings: &'a FloodSettings,
    state: FloodFields,
    now: u64,
}

impl FloodedService<'_> {
    /// Judges a request for a connection.
    #[inline(always)]
    fn judge_request(&self, ctx: &XdpContext, source: &SourceLine) -> Option<Reason> {
        let attempt = self.settings.attempts.price();
        if self.now >= load(self.state.until) {
            if charge_one(MapBucket::<true>(self.state.attempts), self.now, attempt) {
                return None;
            }
            store(self.state.since_ns, KernelClock::boot_ns());
            self.go_on();
        } else if self.is_sampled() && !self.has_room_for_sample(attempt) {
            self.go_on();
        }
        if self.may_pass(source) {
            return None;
        }
        if !self.has_answer_left() {
            return Some(Reason::Unverified);
        }
        let Some(segment) = Segment::read(&Frame::of_xdp(ctx)) else {
            return Some(Reason::Unverified);
        };
        let key = config::challenge_key();
        let cookie = Cookie::of(key, &segment.endpoints, CookiePeriod::of(self.now));
        let answer = if self.is_strong_challenge(source) {
            Answer::syn_ack(cookie.0)
        } else {
            Answer::ack(cookie.weak_acknowledgment(segment.sequence))
        };
        answer.prepare();
        Some(Reason::Challenged)
    }

    /// Judges a segment that requests no connection: it may answer a challenge.
    #[inline(always)]
    fn judge_answer(&self, ctx: &XdpContext, source: &SourceLine) -> Option<Reason> {
        if self.now > load(self.state.until) + ANSWERED_FOR {
            if self.now > FLOODED.load() {
                FLOODED.store(0);
            }
            return None;
        }
        let segment = Segment::read(&Frame::of_xdp(ctx))?;
        let (key, period) = (config::challenge_key(), CookiePeriod::of(self.now));
        let Segment {
            endpoints,
            sequence,
            acknowledgment,
            flags,
            ..
        } = &segment;
        if flags & tcp_flags::RST != 0 {
            if !answers_weak(key, endpoints, period, *sequence) {
                return None;
            }
            source.earn(self.now);
            Answer::NOTHING.prepare();
            return Some(Reason::Handshake);
        }
        let acknowledges = flags & tcp_flags::ACK != 0 && flags & tcp_flags::SYN == 0;
        if !acknowledges || !answers_strong(key, endpoints, period, *acknowledgment) {
            return None;
        }
        source.become_strong(self.now);
        Answer::reset(*acknowledgment).prepare();
        Some(Reason::Handshake)
    }

    /// The flood goes on for [`FLOOD_FOR`] from now.
    #[inline(always)]
    fn go_on(&self) {
        let until = self.now + FLOOD_FOR;
        store(self.state.until, until);
        store(self.state.seen_ns, KernelClock::boot_ns());
        FLOODED.store(until + ANSWERED_FOR);
    }

    #[inline(always)]
    fn is_sampled(&self) -> bool {
        // SAFETY: the helper has no preconditions.
        let random = unsafe { bpf_get_prandom_u32() };
        random & self.settings.sample.wrapping_sub(1) == 0
    }

    #[inline(always)]
    fn has_room_for_sample(&self, Price { cost, burst }: Price) -> bool {
        let cost = cost.wrapping_mul(u64::from(self.settings.sample));
        let price = Price { cost, burst };
        charge_one(MapBucket::<true>(self.state.attempts), self.now, price)
    }

    /// Whether the request of a weak source passes. It spends a credit, and room in the lane.
    #[inline(always)]
    fn may_pass(&self, source: &SourceLine) -> bool {
        let spent = verified::spend(source.weak(), source.place, Second::of(self.now));
        let Some((nth, entry)) = spent else {
            return false;
        };
        let lane = self.settings.lane.price();
        if !charge_one(MapBucket::<true>(self.state.lane), self.now, lane) {
            store(self.state.lane_full, self.now);
            return false;
        }
        source.write(STRONG + nth, entry);
        true
    }

    /// Charges a challenge to this CPU's budget.
    #[inline(always)]
    fn has_answer_left(&self) -> bool {
        let Some(bucket) = ANSWERS.get_ptr_mut(self.service.into()) else {
            return false;
        };
        // No other CPU writes it.
        charge_one(
            MapBucket::<true>(bucket),
            self.now,
            self.settings.answers.price(),
        )
    }

    /// Whether the source is to get a strong challenge: while the lane is full, and otherwise in some periods, so that
    /// a client whose firewall drops weak challenges gets in as well.
    #[inline(always)]
    fn is_strong_challenge(&self, source: &SourceLine) -> bool {
        let since_full = self.now.wrapping_sub(load(self.state.lane_full));
        let one_of = self.settings.strong_one_of;
        let period = self.now / STRONG_PERIOD;
        let slot = (source.hash >> 32) as u32;
        since_full < STRONG_PERIOD
            || one_of != 0 && slot.wrapping_add(period as u32) & one_of.wrapping_sub(1) == 0
    }
}

/// Makes the peer of a TCP segment that leaves this host strong if the segment has data and comes from a protected
/// port: a server sends data only after a handshake.
#[inline(always)]
pub fn record_served<C: Clock>(ctx: &TcContext) {
    if uses!(feature::FLOODS) {
        let _is_served = note_served(ctx, C::now());
    }
}

#[inline(always)]
fn note_served(ctx: &TcContext, now: u64) -> Option<()> {
    let segment = Segment::read(&Frame::of_skb(ctx))?;
    let has_data = ctx.len() as usize > segment.data;
    if !has_data || segment.flags & (tcp_flags::SYN | tcp_flags::RST) != 0 {
        return None;
    }
    let local = &segment.endpoints;
    let index = port_index(PortProtocol::Tcp, local.source_port);
    let entry = *PORTS.get_behind_swap(index as usize);
    let here = find_addressed(local.family, local.source, index, entry);
    let service = entry.on_address(here).service();
    let settings = SERVICES.get(service.into());
    if service == NO_SERVICE || settings.lists & list::PROTECTED == 0 {
        return None;
    }
    let peer = local
        .destination
        .masked(source_mask(local.family, settings));
    let hash = cell::hash(config::hash_key(), Share::Base, local.family, peer);
    let place = VerifiedPlace::of(hash);
    let line = VERIFIED.get_ptr_mut(place.line)?.cast();
    let source = SourceLine { hash, place, line };
    if source.strong_age(now) > RENEWED_AFTER {
        source.become_strong(now);
    }
    Some(())
}
