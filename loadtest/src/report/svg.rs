//! Plots as SVG text: a frame with axes, and lines, stacks, cells and marks
//! in it. Colours come from the page's style sheet, by class.

use std::fmt::Write as _;

use super::Mark;

const WIDTH: f64 = 920.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 26.0;

/// The vertical axis.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scale {
    /// From 0 to a maximum.
    Linear {
        /// The highest value shown.
        max: f64,
    },
    /// From one value to another, by powers of ten.
    Log {
        /// The lowest value shown.
        min: f64,
        /// The highest value shown.
        max: f64,
    },
}

impl Scale {
    /// A linear axis that has room for `value`.
    pub(super) fn linear(value: f64) -> Self {
        Scale::Linear {
            max: nice_above(value),
        }
    }

    /// A logarithmic axis that has room for both values.
    pub(super) fn log(min: f64, max: f64) -> Self {
        let min = 10f64.powf(min.max(1e-3).log10().floor());
        Scale::Log {
            min,
            max: 10f64.powf(max.max(min * 10.0).log10().ceil()),
        }
    }

    /// The part of the height, from the bottom, at which a value lies.
    fn part(self, value: f64) -> f64 {
        match self {
            Scale::Linear { max } => value / max,
            Scale::Log { min, max } => (value.max(min) / min).log10() / (max / min).log10(),
        }
        .clamp(0.0, 1.0)
    }

    fn ticks(self) -> Vec<f64> {
        match self {
            Scale::Linear { max } => (0..=4).map(|n| max * f64::from(n) / 4.0).collect(),
            Scale::Log { min, max } => {
                let decades = (max / min).log10().round() as i32;
                (0..=decades).map(|n| min * 10f64.powi(n)).collect()
            }
        }
    }
}

/// A short number times a power of ten, not below the value.
fn nice_above(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    [1.0, 1.2, 1.6, 2.0, 2.4, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0]
        .iter()
        .map(|step| step * power)
        .find(|nice| *nice >= value)
        .unwrap_or(value)
}

/// A plot that is being drawn.
#[derive(Debug)]
pub(super) struct Plot {
    seconds: f64,
    scale: Scale,
    unit: &'static str,
    body: String,
}

impl Plot {
    /// An empty plot of so many seconds.
    pub(super) fn new(seconds: f64, scale: Scale, unit: &'static str) -> Self {
        Plot {
            seconds: seconds.max(1.0),
            scale,
            unit,
            body: String::new(),
        }
    }

    fn x(&self, second: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (second / self.seconds).clamp(0.0, 1.0)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * self.scale.part(value)
    }

    /// A line through points; a point without a value interrupts it.
    pub(super) fn line(&mut self, class: &str, points: impl Iterator<Item = (f64, Option<f64>)>) {
        let mut path = String::new();
        let mut pen_down = false;
        for (second, value) in points {
            let Some(value) = value else {
                pen_down = false;
                continue;
            };
            let (x, y) = (self.x(second), self.y(value));
            if pen_down {
                let _ = write!(path, "L{x:.1} {y:.1}");
            } else {
                // A lone point is drawn as a dot by its round line end.
                let _ = write!(path, "M{x:.1} {y:.1}h0");
            }
            pen_down = true;
        }
        let _ = write!(self.body, "<path class=\"line {class}\" d=\"{path}\"/>");
    }

    /// Areas on top of each other. Each point has a value for each class.
    pub(super) fn stack(&mut self, classes: &[&str], points: &[(f64, Vec<f64>)]) {
        let mut below: Vec<f64> = vec![0.0; points.len()];
        for (place, class) in classes.iter().enumerate() {
            let above: Vec<f64> = points
                .iter()
                .zip(&below)
                .map(|((_, values), base)| base + values[place])
                .collect();
            if above == below {
                continue;
            }
            let mut path = String::new();
            let edge = points
                .iter()
                .zip(&above)
                .chain(points.iter().zip(&below).rev());
            for (n, ((second, _), value)) in edge.enumerate() {
                let _ = write!(
                    path,
                    "{}{:.1} {:.1}",
                    if n == 0 { "M" } else { "L" },
                    self.x(*second),
                    self.y(*value)
                );
            }
            let _ = write!(self.body, "<path class=\"area {class}\" d=\"{path}Z\"/>");
            below = above;
        }
    }

