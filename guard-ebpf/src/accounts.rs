//! Per-CPU accounts of sources, [`guard_common::account`]. A source that sends much has prepaid most of its packets, or
//! is recorded as over a budget. For such packets no bucket is read.

use guard_common::{
    account::{self, Account, Over, SourceKey},
    cell::{Share, hash},
    layout::{ServiceSlot, feature},
    packet::IpHeader,
    reason::Reason,
};

use crate::{
    charge::{BudgetCharge, Terms, prefix},
    clock::Clock,
    config::{self, uses},
    maps::{ACCOUNTS, SERVICES},
};

/// Charges a packet to its source's account on this CPU or to its buckets, and to those of all sources. A packet that
/// is over any budget is charged to none.
#[inline(always)]
pub fn charge_packet<C: Clock>(
    ip: &impl IpHeader,
    length: u64,
    terms: Terms,
    settings: &ServiceSlot,
) -> Result<(), Reason> {
    let charge = |prefix, tick| BudgetCharge::<false> {
        length,
        now: C::time_of(tick),
        hash: hash(config::hash_key(), Share::Base, ip.family(), prefix),
        terms,
        times: None,
    };
    if !C::IN_TICKS {
        return charge(prefix(ip, settings), C::tick()).charge_all(settings);
    }
    // First, because values computed before this lookup would have to be saved across it.
    let Some(accounts) = ACCOUNTS.get_ptr_mut(0) else {
        // Unreachable. If it happens, the packet passes.
        return Ok(());
    };
    let tick = C::tick();
    let prefix = prefix(ip, settings);
    let source = SourceKey::of(config::hash_key, ip.family(), prefix);
    // SAFETY: the pointer is to this CPU's own value, which lives as long as the program, and the place is within it.
    // XDP runs to its end on one CPU, so its own accounts need no atomics.
    let account = unsafe {
        let place = source.place(config::first_hash_key());
        &mut *accounts.cast::<Account>().add(place)
    };
    let stamp = account::stamp(tick, terms.service);
    if account.belongs_to(source, stamp) {
        // Connections are never prepaid: such a packet is charged to the bucket itself.
        let opens = terms.attempt && uses!(feature::CONNECTIONS);
        if !opens && account.has_prepaid(length, uses!(feature::BYTES)) {
            if uses!(feature::TOTALS) {
                charge(prefix, tick).charge_totals(settings)?;
            }
            account.spend(length, uses!(feature::BYTES));
            return Ok(());
        }
        if let Some(over) = account.over(length, opens) {
            return Err(match over {
                Over::Packets => Reason::PacketLimit,
                Over::Bytes => Reason::ByteLimit,
                Over::Connections => Reason::ConnectionLimit,
            });
        }
        // This packet is charged below; the packets after it are prepaid here.
        if account.has_any_prepaid() {
            guard_give_back(account);
        }
        if !opens && account.may_prepay() {
            guard_prepay(settings, account, C::time_of(tick), length);
        }
    } else if !account.is_taken(stamp) {
        if account.has_any_prepaid() {
            guard_give_back(account);
        }
        account.assign(source, stamp);
    }
    let charged = charge(prefix, tick).charge_all(settings);
    if let Err(reason) = charged
        && account.belongs_to(source, stamp)
    {
        match reason {
            Reason::PacketLimit => account.record_over(Over::Packets, length),
            Reason::ByteLimit => account.record_over(Over::Bytes, length),
            Reason::ConnectionLimit => account.record_over(Over::Connections, length),
            _ => {}
        }
    }
    charged
}

/// Prepays some packets like this one into the account, which must be empty, if the bucket has plenty of room.
///
/// It is a global function for the verifier's sake: see `guard_charge_crowd`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_prepay(
    settings: *const ServiceSlot,
    account: *mut Account,
    now: u64,
    length: u64,
) -> u32 {
    // SAFETY: the verifier checks that every caller passes null or pointers to values of these types.
    let (Some(settings), Some(account)) = (unsafe { (settings.as_ref(), account.as_mut()) }) else {
        return 0;
    };
    if let Some((packets, bytes)) = settings.advance.with(length)
        && BudgetCharge::of_account(account, now).prepay(settings, packets, bytes)
    {
        account.store_prepaid(packets as u32, bytes as u32);
    } else {
        account.stop_prepaying();
    }
    0
}

/// Gives the prepaid packets and bytes that are left in an account back to the buckets to which they were charged.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_give_back(account: *mut Account) -> u32 {
    // SAFETY: the verifier checks that every caller passes null or a pointer to a value of this type.
    if let Some(account) = unsafe { account.as_mut() } {
        let (packets, bytes) = account.prepaid();
        let settings = SERVICES.get(account.service().into());
        BudgetCharge::of_account(account, 0).give_back(settings, packets.into(), bytes.into());
        account.store_prepaid(0, 0);
    }
    0
}
