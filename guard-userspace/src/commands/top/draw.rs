//! Draws the state. Everything that a colour shows is also written in words.

use jiff::Timestamp;
use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    symbols::bar,
    text::{Line, Span},
    widgets::{Block, Cell, Clear, Paragraph, Row, Table, TableState, Wrap},
};

use super::{
    ages::Activity,
    list::{self, EntryList, Notice},
    ports::reason_with_ports,
    state::{Flow, Prompt, PromptKind, RateHistory, ScreenState, Shown},
};
use crate::{
    api::{Counter, Status, Talker},
    commands::{
        figures,
        meter::{Metered, TrafficRate},
        status::headline,
    },
    policy::{Action, Entry, untrusted::quoted},
};

#[derive(Clone, Copy, Debug)]
pub struct Theme {
    pub has_colour: bool,
}

impl Theme {
    fn colour(self, colour: Color) -> Style {
        if self.has_colour {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }

    fn alarm(self) -> Style {
        self.colour(Color::Red).add_modifier(Modifier::BOLD)
    }

    fn dropped(self) -> Style {
        self.colour(Color::Red)
    }

    fn passed(self) -> Style {
        self.colour(Color::Green)
    }

    fn would_be_dropped(self) -> Style {
        self.colour(Color::Yellow)
    }

    fn title(self) -> Style {
        self.colour(Color::Cyan).add_modifier(Modifier::BOLD)
    }

    fn of_counter(self, counter: &Counter) -> Style {
        match (&counter.would, counter.is_drop()) {
            (Some(_), _) => self.would_be_dropped(),
            (None, true) => self.dropped(),
            (None, false) => self.passed(),
        }
    }
}

/// A row without traffic now.
fn dimmed(style: Style, activity: Activity) -> Style {
    match activity {
        Activity::Active => style,
        Activity::Quiet | Activity::Past => style.add_modifier(Modifier::DIM),
    }
}

const HEADING: Style = Style::new().add_modifier(Modifier::UNDERLINED);
const SELECTED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Narrower screens omit bits per second of sources, so that drops and their reasons have room.
const WIDTH_FOR_BITS: u16 = 70;
const WIDTH_FOR_TOTALS: u16 = 110;
/// Narrower screens omit the interface and bits per second of the traffic.
const WIDTH_FOR_INTERFACE: u16 = 56;

/// The sources that every screen shows without scrolling, if it has so many lines.
const FEWEST_SOURCES: u16 = 5;

/// The help for the last line: the longest that fits is shown.
const HELP: [&str; 3] = [
    "? help  e explain  a allow  d deny  l entries  / filter  s sort  p pause  q quit",
    "? help  e explain  a allow  d deny  l entries  q quit",
    "? help  a allow  d deny  l list  q quit",
];

pub fn draw(frame: &mut Frame<'_>, state: &ScreenState, theme: Theme) {
    let area = frame.area();
    let head = head(state, theme, area.width);
    let traffic = state.traffic();
    let head_height = u16::try_from(head.len()).unwrap_or(u16::MAX);
    // Two titles, two headings and the last line.
    let rows = area.height.saturating_sub(head_height + 5);
    let traffic_rows = traffic_rows(rows, traffic.len(), state.sources().len());
    let [top, traffic_area, sources_area, bottom] = Layout::vertical([
        Constraint::Length(head_height),
        Constraint::Length(traffic_rows + 2),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(head), top);
    draw_traffic(frame, state, &traffic, theme, traffic_area);
    draw_sources(frame, state, theme, sources_area);
    draw_last_line(frame, state, theme, bottom);
    if let Some(list) = &state.list {
        draw_list(frame, list, theme);
    }
    if let Some(shown) = &state.shown {
        draw_shown(frame, shown, theme);
    }
}

/// The rows of the traffic, of `rows` for both tables. The sources have half of them, and at least
/// [`FEWEST_SOURCES`]; what they do not need, the traffic may have.
fn traffic_rows(rows: u16, traffic: usize, sources: usize) -> u16 {
    let half = rows / 2;
    let for_sources = to_u16(sources).clamp(FEWEST_SOURCES, (rows - half).max(FEWEST_SOURCES));
    to_u16(traffic).min(rows.saturating_sub(for_sources)).max(1)
}

fn head(state: &ScreenState, theme: Theme, width: u16) -> Vec<Line<'static>> {
    let mut lines = vec![first_line(state, theme)];
    if let Some(trouble) = &state.trouble {
        let text = format!("NO ANSWER, these numbers are old: {trouble}");
        lines.push(Line::styled(text, theme.alarm()));
    } else if let Some(text) = state.status.as_ref().and_then(trouble_of_agent) {
        lines.push(Line::styled(text, theme.alarm()));
    }
    lines.push(rate_line("IN", &state.incoming, width, Style::new()));
    let is_enforced = is_enforced(state);
    if is_enforced {
        lines.push(rate_line("DROPPED", &state.dropped, width, theme.dropped()));
    }
    let would = &state.would_be_dropped;
    if !is_enforced || would.rate.packets > 0.0 {
        lines.push(rate_line(
            "WOULD DROP",
            would,
            width,
            theme.would_be_dropped(),
        ));
    }
    lines
}

fn is_enforced(state: &ScreenState) -> bool {
    let status = state.status.as_ref();
    status.is_none_or(|status| status.mode == "enforce")
}

fn first_line(state: &ScreenState, theme: Theme) -> Line<'static> {
    let mut line = Line::from(Span::styled("guard ", theme.title()));
    line.push_span(match &state.status {
        Some(status) => {
            let is_fine = status.mode != "enforce" || status.enforcing;
            let style = if is_fine {
                theme.passed()
            } else {
                theme.alarm()
            };
            Span::styled(headline(status), style)
        }
        None => Span::raw("waiting for the first reading"),
    });
    if state.paused {
        let style = theme.would_be_dropped().add_modifier(Modifier::REVERSED);
        line.push_span(Span::raw(" "));
        line.push_span(Span::styled("PAUSED", style));
    }
    line
}

