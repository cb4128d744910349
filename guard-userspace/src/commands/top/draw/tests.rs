//! Whole screens as text, and what must be on them at any size.

use std::time::{Duration, Instant};

use insta::assert_snapshot;
use ratatui::{Terminal, backend::TestBackend, buffer::Buffer};

use super::*;
use crate::commands::top::examples::{counter, crowded, entry, listed, reading, status, talker};

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
            text.contains("enforcing") && text.contains("one packet of sixteen"),
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

/// Readings each two seconds, of which only the first has the traffic of this source and reason.
fn watched(mode: &str, readings: u64) -> ScreenState {
    let mut state = ScreenState::default();
    let start = Instant::now();
    for n in 0..readings {
        let mut reading = crowded(2 * n, mode);
        reading
            .counters
            .push(counter(Some("web"), "drop", "byte_limit", 4_000));
        reading.talkers.push(talker(
            "198.51.100.99",
            4_000,
            Some(("byte_limit", Some("web"))),
        ));
        state.take(start + Duration::from_secs(2 * n), Ok(reading));
    }
    state
}

#[test]
fn a_screen_of_80_by_24() {
    let screen = text(&drawn(&watched("enforce", 4), (80, 24), false));
    assert_snapshot!(screen, @r"
    guard enforcing: packets against the policy are dropped
    IN          8.4k packets/s   4.0 Mbit/s   max 8.4k/s                         ███
    DROPPED     8.3k packets/s   4.0 Mbit/s   max 8.3k/s                         ███
    TRAFFIC by service and reason, 8 more rows
    INTERFACE SERVICE      VERDICT REASON                      PACKETS/S      BITS/S
    eth0      -            drop    closed_port tcp/8000 tcp/22    8.0k/s  3.8 Mbit/s
    eth0      web          drop    connection_limit                300/s  144 kbit/s
    eth0      service-12   pass    allowed                          12/s  5.8 kbit/s
    eth0      service-11   pass    allowed                          11/s  5.3 kbit/s
    eth0      web          pass    allowed                          10/s  4.8 kbit/s
    eth0      service-10   pass    allowed                          10/s  4.8 kbit/s
    eth0      service-9    pass    allowed                           9/s  4.3 kbit/s
    eth0      service-8    pass    allowed                           8/s  3.8 kbit/s
    SOURCES by packets, estimated from one packet of sixteen
      SOURCE               PACKETS/S      BITS/S DROPPED FOR
    > 198.51.100.66           8.0k/s  3.8 Mbit/s  8.0k/s closed_port tcp/8000
      198.51.100.20 office     300/s  144 kbit/s   300/s connection_limit at web
      2001:db8:8:beef::        128/s 61.4 kbit/s       - -
      2001:db8:7:beef::        112/s 53.8 kbit/s       - -
      2001:db8:6:beef::         96/s 46.1 kbit/s       - -
      2001:db8:5:beef::         80/s 38.4 kbit/s       - -
      2001:db8:4:beef::         64/s 30.7 kbit/s       - -
      2001:db8:3:beef::         48/s 23.0 kbit/s       - -
    ? help  e explain  a allow  d deny  l entries  / filter  s sort  p pause  q quit
    ");
}

#[test]
fn a_screen_of_80_by_24_in_mode_observe_says_would_drop() {
    let screen = text(&drawn(&watched("observe", 4), (80, 24), false));
    assert!(!screen.contains("DROPPED"), "{screen}");
    assert_snapshot!(screen, @r"
    guard observing: everything passes, would-be drops are counted
    IN          8.4k packets/s   4.0 Mbit/s   max 8.4k/s                         ███
    WOULD DROP  8.3k packets/s   4.0 Mbit/s   max 8.3k/s                         ███
    TRAFFIC by service and reason, 8 more rows
    INTERFACE SERVICE       VERDICT    REASON                  PACKETS/S      BITS/S
    eth0      -             would drop closed_port tcp/8000 +1    8.0k/s  3.8 Mbit/s
    eth0      web           would drop connection_limit            300/s  144 kbit/s
    eth0      service-12    pass       allowed                      12/s  5.8 kbit/s
    eth0      service-11    pass       allowed                      11/s  5.3 kbit/s
    eth0      web           pass       allowed                      10/s  4.8 kbit/s
    eth0      service-10    pass       allowed                      10/s  4.8 kbit/s
    eth0      service-9     pass       allowed                       9/s  4.3 kbit/s
    eth0      service-8     pass       allowed                       8/s  3.8 kbit/s
    SOURCES by packets, estimated from one packet of sixteen
      SOURCE               PACKETS/S      BITS/S WOULD DROP FOR
    > 198.51.100.66           8.0k/s  3.8 Mbit/s     8.0k/s closed_port tcp/8000
      198.51.100.20 office     300/s  144 kbit/s      300/s connection_limit at web
      2001:db8:8:beef::        128/s 61.4 kbit/s          - -
      2001:db8:7:beef::        112/s 53.8 kbit/s          - -
      2001:db8:6:beef::         96/s 46.1 kbit/s          - -
      2001:db8:5:beef::         80/s 38.4 kbit/s          - -
      2001:db8:4:beef::         64/s 30.7 kbit/s          - -
      2001:db8:3:beef::         48/s 23.0 kbit/s          - -
    ? help  e explain  a allow  d deny  l entries  / filter  s sort  p pause  q quit
    ");
}

#[test]
fn a_screen_of_120_by_40() {
    let screen = text(&drawn(&watched("enforce", 40), (120, 40), false));
    assert_snapshot!(screen, @r"
    guard enforcing: packets against the policy are dropped
    IN          8.4k packets/s   4.0 Mbit/s   max 8.4k/s                             ███████████████████████████████████████
    DROPPED     8.3k packets/s   4.0 Mbit/s   max 8.3k/s                             ███████████████████████████████████████
    TRAFFIC by service and reason, 1 without packets now
    INTERFACE SERVICE                          VERDICT REASON                      PACKETS/S      BITS/S   PACKETS     BYTES
    eth0      -                                drop    closed_port tcp/8000 tcp/22    8.0k/s  3.8 Mbit/s      624k   37.4 MB
    eth0      web                              drop    connection_limit                300/s  144 kbit/s     23.4k    1.4 MB
    eth0      service-12                       pass    allowed                          12/s  5.8 kbit/s       936   56.2 kB
    eth0      service-11                       pass    allowed                          11/s  5.3 kbit/s       858   51.5 kB
    eth0      web                              pass    allowed                          10/s  4.8 kbit/s       780   46.8 kB
    eth0      service-10                       pass    allowed                          10/s  4.8 kbit/s       780   46.8 kB
    eth0      service-9                        pass    allowed                           9/s  4.3 kbit/s       702   42.1 kB
    eth0      service-8                        pass    allowed                           8/s  3.8 kbit/s       624   37.4 kB
    eth0      service-7                        pass    allowed                           7/s  3.4 kbit/s       546   32.8 kB
    eth0      service-6                        pass    allowed                           6/s  2.9 kbit/s       468   28.1 kB
    eth0      service-5                        pass    allowed                           5/s  2.4 kbit/s       390   23.4 kB
    eth0      service-4                        pass    allowed                           4/s  1.9 kbit/s       312   18.7 kB
    eth0      service-3                        pass    allowed                           3/s  1.4 kbit/s       234   14.0 kB
    eth0      service-2                        pass    allowed                           2/s   960 bit/s       156    9.4 kB
    eth0      service-1                        pass    allowed                           1/s   480 bit/s        78    4.7 kB
    SOURCES by packets, estimated from one packet of sixteen, 1 without packets now
      SOURCE               PACKETS/S      BITS/S DROPPED FOR                     HISTORY
    > 198.51.100.66           8.0k/s  3.8 Mbit/s  8.0k/s closed_port tcp/8000    max 8.0k/s ████████████████████████████████
      198.51.100.20 office     300/s  144 kbit/s   300/s connection_limit at web max 300/s  ████████████████████████████████
      2001:db8:8:beef::        128/s 61.4 kbit/s       - -                       max 128/s  ████████████████████████████████
      2001:db8:7:beef::        112/s 53.8 kbit/s       - -                       max 112/s  ████████████████████████████████
      2001:db8:6:beef::         96/s 46.1 kbit/s       - -                       max 96/s   ████████████████████████████████
      2001:db8:5:beef::         80/s 38.4 kbit/s       - -                       max 80/s   ████████████████████████████████
      2001:db8:4:beef::         64/s 30.7 kbit/s       - -                       max 64/s   ████████████████████████████████
      2001:db8:3:beef::         48/s 23.0 kbit/s       - -                       max 48/s   ████████████████████████████████
      2001:db8:2:beef::         32/s 15.4 kbit/s       - -                       max 32/s   ████████████████████████████████
      2001:db8:1:beef::         16/s  7.7 kbit/s       - -                       max 16/s   ████████████████████████████████
      198.51.100.7              10/s  4.8 kbit/s       - -                       max 10/s   ████████████████████████████████






    ? help  e explain  a allow  d deny  l entries  / filter  s sort  p pause  q quit
    ");
}

#[test]
fn a_screen_of_40_by_12() {
    let screen = text(&drawn(&watched("enforce", 4), (40, 12), false));
    assert_snapshot!(screen, @r"
    guard enforcing: packets against the pol
    IN          8.4k packets/s   4.0 Mbit/s
    DROPPED     8.3k packets/s   4.0 Mbit/s
    TRAFFIC, 15 more rows
    SERVICE  VERDICT REASON           PKTS/S
    -        drop    closed_port        8.0k
    SOURCES by packets, 1 packet of 16
      SOURCE               PKTS/S DROP/S
    > 198.51.100.66          8.0k   8.0k
      198.51.100.20 office    300    300
      2001:db8:8:beef::       128      -
    ? help  a allow  d deny  l list  q quit
    ");
}

#[test]
fn a_small_screen_shows_five_sources_however_many_counters_there_are() {
    let mut state = ScreenState::default();
    let start = Instant::now();
    for n in 0..3 {
        let mut reading = crowded(n + 1, "enforce");
        let more = (0..200)
            .map(|service| counter(Some(&format!("more-{service}")), "pass", "allowed", 9 * n));
        reading.counters.extend(more);
        // The agent's trouble takes a line more.
        reading.status = status("enforce", false);
        state.take(start + Duration::from_secs(n), Ok(reading));
    }
    let screen = text(&drawn(&state, (80, 24), false));
    let (_, below) = screen.split_once("SOURCES").unwrap();
    let addresses = below
        .lines()
        .filter(|line| line.contains("198.51.") || line.contains("2001:db8:"));
    assert!(addresses.count() >= usize::from(FEWEST_SOURCES), "{screen}");
}

#[test]
fn rows_without_traffic_are_dim_and_then_gone() {
    let is_dim = |state: &ScreenState, word: &str| {
        let buffer = drawn(state, (80, 40), true);
        let screen = text(&buffer);
        let line = screen.lines().position(|line| line.contains(word))?;
        let place = (0, u16::try_from(line).unwrap());
        Some(buffer[place].modifier.contains(Modifier::DIM))
    };
    for (readings, dim) in [(2, Some(false)), (7, Some(true)), (40, None)] {
        let state = watched("enforce", readings);
        assert_eq!(is_dim(&state, "198.51.100.99"), dim, "{readings}");
        assert_eq!(is_dim(&state, "198.51.100.66"), Some(false));
    }
    let screen = text(&drawn(&watched("enforce", 40), (80, 40), false));
    assert_eq!(
        screen.matches(", 1 without packets now").count(),
        2,
        "{screen}"
    );
    assert!(!screen.contains("byte_limit"), "{screen}");
}

#[test]
fn a_rate_below_the_sample_is_no_zero() {
    let screen = text(&drawn(&watched("enforce", 2), (80, 40), false));
    let line = |word: &str| screen.lines().find(|line| line.contains(word)).unwrap();
    // A reading each two seconds, and one packet of sixteen.
    assert_eq!(line("198.51.100.99").matches("<8/s").count(), 2, "{screen}");
    // No dropped packet of this source was ever in the sample.
    assert!(line("198.51.100.7 ").contains("- -"), "{screen}");
}

#[test]
fn the_list_of_entries_shows_who_until_when_and_why() {
    let mut state = busy();
    state.list = Some(EntryList::default());
    let waiting = text(&drawn(&state, (80, 24), false));
    assert!(waiting.contains("waiting for the agent"), "{waiting}");
    let now: Timestamp = "2027-01-31T09:40:00Z".parse().unwrap();
    state.take_entries(now, Ok(Vec::new()));
    let none = text(&drawn(&state, (80, 24), false));
    assert!(
        none.contains("none: a and d on the screen make one"),
        "{none}"
    );
    let mut network = entry(5, "2001:db8:1:beef::/64", None);
    network.action = Action::Allow;
    network.service = Some("web".to_owned());
    network.reason = Some("the office is on the train \u{1b}[31m".to_owned());
    let entries = vec![
        entry(4, "198.51.100.66/32", Some("2027-01-31T10:32:00Z")),
        network,
        entry(12, "198.51.100.0/24", Some("2027-02-03T10:32:00Z")),
    ];
    state.take_entries(now, Ok(entries.into_iter().map(listed).collect()));
    let list = state.list.as_mut().unwrap();
    list.select(1);
    list.ask_to_revoke();
    assert_snapshot!(text(&drawn(&state, (80, 24), false)), @r#"
    guard enforcing: packets against the policy are dropped
    IN         41.5k packets/s  19.9 Mbit/s  max 41.5k/s                         ▂▅█
    DROPPED    41.5k packets/s  19.9 Mbit/s  max 41.5k/s                         ▂▅█
    TRAFFIC by service and reason
    INTERFACE SERVICE      VERDICT REASON                      PACKETS/S      BITS/S
    eth0      -            drop    closed_port tcp/8000 tcp/22   40.0k/s 19.2 Mbit/s
    eth0      web          drop    connection_limit               1.5k/s  720 kbit/s
    eth0      web          pass    allowed                          50/s 24.0 kbit/s
    ┌ ENTRIES in force ────────────────────────────────────────────────────────────┐
    │  ID ACTION PREFIX               SERVICE UNTIL                OWNER REASON    │
    │  4  deny   198.51.100.66        -       10:32 UTC            "ana" "guard top│
    │> 5  allow  2001:db8:1:beef::/64 web     no end               "ana" "the offic│
    │  12 deny   198.51.100.0/24      -       2027-02-03 10:32 UTC "ana" "guard top│
    │entry 5 lets through 2001:db8:1:beef::/64 at service "web", owned by "ana",   │
    │because: "the office is on the train \u{1b}[31m", without an end              │
    │                                                                              │
    └ r: revoke  up, down: select  Esc: back ──────────────────────────────────────┘






    Revoke entry 5 (allow 2001:db8:1:beef::/64)? Enter: yes, any other key: no
    "#);
}

#[test]
fn the_last_line_says_what_was_done_and_how_to_undo_it_on_every_width() {
    let mut state = busy();
    let entry = entry(4, "198.51.100.66/32", Some("2027-01-31T10:32:00Z"));
    let now: Timestamp = "2027-01-31T09:40:00Z".parse().unwrap();
    state.notice = Some(Notice::of_entered(&entry, false, now));
    for (width, line) in [
        (
            80,
            "denied 198.51.100.66 until 10:32 UTC (entry 4) — u undoes it",
        ),
        (40, "denied 198.51.100.66 — u undoes it"),
    ] {
        let screen = text(&drawn(&state, (width, 24), false));
        assert_eq!(screen.lines().last(), Some(line), "{screen}");
    }
}

#[test]
fn texts_of_others_cannot_act_on_the_terminal_nor_move_the_columns() {
    let mut state = ScreenState::default();
    let mut reading = reading(1);
    for row in &mut reading.counters {
        row.interface = "e\u{1b}[2J\u{9b}31m".to_owned();
    }
    reading.talkers[0].name = Some("東京東京\u{7}".to_owned());
    reading.talkers[1].name = Some("office".to_owned());
    state.take(Instant::now(), Ok(reading));
    state.trouble = Some("\u{1b}]0;owned\u{7}".to_owned());
    state.shown = Some(Shown::new(
        "\u{1b}[1m".to_owned(),
        "\u{1b}[1mtext".to_owned(),
    ));
    let buffer = drawn(&state, (80, 24), true);
    let is_harmless = |cell: &ratatui::buffer::Cell| !cell.symbol().contains(char::is_control);
    assert!(buffer.content.iter().all(is_harmless));
    state.shown = None;
    let buffer = drawn(&state, (80, 24), true);
    // The columns of the buffer, in which a wide character fills two cells.
    let column_of = |source: &str, word: &str| {
        let mut lines = buffer.content.chunks(80).map(|cells| {
            let symbols: Vec<&str> = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
            symbols
        });
        let line = lines.find(|line| line.concat().contains(source)).unwrap();
        (0..80).find(|column| line[*column..].concat().starts_with(word))
    };
    let header = column_of("SOURCE ", "FOR");
    assert_eq!(column_of("198.51.100.20", "connection_limit"), header);
    assert_eq!(column_of("東", "東"), Some(15));
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
