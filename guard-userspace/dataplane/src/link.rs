//! The link that attaches the XDP program to an interface. It is pinned, so no process needs to hold it.

use std::io;

use aya::programs::{
    ProgramError,
    links::{FdLink, LinkError, PinnedLink},
    xdp::{XdpLink, XdpMode as AyaMode},
};
use guard_host::{
    XdpState,
    causes::{innermost, io_error},
};

use super::{
    Generation, LoadError,
    error::AttachError,
    evict,
    mode::{Force, Programs, XdpMode},
    pins::{LINK, PinError, Pins},
    sys,
};

/// The pinned link of this layout or another, and the pins that have it.
pub fn own_link(pins: &Pins) -> Result<Option<(PinnedLink, Pins)>, AttachError> {
    for pins in [pins.clone()].into_iter().chain(pins.of_other_layouts()?) {
        let path = pins.path(LINK);
        // A file or pin with the name of the link that is no link counts as none.
        if pins.may_hold_program() && sys::is_link(&path).unwrap_or(true) {
            let link = PinnedLink::from_pin(path);
            let link = link.map_err(|error| link_error(&pins, &error))?;
            return Ok(Some((link, pins)));
        }
    }
    Ok(None)
}

/// The kernel's id of the program that the pinned link of an interface holds.
pub fn pinned_program(pins: &Pins) -> Option<u32> {
    let (link, _) = own_link(pins).ok().flatten()?;
    info_of(pins, &link.into()).ok()
}

/// Detaches a pinned link's program synchronously, even if another process holds the link, and removes the pin.
///
/// Removing the pin alone lets the kernel free the link after an RCU grace period (bpf_free_inode), and not at all
/// while another process holds it. If the program cannot be detached first, the pin is removed all the same.
///
/// # Errors
/// The pin is still there.
pub fn take_off(pins: &Pins, name: &'static str) -> Result<(), PinError> {
    if let Ok(link) = sys::open_pin(&pins.path(name)) {
        let _result = evict::detach_link(&link);
    }
    pins.remove(name)
}

/// The kernel's id of the program that a link holds.
pub fn info_of(pins: &Pins, link: &FdLink) -> Result<u32, AttachError> {
    let info = link.info().map_err(|error| link_error(pins, &error))?;
    Ok(info.program_id())
}

