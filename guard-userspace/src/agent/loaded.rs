//! A policy and where it came from.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use tracing::warn;

use crate::{
    policy::{AllowedFile, KernelTick, Policy, PolicyError, read_file},
    state_store::StoredState,
};

#[derive(Clone, Debug)]
pub struct Loaded {
    pub policy: Arc<Policy>,
    pub text: Arc<str>,
    pub path: PathBuf,
    pub at: Timestamp,
    /// Why this is not what the file says, if it is not.
    pub stale: Option<String>,
}

impl Loaded {
    pub fn read(path: &Path, clock: KernelTick) -> Result<Self, PolicyError> {
        let bytes = read_file(path, AllowedFile::Regular)?;
        // What is no text is refused with its line.
        let policy = Policy::from_bytes(&bytes, &path.display().to_string(), clock)?;
        Ok(Self {
            policy: Arc::new(policy),
            text: String::from_utf8_lossy(&bytes).into(),
            path: path.to_owned(),
            at: Timestamp::now(),
            stale: None,
        })
    }

    pub fn parse(text: Arc<str>, path: &Path, clock: KernelTick) -> Result<Self, PolicyError> {
        Ok(Self {
            policy: Arc::new(Policy::parse(&text, &path.display().to_string(), clock)?),
            text,
            path: path.to_owned(),
            at: Timestamp::now(),
            stale: None,
        })
    }

    /// The policy that an agent starts with: that of the file, unless it is broken or was tried and not
    /// confirmed. Then the one that was in force last goes on, and the agent says so.
    pub fn at_start(
        path: &Path,
        kept: &StoredState,
        clock: KernelTick,
    ) -> Result<Self, PolicyError> {
        let read = Self::read(path, clock);
        let trouble = match &read {
            Ok(loaded) if kept.refused.contains(&loaded.policy.sha256) => {
                "it was tried and not confirmed (`guard reload` puts it in force all the same)"
                    .to_owned()
            }
            Ok(_) => return read,
            Err(error) => error.to_string(),
        };
        let last = kept.policy.as_ref().filter(|policy| policy.path == path);
        let last = last.and_then(|last| Self::parse(Arc::clone(&last.text), path, clock).ok());
        let Some(mut last) = last else {
            return read;
        };
        warn!(
            "{}: the policy that was in force last is used instead of the file: {trouble}",
            path.display()
        );
        last.stale = Some(trouble);
        Ok(last)
    }
}
