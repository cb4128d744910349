//! The budgets of a source at a service, kept in one cell of each of two rows, and those that all
//! sources share.

use core::{
    intrinsics::{AtomicOrdering, atomic_cxchg},
    ptr::read_volatile,
};

use guard_common::{
    address::{Address, Family},
    bucket::{Bucket, charge_one, charge_pair, has_room, pair_has_room},
    cell::{self, Cell, Share},
    gcra::Price,
    layout::{Budgets, Relief, Service, feature},
    packet::{Packet, Transport},
    reason::Reason,
};

use crate::{
    clock::Clock,
    config,
    maps::{CELLS, TOTALS},
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
    let bill = Bill {
        service,
        length,
        attempt: matches!(packet.transport, Transport::Tcp { attempt: true, .. }),
        now: C::now(),
        family: packet.family,
        prefix: packet.source.masked(source_mask(packet.family, settings)),
    };
    let Err(over) = bill.pay(settings, Share::Base, 1) else {
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
            match bill.pay(settings, Share::Crowd, u64::from(factor - 1)) {
                Ok(()) => reason,
                Err(over) => over,
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

/// One packet, as its budgets see it.
struct Bill {
    service: u16,
    length: u64,
    attempt: bool,
    now: u64,
    family: Family,
    prefix: Address,
}

/// What the packet costs at each budget; `None`: not limited, or not concerned.
struct Prices {
    packets: Option<Price>,
    bytes: Option<Price>,
    connections: Option<Price>,
}

impl Bill {
    /// Charges the packet to buckets of its source, into which `times` its budgets fit, and to those
    /// of all sources; to none of them if it is over any.
    #[inline(always)]
    fn pay(&self, settings: &Service, share: Share, times: u64) -> Result<(), Reason> {
        let prices = self.prices(&settings.source, times);
        let hash = cell::hash(config::hash_key(), share, self.family, self.prefix);
        let [first, second] = cell::indices(hash, settings.first_cell, settings.cell_mask);
        let (Some(first), Some(second)) = (CELLS.get_ptr_mut(first), CELLS.get_ptr_mut(second))
        else {
            // Unreachable while the slices fit the array; a guard that is unsure lets through.
            return Ok(());
        };
        let buckets = [
            (
                prices.packets,
                [packets_of(first), packets_of(second)],
                Reason::PacketLimit,
            ),
            (
                prices.bytes,
                [bytes_of(first), bytes_of(second)],
                Reason::ByteLimit,
            ),
            (
                prices.connections,
                [connections_of(first), connections_of(second)],
                Reason::ConnectionLimit,
            ),
        ];
        for (price, pair, over) in &buckets {
            if let Some(price) = price
                && !pair_has_room(*pair, self.now, *price)
            {
                return Err(*over);
            }
        }
        if config::uses(feature::TOTALS) {
            self.pay_totals(settings)?;
        }
        for (price, pair, over) in &buckets {
            if let Some(price) = price
                && !charge_pair(*pair, self.now, *price)
            {
                return Err(*over);
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn pay_totals(&self, settings: &Service) -> Result<(), Reason> {
        let prices = self.prices(&settings.total, 1);
        let Some(total) = TOTALS.get_ptr_mut(u32::from(self.service)) else {
            return Ok(());
        };
        let buckets = [
            (prices.packets, packets_of(total)),
            (prices.bytes, bytes_of(total)),
            (prices.connections, connections_of(total)),
        ];
        for (price, bucket) in &buckets {
            if let Some(price) = price
                && !has_room(*bucket, self.now, *price)
            {
                return Err(Reason::TotalLimit);
            }
        }
        for (price, bucket) in &buckets {
            if let Some(price) = price
                && !charge_one(*bucket, self.now, *price)
            {
                return Err(Reason::TotalLimit);
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn prices(&self, budgets: &Budgets, times: u64) -> Prices {
        let Budgets {
            packets,
            bytes,
            connections,
        } = budgets;
        let shared = |price: Price| Price {
            cost: price.cost.checked_div(times).unwrap_or(price.cost),
            burst: price.burst,
        };
        Prices {
            packets: (config::uses(feature::PACKETS) && packets.is_limited())
                .then(|| shared(packets.price())),
            bytes: (config::uses(feature::BYTES) && bytes.is_limited())
                .then(|| shared(bytes.price_of_bytes(self.length))),
            connections: (config::uses(feature::CONNECTIONS)
                && self.attempt
                && connections.is_limited())
            .then(|| shared(connections.price())),
        }
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

fn packets_of(cell: *mut Cell) -> MapBucket {
    // SAFETY: the pointer is to a value of an array map.
    MapBucket(unsafe { &raw mut (*cell).packets })
}

fn bytes_of(cell: *mut Cell) -> MapBucket {
    // SAFETY: as above.
    MapBucket(unsafe { &raw mut (*cell).bytes })
}

fn connections_of(cell: *mut Cell) -> MapBucket {
    // SAFETY: as above.
    MapBucket(unsafe { &raw mut (*cell).connections })
}
