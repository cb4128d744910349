//! What the policy and the operator say of a source as such: denied, let through, exempt, a crowd.

use aya_ebpf::maps::{LpmTrie, lpm_trie::Key};
use guard_common::{
    address::{Address, Family},
    layout::{AdmittedKey, Expiry, MAX_ENDED, NO_SERVICE, Relief, SERVICE_BITS, feature, live},
};

use crate::{
    clock::Clock,
    config,
    maps::{
        ALLOWED_V4, ALLOWED_V6, DENIED_AT_V4, DENIED_AT_V6, DENIED_PREFIXES_V4, DENIED_PREFIXES_V6,
        DENIED_V4, DENIED_V6, Ipv4Key, Ipv6Key, RELIEFS_V4, RELIEFS_V6,
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
    let tables = config::live();
    if tables & (live::DENIED | live::DENIED_PREFIXES) == 0 {
        return false;
    }
    if tables & live::DENIED != 0 {
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
    if tables & live::DENIED_PREFIXES != 0 {
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

/// Whether the source is denied at this one service.
#[inline(always)]
pub fn is_denied_at<C: Clock>(family: Family, source: Address, service: u16) -> bool {
    config::has(live::DENIED_AT)
        && is_listed::<C>(&DENIED_AT_V4, &DENIED_AT_V6, family, source, service)
}

/// Whether the operator lets the source through for a while, everywhere or at this service. Asked only
/// for a packet that is about to be dropped.
#[inline(always)]
pub fn is_allowed<C: Clock>(family: Family, source: Address, service: u16) -> bool {
    config::has(live::ALLOWED)
        && (service != NO_SERVICE
            && is_listed::<C>(&ALLOWED_V4, &ALLOWED_V6, family, source, service)
            || is_listed::<C>(&ALLOWED_V4, &ALLOWED_V6, family, source, NO_SERVICE))
}

/// Whether a source is listed for a service, in tries that hold the lists of all services.
#[inline(always)]
pub fn is_listed<C: Clock>(
    v4: &LpmTrie<AdmittedKey<4>, Expiry>,
    v6: &LpmTrie<AdmittedKey<16>, Expiry>,
    family: Family,
    source: Address,
    service: u16,
) -> bool {
    let service = u32::from(service);
    let entry = match family {
        Family::Ipv4 => {
            let address = ipv4_key(source);
            v4.get(Key::new(
                SERVICE_BITS + 32,
                AdmittedKey { service, address },
            ))
        }
        Family::Ipv6 => {
            let address = ipv6_key(source);
            v6.get(Key::new(
                SERVICE_BITS + 128,
                AdmittedKey { service, address },
            ))
        }
    };
    entry.is_some_and(|expiry| holds::<C>(*expiry))
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
