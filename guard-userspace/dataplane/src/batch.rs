//! Reads and writes many entries of a map in one system call, for deny lists of a hundred thousand entries and for all
//! counters.

use std::{
    io,
    mem::size_of,
    ops::Range,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr,
};

use aya::{
    Pod,
    maps::{Map, MapData, MapError},
    sys::SyscallError,
    util::nr_cpus,
};
use nix::libc;

use super::{LoadError, sys};

/// The number of entries that are written in one call. The kernel holds no lock for the whole call.
const WRITTEN_AT_ONCE: usize = 1 << 12;

/// The approximate number of bytes that are read in one call.
const READ_AT_ONCE: usize = 1 << 18;

/// The alignment of each CPU's value in the kernel, in bytes.
const ALIGNMENT: usize = 8;

/// The fields of `union bpf_attr` that the batch commands read and write.
#[repr(C)]
struct BatchAttributes {
    /// A pointer to the key after which the batch starts; null: it starts at the first key.
    after: u64,
    last: u64,
    keys: u64,
    values: u64,
    /// In: the number of entries that fit. Out: the number that were processed.
    count: u32,
    map: u32,
    entry_flags: u64,
    flags: u64,
}

/// Inserts or replaces entries of a hash, or replaces entries of an array, whose keys are words.
///
/// # Errors
/// An entry cannot be written. Those before it are in the map.
pub fn insert<K: Pod, V: Pod>(map: &mut Map, keys: &[K], values: &[V]) -> Result<(), LoadError> {
    let (Map::HashMap(data) | Map::Array(data)) = map else {
        return Err(LoadError::Incomplete("hash"));
    };
    require_sizes(data, size_of::<K>(), size_of::<V>())?;
    let chunks = keys.chunks(WRITTEN_AT_ONCE);
    for (keys, values) in chunks.zip(values.chunks(WRITTEN_AT_ONCE)) {
        let mut attributes = BatchAttributes {
            after: 0,
            last: 0,
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: keys.len().min(values.len()) as u32,
            map: data.fd().as_fd().as_raw_fd().cast_unsigned(),
            entry_flags: 0,
            flags: 0,
        };
        // SAFETY: the attributes have the layout of the command. Both slices have at least `count` entries, of the
        // map's sizes.
        let done = unsafe { sys::bpf(sys::UPDATE_BATCH, &mut attributes) };
        done.map_err(failed("bpf_map_update_batch"))?;
    }
    Ok(())
}

/// Reads elements of a per-CPU array: `take` gets each with the values of all CPUs.
pub fn read_per_cpu<V: Pod>(
    map: &Map,
    ranges: impl Iterator<Item = Range<u32>>,
    take: impl FnMut(u32, &mut dyn Iterator<Item = V>),
) -> Result<(), LoadError> {
    let Map::PerCpuArray(data) = map else {
        return Err(LoadError::Incomplete("per-CPU array"));
    };
    let cpus = nr_cpus().map_err(|(_, error)| LoadError::Host(error))?;
    read_places(data, cpus, ranges, take)
}

/// Reads elements of an array whose values are a multiple of eight bytes long.
pub fn read<V: Pod>(
    map: &Map,
    ranges: impl Iterator<Item = Range<u32>>,
    mut take: impl FnMut(u32, V),
) -> Result<(), LoadError> {
    let Map::Array(data) = map else {
        return Err(LoadError::Incomplete("array"));
    };
    read_places(
        data,
        1,
        ranges,
        |place, values: &mut dyn Iterator<Item = V>| {
            values.for_each(|value| take(place, value));
        },
    )
}

