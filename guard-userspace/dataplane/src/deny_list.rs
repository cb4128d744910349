//! The list of denied IPv4 addresses, if there are many. It is built when a generation is loaded, and a lookup costs
//! one memory access. Hash maps have the addresses with an end, and those that find no room in the list.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use aya::{Ebpf, maps::Array};
use guard_common::{
    deny_list::{DenyLine, DenyPlace, line_bits},
    layout::{self, Expiry, live},
};
use guard_policy::is_single;
use ipnet::IpNet;

use super::{LoadError, batch, maps::map_mut};

/// The fewest addresses for which a list is built. It takes at least 4 MiB.
const MANY: usize = 1 << 12;

/// Which of a generation's denied addresses are in its list, and which in its hashes.
pub struct DenyList {
    /// 0: there is no list.
    line_bits: u32,
    /// The addresses that found no room in their lines.
    elsewhere: BTreeSet<Ipv4Addr>,
    /// Every source is looked up in the hashes: they have other entries than `elsewhere`, or the list was changed.
    needs_hashes: bool,
}

impl DenyList {
    /// The list for a new generation, and its lines; no lines if there are few addresses.
    pub fn of(denied: &BTreeMap<IpNet, Expiry>) -> (Self, Vec<DenyLine>) {
        let singles = denied.keys().filter(|prefix| is_single(prefix)).count();
        let listed = || {
            denied
                .iter()
                .filter_map(|(prefix, expiry)| may_be_listed(prefix, *expiry))
        };
        let count = listed().count();
        if count < MANY {
            let none = Self {
                line_bits: 0,
                elsewhere: BTreeSet::new(),
                needs_hashes: true,
            };
            return (none, Vec::new());
        }
        let line_bits = line_bits(u32::try_from(count).unwrap_or(u32::MAX));
        let mut lines = vec![DenyLine::default(); 1 << line_bits];
        let elsewhere = listed().filter(|address| {
            let DenyPlace { line, tag } = DenyPlace::of(address.to_bits(), line_bits);
            let line = lines.get_mut(line as usize);
            !line.is_some_and(|line| line.add(tag))
        });
        let list = Self {
            line_bits,
            elsewhere: elsewhere.collect(),
            needs_hashes: singles > count,
        };
        (list, lines)
    }

    pub fn line_bits(&self) -> u32 {
        self.line_bits
    }

    /// The number of lines of the kernel's table.
    pub fn size(&self) -> u32 {
        1 << self.line_bits
    }

    pub fn fill(&self, ebpf: &mut Ebpf, lines: &[DenyLine]) -> Result<(), LoadError> {
        let used = (0..).zip(lines);
        let used = used.filter(|(_, line)| **line != DenyLine::default());
        let (places, lines): (Vec<u32>, Vec<DenyLine>) = used.unzip();
        batch::insert(map_mut(ebpf, layout::DENIED_LINES)?, &places, &lines)
    }

    /// Whether an address of the new generation is in the list, and so in no hash.
    pub fn has(&self, prefix: &IpNet, expiry: Expiry) -> bool {
        self.line_bits != 0
            && may_be_listed(prefix, expiry).is_some_and(|one| !self.elsewhere.contains(&one))
    }

    /// Makes the program look up every source in the hashes from now on, because they may get entries that no full line
    /// announces.
    pub fn look_up_hashes(&mut self) {
        self.needs_hashes = true;
    }

    /// Adds an address to the list of a running generation. Returns `false` if it belongs into a hash: it has an end,
    /// or its line has no room.
    pub fn add(&self, ebpf: &mut Ebpf, prefix: &IpNet, expiry: Expiry) -> Result<bool, LoadError> {
        match may_be_listed(prefix, expiry) {
            Some(address) => self.change(ebpf, address, DenyLine::add),
            None => Ok(false),
        }
    }

