//! The ABI between the kernel program and user space: names and sizes of the maps, and the layout of each value.

use crate::{
    account::Advance,
    address::Address,
    cell::HashKey,
    gcra::{GcraBudget, UNITS_PER_NANOSECOND},
    reason::{ModeBits, Outcome, Reason},
    spread::spread,
};

pub use crate::gcra::GcraBudgets;

/// The version of this ABI. State that is pinned with another version is not reused.
pub const VERSION: u32 = if cfg!(feature = "older-layout") { 0 } else { 4 };

/// The XDP program.
pub const PROGRAM: &str = "guard";
/// The copy of the XDP program for a policy on trial. Once the trial is over, it tail-calls the program before it.
pub const TRIAL_PROGRAM: &str = "guard_on_trial";
/// The copy of the XDP program for replay, which reads its time from [`CLOCK`].
pub const REPLAY_PROGRAM: &str = "guard_replay";

/// The tc program that records the UDP flows that this host opens.
pub const EGRESS_PROGRAM: &str = "guard_egress";
/// The copy of the tc program for replay.
pub const REPLAY_EGRESS_PROGRAM: &str = "guard_egress_replay";

/// An array of [`PortEntry`], indexed by [`port_index`] and [`protocol_index`].
pub const PORTS: &str = ".bss.ports";

/// A hash from [`AddressedKey`] to the [`PortEntry`] of a port on one address: the service that lists it there, and
/// whether a container publishes it there.
pub const ADDRESSED: &str = "ADDRESSED";

/// An array of [`ServiceSlot`], indexed by service id. The slot of [`NO_SERVICE`] has the budgets of packets that
/// belong to no service.
pub const SERVICES: &str = ".bss.services";

/// Tries of the sources that restricted services admit, with their [`Expiry`].
pub const ADMITTED_V4: &str = "ADMITTED_V4";
/// The same for IPv6.
pub const ADMITTED_V6: &str = "ADMITTED_V6";

/// An array of [`crate::deny_list::DenyLine`]: denied IPv4 addresses without an end, if there are many.
pub const DENIED_LINES: &str = "DENIED_LINES";

/// A hash of the denied addresses that are not in [`DENIED_LINES`], with their [`Expiry`].
pub const DENIED_V4: &str = "DENIED_V4";
/// The same for IPv6.
pub const DENIED_V6: &str = "DENIED_V6";
/// A trie of denied prefixes, with their [`Expiry`].
pub const DENIED_PREFIXES_V4: &str = "DENIED_PREFIXES_V4";
/// The same for IPv6.
pub const DENIED_PREFIXES_V6: &str = "DENIED_PREFIXES_V6";

/// Tries of the sources that are denied at one service, with their [`Expiry`].
pub const DENIED_AT_V4: &str = "DENIED_AT_V4";
/// The same for IPv6.
pub const DENIED_AT_V6: &str = "DENIED_AT_V6";

/// Tries of the sources that `allow` entries let through, with their [`Expiry`]: everywhere ([`NO_SERVICE`]) or at one
/// service.
pub const ALLOWED_V4: &str = "ALLOWED_V4";
/// The same for IPv6.
pub const ALLOWED_V6: &str = "ALLOWED_V6";

/// The section of the writable global with the [`live`] flags.
pub const LIVE: &str = ".bss";

/// Tries of the sources that are exempt or crowds, as [`Exemption`].
pub const EXEMPTIONS_V4: &str = "EXEMPTIONS_V4";
/// The same for IPv6.
pub const EXEMPTIONS_V6: &str = "EXEMPTIONS_V6";

/// Tries of container networks; the value is a [`crate::exposure::NetworkKind`]. The bitmaps are read first: most
/// destinations can be in no network.
pub const NETWORKS_V4: &str = "NETWORKS_V4";
/// The same for IPv6.
pub const NETWORKS_V6: &str = "NETWORKS_V6";
/// The bitmap before [`NETWORKS_V4`].
pub const NETWORK_BITS_V4: &str = ".bss.bits_v4";
/// The bitmap before [`NETWORKS_V6`].
pub const NETWORK_BITS_V6: &str = ".bss.bits_v6";

/// A hash of [`OwnSource`]: this host's own addresses, which are no valid source on a wire. The bitmap [`OWN_BITS`] is
/// read first.
pub const OWN: &str = "OWN";
/// The bitmap before [`OWN`], indexed by [`crate::martian::own_bit`].
pub const OWN_BITS: &str = ".bss.own_bits";

/// An array of [`crate::fragment::FragmentSet`].
pub const FRAGMENTS: &str = "FRAGMENTS";

/// An array of buckets (64-bit times) that belong to no service, indexed by [`host_bucket`].
pub const HOST_BUCKETS: &str = "HOST_BUCKETS";

