//! What the policy says of a source as such: denied, exempt, a crowd.

use aya_ebpf::maps::lpm_trie::Key;
use guard_common::{
    address::{Address, Family},
    layout::{Expiry, MAX_ENDED, Relief, feature},
};

use crate::{
    clock::Clock,
    config,
    maps::{
        DENIED_PREFIXES_V4, DENIED_PREFIXES_V6, DENIED_V4, DENIED_V6, Ipv4Key, Ipv6Key, RELIEFS_V4,
        RELIEFS_V6,
    },
};

#[inline(always)]
pub fn ipv4_key(address: Address) -> Ipv4Key {
    (address.low as u32).to_be_bytes()
}

#[inline(always)]
pub fn ipv6_key(address: Address) -> Ipv6Key {
    let Address { high, low } = address;
    let mut key = [0; 16];
    key[..8].copy_from_slice(&high.to_be_bytes());
    key[8..].copy_from_slice(&low.to_be_bytes());
    key
}

/// Whether an entry that was found still holds. Only one that ends asks for the time.
#[inline(always)]
pub fn holds<C: Clock>(expiry: Expiry) -> bool {
    expiry == Expiry::NEVER || !expiry.is_over(C::boot_ns())
}

#[inline(always)]
pub fn is_denied<C: Clock>(family: Family, source: Address) -> bool {
    if config::uses(feature::DENIED) {
        let entry = match family {
            // SAFETY: the value is read at once, and an update replaces the whole element.
            Family::Ipv4 => unsafe { DENIED_V4.get(ipv4_key(source)) },
            // SAFETY: as above.
            Family::Ipv6 => unsafe { DENIED_V6.get(ipv6_key(source)) },
        };
        if entry.is_some_and(|expiry| holds::<C>(*expiry)) {
            return true;
        }
    }
    if config::uses(feature::DENIED_PREFIXES) {
        let entry = match family {
            Family::Ipv4 => DENIED_PREFIXES_V4.get(Key::new(32, ipv4_key(source))),
            Family::Ipv6 => DENIED_PREFIXES_V6.get(Key::new(128, ipv6_key(source))),
        };
        if entry.is_some_and(|expiry| holds::<C>(*expiry)) {
            return true;
        }
    }
    false
}

/// What the source is granted when a budget would drop it; nothing for most. One that has ended does
/// not hide a wider one that holds.
#[inline(always)]
pub fn find_relief<C: Clock>(family: Family, source: Address) -> Option<Relief> {
    if !config::uses(feature::RELIEFS) {
        return None;
    }
    let mut length = match family {
        Family::Ipv4 => 32,
        Family::Ipv6 => 128,
    };
    for _ in 0..=MAX_ENDED {
        let relief = match family {
            Family::Ipv4 => RELIEFS_V4.get(Key::new(length, ipv4_key(source))),
            Family::Ipv6 => RELIEFS_V6.get(Key::new(length, ipv6_key(source))),
        };
        let relief = relief.copied()?;
        if holds::<C>(relief.expiry) {
            return Some(relief);
        }
        length = u32::from(relief.wider).checked_sub(1)?;
    }
    None
}
