//! Charges a packet to buckets: those of its source at a service, in one cell of each of two rows, and those that all
//! sources share.

use core::{
    intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xsub},
    ptr::{read_volatile, write_volatile},
};

use aya_ebpf::maps::Array;
use guard_common::{
    account::Account,
    address::{Address, Family},
    bucket::{
        Bucket, charge_ahead, charge_one, charge_pair, charge_pair_with_room, has_half_free,
        has_room, pair_has_room, retry_one, retry_pair,
    },
    cell::{self, Cell, Share},
    gcra::{GcraBudget, Price},
    layout::{GcraBudgets, ServiceSlot, feature},
    packet::IpHeader,
    reason::Reason,
};

use crate::{
    config::{self, uses},
    maps::{CELLS, NARROW_CELLS, TOTALS},
};

/// The prefix that counts as one source at this service.
#[inline(always)]
pub fn prefix(ip: &impl IpHeader, settings: &ServiceSlot) -> Address {
    ip.source().masked(source_mask(ip.family(), settings))
}

/// The mask that cuts a source to its prefix at this service.
#[inline(always)]
pub fn source_mask(family: Family, settings: &ServiceSlot) -> Address {
    match family {
        Family::Ipv4 => Address::from_ipv4(settings.source_mask_v4),
        Family::Ipv6 => settings.source_mask_v6,
    }
}

/// The unit that a budget counts.
#[derive(Clone, Copy)]
enum BudgetKind {
    Packets,
    Bytes,
    Connections,
}

const KINDS: [BudgetKind; 3] = [
    BudgetKind::Packets,
    BudgetKind::Bytes,
    BudgetKind::Connections,
];

