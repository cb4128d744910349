//! Samples the sources that send most (top talkers), and the closed ports that get most packets.
//!
//! Each CPU has a fixed number of places for each, and a hash of the source or the port selects one. A source that
//! sends more than all others of its place together keeps it (majority vote, Boyer and Moore), so a flood of random
//! sources displaces no heavy source, and costs no more than a single source. The same holds for a scan of all ports.

use core::intrinsics::likely;

use aya_ebpf::programs::XdpContext;
use guard_common::{
    cell::{self, Share},
    closed_ports::{COUNTED_EXACTLY, ClosedPortKey, is_closed_port, weight},
    layout::{ClosedPortSlot, TALKER_ENTRIES, TalkerSlot, feature},
    packet::IpHeader,
    talkers::is_sampled,
};

use crate::{
    config::{self, uses},
    counters::Counted,
    interfaces::row,
    maps::{CLOSED_PORT_ROWS, CLOSED_PORTS, TALKER_ROWS, TALKERS},
};

/// Counts the packet's source if the packet belongs to the sample, and its port if that is closed.
#[inline(always)]
pub fn take(ctx: &XdpContext, counted: &Counted<'_, impl IpHeader>) {
    let number = counted.number;
    let sampled = is_sampled(config::first_hash_key(), number);
    if likely(!sampled && number > COUNTED_EXACTLY) {
        return;
    }
    if is_closed_port(counted.conclusion.slot) {
        count_port(ctx, counted);
    }
    if sampled {
        count_source(ctx, counted);
    }
}

#[inline(always)]
fn count_port(ctx: &XdpContext, counted: &Counted<'_, impl IpHeader>) {
    let Some(packet) = counted.packet else {
        return;
    };
    let key = ClosedPortKey::new(packet.transport.place(), counted.conclusion.slot);
    let Some(port) = find_port(ctx, key.place()) else {
        return;
    };
    // SAFETY: the pointer is to this CPU's own value.
    let port = unsafe { &mut *port };
    port.vote(key, weight(counted.number));
}

#[inline(always)]
fn count_source(ctx: &XdpContext, counted: &Counted<'_, impl IpHeader>) {
    let Some(packet) = counted.packet else {
        return;
    };
    let (family, source) = (packet.ip.family(), packet.ip.source());
    let hash = cell::hash(config::hash_key(), Share::Base, family, source);
    let Some(talker) = find_source(ctx, hash as u32 & (TALKER_ENTRIES - 1)) else {
        return;
    };
    // SAFETY: the pointer is to this CPU's own value.
    let talker = unsafe { &mut *talker };
    talker.vote(packet, counted.length, counted.conclusion);
}

#[inline(always)]
fn find_port(ctx: &XdpContext, place: u32) -> Option<*mut ClosedPortSlot> {
    if uses!(feature::ALONE) {
        return CLOSED_PORTS.get_ptr_mut(place);
    }
    CLOSED_PORT_ROWS.get_value_ptr_mut(row(ctx), &place)
}

#[inline(always)]
fn find_source(ctx: &XdpContext, place: u32) -> Option<*mut TalkerSlot> {
    if uses!(feature::ALONE) {
        return TALKERS.get_ptr_mut(place);
    }
    TALKER_ROWS.get_value_ptr_mut(row(ctx), &place)
}
