//! Tests a packet against the budgets of its source and of all sources, and looks up exemptions if it is over a budget.

use guard_common::{
    layout::{Exemption, ServiceSlot, feature},
    packet::{IpHeader, Packet, PacketClass},
    reason::Reason,
};

use crate::{
    accounts,
    charge::{Terms, charge_crowd},
    clock::Clock,
    config::uses,
    path::PathKind,
    sources::{find_exemption, is_allowed},
};

/// Whether the source has no budgets, so that it is not challenged either.
#[inline(always)]
pub fn is_exempt<C: Clock, P: PathKind>(
    ip: &impl IpHeader,
    service: u16,
) -> Result<bool, P::Deferred> {
    if is_allowed::<C, P>(ip, service)? {
        return Ok(true);
    }
    let exemption = find_exemption::<C, P>(ip)?;
    Ok(matches!(exemption, Some(Exemption { exempt: 1, .. })))
}

/// Charges a packet to its budgets and returns `reason` if it is within all of them; otherwise returns the budget that
/// it exceeds, or the exemption that lets it pass.
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
    let Err(over) = accounts::charge_packet::<C>(ip, length, terms, settings) else {
        return Ok(reason);
    };
    if is_allowed::<C, P>(ip, service)? {
        return Ok(Reason::Exempt);
    }
    Ok(match find_exemption::<C, P>(ip)? {
        Some(Exemption { exempt: 1, .. }) => Reason::Exempt,
        // A crowd has additional buckets beside those of one source. Both together are `factor` times one source's
        // budget.
        Some(Exemption { factor, .. }) if factor > 1 => {
            P::defer()?;
            match charge_crowd(ip, C::now(), length, terms, settings, factor - 1) {
                Ok(()) => reason,
                Err(over) => over,
            }
        }
        _ => over,
    })
}
