//! bpf(2), for the commands that aya 0.14 does not have (enum bpf_cmd in linux/bpf.h).

use std::{
    ffi::CString,
    fs, io, mem,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use nix::libc;

/// BPF_MAP_CREATE (maps of maps: Linux 4.12).
const MAP_CREATE: libc::c_long = 0;

/// BPF_MAP_TYPE_ARRAY_OF_MAPS in enum bpf_map_type (linux/bpf.h).
const ARRAY_OF_MAPS: u32 = 12;

/// BPF_MAP_LOOKUP_ELEM and BPF_MAP_UPDATE_ELEM, for values that are too long for the stack.
pub const LOOKUP_ELEM: libc::c_long = 1;
pub const UPDATE_ELEM: libc::c_long = 2;

/// BPF_MAP_DELETE_ELEM, for maps of maps.
pub const DELETE_ELEM: libc::c_long = 3;

/// BPF_MAP_LOOKUP_BATCH and BPF_MAP_UPDATE_BATCH (Linux 5.6; for per-CPU arrays, Linux 5.13).
pub const LOOKUP_BATCH: libc::c_long = 24;
pub const UPDATE_BATCH: libc::c_long = 26;

/// BPF_OBJ_PIN and BPF_OBJ_GET (Linux 4.4), and BPF_OBJ_GET_INFO_BY_FD (for links: Linux 5.8).
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
pub const OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// BPF_LINK_CREATE (for XDP: Linux 5.9).
const LINK_CREATE: libc::c_long = 28;

/// BPF_XDP in enum bpf_attach_type (linux/bpf.h), and the modes of XDP in linux/if_link.h.
const BPF_XDP: u32 = 37;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// BPF_LINK_GET_FD_BY_ID (Linux 5.8) and BPF_LINK_DETACH (Linux 5.9).
pub const LINK_GET_FD_BY_ID: libc::c_long = 30;
pub const LINK_DETACH: libc::c_long = 34;

/// Calls bpf(2).
///
/// # Safety
/// `A` must have the layout of the kernel's `union bpf_attr` for this command. Its pointers must be valid for all that
/// the command reads and writes.
pub unsafe fn bpf<A>(command: libc::c_long, attributes: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: the attributes live through the call, and their size is passed; the caller guarantees the rest.
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

/// Opens a pinned object.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let fd = call_with_path(OBJ_GET, path, 0)?;
    // SAFETY: the kernel has just made it for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a program, map or link at a path that does not exist.
pub fn pin(path: &Path, object: BorrowedFd<'_>) -> io::Result<()> {
    call_with_path(OBJ_PIN, path, object.as_raw_fd()).map(drop)
}

fn call_with_path(command: libc::c_long, path: &Path, object: RawFd) -> io::Result<RawFd> {
    #[repr(C)]
    struct PinAttributes {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = PinAttributes {
        pathname: path.as_ptr().expose_provenance() as u64,
        bpf_fd: object.cast_unsigned(),
        file_flags: 0,
    };
    // SAFETY: laid out as the kernel has it for BPF_OBJ_*, and the path lives through the call.
    let result = unsafe { bpf(command, &mut attributes) }?;
    RawFd::try_from(result).map_err(io::Error::other)
}

/// Creates an array of maps whose elements are like `like`.
pub fn create_array_of_maps(name: &str, like: BorrowedFd<'_>, entries: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct MapCreate {
        kind: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        flags: u32,
        inner: u32,
        numa_node: u32,
        name: [u8; 16],
    }
    let mut attributes = MapCreate {
        kind: ARRAY_OF_MAPS,
        key_size: mem::size_of::<u32>() as u32,
        value_size: mem::size_of::<u32>() as u32,
        max_entries: entries,
        flags: 0,
        inner: like.as_raw_fd().cast_unsigned(),
        numa_node: 0,
        name: [0; 16],
    };
    // The last byte of the name stays zero.
    let name = name.bytes().take(attributes.name.len() - 1);
    attributes
        .name
        .iter_mut()
        .zip(name)
        .for_each(|(to, from)| *to = from);
    // SAFETY: laid out as the kernel has the beginning of `struct { } map_create`, whose rest is zero.
    let fd = unsafe { bpf(MAP_CREATE, &mut attributes) }?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a loaded XDP program to an interface, in the driver or in the generic path.
pub fn link_xdp(program: BorrowedFd<'_>, interface: u32, native: bool) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct LinkCreate {
        program: u32,
        interface: u32,
        attach_type: u32,
        flags: u32,
    }
    let mut attributes = LinkCreate {
        program: program.as_raw_fd().cast_unsigned(),
        interface,
        attach_type: BPF_XDP,
        flags: if native {
            XDP_FLAGS_DRV_MODE
        } else {
            XDP_FLAGS_SKB_MODE
        },
    };
    // SAFETY: laid out as the kernel has the beginning of `link_create`, whose rest is zero for XDP.
    let fd = unsafe { bpf(LINK_CREATE, &mut attributes) }?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether a link is pinned here. BPF_OBJ_GET_INFO_BY_FD does not tell the type of an object: the answer for a map
/// would be read as that of a link.
pub fn is_link(path: &Path) -> io::Result<bool> {
    let fd = open_pin(path)?;
    // anon_inode_getfd in kernel/bpf/syscall.c. A link is named bpf_link when it is created and bpf-link when it is
    // opened again, so this tests that it is none of the other types.
    let kind = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    let others = ["anon_inode:bpf-map", "anon_inode:bpf-prog"];
    Ok(others.iter().all(|other| kind.as_os_str() != *other))
}