    /// A cell of a heat map, between two moments and two values.
    pub(super) fn cell(
        &mut self,
        (from, to): (f64, f64),
        (low, high): (f64, f64),
        heat: f64,
        title: &str,
    ) {
        let (x, y) = (self.x(from), self.y(high));
        let (width, height) = (self.x(to) - x, self.y(low) - y);
        let _ = write!(
            self.body,
            "<rect class=\"cell\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{height:.2}\" \
             style=\"fill-opacity:{heat:.2}\"><title>{}</title></rect>",
            escape(title)
        );
    }

    /// A stretch of time behind everything, such as a flood.
    pub(super) fn window(&mut self, (from, to): (f64, f64)) {
        let x = self.x(from);
        let _ = write!(
            self.body,
            "<rect class=\"window\" x=\"{x:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"/>",
            self.x(to) - x,
            HEIGHT - TOP - BOTTOM
        );
    }

    /// A dashed line at each moment at which something happened.
    pub(super) fn marks(&mut self, marks: &[Mark]) {
        for (number, mark) in marks.iter().enumerate() {
            let x = self.x(mark.at);
            let _ = write!(
                self.body,
                "<g class=\"mark\"><line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\">{}</text><title>{:.1} s: {}</title></g>",
                HEIGHT - BOTTOM,
                TOP - 6.0,
                number + 1,
                mark.at,
                escape(&mark.text)
            );
        }
    }

    /// The whole plot; `label` is read to who cannot see it.
    pub(super) fn finish(self, label: &str) -> String {
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escape(label)
        );
        for tick in self.scale.ticks() {
            let y = self.y(tick);
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
                short(tick),
                self.unit
            );
        }
        for n in 0..=5 {
            let second = self.seconds * f64::from(n) / 5.0;
            let _ = write!(
                out,
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                self.x(second).min(WIDTH - RIGHT - 12.0),
                HEIGHT - 8.0,
                moment(second)
            );
        }
        out.push_str(&self.body);
        out.push_str("</svg>");
        out
    }
}

/// A number with as many digits as an axis needs.
fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", trim(v / 1e6)),
        v if v >= 1e3 => format!("{}k", trim(v / 1e3)),
        v => trim(v),
    }
}

fn trim(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A moment of the run for people.
fn moment(second: f64) -> String {
    let whole = second.round() as u64;
    match whole {
        0..120 => format!("{} s", trim((second * 10.0).round() / 10.0)),
        120..7_200 => format!("{}:{:02} min", whole / 60, whole % 60),
        _ => format!("{}:{:02} h", whole / 3_600, whole / 60 % 60),
    }
}

/// Text that is safe in HTML and SVG, in attributes too.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_room_and_round_numbers() {
        assert_eq!(nice_above(0.0), 1.0);
        assert_eq!(nice_above(180.0), 200.0);
        assert_eq!(nice_above(2_300.0), 2_400.0);
        assert_eq!(nice_above(1_000.0), 1_000.0);
        assert_eq!(
            Scale::log(0.3, 40.0)
                .ticks()
                .iter()
                .map(|tick| short(*tick))
                .collect::<Vec<_>>(),
            ["0.1", "1", "10", "100"]
        );
        assert_eq!(
            (short(2_500.0), short(1e6), moment(90.0), moment(150.0)),
            ("2.5k".into(), "1M".into(), "90 s".into(), "2:30 min".into())
        );
    }

    #[test]
    fn higher_values_lie_higher() {
        let plot = Plot::new(10.0, Scale::log(1.0, 100.0), "");
        assert!(plot.y(100.0) < plot.y(10.0) && plot.y(10.0) < plot.y(1.0));
        assert_eq!(plot.y(0.0), plot.y(1.0));
    }
}
