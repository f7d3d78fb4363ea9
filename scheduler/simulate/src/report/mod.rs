//! `report.html`: one page with everything in it. It loads nothing and runs nothing.

mod charts;
pub(crate) mod openb;
mod svg;

use std::fmt::Write as _;

use self::charts::Window;
use self::svg::escape;
use crate::record::Record;
use crate::scene::Scene;
use crate::summary::{NotRun, Summary, window_ms};
use crate::units::{number, span};

const STYLE: &str = "\
:root { color-scheme: light dark; --page: #fff; --ink: #1c2024; --soft: #60646c; --line: #d9dce1;
  --blue: #2563a8; --amber: #c77700; --red: #b3372f; --gone: #b8bcc4; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171a; --ink: #e6e8eb; --soft: #9ba1a9; --line: #33383f; --blue: #6aa8e8;
    --amber: #e5a33d; --red: #e5756c; --gone: #4a5058; } }
body { background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  max-width: 960px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .25rem; }
p { margin: .25rem 0; } .soft, .legend { color: var(--soft); }
table { border-collapse: collapse; margin: .5rem 0; }
th, td { text-align: left; padding: .15rem 1.2rem .15rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg.key { width: 12px; height: 12px; margin-left: .8rem; }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); }
path.used, path.wanted, path.fragmented { stroke: none; fill-opacity: .75; }
.used, .heat, .mean { fill: var(--blue); } .wanted, .p95 { fill: var(--amber); }
.fragmented { fill: var(--red); } .gone { fill: var(--gone); }
path.without, rect.without { fill: var(--red); } path.part, rect.part { fill: var(--amber); }
path.whole, rect.whole { fill: var(--blue); }
path.there { fill: none; stroke: var(--ink); stroke-width: 1.5; } rect.there { fill: var(--ink); }
";

/// The page.
pub(crate) fn page(summary: &Summary, scene: &Scene, record: &Record) -> String {
    let (first_ms, last_ms) = window_ms(scene, record);
    let window = Window { first_ms, last_ms };
    let mut page = head(&format!("{} under {}", summary.input, summary.policy));
    let text = &mut page;
    paragraph(text, &about(summary));
    for note in &summary.notes {
        paragraph(text, &format!("Note: {note}."));
    }
    figures(text, summary);
    picture(
        text,
        "GPU use over time",
        &charts::gpu_use(record, window),
        &[("used", "in use"), ("there", "GPUs of the nodes")],
    );
    picture(
        text,
        "Demand that waits",
        &charts::demand(record, window),
        &[("wanted", "GPUs that waiting gangs ask for")],
    );
    picture(
        text,
        "Waiting by gang size",
        &charts::waits(summary),
        &[("mean", "mean"), ("p95", "95th percentile")],
    );
    picture(
        text,
        "Fragmentation over time",
        &charts::fragmentation(record, window),
        &[(
            "fragmented",
            "free GPUs that are on nodes with something on them; nothing where no GPU is free",
        )],
    );
    let nodes = match charts::nodes_per_row(scene) {
        1 => "GPUs in use of a node, from none to all".to_owned(),
        several => format!("GPUs in use of {several} nodes together, from none to all"),
    };
    picture(
        text,
        "Nodes over time",
        &charts::heat(scene, record, window),
        &[("heat", &nodes), ("gone", "not there")],
    );
    not_run(text, "Gangs that wait at the end", &summary.waiting_at_end);
    not_run(text, "Gangs that could not run", &summary.impossible);
    page.push_str("</body>\n</html>\n");
    page
}

/// The beginning of a page, up to its title.
fn head(title: &str) -> String {
    let title = escape(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    )
}

fn about(summary: &Summary) -> String {
    let load = match summary.load {
        Some(load) => format!(", offered load {load}"),
        None => String::new(),
    };
    format!(
        "{} gangs of {} ({} format) on {} nodes with {} GPUs{load}, seed {}, Muster {}",
        summary.gangs,
        summary.input,
        summary.format,
        summary.nodes,
        summary.gpus,
        summary.seed,
        summary.version
    )
}

fn paragraph(page: &mut String, text: &str) {
    // Writing to a String does not fail, here and below.
    let _ = writeln!(page, "<p class=\"soft\">{}</p>", escape(text));
}

fn picture(page: &mut String, title: &str, svg: &str, legend: &[(&str, &str)]) {
    let _ = writeln!(page, "<h2>{}</h2>", escape(title));
    page.push_str(&charts::legend(legend));
    page.push_str(svg);
}

fn percent(ratio: f64) -> String {
    format!("{} %", number(100.0 * ratio, 1))
}

fn figures(page: &mut String, summary: &Summary) {
    let parts = &summary.fragmentation;
    let rows = [
        ("Gangs completed", summary.gangs_completed.to_string()),
        (
            "Gangs running at the end",
            summary.gangs_running.to_string(),
        ),
        (
            "Gangs starved (never started)",
            summary.gangs_starved.to_string(),
        ),
        ("Gangs impossible", summary.gangs_impossible.to_string()),
        ("Runs lost with a node", summary.gangs_halted.to_string()),
        (
            "Wait until the first start, mean",
            span(summary.gang_wait_seconds_mean),
        ),
        (
            "Wait until the first start, 95th percentile",
            span(summary.gang_wait_seconds_p95),
        ),
        (
            "Wait until the first start, longest",
            span(summary.gang_wait_seconds_max),
        ),
        (
            "Wait of gangs of several pods, mean",
            span(summary.multi_pod_gang_wait_seconds.mean),
        ),
        (
            "Wait of gangs of several pods, 95th percentile",
            span(summary.multi_pod_gang_wait_seconds.p95),
        ),
        ("Makespan", span(summary.makespan_seconds)),
        ("GPU use", percent(summary.gpu_use_ratio)),
        (
            "GPU use up to the last arrival",
            percent(summary.gpu_use_ratio_to_last_arrival),
        ),
        (
            "Free GPUs that are on partly used nodes",
            percent(parts.free_gpus_on_used_nodes_ratio_mean),
        ),
        (
            "Nodes wholly free, mean",
            number(parts.whole_free_nodes_mean, 2),
        ),
        (
            "Time in which a gang waits although enough GPUs are free",
            percent(parts.blocked_time_ratio),
        ),
    ];
    table(page, &rows);
}

/// Figures with their names.
fn table(page: &mut String, rows: &[(&str, String)]) {
    page.push_str("<table>\n");
    for (name, value) in rows {
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\">{}</th><td class=\"n\">{}</td></tr>",
            escape(name),
            escape(value)
        );
    }
    page.push_str("</table>\n");
}

fn not_run(page: &mut String, title: &str, gangs: &[NotRun]) {
    if gangs.is_empty() {
        return;
    }
    let _ = writeln!(
        page,
        "<h2>{}</h2>\n<table>\n<tr><th>gang</th><th>why</th></tr>",
        escape(title)
    );
    for gang in gangs {
        let (name, why) = (escape(&gang.gang), escape(&gang.reason));
        let _ = writeln!(page, "<tr><td>{name}</td><td>{why}</td></tr>");
    }
    page.push_str("</table>\n");
}
