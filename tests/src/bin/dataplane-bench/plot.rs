//! The plot of the blocklist's rows: two panels, sizes from left to right, both axes logarithmic.

use std::fmt::Write as _;

use crate::blocklist::Size;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;
const LEGEND: f64 = 200.0;
/// Told apart by people who see colours differently, too (Okabe and Ito, 2008).
const COLOURS: [&str; 8] = [
    "#0072b2", "#56b4e9", "#009e73", "#000000", "#d55e00", "#e69f00", "#cc79a7", "#999999",
];

/// The picture.
pub fn svg(sizes: &[Size]) -> String {
    let width = LEFT + WIDTH + LEGEND + 20.0;
    let height = 2.0 * (TOP + HEIGHT) + 60.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    panel(&mut text, TOP, "ns per packet", sizes, |size| {
        &size.packet_ns
    });
    let second = 2.0 * TOP + HEIGHT + 30.0;
    panel(&mut text, second, "load and replace, ms", sizes, |size| {
        &size.load_ms
    });
    text.push_str("</svg>\n");
    text
}

fn panel(
    text: &mut String,
    top: f64,
    title: &str,
    sizes: &[Size],
    of: impl Fn(&Size) -> &[(&'static str, f64)],
) {
    let values = || {
        sizes
            .iter()
            .flat_map(&of)
            .map(|(_, value)| *value)
            .filter(|v| *v > 0.0)
    };
    let low = values().fold(f64::INFINITY, f64::min).log10().floor();
    let high = values()
        .fold(0.0_f64, f64::max)
        .log10()
        .ceil()
        .max(low + 1.0);
    let powers = || sizes.iter().map(|size| f64::from(size.power));
    let (first, last) = (
        powers().fold(f64::INFINITY, f64::min),
        powers().fold(0.0, f64::max),
    );
    let x = |power: f64| LEFT + WIDTH * (power - first) / (last - first).max(1.0);
    let y = |value: f64| top + HEIGHT * (high - value.max(10f64.powf(low)).log10()) / (high - low);
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"{}\" font-size=\"14\">{title}, by addresses in the blocklist</text>",
        top - 12.0
    );
    let mut decade = low;
    while decade <= high {
        let at = y(10f64.powf(decade));
        let _ = writeln!(
            text,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT + WIDTH,
            LEFT - 6.0,
            at + 4.0,
            10f64.powf(decade)
        );
        decade += 1.0;
    }
    for power in powers() {
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">2<tspan dy=\"-4\" font-size=\"9\">{power}</tspan></text>",
            x(power),
            top + HEIGHT + 18.0
        );
    }
    let labels: Vec<&str> = sizes.first().map_or_else(Vec::new, |size| {
        of(size).iter().map(|(label, _)| *label).collect()
    });
    for ((label, colour), row) in labels.iter().zip(COLOURS.iter().cycle()).zip(0u8..) {
        let mut points = String::new();
        for size in sizes {
            let value = of(size).iter().find(|(name, _)| name == label);
            if let Some((_, value)) = value {
                let (x, y) = (x(f64::from(size.power)), y(*value));
                let _ = write!(points, "{x:.1},{y:.1} ");
                let _ = writeln!(
                    text,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{colour}\"/>"
                );
            }
        }
        let at = top + 14.0 + 18.0 * f64::from(row);
        let from = LEFT + WIDTH + 14.0;
        let _ = writeln!(
            text,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\
             <line x1=\"{from}\" x2=\"{}\" y1=\"{at}\" y2=\"{at}\" stroke=\"{colour}\" stroke-width=\"3\"/>\
             <text x=\"{}\" y=\"{}\">{label}</text>",
            from + 20.0,
            from + 26.0,
            at + 4.0
        );
    }
}
