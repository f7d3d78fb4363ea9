//! The page of a run of [`crate::openb`].

use std::collections::BTreeMap;

use super::charts::{Columns, HEAT_COLUMNS, HEAT_ROWS, heat_map};
use super::svg::{Frame, count};
use super::{head, paragraph, picture, table};
use crate::openb::allocation::ARRIVED_MAX;
use crate::openb::{Allocation, Machine, Run, Summary};
use crate::record::as_f64;
use crate::units::number;

/// The page.
pub(crate) fn page(summary: &Summary, allocation: &Allocation, run: &Run) -> String {
    let mut page = head(&format!("{} under {}", summary.input, summary.policy));
    let text = &mut page;
    paragraph(
        text,
        &format!(
            "{} pods of {} (openb format, inflated to {}) on {} nodes with {} GPUs, seed {}, Muster {}",
            summary.pods,
            summary.input,
            summary.inflate,
            summary.nodes,
            summary.gpus,
            summary.seed,
            summary.version
        ),
    );
    figures(text, summary);
    picture(
        text,
        "Allocation by arrived load",
        &by_load(allocation),
        &[
            ("used", "GPUs that pods have"),
            ("there", "GPUs that pods have asked for, up to all"),
        ],
    );
    picture(
        text,
        "Idle GPUs by arrived load",
        &idle(run),
        &[
            ("without", "on nodes with less than one core left"),
            ("part", "parts of GPUs on other nodes"),
            ("whole", "whole GPUs on other nodes"),
        ],
    );
    let rows = Rows::of(run);
    let shade = match rows.most {
        1 => "GPUs of a node that pods have, from none to all".to_owned(),
        most => {
            format!(
                "GPUs of up to {most} nodes of one model together that pods have, from none to all"
            )
        }
    };
    picture(
        text,
        "Nodes by arrivals",
        &rows.picture(run),
        &[("heat", &shade)],
    );
    page.push_str("</body>\n</html>\n");
    page
}

fn figures(page: &mut String, summary: &Summary) {
    let percent = |value: Option<f64>| {
        value.map_or("-".to_owned(), |value| format!("{} %", number(value, 2)))
    };
    let idle = &summary.idle_gpus;
    let rows = [
        ("Pods placed", summary.pods_placed.to_string()),
        ("Pods dropped", summary.pods_dropped.to_string()),
        ("GPUs that arrived", number(summary.gpus_arrived, 1)),
        (
            "Allocated when as many had arrived as there are",
            percent(summary.allocation_percent_at_100),
        ),
        (
            "Allocated at the end",
            percent(summary.allocation_percent_at_end),
        ),
        ("GPUs idle at the end, whole", number(idle.whole, 0)),
        ("GPUs idle at the end, in parts", number(idle.in_part, 1)),
        (
            "GPUs idle at the end, on nodes without a core",
            number(idle.on_nodes_without_a_core, 1),
        ),
    ];
    table(page, &rows);
}

const X_TITLE: &str = "GPUs that have arrived (% of the cluster's)";

/// Allocated GPUs by arrived GPUs.
fn by_load(allocation: &Allocation) -> String {
    let mut last = 0.0;
    let known = allocation.values().iter();
    let known = known.take_while(|value| value.is_some());
    let allocated: Vec<f64> = known
        .map(|value| {
            last = value.unwrap_or(last);
            last
        })
        .collect();
    let asked: Vec<f64> = (0u32..)
        .zip(&allocated)
        .map(|(x, _)| f64::from(x).min(100.0))
        .collect();
    let title = "Allocated GPUs by arrived load";
    let mut frame = Frame::new(title, 300.0, count(allocated.len()), 105.0);
    frame.y_axis("% of all GPUs");
    frame.steps("used", &allocated, true);
    frame.steps("there", &asked, false);
    frame.x_axis(X_TITLE);
    frame.close()
}

