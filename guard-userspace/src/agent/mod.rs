//! The agent: one loop that keeps this host in the state that its operators want.
//!
//! ```text
//! Host (links, addresses, routes, sysctls) ─┐
//! Runtime (containers, networks)           ├─> plan -> Plan -> apply -> kernel
//! Wanted (policy, entries, modes, trial)   ─┘                    └────> Snapshot -> readers
//! ```
//!
//! The loop ([`reconciler`]) has a thread of its own: a program that takes seconds to load delays no reader. Changes by
//! operators reach it as [`command`]s. The emergency exits bypass it through a [`gate`].

pub mod apply;
mod attached;
mod changes;
mod command;
mod cut_sessions;
mod entry_effect;
pub mod gate;
mod loaded;
pub mod plan;
mod policy_file;
mod recent;
mod reconciler;
mod runtimes;
mod snapshot;
mod wanted;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use guard_common::reason::Mode;
use jiff::Timestamp;
use tokio::{
    runtime::{self, Handle as Runtime},
    sync::{mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval, timeout},
};
use tracing::{info, warn};

use self::{
    attached::AttachedReader,
    command::{AgentCommand, Reply},
    gate::Gate,
    recent::RecentTalkers,
    reconciler::Reconciler,
};
pub use self::{
    changes::ChangeError,
    loaded::Loaded,
    runtimes::{FoundOnce, find_once},
    snapshot::Snapshot,
    wanted::{Trial, Wanted},
};
use crate::{
    api::{
        self, Applied, Changed, Detached, EntryRequest, Explanation, ModeChange, NewTrial, Reload,
        Revocation, SourceExplanation, Status, actor::Actor, capture::CaptureRequest,
    },
    dataplane::{
        Force, Passing, Removal, Tap, detach_all, pass_everything_everywhere,
        pins::network_namespace,
    },
    host::{HostWatch, read},
    policy::Entry,
    privileges,
    state_store::StateStore,
};

/// The file and the folders of the agent.
#[derive(Clone, Debug)]
pub struct AgentPaths {
    /// The policy file.
    pub policy: PathBuf,
    /// The root folder of the pins.
    pub pins: PathBuf,
    /// The folder of the state store.
    pub state: PathBuf,
}

/// A handle of the running agent, for the rest of the process.
#[derive(Clone)]
pub struct Agent {
    commands: mpsc::Sender<AgentCommand>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    progress: Progress,
    gate: Gate,
    places: Arc<AgentPaths>,
    attached: AttachedReader,
    recent: Arc<Mutex<RecentTalkers>>,
}

/// The limit of changes that wait for the loop.
const WAITING_CHANGES: usize = 64;

/// How long the kill switch waits for the loop to save the mode.
const PATIENCE_TO_KEEP: Duration = Duration::from_secs(3);

/// When the loop last began a step.
#[derive(Clone, Debug)]
struct Progress(Arc<Mutex<Instant>>);

/// The longest time for one step of the loop: the verifier takes seconds for a large policy in an emulated machine.
const LONGEST_STEP: Duration = Duration::from_secs(120);

impl Progress {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn step(&self) {
        let Self(last) = self;
        if let Ok(mut last) = last.lock() {
            *last = Instant::now();
        }
    }

    fn is_alive(&self) -> bool {
        let Self(last) = self;
        last.lock().is_ok_and(|last| last.elapsed() < LONGEST_STEP)
    }
}

