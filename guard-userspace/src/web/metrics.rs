//! Metrics in the text format of Prometheus (version 0.0.4). No label holds a value that a sender of packets chooses,
//! so the policy bounds the number of time series.

use std::collections::HashMap;

use guard_common::layout;
use prometheus::{
    Encoder as _, TextEncoder,
    proto::{Counter as Count, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

use crate::{
    api::{Counter, Status},
    dataplane::FlowCounts,
    host,
    policy::{Action, Entry},
};

/// The content type of the format.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Writes all metrics.
pub fn encode(
    status: &Status,
    counters: &[Counter],
    entries: &[Entry],
    flows: Option<FlowCounts>,
) -> Result<String, prometheus::Error> {
    let mut families = Families::default();
    families.count(counters);
    families.status(status);
    families.conntrack();
    if let Some(flows) = flows {
        families.flows(flows);
    }
    for action in [Action::Allow, Action::Deny] {
        let count = entries
            .iter()
            .filter(|entry| entry.action == action)
            .count();
        families.gauge(
            "guard_entries",
            "Temporary entries of operators.",
            &[("action", action.name())],
            count as f64,
        );
    }
    let mut text = Vec::new();
    TextEncoder::new().encode(&families.0, &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[derive(Default)]
struct Families(Vec<MetricFamily>);

impl Families {
    /// Adds one series for each set of labels. Rows with the same labels are summed.
    fn count(&mut self, counters: &[Counter]) {
        let mut sums: HashMap<[&str; 5], (u64, u64)> = HashMap::new();
        let mut order = Vec::new();
        for counter in counters {
            let labels = [
                counter.interface.as_str(),
                counter.service.as_deref().unwrap_or_default(),
                &counter.verdict,
                &counter.reason,
                counter.would.as_deref().unwrap_or_default(),
            ];
            let (packets, bytes) = sums.entry(labels).or_insert_with(|| {
                order.push(labels);
                (0, 0)
            });
            *packets += counter.packets;
            *bytes += counter.bytes;
        }
        let names = ["interface", "service", "verdict", "reason", "would"];
        for labels in order {
            let (packets, bytes) = sums.get(&labels).copied().unwrap_or_default();
            let labels: Vec<(&str, &str)> = names.into_iter().zip(labels).collect();
            let help = "Packets by verdict and reason; `would` is `drop` for packets that passed only because of \
                        the mode.";
            self.counter("guard_packets_total", help, &labels, packets);
            let help = "Bytes of frames by verdict and reason.";
            self.counter("guard_bytes_total", help, &labels, bytes);
        }
    }

    fn status(&mut self, status: &Status) {
        let flag = |is_so: bool| if is_so { 1.0 } else { 0.0 };
        self.gauge(
            "guard_info",
            "The version of guard.",
            &[("version", &status.version)],
            1.0,
        );
        self.gauge(
            "guard_enforcing",
            "Whether packets against the policy are dropped at this moment.",
            &[],
            flag(status.enforcing),
        );
        for mode in ["off", "observe", "enforce"] {
            self.gauge(
                "guard_mode",
                "The mode of the host.",
                &[("mode", mode)],
                flag(status.mode == mode),
            );
        }
        self.gauge(
            "guard_policy_loaded_timestamp_seconds",
            "When the policy in force was read.",
            &[],
            status.policy.loaded_at.as_millisecond() as f64 / 1e3,
        );
        self.gauge(
            "guard_policy_stale",
            "Whether the policy in force differs from the policy file.",
            &[],
            flag(status.policy.stale.is_some()),
        );
        for flood in &status.floods {
            self.gauge(
                "guard_flooded",
                "Whether a service is flooded with connection requests, so that new clients are challenged.",
                &[("service", &flood.service)],
                1.0,
            );
        }
        self.gauge(
            "guard_trial",
            "Whether a policy is on trial.",
            &[],
            flag(status.trial.is_some()),
        );
        for interface in &status.interfaces {
            self.gauge(
                "guard_interface_attached",
                "Whether the program is attached to an interface.",
                &[
                    ("interface", &interface.name),
                    ("xdp_mode", &interface.xdp_mode),
                ],
                flag(interface.attached),
            );
        }
        if let Some(docker) = status
            .docker
            .as_ref()
            .filter(|docker| !docker.socket.is_empty())
        {
            self.gauge(
                "guard_docker_connected",
                "Whether Docker answers.",
                &[],
                flag(docker.connected),
            );
            self.gauge(
                "guard_docker_published_ports",
                "Published ports of containers that other hosts can reach.",
                &[],
                docker.published.len() as f64,
            );
        }
    }

    /// Adds the fill of the conntrack table, if the kernel tracks connections.
    fn conntrack(&mut self) {
        for (name, help, file) in [
            (
                "guard_conntrack_entries",
                "Connections that the kernel tracks.",
                "count",
            ),
            (
                "guard_conntrack_limit",
                "Connections that the kernel can track.",
                "max",
            ),
        ] {
            if let Some(value) = host::tracked_connections(file) {
                self.gauge(name, help, &[], value as f64);
            }
        }
    }

    fn flows(&mut self, FlowCounts { open, evicted }: FlowCounts) {
        for (name, help, value) in [
            (
                "guard_flows",
                "UDP flows of this host and its containers in the table of flows.",
                open as f64,
            ),
            (
                "guard_flows_limit",
                "UDP flows that the table of flows can hold.",
                f64::from(layout::MAX_FLOWS),
            ),
        ] {
            self.gauge(name, help, &[], value);
        }
        self.counter(
            "guard_flow_evictions_total",
            "UDP flows that were evicted for others before they ended.",
            &[],
            evicted,
        );
    }

    fn counter(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: u64) {
        let mut count = Count::default();
        count.set_value(value as f64);
        let mut metric = labelled(labels);
        metric.set_counter(count);
        self.add(name, help, MetricType::COUNTER, metric);
    }

    fn gauge(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: f64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        let mut metric = labelled(labels);
        metric.set_gauge(gauge);
        self.add(name, help, MetricType::GAUGE, metric);
    }

    fn add(&mut self, name: &str, help: &str, kind: MetricType, metric: Metric) {
        let Self(families) = self;
        if let Some(family) = families.iter_mut().find(|family| family.name() == name) {
            family.mut_metric().push(metric);
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.mut_metric().push(metric);
        families.push(family);
    }
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pairs = labels.iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    });
    let mut metric = Metric::default();
    metric.set_label(pairs.collect());
    metric
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use guard_common::reason::Reason;
    use serde_json::Value;

    use super::*;

    fn row(verdict: &str, would: Option<&str>, packets: u64) -> Counter {
        Counter {
            interface: "eth0".to_owned(),
            service: Some("web".to_owned()),
            verdict: verdict.to_owned(),
            would: would.map(str::to_owned),
            reason: "packet_limit".to_owned(),
            packets,
            bytes: packets * 60,
            ports: Vec::new(),
        }
    }

    #[test]
    fn would_be_drops_are_a_separate_series() {
        let mut families = Families::default();
        families.count(&[
            row("drop", None, 1),
            row("pass", Some("drop"), 20),
            row("pass", Some("drop"), 300),
        ]);
        let mut text = Vec::new();
        TextEncoder::new().encode(&families.0, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let labels = "interface=\"eth0\",service=\"web\"";
        for series in [
            "verdict=\"drop\",reason=\"packet_limit\",would=\"\"} 1",
            "verdict=\"pass\",reason=\"packet_limit\",would=\"drop\"} 320",
        ] {
            let series = format!("guard_packets_total{{{labels},{series}");
            assert!(
                text.lines().any(|line| line == series),
                "{series} is not in\n{text}"
            );
        }
    }

    fn read(file: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn reasons() -> BTreeSet<String> {
        let names = Reason::ALL.into_iter().map(Reason::name);
        names.map(str::to_owned).collect()
    }

    /// The values after `reason` and an operator of PromQL or YAML: `reason="a"`, `reason=~"a|b"`, `reason: a`.
    fn named(text: &str) -> BTreeSet<String> {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut named = BTreeSet::new();
        for (place, word) in text.match_indices("reason") {
            let is_inside = text[..place].ends_with(is_word);
            let rest = text[place + word.len()..].trim_start();
            let value = rest.trim_start_matches(['=', '!', '~', ':']);
            if is_inside || value.len() == rest.len() {
                continue;
            }
            let value = value.trim_start().trim_start_matches(['\\', '"', '\'']);
            let end = value.find(|c| !is_word(c) && c != '|');
            let alternatives = value[..end.unwrap_or(value.len())].split('|');
            named.extend(
                alternatives
                    .filter(|name| !name.is_empty())
                    .map(str::to_owned),
            );
        }
        named
    }

    #[test]
    fn rules_dashboard_and_page_find_drops_by_labels_and_list_no_reasons() {
        assert_eq!(
            named(r#"x{reason=~"a_b|c", y="d"} reason: e, by (reason) reason!=\"f\" reasons=1"#),
            ["a_b", "c", "e", "f"].map(str::to_owned).into(),
            "the parser finds all forms"
        );
        let none = BTreeSet::new();
        let rules = read("packaging/prometheus/guard.rules.yml");
        assert_eq!(
            named(&rules),
            none,
            "use verdict=\"drop\" or would=\"drop\""
        );
        let dashboard = read("packaging/grafana/guard.json");
        assert_eq!(
            named(&dashboard),
            none,
            "use verdict=\"drop\" or would=\"drop\""
        );
        for (file, text) in [
            ("guard.rules.yml", rules.as_str()),
            ("guard.json", &dashboard),
            ("page.html", super::super::PAGE),
        ] {
            let words: BTreeSet<&str> = text
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .collect();
            for reason in reasons() {
                // Reasons without an underscore are English words as well: only a quoted word counts.
                let is_listed = if reason.contains('_') {
                    words.contains(reason.as_str())
                } else {
                    ["\"", "'", "`", "|"]
                        .iter()
                        .any(|end| text.contains(&format!("{end}{reason}{end}")))
                };
                assert!(
                    !is_listed,
                    "{file} lists {reason}: a new reason would be missing"
                );
            }
        }
    }

    #[test]
    fn every_reason_that_packaging_names_exists() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
        // Policies in packaging are left out: the `reason` of their sources is a text for people.
        let mut folders = vec![folder.join("prometheus"), folder.join("grafana")];
        let mut all = BTreeSet::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let named = named(&fs::read_to_string(&path).unwrap());
                let unknown: Vec<_> = named.difference(&reasons()).cloned().collect();
                assert!(unknown.is_empty(), "{}: {unknown:?}", path.display());
                all.extend(named);
            }
        }
        assert!(
            all.contains("packet_limit"),
            "the rules' tests name some: {all:?}"
        );
    }

    #[test]
    fn the_table_of_reasons_has_every_reason_and_its_verdict() {
        let text = read("docs/operations.md");
        let table = text.split_once("\n## Reasons\n").unwrap().1;
        let table = table.split("\n## ").next().unwrap();
        let rows = table.lines().filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
            let name = cells.next()?.trim_end_matches('`').to_owned();
            Some((name, cells.next()?.to_owned()))
        });
        let documented: Vec<(String, String)> = rows.collect();
        let every = Reason::ALL.map(|reason| {
            let verdict = reason.verdict().name();
            (reason.name().to_owned(), verdict.to_owned())
        });
        assert_eq!(documented, every);
    }

    #[test]
    fn every_metric_of_rules_and_dashboard_exists() {
        // Metrics that a rule records are not found: they have a colon after `guard`.
        let source = include_str!("metrics.rs");
        let of = |text: &str| -> BTreeSet<String> {
            let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
            let names = words.filter(|word| word.starts_with("guard_"));
            names.map(str::to_owned).collect()
        };
        let dashboard: Value = serde_json::from_str(&read("packaging/grafana/guard.json")).unwrap();
        let rules = read("packaging/prometheus/guard.rules.yml");
        for name in of(&dashboard.to_string()).union(&of(&rules)) {
            assert!(source.contains(&format!("\"{name}\"")), "{name}");
        }
    }
}