/// Idle GPUs by cause, one above the other.
fn idle(run: &Run) -> String {
    let capacity = as_f64(run.gpus()) * 1000.0;
    // Mean of each cause over the arrivals of the same whole percentage.
    let mut sums: BTreeMap<u32, ([f64; 3], f64)> = BTreeMap::new();
    for sample in &run.samples {
        let x = (100.0 * as_f64(sample.arrived_milli) / capacity).round_ties_even();
        // Between 0 and the last column.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let x = x.clamp(0.0, f64::from(ARRIVED_MAX)) as u32;
        let (sum, samples) = sums.entry(x).or_default();
        let idle = &sample.idle;
        let causes = [idle.whole, idle.part, idle.without_core];
        for (sum, milli) in sum.iter_mut().zip(causes) {
            *sum += as_f64(milli) / 1000.0;
        }
        *samples += 1.0;
    }
    let end = sums.last_key_value().map_or(0, |(x, _)| *x);
    let mut stacks: [Vec<f64>; 3] = Default::default();
    for x in 0..=end {
        // A column without arrivals looks as the one before it.
        let found = sums.range(..=x).next_back();
        let (sum, samples) = found.map_or(([0.0; 3], 1.0), |(_, found)| *found);
        let mut all = 0.0;
        for (stack, sum) in stacks.iter_mut().zip(sum) {
            all += sum / samples;
            stack.push(all);
        }
    }
    let [whole, part, without] = &stacks;
    let most = without.iter().copied().fold(0.0, f64::max);
    let title = "Idle GPUs by arrived load and cause";
    let mut frame = Frame::new(title, 300.0, count(whole.len()), most * 1.05);
    frame.y_axis("GPUs");
    // The highest first: each covers the lower part of the one before it.
    frame.steps("without", without, true);
    frame.steps("part", part, true);
    frame.steps("whole", whole, true);
    frame.x_axis(X_TITLE);
    frame.close()
}

/// Nodes that share a row of the heat map: nodes of one model and size, in order of name.
struct Rows {
    names: Vec<String>,
    nodes: Vec<Vec<usize>>,
    /// Most nodes of a row.
    most: usize,
}

impl Rows {
    fn of(run: &Run) -> Self {
        let mut kinds: BTreeMap<(&str, usize), Vec<usize>> = BTreeMap::new();
        for (position, node) in run.nodes.iter().enumerate().filter(|(_, n)| n.gpus > 0) {
            let model = run.models.get(node.model).map_or("", |model| &**model);
            kinds.entry((model, node.gpus)).or_default().push(position);
        }
        let all = kinds
            .values()
            .fold(0, |sum: usize, nodes| sum.saturating_add(nodes.len()));
        let most = all.div_ceil(HEAT_ROWS).max(1);
        let (mut names, mut rows) = (Vec::new(), Vec::new());
        for ((model, gpus), nodes) in kinds {
            for part in nodes.chunks(most) {
                names.push(format!("{model} x{gpus}"));
                rows.push(part.to_vec());
            }
        }
        Self {
            most: rows.iter().map(Vec::len).max().unwrap_or(1),
            names,
            nodes: rows,
        }
    }

    fn picture(&self, run: &Run) -> String {
        let end = u64::try_from(run.samples.len()).unwrap_or(u64::MAX);
        let mut changes: Vec<Vec<(u64, u64)>> = vec![vec![(0, 0)]; run.nodes.len()];
        for change in &run.changes {
            if let Some(list) = changes.get_mut(change.node) {
                let arrival = u64::try_from(change.arrival).unwrap_or(u64::MAX);
                list.push((arrival, change.allocated_milli));
            }
        }
        let means: Vec<Vec<Option<f64>>> = self
            .nodes
            .iter()
            .map(|row| {
                let mut columns = Columns::new(0, end, HEAT_COLUMNS);
                for node in row {
                    let list = changes.get(*node).map_or(&[][..], Vec::as_slice);
                    let size = run.nodes.get(*node).map_or(1.0, size_milli);
                    let ends = list.iter().skip(1).map(|(arrival, _)| *arrival);
                    for ((arrival, milli), until) in list.iter().zip(ends.chain([end])) {
                        columns.add(*arrival, until, as_f64(*milli) / size);
                    }
                }
                columns.means()
            })
            .collect();
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        let title = "GPU use of nodes by arrivals";
        heat_map(title, "pods that have arrived", as_f64(end), &names, &means)
    }
}

fn size_milli(node: &Machine) -> f64 {
    1000.0 * count(node.gpus).max(1.0)
}
