//! The agent: brings policy, operators, Docker and the dataplane together. It puts policies in force and
//! changes them; the kernel goes on without it.

mod answers;
mod changes;
mod containers;
mod interfaces;
mod loaded;
mod tend;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use tokio::sync::watch;
use tracing::{info, warn};

pub(crate) use self::containers::of_others;
pub use self::{
    changes::ChangeError,
    containers::{Docker, ask_docker},
    tend::Tended,
};
use self::{
    containers::Listener,
    interfaces::{Found, look},
    loaded::Loaded,
    tend::PATIENCE,
};
use crate::{
    dataplane::{
        AttachError, Attachment, Closer, Facts, Force, Prepared, Programs, needs_another,
        pins::{Pins, network_namespace},
    },
    host::{self, Netlink, UdpFlow, XdpState},
    kept::{self, KeepError, KeptPolicy, StateFile, Turn},
    memory,
    operator::ssh_session,
    policy::{Clock, Containers, Ground},
};

/// Where the agent finds and keeps its things.
#[derive(Clone, Debug)]
pub struct Places {
    /// The policy file.
    pub policy: PathBuf,
    /// The folder below which links and maps are pinned.
    pub pins: PathBuf,
    /// The folder of the state file.
    pub state: PathBuf,
}

/// A guard at work.
pub struct Agent {
    places: Places,
    loaded: Loaded,
    /// If the policy is on trial: what it goes back to.
    trial: Option<Trial>,
    state: StateFile,
    /// Held for its drop: no other agent has this state meanwhile.
    _turn: Turn,
    /// The names of the interfaces to guard, and those of them that are.
    names: Vec<String>,
    attachments: BTreeMap<String, Attachment>,
    /// Why an interface is not guarded.
    troubles: BTreeMap<String, String>,
    /// When an interface in trouble is looked at again.
    try_again: Instant,
    /// Why the state file is not what it should be, and when it is written again.
    not_kept: Option<String>,
    keep_again: Instant,
    docker: Docker,
    /// Where the policy in force wants metrics and the page.
    web: watch::Sender<Option<SocketAddr>>,
    /// Hears first what Docker says.
    listener: Listener,
    closer: Closer,
    /// The containers that the tables in force know.
    containers: Containers,
    netlink: Netlink,
    tick_ns: u64,
    /// The network namespace of this process.
    namespace: u64,
}

struct Trial {
    before: Loaded,
    until: Timestamp,
    /// The same in nanoseconds of CLOCK_BOOTTIME: when the kernel goes back by itself.
    until_ns: u64,
    /// The Docker of the policy before, if it is another one.
    docker: Option<Docker>,
}

/// A generation that is put in force on an interface.
struct Step {
    name: String,
    xdp: Option<XdpState>,
    generation: Prepared,
    /// In the place of another one of this guard.
    swaps: bool,
}

/// What was done on an interface, to be undone.
struct Done {
    name: String,
    before: Option<Prepared>,
    swapped: bool,
}

/// Which interfaces a policy is put in force on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    OfPolicy,
    /// And those that were guarded before, though a route of theirs may be gone for the moment, or a policy
    /// that is only tried leaves them out.
    AlsoThoseBefore,
}

