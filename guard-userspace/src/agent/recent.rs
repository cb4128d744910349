//! Computes from the readings of the last minute how many packets each source sent, and how many were dropped.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use guard_api::{OverBudget, RecentPackets, Seen, Talker};
use guard_common::reason::Reason;

/// The interval between readings.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// Readings that are remembered: one minute. The current interval comes on top.
const READINGS: usize = 6;

/// The limit of sources in a reading: the heaviest are recorded.
const MOST_SOURCES: usize = 4096;

/// The last readings, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct RecentTalkers(VecDeque<(Instant, Arc<HashMap<IpAddr, Seen>>)>);

impl RecentTalkers {
    /// Adds a reading. `talkers`: the heaviest first.
    pub fn add(&mut self, at: Instant, talkers: &[Talker]) {
        let Self(readings) = self;
        let mut sources: HashMap<IpAddr, Seen> = HashMap::new();
        for talker in talkers {
            if sources.len() < MOST_SOURCES || sources.contains_key(&talker.source) {
                add_to(sources.entry(talker.source).or_default(), talker);
            }
        }
        if readings.len() == READINGS {
            readings.pop_front();
        }
        readings.push_back((at, Arc::new(sources)));
    }

    /// The packets of a source in the last minute; `service`: that of the explained packet. `None`: none were sampled.
    pub fn of_source(
        &self,
        now: Instant,
        source: IpAddr,
        seen: &Seen,
        service: Option<&str>,
    ) -> Option<RecentPackets> {
        let Self(readings) = self;
        let (begin, _) = readings.front()?;
        let nothing = Seen::default();
        let of_source = readings
            .iter()
            .map(|(_, sources)| sources.get(&source).unwrap_or(&nothing));
        let later = of_source.clone().skip(1).chain([seen]);
        // Neither has a service in scope `containers` if the one went to a closed port and the other is not guarded.
        let is_here = service == seen.service.as_deref() && seen.port.is_none();
        let is_denied = seen.reason.as_deref() == Some(Reason::DeniedSource.name());
        let is_denied_everywhere = is_denied && seen.service.is_none();
        let mut found = RecentPackets {
            seconds: now.saturating_duration_since(*begin).as_secs().max(1),
            ..RecentPackets::default()
        };
        for (before, after) in of_source.zip(later) {
            // The counters of a source that lost its place among the talkers and returned start at zero.
            let more = |before: u64, after: u64| after.checked_sub(before).unwrap_or(after);
            found.packets += more(before.packets, after.packets);
            let dropped = more(before.dropped, after.dropped);
            found.dropped += dropped;
            found.would_drop += more(before.would_drop, after.would_drop);
            if (&after.reason, &after.service) == (&seen.reason, &seen.service) {
                found.for_reason += dropped;
            }
        }
        if found.for_reason > 0 {
            found.reason.clone_from(&seen.reason);
            found.service.clone_from(&seen.service);
            found.port.clone_from(&seen.port);
            found.is_same_destination = is_here || is_denied_everywhere;
        }
        (found.packets > 0).then_some(found)
    }
}

/// How far a source was over its budget, if it was, at the service of the explained packet.
pub fn over_budget(recent: &RecentPackets) -> Option<OverBudget> {
    let budget = budget_of(recent.reason.as_deref()?)?;
    recent.is_same_destination.then(|| OverBudget {
        budget: budget.to_owned(),
        packets: recent.packets,
        over: recent.for_reason,
        seconds: recent.seconds,
    })
}

/// Adds the counters of a source on one interface.
pub fn add_to(seen: &mut Seen, talker: &Talker) {
    seen.packets += talker.packets;
    seen.dropped += talker.dropped;
    seen.would_drop += talker.would_drop;
    if talker.reason.is_some() {
        seen.reason.clone_from(&talker.reason);
        seen.service.clone_from(&talker.service);
        seen.port.clone_from(&talker.port);
    }
}

