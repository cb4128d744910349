//! What the agent sees to without being asked: that its programs are where they should be, that trials
//! and entries end, and that a reader of the pins knows that it is alive.

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::Notify;
use tracing::{debug, error, info, warn};

use super::{Agent, Docker, Trial, interfaces};
use crate::{dataplane::needs_another, host, policy::Policy};

/// What came of tending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tended {
    GoesOn,
    /// Somebody took the guard off while this agent did not answer: it must end.
    Detached,
}

/// How long an interface in trouble, or a state file that cannot be written, is left alone before it is
/// tried again; an interface not so long if something happens to one.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

impl Agent {
    /// Looks after everything once. `something_happened`: to an interface.
    pub async fn tend(&mut self, something_happened: bool) -> Tended {
        // First of all: what is written below must not undo it.
        let is_news = self.state.changed_outside();
        if self.state.kept.detached {
            warn!("the guard has been taken off: the agent ends");
            // It may have been put back before this was known.
            self.take_off();
            return Tended::Detached;
        }
        if let Some(hold) = &mut self.hold
            && let Err(problem) = hold.hold_on()
        {
            error!("{problem}: this agent ends, and leaves what is in force to the other");
            self.hold = None;
            return Tended::Detached;
        }
        if is_news && let Err(problem) = self.put_again().await {
            warn!("what was changed without this agent is not in force: {problem}");
        }
        if let Ok(now) = host::timebase() {
            for attachment in self.attachments.values_mut() {
                // Only readers without an agent miss it.
                let _result = attachment.beat(now.boot_ns);
                attachment.flush_log();
            }
            if self
                .trial
                .as_ref()
                .is_some_and(|trial| now.boot_ns >= trial.until_ns)
                && let Err(problem) = self.go_back().await
            {
                // The kernel has gone back by itself.
                error!("the policy before the trial cannot be loaded again: {problem}");
            }
        }
        self.end_entries().await;
        if self.not_kept.is_some() && Instant::now() >= self.keep_again {
            self.keep();
        }
        if something_happened {
            self.try_again = Instant::now();
        }
        if self.is_displaced().await && Instant::now() >= self.try_again {
            match self.put_again().await {
                Ok(()) => info!("in force again"),
                Err(problem) => {
                    self.try_again = Instant::now() + PATIENCE;
                    let problem = problem.to_string();
                    for name in &self.names {
                        if self.troubles.insert(name.clone(), problem.clone())
                            != Some(problem.clone())
                        {
                            warn!(interface = name, "not guarded: {problem}");
                        }
                    }
                }
            }
        }
        Tended::GoesOn
    }

    /// Told of every change of containers.
    pub fn docker_changed(&self) -> Arc<Notify> {
        Arc::clone(&self.listener.changed)
    }

    /// Brings the running generation to what Docker says.
    pub async fn take_in_docker(&mut self) {
        // Before the agent knows more: what is closed from now on is of the next time.
        let early = self.closer.take_early();
        let event = self.docker.update(&self.loaded.policy, &self.netlink).await;
        let mut is_news = false;
        if let Some(Trial {
            docker: Some(docker),
            before,
            ..
        }) = &mut self.trial
        {
            let known = docker.containers().clone();
            docker.update(&before.policy, &self.netlink).await;
            is_news = *docker.containers() != known;
        }
        let containers = self.docker.containers().clone();
        if containers == self.containers && early.is_empty() && !is_news {
            return;
        }
        let changed = self.change_tables(&early);
        let result = match changed {
            // Labels change services, which are the program's.
            _ if containers.labelled != self.containers.labelled => self.put_again().await,
            Err(error) if needs_another(&error) => {
                debug!("another generation is needed: {error}");
                self.put_again().await
            }
            result => result.map_err(|error| anyhow::Error::from(error).into()),
        };
        match result {
            Ok(()) => {
                let since = event.map(|event| Timestamp::now().duration_since(event));
                let milliseconds = since.and_then(|since| i64::try_from(since.as_millis()).ok());
                info!(
                    published = containers.published.len(),
                    networks = containers.networks.len(),
                    milliseconds,
                    "containers have changed, and the tables with them"
                );
                self.containers = containers;
            }
            Err(problem) => {
                self.closer.give_back(early);
                error!("what containers publish now is not in force: {problem}");
            }
        }
        self.keep();
    }

    /// Follows the Docker of a policy, and returns the one before if it is another.
    pub(super) async fn follow_docker_of(&mut self, policy: &Policy) -> Option<Docker> {
        if self.docker.is_of(policy) {
            self.docker.update(policy, &self.netlink).await;
            return None;
        }
        let last = self.known_of(policy);
        let docker = Docker::follow(policy, &self.netlink, last, &self.listener).await;
        Some(mem::replace(&mut self.docker, docker))
    }

    /// Whether an interface that is there lacks its program, or its pins.
    async fn is_displaced(&self) -> bool {
        // With another default route comes another interface.
        let wanted = interfaces::names(&self.loaded, &self.netlink).await;
        if wanted.is_ok_and(|names| names.iter().any(|name| !self.names.contains(name))) {
            return true;
        }
        for name in &self.names {
            let Ok(found) = self.netlink.xdp(name).await else {
                continue;
            };
            let attachment = self.attachments.get(name);
            let program = attachment.and_then(|attachment| attachment.program_id());
            if attachment.is_some_and(|attachment| !attachment.is_pinned()) {
                return true;
            }
            if program.is_none() || found.map(|found| found.program_id) != program {
                return true;
            }
        }
        false
    }

    /// The kernel has ended them already: this forgets them.
    async fn end_entries(&mut self) {
        let now = Timestamp::now();
        let before = self.state.kept.entries.clone();
        if !before.iter().any(|entry| entry.is_over(now)) {
            return;
        }
        self.state.kept.entries.retain(|entry| !entry.is_over(now));
        for entry in before.iter().filter(|entry| entry.is_over(now)) {
            info!(id = entry.id, prefix = %entry.prefix, "an entry has ended");
        }
        if let Err(problem) = self.change_entries(before).await {
            warn!("entries that have ended cannot be removed: {problem}");
        }
    }
}
