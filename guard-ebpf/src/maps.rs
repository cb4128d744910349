//! The maps. `guard_common::layout` documents their layouts, indices and uses.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{self, ArrayOfMaps},
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
};
use guard_common::{
    account::{self, Account},
    cell::Cell,
    deny_list::DenyLine,
    fragment::FragmentSet,
    interfaces::{InterfacePlace, MAX_ROWS, PLACES},
    layout::{
        AddressedKey, AdmittedKey, CLOSED_PORT_ENTRIES, COUNTER_PAGES, ClosedPortSlot, Counters,
        DEFAULT_CELLS, EVENTS_BYTES, Exemption, Expiry, FRAGMENT_SETS, FloodSettings, FloodState,
        FlowKey, MAX_ADDRESSED, MAX_ADMITTED, MAX_ALLOWED, MAX_DENIED, MAX_EXEMPTIONS, MAX_FLOWS,
        MAX_NETWORKS, MAX_OWN, MAX_SERVICE_IDS, NETWORK_WORDS_V4, NETWORK_WORDS_V6, OwnSource,
        PORT_ENTRIES, PortEntry, ReplayTime, SERVICES_PER_PAGE, ServiceSlot, TALKER_ENTRIES,
        TalkerSlot, grant, host_bucket,
    },
    martian::OWN_WORDS,
    reason::Outcome,
    verified::{self, VerifiedLine},
};

use crate::global::Global;

/// Addresses in network byte order, as keys.
pub type Ipv4Key = [u8; 4];
pub type Ipv6Key = [u8; 16];

#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.ports")]
pub static PORTS: Global<PortEntry, { PORT_ENTRIES as usize }> =
    // SAFETY: zeros are a value.
    unsafe { Global::zeroed() };

#[map]
pub static ADDRESSED: HashMap<AddressedKey, PortEntry> =
    HashMap::with_max_entries(MAX_ADDRESSED, BPF_F_NO_PREALLOC);

#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.services")]
pub static SERVICES: Global<ServiceSlot, { MAX_SERVICE_IDS as usize }> =
    // SAFETY: zeros are a value.
    unsafe { Global::zeroed() };

#[map]
pub static ADMITTED_V4: LpmTrie<AdmittedKey<4>, Expiry> =
    LpmTrie::with_max_entries(MAX_ADMITTED, 0);

#[map]
pub static ADMITTED_V6: LpmTrie<AdmittedKey<16>, Expiry> =
    LpmTrie::with_max_entries(MAX_ADMITTED, 0);

/// `BPF_F_MMAPABLE`, although no process maps it into memory: such a map begins at a page boundary, so each line of the
/// list lies in one cache line.
#[map]
pub static DENIED_LINES: Array<DenyLine> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub static DENIED_V4: HashMap<Ipv4Key, Expiry> =
    HashMap::with_max_entries(MAX_DENIED, BPF_F_NO_PREALLOC);

#[map]
pub static DENIED_V6: HashMap<Ipv6Key, Expiry> =
    HashMap::with_max_entries(MAX_DENIED, BPF_F_NO_PREALLOC);

#[map]
pub static DENIED_PREFIXES_V4: LpmTrie<Ipv4Key, Expiry> = LpmTrie::with_max_entries(MAX_DENIED, 0);

#[map]
pub static DENIED_PREFIXES_V6: LpmTrie<Ipv6Key, Expiry> = LpmTrie::with_max_entries(MAX_DENIED, 0);

#[map]
pub static DENIED_AT_V4: LpmTrie<AdmittedKey<4>, Expiry> =
    LpmTrie::with_max_entries(MAX_ALLOWED, 0);

#[map]
pub static DENIED_AT_V6: LpmTrie<AdmittedKey<16>, Expiry> =
    LpmTrie::with_max_entries(MAX_ALLOWED, 0);

#[map]
pub static ALLOWED_V4: LpmTrie<AdmittedKey<4>, Expiry> = LpmTrie::with_max_entries(MAX_ALLOWED, 0);

#[map]
pub static ALLOWED_V6: LpmTrie<AdmittedKey<16>, Expiry> = LpmTrie::with_max_entries(MAX_ALLOWED, 0);

#[map]
pub static EXEMPTIONS_V4: LpmTrie<Ipv4Key, Exemption> =
    LpmTrie::with_max_entries(MAX_EXEMPTIONS, 0);

#[map]
pub static EXEMPTIONS_V6: LpmTrie<Ipv6Key, Exemption> =
    LpmTrie::with_max_entries(MAX_EXEMPTIONS, 0);

#[map]
pub static NETWORKS_V4: LpmTrie<Ipv4Key, u8> = LpmTrie::with_max_entries(MAX_NETWORKS, 0);

#[map]
pub static NETWORKS_V6: LpmTrie<Ipv6Key, u8> = LpmTrie::with_max_entries(MAX_NETWORKS, 0);