/// An array of [`crate::cell::Cell`]: for each service two rows, each of a power of two cells, indexed by
/// [`crate::cell::indices`].
pub const CELLS: &str = "CELLS";

/// The same with one bucket (a 64-bit time) per cell, for policies whose budgets are all of one kind
/// ([`feature::NARROW`]). Smaller cells use less of the caches, which decides what a flood of random sources costs.
pub const NARROW_CELLS: &str = "NARROW_CELLS";

/// An array of [`crate::cell::Cell`], one for each service: the buckets that all sources share.
pub const TOTALS: &str = "TOTALS";

/// An array of [`crate::verified::VerifiedLine`].
pub const VERIFIED: &str = "VERIFIED";

/// An array of [`FloodSettings`], indexed by service id: those of services with [`list::PROTECTED`].
pub const FLOOD_SETTINGS: &str = "FLOOD_SETTINGS";

/// An array of [`FloodState`], indexed by service id.
pub const FLOODS: &str = "FLOODS";

/// A hash from [`FlowKey`] to the time of the flow's last packet.
pub const FLOWS: &str = "FLOWS";

/// A per-CPU array of one 64-bit number: how many flows have been inserted into [`FLOWS`]. A flow that is no longer
/// there, and that the agent did not remove, was evicted by the kernel.
pub const OPENED_FLOWS: &str = "OPENED_FLOWS";

/// A hash from [`FlowKey`] to the time of a packet that passed only because the mode is `observe`.
pub const UNSOLICITED: &str = "UNSOLICITED";

/// An array of one array of [`crate::interfaces::InterfacePlace`]: the row of each interface in the tables that have a
/// row per interface.
pub const INTERFACES: &str = "INTERFACES";

/// The tables that have a row per interface. Each is an array of per-CPU arrays:
///
/// - counters: [`COUNTER_PAGES`] pages per row, each with [`Counters`] of [`SERVICES_PER_PAGE`] services;
/// - talkers: [`TalkerSlot`]s, indexed by a hash of the source;
/// - closed ports: [`ClosedPortSlot`]s, indexed by [`crate::closed_ports::place`];
/// - losses: 64-bit numbers, indexed by [`Outcome::slot`], of packets that matched a capture and were not copied.
pub const COUNTER_ROWS: &str = "COUNTER_ROWS";
/// Talkers, a row per interface.
pub const TALKER_ROWS: &str = "TALKER_ROWS";
/// Closed ports, a row per interface.
pub const CLOSED_PORT_ROWS: &str = "CLOSED_PORT_ROWS";
/// Losses of captures, a row per interface.
pub const LOSS_ROWS: &str = "LOSS_ROWS";

/// The same tables for one interface. A program for a single interface ([`feature::ALONE`]) uses them without looking
/// up a row. [`COUNTERS`] has at least the services of the first page.
pub const COUNTERS: &str = "COUNTERS";
/// Talkers of one interface.
pub const TALKERS: &str = "TALKERS";
/// Closed ports of one interface.
pub const CLOSED_PORTS: &str = "CLOSED_PORTS";
/// Losses of captures on one interface.
pub const LOSSES: &str = "LOSSES";

/// The section of a writable global, one [`CaptureFilter`]: the packets to copy. Reading it costs one load; loading a
/// program writes it first.
pub const CAPTURE: &str = ".data.capture";

/// The name of the global in [`CAPTURE`].
pub const CAPTURE_GLOBAL: &str = "CAPTURE";

/// An array of 64-bit numbers, indexed by [`grant`]: how many more packets the kernel program may copy. User space sets
/// them and the program counts them down, so a reader that has died costs nothing further.
pub const GRANT: &str = "GRANT";

/// A ring buffer of [`Event`].
pub const EVENTS: &str = "EVENTS";

/// The programs to tail-call once a trial is over, indexed by the interface's row: the program before the trial, if the
/// interface had one.
pub const PREVIOUS: &str = "PREVIOUS";

/// An array of one [`About`]; only user space reads it.
pub const ABOUT: &str = "ABOUT";

/// The same for one interface: an array of one [`AboutInterface`].
pub const ABOUT_INTERFACE: &str = "ABOUT_INTERFACE";

/// An array of [`ServiceIdSlot`], indexed by service id; only user space reads it.
pub const SERVICE_IDS: &str = "SERVICE_IDS";

/// An array of one [`ReplayTime`].
pub const CLOCK: &str = "CLOCK";

/// [`About::agent`] of an agent that was stopped in order: no process has this id.
pub const NO_AGENT: u32 = 0;

/// The service id that stands for "no service".
pub const NO_SERVICE: u16 = 0;

/// A policy has at most this many services less one: [`NO_SERVICE`] is taken.
pub const MAX_SERVICES: u32 = 1024;

