//! The sources that send most, from every sixteenth packet of each counter.
//!
//! Each CPU has a fixed number of places, and a source has one by its hash. Whoever sends more than
//! all others of a place together keeps it, so a flood of random sources displaces nobody heavy, and
//! costs no more than one source.

use guard_common::{
    address::{Address, Family},
    cell::{self, Share},
    layout::{TALKER_ENTRIES, TALKER_SAMPLE, Talker},
    reason::{Outcome, Verdict},
};

use crate::{config, maps::TALKERS};

/// Looks at the packet if it is the first, the seventeenth, … that its counter counted.
#[inline(always)]
pub fn watch(counted: u64, family: Family, source: Address, outcome: Outcome, length: u64) {
    if counted & (TALKER_SAMPLE - 1) != 1 {
        return;
    }
    let hash = cell::hash(config::hash_key(), Share::Base, family, source);
    let Some(talker) = TALKERS.get_ptr_mut(hash as u32 & (TALKER_ENTRIES - 1)) else {
        return;
    };
    // SAFETY: the pointer is to this CPU's own value.
    let talker = unsafe { &mut *talker };
    if talker.family == family as u32 && talker.source == source {
        talker.lead = talker.lead.saturating_add(1);
    } else if talker.lead > 0 {
        talker.lead -= 1;
        return;
    } else {
        *talker = Talker {
            source,
            family: family as u32,
            lead: 1,
            ..Talker::default()
        };
    }
    talker.packets += 1;
    talker.bytes += length;
    if matches!(outcome.reason.verdict(), Verdict::Drop) {
        talker.dropped += 1;
    }
}
