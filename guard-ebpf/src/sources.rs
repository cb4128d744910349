//! Looks up a source in the lists of the policy and the operator: denied, allowed, exempt, a crowd.

use core::{intrinsics::likely, ptr::read_volatile};

use aya_ebpf::maps::{LpmTrie, lpm_trie::Key};
use guard_common::{
    address::{Address, Family},
    deny_list::{DenyLine, DenyPlace},
    layout::{AdmittedKey, Exemption, Expiry, MAX_ENDED, NO_SERVICE, SERVICE_BITS, feature, live},
    packet::IpHeader,
};

use crate::{
    clock::Clock,
    config::{self, uses},
    maps::{
        ALLOWED_V4, ALLOWED_V6, DENIED_AT_V4, DENIED_AT_V6, DENIED_LINES, DENIED_PREFIXES_V4,
        DENIED_PREFIXES_V6, DENIED_V4, DENIED_V6, EXEMPTIONS_V4, EXEMPTIONS_V6, Ipv4Key, Ipv6Key,
    },
    path::PathKind,
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

/// Whether an entry has not ended. The clock is read only for an entry that has an end.
#[inline(always)]
pub fn holds<C: Clock, P: PathKind>(expiry: Expiry) -> Result<bool, P::Deferred> {
    if expiry == Expiry::NEVER {
        return Ok(true);
    }
    P::defer()?;
    Ok(!expiry.is_over(C::boot_ns()))
}

/// Whether there is an entry, and it has not ended.
#[inline(always)]
fn is_in_force<C: Clock, P: PathKind>(entry: Option<&Expiry>) -> Result<bool, P::Deferred> {
    match entry {
        Some(expiry) => holds::<C, P>(*expiry),
        None => Ok(false),
    }
}

#[inline(always)]
pub fn is_denied<C: Clock, P: PathKind>(ip: &impl IpHeader) -> Result<bool, P::Deferred> {
    // The list is read first, then the flags, then the hashes. An address that leaves the list is in a hash by then,
    // and user space has set its flag.
    let found = look_into_list(ip);
    let tables = match found {
        InList::Yes => return Ok(true),
        InList::Elsewhere => config::denied() | live::DENIED,
        InList::No => config::denied(),
    };
    if likely(tables == 0) {
        return Ok(false);
    }
    if tables & live::DENIED != 0 {
        let entry = match ip.family() {
            // SAFETY: the value is read at once, and an update replaces the whole element.
            Family::Ipv4 => unsafe { DENIED_V4.get(ipv4_key(ip.source())) },
            // SAFETY: as above.
            Family::Ipv6 => unsafe { DENIED_V6.get(ipv6_key(ip.source())) },
        };
        if is_in_force::<C, P>(entry)? {
            return Ok(true);
        }
    }
    if tables & live::DENIED_PREFIXES != 0 {
        let entry = match ip.family() {
            Family::Ipv4 => DENIED_PREFIXES_V4.get(Key::new(32, ipv4_key(ip.source()))),
            Family::Ipv6 => DENIED_PREFIXES_V6.get(Key::new(128, ipv6_key(ip.source()))),
        };
        if is_in_force::<C, P>(entry)? {
            return Ok(true);
        }
    }
    Ok(false)
}

enum InList {
    Yes,
    No,
    /// Its line is full, so the source may be in a hash.
    Elsewhere,
}

/// Looks the source up in the hashed list of denied addresses.
#[inline(always)]
fn look_into_list(ip: &impl IpHeader) -> InList {
    let bits = config::deny_line_bits();
    if bits == 0 || ip.family() != Family::Ipv4 {
        return InList::No;
    }
    let DenyPlace { line, tag } = DenyPlace::of(ip.source().low as u32, bits);
    // `None` is unreachable: there are as many lines as the bits can index.
    let Some(line) = DENIED_LINES.get(line) else {
        return InList::No;
    };
    let [first, second, third, fourth] = &line.0;
    // SAFETY: the pointers come from references. User space may write at the same time: volatile reads keep their
    // order.
    let line = DenyLine(unsafe {
        [
            read_volatile(first),
            read_volatile(second),
            read_volatile(third),
            read_volatile(fourth),
        ]
    });
    if line.has(tag) {
        InList::Yes
    } else if line.is_full() {
        InList::Elsewhere
    } else {
        InList::No
    }
}

/// Whether the source is denied at this one service.
#[inline(always)]
pub fn is_denied_at<C: Clock, P: PathKind>(
    ip: &impl IpHeader,
    service: u16,
) -> Result<bool, P::Deferred> {
    is_listed::<C, P>(&DENIED_AT_V4, &DENIED_AT_V6, ip, service)
}

/// Whether an operator's `allow` entry lets the source through, everywhere or at this service. Looked up only for a
/// packet that is about to be dropped.
#[inline(always)]
pub fn is_allowed<C: Clock, P: PathKind>(
    ip: &impl IpHeader,
    service: u16,
) -> Result<bool, P::Deferred> {
    if !config::has(live::ALLOWED) {
        return Ok(false);
    }
    if service != NO_SERVICE && is_listed::<C, P>(&ALLOWED_V4, &ALLOWED_V6, ip, service)? {
        return Ok(true);
    }
    is_listed::<C, P>(&ALLOWED_V4, &ALLOWED_V6, ip, NO_SERVICE)
}

/// Looks a source up in a service's list. The tries hold the lists of all services.
#[inline(always)]
pub fn is_listed<C: Clock, P: PathKind>(
    v4: &LpmTrie<AdmittedKey<4>, Expiry>,
    v6: &LpmTrie<AdmittedKey<16>, Expiry>,
    ip: &impl IpHeader,
    service: u16,
) -> Result<bool, P::Deferred> {
    let service = u32::from(service);
    let entry = match ip.family() {
        Family::Ipv4 => {
            let address = ipv4_key(ip.source());
            v4.get(Key::new(
                SERVICE_BITS + 32,
                AdmittedKey { service, address },
            ))
        }
        Family::Ipv6 => {
            let address = ipv6_key(ip.source());
            v6.get(Key::new(
                SERVICE_BITS + 128,
                AdmittedKey { service, address },
            ))
        }
    };
    is_in_force::<C, P>(entry)
}

/// The exemption of a source that is over a budget; most sources have none. An entry that has ended does not hide a
/// wider entry that has not.
#[inline(always)]
pub fn find_exemption<C: Clock, P: PathKind>(
    ip: &impl IpHeader,
) -> Result<Option<Exemption>, P::Deferred> {
    if !uses!(feature::EXEMPTIONS) {
        return Ok(None);
    }
    let mut length = match ip.family() {
        Family::Ipv4 => 32,
        Family::Ipv6 => 128,
    };
    let mut ended = 0;
    // The loop has no condition at its head, so the compiler closes it with a jump: the verifier of Linux 6.1 refuses a
    // loop that falls through to its head.
    loop {
        let exemption = match ip.family() {
            Family::Ipv4 => EXEMPTIONS_V4.get(Key::new(length, ipv4_key(ip.source()))),
            Family::Ipv6 => EXEMPTIONS_V6.get(Key::new(length, ipv6_key(ip.source()))),
        };
        let Some(exemption) = exemption.copied() else {
            return Ok(None);
        };
        if holds::<C, P>(exemption.expiry)? {
            return Ok(Some(exemption));
        }
        if exemption.wider == 0 || ended == MAX_ENDED {
            return Ok(None);
        }
        length = u32::from(exemption.wider) - 1;
        ended += 1;
    }
}
