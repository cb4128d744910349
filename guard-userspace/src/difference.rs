//! Compares two policies: which keys differ, and for whom that changes anything.

use std::collections::{BTreeMap, BTreeSet};

use guard_common::reason::Mode;
use serde::Serialize;
use toml::{Table, Value};

use crate::policy::{Budgets, From, Policy, Source, Treatment, sha256_of};

/// The differences between two policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PolicyDifference {
    /// The keys that differ, as the files have them.
    pub keys: Vec<KeyChange>,
    /// What changes for whom, one sentence each.
    pub effects: Vec<String>,
}

/// A key of the policy file, such as `service.web.limit.packets`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyChange {
    pub key: String,
    /// `null`: only the other file has the key.
    pub before: Option<String>,
    pub after: Option<String>,
}

/// Compares two policies, each with its text.
pub fn difference(
    (before, text_before): (&Policy, &str),
    (after, text_after): (&Policy, &str),
) -> PolicyDifference {
    PolicyDifference {
        keys: changed_keys(&keys(text_before), &keys(text_after)),
        effects: effects(before, after),
    }
}

/// A hash of every key of a policy with its value. Policies with the same hash differ in comments at most.
pub fn fingerprint(text: &str) -> String {
    let keys = keys(text).into_iter();
    let lines: String = keys
        .map(|(key, value)| format!("{key}: {value}\n"))
        .collect();
    sha256_of(lines.as_bytes())
}

/// Every key of a policy with its value. The text is a valid policy.
fn keys(text: &str) -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    if let Ok(table) = text.parse::<Table>() {
        flatten("", &Value::Table(table), &mut keys);
    }
    keys
}

fn flatten(place: &str, value: &Value, keys: &mut BTreeMap<String, String>) {
    let below = |key: &str| {
        if place.is_empty() {
            key.to_owned()
        } else {
            format!("{place}.{key}")
        }
    };
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                flatten(&below(key), value, keys);
            }
        }
        // `[[service]]` and `[[source]]`: their names find them again in the other file.
        Value::Array(tables) if tables.iter().any(Value::is_table) => {
            for (index, table) in tables.iter().enumerate() {
                let name = table.get("name").and_then(Value::as_str);
                let name = name.map_or_else(|| (index + 1).to_string(), str::to_owned);
                flatten(&below(&name), table, keys);
            }
        }
        value => {
            keys.insert(place.to_owned(), value.to_string());
        }
    }
}

fn changed_keys(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) -> Vec<KeyChange> {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changes = names.into_iter().map(|key| KeyChange {
        key: key.clone(),
        before: before.get(key).cloned(),
        after: after.get(key).cloned(),
    });
    changes
        .filter(|change| change.before != change.after)
        .collect()
}

const EVERYBODY: &str = "everybody";

fn effects(before: &Policy, after: &Policy) -> Vec<String> {
    let mut effects = Vec::new();
    if before.mode != after.mode {
        effects.push(match after.mode {
            Mode::Off => "nothing is judged any more: everything passes".to_owned(),
            Mode::Observe => {
                "nothing is dropped any more: packets that would be are counted".to_owned()
            }
            Mode::Enforce => "packets against the policy are dropped".to_owned(),
        });
    }
    if before.scope != after.scope {
        effects.push(format!(
            "the scope is `{}` instead of `{}`",
            after.scope.name(),
            before.scope.name()
        ));
    }
    effects_on_ports(before, after, &mut effects);
    effects_on_budgets(before, after, &mut effects);
    effects_on_sources(before, after, &mut effects);
    effects
}

/// For each port as a policy lists it, with its address if it has one: who may reach it.
fn who_reaches(policy: &Policy) -> BTreeMap<String, BTreeSet<String>> {
    let mut reached: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for service in &policy.services {
        for ports in &service.ports {
            let port = match service.address {
                Some(address) => format!("{ports} on {address}"),
                None => ports.to_string(),
            };
            let who = reached.entry(port).or_default();
            match &service.from {
                From::Any => {
                    who.insert(EVERYBODY.to_owned());
                }
                From::Admitted(admitted) => {
                    who.extend(admitted.iter().map(|admitted| admitted.prefix.to_string()));
                }
            }
        }
    }
    reached
}