impl Agent {
    /// Puts a policy in force, and takes over the pins of a previous agent. Must be called inside a tokio runtime. The
    /// second value completes when the agent ends.
    ///
    /// # Errors
    /// The agent cannot start. The generation in force stays in force.
    pub async fn start(
        places: AgentPaths,
        force: Force,
    ) -> Result<(Self, oneshot::Receiver<()>), ChangeError> {
        let namespace = network_namespace().context("the network namespace cannot be read")?;
        let host = HostWatch::start()
            .await
            .context("route netlink cannot be reached")?;
        let gate = Gate::new(&places.pins);
        let progress = Progress::new();
        let attached = AttachedReader::of_this_host();
        let (commands, receiver) = mpsc::channel(WAITING_CHANGES);
        let (started, start) = oneshot::channel();
        let (ended, end) = oneshot::channel();
        let begin = reconciler::Begin {
            places: places.clone(),
            force,
            host,
            namespace,
            gate: gate.clone(),
            progress: progress.clone(),
            workers: Runtime::current(),
            attached: attached.clone(),
        };
        thread::Builder::new()
            .name("reconciler".to_owned())
            .spawn(move || {
                let runtime = runtime::Builder::new_current_thread()
                    .on_thread_park(privileges::follow)
                    .enable_all()
                    .build();
                match runtime {
                    Ok(runtime) => runtime.block_on(work(begin, receiver, started)),
                    Err(error) => {
                        let _result = started.send(Err(anyhow::Error::from(error).into()));
                    }
                }
                // The receiver may be gone: the process ends.
                let _result = ended.send(());
            })
            .context("no thread can be started")?;
        let snapshot = start.await.context("the agent has ended")??;
        let agent = Self {
            commands,
            snapshot,
            progress,
            gate,
            places: Arc::new(places),
            attached,
            recent: Arc::default(),
        };
        Ok((agent, end))
    }

    /// Whether the loop makes progress. The watchdog is fed only while it does.
    pub fn is_alive(&self) -> bool {
        self.progress.is_alive()
    }

    /// Whether the guard was switched off without this agent after `asked`, the time of a client's request.
    pub fn is_off_since(&self, asked: SystemTime) -> bool {
        self.gate.is_off_since(asked)
    }

