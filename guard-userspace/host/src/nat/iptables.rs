//! Parses the output of `iptables-save`, which is the same in all versions.

use std::{net::SocketAddr, ops::RangeInclusive};

use guard_common::address::Family;

use super::{
    chains::{ChainAction, ChainRule, NatChains},
    condition::NatCondition,
    protocol_of,
};
use crate::{NatHook, NatTarget};

/// Adds the chains of the table `nat` of one family.
pub fn enter(text: &str, family: Family, chains: &mut NatChains) {
    let table = match family {
        Family::Ipv4 => "ip nat",
        Family::Ipv6 => "ip6 nat",
    };
    let own = |chain: &str| format!("{table} {chain}");
    // `:PREROUTING ACCEPT [0:0]`
    let declared = text.lines().filter_map(|line| line.strip_prefix(':'));
    for chain in declared.filter_map(|line| line.split(' ').next()) {
        let hook = match chain {
            "PREROUTING" => Some(NatHook::Prerouting),
            "OUTPUT" => Some(NatHook::Output),
            _ => None,
        };
        chains.declare(&own(chain), hook);
    }
    for line in text.lines().filter(|line| line.starts_with("-A ")) {
        let words = words(line);
        let Some(chain) = words.get(1) else {
            continue;
        };
        let rule = IptablesRule {
            line,
            words: &words,
        };
        let action = match rule.word("-j").or_else(|| rule.word("-g")) {
            Some(target) if chains.has(&own(target)) => Some(ChainAction::Jump(own(target))),
            Some(target) => rule.action(target),
            None => None,
        };
        if let Some(action) = action {
            let conditions = rule.conditions(family);
            chains.add(&own(chain), ChainRule { conditions, action });
        }
    }
}

/// Splits a line into words. A comment in quotes is one word.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = None::<String>;
    let mut is_quoted = false;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                is_quoted = !is_quoted;
                word.get_or_insert_default();
            }
            '\\' if is_quoted => word.get_or_insert_default().extend(characters.next()),
            ' ' if !is_quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

struct IptablesRule<'a> {
    line: &'a str,
    words: &'a [String],
}

impl IptablesRule<'_> {
    /// The value of an option. `None` also if `!` negates it: then it is treated as matching everything.
    fn word(&self, option: &str) -> Option<&str> {
        let at = self.words.iter().position(|word| word == option)?;
        let before = at.checked_sub(1).and_then(|before| self.words.get(before));
        let is_negated = before.is_some_and(|word| word == "!");
        let word = self.words.get(at + 1).map(String::as_str);
        word.filter(|_| !is_negated)
    }

    fn action(&self, target: &str) -> Option<ChainAction> {
        let to = match target {
            "DNAT" => self.word("--to-destination").map_or_else(
                || NatTarget::Other(self.line.to_owned()),
                |to| destination(to, self.line),
            ),
            "REDIRECT" => NatTarget::ThisHost {
                ports: self.word("--to-ports").and_then(|ports| range(ports, '-')),
            },
            "NETMAP" => NatTarget::Other(self.line.to_owned()),
            // The rule has no condition: `-A CHAIN -j TARGET`.
            "ACCEPT" | "DROP" | "RETURN" if self.words.len() == 4 => {
                return Some(ChainAction::Stop);
            }
            _ => return None,
        };
        Some(ChainAction::Rewrite(to))
    }

    fn conditions(&self, family: Family) -> Vec<NatCondition> {
        let net = |option: &str| self.word(option).and_then(|net| net.parse().ok());
        let of_all = NatCondition {
            family: Some(family),
            protocol: self.word("-p").and_then(protocol_of),
            ports: None,
            destination: net("-d"),
            source: net("-s"),
            interface: self.word("-i").map(str::to_owned),
        };
        let ports = self.word("--dport").or_else(|| self.word("--dports"));
        let ports = ports.into_iter().flat_map(|ports| ports.split(','));
        // A port that cannot be parsed may match every port.
        let ports: Option<Vec<_>> = ports.map(|ports| range(ports, ':')).collect();
        let Some(ports) = ports.filter(|ports| !ports.is_empty()) else {
            return vec![of_all];
        };
        let with = |ports| NatCondition {
            ports: Some(ports),
            ..of_all.clone()
        };
        ports.into_iter().map(with).collect()
    }
}

