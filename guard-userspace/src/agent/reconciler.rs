//! The loop: whatever happens leads to another plan, and the plan is applied.

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
    runtimes::{Followed, RuntimeListener, are_ports_contested},
    snapshot::{GuardedInterface, ProgramInForce},
};
use crate::{
    dataplane::{
        Dataplane, Force,
        pins::{Hold, Word},
    },
    docker,
    host::{
        self, Host, HostWatch, Netlink,
        claim::{Claim, patiently},
        read,
    },
    operator::ssh_session,
    policy::{KernelTick, OnExit},
    privileges,
    state_store::{self, ChangedMode, KnownContainers, StateStore, StoredPolicy},
};

/// How often everything is looked after, though nothing is heard.
const BEAT: Duration = Duration::from_secs(1);

/// How long a state that cannot be kept, or a trial that cannot be ended, waits until it is tried again.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a runtime may take that is followed from now on: nothing waits for an agent that starts, and everything
/// does for one that works. A container may take two seconds to be inspected.
const RUNTIME_AT_START: Duration = Duration::from_secs(10);
pub(super) const RUNTIME_LATER: Duration = Duration::from_secs(3);

/// What the loop begins with.
pub struct Begin {
    pub places: AgentPaths,
    pub force: Force,
    pub host: HostWatch,
    /// The network namespace of this process.
    pub namespace: u64,
    pub gate: Gate,
    pub progress: Progress,
    /// Where work goes that the loop does not wait for.
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
    /// The host as the last plan saw it.
    seen: Arc<Host>,
    applier: Applier,
    plan: Arc<Plan>,
    /// Why the plan is not in force, if that concerns no single interface.
    trouble: Option<String>,
    not_kept: Option<String>,
    keep_again: Instant,
    /// Containers have changed since the state was written: it is, once a second at most.
    is_unkept: bool,
    /// Held for its drop: no other agent has this state meanwhile.
    _turn: Option<Claim>,
    /// The same of the pins; `None`: another agent has them, and this one ends.
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
    /// Puts a policy in force, and takes over what an agent before this one left.
    ///
    /// # Errors
    /// What was in force before stays so.
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
        let hold = patiently(|| Hold::take(&places.pins)).await;
        let hold = hold.map_err(anyhow::Error::from)?;
        let hold = hold.ok_or_else(|| anyhow::Error::from(Hold::taken(&places.pins)))?;
        let claims = turn.iter().chain([hold.claim()]);
        // Without a mark, agents that start wait longer for this one than they need.
        gate.is_at_work(claims.filter_map(|claim| claim.work_mark().ok()));
        state_store::warn_if_open(&places.state);
        let mut store = StateStore::open(&places.state);
        if Word::Detached.take(&places.pins) {
            // An operator means the next start, and a service manager that starts what hung does not.
            return Err(ChangeError::StaysOff);
        }
        if store.kept.detached {
            // An operator who detaches from now on means this agent. If it cannot be written, that is told below.
            let _result = store.update(|kept| kept.detached = false);
        }
        if let Some(trial) = store.kept.trial.take() {
            warn!(
                "the policy {} was on trial when the agent before this one ended, and was not confirmed: the \
                 policy before it is put in force",
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
        // Its warnings are told when it is applied.
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
        // Started by hand, it asks as `reload` does; a service manager comes over no SSH.
        if Word::OffUnkept.take(&reconciler.places.pins) {
            reconciler.be_off();
        }
        reconciler.take_words();
        let wanted = reconciler.wanted.clone();
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

    /// Goes on until the guard has been taken off or the agent is asked to end.
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
                        // The process ends, whether somebody waits for this or not.
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
            // First of all: what is written below must not undo it.
            self.take_in_others();
            if is_beat && !self.gate.is_detached() {
                self.look_after().await;
            }
            if self.gate.is_detached() {
                warn!("the guard has been taken off: the agent ends");
                return;
            }
            if self.hold.is_none() {
                return;
            }
            self.reconcile().await;
            if self.take_in_others() && !self.gate.is_detached() {
                // It came while this agent was stopped between its last look and a swap.
                self.reconcile().await;
            }
            self.publish();
        }
    }

    /// What is due without an event: that others see this agent alive, and that trials and entries end.
    async fn look_after(&mut self) {
        if let Some(hold) = &mut self.hold
            && let Err(problem) = hold.hold_on()
        {
            error!("{problem}: this agent ends, and leaves what is in force to the other");
            self.hold = None;
            return;
        }
        let Ok(now) = host::timebase() else {
            return;
        };
        self.applier.beat(now.boot_ns);
        self.attached.refresh();
        let is_over = |trial: &Trial| now.boot_ns >= trial.until_ns;
        if self.wanted.trial.as_ref().is_some_and(is_over)
            && Instant::now() >= self.go_back_again
            && let Err(problem) = self.go_back().await
        {
            self.go_back_again = Instant::now() + PATIENCE;
            // The kernel has gone back by itself.
            error!("the policy before the trial cannot be loaded again: {problem}");
        }
        self.end_entries(now.world);
        self.keep_what_is_due();
        self.look_for_cut_sessions();
    }

