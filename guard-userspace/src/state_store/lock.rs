//! The locks of the state store: one agent claims it for its lifetime, and one process writes it at a time.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    libc,
};
use tracing::warn;

use super::{StoreError, folder};
use crate::host::claim::{Claim, wait_for_claim};

const FILE: &str = "lock";

/// How long a writer waits for another. If the other is stopped in the middle, its lock is ignored after this time:
/// when it continues, compare-and-swap keeps it from overwriting a newer file.
const PATIENCE_OF_WRITERS: Duration = Duration::from_millis(500);

const STEP: Duration = Duration::from_millis(20);

/// Claims the state store for this agent. `None`: there is no file to lock, and none can be created. Then no state can
/// be written there either, and the claim on the pins prevents a second agent.
///
/// # Errors
/// Another agent has the claim, and does not release it.
pub async fn take(place: &Path) -> Result<Option<Claim>, StoreError> {
    // An error of the folder is reported when the state is written.
    let _result = folder::make(place);
    let path = place.join(FILE);
    if let Err(error) = open(&path) {
        warn!("{}: {error}: the state is not locked", path.display());
        return Ok(None);
    }
    let turn = wait_for_claim(|| open(&path).and_then(Claim::take)).await;
    match turn {
        Ok(Some(turn)) => Ok(Some(turn)),
        Ok(None) => Err(StoreError::Taken(place.display().to_string())),
        // The file system has no locks.
        Err(error) => {
            warn!("{}: {error}: the state is not locked", path.display());
            Ok(None)
        }
    }
}

/// Opens the file to lock. Other users must not be able to open it, because they could lock it. On a read-only file
/// system, an existing file is opened.
fn open(path: &Path) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    // O_NONBLOCK: if a pipe is in its place, the call must not wait for a writer.
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let mut writing = options.clone();
    writing.write(true).create(true).mode(0o600);
    writing.open(path).or_else(|error| {
        let existing = options.open(path);
        existing.map_err(|_| error)
    })
}

fn lock(file: fs::File) -> io::Result<Flock<fs::File>> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => io::ErrorKind::WouldBlock.into(),
        error => error.into(),
    })
}

/// Takes the lock of writers. It is on the folder, so that it needs no room on the disk. `None`: another writer has it
/// and does not continue, or the file system has no locks.
pub fn for_writing(folder: &Path) -> Option<Flock<fs::File>> {
    let start = Instant::now();
    loop {
        match fs::File::open(folder).and_then(lock) {
            Ok(turn) => return Some(turn),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return None,
            Err(_) if start.elapsed() >= PATIENCE_OF_WRITERS => return None,
            Err(_) => thread::sleep(STEP),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tokio::time::sleep;

    use super::*;

    #[tokio::test]
    async fn an_agent_that_starts_waits_for_one_that_ends_and_not_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let first = take(folder.path()).await.unwrap();
        assert!(first.is_some());
        let mode = fs::metadata(folder.path().join(FILE))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        let ends = async {
            sleep(Duration::from_millis(300)).await;
            drop(first);
        };
        let (second, ()) = tokio::join!(take(folder.path()), ends);
        let second = second.unwrap();
        assert!(second.is_some());
        let third = take(folder.path()).await;
        assert!(matches!(third, Err(StoreError::Taken(_))), "{third:?}");
    }

    #[tokio::test]
    async fn an_agent_starts_without_a_lock_where_none_can_be_created() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(take(&file.join("state")).await.unwrap().is_none());
    }
}
