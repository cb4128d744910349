//! Puts generations that are loaded in force, interface by interface, and back again if one of them refuses.

use std::{collections::BTreeMap, mem, sync::Arc, time::Instant};

use anyhow::Context as _;
use tracing::{info, warn};

use super::{Applier, Attached, Order, RollbackScope, ground};
use crate::{
    agent::{
        ChangeError,
        gate::Epoch,
        plan::{Content, Target},
    },
    dataplane::{Force, PortNews, Prepared, Programs, TakenOff, needs_another},
    host::{self, Host, ReadError, Reading, UdpFlow, XdpState, read},
};

/// A generation that waits to be put in force.
pub(super) struct PendingGeneration {
    pub(super) index: u32,
    pub(super) found: Option<XdpState>,
    pub(super) generation: Prepared,
    /// It takes the place of another one of this guard.
    pub(super) swaps: bool,
}

/// What was done on an interface, to be undone.
struct Done {
    index: u32,
    before: Option<Prepared>,
    swaps: bool,
    /// Programs of this guard that were in the way, by the index of their interface.
    above: BTreeMap<u32, TakenOff>,
}

impl Applier {
    pub(super) fn put_in_force(
        &mut self,
        mut steps: Vec<PendingGeneration>,
        order: &Order<'_>,
        force: Force,
    ) -> Result<(), ChangeError> {
        // An interface may refuse its first program, and then nothing has been swapped elsewhere.
        steps.sort_by_key(|step| step.swaps);
        // Meanwhile a container may have come. From here on its ports are closed in what waits as well.
        self.follow_ports(&steps);
        let latest = (order.latest)();
        let content = &order.plan.content;
        if *latest != *content.containers {
            let ground = ground(content, &latest)?;
            for step in &mut steps {
                let news = PortNews::default();
                let mut news = news.with_newest(order.latest, &content.local_ports);
                let changed = step.generation.change(&ground, &mut news);
                self.closer.give_back(news.kept);
                match changed {
                    // The next plan has it.
                    Err(error) if needs_another(&error) => {}
                    result => result?,
                }
            }
        }
        let flows = open_flows(order.host, content)?;
        let mut done = Vec::new();
        for step in steps {
            let PendingGeneration {
                index,
                found,
                generation,
                swaps,
            } = step;
            let Some(target) = order.plan.targets.iter().find(|one| one.index == index) else {
                continue;
            };
            let result = self.put_one(target, found, generation, order, force, &flows);
            match result {
                Ok((before, above)) => done.push(Done {
                    index,
                    before,
                    swaps,
                    above,
                }),
                Err(error) if order.unit == RollbackScope::Whole && !self.is_left_out(index) => {
                    self.put_back(done, order.epoch);
                    return self.refused(target, order.unit, order, error);
                }
                Err(error) => self.refused(target, order.unit, order, error)?,
            }
        }
        for Done { index, before, .. } in done {
            if let Some(attached) = self.attachments.get_mut(&index) {
                attached.attachment.let_go(before);
                let mut content = content.clone();
                content.containers = Arc::clone(&latest);
                attached.content = Some(content);
                attached.fallback.clone_from(&order.plan.fallback);
                attached.trouble = None;
                attached.swapped = Instant::now();
            }
        }
        Ok(())
    }

    fn put_one(
        &mut self,
        target: &Target,
        found: Option<XdpState>,
        generation: Prepared,
        order: &Order<'_>,
        force: Force,
        flows: &[UdpFlow],
    ) -> Result<(Option<Prepared>, BTreeMap<u32, TakenOff>), ChangeError> {
        let mut above = BTreeMap::new();
        let taken_off = self.take_off_above(target, found, order, force, &mut above);
        let put = match taken_off {
            Ok(()) => self.put_below(target, found, generation, order, force, flows),
            Err(error) => Err(error),
        };
        // What the policy chooses as well goes back at once, and is swapped in its turn.
        let is_chosen = |index: &u32| order.plan.targets.iter().any(|one| one.index == *index);
        let (back, above) = mem::take(&mut above)
            .into_iter()
            .partition(|(index, _)| put.is_err() || is_chosen(index));
        self.restore(back, order.epoch);
        Ok((put?, above))
    }

    fn put_below(
        &mut self,
        target: &Target,
        found: Option<XdpState>,
        generation: Prepared,
        order: &Order<'_>,
        force: Force,
        flows: &[UdpFlow],
    ) -> Result<Option<Prepared>, ChangeError> {
        let turn = self.gate.enter(order.epoch)?;
        let Some(attached) = self.attachments.get_mut(&target.index) else {
            return Ok(None);
        };
        let programs = programs(target.index, found);
        let put = attached
            .attachment
            .put_in_force(generation, programs, force, || flows.to_vec());
        drop(turn);
        let (before, refusal) = put?;
        tell(target, attached, order, refusal);
        Ok(before)
    }

    /// The kernel attaches no program to an interface while a device above it has one. If that is the guard's own, it
    /// goes first, unless somebody else's program is in the way here: the device would be open for nothing. `taken_off`
    /// holds what is to be put back. For a swap it may stay.
    fn take_off_above(
        &mut self,
        target: &Target,
        found: Option<XdpState>,
        order: &Order<'_>,
        force: Force,
        taken_off: &mut BTreeMap<u32, TakenOff>,
    ) -> Result<(), ChangeError> {
        let attached = self.attachments.get(&target.index);
        if attached.is_some_and(|attached| attached.attachment.is_on(found)) {
            return Ok(());
        }
        for index in &target.above {
            if !self.attachments.contains_key(index) {
                continue;
            }
            if let Some(attached) = self.attachments.get(&target.index) {
                attached.attachment.require_free(found, force)?;
            }
            let Some(attached) = self.attachments.get_mut(index) else {
                continue;
            };
            let program = xdp_of(*index).context("this host's interfaces cannot be read")?;
            let _turn = self.gate.enter(order.epoch)?;
            if let Some(taken) = attached.attachment.take_off(program)? {
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
                Some(before) => attached
                    .attachment
                    .put_in_force(before, programs(index, found), Force::No, Vec::new)
                    .map(drop),
                // It had none before. What an agent before this one left cannot be put back.
                None if !swaps => match self.attachments.remove(&index) {
                    Some(attached) => attached.attachment.detach(),
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
    }
}

/// The UDP flows of this host and its containers; what comes to others' addresses is no flow of this host's.
fn open_flows(host: &Host, content: &Content) -> Result<Vec<UdpFlow>, ChangeError> {
    let own = host.own_addresses().unwrap_or_default();
    let networks = &content.containers.networks;
    let mut flows = host::open_udp_flows();
    flows.retain(|flow| {
        let local = flow.local.ip().to_canonical();
        let mut networks = networks.iter();
        own.contains(&local) || networks.any(|network| network.prefix.contains(&local))
    });
    Ok(flows)
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
