//! Finds the interface over which a session comes in. Only packets over a guarded interface are judged, not those from
//! a container's bridge or a VPN.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use super::{Cut, Lockout};
use crate::{
    host::{Host, Link, Netlink},
    policy::Policy,
};

/// This host's interfaces, and the guarded ones among them.
pub struct Arrivals {
    links: BTreeMap<u32, Link>,
    /// `None`: not all guarded interfaces exist now, so every interface counts as guarded.
    guarded: Option<BTreeSet<u32>>,
}

impl Arrivals {
    /// `None`: this host's interfaces are not known.
    pub fn new(policy: &Policy, host: &Host) -> Option<Self> {
        let links = host.links.known()?.clone();
        let guarded = match &policy.interfaces {
            Some(named) => {
                let links = named.iter().map(|one| host.link_named(&one.name));
                links.map(|link| Some(link?.index)).collect()
            }
            None => host.default_route_links(),
        };
        Some(Self {
            guarded: guarded.filter(|guarded: &BTreeSet<u32>| !guarded.is_empty()),
            links,
        })
    }

    /// Removes the sessions that do not come in over a guarded interface.
    ///
    /// The interface is that of the route to the peer: a session is assumed to come in where its answers go out. A
    /// session without a route counts as guarded.
    pub async fn retain_guarded(&self, lockout: &mut Lockout, netlink: &Netlink) {
        let mut known = HashMap::new();
        let mut kept = Vec::with_capacity(lockout.cut.len());
        for cut in lockout.cut.drain(..) {
            if self.is_guarded(&cut, &mut known, netlink).await {
                kept.push(cut);
            }
        }
        lockout.cut = kept;
        if let Some(cut) = &lockout.operator
            && !self.is_guarded(cut, &mut known, netlink).await
        {
            lockout.operator = None;
        }
    }

    async fn is_guarded(
        &self,
        cut: &Cut,
        known: &mut HashMap<(IpAddr, IpAddr), bool>,
        netlink: &Netlink,
    ) -> bool {
        let key = (cut.local.ip(), cut.peer.ip());
        if let Some(known) = known.get(&key) {
            return *known;
        }
        let (local, peer) = key;
        let way = netlink.interface_towards(local, peer).await;
        let is_guarded = match way {
            Ok(Some(index)) => self.leads_to_guarded(index),
            Ok(None) | Err(_) => true,
        };
        known.insert(key, is_guarded);
        is_guarded
    }

    /// Whether packets that come in over this interface have crossed a guarded interface: itself, its lower interface,
    /// or one of its ports if it is a bridge or a bond.
    pub fn leads_to_guarded(&self, index: u32) -> bool {
        let Some(guarded) = &self.guarded else {
            return true;
        };
        let mut seen = BTreeSet::new();
        let mut next = vec![index];
        while let Some(index) = next.pop() {
            if guarded.contains(&index) {
                return true;
            }
            if !seen.insert(index) {
                continue;
            }
            let links = self.links.values();
            next.extend(links.filter_map(|link| {
                let is_port = link.controller == Some(index);
                let is_itself = link.index == index;
                is_port
                    .then_some(link.index)
                    .or(link.lower.filter(|_| is_itself))
            }));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vlan_and_a_bridge_lead_to_their_lower_interfaces_and_a_vpn_does_not() {
        let link = |index, lower, controller| Link {
            lower,
            controller,
            ..Link::ethernet(index, format!("link{index}"))
        };
        let mut arrivals = Arrivals {
            links: [
                link(1, None, None),
                link(2, None, Some(4)),
                // A VLAN of 2, a bridge with port 2, and a VLAN of the bridge.
                link(3, Some(2), None),
                link(4, None, None),
                link(5, Some(4), None),
                // WireGuard, and a container's bridge with its port.
                link(6, None, None),
                link(7, None, None),
                link(8, None, Some(7)),
                // Two interfaces, each of which is the lower interface of the other.
                link(9, Some(10), None),
                link(10, Some(9), None),
            ]
            .map(|link| (link.index, link))
            .into(),
            guarded: Some(BTreeSet::from([2])),
        };
        let leads: Vec<u32> = (1..12).filter(|n| arrivals.leads_to_guarded(*n)).collect();
        assert_eq!(leads, [2, 3, 4, 5]);
        arrivals.guarded = None;
        assert!(arrivals.leads_to_guarded(6), "every interface counts");
    }
}
