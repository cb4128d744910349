//! Tracks the UDP flows that this host opens, so that their answers pass. Flows are recorded on egress, where
//! masquerading has already given the packet the addresses that answers will carry.
//!
//! Only packets that leave this host add entries, and a service's answers add none: they leave a service that is open
//! to all, or go to a source that the service admits. So a flood of spoofed packets cannot fill the table, and a
//! source whose admission has ended keeps no flow.

use core::marker::PhantomData;

use aya_ebpf::programs::TcContext;
use guard_common::{
    address::{Address, Family},
    exposure::{NetworkKind, Scope},
    gcra::UNITS_PER_NANOSECOND,
    layout::{
        FLOW_IDLE_NS, FlowKey, NO_SERVICE, PortProtocol, UNSOLICITED_NS, feature, list, port_index,
    },
    packet::{IpHeader, Packet, PacketClass},
    reason::Mode,
};

use crate::{
    clock::{BootClock, Clock},
    config::{self, uses},
    exposure::{find_addressed, is_admitted, is_published},
    maps::{FLOWS, OPENED_FLOWS, PORTS, SERVICES, UNSOLICITED},
    networks::find_network,
    parse::{Frame, NotParsed, Reader, parse},
    path::{PathKind, SlowPath},
    sources::is_allowed,
};

const IDLE: u64 = FLOW_IDLE_NS * UNITS_PER_NANOSECOND;
const ANSWER: u64 = UNSOLICITED_NS * UNITS_PER_NANOSECOND;

/// An entry younger than this is not refreshed, in units of the clock.
const REFRESH: u64 = 1_000_000_000 * UNITS_PER_NANOSECOND;

/// Records the flow of a packet that leaves this host.
#[inline(always)]
pub fn record<C: Clock>(ctx: &TcContext) {
    if !uses!(feature::FLOWS) {
        return;
    }
    let length = u64::from(ctx.len());
    parse(&Frame::of_skb(ctx), length, Recorder::<C>(PhantomData));
}

struct Recorder<C>(PhantomData<C>);

impl<C> Clone for Recorder<C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Recorder<C> {}

impl<C: Clock> Reader for Recorder<C> {
    type Output = ();

    #[inline(always)]
    fn ip(self, packet: &Packet<impl IpHeader>, _length: u64) {
        if !packet.transport.has(PacketClass::DATAGRAM) {
            return;
        }
        let Some(mode) = mode_of_answers(packet) else {
            return;
        };
        let Packet { ip, transport } = packet;
        let key = flow(
            ip.family(),
            (ip.source(), transport.source_port()),
            (ip.destination(), transport.destination_port()),
        );
        if mode == Mode::Observe && is_answer_to_unsolicited::<C>(&key) {
            return;
        }
        touch::<C>(&key);
    }

    #[inline(always)]
    fn not_parsed(self, _why: NotParsed, _length: u64) {}
}

/// Whether the packet answers a flow that this host opened. An answer refreshes its flow, except at a port that a
/// service lists. There only egress packets refresh it, so a source that the service does not admit cannot keep a flow
/// open.
#[inline(always)]
pub fn is_reply<C: Clock, P: PathKind>(
    packet: &Packet<impl IpHeader>,
    is_listed: bool,
) -> Result<bool, P::Deferred> {
    if !packet.transport.has(PacketClass::DATAGRAM) || !uses!(feature::FLOWS) {
        return Ok(false);
    }
    let key = incoming(packet);
    let now = C::now();
    let Some(age) = age(&key, now) else {
        return Ok(false);
    };
    if age <= REFRESH {
        return Ok(true);
    }
    P::defer()?;
    if age <= IDLE && !is_listed {
        refresh(&key, now);
    }
    Ok(age <= IDLE)
}

#[inline(always)]
fn touch<C: Clock>(key: &FlowKey) {
    let now = C::now();
    match age(key, now) {
        Some(age) if age <= REFRESH => {}
        Some(_) => refresh(key, now),
        None => {
            refresh(key, now);
            count_opened();
        }
    }
}

#[inline(always)]
fn count_opened() {
    if let Some(opened) = OPENED_FLOWS.get_ptr_mut(0) {
        // SAFETY: the pointer is to this CPU's own value. A packet that interrupts this one may overwrite its count:
        // the number matters only where thousands of flows are opened.
        unsafe { *opened += 1 };
    }
}

