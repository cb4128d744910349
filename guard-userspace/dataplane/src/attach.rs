//! Puts generations in force on an interface, one after the other: in the driver if it can, in the
//! generic path if it must.
//!
//! The link is pinned, and nothing else holds it: an agent that ends, however it ends, leaves the kernel
//! enforcing, and removing the pin takes the program off even if the agent hangs.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    process,
    sync::{Arc, Weak},
};

use aya::{
    maps::{Map, ProgramArray},
    programs::loaded_programs,
};
use guard_common::{
    exposure::Scope,
    layout::{self, About, CaptureFilter, feature},
    reason::Mode,
};
use guard_host::{UdpFlow, XdpState, causes::innermost};
use guard_policy::{Exhausted, Ground, Policy, Seats, Tables};

use super::{
    Generation, LoadError, Purpose, Shared, egress,
    error::AttachError,
    evict,
    link::{attach_or_swap, info_of, occupied, own_link, pinned_program, swap},
    link_info,
    mode::{Force, Programs, XdpMode},
    pins::{self, EGRESS_LINK, LINK, PinError, Pins},
    ports::PortNews,
    state::{InterfaceState, SHARED, SharedMap, StateError, bytes_of, shared_maps},
    sys, tap,
};

/// A policy as it is put in force: its file, its seats, its programs.
pub struct Prepared {
    generation: Generation,
    policy: Arc<Policy>,
    seats: Seats,
    facts: PolicyFacts,
}

/// What a reader of the pins is told of a policy.
#[derive(Clone, Debug)]
pub struct PolicyFacts {
    pub path: String,
    /// In hexadecimal.
    pub sha256: String,
    pub loaded_ms: i64,
    /// When its trial ends, in nanoseconds of CLOCK_BOOTTIME; 0: it is none.
    pub trial_until: u64,
}

impl Prepared {
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Brings its tables to what has changed around its policy: published ports, container networks,
    /// entries.
    ///
    /// # Errors
    /// As [`Generation::change`].
    pub fn change(
        &mut self,
        ground: &Ground<'_>,
        news: &mut PortNews<'_>,
    ) -> Result<(), LoadError> {
        let tables = Tables::compile_at(&self.policy, ground, &self.seats);
        self.generation.change(tables, news)
    }
}

/// A program that was taken off an interface, to be put back.
pub struct TakenOff {
    program: OwnedFd,
    native: bool,
}

/// An interface, and the generation in force on it.
pub struct Attachment {
    state: InterfaceState,
    /// Of the generation in force, or of the agent before this one.
    seats: Seats,
    in_force: Option<Prepared>,
    /// During a trial: what the kernel goes back to by itself.
    fallback: Option<Prepared>,
    mode: XdpMode,
    /// Whoever reads packets holds it as well.
    tapped: Arc<()>,
}

impl Attachment {
    /// Takes over what an agent before this one left. Nothing changes yet.
    pub fn open(pins: Pins, namespace: u64) -> Result<Self, AttachError> {
        let link_program = match own_link(&pins)? {
            Some((link, _)) => Some(info_of(&pins, &link.into())?),
            None => None,
        };
        let (state, seats) = InterfaceState::open(pins, namespace, link_program)?;
        // There may be none. What nobody reads ends with its grant in any case.
        let _result = tap::end(&state);
        Ok(Self {
            state,
            seats,
            in_force: None,
            fallback: None,
            mode: XdpMode::Native,
            tapped: Arc::new(()),
        })
    }

    /// Whether the program that the interface has is the one that the pinned link holds: then another is
    /// put in its place in one step, which nothing else on the interface can refuse.
    pub fn is_on(&self, found: Option<XdpState>) -> bool {
        let pins = &self.state.pins;
        let held = own_link(pins).ok().flatten();
        let held = held.and_then(|(link, _)| info_of(pins, &link.into()).ok());
        held.is_some() && held == found.map(|found| found.program_id)
    }

    /// The index of the interface that the pinned link is attached to. `None`: it is gone, or there is no link.
    pub fn index(&self) -> Option<u32> {
        let (_, pins) = own_link(&self.state.pins).ok().flatten()?;
        link_info::interface_of(&pins.path(LINK)).ok().flatten()
    }

