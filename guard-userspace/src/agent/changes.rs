//! What operators change while the agent runs: each change is in force when its answer comes, and kept.

use std::{collections::BTreeSet, mem, path::PathBuf};

use guard_common::reason::Mode;
use jiff::{SignedDuration, Timestamp};
use tracing::{info, warn};

use super::{Agent, Names, Trial, loaded::Loaded};
use crate::{
    api::{
        Applied, EntryRequest, ModeChange, NewTrial, Reload, Revocation,
        actor::{Actor, OneLine},
    },
    dataplane::{Force, LoadError, needs_another},
    host,
    kept::{self, ChangedMode, KeepError},
    lockout,
    operator::SshSession,
    policy::{Action, Clock, Entry, Ground, Policy, PolicyError, PublishedPort},
};

/// Why a change was not made. What was in force before stays so.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The request makes no sense here.
    #[error("{0}")]
    Wrong(String),
    /// It would harm whoever asks; `--force` does it all the same.
    #[error("{0}")]
    Harmful(String),
    #[error(transparent)]
    Keep(#[from] KeepError),
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// The longest trial: longer than anybody should be able to wait for their way in.
const LONGEST_TRIAL: SignedDuration = SignedDuration::from_hours(24);

impl Agent {
    pub(super) fn clock(&self) -> Clock {
        Clock {
            tick_ns: self.tick_ns,
        }
    }

    /// What was changed without this agent, while it hung, holds.
    fn catch_up(&mut self) -> Result<(), ChangeError> {
        if self.state.catch_up() && self.state.kept.detached {
            return Err(ChangeError::Wrong(
                "the guard has been taken off, and this agent ends".to_owned(),
            ));
        }
        Ok(())
    }

    /// Reads the policy file again and puts it in force.
    pub async fn reload(&mut self, request: &Reload) -> Result<Applied, ChangeError> {
        self.catch_up()?;
        let next = Loaded::read(&self.places.policy, self.clock())?;
        let before = self.follow_docker_of(&next.policy).await;
        let put = match self
            .require_no_lockout(&next.policy, request.operator, request.force)
            .await
        {
            Ok(()) => self.put_in_force(next, 0, Force::No, Names::OfPolicy).await,
            Err(error) => Err(error),
        };
        if let Err(error) = put {
            self.docker = before.unwrap_or(mem::take(&mut self.docker));
            return Err(error);
        }
        self.trial = None;
        self.state.kept.trial = None;
        self.state.kept.accept(&self.loaded.policy.sha256);
        self.keep();
        Ok(self.applied())
    }

    /// Puts a policy in force that goes back by itself unless it is confirmed in time.
    pub async fn try_policy(
        &mut self,
        request: NewTrial,
        by: Actor,
    ) -> Result<Applied, ChangeError> {
        self.catch_up()?;
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
                "a trial of {seconds} s cannot be: write one from 1s to 24h"
            )));
        };
        let path = PathBuf::from(path.into_inner());
        let next = Loaded::parse(text, &path, self.clock())?;
        if self.trial.is_some() {
            return Err(ChangeError::Wrong(
                "another policy is being tried: confirm it, or wait until it has gone back"
                    .to_owned(),
            ));
        }
        let docker = self.follow_docker_of(&next.policy).await;
        let tried = self.begin_trial(next, path, lasts, (operator, force), by);
        let tried = tried.await;
        match (&tried, &mut self.trial) {
            (Ok(()), Some(trial)) => trial.docker = docker,
            _ => self.docker = docker.unwrap_or(mem::take(&mut self.docker)),
        }
        tried?;
        Ok(self.applied())
    }

    async fn begin_trial(
        &mut self,
        next: Loaded,
        path: PathBuf,
        lasts: SignedDuration,
        (operator, force): (Option<SshSession>, bool),
        by: Actor,
    ) -> Result<(), ChangeError> {
        self.require_no_lockout(&next.policy, operator, force)
            .await?;
        let before = self.loaded.clone();
        let now = host::timebase().map_err(anyhow::Error::from)?;
        let lasts_ns = u64::try_from(lasts.as_nanos()).unwrap_or(u64::MAX);
        let trial = Trial {
            until: now.world.saturating_add(lasts).unwrap_or(now.world),
            until_ns: now.boot_ns.saturating_add(lasts_ns),
            before,
            docker: None,
            by,
        };
        // Kept first: an agent that dies in between starts with the policy before.
        self.state.kept.trial = Some(kept::Trial {
            path,
            sha256: next.policy.sha256.clone(),
            until: trial.until,
        });
        self.try_keep()?;
        if let Err(error) = self
            .put_in_force(next, trial.until_ns, Force::No, Names::AlsoThoseBefore)
            .await
        {
            self.state.kept.trial = None;
            self.keep();
            return Err(error);
        }
        warn!(until = %trial.until, by = trial.by.to_string(), "a policy is on trial: `guard confirm` keeps it");
        self.trial = Some(trial);
        Ok(())
    }

    /// Keeps the policy on trial.
    pub async fn confirm(&mut self) -> Result<Applied, ChangeError> {
        self.catch_up()?;
        let Some(trial) = &self.trial else {
            return Err(ChangeError::Wrong(
                "no policy is being tried: if one was, its time is over and the policy before it is \
                 in force"
                    .to_owned(),
            ));
        };
        let now = host::timebase().map_err(anyhow::Error::from)?;
        if now.boot_ns >= trial.until_ns {
            self.go_back().await?;
            return Err(ChangeError::Wrong(
                "too late: the trial is over and the policy before it is in force".to_owned(),
            ));
        }
        self.put_in_force(self.loaded.clone(), 0, Force::No, Names::OfPolicy)
            .await?;
        self.trial = None;
        self.state.kept.trial = None;
        self.state.kept.accept(&self.loaded.policy.sha256);
        self.keep();
        info!("the policy on trial is confirmed");
        Ok(self.applied())
    }

    /// Ends a trial that nobody confirmed.
    pub(super) async fn go_back(&mut self) -> Result<(), ChangeError> {
        let Some(trial) = &self.trial else {
            return Ok(());
        };
        let refused = self.loaded.policy.sha256.clone();
        let before = trial.before.clone();
        if let Some(docker) = self.trial.as_mut().and_then(|trial| trial.docker.take()) {
            self.docker = docker;
        }
        self.follow_docker_of(&before.policy).await;
        self.put_in_force(before, 0, Force::No, Names::OfPolicy)
            .await?;
        self.trial = None;
        self.state.kept.trial = None;
        self.state.kept.refuse(refused);
        self.keep();
        warn!("nobody confirmed the policy on trial: the one before it is in force");
        Ok(())
    }

    /// Sets the mode of the host or of a service, or gives it back to the policy.
    pub async fn set_mode(
        &mut self,
        request: ModeChange,
        actor: Actor,
    ) -> Result<Applied, ChangeError> {
        self.catch_up()?;
        let ModeChange {
            service,
            mode,
            by,
            operator,
            force,
        } = request;
        let claimed_by = by.map(OneLine::into_inner).filter(|by| *by != actor.user);
        let before = self.state.kept.modes.clone();
        if let Some(service) = &service
            // The mode of a service that is gone can still be taken back.
            && (mode.is_some() || !before.services.contains_key(service))
        {
            self.require_service(service)?;
        }
        let asked = mode.as_deref().map(parse_mode).transpose()?;
        let changed = asked.map(|mode| ChangedMode {
            mode,
            since: Timestamp::now(),
            by: Some(actor.user.clone()),
            process: actor.process,
            claimed_by: claimed_by.clone(),
        });
        let modes = &mut self.state.kept.modes;
        match &service {
            None => modes.host = changed,
            Some(name) => {
                modes.services.remove(name);
                if let Some(changed) = changed {
                    modes.services.insert(name.clone(), changed);
                }
            }
        }
        let policy = self.loaded.policy.clone();
        let result = match self.require_no_lockout(&policy, operator, force).await {
            Ok(()) => self.put_again().await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            self.state.kept.modes = before;
            return Err(error);
        }
        self.keep();
        info!(
            mode = mode.as_deref().unwrap_or("the policy's"),
            service = service.as_deref().unwrap_or("-"),
            by = actor.to_string(),
            claimed_by = claimed_by.as_deref().unwrap_or("-"),
            "mode changed"
        );
        Ok(self.applied())
    }

    /// Puts what is in force there again, with what has changed around it.
    pub(super) async fn put_again(&mut self) -> Result<(), ChangeError> {
        // What is off stays off, whatever a trial would go back to.
        let is_off = self.effective().mode == Mode::Off;
        let trial = self.trial.as_ref().filter(|_| !is_off);
        let until = trial.map_or(0, |trial| trial.until_ns);
        let loaded = self.loaded.clone();
        self.put_in_force(loaded, until, Force::No, Names::AlsoThoseBefore)
            .await
    }

    /// Lets sources through or drops them for a while.
    pub async fn enter(
        &mut self,
        request: EntryRequest,
        actor: Actor,
    ) -> Result<Entry, ChangeError> {
        self.catch_up()?;
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
            self.require_service(service)?;
        }
        let created = Timestamp::now();
        if seconds == Some(0) {
            return Err(ChangeError::Wrong(
                "an entry must last some time: write --for 2h, or leave it out".to_owned(),
            ));
        }
        if let (Action::Deny, Some(session), false) = (action, operator, force)
            && lockout::covers_operator(prefix, &session)
        {
            return Err(ChangeError::Harmful(format!(
                "{prefix} has your own address in it, {}, from which you are logged in: it is not \
                 denied without --force",
                session.client.ip()
            )));
        }
        // Beyond the calendar it never ends.
        let lasts = seconds.and_then(|seconds| i64::try_from(seconds).ok());
        let lasts = lasts.map(SignedDuration::from_secs);
        let expires = lasts.and_then(|lasts| created.checked_add(lasts).ok());
        let kept = &mut self.state.kept;
        kept.last_id += 1;
        let entry = Entry {
            id: kept.last_id,
            action,
            prefix: prefix.trunc(),
            service,
            owner: owner.map(OneLine::into_inner),
            reason: reason.map(OneLine::into_inner),
            by: Some(actor.user.clone()),
            process: actor.process,
            created,
            expires,
        };
        let before = kept.entries.clone();
        kept.entries.push(entry.clone());
        self.change_entries(before).await?;
        info!(
            id = entry.id,
            action = action.name(),
            prefix = %entry.prefix,
            by = actor.to_string(),
            service = entry.service.as_deref().unwrap_or("-"),
            owner = entry.owner.as_deref().unwrap_or("-"),
            reason = entry.reason.as_deref().unwrap_or("-"),
            "entered"
        );
        Ok(entry)
    }

    /// Ends an entry.
    pub async fn revoke(
        &mut self,
        id: u64,
        request: Revocation,
        by: &Actor,
    ) -> Result<Entry, ChangeError> {
        self.catch_up()?;
        let Revocation { operator, force } = request;
        let before = self.state.kept.entries.clone();
        let Some(index) = before.iter().position(|entry| entry.id == id) else {
            return Err(ChangeError::Wrong(format!(
                "there is no entry {id}: `guard list` shows those that there are"
            )));
        };
        let entry = self.state.kept.entries.remove(index);
        if entry.action == Action::Allow {
            let policy = self.loaded.policy.clone();
            let lockout = self.require_no_lockout(&policy, operator, force).await;
            if let Err(error) = lockout {
                self.state.kept.entries = before;
                return Err(error);
            }
        }
        self.change_entries(before).await?;
        info!(id, prefix = %entry.prefix, by = by.to_string(), "revoked");
        Ok(entry)
    }

    /// Brings the tables to the entries; `before` are those that are put back if it fails.
    pub(super) async fn change_entries(&mut self, before: Vec<Entry>) -> Result<(), ChangeError> {
        let result = match self.change_tables(&BTreeSet::new()) {
            Err(error) if needs_another(&error) => self.put_again().await,
            result => result.map_err(|error| anyhow::Error::from(error).into()),
        };
        if let Err(error) = result {
            self.state.kept.entries = before;
            if let Err(again) = self.change_tables(&BTreeSet::new()) {
                warn!("entries cannot be put back: {again}");
            }
            return Err(error);
        }
        self.keep();
        Ok(())
    }

    /// Brings the tables to what has changed around the policy. Also those of what a trial goes back to,
    /// perhaps without an agent.
    ///
    /// `early`: ports that were closed before the agent knew, as of before it knew what it knows now.
    pub(super) fn change_tables(
        &mut self,
        early: &BTreeSet<PublishedPort>,
    ) -> Result<(), LoadError> {
        let local_ports = host::local_port_range().map_err(LoadError::Host)?;
        let before = self.trial.as_ref().and_then(|trial| trial.docker.as_ref());
        let in_force = Ground {
            containers: self.docker.containers(),
            local_ports: &local_ports,
            now: host::timebase().map_err(LoadError::Host)?,
            entries: &self.state.kept.entries,
        };
        let fallback = Ground {
            containers: before.unwrap_or(&self.docker).containers(),
            ..in_force
        };
        for attachment in self.attachments.values_mut() {
            if let Some(prepared) = attachment.in_force_mut() {
                prepared.change(&in_force, early)?;
            }
            if let Some(prepared) = attachment.fallback_mut() {
                match prepared.change(&fallback, early) {
                    // It is loaded afresh when the trial ends; what fits is in force.
                    Err(error) if needs_another(&error) => {}
                    result => result?,
                }
            }
        }
        Ok(())
    }

    /// Takes the guard off every interface. The agent must end.
    pub fn detach(&mut self) -> Result<(), ChangeError> {
        self.state.kept.detached = true;
        // Said last: that nothing is blocked is worth more than that it is kept.
        let kept = self.state.save();
        for (name, attachment) in std::mem::take(&mut self.attachments) {
            attachment.detach().map_err(anyhow::Error::from)?;
            info!(interface = name, "detached");
        }
        self.names.clear();
        Ok(kept?)
    }

    fn applied(&self) -> Applied {
        let about = self.attachments.values().find_map(|a| a.about().ok());
        Applied {
            path: self.loaded.path.display().to_string(),
            sha256: self.loaded.policy.sha256.clone(),
            mode: self.effective().mode.name().to_owned(),
            generation: about.map_or(0, |about| about.generation),
            until: self.trial.as_ref().map(|trial| trial.until),
        }
    }

    /// Holds a policy, with the modes that operators have set, against the sessions that are open into
    /// this host. What it cuts is told; what closes the operator's own way in is refused.
    pub(super) async fn require_no_lockout(
        &self,
        policy: &Policy,
        operator: Option<SshSession>,
        force: bool,
    ) -> Result<(), ChangeError> {
        let policy = self.effective_of(policy);
        let containers = self.docker.containers();
        let entries = &self.state.kept.entries;
        let lockout = lockout::of_host(&policy, containers, entries, &self.netlink, operator).await;
        let lockout = match lockout {
            Ok(lockout) => lockout,
            // Not to know whom it cuts is no reason to leave a host unguarded.
            Err(error) => {
                warn!("open sessions cannot be held against the policy: {error:#}");
                return Ok(());
            }
        };
        for cut in lockout
            .cut
            .iter()
            .filter(|cut| cut.is_enforced())
            .take(CUTS_TOLD)
        {
            warn!(session = %cut, reason = cut.reason, "this policy closes an open session: {}", cut.because);
        }
        match lockout.refusal() {
            Some(refusal) if !force => Err(ChangeError::Harmful(refusal)),
            Some(refusal) => {
                warn!("by force: {refusal}");
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// How many of the sessions that a policy cuts are named in the log.
const CUTS_TOLD: usize = 20;

fn parse_mode(name: &str) -> Result<Mode, ChangeError> {
    let modes = [Mode::Off, Mode::Observe, Mode::Enforce];
    let mode = modes.into_iter().find(|mode| mode.name() == name);
    mode.ok_or_else(|| {
        ChangeError::Wrong(format!(
            "\"{name}\" is no mode: off, observe and enforce are"
        ))
    })
}
