//! The generation in force on this host's interfaces, and the state that generations share.
//!
//! A policy is loaded once, and attached to each interface in one atomic step. Budgets, flows and entries belong to the
//! host; only counters, talkers and capture losses are kept per interface.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::IpAddr,
    path::Path,
    process,
    sync::{Arc, Weak},
};

use aya::maps::{Array, Map, ProgramArray};
use guard_common::{
    interfaces::MAX_ROWS,
    layout::{self, About, CaptureFilter, FLOOD_FOR_NS, FloodState, NO_AGENT, feature},
};
use guard_host::{UdpFlow, XdpState};
use guard_policy::{CompileInput, NoServiceIdLeft, Policy, ServiceIds, Tables};
use tracing::warn;

use super::{
    Generation, LoadError, Purpose, Shared,
    attach::{Attachment, TakenOff, linked},
    error::AttachError,
    flows::{FlowCensus, FlowCounts},
    interface::{InterfaceState, InterfaceTables},
    mode::{Force, Programs},
    pins::{Pins, remove_hosts_of_other_layouts},
    ports::PortUpdates,
    rows::{self, EnteredRows},
    state::{HostState, SHARED, SharedMap, StateError, bytes_of, map_info, shared_maps},
    tap,
};

/// A loaded policy: its source file, its service ids, its programs.
pub struct Prepared {
    generation: Generation,
    policy: Arc<Policy>,
    service_ids: ServiceIds,
    facts: PolicyFacts,
    /// The row of its interface, if it was loaded for one interface alone.
    alone: Option<u32>,
}

/// The facts about a policy that are stored for readers of the pins.
#[derive(Clone, Debug)]
pub struct PolicyFacts {
    pub path: String,
    /// In hexadecimal.
    pub sha256: String,
    pub loaded_ms: i64,
    /// When its trial ends, in nanoseconds of CLOCK_BOOTTIME; 0: the policy is not on trial.
    pub trial_until: u64,
}

impl Prepared {
    /// The loaded program with its tables.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Changes the table of this host's own addresses.
    ///
    /// # Errors
    /// As [`Generation::change_own_sources`].
    pub fn change_own_sources(&mut self, next: &BTreeSet<IpAddr>) -> Result<(), LoadError> {
        self.generation.change_own_sources(next)
    }

    /// Changes its tables after published ports, container networks or entries have changed.
    ///
    /// # Errors
    /// As [`Generation::change`].
    pub fn change(
        &mut self,
        compile_input: &CompileInput<'_>,
        news: &mut PortUpdates<'_>,
    ) -> Result<(), LoadError> {
        let tables = Tables::compile_at(&self.policy, compile_input, &self.service_ids);
        self.generation.change(tables, news)
    }

    /// Whether the generation counts packets of these interfaces (by their rows) in the tables of each. A generation
    /// for one interface alone does so only for that one.
    pub fn is_for(&self, rows: &BTreeSet<u32>) -> bool {
        self.alone
            .is_none_or(|alone| rows.iter().all(|row| *row == alone))
    }

    fn is_trial(&self) -> bool {
        self.facts.trial_until != 0
    }

    fn has_program(&self, id: u32) -> bool {
        self.generation.program_id().is_ok_and(|own| own == id)
    }
}

/// The state that all guarded interfaces of this host share.
pub struct Dataplane {
    state: HostState,
    /// The service ids of the generation in force, or of the earlier agent.
    service_ids: ServiceIds,
    in_force: Option<Prepared>,
    /// During a trial: the generation to which the kernel goes back by itself.
    fallback: Option<Prepared>,
    /// Earlier generations that are still on interfaces, because a swap failed there.
    older: Vec<Prepared>,
    /// The generation that is being put in force.
    next: Option<Prepared>,
    /// The rows of interfaces that have pins.
    rows: BTreeSet<u32>,
    entered: EnteredRows,
    /// Each running capture holds a clone.
    tapped: Arc<()>,
    census: FlowCensus,
}