    /// Whether the link is where an agent after this one, and who takes the guard off, will look for it.
    pub fn is_pinned(&self) -> bool {
        self.state.pins.has(LINK)
    }

    /// Pins again what somebody has removed by hand, so that it goes on as it was.
    pub fn restore_pins(&self) -> Result<(), AttachError> {
        self.state.restore_pins()?;
        let pins = &self.state.pins;
        let Some(Prepared { generation, .. }) = &self.in_force else {
            return Ok(());
        };
        for SharedMap { name, .. } in shared_maps(generation.tables()) {
            if !pins.has(name) {
                generation.map(name)?.pin(pins.path(name))?;
            }
        }
        Ok(())
    }

    /// The interface's name at this moment.
    pub fn interface(&self) -> &str {
        self.state.pins.interface()
    }

    /// The interface is called so by now. Its pins stay where they are.
    pub fn set_interface(&mut self, name: &str) {
        self.state.pins.set_interface(name);
    }

    pub fn pins(&self) -> &Pins {
        &self.state.pins
    }

    /// A capture that reads packets holds it strongly. A snapshot, which may start a capture later, does not.
    pub fn tapped(&self) -> Weak<()> {
        Arc::downgrade(&self.tapped)
    }

    /// Takes the program off the interface, and leaves its state for when it is put back. `found` is what is on the
    /// interface at this moment. `None`: it is not this guard's.
    ///
    /// # Errors
    /// The program is still there.
    pub fn take_off(&mut self, found: Option<XdpState>) -> Result<Option<TakenOff>, AttachError> {
        let taken_off = match found.filter(|_| self.is_on(found)) {
            Some(found) => Some(TakenOff {
                program: self.open_program(found.program_id)?,
                native: found.native,
            }),
            None => None,
        };
        // A pin that goes lets the kernel free its link some time later (bpf_free_inode waits for RCU), and until then
        // the device below takes no program. Where this fails, the pin that goes is enough, a moment later.
        let pins = &self.state.pins;
        if let Ok(link) = sys::open_pin(&pins.path(LINK)) {
            let _result = evict::detach_link(&link);
        }
        pins.remove(LINK)?;
        Ok(taken_off)
    }

    /// A program that this agent has loaded, or one before it. The kernel opens others' programs for CAP_SYS_ADMIN
    /// alone, which an agent has while it starts.
    fn open_program(&self, id: u32) -> Result<OwnedFd, AttachError> {
        let failed = |error: &dyn std::fmt::Display| AttachError::Link {
            interface: self.interface().to_owned(),
            reason: format!("program {id} cannot be kept to be put back: {error}"),
        };
        if let Some(Prepared { generation, .. }) = &self.in_force
            && self.program_id() == Some(id)
        {
            let program = generation.program()?.fd().map_err(|error| failed(&error))?;
            let program = program.as_fd().try_clone_to_owned();
            return program.map_err(|error| failed(&error));
        }
        let mut programs = loaded_programs().filter_map(Result::ok);
        let program = programs.find(|program| program.id() == id);
        let program = program.ok_or_else(|| failed(&"it is gone"))?;
        let program = program.fd().map_err(|error| failed(&error))?;
        let program = program.as_fd().try_clone_to_owned();
        program.map_err(|error| failed(&error))
    }

    /// Puts a program back where it was.
    ///
    /// # Errors
    /// The interface has no program of this guard.
    pub fn restore(&self, interface: u32, taken_off: &TakenOff) -> Result<(), AttachError> {
        let TakenOff { program, native } = taken_off;
        let link = sys::link_xdp(program.as_fd(), interface, *native);
        let pinned = link.and_then(|link| sys::pin(&self.state.pins.path(LINK), link.as_fd()));
        pinned.map_err(|error| AttachError::Link {
            interface: self.interface().to_owned(),
            reason: format!("its program cannot be put back: {error}"),
        })
    }

