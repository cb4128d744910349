//! The closed ports that packets are sent to, in the cell of their reason.

use std::{cmp::Reverse, collections::HashMap};

use crate::{
    api::{ClosedPort, Counter},
    commands::meter::Counting,
};

/// The most ports in a cell: more than these nobody compares.
const MOST_PORTS: usize = 4;

/// The packets for each closed port of each counter, at the previous reading.
#[derive(Default)]
pub struct PortMeter {
    before: HashMap<<Counter as Counting>::Key, HashMap<String, u64>>,
}

impl PortMeter {
    /// Sorts the closed ports by their packets since the previous reading: the total of a port that was busy yesterday
    /// can be the highest for days.
    pub fn sort(&mut self, counters: &mut [Counter]) {
        for counter in counters.iter_mut().filter(|row| !row.ports.is_empty()) {
            let totals = counter
                .ports
                .iter()
                .map(|row| (row.port.clone(), row.packets));
            let totals = totals.collect();
            let before = self.before.insert(counter.key(), totals);
            let before = before.unwrap_or_default();
            counter.ports.sort_by_key(|ClosedPort { port, packets }| {
                let before = before.get(port).copied().unwrap_or_default();
                (Reverse(packets.saturating_sub(before)), Reverse(*packets))
            });
        }
    }
}

/// `closed_port tcp/8000 tcp/22 +3`, with as many ports as the room allows.
pub fn reason_with_ports(counter: &Counter, room: usize) -> String {
    let Counter { reason, ports, .. } = counter;
    let named = |count: usize| {
        let shown = ports.iter().take(count);
        shown.fold(reason.clone(), |text, row| text + " " + &row.port)
    };
    let with = |count: usize| {
        let mut text = named(count);
        if ports.len() > count {
            text += &format!(" +{}", ports.len() - count);
        }
        text
    };
    let counts = (1..=ports.len().min(MOST_PORTS)).rev();
    counts
        .map(with)
        // The busiest port is worth more than the number of the others.
        .chain([named(1)])
        .find(|text| text.len() <= room)
        .unwrap_or_else(|| reason.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::top::examples::closed_ports;

    #[test]
    fn the_port_that_is_busy_now_is_named_before_the_port_that_was_busy() {
        let mut meter = PortMeter::default();
        let mut first = [closed_ports(&[("tcp/22", 9_000), ("tcp/8000", 16)])];
        meter.sort(&mut first);
        assert_eq!(
            reason_with_ports(&first[0], 99),
            "closed_port tcp/22 tcp/8000"
        );
        let mut later = [closed_ports(&[("tcp/22", 9_000), ("tcp/8000", 32)])];
        meter.sort(&mut later);
        assert_eq!(
            reason_with_ports(&later[0], 99),
            "closed_port tcp/8000 tcp/22"
        );
    }

    #[test]
    fn a_cell_names_as_many_ports_as_it_has_room_for_and_counts_the_others() {
        let ports: Vec<_> = ["tcp/1", "tcp/2", "tcp/3", "tcp/4", "tcp/5"]
            .map(|port| (port, 16))
            .into();
        let counter = closed_ports(&ports);
        for (room, text) in [
            (99, "closed_port tcp/1 tcp/2 tcp/3 tcp/4 +1"),
            (26, "closed_port tcp/1 tcp/2 +3"),
            (20, "closed_port tcp/1 +4"),
            (19, "closed_port tcp/1"),
            (16, "closed_port"),
            (0, "closed_port"),
        ] {
            assert_eq!(reason_with_ports(&counter, room), text);
        }
        assert_eq!(reason_with_ports(&closed_ports(&[]), 99), "closed_port");
    }
}
