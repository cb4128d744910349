//! Writes the measurements into `docs/performance.md`, between the markers there, and draws its plots. Hand-written
//! text stays.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    end_to_end,
    growth::Growth,
    plot::{Bars, bars, grouped, plot},
    report::BenchReport,
    row::{Row, RowUnit},
};

const PAGE: &str = "performance.md";
const PLOTS: &str = "performance";
const JSON: &str = "bench.json";

const END_TO_END: &str = "end-to-end";

/// The groups of rows, by the names of their markers in the page.
const GROUPS: [(&str, &[&str]); 5] = [
    (
        "packets",
        &[
            "The fast path",
            "A deny list of a million addresses",
            "Compared with other programs",
        ],
    ),
    (
        "paths",
        &[
            "Other paths of a packet",
            "With a policy that uses everything",
        ],
    ),
    ("cpus", &["Two CPUs"]),
    ("agent", &["The agent", "Watched"]),
    (END_TO_END, &end_to_end::TITLES),
];

/// The rows that the page's first plot compares: a row of guard's, then the rows that do the same without it.
const COMPARED: [(&str, &str, bool); 8] = [
    ("closed", "guard: closed port, drop", true),
    ("xdp-filter-closed", "xdp-filter: closed port, drop", false),
    (
        "denied-random",
        "guard: one of a million denied addresses, drop",
        true,
    ),
    (
        "xdp-filter-denied",
        "xdp-filter: its one denied address, drop",
        false,
    ),
    ("open", "guard: open port with a budget, one source", true),
    ("lru", "LRU hash token bucket, one source", false),
    (
        "random",
        "guard: open port with a budget, random sources",
        true,
    ),
    ("lru-random", "LRU hash token bucket, random sources", false),
];

/// The rows of the table with the share of the time between two packets.
const ON_THE_WIRE: [&str; 6] = [
    "closed",
    "open",
    "budgets",
    "over",
    "random",
    "denied-random",
];

/// The time of a frame of 64 bytes on the wire in nanoseconds, with preamble and gap: 84 bytes.
const WIRES: [(&str, f64); 2] = [("10 Gbit/s", 67.2), ("25 Gbit/s", 26.88)];

/// Writes the measured parts of the report into the page in this folder; the other parts of the page stay.
pub fn write(folder: &Path, report: &BenchReport) -> Result<()> {
    let path = folder.join(PAGE);
    let mut page =
        fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    fs::create_dir_all(folder.join(PLOTS))?;
    let json = serde_json::to_string_pretty(report)? + "\n";
    fs::write(folder.join(PLOTS).join(JSON), json)?;
    put(&mut page, "machine", &about(report))?;
    let compared = compared(report);
    if !compared.is_empty() {
        let svg = bars("ns a packet, above an empty XDP program", &compared)?;
        fs::write(folder.join(PLOTS).join("result.svg"), svg)?;
    }
    for (place, titles) in GROUPS {
        // A group that could not be measured keeps its old table.
        let of_group = |row: &&Row| titles.contains(&row.group) && row.value.is_finite();
        let rows: Vec<&Row> = report.rows.iter().filter(of_group).collect();
        if !rows.is_empty() {
            let mut text = tables(&rows);
            if place == END_TO_END {
                // This group is not measured in every run, so it has its own date.
                let date = report.date.strftime("%Y-%m-%d");
                text.insert_str(0, &format!("Measured on {date}.\n\n"));
            }
            put(&mut page, place, &text)?;
        }
    }
    let wire = wire(report);
    if !wire.is_empty() {
        put(&mut page, "wire", &wire)?;
    }
    for growth in &report.growth {
        let name = format!("{}.svg", growth.name);
        fs::write(folder.join(PLOTS).join(&name), plot(growth)?)?;
        let image = format!("![{}]({PLOTS}/{name})\n\n", growth.of);
        put(&mut page, growth.name, &(image + &points(growth)))?;
    }
    fs::write(&path, page).with_context(|| format!("{} cannot be written", path.display()))
}

/// Puts text between the two markers of a place.
fn put(page: &mut String, place: &str, text: &str) -> Result<()> {
    let (begin, end) = (format!("<!-- bench: {place} -->\n"), "<!-- end -->");
    let start = page.find(&begin).map(|start| start + begin.len());
    let start = start.with_context(|| format!("{PAGE} has no marker {place:?}"))?;
    let length = page.get(start..).and_then(|rest| rest.find(end));
    let length =
        length.with_context(|| format!("the marker {place:?} of {PAGE} has no end marker"))?;
    page.replace_range(start..start + length, &format!("\n{}\n\n", text.trim_end()));
    Ok(())
}

