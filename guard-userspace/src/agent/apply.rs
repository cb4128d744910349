//! Applies a plan to the kernel: the only module that attaches, swaps, changes tables and detaches.
//!
//! A policy is loaded once, for all interfaces. Each interface is then changed separately; an interface that is as
//! planned is not touched. If an interface fails, its program stays, the status names the failure, and it is tried
//! again. A change that an operator requests is put in force on all interfaces or on none.

mod swap;

pub use self::swap::explained_gap;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tracing::{debug, info, warn};

use self::swap::PendingSwap;
use super::{
    ChangeError, Loaded,
    gate::{Epoch, Gate},
    plan::{Content, Plan, Target, line_of},
};
use crate::{
    dataplane::{
        AttachError, Attachment, Closer, Dataplane, FlowCounts, Force, LoadError, PolicyFacts,
        PortUpdates, Prepared, needs_new_generation, pins::Pins,
    },
    host::{self, Host, Link, XdpState, read},
    memory,
    policy::{CompileInput, Containers, PublishedPort},
};

/// The time after which an interface that refused its program is tried again. A change of the interface ends it early.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The state of the kernel as this agent has made it.
pub struct Applier {
    root: PathBuf,
    /// The network namespace of this process.
    namespace: u64,
    gate: Gate,
    closer: Closer,
    /// The state that all interfaces share. `None`: there is none, or it could not be opened.
    dataplane: Option<Dataplane>,
    /// The content in force. `None`: nothing is in force, or the generation of a previous agent.
    content: Option<Content>,
    /// The content to which the kernel reverts when a trial ends.
    fallback: Option<Content>,
    /// By the index of the interface.
    attachments: BTreeMap<u32, Attached>,
    /// The state of interfaces that do not exist now, by the name under which it is pinned.
    waiting: BTreeMap<String, Attachment>,
    /// Interfaces of the plan whose state cannot be opened, by index: nothing is in force there.
    unopened: BTreeMap<u32, Unopened>,
    /// The rows of interfaces by their indices, as last written to the kernel.
    rows: BTreeMap<u32, u32>,
    flows: Option<FlowCounts>,
    /// For what open UDP flows were last recorded.
    recorded: Option<swap::RecordedFlows>,
}

/// An interface that stays without a program, and why.
struct Unopened {
    name: String,
    trouble: String,
    /// When to try again.
    again: Instant,
}

/// An interface, and whether it is as planned.
pub struct Attached {
    attachment: Attachment,
    /// Why the plan is not in force.
    trouble: Option<String>,
    /// When to try again.
    again: Instant,
    /// When its program was last put in force.
    swapped: Instant,
}

/// What happens to the other interfaces when an interface refuses its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RollbackScope {
    /// They get their previous program again, and the change that the operator requested is refused. The refusal of an
    /// interface that had no program and has refused before does not count.
    Whole,
    /// The plan is applied to them nevertheless.
    Interface,
}

/// The change that an interface needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// It is as planned.
    Nothing,
    /// It refused the plan recently, and is not tried again yet.
    Patience,
    /// The tables of the generation in force are changed.
    Tables,
    /// It gets the generation that is in force on the others.
    Program,
    /// Another generation is loaded.
    Generation,
}

/// A plan, and the circumstances of applying it.
pub struct Order<'a> {
    pub plan: &'a Plan,
    pub loaded: &'a Loaded,
    pub host: &'a Host,
    pub epoch: Epoch,
    pub force: Force,
    pub unit: RollbackScope,
    /// Ports that were closed early, before the plan was made, and that it has.
    pub early: &'a BTreeSet<PublishedPort>,
    /// Returns the containers at the time of the call: a load takes long, and the plan may be out of date then.
    pub latest: &'a dyn Fn() -> Arc<Containers>,
    /// Called before each load and swap, to report that the loop makes progress: many interfaces take long.
    pub step: &'a dyn Fn(),
}

