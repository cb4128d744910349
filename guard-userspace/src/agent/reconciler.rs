//! The loop: every event leads to another plan, and the plan is applied.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use guard_common::reason::Mode;
use jiff::Timestamp;
use tokio::{
    runtime::Handle as Runtime,
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};
use tracing::{error, info, warn};

use super::{
    AgentPaths, ChangeError, Loaded, Progress, Snapshot, Trial, Wanted,
    apply::{Applier, Order, RollbackScope},
    attached::AttachedReader,
    command::AgentCommand,
    cut_sessions::CutSessions,
    gate::Gate,
    milliseconds_since,
    plan::{Plan, plan},
    policy_file::{PolicyFile, StaleFile},
    runtimes::{Followed, RuntimeListener, are_ports_contested},
    snapshot::{GuardedInterface, ProgramInForce},
};
use crate::{
    api::FloodStatus,
    dataplane::{
        Dataplane, Force,
        pins::{ExitMark, Hold},
    },
    docker,
    host::{
        self, Host, HostWatch, Netlink,
        claim::{Claim, wait_for_claim},
        read,
    },
    operator::ssh_session,
    policy::{KernelTick, OnExit, Timebase},
    privileges,
    state_store::{self, ChangedMode, KnownContainers, StateStore, StoredPolicy},
};

/// The interval of the checks that need no event.
const BEAT: Duration = Duration::from_secs(1);

/// The time after which saving the state, or ending a trial, is tried again.
const PATIENCE: Duration = Duration::from_secs(10);

/// The time for the first answer of a runtime: longer at the start, when no change waits for the loop, than later. To
/// inspect one container may take two seconds.
const RUNTIME_AT_START: Duration = Duration::from_secs(10);
pub(super) const RUNTIME_LATER: Duration = Duration::from_secs(3);

/// The input for starting the loop.
pub struct Begin {
    pub places: AgentPaths,
    pub force: Force,
    pub host: HostWatch,
    /// The network namespace of this process.
    pub namespace: u64,
    pub gate: Gate,
    pub progress: Progress,
    /// The tokio runtime for work for which the loop does not wait.
    pub workers: Runtime,
    pub attached: AttachedReader,
}

pub struct Reconciler {
    pub(super) places: AgentPaths,
    pub(super) wanted: Wanted,
    pub(super) store: StateStore,
    pub(super) runtimes: Followed,
    pub(super) netlink: Netlink,
    host: HostWatch,
    /// The host picture of the last plan.
    seen: Arc<Host>,
    applier: Applier,
    plan: Arc<Plan>,
    /// Why the plan is not in force, if the reason concerns no single interface.
    trouble: Option<String>,
    not_kept: Option<String>,
    keep_again: Instant,
    /// The mode, whether the plan is in force, and since when both are so.
    in_force: (Mode, bool, Timestamp),
    policy_file: Arc<PolicyFile>,
    /// How the policy file differs from the policy in force, as it was logged last.
    logged_stale: Option<StaleFile>,
    /// The services that are flooded.
    floods: Vec<FloodStatus>,
    /// Containers have changed since the state was saved. It is saved at most once a second for that.
    is_unkept: bool,
    /// The claim on the state store, held until the drop: no other agent uses it meanwhile.
    _turn: Option<Claim>,
    /// The claim on the pins. `None`: another agent has them, and this one ends.
    hold: Option<Hold>,
    go_back_again: Instant,
    cut: CutSessions,
    snapshot: watch::Sender<Arc<Snapshot>>,
    gate: Gate,
    progress: Progress,
    workers: Runtime,
    attached: AttachedReader,
}