    /// What was done without this agent, as while it hung. Whether there was anything.
    fn take_in_others(&mut self) -> bool {
        let mut is_news = self.store.changed_outside();
        if is_news {
            self.take_in_store();
        }
        is_news |= self.take_words();
        if self.store.kept.detached && !self.gate.is_detached() {
            // It may have been put back before this was known.
            self.gate.detach(|| self.applier.detach());
            is_news = true;
        }
        is_news
    }

    /// What was done without this agent, perhaps while the state could not be written. Whether there was anything.
    fn take_words(&mut self) -> bool {
        let is_detached = Word::Detached.take(&self.places.pins);
        if is_detached {
            self.store.kept.detached = true;
        }
        let is_off = self.gate.take_off_word();
        let host = self.wanted.modes.host.as_ref();
        // The state may have it already, and who did it.
        if is_off && host.is_none_or(|host| host.mode != Mode::Off) {
            self.be_off();
        }
        is_detached || is_off
    }

    /// Heeds a use of the kill switch without an agent.
    fn be_off(&mut self) {
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

    /// Forgets the entries that the kernel has ended.
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
            info!(id = entry.id, prefix = %entry.prefix, "an entry has ended");
        }
        self.wanted.entries = Arc::new(left);
        self.keep();
    }

    /// What this host should look like for what is wanted.
    fn plan_for(&mut self, wanted: &Wanted) -> Plan {
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

    /// Brings the kernel to what is wanted. What fails is in the status, and is tried again.
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
            "containers have changed, and the tables with them"
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

    /// Plans for what is wanted, and applies the plan. What is wanted holds from then on.
    ///
    /// # Errors
    /// As [`Applier::apply`]: with [`RollbackScope::Whole`], what was wanted before holds.
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
            // What was asked for before it must not undo it, nor a client that did not wait for its answer.
            self.wanted.modes.host = Some(off.clone());
            wanted.modes.host = Some(off);
            self.keep();
        }
        wanted.guarded = self.applier.guarded();
        // Before the plan knows more: a port that is closed from now on is of the next plan.
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

    /// Says what is to be looked at again in a policy that an operator has put in force.
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

    /// Keeps what is wanted. If that fails, what is in force stays so: an operator who drops a flood while the disk is
    /// full is worth more than a restart. It is told, and tried again.
    pub(super) fn keep(&mut self) {
        let trial = self.wanted.trial.as_ref();
        let in_force = trial.map_or(&self.wanted.loaded, |trial| &trial.before);
        let policy = StoredPolicy {
            // The agent's own file stands for whatever is in force when it cannot be read.
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
                warn!("in force, but lost at the next start: {error}");
                Some(error.to_string())
            }
        };
        self.keep_off_without_disk();
        self.is_unkept = false;
        // What could be written may be written again with the next change of the containers.
        let pause = match self.not_kept {
            Some(_) => PATIENCE,
            None => BEAT,
        };
        self.keep_again = Instant::now() + pause;
    }

    /// The kill switch outlives this agent on a full disk, too, though no reboot.
    fn keep_off_without_disk(&self) {
        let pins = &self.places.pins;
        let host = self.wanted.modes.host.as_ref();
        let is_off = host.is_some_and(|host| host.mode == Mode::Off);
        if self.not_kept.is_some() && is_off {
            if let Err(error) = Word::OffUnkept.leave(pins) {
                warn!("the next agent does not know that the guard is off: {error}");
            }
        } else {
            Word::OffUnkept.take(pins);
        }
    }

    /// What was changed without this agent holds, and is in force with the next plan.
    fn take_in_store(&mut self) {
        let kept = &self.store.kept;
        if kept.modes != self.wanted.modes || kept.entries != *self.wanted.entries {
            info!("what was changed without this agent is taken in");
        }
        self.wanted.modes = kept.modes.clone();
        self.wanted.entries = Arc::new(kept.entries.clone());
    }

    pub(super) fn tick_ns(&self) -> u64 {
        self.seen.tick_ns
    }

    /// Reads the host again: the kernel says nothing of a setting (sysctl) that changes. What cannot be read stays as it
    /// was, and is told by the plan.
    pub(super) async fn read_host(&self) {
        let _result = self.host.read_again().await;
    }

    /// The host at this moment.
    pub(super) fn host_now(&self) -> Arc<Host> {
        self.host.borrow()
    }

    pub(super) fn not_kept(&self) -> Option<String> {
        self.not_kept.clone()
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What failed may work now.
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
                // Something may be mounted over the pins: what the kernel has on the interface counts.
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

    /// Takes the programs off, or leaves them, as the policy says.
    fn leave(&mut self) -> Result<()> {
        if self.is_unkept {
            self.keep();
        }
        match self.wanted.loaded.policy.on_exit {
            OnExit::Keep => {
                info!("the kernel goes on with the policy in force");
                Ok(())
            }
            OnExit::Detach => {
                let left = self.gate.detach(|| self.applier.detach());
                anyhow::ensure!(left.is_empty(), "{}", left.join("; "));
                Ok(())
            }
        }
    }

    pub(super) fn publish(&self) {
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
        }));
    }
}
