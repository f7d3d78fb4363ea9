//! The pictures of the report.

use crate::record::{NodeChange, Record, Sample, as_f64};
use crate::report::svg::{Frame, at, count, escape};
use crate::scene::Scene;
use crate::summary::{Summary, Waits, seconds};
use crate::units::{Unit, number};

/// Points of time in a curve.
const COLUMNS: usize = 300;

/// Points of time in the heat map.
pub(super) const HEAT_COLUMNS: usize = 120;

/// Rows of the heat map; several nodes share a row where there are more of them.
pub(super) const HEAT_ROWS: usize = 64;

/// The time that is shown: milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub first_ms: u64,
    pub last_ms: u64,
}

impl Window {
    fn span_ms(self) -> u64 {
        self.last_ms.saturating_sub(self.first_ms)
    }

    fn unit(self) -> Unit {
        Unit::of(seconds(self.span_ms()))
    }

    fn length(self) -> f64 {
        seconds(self.span_ms()) / self.unit().seconds
    }

    fn title(self) -> String {
        format!("time since the first arrival ({})", self.unit().name)
    }
}

/// Means over equal parts of a stretch of time, or of arrivals.
pub(super) struct Columns {
    first: u64,
    last: u64,
    sums: Vec<f64>,
    weights: Vec<f64>,
}

impl Columns {
    pub(super) fn new(first: u64, last: u64, columns: usize) -> Self {
        Self {
            first,
            last,
            sums: vec![0.0; columns],
            weights: vec![0.0; columns],
        }
    }

    /// A value that held from one point to another.
    pub(super) fn add(&mut self, from: u64, to: u64, value: f64) {
        let span = as_f64(self.last.saturating_sub(self.first));
        if span <= 0.0 {
            return;
        }
        let width = span / count(self.sums.len());
        let place = |point: u64| as_f64(point.saturating_sub(self.first)) / width;
        let (from, to) = (place(from), place(to.min(self.last)));
        if to <= from {
            return;
        }
        let cells = self.sums.iter_mut().zip(&mut self.weights).enumerate();
        // Between 0 and the number of columns.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let (skip, end) = (from.floor() as usize, to.ceil() as usize);
        for (column, (sum, weight)) in cells.skip(skip).take(end.saturating_sub(skip)) {
            let left = count(column);
            let part = (to.min(left + 1.0) - from.max(left)).max(0.0);
            *sum += part * value;
            *weight += part;
        }
    }

    pub(super) fn means(&self) -> Vec<Option<f64>> {
        let cells = self.sums.iter().zip(&self.weights);
        cells
            .map(|(sum, weight)| (*weight > 1e-9).then(|| sum / weight))
            .collect()
    }
}

/// Means over time of something that a sample says; `None` leaves the sample out.
fn curve(record: &Record, window: Window, value: impl Fn(&Sample) -> Option<f64>) -> Vec<f64> {
    let mut columns = Columns::new(window.first_ms, window.last_ms, COLUMNS);
    for (sample, span) in record.spans(window.last_ms) {
        if let Some(value) = value(sample) {
            let end = sample.at_ms.saturating_add(span);
            columns.add(sample.at_ms, end, value);
        }
    }
    columns
        .means()
        .into_iter()
        .map(|mean| mean.unwrap_or(0.0))
        .collect()
}

/// GPUs in use, and what the nodes have.
pub(super) fn gpu_use(record: &Record, window: Window) -> String {
    let used = curve(record, window, |sample| Some(as_f64(sample.nodes.used)));
    let there = curve(record, window, |sample| Some(as_f64(sample.nodes.gpus)));
    let most = there.iter().copied().fold(0.0, f64::max);
    let mut frame = Frame::new("GPUs in use over time", 300.0, window.length(), most * 1.05);
    frame.y_axis("GPUs");
    frame.steps("used", &used, true);
    frame.steps("there", &there, false);
    frame.x_axis(&window.title());
    frame.close()
}

/// GPUs that waiting gangs want.
pub(super) fn demand(record: &Record, window: Window) -> String {
    let wanted = curve(record, window, |sample| Some(as_f64(sample.wanted)));
    let most = wanted.iter().copied().fold(0.0, f64::max);
    let title = "GPUs wanted by waiting gangs over time";
    let mut frame = Frame::new(title, 240.0, window.length(), most.max(1.0) * 1.05);
    frame.y_axis("GPUs");
    frame.steps("wanted", &wanted, true);
    frame.x_axis(&window.title());
    frame.close()
}

/// Share of the free GPUs that are on nodes with something on them.
pub(super) fn fragmentation(record: &Record, window: Window) -> String {
    let share = curve(record, window, |sample| {
        (sample.nodes.free > 0).then(|| 100.0 * sample.fragmentation())
    });
    let title = "Free GPUs on partly used nodes over time";
    let mut frame = Frame::new(title, 240.0, window.length(), 100.0);
    frame.y_axis("% of free GPUs");
    frame.steps("fragmented", &share, true);
    frame.x_axis(&window.title());
    frame.close()
}

