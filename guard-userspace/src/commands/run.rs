//! `guard run`: the agent in the foreground.

use std::{
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;

use super::{DEFAULT_POLICY, Failure, read_policy};
use crate::{agent::Agent, api::server::ControlSocket, host, policy::Policy};

#[derive(Debug, Args)]
pub struct Run {
    /// The policy file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_POLICY)]
    policy: PathBuf,
}

impl Run {
    pub async fn run(self, socket: &Path) -> Result<(), Failure> {
        let Self { policy: path } = self;
        log_to_stderr();
        let policy = read_policy(&path)?;
        // Asked for before anything is attached, so that no signal finds the guard half done.
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let shutdown = async move {
            tokio::select! {
                _ = interrupt.recv() => "SIGINT",
                _ = terminate.recv() => "SIGTERM",
            }
        };
        tokio::select! {
            ended = guard(policy, &path, socket) => Ok(ended?),
            signal = shutdown => {
                // Dropping the agent takes its programs off.
                info!("{signal}: detaching");
                Ok(())
            }
        }
    }
}

/// Guards until something fails.
async fn guard(policy: Policy, path: &Path, socket: &Path) -> anyhow::Result<()> {
    host::require_capabilities()?;
    let socket = ControlSocket::bind(socket).await?;
    let agent = Arc::new(Agent::start(policy, path).await?);
    socket
        .serve(agent)
        .await
        .context("the control socket fails")
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
