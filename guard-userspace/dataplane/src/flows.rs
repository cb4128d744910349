//! Tells a fresh generation which UDP flows this host has open already, so that attaching it cuts
//! none of them.

use aya::maps::HashMap;
use etherparse::PacketBuilder;
use guard_common::layout::{self, FlowKey, feature};
use guard_host::UdpFlow;

use super::{Generation, LoadError};

impl Generation {
    /// How many UDP flows are recorded.
    pub fn flow_count(&self) -> Result<usize, LoadError> {
        let flows = HashMap::<_, FlowKey, u64>::try_from(self.map(layout::FLOWS)?)?;
        Ok(flows.keys().filter(Result::is_ok).count())
    }

    /// Records flows as if their packets were sent now: the kernel program that records them all
    /// runs over one made for each.
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

/// An empty datagram of the flow. `None` for a flow between the families, which does not exist.
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
