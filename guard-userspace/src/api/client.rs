//! The command line's end of the control API.

use std::{os::unix::net::UnixStream, path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use reqwest::RequestBuilder;
use serde::de::DeserializeOwned;

use super::{Counter, ErrorBody, Question, Status, Talker};
use crate::{causes::innermost, explain::Explanation};

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

    pub async fn talkers(&self) -> Result<Vec<Talker>> {
        self.get("talkers").await
    }

    pub async fn explain(&self, question: &Question) -> Result<Explanation> {
        let request = self.http.get(address("explain")).query(question);
        self.answer(request).await
    }

    /// Whether somebody listens on the socket.
    pub fn has_agent(&self) -> bool {
        UnixStream::connect(&self.socket).is_ok()
    }

    async fn get<T: DeserializeOwned>(&self, resource: &str) -> Result<T> {
        self.answer(self.http.get(address(resource))).await
    }

    async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        let Self { http: _, socket } = self;
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

/// The host's name is of no account on a socket.
fn address(resource: &str) -> String {
    format!("http://guard/v1/{resource}")
}