#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.bits_v4")]
pub static NETWORK_BITS_V4: Global<u64, { NETWORK_WORDS_V4 as usize }> =
    // SAFETY: zeros are a value.
    unsafe { Global::zeroed() };

#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.bits_v6")]
pub static NETWORK_BITS_V6: Global<u64, { NETWORK_WORDS_V6 as usize }> =
    // SAFETY: zeros are a value.
    unsafe { Global::zeroed() };

#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.own_bits")]
pub static OWN_BITS: Global<u64, { OWN_WORDS as usize }> =
    // SAFETY: zeros are a value.
    unsafe { Global::zeroed() };

#[map]
pub static OWN: HashMap<OwnSource, u8> = HashMap::with_max_entries(MAX_OWN, BPF_F_NO_PREALLOC);

#[map]
pub static FRAGMENTS: Array<FragmentSet> = Array::with_max_entries(FRAGMENT_SETS, 0);

#[map]
pub static HOST_BUCKETS: Array<u64> = Array::with_max_entries(host_bucket::COUNT, 0);

#[map]
pub static CELLS: Array<Cell> = Array::with_max_entries(DEFAULT_CELLS, 0);

#[map]
pub static NARROW_CELLS: Array<u64> = Array::with_max_entries(DEFAULT_CELLS, 0);

#[map]
pub static TOTALS: Array<Cell> = Array::with_max_entries(MAX_SERVICE_IDS, 0);

/// One value. Each generation has its own, because budgets differ between generations. User space never reads it.
#[map]
pub static ACCOUNTS: PerCpuArray<[Account; account::ACCOUNTS]> =
    PerCpuArray::with_max_entries(1, 0);

#[map]
pub static VERIFIED: Array<VerifiedLine> = Array::with_max_entries(verified::LINES, 0);

#[map]
pub static FLOOD_SETTINGS: Array<FloodSettings> = Array::with_max_entries(MAX_SERVICE_IDS, 0);

#[map]
pub static FLOODS: Array<FloodState> = Array::with_max_entries(MAX_SERVICE_IDS, 0);

/// The buckets of challenges, by service id. Each generation has its own.
#[map]
pub static ANSWERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(MAX_SERVICE_IDS, 0);

/// The answer to the packet that this CPU is judging: see `flood`.
#[map]
pub static ANSWER: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Until when answers to challenges are expected at some service, in units of the clock; 0: no service is flooded.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.flooded")]
pub static FLOODED: Global<u64, 1> =
    // SAFETY: zeros are a value.
    unsafe { Global::zeroed() };

#[map]
pub static FLOWS: LruHashMap<FlowKey, u64> = LruHashMap::with_max_entries(MAX_FLOWS, 0);

#[map]
pub static OPENED_FLOWS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

#[map]
pub static UNSOLICITED: LruHashMap<FlowKey, u64> = LruHashMap::with_max_entries(MAX_FLOWS, 0);

/// One value. It is a map, not a variable: all generations share it, and loading a program writes zeros into its
/// variables.
#[map]
pub static INTERFACES: Array<[InterfacePlace; PLACES]> = Array::with_max_entries(1, 0);

#[btf_map]
pub static COUNTER_ROWS: ArrayOfMaps<
    btf_maps::PerCpuArray<Counters, { SERVICES_PER_PAGE as usize }>,
    { (MAX_ROWS * COUNTER_PAGES) as usize },
> = ArrayOfMaps::new();

#[btf_map]
pub static TALKER_ROWS: ArrayOfMaps<
    btf_maps::PerCpuArray<TalkerSlot, { TALKER_ENTRIES as usize }>,
    { MAX_ROWS as usize },
> = ArrayOfMaps::new();

#[btf_map]
pub static CLOSED_PORT_ROWS: ArrayOfMaps<
    btf_maps::PerCpuArray<ClosedPortSlot, { CLOSED_PORT_ENTRIES as usize }>,
    { MAX_ROWS as usize },
> = ArrayOfMaps::new();

#[btf_map]
pub static LOSS_ROWS: ArrayOfMaps<
    btf_maps::PerCpuArray<u64, { Outcome::SLOTS as usize }>,
    { MAX_ROWS as usize },
> = ArrayOfMaps::new();

#[map]
pub static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(MAX_SERVICE_IDS, 0);

#[map]
pub static TALKERS: PerCpuArray<TalkerSlot> = PerCpuArray::with_max_entries(TALKER_ENTRIES, 0);

#[map]
pub static CLOSED_PORTS: PerCpuArray<ClosedPortSlot> =
    PerCpuArray::with_max_entries(CLOSED_PORT_ENTRIES, 0);

#[map]
pub static GRANT: Array<u64> = Array::with_max_entries(grant::COUNT, 0);

#[map]
pub static LOSSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(Outcome::SLOTS, 0);

#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_BYTES, 0);

#[map]
pub static PREVIOUS: ProgramArray = ProgramArray::with_max_entries(MAX_ROWS, 0);

#[map]
pub static CLOCK: Array<ReplayTime> = Array::with_max_entries(1, 0);
