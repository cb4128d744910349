//! Makes the kernel what a plan says: the only place that attaches, swaps, changes tables and detaches.
//!
//! Each interface is brought to the plan by itself, and what is as planned already is not touched. What fails leaves
//! what was in force, is told in the status, and is tried again. A change that an operator asks for is put in force
//! on all interfaces or on none.

mod swap;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tracing::{debug, info, warn};

use self::swap::PendingGeneration;
use super::{
    ChangeError, Loaded,
    gate::{Epoch, Gate},
    plan::{Content, Plan, Target, line_of},
};
use crate::{
    dataplane::{
        AttachError, Attachment, Closer, Force, LoadError, PolicyFacts, PortNews, needs_another,
        pins::Pins,
    },
    host::{self, Host, Link, XdpState, read},
    memory,
    policy::{Containers, Ground, PublishedPort},
};

/// How long an interface that refuses its program is left alone, unless something happens to an interface.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Where and how generations are put in force.
pub struct Applier {
    root: PathBuf,
    /// The network namespace of this process.
    namespace: u64,
    gate: Gate,
    closer: Closer,
    /// By the index of the interface.
    attachments: BTreeMap<u32, Attached>,
    /// State of interfaces that are gone, by the name that it is pinned by.
    waiting: BTreeMap<String, Attachment>,
    /// Interfaces of the plan whose state cannot be opened, by index: nothing is in force there.
    unopened: BTreeMap<u32, Unopened>,
}

/// An interface that stays without a program, and why.
struct Unopened {
    name: String,
    trouble: String,
    /// When it is tried again.
    again: Instant,
}

/// An interface, and what is in force on it.
pub struct Attached {
    attachment: Attachment,
    /// `None`: what an agent before this one left.
    content: Option<Content>,
    fallback: Option<Content>,
    /// Why the plan is not in force.
    trouble: Option<String>,
    /// When it is tried again.
    again: Instant,
    /// When its program was last put in force.
    swapped: Instant,
}

/// What becomes of the other interfaces when one refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RollbackScope {
    /// They get what they had: an operator asked for a change, and is told that it is refused. One that had nothing
    /// and is known to refuse is left out.
    Whole,
    /// They are brought to the plan all the same.
    Interface,
}

/// What the guard does on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// It is as planned.
    Nothing,
    /// It refused the plan a moment ago, and is left alone.
    Patience,
    /// Its tables are brought to the plan.
    Tables,
    /// Another generation is loaded.
    Generation,
}

/// What a plan is applied with.
pub struct Order<'a> {
    pub plan: &'a Plan,
    pub loaded: &'a Loaded,
    pub host: &'a Host,
    pub epoch: Epoch,
    pub force: Force,
    pub unit: RollbackScope,
    /// Ports that were closed before the plan was made, and that it has.
    pub early: &'a BTreeSet<PublishedPort>,
    /// What containers publish at the moment that it is called, in the plan's place: a load takes long.
    pub latest: &'a dyn Fn() -> Arc<Containers>,
    /// Called before each load: many interfaces take long, and the loop goes on.
    pub step: &'a dyn Fn(),
}

impl Applier {
    /// Takes over what agents before this one left. Nothing changes yet.
    pub fn open(root: PathBuf, namespace: u64, gate: Gate, closer: Closer) -> Self {
        let mut applier = Self {
            root,
            namespace,
            gate,
            closer,
            attachments: BTreeMap::new(),
            waiting: BTreeMap::new(),
            unopened: BTreeMap::new(),
        };
        let found = Pins::existing(&applier.root).unwrap_or_else(|error| {
            warn!("what an agent before this one left cannot be read: {error}");
            Vec::new()
        });
        for pins in found {
            let name = pins.interface().to_owned();
            match Attachment::open(pins, namespace) {
                Ok(attachment) => match attachment.index() {
                    Some(index) => {
                        let attached = Attached::new(attachment);
                        applier.attachments.insert(index, attached);
                    }
                    None => {
                        applier.waiting.insert(name, attachment);
                    }
                },
                // Another agent's, or broken: it is named if the plan needs it.
                Err(error) => debug!(interface = name, "not taken over: {error}"),
            }
        }
        applier
    }

