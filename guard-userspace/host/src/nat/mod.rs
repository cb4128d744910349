//! Reads the rules that rewrite destinations, from `nft` and the `iptables` programs. It blocks.
//!
//! The kernel has them in three places: tables of nftables, tables that `iptables-nft` makes there
//! (whose targets `nft` does not spell out), and the older ones of `iptables-legacy`.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    process::Command,
};

use guard_common::layout::PortProtocol;
use ipnet::IpNet;
use serde_json::Value;

use super::{NatRule, NatRules, NatTarget};

#[derive(Debug, thiserror::Error)]
pub enum NatError {
    #[error("`{program}` cannot be run, which reads the NAT rules: {error}")]
    NotRun { program: String, error: io::Error },
    #[error("`{program}` fails, which reads the NAT rules: {complaint}")]
    Failed { program: String, complaint: String },
    #[error("what `{program}` prints cannot be read")]
    Garbled { program: String },
}

const NFT: &str = "nft";
/// Of `iptables-nft`, for IPv4 and IPv6.
const NFT_SAVE: [&str; 2] = ["iptables-nft-save", "ip6tables-nft-save"];
/// Of `iptables-legacy`, with the kernel's list of its tables: the program would make a table that is
/// not there.
const LEGACY_SAVE: [(&str, &str); 2] = [
    ("iptables-legacy-save", "/proc/net/ip_tables_names"),
    ("ip6tables-legacy-save", "/proc/net/ip6_tables_names"),
];

/// Every rule that rewrites the destination of what comes in.
pub fn nat_rules() -> Result<NatRules, NatError> {
    let text = run(NFT, &["-j", "list", "ruleset"])?;
    let ruleset: Value = serde_json::from_str(&text).map_err(|_| NatError::Garbled {
        program: NFT.to_owned(),
    })?;
    let (mut rules, has_iptables) = of_nftables(&ruleset);
    let mut programs = Vec::new();
    if has_iptables {
        programs.extend(NFT_SAVE);
    }
    for (program, tables) in LEGACY_SAVE {
        // No such file: the kernel's part is not loaded.
        let tables = fs::read_to_string(tables).unwrap_or_default();
        if tables.lines().any(|table| table == "nat") {
            programs.push(program);
        }
    }
    for program in programs {
        rules.extend(of_iptables(&run(program, &["-t", "nat"])?));
    }
    Ok(NatRules { rules })
}

