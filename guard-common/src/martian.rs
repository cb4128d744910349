//! Addresses that must not appear on a wire ("martians", RFC 1812, section 5.3.7).
//!
//! Linux drops most packets with such addresses, with three exceptions: DNAT rewrites the destination before the
//! routing lookup (Docker, for a port published on 127.0.0.1), `net.ipv4.conf.*.route_localnet` is 1, and IPv4-mapped
//! addresses.

use crate::{
    address::{Address, Family},
    layout::{PortProtocol, port_index},
    packet::{DHCP, PacketClass, Transport},
    spread::spread,
};

const LOOPBACK_V4: u32 = 127;
const MULTICAST_V4: u32 = 0xe;
const LIMITED_BROADCAST: u32 = u32::MAX;
const LOOPBACK_V6: Address = Address { high: 0, low: 1 };
const MAPPED: u64 = 0xffff;
const MULTICAST_V6: u64 = 0xff;

/// Whether one of the addresses is martian:
///
/// - loopback, 127.0.0.0/8 and ::1, as source or destination (RFC 1122, section 3.2.1.3; RFC 4291, section 2.5.3);
/// - an IPv4-mapped IPv6 address, as source or destination: it stands for an IPv4 address inside a host (RFC 4291,
///   section 2.5.5.2);
/// - a multicast or broadcast source (RFC 1122, section 3.2.1.3; RFC 4291, section 2.7);
/// - the source 0.0.0.0, which stands for a host that has no address yet (RFC 1122, section 3.2.1.3). Two kinds of
///   packets may have it: a DHCP client's request for an address (RFC 2131, section 4.1), and IGMP, because switches
///   send queries and reports from it (RFC 4541, section 2.1.1). The source :: passes: duplicate address detection and
///   MLD use it (RFC 4862, section 5.4.2; RFC 3590).
///
/// `may_have_no_source`: the result of [`may_have_no_source`].
#[inline(always)]
pub fn is_martian(
    family: Family,
    source: Address,
    destination: Address,
    may_have_no_source: bool,
) -> bool {
    match family {
        Family::Ipv4 => {
            let (source, destination) = (source.low as u32, destination.low as u32);
            source >> 24 == LOOPBACK_V4
                || destination >> 24 == LOOPBACK_V4
                || source >> 28 == MULTICAST_V4
                || source == LIMITED_BROADCAST
                || source == 0 && !may_have_no_source
        }
        Family::Ipv6 => {
            is_inside_a_host(source)
                || is_inside_a_host(destination)
                || source.high >> 56 == MULTICAST_V6
        }
    }
}

/// ::1 and ::ffff:0:0/96.
#[inline(always)]
fn is_inside_a_host(address: Address) -> bool {
    address.high == 0 && (address.low >> 32 == MAPPED || address.low == LOOPBACK_V6.low)
}

/// Whether a packet of this kind may have the source 0.0.0.0: a DHCP client's packet, or IGMP.
#[inline(always)]
pub fn may_have_no_source(transport: Transport) -> bool {
    let (server, client) = DHCP;
    let is_dhcp_request = transport.place() == port_index(PortProtocol::Udp, server)
        && transport.source_port() == client;
    // Over IPv4, only IGMP has the class `CONTROL`.
    is_dhcp_request || transport.has(PacketClass::CONTROL)
}

/// The words of 64 bits in the bitmap of this host's own addresses. Each address sets the bit of [`own_bit`].
pub const OWN_WORDS: u32 = 1 << 4;

/// The bit of an address. `bytes`: the address as a packet has it, the four bytes of IPv4, or both words of IPv6 joined
/// by [`fold`].
#[inline(always)]
pub const fn own_bit(bytes: u64) -> u32 {
    (spread(bytes) >> 54) as u32
}

const _: () = assert!(OWN_WORDS * u64::BITS == 1 << 10);

/// Folds both words of an IPv6 address into one.
#[inline(always)]
pub const fn fold(high: u64, low: u64) -> u64 {
    high ^ low.rotate_left(32)
}

