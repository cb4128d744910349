//! Finds other firewalls of this host: chains for incoming packets that drop what no rule accepts. It blocks.

use std::{collections::BTreeSet, fs, process::Command};

use serde_json::Value;

/// The firewalls that close ports of this host, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Firewalls {
    pub names: BTreeSet<String>,
    /// Why there may be others.
    pub error: Option<String>,
}

const UFW: &str = "ufw";
const UFW_SETTINGS: &str = "/etc/ufw/ufw.conf";

/// The older tables, which `nft` does not list. A program runs only if its table exists, because it would create it.
const LEGACY: [(&str, &str); 2] = [
    ("iptables-legacy-save", "/proc/net/ip_tables_names"),
    ("ip6tables-legacy-save", "/proc/net/ip6_tables_names"),
];

impl Firewalls {
    /// Reads the rules of nftables and iptables. Without the rights for that, the settings of ufw tell.
    pub fn read() -> Self {
        let mut found = Self::default();
        match run("nft", &["-j", "list", "ruleset"]) {
            Ok(text) => match serde_json::from_str(&text) {
                Ok(ruleset) => found.names.extend(of_ruleset(&ruleset)),
                Err(_) => found.error = Some("the output of `nft` cannot be parsed".to_owned()),
            },
            Err(problem) => {
                let settings = fs::read_to_string(UFW_SETTINGS).unwrap_or_default();
                if is_ufw_enabled(&settings) {
                    found.names.insert(UFW.to_owned());
                }
                found.error = Some(problem);
            }
        }
        for (program, tables) in LEGACY {
            let tables = fs::read_to_string(tables).unwrap_or_default();
            if !tables.lines().any(|table| table == "filter") {
                continue;
            }
            match run(program, &["-t", "filter"]) {
                Ok(text) => found.names.extend(of_iptables(&text)),
                Err(problem) => found.error = Some(problem),
            }
        }
        found
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("`{program}` cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint = complaint.lines().next().unwrap_or_default().trim();
    Err(format!("`{program}` fails: {complaint}"))
}

/// `ENABLED=yes`
fn is_ufw_enabled(settings: &str) -> bool {
    let mut lines = settings.lines().map(str::trim);
    lines.any(|line| line.eq_ignore_ascii_case("ENABLED=yes"))
}

/// The firewalls in the output of `nft -j list ruleset` (libnftables-json(5)).
fn of_ruleset(ruleset: &Value) -> BTreeSet<String> {
    let all = || ruleset["nftables"].as_array().into_iter().flatten();
    let text = |object: &Value, key: &str| object[key].as_str().unwrap_or_default().to_owned();
    let place = |object: &Value| (text(object, "family"), text(object, "table"));
    let has_ufw = |family: &str, table: &str| {
        let mut chains = all().filter_map(|entry| entry.get("chain"));
        chains.any(|chain| {
            place(chain) == (family.to_owned(), table.to_owned())
                && text(chain, "name").starts_with("ufw")
        })
    };
    let chains = all().filter_map(|entry| entry.get("chain"));
    let incoming = chains.filter(|chain| chain["hook"] == "input" && chain["type"] == "filter");
    let closing = incoming.filter(|chain| {
        let rules = all().filter_map(|entry| entry.get("rule"));
        let mut own = rules.filter(|rule| {
            place(rule) == place(chain) && text(rule, "chain") == text(chain, "name")
        });
        chain["policy"] == "drop" || own.any(drops_the_rest)
    });
    let names = closing.map(|chain| {
        let (family, table) = place(chain);
        match table.as_str() {
            "firewalld" => table,
            "filter" if has_ufw(&family, &table) => UFW.to_owned(),
            "filter" if family == "ip" || family == "ip6" => "iptables".to_owned(),
            _ => format!("nftables (table {family} {table})"),
        }
    });
    names.collect()
}

/// Whether a rule drops or rejects every packet that reaches it.
fn drops_the_rest(rule: &Value) -> bool {
    let statements = rule["expr"].as_array().map_or(&[][..], Vec::as_slice);
    let is_refusal = |statement: &Value| {
        let target = statement["xt"]["name"].as_str();
        statement.get("drop").is_some()
            || statement.get("reject").is_some()
            || matches!(target, Some("DROP" | "REJECT"))
    };
    let is_note = |statement: &Value| {
        ["counter", "log", "comment"]
            .iter()
            .any(|key| statement.get(key).is_some())
    };
    statements.iter().any(is_refusal)
        && statements
            .iter()
            .all(|statement| is_refusal(statement) || is_note(statement))
}

/// The firewall in the table `filter` of `iptables-save`.
fn of_iptables(text: &str) -> Option<String> {
    let drops_the_rest = |line: &str| {
        let action = line.strip_prefix("-A INPUT -j ");
        action.is_some_and(|action| action == "DROP" || action.starts_with("REJECT"))
    };
    let mut lines = text.lines().map(str::trim);
    lines
        .any(|line| line.starts_with(":INPUT DROP") || drops_the_rest(line))
        .then(|| match text.contains(":ufw") {
            true => UFW.to_owned(),
            false => "iptables".to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(objects: &[Value]) -> Vec<String> {
        let names = of_ruleset(&json!({ "nftables": objects }));
        names.into_iter().collect()
    }

    fn chain(family: &str, table: &str, name: &str, hook: Option<&str>, policy: &str) -> Value {
        match hook {
            Some(hook) => {
                json!({ "chain": { "family": family, "table": table, "name": name, "type": "filter",
                "hook": hook, "prio": 0, "policy": policy } })
            }
            None => json!({ "chain": { "family": family, "table": table, "name": name } }),
        }
    }

    fn rule(family: &str, table: &str, chain: &str, expr: Value) -> Value {
        json!({ "rule": { "family": family, "table": table, "chain": chain, "expr": expr } })
    }

    #[test]
    fn what_drops_by_default_is_a_firewall_and_has_its_name() {
        let reject = json!([{ "reject": { "type": "icmpx", "expr": "admin-prohibited" } }]);
        let logged =
            json!([{ "counter": { "packets": 1, "bytes": 2 } }, { "log": null }, { "drop": null }]);
        let target = json!([{ "counter": { "packets": 0, "bytes": 0 } }, { "xt": { "type": "target", "name": "REJECT" } }]);
        for (expected, objects) in [
            (
                "ufw",
                vec![
                    chain("ip", "filter", "INPUT", Some("input"), "drop"),
                    chain("ip", "filter", "ufw-user-input", None, ""),
                ],
            ),
            (
                "firewalld",
                vec![
                    chain("inet", "firewalld", "filter_INPUT", Some("input"), "accept"),
                    rule("inet", "firewalld", "filter_INPUT", reject),
                ],
            ),
            (
                "iptables",
                vec![
                    chain("ip", "filter", "INPUT", Some("input"), "accept"),
                    rule("ip", "filter", "INPUT", target),
                ],
            ),
            (
                "nftables (table inet filter)",
                vec![chain("inet", "filter", "input", Some("input"), "drop")],
            ),
            (
                "nftables (table inet own)",
                vec![
                    chain("inet", "own", "in", Some("input"), "accept"),
                    rule("inet", "own", "in", logged),
                ],
            ),
        ] {
            assert_eq!(names(&objects), [expected], "{objects:?}");
        }
    }

    #[test]
    fn rules_of_docker_and_of_bans_are_no_firewall() {
        let banned = json!([
            { "match": { "op": "==", "left": {}, "right": "192.0.2.1" } },
            { "drop": null },
        ]);
        let docker = json!([{ "drop": null }]);
        for objects in [
            vec![],
            vec![chain("ip", "filter", "INPUT", Some("input"), "accept")],
            vec![
                chain("ip", "filter", "FORWARD", Some("forward"), "drop"),
                chain("ip", "filter", "DOCKER", None, ""),
                rule("ip", "filter", "DOCKER", docker),
            ],
            vec![
                chain("inet", "f2b-table", "f2b-chain", Some("input"), "accept"),
                rule("inet", "f2b-table", "f2b-chain", banned),
            ],
        ] {
            assert_eq!(names(&objects), [""; 0], "{objects:?}");
        }
    }

    #[test]
    fn older_tables_and_the_settings_of_ufw_are_read() {
        for (text, expected) in [
            (
                "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -s 192.0.2.1 -j DROP\nCOMMIT\n",
                None,
            ),
            (
                "*filter\n:INPUT DROP [0:0]\n:ufw-user-input - [0:0]\nCOMMIT\n",
                Some("ufw"),
            ),
            ("*filter\n:INPUT DROP [0:0]\nCOMMIT\n", Some("iptables")),
            (
                "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\n-A INPUT -j REJECT --reject-with \
                 icmp-host-prohibited\nCOMMIT\n",
                Some("iptables"),
            ),
        ] {
            assert_eq!(of_iptables(text).as_deref(), expected, "{text}");
        }
        assert!(is_ufw_enabled("# x\nENABLED=yes\nLOGLEVEL=low\n"));
        assert!(!is_ufw_enabled("#ENABLED=yes\nENABLED=no\n"));
    }
}
