//! Attaches the program to an interface: native XDP if the driver supports it, generic XDP otherwise.
//!
//! Only the pin holds the link. So the kernel goes on enforcing when the agent ends, however it ends, and removing the
//! pin detaches the program even if the agent hangs.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use aya::programs::loaded_programs;
use guard_common::layout::{AboutInterface, feature};
use guard_host::XdpState;

use super::{
    Generation, egress,
    error::AttachError,
    interface::InterfaceState,
    link::{self, attach_or_swap, info_of, occupied, own_link, pinned_program},
    link_info,
    mode::{Force, Programs, XdpMode},
    pins::{LINK, Pins},
    remove::remove_interface,
    state::StateError,
    sys,
};

/// A program that was detached from an interface and may be attached again.
pub struct TakenOff {
    program: OwnedFd,
    native: bool,
}

/// An interface, and the program that this agent has put in force on it.
pub struct Attachment {
    pub(super) state: InterfaceState,
    /// The kernel's id of that program. `None`: the program of an earlier agent, or none.
    program: Option<u32>,
    mode: XdpMode,
}

impl Attachment {
    /// An interface on which this agent has put no program in force yet.
    pub(super) fn of(state: InterfaceState) -> Self {
        Self {
            state,
            program: None,
            mode: XdpMode::Native,
        }
    }

    /// Whether the interface has the program that the pinned link holds. Then a swap replaces it in one step, which no
    /// other program on the interface can prevent.
    pub fn is_on(&self, found: Option<XdpState>) -> bool {
        let pins = &self.state.pins;
        let held = own_link(pins).ok().flatten();
        let held = held.and_then(|(link, _)| info_of(pins, &link.into()).ok());
        held.is_some() && held == found.map(|found| found.program_id)
    }

    /// The index of the interface to which the pinned link is attached. `None`: the interface is gone, or there is no
    /// link.
    pub fn index(&self) -> Option<u32> {
        let (_, pins) = own_link(&self.state.pins).ok().flatten()?;
        link_info::interface_of(&pins.path(LINK)).ok().flatten()
    }

    /// Whether the link is pinned, where the next agent and `guard detach` look for it.
    pub fn is_pinned(&self) -> bool {
        self.state.pins.has(LINK)
    }

    /// Pins maps again whose pins were removed by hand.
    pub fn restore_pins(&self) -> Result<(), AttachError> {
        Ok(self.state.restore_pins()?)
    }

    /// The interface's name at this moment.
    pub fn interface(&self) -> &str {
        self.state.pins.interface()
    }

    /// Sets the name that the interface has at this moment. Its pins stay where they are.
    pub fn set_interface(&mut self, name: &str) {
        self.state.pins.set_interface(name);
    }

    /// The pins of the interface.
    pub fn pins(&self) -> &Pins {
        &self.state.pins
    }

    /// The row of the interface in the tables per interface.
    pub fn row(&self) -> u32 {
        self.state.row()
    }

    /// The state for readers of the pins.
    pub fn about(&self) -> Result<AboutInterface, StateError> {
        Ok(self.state.about()?)
    }

    /// Native or generic XDP.
    pub fn mode(&self) -> XdpMode {
        self.mode
    }

    /// The kernel's id of the program that this agent has put in force here.
    pub fn program_id(&self) -> Option<u32> {
        self.program
    }

    /// Fails unless a program can be attached.
    ///
    /// # Errors
    /// The interface has a program of other software, and `force` does not allow to detach it.
    pub fn require_free(&self, found: Option<XdpState>, force: Force) -> Result<(), AttachError> {
        let pins = &self.state.pins;
        match found {
            Some(state) if force == Force::No && pinned_program(pins) != Some(state.program_id) => {
                Err(occupied(pins.interface(), state))
            }
            _ => Ok(()),
        }
    }