fn run(program: &str, arguments: &[&str]) -> Result<String, NatError> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| NatError::NotRun {
        program: program.to_owned(),
        error,
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(NatError::Failed {
        program: program.to_owned(),
        complaint: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// The rules that nftables spells out, and whether there are others, which are iptables'.
fn of_nftables(ruleset: &Value) -> (Vec<NatRule>, bool) {
    let all = ruleset["nftables"].as_array().into_iter().flatten();
    let mut rules = Vec::new();
    let mut has_iptables = false;
    for rule in all.filter_map(|entry| entry.get("rule")) {
        let statements = rule["expr"].as_array().map_or(&[][..], Vec::as_slice);
        has_iptables |= statements.iter().any(|one| one.get("xt").is_some());
        let target = statements.iter().find_map(nft_target);
        if let Some(to) = target {
            rules.extend(conditions(statements).into_iter().map(|mut rule| {
                rule.to = to.clone();
                rule
            }));
        }
    }
    (rules, has_iptables)
}

fn nft_target(statement: &Value) -> Option<NatTarget> {
    if let Some(redirect) = statement.get("redirect") {
        let ports = redirect.get("port").and_then(ports_of);
        return Some(NatTarget::ThisHost { ports });
    }
    let dnat = statement.get("dnat")?;
    let address = dnat["addr"].as_str().and_then(|text| text.parse().ok());
    let ports = dnat.get("port");
    Some(match (address, ports.map(ports_of)) {
        // A map, or a port that is computed.
        (None, _) | (_, Some(None)) => NatTarget::Other(dnat.to_string()),
        (Some(address), ports) => NatTarget::Address {
            address,
            ports: ports.flatten(),
        },
    })
}

/// What a rule matches: one for each element of a set of ports.
fn conditions(statements: &[Value]) -> Vec<NatRule> {
    let mut rule = NatRule {
        protocol: None,
        ports: None,
        destination: None,
        to: NatTarget::ThisHost { ports: None },
    };
    let mut ports = Vec::new();
    for found in statements.iter().filter_map(|one| one.get("match")) {
        if !matches!(found["op"].as_str(), Some("==" | "in")) {
            continue;
        }
        let (payload, right) = (&found["left"]["payload"], &found["right"]);
        match (payload["protocol"].as_str(), payload["field"].as_str()) {
            (Some(protocol), Some("dport")) => {
                rule.protocol = protocol_of(protocol);
                ports = match right["set"].as_array() {
                    Some(set) => set.iter().map(ports_of).collect(),
                    None => vec![ports_of(right)],
                };
            }
            (Some("ip" | "ip6"), Some("daddr")) => rule.destination = net_of(right),
            _ if found["left"]["meta"]["key"] == "l4proto" => {
                rule.protocol = right.as_str().and_then(protocol_of);
            }
            _ => {}
        }
    }
    // An element that cannot be read, such as the name of a set, may be every port.
    let ports: Option<Vec<_>> = ports.into_iter().collect();
    match ports.filter(|ports| !ports.is_empty()) {
        None => vec![rule],
        Some(ports) => ports
            .into_iter()
            .map(|ports| NatRule {
                ports: Some(ports),
                ..rule.clone()
            })
            .collect(),
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
        return text.parse().ok().map(|only: IpAddr| IpNet::from(only));
    }
    let prefix = &value["prefix"];
    let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
    IpNet::new(prefix["addr"].as_str()?.parse().ok()?, length).ok()
}

fn protocol_of(name: &str) -> Option<PortProtocol> {
    let mut all = [PortProtocol::Tcp, PortProtocol::Udp, PortProtocol::Sctp].into_iter();
    all.find(|protocol| protocol.name() == name)
}

/// The rules in the words of `iptables-save`, which are the same in all versions.
fn of_iptables(text: &str) -> Vec<NatRule> {
    let lines = text.lines().filter(|line| line.starts_with("-A "));
    lines.flat_map(iptables_rule).collect()
}

fn iptables_rule(line: &str) -> Vec<NatRule> {
    let words: Vec<&str> = line.split_whitespace().collect();
    // A condition with `!` before it matches all the rest.
    let word = |option: &str| {
        let at = words.iter().position(|word| *word == option)?;
        let is_negated = at > 0 && words.get(at - 1) == Some(&"!");
        words.get(at + 1).copied().filter(|_| !is_negated)
    };
    let to = match word("-j") {
        Some("DNAT") => word("--to-destination").map_or_else(
            || NatTarget::Other(line.to_owned()),
            |to| iptables_target(to, line),
        ),
        Some("REDIRECT") => NatTarget::ThisHost {
            ports: word("--to-ports").and_then(|ports| range(ports, '-')),
        },
        Some("NETMAP") if word("--to").is_some() => NatTarget::Other(line.to_owned()),
        _ => return Vec::new(),
    };
    // What leaves this host is not what comes in.
    if words.get(1) == Some(&"OUTPUT") {
        return Vec::new();
    }
    let ports = word("--dport").or_else(|| word("--dports"));
    let ports = ports.into_iter().flat_map(|ports| ports.split(','));
    let ports: Option<Vec<_>> = ports.map(|ports| range(ports, ':')).collect();
    let rule = NatRule {
        protocol: word("-p").and_then(protocol_of),
        ports: None,
        destination: word("-d").and_then(|net| net.parse().ok()),
        to,
    };
    match ports.filter(|ports| !ports.is_empty()) {
        None => vec![rule],
        Some(ports) => ports
            .into_iter()
            .map(|ports| NatRule {
                ports: Some(ports),
                ..rule.clone()
            })
            .collect(),
    }
}

/// `10.0.0.2`, `10.0.0.2:80`, `10.0.0.2:80-90`, `[2001:db8::2]:80`; what else there is stays as it is
/// written.
fn iptables_target(to: &str, line: &str) -> NatTarget {
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
    use serde_json::json;

    use super::*;

    fn rule(
        protocol: Option<PortProtocol>,
        ports: Option<RangeInclusive<u16>>,
        destination: Option<&str>,
        to: NatTarget,
    ) -> NatRule {
        NatRule {
            protocol,
            ports,
            destination: destination.map(|net| net.parse().unwrap()),
            to,
        }
    }

    fn to(address: &str, ports: Option<RangeInclusive<u16>>) -> NatTarget {
        NatTarget::Address {
            address: address.parse().unwrap(),
            ports,
        }
    }

    #[test]
    fn rules_of_iptables_are_read() {
        use PortProtocol::{Tcp, Udp};
        let text = "*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8000 -j DNAT --to-destination 172.17.0.2:80
-A PREROUTING -d 192.0.2.1/32 -p udp -m multiport --dports 53,60:70 -j REDIRECT --to-ports 5353
-A PREROUTING -p tcp -m tcp --dport 8000:8010 -j DNAT --to-destination [2001:db8::2]:80-90
-A PREROUTING -p tcp -m tcp ! --dport 22 -j DNAT --to-destination 10.0.0.3
-A OUTPUT -p tcp -j DNAT --to-destination 10.0.0.9
COMMIT";
        let host = NatTarget::ThisHost {
            ports: Some(5_353..=5_353),
        };
        let lone = Some("192.0.2.1/32");
        assert_eq!(
            of_iptables(text),
            [
                rule(
                    Some(Tcp),
                    Some(8_000..=8_000),
                    None,
                    to("172.17.0.2", Some(80..=80))
                ),
                rule(Some(Udp), Some(53..=53), lone, host.clone()),
                rule(Some(Udp), Some(60..=70), lone, host),
                rule(
                    Some(Tcp),
                    Some(8_000..=8_010),
                    None,
                    to("2001:db8::2", Some(80..=90))
                ),
                rule(Some(Tcp), None, None, to("10.0.0.3", None)),
            ]
        );
    }

    #[test]
    fn rules_of_nftables_are_read_and_those_of_iptables_noticed() {
        use PortProtocol::Tcp;
        let port = |right: Value| {
            json!({"match": {"op": "==", "right": right,
                "left": {"payload": {"protocol": "tcp", "field": "dport"}}}})
        };
        let address = json!({"match": {"op": "==", "right": "192.0.2.9",
            "left": {"payload": {"protocol": "ip", "field": "daddr"}}}});
        let map = json!({"addr": {"map": {"key": 1}}});
        let rules = [
            json!([port(json!(9000)), {"dnat": {"addr": "10.0.0.4", "port": 90}}]),
            json!([port(json!({"set": [1, {"range": [5, 9]}]})), {"redirect": {"port": 99}}]),
            json!([port(json!("@many")), {"redirect": null}]),
            json!([address, {"dnat": {"addr": "10.0.0.5"}}]),
            json!([{"dnat": map}]),
            json!([port(json!(22)), {"accept": null}]),
        ];
        let ruleset = |rules: &[Value]| {
            let rules = rules.iter().map(|expr| json!({"rule": {"expr": expr}}));
            json!({"nftables": rules.collect::<Vec<_>>()})
        };
        let host = |port: Option<u16>| NatTarget::ThisHost {
            ports: port.map(|port| port..=port),
        };
        let (found, has_iptables) = of_nftables(&ruleset(&rules));
        assert!(!has_iptables);
        assert_eq!(
            found,
            [
                rule(
                    Some(Tcp),
                    Some(9_000..=9_000),
                    None,
                    to("10.0.0.4", Some(90..=90))
                ),
                rule(Some(Tcp), Some(1..=1), None, host(Some(99))),
                rule(Some(Tcp), Some(5..=9), None, host(Some(99))),
                rule(Some(Tcp), None, None, host(None)),
                rule(None, None, Some("192.0.2.9/32"), to("10.0.0.5", None)),
                rule(None, None, None, NatTarget::Other(map.to_string())),
            ]
        );
        let opaque = json!([port(json!(80)), {"xt": {"type": "target", "name": "DNAT"}}]);
        assert_eq!(of_nftables(&ruleset(&[opaque])), (vec![], true));
    }
}