fn trouble_of_agent(status: &Status) -> Option<String> {
    if status.agent.running {
        return None;
    }
    let trouble = status
        .agent
        .trouble
        .as_deref()
        .unwrap_or("it does not answer");
    Some(format!(
        "AGENT NOT RUNNING: {trouble}. The program in the kernel runs and counts on"
    ))
}

/// `IN  1.2k packets/s  3.4 Mbit/s  max 2.0k/s  ▁▂▃`. A narrow screen has no room for the history.
fn rate_line(name: &str, flow: &Flow, width: u16, style: Style) -> Line<'static> {
    const MAX: usize = 13;
    let Flow { rate, past } = flow;
    if past.last(1).next().is_none() {
        // A rate needs two readings.
        return Line::styled(format!("{name:<11}{:>15}", "- packets/s"), style);
    }
    let packets = format!("{} packets/s", figures::count(rate.packets));
    let mut text = format!("{name:<11}{packets:>15}{:>13}", figures::bits(rate.bytes));
    let rest = usize::from(width).saturating_sub(text.chars().count());
    let bars = rest.saturating_sub(MAX + 2);
    if bars >= usize::from(Columns::SHORTEST_HISTORY) {
        let max = max_of(past, bars);
        text += &format!("{max:>MAX$}  {}", sparkline(past, bars));
    }
    Line::styled(text, style)
}

/// The highest rate of the history that is drawn.
fn max_of(history: &RateHistory, width: usize) -> String {
    format!("max {}", per_second(history.highest(width)))
}

fn per_second(rate: f64) -> String {
    format!("{}/s", figures::count(rate))
}

/// Draws the newest value to the right, and the highest as a full block.
fn sparkline(history: &RateHistory, width: usize) -> String {
    const SET: bar::Set<'_> = bar::NINE_LEVELS;
    const LEVELS: [&str; 9] = [
        SET.empty,
        SET.one_eighth,
        SET.one_quarter,
        SET.three_eighths,
        SET.half,
        SET.five_eighths,
        SET.three_quarters,
        SET.seven_eighths,
        SET.full,
    ];
    let highest = history.highest(width);
    let level = |value: f64| {
        let top = (LEVELS.len() - 1) as f64;
        // Rounded up, so that every value above 0 is visible.
        let level = if highest > 0.0 {
            (value / highest * top).ceil()
        } else {
            0.0
        };
        LEVELS.get(level as usize).copied().unwrap_or(SET.full)
    };
    let bars: String = history.last(width).map(level).collect();
    format!("{bars:>width$}")
}