    /// The interfaces that carry the program: the name that each is pinned by, and its index.
    pub fn guarded(&self) -> BTreeMap<String, u32> {
        let guarded = self.attachments.iter();
        guarded
            .filter(|(_, attached)| attached.attachment.is_pinned())
            .map(|(index, attached)| (attached.attachment.pins().made_for(), *index))
            .collect()
    }

    pub fn attachments(&self) -> impl Iterator<Item = (u32, &Attached)> {
        self.attachments
            .iter()
            .map(|(index, attached)| (*index, attached))
    }

    /// Interfaces of the plan that have no program: index, name, and why.
    pub fn unopened(&self) -> impl Iterator<Item = (u32, &str, &str)> {
        let unopened = self.unopened.iter();
        unopened.map(|(index, one)| (*index, one.name.as_str(), one.trouble.as_str()))
    }

    /// The host has changed: what failed on an interface may work now if something happened to it or to a device
    /// above. Whatever else changes on a host, several times a second perhaps, is no reason for another load.
    pub fn try_again_after(&mut self, before: &Host, after: &Host) {
        let has_changed = |index: u32| {
            let above = after.uppers(index);
            above != before.uppers(index)
                || above
                    .iter()
                    .chain([&index])
                    .any(|index| before.link(*index) != after.link(*index))
        };
        let now = Instant::now();
        let attached = self.attachments.iter_mut();
        let attached = attached.map(|(index, one)| (index, &mut one.again));
        let unopened = self.unopened.iter_mut();
        let unopened = unopened.map(|(index, one)| (index, &mut one.again));
        for (index, again) in attached.chain(unopened) {
            if *again > now && has_changed(*index) {
                *again = now;
            }
        }
    }

    /// An operator asks: what failed is tried at once.
    pub fn try_again(&mut self) {
        for unopened in self.unopened.values_mut() {
            unopened.again = Instant::now();
        }
        for attached in self.attachments.values_mut() {
            attached.again = Instant::now();
        }
    }

    /// Brings the kernel to a plan. Whether anything was changed.
    ///
    /// # Errors
    /// With [`RollbackScope::Whole`]: what was in force before stays so. With [`RollbackScope::Interface`] only what
    /// concerns no single interface; the rest is the trouble of an interface.
    pub fn apply(&mut self, order: &Order<'_>) -> Result<bool, ChangeError> {
        let before: BTreeSet<u32> = self.attachments.keys().copied().collect();
        let applied = self.try_apply(order);
        if applied.is_err() || self.attachments.values().any(|one| one.trouble.is_some()) {
            // They could not be brought in line: with the next plan, then.
            self.closer.give_back(order.early.clone());
        }
        if applied.is_err() && order.unit == RollbackScope::Whole {
            self.forget_all_but(&before);
        }
        applied
    }

    /// Lets go of interfaces that a refused change named for the first time: nothing is in force there.
    fn forget_all_but(&mut self, before: &BTreeSet<u32>) {
        let new = self.attachments.keys().copied();
        let new: Vec<u32> = new.filter(|index| !before.contains(index)).collect();
        for index in new {
            if let Some(Attached { attachment, .. }) = self.attachments.remove(&index)
                && !attachment.is_pinned()
            {
                let name = attachment.interface().to_owned();
                if let Err(error) = attachment.detach() {
                    let error = anyhow::Error::from(error);
                    warn!(interface = name, "pins cannot be removed: {error:#}");
                }
            }
        }
    }

