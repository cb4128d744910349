//! Collects the errors of changes that consist of several steps.

use std::io;

use guard_host::causes::io_error;

use super::LoadError;

/// The first error of several steps, all of which are carried out.
#[derive(Default)]
pub struct FirstError(Option<LoadError>);

impl FirstError {
    pub fn take(&mut self, step: Result<(), LoadError>) {
        if let Err(error) = step {
            self.0.get_or_insert(error);
        }
    }

    pub fn is_well(&self) -> bool {
        self.0.is_none()
    }

    pub fn end(self) -> Result<(), LoadError> {
        self.0.map_or(Ok(()), Err)
    }
}

/// Ignores ENOENT: an entry that found no room need not be removed.
pub fn gone(removed: Result<(), LoadError>) -> Result<(), LoadError> {
    match &removed {
        Err(error) if raw_os_error(error) == Some(NOT_THERE) => Ok(()),
        _ => removed,
    }
}

/// ENOENT.
const NOT_THERE: i32 = 2;

pub fn raw_os_error(error: &LoadError) -> Option<i32> {
    io_error(error).and_then(io::Error::raw_os_error)
}