/// The policy key of the per-source budget that a drop reason belongs to.
pub fn budget_of(reason: &str) -> Option<&'static str> {
    let budgets = [
        (Reason::PacketLimit, "packets"),
        (Reason::ByteLimit, "bytes"),
        (Reason::ConnectionLimit, "connections"),
    ];
    let mut budgets = budgets.into_iter();
    let (_, key) = budgets.find(|(limit, _)| limit.name() == reason)?;
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "198.51.100.7";

    fn talker(interface: &str, packets: u64, dropped: u64, why: Option<(&str, &str)>) -> Talker {
        Talker {
            interface: interface.to_owned(),
            source: SOURCE.parse().unwrap(),
            name: None,
            packets,
            dropped,
            would_drop: 0,
            bytes: 60 * packets,
            reason: why.map(|(reason, _)| reason.to_owned()),
            service: why.map(|(_, service)| service.to_owned()),
            port: None,
        }
    }

    const OVER: Option<(&str, &str)> = Some(("connection_limit", "web"));

    /// Adds readings ten seconds apart, and returns the budget that `last`, ten seconds later, finds exceeded.
    fn judge(readings: &[Talker], last: &Talker, service: Option<&str>) -> Option<OverBudget> {
        let begin = Instant::now();
        let mut recent = RecentTalkers::default();
        let mut at = begin;
        for reading in readings {
            recent.add(at, std::slice::from_ref(reading));
            at += INTERVAL;
        }
        let mut seen = Seen::default();
        add_to(&mut seen, last);
        over_budget(&recent.of_source(at, last.source, &seen, service)?)
    }

    #[test]
    fn only_drops_of_the_last_minute_count() {
        let long_ago: Vec<Talker> = (0..20)
            .map(|n| talker("eth0", 1_000_000 + 100 * n, 500_000 + 10 * n, OVER))
            .collect();
        let over = judge(
            &long_ago,
            &talker("eth0", 1_002_000, 500_200, OVER),
            Some("web"),
        )
        .unwrap();
        assert_eq!(over.budget, "connections");
        assert_eq!((over.packets, over.over, over.seconds), (600, 60, 60));
        // The agent has just started.
        let over = judge(
            &long_ago[..1],
            &talker("eth0", 1_000_100, 500_010, OVER),
            Some("web"),
        );
        let over = over.unwrap();
        assert_eq!((over.packets, over.over, over.seconds), (100, 10, 10));
    }

    #[test]
    fn a_source_that_returns_to_the_talkers_counts_from_zero() {
        let readings = [
            talker("eth0", 9_000, 9_000, OVER),
            talker("eth0", 160, 32, OVER),
        ];
        let over = judge(&readings, &talker("eth0", 320, 64, OVER), Some("web")).unwrap();
        assert_eq!((over.packets, over.over), (320, 64));
    }

    #[test]
    fn only_a_budget_of_the_source_at_the_same_service_counts() {
        let before = [talker("eth0", 0, 0, None)];
        for (last, service) in [
            (OVER, Some("ssh")),
            (OVER, None),
            (Some(("closed_port", "web")), Some("web")),
            // A total is shared by all sources.
            (Some(("total_limit", "web")), Some("web")),
            (None, Some("web")),
        ] {
            let found = judge(&before, &talker("eth0", 160, 80, last), service);
            assert_eq!(found, None, "{last:?} {service:?}");
        }
        // No drops in the last minute.
        let before = [talker("eth0", 1_600, 800, OVER)];
        assert_eq!(
            judge(&before, &talker("eth0", 3_200, 800, OVER), Some("web")),
            None
        );
        // Drops for another reason do not count.
        let readings = [
            talker("eth0", 0, 0, None),
            talker("eth0", 160, 80, Some(("closed_port", "web"))),
        ];
        let over = judge(&readings, &talker("eth0", 320, 96, OVER), Some("web")).unwrap();
        assert_eq!((over.packets, over.over), (320, 16));
    }

    #[test]
    fn drops_at_a_closed_port_are_not_those_of_a_port_that_is_not_guarded() {
        let closed = |packets| Talker {
            reason: Some("closed_port".to_owned()),
            port: Some("tcp/8000".to_owned()),
            ..talker("eth0", packets, packets, None)
        };
        let (mut recent, begin) = (RecentTalkers::default(), Instant::now());
        recent.add(begin, &[closed(160)]);
        let mut seen = Seen::default();
        add_to(&mut seen, &closed(320));
        let found = recent.of_source(begin + INTERVAL, SOURCE.parse().unwrap(), &seen, None);
        let found = found.unwrap();
        assert_eq!(
            (found.for_reason, found.port.as_deref()),
            (160, Some("tcp/8000"))
        );
        assert!(!found.is_same_destination);
    }

    #[test]
    fn a_denial_of_the_whole_source_concerns_every_service() {
        let denied = |packets| talker("eth0", packets, packets, None);
        let denied = |packets, service: Option<&str>| Talker {
            reason: Some("denied_source".to_owned()),
            service: service.map(str::to_owned),
            ..denied(packets)
        };
        for (service, concerns_web) in [(None, true), (Some("web"), true), (Some("ssh"), false)] {
            let (mut recent, begin) = (RecentTalkers::default(), Instant::now());
            recent.add(begin, &[denied(160, service)]);
            let mut seen = Seen::default();
            add_to(&mut seen, &denied(320, service));
            let source = SOURCE.parse().unwrap();
            let found = recent.of_source(begin + INTERVAL, source, &seen, Some("web"));
            assert_eq!(
                found.unwrap().is_same_destination,
                concerns_web,
                "{service:?}"
            );
        }
    }

    #[test]
    fn interfaces_are_added_up() {
        let mut recent = RecentTalkers::default();
        let begin = Instant::now();
        recent.add(
            begin,
            &[talker("eth0", 160, 16, OVER), talker("eth1", 320, 0, None)],
        );
        let mut seen = Seen::default();
        add_to(&mut seen, &talker("eth0", 320, 48, OVER));
        add_to(&mut seen, &talker("eth1", 640, 0, None));
        let source = SOURCE.parse().unwrap();
        let recent = recent.of_source(begin + INTERVAL, source, &seen, Some("web"));
        let over = over_budget(&recent.unwrap()).unwrap();
        assert_eq!((over.packets, over.over), (480, 32));
    }
}