    fn try_apply(&mut self, order: &Order<'_>) -> Result<bool, ChangeError> {
        let Order {
            plan,
            host,
            force,
            unit,
            ..
        } = *order;
        if let Some(refusal) = &plan.refusal {
            return Err(anyhow::anyhow!("{refusal}").into());
        }
        let early = order.early;
        let mut needed = Vec::new();
        let is_target = |index: &u32| plan.targets.iter().any(|target| target.index == *index);
        self.unopened.retain(|index, _| is_target(index));
        let links = read::links().context("this host's interfaces cannot be read")?;
        for target in &plan.targets {
            let unopened = self.unopened.get(&target.index);
            if unit == RollbackScope::Interface
                && unopened.is_some_and(|one| one.again > Instant::now())
            {
                continue;
            }
            match self.look(target, host, &links) {
                Ok(found) => {
                    self.unopened.remove(&target.index);
                    let need = self.need(target, found, order);
                    needed.push((target, found, need));
                }
                Err(error) => self.refused(target, unit, order, error.into())?,
            }
        }
        let mut is_changed = self.change_tables(&needed, early, order)?;
        let mut steps = Vec::new();
        for (target, found, need) in &needed {
            if self.needs_generation(target, *need) {
                (order.step)();
                match self.prepare(target, *found, order) {
                    Ok(step) => steps.push(step),
                    Err(error) => self.refused(target, unit, order, error)?,
                }
            }
        }
        if !steps.is_empty() {
            is_changed = true;
            self.put_in_force(steps, order, force)?;
        }
        is_changed |= self.drop_others(plan, order)?;
        if is_changed {
            self.follow_ports(&[]);
            memory::give_back();
        }
        Ok(is_changed)
    }

    /// The XDP program that an interface has at this moment; opens the state of one that has none yet.
    fn look(
        &mut self,
        target: &Target,
        host: &Host,
        links: &BTreeMap<u32, Link>,
    ) -> Result<Option<XdpState>, AttachError> {
        if !self.attachments.contains_key(&target.index) {
            let attachment = match self.take_waiting(target, host) {
                Some(attachment) => attachment,
                None => Attachment::open(self.new_pins(target), self.namespace)?,
            };
            self.attachments
                .insert(target.index, Attached::new(attachment));
        }
        if let Some(attached) = self.attachments.get_mut(&target.index) {
            attached.attachment.set_interface(&target.name);
        }
        let link = links.get(&target.index);
        let link = link.ok_or_else(|| AttachError::NoInterface(target.name.clone()))?;
        Ok(link.xdp)
    }

    /// Where the state of an interface will be: below its name, unless another interface was called so when it was
    /// attached.
    fn new_pins(&self, target: &Target) -> Pins {
        let mut attachments = self.attachments.values();
        if attachments.any(|one| one.attachment.pins().made_for() == target.name) {
            return Pins::new(&self.root, &format!("{}%{}", target.name, target.index));
        }
        Pins::new(&self.root, &target.name)
    }

    /// The state of an interface of this name that was there before: one that was removed comes back with another
    /// index.
    fn take_waiting(&mut self, target: &Target, host: &Host) -> Option<Attachment> {
        let gone = self.attachments.iter().find(|(index, attached)| {
            attached.attachment.pins().made_for() == target.name && host.link(**index).is_none()
        });
        if let Some(index) = gone.map(|(index, _)| *index) {
            let attached = self.attachments.remove(&index)?;
            return Some(attached.attachment);
        }
        self.waiting.remove(&target.name)
    }

    fn need(&self, target: &Target, found: Option<XdpState>, order: &Order<'_>) -> Need {
        let Some(attached) = self.attachments.get(&target.index) else {
            return Need::Generation;
        };
        if attached.trouble.is_some()
            && attached.again > Instant::now()
            && order.unit == RollbackScope::Interface
        {
            return Need::Patience;
        }
        let Attached {
            attachment,
            content: Some(content),
            fallback,
            ..
        } = attached
        else {
            return Need::Generation;
        };
        let plan = order.plan;
        let is_displaced = attachment.program_id().is_none()
            || found.map(|found| found.program_id) != attachment.program_id()
            || !attachment.is_pinned();
        if is_displaced || !content.is_same_program(&plan.content) {
            return Need::Generation;
        }
        let is_fallback_same = match (fallback, &plan.fallback) {
            (Some(before), Some(after)) => before.has_same_tables(after),
            _ => true,
        };
        if content.has_same_tables(&plan.content) && is_fallback_same {
            Need::Nothing
        } else {
            Need::Tables
        }
    }

    /// Whether a generation has to be loaded, also because a change of the tables found no room.
    fn needs_generation(&self, target: &Target, need: Need) -> bool {
        let attached = self.attachments.get(&target.index);
        match need {
            Need::Nothing | Need::Patience => false,
            Need::Generation => true,
            Need::Tables => attached.is_none_or(|attached| attached.content.is_none()),
        }
    }

