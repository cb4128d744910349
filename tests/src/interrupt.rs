//! Ctrl-C. The handler only says so; whoever waits for something in the lab looks, and gives up in the
//! ordinary way, so that everything is removed by its owner.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};

static RAISED: AtomicBool = AtomicBool::new(false);

/// For the signal handler.
pub fn raise() {
    RAISED.store(true, Ordering::Relaxed);
}

pub fn is_raised() -> bool {
    RAISED.load(Ordering::Relaxed)
}

/// An error if the user wants no more.
pub fn check() -> Result<()> {
    if is_raised() {
        bail!("interrupted");
    }
    Ok(())
}
