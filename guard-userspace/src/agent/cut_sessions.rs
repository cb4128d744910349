//! Open sessions that ports of containers close, the operator's own perhaps: looked for beside the loop, one look at
//! a time, and told loudly.

use std::{
    collections::BTreeSet,
    mem,
    sync::{Arc, Mutex, PoisonError},
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

/// How many of the sessions that are cut are named.
pub const CUTS_TOLD: usize = 20;

/// How long a session that is cut is left alone until it is looked at again: it may be over.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct CutSessions {
    /// Ports that containers have published since the agent started, and still do.
    watched: BTreeSet<PublishedPort>,
    is_due: bool,
    looked: Option<Instant>,
    work: Option<JoinHandle<()>>,
    warnings: Arc<Mutex<Arc<Vec<String>>>>,
}

impl CutSessions {
    /// What the last look found.
    pub fn warnings(&self) -> Arc<Vec<String>> {
        Arc::clone(&self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Containers publish other ports than before.
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

    /// Looks, if something has changed or is to be looked at again. While a look goes on, the next one waits.
    pub fn look(&mut self, workers: &Workers, here: (&Arc<Host>, &Netlink), content: &Content) {
        if self.work.as_ref().is_some_and(|work| !work.is_finished()) {
            return;
        }
        let is_old = self
            .looked
            .is_none_or(|looked| looked.elapsed() >= PATIENCE);
        let is_told = !self.warnings().is_empty();
        let is_due = mem::take(&mut self.is_due) || is_told && is_old;
        if !is_due {
            return;
        }
        self.looked = Some(Instant::now());
        let ports = self.watched.iter().map(|published| published.port);
        let (ports, content) = (ports.collect(), content.clone());
        let (host, netlink) = (Arc::clone(here.0), here.1.clone());
        let warnings = Arc::clone(&self.warnings);
        self.work = Some(workers.spawn(async move {
            match find(ports, &content, (&host, &netlink)).await {
                Ok(found) => {
                    let mut warnings = warnings.lock().unwrap_or_else(PoisonError::into_inner);
                    for warning in found.iter().filter(|found| !warnings.contains(found)) {
                        warn!("{warning}");
                    }
                    *warnings = Arc::new(found);
                }
                Err(error) => {
                    warn!(
                        "open sessions cannot be held against what containers publish: {error:#}"
                    );
                }
            }
        }));
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
    Ok(warnings.take(CUTS_TOLD).collect())
}
