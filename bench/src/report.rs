//! The report: tables for people, one JSON document for programs.

use comfy_table::{CellAlignment, Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    growth::{Growth, GrowthSeries},
    machine::MachineInfo,
    plot::grouped,
    row::{Packets, Row},
};

/// The most names of cases in one line.
const MOST_NAMES: usize = 5;

#[derive(Serialize)]
pub struct BenchReport {
    pub date: Timestamp,
    pub machine: MachineInfo,
    /// How the cost of packets was measured, if packets were measured.
    pub packets: Option<Packets>,
    pub rows: Vec<Row>,
    /// The cost of packets as tables grow, if it was measured.
    pub growth: Vec<Growth>,
}

impl BenchReport {
    /// Whether every row is within its bar and without a fault.
    pub fn is_within(&self) -> bool {
        self.rows.iter().all(|row| row.within != Some(false))
    }

    pub fn print(&self) {
        let Self {
            date: _,
            machine,
            packets,
            rows,
            growth,
        } = self;
        println!("{machine}");
        if let Some(Packets {
            empty,
            rounds,
            disturbed,
            unquiet,
        }) = packets
        {
            println!(
                "medians of up to {rounds} quiet rounds ({:.0} % of all were disturbed); ns: more than the empty \
                 program, which takes {:.1} ns ({:.1} to {:.1})",
                disturbed * 100.0,
                empty.median,
                empty.low,
                empty.high
            );
            print!("{}", unquiet_line(unquiet));
        }
        let mut rest = rows.as_slice();
        while let Some(first) = rest.first() {
            let next = rest.iter().position(|row| row.group != first.group);
            let (group, after) = rest.split_at(next.unwrap_or(rest.len()));
            println!("\n{}\n{}", first.group, table(group));
            rest = after;
        }
        for Growth {
            of, lines, unquiet, ..
        } in growth
        {
            println!("\nAs these grow: {of}\n{}", growing(lines));
            print!("{}", unquiet_line(unquiet));
        }
        for row in rows {
            if let Some(fault) = &row.fault {
                println!("{}: {fault}", row.name);
            }
        }
    }
}

/// A line with the cases that had too few quiet rounds; empty if there are none.
fn unquiet_line(unquiet: &[String]) -> String {
    if unquiet.is_empty() {
        return String::new();
    }
    let (first, rest) = unquiet.split_at(unquiet.len().min(MOST_NAMES));
    let rest = match rest.len() {
        0 => String::new(),
        more => format!(" and {more} more (`unquiet` with --json)"),
    };
    format!(
        "too few quiet rounds, so all rounds count: {}{rest}\n",
        first.join(", ")
    )
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["", "", "median", "quartiles", "bar", ""]);
    for row in rows {
        let Row {
            name,
            about,
            unit,
            value,
            low,
            high,
            bar,
            within: _,
            fault: _,
            group: _,
        } = row;
        table.add_row([
            name.clone(),
            about.clone(),
            unit.written(*value),
            format!("{} to {}", unit.written(*low), unit.written(*high)),
            bar.map_or(String::new(), |bar| bar.written(*unit)),
            row.judgement().to_owned(),
        ]);
    }
    for column in [2, 3, 4] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn growing(lines: &[GrowthSeries]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let first = lines.first().map_or(&[][..], |line| &line.points);
    let counts = first.iter().map(|point| grouped(point.count));
    table.set_header([String::new()].into_iter().chain(counts));
    for GrowthSeries { about, points } in lines {
        let costs = points
            .iter()
            .map(|point| format!("{:.1}", point.cost.median));
        table.add_row([(*about).to_owned()].into_iter().chain(costs));
    }
    for column in 1..=first.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