impl BudgetKind {
    #[inline(always)]
    fn is_used(self) -> bool {
        match self {
            Self::Packets => uses!(feature::PACKETS),
            Self::Bytes => uses!(feature::BYTES),
            Self::Connections => uses!(feature::CONNECTIONS),
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
    fn require(self, is_within: bool) -> Result<(), Reason> {
        if is_within {
            Ok(())
        } else {
            Err(self.reason())
        }
    }

    #[inline(always)]
    fn budget(self, budgets: &GcraBudgets) -> *const GcraBudget {
        match self {
            Self::Packets => &raw const budgets.packets,
            Self::Bytes => &raw const budgets.bytes,
            Self::Connections => &raw const budgets.connections,
        }
    }
}

/// A value of an array map that holds a source's buckets.
trait Buckets: Copy {
    fn bucket<const CROWD: bool>(self, kind: BudgetKind) -> MapBucket<CROWD>;
}

/// A narrow cell: one bucket, because the policy has one kind of budget.
impl Buckets for *mut u64 {
    #[inline(always)]
    fn bucket<const CROWD: bool>(self, _kind: BudgetKind) -> MapBucket<CROWD> {
        MapBucket(self)
    }
}

impl Buckets for *mut Cell {
    #[inline(always)]
    fn bucket<const CROWD: bool>(self, kind: BudgetKind) -> MapBucket<CROWD> {
        // SAFETY: the pointer is to a value of an array map.
        MapBucket(unsafe {
            match kind {
                BudgetKind::Packets => &raw mut (*self).packets,
                BudgetKind::Bytes => &raw mut (*self).bytes,
                BudgetKind::Connections => &raw mut (*self).connections,
            }
        })
    }
}

/// Charges a packet to the additional buckets of a crowd. They are `times` as large as the budgets of one source.
#[inline(always)]
pub fn charge_crowd(
    ip: &impl IpHeader,
    now: u64,
    length: u64,
    terms: Terms,
    settings: &ServiceSlot,
    times: u32,
) -> Result<(), Reason> {
    let prefix = prefix(ip, settings);
    let hash = cell::hash(config::hash_key(), Share::Crowd, ip.family(), prefix);
    let terms = terms.pack() | u64::from(times) << CROWD_SHIFT;
    match guard_charge_crowd(settings, now, hash, length, terms) {
        WITHIN => Ok(()),
        over => Err(KINDS
            .map(BudgetKind::reason)
            .into_iter()
            .find(|limit| *limit as u32 == over)
            .unwrap_or(Reason::TotalLimit)),
    }
}

/// What [`guard_charge_crowd`] returns for a packet within its budgets: no [`Reason`] to drop.
const WITHIN: u32 = 0;

/// Charges a packet to a crowd's additional buckets. They hold the source's budgets times the factor in `terms`.
/// Returns the number of the [`Reason`] if the packet is over a budget, otherwise [`WITHIN`].
///
/// It is a global function: the verifier checks it once (Linux 5.6, with pointers 5.13). Inlined behind every budget
/// that a packet can exceed, it came close to the verifier's limit of a million instructions. Code that every packet
/// runs is inlined: with return thunks (retpolines), a call costs more than the charge.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_charge_crowd(
    settings: *const ServiceSlot,
    now: u64,
    hash: u64,
    length: u64,
    terms: u64,
) -> u32 {
    // SAFETY: the verifier checks that every caller passes null or a pointer to a value of this type.
    let Some(settings) = (unsafe { settings.as_ref() }) else {
        return WITHIN;
    };
    let charge = BudgetCharge::<true> {
        length,
        now,
        hash,
        terms: Terms::unpack(terms),
        times: Some(terms >> CROWD_SHIFT),
    };
    match charge.charge_all(settings) {
        Ok(()) => WITHIN,
        Err(over) => over as u32,
    }
}

/// The inputs of a charge besides the time, the hash and the length. They are packed into one argument: a BPF function
/// takes at most five.
#[derive(Clone, Copy)]
pub struct Terms {
    pub service: u16,
    /// The packet requests a connection.
    pub attempt: bool,
}

/// Above this bit, the packed terms of a crowd have its factor.
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

/// One packet that is charged to budgets.
pub struct BudgetCharge<const CROWD: bool> {
    pub length: u64,
    pub now: u64,
    pub hash: u64,
    pub terms: Terms,
    /// For a crowd: its buckets are this many times those of one source. `None`: charged as one source.
    pub times: Option<u64>,
}

impl<const CROWD: bool> BudgetCharge<CROWD> {
    /// Charges the packet to the buckets of its source and to those of all sources, or to none of them if it is over a
    /// budget.
    #[inline(always)]
    pub fn charge_all(&self, settings: &ServiceSlot) -> Result<(), Reason> {
        if uses!(feature::NARROW) && !uses!(feature::TOTALS) {
            self.charge_single_kind(settings)
        } else {
            self.charge_every_kind(settings)
        }
    }

    /// With a single kind of budget, the charge itself tests for room.
    #[inline(always)]
    fn charge_single_kind(&self, settings: &ServiceSlot) -> Result<(), Reason> {
        // The verifier removes all branches but one.
        if uses!(feature::PACKETS) {
            self.charge_kind(BudgetKind::Packets, settings)
        } else if uses!(feature::BYTES) {
            self.charge_kind(BudgetKind::Bytes, settings)
        } else {
            self.charge_kind(BudgetKind::Connections, settings)
        }
    }

    #[inline(always)]
    fn charge_kind(&self, kind: BudgetKind, settings: &ServiceSlot) -> Result<(), Reason> {
        let Some(price) = self.price_where_used(kind, &settings.source, self.times) else {
            return Ok(());
        };
        let Some(pair) = self.cells(settings, &NARROW_CELLS) else {
            return Ok(());
        };
        kind.require(charge_pair_with_room(
            pair.map(MapBucket::<CROWD>),
            self.now,
            price,
        ))
    }

