//! `guard counters`: shows how many packets passed and were dropped, by service and reason.

use std::time::Instant;

use comfy_table::{CellAlignment, Table, presets::NOTHING};

use super::{
    AgentLocation, Failure,
    colour::{Tone, paint},
    figures,
    meter::{Meter, Metered},
    reading::GuardReader,
    watch::Watched,
};
use crate::api::{ClosedPort, Counter};

pub async fn run(location: &AgentLocation, watched: Watched) -> Result<(), Failure> {
    let reader = GuardReader::new(location)?;
    let mut meter = Meter::default();
    watched
        .run(async |watched| {
            let counters = meter.read(Instant::now(), reader.counters().await?);
            if watched.is_json() {
                return watched.json(&counters);
            }
            Ok(match counters.as_slice() {
                [] => "no packet was counted yet".to_owned(),
                counters => described(counters),
            })
        })
        .await
}

/// A table line for each counter, and below that of `closed_port` its busiest ports.
fn described(counters: &[Metered<Counter>]) -> String {
    let table = table(counters).to_string();
    let (heading, lines) = table.split_once('\n').unwrap_or((&table, ""));
    let mut text = heading.to_owned();
    for (line, counter) in lines.lines().zip(counters) {
        let tone = match (&counter.row.would, counter.row.is_drop()) {
            (Some(_), _) => Tone::Notice,
            (None, true) => Tone::Bad,
            (None, false) => Tone::Good,
        };
        text += "\n";
        text += &paint(tone, line);
        text += &closed_ports(&counter.row);
    }
    text
}

/// The most closed ports that are shown.
const MOST_PORTS: usize = 10;

fn closed_ports(counter: &Counter) -> String {
    let (shown, hidden) = counter.ports.split_at(counter.ports.len().min(MOST_PORTS));
    let Some(first) = shown.first() else {
        return String::new();
    };
    let width = shown
        .iter()
        .map(|port| port.port.len())
        .fold(first.port.len(), usize::max);
    let mut text = String::new();
    for ClosedPort { port, packets } in shown {
        text += &format!(
            "\n    closed_port {port:<width$}  {}",
            figures::count(*packets as f64)
        );
    }
    let named: u64 = shown.iter().map(|port| port.packets).sum();
    let others = counter.packets.saturating_sub(named);
    if others > 0 {
        let more = if hidden.is_empty() {
            ""
        } else {
            ", `--json` names more"
        };
        text += &format!(
            "\n    closed_port {:<width$}  {}{more}",
            "others",
            figures::count(others as f64)
        );
    }
    text
}

fn table(counters: &[Metered<Counter>]) -> Table {
    let is_metered = counters.iter().any(|counter| counter.rate.is_some());
    let mut table = aligned(
        &["INTERFACE", "SERVICE", "VERDICT", "REASON"],
        &["PACKETS", "BYTES"],
        is_metered.then_some(&["PACKETS/S", "BITS/S"]),
    );
    for Metered { row, rate } in counters {
        let mut cells = vec![
            row.interface.clone(),
            row.service.clone().unwrap_or_else(|| "-".to_owned()),
            row.describe_verdict(),
            row.reason.clone(),
            figures::count(row.packets as f64),
            figures::bytes(row.bytes as f64),
        ];
        if let Some(rate) = rate {
            cells.extend([figures::count(rate.packets), figures::bits(rate.bytes)]);
        }
        table.add_row(cells);
    }
    table
}

/// A table whose first columns (`facts`) are aligned left, and whose totals and rates are aligned right.
pub fn aligned(facts: &[&str], totals: &[&str], rates: Option<&[&str]>) -> Table {
    let numbers = [totals, rates.unwrap_or_default()].concat();
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([facts, &numbers].concat());
    for index in facts.len()..facts.len() + numbers.len() {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_busiest_closed_ports_stand_below_their_counter_and_the_rest_is_others() {
        let ports: Vec<_> = (0..12)
            .map(|n| json!({"port": format!("tcp/{}", 8_000 + n), "packets": 1_200 - 100 * n}))
            .collect();
        let rows = json!([
            {"interface": "eth0", "service": null, "verdict": "drop", "reason": "closed_port", "packets": 9_000,
             "bytes": 540_000, "ports": ports},
            {"interface": "eth0", "service": null, "verdict": "pass", "would": "drop", "reason": "closed_port",
             "packets": 3, "bytes": 180, "ports": [{"port": "udp/53", "packets": 3}]},
            {"interface": "eth0", "service": "web", "verdict": "pass", "reason": "allowed", "packets": 70,
             "bytes": 4_200},
        ]);
        let rows: Vec<Counter> = serde_json::from_value(rows).unwrap();
        let rows: Vec<Metered<Counter>> = rows
            .into_iter()
            .map(|row| Metered { row, rate: None })
            .collect();
        insta::assert_snapshot!(described(&rows), @r"
        INTERFACE  SERVICE  VERDICT            REASON       PACKETS   BYTES 
        eth0       -        drop               closed_port     9.0k  540 kB 
           closed_port tcp/8000  1.2k
           closed_port tcp/8001  1.1k
           closed_port tcp/8002  1.0k
           closed_port tcp/8003  900
           closed_port tcp/8004  800
           closed_port tcp/8005  700
           closed_port tcp/8006  600
           closed_port tcp/8007  500
           closed_port tcp/8008  400
           closed_port tcp/8009  300
           closed_port others    1.5k, `--json` names more
        eth0       -        pass (would drop)  closed_port        3   180 B 
           closed_port udp/53  3
        eth0       web      pass               allowed           70  4.2 kB
        ");
    }
}