    /// Removes an address from the list. Call [`Self::look_up_hashes`] before.
    pub fn remove(&self, ebpf: &mut Ebpf, address: Ipv4Addr) -> Result<(), LoadError> {
        self.change(ebpf, address, DenyLine::remove).map(drop)
    }

    /// Applies `change` to the line and the tag of an address, and returns its result.
    fn change(
        &self,
        ebpf: &mut Ebpf,
        address: Ipv4Addr,
        change: fn(&mut DenyLine, u16) -> bool,
    ) -> Result<bool, LoadError> {
        if self.line_bits == 0 {
            return Ok(false);
        }
        let mut lines = Array::<_, DenyLine>::try_from(map_mut(ebpf, layout::DENIED_LINES)?)?;
        let DenyPlace { line: place, tag } = DenyPlace::of(address.to_bits(), self.line_bits);
        let before = lines.get(&place, 0)?;
        let mut line = before;
        let answer = change(&mut line, tag);
        if line != before {
            lines.set(place, before.intermediate(&line), 0)?;
            lines.set(place, line, 0)?;
        }
        Ok(answer)
    }

    /// The flags of [`live`] for the program: without [`live::DENIED`] if only full lines need the hashes.
    pub fn flags(&self, live: u32) -> u32 {
        if self.needs_hashes {
            live
        } else {
            live & !live::DENIED
        }
    }
}

/// The IPv4 address of a prefix that may be in the list: a single one, denied without an end.
fn may_be_listed(prefix: &IpNet, expiry: Expiry) -> Option<Ipv4Addr> {
    match prefix {
        IpNet::V4(v4) if is_single(prefix) && expiry == Expiry::NEVER => Some(v4.addr()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn denied(count: u32) -> BTreeMap<IpNet, Expiry> {
        let addresses = (0..count).map(|n| IpNet::from(IpAddr::from(Ipv4Addr::from(n << 8))));
        addresses.map(|prefix| (prefix, Expiry::NEVER)).collect()
    }

    fn prefix(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_few_addresses_are_in_the_hash_and_many_in_a_list() {
        let many = u32::try_from(MANY).unwrap();
        let (few, lines) = DenyList::of(&denied(many - 1));
        assert_eq!((few.line_bits(), few.size(), lines.len()), (0, 1, 0));
        assert!(!few.has(&prefix("0.0.1.0/32"), Expiry::NEVER));
        assert_eq!(few.flags(live::DENIED), live::DENIED);
        let (list, lines) = DenyList::of(&denied(many));
        assert_eq!((lines.len(), list.size()), (1 << 17, 1 << 17));
        assert!(list.has(&prefix("0.0.1.0/32"), Expiry::NEVER));
        // The flag of the hashes is cleared, and the other flags stay.
        assert_eq!(list.flags(live::DENIED | live::ALLOWED), live::ALLOWED);
    }

    #[test]
    fn only_single_ipv4_addresses_without_an_end_are_in_the_list() {
        let mut denied = denied(u32::try_from(MANY).unwrap());
        let others = [
            (prefix("192.0.2.1/32"), Expiry(1 << 60)),
            (prefix("2001:db8::1/128"), Expiry::NEVER),
            (prefix("198.51.100.0/24"), Expiry::NEVER),
        ];
        denied.extend(others);
        let (list, lines) = DenyList::of(&denied);
        for (prefix, expiry) in others {
            assert!(!list.has(&prefix, expiry), "{prefix}");
        }
        let DenyPlace { line, tag } = DenyPlace::of(0xc000_0201, list.line_bits());
        assert!(!lines[line as usize].has(tag));
        assert_eq!(list.flags(live::DENIED), live::DENIED);
    }

    #[test]
    fn after_a_change_of_the_list_the_hashes_are_looked_up() {
        let (mut list, _) = DenyList::of(&denied(u32::try_from(MANY).unwrap()));
        list.look_up_hashes();
        assert_eq!(list.flags(live::DENIED), live::DENIED);
        assert_eq!(list.flags(0), 0);
    }
}
