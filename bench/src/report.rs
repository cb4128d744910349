//! What comes out: a table for people, one document for programs.

use comfy_table::{CellAlignment, Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    growth::{Growth, Series},
    machine::Machine,
    plot::grouped,
    spread::Spread,
};

#[derive(Serialize)]
pub struct Report {
    pub date: Timestamp,
    pub machine: Machine,
    /// How the cost of packets was measured, if it was.
    pub packets: Option<Packets>,
    pub rows: Vec<Row>,
    /// What packets cost when there is more of something, if that was asked for.
    pub growth: Vec<Growth>,
}

#[derive(Serialize)]
pub struct Packets {
    /// What a packet costs that gets the empty program, in nanoseconds.
    pub empty: Spread,
    /// In which nothing disturbed.
    pub rounds: u32,
    /// How much of what was measured does not count, because the empty program beside it was slowed down.
    pub disturbed: f64,
    /// Cases with hardly a quiet round: all of theirs count.
    pub unquiet: Vec<String>,
}

#[derive(Serialize)]
pub struct Row {
    pub name: String,
    pub group: &'static str,
    pub about: String,
    pub unit: Unit,
    /// The median, and the quartiles around it.
    pub value: f64,
    pub low: f64,
    pub high: f64,
    /// What the median is held to.
    pub bar: Option<Bar>,
    /// `None`: there is no bar, and nothing wrong.
    pub within: Option<bool>,
    /// Why the number means nothing.
    pub fault: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    AtMost(f64),
    AtLeast(f64),
}

impl Bar {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }

    pub fn written(self, unit: Unit) -> String {
        match self {
            Self::AtMost(most) => format!("≤ {}", unit.written(most)),
            Self::AtLeast(least) => format!("≥ {}", unit.written(least)),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// Nanoseconds more than the empty program.
    #[serde(rename = "ns")]
    Nanoseconds,
    #[serde(rename = "ratio")]
    Ratio,
    #[serde(rename = "ms")]
    Milliseconds,
    /// Of one core.
    #[serde(rename = "%")]
    Percent,
    #[serde(rename = "MB")]
    Megabytes,
}

impl Unit {
    pub fn written(self, value: f64) -> String {
        match self {
            Self::Nanoseconds => format!("{value:.1} ns"),
            Self::Ratio => format!("{value:.3}"),
            Self::Milliseconds => format!("{value:.1} ms"),
            Self::Percent => format!("{value:.2} %"),
            Self::Megabytes => format!("{value:.1} MB"),
        }
    }
}

impl Row {
    pub fn new(
        (name, group, about): (&str, &'static str, &str),
        unit: Unit,
        spread: Spread,
        bar: Option<Bar>,
        fault: Option<String>,
    ) -> Self {
        let Spread { median, low, high } = spread;
        let within = match (&fault, bar) {
            (Some(_), _) => Some(false),
            (None, bar) => bar.map(|bar| bar.holds(median)),
        };
        Self {
            name: name.to_owned(),
            group,
            about: about.to_owned(),
            unit,
            value: median,
            low,
            high,
            bar,
            within,
            fault,
        }
    }
}

impl Row {
    /// Instead of rows that could not be measured.
    pub fn failed(group: &'static str, error: &anyhow::Error) -> Self {
        let none = Spread {
            median: f64::NAN,
            low: f64::NAN,
            high: f64::NAN,
        };
        let about = (group, group, "could not be measured");
        Self::new(about, Unit::Ratio, none, None, Some(format!("{error:#}")))
    }

    pub fn judgement(&self) -> &'static str {
        match (&self.fault, self.within) {
            (Some(_), _) => "WRONG PATH",
            (None, Some(true)) => "within",
            (None, Some(false)) => "MISSED",
            (None, None) => "",
        }
    }
}

impl Report {
    /// Whether every row is within its bar, and measured what it says.
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
            print!("{}", told(unquiet));
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
            println!("\nMore and more {of}\n{}", growing(lines));
            print!("{}", told(unquiet));
        }
        for row in rows {
            if let Some(fault) = &row.fault {
                println!("{}: {fault}", row.name);
            }
        }
    }
}

/// Which cases had hardly a quiet round, in a line if there are any.
pub fn told(unquiet: &[String]) -> String {
    if unquiet.is_empty() {
        return String::new();
    }
    let names = unquiet.join(", ");
    format!("Hardly a quiet round, so that whatever was measured counts: {names}.\n")
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

fn growing(lines: &[Series]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let first = lines.first().map_or(&[][..], |line| &line.points);
    let counts = first.iter().map(|point| grouped(point.count));
    table.set_header([String::new()].into_iter().chain(counts));
    for Series { about, points } in lines {
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
