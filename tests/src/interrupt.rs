//! Ctrl-C. The signal handler only sets a flag. Functions that wait check it and return an error, so that every owner
//! is dropped and cleans up.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};

static RAISED: AtomicBool = AtomicBool::new(false);

/// Sets the flag; called by the signal handler.
pub fn raise() {
    RAISED.store(true, Ordering::Relaxed);
}

/// Whether the run was interrupted.
pub fn is_raised() -> bool {
    RAISED.load(Ordering::Relaxed)
}

/// Returns an error if the user has interrupted.
pub fn check() -> Result<()> {
    if is_raised() {
        bail!("interrupted");
    }
    Ok(())
}
