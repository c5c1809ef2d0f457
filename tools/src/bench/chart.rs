//! The medians as a picture: a panel for each underlay and metric, a bar for each lane, a line from the smallest value
//! to the largest.

use super::lanes::Underlay;
use super::metric::Metric;
use super::report::number;
use super::stats::{Samples, extent, median};
use std::fmt::Write;

/// What is drawn; the rest stands in the table.
const METRICS: [Metric; 7] = [
    Metric::Tcp,
    Metric::Tcp4,
    Metric::UdpReceived,
    Metric::TunnelCpu,
    Metric::IdleP50,
    Metric::IdleP99,
    Metric::LoadP99,
];

const PANEL_WIDTH: usize = 420;
const LABEL_WIDTH: usize = 110;
const BAR_WIDTH: usize = 230;
const ROW_HEIGHT: usize = 20;
const HEAD_HEIGHT: usize = 34;

/// An SVG file.
pub fn svg(samples: &Samples, lanes: &[String]) -> String {
    let mut body = String::new();
    let mut bottom = 0;
    let mut column = 0;
    for underlay in Underlay::ALL {
        let mut top = 0;
        for metric in METRICS {
            let bars: Vec<Bar> = lanes.iter().filter_map(|lane| Bar::of(samples, underlay, lane, metric)).collect();
            if bars.is_empty() {
                continue;
            }
            panel(&mut body, column * PANEL_WIDTH, top, &title(underlay, metric), &bars);
            top += HEAD_HEIGHT + bars.len() * ROW_HEIGHT;
        }
        column += usize::from(top > 0);
        bottom = bottom.max(top);
    }
    let (width, height) = (column.max(1) * PANEL_WIDTH, bottom + ROW_HEIGHT);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

struct Bar {
    lane: String,
    median: f64,
    least: f64,
    most: f64,
}

impl Bar {
    fn of(samples: &Samples, underlay: Underlay, lane: &str, metric: Metric) -> Option<Bar> {
        let values = samples.values(underlay.name(), lane, metric);
        let (least, most) = extent(values)?;
        Some(Bar { lane: lane.to_owned(), median: median(values)?, least, most })
    }
}

fn title(underlay: Underlay, metric: Metric) -> String {
    format!("{} ({}), {}", metric.head(), metric.unit(), underlay.name())
}

fn panel(out: &mut String, left: usize, top: usize, title: &str, bars: &[Bar]) {
    let most = bars.iter().map(|bar| bar.most).fold(f64::MIN_POSITIVE, f64::max);
    let at = |value: f64| value / most * BAR_WIDTH as f64;
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" font-weight=\"bold\">{}</text>",
        left + LABEL_WIDTH,
        top + HEAD_HEIGHT - 10,
        escape(title)
    );
    for (row, bar) in bars.iter().enumerate() {
        let y = top + HEAD_HEIGHT + row * ROW_HEIGHT;
        let (x, middle) = (left + LABEL_WIDTH, y + ROW_HEIGHT / 2);
        let color = if bar.lane.starts_with("formic") { "#b5541c" } else { "#7d8ba1" };
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{x}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"{color}\"/>\
             <path d=\"M{:.1} {middle}H{:.1}\" stroke=\"black\"/>\
             <text x=\"{:.1}\" y=\"{}\">{}</text>",
            x - 6,
            middle + 4,
            escape(&bar.lane),
            y + 3,
            at(bar.median),
            ROW_HEIGHT - 6,
            x as f64 + at(bar.least),
            x as f64 + at(bar.most),
            x as f64 + at(bar.most) + 6.0,
            middle + 4,
            number(bar.median),
        );
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_for_each_lane_that_was_measured() {
        let mut samples = Samples::default();
        for value in [5.0, 10.0, 20.0] {
            samples.add("gso", "formic", Metric::Tcp, value);
        }
        samples.add("gso", "vxlan", Metric::Tcp, 15.0);
        samples.add("wire", "formic<2>", Metric::IdleP99, 80.0);
        let lanes = ["vxlan", "formic", "formic<2>", "boringtun"].map(str::to_owned);
        let svg = svg(&samples, &lanes);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<path ").count(), 3, "{svg}");
        assert!(svg.contains("width=\"115.0\"") && svg.contains("width=\"172.5\""), "half and three quarters: {svg}");
        assert!(svg.contains("formic&lt;2&gt;") && !svg.contains("boringtun"), "{svg}");
        assert!(svg.contains(&format!("width=\"{}\"", 2 * PANEL_WIDTH)), "two underlays: {svg}");
    }

    #[test]
    fn nothing_measured_is_an_empty_picture() {
        assert!(svg(&Samples::default(), &[]).contains("</svg>"));
    }
}