/// The number of service ids. There are more ids than a policy has services: a removed service keeps its id and its
/// counters until another service needs the id.
pub const MAX_SERVICE_IDS: u32 = 2 * MAX_SERVICES;

/// Counters are allocated in pages of this many services, because most policies have few.
pub const SERVICES_PER_PAGE: u32 = 1 << 6;
/// The pages that hold all service ids.
pub const COUNTER_PAGES: u32 = MAX_SERVICE_IDS / SERVICES_PER_PAGE;

/// The cells of all services together, unless the policy sets `cells`: 16 MiB.
pub const DEFAULT_CELLS: u32 = 1 << 19;

/// The fewest cells in a row of a service.
pub const MIN_CELLS_PER_ROW: u32 = 1 << 6;

/// The most sources that restricted services admit, for each IP version.
pub const MAX_ADMITTED: u32 = 1 << 16;
/// The most exempt sources and crowds, for each IP version.
pub const MAX_EXEMPTIONS: u32 = 1 << 16;
/// The most entries of [`ADDRESSED`].
pub const MAX_ADDRESSED: u32 = 1 << 16;
/// The most container networks, for each IP version.
pub const MAX_NETWORKS: u32 = 1 << 12;
/// The most denied sources of each table.
pub const MAX_DENIED: u32 = 1 << 21;
/// The most sources that operators allow, for each IP version.
pub const MAX_ALLOWED: u32 = 1 << 16;

/// The most addresses of this host in [`OWN`]. An address that finds no room there is not dropped as a source.
pub const MAX_OWN: u32 = 1 << 14;

/// The number of sets of datagrams in [`FRAGMENTS`]. A power of two.
pub const FRAGMENT_SETS: u32 = 1 << 14;

/// The indices in [`GRANT`].
pub mod grant {
    /// For packets of every outcome.
    pub const SHARED: u32 = 0;
    /// For outcomes of which every packet is copied, because they have few.
    pub const RESERVE: u32 = 1;
    /// The number of grants.
    pub const COUNT: u32 = 2;
}

/// The indices in [`HOST_BUCKETS`].
pub mod host_bucket {
    use crate::cell::ROWS;

    /// Control packets that crossed no router.
    pub const CONTROL: u32 = 0;
    /// Fragments of all sources that overtake their first fragment.
    pub const OVERTAKING: u32 = 1;
    /// The same fragments of each source: two rows.
    pub const OVERTAKING_OF_SOURCE: u32 = 2;
    /// The number of buckets in a row, less one.
    pub const SOURCE_MASK: u32 = (1 << 10) - 1;

    /// DHCP replies over IPv4, which may come from any network.
    pub const DHCP_REPLY: u32 = OVERTAKING_OF_SOURCE + ROWS * (SOURCE_MASK + 1);

    /// The number of buckets.
    pub const COUNT: u32 = DHCP_REPLY + 1;
}

/// The budget of control packets, in packets a second. A /22 with 1,000 hosts stays below a tenth of it at its busiest:
///
/// - 200 MLD reports a second: two groups per host, spread over the 10 s of a query (RFC 3810, section 9.3);
/// - 500 neighbour solicitations, if all hosts start within 10 s: three for duplicate address detection, two for
///   routers.
pub const CONTROL_RATE: u64 = 10_000;

/// The budget of DHCP replies, in packets a second. A /22 with 1,000 hosts stays at a tenth of it if all leases are
/// renewed within 5 s. The budget is separate from that of neighbour discovery, because any host on the internet can
/// forge a DHCP reply.
pub const DHCP_REPLY_RATE: u64 = 2_000;

/// The most UDP flows that are remembered.
pub const MAX_FLOWS: u32 = 1 << 16;

/// The number of talkers that each CPU tracks. A power of two.
pub const TALKER_ENTRIES: u32 = 1 << 11;

/// One packet of this many is sampled for the talkers. A power of two.
pub const TALKER_SAMPLE: u64 = 16;

/// The number of closed ports that each CPU counts. A power of two.
pub const CLOSED_PORT_ENTRIES: u32 = 1 << 8;

/// The size of [`EVENTS`], in bytes. A power of two.
pub const EVENTS_BYTES: u32 = 1 << 20;

/// The bytes of a packet that a capture copies: a whole Ethernet frame with two VLAN tags.
pub const SNAP_LENGTH: u32 = 1_536;

