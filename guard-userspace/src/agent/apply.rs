//! Makes the kernel what a plan says: the only place that attaches, swaps, changes tables and detaches.
//!
//! A policy is loaded once, for all interfaces. Each is then brought to the plan by itself, and what is as planned
//! already is not touched. What fails leaves what was in force, is told in the status, and is tried again. A change that
//! an operator asks for is put in force on all interfaces or on none.

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
        PortUpdates, Prepared, needs_another, pins::Pins,
    },
    host::{self, Host, Link, XdpState, read},
    memory,
    policy::{CompileInput, Containers, PublishedPort},
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
    /// What all interfaces share. `None`: nothing is there, or it could not be opened.
    dataplane: Option<Dataplane>,
    /// What is in force. `None`: nothing, or what an agent before this one left.
    content: Option<Content>,
    /// What the kernel goes back to when a trial ends.
    fallback: Option<Content>,
    /// By the index of the interface.
    attachments: BTreeMap<u32, Attached>,
    /// State of interfaces that are gone, by the name that it is pinned by.
    waiting: BTreeMap<String, Attachment>,
    /// Interfaces of the plan whose state cannot be opened, by index: nothing is in force there.
    unopened: BTreeMap<u32, Unopened>,
    /// The rows of interfaces by their indices, as the kernel was told last.
    rows: BTreeMap<u32, u32>,
    flows: Option<FlowCounts>,
}

/// An interface that stays without a program, and why.
struct Unopened {
    name: String,
    trouble: String,
    /// When it is tried again.
    again: Instant,
}

/// An interface, and whether it is as planned.
pub struct Attached {
    attachment: Attachment,
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
    /// The tables of what is in force are brought to the plan.
    Tables,
    /// It gets what is in force on the others.
    Program,
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
            dataplane: None,
            content: None,
            fallback: None,
            attachments: BTreeMap::new(),
            waiting: BTreeMap::new(),
            unopened: BTreeMap::new(),
            rows: BTreeMap::new(),
            flows: None,
        };
        let found = Pins::existing(&applier.root).unwrap_or_else(|error| {
            warn!("what an agent before this one left cannot be read: {error}");
            Vec::new()
        });
        if found.is_empty() {
            return applier;
        }
        let mut dataplane = match Dataplane::open(&applier.root, namespace) {
            Ok(dataplane) => dataplane,
            Err(error) => {
                // Another agent's, or broken: it is named when a plan is applied.
                debug!("not taken over: {error}");
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
                // It is named if the plan needs it.
                Err(error) => debug!(interface = name, "not taken over: {error}"),
            }
        }
        applier.dataplane = Some(dataplane);
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

    /// What is in force on the interfaces, and what they share.
    pub fn dataplane(&self) -> Option<&Dataplane> {
        self.dataplane.as_ref()
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

    /// These rows are nobody's any more.
    fn leave_rows(&mut self, rows: &[u32]) {
        if let Some(dataplane) = &mut self.dataplane
            && !rows.is_empty()
        {
            dataplane.leave(rows);
        }
    }

    /// Removes what interfaces shared, of which none is left.
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

    /// Which interfaces get a program: the one in force, or the next one if another is needed.
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
                // What has the one before gets the next one with the others.
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
        // Overtaken: nothing is loaded in vain.
        if self.gate.is_overtaken(order.epoch) && !steps.is_empty() {
            drop(self.gate.enter(order.epoch)?);
        }
        // An interface may refuse its first program, and then nothing has been swapped elsewhere.
        steps.sort_by_key(|step| step.swaps);
        Ok(steps)
    }

    /// Tells the kernel which interface has which row. What comes in by a bond is of the port that it came by.
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

    /// The XDP program that an interface has at this moment; opens the state of one that has none yet.
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

    /// `rows`: of all interfaces of the plan.
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

    /// Changes tables while their generation runs. Where that needs another generation, its content is forgotten.
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
                // The plan has come back to what is in force, or its table has.
                attached.trouble = None;
            }
        }
        let has_early = !order.early.is_empty() && needs.contains(&Need::Nothing);
        if needs.contains(&Need::Generation) || !needs.contains(&Need::Tables) && !has_early {
            return Ok(false);
        }
        match self.try_change_tables(order) {
            Ok(()) => {
                for ((target, _), need) in needed.iter().zip(needs) {
                    if *need == Need::Tables
                        && let Some(attached) = self.attachments.get_mut(&target.index)
                    {
                        attached.trouble = None;
                    }
                }
            }
            Err(error) if needs_another(&error) => {
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

    /// Whether no more has changed than this host's own addresses, for which no policy is compiled again.
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
            // It is told that this interface is not as planned; what fits is in force.
            let _result = older.change_own_sources(own);
        }
        if let (Some(prepared), Some(content)) = (dataplane.fallback_mut(), &mut self.fallback) {
            prepared.change_own_sources(own)?;
            content.own_sources = Arc::clone(own);
        }
        Ok(())
    }

    /// Brings the tables in force to a plan, and those of what a trial goes back to, perhaps without an agent.
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
            // It is told that this interface is not as planned; what fits is in force.
            let _result = older.change(&compile_input(content, &content.containers)?, news);
        }
        if let (Some(prepared), Some(content)) = (dataplane.fallback_mut(), &plan.fallback) {
            let compile_input = compile_input(content, &content.containers)?;
            // Of another runtime perhaps: what it publishes is in the next plan.
            match prepared.change(&compile_input, &mut news.early_alone()) {
                // It is loaded afresh when the trial ends; what fits is in force.
                Err(error) if needs_another(&error) => {}
                result => result?,
            }
            self.fallback = Some(content.clone());
        }
        Ok(())
    }

    /// Loads a generation for interfaces. Everything that can fail for the policy's sake fails here, before anything
    /// changes. `is_alone`: there is one interface.
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

    /// Whether an interface had no program of this guard before, and the status says why: that it still refuses is no
    /// reason to refuse a change on the others, such as a denial while they are flooded.
    fn is_left_out(&self, index: u32) -> bool {
        let attached = self.attachments.get(&index);
        attached.is_some_and(|one| one.trouble.is_some() && one.attachment.program_id().is_none())
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
        self.trouble(target, format!("{:#}", anyhow::Error::from(error)));
        Ok(())
    }

    /// Interfaces that cannot be brought to the plan, for what concerns none of them alone.
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

    /// Takes the guard off interfaces that the plan does not choose. The state of one that the policy names and that
    /// does not exist at this moment is kept: it goes on with its counters when it comes back.
    fn drop_others(&mut self, plan: &Plan, order: &Order<'_>) -> Result<bool, ChangeError> {
        let chosen: BTreeSet<u32> = plan.targets.iter().map(|target| target.index).collect();
        let awaited: BTreeSet<&str> = plan.troubles.iter().map(|one| one.name.as_str()).collect();
        let others = self.attachments.keys().copied();
        let others: Vec<u32> = others.filter(|index| !chosen.contains(index)).collect();
        let mut rows = Vec::new();
        for index in others {
            // First: what is overtaken stays known, and goes with the next plan.
            let _turn = self.gate.enter(order.epoch)?;
            let Some(Attached { attachment, .. }) = self.attachments.remove(&index) else {
                continue;
            };
            let pinned_as = attachment.pins().made_for();
            if order.host.link(index).is_none() && awaited.contains(pinned_as.as_str()) {
                self.waiting.insert(pinned_as, attachment);
            } else {
                rows.push(drop_from(attachment));
            }
        }
        let gone = self.waiting.keys();
        let gone: Vec<String> = gone
            .filter(|name| !awaited.contains(name.as_str()))
            .cloned()
            .collect();
        for name in gone {
            let _turn = self.gate.enter(order.epoch)?;
            rows.extend(self.waiting.remove(&name).map(drop_from));
        }
        self.leave_rows(&rows);
        Ok(!rows.is_empty())
    }

    /// Tells the closer whose port tables count.
    fn follow_ports(&self) {
        let generations = self.dataplane.iter().flat_map(Dataplane::generations);
        self.closer.follow(generations);
    }

    /// Says in the pins that the agent is alive at this moment of CLOCK_BOOTTIME, and tends what is remembered of flows.
    pub fn beat(&mut self, boot_ns: u64) {
        if let Some(dataplane) = &mut self.dataplane {
            // Only readers without an agent miss it.
            let _result = dataplane.beat(boot_ns);
            match dataplane.tend_flows() {
                Ok(flows) => self.flows = flows,
                Err(error) => debug!("flows cannot be counted: {error}"),
            }
            dataplane.flush_log();
        }
    }

    /// The UDP flows that are remembered, if any are.
    pub fn flows(&self) -> Option<FlowCounts> {
        self.flows
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
}