fn link_error(pins: &Pins, error: &(dyn std::error::Error + 'static)) -> AttachError {
    AttachError::Link {
        interface: pins.interface().to_owned(),
        reason: innermost(error),
    }
}

/// Replaces the program of the pinned link, or creates a link.
pub fn attach_or_swap(
    pins: &Pins,
    generation: &mut Generation,
    found: &Programs,
    force: Force,
) -> Result<(XdpMode, Option<String>), AttachError> {
    if let Some((link, owner)) = own_link(pins)? {
        let link = FdLink::from(link);
        match found.on {
            Some(XdpState { program_id, native }) if program_id == info_of(pins, &link)? => {
                swap(pins, generation, link)?;
                if owner.path(LINK) != pins.path(LINK) {
                    pins.remove(LINK)?;
                    let link = PinnedLink::from_pin(owner.path(LINK));
                    let link = link.map_err(|error| link_error(pins, &error))?;
                    FdLink::from(link).pin(pins.path(LINK))?;
                }
                let mode = if native {
                    XdpMode::Native
                } else {
                    XdpMode::Generic
                };
                return Ok((mode, None));
            }
            // The link is of an interface that is gone.
            _ => owner.remove(LINK)?,
        }
    }
    if force == Force::Yes
        && let Some(found) = found.on
    {
        evict::evict(pins.interface(), found)?;
    }
    let (link, mode, refusal) = attach_somehow(pins, generation, found)?;
    pins.remove(LINK)?;
    link.pin(pins.path(LINK))?;
    Ok((mode, refusal))
}

/// Replaces a link's program in one atomic step: every packet is judged by the old program or the new one.
pub fn swap(pins: &Pins, generation: &mut Generation, link: FdLink) -> Result<(), AttachError> {
    let failed = |error: &(dyn std::error::Error + 'static)| link_error(pins, error);
    let link = XdpLink::try_from(link).map_err(|error| failed(&error))?;
    let program = generation.program_mut()?;
    let id = program
        .attach_to_link(link)
        .map_err(|error| failed(&error))?;
    // Closed at once: the pin holds it.
    drop(program.take_link(id).map_err(|error| failed(&error))?);
    Ok(())
}

fn attach_somehow(
    pins: &Pins,
    generation: &mut Generation,
    found: &Programs,
) -> Result<(FdLink, XdpMode, Option<String>), AttachError> {
    let interface = pins.interface();
    match attach(generation, interface, found, AyaMode::Driver) {
        Ok(link) => Ok((link, XdpMode::Native, None)),
        Err(AttachFailure::Final(error)) => Err(error),
        Err(AttachFailure::Refused(native)) => {
            match attach(generation, interface, found, AyaMode::Skb) {
                Ok(link) => Ok((link, XdpMode::Generic, Some(native))),
                Err(AttachFailure::Final(error)) => Err(error),
                Err(AttachFailure::Refused(generic)) => Err(AttachError::Refused {
                    interface: interface.to_owned(),
                    native,
                    generic,
                }),
            }
        }
    }
}

/// The error for a program of other software on the interface.
pub fn occupied(interface: &str, found: XdpState) -> AttachError {
    AttachError::Occupied {
        interface: interface.to_owned(),
        program: evict::describe(Some(found)),
    }
}

/// The error for a program that is attached already. The kernel tests upper devices before the interface itself.
fn exists(interface: &str, found: &Programs) -> AttachError {
    let interface = interface.to_owned();
    match found {
        Programs {
            above: Some((above, program)),
            ..
        } => AttachError::OccupiedAbove {
            interface,
            above: above.clone(),
            program: evict::describe(Some(*program)),
        },
        Programs { on: Some(on), .. } => occupied(&interface, *on),
        Programs {
            on: None,
            above: None,
        } => AttachError::OccupiedElsewhere(interface),
    }
}

enum AttachFailure {
    /// Another mode would not help.
    Final(AttachError),
    /// The kernel's error. Another mode may work.
    Refused(String),
}

fn attach(
    generation: &mut Generation,
    interface: &str,
    found: &Programs,
    mode: AyaMode,
) -> Result<FdLink, AttachFailure> {
    let program = generation
        .program_mut()
        .map_err(|error| AttachFailure::Final(error.into()))?;
    let classify = |error: ProgramError| match error {
        ProgramError::UnknownInterface { name } => {
            AttachFailure::Final(AttachError::NoInterface(name))
        }
        error => match io_error(&error).and_then(io::Error::raw_os_error) {
            // EBUSY: a link holds the interface. EEXIST: a program without a link does, or one in
            // the other mode, or a device above has one (dev_xdp_attach in net/core/dev.c).
            Some(16) => AttachFailure::Final(AttachError::Held {
                interface: interface.to_owned(),
                program: evict::describe(found.on),
            }),
            Some(17) => AttachFailure::Final(exists(interface, found)),
            Some(1 | 13) => AttachFailure::Final(AttachError::Load(LoadError::NotPermitted)),
            _ => AttachFailure::Refused(innermost(&error)),
        },
    };
    let id = program.attach(interface, mode).map_err(classify)?;
    let link = program.take_link(id).map_err(classify)?;
    // aya falls back to netlink when the kernel refuses a link, and such an attachment would neither
    // outlive this process in a pin nor be swapped atomically. Dropping it detaches it.
    FdLink::try_from(link).map_err(|error: LinkError| AttachFailure::Refused(innermost(&error)))
}
