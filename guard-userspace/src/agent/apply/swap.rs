//! Puts a loaded generation in force, interface by interface, and reverts that if an interface refuses it.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
    time::Instant,
};

use anyhow::Context as _;
use guard_common::layout::PortProtocol;
use tracing::{info, warn};

use super::{Applier, Attached, Order, RollbackScope, compile_input};
use crate::{
    agent::{
        ChangeError,
        gate::Epoch,
        plan::{Content, Target},
    },
    dataplane::{
        AttachError, Attachment, Dataplane, LoadError, PortUpdates, Prepared, Programs, TakenOff,
        needs_new_generation,
    },
    host::{self, Host, OpenFlows, ReadError, Reading, UdpFlow, XdpState, read},
    policy::{Containers, Policy, PublishedPort},
};

/// What decides which UDP flows are recorded.
#[derive(PartialEq)]
pub(super) struct RecordedFlows {
    policy: Arc<Policy>,
    /// The UDP ports that containers publish.
    published: BTreeSet<PublishedPort>,
    /// By index.
    interfaces: BTreeSet<u32>,
}

/// An interface that waits for its program.
#[derive(Clone, Copy)]
pub(super) struct PendingSwap<'a> {
    pub(super) target: &'a Target,
    pub(super) found: Option<XdpState>,
    /// It replaces another program of this guard.
    pub(super) swaps: bool,
}

/// A change on an interface, so that it can be undone.
struct Done {
    index: u32,
    /// The id of the program that this agent had attached there before.
    before: Option<u32>,
    swaps: bool,
    /// Programs of this guard that were detached from upper devices for it, by the index of their interface.
    above: BTreeMap<u32, TakenOff>,
}

impl Applier {
    /// Puts a generation in force on interfaces. `None`: the generation that is in force on the others.
    pub(super) fn put_in_force(
        &mut self,
        steps: Vec<PendingSwap<'_>>,
        next: Option<Prepared>,
        order: &Order<'_>,
    ) -> Result<(), ChangeError> {
        let is_next = next.is_some();
        let content = &order.plan.content;
        let mut latest = Arc::clone(&content.containers);
        if let Some(next) = next {
            latest = self.begin(next, order)?;
        }
        let result = self.put_on_all(steps, order);
        if is_next {
            match &result {
                Ok(done) if !done.is_empty() => self.commit(order)?,
                _ => self.abandon(),
            }
        }
        for index in result? {
            if let Some(attached) = self.attachments.get_mut(&index) {
                attached.trouble = None;
                attached.swapped = Instant::now();
            }
            if is_next {
                let mut content = content.clone();
                content.containers = Arc::clone(&latest);
                self.content = Some(content);
                self.fallback.clone_from(&order.plan.fallback);
            }
        }
        Ok(())
    }

    /// Begins to put a generation in force. Returns the containers with the ports that they publish now.
    fn begin(&mut self, next: Prepared, order: &Order<'_>) -> Result<Arc<Containers>, ChangeError> {
        let turn = self.gate.enter(order.epoch)?;
        let dataplane = self.dataplane.as_mut();
        let dataplane = dataplane.ok_or(LoadError::Incomplete("state"))?;
        let attachments = self.attachments.values_mut();
        dataplane.begin(next, attachments.map(|one| &mut one.attachment))?;
        drop(turn);
        // A container may have started during the load. From here on, early closes reach the new generation as well.
        self.follow_ports();
        // The new generation may have a table of rows of its own: it has to be written again.
        self.rows.clear();
        let mut latest = (order.latest)();
        let content = &order.plan.content;
        if *latest != *content.containers
            && let Some(next) = self.dataplane.as_mut().and_then(Dataplane::next_mut)
        {
            let compile_input = compile_input(content, &latest);
            let news = PortUpdates::default();
            let mut news = news.with_newest(order.latest, &content.local_ports);
            let changed =
                compile_input.and_then(|compile_input| next.change(&compile_input, &mut news));
            self.closer.give_back(news.kept);
            match changed {
                Ok(()) => {}
                // The next plan has the change: it needs another generation.
                Err(error) if needs_new_generation(&error) => {
                    latest = Arc::clone(&content.containers)
                }
                Err(error) => {
                    self.abandon();
                    return Err(error.into());
                }
            }
        }
        Ok(latest)
    }