/// What the last line of a table's title says of rows that are not on the screen.
fn missing(hidden: usize, past: usize) -> String {
    let hidden = (hidden > 0).then(|| format!(", {hidden} more rows"));
    let past = (past > 0).then(|| format!(", {past} without packets now"));
    format!("{}{}", hidden.unwrap_or_default(), past.unwrap_or_default())
}

/// The word for a verdict. WOULD DROP in the head of the screen sums up the rows with `would drop`.
fn verdict(counter: &Counter) -> String {
    match &counter.would {
        Some(would) => format!("would {would}"),
        None => counter.verdict.clone(),
    }
}

/// The columns of the traffic, with the widths that fit the screen.
struct TrafficColumns {
    /// 0: left out.
    interface: u16,
    verdict: u16,
    reason: u16,
    has_units: bool,
    has_totals: bool,
}

impl TrafficColumns {
    const TOTAL: u16 = 9;
    /// A long service name leaves room for the reason.
    const WIDEST_SERVICE: u16 = 24;

    fn new(rows: &[&Metered<Counter>], width: u16) -> Self {
        let widest = |word: &dyn Fn(&Counter) -> usize, name: &str, most: u16| {
            let widths = rows.iter().map(|counter| word(&counter.row));
            let widest = widths.chain([name.len()]).max().unwrap_or_default();
            to_u16(widest).min(most)
        };
        let has_interface = width >= WIDTH_FOR_INTERFACE;
        let interface = widest(&|row| width_of(&row.interface), "INTERFACE", 15);
        let mut columns = Self {
            interface: if has_interface { interface } else { 0 },
            verdict: widest(&|row| verdict(row).len(), "VERDICT", 10),
            reason: 0,
            has_units: width >= WIDTH_FOR_BITS,
            has_totals: width >= WIDTH_FOR_TOTALS,
        };
        let service = |row: &Counter| width_of(row.service.as_deref().unwrap_or("-"));
        let service = widest(&service, "SERVICE", Self::WIDEST_SERVICE);
        let others = columns.others();
        let others: u16 = others.iter().map(|width| width + 1).sum();
        let room = width.saturating_sub(others + columns.verdict + 1 + service + 1);
        let reason = |row: &Counter| reason_with_ports(row, usize::from(room)).len();
        columns.reason = widest(&reason, "REASON", room.max(18));
        columns
    }

    fn numbers(&self) -> Vec<u16> {
        let mut numbers = vec![Columns::packets(self.has_units)];
        if self.interface > 0 {
            numbers.push(Columns::bits(self.has_units));
        }
        if self.has_totals {
            numbers.extend([Self::TOTAL, Self::TOTAL]);
        }
        numbers
    }

    /// The widths of the columns other than the service, the verdict and the reason.
    fn others(&self) -> Vec<u16> {
        let interface = (self.interface > 0).then_some(self.interface);
        interface.into_iter().chain(self.numbers()).collect()
    }

    fn widths(&self) -> Vec<Constraint> {
        let interface = (self.interface > 0).then_some(Constraint::Length(self.interface));
        let words = [
            Constraint::Fill(1),
            Constraint::Length(self.verdict),
            Constraint::Length(self.reason),
        ];
        let numbers = self.numbers().into_iter().map(Constraint::Length);
        interface.into_iter().chain(words).chain(numbers).collect()
    }

