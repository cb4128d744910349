//! The state of the screen: turns readings into rows. It does not depend on a terminal.

use std::{
    cmp::{Ordering, Reverse},
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use guard_common::layout::TALKER_SAMPLE;
use jiff::Timestamp;

use super::{
    ages::{Activity, Ages},
    list::{EntryList, Notice},
    ports::PortMeter,
};
use crate::{
    api::{Counter, ListedEntry, Status, Talker},
    commands::meter::{Counting, Meter, Metered, TrafficRate},
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

    /// The highest of the newest values.
    pub fn highest(&self, count: usize) -> f64 {
        self.last(count).fold(0.0, f64::max)
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
    /// Whether the first key replaces the text, which guard proposes.
    pub is_proposal: bool,
    /// The source that the prompt is for. It stays marked while the prompt is open.
    pub source: Option<TalkerKey>,
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

/// The interface and the address of a source.
pub type TalkerKey = <Talker as Counting>::Key;
type TrafficKey = <Counter as Counting>::Key;

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
    /// The open list of entries.
    pub list: Option<EntryList>,
    pub notice: Option<Notice>,
    /// The lowest rate above 0 of a sampled source: one packet of the sample between the last two readings.
    pub resolution: Option<f64>,
    last_reading: Option<Instant>,
    counter_meter: Meter<Counter>,
    talker_meter: Meter<Talker>,
    port_meter: PortMeter,
    counter_ages: Ages<TrafficKey>,
    talker_ages: Ages<TalkerKey>,
    drop_ages: Ages<TalkerKey>,
    traffic: Vec<Metered<Counter>>,
    talkers: Vec<Metered<Talker>>,
    histories: HashMap<TalkerKey, RateHistory>,
    /// The source that the operator selected. `None`: the first, whichever source that is.
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
            mut counters,
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
        self.resolution = self.last_reading.replace(at).and_then(|before| {
            let seconds = at.saturating_duration_since(before).as_secs_f64();
            (seconds > 0.0).then(|| TALKER_SAMPLE as f64 / seconds)
        });
        self.port_meter.sort(&mut counters);
        self.traffic = self.counter_meter.read(at, counters);
        self.counter_ages.read(at, &self.traffic);
        self.traffic
            .sort_by_cached_key(|counter| heaviest_first(counter, &self.counter_ages));
        // The pins have no names of sources: without the agent the last known names stay.
        let talkers = self.with_known_names(talkers);
        self.talkers = self.talker_meter.read(at, talkers);
        self.talker_ages.read(at, &self.talkers);
        self.drop_ages.read_drops(at, &self.talkers);
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
    /// sources. Without a filter, rows of the past are left out.
    pub fn traffic(&self) -> Vec<&Metered<Counter>> {
        let rows = self.traffic.iter();
        let wanted = |words: &str| !self.filter.is_empty() && self.is_wanted(words);
        let mut found: Vec<_> = rows
            .clone()
            .filter(|counter| wanted(&words_of_counter(&counter.row)))
            .collect();
        if found.is_empty() {
            found = rows
                .filter(|counter| self.counter_activity(&counter.row) != Activity::Past)
                .collect();
        }
        found
    }

    /// The sources that match the filter, sorted. Without a filter, sources of the past are left out, except the
    /// selected source: an operator who looks at a source does not lose it.
    pub fn sources(&self) -> Vec<&Metered<Talker>> {
        let rows = self.talkers.iter();
        let is_shown = |talker: &Talker| {
            if !self.filter.is_empty() {
                return self.is_wanted(&words_of_talker(talker));
            }
            self.talker_activity(talker) != Activity::Past || self.marked() == Some(&talker.key())
        };
        let mut rows: Vec<_> = rows.filter(|talker| is_shown(&talker.row)).collect();
        rows.sort_by(|one, other| self.compare(one, other));
        rows
    }

    pub fn counter_activity(&self, counter: &Counter) -> Activity {
        self.counter_ages.activity(&counter.key())
    }

    pub fn talker_activity(&self, talker: &Talker) -> Activity {
        self.talker_ages.activity(&talker.key())
    }

    /// Whether a packet of the source was dropped a moment ago.
    pub fn has_drops(&self, talker: &Talker) -> bool {
        self.drop_ages.activity(&talker.key()) == Activity::Active
    }

    /// The number of counters, and of sources, that are left out because they are of the past.
    pub fn past(&self) -> (usize, usize) {
        if !self.filter.is_empty() {
            return (0, 0);
        }
        let counters = self.traffic.len().saturating_sub(self.traffic().len());
        let sources = self.talkers.len().saturating_sub(self.sources().len());
        (counters, sources)
    }

    /// Orders by rate, then by the time without traffic, then by total.
    fn compare(&self, one: &Metered<Talker>, other: &Metered<Talker>) -> Ordering {
        let (of_one, of_other) = (weight(self.sort, one), weight(self.sort, other));
        let idle = |talker: &Metered<Talker>| self.talker_ages.idle(&talker.row.key());
        let by_weight = match self.sort {
            Sort::Address => Ordering::Equal,
            _ => of_other
                .0
                .total_cmp(&of_one.0)
                .then_with(|| idle(one).cmp(&idle(other)))
                .then(of_other.1.cmp(&of_one.1)),
        };
        by_weight.then_with(|| one.row.key().cmp(&other.row.key()))
    }

    fn is_wanted(&self, words: &str) -> bool {
        words.to_lowercase().contains(&self.filter.to_lowercase())
    }

    pub fn history(&self, talker: &Talker) -> Option<&RateHistory> {
        self.histories.get(&talker.key())
    }

    /// The source of the open prompt, or else the source that the operator selected.
    fn marked(&self) -> Option<&TalkerKey> {
        let prompt = self.prompt.as_ref();
        let source = prompt.and_then(|prompt| prompt.source.as_ref());
        source.or(self.selected.as_ref())
    }

    /// Sorts by the next column, and marks the first source again: the worst is what the operator sorts for.
    pub fn sort_by_next(&mut self) {
        self.sort = self.sort.next();
        self.selected = None;
    }

    /// The index of the selected source; 0 if it is gone or none was selected.
    pub fn selected_index(&self, sources: &[&Metered<Talker>]) -> usize {
        let is_selected = |talker: &&Metered<Talker>| Some(&talker.row.key()) == self.marked();
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

    pub const fn has_open_list(&self) -> bool {
        self.list.is_some()
    }

    /// Takes the entries, or why the agent did not list them. Ignored once the list is closed.
    pub fn take_entries(&mut self, at: Timestamp, entries: Result<Vec<ListedEntry>, String>) {
        let Some(list) = &mut self.list else {
            return;
        };
        match entries {
            Ok(entries) => list.take(at, entries),
            Err(error) => {
                self.list = None;
                self.show(Shown::new("entries".to_owned(), format!("Failed: {error}")));
            }
        }
    }
}

/// The key by which counters are sorted: the rate, then the time without traffic, then the total.
fn heaviest_first(
    counter: &Metered<Counter>,
    ages: &Ages<TrafficKey>,
) -> (Reverse<u64>, Duration, Reverse<u64>) {
    let rate = counter.rate.unwrap_or_default().packets;
    // Whole millipackets have an order, which f64 has not.
    let rate = (rate * 1_000.0) as u64;
    let idle = ages.idle(&counter.row.key());
    (Reverse(rate), idle, Reverse(counter.row.packets))
}

/// The rate and the total that sources are sorted by.
fn weight(sort: Sort, talker: &Metered<Talker>) -> (f64, u64) {
    let Metered { row, rate } = talker;
    let rate = rate.unwrap_or_default();
    match sort {
        Sort::Packets => (rate.packets, row.packets),
        Sort::Dropped => (rate.dropped, row.dropped),
        Sort::Bits => (rate.bytes, row.bytes),
        Sort::Address => (0.0, 0),
    }
}

fn words_of_counter(counter: &Counter) -> String {
    let service = counter.service.as_deref().unwrap_or("-");
    let became = counter.describe_verdict();
    let ports = counter.ports.iter();
    let ports = ports.fold(String::new(), |text, row| text + " " + &row.port);
    format!(
        "{} {service} {became} {}{ports}",
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

    const UNTIL_PAST_AND_MORE: Duration = Duration::from_secs(90);

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
    fn a_row_without_traffic_is_quiet_after_ten_seconds_and_leaves_after_a_minute() {
        let start = Instant::now();
        let mut state = ScreenState::default();
        let at = |state: &mut ScreenState, seconds: u64| {
            // The flood has ended: only the two others count on.
            let mut now = reading(seconds + 1);
            now.counters[2] = reading(1).counters[2].clone();
            now.talkers[2] = reading(1).talkers[2].clone();
            state.take(start + Duration::from_secs(seconds), Ok(now));
        };
        let flood = reading(1);
        let (counter, talker) = (&flood.counters[2], &flood.talkers[2]);
        for (seconds, activity, rows) in [
            (0, Activity::Active, 3),
            (9, Activity::Active, 3),
            (10, Activity::Quiet, 3),
            (59, Activity::Quiet, 3),
            (60, Activity::Past, 2),
        ] {
            at(&mut state, seconds);
            assert_eq!(state.counter_activity(counter), activity, "{seconds}");
            assert_eq!(state.talker_activity(talker), activity, "{seconds}");
            assert_eq!(state.traffic().len(), rows, "{seconds}");
            assert_eq!(state.sources().len(), rows, "{seconds}");
        }
        assert_eq!(state.past(), (1, 1));
        // Who looks for it finds it, and traffic brings it back.
        state.filter = "closed".to_owned();
        assert_eq!((state.traffic().len(), state.sources().len()), (1, 1));
        state.filter.clear();
        state.take(start + Duration::from_secs(62), Ok(reading(63)));
        assert_eq!((state.traffic().len(), state.past()), (3, (0, 0)));
    }

    #[test]
    fn the_selected_source_stays_on_the_screen_without_traffic() {
        let mut state = taken([1]);
        let address = selected(&state);
        state.select(0);
        let last = state.last_reading.unwrap();
        let mut later = reading(1);
        later.counters.clear();
        state.take(last + UNTIL_PAST_AND_MORE, Ok(later));
        assert_eq!(addresses(&state), [address.unwrap()]);
    }

    #[test]
    fn rows_without_traffic_come_after_rows_with_traffic_whatever_their_total() {
        let start = Instant::now();
        let mut state = ScreenState::default();
        let mut first = reading(1);
        first.counters[2].packets = 1_000_000;
        let mut second = reading(2);
        second.counters[2].packets = 1_000_000;
        state.take(start, Ok(first));
        state.take(start + Duration::from_secs(1), Ok(second));
        let last = state.traffic().pop().map(|counter| counter.row.packets);
        assert_eq!(last, Some(1_000_000));
    }

    #[test]
    fn the_resolution_of_the_sample_is_sixteen_packets_between_two_readings() {
        assert_eq!(taken([1]).resolution, None);
        assert_eq!(taken([1, 3]).resolution, Some(8.0));
    }

    #[test]
    fn entries_that_arrive_after_the_list_was_closed_do_not_open_it() {
        let mut state = ScreenState::default();
        state.take_entries(Timestamp::UNIX_EPOCH, Ok(Vec::new()));
        assert!(!state.has_open_list());
        state.list = Some(EntryList::default());
        state.take_entries(Timestamp::UNIX_EPOCH, Err("it is dead".to_owned()));
        assert!(!state.has_open_list());
        assert_eq!(state.shown.unwrap().text, "Failed: it is dead");
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
    fn sorting_marks_the_first_row_again_and_an_unmoved_mark_stays_there() {
        let mut state = taken([1, 3]);
        state.sort = Sort::Address;
        assert_eq!(selected(&state).unwrap(), "198.51.100.7");
        state.sort_by_next();
        assert_eq!(
            (state.sort, selected(&state).unwrap().as_str()),
            (Sort::Packets, "198.51.100.66")
        );
        state.select(2);
        assert_eq!(selected(&state).unwrap(), "198.51.100.7");
        state.sort_by_next();
        assert_eq!(
            (state.sort, selected(&state).unwrap().as_str()),
            (Sort::Dropped, "198.51.100.66")
        );
    }

    #[test]
    fn drops_of_a_source_end_after_ten_seconds_though_it_sends_on() {
        let start = Instant::now();
        let mut state = ScreenState::default();
        let mut first = reading(1);
        for (seconds, has_drops) in [(0, true), (9, true), (10, false), (12, false)] {
            first.talkers[1].packets += 16;
            let now = GuardReading {
                status: first.status.clone(),
                counters: Vec::new(),
                talkers: first.talkers.clone(),
            };
            state.take(start + Duration::from_secs(seconds), Ok(now));
            assert_eq!(state.has_drops(&first.talkers[1]), has_drops, "{seconds}");
        }
        assert_eq!(state.talker_activity(&first.talkers[1]), Activity::Active);
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
