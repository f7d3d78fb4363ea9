//! Runs simulations into a folder that goes away.

// Each test file uses its own part.
#![allow(dead_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};

use muster_simulate::input::trace::{TraceFormat, TraceOptions};
use muster_simulate::{Error, Input, PolicyKind, Simulation, Summary, Until};

pub const FILES: [&str; 4] = ["summary.json", "timeline.csv", "gangs.csv", "report.html"];

/// What a simulation found and wrote.
pub struct Run {
    pub summary: Summary,
    pub folder: tempfile::TempDir,
}

impl Run {
    pub fn text(&self, file: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(file)).unwrap()
    }

    /// Rows of timeline.csv as numbers, by column name.
    pub fn column(&self, name: &str) -> Vec<f64> {
        let text = self.text("timeline.csv");
        let mut lines = text.lines();
        let names: Vec<&str> = lines.next().unwrap().split(',').collect();
        let column = names.iter().position(|other| *other == name).unwrap();
        lines
            .map(|line| line.split(',').nth(column).unwrap().parse().unwrap())
            .collect()
    }
}

pub fn simulation(file: &Path, input: Input, policy: PolicyKind) -> Simulation {
    Simulation {
        input,
        file: file.to_owned(),
        policy,
        seed: 0,
        write_delay_ms: 0,
        reserve_after_ms: None,
        keep_for_ms: None,
        until: None,
        out: PathBuf::new(),
        force: false,
        dump: None,
    }
}

pub fn run(simulation: &Simulation) -> Result<Run, Error> {
    let folder = tempfile::tempdir().unwrap();
    let simulation = Simulation {
        out: folder.path().to_owned(),
        ..simulation.clone()
    };
    let summary = simulation.run(&mut |_| ())?;
    Ok(Run { summary, folder })
}

/// A scenario of deploy/examples.
pub fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../deploy/examples/scenarios")
        .join(format!("{name}.yaml"))
}

pub fn scenario(name: &str, policy: PolicyKind) -> Run {
    run(&simulation(&example(name), Input::Scenario, policy)).unwrap()
}

/// The same with no nodes kept for anybody, however long it waits.
pub fn unkept(name: &str, policy: PolicyKind) -> Run {
    run(&Simulation {
        reserve_after_ms: Some(0),
        keep_for_ms: None,
        ..simulation(&example(name), Input::Scenario, policy)
    })
    .unwrap()
}

/// A trace like the Muri ones: most jobs small, some of several nodes, arrivals and durations uneven.
pub fn muri(jobs: u64) -> String {
    let mut text = String::from("job_id,num_gpu,submit_time,duration\n");
    let (mut time, mut dice) = (0, 1u64);
    for job in 0..jobs {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(7);
        let draw = dice >> 33;
        let gpus = [1, 1, 1, 2, 4, 8, 8, 16, 24, 12][usize::try_from(draw % 10).unwrap()];
        time += draw % 90_000;
        let duration = 1_000 + (draw / 10) % 600_000;
        text.push_str(&format!("{job},{gpus},{time},{duration}\n"));
    }
    text
}

pub fn trace(nodes: usize, load: Option<f64>) -> TraceOptions {
    TraceOptions {
        nodes,
        gpus_per_node: 8,
        load,
        limit_jobs: None,
        seed: 0,
    }
}

/// Replays a text as a Muri trace.
pub fn run_muri(
    text: &str,
    options: TraceOptions,
    policy: PolicyKind,
    until: Option<Until>,
) -> Result<Run, Error> {
    run_muri_keeping(text, options, policy, until, None)
}

/// The same where nodes are kept for gangs that have waited for so long.
pub fn run_muri_keeping(
    text: &str,
    options: TraceOptions,
    policy: PolicyKind,
    until: Option<Until>,
    reserve_after_ms: Option<u64>,
) -> Result<Run, Error> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.csv");
    std::fs::write(&file, text).unwrap();
    run(&Simulation {
        until,
        reserve_after_ms,
        keep_for_ms: None,
        ..simulation(&file, Input::Trace(TraceFormat::Muri, options), policy)
    })
}