    /// Loads a fresh generation of the program for a policy. Nothing changes yet.
    pub fn prepare(
        &self,
        policy: &Arc<Policy>,
        ground: &Ground<'_>,
        tick_ns: u64,
        facts: PolicyFacts,
    ) -> Result<Prepared, AttachError> {
        // What a trial goes back to judges again without being asked.
        let held: BTreeSet<&str> = self
            .generations()
            .flat_map(|generation| &generation.tables().services)
            .map(|service| service.name.as_str())
            .collect();
        let seats = self.seats.next(policy, |name| held.contains(name));
        let seats = seats.map_err(|Exhausted| AttachError::NoRoom(self.interface().to_owned()))?;
        let mut tables = Tables::compile_at(policy, ground, &seats);
        if facts.trial_until != 0
            && let Some(before) = &self.in_force
        {
            // The policy that comes back needs the flows of meanwhile.
            tables.features |= before.generation.tables().features & feature::FLOWS;
        }
        let about = self.state.about().map_err(LoadError::from)?;
        let mut pins = self
            .state
            .reusable(&tables, self.seats.shares_cells(&seats));
        let capture = if pins.iter().any(|(name, _)| *name == layout::CAPTURE) {
            tap::wanted_now(&self.state)
        } else {
            CaptureFilter::NONE
        };
        // What changes during a trial goes back to where the trial would.
        let goes_on = facts.trial_until != 0 && self.is_on_trial();
        if goes_on {
            pins.push((layout::PREVIOUS, self.state.pins.path(layout::PREVIOUS)));
        }
        let shared = Shared {
            hash_key: about.hash_key,
            pins,
            capture,
            trial_until: facts.trial_until,
        };
        let purpose = if facts.trial_until == 0 {
            Purpose::Service
        } else {
            Purpose::Trial
        };
        let mut generation = Generation::load_for(purpose, tables, tick_ns, &shared)?;
        if !self.is_tapped() {
            // A capture may have ended while the program was loaded. If this fails, the next one puts it right.
            let _result = tap::end(&self.state);
        }
        if facts.trial_until != 0
            && !goes_on
            && let Some(before) = &self.in_force
        {
            let program = before.generation.program()?.fd().map_err(LoadError::from)?;
            let map = generation.map_mut(layout::PREVIOUS)?;
            let mut previous = ProgramArray::try_from(map).map_err(LoadError::from)?;
            previous.set(0, program, 0).map_err(LoadError::from)?;
        }
        Ok(Prepared {
            generation,
            policy: Arc::clone(policy),
            seats,
            facts,
        })
    }

    fn is_on_trial(&self) -> bool {
        let in_force = self.in_force.as_ref();
        in_force.is_some_and(|in_force| in_force.facts.trial_until != 0)
    }

    /// # Errors
    /// If the interface has somebody else's program, which `force` does not take off.
    pub fn require_free(&self, found: Option<XdpState>, force: Force) -> Result<(), AttachError> {
        let pins = &self.state.pins;
        match found {
            Some(state) if force == Force::No && pinned_program(pins) != Some(state.program_id) => {
                Err(occupied(pins.interface(), state))
            }
            _ => Ok(()),
        }
    }

    /// Puts a generation in force, in one atomic step, and returns the one before it, which can be put
    /// back the same way.
    ///
    /// `found` is what is on the interface at this moment. The second value says why the driver did not
    /// take the program, if it did not: the caller must tell, since the generic path is slow.
    ///
    /// Flows are recorded before anything is judged, and those that are open already are known.
    ///
    /// # Errors
    /// The generation before it stays in force.
    pub fn put_in_force(
        &mut self,
        mut next: Prepared,
        found: Programs,
        force: Force,
        open_flows: impl FnOnce() -> Vec<UdpFlow>,
    ) -> Result<(Option<Prepared>, Option<String>), AttachError> {
        let result = self.try_put_in_force(&mut next, found, force, open_flows);
        let refusal = match result {
            Ok(refusal) => refusal,
            Err(error) => {
                self.take_back(&next);
                return Err(error);
            }
        };
        self.seats = next.seats.clone();
        Ok((self.in_force.replace(next), refusal))
    }

