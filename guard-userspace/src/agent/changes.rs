//! The changes that operators request. When the answer is sent, a change is in force on every interface or on none.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use guard_common::reason::Mode;
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use tracing::{info, warn};

use super::{
    Trial, Wanted,
    apply::RollbackScope,
    command::{AgentCommand, Reply},
    cut_sessions::MAX_CUTS_NAMED,
    entry_effect::effect_of,
    gate::Overtaken,
    loaded::Loaded,
    plan::plan,
    reconciler::{RUNTIME_LATER, Reconciler},
    snapshot::require_service,
};
use crate::{
    api::{
        Applied, Changed, EnteredEntry, EntryRequest, ModeChange, NewTrial, Reload, Revocation,
        actor::{Actor, OneLine},
    },
    dataplane::{AttachError, Force, LoadError},
    host, lockout,
    operator::SshSession,
    policy::{Action, Entry, KernelTick, PolicyError},
    state_store::{self, ChangedMode, StoreError},
};

/// Why a change was not made. The previous policy, modes and entries stay in force.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The request is invalid in the current state.
    #[error("{0}")]
    Wrong(String),
    /// It would lock out the operator who requests it. `--force` makes it nevertheless.
    #[error("{0}")]
    Lockout(String),
    /// The agent does not start.
    #[error(
        "the guard was detached while the previous agent hung, and stays detached: start the agent again to attach it"
    )]
    StaysDetached,
    #[error(transparent)]
    Keep(#[from] StoreError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

impl From<LoadError> for ChangeError {
    fn from(error: LoadError) -> Self {
        Self::Attach(error.into())
    }
}

impl From<Overtaken> for ChangeError {
    fn from(overtaken: Overtaken) -> Self {
        Self::Wrong(overtaken.to_string())
    }
}

/// The longest trial. An operator who is locked out waits until it ends.
const LONGEST_TRIAL: SignedDuration = SignedDuration::from_hours(24);

impl Reconciler {
    /// Makes a change and sends the answer.
    pub(super) async fn change(&mut self, command: AgentCommand) {
        match command {
            AgentCommand::Reload(request, reply) => {
                let done = self.reload(&request).await;
                self.answer(reply, done);
            }
            AgentCommand::Try(request, by, reply) => {
                let done = self.try_policy(request, by).await;
                self.answer(reply, done);
            }
            AgentCommand::Confirm(reply) => {
                let done = self.confirm().await;
                self.answer(reply, done);
            }
            AgentCommand::Mode(request, by, reply) => {
                let done = self.set_mode(request, by).await;
                self.answer(reply, done);
            }
            AgentCommand::Enter(request, by, reply) => {
                let done = self.enter(request, by).await;
                self.answer(reply, done);
            }
            AgentCommand::Revoke(id, request, by, reply) => {
                let done = self.revoke(id, request, &by).await;
                self.answer(reply, done);
            }
            AgentCommand::Leave(_) | AgentCommand::End => {}
        }
    }

    fn answer<T>(&mut self, reply: Reply<T>, done: Result<T, ChangeError>) {
        // First publish: a reader that comes after the answer sees the change.
        self.publish();
        let not_kept = self.not_kept();
        // The client may have closed its connection.
        let _result = reply.send(done.map(|done| Changed { done, not_kept }));
    }

    fn clock(&self) -> KernelTick {
        KernelTick {
            tick_ns: self.tick_ns(),
        }
    }

    /// Puts another policy in force on all interfaces, or on none.
    async fn put_whole(&mut self, next: Wanted) -> Result<(), ChangeError> {
        self.put_in_force(next, Force::No, RollbackScope::Whole)
            .await
    }

    async fn reload(&mut self, request: &Reload) -> Result<Applied, ChangeError> {
        if let (Some(trial), false) = (&self.wanted.trial, request.force) {
            return Err(ChangeError::Wrong(format!(
                "{} is on trial until {:.0}: `guard confirm` keeps it, or wait until it goes back; --force ends the \
                 trial and reloads {}",
                self.wanted.loaded.path.display(),
                trial.until,
                self.places.policy.display()
            )));
        }
        let loaded = Loaded::read(&self.places.policy, self.clock())?;
        self.read_host().await;
        let next = Wanted {
            loaded: Arc::new(loaded),
            revision: self.wanted.revision + 1,
            trial: None,
            keeps_guarded: false,
            ..self.wanted.clone()
        };
        self.require_no_lockout(&next, request.operator, request.force)
            .await?;
        self.put_whole(next).await?;
        self.accept();
        Ok(self.applied())
    }

    /// Saves the policy in force as the one that operators want.
    fn accept(&mut self) {
        let sha256 = self.wanted.loaded.policy.sha256.clone();
        self.store.kept.trial = None;
        self.store.kept.accept(&sha256);
        self.keep();
    }

    async fn try_policy(&mut self, request: NewTrial, by: Actor) -> Result<Applied, ChangeError> {
        let NewTrial {
            path,
            text,
            seconds,
            operator,
            force,
        } = request;
        let lasts = i64::try_from(seconds)
            .ok()
            .map(SignedDuration::from_secs)
            .filter(|lasts| lasts.is_positive() && *lasts <= LONGEST_TRIAL);
        let Some(lasts) = lasts else {
            return Err(ChangeError::Wrong(format!(
                "a trial cannot last {seconds} s: give a time from 1s to 24h"
            )));
        };
        let path = PathBuf::from(path.into_inner());
        let loaded = Loaded::parse(text.into(), &path, self.clock())?;
        if self.wanted.trial.is_some() {
            return Err(ChangeError::Wrong(
                "another policy is being tried: confirm it, or wait until the trial ends"
                    .to_owned(),
            ));
        }
        let now = host::timebase().map_err(anyhow::Error::from)?;
        let lasts_ns = u64::try_from(lasts.as_nanos()).unwrap_or(u64::MAX);
        let trial = Trial {
            before: Arc::clone(&self.wanted.loaded),
            until: now.world.saturating_add(lasts).unwrap_or(now.world),
            until_ns: now.boot_ns.saturating_add(lasts_ns),
            by: by.clone(),
        };
        let until = trial.until;
        let kept_trial = state_store::StoredTrial {
            path,
            sha256: loaded.policy.sha256.clone(),
            until,
        };
        let next = Wanted {
            loaded: Arc::new(loaded),
            revision: self.wanted.revision + 1,
            trial: Some(trial),
            keeps_guarded: true,
            ..self.wanted.clone()
        };
        // A trial keeps the interfaces of the policy before guarded. A policy that `confirm` would refuse without them
        // is refused now.
        let confirmed = Wanted {
            trial: None,
            keeps_guarded: false,
            ..next.clone()
        };
        if let Some(refusal) = self.plan_for(&confirmed).refusal {
            return Err(anyhow::Error::msg(refusal).into());
        }
        self.require_no_lockout(&next, operator, force).await?;
        // Saved before it is in force: if the agent dies in between, the next one starts with the previous policy.
        let ((), kept) = self.store.update(|kept| kept.trial = Some(kept_trial));
        if let Err(error) = kept {
            self.store.kept.trial = None;
            return Err(error.into());
        }
        if let Err(error) = self.put_whole(next).await {
            self.store.kept.trial = None;
            self.keep();
            return Err(error);
        }
        warn!(%until, by = by.to_string(), "a policy is on trial: `guard confirm` keeps it");
        Ok(self.applied())
    }

    async fn confirm(&mut self) -> Result<Applied, ChangeError> {
        let Some(trial) = &self.wanted.trial else {
            return Err(ChangeError::Wrong(
                "no policy is being tried: if there was a trial, it is over, and `guard status -v` names the policy in force"
                    .to_owned(),
            ));
        };
        let now = host::timebase().map_err(anyhow::Error::from)?;
        if now.boot_ns >= trial.until_ns {
            self.go_back().await?;
            return Err(ChangeError::Wrong(
                "too late: the trial is over and the previous policy is in force".to_owned(),
            ));
        }
        let next = Wanted {
            revision: self.wanted.revision + 1,
            trial: None,
            keeps_guarded: false,
            ..self.wanted.clone()
        };
        self.put_whole(next).await?;
        self.accept();
        info!("the policy on trial is confirmed");
        Ok(self.applied())
    }

    /// Ends a trial that no operator confirmed.
    pub(super) async fn go_back(&mut self) -> Result<(), ChangeError> {
        let Some(trial) = &self.wanted.trial else {
            return Ok(());
        };
        let refused = self.wanted.loaded.policy.sha256.clone();
        let next = Wanted {
            loaded: Arc::clone(&trial.before),
            revision: self.wanted.revision + 1,
            trial: None,
            keeps_guarded: false,
            ..self.wanted.clone()
        };
        self.put_whole(next).await?;
        self.store.kept.trial = None;
        self.store.kept.refuse(refused);
        self.keep();
        warn!("the policy on trial was not confirmed: the previous policy is in force");
        Ok(())
    }

    async fn set_mode(&mut self, request: ModeChange, by: Actor) -> Result<Applied, ChangeError> {
        let ModeChange {
            service,
            mode,
            by: claimed,
            operator,
            force,
        } = request;
        let modes = &self.wanted.modes;
        if let Some(service) = &service
            // The mode of a service that the policy no longer lists can still be reset.
            && (mode.is_some() || !modes.services.contains_key(service))
        {
            require_service(&self.wanted.loaded.policy, service)?;
        }
        let asked = mode.as_deref().map(parse_mode).transpose()?;
        let changed = asked.map(|mode| changed_mode(mode, claimed.clone(), &by));
        let claimed_by = changed.as_ref().and_then(|mode| mode.claimed_by.clone());
        let mut modes = modes.clone();
        match &service {
            None => modes.host = changed,
            Some(name) => {
                modes.services.remove(name);
                if let Some(changed) = changed {
                    modes.services.insert(name.clone(), changed);
                }
            }
        }
        let next = Wanted {
            modes,
            revision: self.wanted.revision + 1,
            ..self.wanted.clone()
        };
        if service.is_none() && asked == Some(Mode::Off) {
            self.switch_off(next).await?;
        } else {
            // Mode off lets everything pass and so closes no session.
            if asked != Some(Mode::Off) {
                self.require_no_lockout(&next, operator, force).await?;
            }
            self.put_whole(next).await?;
            self.keep();
        }
        info!(
            mode = mode.as_deref().unwrap_or("the policy's"),
            service = service.as_deref().unwrap_or("-"),
            by = by.to_string(),
            claimed_by = claimed_by.as_deref().unwrap_or("-"),
            "mode changed"
        );
        Ok(self.applied())
    }

    /// Completes the kill switch, which has usually taken effect already. The mode is saved even if the plan fails: an
    /// interface that refuses a program must not put the policy in force again on the others.
    async fn switch_off(&mut self, next: Wanted) -> Result<(), ChangeError> {
        self.wanted.modes = next.modes.clone();
        self.keep();
        self.try_again();
        let put = self
            .put_in_force(next, Force::No, RollbackScope::Interface)
            .await;
        let judging = self.judging();
        match put {
            _ if judging.is_empty() => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                Err(anyhow::anyhow!("packets are still judged on {}", judging.join(", ")).into())
            }
        }
    }

    async fn enter(
        &mut self,
        request: EntryRequest,
        by: Actor,
    ) -> Result<EnteredEntry, ChangeError> {
        let EntryRequest {
            action,
            prefix,
            service,
            owner,
            reason,
            seconds,
            operator,
            force,
        } = request;
        if let Some(service) = &service {
            require_service(&self.wanted.loaded.policy, service)?;
        }
        if action == Action::Deny && !force {
            require_not_wide(prefix)?;
        }
        let created = Timestamp::now();
        if seconds == Some(0) {
            return Err(ChangeError::Wrong(
                "an entry cannot last 0 s: give a longer time, such as `--for 2h`, or omit --for"
                    .to_owned(),
            ));
        }
        if let (Action::Deny, Some(session), false) = (action, operator, force)
            && lockout::covers_operator(prefix, &session)
        {
            return Err(ChangeError::Lockout(format!(
                "{prefix} contains {}, the address from which you are logged in: give --force to deny it \
                 nevertheless",
                session.client.ip()
            )));
        }
        // A time beyond the range of the calendar means that the entry never expires.
        let lasts = seconds.and_then(|seconds| i64::try_from(seconds).ok());
        let lasts = lasts.map(SignedDuration::from_secs);
        let expires = lasts.and_then(|lasts| created.checked_add(lasts).ok());
        let prefix = prefix.trunc();
        let owner = owner.map(OneLine::into_inner);
        let is_same = |entry: &Entry| {
            (entry.action, entry.prefix) == (action, prefix)
                && (&entry.service, &entry.owner) == (&service, &owner)
        };
        let mut entries = self.wanted.entries.to_vec();
        // The same entry again is an update: `fail2ban` and operators repeat themselves.
        let before = entries.iter().position(is_same);
        let id = match before.and_then(|at| entries.get(at)) {
            Some(entry) => entry.id,
            None => {
                self.store.kept.last_id += 1;
                self.store.kept.last_id
            }
        };
        let entry = Entry {
            id,
            action,
            prefix,
            service,
            owner,
            reason: reason.map(OneLine::into_inner),
            by: Some(by.user.clone()),
            process: by.process,
            created,
            expires,
        };
        match before.and_then(|at| entries.get_mut(at)) {
            Some(known) => *known = entry.clone(),
            None => entries.push(entry.clone()),
        }
        self.put_entries(entries).await?;
        let updated = before.is_some();
        let what = if updated {
            "entry updated"
        } else {
            "entry added"
        };
        info!(
            id = entry.id,
            action = action.name(),
            prefix = %entry.prefix,
            service = entry.service.as_deref().unwrap_or("-"),
            owner = entry.owner.as_deref().unwrap_or("-"),
            reason = entry.reason.as_deref().unwrap_or("-"),
            by = by.to_string(),
            "{what}"
        );
        let own = self.host_now().own_addresses().unwrap_or_default();
        let observed = self.observed(&entry);
        let effect = effect_of(entry, &self.wanted.entries, &own, created);
        Ok(EnteredEntry {
            updated,
            warnings: effect.warnings.into_iter().chain(observed).collect(),
            ..effect
        })
    }

    /// The warning that a deny entry drops nothing, if the mode is not `enforce` where it holds.
    fn observed(&self, entry: &Entry) -> Option<String> {
        let policy = &self.plan().content.policy;
        let mut services = policy.services.iter();
        let named = entry.service.as_ref();
        let service = named.and_then(|name| services.find(|service| service.has_name(name)));
        let mode = service.map_or(policy.mode, |service| service.mode.min(policy.mode));
        let where_it_holds =
            named.map_or("the host".to_owned(), |name| format!("service \"{name}\""));
        (entry.action == Action::Deny && mode != Mode::Enforce).then(|| {
            format!(
                "{where_it_holds} is in mode {}: the entry drops nothing until it is in mode enforce",
                mode.name()
            )
        })
    }

    async fn revoke(
        &mut self,
        id: u64,
        request: Revocation,
        by: &Actor,
    ) -> Result<Entry, ChangeError> {
        let Revocation { operator, force } = request;
        let mut entries = self.wanted.entries.to_vec();
        let Some(index) = entries.iter().position(|entry| entry.id == id) else {
            return Err(ChangeError::Wrong(format!(
                "there is no entry {id}: `guard list` shows all entries"
            )));
        };
        let entry = entries.remove(index);
        if entry.action == Action::Allow {
            let next = Wanted {
                entries: Arc::new(entries.clone()),
                ..self.wanted.clone()
            };
            self.require_no_lockout(&next, operator, force).await?;
        }
        self.put_entries(entries).await?;
        info!(id, prefix = %entry.prefix, by = by.to_string(), "entry revoked");
        Ok(entry)
    }

    async fn put_entries(&mut self, entries: Vec<Entry>) -> Result<(), ChangeError> {
        let next = Wanted {
            entries: Arc::new(entries),
            ..self.wanted.clone()
        };
        self.put_whole(next).await?;
        self.keep();
        Ok(())
    }

    fn applied(&self) -> Applied {
        let loaded = &self.wanted.loaded;
        Applied {
            path: loaded.path.display().to_string(),
            sha256: loaded.policy.sha256.clone(),
            mode: self.plan().content.policy.mode.name().to_owned(),
            generation: self.generation(),
            until: self.wanted.trial.as_ref().map(|trial| trial.until),
            other_file: self.other_file(),
            policy_mode: Some(loaded.policy.mode.name().to_owned()),
        }
    }

    /// The policy file that this agent reads, if it is not that of the policy in force.
    fn other_file(&self) -> Option<String> {
        other_file(&self.places.policy, &self.wanted.loaded)
    }

    /// Checks a change against the sessions that are open into this host. Sessions that it cuts are logged. A change
    /// that closes the operator's own way in is refused.
    pub(super) async fn require_no_lockout(
        &mut self,
        next: &Wanted,
        operator: Option<SshSession>,
        force: bool,
    ) -> Result<(), ChangeError> {
        let policy = &next.loaded.policy;
        self.runtimes.follow(policy, RUNTIME_LATER).await;
        let (host, runtimes) = (self.host_now(), self.runtimes.known());
        let content = plan(&host, &runtimes, next).content;
        let lockout = lockout::of_host(
            &content.policy,
            &content.containers,
            &content.entries,
            (&host, &self.netlink),
            operator,
        );
        let lockout = match lockout.await {
            Ok(lockout) => lockout,
            // A failed check is no reason to leave a host unguarded.
            Err(error) => {
                warn!("open sessions cannot be checked against the policy: {error:#}");
                return Ok(());
            }
        };
        let enforced = lockout.cut.iter().filter(|cut| cut.is_enforced());
        for cut in enforced.take(MAX_CUTS_NAMED) {
            warn!(session = %cut, reason = cut.reason, "this policy closes an open session: {}", cut.because);
        }
        match lockout.refusal() {
            Some(refusal) if !force => Err(ChangeError::Lockout(refusal)),
            Some(refusal) => {
                warn!("applied because of --force: {refusal}");
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// The policy file that an agent reads, if the policy comes from another.
pub(super) fn other_file(own: &Path, loaded: &Loaded) -> Option<String> {
    let whole = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    (whole(own) != whole(&loaded.path)).then(|| own.display().to_string())
}

/// A mode that an operator sets. `claimed`: the name that the client gives for the operator.
pub(super) fn changed_mode(mode: Mode, claimed: Option<OneLine>, by: &Actor) -> ChangedMode {
    let claimed = claimed.map(OneLine::into_inner);
    ChangedMode {
        mode,
        since: Timestamp::now(),
        by: Some(by.user.clone()),
        process: by.process,
        claimed_by: claimed.filter(|name| *name != by.user),
    }
}

/// The shortest prefixes that are denied without `--force`: a shorter one is usually a typing error, and denies a
/// large part of the internet.
const SHORTEST_DENIED_V4: u8 = 8;
const SHORTEST_DENIED_V6: u8 = 16;

fn require_not_wide(prefix: IpNet) -> Result<(), ChangeError> {
    let shortest = match prefix {
        IpNet::V4(_) => SHORTEST_DENIED_V4,
        IpNet::V6(_) => SHORTEST_DENIED_V6,
    };
    if prefix.prefix_len() >= shortest {
        return Ok(());
    }
    Err(ChangeError::Wrong(format!(
        "{prefix} is shorter than /{shortest} and denies a large part of the internet: give a longer prefix, or --force \
         to deny it nevertheless"
    )))
}

fn parse_mode(name: &str) -> Result<Mode, ChangeError> {
    let modes = [Mode::Off, Mode::Observe, Mode::Enforce];
    let mode = modes.into_iter().find(|mode| mode.name() == name);
    mode.ok_or_else(|| {
        ChangeError::Wrong(format!(
            "\"{name}\" is not a mode: write off, observe or enforce"
        ))
    })
}
