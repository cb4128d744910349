//! The table of UDP flows: seeds it with the flows that are open when guard starts, so that attaching cuts none of
//! them, and counts those that the kernel evicts.

use std::time::{Duration, Instant};

use aya::maps::{HashMap, PerCpuArray, PerCpuValues};
use etherparse::PacketBuilder;
use guard_common::{
    gcra::UNITS_PER_NANOSECOND,
    layout::{self, About, FLOW_IDLE_NS, FlowKey, MAX_FLOWS, feature},
};
use guard_host::UdpFlow;

use super::{Generation, LoadError, batch};

/// The number of flows in the table, and of evicted ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    pub open: u64,
    /// Flows that the kernel has evicted for others before they were over, since the table was created.
    pub evicted: u64,
}

/// The table is scanned after this many new flows, or after a time if there are any.
const CENSUS_AFTER: u64 = (MAX_FLOWS / 16) as u64;
const CENSUS_EVERY: Duration = Duration::from_secs(60);

/// A flow is removed after this time without packets, in units of the clock: a little longer than it is valid.
const ENDED: u64 = (FLOW_IDLE_NS + 10_000_000_000) * UNITS_PER_NANOSECOND;

/// The result of the last scan of the table.
#[derive(Debug, Default)]
pub struct FlowCensus {
    /// The time of the last scan, and how many flows had been opened by then.
    last: Option<(Instant, u64)>,
    counts: FlowCounts,
}

impl FlowCensus {
    pub(super) fn counts(&self) -> FlowCounts {
        self.counts
    }

    pub(super) fn is_due(&self, opened: u64) -> bool {
        self.last.is_none_or(|(at, before)| {
            let more = opened.wrapping_sub(before);
            more >= CENSUS_AFTER || at.elapsed() >= CENSUS_EVERY
        })
    }

    /// Scans the table. `opened`: the number of opened flows, read before the scan.
    pub(super) fn take(
        &mut self,
        generation: &mut Generation,
        opened: u64,
        about: &mut About,
    ) -> Result<(), LoadError> {
        let mut flows = Vec::new();
        batch::read_hash(generation.map(layout::FLOWS)?, |key: FlowKey, seen: u64| {
            flows.push((key, seen));
        })?;
        // User space cannot read the program's clock: the time of the newest packet is used instead.
        let now = flows
            .iter()
            .map(|(_, seen)| *seen)
            .max()
            .unwrap_or_default();
        let found = flows.len() as u64;
        flows.retain(|(_, seen)| now - seen > ENDED);
        if self.last.is_none() {
            // While no agent ran, ended flows were not removed: the missing ones may be such.
            about.ended_flows = opened.saturating_sub(found + about.evicted_flows);
        }
        let missing = opened.saturating_sub(about.ended_flows + found);
        about.evicted_flows = about.evicted_flows.max(missing);
        let mut table = HashMap::<_, FlowKey, u64>::try_from(generation.map_mut(layout::FLOWS)?)?;
        // Flows that the kernel has evicted in the meantime are counted by the next scan.
        let ended = flows.iter().filter(|(key, _)| table.remove(key).is_ok());
        let ended = ended.count() as u64;
        about.ended_flows += ended;
        self.last = Some((Instant::now(), opened));
        self.counts = FlowCounts {
            open: found - ended,
            evicted: about.evicted_flows,
        };
        Ok(())
    }
}

impl Generation {
    /// The number of recorded UDP flows.
    pub fn flow_count(&self) -> Result<usize, LoadError> {
        let flows = HashMap::<_, FlowKey, u64>::try_from(self.map(layout::FLOWS)?)?;
        Ok(flows.keys().filter(Result::is_ok).count())
    }

    /// The number of flows that were ever added to the table.
    pub(super) fn opened_flows(&self) -> Result<u64, LoadError> {
        let opened = PerCpuArray::<_, u64>::try_from(self.map(layout::OPENED_FLOWS)?)?;
        let of_cpus: PerCpuValues<u64> = opened.get(&0, 0)?;
        Ok(of_cpus.iter().sum())
    }

    /// Records flows as if they sent a packet now: runs the egress program over a datagram made for each flow.
    pub fn seed_flows(&self, flows: &[UdpFlow]) -> Result<(), LoadError> {
        if !self.tables().uses(feature::FLOWS) {
            return Ok(());
        }
        for frame in flows.iter().filter_map(outgoing_frame) {
            self.run_egress(layout::EGRESS_PROGRAM, &frame)?;
        }
        Ok(())
    }
}

/// An empty datagram of the flow. `None`: the addresses are of different families, which no flow has.
fn outgoing_frame(flow: &UdpFlow) -> Option<Vec<u8>> {
    use std::net::IpAddr::{V4, V6};
    const TTL: u8 = 64;
    let UdpFlow { local, peer } = flow;
    let ethernet = PacketBuilder::ethernet2([0; 6], [0; 6]);
    let ip = match (local.ip().to_canonical(), peer.ip().to_canonical()) {
        (V4(local), V4(peer)) => ethernet.ipv4(local.octets(), peer.octets(), TTL),
        (V6(local), V6(peer)) => ethernet.ipv6(local.octets(), peer.octets(), TTL),
        _ => return None,
    };
    let mut frame = Vec::new();
    let datagram = ip.udp(local.port(), peer.port());
    // Writing to memory cannot fail, and an empty datagram is not too long.
    datagram.write(&mut frame, &[]).ok()?;
    Some(frame)
}