    /// The cells of a row that has all columns, without those that this screen has not.
    fn cells(
        &self,
        words: [String; 4],
        rates: [String; 2],
        totals: [String; 2],
    ) -> Vec<Cell<'static>> {
        let words = words.into_iter().skip(usize::from(self.interface == 0));
        let rates = rates
            .into_iter()
            .take(if self.interface > 0 { 2 } else { 1 });
        let totals = totals.into_iter().filter(|_| self.has_totals);
        words
            .map(Cell::from)
            .chain(rates.chain(totals).map(number))
            .collect()
    }

    fn heading(&self) -> Row<'static> {
        let words = ["INTERFACE", "SERVICE", "VERDICT", "REASON"].map(str::to_owned);
        let packets = if self.has_units {
            "PACKETS/S"
        } else {
            "PKTS/S"
        };
        let rates = [packets, "BITS/S"].map(str::to_owned);
        let totals = ["PACKETS", "BYTES"].map(str::to_owned);
        Row::new(self.cells(words, rates, totals)).style(HEADING)
    }

    fn row(&self, counter: &Metered<Counter>) -> Row<'static> {
        let Metered { row, rate } = counter;
        let words = [
            row.interface.clone(),
            row.service.clone().unwrap_or_else(|| "-".to_owned()),
            verdict(row),
            reason_with_ports(row, usize::from(self.reason)),
        ];
        let rates = match rate {
            None => ["-", "-"].map(str::to_owned),
            Some(rate) if self.has_units => [per_second(rate.packets), figures::bits(rate.bytes)],
            Some(rate) => [rate.packets, rate.bytes * 8.0].map(figures::count),
        };
        let totals = [
            figures::count(row.packets as f64),
            figures::bytes(row.bytes as f64),
        ];
        Row::new(self.cells(words, rates, totals))
    }
}

fn draw_traffic(
    frame: &mut Frame<'_>,
    state: &ScreenState,
    rows: &[&Metered<Counter>],
    theme: Theme,
    area: Rect,
) {
    let room = usize::from(area.height.saturating_sub(2));
    let missing = missing(rows.len().saturating_sub(room), state.past().0);
    let by = if area.width >= WIDTH_FOR_INTERFACE {
        " by service and reason"
    } else {
        ""
    };
    let block = titled(format!("TRAFFIC{by}{missing}"), theme);
    let columns = TrafficColumns::new(rows, area.width);
    let lines = rows.iter().map(|counter| {
        let style = theme.of_counter(&counter.row);
        let activity = state.counter_activity(&counter.row);
        columns.row(counter).style(dimmed(style, activity))
    });
    let table = Table::new(lines, columns.widths())
        .header(columns.heading())
        .block(block);
    frame.render_widget(table, area);
}

/// The columns of the sources, with the widths that fit the screen.
struct Columns {
    source: u16,
    drops: &'static str,
    /// Whether that column has the packets that are dropped, or those that would be.
    is_enforced: bool,
    has_units: bool,
    why: u16,
    history: u16,
}

impl Columns {
    const MARK: u16 = 2;
    const SHORTEST_SOURCE: u16 = 15;
    const SHORTEST_WHY: u16 = 8;
    /// As wide as its heading.
    const SHORTEST_HISTORY: u16 = 7;
    /// A history of this width has room for its maximum.
    const HISTORY_WITH_MAX: u16 = 24;
    const MAX: u16 = 11;

    /// The width of packets per second: `12.3k/s`, below `PACKETS/S`, or `12.3k`.
    const fn packets(has_units: bool) -> u16 {
        if has_units { 9 } else { 6 }
    }

    /// The width of bits per second: `12.3 Mbit/s`, or `12.3M`.
    const fn bits(has_units: bool) -> u16 {
        if has_units { 11 } else { 6 }
    }

    fn new(sources: &[&Metered<Talker>], is_enforced: bool, width: u16) -> Self {
        let widest = |word: fn(&Talker) -> String| {
            let widths = sources.iter().map(|talker| width_of(&word(&talker.row)));
            to_u16(widths.max().unwrap_or_default())
        };
        let has_units = width >= WIDTH_FOR_BITS;
        let mut columns = Self {
            source: 0,
            drops: match (is_enforced, has_units) {
                (true, true) => "DROPPED",
                (true, false) => "DROP/S",
                (false, _) => "WOULD DROP",
            },
            is_enforced,
            has_units,
            why: 0,
            history: 0,
        };
        let numbers = columns.numbers();
        let numbers: u16 = numbers.iter().map(|width| width + 1).sum();
        let rest = width.saturating_sub(Self::MARK + numbers);
        // The address is never cut for the reason: the operator acts on it.
        let source = widest(|row| row.source.to_string()).max(Self::SHORTEST_SOURCE);
        let why = widest(|row| row.why().unwrap_or_default()).max(Self::SHORTEST_WHY);
        columns.why = why.min(rest.saturating_sub(source + 1));
        if columns.why < Self::SHORTEST_WHY {
            columns.why = 0;
        }
        columns.source = widest(Talker::who)
            .max(source)
            .min(rest.saturating_sub(columns.why + 1));
        let history = rest.saturating_sub(columns.source + columns.why + 2);
        if history >= Self::SHORTEST_HISTORY {
            columns.history = history;
        }
        columns
    }

