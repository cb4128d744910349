//! Parses the output of `nft -j list ruleset` (libnftables-json(5)).

use std::{collections::HashMap, ops::RangeInclusive};

use guard_common::address::Family;
use ipnet::IpNet;
use serde_json::Value;

use super::{
    chains::{ChainAction, ChainRule, NatChains},
    condition::NatCondition,
    protocol_of,
};
use crate::{NatHook, NatTarget};

/// The most conditions of a rule. If a match would give more, it is ignored, and the rule matches more packets.
const MAX_CONDITIONS: usize = 4096;

/// Adds all chains. Returns whether some rules are of `iptables-nft`, whose targets `nft` does not print.
pub fn enter(ruleset: &Value, chains: &mut NatChains) -> bool {
    let all = || ruleset["nftables"].as_array().into_iter().flatten();
    let mut sets = NamedSets::new();
    for object in all().filter_map(|entry| entry.get("set").or_else(|| entry.get("map"))) {
        if let Some(elements) = object["elem"].as_array() {
            sets.insert(full_name(object, "name"), elements);
        }
    }
    for chain in all().filter_map(|entry| entry.get("chain")) {
        let hook = match chain["hook"].as_str() {
            Some("prerouting") => Some(NatHook::Prerouting),
            Some("output") => Some(NatHook::Output),
            _ => None,
        };
        chains.declare(&full_name(chain, "name"), hook);
    }
    let mut has_iptables = false;
    for rule in all().filter_map(|entry| entry.get("rule")) {
        let statements = rule["expr"].as_array().map_or(&[][..], Vec::as_slice);
        has_iptables |= statements.iter().any(|one| one.get("xt").is_some());
        let reader = RuleReader { rule, sets: &sets };
        let chain = full_name(rule, "chain");
        for rule in reader.rules(statements) {
            chains.add(&chain, rule);
        }
    }
    has_iptables
}

/// The full name of an object, such as `ip nat DOCKER`.
fn full_name(object: &Value, key: &str) -> String {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    format!("{} {} {}", text("family"), text("table"), text(key))
}

/// The elements of sets and maps, by their full names.
type NamedSets<'a> = HashMap<String, &'a [Value]>;

struct RuleReader<'a> {
    rule: &'a Value,
    sets: &'a NamedSets<'a>,
}