    /// The last published snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.borrow())
    }

    /// A receiver of all snapshots that are published from now on.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }

    /// The status of the guard. The attached programs are read from the kernel now, if it answers in time.
    pub async fn status(&self) -> Result<Status> {
        let attached = self.attached.read().await?;
        let snapshot = self.snapshot();
        Ok(privileges::spawn_blocking(move || snapshot.status(&attached)).await?)
    }

    /// The kernel's counters of every interface.
    pub async fn counters(&self) -> Result<Vec<api::Counter>> {
        let snapshot = self.snapshot();
        privileges::spawn_blocking(move || snapshot.counters()).await?
    }

    /// The top talkers of every interface, the heaviest first.
    pub async fn talkers(&self) -> Result<Vec<api::Talker>> {
        let snapshot = self.snapshot();
        privileges::spawn_blocking(move || snapshot.talkers()).await?
    }

    /// Records at intervals how much each source sends, for [`explain`](Self::explain). Does not return.
    pub async fn follow_talkers(&self) {
        let mut readings = interval(recent::INTERVAL);
        readings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            readings.tick().await;
            // A failed reading is not recorded here: the commands that read talkers return the error.
            if let Ok(talkers) = self.talkers().await {
                self.recent().add(Instant::now(), &talkers);
            }
        }
    }

    fn recent(&self) -> MutexGuard<'_, RecentTalkers> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a capture of the packets that match a request.
    pub fn tap(&self, request: &CaptureRequest) -> Result<Tap, ChangeError> {
        self.snapshot().tap(request)
    }

    /// Explains the verdict on a packet by the policy in force.
    pub async fn explain(&self, from: IpAddr, to: &str) -> Result<Explanation, ChangeError> {
        let snapshot = self.snapshot();
        let to = snapshot.destination(to)?;
        let recent = self.recent().clone();
        let explained =
            privileges::spawn_blocking(move || snapshot.explain(from, &to, &recent)).await;
        Ok(explained.map_err(anyhow::Error::from)??)
    }

    /// Explains what becomes of a source at each service, by the policy in force.
    pub async fn explain_source(&self, from: IpAddr) -> Result<SourceExplanation, ChangeError> {
        let snapshot = self.snapshot();
        let recent = self.recent().clone();
        let explained =
            privileges::spawn_blocking(move || snapshot.explain_source(from, &recent)).await;
        Ok(explained.map_err(anyhow::Error::from)??)
    }

    /// Reads the policy file again and puts it in force.
    pub async fn reload(&self, request: Reload) -> Result<Changed<Applied>, ChangeError> {
        self.change(|reply| AgentCommand::Reload(request, reply))
            .await
    }

    /// Puts a policy on trial: it is reverted automatically unless an operator confirms it in time.
    pub async fn try_policy(
        &self,
        request: NewTrial,
        by: Actor,
    ) -> Result<Changed<Applied>, ChangeError> {
        self.change(|reply| AgentCommand::Try(request, by, reply))
            .await
    }

    /// Confirms the policy on trial.
    pub async fn confirm(&self) -> Result<Changed<Applied>, ChangeError> {
        self.change(AgentCommand::Confirm).await
    }

    /// Adds an entry, which allows or denies sources for a time.
    pub async fn enter(
        &self,
        request: EntryRequest,
        by: Actor,
    ) -> Result<Changed<api::EnteredEntry>, ChangeError> {
        self.change(|reply| AgentCommand::Enter(request, by, reply))
            .await
    }

    /// Ends an entry.
    pub async fn revoke(
        &self,
        id: u64,
        request: Revocation,
        by: Actor,
    ) -> Result<Changed<Entry>, ChangeError> {
        self.change(|reply| AgentCommand::Revoke(id, request, by, reply))
            .await
    }

    /// Sets the mode of the host or of a service, or resets it to the mode of the policy.
    ///
    /// `off` for the host is the kill switch: it takes effect before it is checked, planned or saved, and does not wait
    /// for the loop.
    pub async fn set_mode(
        &self,
        request: ModeChange,
        by: Actor,
    ) -> Result<Changed<Applied>, ChangeError> {
        let is_kill_switch = request.service.is_none() && request.mode.as_deref() == Some("off");
        if !is_kill_switch {
            return self
                .change(|reply| AgentCommand::Mode(request, by, reply))
                .await;
        }
        let (gate, places) = (self.gate.clone(), Arc::clone(&self.places));
        let tick_ns = self.snapshot().host.tick_ns;
        let asked = changes::changed_mode(Mode::Off, request.by.clone(), &by);
        let in_force: BTreeSet<u32> = self.snapshot().programs().collect();
        let passing = privileges::spawn_blocking(move || {
            let passing =
                gate.switch_off(asked, || pass_everything_everywhere(&places.pins, tick_ns));
            let judging = interfaces_with_program(|program| in_force.contains(&program));
            (passing, judging)
        });
        let (passing, judging) = passing.await.map_err(anyhow::Error::from)?;
        let mut problems = match passing {
            Ok(Passing { failed, .. }) => failed,
            Err(error) => vec![error.to_string()],
        };
        problems.extend(judging);
        for problem in &problems {
            warn!("packets are still judged: {problem}");
        }
        let keep = self.change(|reply| AgentCommand::Mode(request, by, reply));
        match timeout(PATIENCE_TO_KEEP, keep).await {
            // The loop has put the mode in force, also where the kill switch failed.
            Ok(Ok(changed)) => Ok(changed),
            kept if problems.is_empty() => {
                let why = match kept {
                    Ok(Err(error)) => format!("{:#}", anyhow::Error::from(error)),
                    _ => "the agent is busy, and has not saved the mode yet".to_owned(),
                };
                Ok(Changed {
                    done: self.snapshot().applied_off(),
                    not_kept: Some(why),
                })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(anyhow::anyhow!("{}", problems.join("; ")).into()),
        }
    }

    /// Detaches the guard from every interface, and then tries to save that. This agent attaches nothing afterwards.
    /// Returns the programs and pins that are left, and why the state could not be saved, if so.
    pub async fn detach(&self) -> Detached {
        let (gate, places) = (self.gate.clone(), Arc::clone(&self.places));
        let in_force: BTreeSet<u32> = self.snapshot().programs().collect();
        let detached = privileges::spawn_blocking(move || {
            let mut detached = gate.detach(|| take_off(&places));
            let judging = interfaces_with_program(|program| in_force.contains(&program));
            let judging = judging.into_iter().map(|interface| {
                format!(
                    "{interface}: its program still runs, and no pin below {} holds it",
                    places.pins.display()
                )
            });
            detached.still_attached.extend(judging);
            detached
        });
        let detached = detached.await.unwrap_or_else(|error| Detached {
            still_attached: vec![error.to_string()],
            ..Detached::default()
        });
        // The gate tells the loop to end. This command only wakes the loop.
        let _result = self.commands.try_send(AgentCommand::End);
        detached
    }

    /// Ends the loop. `on_exit` in the policy decides whether the programs stay attached.
    pub async fn end(&self) -> Result<()> {
        self.gate.is_ending();
        let (reply, done) = oneshot::channel();
        if self.commands.send(AgentCommand::Leave(reply)).await.is_ok() {
            return done.await.unwrap_or(Ok(()));
        }
        Ok(())
    }

    async fn change<T>(
        &self,
        command: impl FnOnce(Reply<T>) -> AgentCommand,
    ) -> Result<Changed<T>, ChangeError> {
        let (reply, answer) = oneshot::channel();
        let gone =
            || ChangeError::Wrong("the guard has been detached, and this agent ends".to_owned());
        let sent = self.commands.send(command(reply)).await;
        sent.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// The time for the kernel to free a link whose pin was removed (bpf_free_inode() waits for RCU).
const FREEING: Duration = Duration::from_secs(2);

/// The names of interfaces that still have one of these programs, after the kernel had time to free links without a
/// pin.
pub fn interfaces_with_program(is_meant: impl Fn(u32) -> bool) -> Vec<String> {
    let end = Instant::now() + FREEING;
    loop {
        let links = match read::links() {
            Ok(links) => links,
            Err(error) => {
                return vec![format!(
                    "this host's interfaces, which cannot be read ({error}),"
                )];
            }
        };
        let judging = links.into_values().filter(|link| {
            let program = link.xdp.map(|xdp| xdp.program_id);
            program.is_some_and(&is_meant)
        });
        let judging: Vec<String> = judging.map(|link| link.name).collect();
        if judging.is_empty() || Instant::now() >= end {
            return judging;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Detaches and removes everything that can be removed, and saves that. Logs the rest.
fn take_off(places: &AgentPaths) -> Detached {
    let removal = detach_all(&places.pins).unwrap_or_else(|error| Removal {
        still_attached: vec![error.to_string()],
        ..Removal::default()
    });
    for interface in &removal.interfaces {
        info!(interface, "detached");
    }
    for problem in removal.still_attached.iter().chain(&removal.left) {
        warn!("not removed: {problem}");
    }
    // Saved last: it is more important that nothing is blocked.
    let ((), kept) = StateStore::open(&places.state).update(|kept| kept.detached = true);
    let not_kept = kept.err().map(|error| error.to_string());
    if let Some(error) = &not_kept {
        warn!("the guard is detached, but that cannot be saved: {error}");
    }
    Detached {
        not_kept,
        still_attached: removal.still_attached,
        left: removal.left,
    }
}

type Started = Result<watch::Receiver<Arc<Snapshot>>, ChangeError>;

async fn work(
    begin: reconciler::Begin,
    commands: mpsc::Receiver<AgentCommand>,
    started: oneshot::Sender<Started>,
) {
    match Reconciler::start(begin).await {
        Ok(reconciler) => {
            // An error means that the receiver is gone: the process ends.
            if started.send(Ok(reconciler.snapshots())).is_ok() {
                reconciler.run(commands).await;
            }
        }
        Err(error) => {
            let _result = started.send(Err(error));
        }
    }
}

/// The time since an event, in milliseconds. Its time stamp may come from another machine's clock.
fn milliseconds_since(event: Timestamp) -> Option<i64> {
    let since = Timestamp::now().duration_since(event);
    i64::try_from(since.as_millis()).ok()
}