impl Applier {
    /// Opens the pins of previous agents. It changes nothing in the kernel.
    pub fn open(root: PathBuf, namespace: u64, gate: Gate, closer: Closer) -> Self {
        let mut applier = Self {
            root,
            namespace,
            gate,
            closer,
            dataplane: None,
            content: None,
            fallback: None,
            attachments: BTreeMap::new(),
            waiting: BTreeMap::new(),
            unopened: BTreeMap::new(),
            rows: BTreeMap::new(),
            flows: None,
            recorded: None,
        };
        let found = Pins::existing(&applier.root).unwrap_or_else(|error| {
            warn!("the pins of a previous agent cannot be read: {error}");
            Vec::new()
        });
        if found.is_empty() {
            return applier;
        }
        let mut dataplane = match Dataplane::open(&applier.root, namespace) {
            Ok(dataplane) => dataplane,
            Err(error) => {
                // The pins belong to another agent or are broken. The error is reported when a plan is applied.
                debug!("the pins of a previous agent are not taken over: {error}");
                return applier;
            }
        };
        for pins in found {
            let name = pins.interface().to_owned();
            match dataplane.open_interface(pins) {
                Ok(attachment) => match attachment.index() {
                    Some(index) => {
                        let attached = Attached::new(attachment);
                        applier.attachments.insert(index, attached);
                    }
                    None => {
                        applier.waiting.insert(name, attachment);
                    }
                },
                // The error is reported if the plan needs this interface.
                Err(error) => debug!(interface = name, "its pins are not taken over: {error}"),
            }
        }
        applier.dataplane = Some(dataplane);
        applier
    }

    /// The interfaces that have the program: the name under which each is pinned, and its index.
    pub fn guarded(&self) -> BTreeMap<String, u32> {
        let guarded = self.attachments.iter();
        guarded
            .filter(|(_, attached)| attached.attachment.is_pinned())
            .map(|(index, attached)| (attached.attachment.pins().made_for(), *index))
            .collect()
    }

    /// The interfaces that carry the program, by index.
    pub fn attachments(&self) -> impl Iterator<Item = (u32, &Attached)> {
        self.attachments
            .iter()
            .map(|(index, attached)| (*index, attached))
    }

    /// The generations in force, and the state that interfaces share.
    pub fn dataplane(&self) -> Option<&Dataplane> {
        self.dataplane.as_ref()
    }

    /// Interfaces of the plan that have no program: index, name, and why.
    pub fn unopened(&self) -> impl Iterator<Item = (u32, &str, &str)> {
        let unopened = self.unopened.iter();
        unopened.map(|(index, one)| (*index, one.name.as_str(), one.trouble.as_str()))
    }

    /// Tries a failed interface again at once if it or an upper device has changed. Other changes of the host, which
    /// may come several times a second, are no reason for another load.
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

    /// Tries all failed interfaces again at once, because an operator requests a change.
    pub fn try_again(&mut self) {
        for unopened in self.unopened.values_mut() {
            unopened.again = Instant::now();
        }
        for attached in self.attachments.values_mut() {
            attached.again = Instant::now();
        }
    }

    /// Applies a plan to the kernel. Returns whether anything was changed.
    ///
    /// # Errors
    /// With [`RollbackScope::Whole`]: the previous content stays. With [`RollbackScope::Interface`]: only errors
    /// that concern no single interface. Other errors become the trouble of their interface.
    pub fn apply(&mut self, order: &Order<'_>) -> Result<bool, ChangeError> {
        let before: BTreeSet<u32> = self.attachments.keys().copied().collect();
        let applied = self.try_apply(order);
        if applied.is_err() || self.attachments.values().any(|one| one.trouble.is_some()) {
            // Not all interfaces have the ports that were closed early. The next plan handles them again.
            self.closer.give_back(order.early.clone());
        }
        if applied.is_err() && order.unit == RollbackScope::Whole {
            self.forget_all_but(&before);
        }
        applied
    }

    /// Removes interfaces that a refused change named for the first time. Nothing is in force there.
    fn forget_all_but(&mut self, before: &BTreeSet<u32>) {
        let new = self.attachments.keys().copied();
        let new: Vec<u32> = new.filter(|index| !before.contains(index)).collect();
        let mut rows = Vec::new();
        for index in new {
            if let Some(Attached { attachment, .. }) = self.attachments.remove(&index)
                && !attachment.is_pinned()
            {
                rows.push(attachment.row());
                let name = attachment.interface().to_owned();
                if let Err(error) = attachment.detach() {
                    let error = anyhow::Error::from(error);
                    warn!(interface = name, "pins cannot be removed: {error:#}");
                }
            }
        }
        self.leave_rows(&rows);
        if self.attachments.is_empty() && self.waiting.is_empty() {
            self.remove_dataplane();
        }
    }

