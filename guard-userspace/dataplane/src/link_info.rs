//! Looks up the interface of a pinned XDP link, also if it was renamed.

use std::{io, mem, os::fd::AsRawFd as _, path::Path};

use super::sys;

/// BPF_LINK_TYPE_XDP in linux/bpf.h.
const XDP: u32 = 6;

/// The common fields of `struct bpf_link_info`, and the first word for XDP.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    interface: u32,
    rest: [u32; 11],
}

/// The index of the interface in its own network namespace. `Ok(None)`: the interface is gone, or no XDP link is
/// pinned here (`bpf_xdp_link_fill_link_info` in net/core/dev.c, Linux 5.9).
pub fn interface_of(pin: &Path) -> io::Result<Option<u32>> {
    #[repr(C)]
    struct InfoAttributes {
        fd: u32,
        length: u32,
        info: u64,
    }
    let link = sys::open_pin(pin)?;
    let mut info = LinkInfo::default();
    let mut attributes = InfoAttributes {
        fd: link.as_raw_fd().cast_unsigned(),
        length: mem::size_of::<LinkInfo>() as u32,
        info: (&raw mut info).expose_provenance() as u64,
    };
    // SAFETY: the kernel writes no more than `length` bytes of `info`, which lives through the call.
    unsafe { sys::bpf(sys::OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok((info.kind == XDP && info.interface != 0).then_some(info.interface))
}
