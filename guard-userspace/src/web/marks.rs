//! The changes that the chart of the page marks: what an operator, a trial's end or an expiry did, found by comparing
//! two states of the agent. It reads no clock and no kernel.

use std::collections::{BTreeMap, VecDeque};

use guard_common::reason::Mode;
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::{
    agent::Snapshot,
    policy::Entry,
    state_store::{ChangedMode, Modes},
};

/// The marks that are kept, the newest.
const MOST_MARKS: usize = 200;

/// As long as the chart.
const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// Entries that begin or end together and get a mark each. More get one mark together: a list may have thousands.
const MOST_ENTRIES: usize = 3;

/// A change on the time axis of the chart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChartMark {
    pub at: Timestamp,
    pub kind: MarkKind,
    pub text: String,
}

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MarkKind {
    /// The agent started.
    Agent,
    /// A policy was loaded.
    Policy,
    /// A trial began, was confirmed, or went back.
    Trial,
    /// The mode of the host or of a service.
    Mode,
    /// An entry of an operator began or ended.
    Entry,
    /// Guard stopped enforcing, or enforces again, although nobody changed the mode.
    Enforcing,
}

/// The marks of the last hour, the oldest first.
#[derive(Debug, Default)]
pub struct RecentMarks {
    marks: VecDeque<ChartMark>,
    /// The last state, to compare the next with.
    state: Option<MarkedState>,
    /// Whether the mode was enforced when the status was last read. `None`: the mode was not `enforce`.
    enforcing: Option<bool>,
}

/// The facts of a snapshot whose changes are marked.
#[derive(Clone, Debug, PartialEq)]
pub struct MarkedState {
    policy: MarkedPolicy,
    trial: Option<MarkedTrial>,
    mode: Mode,
    modes: Modes,
    entries: BTreeMap<u64, Entry>,
}

/// Which policy is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
struct MarkedPolicy {
    path: String,
    sha256: String,
    /// A reload of an unchanged file is a change, too.
    loaded_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct MarkedTrial {
    until: Timestamp,
    by: String,
    back_to: MarkedPolicy,
}

impl From<&Snapshot> for MarkedState {
    fn from(snapshot: &Snapshot) -> Self {
        let policy = |loaded: &crate::agent::Loaded| MarkedPolicy {
            path: loaded.path.display().to_string(),
            sha256: loaded.policy.sha256.clone(),
            loaded_at: loaded.at,
        };
        let entries = snapshot.entries().iter();
        Self {
            policy: policy(&snapshot.loaded),
            trial: snapshot.trial.as_ref().map(|trial| MarkedTrial {
                until: trial.until,
                by: trial.by.user.clone(),
                back_to: policy(&trial.before),
            }),
            mode: snapshot.effective().mode,
            modes: snapshot.modes.clone(),
            entries: entries.map(|entry| (entry.id, entry.clone())).collect(),
        }
    }
}

impl RecentMarks {
    /// Marks what changed since the last state. The first state marks the start of the agent.
    pub fn follow(&mut self, now: Timestamp, state: MarkedState) {
        let marks = match &self.state {
            None => vec![ChartMark {
                at: now,
                kind: MarkKind::Agent,
                text: format!(
                    "agent started, policy {}, mode {}",
                    state.policy.path,
                    state.mode.name()
                ),
            }],
            Some(before) => changes(before, &state, now),
        };
        self.marks.extend(marks);
        while self.marks.len() > MOST_MARKS {
            self.marks.pop_front();
        }
        self.state = Some(state);
    }

    /// Marks that guard stopped enforcing or enforces again. A change of the mode has a mark of its own.
    pub fn follow_enforcing(&mut self, now: Timestamp, enforcing: Option<bool>, because: &str) {
        let text = match (self.enforcing, enforcing) {
            (Some(true), Some(false)) => format!("NOT ENFORCING: {because}"),
            (Some(false), Some(true)) => "enforcing again".to_owned(),
            _ => String::new(),
        };
        self.enforcing = enforcing;
        if !text.is_empty() {
            self.marks.push_back(ChartMark {
                at: now,
                kind: MarkKind::Enforcing,
                text,
            });
        }
    }

