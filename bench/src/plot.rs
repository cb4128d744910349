//! Draws the cost of packets: compared with other programs, and as tables grow.

use anyhow::{Context as _, Result};
use plotters::{
    chart::{ChartBuilder, SeriesLabelPosition},
    coord::{
        combinators::IntoLogRange as _,
        ranged1d::{IntoSegmentedCoord as _, SegmentValue},
    },
    drawing::IntoDrawingArea as _,
    element::{ErrorBar, PathElement, Rectangle, Text},
    prelude::SVGBackend,
    series::LineSeries,
    style::{
        BLACK, Color as _, IntoFont as _, IntoTextStyle as _, RGBColor, WHITE,
        text_anchor::{HPos, Pos, VPos},
    },
};

use crate::growth::{Growth, GrowthSeries, Point};

/// One bar of a plot that compares rows.
pub struct Bars<'a> {
    pub about: &'a str,
    pub value: f64,
    /// Whether it is a row of guard, which has its own colour.
    pub is_ours: bool,
}

const SIZE: (u32, u32) = (760, 400);

/// Colours that colour-blind readers can distinguish (Okabe, Ito: "Color Universal Design", 2008).
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
];

/// Draws an SVG document: the medians, with bars from quartile to quartile.
pub fn plot(growth: &Growth) -> Result<String> {
    let mut svg = String::new();
    draw(growth, &mut svg)
        .with_context(|| format!("the plot of {} cannot be drawn", growth.name))?;
    Ok(svg)
}

/// Draws an SVG document: a horizontal bar for each row, the first on top, with its value behind it.
pub fn bars(unit: &str, rows: &[Bars<'_>]) -> Result<String> {
    let mut svg = String::new();
    draw_bars(unit, rows, &mut svg).context("the plot of the result cannot be drawn")?;
    Ok(svg)
}

fn draw_bars(unit: &str, rows: &[Bars<'_>], svg: &mut String) -> Result<()> {
    let height = 64 + 34 * u32::try_from(rows.len())?;
    let highest = rows.iter().map(|row| row.value).fold(1.0, f64::max);
    let area = SVGBackend::with_string(svg, (SIZE.0, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let count = rows.len();
    let name = |place: &SegmentValue<usize>| match place {
        SegmentValue::CenterOf(place) if *place < count => {
            let row = rows.get(count - 1 - place);
            row.map_or(String::new(), |row| row.about.to_owned())
        }
        _ => String::new(),
    };
    let mut chart = ChartBuilder::on(&area)
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(320)
        // Leaves room for the number behind the longest bar.
        .build_cartesian_2d(0.0..highest * 1.2, (0..count).into_segmented())?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_desc(unit)
        .y_labels(count)
        .x_label_formatter(&|ns| format!("{ns:.0}"))
        .y_label_formatter(&name)
        .label_style(("sans-serif", 13))
        .draw()?;
    let [ours, others, ..] = COLOURS;
    let placed = rows.iter().rev().enumerate();
    chart.draw_series(placed.clone().map(|(place, row)| {
        let colour = if row.is_ours { ours } else { others };
        let (low, high) = (SegmentValue::Exact(place), SegmentValue::Exact(place + 1));
        let mut bar = Rectangle::new([(0.0, low), (row.value, high)], colour.filled());
        bar.set_margin(5, 5, 0, 0);
        bar
    }))?;
    let style = ("sans-serif", 13).into_font().into_text_style(&area);
    let style = style.pos(Pos::new(HPos::Left, VPos::Center));
    chart.draw_series(placed.map(|(place, row)| {
        let beside = (row.value + highest * 0.01, SegmentValue::CenterOf(place));
        Text::new(format!("{:.1}", row.value), beside, style.clone())
    }))?;
    area.present()?;
    Ok(())
}

fn draw(growth: &Growth, svg: &mut String) -> Result<()> {
    let Growth { of, lines, .. } = growth;
    let points = || lines.iter().flat_map(|line| &line.points);
    let most = points().map(|point| point.count).max().unwrap_or(1);
    let highest = points().map(|point| point.cost.high).fold(1.0, f64::max);
    // Leaves room for the names of the lines.
    let top = highest * (1.15 + 0.09 * lines.len() as f64);
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(14)
        .margin_right(40)
        .x_label_area_size(46)
        .y_label_area_size(56)
        .build_cartesian_2d((1.0..f64::from(most)).log_scale(), 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .x_desc(*of)
        .y_desc("ns more than the empty program")
        .x_label_formatter(&|count| grouped(*count as u32))
        .y_label_formatter(&|ns| format!("{ns:.0}"))
        .draw()?;
    for (GrowthSeries { about, points }, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let place = |point: &Point| (f64::from(point.count), point.cost.median);
        let line = LineSeries::new(points.iter().map(place), colour.stroke_width(2)).point_size(3);
        chart
            .draw_series(line)?
            .label(*about)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(points.iter().map(|point| {
            let (x, median) = place(point);
            let (low, high) = (point.cost.low, point.cost.high);
            ErrorBar::new_vertical(x, low, median, high, colour.stroke_width(1), 6)
        }))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.2))
        .draw()?;
    area.present()?;
    Ok(())
}

/// Formats `1000000` as `1,000,000`.
pub fn grouped(number: u32) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place != 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_have_their_names_and_numbers() {
        let rows = [("closed", 6.6, true), ("random", 40.1, false)];
        let rows = rows.map(|(about, value, is_ours)| Bars {
            about,
            value,
            is_ours,
        });
        let svg = bars("ns", &rows).unwrap();
        for text in ["closed", "6.6", "random", "40.1"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        let place = |text| svg.find(text).unwrap();
        assert!(place(">\nclosed") > place(">\nrandom"), "drawn from below");
    }

    #[test]
    fn large_numbers_are_read_at_a_glance() {
        let written = [0, 100, 1_000, 65_535, 10_000_000].map(grouped);
        assert_eq!(written, ["0", "100", "1,000", "65,535", "10,000,000"]);
    }
}
