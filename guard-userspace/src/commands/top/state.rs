//! The state of the screen: turns readings into rows. It does not depend on a terminal.

use std::{
    cmp::Ordering,
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::Instant,
};

use crate::{
    api::{Counter, Status, Talker},
    commands::meter::{Counting as _, Meter, Metered, TrafficRate},
};

/// The most points of history: the widest screen shows as many.
const HISTORY: usize = 240;

/// A reading from the agent, or from the pins.
pub struct GuardReading {
    pub status: Status,
    pub counters: Vec<Counter>,
    pub talkers: Vec<Talker>,
}

/// Packets per second, the newest last.
#[derive(Clone, Default)]
pub struct RateHistory(VecDeque<f64>);

impl RateHistory {
    fn push(&mut self, value: f64) {
        let Self(values) = self;
        if values.len() == HISTORY {
            values.pop_front();
        }
        values.push_back(value);
    }

    /// The newest values, at most `count`.
    pub fn last(&self, count: usize) -> impl Iterator<Item = f64> {
        let Self(values) = self;
        let skipped = values.len().saturating_sub(count);
        values.iter().skip(skipped).copied()
    }
}

/// Traffic of all interfaces and services.
#[derive(Default)]
pub struct Flow {
    pub rate: TrafficRate,
    pub past: RateHistory,
}

impl Flow {
    fn push(&mut self, rate: TrafficRate) {
        self.rate = rate;
        self.past.push(rate.packets);
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    #[default]
    Packets,
    Dropped,
    Bits,
    Address,
}

impl Sort {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Packets => "packets",
            Self::Dropped => "dropped",
            Self::Bits => "bits",
            Self::Address => "address",
        }
    }

    pub const fn next(self) -> Self {
        match self {
            Self::Packets => Self::Dropped,
            Self::Dropped => Self::Bits,
            Self::Bits => Self::Address,
            Self::Address => Self::Packets,
        }
    }
}

/// A prompt in the last line, which the operator answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    pub kind: PromptKind,
    pub text: String,
    /// Why the text cannot be parsed.
    pub problem: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptKind {
    Filter,
    /// The destination to explain for this source.
    Explain(IpAddr),
    Allow,
    Deny,
}

/// A text in a box above the screen: an answer or the help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub title: String,
    pub text: String,
    pub scrolled: u16,
}

impl Shown {
    pub fn new(title: String, text: String) -> Self {
        let scrolled = 0;
        Self {
            title,
            text,
            scrolled,
        }
    }
}

type TalkerKey = (String, IpAddr);

#[derive(Default)]
pub struct ScreenState {
    pub status: Option<Status>,
    /// Why the last reading failed.
    pub trouble: Option<String>,
    pub incoming: Flow,
    pub dropped: Flow,
    pub would_be_dropped: Flow,
    pub paused: bool,
    pub sort: Sort,
    pub filter: String,
    pub prompt: Option<Prompt>,
    pub shown: Option<Shown>,
    counter_meter: Meter<Counter>,
    talker_meter: Meter<Talker>,
    traffic: Vec<Metered<Counter>>,
    talkers: Vec<Metered<Talker>>,
    histories: HashMap<TalkerKey, RateHistory>,
    selected: Option<TalkerKey>,
}

impl ScreenState {
    /// Takes a reading, or the error of one. A paused screen ignores both.
    pub fn take(&mut self, at: Instant, reading: Result<GuardReading, String>) {
        if self.paused {
            return;
        }
        let GuardReading {
            status,
            counters,
            talkers,
        } = match reading {
            Ok(reading) => reading,
            Err(trouble) => {
                self.trouble = Some(trouble);
                return;
            }
        };
        self.trouble = None;
        self.status = Some(status);
        self.traffic = self.counter_meter.read(at, counters);
        self.traffic.sort_by(heavier_traffic);
        // The pins have no names of sources: without the agent the last known names stay.
        let talkers = self.with_known_names(talkers);
        self.talkers = self.talker_meter.read(at, talkers);
        if self.traffic.iter().any(|counter| counter.rate.is_some()) {
            self.sum_up();
        }
        self.remember_sources();
    }