    /// The marks of the hour before `now`, in the order of their times.
    pub fn hour(&self, now: Timestamp) -> Vec<ChartMark> {
        let is_recent = |mark: &&ChartMark| now.duration_since(mark.at) <= HOUR;
        let mut marks: Vec<ChartMark> = self.marks.iter().filter(is_recent).cloned().collect();
        marks.sort_by_key(|mark| mark.at);
        marks
    }
}

fn changes(before: &MarkedState, next: &MarkedState, now: Timestamp) -> Vec<ChartMark> {
    let mut marks = Vec::new();
    let policy = policy_change(before, next);
    let explains_mode = policy.is_some();
    marks.extend(policy.map(|(kind, at, text)| {
        let text = match before.mode == next.mode {
            true => text,
            false => format!("{text}, mode {}", next.mode.name()),
        };
        ChartMark {
            at: at.unwrap_or(now),
            kind,
            text,
        }
    }));
    let mode = |at, text| ChartMark {
        at,
        kind: MarkKind::Mode,
        text,
    };
    match &next.modes.host {
        changed if *changed == before.modes.host => {
            if before.mode != next.mode && !explains_mode {
                marks.push(mode(now, format!("mode {}", next.mode.name())));
            }
        }
        Some(changed) => marks.push(mode(changed.since, set_by(changed))),
        None => marks.push(mode(
            now,
            format!("mode {}, as the policy says", next.mode.name()),
        )),
    }
    let services = &next.modes.services;
    for (service, changed) in services {
        if before.modes.services.get(service) != Some(changed) {
            let text = format!("service {service}: {}", set_by(changed));
            marks.push(mode(changed.since, text));
        }
    }
    let ended = before.modes.services.keys();
    for service in ended.filter(|service| !services.contains_key(*service)) {
        let text = format!("service {service}: mode as the policy says");
        marks.push(mode(now, text));
    }
    marks.extend(entry_changes(&before.entries, &next.entries, now));
    marks
}

type PolicyChange = (MarkKind, Option<Timestamp>, String);

fn policy_change(before: &MarkedState, next: &MarkedState) -> Option<PolicyChange> {
    let path = &next.policy.path;
    match (&before.trial, &next.trial) {
        (had, Some(trial)) if had.as_ref() != Some(trial) => Some((
            MarkKind::Trial,
            Some(next.policy.loaded_at),
            format!("trial of {path} begun by {}", trial.by),
        )),
        (Some(_), None) if before.policy == next.policy => {
            Some((MarkKind::Trial, None, format!("trial of {path} confirmed")))
        }
        (Some(trial), None) if trial.back_to == next.policy => Some((
            MarkKind::Trial,
            None,
            format!(
                "trial of {} not confirmed: back to {path}",
                before.policy.path
            ),
        )),
        _ if before.policy != next.policy => Some((
            MarkKind::Policy,
            Some(next.policy.loaded_at),
            format!("policy {path} loaded"),
        )),
        _ => None,
    }
}

/// `mode observe, set by ana`.
fn set_by(changed: &ChangedMode) -> String {
    let by = changed.by.iter().map(|by| format!(", set by {by}"));
    format!("mode {}{}", changed.mode.name(), by.collect::<String>())
}

fn entry_changes(
    before: &BTreeMap<u64, Entry>,
    next: &BTreeMap<u64, Entry>,
    now: Timestamp,
) -> Vec<ChartMark> {
    let added = next.iter().filter(|(id, _)| !before.contains_key(id));
    let added = added.map(|(_, entry)| (entry.created, entry, "added"));
    let gone = before.iter().filter(|(id, _)| !next.contains_key(id));
    let gone = gone.map(|(_, entry)| match entry.expires {
        Some(expires) if entry.is_over(now) => (expires, entry, "ended"),
        _ => (now, entry, "revoked"),
    });
    let mut marks = Vec::new();
    for changed in [added.collect::<Vec<_>>(), gone.collect()] {
        let mark = |at, text| ChartMark {
            at,
            kind: MarkKind::Entry,
            text,
        };
        match changed.as_slice() {
            [] => {}
            [(at, _, what), ..] if changed.len() > MOST_ENTRIES => {
                let text = format!("{} entries {what}", changed.len());
                marks.push(mark(*at, text));
            }
            few => marks.extend(
                few.iter()
                    .map(|(at, entry, what)| mark(*at, format!("{} {what}", short(entry)))),
            ),
        }
    }
    marks
}

/// `deny 198.51.100.66 at web`.
fn short(entry: &Entry) -> String {
    let service = entry.service.iter().map(|service| format!(" at {service}"));
    format!(
        "{} {}{}",
        entry.action.name(),
        bare(entry.prefix),
        service.collect::<String>()
    )
}

/// A single address without the length of its prefix.
fn bare(prefix: IpNet) -> String {
    match prefix.prefix_len() == prefix.max_prefix_len() {
        true => prefix.addr().to_string(),
        false => prefix.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Action;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn policy(path: &str, loaded_at: i64) -> MarkedPolicy {
        MarkedPolicy {
            path: path.to_owned(),
            sha256: "ab".to_owned(),
            loaded_at: at(loaded_at),
        }
    }

    fn state() -> MarkedState {
        MarkedState {
            policy: policy("guard.toml", 0),
            trial: None,
            mode: Mode::Observe,
            modes: Modes::default(),
            entries: BTreeMap::new(),
        }
    }

    fn entry(id: u64, prefix: &str, expires: Option<i64>) -> (u64, Entry) {
        let entry = Entry {
            id,
            action: Action::Deny,
            prefix: prefix.parse().unwrap(),
            service: None,
            owner: None,
            reason: None,
            by: None,
            process: None,
            created: at(3),
            expires: expires.map(at),
        };
        (id, entry)
    }

    fn mode(mode: Mode, since: i64) -> ChangedMode {
        ChangedMode {
            mode,
            since: at(since),
            by: Some("ana".to_owned()),
            process: None,
            claimed_by: None,
        }
    }

    /// The marks of a change at second 100, one a line.
    fn marks(before: &MarkedState, next: &MarkedState) -> String {
        let lines = changes(before, next, at(100)).into_iter().map(|mark| {
            let ChartMark { at, kind, text } = mark;
            format!("{} {kind:?} {text}", at.as_second())
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_policy_and_the_mode_that_comes_with_it_are_one_mark() {
        let next = MarkedState {
            policy: policy("guard.toml", 50),
            mode: Mode::Enforce,
            ..state()
        };
        insta::assert_snapshot!(
            marks(&state(), &next),
            @"50 Policy policy guard.toml loaded, mode enforce"
        );
        assert_eq!(marks(&next, &next), "");
    }

    #[test]
    fn a_trial_begins_and_is_confirmed_goes_back_or_is_ended_by_a_reload() {
        let on_trial = MarkedState {
            policy: policy("new.toml", 50),
            trial: Some(MarkedTrial {
                until: at(110),
                by: "ana".to_owned(),
                back_to: state().policy,
            }),
            ..state()
        };
        insta::assert_snapshot!(
            marks(&state(), &on_trial),
            @"50 Trial trial of new.toml begun by ana"
        );
        let confirmed = MarkedState {
            trial: None,
            ..on_trial.clone()
        };
        insta::assert_snapshot!(
            marks(&on_trial, &confirmed),
            @"100 Trial trial of new.toml confirmed"
        );
        insta::assert_snapshot!(
            marks(&on_trial, &state()),
            @"100 Trial trial of new.toml not confirmed: back to guard.toml"
        );
        let reloaded = MarkedState {
            policy: policy("guard.toml", 70),
            ..state()
        };
        insta::assert_snapshot!(
            marks(&on_trial, &reloaded),
            @"70 Policy policy guard.toml loaded"
        );
    }

    #[test]
    fn a_mode_is_marked_when_it_was_set_and_with_who_set_it() {
        let mut set = state();
        set.mode = Mode::Enforce;
        set.modes.host = Some(mode(Mode::Enforce, 60));
        let services = &mut set.modes.services;
        services.insert("web".to_owned(), mode(Mode::Observe, 61));
        insta::assert_snapshot!(marks(&state(), &set), @r"
        60 Mode mode enforce, set by ana
        61 Mode service web: mode observe, set by ana
        ");
        insta::assert_snapshot!(marks(&set, &state()), @r"
        100 Mode mode observe, as the policy says
        100 Mode service web: mode as the policy says
        ");
    }

    #[test]
    fn entries_are_marked_one_by_one_and_a_list_as_a_whole() {
        let mut added = state();
        added.entries = [
            entry(1, "198.51.100.66/32", Some(90)),
            entry(2, "2001:db8::/32", None),
        ]
        .into();
        insta::assert_snapshot!(marks(&state(), &added), @r"
        3 Entry deny 198.51.100.66 added
        3 Entry deny 2001:db8::/32 added
        ");
        insta::assert_snapshot!(marks(&added, &state()), @r"
        90 Entry deny 198.51.100.66 ended
        100 Entry deny 2001:db8::/32 revoked
        ");
        let mut list = state();
        list.entries = (0..250).map(|id| entry(id, "10.0.0.0/8", None)).collect();
        insta::assert_snapshot!(marks(&state(), &list), @"3 Entry 250 entries added");
    }

    #[test]
    fn marks_last_an_hour_and_are_bounded() {
        let mut recent = RecentMarks::default();
        recent.follow(at(0), state());
        let texts = |marks: &[ChartMark]| {
            let texts = marks.iter().map(|mark| mark.text.clone());
            texts.collect::<Vec<_>>().join("\n")
        };
        insta::assert_snapshot!(
            texts(&recent.hour(at(3_600))),
            @"agent started, policy guard.toml, mode observe"
        );
        assert_eq!(recent.hour(at(3_601)), []);
        for second in 1..1_000 {
            let mut next = state();
            next.policy.loaded_at = at(second);
            recent.follow(at(second), next);
        }
        assert_eq!(recent.marks.len(), MOST_MARKS);
        assert_eq!(recent.hour(at(1_000)).first().unwrap().at, at(800));
    }

    #[test]
    fn enforcing_is_marked_when_it_is_lost_and_not_when_the_mode_changes() {
        let mut recent = RecentMarks::default();
        let states = [None, Some(true), Some(false), Some(false), Some(true), None];
        for (second, enforcing) in (0..).zip(states) {
            recent.follow_enforcing(at(second), enforcing, "eth0 is gone");
        }
        let lines = recent.hour(at(10)).into_iter();
        let lines = lines.map(|mark| format!("{} {}", mark.at.as_second(), mark.text));
        insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"), @r"
        2 NOT ENFORCING: eth0 is gone
        4 enforcing again
        ");
    }
}
