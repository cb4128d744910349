//! What Prometheus scrapes, in its text format (version 0.0.4). No label holds what a sender chooses, so
//! that the number of time series is bounded by the policy.

use std::collections::HashMap;

use prometheus::{
    Encoder as _, TextEncoder,
    proto::{Counter as Count, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

use crate::{
    api::{Counter, Status},
    host,
    policy::{Action, Entry},
};

/// The content type of the format.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Writes everything that there is to tell.
pub fn encode(
    status: &Status,
    counters: &[Counter],
    entries: &[Entry],
) -> Result<String, prometheus::Error> {
    let mut families = Families::default();
    families.count(counters);
    families.tell(status);
    families.conntrack();
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
    /// Of rows that differ in `would` alone, the sum: their reason tells a would-drop from a pass.
    fn count(&mut self, counters: &[Counter]) {
        let mut sums: HashMap<[&str; 4], (u64, u64)> = HashMap::new();
        let mut order = Vec::new();
        for counter in counters {
            let labels = [
                counter.interface.as_str(),
                counter.service.as_deref().unwrap_or_default(),
                &counter.verdict,
                &counter.reason,
            ];
            let (packets, bytes) = sums.entry(labels).or_insert_with(|| {
                order.push(labels);
                (0, 0)
            });
            *packets += counter.packets;
            *bytes += counter.bytes;
        }
        let names = ["interface", "service", "verdict", "reason"];
        for labels in order {
            let (packets, bytes) = sums.get(&labels).copied().unwrap_or_default();
            let labels: Vec<(&str, &str)> = names.into_iter().zip(labels).collect();
            let help = "Packets by what became of them; of those that pass, a reason to drop is one for \
                        which `enforce` would have dropped them.";
            self.counter("guard_packets_total", help, &labels, packets);
            let help = "Bytes of frames by what became of them.";
            self.counter("guard_bytes_total", help, &labels, bytes);
        }
    }

    fn tell(&mut self, status: &Status) {
        let flag = |is_so: bool| if is_so { 1.0 } else { 0.0 };
        self.gauge(
            "guard_info",
            "The version of guard.",
            &[("version", &status.version)],
            1.0,
        );
        self.gauge(
            "guard_enforcing",
            "Whether what the policy closes is closed at this moment.",
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
            "Whether what is in force is not what the policy file says.",
            &[],
            flag(status.policy.stale.is_some()),
        );
        self.gauge(
            "guard_trial",
            "Whether a policy is on trial.",
            &[],
            flag(status.trial.is_some()),
        );
        for interface in &status.interfaces {
            self.gauge(
                "guard_interface_attached",
                "Whether the program judges the packets of an interface.",
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
                "Ports that containers publish where others can reach them.",
                &[],
                docker.published.len() as f64,
            );
        }
    }

    /// Nothing where the kernel tracks no connections.
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
            if let Some(value) = host::conntrack(file) {
                self.gauge(name, help, &[], value as f64);
            }
        }
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
