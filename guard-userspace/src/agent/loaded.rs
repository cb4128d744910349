//! A policy and its source.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use tracing::warn;

use crate::{
    difference::fingerprint,
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
    /// The hash of its keys and values: see [`fingerprint`].
    pub fingerprint: String,
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
        Ok(Self::new(
            policy,
            String::from_utf8_lossy(&bytes).into(),
            path,
        ))
    }

    /// A policy from the text of a file that was read before.
    pub fn parse(text: Arc<str>, path: &Path, clock: KernelTick) -> Result<Self, PolicyError> {
        let policy = Policy::parse(&text, &path.display().to_string(), clock)?;
        Ok(Self::new(policy, text, path))
    }

    /// A policy that was parsed from this text of the file.
    pub fn new(policy: Policy, text: Arc<str>, path: &Path) -> Self {
        Self {
            policy: Arc::new(policy),
            fingerprint: fingerprint(&text),
            text,
            path: path.to_owned(),
            at: Timestamp::now(),
        }
    }

    /// The policy with which an agent starts: the policy file, unless it is invalid or was tried and not confirmed. In
    /// that case the last policy in force is used, and a warning says so. The status compares the file by itself.
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
        let Some(last) = last else {
            return read;
        };
        warn!(
            "{}: the last policy in force is used instead of the file: {trouble}",
            path.display()
        );
        Ok(last)
    }
}
