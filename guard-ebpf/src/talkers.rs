//! The sources that send most, from a sample of the packets of each counter.
//!
//! Each CPU has a fixed number of places, and a source has one by its hash. Whoever sends more than
//! all others of a place together keeps it, so a flood of random sources displaces nobody heavy, and
//! costs no more than one source.

use guard_common::{
    address::{Address, Family},
    cell::{self, Share},
    layout::{Conclusion, TALKER_ENTRIES},
    talkers::is_sampled,
};

use crate::{config, maps::TALKERS};

/// Looks at the packet if it is one of the sample; `counted` is its number at its counter.
#[inline(always)]
pub fn watch(counted: u64, family: Family, source: Address, conclusion: Conclusion, length: u64) {
    if !is_sampled(config::sampling_key(), counted) {
        return;
    }
    let hash = cell::hash(config::hash_key(), Share::Base, family, source);
    let Some(talker) = TALKERS.get_ptr_mut(hash as u32 & (TALKER_ENTRIES - 1)) else {
        return;
    };
    // SAFETY: the pointer is to this CPU's own value.
    let talker = unsafe { &mut *talker };
    talker.vote(family, source, length, conclusion);
}
