//! Accounts of sources on this CPU, [`guard_common::account`]: most packets of a source that sends much are
//! paid for, or known to be over its budget, before anybody looks at a bucket.

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

/// Charges a packet to its source's account on this CPU or to its buckets, and to those of all sources; to none of
/// them if it is over any.
#[inline(always)]
pub fn pay<C: Clock>(
    ip: &impl IpHeader,
    length: u64,
    terms: Terms,
    settings: &ServiceSlot,
) -> Result<(), Reason> {
    let bill = |prefix, tick| BudgetCharge::<false> {
        length,
        now: C::time_of(tick),
        hash: hash(config::hash_key(), Share::Base, ip.family(), prefix),
        terms,
        times: None,
    };
    if !C::IN_TICKS {
        return bill(prefix(ip, settings), C::tick()).pay(settings);
    }
    // Before anything else: what is at hand by then would have to be saved.
    let Some(accounts) = ACCOUNTS.get_ptr_mut(0) else {
        // Unreachable; a guard that is unsure lets through.
        return Ok(());
    };
    let tick = C::tick();
    let prefix = prefix(ip, settings);
    let who = SourceKey::of(config::hash_key, ip.family(), prefix);
    // SAFETY: the pointer is to this CPU's own value, which lives as long as the program, and the place is within it.
    // XDP runs to its end on one CPU, so its own accounts need no atomics.
    let account = unsafe {
        let place = who.place(config::first_hash_key());
        &mut *accounts.cast::<Account>().add(place)
    };
    let stamp = account::stamp(tick, terms.service);
    if account.is_of(who, stamp) {
        // Nobody pays for connections in advance: such a packet is paid for by itself.
        let opens = terms.attempt && uses!(feature::CONNECTIONS);
        if !opens && account.has(length, uses!(feature::BYTES)) {
            if uses!(feature::TOTALS) {
                bill(prefix, tick).pay_totals(settings)?;
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
        // This one is paid for below, those to come here.
        if account.is_held() {
            guard_give_back(account);
        }
        if !opens && account.is_good() {
            guard_pay_in_advance(settings, account, C::time_of(tick), length);
        }
    } else if !account.is_taken(stamp) {
        if account.is_held() {
            guard_give_back(account);
        }
        account.open(who, stamp);
    }
    let paid = bill(prefix, tick).pay(settings);
    if let Err(reason) = paid
        && account.is_of(who, stamp)
    {
        match reason {
            Reason::PacketLimit => account.close(Over::Packets, length),
            Reason::ByteLimit => account.close(Over::Bytes, length),
            Reason::ConnectionLimit => account.close(Over::Connections, length),
            _ => {}
        }
    }
    paid
}

/// Pays for some packets like this one that may come, into the account, which holds nothing, if there is plenty of room.
///
/// A global function, which the verifier looks at once: see `guard_pay_as_crowd`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_pay_in_advance(
    settings: *const ServiceSlot,
    account: *mut Account,
    now: u64,
    length: u64,
) -> u32 {
    // SAFETY: the verifier holds every caller to what the types say.
    let (Some(settings), Some(account)) = (unsafe { (settings.as_ref(), account.as_mut()) }) else {
        return 0;
    };
    if let Some((packets, bytes)) = settings.advance.with(length)
        && BudgetCharge::of_account(account, now).pay_in_advance(settings, packets, bytes)
    {
        account.hold(packets as u32, bytes as u32);
    } else {
        account.be_exact();
    }
    0
}

/// Gives what is left in an account back to the buckets that it was taken from.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_give_back(account: *mut Account) -> u32 {
    // SAFETY: the verifier holds every caller to what the type says.
    if let Some(account) = unsafe { account.as_mut() } {
        let (packets, bytes) = account.left();
        let settings = SERVICES.get(account.service().into());
        BudgetCharge::of_account(account, 0).give_back(settings, packets.into(), bytes.into());
        account.hold(0, 0);
    }
    0
}
