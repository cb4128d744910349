//! `guard top`: shows traffic, drops and sources on a screen.
//!
//! `state` turns readings into rows, `keys` turns keys into requests, `requests` sends them, `draw` draws the state.
//! Only `draw` and this module depend on a terminal.

mod ages;
mod draw;
#[cfg(test)]
mod examples;
mod keys;
mod list;
mod ports;
mod requests;
mod state;

use std::{
    env,
    io::{self, IsTerminal as _},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use clap::Args;
use crossterm::{
    event::{Event, EventStream, KeyEventKind},
    execute,
    style::force_color_output,
    terminal::{EnterAlternateScreen, disable_raw_mode, enable_raw_mode},
};
use futures_util::StreamExt as _;
use nix::sys::signal::{Signal, raise};
use ratatui::{DefaultTerminal, backend::Backend as _};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc::{Receiver, Sender, channel},
    time::{MissedTickBehavior, interval},
};

use self::{
    draw::Theme,
    keys::KeyAction,
    requests::{AgentRequest, ScreenEvent, answer},
    state::{GuardReading, ScreenState},
};
use super::{AgentLocation, Failure, colour, reading::GuardReader};
use crate::api::client::ClientError;

#[derive(Debug, Args)]
pub struct Top {
    /// Refresh the screen at this interval, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2,
          value_parser = clap::value_parser!(u64).range(1..=60))]
    every: u64,
    /// Use no colours: the same as --color never
    #[arg(long)]
    no_color: bool,
}

impl Top {
    pub async fn run(self, location: AgentLocation) -> Result<(), Failure> {
        let Self { every, no_color } = self;
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            return Err(anyhow!(
                "standard input or output is not a terminal: use `guard counters --watch` or `guard talkers \
                 --watch`, which print lines"
            )
            .into());
        }
        if env::var_os("TERM").is_some_and(|term| term == "dumb") {
            return Err(anyhow!(
                "TERM is dumb, a terminal that cannot draw a screen: set TERM to the name of yours, or use \
                 `guard counters --watch` or `guard talkers --watch`, which print lines"
            )
            .into());
        }
        let has_colour = !no_color && colour::has_colour();
        // crossterm reads NO_COLOR by itself, and would drop the colours that `--color always` asks for.
        force_color_output(has_colour);
        let reader = Arc::new(GuardReader::new(&location)?);
        let terminal = ratatui::try_init().context("the terminal cannot be set up")?;
        let screen = Screen {
            terminal,
            state: ScreenState::default(),
            theme: Theme { has_colour },
            reader,
        };
        let result = screen.run(Duration::from_secs(every)).await;
        ratatui::restore();
        Ok(result?)
    }
}

struct Screen {
    terminal: DefaultTerminal,
    state: ScreenState,
    theme: Theme,
    reader: Arc<GuardReader>,
}

impl Screen {
    async fn run(mut self, every: Duration) -> anyhow::Result<()> {
        // A short queue is enough: there is one reading at a time, and one answer for each request.
        let (sender, mut messages) = channel(4);
        tokio::spawn(read_forever(
            Arc::clone(&self.reader),
            every,
            sender.clone(),
        ));
        let mut events = EventStream::new();
        let mut signals = [
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
            signal(SignalKind::from_raw(Signal::SIGCONT as i32))?,
        ];
        let [terminate, hangup, go_on] = &mut signals;
        loop {
            let Self {
                terminal,
                state,
                theme,
                ..
            } = &mut self;
            terminal.draw(|frame| draw::draw(frame, state, *theme))?;
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => if self.handle(&event?, &sender)? { return Ok(()) },
                    None => return Ok(()),
                },
                is_reading = take(&mut messages, &mut self.state) => if is_reading && self.state.has_open_list() {
                    self.ask(AgentRequest::Entries, &sender);
                },
                // The shell has changed the terminal meanwhile.
                _ = go_on.recv() => self.set_up_again()?,
                _ = terminate.recv() => return Ok(()),
                _ = hangup.recv() => return Ok(()),
            }
        }
    }

    /// Returns whether the operator has quit.
    fn handle(&mut self, event: &Event, answers: &Sender<ScreenEvent>) -> anyhow::Result<bool> {
        let Event::Key(key) = event else {
            return Ok(false);
        };
        if key.kind == KeyEventKind::Release {
            return Ok(false);
        }
        match keys::press(&mut self.state, *key) {
            KeyAction::Nothing => {}
            KeyAction::Quit => return Ok(true),
            KeyAction::Ask(request) => self.ask(request, answers),
            KeyAction::Redraw => self.clear()?,
            KeyAction::Suspend => {
                ratatui::restore();
                // Returns when the shell continues this process, or at once if there is no shell to do so.
                raise(Signal::SIGTSTP)?;
                self.set_up_again()?;
            }
        }
        Ok(false)
    }

    fn ask(&self, request: AgentRequest, answers: &Sender<ScreenEvent>) {
        tokio::spawn(answer(Arc::clone(&self.reader), request, answers.clone()));
    }

    /// Sets up the terminal after a stop. crossterm must leave raw mode first: it takes the mode for set, although the
    /// shell has unset it.
    fn set_up_again(&mut self) -> io::Result<()> {
        disable_raw_mode()?;
        enable_raw_mode()?;
        execute!(io::stdout(), EnterAlternateScreen)?;
        self.clear()
    }

    /// Clears the terminal, so that the next frame is drawn as a whole. `Terminal::clear` would ask the terminal where
    /// its cursor is, and wait for the answer, which the stream of events reads instead: the screen would hang.
    fn clear(&mut self) -> io::Result<()> {
        self.terminal.backend_mut().clear()?;
        self.terminal.swap_buffers();
        Ok(())
    }
}

/// Returns whether the message was a reading.
async fn take(messages: &mut Receiver<ScreenEvent>, state: &mut ScreenState) -> bool {
    match messages.recv().await {
        Some(ScreenEvent::Reading(at, reading)) => {
            state.take(at, reading.map(|reading| *reading));
            return true;
        }
        Some(ScreenEvent::Answer(shown)) => state.show(shown),
        Some(ScreenEvent::Done(notice)) => state.notice = Some(notice),
        Some(ScreenEvent::Entries(at, entries)) => state.take_entries(at, entries),
        // Does not happen: `Screen::run` holds a sender.
        None => {}
    }
    false
}

async fn read_forever(reader: Arc<GuardReader>, every: Duration, messages: Sender<ScreenEvent>) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let reading = read(&reader).await.map_err(|error| error.to_string());
        let reading = ScreenEvent::Reading(Instant::now(), reading.map(Box::new));
        if messages.send(reading).await.is_err() {
            return;
        }
    }
}

async fn read(reader: &GuardReader) -> Result<GuardReading, ClientError> {
    let (status, counters, talkers) =
        tokio::try_join!(reader.status(), reader.counters(), reader.talkers())?;
    Ok(GuardReading {
        status,
        counters,
        talkers,
    })
}
