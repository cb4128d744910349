//! The list of entries, which `l` opens, and what an operator is told of an entry.

use ipnet::IpNet;
use jiff::{Timestamp, tz::TimeZone};

use crate::{
    api::ListedEntry,
    policy::{Action, Entry},
};

/// The open list. The selected entry is found by its number: the list may change below the operator's hand.
#[derive(Default)]
pub struct EntryList {
    /// `None`: the agent has not answered yet.
    entries: Option<Vec<ListedEntry>>,
    /// When the entries were read.
    pub read_at: Timestamp,
    selected: Option<u64>,
    /// The index of the selected entry: if it ends, the next takes its place.
    index: usize,
    /// The entry to revoke, once the operator confirms it.
    confirm: Option<Entry>,
}

impl EntryList {
    /// Takes the entries in force at this time.
    pub fn take(&mut self, at: Timestamp, entries: Vec<ListedEntry>) {
        self.read_at = at;
        let is_selected = |listed: &ListedEntry| Some(listed.entry.id) == self.selected;
        let index = entries.iter().position(is_selected).unwrap_or(self.index);
        self.entries = Some(entries);
        self.select_index(index);
    }

    /// `None`: they are not known yet.
    pub fn entries(&self) -> Option<&[ListedEntry]> {
        self.entries.as_deref()
    }

    pub const fn index(&self) -> usize {
        self.index
    }

    /// Moves the selection by `step` rows.
    pub fn select(&mut self, step: isize) {
        self.select_index(self.index.saturating_add_signed(step));
    }

    fn select_index(&mut self, index: usize) {
        let entries = self.entries.as_deref().unwrap_or_default();
        self.index = index.min(entries.len().saturating_sub(1));
        self.selected = entries.get(self.index).map(|listed| listed.entry.id);
    }

    /// Waits for a confirmation to revoke the selected entry.
    pub fn ask_to_revoke(&mut self) {
        let entries = self.entries.as_deref().unwrap_or_default();
        self.confirm = entries.get(self.index).map(|listed| listed.entry.clone());
    }

    /// The entry that a confirmation revokes.
    pub const fn to_confirm(&self) -> Option<&Entry> {
        self.confirm.as_ref()
    }

    /// Ends the question, and returns the entry that it was about.
    pub fn end_question(&mut self) -> Option<Entry> {
        self.confirm.take()
    }
}

/// The last line after an action, with the entry that `u` revokes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub text: String,
    /// The text for narrow screens.
    pub short: String,
    pub undo: Option<u64>,
}

impl Notice {
    pub fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            short: text.clone(),
            text,
            undo: None,
        }
    }

    /// An entry is in force. If it was there before, it has been changed, and `u` does not bring back what it was.
    pub fn of_entered(entry: &Entry, is_update: bool, now: Timestamp) -> Self {
        let Entry {
            id,
            action,
            prefix,
            expires,
            ..
        } = entry;
        let did = match action {
            Action::Allow => "allowed",
            Action::Deny => "denied",
        };
        let source = source(*prefix);
        let until = until(*expires, now);
        let until = if expires.is_some() {
            format!("until {until}")
        } else {
            format!("with {until}")
        };
        let (entry, undoes) = if is_update {
            (format!("entry {id}, updated"), "u revokes it")
        } else {
            (format!("entry {id}"), "u undoes it")
        };
        Self {
            text: format!("{did} {source} {until} ({entry}) — {undoes}"),
            short: format!("{did} {source} — {undoes}"),
            undo: Some(*id),
        }
    }

    pub fn of_revoked(entry: &Entry) -> Self {
        Self::new(format!("revoked {}", name(entry)))
    }
}

/// `entry 4 (deny 198.51.100.7)`.
pub fn name(entry: &Entry) -> String {
    let Entry {
        id, action, prefix, ..
    } = entry;
    format!("entry {id} ({} {})", action.name(), source(*prefix))
}

/// A prefix of one address as that address.
pub fn source(prefix: IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() {
        prefix.addr().to_string()
    } else {
        prefix.to_string()
    }
}

/// `10:32 UTC`, with the date if it is another day; `no end`.
pub fn until(expires: Option<Timestamp>, now: Timestamp) -> String {
    let Some(expires) = expires else {
        return "no end".to_owned();
    };
    let [expires, now] = [expires, now].map(|time| time.to_zoned(TimeZone::UTC));
    let format = if expires.date() == now.date() {
        "%H:%M UTC"
    } else {
        "%Y-%m-%d %H:%M UTC"
    };
    expires.strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::top::examples::{entry, listed};

    fn at(time: &str) -> Timestamp {
        format!("2027-01-31T{time}Z").parse().unwrap()
    }

    #[test]
    fn the_selection_follows_its_entry_and_stays_in_its_place_when_the_entry_ends() {
        let mut list = EntryList::default();
        let entries = [1, 2, 3].map(|id| listed(entry(id, "198.51.100.7/32", None)));
        list.take(at("10:00:00"), entries.to_vec());
        list.select(1);
        let selected = |list: &EntryList| {
            list.entries()
                .unwrap()
                .get(list.index())
                .map(|listed| listed.entry.id)
        };
        assert_eq!(selected(&list), Some(2));
        list.take(at("10:00:01"), entries[1..].to_vec());
        assert_eq!(selected(&list), Some(2));
        list.take(at("10:00:02"), entries.to_vec());
        assert_eq!(selected(&list), Some(2));
        list.take(
            at("10:00:03"),
            [entries[0].clone(), entries[2].clone()].into(),
        );
        assert_eq!(selected(&list), Some(3));
        list.take(at("10:00:04"), entries[..1].to_vec());
        assert_eq!(selected(&list), Some(1));
        list.select(-9);
        list.take(at("10:00:05"), Vec::new());
        assert_eq!(selected(&list), None);
    }

    #[test]
    fn a_confirmation_revokes_the_entry_it_was_asked_for_even_if_the_list_changes_meanwhile() {
        let mut list = EntryList::default();
        let entries = [1, 2].map(|id| listed(entry(id, "198.51.100.7/32", None)));
        list.take(at("10:00:00"), entries.to_vec());
        list.ask_to_revoke();
        list.take(at("10:00:01"), entries[1..].to_vec());
        assert_eq!(list.to_confirm().map(|entry| entry.id), Some(1));
        assert_eq!(list.end_question().map(|entry| entry.id), Some(1));
        assert!(list.end_question().is_none());
    }

    #[test]
    fn a_notice_says_what_was_done_until_when_and_what_u_does() {
        let text = |expires, is_update| {
            let entry = entry(4, "198.51.100.7/32", expires);
            Notice::of_entered(&entry, is_update, at("09:32:00")).text
        };
        assert_eq!(
            text(Some("2027-01-31T10:32:59Z"), false),
            "denied 198.51.100.7 until 10:32 UTC (entry 4) — u undoes it"
        );
        assert_eq!(
            text(Some("2027-02-01T09:32:00Z"), true),
            "denied 198.51.100.7 until 2027-02-01 09:32 UTC (entry 4, updated) — u revokes it"
        );
        assert_eq!(
            text(None, false),
            "denied 198.51.100.7 with no end (entry 4) — u undoes it"
        );
        let network = entry(5, "198.51.100.0/24", None);
        assert_eq!(
            Notice::of_revoked(&network).text,
            "revoked entry 5 (deny 198.51.100.0/24)"
        );
    }
}
