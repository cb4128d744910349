//! Where programs are attached while they are measured.
//!
//! Drivers call XDP programs through a dispatcher, which the kernel rewrites when a program comes or goes
//! (kernel/bpf/dispatcher.c, Linux 5.6). A test run of a program that is attached nowhere lets it come and go each
//! time, and waits until every CPU has seen it: 16 ms and more, in which this CPU sleeps. What it then finds in the
//! caches is not its own, and hardly any quiet moment is as long. A program that is attached is called as a driver
//! calls it, and runs again and again without a pause.

use anyhow::{Context as _, Result};
use aya::programs::{
    Xdp,
    xdp::{XdpLink, XdpMode},
};
use aya_obj::programs::XdpAttachType;
use lab::topology::Lab;

/// As many programs are attached at once. The dispatcher knows 48 (BPF_DISPATCHER_MAX); a few are left to others.
const PLACES: usize = 42;

/// Interfaces in a lab of its own, with a program on each. They are never up: no packet comes by.
pub struct Stage {
    places: Vec<StageSlot>,
    /// How often somebody has asked for programs.
    now: u64,
    /// Goes after the places: they are on its interfaces.
    lab: Lab,
}

struct StageSlot {
    program: u32,
    /// `None`: the kernel refused another program.
    link: Option<XdpLink>,
    asked_for: u64,
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

    /// Attaches what is not attached yet. If there is no place left, what nobody has asked for longest goes.
    pub fn show(&mut self, programs: &[&Xdp]) -> Result<()> {
        self.now += 1;
        programs
            .iter()
            .try_for_each(|program| self.show_one(program))
    }

    fn show_one(&mut self, program: &Xdp) -> Result<()> {
        let Self { places, now, .. } = self;
        let info = program.info()?;
        let id = info.id();
        if let Some(place) = places.iter_mut().find(|place| place.program == id) {
            place.asked_for = *now;
            return Ok(());
        }
        // To attach it takes a handle of one's own.
        let program = Xdp::from_program_info(info, "staged".into(), XdpAttachType::Interface)?;
        if places.len() < PLACES {
            return self.add(program, id);
        }
        let place = places.iter_mut().min_by_key(|place| place.asked_for);
        let place = place.context("there is no place")?;
        place.asked_for = *now;
        place.replace(program, id)
    }

    fn add(&mut self, mut program: Xdp, id: u32) -> Result<()> {
        let Self { places, now, lab } = self;
        // Both ends of a wire are places.
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
            asked_for: *now,
        });
        Ok(())
    }
}

impl StageSlot {
    fn replace(&mut self, mut program: Xdp, id: u32) -> Result<()> {
        let link = self.link.take().context("a place is gone")?;
        let link = program.attach_to_link(link)?;
        self.link = Some(program.take_link(link)?);
        self.program = id;
        Ok(())
    }
}