    /// Frees the rows of removed interfaces.
    fn leave_rows(&mut self, rows: &[u32]) {
        if let Some(dataplane) = &mut self.dataplane
            && !rows.is_empty()
        {
            dataplane.leave(rows);
        }
    }

    /// Removes the shared state after the last interface.
    fn remove_dataplane(&mut self) {
        self.content = None;
        self.fallback = None;
        let left = self.dataplane.take().map(Dataplane::remove);
        for left in left.into_iter().flatten() {
            warn!("not removed: {left}");
        }
    }

    fn try_apply(&mut self, order: &Order<'_>) -> Result<bool, ChangeError> {
        let Order {
            plan, host, unit, ..
        } = *order;
        if let Some(refusal) = &plan.refusal {
            return Err(anyhow::anyhow!("{refusal}").into());
        }
        if self.dataplane.is_none() {
            self.dataplane = Some(Dataplane::open(&self.root, self.namespace)?);
        }
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
                    needed.push((target, found));
                }
                Err(error) => self.refused(target, unit, order, error.into())?,
            }
        }
        let rows = needed.iter().filter_map(|(target, _)| {
            let attached = self.attachments.get(&target.index)?;
            Some(attached.attachment.row())
        });
        let rows: BTreeSet<u32> = rows.collect();
        let needs = |applier: &Self| -> Vec<Need> {
            let needed = needed.iter();
            needed
                .map(|(target, found)| applier.need(target, *found, &rows, order))
                .collect()
        };
        let mut is_changed = self.change_tables(&needed, &needs(self), order)?;
        let needs = needs(self);
        let steps = self.steps(&needed, &needs, order)?;
        if !steps.is_empty() {
            is_changed = true;
            let next = if needs.contains(&Need::Generation) {
                self.prepare(&steps, rows.len() == 1, order)
            } else {
                Ok(None)
            };
            match next {
                Ok(next) => self.put_in_force(steps, next, order)?,
                Err(error) => {
                    let targets = steps.iter().map(|step| step.target);
                    self.all_refused(targets.collect(), order, error)?;
                }
            }
        }
        is_changed |= self.drop_others(plan, order)?;
        self.assign_rows(host)?;
        if is_changed {
            self.follow_ports();
            memory::give_back();
        }
        Ok(is_changed)
    }

    /// The interfaces that get a program: that of the generation in force, or of the next one if another is needed.
    fn steps<'a>(
        &self,
        needed: &[(&'a Target, Option<XdpState>)],
        needs: &[Need],
        order: &Order<'a>,
    ) -> Result<Vec<PendingSwap<'a>>, ChangeError> {
        let needs_generation = needs.contains(&Need::Generation);
        let mut steps = Vec::new();
        for ((target, found), need) in needed.iter().zip(needs) {
            let Some(Attached { attachment, .. }) = self.attachments.get(&target.index) else {
                continue;
            };
            let is_meant = match need {
                Need::Program => true,
                // An interface that has the previous program gets the next one with the others.
                Need::Patience => needs_generation && attachment.program_id().is_some(),
                _ => needs_generation,
            };
            if is_meant {
                steps.push(PendingSwap {
                    target,
                    found: *found,
                    swaps: attachment.is_on(*found),
                });
            }
        }
        // Test before the load: an overtaken plan must not load a generation in vain.
        if self.gate.is_overtaken(order.epoch) && !steps.is_empty() {
            drop(self.gate.enter(order.epoch)?);
        }
        // First attach, then swap: if an interface refuses its first program, no other has been swapped yet.
        steps.sort_by_key(|step| step.swaps);
        Ok(steps)
    }

    /// Writes the rows of interfaces to the kernel. A packet that comes in by a bond has the index of the bond's port.
    fn assign_rows(&mut self, host: &Host) -> Result<(), ChangeError> {
        let rows = self.attachments.iter();
        let rows = rows.map(|(index, one)| (*index, one.attachment.row()));
        let rows = with_ports(rows.collect(), host);
        if let Some(dataplane) = &self.dataplane
            && self.rows != rows
        {
            dataplane.assign_rows(&rows)?;
            self.rows = rows;
        }
        Ok(())
    }

    /// The XDP program that an interface has now. Opens the state of the interface if it is not open.
    fn look(
        &mut self,
        target: &Target,
        host: &Host,
        links: &BTreeMap<u32, Link>,
    ) -> Result<Option<XdpState>, AttachError> {
        if !self.attachments.contains_key(&target.index) {
            let attachment = match (self.take_waiting(target, host), self.new_pins(target)) {
                (Some(attachment), _) => attachment,
                (None, pins) => {
                    let dataplane = self.dataplane.as_mut();
                    let dataplane = dataplane.ok_or(LoadError::Incomplete("state"))?;
                    dataplane.open_interface(pins)?
                }
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

    /// The pins for an interface: below its name, unless an interface that had this name when it was attached uses
    /// them.
    fn new_pins(&self, target: &Target) -> Pins {
        let mut attachments = self.attachments.values();
        if attachments.any(|one| one.attachment.pins().made_for() == target.name) {
            return Pins::new(&self.root, &format!("{}%{}", target.name, target.index));
        }
        Pins::new(&self.root, &target.name)
    }

    /// The state of a removed interface of this name: an interface that is created again has another index.
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

    /// The change that an interface needs. `rows`: of all interfaces of the plan.
    fn need(
        &self,
        target: &Target,
        found: Option<XdpState>,
        rows: &BTreeSet<u32>,
        order: &Order<'_>,
    ) -> Need {
        let Some(attached) = self.attachments.get(&target.index) else {
            return Need::Generation;
        };
        if attached.trouble.is_some()
            && attached.again > Instant::now()
            && order.unit == RollbackScope::Interface
        {
            return Need::Patience;
        }
        let plan = order.plan;
        let dataplane = self.dataplane.as_ref();
        let (Some(content), Some(dataplane), Some(in_force)) = (
            &self.content,
            dataplane,
            dataplane.and_then(Dataplane::in_force),
        ) else {
            return Need::Generation;
        };
        if !content.is_same_program(&plan.content) || !in_force.is_for(rows) {
            return Need::Generation;
        }
        let attachment = &attached.attachment;
        let program = dataplane.program_id();
        let is_displaced = attachment.program_id() != program
            || found.map(|found| found.program_id) != program
            || !attachment.is_pinned()
            || !dataplane.is_pinned();
        if is_displaced {
            return Need::Program;
        }
        let is_fallback_same = match (&self.fallback, &plan.fallback) {
            (Some(before), Some(after)) => before.has_same_tables(after),
            _ => true,
        };
        if content.has_same_tables(&plan.content) && is_fallback_same {
            Need::Nothing
        } else {
            Need::Tables
        }
    }

    /// Changes the tables of the running generation. If that needs another generation, [`content`](Self::content) is
    /// cleared, so that one is loaded.
    fn change_tables(
        &mut self,
        needed: &[(&Target, Option<XdpState>)],
        needs: &[Need],
        order: &Order<'_>,
    ) -> Result<bool, ChangeError> {
        for ((target, _), need) in needed.iter().zip(needs) {
            if *need == Need::Nothing
                && let Some(attached) = self.attachments.get_mut(&target.index)
            {
                // The interface is as planned again: the plan or the table has returned to the earlier state.
                attached.trouble = None;
            }
        }
        let has_early = !order.early.is_empty() && needs.contains(&Need::Nothing);
        if needs.contains(&Need::Generation) || !needs.contains(&Need::Tables) && !has_early {
            return Ok(false);
        }
        match self.try_change_tables(order) {
            Ok(()) => {
                self.seed_published(order)?;
                for ((target, _), need) in needed.iter().zip(needs) {
                    if *need == Need::Tables
                        && let Some(attached) = self.attachments.get_mut(&target.index)
                    {
                        attached.trouble = None;
                    }
                }
            }
            Err(error) if needs_new_generation(&error) => {
                debug!("another generation is needed: {error}");
                self.content = None;
            }
            Err(error) => {
                let changed = needed
                    .iter()
                    .zip(needs)
                    .filter(|(_, need)| matches!(need, Need::Tables | Need::Nothing));
                let changed = changed.map(|((target, _), _)| *target).collect();
                self.all_refused(changed, order, error.into())?;
            }
        }
        Ok(true)
    }

    fn try_change_tables(&mut self, order: &Order<'_>) -> Result<(), LoadError> {
        if order.early.is_empty() && self.has_same_lists(order.plan) {
            return self.change_own_sources(&order.plan.content.own_sources);
        }
        let news = PortUpdates::early(order.early);
        let mut news = news.with_newest(order.latest, &order.plan.content.local_ports);
        let changed = self.change_lists(order.plan, &mut news);
        self.closer.give_back(news.kept);
        changed
    }

    /// Whether at most this host's own addresses have changed: for these alone, no policy is compiled again.
    fn has_same_lists(&self, plan: &Plan) -> bool {
        let is_same = |before: &Option<Content>, after: Option<&Content>| match (before, after) {
            (Some(before), Some(after)) => before.has_same_lists(after),
            (None, Some(_)) => false,
            (_, None) => true,
        };
        is_same(&self.content, Some(&plan.content))
            && is_same(&self.fallback, plan.fallback.as_ref())
    }

    fn change_own_sources(&mut self, own: &Arc<BTreeSet<IpAddr>>) -> Result<(), LoadError> {
        let Some(dataplane) = &mut self.dataplane else {
            return Ok(());
        };
        if let (Some(prepared), Some(content)) = (dataplane.in_force_mut(), &mut self.content) {
            prepared.change_own_sources(own)?;
            content.own_sources = Arc::clone(own);
        }
        for older in dataplane.older_mut() {
            // The status already says that its interface is not as planned. Entries that fit are in force.
            let _result = older.change_own_sources(own);
        }
        if let (Some(prepared), Some(content)) = (dataplane.fallback_mut(), &mut self.fallback) {
            prepared.change_own_sources(own)?;
            content.own_sources = Arc::clone(own);
        }
        Ok(())
    }

    /// Changes the tables in force to those of a plan, and the tables of the fallback of a trial: the kernel may revert
    /// to it without an agent.
    fn change_lists(&mut self, plan: &Plan, news: &mut PortUpdates<'_>) -> Result<(), LoadError> {
        let Some(dataplane) = &mut self.dataplane else {
            return Ok(());
        };
        let content = &plan.content;
        if let Some(prepared) = dataplane.in_force_mut() {
            prepared.change(&compile_input(content, &content.containers)?, news)?;
            self.content = Some(content.clone());
        }
        for older in dataplane.older_mut() {
            // The status already says that its interface is not as planned. Entries that fit are in force.
            let _result = older.change(&compile_input(content, &content.containers)?, news);
        }
        if let (Some(prepared), Some(content)) = (dataplane.fallback_mut(), &plan.fallback) {
            let compile_input = compile_input(content, &content.containers)?;
            // The fallback may name another runtime, so the newest ports are not for it: the next plan has its ports.
            match prepared.change(&compile_input, &mut news.early_alone()) {
                // The fallback is loaded anew when the trial ends. Until then, entries that fit are in its tables.
                Err(error) if needs_new_generation(&error) => {}
                result => result?,
            }
            self.fallback = Some(content.clone());
        }
        Ok(())
    }

    /// Loads a generation for interfaces. Errors because of the policy occur here, before any change. `is_alone`: there
    /// is one interface.
    fn prepare(
        &mut self,
        steps: &[PendingSwap<'_>],
        is_alone: bool,
        order: &Order<'_>,
    ) -> Result<Option<Prepared>, ChangeError> {
        (order.step)();
        let Some(dataplane) = &self.dataplane else {
            return Ok(None);
        };
        dataplane.restore_pins()?;
        let mut attachments = Vec::new();
        for step in steps {
            if let Some(attached) = self.attachments.get(&step.target.index) {
                attached.attachment.restore_pins()?;
                attachments.push(&attached.attachment);
            }
        }
        let content = &order.plan.content;
        let facts = PolicyFacts {
            path: order.loaded.path.display().to_string(),
            sha256: order.loaded.policy.sha256.clone(),
            loaded_ms: order.loaded.at.as_millisecond(),
            trial_until: content.trial_until_ns,
        };
        let compile_input = compile_input(content, &content.containers)?;
        let alone = attachments.first().copied().filter(|_| is_alone);
        let tick_ns = order.host.tick_ns;
        let prepared = dataplane.prepare(&content.policy, &compile_input, tick_ns, facts, alone)?;
        Ok(Some(prepared))
    }

    /// Whether an interface had no program of this guard before, and the status says why. If it still refuses, that is
    /// no reason to refuse a change on the others, such as a deny entry during a flood.
    fn is_left_out(&self, index: u32) -> bool {
        let attached = self.attachments.get(&index);
        attached.is_some_and(|one| one.trouble.is_some() && one.attachment.program_id().is_none())
            || self.unopened.contains_key(&index)
    }

    /// Handles an interface on which the plan cannot be applied: an error, or the trouble of the interface.
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
        self.trouble(target, format!("{:#}", anyhow::Error::from(error)));
        Ok(())
    }

    /// Handles interfaces on which the plan cannot be applied for a reason that they share.
    fn all_refused(
        &mut self,
        targets: Vec<&Target>,
        order: &Order<'_>,
        error: ChangeError,
    ) -> Result<(), ChangeError> {
        let is_refusal = order.unit == RollbackScope::Whole
            && !targets.iter().all(|target| self.is_left_out(target.index));
        if is_refusal || self.gate.is_overtaken(order.epoch) {
            return Err(error);
        }
        let trouble = format!("{:#}", anyhow::Error::from(error));
        for target in targets {
            self.trouble(target, trouble.clone());
        }
        Ok(())
    }

    fn trouble(&mut self, target: &Target, trouble: String) {
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
    }

    /// Detaches the guard from interfaces that the plan does not choose. The state of an interface that the policy
    /// names and that does not exist now stays: the interface continues its counters when it returns.
    fn drop_others(&mut self, plan: &Plan, order: &Order<'_>) -> Result<bool, ChangeError> {
        let chosen: BTreeSet<u32> = plan.targets.iter().map(|target| target.index).collect();
        let others = self.attachments.keys().copied();
        let others: Vec<u32> = others.filter(|index| !chosen.contains(index)).collect();
        let mut rows = Vec::new();
        for index in others {
            // Before the removal from the list: if the plan is overtaken, the next plan detaches the interface.
            let _turn = self.gate.enter(order.epoch)?;
            let Some(Attached { attachment, .. }) = self.attachments.remove(&index) else {
                continue;
            };
            let pinned_as = attachment.pins().made_for();
            if order.host.link(index).is_none() && plan.awaited.contains(&pinned_as) {
                self.waiting.insert(pinned_as, attachment);
            } else {
                rows.push(drop_from(attachment));
            }
        }
        let gone = self.waiting.keys();
        let gone: Vec<String> = gone
            .filter(|name| !plan.awaited.contains(*name))
            .cloned()
            .collect();
        for name in gone {
            let _turn = self.gate.enter(order.epoch)?;
            rows.extend(self.waiting.remove(&name).map(drop_from));
        }
        self.leave_rows(&rows);
        Ok(!rows.is_empty())
    }

    /// Gives the closer the generations whose port tables it changes.
    fn follow_ports(&self) {
        let generations = self.dataplane.iter().flat_map(Dataplane::generations);
        self.closer.follow(generations);
    }

    /// Writes to the pins that the agent is alive at `boot_ns` (CLOCK_BOOTTIME, nanoseconds), and maintains the table
    /// of flows.
    pub fn beat(&mut self, boot_ns: u64) {
        if let Some(dataplane) = &mut self.dataplane {
            // A failure concerns only commands that read the pins without an agent.
            let _result = dataplane.beat(boot_ns);
            match dataplane.remove_ended_flows() {
                Ok(flows) => self.flows = flows,
                Err(error) => debug!("flows cannot be counted: {error}"),
            }
            dataplane.flush_log();
        }
    }

    /// Writes to the pins that this agent was stopped in order.
    pub fn stop(&mut self, boot_ns: u64) {
        if let Some(dataplane) = &mut self.dataplane {
            // A failure concerns only commands that read the pins without an agent.
            let _result = dataplane.stop(boot_ns);
        }
    }

    /// The services that are flooded at this moment, and since when, in nanoseconds of CLOCK_BOOTTIME.
    pub fn floods(&self, boot_ns: u64) -> Vec<(String, u64)> {
        let floods = self
            .dataplane
            .iter()
            .map(|dataplane| dataplane.floods(boot_ns));
        let floods = floods.flat_map(|floods| {
            floods.unwrap_or_else(|error| {
                debug!("floods cannot be read: {error}");
                Vec::new()
            })
        });
        floods.collect()
    }

    /// The number of tracked UDP flows. `None`: flows are not tracked.
    pub fn flows(&self) -> Option<FlowCounts> {
        self.flows
    }

    /// Detaches the guard from all interfaces. The caller holds the gate. Returns the errors.
    pub fn detach(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        for (_, attached) in mem::take(&mut self.attachments) {
            let name = attached.attachment.interface().to_owned();
            match attached.attachment.detach() {
                Ok(()) => info!(interface = name, "detached"),
                Err(error) => left.push(format!("{name}: {:#}", anyhow::Error::from(error))),
            }
        }
        self.remove_dataplane();
        left
    }
}

impl Attached {
    fn new(attachment: Attachment) -> Self {
        Self {
            attachment,
            trouble: None,
            again: Instant::now(),
            swapped: Instant::now(),
        }
    }

    /// When its program was last put in force.
    pub fn swapped(&self) -> Instant {
        self.swapped
    }

    /// The program on the interface.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// Why the interface is not as planned.
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
}

/// Detaches the guard from an interface that the policy does not choose. Returns the row that becomes free.
fn drop_from(attachment: Attachment) -> u32 {
    let name = attachment.interface().to_owned();
    let row = attachment.row();
    match attachment.detach() {
        Ok(()) => info!(
            interface = name,
            "detached: the policy does not choose this interface"
        ),
        Err(error) => warn!(
            interface = name,
            "the policy does not choose this interface, but it cannot be detached completely: {:#}",
            anyhow::Error::from(error)
        ),
    }
    row
}

fn compile_input<'a>(
    content: &'a Content,
    containers: &'a Containers,
) -> Result<CompileInput<'a>, LoadError> {
    Ok(CompileInput {
        containers,
        local_ports: &content.local_ports,
        now: host::timebase().map_err(LoadError::Host)?,
        entries: &content.entries,
        own_sources: &content.own_sources,
    })
}