impl Reconciler {
    /// Puts a policy in force, and takes over the pins of a previous agent.
    ///
    /// # Errors
    /// The agent cannot start. The generation in force stays in force.
    pub async fn start(begin: Begin) -> Result<Self, ChangeError> {
        let Begin {
            places,
            force,
            host,
            namespace,
            gate,
            progress,
            workers,
            attached,
        } = begin;
        let seen = host
            .read_again()
            .await
            .context("this host cannot be read")?;
        let clock = KernelTick {
            tick_ns: seen.tick_ns,
        };
        let turn = state_store::take(&places.state).await?;
        let hold = wait_for_claim(|| Hold::take(&places.pins)).await;
        let hold = hold.map_err(anyhow::Error::from)?;
        let hold = hold.ok_or_else(|| anyhow::Error::from(Hold::taken(&places.pins)))?;
        let claims = turn.iter().chain([hold.claim()]);
        // A failure is harmless: without a work mark, a starting agent waits for this one longer than necessary.
        gate.is_at_work(claims.filter_map(|claim| claim.work_mark().ok()));
        state_store::warn_if_open(&places.state);
        let mut store = StateStore::open(&places.state);
        if ExitMark::Detached.take(&places.pins) {
            // A service manager restarts an agent that hung: that start ends here. The next one, by an operator, works.
            return Err(ChangeError::StaysDetached);
        }
        if store.kept.detached {
            // From now on, a set flag would end this agent. If it cannot be written, the save below reports it.
            let _result = store.update(|kept| kept.detached = false);
        }
        if let Some(trial) = store.kept.trial.take() {
            warn!(
                "the policy {} was on trial when the previous agent ended, and was not confirmed: the previous \
                 policy is put in force",
                trial.path.display()
            );
            store.kept.refuse(trial.sha256);
        }
        let loaded = Loaded::at_start(&places.policy, &store.kept, clock)?;
        for warning in store.kept.modes.warnings(Timestamp::now()) {
            warn!("{warning}");
        }
        let netlink = Netlink::connect().context("route netlink cannot be reached")?;
        let listener = RuntimeListener::default();
        let applier = Applier::open(
            places.pins.clone(),
            namespace,
            gate.clone(),
            listener.closer.clone(),
        );
        let wanted = Wanted {
            loaded: Arc::new(loaded),
            revision: 0,
            trial: None,
            modes: store.kept.modes.clone(),
            entries: Arc::new(store.kept.entries.clone()),
            last_known: store.kept.containers.clone(),
            guarded: applier.guarded(),
            keeps_guarded: false,
        };
        let mut runtimes = Followed::new(listener);
        runtimes
            .follow(&wanted.loaded.policy, RUNTIME_AT_START)
            .await;
        // Without warnings: they are logged when the plan is applied.
        let plan = Arc::new(Plan {
            warnings: Vec::new(),
            container_warnings: Vec::new(),
            ..plan(&seen, &runtimes.known(), &wanted)
        });
        let mut reconciler = Self {
            snapshot: watch::Sender::new(Arc::new(Snapshot {
                loaded: Arc::clone(&wanted.loaded),
                plan: Arc::clone(&plan),
                host: Arc::clone(&seen),
                modes: wanted.modes.clone(),
                trial: None,
                interfaces: Vec::new(),
                trouble: None,
                cut: Arc::default(),
                not_kept: None,
                pins: places.pins.clone(),
                tapped: Weak::new(),
                flows: None,
                floods: Vec::new(),
                since: Timestamp::now(),
                policy_file: places.policy.clone(),
                file: Arc::default(),
                refused: Vec::new(),
            })),
            places,
            wanted,
            store,
            runtimes,
            netlink,
            host,
            seen,
            applier,
            plan,
            trouble: None,
            not_kept: None,
            in_force: (Mode::Off, false, Timestamp::now()),
            policy_file: Arc::default(),
            floods: Vec::new(),
            logged_stale: None,
            keep_again: Instant::now(),
            is_unkept: false,
            _turn: turn,
            hold: Some(hold),
            go_back_again: Instant::now(),
            cut: CutSessions::default(),
            gate,
            progress,
            workers,
            attached,
        };
        if ExitMark::OffUnkept.take(&reconciler.places.pins) {
            reconciler.record_off_outside();
        }
        reconciler.take_marks();
        let wanted = reconciler.wanted.clone();
        // Started from a shell over SSH, the agent checks for a lockout like `guard reload`. A service manager has no
        // SSH session.
        reconciler
            .require_no_lockout(&wanted, ssh_session(), force == Force::Yes)
            .await?;
        reconciler
            .put_in_force(wanted, force, RollbackScope::Whole)
            .await?;
        privileges::keep_only_needed();
        reconciler.keep();
        reconciler.publish();
        Ok(reconciler)
    }

    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.subscribe()
    }

    /// Runs until the guard has been detached or the agent is requested to end.
    pub async fn run(mut self, mut commands: mpsc::Receiver<AgentCommand>) {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let changed = Arc::clone(&self.runtimes.listener().changed);
        loop {
            self.progress.step();
            let is_beat = tokio::select! {
                command = commands.recv() => match command {
                    None | Some(AgentCommand::End) => return,
                    Some(AgentCommand::Leave(reply)) => {
                        // The process ends, even if the requester is gone.
                        let _result = reply.send(self.leave());
                        return;
                    }
                    Some(command) => {
                        self.take_in_others();
                        self.change(command).await;
                        false
                    }
                },
                () = changed.notified() => false,
                _ = self.host.changed() => {
                    self.applier.try_again_after(&self.seen, &self.host.borrow());
                    false
                }
                _ = beat.tick() => true,
            };
            // Before anything is saved below: that must not undo a change made without this agent.
            self.take_in_others();
            if is_beat && !self.gate.is_detached() {
                self.look_after().await;
            }
            if self.gate.is_detached() {
                warn!("the guard has been detached: the agent ends");
                return;
            }
            if self.hold.is_none() {
                return;
            }
            self.reconcile().await;
            if self.take_in_others() && !self.gate.is_detached() {
                // The change came after the check above and before the swap, for example while this agent was stopped.
                self.reconcile().await;
            }
            self.publish();
        }
    }

    /// The checks that need no event: it shows that this agent is alive, and ends trials and entries.
    async fn look_after(&mut self) {
        if let Some(hold) = &mut self.hold
            && let Err(problem) = hold.renew()
        {
            error!("{problem}: this agent ends, and leaves the guard to the other agent");
            self.hold = None;
            return;
        }
        let Ok(now) = host::timebase() else {
            return;
        };
        self.applier.beat(now.boot_ns);
        self.follow_floods(now);
        self.log_stale_file();
        self.attached.refresh();
        let is_over = |trial: &Trial| now.boot_ns >= trial.until_ns;
        if self.wanted.trial.as_ref().is_some_and(is_over)
            && Instant::now() >= self.go_back_again
            && let Err(problem) = self.go_back().await
        {
            self.go_back_again = Instant::now() + PATIENCE;
            // The kernel has reverted to the previous policy by itself, so the host stays guarded.
            error!("the policy before the trial cannot be loaded again: {problem}");
        }
        self.end_entries(now.world);
        self.keep_what_is_due();
        self.look_for_cut_sessions();
    }

    /// Reads which services are flooded, and logs when a flood begins and ends.
    fn follow_floods(&mut self, now: Timebase) {
        let found = self.applier.floods(now.boot_ns).into_iter();
        let floods: Vec<FloodStatus> = found
            .map(|(service, since_ns)| {
                let ago = Duration::from_nanos(now.boot_ns.saturating_sub(since_ns));
                FloodStatus {
                    service,
                    since: now.world.saturating_sub(ago).unwrap_or(now.world),
                }
            })
            .collect();
        let is_in = |floods: &[FloodStatus], one: &FloodStatus| {
            floods.iter().any(|other| other.service == one.service)
        };
        for FloodStatus { service, .. } in floods.iter().filter(|one| !is_in(&self.floods, one)) {
            warn!(
                service,
                "flooded with connection requests: clients that are not verified are challenged"
            );
        }
        let over = self.floods.iter().filter(|one| !is_in(&floods, one));
        for FloodStatus { service, since } in over {
            let seconds = now.world.duration_since(*since).as_secs();
            info!(service, seconds, "the flood is over");
        }
        let is_news = floods
            .iter()
            .map(|one| &one.service)
            .ne(self.floods.iter().map(|one| &one.service));
        if is_news {
            self.floods = floods;
            self.publish();
        }
    }

    /// Logs that the policy file differs from the policy in force, once for each difference.
    fn log_stale_file(&mut self) {
        let stale = self.snapshot.borrow().stale();
        if stale != self.logged_stale
            && let Some(StaleFile { why, advice }) = &stale
        {
            info!("{why}: {advice}");
        }
        self.logged_stale = stale;
    }

    /// Takes in changes that were made without this agent, for example while it hung. Returns whether there was one.
    fn take_in_others(&mut self) -> bool {
        let mut is_news = self.store.changed_outside();
        if is_news {
            self.take_in_store();
        }
        is_news |= self.take_marks();
        if self.store.kept.detached && !self.gate.is_detached() {
            // This agent may have attached a program again before it read the state.
            self.gate.detach(|| self.applier.detach());
            is_news = true;
        }
        is_news
    }

    /// Takes in the marks of emergency exits without this agent, which need no disk. Returns whether there was one.
    fn take_marks(&mut self) -> bool {
        let is_detached = ExitMark::Detached.take(&self.places.pins);
        if is_detached {
            self.store.kept.detached = true;
        }
        let is_off = self.gate.take_off_mark();
        let host = self.wanted.modes.host.as_ref();
        // The state store may have the mode already, with the user who set it.
        if is_off && host.is_none_or(|host| host.mode != Mode::Off) {
            self.record_off_outside();
        }
        is_detached || is_off
    }

    /// Records a use of the kill switch without an agent.
    fn record_off_outside(&mut self) {
        warn!("the guard was switched off without this agent");
        self.wanted.modes.host = Some(ChangedMode {
            mode: Mode::Off,
            since: Timestamp::now(),
            by: None,
            process: None,
            claimed_by: None,
        });
        self.keep();
    }

    /// Removes entries that have expired. The kernel has stopped applying them by itself.
    fn end_entries(&mut self, now: Timestamp) {
        if !self.wanted.entries.iter().any(|entry| entry.is_over(now)) {
            return;
        }
        let (over, left) = self
            .wanted
            .entries
            .iter()
            .cloned()
            .partition::<Vec<_>, _>(|entry| entry.is_over(now));
        for entry in over {
            info!(id = entry.id, prefix = %entry.prefix, "entry expired");
        }
        self.wanted.entries = Arc::new(left);
        self.keep();
    }

    /// The plan for the wishes of the operators and the current host picture.
    pub(super) fn plan_for(&mut self, wanted: &Wanted) -> Plan {
        let runtimes = self.runtimes.known();
        let mut host = self.host.borrow();
        if are_ports_contested(&runtimes) {
            let host = Arc::make_mut(&mut host);
            host.listeners = self.seen.listeners.clone();
            let inventories = runtimes.values().map(|runtime| &*runtime.inventory);
            host.listeners.renew(docker::own_listeners(inventories));
        }
        let plan = plan(&host, &runtimes, wanted);
        self.seen = host;
        plan
    }

    /// Makes a plan and applies it. A failure is in the status, and is tried again.
    async fn reconcile(&mut self) {
        let wanted = self.wanted.clone();
        let before = Arc::clone(&self.plan);
        if let Err(problem) = self
            .put_in_force(wanted, Force::No, RollbackScope::Interface)
            .await
        {
            let problem = format!("{:#}", anyhow::Error::from(problem));
            if self.trouble.as_ref() != Some(&problem) {
                warn!("not as planned: {problem}");
            }
            self.trouble = Some(problem);
        }
        if before.content.containers != self.plan.content.containers {
            self.containers_changed(&before);
        }
    }

    fn containers_changed(&mut self, before: &Plan) {
        let containers = &self.plan.content.containers;
        info!(
            published = containers.published.len(),
            networks = containers.networks.len(),
            milliseconds = self.runtimes.last_event().and_then(milliseconds_since),
            "containers have changed: tables updated"
        );
        let known = &before.content.containers.published;
        self.cut.follow(known, &containers.published);
        self.look_for_cut_sessions();
        self.is_unkept = true;
        self.keep_what_is_due();
    }

    fn keep_what_is_due(&mut self) {
        let is_due = self.is_unkept || self.not_kept.is_some();
        if is_due && Instant::now() >= self.keep_again {
            self.keep();
        }
    }

    fn look_for_cut_sessions(&mut self) {
        let here = (&self.seen, &self.netlink);
        self.cut.look(&self.workers, here, &self.plan.content);
    }

    /// Makes a plan for `wanted` and applies it. On success, `wanted` replaces the previous wishes.
    ///
    /// # Errors
    /// As [`Applier::apply`]. The previous wishes stay.
    pub(super) async fn put_in_force(
        &mut self,
        mut wanted: Wanted,
        force: Force,
        unit: RollbackScope,
    ) -> Result<(), ChangeError> {
        let policy = &wanted.loaded.policy;
        self.runtimes.follow(policy, RUNTIME_LATER).await;
        let (epoch, switched_off) = self.gate.begin();
        if let Some(off) = switched_off {
            // An older request must not undo the kill switch, nor must a client that did not wait for its answer.
            self.wanted.modes.host = Some(off.clone());
            wanted.modes.host = Some(off);
            self.keep();
        }
        wanted.guarded = self.applier.guarded();
        // Taken before the plan is made: a port that is closed early from now on belongs to the next plan.
        let early = self.runtimes.listener().closer.take_early();
        let plan = self.plan_for(&wanted);
        self.progress.step();
        let (runtimes, host, progress) = (&self.runtimes, &self.seen, &self.progress);
        let latest = || {
            let plan = super::plan::plan(host, &runtimes.known(), &wanted);
            plan.content.containers
        };
        let order = Order {
            plan: &plan,
            loaded: &wanted.loaded,
            host,
            epoch,
            force,
            unit,
            early: &early,
            latest: &latest,
            step: &|| progress.step(),
        };
        let applied = self.applier.apply(&order);
        if let (Err(error), RollbackScope::Whole) = (&applied, unit) {
            tracing::debug!("refused: {error}");
        }
        if applied.is_ok() && unit == RollbackScope::Whole {
            self.warn_of_policy(&wanted.loaded, &plan);
        }
        if applied.is_ok() || unit == RollbackScope::Interface {
            for warning in plan.warnings.iter().chain(&plan.container_warnings) {
                let known = self.plan.warnings.iter();
                if !known
                    .chain(&self.plan.container_warnings)
                    .any(|one| one == warning)
                {
                    warn!("{warning}");
                }
            }
            self.plan = Arc::new(plan);
        }
        applied?;
        self.trouble = None;
        wanted.keeps_guarded = true;
        wanted.guarded = self.applier.guarded();
        self.wanted = wanted;
        let trial = self.wanted.trial.as_ref();
        let policies = trial.map(|trial| &*trial.before.policy);
        let policies = policies.into_iter().chain([&*self.wanted.loaded.policy]);
        self.runtimes.retain(policies);
        Ok(())
    }

    /// Logs the warnings about a policy that an operator has put in force.
    fn warn_of_policy(&self, loaded: &Loaded, plan: &Plan) {
        let mut warnings = loaded.policy.warnings(Timestamp::now());
        for target in &plan.targets {
            if let Some(link) = self.seen.link(target.index) {
                warnings.extend(loaded.policy.frame_warnings(&target.name, link.mtu));
            }
        }
        for warning in warnings {
            warn!("{}", warning.display(&loaded.path.display().to_string()));
        }
    }

    /// Saves the wishes of the operators. If that fails, they stay in force: to drop a flood while the disk is full is
    /// more important than to survive a restart. The failure is logged, and saving is tried again.
    pub(super) fn keep(&mut self) {
        let trial = self.wanted.trial.as_ref();
        let in_force = trial.map_or(&self.wanted.loaded, |trial| &trial.before);
        let policy = StoredPolicy {
            // Always the agent's own policy file: the next agent uses this text if it cannot read that file.
            path: self.places.policy.clone(),
            text: Arc::clone(&in_force.text),
        };
        let connected = self.plan.runtime.connected && trial.is_none();
        let containers = connected.then(|| KnownContainers {
            socket: Some(self.plan.runtime.socket.clone()),
            daemon: self.plan.runtime.daemon.clone(),
            containers: (*self.plan.content.containers).clone(),
        });
        let (modes, entries) = (self.wanted.modes.clone(), self.wanted.entries.to_vec());
        let kept = &mut self.store.kept;
        kept.policy = Some(policy);
        kept.modes = modes;
        kept.entries = entries;
        if containers.is_some() {
            kept.containers.clone_from(&containers);
        }
        let saved = self.store.save();
        if self.store.changed_outside() {
            self.take_in_store();
        }
        self.wanted
            .last_known
            .clone_from(&self.store.kept.containers);
        self.not_kept = match saved {
            Ok(()) => None,
            Err(error) => {
                warn!("the change is in force, but will be lost at the next start: {error}");
                Some(error.to_string())
            }
        };
        self.keep_off_without_disk();
        self.is_unkept = false;
        // After a success, the next change of the containers may be saved soon.
        let pause = match self.not_kept {
            Some(_) => PATIENCE,
            None => BEAT,
        };
        self.keep_again = Instant::now() + pause;
    }

    /// Leaves a mark in the pins if the state cannot be saved and the guard is switched off, so that the kill switch
    /// survives this agent on a full disk. It does not survive a reboot.
    fn keep_off_without_disk(&self) {
        let pins = &self.places.pins;
        let host = self.wanted.modes.host.as_ref();
        let is_off = host.is_some_and(|host| host.mode == Mode::Off);
        if self.not_kept.is_some() && is_off {
            if let Err(error) = ExitMark::OffUnkept.leave(pins) {
                warn!("the next agent will switch the guard on again: {error}");
            }
        } else {
            ExitMark::OffUnkept.take(pins);
        }
    }

    /// Takes changes of the state store that were made without this agent into the wishes for the next plan.
    fn take_in_store(&mut self) {
        let kept = &self.store.kept;
        if kept.modes != self.wanted.modes || kept.entries != *self.wanted.entries {
            info!("modes or entries were changed without this agent: they are taken in");
        }
        self.wanted.modes = kept.modes.clone();
        self.wanted.entries = Arc::new(kept.entries.clone());
    }

    pub(super) fn tick_ns(&self) -> u64 {
        self.seen.tick_ns
    }

    /// Reads the host again: the kernel sends no event when a sysctl changes. Facts that cannot be read keep their last
    /// known values, and the plan reports them.
    pub(super) async fn read_host(&self) {
        let _result = self.host.read_again().await;
    }

    /// The current host picture.
    pub(super) fn host_now(&self) -> Arc<Host> {
        self.host.borrow()
    }

    pub(super) fn not_kept(&self) -> Option<String> {
        self.not_kept.clone()
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Tries failed interfaces again with the next plan, without the usual pause.
    pub(super) fn try_again(&mut self) {
        self.applier.try_again();
    }

    /// The interfaces on which packets are judged.
    pub(super) fn judging(&self) -> Vec<String> {
        let links = read::links().unwrap_or_default();
        let about = self.applier.dataplane().and_then(|it| it.about().ok());
        if about.is_none_or(|about| about.mode == Mode::Off as u8) {
            return Vec::new();
        }
        let attachments = self.applier.attachments();
        attachments
            .map(|(index, one)| (index, one.attachment()))
            .filter(|(index, one)| {
                // Pins may be hidden by a mount over their folder, so the program on the interface counts as well.
                let found = links.get(index).and_then(|link| link.xdp);
                let is_ours = found.map(|found| found.program_id) == one.program_id();
                found.is_some() && is_ours || one.is_pinned()
            })
            .map(|(_, one)| one.interface().to_owned())
            .collect()
    }

    pub(super) fn generation(&self) -> u64 {
        let about = self.applier.dataplane().and_then(|it| it.about().ok());
        about.map_or(0, |about| about.generation)
    }

    /// Detaches the programs or leaves them, by `on_exit` in the policy.
    fn leave(&mut self) -> Result<()> {
        if self.is_unkept {
            self.keep();
        }
        match self.wanted.loaded.policy.on_exit {
            OnExit::Keep => {
                if let Ok(now) = host::timebase() {
                    self.applier.stop(now.boot_ns);
                }
                info!("the kernel continues with the policy in force");
                Ok(())
            }
            OnExit::Detach => {
                let left = self.gate.detach(|| self.applier.detach());
                anyhow::ensure!(left.is_empty(), "{}", left.join("; "));
                Ok(())
            }
        }
    }

    /// Notes when the mode, or whether the plan is in force, changes.
    fn note_what_is_in_force(&mut self) {
        let mut attachments = self.applier.attachments();
        let is_as_planned = self.trouble.is_none()
            && self.plan.obstacles.is_empty()
            && self.plan.troubles.is_empty()
            && self.applier.unopened().next().is_none()
            && attachments.all(|(_, attached)| attached.trouble().is_none());
        let mode = self.plan.content.policy.mode;
        let (mode_before, was_as_planned, _) = self.in_force;
        if (mode, is_as_planned) != (mode_before, was_as_planned) {
            self.in_force = (mode, is_as_planned, Timestamp::now());
        }
    }

    pub(super) fn publish(&mut self) {
        self.note_what_is_in_force();
        let (_, _, since) = self.in_force;
        let dataplane = self.applier.dataplane();
        let interfaces = self.applier.attachments().map(|(index, attached)| {
            let attachment = attached.attachment();
            let in_force = attachment.program_id().map(|program_id| ProgramInForce {
                pins: attachment.pins().clone(),
                program_id,
                mode: attachment.mode(),
                generation: attachment.about().map_or(0, |about| about.generation),
                since: attached.swapped(),
            });
            GuardedInterface {
                index,
                name: attachment.interface().to_owned(),
                in_force,
                trouble: attached.trouble().map(str::to_owned),
            }
        });
        let unopened = self.applier.unopened();
        let unopened = unopened.map(|(index, name, trouble)| GuardedInterface {
            index,
            name: name.to_owned(),
            in_force: None,
            trouble: Some(trouble.to_owned()),
        });
        self.snapshot.send_replace(Arc::new(Snapshot {
            loaded: Arc::clone(&self.wanted.loaded),
            plan: Arc::clone(&self.plan),
            host: Arc::clone(&self.seen),
            modes: self.wanted.modes.clone(),
            trial: self.wanted.trial.clone(),
            interfaces: interfaces.chain(unopened).collect(),
            trouble: self.trouble.clone(),
            cut: self.cut.warnings(),
            not_kept: self.not_kept.clone(),
            pins: self.places.pins.clone(),
            tapped: dataplane.map(Dataplane::tapped).unwrap_or_default(),
            flows: self.applier.flows(),
            floods: self.floods.clone(),
            since,
            policy_file: self.places.policy.clone(),
            file: Arc::clone(&self.policy_file),
            refused: self.store.kept.refused.clone(),
        }));
    }
}
