//! Drawing: a frame with axes, and texts that cannot break out of the page.

use std::fmt::Write as _;

use crate::units::number;

/// Width of a picture.
const WIDTH: f64 = 900.0;
/// Room at the left for the numbers of the vertical axis.
const LEFT: f64 = 78.0;
/// Room at the right.
const RIGHT: f64 = 18.0;
/// Room at the top.
const TOP: f64 = 14.0;
/// Room at the bottom for the numbers and the title of the horizontal axis.
const BOTTOM: f64 = 46.0;

/// A text for HTML and for attributes in double quotes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Control characters have no place in a page.
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A coordinate.
pub(super) fn at(value: f64) -> String {
    number(value, 1)
}

/// Marks of an axis from 0 to `most`: about `count` of them, at 1, 2 or 5 times a power of ten.
pub(super) fn ticks(most: f64, count: f64) -> Vec<f64> {
    if !(most > 0.0 && most.is_finite()) {
        return vec![0.0];
    }
    let raw = most / count;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= raw)
        .unwrap_or(10.0 * power);
    let (mut marks, mut mark) = (Vec::new(), 0.0);
    while mark <= most * 1.000_001 && marks.len() < 50 {
        marks.push(mark);
        mark += step;
    }
    marks
}

/// A picture with two axes from 0 on.
pub(super) struct Frame {
    text: String,
    height: f64,
    x_most: f64,
    y_most: f64,
}

impl Frame {
    /// A picture; `title` says for readers who cannot see it what it shows.
    pub(super) fn new(title: &str, height: f64, x_most: f64, y_most: f64) -> Self {
        let title = escape(title);
        Self {
            text: format!(
                "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{title}\">\n\
                 <title>{title}</title>\n",
                at(WIDTH),
                at(height)
            ),
            height,
            x_most: if x_most > 0.0 { x_most } else { 1.0 },
            y_most: if y_most > 0.0 { y_most } else { 1.0 },
        }
    }

    pub(super) fn x(&self, value: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (value / self.x_most).clamp(0.0, 1.0)
    }

    pub(super) fn y(&self, value: f64) -> f64 {
        let room = self.height - TOP - BOTTOM;
        TOP + room * (1.0 - (value / self.y_most).clamp(0.0, 1.0))
    }

    pub(super) fn add(&mut self, element: &str) {
        self.text.push_str(element);
        self.text.push('\n');
    }

    pub(super) fn words(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        let text = escape(text);
        // Writing to a String does not fail, here and below.
        let _ = writeln!(
            self.text,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"{anchor}\">{text}</text>",
            at(x),
            at(y)
        );
    }

    /// The vertical axis: lines across the picture, their numbers, and what they count.
    pub(super) fn y_axis(&mut self, title: &str) {
        for mark in ticks(self.y_most, 5.0) {
            let y = at(self.y(mark));
            let (left, right) = (at(LEFT), at(WIDTH - RIGHT));
            let line = format!(
                "<line class=\"grid\" x1=\"{left}\" y1=\"{y}\" x2=\"{right}\" y2=\"{y}\"/>"
            );
            self.add(&line);
            self.words(LEFT - 8.0, self.y(mark) + 4.0, "end", &number(mark, 3));
        }
        self.y_title(title);
    }

    pub(super) fn y_title(&mut self, title: &str) {
        let middle = at(f64::midpoint(TOP, self.height - BOTTOM));
        let text = format!(
            "<text transform=\"translate(16 {middle}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            escape(title)
        );
        self.add(&text);
    }

    /// The horizontal axis: marks, their numbers, and what they count.
    pub(super) fn x_axis(&mut self, title: &str) {
        let bottom = self.height - BOTTOM;
        let (left, right, y) = (at(LEFT), at(WIDTH - RIGHT), at(bottom));
        let line =
            format!("<line class=\"axis\" x1=\"{left}\" y1=\"{y}\" x2=\"{right}\" y2=\"{y}\"/>");
        self.add(&line);
        for mark in ticks(self.x_most, 8.0) {
            self.words(self.x(mark), bottom + 18.0, "middle", &number(mark, 3));
        }
        self.x_title(title);
    }

    pub(super) fn x_title(&mut self, title: &str) {
        let middle = f64::midpoint(LEFT, WIDTH - RIGHT);
        self.words(middle, self.height - 8.0, "middle", title);
    }

    /// Steps: one value for each of `values`, over the whole width.
    pub(super) fn steps(&mut self, class: &str, values: &[f64], filled: bool) {
        let Some((first, last)) = values.first().zip(values.last()) else {
            return;
        };
        let each = self.x_most / count(values.len());
        let (start, end) = (at(self.x(0.0)), at(self.x(self.x_most)));
        let floor = at(self.y(0.0));
        let mut path = match filled {
            true => format!("M{start} {floor}V{}", at(self.y(*first))),
            false => format!("M{start} {}", at(self.y(*first))),
        };
        let (mut x, mut before) = (0.0, *first);
        for value in values {
            if at(self.y(*value)) != at(self.y(before)) {
                let _ = write!(path, "H{}V{}", at(self.x(x)), at(self.y(*value)));
                before = *value;
            }
            x += each;
        }
        let _ = write!(path, "H{end}");
        if filled {
            let _ = write!(path, "V{floor}Z");
        }
        debug_assert!(last.is_finite());
        self.add(&format!("<path class=\"{class}\" d=\"{path}\"/>"));
    }

    /// A box, by its corners in the units of the axes; `more` is put among its attributes.
    pub(super) fn rect(&mut self, class: &str, x: (f64, f64), y: (f64, f64), more: &str) {
        let (left, right) = (self.x(x.0), self.x(x.1));
        let (bottom, top) = (self.y(y.0), self.y(y.1));
        let rect = format!(
            "<rect class=\"{class}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"{more}/>",
            at(left),
            at(top),
            at((right - left).max(0.0)),
            at((bottom - top).max(0.0))
        );
        self.add(&rect);
    }

    /// The picture.
    pub(super) fn close(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}

/// A count as a number for coordinates.
pub(super) fn count(number: usize) -> f64 {
    crate::record::as_f64(u64::try_from(number).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_cannot_break_out() {
        assert_eq!(
            escape("<b a=\"1\" c='2'>&\n"),
            "&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp; "
        );
    }

    #[test]
    fn axes_have_round_marks() {
        assert_eq!(ticks(512.0, 5.0), [0.0, 200.0, 400.0]);
        assert_eq!(
            ticks(1.0, 5.0),
            [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]
        );
        assert_eq!(ticks(0.0, 5.0), [0.0]);
        assert_eq!(ticks(f64::NAN, 5.0), [0.0]);
    }
}