/// Adds the ports of bonds to the rows of interfaces. The kernel runs the program of a bond in the drivers of its
/// ports, which have no row of their own.
fn with_ports(mut rows: BTreeMap<u32, u32>, host: &Host) -> BTreeMap<u32, u32> {
    let links = host.links.known().into_iter().flat_map(BTreeMap::values);
    let ports: Vec<(u32, u32)> = links
        .filter(|link| !rows.contains_key(&link.index))
        .filter_map(|link| Some((link.index, *rows.get(&link.controller?)?)))
        .collect();
    rows.extend(ports);
    rows
}

/// The error for a chosen interface that does not exist. If the policy does not name it, a default route led to it when
/// the plan was made.
fn is_missing(loaded: &Loaded, name: &str) -> anyhow::Error {
    if line_of(loaded, name).is_empty() {
        return anyhow::anyhow!("interface {name} does not exist any more");
    }
    anyhow::anyhow!(
        "{}{}: interface {name} does not exist: `ip -brief link` lists the interfaces",
        loaded.path.display(),
        line_of(loaded, name)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_a_bond_has_the_bonds_row_unless_it_has_its_own() {
        let mut host = Host::unread(4_000_000);
        let port = |index, controller| Link {
            controller: Some(controller),
            ..Link::ethernet(index, format!("port{index}"))
        };
        let links = [
            Link::ethernet(1, "bond0"),
            port(2, 1),
            port(3, 1),
            Link::ethernet(4, "br0"),
            port(5, 4),
            Link::ethernet(6, "wan"),
        ];
        host.links = links
            .map(|link| (link.index, link))
            .into_iter()
            .collect::<BTreeMap<_, _>>()
            .into();
        // Guarded are the bond and, separately, one of its ports.
        let rows = with_ports(BTreeMap::from([(1, 7), (3, 8), (6, 9)]), &host);
        assert_eq!(rows, BTreeMap::from([(1, 7), (2, 7), (3, 8), (6, 9)]));
    }
}