    fn try_put_in_force(
        &mut self,
        next: &mut Prepared,
        found: Programs,
        force: Force,
        open_flows: impl FnOnce() -> Vec<UdpFlow>,
    ) -> Result<Option<String>, AttachError> {
        let pins = self.state.pins.clone();
        let shared = self.pin_waiting(&next.generation, next.facts.trial_until != 0)?;
        let cells = map_id(&next.generation, next.generation.tables().cells_map())?;
        let changes = next.seats.changes_since(&self.seats);
        next.generation.empty(pins.interface(), &changes)?;
        self.state
            .set_seats(&next.seats, cells)
            .map_err(StateError::from)?;
        let program = next.generation.program_id()?;
        let mut about = self.state.about().map_err(StateError::from)?;
        about.next_program = program;
        self.state.set_about(&about).map_err(StateError::from)?;

        let keeps_flows = next.generation.tables().uses(feature::FLOWS);
        if keeps_flows {
            egress::attach(&mut self.state, &mut next.generation, &mut about)?;
            next.generation.seed_flows(&open_flows())?;
        }
        if let Some(before) = &self.in_force {
            let slices = next.seats.unmoved(&before.seats);
            next.generation.take_over(&before.generation, slices)?;
        }
        let (mode, refusal) = attach_or_swap(&pins, &mut next.generation, &found, force)?;
        self.mode = mode;
        if !keeps_flows {
            egress::detach(&pins, &mut about)?;
        }
        for name in pins.waiting()? {
            pins.take_next(&name)?;
        }
        for name in SHARED.iter().filter(|name| !shared.contains(*name)) {
            pins.remove(name)?;
        }
        for older in pins.of_other_layouts()? {
            // What is not guard's stays there, and harms nobody.
            let _left = older.remove_all();
        }
        let PolicyFacts {
            path,
            sha256,
            loaded_ms,
            trial_until,
        } = &next.facts;
        let tables = next.generation.tables();
        about = About {
            generation: about.generation + 1,
            trial_until: *trial_until,
            loaded_ms: *loaded_ms,
            cells: next.seats.asked,
            agent: process::id(),
            program,
            next_program: 0,
            mode: tables.mode as u8,
            scope: tables.scope as u8,
            services: u32::try_from(tables.services.len()).unwrap_or(u32::MAX),
            native: u8::from(mode == XdpMode::Native),
            mode_before: if *trial_until != 0 && self.is_on_trial() {
                about.mode_before
            } else {
                about.mode
            },
            sha256: base16_to_bytes(sha256),
            version: bytes_of(env!("CARGO_PKG_VERSION")),
            policy: bytes_of(path),
            ..about
        };
        self.state.set_about(&about).map_err(StateError::from)?;
        Ok(refusal)
    }