impl RuleReader<'_> {
    /// Converts a rule. It may become several, because it may jump to several chains and rewrite to several addresses.
    fn rules(&self, statements: &[Value]) -> Vec<ChainRule> {
        let mut conditions = vec![self.of_family()];
        let mut rules = Vec::new();
        for statement in statements {
            if let Some(found) = statement.get("match") {
                if matches!(found["op"].as_str(), Some("==" | "in")) {
                    narrow(
                        &mut conditions,
                        &self.matched(&found["left"], &found["right"]),
                    );
                }
            } else if let Some(vmap) = statement.get("vmap") {
                for (key, verdict) in self.elements(&vmap["data"]) {
                    let mut narrowed = conditions.clone();
                    narrow(&mut narrowed, &self.matched(&vmap["key"], key));
                    let action = self.of_verdict(verdict);
                    let action = action.filter(|action| !matches!(action, ChainAction::Stop));
                    rules.extend(action.map(|action| ChainRule {
                        conditions: narrowed,
                        action,
                    }));
                }
            } else if let Some(redirect) = statement.get("redirect") {
                let ports = redirect.get("port").and_then(ports_of);
                let to = NatTarget::ThisHost { ports };
                rules.push(rewrite(conditions.clone(), to));
            } else if let Some(dnat) = statement.get("dnat") {
                rules.extend(self.of_dnat(dnat, &conditions));
            } else if let Some(action) = self.of_verdict(statement) {
                // A statement that is not understood may be a condition, so the rule may not stop every packet.
                if !matches!(action, ChainAction::Stop) || statements.iter().all(is_for_all) {
                    rules.push(ChainRule {
                        conditions: conditions.clone(),
                        action,
                    });
                }
            }
        }
        rules
    }

    fn of_family(&self) -> NatCondition {
        match self.rule["family"].as_str() {
            Some("ip") => NatCondition::of_family(Family::Ipv4),
            Some("ip6") => NatCondition::of_family(Family::Ipv6),
            _ => NatCondition::default(),
        }
    }

    fn of_verdict(&self, verdict: &Value) -> Option<ChainAction> {
        let target = |name: &str| Some(verdict.get(name)?["target"].as_str()?.to_owned());
        if let Some(target) = target("jump").or_else(|| target("goto")) {
            let text = |key: &str| self.rule[key].as_str().unwrap_or_default();
            let chain = format!("{} {} {target}", text("family"), text("table"));
            return Some(ChainAction::Jump(chain));
        }
        let stops = ["accept", "drop", "return"];
        let is_stop = stops.iter().any(|stop| verdict.get(stop).is_some());
        is_stop.then_some(ChainAction::Stop)
    }

    fn of_dnat(&self, dnat: &Value, conditions: &[NatCondition]) -> Vec<ChainRule> {
        let (address, port) = (&dnat["addr"], dnat.get("port"));
        let Some(map) = address.get("map") else {
            return vec![rewrite(conditions.to_vec(), target(dnat, address, port))];
        };
        let elements = self.elements(&map["data"]);
        if elements.is_empty() {
            return vec![rewrite(
                conditions.to_vec(),
                NatTarget::Other(dnat.to_string()),
            )];
        }
        let rules = elements.into_iter().map(|(key, value)| {
            let mut narrowed = conditions.to_vec();
            narrow(&mut narrowed, &self.matched(&map["key"], key));
            let to = match value["concat"].as_array().map(Vec::as_slice) {
                Some([address, port]) => target(dnat, address, Some(port)),
                _ => target(dnat, value, port),
            };
            rewrite(narrowed, to)
        });
        rules.collect()
    }

    /// The pairs of a map, either inline or with a name.
    fn elements<'b>(&'b self, data: &'b Value) -> Vec<(&'b Value, &'b Value)> {
        let pairs = match data.as_str() {
            Some(name) => self.named(name),
            None => data["set"].as_array().map(Vec::as_slice),
        };
        let pairs = pairs.into_iter().flatten();
        pairs
            .filter_map(|pair| match pair.as_array()?.as_slice() {
                [key, value] => Some((plain(key), value)),
                _ => None,
            })
            .collect()
    }

    /// Looks up the elements of the set or map `@name`.
    fn named(&self, name: &str) -> Option<&[Value]> {
        let text = |key: &str| self.rule[key].as_str().unwrap_or_default();
        let name = name.strip_prefix('@')?;
        let name = format!("{} {} {name}", text("family"), text("table"));
        self.sets.get(&name).copied()
    }

    /// The conditions of packets whose field has one of these values.
    fn matched(&self, field: &Value, values: &Value) -> Vec<NatCondition> {
        let values = match values.as_str() {
            Some(name) if name.starts_with('@') => self.named(name),
            _ => values["set"]
                .as_array()
                .map(Vec::as_slice)
                .or(Some(std::slice::from_ref(values))),
        };
        let Some(values) = values else {
            return vec![NatCondition::default()];
        };
        let conditions = values.iter().map(|value| of_value(field, plain(value)));
        conditions.collect()
    }
}

/// Whether a statement applies to every packet that reaches it.
fn is_for_all(statement: &Value) -> bool {
    let names = ["accept", "drop", "return", "counter", "log"];
    names.iter().any(|name| statement.get(name).is_some())
}

/// The value of an element. If it has a timeout or a comment, the value is nested.
fn plain(element: &Value) -> &Value {
    element.get("elem").map_or(element, |inner| &inner["val"])
}

fn rewrite(conditions: Vec<NatCondition>, to: NatTarget) -> ChainRule {
    ChainRule {
        conditions,
        action: ChainAction::Rewrite(to),
    }
}

