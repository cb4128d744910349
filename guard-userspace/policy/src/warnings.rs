//! Warnings about values of a policy that are valid but probably not meant. No warning refuses a policy.

use std::net::SocketAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;

use super::{Budgets, Limit, Per, Policy, Service, Source, Treatment};

/// A value of the policy that is probably not meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// The line of the policy file; `None`: the warning has no single line.
    pub line: Option<usize>,
    pub problem: String,
}

impl Warning {
    /// In the form of an error: the file and the line come first.
    pub fn display(&self, file: &str) -> String {
        match self.line {
            Some(line) => format!("{file}:{line}: {}", self.problem),
            None => format!("{file}: {}", self.problem),
        }
    }
}

/// The page has no login: every host that reaches it can read it.
fn shown(listen: SocketAddr) -> Option<Warning> {
    (!listen.ip().is_loopback()).then(|| Warning {
        line: None,
        problem: format!(
            "web.listen = \"{listen}\" shows metrics and the page, with the addresses of sources, to every \
             host that reaches it: write a 127.0.0.1 address, and use an SSH tunnel or a proxy with a login"
        ),
    })
}

impl Policy {
    /// The warnings at this moment that do not depend on the host.
    pub fn warnings(&self, now: Timestamp) -> Vec<Warning> {
        let sources = self.sources.iter();
        sources
            .flat_map(|source| {
                let ended = ended(source, now).into_iter();
                ended.chain(
                    source
                        .cidrs
                        .iter()
                        .filter_map(|cidr| everybody(source, cidr)),
                )
            })
            .chain(self.web.and_then(shown))
            .chain(self.limits_of_nothing())
            .collect()
    }

    /// Warns of limits that have `per` and no budget.
    fn limits_of_nothing(&self) -> impl Iterator<Item = Warning> {
        let services = self.services.iter().map(|service| {
            let Service { name, line, .. } = service;
            (Some(*line), format!("limit of \"{name}\""), &service.limit)
        });
        let limits = (None, "[limits]".to_owned(), &self.limits);
        let is_of_nothing =
            |limit: &Limit| limit.budgets == Budgets::default() && limit.per != Per::default();
        let limits = services.chain([limits]);
        limits
            .filter(move |(_, _, limit)| is_of_nothing(limit))
            .map(|(line, whose, _)| Warning {
                line,
                problem: format!(
                    "{whose} has `per` and no budget, so it limits nothing: write packets, bytes or connections, \
                     such as connections = \"50/s\""
                ),
            })
    }

    /// Warns of budgets of bytes whose burst is smaller than a full frame of this interface. `mtu` does not count the
    /// Ethernet header.
    pub fn frame_warnings(&self, interface: &str, mtu: u32) -> Vec<Warning> {
        let of_services = self.services.iter().flat_map(|service| {
            let Service { name, line, .. } = service;
            [("limit", &service.limit.budgets), ("total", &service.total)].map(
                |(which, budgets)| (Some(*line), format!("{which}.bytes of \"{name}\""), budgets),
            )
        });
        let of_limits = [
            ("[limits] bytes", &self.limits.budgets),
            ("[limits.total] bytes", &self.limits_total),
        ];
        let of_limits = of_limits.map(|(whose, budgets)| (None, whose.to_owned(), budgets));
        of_services
            .chain(of_limits)
            .filter_map(|(line, whose, budgets)| {
                let problem = too_small(budgets, &whose, interface, mtu)?;
                Some(Warning { line, problem })
            })
            .collect()
    }
}

fn ended(source: &Source, now: Timestamp) -> Option<Warning> {
    let end = source.expires.filter(|end| *end <= now)?;
    let Source { name, line, .. } = source;
    let problem = format!(
        "source \"{name}\" ended at {end} and has no effect: remove it, or write a later `expires`"
    );
    Some(Warning {
        line: Some(*line),
        problem,
    })
}

fn everybody(source: &Source, cidr: &IpNet) -> Option<Warning> {
    if source.treatment != Treatment::Denied || cidr.prefix_len() != 0 {
        return None;
    }
    let family = if cidr.addr().is_ipv4() {
        "IPv4"
    } else {
        "IPv6"
    };
    let Source { name, line, .. } = source;
    let problem = format!(
        "source \"{name}\" denies {cidr}, which is every {family} source, your own included: to close \
         ports, leave their services out"
    );
    Some(Warning {
        line: Some(*line),
        problem,
    })
}