    /// The widths of the numbers.
    fn numbers(&self) -> Vec<u16> {
        let mut numbers = vec![Self::packets(self.has_units)];
        if self.has_units {
            numbers.push(Self::bits(self.has_units));
        }
        numbers.push(to_u16(self.drops.len()).max(6));
        numbers
    }

    fn heading(&self) -> Row<'static> {
        let mut cells = vec![Cell::from("SOURCE")];
        cells.push(number(if self.has_units {
            "PACKETS/S"
        } else {
            "PKTS/S"
        }));
        if self.has_units {
            cells.push(number("BITS/S"));
        }
        cells.extend([number(self.drops), Cell::from("FOR"), Cell::from("HISTORY")]);
        Row::new(cells).style(HEADING)
    }

    fn widths(&self) -> Vec<Constraint> {
        let mut widths = vec![self.source];
        widths.extend(self.numbers());
        widths.push(self.why);
        if self.history > 0 {
            widths.push(self.history);
        }
        widths.into_iter().map(Constraint::Length).collect()
    }

    fn row(&self, talker: &Metered<Talker>, state: &ScreenState) -> Row<'static> {
        let Metered { row, rate } = talker;
        let sampled = Sampled {
            resolution: state.resolution,
            has_units: self.has_units,
        };
        let packets = rate.map(|rate| rate.packets);
        let (total, dropped) = if self.is_enforced {
            let total = row.dropped.saturating_sub(row.would_drop);
            (total, rate.map(TrafficRate::really_dropped))
        } else {
            (row.would_drop, rate.map(|rate| rate.would_drop))
        };
        let dropped = dropped.filter(|_| total > 0 && state.has_drops(row));
        let mut cells = vec![Cell::from(row.who()), number(sampled.rate(packets))];
        if self.has_units {
            let bits = rate.filter(|rate| rate.bytes > 0.0);
            let bits = bits.map(|rate| figures::bits(rate.bytes));
            cells.push(number(bits.unwrap_or_else(|| "-".to_owned())));
        }
        cells.push(number(sampled.rate(dropped)));
        let why = row.why().unwrap_or_else(|| "-".to_owned());
        let history = state.history(row);
        let history = history.map(|history| self.history(history));
        cells.extend([Cell::from(why), Cell::from(history.unwrap_or_default())]);
        Row::new(cells)
    }

    fn history(&self, history: &RateHistory) -> String {
        if self.history < Self::HISTORY_WITH_MAX {
            return sparkline(history, usize::from(self.history));
        }
        let width = usize::from(self.history - Self::MAX);
        let max = max_of(history, width);
        let max_width = usize::from(Self::MAX);
        format!("{max:<max_width$}{}", sparkline(history, width))
    }
}

/// How to write rates that are estimated from a sample.
struct Sampled {
    resolution: Option<f64>,
    has_units: bool,
}

impl Sampled {
    /// `None` if nothing was counted: `-`. A rate of 0 means fewer packets than one of the sample: `<8/s`.
    fn rate(&self, rate: Option<f64>) -> String {
        let unit = if self.has_units { "/s" } else { "" };
        match (rate, self.resolution) {
            (None, _) => "-".to_owned(),
            (Some(0.0), Some(resolution)) => {
                format!("<{}{unit}", figures::count(resolution.ceil()))
            }
            (Some(rate), _) => format!("{}{unit}", figures::count(rate)),
        }
    }
}

