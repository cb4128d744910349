//! Finds floods among the points of the chart.
//!
//! A flood is a span in which more than [`LEAST`] packets a second are or would be dropped, and more than pass. It ends
//! when [`CALM`] points in a row are calmer: a flood that pauses for a moment is one flood.

use jiff::Timestamp;
use serde::Serialize;

/// The packets a second above which drops are a flood.
pub const LEAST: f64 = 1_000.0;

/// Calm points after which a flood is over.
const CALM: usize = 3;

/// A flood on the time axis of the chart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FloodSpan {
    pub begin: Timestamp,
    /// `null`: it goes on.
    pub end: Option<Timestamp>,
    /// The most packets a second of a point that were or would have been dropped.
    pub peak: u64,
    /// The service with most of these packets; `null`: they matched no service.
    pub service: Option<String>,
    /// The reason for most of these packets.
    pub reason: String,
}

/// The packets of one point of the chart.
#[derive(Clone, Debug)]
pub struct FloodPoint<'a> {
    pub begin: Timestamp,
    pub end: Timestamp,
    pub seconds: f64,
    pub passed: u64,
    /// What was or would have been dropped: service, reason, packets.
    pub dropped: Vec<(Option<&'a str>, &'a str, u64)>,
}

impl FloodPoint<'_> {
    fn rate(&self) -> f64 {
        let packets: u64 = self.dropped.iter().map(|(_, _, packets)| packets).sum();
        packets as f64 / self.seconds
    }

    fn is_flood(&self) -> bool {
        let rate = self.rate();
        rate > LEAST && rate > self.passed as f64 / self.seconds
    }
}

/// The floods, the oldest first.
pub fn floods(points: &[FloodPoint<'_>]) -> Vec<FloodSpan> {
    let mut found: Vec<FloodSpan> = Vec::new();
    let flooded = points.iter().enumerate().filter(|(_, one)| one.is_flood());
    let mut spans: Vec<(usize, usize)> = Vec::new();
    for (index, _) in flooded {
        match spans.last_mut() {
            Some((_, last)) if index - *last <= CALM => *last = index,
            _ => spans.push((index, index)),
        }
    }
    for (first, last) in spans {
        let Some(span) = points.get(first..=last) else {
            continue;
        };
        let (Some(begin), Some(end)) = (span.first(), span.last()) else {
            continue;
        };
        let goes_on = points.len() - 1 - last < CALM;
        let (service, reason) = busiest(span);
        found.push(FloodSpan {
            begin: begin.begin,
            end: (!goes_on).then_some(end.end),
            peak: span.iter().map(FloodPoint::rate).fold(0.0, f64::max) as u64,
            service: service.map(str::to_owned),
            reason: reason.to_owned(),
        });
    }
    found
}

/// The service and the reason of most dropped packets.
fn busiest<'a>(span: &[FloodPoint<'a>]) -> (Option<&'a str>, &'a str) {
    let mut sums = std::collections::BTreeMap::new();
    for (service, reason, packets) in span.iter().flat_map(|point| &point.dropped) {
        *sums.entry((*service, *reason)).or_insert(0) += packets;
    }
    let busiest = sums.into_iter().max_by_key(|(_, packets)| *packets);
    busiest.map_or((None, ""), |(key, _)| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// The floods among points of ten seconds with these rates: packets a second that passed and that were dropped.
    fn found(rates: &[(u64, u64)]) -> String {
        let points: Vec<FloodPoint<'_>> = (1..)
            .zip(rates)
            .map(|(number, (passed, dropped))| FloodPoint {
                begin: at(10 * (number - 1)),
                end: at(10 * number),
                seconds: 10.0,
                passed: passed * 10,
                dropped: vec![
                    (None, "closed_port", dropped * 9),
                    (Some("web"), "packet_limit", *dropped),
                ],
            })
            .collect();
        let lines = floods(&points).into_iter().map(|flood| {
            let end = flood.end.map(|end| end.as_second());
            format!(
                "{}..{end:?} {} {} {:?}",
                flood.begin.as_second(),
                flood.peak,
                flood.reason,
                flood.service
            )
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_flood_is_over_a_thousand_drops_a_second_and_more_than_passes() {
        let quiet = (100, 20);
        insta::assert_snapshot!(
            found(&[quiet, (100, 3_000), (100, 4_500), quiet, quiet, quiet]),
            @"10..Some(30) 4500 closed_port None"
        );
        for calm in [(100, 1_000), (5_000, 4_000), (0, 0)] {
            assert_eq!(found(&[calm; 6]), "", "{calm:?}");
        }
        assert_eq!(found(&[]), "");
    }

    #[test]
    fn a_flood_goes_on_until_three_points_are_calm() {
        let (quiet, flood) = ((100, 20), (100, 2_000));
        insta::assert_snapshot!(found(&[quiet, flood]), @"10..None 2000 closed_port None");
        insta::assert_snapshot!(
            found(&[quiet, flood, quiet, quiet]),
            @"10..None 2000 closed_port None"
        );
        insta::assert_snapshot!(
            found(&[flood, quiet, quiet, flood, quiet, quiet, quiet, flood]),
            @r"
        0..Some(40) 2000 closed_port None
        70..None 2000 closed_port None
        "
        );
    }
}
