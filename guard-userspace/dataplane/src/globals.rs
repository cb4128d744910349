//! Tables that are global variables of the kernel program, which reads an element with one load. User space reads and
//! writes a variable as a whole. The kernel copies it word by word: a packet sees each word before or after the
//! change.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    Pod,
    maps::{Map, MapData, MapError},
    sys::SyscallError,
};
use nix::libc;

use super::{LoadError, sys};

/// The fields of `union bpf_attr` that the commands for one element read.
#[repr(C)]
struct ElementAttributes {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Reads a variable that is an array.
pub fn read<V: Pod + Default>(map: &Map) -> Result<Vec<V>, LoadError> {
    let data = data_of(map)?;
    let size = data.info()?.value_size() as usize;
    let mut values = vec![V::default(); size / size_of::<V>()];
    if size_of_val(&*values) != size {
        return Err(unfit(size, size_of_val(&*values)));
    }
    // SAFETY: there is room for the whole variable.
    let done = unsafe { call(sys::LOOKUP_ELEM, data, values.as_mut_ptr() as u64) };
    done.map_err(failed("bpf_map_lookup_elem"))?;
    Ok(values)
}

/// Writes the whole variable.
pub fn write<V: Pod>(map: &Map, values: &[V]) -> Result<(), LoadError> {
    let data = data_of(map)?;
    let size = data.info()?.value_size() as usize;
    if size_of_val(values) != size {
        return Err(unfit(size, size_of_val(values)));
    }
    // SAFETY: the values are as long as the variable.
    let done = unsafe { call(sys::UPDATE_ELEM, data, values.as_ptr() as u64) };
    done.map_err(failed("bpf_map_update_elem"))
}

/// Calls a command for element 0.
///
/// # Safety
/// `value` must point to as many bytes as a value of the map has.
unsafe fn call(command: libc::c_long, data: &MapData, value: u64) -> io::Result<()> {
    let key = 0u32;
    let mut attributes = ElementAttributes {
        map: data.fd().as_fd().as_raw_fd().cast_unsigned(),
        padding: 0,
        key: (&raw const key) as u64,
        value,
        flags: 0,
    };
    // SAFETY: the attributes are those of the command, the key is a word, and the value is the caller's.
    unsafe { sys::bpf(command, &mut attributes) }.map(|_| ())
}

fn data_of(map: &Map) -> Result<&MapData, LoadError> {
    match map {
        Map::Array(data) => Ok(data),
        _ => Err(LoadError::Incomplete("array")),
    }
}

fn unfit(size: usize, expected: usize) -> LoadError {
    MapError::InvalidValueSize { size, expected }.into()
}

fn failed(call: &'static str) -> impl Fn(io::Error) -> LoadError {
    move |io_error| MapError::SyscallError(SyscallError { call, io_error }).into()
}
