//! Reads the programs that the kernel has on its interfaces, for readers that must not wait.
//!
//! Reading them takes the kernel's lock of all interfaces (rtnl). It may be held for seconds while a driver loads a
//! program or an interface is removed. If the kernel does not answer soon, a reader gets the last reading.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tokio::time::timeout;

use crate::{
    host::{ReadError, XdpState, read},
    privileges,
};

/// How long a reader waits for the kernel: `SOON` while the last reading is younger than [`OLD`], `AT_MOST` otherwise.
const SOON: Duration = Duration::from_millis(25);
const AT_MOST: Duration = Duration::from_secs(1);

/// From this age on, the last reading is no proof that the guard enforces.
pub const OLD: Duration = Duration::from_secs(5);

/// The limit of concurrent readings: each one blocks a thread until the kernel answers.
const MOST_READINGS: usize = 4;

/// Programs by the index of their interface.
pub type AttachedPrograms = BTreeMap<u32, XdpState>;

/// A reading of the programs on the interfaces.
#[derive(Clone, Debug)]
pub struct AttachedAt {
    pub programs: Arc<AttachedPrograms>,
    /// When the reading began.
    pub at: Instant,
}

/// When a reading began, and its result.
type LastReading = (Instant, Arc<AttachedPrograms>);

type ReadPrograms = dyn Fn() -> Result<AttachedPrograms, ReadError> + Send + Sync;

/// Reads the attached programs, and remembers the last reading.
#[derive(Clone)]
pub struct AttachedReader {
    read: Arc<ReadPrograms>,
    last: Arc<Mutex<Option<LastReading>>>,
    under_way: Arc<AtomicUsize>,
}

impl AttachedReader {
    pub fn of_this_host() -> Self {
        Self::new(|| {
            let links = read::links()?.into_values();
            let programs = links.filter_map(|link| Some((link.index, link.xdp?)));
            Ok(programs.collect())
        })
    }

    fn new(read: impl Fn() -> Result<AttachedPrograms, ReadError> + Send + Sync + 'static) -> Self {
        Self {
            read: Arc::new(read),
            last: Arc::default(),
            under_way: Arc::default(),
        }
    }

    /// Starts a reading without waiting for it, so that the next reader has a recent value.
    pub fn refresh(&self) {
        drop(self.start());
    }

    /// The programs that are attached now, or the last reading if the kernel does not answer in time.
    ///
    /// # Errors
    /// The interfaces cannot be read, or the kernel does not answer and there is no earlier reading.
    pub async fn read(&self) -> Result<AttachedAt> {
        let age = self.last().map(|(at, _)| at.elapsed());
        let patience = match age {
            Some(age) if age < OLD => SOON,
            _ => AT_MOST,
        };
        if let Some(reading) = self.start()
            && let Ok(read) = timeout(patience, reading).await
        {
            let (at, programs) = read?.context("this host's interfaces cannot be read")?;
            return Ok(AttachedAt { programs, at });
        }
        let Some((at, programs)) = self.last() else {
            bail!("this host's interfaces cannot be read: the kernel does not answer");
        };
        Ok(AttachedAt { programs, at })
    }

    fn last(&self) -> Option<LastReading> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()
    }

    /// `None`: [`MOST_READINGS`] readings are already waiting for the kernel.
    fn start(&self) -> Option<tokio::task::JoinHandle<Result<LastReading, ReadError>>> {
        let Self {
            read,
            last,
            under_way,
        } = self.clone();
        if under_way.fetch_add(1, Ordering::Relaxed) >= MOST_READINGS {
            under_way.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(privileges::spawn_blocking(move || {
            let at = Instant::now();
            let found = read().map(|found| (at, Arc::new(found)));
            if let Ok(found) = &found {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                if last.as_ref().is_none_or(|(newest, _)| *newest < at) {
                    *last = Some(found.clone());
                }
            }
            under_way.fetch_sub(1, Ordering::Release);
            found
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    fn programs(id: u32) -> AttachedPrograms {
        let program = XdpState {
            program_id: id,
            native: true,
        };
        [(2, program)].into()
    }

    #[tokio::test]
    async fn a_reader_gets_the_last_reading_while_the_kernel_does_not_answer() {
        let (answer, answers) = channel();
        let answers: Mutex<Receiver<Result<AttachedPrograms, ReadError>>> = Mutex::new(answers);
        let reader = AttachedReader::new(move || answers.lock().unwrap().recv().unwrap());
        answer.send(Ok(programs(7))).unwrap();
        assert_eq!(*reader.read().await.unwrap().programs, programs(7));

        // More readers than may wait for the kernel: each one gets the last reading.
        for _ in 0..2 * MOST_READINGS {
            let found = reader.read().await.unwrap();
            assert_eq!(*found.programs, programs(7));
            assert!(found.at.elapsed() < OLD, "it is a moment old");
        }
        // A late answer of the kernel is there for the next reader.
        for _ in 0..MOST_READINGS {
            answer.send(Ok(programs(8))).unwrap();
        }
        while reader.under_way.load(Ordering::Acquire) > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(*reader.last().unwrap().1, programs(8));
        answer
            .send(Err(std::io::Error::other("no memory").into()))
            .unwrap();
        let failed = reader.read().await.unwrap_err();
        assert!(format!("{failed:#}").contains("no memory"), "{failed:#}");
        drop(answer);
    }

    #[tokio::test]
    async fn an_old_reading_is_returned_with_its_age() {
        let (_never, answers) = channel::<()>();
        let answers = Mutex::new(answers);
        let reader = AttachedReader::new(move || {
            let _result = answers.lock().unwrap().recv();
            Ok(programs(9))
        });
        let long_ago = Instant::now().checked_sub(2 * OLD).unwrap();
        *reader.last.lock().unwrap() = Some((long_ago, Arc::new(programs(7))));
        let found = reader.read().await.unwrap();
        assert_eq!(*found.programs, programs(7));
        assert!(found.at.elapsed() >= OLD);
        drop(_never);
    }
}
