//! Changes of tables in several steps, and what became of them.

use std::io;

use guard_host::causes::io_error;

use super::LoadError;

/// What comes first of what goes wrong. The rest is done all the same.
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

/// What is not there need not be removed: it may have found no room.
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