impl Agent {
    /// Puts a policy in force, and takes over what an agent before this one left.
    ///
    /// # Errors
    /// What was in force before stays so.
    pub async fn start(places: Places, force: Force) -> Result<Self, ChangeError> {
        let netlink = Netlink::connect().context("route netlink cannot be reached")?;
        let tick_ns = host::tick_ns().context("the kernel's tick cannot be read")?;
        let turn = kept::take(&places.state)?;
        let mut state = StateFile::open(&places.state)?;
        state.kept.detached = false;
        if let Some(trial) = state.kept.trial.take() {
            warn!(
                "the policy {} was on trial when the agent before this one ended, and was not \
                 confirmed: the policy before it is put in force",
                trial.path.display()
            );
            state.kept.refuse(trial.sha256);
        }
        let loaded = Loaded::at_start(&places.policy, &state.kept, Clock { tick_ns })?;
        let last = state.kept.containers.clone();
        let closer = Closer::default();
        let listener = Listener {
            changed: Arc::default(),
            closer: closer.clone(),
        };
        let docker = Docker::follow(&loaded.policy, &netlink, last, &listener).await;
        let mut agent = Self {
            namespace: network_namespace().context("the network namespace cannot be read")?,
            loaded: loaded.clone(),
            trial: None,
            names: Vec::new(),
            attachments: BTreeMap::new(),
            troubles: BTreeMap::new(),
            try_again: Instant::now(),
            not_kept: None,
            keep_again: Instant::now(),
            docker,
            web: watch::Sender::new(None),
            listener,
            closer,
            containers: Containers::default(),
            netlink,
            tick_ns,
            places,
            state,
            _turn: turn,
        };
        // Started by hand, it asks as `reload` does; a service manager comes over no SSH.
        agent
            .require_no_lockout(&loaded.policy, ssh_session(), force == Force::Yes)
            .await?;
        agent
            .put_in_force(loaded, 0, force, Names::OfPolicy)
            .await?;
        agent.keep();
        Ok(agent)
    }

    /// Loads a generation for every interface, and then puts each in force. If anything fails, the policy
    /// before it stays.
    ///
    /// `trial_until` is when the kernel goes back by itself, in nanoseconds of CLOCK_BOOTTIME; 0: never.
    async fn put_in_force(
        &mut self,
        next: Loaded,
        trial_until: u64,
        force: Force,
        which: Names,
    ) -> Result<(), ChangeError> {
        let mut names = match (interfaces::names(&next, &self.netlink).await, which) {
            (Err(_), Names::AlsoThoseBefore) if !self.names.is_empty() => Vec::new(),
            (names, _) => names?,
        };
        if which == Names::AlsoThoseBefore {
            let before = self.names.iter().filter(|name| !names.contains(name));
            let before: Vec<String> = before.cloned().collect();
            names.extend(before);
        }
        let mut there = Vec::new();
        let mut troubles = BTreeMap::new();
        for name in &names {
            match look(&next, name, &self.netlink).await? {
                Found::There(xdp) => there.push((name.clone(), xdp)),
                Found::Missing => {
                    troubles.insert(name.clone(), "it does not exist".to_owned());
                }
            }
        }
        if let (true, Some(name)) = (there.is_empty(), names.first()) {
            return Err(interfaces::is_missing(&next, name).into());
        }
        for warning in host::policy_warnings(&next.policy, &names, &self.netlink).await {
            warn!("{}", warning.display(&next.path.display().to_string()));
        }
        let open_flows = self.open_flows().await?;
        // What comes later may need more than these generations have: it is looked at once more.
        let containers = self.docker.containers().clone();
        // Everything that can fail for the policy's sake fails here, before anything changes.
        let prepared = self.prepare(&next, trial_until, &there)?;
        let mut steps: Vec<Step> = there
            .into_iter()
            .zip(prepared)
            .map(|((name, xdp), generation)| Step {
                swaps: self.attachments.get(&name).is_some_and(|a| a.is_on(xdp)),
                name,
                xdp,
                generation,
            })
            .collect();
        // An interface may refuse its first program, and then nothing has been swapped elsewhere.
        steps.sort_by_key(|step| step.swaps);
        // Meanwhile a container may have come, and others may come until the agent looks again.
        let waiting = steps.iter().map(|step| step.generation.generation());
        let generations = self.attachments.values().flat_map(Attachment::generations);
        self.closer.follow(generations.chain(waiting));
        self.docker.update(&next.policy, &self.netlink).await;
        if *self.docker.containers() != containers {
            for step in &mut steps {
                self.catch_up_with_docker(&mut step.generation)?;
            }
        }
        let mut done = Vec::new();
        for step in steps {
            let Step {
                name,
                xdp,
                generation,
                swaps,
            } = step;
            let found = programs(&self.netlink, &name, xdp).await;
            let Some(attachment) = self.attachments.get_mut(&name) else {
                continue;
            };
            let put = attachment.put_in_force(generation, found, force, || open_flows.clone());
            match put {
                Ok((before, refusal)) => {
                    self.tell(&next, &name, refusal);
                    done.push(Done {
                        name,
                        before,
                        swapped: swaps,
                    });
                }
                Err(error) => {
                    self.put_back(done).await;
                    return Err(match error {
                        AttachError::NoInterface(name) => interfaces::is_missing(&next, &name),
                        error => error.into(),
                    }
                    .into());
                }
            }
        }
        for Done { name, before, .. } in done {
            if let Some(attachment) = self.attachments.get_mut(&name) {
                attachment.let_go(before);
            }
        }
        for (name, trouble) in &troubles {
            if self.troubles.get(name) != Some(trouble) {
                warn!(interface = name, "not guarded: {trouble}");
            }
        }
        let gone: Vec<String> = self.attachments.keys().cloned().collect();
        for name in gone.into_iter().filter(|name| !names.contains(name)) {
            if let Some(attachment) = self.attachments.remove(&name) {
                info!(interface = name, "the policy no longer names it: detached");
                attachment.detach().map_err(anyhow::Error::from)?;
            }
        }
        self.names = names;
        self.troubles = troubles;
        for warning in self.label_warnings(&next.policy) {
            warn!("{warning}");
        }
        self.containers = containers;
        self.web
            .send_if_modified(|listen| mem::replace(listen, next.policy.web) != next.policy.web);
        self.loaded = next;
        let generations = self.attachments.values().flat_map(Attachment::generations);
        self.closer.follow(generations);
        // What has happened since the tables were made is not in them.
        self.listener.changed.notify_one();
        memory::give_back();
        Ok(())
    }