    /// Changes tables while their generation runs. Where that needs another generation, its content is forgotten.
    fn change_tables(
        &mut self,
        needed: &[(&Target, Option<XdpState>, Need)],
        early: &BTreeSet<PublishedPort>,
        order: &Order<'_>,
    ) -> Result<bool, ChangeError> {
        let mut is_changed = false;
        for (target, _, need) in needed {
            let Some(attached) = self.attachments.get_mut(&target.index) else {
                continue;
            };
            if *need == Need::Nothing {
                // The plan has come back to what is in force, or its table has.
                attached.trouble = None;
            }
            let has_early = !early.is_empty() && *need == Need::Nothing;
            if *need != Need::Tables && !has_early {
                continue;
            }
            is_changed = true;
            let news = PortNews::early(early);
            let mut news = news.with_newest(order.latest, &order.plan.content.local_ports);
            let changed = attached.change(order.plan, &mut news);
            self.closer.give_back(news.kept);
            match changed {
                Ok(()) => attached.trouble = None,
                Err(error) if needs_another(&error) => {
                    debug!(
                        interface = target.name,
                        "another generation is needed: {error}"
                    );
                    attached.content = None;
                }
                Err(error) => {
                    self.refused(target, order.unit, order, error.into())?;
                }
            }
        }
        Ok(is_changed)
    }

    /// Loads a generation for an interface. Everything that can fail for the policy's sake fails here, before anything
    /// changes.
    fn prepare(
        &mut self,
        target: &Target,
        found: Option<XdpState>,
        order: &Order<'_>,
    ) -> Result<PendingGeneration, ChangeError> {
        let attached = self.attachments.get(&target.index);
        let attached = attached.ok_or_else(|| AttachError::NoInterface(target.name.clone()));
        let attachment = &attached?.attachment;
        attachment.restore_pins()?;
        let content = &order.plan.content;
        let facts = PolicyFacts {
            path: order.loaded.path.display().to_string(),
            sha256: order.loaded.policy.sha256.clone(),
            loaded_ms: order.loaded.at.as_millisecond(),
            trial_until: content.trial_until_ns,
        };
        let ground = ground(content, &content.containers)?;
        let generation = attachment.prepare(&content.policy, &ground, order.host.tick_ns, facts)?;
        Ok(PendingGeneration {
            index: target.index,
            swaps: attachment.is_on(found),
            found,
            generation,
        })
    }

    /// Whether an interface had no program of this guard before, and the status says why: that it still refuses is no
    /// reason to refuse a change on the others, such as a denial while they are flooded.
    fn is_left_out(&self, index: u32) -> bool {
        let attached = self.attachments.get(&index);
        attached.is_some_and(|one| one.trouble.is_some() && one.attachment.in_force().is_none())
            || self.unopened.contains_key(&index)
    }

    /// An interface that cannot be brought to the plan.
    fn refused(
        &mut self,
        target: &Target,
        unit: RollbackScope,
        order: &Order<'_>,
        error: ChangeError,
    ) -> Result<(), ChangeError> {
        let error = match error {
            ChangeError::Attach(AttachError::NoInterface(name)) => {
                is_missing(order.loaded, &name).into()
            }
            error => error,
        };
        let is_refusal = unit == RollbackScope::Whole && !self.is_left_out(target.index);
        if is_refusal || self.gate.is_overtaken(order.epoch) {
            return Err(error);
        }
        let trouble = format!("{:#}", anyhow::Error::from(error));
        let attached = self.attachments.get_mut(&target.index);
        if let Some(attached) = attached {
            attached.fail(&target.name, trouble);
        } else {
            let known = self.unopened.get(&target.index);
            if known.is_none_or(|known| known.trouble != trouble) {
                warn!(interface = target.name, "not guarded: {trouble}");
            }
            let unopened = Unopened {
                name: target.name.clone(),
                trouble,
                again: Instant::now() + PATIENCE,
            };
            self.unopened.insert(target.index, unopened);
        }
        Ok(())
    }