    /// Detaches the program from the interface, and keeps its state so that it can be attached again. `found`: the
    /// program on the interface at this moment; `ours`: the generations that this agent has loaded. Returns `None` if
    /// the program is not of this guard.
    ///
    /// # Errors
    /// The program is still attached.
    pub(super) fn take_off<'a>(
        &mut self,
        found: Option<XdpState>,
        ours: impl Iterator<Item = &'a Generation>,
    ) -> Result<Option<TakenOff>, AttachError> {
        let taken_off = match found.filter(|_| self.is_on(found)) {
            Some(found) => Some(TakenOff {
                program: self.open_program(found.program_id, ours)?,
                native: found.native,
            }),
            None => None,
        };
        link::take_off(&self.state.pins, LINK)?;
        Ok(taken_off)
    }

    /// Opens a program that this agent or an earlier one has loaded. To open a program of another process needs
    /// CAP_SYS_ADMIN, which an agent has while it starts.
    fn open_program<'a>(
        &self,
        id: u32,
        mut ours: impl Iterator<Item = &'a Generation>,
    ) -> Result<OwnedFd, AttachError> {
        let failed = |error: &dyn std::fmt::Display| AttachError::Link {
            interface: self.interface().to_owned(),
            reason: format!("program {id} cannot be opened to be attached again later: {error}"),
        };
        let is_meant =
            |generation: &&Generation| generation.program_id().is_ok_and(|own| own == id);
        if let Some(generation) = ours.find(is_meant) {
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

    /// Attaches a detached program again.
    ///
    /// # Errors
    /// The program could not be attached, or its link not be pinned: the interface has no program of this guard.
    pub fn restore(&self, interface: u32, taken_off: &TakenOff) -> Result<(), AttachError> {
        let TakenOff { program, native } = taken_off;
        let link = sys::link_xdp(program.as_fd(), interface, *native);
        let pinned = link.and_then(|link| sys::pin(&self.state.pins.path(LINK), link.as_fd()));
        pinned.map_err(|error| AttachError::Link {
            interface: self.interface().to_owned(),
            reason: format!("its program cannot be attached again: {error}"),
        })
    }

    /// Attaches the egress program, which records flows of this host, if the policy of a generation needs them.
    pub(super) fn record_flows(&mut self, generation: &mut Generation) -> Result<(), AttachError> {
        if !generation.tables().uses(feature::FLOWS | feature::FLOODS) {
            return Ok(());
        }
        let mut about = self.state.about().map_err(StateError::from)?;
        egress::attach(&mut self.state, generation, &mut about)?;
        Ok(self.state.set_about(&about).map_err(StateError::from)?)
    }

    /// Puts a generation in force on the interface, in one atomic step.
    ///
    /// `found`: the programs on the interface at this moment. Returns why the program could not be attached in the
    /// driver, if so: the caller must report it, since the generic path is slow.
    ///
    /// # Errors
    /// The program before it stays in force.
    pub(super) fn put(
        &mut self,
        generation: &mut Generation,
        number: u64,
        found: &Programs,
        force: Force,
    ) -> Result<Option<String>, AttachError> {
        let program = generation.program_id()?;
        let keeps_flows = generation.tables().uses(feature::FLOWS | feature::FLOODS);
        let (mode, refusal) = attach_or_swap(&self.state.pins, generation, found, force)?;
        self.mode = mode;
        self.program = Some(program);
        let mut about = self.state.about().map_err(StateError::from)?;
        if !keeps_flows {
            egress::detach(&self.state.pins, &mut about)?;
        }
        about.generation = number;
        about.program = program;
        about.native = u8::from(mode == XdpMode::Native);
        self.state.set_about(&about).map_err(StateError::from)?;
        Ok(refusal)
    }

    /// Stores for readers of the pins whether only a policy on trial guards the interface.
    pub(super) fn set_only_on_trial(&mut self, only_on_trial: bool) -> Result<(), AttachError> {
        let about = AboutInterface {
            only_on_trial: u8::from(only_on_trial),
            ..self.state.about().map_err(StateError::from)?
        };
        Ok(self.state.set_about(&about).map_err(StateError::from)?)
    }

    /// Leaves the flows of this host to the generation that stays in force here, after another was refused. An error is
    /// ignored: the next generation attaches again.
    pub(super) fn take_back_flows(&mut self, goes_on: Option<&mut Generation>) {
        match goes_on {
            Some(generation) if generation.tables().uses(feature::FLOWS) => {
                let _result = self.record_flows(generation);
            }
            Some(_) => self.forget_flows(),
            // No program is attached, so no flows need to be recorded.
            None if !self.is_pinned() => self.forget_flows(),
            // The programs of an earlier agent stay in force.
            None => {}
        }
    }

    fn forget_flows(&mut self) {
        if let Ok(mut about) = self.state.about() {
            let _result = egress::detach(&self.state.pins, &mut about);
            let _result = self.state.set_about(&about);
        }
    }

    /// Detaches the programs from the interface, and removes its state from the kernel. The caller frees its row with
    /// [`Dataplane::leave`](super::Dataplane::leave).
    ///
    /// # Errors
    /// A program is still attached.
    pub fn detach(self) -> Result<(), AttachError> {
        remove_interface(&self.state.pins)
    }
}

/// The ids of the programs that pinned links hold, of interfaces of every layout below this root.
pub(super) fn linked(root: &Path) -> Result<std::collections::BTreeSet<u32>, AttachError> {
    let found = Pins::existing(root)?;
    Ok(found.iter().filter_map(pinned_program).collect())
}