    /// A generation for each of these interfaces, in their order.
    fn prepare<T>(
        &mut self,
        next: &Loaded,
        trial_until: u64,
        there: &[(String, T)],
    ) -> Result<Vec<Prepared>> {
        let policy = self.effective_of(&next.policy);
        let local_ports =
            host::local_port_range().context("the local port range cannot be read")?;
        let ground = Ground {
            containers: self.docker.containers(),
            local_ports: &local_ports,
            now: host::timebase().context("the clocks cannot be read")?,
            entries: &self.state.kept.entries,
        };
        let facts = Facts {
            path: next.path.display().to_string(),
            sha256: next.policy.sha256.clone(),
            loaded_ms: next.at.as_millisecond(),
            trial_until,
        };
        let mut prepared = Vec::with_capacity(there.len());
        for (name, _) in there {
            if !self.attachments.contains_key(name) {
                let pins = Pins::new(&self.places.pins, name);
                let attachment = Attachment::open(pins, self.namespace)?;
                self.attachments.insert(name.clone(), attachment);
            }
            if let Some(attachment) = self.attachments.get(name) {
                attachment.restore_pins()?;
                let facts = facts.clone();
                prepared.push(attachment.prepare(&policy, &ground, self.tick_ns, facts)?);
            }
        }
        Ok(prepared)
    }

