//! Puts a generation that is loaded in force, interface by interface, and back again if one of them refuses.

use std::{collections::BTreeMap, mem, sync::Arc, time::Instant};

use anyhow::Context as _;
use tracing::{info, warn};

use super::{Applier, Attached, Order, RollbackScope, compile_input};
use crate::{
    agent::{
        ChangeError,
        gate::Epoch,
        plan::{Content, Target},
    },
    dataplane::{
        Attachment, Dataplane, LoadError, PortUpdates, Prepared, Programs, TakenOff, needs_another,
    },
    host::{self, Host, OpenFlows, ReadError, Reading, UdpFlow, XdpState, read},
    policy::Containers,
};

/// An interface that waits for its program.
#[derive(Clone, Copy)]
pub(super) struct PendingSwap<'a> {
    pub(super) target: &'a Target,
    pub(super) found: Option<XdpState>,
    /// It takes the place of another one of this guard.
    pub(super) swaps: bool,
}

/// What was done on an interface, to be undone.
struct Done {
    index: u32,
    /// What this agent had put in force there before.
    before: Option<u32>,
    swaps: bool,
    /// Programs of this guard that were in the way, by the index of their interface.
    above: BTreeMap<u32, TakenOff>,
}

impl Applier {
    /// Puts a generation in force on interfaces, or what is in force already (`None`).
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

    /// Begins to put a generation in force. Returns what containers publish by now.
    fn begin(&mut self, next: Prepared, order: &Order<'_>) -> Result<Arc<Containers>, ChangeError> {
        let turn = self.gate.enter(order.epoch)?;
        let dataplane = self.dataplane.as_mut();
        let dataplane = dataplane.ok_or(LoadError::Incomplete("state"))?;
        let attachments = self.attachments.values_mut();
        dataplane.begin(next, attachments.map(|one| &mut one.attachment))?;
        drop(turn);
        // Meanwhile a container may have come. From here on its ports are closed in what waits as well.
        self.follow_ports();
        // Written again into what may be a table of its own.
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
                // The next plan has it: for what is in force by now, another generation is needed.
                Err(error) if needs_another(&error) => latest = Arc::clone(&content.containers),
                Err(error) => {
                    self.abandon();
                    return Err(error.into());
                }
            }
        }
        Ok(latest)
    }

    /// # Errors
    /// An emergency exit came first: what it did stands.
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

    /// Puts it on each interface. Returns the indices of those that have it. Flows are recorded before anything is
    /// judged, and those that are open already are known.
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
        if let Some(dataplane) = &self.dataplane {
            let is_first = !dataplane.keeps_flows();
            dataplane.seed_flows(|| open_flows(order.host, &order.plan.content, is_first))?;
        }
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
        // What the policy chooses as well goes back at once, and is swapped in its turn.
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
        tell(target, attached, order, put?);
        Ok(())
    }

    /// The kernel attaches no program to an interface while a device above it has one. If that is the guard's own, it
    /// goes first, unless somebody else's program is in the way here: the device would be open for nothing. `taken_off`
    /// holds what is to be put back. For a swap it may stay.
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

    /// Puts programs back that went for a change that is refused.
    fn restore(&self, taken_off: BTreeMap<u32, TakenOff>, epoch: Epoch) {
        for (index, taken_off) in taken_off {
            let Some(attached) = self.attachments.get(&index) else {
                continue;
            };
            let Ok(_turn) = self.gate.enter(epoch) else {
                return;
            };
            if let Err(error) = attached.attachment.restore(index, &taken_off) {
                // The next plan finds that it has none, and loads another.
                warn!("{:#}", anyhow::Error::from(error));
            }
        }
    }

    /// Undoes what was done on some interfaces when another one refused.
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
                // It had none before. What an agent before this one left cannot be put back.
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
                    "the policy before cannot be put back: {:#}",
                    anyhow::Error::from(error)
                );
            }
            drop(turn);
            self.restore(above, epoch);
        }
        self.leave_rows(&rows);
    }
}

/// The UDP flows of this host and its containers; what comes to others' addresses is no flow of this host's. `is_first`:
/// none has been remembered so far.
fn open_flows(host: &Host, content: &Content, is_first: bool) -> Vec<UdpFlow> {
    let own = host.own_addresses().unwrap_or_default();
    let networks = &content.containers.networks;
    let OpenFlows { mut flows, gap } = host::open_udp_flows();
    if let Some(gap) = gap.filter(|_| is_first) {
        warn!("{}", explained_gap(&gap));
    }
    flows.retain(|flow| {
        let local = flow.local.ip().to_canonical();
        let mut networks = networks.iter();
        own.contains(&local) || networks.any(|network| network.prefix.contains(&local))
    });
    flows
}

/// What an operator is told where not all open flows are known.
pub fn explained_gap(gap: &str) -> String {
    format!(
        "of the UDP flows that are open at this moment only those of connected sockets are known ({gap}): what others \
         answer is dropped until this host or its container sends again"
    )
}

/// The program of an interface at this moment.
fn xdp_of(index: u32) -> Result<Option<XdpState>, ReadError> {
    let links = read::links()?;
    Ok(links.get(&index).and_then(|link| link.xdp))
}

/// What the kernel looks at when it attaches a program to an interface, as it is at this moment: nothing notifies of a
/// program.
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

fn tell(target: &Target, attached: &Attached, order: &Order<'_>, refusal: Option<String>) {
    if let Some(refusal) = refusal {
        warn!(
            interface = target.name,
            "the driver does not take the program ({refusal}): it runs in generic mode, which costs several \
             times as much per packet"
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
