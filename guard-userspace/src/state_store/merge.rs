//! Merges the changes of two writers that started from the same state. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{MAX_REFUSED, Modes, StoredState};
use crate::policy::Entry;

/// Merges `mine` and `theirs`, which both started from `base`. If both have changed the same value, `theirs` wins: an
/// operator made that change without the agent, and it must not be undone.
pub fn merge(base: &StoredState, mine: &StoredState, theirs: &StoredState) -> StoredState {
    let entries = merge_entries(base, mine, theirs);
    let highest = entries.iter().map(|entry| entry.id).max();
    StoredState {
        last_id: mine
            .last_id
            .max(theirs.last_id)
            .max(highest.unwrap_or_default()),
        entries,
        modes: Modes {
            host: pick(&base.modes.host, &mine.modes.host, &theirs.modes.host),
            services: merge_services(&base.modes, &mine.modes, &theirs.modes),
        },
        containers: pick(&base.containers, &mine.containers, &theirs.containers),
        policy: pick(&base.policy, &mine.policy, &theirs.policy),
        refused: merge_refused(base, mine, theirs),
        trial: pick(&base.trial, &mine.trial, &theirs.trial),
        // Only the start of an agent clears this.
        detached: mine.detached || theirs.detached,
    }
}

fn pick<T: Clone + PartialEq>(base: &T, mine: &T, theirs: &T) -> T {
    if theirs == base { mine } else { theirs }.clone()
}

fn merge_services(
    base: &Modes,
    mine: &Modes,
    theirs: &Modes,
) -> BTreeMap<String, super::ChangedMode> {
    let names: BTreeSet<&String> = [base, mine, theirs]
        .into_iter()
        .flat_map(|modes| modes.services.keys())
        .collect();
    let of = |modes: &Modes, name: &String| modes.services.get(name).cloned();
    names
        .into_iter()
        .filter_map(|name| {
            let picked = pick(&of(base, name), &of(mine, name), &of(theirs, name));
            Some((name.clone(), picked?))
        })
        .collect()
}

/// Merges the entries. An entry never changes: it is only added and removed.
fn merge_entries(base: &StoredState, mine: &StoredState, theirs: &StoredState) -> Vec<Entry> {
    let removed: Vec<&Entry> = base
        .entries
        .iter()
        .filter(|entry| !mine.entries.contains(entry))
        .collect();
    let mut entries = theirs.entries.clone();
    entries.retain(|entry| !removed.contains(&entry));
    let mut last = mine.last_id.max(theirs.last_id);
    let added = mine.entries.iter();
    for entry in added.filter(|entry| !base.entries.contains(entry)) {
        if entries.contains(entry) {
            continue;
        }
        let mut entry = entry.clone();
        if entries.iter().any(|other| other.id == entry.id) {
            last += 1;
            entry.id = last;
        }
        entries.push(entry);
    }
    entries
}

fn merge_refused(base: &StoredState, mine: &StoredState, theirs: &StoredState) -> Vec<String> {
    let accepted = |hash: &String| base.refused.contains(hash) && !mine.refused.contains(hash);
    let mut refused = theirs.refused.clone();
    refused.retain(|hash| !accepted(hash));
    let added = mine.refused.iter();
    for hash in added.filter(|hash| !base.refused.contains(hash)) {
        if !refused.contains(hash) {
            refused.push(hash.clone());
        }
    }
    let surplus = refused.len().saturating_sub(MAX_REFUSED);
    refused.drain(..surplus);
    refused
}

#[cfg(test)]
mod tests {
    use guard_common::reason::Mode;

    use super::*;
    use crate::state_store::tests::full;

    #[test]
    fn a_change_of_one_side_alone_wins() {
        let (base, changed) = (StoredState::default(), full());
        for (base, changed) in [(&base, &changed), (&changed, &base)] {
            let theirs = merge(base, base, changed);
            let mine = merge(base, changed, base);
            for merged in [theirs, mine] {
                let detached = merged.detached;
                let expected = StoredState {
                    detached,
                    last_id: merged.last_id,
                    ..changed.clone()
                };
                assert_eq!(merged, expected);
                assert!(detached, "a merge never clears it");
                assert_eq!(merged.last_id, 7, "an id is never used twice");
            }
        }
    }

    #[test]
    fn changes_of_both_sides_are_merged_and_theirs_win_conflicts() {
        let mut base = full();
        base.detached = false;
        let (mut mine, mut theirs) = (base.clone(), base.clone());
        let host = |kept: &mut StoredState, mode| kept.modes.host.as_mut().unwrap().mode = mode;
        host(&mut base, Mode::Enforce);
        host(&mut mine, Mode::Observe);
        host(&mut theirs, Mode::Off);
        mine.modes.services.remove("web");
        theirs.detached = true;
        // Mine: an entry is removed and another added. Theirs: another entry is added, with the same id.
        let removed = mine.entries.remove(0);
        let entry = |owner: &str| Entry {
            id: 8,
            owner: Some(owner.to_owned()),
            ..removed.clone()
        };
        mine.last_id = 8;
        mine.entries.push(entry("mine"));
        theirs.last_id = 8;
        theirs.entries.push(entry("theirs"));
        mine.accept("00ff");
        mine.refuse("aa".to_owned());
        theirs.refuse("bb".to_owned());
        let merged = merge(&base, &mine, &theirs);
        assert_eq!(merged.modes.host.unwrap().mode, Mode::Off);
        assert!(merged.modes.services.is_empty());
        assert!(merged.detached);
        let entries = merged.entries.iter();
        let entries: Vec<(u64, &str)> = entries
            .map(|entry| (entry.id, entry.owner.as_deref().unwrap()))
            .collect();
        assert_eq!(entries, [(2, "ana"), (8, "theirs"), (9, "mine")]);
        assert_eq!(merged.last_id, 9);
        assert_eq!(merged.refused, ["ff00", "bb", "aa"]);
    }
}
