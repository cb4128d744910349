//! The budgets of a source at a service, kept in one cell of each of two rows, and those that all
//! sources share.

use core::{
    intrinsics::{AtomicOrdering, atomic_cxchg},
    ptr::read_volatile,
};

use guard_common::{
    address::{Address, Family},
    bucket::{Bucket, charge_one, charge_pair, charge_pair_with_room, has_room, pair_has_room},
    cell::{self, Cell, Share},
    gcra::{Budget, Price},
    layout::{Budgets, Relief, Service, feature},
    packet::{Packet, View},
    reason::Reason,
};

use crate::{
    clock::Clock,
    config,
    maps::{CELLS, NARROW_CELLS, TOTALS},
    sources::{find_relief, is_allowed},
};

/// Passes a packet for `reason` if it is within every budget, which is then charged for it; says
/// which budget it is over if not.
///
/// Exemptions are looked up last, only for a packet that is about to be dropped.
#[inline(always)]
pub fn charge<C: Clock>(
    packet: &Packet,
    length: u64,
    service: u16,
    settings: &Service,
    reason: Reason,
) -> Reason {
    if !config::uses(feature::BUDGETS) {
        return reason;
    }
    let prefix = packet.source.masked(source_mask(packet.family, settings));
    let hash = |share| cell::hash(config::hash_key(), share, packet.family, prefix);
    let bill = Bill {
        length,
        now: C::now(),
        hash: hash(Share::Base),
        terms: Terms {
            service,
            attempt: matches!(packet.transport.view(), View::Tcp { attempt: true, .. }),
        },
        times: None,
    };
    let Err(over) = bill.pay(settings) else {
        return reason;
    };
    if is_allowed::<C>(packet.family, packet.source, service) {
        return Reason::Exempt;
    }
    match find_relief::<C>(packet.family, packet.source) {
        Some(Relief { exempt: 1, .. }) => Reason::Exempt,
        // What a crowd sends beyond one source's budget has further buckets, which are so much
        // larger that both together are `factor` times that budget.
        Some(Relief { factor, .. }) if factor > 1 => {
            let terms = bill.terms.pack() | u64::from(factor - 1) << CROWD_SHIFT;
            match guard_pay_as_crowd(settings, bill.now, hash(Share::Crowd), length, terms) {
                WITHIN => reason,
                over => KINDS
                    .map(Kind::reason)
                    .into_iter()
                    .find(|limit| *limit as u32 == over)
                    .unwrap_or(Reason::TotalLimit),
            }
        }
        _ => over,
    }
}

#[inline(always)]
fn source_mask(family: Family, settings: &Service) -> Address {
    match family {
        Family::Ipv4 => Address::from_ipv4(settings.source_mask_v4),
        Family::Ipv6 => settings.source_mask_v6,
    }
}

/// What a budget counts.
#[derive(Clone, Copy)]
enum Kind {
    Packets,
    Bytes,
    Connections,
}

const KINDS: [Kind; 3] = [Kind::Packets, Kind::Bytes, Kind::Connections];

impl Kind {
    #[inline(always)]
    fn feature(self) -> u16 {
        match self {
            Self::Packets => feature::PACKETS,
            Self::Bytes => feature::BYTES,
            Self::Connections => feature::CONNECTIONS,
        }
    }

    #[inline(always)]
    fn reason(self) -> Reason {
        match self {
            Self::Packets => Reason::PacketLimit,
            Self::Bytes => Reason::ByteLimit,
            Self::Connections => Reason::ConnectionLimit,
        }
    }

    #[inline(always)]
    fn budget(self, budgets: &Budgets) -> *const Budget {
        match self {
            Self::Packets => &raw const budgets.packets,
            Self::Bytes => &raw const budgets.bytes,
            Self::Connections => &raw const budgets.connections,
        }
    }

    #[inline(always)]
    fn bucket(self, cell: *mut Cell) -> MapBucket {
        // SAFETY: the pointer is to a value of an array map.
        MapBucket(unsafe {
            match self {
                Self::Packets => &raw mut (*cell).packets,
                Self::Bytes => &raw mut (*cell).bytes,
                Self::Connections => &raw mut (*cell).connections,
            }
        })
    }
}

/// A source's buckets in one row.
#[derive(Clone, Copy)]
enum Place {
    Wide(*mut Cell),
    /// Of the one kind that there is.
    Narrow(*mut u64),
}

impl Place {
    #[inline(always)]
    fn of(index: u32) -> Option<Self> {
        if config::uses(feature::NARROW) {
            NARROW_CELLS.get_ptr_mut(index).map(Self::Narrow)
        } else {
            CELLS.get_ptr_mut(index).map(Self::Wide)
        }
    }

    #[inline(always)]
    fn bucket(self, kind: Kind) -> MapBucket {
        match self {
            Self::Wide(cell) => kind.bucket(cell),
            Self::Narrow(bucket) => MapBucket(bucket),
        }
    }
}

/// What [`guard_pay_as_crowd`] returns for a packet within its budgets: no [`Reason`] to drop.
const WITHIN: u32 = 0;

