// SPDX-License-Identifier: GPL-2.0

//! The chart of the results: for each operation, ours beside the C provider.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::Measured;

/// Size of the chart for a vendor in pixels.
const SIZE: (u32, u32) = (760, 430);

/// Colours of the bars: the C provider, ours.
const COLOURS: [RGBColor; 2] = [RGBColor(158, 158, 158), RGBColor(194, 90, 38)];

/// The rows that are not shown: their numbers are of another size, or no instructions.
const LEFT_OUT: &[&str] = &[
    "boot",
    "ipi",
    "flush-gigabyte",
    "fault-exits",
    "tables-gigabyte",
];

/// Draws the results of the vendors one above the other as SVG.
pub fn svg(vendors: &[(&str, &Measured)]) -> Result<String> {
    let mut text = String::new();
    {
        let height = SIZE.1 * u32::try_from(vendors.len())?;
        let area = SVGBackend::with_string(&mut text, (SIZE.0, height)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        for (part, (vendor, measured)) in area.split_evenly((vendors.len(), 1)).iter().zip(vendors)
        {
            draw(part, vendor, measured)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(text)
}

/// The errors of a backend that writes to memory borrow from it.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing: {error}")
}

/// Draws the results of a vendor.
fn draw<B: DrawingBackend>(
    area: &DrawingArea<B, plotters::coord::Shift>,
    vendor: &str,
    measured: &Measured,
) -> Result<()> {
    let rows: Vec<_> = measured
        .rows()
        .filter(|(name, _, _)| !LEFT_OUT.contains(name))
        .filter_map(|(_, words, counts)| Some((words, counts.c?, counts.ours?)))
        .collect();
    let most = rows.iter().map(|(_, c, ours)| *c.max(ours)).max();
    let most = most.unwrap_or(1) as f64 * 1.12;
    let count = i32::try_from(rows.len())?;
    let mut chart = ChartBuilder::on(area)
        .caption(
            format!("{vendor}: instructions of an operation of L2"),
            ("sans-serif", 18),
        )
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(270)
        .build_cartesian_2d(0.0..most, (0..count - 1).into_segmented())
        .map_err(failed)?;
    let name = |position: &SegmentValue<i32>| match position {
        // The first row is on top.
        SegmentValue::CenterOf(index) => usize::try_from(count - 1 - index)
            .ok()
            .and_then(|index| rows.get(index))
            .map_or(String::new(), |(words, _, _)| (*words).to_owned()),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&|count| format!("{}", *count as u64))
        .y_label_formatter(&name)
        .y_labels(rows.len())
        .label_style(("sans-serif", 13))
        .draw()
        .map_err(failed)?;
    for (provider, colour) in COLOURS.into_iter().enumerate() {
        let label = ["C provider", "our module"][provider];
        let bars = (0..count).rev().zip(&rows).map(|(position, (_, c, ours))| {
            let value = [*c, *ours][provider] as f64;
            let ends = [
                (0.0, SegmentValue::Exact(position)),
                (value, SegmentValue::Exact(position + 1)),
            ];
            let mut bar = Rectangle::new(ends, colour.filled());
            // Ours is the lower half of the row.
            let (above, below) = [(5, 17), (17, 5)][provider];
            bar.set_margin(above, below, 0, 0);
            bar
        });
        chart
            .draw_series(bars)
            .map_err(failed)?
            .label(label)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE)
        .border_style(TRANSPARENT)
        .label_font(("sans-serif", 14))
        .draw()
        .map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Column;
    use super::*;

    #[test]
    fn each_row_is_named_and_has_its_bars() {
        let mut measured = Measured::default();
        for (name, words) in [("cpuid", "CPUID"), ("rdmsr", "RDMSR")] {
            measured.add(name, Column::C, 10_000);
            measured.add(name, Column::Ours, 5000);
            assert!(!svg(&[("intel", &measured)]).unwrap().is_empty(), "{words}");
        }
        let text = svg(&[("intel", &measured)]).unwrap();
        assert!(text.contains("CPUID") && text.contains("RDMSR") && text.contains("our module"));
        // Two for each row and one in the legend.
        assert_eq!(text.matches("#C25A26").count(), 3);
    }
}
