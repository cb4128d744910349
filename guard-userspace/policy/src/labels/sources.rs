//! Merges lists of prefixes that may end, and intersects them without comparing each prefix with each other.

use std::collections::BTreeMap;

use ipnet::IpNet;
use jiff::Timestamp;

use crate::{Admitted, tables::Lengths};

/// The same sources in as few prefixes as possible. Prefixes that end at different times are not merged.
pub fn merged(list: &[Admitted]) -> Vec<Admitted> {
    let mut by_end: BTreeMap<Option<Timestamp>, Vec<IpNet>> = BTreeMap::new();
    for Admitted { prefix, expires } in list {
        by_end.entry(*expires).or_default().push(*prefix);
    }
    let groups = by_end.into_iter();
    groups
        .flat_map(|(expires, prefixes)| {
            let prefixes = IpNet::aggregate(&prefixes).into_iter();
            prefixes.map(move |prefix| Admitted { prefix, expires })
        })
        .collect()
}

/// The sources that a service allows.
pub struct Allowed {
    merged: Vec<Admitted>,
    /// The latest end of the entries for a prefix; `None`: never.
    ends: BTreeMap<IpNet, Option<Timestamp>>,
    lengths: Lengths,
}

impl Allowed {
    /// `list` must be [`merged`].
    pub fn new(list: Vec<Admitted>) -> Self {
        let mut ends = BTreeMap::new();
        for Admitted { prefix, expires } in &list {
            let end = ends.entry(*prefix).or_insert(*expires);
            *end = later(*end, *expires);
        }
        Self {
            lengths: Lengths::of(ends.keys().copied()),
            merged: list,
            ends,
        }
    }

    /// Whether both lists are equal. `list` must be [`merged`].
    pub fn is(&self, list: &[Admitted]) -> bool {
        self.merged == list
    }

    /// The sources that are in both lists, merged, and whether the service allows every prefix of `list` in full.
    pub fn intersection(&self, list: &[Admitted]) -> (Vec<Admitted>, bool) {
        let mut left = Vec::new();
        let mut is_covered = true;
        for Admitted { prefix, expires } in list {
            let mut admit = |prefix: IpNet, end: Option<Timestamp>| {
                let expires = earlier(end, *expires);
                left.push(Admitted { prefix, expires });
            };
            let wider = self.lengths.wider(*prefix);
            let around = wider.chain([*prefix]);
            let ends = around.filter_map(|wider| self.ends.get(&wider).copied());
            let end = ends.reduce(later);
            if let Some(end) = end {
                admit(*prefix, end);
            }
            is_covered &= end.is_some();
            if end == Some(None) {
                continue;
            }
            // Prefixes are sorted by their first address, so those that lie in this one follow it.
            let inside = self.ends.range(*prefix..);
            let inside = inside.take_while(|(inner, _)| prefix.contains(*inner));
            for (inner, end) in inside.filter(|(inner, _)| *inner != prefix) {
                admit(*inner, *end);
            }
        }
        (merged(&left), is_covered)
    }
}

fn later(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    Some(one?.max(other?))
}

fn earlier(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(words: &[&str]) -> Vec<Admitted> {
        let words = words.iter().map(|word| {
            let (prefix, end) = word.split_once(' ').map_or((*word, None), |(prefix, end)| {
                (
                    prefix,
                    Some(Timestamp::from_second(end.parse().unwrap()).unwrap()),
                )
            });
            Admitted {
                prefix: prefix.parse().unwrap(),
                expires: end,
            }
        });
        words.collect()
    }

    #[test]
    fn adjacent_prefixes_are_merged_unless_they_end_at_different_times() {
        let found = merged(&list(&[
            "10.0.1.0/24",
            "10.0.0.0/24",
            "10.0.0.7/32",
            "10.0.2.0/24 5",
            "10.0.3.0/24 6",
            "2001:db8::/33",
            "2001:db8:8000::/33",
        ]));
        let expected = [
            "10.0.0.0/23",
            "2001:db8::/32",
            "10.0.2.0/24 5",
            "10.0.3.0/24 6",
        ];
        assert_eq!(found, list(&expected));
    }

    #[test]
    fn an_intersection_has_the_sources_of_both_for_as_long_as_both_last() {
        for (allowed, asked, left, is_covered) in [
            (
                &["10.0.0.0/8"][..],
                &["10.1.0.0/16"][..],
                &["10.1.0.0/16"][..],
                true,
            ),
            (&["10.1.0.0/16"], &["10.0.0.0/8"], &["10.1.0.0/16"], false),
            (&["10.0.0.0/8"], &["11.0.0.0/8"], &[], false),
            (
                &["10.0.0.0/25", "10.0.0.128/25"],
                &["10.0.0.0/24"],
                &["10.0.0.0/24"],
                true,
            ),
            (
                &["10.0.0.0/8 5"],
                &["10.0.0.0/8 9"],
                &["10.0.0.0/8 5"],
                true,
            ),
            (
                &["10.0.0.0/8 5", "10.1.0.0/16"],
                &["10.0.0.0/8"],
                &["10.1.0.0/16", "10.0.0.0/8 5"],
                true,
            ),
            (
                &["10.0.0.0/8 5", "10.0.0.0/8"],
                &["10.0.0.0/9 7"],
                &["10.0.0.0/9 7"],
                true,
            ),
            (&["0.0.0.0/0"], &["::/0"], &[], false),
            (&["::/0"], &["2001:db8::1/128"], &["2001:db8::1/128"], true),
            (
                &["10.0.0.1/32", "10.0.0.3/32"],
                &["10.0.0.0/30", "10.0.0.9/32"],
                &["10.0.0.1/32", "10.0.0.3/32"],
                false,
            ),
        ] {
            let found = Allowed::new(merged(&list(allowed))).intersection(&list(asked));
            assert_eq!(found, (list(left), is_covered), "{allowed:?} and {asked:?}");
        }
    }
}