    /// Brings a generation that waits to what Docker has said meanwhile.
    fn catch_up_with_docker(&self, prepared: &mut Prepared) -> Result<()> {
        let local_ports =
            host::local_port_range().context("the local port range cannot be read")?;
        let ground = Ground {
            containers: self.docker.containers(),
            local_ports: &local_ports,
            now: host::timebase().context("the clocks cannot be read")?,
            entries: &self.state.kept.entries,
        };
        match prepared.change(&ground, &BTreeSet::new()) {
            // The next one has it.
            Err(error) if needs_another(&error) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Undoes what was done on some interfaces when another one failed.
    async fn put_back(&mut self, done: Vec<Done>) {
        for Done {
            name,
            before,
            swapped,
        } in done
        {
            let xdp = self.netlink.xdp(&name).await.unwrap_or_default();
            let found = programs(&self.netlink, &name, xdp).await;
            let result = match (self.attachments.get_mut(&name), before) {
                (Some(attachment), Some(before)) => attachment
                    .put_in_force(before, found, Force::No, Vec::new)
                    .map(drop),
                // It had none before. What an agent before this one left cannot be put back.
                (Some(_), None) if !swapped => match self.attachments.remove(&name) {
                    Some(attachment) => attachment.detach(),
                    None => Ok(()),
                },
                _ => Ok(()),
            };
            if let Err(error) = result {
                warn!(
                    interface = name,
                    "the policy before cannot be put back: {:#}",
                    anyhow::Error::from(error)
                );
            }
        }
    }

    /// The UDP flows of this host and its containers; what comes to others' addresses is no flow of this
    /// host's.
    async fn open_flows(&self) -> Result<Vec<UdpFlow>> {
        let own = self.netlink.addresses().await;
        let own = own.context("this host's addresses cannot be read")?;
        let networks = &self.docker.containers().networks;
        let mut flows = host::open_udp_flows();
        flows.retain(|flow| {
            let local = flow.local.ip().to_canonical();
            let mut networks = networks.iter();
            own.contains(&local) || networks.any(|network| network.prefix.contains(&local))
        });
        Ok(flows)
    }

    fn tell(&self, loaded: &Loaded, name: &str, refusal: Option<String>) {
        let Some(attachment) = self.attachments.get(name) else {
            return;
        };
        if let Some(refusal) = refusal {
            warn!(
                interface = name,
                "the driver does not take the program ({refusal}): it runs in generic mode, which \
                 costs several times as much per packet"
            );
        }
        let policy = self.effective_of(&loaded.policy);
        info!(
            interface = name,
            xdp_mode = attachment.mode().name(),
            mode = policy.mode.name(),
            scope = policy.scope.name(),
            services = policy.services.len(),
            published = self.docker.containers().published.len(),
            "in force"
        );
    }

    /// Writes the state file. If that fails, what is in force stays so: an operator who drops a flood
    /// while the disk is full is worth more than a restart. It is told, and tried again.
    fn keep(&mut self) {
        self.not_kept = match self.try_keep() {
            Ok(()) => None,
            Err(error) => {
                warn!("in force, but lost at the next start: {error}");
                Some(error.to_string())
            }
        };
        self.keep_again = Instant::now() + PATIENCE;
    }

    /// Why a restart would lose what is in force, if it would.
    pub fn not_kept(&self) -> Option<&str> {
        self.not_kept.as_deref()
    }

    /// The policy on trial is not the one that a restart puts in force.
    fn try_keep(&mut self) -> Result<(), KeepError> {
        let in_force = self
            .trial
            .as_ref()
            .map_or(&self.loaded, |trial| &trial.before);
        self.state.kept.policy = Some(KeptPolicy {
            // The agent's own file stands for whatever is in force when it cannot be read.
            path: self.places.policy.clone(),
            text: in_force.text.clone(),
        });
        // Those of a trial are forgotten with it.
        let docker = self.trial.as_ref().and_then(|trial| trial.docker.as_ref());
        if let Some(containers) = docker.unwrap_or(&self.docker).said() {
            self.state.kept.containers = Some(containers.clone());
        }
        self.state.save()
    }

    /// Where the policy in force wants metrics and the page, and every change of that.
    pub fn web_address(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.web.subscribe()
    }

    /// Takes the programs off, or leaves them, as the policy says.
    pub fn end(&mut self) -> Result<()> {
        match self.loaded.policy.on_exit {
            crate::policy::OnExit::Keep => {
                info!("the kernel goes on with the policy in force");
                Ok(())
            }
            crate::policy::OnExit::Detach => self.take_off(),
        }
    }

    fn take_off(&mut self) -> Result<()> {
        for (name, attachment) in mem::take(&mut self.attachments) {
            info!(interface = name, "detached");
            attachment.detach()?;
        }
        Ok(())
    }
}
/// What is on an interface, and above it.
async fn programs(netlink: &Netlink, interface: &str, on: Option<XdpState>) -> Programs {
    Programs {
        on,
        above: netlink.xdp_above(interface).await.unwrap_or_default(),
    }
}
