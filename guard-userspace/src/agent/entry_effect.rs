//! What keeps a new entry from having the effect of its action.

use std::{collections::BTreeSet, net::IpAddr};

use jiff::Timestamp;

use crate::{
    api::EnteredEntry,
    policy::{Action, Entry, is_single},
};

/// Finds what keeps a new entry from having the effect of its action: entries that win over it, or that it wins over, and
/// addresses of this host, which no packet on a wire has as its source.
pub(super) fn effect_of(
    entry: Entry,
    entries: &[Entry],
    own: &BTreeSet<IpAddr>,
    now: Timestamp,
) -> EnteredEntry {
    let others = || entries.iter().filter(|other| !other.is_over(now));
    let ids = |entries: &[&Entry]| entries.iter().map(|entry| entry.id).collect();
    let overriding: Vec<&Entry> = others().filter(|allow| allow.overrides(&entry)).collect();
    let overridden: Vec<&Entry> = others()
        .filter(|denial| entry.overrides(denial) || entry.excepts(denial))
        .collect();
    let excepting = others().filter(|allow| allow.excepts(&entry));
    let winning = overriding.iter().map(|allow| {
        let Entry { id, prefix, .. } = allow;
        let until = until(allow);
        format!("entry {id} allows {prefix}{until} and wins: `guard revoke {id}` first")
    });
    let excepting = excepting.map(|allow| {
        let Entry { id, prefix, .. } = allow;
        let until = until(allow);
        format!("entry {id} still allows {prefix}{until}: `guard revoke {id}` ends that")
    });
    let losing = overridden.iter().map(|denial| {
        let Entry { id, prefix, .. } = denial;
        format!("it wins over entry {id}, which denies {prefix}")
    });
    let mine = own.iter().filter(|own| {
        let prefix = entry.prefix;
        entry.action == Action::Deny && is_single(&prefix) && prefix.contains(*own)
    });
    let mine = mine.map(|own| {
        format!(
            "{own} is an address of this host: no packet on a wire has it as its source, so the entry drops nothing"
        )
    });
    let warnings = winning.chain(excepting).chain(losing).chain(mine);
    let warnings: Vec<String> = shortened(warnings);
    EnteredEntry {
        overridden_by: ids(&overriding),
        overrides: ids(&overridden),
        warnings,
        updated: false,
        entry,
    }
}

fn until(entry: &Entry) -> String {
    let expires = entry.expires;
    expires.map_or_else(String::new, |expires| format!(" until {expires:.0}"))
}

/// The first few warnings, and the number of the others.
fn shortened(warnings: impl Iterator<Item = String>) -> Vec<String> {
    const MOST: usize = 5;
    let mut warnings: Vec<String> = warnings.collect();
    if let Some(more) = warnings.len().checked_sub(MOST).filter(|more| *more > 0) {
        warnings.truncate(MOST);
        warnings.push(format!("{more} more entries overlap with it: `guard list`"));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u64, action: Action, prefix: &str) -> Entry {
        Entry {
            id,
            action,
            prefix: prefix.parse().unwrap(),
            service: None,
            owner: None,
            reason: None,
            by: None,
            process: None,
            created: Timestamp::UNIX_EPOCH,
            expires: None,
        }
    }

    #[test]
    fn an_entry_warns_of_those_that_win_over_it_and_that_it_wins_over() {
        let own = BTreeSet::from(["203.0.113.10".parse().unwrap()]);
        let network = entry(3, Action::Allow, "198.51.100.64/28");
        let ended = Entry {
            expires: Some(Timestamp::UNIX_EPOCH),
            ..entry(2, Action::Allow, "198.51.100.0/24")
        };
        let effect = |new: Entry, others: &[&Entry]| {
            let others: Vec<Entry> = others.iter().copied().chain([&new]).cloned().collect();
            effect_of(new, &others, &own, Timestamp::UNIX_EPOCH)
        };
        let denied = entry(4, Action::Deny, "198.51.100.66/32");
        let found = effect(denied.clone(), &[&network, &ended]);
        assert_eq!(found.overridden_by, [3]);
        assert_eq!(
            found.warnings,
            ["entry 3 allows 198.51.100.64/28 and wins: `guard revoke 3` first"]
        );
        let found = effect(network.clone(), &[&denied]);
        assert_eq!((found.overrides, found.overridden_by), (vec![4], vec![]));
        assert_eq!(
            found.warnings,
            ["it wins over entry 4, which denies 198.51.100.66/32"]
        );
        let wide = entry(5, Action::Deny, "198.51.100.0/24");
        let found = effect(wide.clone(), &[&network]);
        assert!(found.overridden_by.is_empty());
        assert_eq!(
            found.warnings,
            ["entry 3 still allows 198.51.100.64/28: `guard revoke 3` ends that"]
        );
        assert_eq!(effect(network, &[&wide]).overrides, [5]);
        let own = effect(entry(6, Action::Deny, "203.0.113.10/32"), &[]);
        assert!(own.warnings[0].contains("is an address of this host"));
        let network_of_own = effect(entry(7, Action::Deny, "203.0.113.0/24"), &[]);
        assert!(network_of_own.warnings.is_empty());
    }
}