/// Waits by size of the gang: a bar for the mean, one for the 95th percentile.
pub(super) fn waits(summary: &Summary) -> String {
    let sizes = &summary.gang_wait_seconds_by_size;
    let longest = |waits: &Waits| waits.p95.max(waits.mean);
    let most = sizes.iter().map(|(_, waits)| longest(waits));
    let most = most.fold(0.0, f64::max);
    let unit = Unit::of(most);
    let slots = count(sizes.len()).max(1.0);
    let top = (most / unit.seconds).max(1.0) * 1.12;
    let mut frame = Frame::new("Waiting by gang size", 300.0, slots, top);
    frame.y_axis(&format!("wait ({})", unit.name));
    for (slot, (size, waits)) in sizes.iter().enumerate() {
        let left = count(slot);
        let bars = [("mean", waits.mean, 0.16), ("p95", waits.p95, 0.51)];
        for (class, value, from) in bars {
            let value = value / unit.seconds;
            let x = (left + from, left + from + 0.33);
            if value > 0.0 {
                frame.rect(class, x, (0.0, value), "");
            }
            let (x, y) = (frame.x(left + from + 0.165), frame.y(value) - 4.0);
            frame.words(x, y, "middle", &number(value, 1));
        }
        let middle = frame.x(left + 0.5);
        let label = format!("{size} (n {})", waits.gangs);
        frame.words(middle, frame.y(0.0) + 18.0, "middle", &label);
    }
    frame.x_title("GPUs of the gang (number of gangs that started)");
    frame.close()
}

/// Use of each node over time.
pub(super) fn heat(scene: &Scene, record: &Record, window: Window) -> String {
    let nodes: Vec<usize> = (0..scene.nodes.len())
        .filter(|node| scene.nodes.get(*node).is_some_and(|spec| spec.gpus > 0))
        .collect();
    let per_row = nodes.len().div_ceil(HEAT_ROWS).max(1);
    let rows: Vec<&[usize]> = nodes.chunks(per_row).collect();
    let means = heat_means(scene, record, window, &rows);
    let names: Vec<&str> = rows
        .iter()
        .map(|nodes| {
            let first = nodes.first().and_then(|node| scene.nodes.get(*node));
            first.map_or("", |node| &node.name)
        })
        .collect();
    heat_map(
        "GPU use of each node over time",
        &window.title(),
        window.length(),
        &names,
        &means,
    )
}

/// A row of shades for each name.
pub(super) fn heat_map(
    title: &str,
    x_title: &str,
    length: f64,
    names: &[&str],
    rows: &[Vec<Option<f64>>],
) -> String {
    let top = count(rows.len());
    let each = (700.0 / top.max(1.0)).clamp(7.0, 24.0);
    let mut frame = Frame::new(title, 60.0 + each * top, length, top);
    let mut named = 0.0;
    for (row, (name, cells)) in names.iter().zip(rows).enumerate() {
        let y = top - count(row);
        heat_row(&mut frame, length, y, cells);
        // Names that would touch are left out.
        if row == 0 || (count(row) - named) * each >= 12.0 {
            named = count(row);
            let name: String = name.chars().take(11).collect();
            let (x, y) = (frame.x(0.0) - 6.0, frame.y(y - 0.5) + 4.0);
            frame.words(x, y, "end", &name);
        }
    }
    frame.x_axis(x_title);
    frame.close()
}

/// Nodes that share a row.
pub(super) fn nodes_per_row(scene: &Scene) -> usize {
    let nodes = scene.nodes.iter().filter(|node| node.gpus > 0).count();
    nodes.div_ceil(HEAT_ROWS).max(1)
}

/// Share of GPUs in use of each row and column; `None` where no node is there.
fn heat_means(
    scene: &Scene,
    record: &Record,
    window: Window,
    rows: &[&[usize]],
) -> Vec<Vec<Option<f64>>> {
    let mut changes: Vec<Vec<&NodeChange>> = vec![Vec::new(); scene.nodes.len()];
    for change in &record.nodes {
        if let Some(list) = changes.get_mut(change.node) {
            list.push(change);
        }
    }
    let mut means = Vec::with_capacity(rows.len());
    for row in rows {
        let mut columns = Columns::new(window.first_ms, window.last_ms, HEAT_COLUMNS);
        for node in *row {
            let gpus = scene.nodes.get(*node).map_or(1, |spec| spec.gpus);
            let list = changes.get(*node).map_or(&[][..], Vec::as_slice);
            let ends = list.iter().skip(1).map(|change| change.at_ms);
            for (change, end) in list.iter().zip(ends.chain([window.last_ms])) {
                if let Some(used) = change.used {
                    columns.add(change.at_ms, end, as_f64(used) / f64::from(gpus.max(1)));
                }
            }
        }
        means.push(columns.means());
    }
    means
}

/// One row: cells of the same shade next to each other are one box.
fn heat_row(frame: &mut Frame, length: f64, y: f64, cells: &[Option<f64>]) {
    let width = length / count(cells.len()).max(1.0);
    let shade = |cell: &Option<f64>| cell.map(|share| number(share.clamp(0.0, 1.0), 2));
    let mut start = 0usize;
    while let Some(cell) = cells.get(start) {
        let same = cells
            .iter()
            .skip(start)
            .take_while(|other| shade(other) == shade(cell))
            .count();
        let end = start.saturating_add(same.max(1));
        let x = (count(start) * width, count(end) * width);
        let row = (y - 1.0, y - 0.08);
        match shade(cell) {
            None => frame.rect("gone", x, row, ""),
            Some(shade) if shade == "0" => {}
            Some(shade) => frame.rect("heat", x, row, &format!(" fill-opacity=\"{shade}\"")),
        }
        start = end;
    }
}

/// Names the colours of a picture.
pub(super) fn legend(entries: &[(&str, &str)]) -> String {
    let mut text = String::from("<p class=\"legend\">");
    for (class, name) in entries {
        text.push_str(&format!(
            "<svg class=\"key\" viewBox=\"0 0 {s} {s}\" aria-hidden=\"true\">\
             <rect class=\"{class}\" width=\"{s}\" height=\"{s}\"/></svg> {} ",
            escape(name),
            s = at(12.0)
        ));
    }
    text.push_str("</p>\n");
    text
}
