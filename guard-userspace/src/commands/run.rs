//! `guard run`: runs the agent in the foreground.

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

use super::{AgentLocation, DEFAULT_POLICY, Failure};
use crate::{
    agent::{Agent, AgentPaths, ChangeError},
    api::{
        Changed, Reload, listen,
        server::{ApiState, ControlSocket},
    },
    dataplane::{Force, require_capabilities},
    privileges, web,
};

#[derive(Debug, Args)]
pub struct RunCommand {
    /// The policy file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_POLICY)]
    policy: PathBuf,
    /// Detach other XDP programs from the interfaces, and start even if the policy closes your own way in
    #[arg(long)]
    force: bool,
}

/// How often systemd's watchdog gets its keep-alive.
const WATCHDOG_INTERVAL: Duration = Duration::from_secs(1);

impl RunCommand {
    pub async fn run(self, location: &AgentLocation) -> Result<(), Failure> {
        let Self { policy, force } = self;
        log_to_stderr();
        require_capabilities().map_err(anyhow::Error::from)?;
        // The handlers come first, so that no signal ends the process in the middle of attaching.
        let signals = Signals::new()?;
        let socket = ControlSocket::bind(&location.socket)
            .await
            .map_err(anyhow::Error::from)?;
        let places = AgentPaths {
            policy,
            pins: location.pins.clone(),
            state: location.state.clone(),
        };
        let force = if force { Force::Yes } else { Force::No };
        let (agent, ended) = match Agent::start(places, force).await {
            // The operator detached the guard: exit 0, so that a service manager does not start it again.
            Err(stays_off @ ChangeError::StaysDetached) => {
                warn!("{stays_off}");
                return Ok(());
            }
            started => started?,
        };
        listen::raise_file_limit();
        privileges::keep_only_needed();
        let served = ApiState::new(agent.clone());
        let is_asked_to_detach = Arc::clone(&served.is_asked_to_detach);
        notify(&[NotifyState::Ready]);
        let why = tokio::select! {
            () = socket.serve(served) => "the control socket is closed",
            () = web::serve(agent.clone()) => "the web server has ended",
            () = agent.follow_talkers() => "reading the talkers has ended",
            // An agent that hangs cannot end in order: the exit lets a service manager start another.
            () = feed_watchdog(&agent) => return Err(anyhow::anyhow!("the agent hangs").into()),
            _ = ended => "detached",
            signal = signals.wait(&agent) => signal,
        };
        notify(&[NotifyState::Stopping]);
        info!("{why}: ending");
        if is_asked_to_detach.load(Ordering::Acquire) {
            sleep(ANSWER_TIME).await;
        }
        Ok(agent.end().await?)
    }
}

/// How long the process lives on after `POST /v1/detach`, so that the client gets the answer: its connection ends with
/// this process.
const ANSWER_TIME: Duration = Duration::from_millis(100);

fn notify(state: &[NotifyState<'_>]) {
    // Fails if systemd did not start the process, which is no error.
    let _result = sd_notify::notify(state);
}

/// Sends systemd's keep-alive while the agent's loop makes progress, also while it loads a program. Returns if the loop
/// hangs.
async fn feed_watchdog(agent: &Agent) {
    let mut beat = interval(WATCHDOG_INTERVAL);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        if !agent.is_alive() {
            return;
        }
        notify(&[NotifyState::Watchdog]);
    }
}

/// The signals that the agent handles.
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
    async fn wait(mut self, agent: &Agent) -> &'static str {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.hangup.recv() => match agent.reload(Reload::default()).await {
                    Ok(Changed { done, .. }) => info!(generation = done.generation, "SIGHUP: reloaded"),
                    Err(ChangeError::Policy(problem)) => {
                        error!("SIGHUP: {problem}: the previous policy stays in force");
                    }
                    Err(problem) => {
                        error!("SIGHUP: not reloaded: {problem}: the previous policy stays in force");
                    }
                },
            }
        }
    }
}

/// Logs to standard error, at the level of `RUST_LOG`; at `info` if that is not set.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
}
