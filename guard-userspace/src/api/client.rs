//! The command line's end of the control API.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::de::DeserializeOwned;

use super::{Counter, ErrorBody, Status};

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

pub struct Client {
    http: reqwest::Client,
    socket: String,
}

impl Client {
    pub fn new(socket: &Path) -> Result<Self> {
        Ok(Self {
            http: reqwest::Client::builder()
                .unix_socket(socket)
                .timeout(PATIENCE)
                .build()?,
            socket: socket.display().to_string(),
        })
    }

    pub async fn status(&self) -> Result<Status> {
        self.get("status").await
    }

    pub async fn counters(&self) -> Result<Vec<Counter>> {
        self.get("counters").await
    }

    async fn get<T: DeserializeOwned>(&self, resource: &str) -> Result<T> {
        let Self { http, socket } = self;
        let request = http.get(format!("http://guard/v1/{resource}"));
        let response = request.send().await.map_err(|error| {
            if error.is_timeout() {
                let seconds = PATIENCE.as_secs();
                anyhow!("the agent at {socket} has not answered within {seconds} s")
            } else {
                anyhow!(
                    "no agent answers at {socket} ({}): start one with `guard run`, or name its \
                     socket with --socket",
                    innermost(&error)
                )
            }
        })?;
        if !response.status().is_success() {
            let ErrorBody { error } = response
                .json()
                .await
                .with_context(|| format!("the agent at {socket} speaks another language"))?;
            bail!("the agent at {socket} says: {error}");
        }
        response
            .json()
            .await
            .with_context(|| format!("the agent at {socket} speaks another language"))
    }
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
