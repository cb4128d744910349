//! Tests how far away an address can be reached.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

/// Whether an address can be reached only in its own network (RFC 1918, 3927, 4193, 4291, 6598), or is multicast.
pub fn is_of_network(address: IpAddr) -> bool {
    const SHARED: IpNet = IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(100, 64, 0, 0)), 10);
    let is_private = match address {
        IpAddr::V4(address) => address.is_private(),
        IpAddr::V6(address) => address.is_unique_local(),
    };
    is_private || is_link_local(address) || address.is_multicast() || SHARED.contains(&address)
}

/// Whether an address is link-local (169.254.0.0/16, fe80::/10).
pub fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
