//! Who has the state: one agent for as long as it lives, and one writer at a time.

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
use crate::host::claim::{Claim, patiently};

const FILE: &str = "lock";

/// How long a writer waits for another. One that has stopped in the middle holds nobody up for longer: what
/// it writes when it goes on is compared with what it finds.
const PATIENCE_OF_WRITERS: Duration = Duration::from_millis(500);

const STEP: Duration = Duration::from_millis(20);

/// Takes the state of an agent for this one. `None`: there is no file to lock, and none can be made; then
/// nothing can be written there either, and the pins keep other agents away.
///
/// # Errors
/// Another agent has it, and does not give it up.
pub async fn take(place: &Path) -> Result<Option<Claim>, StoreError> {
    // What is wrong with the folder is told when it is written to.
    let _result = folder::make(place);
    let path = place.join(FILE);
    if let Err(error) = open(&path) {
        warn!("{}: {error}: the state is not locked", path.display());
        return Ok(None);
    }
    let turn = patiently(|| open(&path).and_then(Claim::take)).await;
    match turn {
        Ok(Some(turn)) => Ok(Some(turn)),
        Ok(None) => Err(StoreError::Taken(place.display().to_string())),
        // A file system without locks.
        Err(error) => {
            warn!("{}: {error}: the state is not locked", path.display());
            Ok(None)
        }
    }
}

/// Opens the file to lock, which nobody else may open: who can, can lock it. On a read-only file system
/// one that is there will do.
fn open(path: &Path) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    // A pipe in its place must not wait for a writer.
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

/// A writer's turn. It is on the folder, so that it needs no room on the disk. `None`: somebody else has it
/// and does not go on, or there is no such lock here.
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
    async fn where_nothing_can_be_locked_an_agent_goes_on_without() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(take(&file.join("state")).await.unwrap().is_none());
    }
}