    #[inline(always)]
    fn charge_every_kind(&self, settings: &ServiceSlot) -> Result<(), Reason> {
        // The policy has one kind of budget, and a total.
        if uses!(feature::NARROW) {
            let Some(pair) = self.cells(settings, &NARROW_CELLS) else {
                return Ok(());
            };
            self.charge_cells(settings, pair)
        } else {
            let Some(pair) = self.cells(settings, &CELLS) else {
                return Ok(());
            };
            self.charge_cells(settings, pair)
        }
    }

    /// The source's cell in each row. `None` is unreachable while the slices fit the array; if it happens, the packet
    /// passes.
    #[inline(always)]
    fn cells<T>(&self, settings: &ServiceSlot, cells: &Array<T>) -> Option<[*mut T; 2]> {
        let [first, second] = cell::indices(self.hash, settings.first_cell, settings.cell_mask);
        Some([cells.get_ptr_mut(first)?, cells.get_ptr_mut(second)?])
    }

    /// Written out for each kind: the compiler does not unroll a loop here, which costs twice as much.
    #[inline(always)]
    fn charge_cells(&self, settings: &ServiceSlot, pair: [impl Buckets; 2]) -> Result<(), Reason> {
        self.require_room(BudgetKind::Packets, settings, pair)?;
        self.require_room(BudgetKind::Bytes, settings, pair)?;
        self.require_room(BudgetKind::Connections, settings, pair)?;
        if uses!(feature::TOTALS) {
            self.charge_totals(settings)?;
        }
        self.charge(BudgetKind::Packets, settings, pair)?;
        self.charge(BudgetKind::Bytes, settings, pair)?;
        self.charge(BudgetKind::Connections, settings, pair)
    }

    #[inline(always)]
    fn require_room(
        &self,
        kind: BudgetKind,
        settings: &ServiceSlot,
        pair: [impl Buckets; 2],
    ) -> Result<(), Reason> {
        let Some(price) = self.price(kind, &settings.source, self.times) else {
            return Ok(());
        };
        let [first, second] = pair;
        let pair = [first.bucket::<CROWD>(kind), second.bucket(kind)];
        kind.require(pair_has_room(pair, self.now, price))
    }

    #[inline(always)]
    fn charge(
        &self,
        kind: BudgetKind,
        settings: &ServiceSlot,
        pair: [impl Buckets; 2],
    ) -> Result<(), Reason> {
        let Some(price) = self.price(kind, &settings.source, self.times) else {
            return Ok(());
        };
        let [first, second] = pair;
        let pair = [first.bucket::<CROWD>(kind), second.bucket(kind)];
        kind.require(charge_pair(pair, self.now, price))
    }

    /// Charges the packet to the buckets that all sources share.
    #[inline(always)]
    pub fn charge_totals(&self, settings: &ServiceSlot) -> Result<(), Reason> {
        let Some(total) = TOTALS.get_ptr_mut(self.terms.service.into()) else {
            return Ok(());
        };
        let is_within = self.total_has_room(BudgetKind::Packets, settings, total)
            && self.total_has_room(BudgetKind::Bytes, settings, total)
            && self.total_has_room(BudgetKind::Connections, settings, total)
            && self.charge_total(BudgetKind::Packets, settings, total)
            && self.charge_total(BudgetKind::Bytes, settings, total)
            && self.charge_total(BudgetKind::Connections, settings, total);
        if is_within {
            Ok(())
        } else {
            Err(Reason::TotalLimit)
        }
    }

    #[inline(always)]
    fn total_has_room(&self, kind: BudgetKind, settings: &ServiceSlot, total: *mut Cell) -> bool {
        match self.price(kind, &settings.total, None) {
            Some(price) => has_room(total.bucket::<CROWD>(kind), self.now, price),
            None => true,
        }
    }

    #[inline(always)]
    fn charge_total(&self, kind: BudgetKind, settings: &ServiceSlot, total: *mut Cell) -> bool {
        match self.price(kind, &settings.total, None) {
            Some(price) => charge_one(total.bucket::<CROWD>(kind), self.now, price),
            None => true,
        }
    }