fn about(report: &BenchReport) -> String {
    let BenchReport {
        date,
        machine,
        packets,
        ..
    } = report;
    let mut text = format!("Measured on {}: {machine}.", date.strftime("%Y-%m-%d"));
    if let Some(packets) = packets {
        // Writing to memory does not fail.
        let _ = write!(
            text,
            " Medians of up to {} quiet rounds; the empty program takes {:.1} ns, and {:.0} % of all rounds were disturbed.",
            packets.rounds,
            packets.empty.median,
            packets.disturbed * 100.0
        );
    }
    let of_growth = report.growth.iter().flat_map(|growth| &growth.unquiet);
    let of_packets = packets.iter().flat_map(|packets| &packets.unquiet);
    let unquiet = of_packets.chain(of_growth).count();
    if unquiet > 0 {
        // Writing to memory does not fail.
        let _ = write!(
            text,
            " {unquiet} cases had too few quiet rounds, so all of their rounds count: `unquiet` in \
             [{JSON}]({PLOTS}/{JSON}) names them."
        );
    }
    text
}

/// The bars of the page's first plot, for the rows that were measured.
fn compared(report: &BenchReport) -> Vec<Bars<'static>> {
    let measured = |name: &str| {
        let mut rows = report.rows.iter();
        rows.find(|row| row.name == name && row.value.is_finite())
    };
    let bars = COMPARED.iter().filter_map(|(name, about, is_ours)| {
        let row = measured(name)?;
        Some(Bars {
            about,
            value: row.value,
            is_ours: *is_ours,
        })
    });
    bars.collect()
}

/// A table for each group.
fn tables(rows: &[&Row]) -> String {
    let mut text = String::new();
    for group in rows.chunk_by(|row, next| row.group == next.group) {
        let title = group.first().map_or("", |row| row.group);
        let _ = writeln!(text, "| {title} | median | quartiles | bar | |");
        text += "| --- | ---: | ---: | ---: | --- |\n";
        for row in group {
            let Row {
                about,
                unit,
                value,
                low,
                high,
                bar,
                ..
            } = row;
            let _ = writeln!(
                text,
                "| {about} | {} | {} to {} | {} | {} |",
                unit.written(*value),
                unit.written(*low),
                unit.written(*high),
                bar.map_or(String::new(), |bar| bar.written(*unit)),
                row.judgement().to_lowercase()
            );
        }
        text.push('\n');
    }
    text
}

/// The share of the time between two packets that a packet costs, on a wire full of the smallest packets.
fn wire(report: &BenchReport) -> String {
    let mut text = String::new();
    let rows = report.rows.iter();
    for row in rows.filter(|row| ON_THE_WIRE.contains(&row.name.as_str())) {
        let Row { about, value, .. } = row;
        debug_assert_eq!(row.unit, RowUnit::Nanoseconds);
        let shares = WIRES.map(|(_, ns)| format!("{:.0} %", 100.0 * value / ns));
        let _ = writeln!(text, "| {about} | {value:.1} ns | {} |", shares.join(" | "));
    }
    if text.is_empty() {
        return text;
    }
    let wires = WIRES.map(|(name, ns)| format!("of one core at {name} ({ns:.0} ns)"));
    format!(
        "| packet | guard | {} |\n| --- | ---: | ---: | ---: |\n{text}",
        wires.join(" | ")
    )
}

fn points(growth: &Growth) -> String {
    let Growth { of, lines, .. } = growth;
    let heads: Vec<&str> = lines.iter().map(|line| line.about).collect();
    let mut text = format!("| {of} | {} |\n| ---: |", heads.join(" | "));
    text += &" ---: |".repeat(lines.len());
    text.push('\n');
    let first = lines.first().map_or(&[][..], |line| &line.points);
    for (nth, point) in first.iter().enumerate() {
        let costs = lines.iter().filter_map(|line| line.points.get(nth));
        let costs: Vec<String> = costs
            .map(|point| RowUnit::Nanoseconds.written(point.cost.median))
            .collect();
        let _ = writeln!(text, "| {} | {} |", grouped(point.count), costs.join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_by_hand_stays() {
        let page = "before\n<!-- bench: cpus -->\nold\n<!-- end -->\nafter\n<!-- end -->\n";
        let mut written = page.to_owned();
        put(&mut written, "cpus", "new\n").unwrap();
        let expected = "before\n<!-- bench: cpus -->\n\nnew\n\n<!-- end -->\nafter\n<!-- end -->\n";
        assert_eq!(written, expected);
        put(&mut written, "cpus", "new\n").unwrap();
        assert_eq!(written, expected);
        assert!(put(&mut written, "agent", "new").is_err());
    }
}