/// Parses `10.0.0.2`, `10.0.0.2:80`, `10.0.0.2:80-90` and `[2001:db8::2]:80`. For other targets, the result has the
/// line as it is written.
fn destination(to: &str, line: &str) -> NatTarget {
    let other = || NatTarget::Other(line.to_owned());
    if let Ok(address) = to.trim_matches(['[', ']']).parse() {
        return NatTarget::Address {
            address,
            ports: None,
        };
    }
    if let Ok(to) = to.parse::<SocketAddr>() {
        return NatTarget::Address {
            address: to.ip(),
            ports: Some(to.port()..=to.port()),
        };
    }
    let Some((address, ports)) = to.rsplit_once(':') else {
        return other();
    };
    match (address.trim_matches(['[', ']']).parse(), range(ports, '-')) {
        (Ok(address), Some(ports)) => NatTarget::Address {
            address,
            ports: Some(ports),
        },
        _ => other(),
    }
}

fn range(text: &str, between: char) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once(between).unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NatRule;

    fn rules(text: &str, family: Family) -> Vec<String> {
        let mut chains = NatChains::default();
        enter(text, family, &mut chains);
        let rules = chains.rules().rules;
        rules.iter().map(NatRule::to_string).collect()
    }

    #[test]
    fn chains_are_followed_with_what_leads_to_them() {
        let text = r#"*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SEP - [0:0]
:UNUSED - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A PREROUTING -m comment --comment "k8s \"x\" -j DNAT" -j KUBE-SERVICES
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8000 -j DNAT --to-destination 172.17.0.2:80
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -g KUBE-SEP
-A KUBE-SEP -p tcp -m tcp -j DNAT --to-destination 10.0.2.15:6443
-A PREROUTING -d 192.0.2.1/32 -i eth0 -p udp -m multiport --dports 53,60:70 -j REDIRECT --to-ports 5353
-A PREROUTING -s 10.0.0.0/8 -p tcp -m tcp ! --dport 22 -j DNAT --to-destination 10.0.0.3
-A UNUSED -p tcp -j DNAT --to-destination 10.0.0.9
-A PREROUTING -j RETURN
-A PREROUTING -p tcp -j DNAT --to-destination 10.0.0.8
COMMIT"#;
        assert_eq!(
            rules(text, Family::Ipv4),
            [
                "output ip nat DOCKER: IPv4 tcp/8000 -> 172.17.0.2:80",
                "prerouting ip nat DOCKER: IPv4 tcp/8000 -> 172.17.0.2:80",
                "prerouting ip nat KUBE-SEP: 10.96.0.1/32 tcp/443 -> 10.0.2.15:6443",
                "prerouting ip nat PREROUTING: eth0 192.0.2.1/32 udp/53 -> this host:5353",
                "prerouting ip nat PREROUTING: eth0 192.0.2.1/32 udp/60-70 -> this host:5353",
                "prerouting ip nat PREROUTING: IPv4 from 10.0.0.0/8 tcp -> 10.0.0.3",
            ]
        );
        let text = "*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -m tcp --dport 8000:8010 -j DNAT --to-destination [2001:db8::2]:80-90
-A PREROUTING -p tcp -j NETMAP --to 2001:db8:1::/64";
        assert_eq!(
            rules(text, Family::Ipv6),
            [
                "prerouting ip6 nat PREROUTING: IPv6 tcp/8000-8010 -> [2001:db8::2]:80-90",
                "prerouting ip6 nat PREROUTING: IPv6 tcp -> -A PREROUTING -p tcp -j NETMAP --to 2001:db8:1::/64",
            ]
        );
    }

    #[test]
    fn chains_that_jump_in_a_circle_end() {
        let text = ":PREROUTING ACCEPT [0:0]
:A - [0:0]
-A PREROUTING -j A
-A A -j A
-A A -p tcp -j DNAT --to-destination 10.0.0.1";
        assert_eq!(
            rules(text, Family::Ipv4),
            ["prerouting ip nat A: IPv4 tcp -> 10.0.0.1"]
        );
    }
}