    /// Pins the maps of a generation that its successors will share, beside those in use. Returns their
    /// names.
    fn pin_waiting(
        &self,
        generation: &Generation,
        is_trial: bool,
    ) -> Result<Vec<&'static str>, AttachError> {
        let pins = &self.state.pins;
        let shared = shared_maps(generation.tables()).into_iter();
        let mut names: Vec<&'static str> = shared.map(|map| map.name).collect();
        if is_trial {
            names.push(layout::PREVIOUS);
        }
        for name in &names {
            pins.remove_next(name)?;
            let pinned = super::state::map_info(pins, name).map(|info| info.id());
            if pinned != Some(map_id(generation, name)?) {
                generation.map(name)?.pin(pins.next(name))?;
            }
        }
        Ok(names)
    }

    /// Leaves the generation in force as it was. What fails here is said by the error that led here, and
    /// put right by the next generation.
    fn take_back(&mut self, refused: &Prepared) {
        for name in self.state.pins.waiting().unwrap_or_default() {
            let _result = self.state.pins.remove_next(&name);
        }
        let Some(before) = &mut self.in_force else {
            // Nothing was judged before: flows of nobody need not be recorded.
            if !self.state.pins.has(LINK) {
                let _result = detach(&self.state.pins);
            }
            return;
        };
        let cells = map_id(&before.generation, before.generation.tables().cells_map());
        let cells = cells.unwrap_or_default();
        let _result = self.state.set_seats(&before.seats, cells);
        if let Ok(mut about) = self.state.about() {
            if before.generation.tables().uses(feature::FLOWS) {
                let _result = egress::attach(&mut self.state, &mut before.generation, &mut about);
            } else if refused.generation.tables().uses(feature::FLOWS) {
                let _result = egress::detach(&self.state.pins, &mut about);
            }
            about.next_program = 0;
            let _result = self.state.set_about(&about);
        }
    }

    /// The generation in force, if this agent put it there.
    pub fn in_force(&self) -> Option<&Prepared> {
        self.in_force.as_ref()
    }

    /// Every generation whose tables count: that in force, and what a trial goes back to.
    pub fn generations(&self) -> impl Iterator<Item = &Generation> {
        let prepared = self.in_force.iter().chain(&self.fallback);
        prepared.map(|prepared| &prepared.generation)
    }

    /// Passes on what the program in force has said.
    pub fn flush_log(&mut self) {
        if let Some(Prepared { generation, .. }) = &mut self.in_force {
            generation.flush_log();
        }
    }

    pub fn in_force_mut(&mut self) -> Option<&mut Prepared> {
        self.in_force.as_mut()
    }

    /// What the kernel goes back to when the trial in force ends: what changes in the tables of one
    /// changes in both.
    pub fn fallback_mut(&mut self) -> Option<&mut Prepared> {
        self.fallback.as_mut()
    }

    /// Lets go of the generation that was in force before, unless a trial goes back to it.
    pub fn let_go(&mut self, before: Option<Prepared>) {
        self.fallback = match before {
            _ if !self.is_on_trial() => None,
            Some(before) if before.facts.trial_until == 0 => Some(before),
            _ => self.fallback.take(),
        };
    }

    pub fn mode(&self) -> XdpMode {
        self.mode
    }

    /// The kernel's number for the program in force.
    pub fn program_id(&self) -> Option<u32> {
        let Prepared { generation, .. } = self.in_force.as_ref()?;
        generation.program_id().ok()
    }

    pub fn about(&self) -> Result<About, StateError> {
        Ok(self.state.about()?)
    }

    /// Says in the pins that the agent is alive at this moment, which is in nanoseconds of
    /// CLOCK_BOOTTIME.
    pub fn beat(&mut self, boot_ns: u64) -> Result<(), StateError> {
        let mut about = self.state.about()?;
        about.seen_ns = boot_ns;
        about.agent = process::id();
        Ok(self.state.set_about(&about)?)
    }

    fn is_tapped(&self) -> bool {
        Arc::strong_count(&self.tapped) > 1
    }

    /// Takes the programs off the interface, and leaves nothing of the guard in the kernel.
    pub fn detach(self) -> Result<(), AttachError> {
        detach(&self.state.pins)
    }
}

/// Takes the programs off an interface, whoever put them there, and removes all state.
///
/// # Errors
/// A program is still on the interface.
fn detach(pins: &Pins) -> Result<(), AttachError> {
    let removal = detach_pins(vec![pins.clone()], Vec::new());
    match removal.still_attached.into_iter().next() {
        Some(reason) => Err(AttachError::Link {
            interface: pins.interface().to_owned(),
            reason,
        }),
        None => Ok(()),
    }
}

/// What came of taking the guard off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// The interfaces that had pins.
    pub interfaces: Vec<String>,
    /// Why a program is still on an interface.
    pub still_attached: Vec<String>,
    /// What stays below the root of the pins and judges nothing, with the reason.
    pub left: Vec<String>,
}

/// Takes the programs off every interface that has pins of any layout below this root, and removes all
/// state. What cannot be removed keeps nothing else from going.
///
/// # Errors
/// Whether there are pins cannot be told.
pub fn detach_all(root: &Path) -> Result<Removal, PinError> {
    let (all, odd) = pins::all(root)?;
    Ok(detach_pins(all, odd))
}

fn detach_pins(all: Vec<Pins>, odd: Vec<String>) -> Removal {
    let mut removal = Removal {
        left: odd,
        ..Removal::default()
    };
    // Where the filter on the way out is stands in the state, which goes last.
    let states: Vec<Option<About>> = all.iter().map(about_of).collect();
    // The links of every interface before anything else can fail.
    for pins in &all {
        if let Err(error) = pins.remove(LINK)
            && pins.may_hold_program()
        {
            removal.still_attached.push(error.to_string());
        }
    }
    for (pins, about) in all.iter().zip(states) {
        // Without the state, what is pinned is all that is known.
        let detached = match about {
            Some(mut about) => egress::detach(pins, &mut about),
            None => pins.remove(EGRESS_LINK).map_err(AttachError::from),
        };
        // A file that cannot be removed is named with the others.
        drop(detached);
    }
    for pins in &all {
        removal.left.extend(pins.remove_files());
    }
    for pins in &all {
        removal.left.extend(pins.remove_folders());
    }
    removal.interfaces = interfaces_of(&all);
    removal
}