impl Dataplane {
    /// Takes over the state of an earlier agent. It changes no program.
    pub fn open(root: &Path, namespace: u64) -> Result<Self, AttachError> {
        let (state, service_ids) = HostState::open(root, namespace, &linked(root)?)?;
        // An error is ignored: there may be no capture, and one without a reader ends when its grant is used up.
        let _result = tap::end(&state);
        let mut rows = BTreeSet::new();
        for pins in Pins::existing(root)? {
            if let Some(state) = InterfaceState::existing(&pins)? {
                rows.insert(state.row());
            }
        }
        Ok(Self {
            state,
            service_ids,
            in_force: None,
            fallback: None,
            older: Vec::new(),
            next: None,
            rows,
            entered: EnteredRows::default(),
            tapped: Arc::new(()),
            census: FlowCensus::default(),
        })
    }

    fn root(&self) -> &Path {
        self.state.pins.root()
    }

    /// Opens the state of an interface, or creates it. Nothing is attached yet.
    pub fn open_interface(&mut self, pins: Pins) -> Result<Attachment, AttachError> {
        let about = self.state.about().map_err(StateError::from)?;
        let host = about.hash_key.0[0];
        if let Some(state) = InterfaceState::existing(&pins)? {
            let of_interface = state.about().map_err(StateError::from)?;
            if of_interface.host == host {
                return Ok(Attachment::of(state));
            }
            // The counters are of another host state, whose service ids are unknown.
            self.rows.remove(&of_interface.row);
        }
        let mut free = (1..MAX_ROWS).filter(|row| !self.rows.contains(row));
        let row = free.next();
        let row = row.ok_or_else(|| AttachError::NoRow(pins.interface().to_owned()))?;
        let state = InterfaceState::create(pins, host, row)?;
        self.rows.insert(row);
        Ok(Attachment::of(state))
    }

    /// Frees the rows of interfaces whose pins are gone.
    pub fn leave(&mut self, rows: &[u32]) {
        for row in rows {
            self.rows.remove(row);
        }
        if let Some(Prepared { generation, .. }) = &self.in_force
            && let Err(error) = self.entered.leave(generation, rows)
        {
            warn!("counters of interfaces that are gone stay in memory: {error}");
        }
    }

    /// Whether the state is pinned, where the next agent and commands without an agent look for it.
    pub fn is_pinned(&self) -> bool {
        self.state.pins.has(layout::ABOUT)
    }

    /// Pins maps again whose pins were removed by hand.
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

    /// The handle for captures. A running capture holds it strongly. A snapshot, which may start a capture later, holds
    /// it weakly.
    pub fn tapped(&self) -> Weak<()> {
        Arc::downgrade(&self.tapped)
    }

    fn is_tapped(&self) -> bool {
        Arc::strong_count(&self.tapped) > 1
    }

    /// Loads a new generation of the program for a policy, and attaches it nowhere yet. `alone`: the interface, if it
    /// is the only one.
    pub fn prepare(
        &self,
        policy: &Arc<Policy>,
        compile_input: &CompileInput<'_>,
        tick_ns: u64,
        facts: PolicyFacts,
        alone: Option<&Attachment>,
    ) -> Result<Prepared, AttachError> {
        // The kernel goes back to the policy before a trial by itself, so its services keep their ids and cells.
        let held: BTreeSet<&str> = self
            .generations()
            .flat_map(|generation| &generation.tables().services)
            .map(|service| service.name.as_str())
            .collect();
        let service_ids = self.service_ids.next(policy, |name| held.contains(name));
        let service_ids = service_ids.map_err(|NoServiceIdLeft| AttachError::NoRoom)?;
        let mut tables = Tables::compile_at(policy, compile_input, &service_ids);
        if facts.trial_until != 0
            && let Some(before) = &self.in_force
        {
            // The policy that comes back after the trial needs the flows that open during it.
            tables.features |= before.generation.tables().features & feature::FLOWS;
        }
        let about = self.state.about().map_err(LoadError::from)?;
        let mut pins = self
            .state
            .reusable(&tables, self.service_ids.shares_cells(&service_ids));
        let capture = if pins.iter().any(|(name, _)| *name == layout::CAPTURE) {
            tap::current_filter(&self.state)
        } else {
            CaptureFilter::NONE
        };
        if let Some(alone) = alone {
            tables.features |= feature::ALONE;
            pins.extend(alone.state.tables.pins_of_alone());
        }
        // A generation loaded during a trial goes back to the same generation as the trial.
        let goes_on = facts.trial_until != 0 && self.is_on_trial();
        if goes_on {
            pins.push((layout::PREVIOUS, self.state.pins.path(layout::PREVIOUS)));
        }
        let shared = Shared {
            hash_key: about.hash_key,
            pins,
            capture,
            trial_until: facts.trial_until,
            is_attached: true,
        };
        let purpose = if facts.trial_until == 0 {
            Purpose::Service
        } else {
            Purpose::Trial
        };
        let generation = Generation::load_for(purpose, tables, tick_ns, &shared)?;
        if !self.is_tapped() {
            // A capture may have ended while the program was loaded. An error is ignored: the next load ends it.
            let _result = tap::end(&self.state);
        }
        Ok(Prepared {
            generation,
            policy: Arc::clone(policy),
            service_ids,
            facts,
            alone: alone.map(Attachment::row),
        })
    }

