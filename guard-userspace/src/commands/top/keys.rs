//! Handles the keys.

use std::{mem, net::IpAddr};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{
    list::{EntryList, Notice},
    requests::AgentRequest,
    state::{Prompt, PromptKind, ScreenState, Shown},
};
use crate::{
    commands::{entries::parse_duration, meter::Counting as _},
    policy::{Action, parse_prefix},
};

/// The number of sources that PgUp and PgDn move by.
const PAGE: isize = 10;

const LONGEST_TEXT: usize = 200;

pub const HELP: &str = "\
Arrows, j, k, PgUp, PgDn, Home, End: select a source
e: explain the verdict for the source at a port or service; what you type replaces the proposal
a, d: allow or deny the source for a while, after a prompt
u: undo the last a or d, while the last line names it
l: list the entries in force; there, r or Enter revokes one, after a question
s: sort the sources by packets, dropped, bits or address, and select the first
/: show only rows that contain this text; Esc shows all again
p or space: pause the screen, and continue
Ctrl-L: draw the screen again    Ctrl-Z: back to the shell, fg continues
q or Ctrl-C: quit

IN, DROPPED and TRAFFIC are counted by the kernel. WOULD DROP counts packets that pass, and that mode enforce \
would drop. max is the highest rate in the history beside it.
A row without packets for 10 s is dim, and leaves the screen after a minute. `/` still finds it, and `guard \
counters` has the totals.
SOURCES are estimated from one packet of sixteen: small numbers are rough, and a source that sends few packets may \
be missing. <8/s means fewer packets than the sample can tell, and - none in the last 10 s. FOR is the reason for its last dropped packet, and the \
service or the closed port.

Next: e on a source that is dropped for a reason you did not expect, d on a source that floods, and `guard explain`, \
`guard capture` and `guard talkers` in a shell.";

pub enum KeyAction {
    Nothing,
    Quit,
    /// Draw the whole screen again: something else has written on the terminal.
    Redraw,
    /// Give the terminal back to the shell until it continues this process.
    Suspend,
    Ask(AgentRequest),
}

pub fn press(state: &mut ScreenState, key: KeyEvent) -> KeyAction {
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c') if is_control => KeyAction::Quit,
        KeyCode::Char('l') if is_control => KeyAction::Redraw,
        KeyCode::Char('z') if is_control => KeyAction::Suspend,
        KeyCode::Char(_) if is_control => KeyAction::Nothing,
        code if state.prompt.is_some() => press_in_prompt(state, code),
        code if state.shown.is_some() => {
            press_in_shown(state, code);
            KeyAction::Nothing
        }
        code if state.has_open_list() => press_in_list(state, code),
        KeyCode::Char('q') => KeyAction::Quit,
        KeyCode::Char('l') => {
            state.list = Some(EntryList::default());
            KeyAction::Ask(AgentRequest::Entries)
        }
        KeyCode::Char('u') => undo(state),
        code => {
            press_on_screen(state, code);
            KeyAction::Nothing
        }
    }
}

fn press_on_screen(state: &mut ScreenState, code: KeyCode) {
    match code {
        KeyCode::Char('p' | ' ') => state.paused = !state.paused,
        KeyCode::Char('s') => state.sort_by_next(),
        KeyCode::Char('/') => open_prompt(state, PromptKind::Filter, state.filter.clone()),
        KeyCode::Esc if state.notice.is_some() => state.notice = None,
        KeyCode::Esc => state.filter.clear(),
        KeyCode::Char('?' | 'h') => {
            state.show(Shown::new("keys".to_owned(), HELP.to_owned()));
        }
        KeyCode::Up | KeyCode::Char('k') => state.select(-1),
        KeyCode::Down | KeyCode::Char('j') => state.select(1),
        KeyCode::PageUp => state.select(-PAGE),
        KeyCode::PageDown => state.select(PAGE),
        KeyCode::Home => state.select(isize::MIN),
        KeyCode::End => state.select(isize::MAX),
        KeyCode::Char('e') => open_prompt_for_selected(state, PromptKind::Explain),
        KeyCode::Char('a') => open_prompt_for_selected(state, |_| PromptKind::Allow),
        KeyCode::Char('d') => open_prompt_for_selected(state, |_| PromptKind::Deny),
        _ => {}
    }
}

