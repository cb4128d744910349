//! Prefixes of addresses.

use ipnet::IpNet;

/// The prefixes that this one lies in, the narrowest first.
pub fn supernets(prefix: IpNet) -> impl Iterator<Item = IpNet> {
    std::iter::successors(prefix.supernet(), IpNet::supernet)
}