    fn is_on_trial(&self) -> bool {
        self.in_force.as_ref().is_some_and(Prepared::is_trial)
    }

    /// Begins to put a generation in force: pins the maps that it shares, and resets the counters and cells that go to
    /// another service. `all`: all guarded interfaces, also those that keep their program.
    ///
    /// # Errors
    /// The generation before it stays in force.
    pub fn begin<'a>(
        &mut self,
        mut next: Prepared,
        all: impl Iterator<Item = &'a mut Attachment>,
    ) -> Result<(), AttachError> {
        let all: Vec<&mut Attachment> = all.collect();
        let begun = self.remember_previous(&mut next, &all).and_then(|()| {
            self.try_begin(
                &mut next,
                all.into_iter().map(|one| &mut one.state).collect(),
            )
        });
        self.next = Some(next);
        if begun.is_err() {
            self.abandon(&mut []);
        }
        begun
    }

    /// Stores in a trial's generation the program to which each interface goes back. If an interface had no program
    /// before, its packets pass after the trial.
    fn remember_previous(
        &self,
        next: &mut Prepared,
        all: &[&mut Attachment],
    ) -> Result<(), AttachError> {
        // A generation loaded during a trial goes back to the same generation as the trial.
        if !next.is_trial() || self.is_on_trial() {
            return Ok(());
        }
        let Some(before) = &self.in_force else {
            return Ok(());
        };
        let had = all.iter().filter(|attachment| {
            let program = attachment.program_id();
            program.is_some_and(|id| before.has_program(id))
        });
        let program = before.generation.program()?.fd().map_err(LoadError::from)?;
        let map = next.generation.map_mut(layout::PREVIOUS)?;
        let mut previous = ProgramArray::try_from(map).map_err(LoadError::from)?;
        for attachment in had {
            let row = attachment.row();
            previous.set(row, program, 0).map_err(LoadError::from)?;
        }
        Ok(())
    }

    fn try_begin(
        &mut self,
        next: &mut Prepared,
        mut all: Vec<&mut InterfaceState>,
    ) -> Result<(), AttachError> {
        let highest = next
            .service_ids
            .places
            .values()
            .map(|place| place.number)
            .max();
        let highest = highest.unwrap_or(layout::NO_SERVICE);
        self.state.unknown.reach(highest)?;
        for state in &mut all {
            state.tables.reach(highest)?;
        }
        self.pin_waiting(&next.generation, next.is_trial())?;
        let rows = all.iter().map(|state| (state.row(), &state.tables));
        let unknown = (guard_common::interfaces::UNKNOWN_ROW, &self.state.unknown);
        self.entered
            .enter(&next.generation, rows.chain([unknown]))?;
        let cells = map_id(&next.generation, next.generation.tables().cells_map())?;
        let changes = next.service_ids.changes_since(&self.service_ids);
        next.generation.empty(&changes)?;
        let numbers: Vec<u16> = changes
            .numbers
            .iter()
            .map(|(number, _, _)| *number)
            .collect();
        if !numbers.is_empty() {
            let tables = all.into_iter().map(|state| &mut state.tables);
            for tables in tables.chain([&mut self.state.unknown]) {
                empty_numbers(tables, &numbers)?;
            }
        }
        self.state
            .set_service_ids(&next.service_ids, cells)
            .map_err(StateError::from)?;
        let mut about = self.state.about().map_err(StateError::from)?;
        if !self.keeps_flows() {
            (about.ended_flows, about.evicted_flows) = (0, 0);
        }
        about.next_program = next.generation.program_id()?;
        self.state.set_about(&about).map_err(StateError::from)?;
        if let Some(before) = &self.in_force {
            let slices = next.service_ids.shared_slices(&before.service_ids);
            next.generation.take_over(&before.generation, slices)?;
        }
        Ok(())
    }

    /// Whether flows of this host are recorded already, by a generation of this agent or of an earlier one.
    pub fn keeps_flows(&self) -> bool {
        self.state.pins.has(layout::FLOWS)
    }

    /// Removes flows that are over, and returns the number of those left and of those that the kernel has evicted.
    /// `None`: no flows are recorded. It scans the table only after many new flows, or some time after the last scan.
    pub fn remove_ended_flows(&mut self) -> Result<Option<FlowCounts>, AttachError> {
        let Some(Prepared { generation, .. }) = &mut self.in_force else {
            return Ok(None);
        };
        if !generation.tables().uses(feature::FLOWS) {
            return Ok(None);
        }
        let opened = generation.opened_flows()?;
        if self.census.is_due(opened) {
            let mut about = self.state.about().map_err(StateError::from)?;
            self.census.take(generation, opened, &mut about)?;
            self.state.set_about(&about).map_err(StateError::from)?;
        }
        Ok(Some(self.census.counts()))
    }

    /// The services that are flooded at this moment, and since when, in nanoseconds of CLOCK_BOOTTIME.
    pub fn floods(&self, boot_ns: u64) -> Result<Vec<(String, u64)>, AttachError> {
        let Some(Prepared { generation, .. }) = &self.in_force else {
            return Ok(Vec::new());
        };
        if !generation.tables().uses(feature::FLOODS) {
            return Ok(Vec::new());
        }
        let states = Array::<_, FloodState>::try_from(generation.map(layout::FLOODS)?)
            .map_err(LoadError::from)?;
        let services = generation.tables().services.iter();
        let mut flooded = Vec::new();
        for service in services.filter(|service| service.flood.is_some()) {
            let state = states.get(&service.number.into(), 0);
            let state = state.map_err(LoadError::from)?;
            if state.seen_ns != 0 && boot_ns < state.seen_ns + FLOOD_FOR_NS {
                flooded.push((service.name.clone(), state.since_ns));
            }
        }
        Ok(flooded)
    }

    /// Pins the maps of a generation that later ones will share, as waiting maps beside those in use.
    fn pin_waiting(&self, generation: &Generation, is_trial: bool) -> Result<(), AttachError> {
        let pins = &self.state.pins;
        for name in shared_names(generation, is_trial) {
            pins.remove_next(name)?;
            let pinned = map_info(pins, name).map(|info| info.id());
            if pinned != Some(map_id(generation, name)?) {
                generation.map(name)?.pin(pins.next(name))?;
            }
        }
        Ok(())
    }

    /// Prepares an interface for the generation that is begun, or else for the one in force: creates and enters its
    /// counters, and attaches the egress program.
    pub fn make_ready(&mut self, attachment: &mut Attachment) -> Result<(), AttachError> {
        let Some(prepared) = self.next.as_mut().or(self.in_force.as_mut()) else {
            return Err(LoadError::Incomplete("generation").into());
        };
        let highest = prepared
            .service_ids
            .places
            .values()
            .map(|place| place.number);
        let tables = &mut attachment.state.tables;
        tables.reach(highest.max().unwrap_or(layout::NO_SERVICE))?;
        let row = attachment.state.row();
        self.entered.enter(
            &prepared.generation,
            [(row, &attachment.state.tables)].into_iter(),
        )?;
        attachment.record_flows(&mut prepared.generation)
    }

    /// Records the flows that are open already in the generation that is begun, or else in the one in force, if it
    /// records flows. `open` is called only then.
    pub fn seed_flows(&self, open: impl FnOnce() -> Vec<UdpFlow>) -> Result<(), AttachError> {
        match self.next.as_ref().or(self.in_force.as_ref()) {
            Some(Prepared { generation, .. }) if generation.tables().uses(feature::FLOWS) => {
                Ok(generation.seed_flows(&open())?)
            }
            _ => Ok(()),
        }
    }

    /// Assigns rows to interfaces, by their indices.
    pub fn assign_rows(&self, by_index: &BTreeMap<u32, u32>) -> Result<(), AttachError> {
        let Some(Prepared { generation, .. }) = self.next.as_ref().or(self.in_force.as_ref())
        else {
            return Ok(());
        };
        let without = rows::assign(generation, by_index)?;
        if !without.is_empty() {
            warn!(
                interfaces = ?without,
                "there is no place for these indices: their packets are counted for the interface \"unknown\""
            );
        }
        Ok(())
    }

    /// Puts the generation that is begun, or else the one in force, on an interface, in one atomic step.
    ///
    /// `found`: the programs on the interface at this moment. Returns why the program could not be attached in the
    /// driver, if so: the caller must report it, since the generic path is slow.
    ///
    /// # Errors
    /// The interface keeps its program.
    pub fn put(
        &mut self,
        attachment: &mut Attachment,
        found: &Programs,
        force: Force,
    ) -> Result<Option<String>, AttachError> {
        let mut number = self.state.about().map_err(StateError::from)?.generation;
        let only_on_trial = self.is_only_on_trial(attachment)?;
        let prepared = match (&mut self.next, &mut self.in_force) {
            (Some(next), _) => {
                number += 1;
                next
            }
            (None, Some(in_force)) => in_force,
            (None, None) => return Err(LoadError::Incomplete("generation").into()),
        };
        let refusal = attachment.put(&mut prepared.generation, number, found, force)?;
        attachment.set_only_on_trial(only_on_trial)?;
        Ok(refusal)
    }

    /// Whether an interface has the generation that is begun, or else the one in force, only for the time of a trial:
    /// [`Self::remember_previous`] found no program to which it goes back.
    fn is_only_on_trial(&self, attachment: &Attachment) -> Result<bool, AttachError> {
        let Some(prepared) = self.next.as_ref().or(self.in_force.as_ref()) else {
            return Ok(false);
        };
        let program = attachment.program_id();
        Ok(match (&self.in_force, program) {
            _ if !prepared.is_trial() => false,
            (_, None) => true,
            (Some(before), Some(_)) if before.is_trial() => attachment.about()?.only_on_trial == 1,
            (Some(before), Some(program)) => !before.has_program(program),
            (None, Some(_)) => true,
        })
    }

    /// Puts the generation with this program back on an interface that had it before.
    pub fn put_back(
        &mut self,
        attachment: &mut Attachment,
        program: u32,
        found: &Programs,
    ) -> Result<(), AttachError> {
        let number = self.state.about().map_err(StateError::from)?.generation;
        let before = self.in_force.iter_mut().chain(&mut self.older);
        let before = before.into_iter().find(|one| one.has_program(program));
        let Some(Prepared { generation, .. }) = before else {
            return Err(LoadError::Incomplete("generation before").into());
        };
        attachment.record_flows(generation)?;
        attachment
            .put(generation, number, found, Force::No)
            .map(drop)
    }

    /// Makes the generation that was begun the one in force: it is on at least one interface. `attachments`: all
    /// guarded interfaces.
    pub fn commit(&mut self, attachments: &[&Attachment]) -> Result<(), AttachError> {
        let Some(next) = self.next.take() else {
            return Ok(());
        };
        let on_interfaces: BTreeSet<u32> = attachments
            .iter()
            .filter_map(|one| one.program_id())
            .collect();
        let finished = self.finish(&next, attachments);
        self.service_ids = next.service_ids.clone();
        let before = self.in_force.replace(next);
        let is_needed = |one: &Prepared| {
            let program = one.generation.program_id();
            program.is_ok_and(|program| on_interfaces.contains(&program))
        };
        let mut goes: Vec<Prepared> = mem::take(&mut self.older);
        match before {
            // The trial goes back to this generation, so it is kept.
            Some(before) if self.is_on_trial() && !before.is_trial() => {
                goes.extend(self.fallback.replace(before));
            }
            before => {
                goes.extend(before);
                if !self.is_on_trial() {
                    goes.extend(self.fallback.take());
                }
            }
        }
        self.older = goes.into_iter().filter(is_needed).collect();
        finished
    }

    fn finish(&mut self, next: &Prepared, attachments: &[&Attachment]) -> Result<(), AttachError> {
        let pins = self.state.pins.clone();
        let program = next.generation.program_id()?;
        for name in pins.waiting()? {
            pins.take_next(&name)?;
        }
        let shared = shared_names(&next.generation, next.is_trial());
        for name in SHARED.iter().filter(|name| !shared.contains(*name)) {
            pins.remove(name)?;
        }
        for attachment in attachments {
            if attachment.program_id() != Some(program) {
                continue;
            }
            for older in attachment.pins().of_other_layouts()? {
                // Files that do not belong to guard stay there, and do no harm.
                let _left = older.remove_all();
            }
        }
        let _left = remove_hosts_of_other_layouts(self.root())?;
        let PolicyFacts {
            path,
            sha256,
            loaded_ms,
            trial_until,
        } = &next.facts;
        let about = self.state.about().map_err(StateError::from)?;
        let tables = next.generation.tables();
        // What changes during a trial goes back to where the trial would.
        let (mode_before, scope_before) = if *trial_until != 0 && self.is_on_trial() {
            (about.mode_before, about.scope_before)
        } else {
            (about.mode, about.scope)
        };
        let about = About {
            generation: about.generation + 1,
            trial_until: *trial_until,
            loaded_ms: *loaded_ms,
            cells: next.service_ids.asked,
            agent: process::id(),
            program,
            next_program: 0,
            mode: tables.mode as u8,
            scope: tables.scope as u8,
            services: u32::try_from(tables.services.len()).unwrap_or(u32::MAX),
            mode_before,
            scope_before,
            sha256: base16_to_bytes(sha256),
            version: bytes_of(env!("CARGO_PKG_VERSION")),
            policy: bytes_of(path),
            ..about
        };
        self.state.set_about(&about).map_err(StateError::from)?;
        Ok(())
    }

    /// Drops the generation that was begun, and leaves the one in force unchanged. Errors are ignored here: the caller
    /// has one to report already, and the next generation repairs the rest. `ready`: the interfaces that were prepared.
    pub fn abandon(&mut self, ready: &mut [&mut Attachment]) {
        let Some(refused) = self.next.take() else {
            return;
        };
        let is_somewhere = refused.generation.program_id().is_ok_and(|program| {
            let mut ready = ready.iter();
            ready.any(|one| one.program_id() == Some(program) && one.is_pinned())
        });
        if is_somewhere {
            // An interface still has the refused program, so its waiting maps stay for the next agent.
            return;
        }
        for name in self.state.pins.waiting().unwrap_or_default() {
            let _result = self.state.pins.remove_next(&name);
        }
        for attachment in ready {
            let program = attachment.program_id();
            let before = self.in_force.iter_mut().chain(&mut self.older);
            let mut before = before.filter(|one| program.is_some_and(|id| one.has_program(id)));
            let before = before.next().map(|one| &mut one.generation);
            attachment.take_back_flows(before);
        }
        if let Some(before) = &self.in_force {
            let cells = map_id(&before.generation, before.generation.tables().cells_map());
            let cells = cells.unwrap_or_default();
            let _result = self.state.set_service_ids(&before.service_ids, cells);
        }
        if let Ok(mut about) = self.state.about() {
            about.next_program = 0;
            let _result = self.state.set_about(&about);
        }
    }

    /// The generation in force, if this agent put it there.
    pub fn in_force(&self) -> Option<&Prepared> {
        self.in_force.as_ref()
    }

    /// The kernel's id of the program in force.
    pub fn program_id(&self) -> Option<u32> {
        let Prepared { generation, .. } = self.in_force.as_ref()?;
        generation.program_id().ok()
    }

    /// All generations whose tables must stay up to date: the one in force, the one to which a trial goes back, earlier
    /// ones that are still on interfaces, and the one that is being put in force.
    pub fn generations(&self) -> impl Iterator<Item = &Generation> {
        let prepared = self.in_force.iter().chain(&self.fallback);
        let prepared = prepared.chain(&self.older).chain(&self.next);
        prepared.map(|prepared| &prepared.generation)
    }

    /// The generation that is being put in force.
    pub fn next_mut(&mut self) -> Option<&mut Prepared> {
        self.next.as_mut()
    }

    /// Drops the generation that was begun after an emergency exit, and leaves the pins unchanged.
    pub fn forget_next(&mut self) {
        self.next = None;
    }

    /// Detaches the program of an interface, as [`Attachment::take_off`] does.
    pub fn take_off(
        &self,
        attachment: &mut Attachment,
        found: Option<XdpState>,
    ) -> Result<Option<TakenOff>, AttachError> {
        attachment.take_off(found, self.generations())
    }

    /// Writes the log of the program in force to this process's log.
    pub fn flush_log(&mut self) {
        if let Some(Prepared { generation, .. }) = &mut self.in_force {
            generation.flush_log();
        }
    }

    /// The generation in force, to change its tables.
    pub fn in_force_mut(&mut self) -> Option<&mut Prepared> {
        self.in_force.as_mut()
    }

    /// The generation to which the kernel goes back when the trial in force ends. Changes of tables must be made in
    /// both generations.
    pub fn fallback_mut(&mut self) -> Option<&mut Prepared> {
        self.fallback.as_mut()
    }

    /// Earlier generations that are still on interfaces, because a swap failed there.
    pub fn older_mut(&mut self) -> impl Iterator<Item = &mut Prepared> {
        self.older.iter_mut()
    }

    /// The state of the host for readers of the pins.
    pub fn about(&self) -> Result<About, StateError> {
        Ok(self.state.about()?)
    }

    /// Stores in the pins that the agent is alive at this moment, in nanoseconds of CLOCK_BOOTTIME.
    pub fn beat(&mut self, boot_ns: u64) -> Result<(), StateError> {
        let mut about = self.state.about()?;
        about.seen_ns = boot_ns;
        about.agent = process::id();
        Ok(self.state.set_about(&about)?)
    }

    /// Stores in the pins that the agent was stopped in order, at this moment in nanoseconds of CLOCK_BOOTTIME.
    pub fn stop(&mut self, boot_ns: u64) -> Result<(), StateError> {
        let mut about = self.state.about()?;
        about.seen_ns = boot_ns;
        about.agent = NO_AGENT;
        Ok(self.state.set_about(&about)?)
    }

    /// Removes the state that interfaces share. Returns the files that stay, with the reason.
    pub fn remove(self) -> Vec<String> {
        self.state.pins.remove_all()
    }
}

fn empty_numbers(tables: &mut InterfaceTables, numbers: &[u16]) -> Result<(), LoadError> {
    tables.empty_counters(numbers)?;
    tables.empty_talkers(numbers)
}

/// The names of a generation's maps that other generations share.
fn shared_names(generation: &Generation, is_trial: bool) -> Vec<&'static str> {
    let shared = shared_maps(generation.tables()).into_iter();
    let mut names: Vec<&'static str> = shared.map(|map| map.name).collect();
    if is_trial {
        names.push(layout::PREVIOUS);
    }
    names
}

/// The kernel's id of a generation's map.
fn map_id(generation: &Generation, name: &'static str) -> Result<u32, AttachError> {
    let (Map::Array(map)
    | Map::ArrayOfMaps(map)
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

/// Decodes the policy's SHA-256 from hexadecimal.
fn base16_to_bytes(text: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    // It cannot fail: this program has encoded the text.
    let _result = base16ct::lower::decode(text, &mut bytes);
    bytes
}