    /// # Errors
    /// An emergency exit came first. Its effect stands.
    fn commit(&mut self, order: &Order<'_>) -> Result<(), ChangeError> {
        let turn = self.gate.enter(order.epoch);
        let dataplane = self.dataplane.as_mut();
        let dataplane = dataplane.ok_or(LoadError::Incomplete("state"))?;
        let attachments: Vec<&Attachment> = self
            .attachments
            .values()
            .map(|one| &one.attachment)
            .collect();
        match turn {
            Ok(_turn) => Ok(dataplane.commit(&attachments)?),
            Err(overtaken) => {
                dataplane.forget_next();
                Err(overtaken.into())
            }
        }
    }

    fn abandon(&mut self) {
        if let Some(dataplane) = &mut self.dataplane {
            let attachments = self.attachments.values_mut();
            let mut attachments: Vec<&mut Attachment> =
                attachments.map(|one| &mut one.attachment).collect();
            dataplane.abandon(&mut attachments);
        }
    }

    /// Attaches the generation to each interface. Returns the indices of the interfaces that have it. Open flows are
    /// recorded before the first packet is judged, so that their answers pass.
    fn put_on_all(
        &mut self,
        steps: Vec<PendingSwap<'_>>,
        order: &Order<'_>,
    ) -> Result<Vec<u32>, ChangeError> {
        if let Some(dataplane) = &self.dataplane {
            dataplane.restore_pins()?;
        }
        let mut ready = Vec::new();
        for step in steps {
            match self.make_ready(&step, order) {
                Ok(()) => ready.push(step),
                Err(error) => self.refused(step.target, order.unit, order, error)?,
            }
        }
        self.assign_rows(order.host)?;
        self.seed_flows(order)?;
        let mut done = Vec::new();
        for step in ready {
            let index = step.target.index;
            let attached = self.attachments.get(&index);
            let before = attached.and_then(|one| one.attachment.program_id());
            (order.step)();
            match self.put_one(&step, order) {
                Ok(above) => done.push(Done {
                    index,
                    before,
                    swaps: step.swaps,
                    above,
                }),
                Err(error) if order.unit == RollbackScope::Whole && !self.is_left_out(index) => {
                    self.put_back(done, order.epoch);
                    self.refused(step.target, order.unit, order, error)?;
                    return Ok(Vec::new());
                }
                Err(error) => self.refused(step.target, order.unit, order, error)?,
            }
        }
        Ok(done.iter().map(|one| one.index).collect())
    }

    /// Records the UDP flows that are open already, if the generation that is begun, or else the one in force, records
    /// flows. If flows may be missing, the log says so, unless the same flows were recorded before.
    pub(super) fn seed_flows(&mut self, order: &Order<'_>) -> Result<(), AttachError> {
        let Some(dataplane) = &self.dataplane else {
            return Ok(());
        };
        let content = &order.plan.content;
        let recorded = RecordedFlows {
            policy: Arc::clone(&content.policy),
            published: udp_ports(&content.containers),
            interfaces: self.attachments.keys().copied().collect(),
        };
        let is_new = match &self.recorded {
            Some(before) => *before != recorded,
            // An agent before this one has recorded them.
            None => !dataplane.keeps_flows(),
        };
        dataplane.seed_flows(|| open_flows(order.host, content, is_new))?;
        self.recorded = Some(recorded);
        Ok(())
    }

    /// Records open flows at ports that containers publish since flows were last recorded: before, no rule needed them.
    pub(super) fn seed_published(&mut self, order: &Order<'_>) -> Result<(), AttachError> {
        let published = udp_ports(&order.plan.content.containers);
        match &self.recorded {
            Some(before) if published.is_subset(&before.published) => Ok(()),
            _ => self.seed_flows(order),
        }
    }