fn draw_sources(frame: &mut Frame<'_>, state: &ScreenState, theme: Theme, area: Rect) {
    let sources = state.sources();
    let is_enforced = is_enforced(state);
    let columns = Columns::new(&sources, is_enforced, area.width);
    let sample = if area.width >= WIDTH_FOR_INTERFACE {
        "estimated from one packet of sixteen"
    } else {
        "1 packet of 16"
    };
    let mut title = format!("SOURCES by {}, {sample}", state.sort.name());
    if !state.filter.is_empty() {
        title += &format!(", only with \"{}\"", state.filter);
    }
    title += &missing(0, state.past().1);
    let rows = sources.iter().map(|talker| {
        let rate = talker.rate.unwrap_or_default();
        let style = match (rate.really_dropped() > 0.0, rate.would_drop > 0.0) {
            (true, _) => theme.dropped(),
            (false, true) => theme.would_be_dropped(),
            (false, false) => Style::new(),
        };
        let activity = state.talker_activity(&talker.row);
        columns.row(talker, state).style(dimmed(style, activity))
    });
    let table = Table::new(rows, columns.widths())
        .header(columns.heading())
        .row_highlight_style(SELECTED)
        .highlight_symbol("> ")
        .block(titled(title, theme));
    let mut place = TableState::new();
    if !sources.is_empty() {
        place.select(Some(state.selected_index(&sources)));
    }
    frame.render_stateful_widget(table, area, &mut place);
}

fn draw_last_line(frame: &mut Frame<'_>, state: &ScreenState, theme: Theme, area: Rect) {
    let to_revoke = state.list.as_ref().and_then(EntryList::to_confirm);
    let line = match (&state.prompt, to_revoke, &state.notice) {
        (Some(prompt), ..) => prompt_line(prompt, theme),
        (None, Some(entry), _) => Line::raw(format!(
            "Revoke {}? Enter: yes, any other key: no",
            list::name(entry)
        )),
        (None, None, Some(notice)) => notice_line(notice, area.width),
        (None, None, None) => {
            let fits = |help: &&&str| help.len() <= usize::from(area.width);
            let help = HELP.iter().find(fits).or(HELP.last());
            Line::raw(*help.unwrap_or(&""))
        }
    };
    frame.render_widget(Paragraph::new(line).style(SELECTED), area);
}

fn notice_line(notice: &Notice, width: u16) -> Line<'static> {
    let Notice { text, short, .. } = notice;
    let text = if width_of(text) <= usize::from(width) {
        text
    } else {
        short
    };
    Line::raw(text.clone())
}

fn prompt_line(prompt: &Prompt, theme: Theme) -> Line<'static> {
    let Prompt {
        kind,
        text,
        problem,
        is_proposal,
        source: _,
    } = prompt;
    let question = match kind {
        PromptKind::Filter => "Show only".to_owned(),
        PromptKind::Explain(source) => format!("Explain {source} to"),
        PromptKind::Allow => "ALLOW ALL of".to_owned(),
        PromptKind::Deny => "DROP ALL of".to_owned(),
    };
    let hint = match (problem, kind) {
        (Some(problem), _) => Span::styled(format!("  {problem}"), theme.alarm()),
        (None, PromptKind::Explain(_)) => Span::raw("  (a service, 80 or 53/udp)  Enter, Esc"),
        (None, PromptKind::Filter) => Span::raw("  Enter, Esc"),
        (None, PromptKind::Allow | PromptKind::Deny) => Span::raw("  Enter: apply, Esc: cancel"),
    };
    // The line is reversed: a proposal, which the first key replaces, is underlined.
    let style = Style::new().add_modifier(Modifier::BOLD);
    let style = if *is_proposal {
        style.add_modifier(Modifier::UNDERLINED)
    } else {
        style
    };
    let typed = Span::styled(format!("{text}_"), style);
    Line::from(vec![Span::raw(format!("{question}: ")), typed, hint])
}

