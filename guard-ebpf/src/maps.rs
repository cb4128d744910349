//! The tables. Their layouts and indices are those of `guard_common::layout`.

use aya_ebpf::{
    macros::map,
    maps::{Array, LpmTrie, PerCpuArray},
};
use guard_common::{
    cell::ROWS,
    layout::{
        AdmittedKey, COUNTER_ENTRIES, Counter, DEFAULT_CELLS_PER_ROW, MAX_ADMITTED, MAX_SERVICES,
        PORT_ENTRIES, PortEntry, Service,
    },
};

#[map]
pub static PORTS: Array<PortEntry> = Array::with_max_entries(PORT_ENTRIES, 0);

#[map]
pub static SERVICES: Array<Service> = Array::with_max_entries(MAX_SERVICES, 0);

#[map]
pub static ADMITTED_V4: LpmTrie<AdmittedKey<4>, u8> = LpmTrie::with_max_entries(MAX_ADMITTED, 0);

#[map]
pub static ADMITTED_V6: LpmTrie<AdmittedKey<16>, u8> = LpmTrie::with_max_entries(MAX_ADMITTED, 0);

#[map]
pub static CELLS: Array<u64> = Array::with_max_entries(ROWS * DEFAULT_CELLS_PER_ROW, 0);

#[map]
pub static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(COUNTER_ENTRIES, 0);