/// The features that a policy uses. The verifier removes the code of the others.
pub mod feature {
    /// Some service allows only some sources.
    pub const RESTRICTED: u16 = 1 << 0;
    /// Some budget counts packets.
    pub const PACKETS: u16 = 1 << 1;
    /// Some budget counts bytes.
    pub const BYTES: u16 = 1 << 2;
    /// Some budget counts connections.
    pub const CONNECTIONS: u16 = 1 << 3;
    /// Some service has a budget that all sources share.
    pub const TOTALS: u16 = 1 << 4;
    /// Packets that reach no service have budgets.
    pub const LIMITS: u16 = 1 << 5;
    /// Some sources are exempt or crowds.
    pub const EXEMPTIONS: u16 = 1 << 6;
    /// Some ports are listed or published on one address alone.
    pub const ADDRESSED: u16 = 1 << 7;
    /// There are container networks.
    pub const NETWORKS: u16 = 1 << 8;
    /// UDP flows that this host opens are recorded.
    pub const FLOWS: u16 = 1 << 9;
    /// All budgets are of one kind.
    pub const NARROW: u16 = 1 << 10;
    /// Some service is protected from floods.
    pub const FLOODS: u16 = 1 << 11;
    /// The program is for a single interface. This does not depend on the policy.
    pub const ALONE: u16 = 1 << 15;

    /// Any budget at all.
    pub const BUDGETS: u16 = PACKETS | BYTES | CONNECTIONS | TOTALS;
}

/// Flags of the tables that have entries while a generation runs. An empty table costs one load and one branch.
pub mod live {
    /// The hashes have denied addresses.
    pub const DENIED: u32 = 1 << 0;
    /// The tries have denied prefixes.
    pub const DENIED_PREFIXES: u32 = 1 << 1;
    /// There are `allow` entries.
    pub const ALLOWED: u32 = 1 << 8;

    /// The lowest byte has only the flags of denied sources.
    pub const DENIED_BYTE: u32 = 0xff;

    const _: () = assert!((DENIED | DENIED_PREFIXES) & !DENIED_BYTE == 0);
    const _: () = assert!(ALLOWED & DENIED_BYTE == 0);
}

/// Flags of the source lists that a service has: [`ServiceSlot::lists`].
pub mod list {
    /// Only sources in the tries may reach it.
    pub const ADMITTED: u8 = 1 << 0;
    /// Some sources are denied at it. This flag changes while the program runs.
    pub const DENIED: u8 = 1 << 1;
    /// In a flood of requests for connections, verified sources are served first.
    pub const PROTECTED: u8 = 1 << 2;
}

/// The entry of a port or a protocol: the id of the service that lists it, and flags.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortEntry(u32);

impl PortEntry {
    const PUBLISHED_IPV4: u32 = 1 << 16;
    const PUBLISHED_IPV6: u32 = 1 << 17;
    const EPHEMERAL: u32 = 1 << 18;
    const ADDRESSED: u32 = 1 << 19;

    /// Listed by this service.
    #[must_use]
    pub const fn with_service(self, service: u16) -> Self {
        Self(self.0 & !0xffff | service as u32)
    }

    /// Published by a container for IPv4.
    #[must_use]
    pub const fn published_ipv4(self) -> Self {
        Self(self.0 | Self::PUBLISHED_IPV4)
    }

    /// Published by a container for IPv6.
    #[must_use]
    pub const fn published_ipv6(self) -> Self {
        Self(self.0 | Self::PUBLISHED_IPV6)
    }

    /// In the local port range of this host.
    #[must_use]
    pub const fn ephemeral(self) -> Self {
        Self(self.0 | Self::EPHEMERAL)
    }

    /// A service lists it, or a container publishes it, on one address alone: [`ADDRESSED`] has the entry of that
    /// address.
    #[must_use]
    pub const fn addressed(self) -> Self {
        Self(self.0 | Self::ADDRESSED)
    }

    /// Combines the port's entry with that of one address in [`ADDRESSED`]. A service that names the address comes
    /// before a service that does not.
    #[inline(always)]
    #[must_use]
    pub const fn on_address(self, here: Self) -> Self {
        let service = if here.service() == NO_SERVICE {
            self.service()
        } else {
            here.service()
        };
        Self((self.0 | here.0) & !0xffff | service as u32)
    }

    /// No service lists the port and no container publishes it.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether [`ADDRESSED`] has entries for this port.
    #[inline(always)]
    pub const fn is_addressed(self) -> bool {
        self.0 & Self::ADDRESSED != 0
    }

    /// The id of the service that lists the port, or [`NO_SERVICE`].
    #[inline(always)]
    pub const fn service(self) -> u16 {
        self.0 as u16
    }

    /// Whether a container publishes the port for IPv4.
    #[inline(always)]
    pub const fn is_published_ipv4(self) -> bool {
        self.0 & Self::PUBLISHED_IPV4 != 0
    }

    /// Whether a container publishes the port for IPv6.
    #[inline(always)]
    pub const fn is_published_ipv6(self) -> bool {
        self.0 & Self::PUBLISHED_IPV6 != 0
    }