    fn make_ready(&mut self, step: &PendingSwap<'_>, order: &Order<'_>) -> Result<(), ChangeError> {
        let _turn = self.gate.enter(order.epoch)?;
        let dataplane = self.dataplane.as_mut();
        let attached = self.attachments.get_mut(&step.target.index);
        if let (Some(dataplane), Some(attached)) = (dataplane, attached) {
            attached.attachment.restore_pins()?;
            dataplane.make_ready(&mut attached.attachment)?;
        }
        Ok(())
    }

    fn put_one(
        &mut self,
        step: &PendingSwap<'_>,
        order: &Order<'_>,
    ) -> Result<BTreeMap<u32, TakenOff>, ChangeError> {
        let mut above = BTreeMap::new();
        let taken_off = self.take_off_above(step, order, &mut above);
        let put = match taken_off {
            Ok(()) => self.put_below(step, order),
            Err(error) => Err(error),
        };
        // An upper device that the policy chooses gets its program back at once, and is swapped later.
        let is_chosen = |index: &u32| order.plan.targets.iter().any(|one| one.index == *index);
        let (back, above) = mem::take(&mut above)
            .into_iter()
            .partition(|(index, _)| put.is_err() || is_chosen(index));
        self.restore(back, order.epoch);
        put?;
        Ok(above)
    }

    fn put_below(&mut self, step: &PendingSwap<'_>, order: &Order<'_>) -> Result<(), ChangeError> {
        let PendingSwap { target, found, .. } = *step;
        let turn = self.gate.enter(order.epoch)?;
        let dataplane = self.dataplane.as_mut();
        let attached = self.attachments.get_mut(&target.index);
        let (Some(dataplane), Some(attached)) = (dataplane, attached) else {
            return Ok(());
        };
        let programs = programs(target.index, found);
        let put = dataplane.put(&mut attached.attachment, &programs, order.force);
        drop(turn);
        log_in_force(target, attached, order, put?);
        Ok(())
    }

    /// Detaches the guard's own programs from upper devices: the kernel attaches no program to an interface while an
    /// upper device has one. If another software's program is on the interface, nothing is detached: the upper device
    /// would be open in vain. A swap needs no detach. `taken_off` receives the programs to attach again.
    fn take_off_above(
        &mut self,
        step: &PendingSwap<'_>,
        order: &Order<'_>,
        taken_off: &mut BTreeMap<u32, TakenOff>,
    ) -> Result<(), ChangeError> {
        let PendingSwap { target, found, .. } = *step;
        let attached = self.attachments.get(&target.index);
        if attached.is_some_and(|attached| attached.attachment.is_on(found)) {
            return Ok(());
        }
        for index in &target.above {
            if !self.attachments.contains_key(index) {
                continue;
            }
            if let Some(attached) = self.attachments.get(&target.index) {
                attached.attachment.require_free(found, order.force)?;
            }
            let (Some(attached), Some(dataplane)) =
                (self.attachments.get_mut(index), &self.dataplane)
            else {
                continue;
            };
            let program = xdp_of(*index).context("this host's interfaces cannot be read")?;
            let _turn = self.gate.enter(order.epoch)?;
            if let Some(taken) = dataplane.take_off(&mut attached.attachment, program)? {
                taken_off.insert(*index, taken);
            }
        }
        Ok(())
    }

    /// Attaches programs again that were detached for another interface.
    fn restore(&self, taken_off: BTreeMap<u32, TakenOff>, epoch: Epoch) {
        for (index, taken_off) in taken_off {
            let Some(attached) = self.attachments.get(&index) else {
                continue;
            };
            let Ok(_turn) = self.gate.enter(epoch) else {
                return;
            };
            if let Err(error) = attached.attachment.restore(index, &taken_off) {
                // The next plan finds the interface without a program, and attaches one.
                warn!("{:#}", anyhow::Error::from(error));
            }
        }
    }

