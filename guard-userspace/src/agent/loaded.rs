//! A policy and its source.

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

/// A policy, and the file that it comes from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub policy: Arc<Policy>,
    pub text: Arc<str>,
    pub path: PathBuf,
    pub at: Timestamp,
    /// Why this differs from the policy file, if it does.
    pub stale: Option<String>,
}

impl Loaded {
    /// Reads a policy file.
    ///
    /// # Errors
    /// The file cannot be read, is no regular file, or is no valid policy.
    pub fn read(path: &Path, clock: KernelTick) -> Result<Self, PolicyError> {
        let bytes = read_file(path, AllowedFile::Regular)?;
        // Bytes, not text: a file that is not UTF-8 is refused with the line of the error.
        let policy = Policy::from_bytes(&bytes, &path.display().to_string(), clock)?;
        Ok(Self {
            policy: Arc::new(policy),
            text: String::from_utf8_lossy(&bytes).into(),
            path: path.to_owned(),
            at: Timestamp::now(),
            stale: None,
        })
    }

    /// A policy from the text of a file that was read before.
    pub fn parse(text: Arc<str>, path: &Path, clock: KernelTick) -> Result<Self, PolicyError> {
        Ok(Self {
            policy: Arc::new(Policy::parse(&text, &path.display().to_string(), clock)?),
            text,
            path: path.to_owned(),
            at: Timestamp::now(),
            stale: None,
        })
    }

    /// The policy with which an agent starts: the policy file, unless it is invalid or was tried and not confirmed. In
    /// that case the last policy in force is used, and a warning and the status say so.
    pub fn at_start(
        path: &Path,
        kept: &StoredState,
        clock: KernelTick,
    ) -> Result<Self, PolicyError> {
        let read = Self::read(path, clock);
        let trouble = match &read {
            Ok(loaded) if kept.refused.contains(&loaded.policy.sha256) => {
                "it was tried and not confirmed (`guard reload` puts it in force nevertheless)"
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
            "{}: the last policy in force is used instead of the file: {trouble}",
            path.display()
        );
        last.stale = Some(trouble);
        Ok(last)
    }
}
