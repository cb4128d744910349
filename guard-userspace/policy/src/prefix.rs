//! Prefixes of addresses.

use ipnet::IpNet;

/// The prefixes that contain this one, the longest first.
pub fn supernets(prefix: IpNet) -> impl Iterator<Item = IpNet> {
    std::iter::successors(prefix.supernet(), IpNet::supernet)
}
