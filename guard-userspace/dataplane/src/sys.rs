//! bpf(2), for the commands that aya 0.14 does not have (enum bpf_cmd in linux/bpf.h).

use std::{io, mem};

use nix::libc;

/// BPF_MAP_LOOKUP_ELEM and BPF_MAP_UPDATE_ELEM, for values that are too long for the stack.
pub const LOOKUP_ELEM: libc::c_long = 1;
pub const UPDATE_ELEM: libc::c_long = 2;

/// BPF_MAP_LOOKUP_BATCH and BPF_MAP_UPDATE_BATCH (Linux 5.6; of per-CPU arrays 5.13).
pub const LOOKUP_BATCH: libc::c_long = 24;
pub const UPDATE_BATCH: libc::c_long = 26;

/// BPF_LINK_GET_FD_BY_ID (Linux 5.8) and BPF_LINK_DETACH (Linux 5.9).
pub const LINK_GET_FD_BY_ID: libc::c_long = 30;
pub const LINK_DETACH: libc::c_long = 34;

/// # Safety
/// `A` must be laid out as the kernel's `union bpf_attr` is for this command, and what it points to must
/// be good for what the command reads and writes.
pub unsafe fn bpf<A>(command: libc::c_long, attributes: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: the attributes live through the call, and their size is theirs; the rest is the caller's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw mut *attributes,
            mem::size_of::<A>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
