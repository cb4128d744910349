//! Reads the status and the counters from the agent, or from the pins if no agent answers.

use std::path::Path;

use super::AgentLocation;
use crate::{
    api::{
        Counter, Status, Talker,
        client::{Client, ClientError},
    },
    dataplane::pins::PinError,
    without_agent,
};

/// A reader with the paths of both.
pub struct GuardReader {
    pub client: Client,
    pins: std::path::PathBuf,
}

impl GuardReader {
    pub fn new(location: &AgentLocation) -> Result<Self, ClientError> {
        Ok(Self {
            client: location.client()?,
            pins: location.pins.clone(),
        })
    }

    pub async fn status(&self) -> Result<Status, ClientError> {
        let error = match self.client.status().await {
            Err(error) if error.is_without_agent() => error,
            status => return status,
        };
        let trouble = match &error {
            ClientError::Silent { .. } => "it hangs",
            _ => "it is dead",
        };
        let status = without_agent::status(&self.pins, trouble.to_owned());
        match (error, status) {
            (ClientError::Absent { socket, reason }, Ok(None)) => Err(ClientError::NotAttached {
                pins: self.pins.display().to_string(),
                socket,
                reason,
            }),
            (error, status) => pinned_or(error, status),
        }
    }

    pub async fn counters(&self) -> Result<Vec<Counter>, ClientError> {
        self.or_pinned(self.client.counters().await, without_agent::counters)
    }

    pub async fn talkers(&self) -> Result<Vec<Talker>, ClientError> {
        self.or_pinned(self.client.talkers().await, without_agent::talkers)
    }

    fn or_pinned<T>(
        &self,
        answer: Result<T, ClientError>,
        pinned: impl FnOnce(&Path) -> anyhow::Result<Option<T>>,
    ) -> Result<T, ClientError> {
        match answer {
            Err(error) if error.is_without_agent() => pinned_or(error, pinned(&self.pins)),
            answer => answer,
        }
    }
}

/// Returns the value read from the pins. Without one, returns the agent's error, extended if this user may not read the
/// pins.
fn pinned_or<T>(
    no_agent: ClientError,
    pinned: anyhow::Result<Option<T>>,
) -> Result<T, ClientError> {
    let problem = match pinned {
        Ok(Some(found)) => return Ok(found),
        Ok(None) => return Err(no_agent),
        Err(problem) => problem,
    };
    match (no_agent, problem.downcast_ref()) {
        (ClientError::Absent { socket, reason }, Some(refusal @ PinError::NotPermitted(_))) => {
            Err(ClientError::PinsNotReadable {
                socket,
                reason,
                refusal: refusal.to_string(),
            })
        }
        (no_agent, _) => Err(no_agent),
    }
}
