//! Chooses the interfaces to guard.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    agent::{Loaded, Wanted},
    host::{Host, Link},
    policy::Policy,
};

/// An interface to which the program shall be attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub index: u32,
    /// Its current name.
    pub name: String,
    /// Indices of its upper devices. The kernel attaches a program to an interface only while none of these has one
    /// (`dev_xdp_attach` in net/core/dev.c).
    pub above: BTreeSet<u32>,
}

/// An interface that the policy chooses and that cannot be guarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub name: String,
    pub why: String,
}

/// The interfaces that the policy chooses on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Lower devices come before their upper devices.
    pub targets: Vec<Target>,
    pub troubles: Vec<Trouble>,
    pub warnings: Vec<String>,
    /// Why the policy cannot be put in force on this host at all.
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
                                "{}{}: {} carries what this host sends to itself, and no packets from outside: \
                                 remove it from `interfaces`",
                                wanted.loaded.path.display(),
                                line_of(&wanted.loaded, &interface.name),
                                interface.name
                            )
                        });
                    }
                    Some(link) if !link.is_ethernet() => {
                        chosen.refusal.get_or_insert_with(|| {
                            format!(
                                "{}{}: {} is not an Ethernet interface: tun, wg, ppp and other interfaces without \
                                 Ethernet headers are not supported, and guarding the interface below does not \
                                 cover the packets inside the tunnel",
                                wanted.loaded.path.display(),
                                line_of(&wanted.loaded, &interface.name),
                                interface.name
                            )
                        });
                    }
                    Some(link) => {
                        if link.name != interface.name {
                            chosen.warnings.push(format!(
                                "the policy names interface {}, which is now called {}: it stays guarded; write \
                                 the new name in `interfaces`",
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
                        "a default route leads to {}, which is not an Ethernet interface and is not guarded",
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
    for link in links.values() {
        let lower = link.lower.filter(|lower| !links.contains_key(lower));
        let lower = lower.and_then(|lower| host.link(lower));
        if let (Some("macvlan" | "macvtap" | "ipvlan" | "ipvtap"), Some(lower)) =
            (link.kind.as_deref(), lower)
        {
            chosen.warnings.push(format!(
                "{} is a device on {}, which is not guarded: broadcast and multicast frames reach this host by {} as \
                 well, so guard that one, too",
                link.name, lower.name, lower.name
            ));
        }
    }
    if links.is_empty() && chosen.refusal.is_none() {
        chosen.refusal = Some(nothing_to_guard(&chosen, wanted));
    }
    chosen.targets = ordered(host, &links);
    chosen
}

/// Why `guard run` would refuse a policy on this host, if it would: there is no interface that it can guard.
pub fn refusal_here(host: &Host, loaded: Loaded) -> Option<String> {
    let wanted = Wanted {
        loaded: Arc::new(loaded),
        revision: 0,
        trial: None,
        modes: Default::default(),
        entries: Arc::default(),
        last_known: None,
        guarded: BTreeMap::new(),
        keeps_guarded: false,
    };
    choose(host, &wanted).refusal
}

/// The names of interfaces in the policy, and in the policy to which a trial reverts.
pub fn named(wanted: &Wanted) -> BTreeSet<String> {
    let before = wanted.trial.as_ref().map(|trial| &trial.before);
    let policies = [Some(&wanted.loaded), before].into_iter().flatten();
    let interfaces = policies.flat_map(|loaded| loaded.policy.interfaces.iter().flatten());
    interfaces.map(|interface| interface.name.clone()).collect()
}

/// The existing interfaces that a policy chooses.
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
            "{path}{}: interface {} does not exist: `ip -brief link` lists the interfaces",
            line_of(&wanted.loaded, &trouble.name),
            trouble.name
        ),
        None => {
            let found = chosen.warnings.join("; ");
            let found = if found.is_empty() {
                "there is no default route, so no interface to guard is found".to_owned()
            } else {
                found
            };
            format!("{path}: {found}: name the interfaces, as in `interfaces = [\"eth0\"]`")
        }
    }
}

/// The interface that was attached under this name and has been renamed since.
fn renamed<'a>(host: &'a Host, wanted: &Wanted, name: &str) -> Option<&'a Link> {
    host.link(*wanted.guarded.get(name)?)
}

/// The line on which the policy names the interface, as `:3`. Empty if the policy does not name it.
pub fn line_of(loaded: &Loaded, name: &str) -> String {
    let mut named = loaded.policy.interfaces.iter().flatten();
    named
        .find(|interface| interface.name == name)
        .map(|interface| format!(":{}", interface.line))
        .unwrap_or_default()
}

/// Sorts lower devices before their upper devices: in the other order, the kernel refuses the lower one.
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
    // Upper devices of an interface are also above its lower devices: the lower the device, the more are above it.
    targets.sort_by_key(|target| (std::cmp::Reverse(rank(target)), target.index));
    targets
}
