//! Samples the sources that send most (top talkers).
//!
//! Each CPU has a fixed number of places, and a source's hash selects one. A source that sends more than all others of
//! its place together keeps it (majority vote, Boyer and Moore), so a flood of random sources displaces no heavy
//! source, and costs no more than a single source.

use core::intrinsics::likely;

use aya_ebpf::programs::XdpContext;
use guard_common::{
    cell::{self, Share},
    layout::{TALKER_ENTRIES, TalkerSlot, feature},
    packet::IpHeader,
    talkers::is_sampled,
};

use crate::{
    config::{self, uses},
    counters::Counted,
    interfaces::row,
    maps::{TALKER_ROWS, TALKERS},
};

/// Votes for the packet's source if the packet belongs to the sample.
#[inline(always)]
pub fn watch(ctx: &XdpContext, counted: &Counted<'_, impl IpHeader>) {
    let Counted {
        conclusion,
        length,
        number,
        ..
    } = *counted;
    let Some(ip) = counted.ip else {
        return;
    };
    if likely(!is_sampled(config::first_hash_key(), number)) {
        return;
    }
    let (family, source) = (ip.family(), ip.source());
    let hash = cell::hash(config::hash_key(), Share::Base, family, source);
    let Some(talker) = find(ctx, hash as u32 & (TALKER_ENTRIES - 1)) else {
        return;
    };
    // SAFETY: the pointer is to this CPU's own value.
    let talker = unsafe { &mut *talker };
    talker.vote(family, source, length, conclusion);
}

#[inline(always)]
fn find(ctx: &XdpContext, place: u32) -> Option<*mut TalkerSlot> {
    if uses!(feature::ALONE) {
        return TALKERS.get_ptr_mut(place);
    }
    TALKER_ROWS.get_value_ptr_mut(row(ctx), &place)
}