/// The Ethernet header and two VLAN tags, in bytes.
const FRAME_OVERHEAD: u64 = 14 + 8;

fn too_small(budgets: &Budgets, whose: &str, interface: &str, mtu: u32) -> Option<String> {
    let bytes = budgets.bytes.as_ref()?;
    let least = u64::from(mtu) + FRAME_OVERHEAD;
    if bytes.burst >= least {
        return None;
    }
    let burst = bytes.burst;
    Some(format!(
        "{whose} has a burst of {burst}B, and frames of {interface}, whose MTU is {mtu}, may have {least}B: \
         full frames would always be dropped; write burst = \"{least}B\" or more"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KernelTick;

    fn policy(text: &str) -> Policy {
        let clock = KernelTick { tick_ns: 4_000_000 };
        Policy::parse(text, "test.toml", clock).unwrap()
    }

    fn found(warnings: Vec<Warning>) -> Vec<(Option<usize>, String)> {
        let pairs = warnings.into_iter();
        pairs
            .map(|warning| (warning.line, warning.problem))
            .collect()
    }

    #[test]
    fn a_source_that_has_ended_or_denies_every_source_is_warned_of() {
        let text = "[[source]]
            name = \"past\"
            cidrs = [\"192.0.2.0/24\"]
            expires = 2001-01-01T00:00:00Z
            [[source]]
            name = \"future\"
            cidrs = [\"192.0.2.0/24\"]
            expires = 2101-01-01T00:00:00Z
            [[source]]
            name = \"all\"
            cidrs = [\"0.0.0.0/0\", \"192.0.2.0/24\", \"::/0\"]
            deny = true
            [[source]]
            name = \"friends\"
            cidrs = [\"0.0.0.0/0\"]
            factor = 2";
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let found = found(policy(text).warnings(now));
        let lines: Vec<_> = found.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [Some(2), Some(10), Some(10)], "{found:?}");
        assert!(found[0].1.contains("\"past\" ended at 2001-01-01"));
        assert!(found[1].1.contains("0.0.0.0/0") && found[1].1.contains("IPv4"));
        assert!(found[2].1.contains("::/0") && found[2].1.contains("IPv6"));
    }

    #[test]
    fn a_limit_with_a_prefix_and_no_budget_is_warned_of() {
        let text = "[limits]
            per = { ipv4 = 24, ipv6 = 56 }
            [[service]]
            name = \"web\"
            ports = [\"tcp/80\"]
            limit.per = { ipv4 = 24, ipv6 = 56 }
            [[service]]
            name = \"api\"
            ports = [\"tcp/81\"]
            limit = { packets = \"1k/s\", per = { ipv4 = 24, ipv6 = 56 } }";
        let found = found(policy(text).warnings(Timestamp::UNIX_EPOCH));
        let lines: Vec<_> = found.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [Some(4), None], "{found:?}");
        assert!(found[0].1.contains("limit of \"web\""), "{found:?}");
    }

    #[test]
    fn a_burst_smaller_than_a_full_frame_is_warned_of_with_the_least_that_fits() {
        let text = "[limits]
            bytes = { rate = \"100kB/s\", burst = \"9021B\" }
            [[service]]
            name = \"web\"
            ports = [\"tcp/80\"]
            limit.bytes = { rate = \"100kB/s\", burst = \"2kB\" }
            total.bytes = { rate = \"100kB/s\", burst = \"9022B\" }";
        let policy = policy(text);
        assert_eq!(policy.frame_warnings("eth0", 1_500), []);
        let found = found(policy.frame_warnings("eth0", 9_000));
        let [(Some(4), web), (None, limits)] = found.as_slice() else {
            panic!("{found:?}");
        };
        for part in [
            "limit.bytes of \"web\"",
            "2000B",
            "eth0",
            "9000",
            "\"9022B\"",
        ] {
            assert!(web.contains(part), "{part}: {web}");
        }
        assert!(
            limits.contains("[limits]") && limits.contains("9021B"),
            "{limits}"
        );
    }
}
