//! The single exit: a judged packet is counted once, sampled, offered to a capture, and passed or dropped.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use aya_log_ebpf::debug;
use guard_common::{
    layout::{Conclusion, feature},
    packet::{IpHeader, Packet},
    reason::{Outcome, Reason},
};

use crate::{
    answer,
    barrier::opaque,
    clock::{Clock, KernelClock, ReplayClock},
    config::{self, uses},
    counters::{self, Counted},
    events, sample,
};

/// Counts a packet once, under its conclusion.
#[inline(always)]
pub fn finish<C: ReturnCode>(
    ctx: &XdpContext,
    conclusion: Conclusion,
    packet: Option<&Packet<impl IpHeader>>,
    length: u64,
) -> u32 {
    let counted = Counted {
        conclusion,
        packet,
        length,
        number: counters::count(ctx, conclusion, length),
    };
    sample::take(ctx, &counted);
    C::return_code(ctx, &counted)
}

/// Converts a counted packet to the program's return value. The type of the clock decides: live packets return an XDP
/// action, replayed packets the packed conclusion.
pub trait ReturnCode: Clock {
    fn return_code(ctx: &XdpContext, counted: &Counted<'_, impl IpHeader>) -> u32;

    /// Sends the answer to a packet of a flood, after it was counted and captured. `code`: of [`Self::return_code`].
    fn answer(ctx: &XdpContext, conclusion: Conclusion, code: u32) -> u32;
}

/// Offers the packet to a capture, and returns its XDP action.
impl ReturnCode for KernelClock {
    #[inline(always)]
    fn return_code(ctx: &XdpContext, counted: &Counted<'_, impl IpHeader>) -> u32 {
        // For developers. If debugging is off, the verifier removes this branch as dead code.
        if config::is_debugged() && opaque(counted.number) == 1 {
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

    #[inline(always)]
    fn answer(ctx: &XdpContext, Conclusion { slot, .. }: Conclusion, code: u32) -> u32 {
        if !uses!(feature::FLOODS) {
            return code;
        }
        // In mode `observe` nothing is sent: the slot is another one.
        let is_answered = slot == Reason::Challenged as u32 || slot == Reason::Handshake as u32;
        if is_answered { answer::send(ctx) } else { code }
    }
}

/// The XDP action of a slot, without a branch: one quarter of the slots drops and the others pass, and a word has the
/// two bits of the action for each quarter.
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

/// Returns the conclusion.
impl ReturnCode for ReplayClock {
    #[inline(always)]
    fn return_code(_: &XdpContext, counted: &Counted<'_, impl IpHeader>) -> u32 {
        counted.conclusion.pack()
    }

    /// A replay sends nothing.
    #[inline(always)]
    fn answer(_: &XdpContext, _: Conclusion, code: u32) -> u32 {
        code
    }
}
