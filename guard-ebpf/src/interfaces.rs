//! Looks up the row of the ingress interface in the tables that have a row per interface.

use aya_ebpf::programs::XdpContext;
use guard_common::interfaces::{InterfacePlace, LOOKS, PLACES, UNKNOWN_ROW, first_place};

use crate::{barrier::masked, maps::INTERFACES};

#[inline(always)]
pub fn row(ctx: &XdpContext) -> u32 {
    // SAFETY: the context is the one that this program was called with.
    let interface = unsafe { (*ctx.ctx).ingress_ifindex };
    let Some(places) = INTERFACES.get_ptr(0) else {
        return UNKNOWN_ROW;
    };
    let first = first_place(interface);
    for look in 0..LOOKS as usize {
        let at = masked::<{ PLACES as u64 - 1 }>((first + look) as u64);
        // SAFETY: the place is within the value, which lives as long as the program.
        let place = unsafe { *places.cast::<InterfacePlace>().add(at as usize) };
        if place.interface == interface {
            return place.row;
        }
    }
    UNKNOWN_ROW
}