    fn sum_up(&mut self) {
        let sum = |is_wanted: fn(&Counter) -> bool| {
            let rows = self
                .traffic
                .iter()
                .filter(|counter| is_wanted(&counter.row));
            let mut sum = TrafficRate::default();
            for rate in rows.filter_map(|counter| counter.rate) {
                sum += rate;
            }
            sum
        };
        let incoming = sum(|_| true);
        let dropped = sum(|row| row.would.is_none() && row.is_drop());
        let would_be_dropped = sum(|row| row.would.is_some());
        self.incoming.push(incoming);
        self.dropped.push(dropped);
        self.would_be_dropped.push(would_be_dropped);
    }

    fn with_known_names(&self, mut talkers: Vec<Talker>) -> Vec<Talker> {
        if self
            .status
            .as_ref()
            .is_some_and(|status| status.agent.running)
        {
            return talkers;
        }
        let known = self
            .talkers
            .iter()
            .map(|talker| (talker.row.key(), &talker.row.name));
        let known: HashMap<TalkerKey, _> = known.collect();
        for talker in &mut talkers {
            talker.name = known.get(&talker.key()).copied().cloned().flatten();
        }
        talkers
    }

    /// Adds the rates to the histories. Sources that are no longer listed lose their history.
    fn remember_sources(&mut self) {
        let mut before = std::mem::take(&mut self.histories);
        for Metered { row, rate } in &self.talkers {
            let mut history = before.remove(&row.key()).unwrap_or_default();
            if let Some(rate) = rate {
                history.push(rate.packets);
            }
            self.histories.insert(row.key(), history);
        }
    }

    /// The counters that match the filter, the highest rate first. If none matches, all: the filter is then about
    /// sources.
    pub fn traffic(&self) -> Vec<&Metered<Counter>> {
        let rows: Vec<_> = self.traffic.iter().collect();
        let mut wanted = rows.clone();
        wanted.retain(|counter| self.is_wanted(&words_of_counter(&counter.row)));
        if wanted.is_empty() { rows } else { wanted }
    }

    /// The sources that match the filter, sorted.
    pub fn sources(&self) -> Vec<&Metered<Talker>> {
        let rows = self.talkers.iter();
        let mut rows: Vec<_> = rows
            .filter(|talker| self.is_wanted(&words_of_talker(&talker.row)))
            .collect();
        rows.sort_by(|one, other| compare(self.sort, one, other));
        rows
    }

    fn is_wanted(&self, words: &str) -> bool {
        words.to_lowercase().contains(&self.filter.to_lowercase())
    }

    pub fn history(&self, talker: &Talker) -> Option<&RateHistory> {
        self.histories.get(&talker.key())
    }

    /// The index of the selected source; 0 if it is gone or none was selected.
    pub fn selected_index(&self, sources: &[&Metered<Talker>]) -> usize {
        let is_selected = |talker: &&Metered<Talker>| Some(talker.row.key()) == self.selected;
        sources.iter().position(is_selected).unwrap_or_default()
    }

    pub fn selected(&self) -> Option<&Talker> {
        let sources = self.sources();
        let index = self.selected_index(&sources);
        sources.get(index).map(|talker| &talker.row)
    }

    /// Moves the selection by `step` rows.
    pub fn select(&mut self, step: isize) {
        let sources = self.sources();
        let last = sources.len().saturating_sub(1);
        let index = self.selected_index(&sources).saturating_add_signed(step);
        let chosen = sources.get(index.min(last));
        self.selected = chosen.map(|talker| talker.row.key());
    }

    pub fn show(&mut self, shown: Shown) {
        self.shown = Some(shown);
    }
}

/// Orders by rate, then by total.
fn heavier_traffic(one: &Metered<Counter>, other: &Metered<Counter>) -> Ordering {
    let weight = |counter: &Metered<Counter>| counter.rate.unwrap_or_default().packets;
    let by_rate = weight(other).total_cmp(&weight(one));
    by_rate.then(other.row.packets.cmp(&one.row.packets))
}