/// Revokes the entry that the last line names. Pressing the key again does nothing.
fn undo(state: &mut ScreenState) -> KeyAction {
    let id = state.notice.take().and_then(|notice| notice.undo);
    let Some(id) = id else {
        state.notice = Some(Notice::new("nothing to undo: l lists the entries"));
        return KeyAction::Nothing;
    };
    KeyAction::Ask(AgentRequest::Revoke { id })
}

fn press_in_list(state: &mut ScreenState, code: KeyCode) -> KeyAction {
    let Some(list) = &mut state.list else {
        return KeyAction::Nothing;
    };
    if let Some(entry) = list.end_question() {
        return match code {
            KeyCode::Enter | KeyCode::Char('y') => {
                KeyAction::Ask(AgentRequest::Revoke { id: entry.id })
            }
            _ => KeyAction::Nothing,
        };
    }
    match code {
        KeyCode::Up | KeyCode::Char('k') => list.select(-1),
        KeyCode::Down | KeyCode::Char('j') => list.select(1),
        KeyCode::PageUp => list.select(-PAGE),
        KeyCode::PageDown => list.select(PAGE),
        KeyCode::Home => list.select(isize::MIN),
        KeyCode::End => list.select(isize::MAX),
        KeyCode::Enter | KeyCode::Char('r') => list.ask_to_revoke(),
        KeyCode::Esc | KeyCode::Char('q' | 'l') => state.list = None,
        _ => {}
    }
    KeyAction::Nothing
}

fn open_prompt(state: &mut ScreenState, kind: PromptKind, text: String) {
    state.prompt = Some(Prompt {
        kind,
        text,
        problem: None,
        is_proposal: false,
        source: None,
    });
}

fn open_prompt_for_selected(state: &mut ScreenState, kind: impl FnOnce(IpAddr) -> PromptKind) {
    let Some(talker) = state.selected() else {
        return;
    };
    let (source, key) = (talker.source, talker.key());
    let dropped_at = talker.service.as_ref().or(talker.port.as_ref());
    let destination = dropped_at.cloned().unwrap_or_default();
    let kind = kind(source);
    let (text, is_proposal) = match kind {
        PromptKind::Explain(_) => (destination, true),
        _ => (format!("{source} for 1h"), false),
    };
    state.prompt = Some(Prompt {
        kind,
        text,
        problem: None,
        is_proposal,
        source: Some(key),
    });
}

fn press_in_shown(state: &mut ScreenState, code: KeyCode) {
    let Some(shown) = &mut state.shown else {
        return;
    };
    match code {
        KeyCode::Down | KeyCode::Char('j') => shown.scrolled = shown.scrolled.saturating_add(1),
        KeyCode::Up | KeyCode::Char('k') => shown.scrolled = shown.scrolled.saturating_sub(1),
        _ => state.shown = None,
    }
}

fn press_in_prompt(state: &mut ScreenState, code: KeyCode) -> KeyAction {
    let Some(prompt) = &mut state.prompt else {
        return KeyAction::Nothing;
    };
    prompt.problem = None;
    let is_edit = matches!(code, KeyCode::Backspace | KeyCode::Char(_));
    if is_edit && mem::take(&mut prompt.is_proposal) {
        prompt.text.clear();
    }
    match code {
        KeyCode::Esc => state.prompt = None,
        KeyCode::Backspace => {
            prompt.text.pop();
        }
        KeyCode::Char(c) if prompt.text.len() < LONGEST_TEXT => prompt.text.push(c),
        KeyCode::Enter => return enter(state),
        _ => {}
    }
    KeyAction::Nothing
}