/// Intersects each condition with each of `by`.
fn narrow(conditions: &mut Vec<NatCondition>, by: &[NatCondition]) {
    if conditions.len().saturating_mul(by.len()) > MAX_CONDITIONS {
        return;
    }
    let both = conditions
        .iter()
        .flat_map(|one| by.iter().filter_map(|other| one.and(other)));
    *conditions = both.collect();
}

/// The condition that a field has this value. It matches everything if the field or the value is not understood.
fn of_value(field: &Value, value: &Value) -> NatCondition {
    if let (Some(fields), Some(values)) = (field["concat"].as_array(), value["concat"].as_array()) {
        let mut each = fields.iter().zip(values);
        let all = each.try_fold(NatCondition::default(), |all, (field, value)| {
            all.and(&of_value(field, value))
        });
        return all.unwrap_or_default();
    }
    let payload = &field["payload"];
    let understood = match (payload["protocol"].as_str(), payload["field"].as_str()) {
        (Some(protocol), Some("dport")) => of_port(protocol, value),
        (Some("ip" | "ip6"), Some("daddr")) => net_of(value).map(NatCondition::of_destination),
        (Some("ip" | "ip6"), Some("saddr")) => net_of(value).map(NatCondition::of_source),
        _ => of_meta(field["meta"]["key"].as_str(), value),
    };
    understood.unwrap_or_default()
}

fn of_port(protocol: &str, value: &Value) -> Option<NatCondition> {
    // `th` is the transport header of any protocol.
    let protocol = protocol_of(protocol).map(NatCondition::of_protocol);
    let ports = ports_of(value).map(NatCondition::of_ports);
    match (protocol, ports) {
        (Some(protocol), Some(ports)) => protocol.and(&ports),
        (protocol, ports) => protocol.or(ports),
    }
}

fn of_meta(key: Option<&str>, value: &Value) -> Option<NatCondition> {
    match (key?, value.as_str()?) {
        ("l4proto", name) => protocol_of(name).map(NatCondition::of_protocol),
        ("iifname" | "iif", name) => Some(NatCondition::of_interface(name)),
        ("nfproto", "ipv4") => Some(NatCondition::of_family(Family::Ipv4)),
        ("nfproto", "ipv6") => Some(NatCondition::of_family(Family::Ipv6)),
        _ => None,
    }
}

fn target(dnat: &Value, address: &Value, port: Option<&Value>) -> NatTarget {
    let parsed = address.as_str().and_then(|text| text.parse().ok());
    match (parsed, port.map(ports_of)) {
        // A range of addresses, or a computed port.
        (None, _) | (_, Some(None)) => NatTarget::Other(dnat.to_string()),
        (Some(address), ports) => NatTarget::Address {
            address,
            ports: ports.flatten(),
        },
    }
}

fn ports_of(value: &Value) -> Option<RangeInclusive<u16>> {
    let port = |value: &Value| u16::try_from(value.as_u64()?).ok();
    if let Some(only) = port(value) {
        return Some(only..=only);
    }
    let range = value["range"].as_array()?;
    Some(port(range.first()?)?..=port(range.get(1)?)?)
}

