//! Which interfaces are guarded.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    agent::{Loaded, Wanted},
    host::{Host, Link},
    policy::Policy,
};

/// An interface that shall carry the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub index: u32,
    /// Its name at this moment.
    pub name: String,
    /// Indices of devices above it. The kernel takes a program on an interface only while none of these has one
    /// (`dev_xdp_attach` in net/core/dev.c).
    pub above: BTreeSet<u32>,
}

/// An interface that the policy chooses and that cannot be guarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub name: String,
    pub why: String,
}

/// What the policy's choice of interfaces comes to on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Those that carry others come first.
    pub targets: Vec<Target>,
    pub troubles: Vec<Trouble>,
    pub warnings: Vec<String>,
    /// The policy cannot be put in force on this host at all.
    pub refusal: Option<String>,
}

pub fn choose(host: &Host, wanted: &Wanted) -> Chosen {
    let mut chosen = Chosen::default();
    let mut links: BTreeMap<u32, &Link> = BTreeMap::new();
    if host.links.last.is_none() {
        let why = host.links.error.as_deref().unwrap_or("not read yet");
        chosen.refusal = Some(format!("this host's interfaces cannot be read: {why}"));
        return chosen;
    }
    match &wanted.loaded.policy.interfaces {
        Some(named) => {
            for interface in named {
                let found = host.link_named(&interface.name);
                match found.or_else(|| renamed(host, wanted, &interface.name)) {
                    Some(link) if link.is_loopback() => {
                        chosen.refusal.get_or_insert_with(|| {
                            format!(
                                "{}{}: {} carries what this host sends to itself, and nothing that comes from \
                                 outside: leave it out",
                                wanted.loaded.path.display(),
                                line_of(&wanted.loaded, &interface.name),
                                interface.name
                            )
                        });
                    }
                    Some(link) if !link.is_ethernet() => {
                        chosen.refusal.get_or_insert_with(|| {
                            format!(
                                "{}{}: {} is no Ethernet interface, and the program would not understand \
                                 its frames: tun, wg, ppp and the like are not supported, nor does guarding \
                                 the interface below them look inside",
                                wanted.loaded.path.display(),
                                line_of(&wanted.loaded, &interface.name),
                                interface.name
                            )
                        });
                    }
                    Some(link) => {
                        if link.name != interface.name {
                            chosen.warnings.push(format!(
                                "the policy names {}, which is called {} now: it stays guarded; write the new name",
                                interface.name, link.name
                            ));
                        }
                        links.insert(link.index, link);
                    }
                    None => chosen.troubles.push(Trouble {
                        name: interface.name.clone(),
                        why: "it does not exist".to_owned(),
                    }),
                }
            }
        }
        None => {
            let routed = host.default_route_links().unwrap_or_default();
            for link in routed.into_iter().filter_map(|index| host.link(index)) {
                if link.is_ethernet() {
                    links.insert(link.index, link);
                } else {
                    chosen.warnings.push(format!(
                        "a default route leads to {}, which is no Ethernet interface and is not guarded",
                        link.name
                    ));
                }
            }
            if let Some(error) = &host.routes.error {
                chosen
                    .warnings
                    .push(format!("the default routes cannot be read: {error}"));
            }
        }
    }
    if wanted.keeps_guarded {
        let guarded = wanted.guarded.values();
        links.extend(guarded.filter_map(|index| Some((*index, host.link(*index)?))));
    }
    if links.is_empty() && chosen.refusal.is_none() {
        chosen.refusal = Some(nothing_to_guard(&chosen, wanted));
    }
    chosen.targets = ordered(host, &links);
    chosen
}

/// The interfaces that a policy chooses, as far as they are there.
pub fn chosen_by(host: &Host, policy: &Policy) -> BTreeSet<u32> {
    match &policy.interfaces {
        Some(named) => {
            let links = named.iter().filter_map(|one| host.link_named(&one.name));
            links.map(|link| link.index).collect()
        }
        None => host.default_route_links().unwrap_or_default(),
    }
}

fn nothing_to_guard(chosen: &Chosen, wanted: &Wanted) -> String {
    let path = wanted.loaded.path.display();
    match chosen.troubles.first() {
        Some(trouble) => format!(
            "{path}{}: interface {} does not exist: `ip -brief link` lists those that do",
            line_of(&wanted.loaded, &trouble.name),
            trouble.name
        ),
        None => {
            let found = chosen.warnings.join("; ");
            let found = if found.is_empty() {
                "there is no default route to take the interfaces from".to_owned()
            } else {
                found
            };
            format!("{path}: {found}: name them, as in `interfaces = [\"eth0\"]`")
        }
    }
}

/// The interface that carries the program since it had this name.
fn renamed<'a>(host: &'a Host, wanted: &Wanted, name: &str) -> Option<&'a Link> {
    host.link(*wanted.guarded.get(name)?)
}

/// `:3`, where the policy names the interface; nothing if it does not.
pub fn line_of(loaded: &Loaded, name: &str) -> String {
    let mut named = loaded.policy.interfaces.iter().flatten();
    named
        .find(|interface| interface.name == name)
        .map(|interface| format!(":{}", interface.line))
        .unwrap_or_default()
}

/// A device that carries another comes before it: attached the other way round, the kernel refuses it.
fn ordered(host: &Host, links: &BTreeMap<u32, &Link>) -> Vec<Target> {
    let mut targets: Vec<Target> = links
        .values()
        .map(|link| Target {
            index: link.index,
            name: link.name.clone(),
            above: host.uppers(link.index),
        })
        .collect();
    let chosen: BTreeSet<u32> = links.keys().copied().collect();
    let rank = |target: &Target| {
        let above = target.above.iter();
        above.filter(|index| chosen.contains(index)).count()
    };
    // Devices above the same one are above what carries it as well: more of them means further down.
    targets.sort_by_key(|target| (std::cmp::Reverse(rank(target)), target.index));
    targets
}