    /// The packet's price at a budget. `None`: the budget is not limited, or does not count this packet.
    ///
    /// Each use computes it again from the table. A price that is kept makes the verifier follow every combination of
    /// limited and unlimited budgets. Verifiers before Linux 6.3 also refuse a copy of an empty `Option`, because half
    /// of it is uninitialised.
    #[inline(always)]
    fn price(&self, kind: BudgetKind, budgets: &GcraBudgets, times: Option<u64>) -> Option<Price> {
        if kind.is_used() {
            self.price_where_used(kind, budgets, times)
        } else {
            None
        }
    }

    /// [`Self::price`] of a kind that the policy uses.
    #[inline(always)]
    fn price_where_used(
        &self,
        kind: BudgetKind,
        budgets: &GcraBudgets,
        times: Option<u64>,
    ) -> Option<Price> {
        if matches!(kind, BudgetKind::Connections) && !self.terms.attempt {
            return None;
        }
        // SAFETY: the pointer comes from a reference.
        let budget = unsafe { read_volatile(kind.budget(budgets)) };
        if !budget.is_limited() {
            return None;
        }
        let Price { cost, burst } = match kind {
            BudgetKind::Bytes => budget.price_of_bytes(self.length),
            BudgetKind::Packets | BudgetKind::Connections => budget.price(),
        };
        let shared = times.and_then(|times| cost.checked_div(times));
        let cost = shared.unwrap_or(cost);
        Some(Price { cost, burst })
    }
}

impl BudgetCharge<true> {
    /// A charge of the account's source at its service.
    #[inline(always)]
    pub fn of_account(account: &Account, now: u64) -> Self {
        let terms = Terms {
            service: account.service(),
            attempt: false,
        };
        Self {
            length: 0,
            now,
            terms,
            hash: account.source().hash(config::hash_key()),
            times: None,
        }
    }

    /// Charges so many packets and bytes to the source's buckets in advance, if each bucket has plenty of room.
    #[inline(always)]
    pub fn prepay(&self, settings: &ServiceSlot, packets: u64, bytes: u64) -> bool {
        let amounts = [(BudgetKind::Packets, packets), (BudgetKind::Bytes, bytes)];
        let mut has_plenty_of_room = true;
        self.for_each_bucket(settings, amounts, |bucket, price| {
            has_plenty_of_room &= has_half_free(bucket, self.now, price);
        });
        if has_plenty_of_room {
            self.for_each_bucket(settings, amounts, |bucket, price| {
                charge_ahead(bucket, self.now, price);
            });
        }
        has_plenty_of_room
    }

    /// Gives so many packets and bytes back to the source's buckets.
    #[inline(always)]
    pub fn give_back(&self, settings: &ServiceSlot, packets: u64, bytes: u64) {
        let amounts = [(BudgetKind::Packets, packets), (BudgetKind::Bytes, bytes)];
        self.for_each_bucket(settings, amounts, |bucket, Price { cost, .. }| {
            bucket.take_off(cost);
        });
    }