    /// Whether the port is in the local port range of this host.
    #[inline(always)]
    pub const fn is_ephemeral(self) -> bool {
        self.0 & Self::EPHEMERAL != 0
    }
}

/// Transport protocols that have ports, in the order of their rows in [`PORTS`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortProtocol {
    Tcp = 0,
    Udp = 1,
    Sctp = 2,
}

impl PortProtocol {
    /// The name in policies and output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

const PORT_ROWS: u32 = 3;
const PORTS_PER_ROW: u32 = 1 << 16;

/// The length of [`PORTS`]: a row for each [`PortProtocol`], then a row with an entry for every IP protocol.
pub const PORT_ENTRIES: u32 = (PORT_ROWS + 1) * PORTS_PER_ROW;

/// The index of a port in [`PORTS`].
#[inline(always)]
pub const fn port_index(protocol: PortProtocol, port: u16) -> u32 {
    protocol as u32 * PORTS_PER_ROW + port as u32
}

/// The index of a protocol without ports in [`PORTS`], by its IANA number.
#[inline(always)]
pub const fn protocol_index(protocol: u8) -> u32 {
    PORT_ROWS * PORTS_PER_ROW + protocol as u32
}

/// The reverse of [`port_index`] and [`protocol_index`]. `None`: no packet has this index.
pub const fn port_of_index(index: u32) -> Option<IndexedPort> {
    let low = index % PORTS_PER_ROW;
    match index / PORTS_PER_ROW {
        0 => Some(IndexedPort::Port(PortProtocol::Tcp, low as u16)),
        1 => Some(IndexedPort::Port(PortProtocol::Udp, low as u16)),
        2 => Some(IndexedPort::Port(PortProtocol::Sctp, low as u16)),
        PORT_ROWS if low <= u8::MAX as u32 => Some(IndexedPort::Protocol(low as u8)),
        _ => None,
    }
}

/// What an index in [`PORTS`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexedPort {
    /// A port of a transport protocol.
    Port(PortProtocol, u16),
    /// A protocol without ports, by its IANA number.
    Protocol(u8),
}

/// The settings of a service in the packet path.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceSlot {
    /// The service's mode, no stricter than the host's.
    pub mode: ModeBits,
    /// Flags of [`list`].
    pub lists: u8,
    /// How much a source may prepay.
    pub advance: Advance,
    /// The index of the service's first cell in [`CELLS`], and the number of its cells in a row, less one.
    pub first_cell: u32,
    pub cell_mask: u32,
    /// The mask that cuts an IPv4 source to its prefix.
    pub source_mask_v4: u32,
    /// The mask that cuts an IPv6 source to its prefix.
    pub source_mask_v6: Address,
    /// The budgets of each source.
    pub source: GcraBudgets,
    /// The budgets that all sources share.
    pub total: GcraBudgets,
}

/// How a flood of requests for TCP connections is met at a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FloodSettings {
    /// The requests of sources that are not verified. Over this budget, the service is flooded.
    pub attempts: GcraBudget,
    /// In a flood: the requests of weak sources that pass.
    pub lane: GcraBudget,
    /// The challenges of one CPU.
    pub answers: GcraBudget,
    /// In a flood one request of this many is charged to `attempts`, at this many times the cost. A power of two.
    pub sample: u32,
    /// In a flood, a source gets a strong challenge in one of this many periods. A power of two; 0: never.
    pub strong_one_of: u32,
}

/// What a service knows about floods, shared by all CPUs. Times are in the units of [`crate::gcra`].
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FloodState {
    /// The buckets of [`FloodSettings::attempts`] and [`FloodSettings::lane`].
    pub attempts: u64,
    pub lane: u64,
    /// The service is flooded until then.
    pub until: u64,
    /// When a weak source with credit last found the lane full.
    pub lane_full: u64,
    /// When the flood began, and when it was last seen, in nanoseconds of CLOCK_BOOTTIME: for readers, which do not
    /// know the program's clock.
    pub since_ns: u64,
    pub seen_ns: u64,
    pub reserved: [u64; 2],
}

/// How long a flood lasts after the last sample that found the budget of attempts used up: 10 s.
pub const FLOOD_FOR: u64 = FLOOD_FOR_NS * UNITS_PER_NANOSECOND;
/// The same in nanoseconds.
pub const FLOOD_FOR_NS: u64 = 10_000_000_000;
/// How long after a flood answers to challenges are accepted: 16 s.
pub const ANSWERED_FOR: u64 = 16_000_000_000 * UNITS_PER_NANOSECOND;
/// How long strong challenges are sent after the lane was full: 2 s. Also the period of
/// [`FloodSettings::strong_one_of`].
pub const STRONG_PERIOD: u64 = 2_000_000_000 * UNITS_PER_NANOSECOND;

