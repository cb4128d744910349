//! XDP programs of other software on an interface: describes them, and detaches them for the operator's `--force`.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    process::Command,
};

use aya::programs::{links::LinkType, loaded_links, loaded_programs};
use guard_host::XdpState;
use nix::libc;

use super::{error::AttachError, sys};

/// Describes a program, as far as this process has the permission to read it.
pub fn describe(found: Option<XdpState>) -> String {
    let Some(XdpState { program_id, .. }) = found else {
        return "whose id cannot be read".to_owned();
    };
    let programs = loaded_programs().filter_map(Result::ok);
    let name = programs
        .into_iter()
        .find(|program| program.id() == program_id)
        .and_then(|program| program.name_as_str().map(str::to_owned));
    match name {
        Some(name) if !name.is_empty() => format!("\"{name}\" (program {program_id})"),
        _ => format!("program {program_id}"),
    }
}

/// The names of guard's XDP programs in the kernel.
const OWN_NAMES: [&str; 2] = ["guard", "guard_on_trial"];

/// The ids of all guard programs that an XDP link holds, wherever the link is pinned, or not at all. Needs
/// CAP_SYS_ADMIN.
pub fn linked_guards() -> BTreeSet<u32> {
    let links = loaded_links().filter_map(Result::ok);
    let linked = links.filter(|link| link.link_type().is_ok_and(|kind| kind == LinkType::Xdp));
    let linked: BTreeSet<u32> = linked.map(|link| link.program_id()).collect();
    let programs = loaded_programs().filter_map(Result::ok);
    programs
        .filter(|program| linked.contains(&program.id()))
        .filter(|program| {
            let name = program.name_as_str();
            name.is_some_and(|name| OWN_NAMES.contains(&name))
        })
        .map(|program| program.id())
        .collect()
}

/// Detaches a program from an interface: through its link if it has one, otherwise as `ip link` does.
pub fn evict(interface: &str, found: XdpState) -> Result<(), AttachError> {
    let failed = |error: io::Error| AttachError::Occupied {
        interface: interface.to_owned(),
        program: format!(
            "{}, which cannot be detached ({error})",
            describe(Some(found))
        ),
    };
    let links = loaded_links().filter_map(Result::ok);
    let mut links = links.into_iter().filter(|link| {
        link.program_id() == found.program_id
            && link.link_type().is_ok_and(|kind| kind == LinkType::Xdp)
    });
    if let Some(link) = links.next() {
        return detach_link_of(link.id()).map_err(failed);
    }
    let mode = if found.native { "xdpdrv" } else { "xdpgeneric" };
    let output = Command::new("ip")
        .args(["link", "set", "dev", interface, mode, "off"])
        .output()
        .map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(failed(io::Error::other(words.trim().to_owned())))
}

fn detach_link_of(id: u32) -> io::Result<()> {
    let link = call(sys::LINK_GET_FD_BY_ID, id)?;
    let fd = RawFd::try_from(link).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for this process.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    detach_link(&link)
}

/// Detaches a link's program synchronously (BPF_LINK_DETACH), even if other processes hold the link.
pub fn detach_link(link: &OwnedFd) -> io::Result<()> {
    call(sys::LINK_DETACH, link.as_raw_fd().cast_unsigned())?;
    Ok(())
}

/// Calls bpf(2) with attributes that start with one word and are zero beyond it.
fn call(command: libc::c_long, word: u32) -> io::Result<libc::c_long> {
    #[repr(C)]
    struct WordAttributes {
        word: u32,
        rest: [u32; 15],
    }
    let mut attributes = WordAttributes {
        word,
        rest: [0; 15],
    };
    // SAFETY: both commands read one word, which is no pointer.
    unsafe { sys::bpf(command, &mut attributes) }
}
