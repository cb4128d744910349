//! The tables of the kernel program: names, sizes and the layout of each value.

use crate::{
    address::Address,
    cell::HashKey,
    exposure::Scope,
    gcra::Budget,
    reason::{Mode, Outcome},
};

/// The XDP program.
pub const PROGRAM: &str = "guard";

/// The read-only global with a [`Config`].
pub const CONFIG: &str = "CONFIG";

/// An array of [`PortEntry`], indexed by [`port_index`] and [`protocol_index`].
pub const PORTS: &str = "PORTS";

/// An array of [`Service`], indexed by the service's number.
pub const SERVICES: &str = "SERVICES";

/// Tries of the sources that restricted services allow.
pub const ADMITTED_V4: &str = "ADMITTED_V4";
pub const ADMITTED_V6: &str = "ADMITTED_V6";

/// An array of buckets, two rows of a power of two, indexed by [`crate::cell::indices`].
pub const CELLS: &str = "CELLS";

/// A per-CPU array of [`Counter`], indexed by [`counter_index`].
pub const COUNTERS: &str = "COUNTERS";

/// The number that stands for "no service".
pub const NO_SERVICE: u16 = 0;

/// Room for this many services less one, [`NO_SERVICE`] being taken.
pub const MAX_SERVICES: u32 = 1024;

/// How many buckets a row has. 2 rows of 2^18 are 4 MiB.
pub const DEFAULT_CELLS_PER_ROW: u32 = 1 << 18;

/// How many prefixes all `from` lists may hold together.
pub const MAX_ADMITTED: u32 = 1 << 16;

/// What is fixed for one generation of the program: the verifier sees these values as constants and
/// removes what they switch off.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Units of time in one jiffy (see [`crate::gcra`]).
    pub jiffy: u64,
    pub hash_key: HashKey,
    /// The number of cells in a row less one; the row's length is a power of two.
    pub cell_mask: u32,
    /// A [`Mode`]: that of the host.
    pub mode: u8,
    /// A [`Scope`].
    pub scope: u8,
    /// Whether any service allows only some sources.
    pub has_restricted: u8,
    /// Whether any service has a budget.
    pub has_budgets: u8,
}

impl Config {
    pub const EMPTY: Self = Self {
        jiffy: 1,
        hash_key: HashKey([0; 2]),
        cell_mask: 0,
        mode: Mode::Off as u8,
        scope: Scope::Containers as u8,
        has_restricted: 0,
        has_budgets: 0,
    };
}

/// What the tables know of a port or a protocol: the number of the service that lists it, and flags.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortEntry(u32);

impl PortEntry {
    const PUBLISHED_IPV4: u32 = 1 << 16;
    const PUBLISHED_IPV6: u32 = 1 << 17;
    const EPHEMERAL: u32 = 1 << 18;

    #[must_use]
    pub const fn with_service(self, service: u16) -> Self {
        Self(self.0 & !0xffff | service as u32)
    }

    #[must_use]
    pub const fn published_ipv4(self) -> Self {
        Self(self.0 | Self::PUBLISHED_IPV4)
    }

    #[must_use]
    pub const fn published_ipv6(self) -> Self {
        Self(self.0 | Self::PUBLISHED_IPV6)
    }

    #[must_use]
    pub const fn ephemeral(self) -> Self {
        Self(self.0 | Self::EPHEMERAL)
    }

    #[inline(always)]
    pub const fn service(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    pub const fn is_published_ipv4(self) -> bool {
        self.0 & Self::PUBLISHED_IPV4 != 0
    }

    #[inline(always)]
    pub const fn is_published_ipv6(self) -> bool {
        self.0 & Self::PUBLISHED_IPV6 != 0
    }

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
}

impl PortProtocol {
    /// The name in policies and output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

const PORT_ROWS: u32 = 2;
const PORTS_PER_ROW: u32 = 1 << 16;

/// How long [`PORTS`] is: a row for each [`PortProtocol`], then one entry for every IP protocol.
pub const PORT_ENTRIES: u32 = PORT_ROWS * PORTS_PER_ROW + 256;

/// The place of a port in [`PORTS`].
#[inline(always)]
pub const fn port_index(protocol: PortProtocol, port: u16) -> u32 {
    protocol as u32 * PORTS_PER_ROW + port as u32
}

/// The place of a protocol without ports in [`PORTS`], by its IANA number.
#[inline(always)]
pub const fn protocol_index(protocol: u8) -> u32 {
    PORT_ROWS * PORTS_PER_ROW + protocol as u32
}

/// A service as the packet path needs it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// A [`Mode`], already no stricter than the host's.
    pub mode: u8,
    /// Only sources in the tries may reach it.
    pub restricted: u8,
    pub reserved: [u8; 2],
    /// The mask that cuts an IPv4 source to its prefix.
    pub source_mask_v4: u32,
    /// The mask that cuts an IPv6 source to its prefix.
    pub source_mask_v6: Address,
    /// Packets per source.
    pub packets: Budget,
}

/// A key of the tries: the number of the service in front of the address, so that one trie holds the
/// lists of all services. The prefix length counts both.
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
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

/// How long [`COUNTERS`] is.
pub const COUNTER_ENTRIES: u32 = MAX_SERVICES * Outcome::SLOTS;

/// The place of a counter in [`COUNTERS`].
#[inline(always)]
pub const fn counter_index(service: u16, outcome: Outcome) -> u32 {
    service as u32 * Outcome::SLOTS + outcome.slot()
}

// The kernel side and the user side are compiled apart: neither may pad what the other does not.
const _: () = assert!(size_of::<Config>() == 32);
const _: () = assert!(size_of::<PortEntry>() == 4);
const _: () = assert!(size_of::<Service>() == 40);
const _: () = assert!(size_of::<AdmittedKey<4>>() == 8);
const _: () = assert!(size_of::<AdmittedKey<16>>() == 20);
const _: () = assert!(size_of::<Counter>() == 16);

#[cfg(feature = "user")]
mod pod {
    use super::{AdmittedKey, Config, Counter, PortEntry, Service};

    // SAFETY: `repr(C)` or `repr(transparent)` of integers, without padding (see the assertions
    // above), so every bit pattern is a value and every byte is initialised.
    unsafe impl aya::Pod for Config {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PortEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Service {}
    // SAFETY: as above.
    unsafe impl<const BYTES: usize> aya::Pod for AdmittedKey<BYTES> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Counter {}
}
