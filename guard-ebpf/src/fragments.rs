//! Later fragments pass if their first fragment passed. Fragments that arrive before their first fragment pass within a
//! small budget.

use core::ptr::{read_volatile, write_volatile};

use guard_common::{
    address::Family,
    fragment::{self, FragmentId, FragmentSet, Moment},
    layout::FRAGMENT_SETS,
    packet::{IpHeader, Packet, PacketClass},
    reason::Reason,
};

use crate::{clock::Clock, config, host_buckets, maps::FRAGMENTS};

/// Remembers a first fragment, so that the later ones of its datagram pass; does nothing for any other packet.
/// `is_stopped`: the first fragment does not pass.
///
/// It calls a global function for every packet on the slow path: a branch here makes the verifier check the rest of the
/// program twice.
#[inline(always)]
pub fn note_first<C: Clock>(packet: &Packet<impl IpHeader>, is_stopped: bool) {
    let Packet { ip, transport } = packet;
    let is_other = transport.has(PacketClass::LATER_FRAGMENT) | is_stopped;
    let [source, destination] = fragment::fold(ip);
    let fragment = ip.fragment().number();
    guard_note_first_fragment(source, destination, fragment, C::now(), is_other.into());
}

/// If two CPUs write the same way of a set at once, one of the two datagrams is lost: its later fragments pass only
/// within the budget of fragments that overtake their first fragment.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_note_first_fragment(
    source: u64,
    destination: u64,
    fragment: u64,
    now: u64,
    is_other: u32,
) -> u32 {
    if fragment == 0 || is_other != 0 {
        return 0;
    }
    let fragment = FragmentId::from_number(fragment);
    let hash = fragment::hash(config::hash_key(), [source, destination], fragment);
    if let Some(set) = FRAGMENTS.get_ptr_mut(set_of(hash)) {
        let set = set.cast::<u64>();
        let (way, entry) = fragment::place(read(set), hash, Moment::of(now));
        // SAFETY: the way lies within the value. An aligned 64-bit store does not tear.
        unsafe { write_volatile(set.add(way & (fragment::WAYS - 1)), entry) };
    }
    0
}

/// Judges a later fragment: it passes if its first fragment passed, or within the budget of fragments that overtake
/// their first fragment. No source is exempt from that budget, because it protects the memory that the kernel has for
/// all reassembly.
#[inline(always)]
pub fn judge_later<C: Clock>(ip: &impl IpHeader, length: u64) -> Reason {
    let now = C::now();
    let [source, destination] = fragment::fold(ip);
    let family = ip.family() as u32;
    let fragment = ip.fragment().number();
    let has_first = guard_knows_first_fragment(source, destination, fragment, now, family) != 0;
    if has_first || host_buckets::has_room_to_overtake(ip, now, length) {
        Reason::Fragment
    } else {
        Reason::FragmentLimit
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_knows_first_fragment(
    source: u64,
    destination: u64,
    fragment: u64,
    now: u64,
    family: u32,
) -> u32 {
    let fragment = FragmentId::from_number(fragment);
    let hash = fragment::hash(config::hash_key(), [source, destination], fragment);
    let Some(set) = FRAGMENTS.get_ptr_mut(set_of(hash)) else {
        return 0;
    };
    let family = Family::from_number(family);
    let set = read(set.cast());
    u32::from(fragment::is_known(set, hash, Moment::of(now), family))
}

#[inline(always)]
fn set_of(hash: u64) -> u32 {
    hash as u32 & (FRAGMENT_SETS - 1)
}

/// `set`: points to a value of the map.
#[inline(always)]
fn read(set: *mut u64) -> FragmentSet {
    // SAFETY: the pointer is to a value of an array map, which lives as long as the program. An aligned 64-bit load
    // does not tear.
    [0, 1, 2, 3].map(|way| unsafe { read_volatile(set.add(way)) })
}
