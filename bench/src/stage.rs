//! Attaches the measured programs to interfaces.
//!
//! Drivers call XDP programs through a dispatcher, which the kernel rewrites when a program is added or removed
//! (kernel/bpf/dispatcher.c, Linux 5.6). A test run of a program that is not attached adds and removes it each time,
//! and waits until all CPUs have seen the change: 16 ms and more, in which this CPU sleeps. After that its caches hold
//! other data, and hardly any quiet period is that long. An attached program stays in the dispatcher, so it runs
//! repeatedly without a pause.

use anyhow::{Context as _, Result};
use aya::programs::{
    Xdp,
    xdp::{XdpLink, XdpMode},
};
use aya_obj::programs::XdpAttachType;
use lab::topology::Lab;

/// The most programs attached at once. The dispatcher has 48 entries (BPF_DISPATCHER_MAX); a few are left to other
/// software.
const PLACES: usize = 42;

/// Interfaces in a separate lab, with a program on each. They are never up, so they receive no packets.
pub struct Stage {
    places: Vec<StageSlot>,
    /// The number of calls of [`Stage::attach`] so far.
    now: u64,
    /// Dropped after the places, whose links are on its interfaces.
    lab: Lab,
}

struct StageSlot {
    program: u32,
    /// `None` after the kernel has refused to replace the program.
    link: Option<XdpLink>,
    used: u64,
}

impl Stage {
    pub fn new() -> Result<Self> {
        Ok(Self {
            places: Vec::new(),
            now: 0,
            lab: Lab::new()?,
        })
    }

    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Attaches the programs that are not attached yet. Without a free place, the least recently used program is
    /// replaced.
    pub fn attach(&mut self, programs: &[&Xdp]) -> Result<()> {
        self.now += 1;
        programs
            .iter()
            .try_for_each(|program| self.attach_one(program))
    }

    fn attach_one(&mut self, program: &Xdp) -> Result<()> {
        let Self { places, now, .. } = self;
        let info = program.info()?;
        let id = info.id();
        if let Some(place) = places.iter_mut().find(|place| place.program == id) {
            place.used = *now;
            return Ok(());
        }
        // Attaching needs an owned handle of the program.
        let program = Xdp::from_program_info(info, "staged".into(), XdpAttachType::Interface)?;
        if places.len() < PLACES {
            return self.add(program, id);
        }
        let place = places.iter_mut().min_by_key(|place| place.used);
        let place = place.context("the stage has no places")?;
        place.used = *now;
        place.replace(program, id)
    }

    fn add(&mut self, mut program: Xdp, id: u32) -> Result<()> {
        let Self { places, now, lab } = self;
        // Each end of a veth pair is a place.
        let name = |number| format!("stage{number}");
        let number = places.len();
        if number.is_multiple_of(2) {
            let (end, other) = (name(number), name(number + 1));
            let wire = format!("link add {end} type veth peer name {other}");
            lab.host.ip(&wire)?;
        }
        let link = lab
            .host
            .enter(|| program.attach(&name(number), XdpMode::Skb))??;
        places.push(StageSlot {
            program: id,
            link: Some(program.take_link(link)?),
            used: *now,
        });
        Ok(())
    }
}

impl StageSlot {
    fn replace(&mut self, mut program: Xdp, id: u32) -> Result<()> {
        let link = self
            .link
            .take()
            .context("the place has no link: the kernel refused a program before")?;
        let link = program.attach_to_link(link)?;
        self.link = Some(program.take_link(link)?);
        self.program = id;
        Ok(())
    }
}