    /// Undoes the changes on some interfaces because another interface refused its program.
    fn put_back(&mut self, done: Vec<Done>, epoch: Epoch) {
        let mut rows = Vec::new();
        for Done {
            index,
            before,
            swaps,
            above,
        } in done
        {
            let Some(attached) = self.attachments.get_mut(&index) else {
                continue;
            };
            let name = attached.attachment.interface().to_owned();
            let found = xdp_of(index).unwrap_or_default();
            let gate = self.gate.clone();
            let Ok(turn) = gate.enter(epoch) else {
                return;
            };
            let result = match before {
                Some(before) => match &mut self.dataplane {
                    Some(dataplane) => {
                        let programs = programs(index, found);
                        dataplane.put_back(&mut attached.attachment, before, &programs)
                    }
                    None => Ok(()),
                },
                // It had no program before. A program of a previous agent, which `swaps` marks, cannot be restored.
                None if !swaps => match self.attachments.remove(&index) {
                    Some(attached) => {
                        rows.push(attached.attachment.row());
                        attached.attachment.detach()
                    }
                    None => Ok(()),
                },
                None => Ok(()),
            };
            if let Err(error) = result {
                warn!(
                    interface = name,
                    "the previous policy cannot be put in force again: {:#}",
                    anyhow::Error::from(error)
                );
            }
            drop(turn);
            self.restore(above, epoch);
        }
        self.leave_rows(&rows);
    }
}

fn udp_ports(containers: &Containers) -> BTreeSet<PublishedPort> {
    let published = containers.published.iter().copied();
    published
        .filter(|port| port.protocol == PortProtocol::Udp)
        .collect()
}

/// The open UDP flows of this host and its containers, without flows to other addresses. `is_new`: flows are recorded
/// that were not recorded before, so a gap in the list is logged.
fn open_flows(host: &Host, content: &Content, is_new: bool) -> Vec<UdpFlow> {
    let own = host.own_addresses().unwrap_or_default();
    let networks = &content.containers.networks;
    let OpenFlows {
        mut flows,
        source_replaced,
        gap,
    } = host::open_udp_flows();
    if let Some(gap) = gap.filter(|_| is_new) {
        warn!("{}", explained_gap(&gap));
    }
    flows.retain(|flow| {
        let local = flow.local.ip().to_canonical();
        let mut networks = networks.iter();
        own.contains(&local) || networks.any(|network| network.prefix.contains(&local))
    });
    flows.extend(source_replaced);
    flows
}

/// The warning for a list of open flows that is not complete.
pub fn explained_gap(gap: &str) -> String {
    format!(
        "of the UDP flows that are open now, only those of connected sockets are known ({gap}): answers to the others \
         are dropped until this host or its container sends again"
    )
}

/// The program that is attached to an interface now.
fn xdp_of(index: u32) -> Result<Option<XdpState>, ReadError> {
    let links = read::links()?;
    Ok(links.get(&index).and_then(|link| link.xdp))
}

/// The programs that the kernel tests when it attaches a program to an interface. They are read anew, because the
/// kernel sends no event when a program is attached.
fn programs(index: u32, on: Option<XdpState>) -> Programs {
    let links = read::links().ok();
    let host = Host {
        links: Reading {
            last: links,
            error: None,
        },
        ..Host::unread(0)
    };
    let above = host.xdp_above(index);
    Programs {
        on,
        above: above.and_then(|link| Some((link.name.clone(), link.xdp?))),
    }
}

fn log_in_force(target: &Target, attached: &Attached, order: &Order<'_>, refusal: Option<String>) {
    if let Some(refusal) = refusal {
        warn!(
            interface = target.name,
            "the driver refuses the program ({refusal}): it runs in generic mode, which costs several times as much \
             per packet"
        );
    }
    let Content {
        policy, containers, ..
    } = &order.plan.content;
    info!(
        interface = target.name,
        xdp_mode = attached.attachment.mode().name(),
        mode = policy.mode.name(),
        scope = policy.scope.name(),
        services = policy.services.len(),
        published = containers.published.len(),
        "in force"
    );
}
