//! Finds packets with martian addresses ([`guard_common::martian`]), and packets whose source is an address of this
//! host.

use guard_common::{
    address::{Address, Family},
    layout::OwnSource,
    martian::{is_martian, may_have_no_source, own_bit},
    packet::{IpHeader, Packet},
};

use crate::{
    maps::{OWN, OWN_BITS},
    path::PathKind,
};

/// The verdict on a packet's addresses.
#[derive(Clone, Copy)]
pub struct AddressVerdict(u32);

impl AddressVerdict {
    const NOTHING: Self = Self(0);
    const MARTIAN: u32 = 1 << 0;
    const OWN_SOURCE: u32 = 1 << 1;

    /// Whether one of the addresses is martian.
    #[inline(always)]
    pub const fn is_martian(self) -> bool {
        self.0 & Self::MARTIAN != 0
    }

    /// Whether the source is an address of this host (a "LAND" packet).
    #[inline(always)]
    pub const fn is_own_source(self) -> bool {
        self.0 & Self::OWN_SOURCE != 0
    }
}

/// The fast path defers every packet that may be martian, or whose source may be an address of this host.
#[inline(always)]
pub fn judge_addresses<P: PathKind>(
    packet: &Packet<impl IpHeader>,
) -> Result<AddressVerdict, P::Deferred> {
    let Packet { ip, transport } = packet;
    if P::IS_FAST {
        if ip.martian_signs() | own_sign(ip.source_bytes()) != 0 {
            P::defer()?;
        }
        return Ok(AddressVerdict::NOTHING);
    }
    let (source, destination) = (ip.source(), ip.destination());
    let family = ip.family() as u64 | u64::from(may_have_no_source(*transport)) << NO_SOURCE;
    Ok(AddressVerdict(guard_judge_addresses(
        source.high,
        source.low,
        destination.high,
        destination.low,
        family,
    )))
}

/// The bit above the family that is set if the packet may have the source 0.0.0.0.
const NO_SOURCE: u32 = 32;

/// A global function: the verifier checks it once (Linux 5.6). It is called for every packet, because a call behind a
/// branch makes the verifier check the rest of the program twice.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_judge_addresses(
    source_high: u64,
    source_low: u64,
    destination_high: u64,
    destination_low: u64,
    family: u64,
) -> u32 {
    let address = |high, low| Address { high, low };
    let (source, destination) = (
        address(source_high, source_low),
        address(destination_high, destination_low),
    );
    let may_have_no_source = family >> NO_SOURCE != 0;
    let family = Family::from_number(family as u32);
    if is_martian(family, source, destination, may_have_no_source) {
        AddressVerdict::MARTIAN
    } else if own_sign(source.bytes(family)) != 0 && is_own(family, source) {
        AddressVerdict::OWN_SOURCE
    } else {
        AddressVerdict::NOTHING.0
    }
}

#[inline(always)]
fn is_own(family: Family, address: Address) -> bool {
    let key = OwnSource {
        address,
        family: family as u64,
    };
    // SAFETY: the value is not read.
    unsafe { OWN.get(key) }.is_some()
}

/// 0: the source is no address of this host. Other values: look it up. `bytes`: as [`own_bit`] takes them.
#[inline(always)]
fn own_sign(bytes: u64) -> u64 {
    let bit = own_bit(bytes);
    let word = OWN_BITS.get((bit / u64::BITS) as usize);
    word >> (bit % u64::BITS) & 1
}