/// The interface may be gone, or its state be spoilt: then there is none.
fn about_of(pins: &Pins) -> Option<About> {
    let state = InterfaceState::existing(pins).ok().flatten()?;
    state.about().ok()
}

fn interfaces_of(all: &[Pins]) -> Vec<String> {
    let names: BTreeSet<&str> = all.iter().map(Pins::interface).collect();
    names.into_iter().map(str::to_owned).collect()
}

/// What came of letting everything pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passing {
    /// The interfaces on which everything passes now.
    pub interfaces: Vec<String>,
    /// Interfaces whose program was taken off, because none that passes everything could be put in its
    /// place, and why.
    pub taken_off: Vec<String>,
    /// Interfaces on which a program goes on, and why.
    pub failed: Vec<String>,
}

/// Lets everything pass on every interface that has a program of any layout pinned below this root, with
/// no agent.
///
/// # Errors
/// Whether there are pins cannot be told.
pub fn pass_everything_everywhere(root: &Path, tick_ns: u64) -> Result<Passing, PinError> {
    let mut passing = Passing::default();
    let (all, _odd) = pins::all(root)?;
    for pins in all.iter().filter(|pins| pins.may_hold_program()) {
        let interface = pins.interface();
        let why = match pass_everything(pins, tick_ns) {
            Ok(true) => {
                passing.interfaces.push(interface.to_owned());
                continue;
            }
            Ok(false) => "its state is of another version of guard, or spoilt".to_owned(),
            Err(error) => innermost(&error),
        };
        // To stop is what was asked for. The state stays, for the next agent.
        match pins.remove(LINK) {
            Ok(()) => {
                passing.interfaces.push(interface.to_owned());
                passing.taken_off.push(format!("{interface}: {why}"));
            }
            Err(error) => passing.failed.push(error.to_string()),
        }
    }
    Ok(passing)
}

/// Lets everything pass on an interface, with no agent: a program with no tables takes the place of the
/// one in force. The state stays, for the next agent. `false`: there is no state that this version can read.
fn pass_everything(pins: &Pins, tick_ns: u64) -> Result<bool, AttachError> {
    if !pins.is_of_this_layout() {
        return Ok(false);
    }
    let (Some(mut state), Some((link, _))) = (InterfaceState::existing(pins)?, own_link(pins)?)
    else {
        return Ok(false);
    };
    let mut about = state.about().map_err(StateError::from)?;
    let tables = Tables::passing_everything(Scope::from_raw(about.scope));
    let shared = Shared {
        hash_key: about.hash_key,
        pins: state.reusable(&tables, true),
        capture: CaptureFilter::NONE,
        trial_until: 0,
    };
    let mut generation = Generation::load_for(Purpose::Service, tables, tick_ns, &shared)?;
    swap(pins, &mut generation, link.into())?;
    about = About {
        generation: about.generation + 1,
        mode: Mode::Off as u8,
        trial_until: 0,
        program: generation.program_id()?,
        next_program: 0,
        ..about
    };
    state.set_about(&about).map_err(StateError::from)?;
    Ok(true)
}

/// The kernel's number of a generation's map.
fn map_id(generation: &Generation, name: &'static str) -> Result<u32, AttachError> {
    let (Map::Array(map)
    | Map::PerCpuArray(map)
    | Map::LruHashMap(map)
    | Map::ProgramArray(map)
    | Map::RingBuf(map)) = generation.map(name)?
    else {
        return Err(LoadError::Incomplete(name).into());
    };
    let info = map.info().map_err(StateError::from)?;
    Ok(info.id())
}

/// A hash as the policy has it, in hexadecimal.
fn base16_to_bytes(text: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    // Of what this program wrote itself.
    let _result = base16ct::lower::decode(text, &mut bytes);
    bytes
}
