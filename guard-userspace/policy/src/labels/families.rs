//! Splits and joins lists of sources by IP family. The kernel looks up a service by port and address, without the
//! family. A service for every address of one family must therefore admit the same sources of the other family as
//! before.

use guard_common::address::Family;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{Admitted, From};

pub fn other(family: Family) -> Family {
    match family {
        Family::Ipv4 => Family::Ipv6,
        Family::Ipv6 => Family::Ipv4,
    }
}

pub fn name(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "IPv4",
        Family::Ipv6 => "IPv6",
    }
}

/// The sources of one family; `None`: of both families.
pub fn part(from: &From, family: Option<Family>) -> From {
    match (from, family) {
        (From::Admitted(list), Some(family)) => part_of_list(list, family),
        _ => from.clone(),
    }
}

pub fn part_of_list(list: &[Admitted], family: Family) -> From {
    let list = list.iter().copied();
    let list: Vec<Admitted> = list.filter(|one| is_of(one.prefix, family)).collect();
    if list.contains(&everybody(family)) {
        return From::Any;
    }
    From::Admitted(list)
}

/// Admits `from` in one family and `rest` in the other.
pub fn joined(from: &From, family: Family, rest: &From) -> From {
    let rest_family = other(family);
    let parts = [
        (part(from, Some(family)), family),
        (part(rest, Some(rest_family)), rest_family),
    ];
    if parts.iter().all(|(part, _)| *part == From::Any) {
        return From::Any;
    }
    let lists = parts.into_iter().map(|(part, family)| match part {
        From::Any => vec![everybody(family)],
        From::Admitted(list) => list,
    });
    From::Admitted(lists.flatten().collect())
}

fn is_of(prefix: IpNet, family: Family) -> bool {
    match (prefix, family) {
        (IpNet::V4(_), Family::Ipv4) | (IpNet::V6(_), Family::Ipv6) => true,
        (IpNet::V4(_), Family::Ipv6) | (IpNet::V6(_), Family::Ipv4) => false,
    }
}

fn everybody(family: Family) -> Admitted {
    let prefix = match family {
        Family::Ipv4 => Ipv4Net::default().into(),
        Family::Ipv6 => Ipv6Net::default().into(),
    };
    Admitted {
        prefix,
        expires: None,
    }
}
