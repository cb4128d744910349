//! The one exit: a packet that has been judged is counted, once, and passes or is dropped.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use aya_log_ebpf::debug;
use guard_common::{layout::Conclusion, packet::IpHeader, reason::Outcome};

use crate::{
    clock::{Clock, KernelClock, ReplayClock},
    config,
    counters::{self, Counted},
    events,
    order::unforeseen,
    talkers,
};

/// Counts a packet once, under its one conclusion.
#[inline(always)]
pub fn finish<C: Ending>(
    ctx: &XdpContext,
    conclusion: Conclusion,
    ip: Option<&impl IpHeader>,
    length: u64,
) -> u32 {
    let counted = Counted {
        conclusion,
        ip,
        length,
        number: counters::count(ctx, conclusion, length),
    };
    talkers::watch(ctx, &counted);
    C::end(ctx, &counted)
}

/// What becomes of a packet that has been judged and counted: the program's return value.
///
/// It goes with the clock: what comes over a wire is acted on by the kernel's, what is replayed by its own is told.
pub trait Ending: Clock {
    fn end(ctx: &XdpContext, counted: &Counted<'_, impl IpHeader>) -> u32;
}

/// Shows a packet to who wants to see it, and does what was concluded.
impl Ending for KernelClock {
    #[inline(always)]
    fn end(ctx: &XdpContext, counted: &Counted<'_, impl IpHeader>) -> u32 {
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
impl Ending for ReplayClock {
    #[inline(always)]
    fn end(_: &XdpContext, counted: &Counted<'_, impl IpHeader>) -> u32 {
        counted.conclusion.pack()
    }
}
