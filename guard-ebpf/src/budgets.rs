//! Whether a packet is within the budgets of its source and those that all sources share, and what it is granted if it
//! is not.

use guard_common::{
    layout::{Exemption, ServiceSlot, feature},
    packet::{IpHeader, Packet, PacketClass},
    reason::Reason,
};

use crate::{
    accounts,
    charge::{Terms, pay_as_crowd},
    clock::Clock,
    config::uses,
    path::PathKind,
    sources::{find_relief, is_allowed},
};

/// Passes a packet for `reason` if it is within every budget, which is then charged for it; says
/// which budget it is over if not.
///
/// Exemptions are looked up last, only for a packet that is about to be dropped.
#[inline(always)]
pub fn charge<C: Clock, P: PathKind>(
    packet: &Packet<impl IpHeader>,
    length: u64,
    service: u16,
    settings: &ServiceSlot,
    reason: Reason,
) -> Result<Reason, P::Deferred> {
    if !uses!(feature::BUDGETS) {
        return Ok(reason);
    }
    let ip = &packet.ip;
    let terms = Terms {
        service,
        attempt: packet.transport.has(PacketClass::CONNECTION_REQUEST),
    };
    let Err(over) = accounts::pay::<C>(ip, length, terms, settings) else {
        return Ok(reason);
    };
    if is_allowed::<C, P>(ip, service)? {
        return Ok(Reason::Exempt);
    }
    Ok(match find_relief::<C, P>(ip)? {
        Some(Exemption { exempt: 1, .. }) => Reason::Exempt,
        // What a crowd sends beyond one source's budget has further buckets, which are so much
        // larger that both together are `factor` times that budget.
        Some(Exemption { factor, .. }) if factor > 1 => {
            P::defer()?;
            match pay_as_crowd(ip, C::now(), length, terms, settings, factor - 1) {
                Ok(()) => reason,
                Err(over) => over,
            }
        }
        _ => over,
    })
}
