//! Addresses as two machine words, for masking and hashing with integer arithmetic.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The IP version of a packet.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    Ipv4 = 4,
    Ipv6 = 6,
}

impl Family {
    /// The family with this number. Global functions of the kernel program take only integers.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        if number == Self::Ipv4 as u32 {
            Self::Ipv4
        } else {
            Self::Ipv6
        }
    }
}

/// An IPv4 or IPv6 address in host byte order. IPv4 has the lower 32 bits. The [`Family`] is stored beside it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    pub high: u64,
    pub low: u64,
}

impl Address {
    /// An IPv4 address in host byte order.
    #[inline(always)]
    pub const fn from_ipv4(address: u32) -> Self {
        Self {
            high: 0,
            low: address as u64,
        }
    }

    /// The address cut to a prefix.
    #[inline(always)]
    pub const fn masked(self, mask: Self) -> Self {
        Self {
            high: self.high & mask.high,
            low: self.low & mask.low,
        }
    }

    /// The mask of an IPv4 prefix of `length` bits (0 to 32).
    pub const fn ipv4_mask(length: u8) -> Self {
        Self::from_ipv4(leading_ones(length as u32, 32) as u32)
    }

    /// The mask of an IPv6 prefix of `length` bits (0 to 128).
    pub const fn ipv6_mask(length: u8) -> Self {
        let length = length as u32;
        Self {
            high: leading_ones(length, 64),
            low: leading_ones(length.saturating_sub(64), 64),
        }
    }

    /// The address as the standard library's type.
    pub const fn to_ip(self, family: Family) -> IpAddr {
        match family {
            Family::Ipv4 => IpAddr::V4(Ipv4Addr::from_bits(self.low as u32)),
            Family::Ipv6 => IpAddr::V6(Ipv6Addr::from_bits(
                (self.high as u128) << 64 | self.low as u128,
            )),
        }
    }
}

/// A word of `width` bits (at most 64) whose first `length` bits are set.
const fn leading_ones(length: u32, width: u32) -> u64 {
    let length = if length > width { width } else { length };
    if length == 0 {
        return 0;
    }
    let all = u64::MAX >> (64 - width);
    all & (all << (width - length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_keep_exactly_the_prefix() {
        assert_eq!(Address::ipv4_mask(0).low, 0);
        assert_eq!(Address::ipv4_mask(24).low, 0xffff_ff00);
        assert_eq!(Address::ipv4_mask(32).low, 0xffff_ffff);
        let mask = |length| {
            let Address { high, low } = Address::ipv6_mask(length);
            (high, low)
        };
        assert_eq!(mask(0), (0, 0));
        assert_eq!(mask(1), (1 << 63, 0));
        assert_eq!(mask(64), (u64::MAX, 0));
        assert_eq!(mask(65), (u64::MAX, 1 << 63));
        assert_eq!(mask(128), (u64::MAX, u64::MAX));
    }

    #[test]
    fn an_address_survives_the_round_trip() {
        let address = Address {
            high: 0x2001_0db8_0000_0001,
            low: 0x0000_0000_0000_0023,
        };
        assert_eq!(
            address.to_ip(Family::Ipv6),
            "2001:db8:0:1::23".parse::<IpAddr>().unwrap()
        );
        assert_eq!(
            Address::from_ipv4(0xc633_6417).to_ip(Family::Ipv4),
            "198.51.100.23".parse::<IpAddr>().unwrap()
        );
    }
}