fn effects_on_ports(before: &Policy, after: &Policy, effects: &mut Vec<String>) {
    let [before, after] = [before, after].map(who_reaches);
    let ports: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let nobody = BTreeSet::new();
    for port in ports {
        let [had, has] = [&before, &after].map(|reached| reached.get(port).unwrap_or(&nobody));
        let gained: Vec<&str> = has.difference(had).map(String::as_str).collect();
        let lost: Vec<&str> = had.difference(has).map(String::as_str).collect();
        match (gained.as_slice(), lost.as_slice()) {
            ([], []) => {}
            (gained, []) => effects.push(format!("{port} opens for {}", joined(gained))),
            ([], lost) => effects.push(format!("{port} closes for {}", joined(lost))),
            (gained, [one]) if *one == EVERYBODY => effects.push(format!(
                "{port} closes for everybody but {}",
                joined(gained)
            )),
            ([one], lost) if *one == EVERYBODY => effects.push(format!(
                "{port} opens for everybody, not for {} alone",
                joined(lost)
            )),
            (gained, lost) => effects.push(format!(
                "{port} opens for {} and closes for {}",
                joined(gained),
                joined(lost)
            )),
        }
    }
}

fn effects_on_budgets(before: &Policy, after: &Policy, effects: &mut Vec<String>) {
    compare_budgets(
        "what reaches no service: each source",
        before.limits.budgets,
        after.limits.budgets,
        effects,
    );
    compare_budgets(
        "what reaches no service: all sources together",
        before.limits_total,
        after.limits_total,
        effects,
    );
    for service in &after.services {
        let mut known = before.services.iter();
        let Some(known) = known.find(|known| known.name == service.name) else {
            continue;
        };
        let name = &service.name;
        compare_budgets(
            &format!("{name}: each source"),
            known.limit.budgets,
            service.limit.budgets,
            effects,
        );
        compare_budgets(
            &format!("{name}: all sources together"),
            known.total,
            service.total,
            effects,
        );
        if known.flood != service.flood {
            effects.push(match (&known.flood, &service.flood) {
                (None, _) => format!("{name}: in a flood, new clients are challenged"),
                (_, None) => format!("{name}: new clients are no longer challenged in a flood"),
                _ => format!("{name}: floods are met with other settings"),
            });
        }
        if known.mode != service.mode {
            effects.push(format!(
                "{name} is in mode {} instead of {}",
                service.mode.name(),
                known.mode.name()
            ));
        }
    }
}

fn compare_budgets(whose: &str, before: Budgets, after: Budgets, effects: &mut Vec<String>) {
    let keys = ["packets", "bytes", "connections"];
    let [before, after] = [before, after].map(|budgets| {
        let Budgets {
            packets,
            bytes,
            connections,
        } = budgets;
        [packets, bytes, connections].map(|budget| budget.map(|budget| budget.to_string()))
    });
    for ((key, had), has) in keys.into_iter().zip(before).zip(after) {
        if had == has {
            continue;
        }
        let [had, has] = [had, has].map(|one| one.unwrap_or_else(|| "no limit".to_owned()));
        effects.push(format!("{whose} has {key} {has} instead of {had}"));
    }
}

fn effects_on_sources(before: &Policy, after: &Policy, effects: &mut Vec<String>) {
    let treated = |policy: &Policy| {
        let sources = policy.sources.iter();
        let treated = sources.flat_map(|source| {
            let what = treatment(source);
            let cidrs = source.cidrs.iter();
            cidrs.filter_map(move |cidr| Some((cidr.to_string(), what.clone()?)))
        });
        treated.collect::<BTreeSet<(String, String)>>()
    };
    let [before, after] = [before, after].map(treated);
    for (cidr, what) in after.difference(&before) {
        effects.push(format!("{cidr} {what}"));
    }
    for (cidr, what) in before.difference(&after) {
        effects.push(format!("no longer: {cidr} {what}"));
    }
}

fn treatment(source: &Source) -> Option<String> {
    match source.treatment {
        Treatment::Denied => Some("is denied".to_owned()),
        Treatment::Exempt => Some("is never limited".to_owned()),
        Treatment::Factor(factor) => Some(format!("has {factor} times every budget")),
        Treatment::Named => None,
    }
}

/// The most sources that an effect names.
const MOST_NAMED: usize = 5;

fn joined(who: &[&str]) -> String {
    let (named, rest) = who.split_at(who.len().min(MOST_NAMED));
    match rest.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}