/// A port on one address. The port is its index in [`PORTS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressedKey {
    pub port: u32,
    /// A [`crate::address::Family`].
    pub family: u32,
    pub address: Address,
}

/// The state for readers of the pins when no agent runs. Every generation writes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// The key of the budgets' hash, random for each state.
    pub hash_key: HashKey,
    /// Counts the generations of this state, from 1.
    pub generation: u64,
    /// The inode of the network namespace that has the interfaces.
    pub namespace: u64,
    /// When the agent was last alive, and when the trial of the policy ends (0: it is not on trial), in nanoseconds of
    /// CLOCK_BOOTTIME.
    pub seen_ns: u64,
    pub trial_until: u64,
    /// When the policy was loaded, in milliseconds since 1970.
    pub loaded_ms: i64,
    /// How many of [`OPENED_FLOWS`] the agents removed because they had ended, and how many the kernel evicted.
    pub ended_flows: u64,
    pub evicted_flows: u64,
    /// The number of cells that the policy sets.
    pub cells: u32,
    pub agent: u32,
    /// The kernel's ids of the attached program, and of the program that is about to be attached. The links hold one of
    /// them, and so determine which of two sets of pins is in use.
    pub program: u32,
    pub next_program: u32,
    pub services: u32,
    /// A [`Mode`] and a [`Scope`].
    pub mode: u8,
    pub scope: u8,
    /// The [`Mode`] of the policy that comes back when a trial is over.
    pub mode_before: u8,
    /// The [`Scope`] of that policy.
    pub scope_before: u8,
    /// The SHA-256 of the policy file, and the version of guard.
    pub sha256: [u8; 32],
    pub version: [u8; 32],
    /// The path of the policy file. A longer path is cut off.
    pub policy: [u8; 256],
}

/// The state of one interface for readers of the pins.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AboutInterface {
    /// The generation that was last put in force on it. `program` is the kernel's id of its program.
    pub generation: u64,
    /// Identifies the state that it shares with other interfaces: the first word of [`About::hash_key`].
    pub host: u64,
    pub program: u32,
    /// Its row in the tables that have a row per interface.
    pub row: u32,
    /// The handle and the priority of the tc filter, if the tc program has no link (before Linux 6.6). Priority 0:
    /// there is no filter. Both are written before the program is attached.
    pub egress_handle: u32,
    pub egress_priority: u16,
    /// 1: guard has created the clsact qdisc to which the tc program is attached.
    pub clsact: u8,
    /// 1: the XDP program runs in the driver (native mode).
    pub native: u8,
    /// 1: only a policy on trial guards it. When the trial is over without an agent, its packets pass and are not
    /// counted: it has no program in [`PREVIOUS`].
    pub only_on_trial: u8,
    pub reserved: [u8; 7],
}

/// The service that has an id, and its cells.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceIdSlot {
    /// The service's name, padded with zeros; all zeros: the id is free.
    pub name: [u8; MAX_NAME],
    pub first_cell: u32,
    pub cell_mask: u32,
    /// The kernel's id of the map that its cells are in; 0: it has none.
    pub cells: u32,
    /// For a service that container labels made: the id of the service that it was derived from, or its own id if
    /// there is none. 0: the policy lists it.
    pub derived_from: u16,
    /// About how many policies have been loaded since the last that listed it; 0: the current policy lists it.
    pub idle: u16,
}

/// The longest name of a service, in bytes.
pub const MAX_NAME: usize = 64;

/// The end of an entry, in nanoseconds of CLOCK_BOOTTIME; 0: never. The kernel program tests it on every match, so an
/// entry ends on time without an agent.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry(pub u64);

impl Expiry {
    /// No end.
    pub const NEVER: Self = Self(0);

    /// It ended before this host started.
    pub const OVER: Self = Self(1);

    /// Whether the end has come at this time of CLOCK_BOOTTIME, in nanoseconds.
    #[inline(always)]
    pub const fn is_over(self, boot_ns: u64) -> bool {
        let Self(end) = self;
        end != 0 && end <= boot_ns
    }

    /// Whether this ends no earlier than the other.
    pub const fn outlasts(self, other: Self) -> bool {
        self.0 == 0 || other.0 != 0 && self.0 >= other.0
    }
}

/// The most ended [`Exemption`]s that a lookup skips to find a wider exemption that has not ended.
pub const MAX_ENDED: u32 = 4;

/// A key of [`OWN`]: an address of this host, or a broadcast address of one of its networks.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnSource {
    pub address: Address,
    /// A [`crate::address::Family`].
    pub family: u64,
}

/// The exemption of a source: it is never limited, or has larger budgets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exemption {
    pub expiry: Expiry,
    /// Its budgets are this many times those of other sources.
    pub factor: u32,
    /// 1: it is never limited.
    pub exempt: u16,
    /// The length of the next wider prefix with an entry, plus one; 0: there is none. That entry applies once this one
    /// has ended.
    pub wider: u16,
}