impl Address {
    /// The address as [`own_bit`] takes it.
    #[inline(always)]
    pub const fn bytes(self, family: Family) -> u64 {
        match family {
            Family::Ipv4 => (self.low as u32).to_be() as u64,
            Family::Ipv6 => fold(self.high.to_be(), self.low.to_be()),
        }
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use crate::packet::{IpFields, IpHeader, Packet, WireIpHeader};

    fn read(address: &str) -> (Family, Address) {
        match address.parse().unwrap() {
            IpAddr::V4(address) => (Family::Ipv4, Address::from_ipv4(address.to_bits())),
            IpAddr::V6(address) => {
                let bits = address.to_bits();
                let (high, low) = ((bits >> 64) as u64, bits as u64);
                (Family::Ipv6, Address { high, low })
            }
        }
    }

    fn ip(source: &str, destination: &str) -> (IpFields, WireIpHeader) {
        let (family, source) = read(source);
        let (_, destination) = read(destination);
        let wire = match family {
            Family::Ipv4 => WireIpHeader::ipv4((source.low << 32 | destination.low).to_be()),
            Family::Ipv6 => WireIpHeader::ipv6(
                [source.high, source.low, destination.high, destination.low].map(u64::to_be),
            ),
        };
        (wire.read(), wire)
    }

    fn judge_packet(Packet { ip, transport }: &Packet<IpFields>) -> bool {
        let may_have_no_source = may_have_no_source(*transport);
        is_martian(ip.family, ip.source, ip.destination, may_have_no_source)
    }

    /// Whether a TCP segment with these addresses is martian.
    fn judge(source: &str, destination: &str) -> bool {
        let (ip, wire) = ip(source, destination);
        let judged = judge_packet(&Packet::tcp(ip, 80, 0x02));
        // The quick test may match other addresses, but it never misses a martian.
        assert!(
            !judged || wire.martian_signs() != 0,
            "{source} {destination}"
        );
        assert_eq!(ip.martian_signs(), wire.martian_signs());
        judged
    }

    #[test]
    fn loopback_mapped_and_multicast_addresses_are_martian_and_their_neighbours_are_not() {
        let (v4, v6) = ("203.0.113.10", "2001:db8::10");
        for source in [
            "127.0.0.0",
            "127.255.255.255",
            "224.0.0.0",
            "239.255.255.255",
        ]
        .into_iter()
        .chain(["255.255.255.255", "0.0.0.0"])
        {
            assert!(judge(source, v4), "{source}");
        }
        for destination in ["127.0.0.1", "127.255.255.255"] {
            assert!(judge("198.51.100.7", destination), "{destination}");
        }
        for source in [
            "126.255.255.255",
            "128.0.0.0",
            "223.255.255.255",
            "240.0.0.0",
        ]
        .into_iter()
        .chain(["255.255.255.254", "0.0.0.1", "1.0.0.0", "198.51.100.7"])
        {
            assert!(!judge(source, v4), "{source}");
        }
        for destination in ["126.0.0.1", "128.0.0.1", "224.0.0.18", "255.255.255.255"] {
            assert!(!judge("198.51.100.7", destination), "{destination}");
        }
        for address in [
            "::1",
            "::ffff:0.0.0.0",
            "::ffff:203.0.113.10",
            "::ffff:255.255.255.255",
        ] {
            assert!(judge(address, v6) && judge(v6, address), "{address}");
        }
        for source in ["ff00::", "ff02::1", "ffff:ffff::1"] {
            assert!(judge(source, v6), "{source}");
        }
        assert!(!judge(v6, "ff02::12"));
        for address in [
            "::",
            "::2",
            "::fffe:203.0.113.10",
            "::1:0:0:1",
            "fe80::1",
            "fe00::1",
        ]
        .into_iter()
        .chain(["::203.0.113.10", "64:ff9b::203.0.113.10"])
        {
            assert!(!judge(address, v6) && !judge(v6, address), "{address}");
        }
    }

    #[test]
    fn hardly_any_other_address_looks_martian() {
        let signs = |first, other| {
            ip(&format!("{first}.0.0.1"), &format!("{other}.0.0.1"))
                .1
                .martian_signs()
        };
        for first in 1..224 {
            for other in 0..=255 {
                let expected = first == 127 || other == 127;
                assert_eq!(signs(first, other) != 0, expected, "{first} {other}");
            }
        }
        for address in ["2001:db8::1", "fe80::1", "fd00::1", "64:ff9b::1", "100::"] {
            assert_eq!(ip(address, address).1.martian_signs(), 0, "{address}");
            assert_eq!(ip(address, "ff02::1").1.martian_signs(), 0, "{address}");
        }
    }

    #[test]
    fn dhcp_requests_and_igmp_may_have_no_source() {
        let (unspecified, _) = ip("0.0.0.0", "255.255.255.255");
        let judge = |packet| judge_packet(&packet);
        assert!(!judge(Packet::udp(unspecified, 68, 67)));
        for (source_port, port) in [(67, 68), (68, 68), (67, 67), (68, 53)] {
            assert!(judge(Packet::udp(unspecified, source_port, port)));
        }
        let (query, _) = ip("0.0.0.0", "224.0.0.1");
        assert!(!judge(Packet::igmp(query, true)));
        assert!(judge(Packet::igmp(query, false)));
        assert!(judge(Packet::later_fragment(query)));
    }

    #[test]
    fn an_address_has_the_same_bit_in_a_packet_and_in_the_table() {
        for address in [
            "203.0.113.10",
            "255.255.255.255",
            "2001:db8::10",
            "fe80::1:2:3",
        ] {
            let (family, read) = read(address);
            let (_, wire) = ip(address, address);
            assert_eq!(read.bytes(family), wire.source_bytes(), "{address}");
            assert!(own_bit(read.bytes(family)) < OWN_WORDS * u64::BITS);
        }
    }
}
