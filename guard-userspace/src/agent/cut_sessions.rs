//! Finds open sessions that newly published ports of containers close: the operator's own may be among them. One check
//! at a time runs beside the loop. The log and the status name the sessions.

use std::{
    collections::BTreeSet,
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{runtime::Handle as Workers, task::JoinHandle};
use tracing::warn;

use super::plan::Content;
use crate::{
    host::{Host, Netlink},
    lockout,
    policy::PublishedPort,
};

/// The limit of cut sessions that are named.
pub const MAX_CUTS_NAMED: usize = 20;

/// The time after which cut sessions are checked again, because they may have ended. A failed check is repeated after
/// the same time.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct CutSessions {
    /// Ports that containers have published since the agent started, and still do.
    watched: BTreeSet<PublishedPort>,
    is_due: bool,
    /// The last check failed, or it still runs.
    is_unanswered: Arc<AtomicBool>,
    looked: Option<Instant>,
    work: Option<JoinHandle<()>>,
    warnings: Arc<Mutex<Arc<Vec<String>>>>,
}

impl CutSessions {
    /// The warnings of the last check.
    pub fn warnings(&self) -> Arc<Vec<String>> {
        Arc::clone(&self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes in a change of the published ports. A check is due if a watched port is gone or a port is new.
    pub fn follow(&mut self, before: &[PublishedPort], now: &[PublishedPort]) {
        let now: BTreeSet<PublishedPort> = now.iter().copied().collect();
        let before: BTreeSet<PublishedPort> = before.iter().copied().collect();
        let known = self.watched.len();
        self.watched.retain(|port| now.contains(port));
        let is_gone = self.watched.len() < known;
        let mut new = now.difference(&before).copied().peekable();
        self.is_due |= is_gone || new.peek().is_some();
        self.watched.extend(new);
    }

    /// Starts a check if one is due. While a check runs, the next one waits.
    pub fn look(&mut self, workers: &Workers, here: (&Arc<Host>, &Netlink), content: &Content) {
        if self.work.as_ref().is_some_and(|work| !work.is_finished()) {
            return;
        }
        let now = Instant::now();
        if !self.take_due(now) {
            return;
        }
        self.looked = Some(now);
        // Set before the check, so that a check that panics counts as failed.
        let has_failed_before = self.is_unanswered.swap(true, Ordering::Relaxed);
        let is_unanswered = Arc::clone(&self.is_unanswered);
        let ports = self.watched.iter().map(|published| published.port);
        let (ports, content) = (ports.collect(), content.clone());
        let (host, netlink) = (Arc::clone(here.0), here.1.clone());
        let warnings = Arc::clone(&self.warnings);
        self.work = Some(workers.spawn(async move {
            match find(ports, &content, (&host, &netlink)).await {
                Ok(found) => {
                    is_unanswered.store(false, Ordering::Relaxed);
                    let mut warnings = warnings.lock().unwrap_or_else(PoisonError::into_inner);
                    for warning in found.iter().filter(|found| !warnings.contains(found)) {
                        warn!("{warning}");
                    }
                    *warnings = Arc::new(found);
                }
                // Of several failures in a row, only the first is logged.
                Err(error) if !has_failed_before => warn!(
                    "open sessions cannot be checked against the ports of containers: {error:#}; next try in {} s",
                    PATIENCE.as_secs()
                ),
                Err(_) => {}
            }
        }));
    }

    /// Whether a check is due, if none runs. Resets the reason.
    fn take_due(&mut self, now: Instant) -> bool {
        let looked = self.looked;
        let is_old = looked.is_none_or(|looked| now.duration_since(looked) >= PATIENCE);
        let has_failed = self.is_unanswered.load(Ordering::Relaxed);
        let is_told = !self.warnings().is_empty();
        mem::take(&mut self.is_due) || is_old && (has_failed || is_told)
    }
}

async fn find(
    ports: BTreeSet<u16>,
    content: &Content,
    here: (&Host, &Netlink),
) -> anyhow::Result<Vec<String>> {
    let (containers, entries) = (&content.containers, &content.entries);
    let found = lockout::at_ports(&content.policy, containers, entries, here, ports).await?;
    let sessions = found.cut.iter().filter(|cut| cut.is_enforced());
    let warnings = sessions.map(|cut| {
        format!(
            "a container that publishes {}/{} closes the open session {cut}: {}; list the port as a service, or remove \
             the container",
            cut.protocol,
            cut.local.port(),
            cut.because
        )
    });
    Ok(warnings.take(MAX_CUTS_NAMED).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_is_due_again_after_a_while_and_one_that_answered_is_not() {
        let start = Instant::now();
        let mut cut = CutSessions::default();
        assert!(!cut.take_due(start), "nothing has changed");
        cut.is_due = true;
        assert!(cut.take_due(start));
        cut.looked = Some(start);

        cut.is_unanswered.store(true, Ordering::Relaxed);
        assert!(!cut.take_due(start + PATIENCE / 2), "no busy loop");
        assert!(cut.take_due(start + PATIENCE));
        cut.looked = Some(start + PATIENCE);
        assert!(!cut.take_due(start + PATIENCE * 3 / 2), "no busy loop");
        assert!(cut.take_due(start + PATIENCE * 2));

        cut.is_unanswered.store(false, Ordering::Relaxed);
        assert!(!cut.take_due(start + PATIENCE * 4), "it has answered");
    }
}