/// A UDP flow, seen from this host.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    pub local: Address,
    pub peer: Address,
    pub local_port: u16,
    pub peer_port: u16,
    /// A [`crate::address::Family`].
    pub family: u32,
}

/// A flow ends after this time without packets: Netfilter's default for a UDP stream (nf_conntrack_udp_timeout_stream).
pub const FLOW_IDLE_NS: u64 = 120 * 1_000_000_000;

/// Within this time, a packet of this host to a source in [`UNSOLICITED`] counts as an answer: longer than servers
/// need to answer, and shorter than clients wait before they retry.
pub const UNSOLICITED_NS: u64 = 2 * 1_000_000_000;

/// A top talker of one CPU: the winner of a majority vote (Boyer and Moore, "MJRTY", 1981) over the sampled packets of
/// the sources that share its place.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TalkerSlot {
    pub source: Address,
    /// A [`crate::address::Family`]; 0: the place is free.
    pub family: u8,
    /// The [`crate::reason::Reason`] of the last of `dropped`; 0: there is none.
    pub dropped_for: u8,
    /// The id of the service at which it was dropped.
    pub dropped_at: u16,
    /// Its destination, an index in [`PORTS`].
    pub dropped_port: u32,
    /// Its lead in the vote: at 0 another source takes its place.
    pub lead: u32,
    /// Those of `dropped` that passed only because of the mode.
    pub would_drop: u32,
    /// Sampled packets since it took the place, and those of them that were or would be dropped.
    pub packets: u64,
    pub dropped: u64,
    pub bytes: u64,
}

/// A closed port of one CPU, and the packets that were sent to it: the winner of a majority vote, as [`TalkerSlot`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClosedPortSlot {
    /// A [`crate::closed_ports::ClosedPortKey`]; 0: the place is free.
    pub key: u32,
    /// Its lead in the vote, in packets: at 0 another port takes its place.
    pub lead: u32,
    /// Packets since it took the place, estimated from the sample.
    pub packets: u64,
}

/// The packets that a capture copies. All zeros: none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureFilter {
    /// For each [`Outcome::slot`]: one packet of this many is copied, a power of two; 0: none.
    pub one_of: [u32; Outcome::SLOTS as usize],
    /// One bit for each service.
    pub services: [u64; SERVICE_ID_WORDS],
    /// 1: a capture runs.
    pub on: u32,
    /// Only sources with this prefix: a [`crate::address::Family`], or 0 for any source.
    pub family: u32,
    pub mask: Address,
    pub prefix: Address,
}

/// Words of 64 bits that have a bit for every service.
pub const SERVICE_ID_WORDS: usize = MAX_SERVICE_IDS as usize / 64;

impl CaptureFilter {
    /// Copies no packet.
    pub const NONE: Self = Self {
        one_of: [0; Outcome::SLOTS as usize],
        services: [0; SERVICE_ID_WORDS],
        on: 0,
        family: 0,
        mask: Address::from_ipv4(0),
        prefix: Address::from_ipv4(0),
    };
}

/// A captured packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it was judged, in nanoseconds of CLOCK_BOOTTIME.
    pub boot_ns: u64,
    /// The frame's length in bytes, and how many of them are in `frame`.
    pub length: u32,
    pub captured: u32,
    pub service: u16,
    /// The [`Outcome::slot`].
    pub slot: u16,
    /// One packet of this many was copied.
    pub one_of: u32,
    /// The row of the interface that received it.
    pub row: u32,
    pub reserved: u32,
    pub frame: [u8; SNAP_LENGTH as usize],
}

/// The time of a replayed packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayTime {
    /// In the units of [`crate::gcra`].
    pub now: u64,
    /// In nanoseconds of CLOCK_BOOTTIME.
    pub boot_ns: u64,
}

/// Words of 64 bits in the bitmaps: one bit for every /24 with the same [`network_bit_v4`], and for every /64
/// with the same [`network_bit_v6`].
pub const NETWORK_WORDS_V4: u32 = 1 << 14;
/// The words of 64 bits in [`NETWORK_BITS_V6`].
pub const NETWORK_WORDS_V6: u32 = 1 << 10;

/// The bit of an IPv4 address: its /24 without the upper half of the third byte. One bit stands for sixteen /24 of the
/// same /16. A packet whose bit is set takes the slow path, which looks up the trie.
#[inline(always)]
pub const fn network_bit_v4(address: Address) -> u32 {
    // In network byte order, so that the packet's bytes need no swap.
    (address.low as u32).swap_bytes() & 0x000f_ffff
}

