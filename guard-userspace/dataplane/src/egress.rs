//! The egress program of an interface, which records this host's UDP flows.

use std::{io, mem};

use aya::{
    programs::{
        links::{FdLink, PinnedLink},
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, TcHandle},
    },
    util::KernelVersion,
};
use guard_common::layout::{self, AboutInterface};
use guard_host::causes::innermost;

use super::{
    Generation, clsact,
    error::AttachError,
    interface::InterfaceState,
    link,
    pins::{EGRESS_LINK, Pins},
    state::StateError,
    sys,
};

/// Attaches the egress program: with tcx where the kernel has it (Linux 6.6), otherwise to a clsact qdisc. It replaces
/// a program of an earlier generation.
pub fn attach(
    state: &mut InterfaceState,
    generation: &mut Generation,
    about: &mut AboutInterface,
) -> Result<(), AttachError> {
    if !has_tcx() {
        return attach_filter(state, generation, about);
    }
    let pins = &state.pins;
    let interface = pins.interface();
    let refused = |error: &(dyn std::error::Error + 'static)| no_egress(interface, error);
    let program = generation.classifier_mut(layout::EGRESS_PROGRAM)?;
    for owner in [pins.clone()].into_iter().chain(pins.of_other_layouts()?) {
        if !owner.has(EGRESS_LINK) {
            continue;
        }
        if !sys::is_link(&owner.path(EGRESS_LINK)).unwrap_or(true) {
            owner.remove(EGRESS_LINK)?;
            continue;
        }
        let link =
            PinnedLink::from_pin(owner.path(EGRESS_LINK)).map_err(|error| refused(&error))?;
        let link = SchedClassifierLink::try_from(FdLink::from(link));
        let link = link.map_err(|error| refused(&error))?;
        if let Ok(id) = program.attach_to_link(link) {
            let link = program.take_link(id).map_err(|error| refused(&error))?;
            let link = FdLink::try_from(link).map_err(|error| refused(&error))?;
            if !pins.has(EGRESS_LINK) {
                link.pin(pins.path(EGRESS_LINK))?;
            }
            return Ok(());
        }
        // The link is of an interface that is gone.
        owner.remove(EGRESS_LINK)?;
    }
    let link = program
        .attach(interface, TcAttachType::Egress)
        .and_then(|id| program.take_link(id))
        .map_err(|error| refused(&error))?;
    let link = FdLink::try_from(link).map_err(|error| refused(&error))?;
    link.pin(pins.path(EGRESS_LINK))?;
    Ok(())
}

fn no_egress(interface: &str, error: &(dyn std::error::Error + 'static)) -> AttachError {
    AttachError::NoEgress {
        interface: interface.to_owned(),
        reason: innermost(error),
    }
}

/// The priority of guard's filter. Filters without a priority of their own get one near 49152, and all filters of one
/// priority must be of the same kind.
const EGRESS_PRIORITY: u16 = 0x6775;

/// Attaches the egress program without tcx. The handle of the filter is stored first, so that the next agent finds the
/// filter even if this one dies in between.
fn attach_filter(
    state: &mut InterfaceState,
    generation: &mut Generation,
    about: &mut AboutInterface,
) -> Result<(), AttachError> {
    let interface = state.pins.interface().to_owned();
    let refused = |error: &(dyn std::error::Error + 'static)| no_egress(&interface, error);
    let program = generation.classifier_mut(layout::EGRESS_PROGRAM)?;
    let known = (about.egress_priority != 0)
        .then(|| filter(&interface, about))
        .and_then(Result::ok);
    let replaced = known.map(|link| program.attach_to_link(link));
    let id = match replaced {
        Some(Ok(id)) => id,
        // There is no filter yet, or the interface was created again without it.
        Some(Err(_)) | None => {
            let is_new = clsact::make(&interface).map_err(|error| refused(&error))?;
            let info = program.info().map_err(|error| refused(&error))?;
            about.clsact = u8::from(is_new);
            about.egress_priority = EGRESS_PRIORITY;
            // The id of the program is unique while it is loaded.
            about.egress_handle = info.id();
            state.set_about(about).map_err(StateError::from)?;
            let options = TcAttachOptions::Netlink(NlOptions {
                priority: about.egress_priority,
                handle: about.egress_handle.into(),
                ..NlOptions::default()
            });
            program
                .attach_with_options(&interface, TcAttachType::Egress, options)
                .map_err(|error| refused(&error))?
        }
    };
    let link = program.take_link(id).map_err(|error| refused(&error))?;
    // Dropping the link would detach the filter, which stays attached without a holder.
    mem::forget(link);
    Ok(())
}

pub fn detach(pins: &Pins, about: &mut AboutInterface) -> Result<(), AttachError> {
    let removed = link::take_off(pins, EGRESS_LINK);
    // An interface that is gone has neither filter nor qdisc.
    if about.egress_priority != 0 {
        // Dropping the link detaches the filter.
        drop(filter(pins.interface(), about));
        about.egress_priority = 0;
        about.egress_handle = 0;
    }
    if about.clsact != 0 {
        let _result = clsact::remove_unused(pins.interface());
        about.clsact = 0;
    }
    Ok(removed?)
}

/// The filter that records flows on a kernel without tcx.
fn filter(interface: &str, about: &AboutInterface) -> io::Result<SchedClassifierLink> {
    let handle = TcHandle::from(about.egress_handle);
    let egress = TcAttachType::Egress;
    SchedClassifierLink::attached(interface, egress, about.egress_priority, handle, None)
}

fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|current| current >= KernelVersion::new(6, 6, 0))
}
