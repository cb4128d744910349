//! `guard run`: the agent in the foreground.

use std::{
    future::pending,
    io::{self, IsTerminal as _},
    mem,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Mutex, Notify, Semaphore},
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

use super::{DEFAULT_POLICY, Failure, Whereabouts};
use crate::{
    agent::{Agent, ChangeError, Places, Tended},
    api::{
        Reload, listen,
        server::{ControlSocket, Served},
    },
    dataplane::{Force, require_capabilities},
    host::LinkEvents,
    privileges, web,
};

#[derive(Debug, Args)]
pub struct Run {
    /// The policy file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_POLICY)]
    policy: PathBuf,
    /// Take another XDP program off the interfaces, and close your own way in if the policy does
    #[arg(long)]
    force: bool,
}

/// How often the agent looks after everything, and says that it is alive.
const BEAT: Duration = Duration::from_secs(1);

impl Run {
    pub async fn run(self, whereabouts: &Whereabouts) -> Result<(), Failure> {
        let Self { policy, force } = self;
        log_to_stderr();
        require_capabilities().map_err(anyhow::Error::from)?;
        // Asked for before anything is attached, so that no signal finds the guard half done.
        let signals = Signals::new()?;
        let socket = ControlSocket::bind(&whereabouts.socket)
            .await
            .map_err(anyhow::Error::from)?;
        let places = Places {
            policy,
            pins: whereabouts.pins.clone(),
            state: whereabouts.state.clone(),
        };
        let force = if force { Force::Yes } else { Force::No };
        let agent = Agent::start(places, force).await?;
        listen::raise_file_limit();
        privileges::keep_only_needed();
        let agent = Arc::new(Mutex::new(agent));
        let detached = Arc::new(Notify::new());
        let is_asked_to_detach = Arc::new(AtomicBool::new(false));
        let served = Served {
            agent: Arc::clone(&agent),
            capture: Arc::new(Semaphore::new(1)),
            detached: Arc::clone(&detached),
            is_asked_to_detach: Arc::clone(&is_asked_to_detach),
        };
        let tell = |state: &[NotifyState<'_>]| {
            // Nobody listens unless systemd started it.
            let _result = sd_notify::notify(state);
        };
        tell(&[NotifyState::Ready]);
        let ended = tokio::select! {
            () = socket.serve(served) => "the control socket is closed",
            () = web::serve(Arc::clone(&agent)) => "nobody is left to serve",
            () = tend(&agent) => "taken off",
            () = detached.notified() => "taken off",
            signal = signals.wait(&agent) => signal,
        };
        tell(&[NotifyState::Stopping]);
        info!("{ended}: ending");
        if is_asked_to_detach.load(Ordering::Acquire) {
            sleep(ANSWERING).await;
        }
        let mut agent = agent.lock().await;
        let end = agent.end();
        // Nobody changes anything any more.
        mem::forget(agent);
        Ok(end?)
    }
}

/// How long who has asked for the end over the socket has to get the answer: their connection ends with this process.
const ANSWERING: Duration = Duration::from_millis(100);

/// Looks after everything until the guard has been taken off.
async fn tend(agent: &Mutex<Agent>) {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut events = LinkEvents::subscribe()
        .inspect_err(|error| warn!("changes of interfaces are seen late: {error}"))
        .ok();
    let docker_changed = agent.lock().await.docker_changed();
    loop {
        let something_happened = tokio::select! {
            () = docker_changed.notified() => {
                agent.lock().await.take_in_docker().await;
                continue;
            }
            _ = beat.tick() => false,
            () = next(&mut events) => true,
        };
        let tended = agent.lock().await.tend(something_happened).await;
        let _result = sd_notify::notify(&[NotifyState::Watchdog]);
        if tended == Tended::Detached {
            return;
        }
    }
}

async fn next(events: &mut Option<LinkEvents>) {
    match events {
        Some(events) => {
            if events.next().await.is_none() {
                pending().await
            }
        }
        None => pending().await,
    }
}

/// What the agent is told from outside.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("SIGTERM")?,
            hangup: signal(SignalKind::hangup()).context("SIGHUP")?,
        })
    }

    /// Reloads on SIGHUP; returns the signal that ends the agent.
    async fn wait(mut self, agent: &Mutex<Agent>) -> &'static str {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.hangup.recv() => match agent.lock().await.reload(&Reload::default()).await {
                    Ok(applied) => info!(generation = applied.generation, "SIGHUP: reloaded"),
                    Err(ChangeError::Policy(problem)) => {
                        error!("SIGHUP: {problem}: the policy before it stays in force");
                    }
                    Err(problem) => {
                        error!("SIGHUP: not reloaded: {problem}: the policy before it stays in force");
                    }
                },
            }
        }
    }
}

/// Events go to standard error; the level is that of `RUST_LOG`, `info` if unset.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
}
