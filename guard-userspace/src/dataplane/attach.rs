//! Puts generations in force on an interface, one after the other: in the driver if it can, in the
//! generic path if it must.
//!
//! The link is pinned, and nothing else holds it: an agent that ends, however it ends, leaves the kernel
//! enforcing, and removing the pin takes the program off even if the agent hangs.

use std::{collections::BTreeSet, process, sync::Arc};

use aya::{
    maps::{Map, ProgramArray},
    pin::PinError as AyaPinError,
};
use guard_common::{
    exposure::Scope,
    layout::{self, About, Capture, feature},
    reason::Mode,
};

use super::{
    CounterRow, Generation, LoadError, Purpose, Shared, TalkerRow, Tap, Wanted, egress,
    link::{attach_or_swap, info_of, own_link, swap},
    pins::{LINK, PinError, Pins},
    state::{SHARED, SharedMap, State, StateError, bytes_of, shared_maps},
    tap,
};
use crate::{
    host::{UdpFlow, XdpState},
    policy::{Ground, Policy, PublishedPort, Seats, Tables},
};

/// Where the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver, before the kernel allocates anything for the packet.
    Native,
    /// In the kernel's generic path: every packet costs an allocation first, and skips GRO.
    Generic,
}

impl XdpMode {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("interface {0} does not exist")]
    NoInterface(String),
    #[error(
        "interface {interface} already has an XDP program, {program}, which another process holds: \
         `bpftool link` shows it; --force takes it off"
    )]
    Held { interface: String, program: String },
    #[error(
        "interface {interface} already has an XDP program, {program}: `ip link set dev {interface} \
         xdp off` removes it, and so does --force"
    )]
    Occupied { interface: String, program: String },
    #[error(
        "{above} stands on interface {interface} and has an XDP program, {program}: the kernel takes \
         none below it (`ip link set dev {above} xdp off` removes it)"
    )]
    OccupiedAbove {
        interface: String,
        /// A macvlan, a bridge or another device.
        above: String,
        program: String,
    },
    #[error(
        "interface {0} has no XDP program, and the kernel takes none because of another: one on a \
         device that stands on {0} and cannot be seen from here, such as a macvlan in a container"
    )]
    OccupiedElsewhere(String),
    #[error(
        "interface {interface} takes the program neither in its driver ({native}) nor in the generic path ({generic})"
    )]
    Refused {
        interface: String,
        native: String,
        generic: String,
    },
    #[error(
        "interface {interface} takes no program on its way out, which scope `host` needs to know answers by: {reason}"
    )]
    NoEgress { interface: String, reason: String },
    #[error("the link of {interface} cannot be used: {reason}")]
    Link { interface: String, reason: String },
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    State(#[from] StateError),
}

impl From<PinError> for AttachError {
    fn from(error: PinError) -> Self {
        Self::State(error.into())
    }
}

impl From<AyaPinError> for AttachError {
    fn from(error: AyaPinError) -> Self {
        Self::State(error.into())
    }
}

/// The XDP programs that the kernel looks at when one is attached to an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Programs {
    /// On the interface itself.
    pub on: Option<XdpState>,
    /// On a device directly above it, by name.
    pub above: Option<(String, XdpState)>,
}

/// What becomes of somebody else's program on the interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Force {
    /// It stays, and the guard says so.
    #[default]
    No,
    /// It is taken off.
    Yes,
}

/// A policy as it is put in force: its file, its seats, its programs.
pub struct Prepared {
    generation: Generation,
    policy: Policy,
    seats: Seats,
    facts: Facts,
}

/// What a reader of the pins is told of a policy.
#[derive(Clone, Debug)]
pub struct Facts {
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
    /// entries. `early`: what [`Closer`] has closed.
    ///
    /// # Errors
    /// As [`Generation::change`].
    pub fn change(
        &mut self,
        ground: &Ground<'_>,
        early: &BTreeSet<PublishedPort>,
    ) -> Result<(), LoadError> {
        let tables = Tables::compile_at(&self.policy, ground, &self.seats);
        self.generation.change(tables, early)
    }
}

/// An interface, and the generation in force on it.
pub struct Attachment {
    state: State,
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
        let (state, seats) = State::open(pins, namespace, link_program)?;
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

    pub fn interface(&self) -> &str {
        self.state.pins.interface()
    }

    /// Loads a fresh generation of the program for a policy. Nothing changes yet.
    pub fn prepare(
        &self,
        policy: &Policy,
        ground: &Ground<'_>,
        tick_ns: u64,
        facts: Facts,
    ) -> Result<Prepared, AttachError> {
        // If more names have come and gone than there are numbers, counters start afresh.
        let (seats, keeps) = match self.seats.next(policy) {
            Ok(seats) => (seats, true),
            Err(_exhausted) => (Seats::new(policy), false),
        };
        let mut tables = Tables::compile_at(policy, ground, &seats);
        if facts.trial_until != 0
            && let Some(before) = &self.in_force
        {
            // The policy that comes back needs the flows of meanwhile.
            tables.features |= before.generation.tables().features & feature::FLOWS;
        }
        let about = self.state.about().map_err(LoadError::from)?;
        let mut pins = if keeps {
            self.state
                .reusable(&tables, self.seats.shares_cells(&seats))
        } else {
            Vec::new()
        };
        let capture = if pins.iter().any(|(name, _)| *name == layout::CAPTURE) {
            tap::wanted_now(&self.state)
        } else {
            Capture::NONE
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
            policy: policy.clone(),
            seats,
            facts,
        })
    }

    fn is_on_trial(&self) -> bool {
        let in_force = self.in_force.as_ref();
        in_force.is_some_and(|in_force| in_force.facts.trial_until != 0)
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
            older.remove_all()?;
        }
        let Facts {
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

    pub fn counters(&self) -> Result<Vec<CounterRow>, StateError> {
        self.state.counters()
    }

    pub fn talkers(&self) -> Result<Vec<TalkerRow>, StateError> {
        self.state.talkers()
    }

    /// Asks the kernel for packets. There is one reader at a time.
    pub fn tap(&self, wanted: Wanted) -> Result<Tap, StateError> {
        Tap::open(&self.state.pins, wanted, Arc::clone(&self.tapped))
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
pub fn detach(pins: &Pins) -> Result<(), AttachError> {
    // The interface may be gone, and its link with it: whatever is left goes.
    if let Some(state) = State::existing(pins)? {
        let mut about = state.about().map_err(StateError::from)?;
        pins.remove(LINK)?;
        egress::detach(pins, &mut about)?;
    }
    Ok(pins.remove_all()?)
}

/// Lets everything pass on an interface, with no agent: a program with no tables takes the place of the
/// one in force. The state stays, for the next agent. `false`: nothing is attached.
pub fn pass_everything(pins: &Pins, tick_ns: u64) -> Result<bool, AttachError> {
    let (Some(mut state), Some((link, _))) = (State::existing(pins)?, own_link(pins)?) else {
        return Ok(false);
    };
    let mut about = state.about().map_err(StateError::from)?;
    let tables = Tables::passing_everything(Scope::from_raw(about.scope));
    let shared = Shared {
        hash_key: about.hash_key,
        pins: state.reusable(&tables, true),
        capture: Capture::NONE,
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
