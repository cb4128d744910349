//! Reads the closed ports that packets were sent to.

use std::{collections::HashMap, iter};

use guard_common::{
    closed_ports::ClosedPortKey,
    layout::{CLOSED_PORT_ENTRIES, ClosedPortSlot},
    reason::{Outcome, Reason, Verdict},
};
use guard_policy::Ports;

use super::{CounterRow, LoadError, batch, interface::InterfaceTables};

/// A closed port, and the packets that were sent to it, estimated from a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedPortRow {
    pub port: Ports,
    pub packets: u64,
}

/// The most ports of a counter.
const MOST_PORTS: usize = 32;

impl InterfaceTables {
    /// Adds the busiest closed ports to the counters of closed ports.
    pub(super) fn add_closed_ports(&self, rows: &mut [CounterRow]) -> Result<(), LoadError> {
        let of_closed_ports = |row: &&mut CounterRow| {
            row.service.is_none() && row.outcome.reason == Reason::ClosedPort
        };
        let mut rows = rows.iter_mut().filter(of_closed_ports).peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        let ports = self.closed_ports()?;
        for row in rows {
            row.ports = busiest(&ports, row.outcome, row.packets);
        }
        Ok(())
    }

    /// The packets for each port, over all CPUs.
    fn closed_ports(&self) -> Result<HashMap<(u32, bool), u64>, LoadError> {
        let mut ports = HashMap::new();
        batch::read_per_cpu(
            &self.closed_ports,
            iter::once(0..CLOSED_PORT_ENTRIES),
            |_, of_cpus: &mut dyn Iterator<Item = ClosedPortSlot>| {
                for slot in of_cpus {
                    if let Some(key) = ClosedPortKey::of_slot(&slot) {
                        *ports.entry((key.port(), key.would_drop())).or_default() += slot.packets;
                    }
                }
            },
        )?;
        Ok(ports)
    }
}

/// The busiest ports of an outcome, which has `packets` in all. The sample may count a few packets too many.
fn busiest(
    ports: &HashMap<(u32, bool), u64>,
    outcome: Outcome,
    packets: u64,
) -> Vec<ClosedPortRow> {
    let would_drop = outcome.verdict() == Verdict::Pass;
    let of_outcome = ports.iter().filter(|((_, would), _)| *would == would_drop);
    let mut busiest: Vec<(u32, u64)> = of_outcome
        .map(|((port, _), packets)| (*port, *packets))
        .collect();
    busiest.sort_by_key(|(port, packets)| (std::cmp::Reverse(*packets), *port));
    busiest.truncate(MOST_PORTS);
    let mut left = packets;
    let rows = busiest.into_iter().filter_map(|(port, packets)| {
        let packets = packets.min(left);
        left -= packets;
        let port = Ports::of_index(port)?;
        (packets != 0).then_some(ClosedPortRow { port, packets })
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use guard_common::{
        layout::{PortProtocol, port_index},
        reason::Mode,
    };

    use super::*;

    #[test]
    fn the_busiest_ports_of_an_outcome_come_first_and_never_exceed_its_packets() {
        let port = |port: u16| port_index(PortProtocol::Tcp, port);
        let ports = HashMap::from([
            ((port(8_000), false), 100),
            ((port(9_000), false), 300),
            ((port(5_432), true), 7),
        ]);
        let shown = |mode, packets| {
            let rows = busiest(&ports, Outcome::new(Reason::ClosedPort, mode), packets);
            let rows = rows
                .iter()
                .map(|row| format!("{} {}", row.port, row.packets));
            rows.collect::<Vec<_>>().join(", ")
        };
        assert_eq!(shown(Mode::Enforce, 1_000), "tcp/9000 300, tcp/8000 100");
        assert_eq!(shown(Mode::Enforce, 310), "tcp/9000 300, tcp/8000 10");
        assert_eq!(shown(Mode::Enforce, 300), "tcp/9000 300");
        assert_eq!(shown(Mode::Observe, 7), "tcp/5432 7");
    }

    #[test]
    fn only_the_busiest_ports_are_shown() {
        let ports = (1..=1_000).map(|port| ((port, false), u64::from(port)));
        let outcome = Outcome::new(Reason::ClosedPort, Mode::Enforce);
        let rows = busiest(&ports.collect(), outcome, u64::MAX);
        assert_eq!(rows.len(), MOST_PORTS);
        assert_eq!(rows[0].packets, 1_000);
    }
}