fn net_of(value: &Value) -> Option<IpNet> {
    if let Some(text) = value.as_str() {
        let address: std::net::IpAddr = text.parse().ok()?;
        return Some(address.into());
    }
    let prefix = &value["prefix"];
    let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
    IpNet::new(prefix["addr"].as_str()?.parse().ok()?, length).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::NatRule;

    /// What `nft -j list ruleset` (1.0.6) prints of a table with jumps, sets, maps and a map of verdicts.
    const RULESET: &str = include_str!("ruleset.json");

    fn rules(text: &str) -> Vec<String> {
        let mut chains = NatChains::default();
        let ruleset = serde_json::from_str(text).unwrap();
        assert!(!enter(&ruleset, &mut chains));
        let rules = chains.rules();
        assert!(!rules.is_partial);
        rules.rules.iter().map(NatRule::to_string).collect()
    }

    #[test]
    fn jumps_sets_and_maps_are_followed() {
        assert_eq!(
            rules(RULESET),
            [
                "output inet t out: tcp/4 -> 10.0.0.44",
                "prerouting inet t pre: eth0 tcp/25 -> 10.0.0.9",
                "prerouting inet t pre: eth0 tcp/100-110 -> 10.0.0.9",
                "prerouting inet t pre: tcp/1 -> this host:99",
                "prerouting inet t pre: tcp/5-9 -> this host:99",
                "prerouting inet t sub: 192.0.2.0/24 udp/53 -> 10.0.0.53",
                "prerouting inet t pre: tcp/8080 -> 10.0.0.2",
                "prerouting inet t pre: tcp/8081 -> 10.0.0.3",
                "prerouting inet t pre: tcp/9000 -> 10.0.0.4:90",
                "prerouting inet t pre: tcp/9001 -> 10.0.0.5:91",
                "prerouting inet t s1: 10.96.0.1/32 tcp/443 -> 10.0.2.15:6443",
                "prerouting inet t s2: tcp/2222 -> 10.0.0.22",
                "prerouting inet t pre: tcp/7 -> \
                 {\"addr\":{\"range\":[\"10.0.0.7\",\"10.0.0.8\"]},\"family\":\"ip\"}",
                "prerouting inet t pre: tcp/77 -> 10.0.0.77",
                "prerouting inet t pre: udp/77 -> 10.0.0.77",
                "prerouting inet t pre: lo tcp/5 -> [2001:db8::1]:80",
                "prerouting inet t pre: tcp/6 -> 10.0.0.6:60-70",
            ]
        );
    }

    #[test]
    fn what_is_not_understood_is_everything() {
        let chain =
            json!({"chain": {"family": "ip", "table": "t", "name": "c", "hook": "prerouting"}});
        let rule = |expr: Value| json!({"rule": {"family": "ip", "table": "t", "chain": "c", "expr": expr}});
        let all = |expr: Value| rules(&json!({"nftables": [chain, rule(expr)]}).to_string());
        let dnat = json!({"dnat": {"addr": "10.0.0.1"}});
        let expected = ["prerouting ip t c: IPv4 -> 10.0.0.1"];
        for condition in [
            json!({"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "flags"}}, "right": 2}}),
            json!({"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": "@gone"}}),
            json!({"match": {"op": "!=", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": "1.2.3.4"}}),
            json!({"counter": null}),
        ] {
            assert_eq!(all(json!([condition, dnat])), expected, "{condition}");
        }
        let numbered = json!({"dnat": {"addr": {"map": {"key": {"numgen": {}}, "data": {"set":
            [[0, "10.0.0.1"], [1, "10.0.0.2"]]}}}}});
        assert_eq!(
            all(json!([numbered])),
            [expected[0], "prerouting ip t c: IPv4 -> 10.0.0.2"]
        );
        // After a rule that stops every packet, no packet is rewritten.
        let stopped = json!({"nftables": [chain, rule(json!([{"counter": null}])),
            rule(json!([{"accept": null}])), rule(json!([dnat]))]});
        assert_eq!(rules(&stopped.to_string()), [""; 0]);
        let perhaps = json!({"nftables": [chain, rule(json!([{"fib": null}, {"accept": null}])),
            rule(json!([dnat]))]});
        assert_eq!(rules(&perhaps.to_string()), expected);
    }

    #[test]
    fn rules_of_iptables_are_noticed() {
        let opaque = json!([{"xt": {"type": "target", "name": "DNAT"}}]);
        let rule = json!({"rule": {"family": "ip", "table": "nat", "chain": "c", "expr": opaque}});
        let mut chains = NatChains::default();
        assert!(enter(&json!({"nftables": [rule]}), &mut chains));
        assert_eq!(chains.rules().rules, []);
    }
}