fn draw_list(frame: &mut Frame<'_>, list: &EntryList, theme: Theme) {
    // The columns with the most of their widths. The last has what the others leave.
    const COLUMNS: [(&str, u16); 7] = [
        ("ID", 6),
        ("ACTION", 6),
        ("PREFIX", 43),
        ("SERVICE", 12),
        ("UNTIL", 20),
        ("OWNER", 14),
        ("REASON", u16::MAX),
    ];
    let entries = list.entries().unwrap_or_default();
    let area = frame.area();
    let width = area.width.min(110);
    // The last line of the screen asks and answers.
    let most = area.height.saturating_sub(2);
    // The borders and the heading, and the whole text of the selected entry.
    let height = to_u16(entries.len().max(1) + 3 + 3).min(most);
    let place = area.centered(Constraint::Length(width), Constraint::Length(height));
    let block = Block::bordered()
        .title(" ENTRIES in force ")
        .title_bottom(" r: revoke  up, down: select  Esc: back ")
        .title_style(theme.title());
    frame.render_widget(Clear, place);
    if entries.is_empty() {
        let text = match list.entries() {
            None => "waiting for the agent",
            Some(_) => "none: a and d on the screen make one",
        };
        frame.render_widget(Paragraph::new(text).block(block), place);
        return;
    }
    let rows: Vec<_> = entries
        .iter()
        .map(|listed| entry_cells(&listed.entry, list.read_at))
        .collect();
    let widths = COLUMNS.iter().enumerate().map(|(index, (name, most))| {
        let cells = rows.iter().filter_map(|row| row.get(index));
        let widest = cells.map(|cell| width_of(cell)).chain([name.len()]).max();
        match *most {
            u16::MAX => Constraint::Fill(1),
            most => Constraint::Length(to_u16(widest.unwrap_or_default()).min(most)),
        }
    });
    let widths: Vec<_> = widths.collect();
    let rows = entries.iter().zip(rows).map(|(listed, cells)| {
        Row::new(cells).style(match listed.entry.action {
            Action::Allow => theme.passed(),
            // The text below says which entry overrides it.
            Action::Deny if !listed.overridden_by.is_empty() => {
                theme.dropped().add_modifier(Modifier::DIM)
            }
            Action::Deny => theme.dropped(),
        })
    });
    let table = Table::new(rows, widths)
        .header(Row::new(COLUMNS.map(|(name, _)| name)).style(HEADING))
        .row_highlight_style(SELECTED)
        .highlight_symbol("> ");
    let mut state = TableState::new();
    state.select(Some(list.index()));
    let inside = block.inner(place);
    frame.render_widget(block, place);
    let for_text = if inside.height >= 5 { 3 } else { 0 };
    let [table_area, text_area] =
        Layout::vertical([Constraint::Fill(1), Constraint::Length(for_text)]).areas(inside);
    frame.render_stateful_widget(table, table_area, &mut state);
    let text = entries.get(list.index()).map(ToString::to_string);
    let text = Paragraph::new(text.unwrap_or_default()).wrap(Wrap { trim: true });
    frame.render_widget(text, text_area);
}

/// The cells of an entry, in the order of the columns.
fn entry_cells(entry: &Entry, now: Timestamp) -> [String; 7] {
    [
        entry.id.to_string(),
        entry.action.name().to_owned(),
        list::source(entry.prefix),
        entry.service.clone().unwrap_or_else(|| "-".to_owned()),
        list::until(entry.expires, now),
        quoted_or_dash(entry.owner.as_deref()),
        quoted_or_dash(entry.reason.as_deref()),
    ]
}

/// A text that a client sent, in quotes because nothing verifies it.
fn quoted_or_dash(text: Option<&str>) -> String {
    const MOST: usize = 60;
    text.map_or_else(|| "-".to_owned(), |text| quoted(text, MOST))
}

fn draw_shown(frame: &mut Frame<'_>, shown: &Shown, theme: Theme) {
    let Shown {
        title,
        text,
        scrolled,
    } = shown;
    let area = frame.area();
    let width = area.width.saturating_sub(4).min(100);
    let inside = usize::from(width.saturating_sub(2)).max(1);
    let wrapped = text
        .lines()
        .map(|line| width_of(line).div_ceil(inside).max(1));
    // Wrapping at words needs more lines than this count, so the box gets one more.
    let height = to_u16(wrapped.sum::<usize>() + 3).min(area.height.saturating_sub(2));
    let place = area.centered(Constraint::Length(width), Constraint::Length(height));
    let block = Block::bordered()
        .title(format!(" {title} "))
        .title_bottom(" up, down: scroll  any other key: back ")
        .title_style(theme.title());
    let text = Paragraph::new(text.as_str())
        .wrap(Wrap { trim: false })
        .scroll((*scrolled, 0))
        .block(block);
    frame.render_widget(Clear, place);
    frame.render_widget(text, place);
}

fn titled(title: String, theme: Theme) -> Block<'static> {
    Block::new().title(Line::styled(title, theme.title()))
}

fn number(text: impl Into<String>) -> Cell<'static> {
    Cell::from(Line::raw(text.into()).alignment(Alignment::Right))
}

/// The columns that a text takes on a terminal: some characters take two.
fn width_of(text: &str) -> usize {
    Span::raw(text).width()
}

fn to_u16(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