/// Charges a packet to buckets into which its budgets fit as many times as `terms` says, and returns
/// the number of the [`Reason`] if it is over one.
///
/// It is a global function, which the verifier looks at once (Linux 5.6, with pointers 5.13). Followed
/// from every budget that a packet can be over, it came close to the million instructions that are
/// allowed. What every packet goes through is none: where the kernel guards its returns, a call costs
/// more than the charge.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_pay_as_crowd(
    settings: *const Service,
    now: u64,
    hash: u64,
    length: u64,
    terms: u64,
) -> u32 {
    // SAFETY: the verifier holds every caller to what the type says.
    let Some(settings) = (unsafe { settings.as_ref() }) else {
        return WITHIN;
    };
    let bill = Bill {
        length,
        now,
        hash,
        terms: Terms::unpack(terms),
        times: Some(terms >> CROWD_SHIFT),
    };
    match bill.pay(settings) {
        Ok(()) => WITHIN,
        Err(over) => over as u32,
    }
}

/// What else a packet is charged by, in one argument: the kernel's functions take five.
#[derive(Clone, Copy)]
struct Terms {
    service: u16,
    /// It opens a connection.
    attempt: bool,
}

/// The terms of a crowd have its size above this bit.
const CROWD_SHIFT: u32 = 32;

impl Terms {
    const ATTEMPT: u64 = 1 << 16;

    #[inline(always)]
    fn pack(self) -> u64 {
        let attempt = if self.attempt { Self::ATTEMPT } else { 0 };
        u64::from(self.service) | attempt
    }

    #[inline(always)]
    fn unpack(terms: u64) -> Self {
        Self {
            service: terms as u16,
            attempt: terms & Self::ATTEMPT != 0,
        }
    }
}

/// One packet, as its budgets see it.
struct Bill {
    length: u64,
    now: u64,
    hash: u64,
    terms: Terms,
    /// How many times its budgets fit into the buckets of its crowd; `None`: it pays as one source.
    times: Option<u64>,
}

impl Bill {
    /// Charges the packet to the buckets of its source and to those of all sources; to none of them
    /// if it is over any.
    #[inline(always)]
    fn pay(&self, settings: &Service) -> Result<(), Reason> {
        let [first, second] = cell::indices(self.hash, settings.first_cell, settings.cell_mask);
        let (Some(first), Some(second)) = (Place::of(first), Place::of(second)) else {
            // Unreachable while the slices fit the array; a guard that is unsure lets through.
            return Ok(());
        };
        let pair = |kind: Kind| [first.bucket(kind), second.bucket(kind)];
        // Where there is only one budget, its charge tells whether there is room.
        let is_only = |kind: Kind| !config::uses(feature::BUDGETS & !kind.feature());
        for kind in KINDS {
            if !is_only(kind)
                && let Some(price) = self.price(kind, &settings.source, self.times)
                && !pair_has_room(pair(kind), self.now, price)
            {
                return Err(kind.reason());
            }
        }
        if config::uses(feature::TOTALS) {
            self.pay_totals(settings)?;
        }
        for kind in KINDS {
            let Some(price) = self.price(kind, &settings.source, self.times) else {
                continue;
            };
            let is_charged = if is_only(kind) {
                charge_pair_with_room(pair(kind), self.now, price)
            } else {
                charge_pair(pair(kind), self.now, price)
            };
            if !is_charged {
                return Err(kind.reason());
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn pay_totals(&self, settings: &Service) -> Result<(), Reason> {
        let Some(total) = TOTALS.get_ptr_mut(self.terms.service.into()) else {
            return Ok(());
        };
        for kind in KINDS {
            if let Some(price) = self.price(kind, &settings.total, None)
                && !has_room(kind.bucket(total), self.now, price)
            {
                return Err(Reason::TotalLimit);
            }
        }
        for kind in KINDS {
            if let Some(price) = self.price(kind, &settings.total, None)
                && !charge_one(kind.bucket(total), self.now, price)
            {
                return Err(Reason::TotalLimit);
            }
        }
        Ok(())
    }

    /// What the packet costs at a budget; `None`: not limited, or not concerned.
    ///
    /// It is asked for where it is used, and read from the table each time. Kept in between, it would
    /// have the verifier follow every mixture of limited and unlimited budgets; and the half of an
    /// empty `Option`, copied unwritten, is refused before Linux 6.3.
    #[inline(always)]
    fn price(&self, kind: Kind, budgets: &Budgets, times: Option<u64>) -> Option<Price> {
        if !config::uses(kind.feature()) || matches!(kind, Kind::Connections) && !self.terms.attempt
        {
            return None;
        }
        // SAFETY: the pointer comes from a reference.
        let budget = unsafe { read_volatile(kind.budget(budgets)) };
        if !budget.is_limited() {
            return None;
        }
        let Price { cost, burst } = match kind {
            Kind::Bytes => budget.price_of_bytes(self.length),
            Kind::Packets | Kind::Connections => budget.price(),
        };
        let shared = times.and_then(|times| cost.checked_div(times));
        let cost = shared.unwrap_or(cost);
        Some(Price { cost, burst })
    }
}

/// A bucket in a value of an array map, which lives as long as the program.
#[derive(Clone, Copy)]
struct MapBucket(*mut u64);

impl Bucket for MapBucket {
    #[inline(always)]
    fn read(self) -> u64 {
        // SAFETY: see the type. An aligned 64-bit load is whole; `AtomicU64::load` does not link for
        // this target.
        unsafe { read_volatile(self.0) }
    }

    #[inline(always)]
    fn exchange(self, seen: u64, new: u64) -> bool {
        // SAFETY: see the type. SeqCst, because LLVM 22 miscompiles weaker orderings for this target.
        let (_, exchanged) = unsafe {
            atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                self.0, seen, new,
            )
        };
        exchanged
    }
}