fn read_places<V: Pod>(
    data: &MapData,
    cpus: usize,
    ranges: impl Iterator<Item = Range<u32>>,
    mut take: impl FnMut(u32, &mut dyn Iterator<Item = V>),
) -> Result<(), LoadError> {
    require_sizes(data, size_of::<u32>(), size_of::<V>())?;
    let stride = size_of::<V>().next_multiple_of(ALIGNMENT);
    let of_place = stride * cpus;
    let at_once = (READ_AT_ONCE / of_place).max(1);
    let mut keys = vec![0u32; at_once];
    let mut values = vec![0u64; at_once * of_place / ALIGNMENT];
    for Range { mut start, end } in ranges {
        while start < end {
            let after = start.wrapping_sub(1);
            let mut last = 0u32;
            let mut attributes = BatchAttributes {
                after: if start == 0 {
                    0
                } else {
                    (&raw const after) as u64
                },
                last: (&raw mut last) as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: at_once.min((end - start) as usize) as u32,
                map: data.fd().as_fd().as_raw_fd().cast_unsigned(),
                entry_flags: 0,
                flags: 0,
            };
            // SAFETY: the attributes have the layout of the command, and there is room for `count` keys and values. In
            // an array, a key and the position of a batch are words.
            let done = unsafe { sys::bpf(sys::LOOKUP_BATCH, &mut attributes) };
            match done {
                Ok(_) => {}
                // The end of the array.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(failed("bpf_map_lookup_batch")(error)),
            }
            let count = attributes.count;
            if count == 0 {
                break;
            }
            for (nth, place) in (start..).take(count as usize).enumerate() {
                let first = values.as_ptr().cast::<u8>();
                let mut of_cpus = (0..cpus).map(|cpu| {
                    let offset = nth * of_place + cpu * stride;
                    // SAFETY: the kernel has written `count` elements, each with a value for every possible CPU, and
                    // all bytes are valid in a value.
                    unsafe { ptr::read_unaligned(first.add(offset).cast::<V>()) }
                });
                take(place, &mut of_cpus);
            }
            start += count;
        }
    }
    Ok(())
}

/// The number of entries of a hash that are read in one call. It must be more than any bucket has.
const HASHED_AT_ONCE: usize = 1 << 12;

/// Reads a whole LRU hash. Entries that are inserted or removed meanwhile may be missing or appear twice.
pub fn read_hash<K: Pod, V: Pod>(map: &Map, mut take: impl FnMut(K, V)) -> Result<(), LoadError> {
    let Map::LruHashMap(data) = map else {
        return Err(LoadError::Incomplete("LRU hash"));
    };
    require_sizes(data, size_of::<K>(), size_of::<V>())?;
    let mut keys = vec![0u64; (HASHED_AT_ONCE * size_of::<K>()).div_ceil(ALIGNMENT)];
    let mut values = vec![0u64; (HASHED_AT_ONCE * size_of::<V>()).div_ceil(ALIGNMENT)];
    // The kernel's position in the hash, a word.
    let (mut after, mut last) = (0u32, 0u32);
    let mut is_first = true;
    loop {
        let mut attributes = BatchAttributes {
            after: if is_first {
                0
            } else {
                (&raw const after) as u64
            },
            last: (&raw mut last) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: HASHED_AT_ONCE as u32,
            map: data.fd().as_fd().as_raw_fd().cast_unsigned(),
            entry_flags: 0,
            flags: 0,
        };
        // SAFETY: the attributes have the layout of the command, and there is room for `count` keys and values.
        let done = unsafe { sys::bpf(sys::LOOKUP_BATCH, &mut attributes) };
        let is_end = match done {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(failed("bpf_map_lookup_batch")(error)),
        };
        for nth in 0..(attributes.count as usize).min(HASHED_AT_ONCE) {
            let (key, value) = (keys.as_ptr().cast::<K>(), values.as_ptr().cast::<V>());
            // SAFETY: the kernel has written that many entries of these sizes, and all bytes are valid in them.
            let (key, value) = unsafe {
                (
                    ptr::read_unaligned(key.add(nth)),
                    ptr::read_unaligned(value.add(nth)),
                )
            };
            take(key, value);
        }
        if is_end {
            return Ok(());
        }
        (after, is_first) = (last, false);
    }
}

/// Fails unless the types have the sizes of the map, which decide how many bytes the kernel copies.
fn require_sizes(data: &MapData, key: usize, value: usize) -> Result<(), LoadError> {
    let info = data.info()?;
    let sizes = [
        (info.key_size() as usize, key),
        (info.value_size() as usize, value),
    ];
    for (size, expected) in sizes {
        if size != expected {
            return Err(MapError::InvalidValueSize { size, expected }.into());
        }
    }
    Ok(())
}

fn failed(call: &'static str) -> impl Fn(io::Error) -> LoadError {
    move |io_error| MapError::SyscallError(SyscallError { call, io_error }).into()
}