/// The time since the flow's last packet; 0 if the clock went back.
#[inline(always)]
fn age(key: &FlowKey, now: u64) -> Option<u64> {
    // SAFETY: the value is one word, read at once.
    let seen = unsafe { FLOWS.get(key) }.copied()?;
    Some(now.saturating_sub(seen))
}

#[inline(always)]
fn refresh(key: &FlowKey, now: u64) {
    // A full map evicts its oldest entry, so inserting rarely fails. If it fails, the answer is judged like any other
    // packet.
    let _result = FLOWS.insert(key, now, 0);
}

/// The flow key of an ingress packet.
#[inline(always)]
fn incoming(packet: &Packet<impl IpHeader>) -> FlowKey {
    let Packet { ip, transport } = packet;
    flow(
        ip.family(),
        (ip.destination(), transport.destination_port()),
        (ip.source(), transport.source_port()),
    )
}

#[inline(always)]
fn flow(family: Family, local: (Address, u16), peer: (Address, u16)) -> FlowKey {
    FlowKey {
        local: local.0,
        peer: peer.0,
        local_port: local.1,
        peer_port: peer.1,
        family: family as u32,
    }
}

/// The mode that applies to an answer to this egress packet; `None`: the packet needs no flow.
///
/// - A service that is open to all needs none, so that spoofed queries to it cannot fill the table.
/// - Nor does a packet to a source that the service admits, or admitted until its entry ended: access ends with the
///   entry.
/// - Answers to an address in a masqueraded network are dropped, and in mode `off` every packet passes.
/// - At a published port answers pass in every scope: masquerading may choose a source port that lies in a published
///   range.
#[inline(always)]
fn mode_of_answers(packet: &Packet<impl IpHeader>) -> Option<Mode> {
    let (family, local) = (packet.ip.family(), packet.ip.source());
    let index = port_index(PortProtocol::Udp, packet.transport.source_port());
    let entry = *PORTS.get_behind_swap(index as usize);
    let here = find_addressed(family, local, index, entry);
    let entry = entry.on_address(here);
    // As on ingress, a service that names this address comes before the container networks.
    if here.service() == NO_SERVICE
        && let Some(network) = find_network(family, local)
    {
        return (network == NetworkKind::Routed).then(config::mode);
    }
    let service = entry.service();
    if service == NO_SERVICE {
        // After a trial, a policy of scope `host` may come back. It needs the flows that it would have recorded
        // meanwhile.
        let is_needed = config::scope() == Scope::Host
            || config::trial_until() != 0
            || is_published(family, entry);
        return is_needed.then(config::mode);
    }
    let settings = SERVICES.get(service.into());
    let mode = settings.mode.mode();
    let needs =
        settings.lists & list::ADMITTED != 0 && mode != Mode::Off && !has_admitted(packet, service);
    needs.then_some(mode)
}

/// Whether the service admits the destination of an egress packet, or admitted it until its entry ended.
#[inline(always)]
fn has_admitted(packet: &Packet<impl IpHeader>, service: u16) -> bool {
    let answer = packet.ip.reversed();
    // At the host's boot no entry has ended, so with that time an ended entry matches as well.
    let Ok(is_admitted) = is_admitted::<BootClock, SlowPath>(&answer, service);
    let Ok(is_allowed) = is_allowed::<BootClock, SlowPath>(&answer, service);
    is_admitted || is_allowed
}

/// Remembers a packet that passes only because the mode is `observe`. This host's answer to it opens no flow: otherwise
/// `observe` would count fewer packets than `enforce` drops.
#[inline(always)]
pub fn note_unsolicited<C: Clock>(packet: &Packet<impl IpHeader>) {
    if packet.transport.has(PacketClass::DATAGRAM) && uses!(feature::FLOWS) {
        // A full map evicts its oldest entry, so inserting rarely fails.
        let _result = UNSOLICITED.insert(incoming(packet), C::now(), 0);
    }
}

/// Whether this egress packet answers an unsolicited one. After [`UNSOLICITED_NS`] it counts as a flow of this host.
#[inline(always)]
fn is_answer_to_unsolicited<C: Clock>(key: &FlowKey) -> bool {
    // SAFETY: the value is one word, read at once.
    let seen = unsafe { UNSOLICITED.get(key) };
    seen.is_some_and(|seen| C::now().saturating_sub(*seen) <= ANSWER)
}
