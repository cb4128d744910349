//! Removes guard, or lets everything pass, by the pins alone: without an agent.

use std::{collections::BTreeSet, path::Path};

use guard_common::{
    exposure::Scope,
    layout::{About, AboutInterface, CaptureFilter},
    reason::Mode,
};
use guard_host::causes::innermost;
use guard_policy::Tables;

use super::{
    Generation, Purpose, Shared, egress,
    error::AttachError,
    interface::InterfaceState,
    link::{self, own_link, swap},
    pins::{self, EGRESS_LINK, Found, LINK, PinError, Pins},
    state::{HostState, StateError},
};

/// Detaches guard's programs from an interface, and removes its pins.
///
/// # Errors
/// A program is still on the interface.
pub fn remove_interface(pins: &Pins) -> Result<(), AttachError> {
    let removal = detach_pins(Found {
        interfaces: vec![pins.clone()],
        ..Found::default()
    });
    match removal.still_attached.into_iter().next() {
        Some(reason) => Err(AttachError::Link {
            interface: pins.interface().to_owned(),
            reason,
        }),
        None => Ok(()),
    }
}

/// The result of removing guard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// The interfaces that had pins.
    pub interfaces: Vec<String>,
    /// Why a program is still on an interface.
    pub still_attached: Vec<String>,
    /// The files that stay below the root of the pins and hold no program, with the reason.
    pub left: Vec<String>,
}

/// Detaches the programs from every interface that has pins of any layout below this root, and removes all state. A
/// failure does not stop the rest.
///
/// # Errors
/// The pins cannot be listed.
pub fn detach_all(root: &Path) -> Result<Removal, PinError> {
    Ok(detach_pins(pins::all(root)?))
}

fn detach_pins(found: Found) -> Removal {
    let Found {
        interfaces,
        hosts,
        odd,
    } = found;
    let mut removal = Removal {
        left: odd,
        ..Removal::default()
    };
    // The state has the handle of the egress filter, so it is read here and removed last.
    let states: Vec<Option<AboutInterface>> = interfaces.iter().map(about_of).collect();
    // The links of all interfaces come first: a failure of another step must not leave a program attached.
    for pins in &interfaces {
        if let Err(error) = link::take_off(pins, LINK)
            && pins.may_hold_program()
        {
            removal.still_attached.push(error.to_string());
        }
    }
    for (pins, about) in interfaces.iter().zip(states) {
        // Without the state, only a pinned egress link can be found.
        let detached = match about {
            Some(mut about) => egress::detach(pins, &mut about),
            None => link::take_off(pins, EGRESS_LINK).map_err(AttachError::from),
        };
        // A file that cannot be removed is reported by `remove_files`.
        drop(detached);
    }
    for pins in interfaces.iter().chain(&hosts) {
        removal.left.extend(pins.remove_files());
    }
    for pins in interfaces.iter().chain(&hosts) {
        removal.left.extend(pins.remove_folders());
    }
    let names: BTreeSet<&str> = interfaces.iter().map(Pins::interface).collect();
    removal.interfaces = names.into_iter().map(str::to_owned).collect();
    removal
}

/// The facts about an interface; `None`: the interface is gone, or its state cannot be read.
fn about_of(pins: &Pins) -> Option<AboutInterface> {
    let state = InterfaceState::existing(pins).ok().flatten()?;
    state.about().ok()
}

/// The result of letting everything pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passing {
    /// The interfaces on which everything passes now.
    pub interfaces: Vec<String>,
    /// Interfaces whose program was detached because a program that passes everything could not replace it, and why.
    pub taken_off: Vec<String>,
    /// Interfaces on which a program stays in force, and why.
    pub failed: Vec<String>,
}

/// Lets everything pass on every interface that has a program of any layout pinned below this root, without an agent: a
/// program with empty tables replaces the one in force. The state stays, for the next agent.
///
/// # Errors
/// The pins cannot be listed.
pub fn pass_everything_everywhere(root: &Path, tick_ns: u64) -> Result<Passing, PinError> {
    let mut passing = Passing::default();
    let mut interfaces = pins::all(root)?.interfaces;
    interfaces.retain(Pins::may_hold_program);
    let mut program = PassingProgram::load(root, tick_ns);
    for pins in &interfaces {
        let interface = pins.interface();
        let put = match &mut program {
            Ok(Some(program)) if pins.is_of_this_layout() => program.put(pins),
            Ok(_) => Err("its state is of another version of guard, or damaged".to_owned()),
            Err(why) => Err(why.clone()),
        };
        let Err(why) = put else {
            passing.interfaces.push(interface.to_owned());
            continue;
        };
        // The operator wants packets to pass, so the program is detached. The state stays, for the next agent.
        match link::take_off(pins, LINK) {
            Ok(()) => {
                passing.interfaces.push(interface.to_owned());
                passing.taken_off.push(format!("{interface}: {why}"));
            }
            Err(error) => passing.failed.push(error.to_string()),
        }
    }
    Ok(passing)
}

/// A program that passes every packet, with the state of this host.
struct PassingProgram {
    generation: Generation,
    state: HostState,
    about: About,
}

impl PassingProgram {
    /// Loads the program. `Ok(None)`: there is no state that this version can read.
    ///
    /// # Errors
    /// Why the program cannot be loaded.
    fn load(root: &Path, tick_ns: u64) -> Result<Option<Self>, String> {
        Self::try_load(root, tick_ns).map_err(|error| innermost(&error))
    }

    fn try_load(root: &Path, tick_ns: u64) -> Result<Option<Self>, AttachError> {
        let Some(state) = HostState::existing(root)? else {
            return Ok(None);
        };
        let about = state.about().map_err(StateError::from)?;
        let tables = Tables::passing_everything(Scope::from_raw(about.scope));
        let shared = Shared {
            hash_key: about.hash_key,
            pins: state.reusable(&tables, true),
            capture: CaptureFilter::NONE,
            trial_until: 0,
            is_attached: true,
        };
        let generation = Generation::load_for(Purpose::Service, tables, tick_ns, &shared)?;
        Ok(Some(Self {
            generation,
            state,
            about,
        }))
    }

    /// Swaps the program into the pinned link of an interface.
    ///
    /// # Errors
    /// Why the program is not in force there.
    fn put(&mut self, pins: &Pins) -> Result<(), String> {
        self.try_put(pins).map_err(|error| innermost(&error))
    }

    fn try_put(&mut self, pins: &Pins) -> Result<(), AttachError> {
        let Some((link, _)) = own_link(pins)? else {
            return Err(AttachError::Link {
                interface: pins.interface().to_owned(),
                reason: "it is gone".to_owned(),
            });
        };
        swap(pins, &mut self.generation, link.into())?;
        let program = self.generation.program_id()?;
        if self.about.program != program {
            self.about = About {
                generation: self.about.generation + 1,
                mode: Mode::Off as u8,
                trial_until: 0,
                program,
                next_program: 0,
                ..self.about
            };
            self.state
                .set_about(&self.about)
                .map_err(StateError::from)?;
        }
        // Only for readers of the pins, so an error is ignored.
        if let Ok(Some(mut state)) = InterfaceState::existing(pins)
            && let Ok(about) = state.about()
        {
            let _result = state.set_about(&AboutInterface {
                generation: self.about.generation,
                program,
                ..about
            });
        }
        Ok(())
    }
}
