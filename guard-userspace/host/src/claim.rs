//! Locks on the files and folders that belong to one agent at a time: its state store, its pins. The kernel releases a
//! lock when the process ends, however it ends. Other agents can test whether the owner is at work or about to end.

use std::{
    fs::File,
    io,
    ops::Deref,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, Flock, FlockArg, fcntl},
    libc,
};
use tokio::time::sleep;
use tracing::info;

/// How long an agent that starts waits for another one.
#[derive(Clone, Copy, Debug)]
struct ClaimPatience {
    /// If the other agent is at work. It may be told to end at this moment.
    at_work: Duration,
    /// If the other agent is about to end. It may be in the middle of a load.
    ending: Duration,
}

/// Both are less than the time that the systemd unit has to start (TimeoutStartSec).
const PATIENCE: ClaimPatience = ClaimPatience {
    at_work: Duration::from_secs(5),
    ending: Duration::from_secs(45),
};

const STEP: Duration = Duration::from_millis(20);

/// A file or a folder that is locked for one agent.
#[derive(Debug)]
pub struct Claim(Flock<File>);

/// The result of an attempt to lock something.
#[derive(Debug)]
pub enum ClaimAttempt<T> {
    Taken(T),
    /// Another agent has it, and is at work.
    AtWork,
    /// Another agent has it, and is about to end.
    Ending,
}

impl<T> ClaimAttempt<T> {
    /// Changes what was locked.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> ClaimAttempt<U> {
        match self {
            Self::Taken(taken) => ClaimAttempt::Taken(change(taken)),
            Self::AtWork => ClaimAttempt::AtWork,
            Self::Ending => ClaimAttempt::Ending,
        }
    }
}

impl Claim {
    /// Locks an open file or folder.
    ///
    /// # Errors
    /// The file system does not support locks.
    pub fn take(file: File) -> io::Result<ClaimAttempt<Self>> {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => {
                // An error is ignored: without the mark, another agent waits longer than it needs to.
                let _result = fcntl(locked.as_fd(), FcntlArg::F_OFD_SETLK(&mark(libc::F_RDLCK)));
                Ok(ClaimAttempt::Taken(Self(locked)))
            }
            Err((file, Errno::EWOULDBLOCK)) => {
                let mut found = mark(libc::F_WRLCK);
                fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut found))?;
                Ok(match found.l_type {
                    UNLOCKED => ClaimAttempt::Ending,
                    _ => ClaimAttempt::AtWork,
                })
            }
            Err((_, error)) => Err(error.into()),
        }
    }

    /// Returns the mark that this agent is at work. Dropping it tells other agents that this one is about to end.
    ///
    /// # Errors
    /// The process has too many open files.
    pub fn work_mark(&self) -> io::Result<WorkMark> {
        Ok(WorkMark(self.try_clone()?))
    }
}

impl Deref for Claim {
    type Target = File;

    fn deref(&self) -> &File {
        let Self(locked) = self;
        locked
    }
}

/// The mark that the owner of a claim is at work, until it is dropped.
#[derive(Debug)]
pub struct WorkMark(File);

impl Drop for WorkMark {
    fn drop(&mut self) {
        let Self(file) = self;
        let _result = fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&mark(libc::F_UNLCK)));
    }
}

#[expect(clippy::cast_possible_truncation, reason = "F_UNLCK is 2")]
const UNLOCKED: libc::c_short = libc::F_UNLCK as libc::c_short;

/// The mark is a second lock on the whole file, of another kind. Like the first, it belongs to the open file
/// description (F_OFD_SETLK, Linux 3.15).
fn mark(kind: libc::c_int) -> libc::flock {
    libc::flock {
        #[expect(clippy::cast_possible_truncation, reason = "these are 0 to 2")]
        l_type: kind as libc::c_short,
        #[expect(clippy::cast_possible_truncation, reason = "it is 0")]
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Tries to lock something until another agent has given it up. `None`: the other agent keeps it for too long.
pub async fn wait_for_claim<T, E>(
    attempt: impl FnMut() -> Result<ClaimAttempt<T>, E>,
) -> Result<Option<T>, E> {
    PATIENCE.wait_for(attempt).await
}

impl ClaimPatience {
    async fn wait_for<T, E>(
        self,
        mut attempt: impl FnMut() -> Result<ClaimAttempt<T>, E>,
    ) -> Result<Option<T>, E> {
        let start = Instant::now();
        let mut logged = "";
        loop {
            let (patience, state) = match attempt()? {
                ClaimAttempt::Taken(taken) => return Ok(Some(taken)),
                ClaimAttempt::AtWork => (self.at_work, "at work"),
                ClaimAttempt::Ending => (self.ending, "about to end"),
            };
            if start.elapsed() >= patience {
                return Ok(None);
            }
            if logged != state {
                info!("another agent is {state}: waiting for its end");
                logged = state;
            }
            sleep(STEP).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, path::Path};

    use super::*;

    fn take(path: &Path) -> ClaimAttempt<Claim> {
        Claim::take(File::open(path).unwrap()).unwrap()
    }

    #[test]
    fn others_see_whether_an_agent_is_at_work_or_about_to_end() {
        let folder = tempfile::tempdir().unwrap();
        let ClaimAttempt::Taken(claim) = take(folder.path()) else {
            panic!("nobody else has it");
        };
        assert!(matches!(take(folder.path()), ClaimAttempt::AtWork));
        let work = claim.work_mark().unwrap();
        assert!(matches!(take(folder.path()), ClaimAttempt::AtWork));
        drop(work);
        assert!(matches!(take(folder.path()), ClaimAttempt::Ending));
        drop(claim);
        assert!(matches!(take(folder.path()), ClaimAttempt::Taken(_)));
    }

    #[test]
    fn a_test_by_another_agent_releases_no_lock() {
        let folder = tempfile::tempdir().unwrap();
        let ClaimAttempt::Taken(claim) = take(folder.path()) else {
            panic!("nobody else has it");
        };
        for _ in 0..3 {
            assert!(matches!(take(folder.path()), ClaimAttempt::AtWork));
        }
        drop(claim);
    }

    /// Whether an agent that starts gets the lock while another agent goes through these states.
    async fn is_got(
        patience: ClaimPatience,
        states: impl IntoIterator<Item = ClaimAttempt<()>>,
    ) -> bool {
        let mut states = states.into_iter();
        let next = || Ok::<_, Infallible>(states.next().unwrap_or(ClaimAttempt::Taken(())));
        patience.wait_for(next).await.unwrap().is_some()
    }

    #[tokio::test]
    async fn an_agent_that_starts_waits_by_the_state_of_the_other_agent() {
        let (never, long) = (Duration::ZERO, Duration::from_secs(600));
        let for_the_end = ClaimPatience {
            at_work: never,
            ending: long,
        };
        assert!(!is_got(for_the_end, [ClaimAttempt::AtWork]).await);
        assert!(is_got(for_the_end, [ClaimAttempt::Ending, ClaimAttempt::Ending]).await);
        let in_general = ClaimPatience {
            at_work: long,
            ending: never,
        };
        assert!(!is_got(in_general, [ClaimAttempt::Ending]).await);
        // The other agent is told to end in the meantime.
        let ends = [ClaimAttempt::AtWork, ClaimAttempt::Ending];
        assert!(!is_got(in_general, ends).await);
        assert!(is_got(in_general, [ClaimAttempt::AtWork]).await);
        assert!(PATIENCE.at_work < PATIENCE.ending);
    }
}