fn compare(sort: Sort, one: &Metered<Talker>, other: &Metered<Talker>) -> Ordering {
    let rate = |talker: &Metered<Talker>| talker.rate.unwrap_or_default();
    let (left, right) = (rate(other), rate(one));
    let (total, total_before) = (&other.row, &one.row);
    let by_weight = match sort {
        Sort::Packets => left
            .packets
            .total_cmp(&right.packets)
            .then(total.packets.cmp(&total_before.packets)),
        Sort::Dropped => left
            .dropped
            .total_cmp(&right.dropped)
            .then(total.dropped.cmp(&total_before.dropped)),
        Sort::Bits => left
            .bytes
            .total_cmp(&right.bytes)
            .then(total.bytes.cmp(&total_before.bytes)),
        Sort::Address => Ordering::Equal,
    };
    by_weight.then_with(|| one.row.key().cmp(&other.row.key()))
}

fn words_of_counter(counter: &Counter) -> String {
    let service = counter.service.as_deref().unwrap_or("-");
    let became = counter.describe_verdict();
    format!(
        "{} {service} {became} {}",
        counter.interface, counter.reason
    )
}

fn words_of_talker(talker: &Talker) -> String {
    let why = talker.why().unwrap_or_default();
    format!("{} {} {why}", talker.interface, talker.who())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::commands::top::examples::reading;

    fn taken(readings: impl IntoIterator<Item = u64>) -> ScreenState {
        let mut state = ScreenState::default();
        let start = Instant::now();
        for seconds in readings {
            state.take(start + Duration::from_secs(seconds), Ok(reading(seconds)));
        }
        state
    }

    fn addresses(state: &ScreenState) -> Vec<String> {
        let sources = state.sources();
        let addresses = sources.iter().map(|talker| talker.row.source.to_string());
        addresses.collect()
    }

    fn selected(state: &ScreenState) -> Option<String> {
        state.selected().map(|talker| talker.source.to_string())
    }

    #[test]
    fn readings_become_rates_with_the_heaviest_first() {
        let state = taken([1, 3]);
        let (incoming, dropped) = (state.incoming.rate.packets, state.dropped.rate.packets);
        assert_eq!((incoming, dropped), (8_310.0, 8_300.0));
        assert_eq!(state.traffic()[0].row.reason, "closed_port");
        let heaviest_first = ["198.51.100.66", "198.51.100.20", "198.51.100.7"];
        assert_eq!(addresses(&state), heaviest_first);
    }

    #[test]
    fn sources_are_sorted_and_filtered_as_the_operator_chose() {
        let mut state = taken([1, 3]);
        state.sort = Sort::Address;
        assert_eq!(addresses(&state)[0], "198.51.100.7");
        state.filter = "OFFICE".to_owned();
        assert_eq!(addresses(&state), ["198.51.100.20"]);
        state.filter = "closed".to_owned();
        assert_eq!(addresses(&state), ["198.51.100.66"]);
        assert_eq!(state.traffic().len(), 1);
    }

    #[test]
    fn the_selection_follows_its_source_and_falls_back_to_the_first() {
        let mut state = taken([1, 3]);
        state.select(1);
        state.sort = Sort::Address;
        assert_eq!(selected(&state).unwrap(), "198.51.100.20");
        state.select(isize::MAX);
        assert_eq!(selected(&state).unwrap(), "198.51.100.66");
        state.filter = "office".to_owned();
        assert_eq!(selected(&state).unwrap(), "198.51.100.20");
        state.filter = "nobody".to_owned();
        assert_eq!(selected(&state), None);
    }

    #[test]
    fn a_paused_screen_does_not_change_and_then_continues() {
        let mut state = taken([1, 3]);
        let later = Instant::now() + Duration::from_secs(50);
        state.paused = true;
        state.take(later, Ok(reading(50)));
        assert_eq!(state.dropped.rate.packets, 8_300.0);
        assert_eq!(state.dropped.past.last(9).count(), 1);
        state.paused = false;
        state.take(later, Ok(reading(50)));
        assert_eq!(state.dropped.past.last(9).count(), 2);
    }

    #[test]
    fn only_listed_sources_have_history_of_at_most_a_screen_width() {
        let mut state = taken(1..1_000);
        let first = state.sources()[0].row.clone();
        let length = |state: &ScreenState| Some(state.history(&first)?.last(usize::MAX).count());
        assert_eq!(length(&state), Some(HISTORY));
        let mut others = reading(2_000);
        others
            .talkers
            .retain(|talker| talker.source != first.source);
        state.take(Instant::now() + Duration::from_secs(2_000), Ok(others));
        assert_eq!(length(&state), None);
        assert_eq!(state.histories.len(), 2);
    }
}