    /// Takes the guard off interfaces that the plan does not choose.
    fn drop_others(&mut self, plan: &Plan, order: &Order<'_>) -> Result<bool, ChangeError> {
        let chosen: BTreeSet<u32> = plan.targets.iter().map(|target| target.index).collect();
        let others = self.attachments.keys().copied();
        let others: Vec<u32> = others.filter(|index| !chosen.contains(index)).collect();
        let mut is_changed = false;
        for index in others {
            let is_there = order.host.link(index).is_some();
            // First: what is overtaken stays known, and goes with the next plan.
            let _turn = self.gate.enter(order.epoch)?;
            let Some(attached) = self.attachments.remove(&index) else {
                continue;
            };
            let name = attached.attachment.interface().to_owned();
            let pinned_as = attached.attachment.pins().made_for();
            if !is_there
                && plan
                    .troubles
                    .iter()
                    .any(|trouble| trouble.name == pinned_as)
            {
                // It may come back, and goes on with its counters then.
                self.waiting.insert(pinned_as, attached.attachment);
                continue;
            }
            is_changed = true;
            match attached.attachment.detach() {
                Ok(()) => info!(interface = name, "the policy does not choose it: detached"),
                Err(error) => warn!(
                    interface = name,
                    "the policy does not choose it, and it cannot be detached whole: {:#}",
                    anyhow::Error::from(error)
                ),
            }
        }
        Ok(is_changed)
    }

    /// Tells the closer whose port tables count, besides those of generations that wait.
    fn follow_ports(&self, waiting: &[PendingGeneration]) {
        let waiting = waiting.iter().map(|step| step.generation.generation());
        let attachments = self.attachments.values();
        let in_force = attachments.flat_map(|attached| attached.attachment.generations());
        self.closer.follow(in_force.chain(waiting));
    }

    /// Says in the pins that the agent is alive at this moment of CLOCK_BOOTTIME.
    pub fn beat(&mut self, boot_ns: u64) {
        for attached in self.attachments.values_mut() {
            // Only readers without an agent miss it.
            let _result = attached.attachment.beat(boot_ns);
            attached.attachment.flush_log();
        }
    }

    /// Takes the guard off everywhere. The caller holds the gate.
    pub fn detach(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        for (_, attached) in mem::take(&mut self.attachments) {
            let name = attached.attachment.interface().to_owned();
            match attached.attachment.detach() {
                Ok(()) => info!(interface = name, "detached"),
                Err(error) => left.push(format!("{name}: {:#}", anyhow::Error::from(error))),
            }
        }
        left
    }
}

impl Attached {
    fn new(attachment: Attachment) -> Self {
        Self {
            attachment,
            content: None,
            fallback: None,
            trouble: None,
            again: Instant::now(),
            swapped: Instant::now(),
        }
    }

    /// When its program was last put in force.
    pub fn swapped(&self) -> Instant {
        self.swapped
    }

    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    fn fail(&mut self, name: &str, trouble: String) {
        self.again = Instant::now() + PATIENCE;
        if self.trouble.as_ref() != Some(&trouble) {
            warn!(interface = name, "not as planned: {trouble}");
            self.trouble = Some(trouble);
        }
    }

    /// Brings the tables in force to a plan, and those of what a trial goes back to, perhaps without an agent.
    fn change(&mut self, plan: &Plan, news: &mut PortNews<'_>) -> Result<(), LoadError> {
        if let Some(prepared) = self.attachment.in_force_mut() {
            let content = &plan.content;
            prepared.change(&ground(content, &content.containers)?, news)?;
            self.content = Some(content.clone());
        }
        if let (Some(prepared), Some(content)) = (self.attachment.fallback_mut(), &plan.fallback) {
            let ground = ground(content, &content.containers)?;
            // Of another runtime perhaps: what it publishes is in the next plan.
            match prepared.change(&ground, &mut news.early_alone()) {
                // It is loaded afresh when the trial ends; what fits is in force.
                Err(error) if needs_another(&error) => {}
                result => result?,
            }
            self.fallback = Some(content.clone());
        }
        Ok(())
    }
}

fn ground<'a>(content: &'a Content, containers: &'a Containers) -> Result<Ground<'a>, LoadError> {
    Ok(Ground {
        containers,
        local_ports: &content.local_ports,
        now: host::timebase().map_err(LoadError::Host)?,
        entries: &content.entries,
    })
}

pub fn is_missing(loaded: &Loaded, name: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "{}{}: interface {name} does not exist: `ip -brief link` lists those that do",
        loaded.path.display(),
        line_of(loaded, name)
    )
}
