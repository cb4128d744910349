//! `guard run`: the agent in the foreground.

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
    /// Take another XDP program off the interfaces, and close your own way in if the policy does
    #[arg(long)]
    force: bool,
}

/// How often systemd's watchdog is fed.
const BEAT: Duration = Duration::from_secs(1);

impl RunCommand {
    pub async fn run(self, whereabouts: &AgentLocation) -> Result<(), Failure> {
        let Self { policy, force } = self;
        log_to_stderr();
        require_capabilities().map_err(anyhow::Error::from)?;
        // Asked for before anything is attached, so that no signal finds the guard half done.
        let signals = Signals::new()?;
        let socket = ControlSocket::bind(&whereabouts.socket)
            .await
            .map_err(anyhow::Error::from)?;
        let places = AgentPaths {
            policy,
            pins: whereabouts.pins.clone(),
            state: whereabouts.state.clone(),
        };
        let force = if force { Force::Yes } else { Force::No };
        let (agent, ended) = match Agent::start(places, force).await {
            // It is as it was asked for: a service manager does not try again.
            Err(stays_off @ ChangeError::StaysOff) => {
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
            () = web::serve(agent.clone()) => "no server is left",
            () = agent.follow_talkers() => "the talkers are not read any more",
            // Nothing can be waited for: a service manager starts another.
            () = feed_watchdog(&agent) => return Err(anyhow::anyhow!("the agent hangs").into()),
            _ = ended => "taken off",
            signal = signals.wait(&agent) => signal,
        };
        notify(&[NotifyState::Stopping]);
        info!("{why}: ending");
        if is_asked_to_detach.load(Ordering::Acquire) {
            sleep(ANSWERING).await;
        }
        Ok(agent.end().await?)
    }
}

/// How long a client that asked for the end over the socket has to get the answer: its connection ends with this
/// process.
const ANSWERING: Duration = Duration::from_millis(100);

fn notify(state: &[NotifyState<'_>]) {
    // Nobody listens unless systemd started it.
    let _result = sd_notify::notify(state);
}

/// Tells systemd that the agent goes on, for as long as it does: while it loads a program, too. Returns once it hangs.
async fn feed_watchdog(agent: &Agent) {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        if !agent.is_alive() {
            return;
        }
        notify(&[NotifyState::Watchdog]);
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
    async fn wait(mut self, agent: &Agent) -> &'static str {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.hangup.recv() => match agent.reload(Reload::default()).await {
                    Ok(Changed { done, .. }) => info!(generation = done.generation, "SIGHUP: reloaded"),
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
