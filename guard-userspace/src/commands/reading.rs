//! What the agent says; without one, what the pins say.

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

/// Where both are found.
pub struct GuardReader {
    pub client: Client,
    pins: std::path::PathBuf,
}

impl GuardReader {
    pub fn new(whereabouts: &AgentLocation) -> Result<Self, ClientError> {
        Ok(Self {
            client: whereabouts.client()?,
            pins: whereabouts.pins.clone(),
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
        pinned_or(error, status)
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

/// What the pins say. If they say nothing, it is the agent that is missed, unless they are closed to this user.
fn pinned_or<T>(missed: ClientError, pinned: anyhow::Result<Option<T>>) -> Result<T, ClientError> {
    let problem = match pinned {
        Ok(Some(found)) => return Ok(found),
        Ok(None) => return Err(missed),
        Err(problem) => problem,
    };
    match (missed, problem.downcast_ref()) {
        (ClientError::Absent { socket, reason }, Some(refusal @ PinError::NotPermitted(_))) => {
            Err(ClientError::Unseen {
                socket,
                reason,
                refusal: refusal.to_string(),
            })
        }
        (missed, _) => Err(missed),
    }
}
