//! Draws the state. Everything that a colour shows is also written in words.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    symbols::bar,
    text::{Line, Span},
    widgets::{Block, Cell, Clear, Paragraph, Row, Table, TableState, Wrap},
};

use super::state::{Flow, Prompt, PromptKind, RateHistory, ScreenState, Shown};
use crate::{
    api::{Counter, Status, Talker},
    commands::{figures, meter::Metered, status::headline},
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

const HEADING: Style = Style::new().add_modifier(Modifier::UNDERLINED);
const SELECTED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Narrower screens omit bits per second, so that drops and their reasons have room.
const WIDTH_FOR_BITS: u16 = 70;
const WIDTH_FOR_TOTALS: u16 = 100;

const HELP: &str = "? help  p pause  s sort  / filter  e explain  a allow  d deny  q quit";
const SHORT_HELP: &str = "? help  p s /  e explain  a allow  d deny  q quit";

pub fn draw(frame: &mut Frame<'_>, state: &ScreenState, theme: Theme) {
    let area = frame.area();
    let head = head(state, theme, area.width);
    let traffic = state.traffic();
    let head_height = u16::try_from(head.len()).unwrap_or(u16::MAX);
    // Two titles, two headings and the last line.
    let rows = area.height.saturating_sub(head_height + 5);
    let traffic_rows = (rows / 2)
        .min(u16::try_from(traffic.len()).unwrap_or(u16::MAX))
        .max(1);
    let [top, traffic_area, sources_area, bottom] = Layout::vertical([
        Constraint::Length(head_height),
        Constraint::Length(traffic_rows + 2),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(head), top);
    draw_traffic(frame, &traffic, theme, traffic_area);
    draw_sources(frame, state, theme, sources_area);
    draw_last_line(frame, state, theme, bottom);
    if let Some(shown) = &state.shown {
        draw_shown(frame, shown, theme);
    }
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

/// `IN  1.2k packets/s  3.4 Mbit/s  ▁▂▃`.
fn rate_line(name: &str, flow: &Flow, width: u16, style: Style) -> Line<'static> {
    let Flow { rate, past } = flow;
    let packets = format!("{} packets/s", figures::count(rate.packets));
    let text = format!("{name:<11}{packets:>17}{:>14}  ", figures::bits(rate.bytes));
    let rest = usize::from(width).saturating_sub(text.chars().count());
    Line::styled(format!("{text}{}", sparkline(past, rest)), style)
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
    let highest = history.last(width).fold(0.0, f64::max);
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

fn draw_traffic(frame: &mut Frame<'_>, rows: &[&Metered<Counter>], theme: Theme, area: Rect) {
    let room = usize::from(area.height.saturating_sub(2));
    let hidden = rows.len().saturating_sub(room);
    let more = if hidden > 0 {
        format!(", {hidden} more rows")
    } else {
        String::new()
    };
    let title = format!("TRAFFIC by service and reason{more}");
    let has_totals = area.width >= WIDTH_FOR_TOTALS;
    let totals = has_totals.then_some(["PACKETS", "BYTES"]);
    let names = ["INTERFACE", "SERVICE", "VERDICT", "REASON"].into_iter();
    let rates = ["PKTS/S", "BITS/S"];
    let heading = names.map(Cell::from).chain(
        rates
            .into_iter()
            .chain(totals.into_iter().flatten())
            .map(number),
    );
    let lines = rows.iter().map(|counter| {
        let Metered { row, rate } = counter;
        let rate = rate.unwrap_or_default();
        let words = [
            row.interface.clone(),
            row.service.clone().unwrap_or_else(|| "-".to_owned()),
            row.describe_verdict(),
            row.reason.clone(),
        ];
        let rates = [rate.packets, rate.bytes * 8.0].map(figures::count);
        let totals = has_totals.then(|| {
            [
                figures::count(row.packets as f64),
                figures::bytes(row.bytes as f64),
            ]
        });
        let numbers = rates.into_iter().chain(totals.into_iter().flatten());
        let cells = words.into_iter().map(Cell::from).chain(numbers.map(number));
        Row::new(cells.collect::<Vec<_>>()).style(theme.of_counter(row))
    });
    let widest = |word: fn(&Counter) -> usize, name: &str, most: usize| {
        let widths = rows.iter().map(|counter| word(&counter.row));
        to_u16(
            widths
                .chain([name.len()])
                .max()
                .unwrap_or_default()
                .min(most),
        )
    };
    let mut widths = vec![
        Constraint::Length(widest(|row| row.interface.chars().count(), "INTERFACE", 15)),
        Constraint::Fill(1),
        Constraint::Length(widest(|row| row.describe_verdict().len(), "VERDICT", 17)),
        Constraint::Length(widest(|row| row.reason.len(), "REASON", 18)),
        Constraint::Length(Columns::NUMBER),
        Constraint::Length(Columns::NUMBER),
    ];
    if has_totals {
        widths.extend([Constraint::Length(9), Constraint::Length(9)]);
    }
    let table = Table::new(lines, widths)
        .header(Row::new(heading.collect::<Vec<_>>()).style(HEADING))
        .block(titled(title, theme));
    frame.render_widget(table, area);
}

/// The columns of the sources, with the widths that fit the screen.
struct Columns {
    source: u16,
    has_bits: bool,
    why: u16,
    history: u16,
}

impl Columns {
    const MARK: u16 = 2;
    const NUMBER: u16 = 6;
    const SHORTEST_SOURCE: u16 = 15;
    const SHORTEST_HISTORY: u16 = 4;

    fn new(sources: &[&Metered<Talker>], width: u16) -> Self {
        let widest = |word: fn(&Talker) -> usize| {
            let widths = sources.iter().map(|talker| word(&talker.row));
            to_u16(widths.max().unwrap_or_default())
        };
        let has_bits = width >= WIDTH_FOR_BITS;
        let numbers = if has_bits { 3 } else { 2 };
        let rest = width.saturating_sub(Self::MARK + numbers * (Self::NUMBER + 1));
        let why = widest(|row| row.why().unwrap_or_default().chars().count());
        let why = why.max(3).min(rest * 5 / 9);
        let source = widest(|row| row.who().chars().count());
        let source = source
            .max(Self::SHORTEST_SOURCE)
            .min(rest.saturating_sub(why + 1));
        let history = rest.saturating_sub(source + why + 2);
        Self {
            source,
            has_bits,
            why,
            history: if history < Self::SHORTEST_HISTORY {
                0
            } else {
                history
            },
        }
    }

    fn heading(&self, drops: &'static str) -> Row<'static> {
        let mut cells = vec![Cell::from("SOURCE"), number("PKTS/S")];
        if self.has_bits {
            cells.push(number("BITS/S"));
        }
        cells.extend([number(drops), Cell::from("FOR"), Cell::from("HISTORY")]);
        Row::new(cells).style(HEADING)
    }

    fn widths(&self) -> Vec<Constraint> {
        let mut widths = vec![self.source, Self::NUMBER, Self::NUMBER];
        if self.has_bits {
            widths.push(Self::NUMBER);
        }
        widths.push(self.why);
        if self.history > 0 {
            widths.push(self.history);
        }
        widths.into_iter().map(Constraint::Length).collect()
    }

    fn row(
        &self,
        talker: &Metered<Talker>,
        history: Option<&RateHistory>,
        theme: Theme,
    ) -> Row<'static> {
        let Metered { row, rate } = talker;
        let rate = rate.unwrap_or_default();
        let mut cells = vec![Cell::from(row.who()), number(figures::count(rate.packets))];
        if self.has_bits {
            cells.push(number(figures::count(rate.bytes * 8.0)));
        }
        cells.push(number(figures::count(rate.dropped)));
        let why = row.why().unwrap_or_else(|| "-".to_owned());
        let bars = history.map(|history| sparkline(history, usize::from(self.history)));
        cells.extend([Cell::from(why), Cell::from(bars.unwrap_or_default())]);
        let style = if rate.dropped > 0.0 {
            theme.dropped()
        } else {
            Style::new()
        };
        Row::new(cells).style(style)
    }
}

fn draw_sources(frame: &mut Frame<'_>, state: &ScreenState, theme: Theme, area: Rect) {
    let sources = state.sources();
    let columns = Columns::new(&sources, area.width);
    let mut title = format!(
        "SOURCES by {}, estimated from 1 packet of 16",
        state.sort.name()
    );
    if !state.filter.is_empty() {
        title += &format!(", only with \"{}\"", state.filter);
    }
    let drops = if is_enforced(state) {
        "DROP/S"
    } else {
        "WOULD"
    };
    let rows = sources
        .iter()
        .map(|talker| columns.row(talker, state.history(&talker.row), theme));
    let table = Table::new(rows, columns.widths())
        .header(columns.heading(drops))
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
    let line = match &state.prompt {
        Some(prompt) => prompt_line(prompt, theme),
        None if area.width < WIDTH_FOR_BITS => Line::raw(SHORT_HELP),
        None => Line::raw(HELP),
    };
    frame.render_widget(Paragraph::new(line).style(SELECTED), area);
}

fn prompt_line(prompt: &Prompt, theme: Theme) -> Line<'static> {
    let Prompt {
        kind,
        text,
        problem,
    } = prompt;
    let question = match kind {
        PromptKind::Filter => "Show only".to_owned(),
        PromptKind::Explain(source) => format!("Explain {source} to"),
        PromptKind::Allow => "ALLOW ALL of".to_owned(),
        PromptKind::Deny => "DROP ALL of".to_owned(),
    };
    let hint = match (problem, kind) {
        (Some(problem), _) => Span::styled(format!("  {problem}"), theme.alarm()),
        (None, PromptKind::Explain(_)) => Span::raw("  (a service, or 8000/tcp)  Enter, Esc"),
        (None, PromptKind::Filter) => Span::raw("  Enter, Esc"),
        (None, PromptKind::Allow | PromptKind::Deny) => Span::raw("  Enter: apply, Esc: cancel"),
    };
    let typed = Span::styled(
        format!("{text}_"),
        Style::new().add_modifier(Modifier::BOLD),
    );
    Line::from(vec![Span::raw(format!("{question}: ")), typed, hint])
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
        .map(|line| line.chars().count().div_ceil(inside).max(1));
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

fn to_u16(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use ratatui::{Terminal, backend::TestBackend, buffer::Buffer};

    use super::*;
    use crate::commands::top::examples::{reading, status};

    fn drawn(state: &ScreenState, (width, height): (u16, u16), has_colour: bool) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let theme = Theme { has_colour };
        terminal.draw(|frame| draw(frame, state, theme)).unwrap();
        terminal.backend().buffer().clone()
    }

    fn text(buffer: &Buffer) -> String {
        let lines = buffer.content.chunks(usize::from(buffer.area.width));
        let line = |cells: &[ratatui::buffer::Cell]| -> String {
            cells.iter().map(ratatui::buffer::Cell::symbol).collect()
        };
        lines
            .map(|cells| line(cells).trim_end().to_owned() + "\n")
            .collect()
    }

    /// Four readings of a flood that grows, an office over its limit and a client within it.
    fn busy() -> ScreenState {
        let mut state = ScreenState::default();
        let start = Instant::now();
        for n in 0..4 {
            state.take(start + Duration::from_secs(n), Ok(reading(n * n)));
        }
        state
    }

    #[test]
    fn every_size_shows_the_flooding_source_the_dropped_source_and_the_reasons() {
        for size in [(80, 24), (60, 15), (200, 50)] {
            let text = text(&drawn(&busy(), size, true));
            assert!(text.contains("web  "), "{text}");
            let line = |word: &str| text.lines().find(|line| line.contains(word)).unwrap();
            assert!(line("198.51.100.66").starts_with("> "), "{text}");
            assert!(line("198.51.100.66").contains("closed_port"), "{text}");
            let office = line("198.51.100.20 office");
            assert!(office.contains("connection_limit at web"), "{text}");
            assert!(
                text.contains("enforcing") && text.contains("1 packet of 16"),
                "{text}"
            );
            assert!(text.contains("q quit"), "{text}");
        }
    }

    #[test]
    fn history_grows_from_the_right() {
        let text = text(&drawn(&busy(), (80, 24), true));
        let line = text.lines().find(|line| line.starts_with("IN ")).unwrap();
        assert!(line.ends_with("▂▅█"), "{text}");
    }

    #[test]
    fn without_colour_the_words_are_the_same() {
        let state = busy();
        let (with, without) = (
            drawn(&state, (80, 24), true),
            drawn(&state, (80, 24), false),
        );
        assert_eq!(text(&with), text(&without));
        let is_plain =
            |cell: &ratatui::buffer::Cell| (cell.fg, cell.bg) == (Color::Reset, Color::Reset);
        assert!(without.content.iter().all(is_plain));
        assert!(!with.content.iter().all(is_plain));
    }

    #[test]
    fn the_screen_shows_a_dead_agent_a_failed_reading_and_observe_mode() {
        let mut state = busy();
        let later = |seconds| Instant::now() + Duration::from_secs(seconds);
        let mut gone = reading(20);
        gone.status = status("enforce", false);
        state.take(later(9), Ok(gone));
        let screen = text(&drawn(&state, (80, 24), false));
        assert!(
            screen.contains("AGENT NOT RUNNING: it is dead."),
            "{screen}"
        );
        state.take(later(10), Err("no agent answers".to_owned()));
        let screen = text(&drawn(&state, (80, 24), false));
        assert!(
            screen.contains("NO ANSWER, these numbers are old: no agent"),
            "{screen}"
        );
        assert!(screen.contains("198.51.100.66"), "{screen}");
        let mut observed = reading(30);
        observed.status = status("observe", true);
        state.take(later(11), Ok(observed));
        let screen = text(&drawn(&state, (80, 24), false));
        assert!(
            screen.contains("WOULD DROP") && !screen.contains("DROPPED "),
            "{screen}"
        );
    }

    #[test]
    fn every_size_can_be_drawn_also_before_the_first_reading() {
        let mut state = busy();
        state.show(Shown::new("title".to_owned(), "long ".repeat(500)));
        for width in 1..30 {
            for height in 1..12 {
                drawn(&state, (width, height), true);
                drawn(&ScreenState::default(), (width, height), true);
            }
        }
    }
}