/// Detaches what the policy does not choose, and says whose row is free then.
fn drop_from(attachment: Attachment) -> u32 {
    let name = attachment.interface().to_owned();
    let row = attachment.row();
    match attachment.detach() {
        Ok(()) => info!(interface = name, "the policy does not choose it: detached"),
        Err(error) => warn!(
            interface = name,
            "the policy does not choose it, and it cannot be detached whole: {:#}",
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

/// The rows of interfaces by their indices, and for their ports the same: the kernel runs the program of a bond in the
/// drivers of its ports, which have no row of their own.
fn with_ports(mut rows: BTreeMap<u32, u32>, host: &Host) -> BTreeMap<u32, u32> {
    let links = host.links.known().into_iter().flat_map(BTreeMap::values);
    let ports: Vec<(u32, u32)> = links
        .filter(|link| !rows.contains_key(&link.index))
        .filter_map(|link| Some((link.index, *rows.get(&link.controller?)?)))
        .collect();
    rows.extend(ports);
    rows
}

/// An interface that the plan chose does not exist. A policy that does not name it is not to blame: a default route led
/// there a moment ago.
fn is_missing(loaded: &Loaded, name: &str) -> anyhow::Error {
    if line_of(loaded, name).is_empty() {
        return anyhow::anyhow!("interface {name} does not exist any more");
    }
    anyhow::anyhow!(
        "{}{}: interface {name} does not exist: `ip -brief link` lists those that do",
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
        // Both are guarded: the bond, and one of its ports for itself.
        let rows = with_ports(BTreeMap::from([(1, 7), (3, 8), (6, 9)]), &host);
        assert_eq!(rows, BTreeMap::from([(1, 7), (2, 7), (3, 8), (6, 9)]));
    }
}
