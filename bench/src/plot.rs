//! Draws what packets cost when there is more of something.

use anyhow::{Context as _, Result};
use plotters::{
    chart::{ChartBuilder, SeriesLabelPosition},
    coord::combinators::IntoLogRange as _,
    drawing::IntoDrawingArea as _,
    element::{ErrorBar, PathElement},
    prelude::SVGBackend,
    series::LineSeries,
    style::{BLACK, Color as _, RGBColor, WHITE},
};

use crate::growth::{Growth, GrowthSeries, Point};

const SIZE: (u32, u32) = (760, 400);

/// Told apart by everybody (Okabe, Ito: "Color Universal Design", 2008).
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
];

/// An SVG document: the medians, with bars from quartile to quartile.
pub fn plot(growth: &Growth) -> Result<String> {
    let mut svg = String::new();
    draw(growth, &mut svg)
        .with_context(|| format!("the plot of {} cannot be drawn", growth.name))?;
    Ok(svg)
}

fn draw(growth: &Growth, svg: &mut String) -> Result<()> {
    let Growth { of, lines, .. } = growth;
    let points = || lines.iter().flat_map(|line| &line.points);
    let most = points().map(|point| point.count).max().unwrap_or(1);
    let highest = points().map(|point| point.cost.high).fold(1.0, f64::max);
    // Room for the names of the lines.
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

/// `1000000` as `1,000,000`.
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
    fn large_numbers_are_read_at_a_glance() {
        let written = [0, 100, 1_000, 65_535, 10_000_000].map(grouped);
        assert_eq!(written, ["0", "100", "1,000", "65,535", "10,000,000"]);
    }
}
