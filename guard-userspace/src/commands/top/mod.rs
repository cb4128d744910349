//! `guard top`: shows traffic, drops and sources on a screen.
//!
//! `state` turns readings into rows, `keys` turns keys into requests, `draw` draws the state. Only `draw` and this
//! module depend on a terminal.

mod draw;
#[cfg(test)]
mod examples;
mod keys;
mod state;

use std::{
    env,
    io::{self, IsTerminal as _},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use clap::Args;
use crossterm::event::{Event, EventStream, KeyEventKind};
use futures_util::StreamExt as _;
use ratatui::DefaultTerminal;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc::{Receiver, Sender, channel},
    time::{MissedTickBehavior, interval},
};

use self::{
    draw::Theme,
    keys::{AgentRequest, KeyAction},
    state::{GuardReading, ScreenState, Shown},
};
use super::{AgentLocation, Failure, explain, reading::GuardReader};
use crate::{
    api::{Changed, EntryRequest, ExplainRequest, client::ClientError},
    operator::ssh_session,
};

#[derive(Debug, Args)]
pub struct Top {
    /// Refresh the screen at this interval, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2,
          value_parser = clap::value_parser!(u64).range(1..=60))]
    every: u64,
    /// Use no colours, as with the environment variable NO_COLOR
    #[arg(long)]
    no_color: bool,
}

/// A message for the screen.
enum ScreenEvent {
    Reading(Instant, Result<Box<GuardReading>, String>),
    Answer(Shown),
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
        // https://no-color.org
        let has_colour = !no_color && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
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
        let mut ends = [
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ];
        let [terminate, hangup] = &mut ends;
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
                    Some(event) => if self.handle(&event?, &sender) { return Ok(()) },
                    None => return Ok(()),
                },
                _ = take(&mut messages, &mut self.state) => {}
                _ = terminate.recv() => return Ok(()),
                _ = hangup.recv() => return Ok(()),
            }
        }
    }

    /// Returns whether the operator has quit.
    fn handle(&mut self, event: &Event, answers: &Sender<ScreenEvent>) -> bool {
        let Event::Key(key) = event else {
            return false;
        };
        if key.kind == KeyEventKind::Release {
            return false;
        }
        match keys::press(&mut self.state, *key) {
            KeyAction::Nothing => false,
            KeyAction::Quit => true,
            KeyAction::Ask(request) => {
                tokio::spawn(answer(Arc::clone(&self.reader), request, answers.clone()));
                false
            }
        }
    }
}

async fn take(messages: &mut Receiver<ScreenEvent>, state: &mut ScreenState) {
    match messages.recv().await {
        Some(ScreenEvent::Reading(at, reading)) => state.take(at, reading.map(|reading| *reading)),
        Some(ScreenEvent::Answer(shown)) => state.show(shown),
        // Does not happen: `Screen::run` holds a sender.
        None => {}
    }
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

/// Sends a request to the agent, and shows the answer.
async fn answer(reader: Arc<GuardReader>, request: AgentRequest, messages: Sender<ScreenEvent>) {
    let title = request.to_string();
    let answered = match request {
        AgentRequest::Explain { from, to } => {
            explained(&reader, &ExplainRequest { from, to }).await
        }
        AgentRequest::Enter {
            action,
            prefix,
            seconds,
        } => {
            let request = EntryRequest {
                action,
                prefix,
                service: None,
                owner: super::user(),
                reason: "guard top".parse().ok(),
                seconds: Some(seconds),
                operator: ssh_session(),
                force: false,
            };
            entered(&reader, &request).await
        }
    };
    let text = answered.unwrap_or_else(|error| format!("Failed: {error}"));
    // Fails if the screen is closed.
    let _result = messages
        .send(ScreenEvent::Answer(Shown::new(title, text)))
        .await;
}

async fn explained(reader: &GuardReader, question: &ExplainRequest) -> Result<String, ClientError> {
    let explanation = reader.client.explain(question).await?;
    Ok(explain::describe(&explanation).unwrap_or_default())
}

async fn entered(reader: &GuardReader, request: &EntryRequest) -> Result<String, ClientError> {
    let Changed { done, not_kept } = reader.client.enter_silently(request).await?;
    let mut text = format!("In force: {}", super::entries::entered(&done));
    if let Some(not_kept) = not_kept {
        text += &format!("\nLOST AT THE AGENT'S NEXT START: {not_kept}");
    }
    Ok(text)
}
