//! Whether a packet is within the budgets of its source and those that all sources share, and what it is granted if it
//! is not.

use guard_common::{
    layout::{Relief, ServiceSlot, feature},
    packet::{Ends, Packet, Traits},
    reason::Reason,
};

use crate::{
    accounts,
    bill::{Terms, pay_as_crowd},
    clock::Clock,
    config::uses,
    pace::Pace,
    sources::{find_relief, is_allowed},
};

/// Passes a packet for `reason` if it is within every budget, which is then charged for it; says
/// which budget it is over if not.
///
/// Exemptions are looked up last, only for a packet that is about to be dropped.
#[inline(always)]
pub fn charge<C: Clock, P: Pace>(
    packet: &Packet<impl Ends>,
    length: u64,
    service: u16,
    settings: &ServiceSlot,
    reason: Reason,
) -> Result<Reason, P::Unsure> {
    if !uses!(feature::BUDGETS) {
        return Ok(reason);
    }
    let ends = &packet.ends;
    let terms = Terms {
        service,
        attempt: packet.transport.has(Traits::ATTEMPT),
    };
    let Err(over) = accounts::pay::<C>(ends, length, terms, settings) else {
        return Ok(reason);
    };
    if is_allowed::<C, P>(ends, service)? {
        return Ok(Reason::Exempt);
    }
    Ok(match find_relief::<C, P>(ends)? {
        Some(Relief { exempt: 1, .. }) => Reason::Exempt,
        // What a crowd sends beyond one source's budget has further buckets, which are so much
        // larger that both together are `factor` times that budget.
        Some(Relief { factor, .. }) if factor > 1 => {
            P::look_closer()?;
            match pay_as_crowd(ends, C::now(), length, terms, settings, factor - 1) {
                Ok(()) => reason,
                Err(over) => over,
            }
        }
        _ => over,
    })
}