/// The bit of an IPv6 address: a hash of its /64.
#[inline(always)]
pub const fn network_bit_v6(address: Address) -> u32 {
    (spread(address.high) >> 48) as u32
}

/// The widest IPv6 network whose every /64 has its bit set.
pub const WIDEST_NETWORK_V6: u8 = 56;

/// A key of the tries: the service id before the address, so that one trie has the lists of all services. The prefix
/// length counts both.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmittedKey<const BYTES: usize> {
    pub service: u32,
    /// In network byte order.
    pub address: [u8; BYTES],
}

/// The bits of [`AdmittedKey::service`], all of which always match.
pub const SERVICE_BITS: u32 = 32;

/// Packets and bytes of one outcome. Bytes are frame lengths as XDP sees them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterSlot {
    pub packets: u64,
    pub bytes: u64,
}

/// The counters of one service, indexed by [`Outcome::slot`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters(pub [CounterSlot; Outcome::SLOTS as usize]);

/// The result for a packet: the id of its service, and the [`Outcome::slot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conclusion {
    pub service: u32,
    pub slot: u32,
}

impl Conclusion {
    /// The conclusion for a service id, a reason and a mode.
    #[inline(always)]
    pub const fn new(service: u16, reason: Reason, mode: ModeBits) -> Self {
        Self {
            service: service as u32,
            slot: Outcome::slot_of(reason, mode),
        }
    }

    /// Both in one word, as [`REPLAY_PROGRAM`] returns them.
    #[inline(always)]
    pub const fn pack(self) -> u32 {
        self.service << 16 | self.slot
    }

    /// The reverse of [`Self::pack`].
    #[inline(always)]
    pub const fn unpack(word: u32) -> Self {
        Self {
            service: word >> 16,
            slot: word & 0xffff,
        }
    }
}

// The kernel program and user space are compiled for different targets: padding must not differ.
const _: () = assert!(size_of::<About>() == 416);
const _: () = assert!(size_of::<AboutInterface>() == 40);
const _: () = assert!(size_of::<ServiceIdSlot>() == 80);
const _: () = assert!(size_of::<PortEntry>() == 4);
const _: () = assert!(size_of::<GcraBudgets>() == 48);
const _: () = assert!(size_of::<ServiceSlot>() == 128);
const _: () = assert!(size_of::<FloodSettings>() == 56);
const _: () = assert!(size_of::<FloodState>() == 64);
const _: () = assert!(size_of::<AddressedKey>() == 24);
const _: () = assert!(size_of::<Expiry>() == 8);
const _: () = assert!(size_of::<OwnSource>() == 24);
const _: () = assert!(size_of::<Exemption>() == 16);
const _: () = assert!(size_of::<FlowKey>() == 40);
const _: () = assert!(size_of::<TalkerSlot>() == 56);
const _: () = assert!(size_of::<ClosedPortSlot>() == 16);
const _: () = assert!(size_of::<CaptureFilter>() == 552);
const _: () = assert!(size_of::<Event>() == 32 + SNAP_LENGTH as usize);
const _: () = assert!(size_of::<ReplayTime>() == 16);
const _: () = assert!(size_of::<AdmittedKey<4>>() == 8);
const _: () = assert!(size_of::<AdmittedKey<16>>() == 20);
const _: () = assert!(size_of::<Counters>() == 16 * Outcome::SLOTS as usize);

#[cfg(feature = "user")]
mod pod {
    use super::{
        About, AboutInterface, AddressedKey, AdmittedKey, CaptureFilter, ClosedPortSlot, Counters,
        Exemption, Expiry, FloodSettings, FloodState, FlowKey, OwnSource, PortEntry, ReplayTime,
        ServiceIdSlot, ServiceSlot, TalkerSlot,
    };
    use crate::{
        cell::Cell, deny_list::DenyLine, interfaces::InterfacePlace, verified::VerifiedLine,
    };

    macro_rules! pod {
        ($($layout:ty),* $(,)?) => {
            $(
                // SAFETY: `repr(C)` or `repr(transparent)` of integers without padding (the
                // assertions above count every byte), so every bit pattern is a value.
                unsafe impl aya::Pod for $layout {}
            )*
        };
    }

    pod!(
        About,
        AboutInterface,
        AddressedKey,
        CaptureFilter,
        Cell,
        ClosedPortSlot,
        ReplayTime,
        Counters,
        Expiry,
        FlowKey,
        DenyLine,
        OwnSource,
        InterfacePlace,
        PortEntry,
        Exemption,
        FloodSettings,
        FloodState,
        VerifiedLine,
        ServiceIdSlot,
        ServiceSlot,
        TalkerSlot,
    );

    // SAFETY: as above.
    unsafe impl<const BYTES: usize> aya::Pod for AdmittedKey<BYTES> {}
}