    /// Calls `take` with each limited bucket of the source, and the price of the amount there.
    #[inline(always)]
    fn for_each_bucket(
        &self,
        settings: &ServiceSlot,
        amounts: [(BudgetKind, u64); 2],
        take: impl FnMut(MapBucket<true>, Price),
    ) {
        if uses!(feature::NARROW) {
            if let Some(pair) = self.cells(settings, &NARROW_CELLS) {
                for_each_of_source(settings, pair, amounts, take);
            }
        } else if let Some(pair) = self.cells(settings, &CELLS) {
            for_each_of_source(settings, pair, amounts, take);
        }
    }
}

#[inline(always)]
fn for_each_of_source(
    settings: &ServiceSlot,
    [first, second]: [impl Buckets; 2],
    amounts: [(BudgetKind, u64); 2],
    mut take: impl FnMut(MapBucket<true>, Price),
) {
    for (kind, amount) in amounts {
        if let Some(price) = price_of(kind, &settings.source, amount) {
            take(first.bucket(kind), price);
            take(second.bucket(kind), price);
        }
    }
}

/// The price of `amount` packets or bytes; `None`: not limited.
#[inline(always)]
fn price_of(kind: BudgetKind, budgets: &GcraBudgets, amount: u64) -> Option<Price> {
    if !kind.is_used() {
        return None;
    }
    // SAFETY: the pointer comes from a reference.
    let budget = unsafe { read_volatile(kind.budget(budgets)) };
    if !budget.is_limited() {
        return None;
    }
    Some(match kind {
        BudgetKind::Bytes => budget.price_of_bytes(amount),
        BudgetKind::Packets | BudgetKind::Connections => Price {
            cost: budget.cost.wrapping_mul(amount),
            burst: budget.burst,
        },
    })
}

/// A bucket in a value of an array map, which lives as long as the program.
///
/// A crowd's bucket is charged in a global function, and its retry loops are inlined there: one more nested call could
/// exceed the 512 bytes of stack that all nested calls share.
#[derive(Clone, Copy)]
pub struct MapBucket<const CROWD: bool>(pub *mut u64);

impl<const CROWD: bool> Bucket for MapBucket<CROWD> {
    #[inline(always)]
    fn read(self) -> u64 {
        // SAFETY: see the type. An aligned 64-bit load does not tear; `AtomicU64::load` does not link for this target.
        unsafe { read_volatile(self.0) }
    }

    #[inline(always)]
    fn exchange(self, seen: u64, new: u64) -> bool {
        // SAFETY: see the type. SeqCst, because LLVM 22 miscompiles weaker orderings for this target.
        let (found, _) = unsafe {
            atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                self.0, seen, new,
            )
        };
        found == seen
    }

    #[inline(always)]
    fn write(self, new: u64) {
        // SAFETY: see the type. An aligned 64-bit store does not tear.
        unsafe { write_volatile(self.0, new) };
    }

    #[inline(always)]
    fn add(self, amount: u64) {
        // SAFETY: as above. LLVM 22 miscompiles weaker orderings for this target if the result is used.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(self.0, amount) };
    }

    #[inline(always)]
    fn take_off(self, amount: u64) {
        // SAFETY: as above.
        unsafe { atomic_xsub::<u64, u64, { AtomicOrdering::SeqCst }>(self.0, amount) };
    }

    #[inline(always)]
    fn charge_pair_again([first, second]: [Self; 2], now: u64, price: Price) -> bool {
        if CROWD {
            return retry_pair([first, second], now, price);
        }
        guard_charge_pair_again(first.0, second.0, now, price.cost, price.burst) != 0
    }

    #[inline(always)]
    fn charge_one_again(self, now: u64, price: Price) -> bool {
        if CROWD {
            return retry_one(self, now, price);
        }
        guard_charge_one_again(self.0, now, price.cost, price.burst) != 0
    }
}

/// The retry loops, for the case that another CPU has changed a bucket meanwhile. They are global functions, because
/// inlined they were most of the instructions that the verifier followed. Returns 0 only if the packet is over its
/// budget.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_charge_pair_again(
    first: *mut u64,
    second: *mut u64,
    now: u64,
    cost: u64,
    burst: u64,
) -> u32 {
    if first.is_null() || second.is_null() {
        return 1;
    }
    let pair = [MapBucket::<true>(first), MapBucket(second)];
    u32::from(retry_pair(pair, now, Price { cost, burst }))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_charge_one_again(bucket: *mut u64, now: u64, cost: u64, burst: u64) -> u32 {
    if bucket.is_null() {
        return 1;
    }
    u32::from(retry_one(
        MapBucket::<true>(bucket),
        now,
        Price { cost, burst },
    ))
}