fn enter(state: &mut ScreenState) -> KeyAction {
    let Some(mut prompt) = state.prompt.take() else {
        return KeyAction::Nothing;
    };
    let text = prompt.text.trim();
    let request = match prompt.kind {
        PromptKind::Filter => {
            state.filter = text.to_owned();
            return KeyAction::Nothing;
        }
        PromptKind::Explain(_) if text.is_empty() => {
            Err("write a service, or a port such as 80 or 53/udp".to_owned())
        }
        PromptKind::Explain(from) => Ok(AgentRequest::Explain {
            from,
            to: text.to_owned(),
        }),
        PromptKind::Allow => parse_entry(Action::Allow, text),
        PromptKind::Deny => parse_entry(Action::Deny, text),
    };
    match request {
        Ok(request) => KeyAction::Ask(request),
        Err(problem) => {
            prompt.problem = Some(problem);
            state.prompt = Some(prompt);
            KeyAction::Nothing
        }
    }
}

/// Parses `198.51.100.7 for 1h` and `198.51.100.7 for forever`.
fn parse_entry(action: Action, text: &str) -> Result<AgentRequest, String> {
    let (prefix, lasts) = text
        .split_once(" for ")
        .ok_or_else(|| "write it as 198.51.100.7 for 1h".to_owned())?;
    let seconds = match lasts.trim() {
        "forever" => None,
        lasts => Some(parse_duration(lasts)?.as_secs().unsigned_abs()),
    };
    Ok(AgentRequest::Enter {
        action,
        prefix: parse_prefix(prefix.trim())?,
        seconds,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use jiff::Timestamp;

    use super::*;
    use crate::commands::top::examples::{entry, listed, reading};

    fn press_all(state: &mut ScreenState, keys: &[KeyCode]) -> Vec<AgentRequest> {
        let press = |code: &KeyCode| match press(state, KeyEvent::from(*code)) {
            KeyAction::Ask(request) => Some(request),
            _ => None,
        };
        keys.iter().filter_map(press).collect()
    }

    fn typed(text: &str) -> Vec<KeyCode> {
        text.chars().map(KeyCode::Char).collect()
    }

    fn watching() -> ScreenState {
        let mut state = ScreenState::default();
        state.take(Instant::now(), Ok(reading(1)));
        state
    }

    #[test]
    fn deny_opens_a_prompt_with_one_hour_that_can_be_changed() {
        let mut state = watching();
        let deny = |hours: u64| AgentRequest::Enter {
            action: Action::Deny,
            prefix: "198.51.100.66/32".parse().unwrap(),
            seconds: Some(hours * 3_600),
        };
        let no = [KeyCode::Char('d'), KeyCode::Esc, KeyCode::Enter];
        assert!(press_all(&mut state, &no).is_empty());
        let yes = [KeyCode::Char('d'), KeyCode::Enter];
        assert_eq!(press_all(&mut state, &yes), [deny(1)]);
        let back = vec![KeyCode::Backspace; 2];
        let changed = [typed("d"), back, typed("2h"), vec![KeyCode::Enter]].concat();
        assert_eq!(press_all(&mut state, &changed), [deny(2)]);
    }

    #[test]
    fn u_revokes_the_entry_that_the_last_line_names_once() {
        let mut state = watching();
        assert!(press_all(&mut state, &typed("u")).is_empty());
        let done = Notice::of_entered(
            &entry(4, "198.51.100.66/32", None),
            false,
            Timestamp::UNIX_EPOCH,
        );
        state.notice = Some(done.clone());
        // Looking around does not lose the undo.
        let keys = [typed("sp"), vec![KeyCode::Down], typed("uu")].concat();
        let revoke = |id| AgentRequest::Revoke { id };
        assert_eq!(press_all(&mut state, &keys), [revoke(4)]);
        state.notice = Some(done);
        let given_up = [vec![KeyCode::Esc], typed("u")].concat();
        assert!(press_all(&mut state, &given_up).is_empty());
        let text = state.notice.unwrap().text;
        assert!(text.starts_with("nothing to undo"), "{text}");
    }

    #[test]
    fn the_list_revokes_the_selected_entry_after_a_confirmation_alone() {
        let mut state = watching();
        assert_eq!(press_all(&mut state, &typed("l")), [AgentRequest::Entries]);
        let entries = [3, 4].map(|id| listed(entry(id, "198.51.100.66/32", None)));
        state.take_entries(Timestamp::UNIX_EPOCH, Ok(entries.to_vec()));
        let no = [KeyCode::Down, KeyCode::Enter, KeyCode::Char('n')];
        assert!(press_all(&mut state, &no).is_empty());
        for yes in [KeyCode::Enter, KeyCode::Char('y')] {
            let keys = [KeyCode::Char('r'), yes];
            assert_eq!(
                press_all(&mut state, &keys),
                [AgentRequest::Revoke { id: 4 }]
            );
        }
        // An empty list has nothing to confirm, and the keys of the screen are not pressed by mistake.
        state.take_entries(Timestamp::UNIX_EPOCH, Ok(Vec::new()));
        let keys = [typed("rd"), vec![KeyCode::Enter]].concat();
        assert!(press_all(&mut state, &keys).is_empty());
        press_all(&mut state, &[KeyCode::Esc]);
        assert!(!state.has_open_list() && state.prompt.is_none());
    }

    #[test]
    fn control_keys_act_also_while_a_prompt_is_open() {
        let mut state = watching();
        press_all(&mut state, &typed("d"));
        let press = |state: &mut ScreenState, c| {
            press(
                state,
                KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL),
            )
        };
        assert!(matches!(press(&mut state, 'z'), KeyAction::Suspend));
        assert!(matches!(press(&mut state, 'l'), KeyAction::Redraw));
        assert!(matches!(press(&mut state, 'c'), KeyAction::Quit));
        assert!(state.prompt.is_some());
    }

    #[test]
    fn a_text_that_cannot_be_parsed_keeps_the_prompt_with_the_problem() {
        let mut state = watching();
        let keys = [typed("d"), typed(" and more"), vec![KeyCode::Enter]].concat();
        assert!(press_all(&mut state, &keys).is_empty());
        let prompt = state.prompt.unwrap();
        assert_eq!(prompt.text, "198.51.100.66 for 1h and more");
        assert!(prompt.problem.unwrap().contains("is not a duration"));
    }

    #[test]
    fn a_prompt_keeps_its_source_when_the_readings_change() {
        let mut state = watching();
        press_all(&mut state, &[KeyCode::Down, KeyCode::Char('e')]);
        let mut changed = reading(2);
        changed.talkers.truncate(1);
        state.take(Instant::now(), Ok(changed));
        let asked = press_all(&mut state, &[KeyCode::Enter]);
        let expected = AgentRequest::Explain {
            from: "198.51.100.20".parse().unwrap(),
            to: "web".to_owned(),
        };
        assert_eq!(asked, [expected]);
    }

    #[test]
    fn what_is_typed_replaces_the_destination_that_the_prompt_proposes() {
        for (keys, to) in [
            (vec![], "web"),
            (typed("80"), "80"),
            (vec![KeyCode::Backspace, KeyCode::Char('s')], "s"),
        ] {
            let mut state = watching();
            let open = vec![KeyCode::Down, KeyCode::Char('e')];
            let asked = press_all(&mut state, &[open, keys, vec![KeyCode::Enter]].concat());
            let expected = AgentRequest::Explain {
                from: "198.51.100.20".parse().unwrap(),
                to: to.to_owned(),
            };
            assert_eq!(asked, [expected]);
        }
    }

    #[test]
    fn a_prompt_does_not_move_the_selection_from_the_first_row() {
        let mut state = watching();
        press_all(&mut state, &[KeyCode::Char('d'), KeyCode::Esc]);
        let first = state.selected().unwrap().source;
        let mut changed = reading(2);
        changed.talkers[0].packets = 1_000_000;
        let other = changed.talkers[0].source;
        assert_ne!(first, other);
        state.take(Instant::now(), Ok(changed));
        assert_eq!(state.selected().unwrap().source, other);
    }

    #[test]
    fn keys_are_text_while_a_prompt_is_open() {
        let mut state = watching();
        let keys = [typed("/qsp"), vec![KeyCode::Enter]].concat();
        press_all(&mut state, &keys);
        assert_eq!((state.filter.as_str(), state.paused), ("qsp", false));
        press_all(&mut state, &[KeyCode::Esc]);
        assert_eq!(state.filter, "");
    }
}
