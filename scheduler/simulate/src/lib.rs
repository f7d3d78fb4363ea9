//! Replays of gang arrivals in virtual time, on a cluster that does not exist.
//!
//! ```text
//!   input (trace, scenario) ──> Scene ──> replay ──> Record ──> summary.json, report.html
//!                                          │  ▲                 timeline.csv, gangs.csv
//!                              events, now ▼  │ facts
//!                                         Policy: the production engine, fifo, greedy
//! ```
//!
//! The engine is the production one ([`muster_core::engine::Engine`]), driven by the events that it
//! gets in production: nodes, agents' reports, jobs, pods, answered writes. Nothing of its planning is
//! repeated here; the baselines decide who goes next and leave where to the production planner.
//!
//! Time is a number: a month passes as fast as its decisions are taken. The same input and seed give
//! the same bytes.

pub mod cluster;
pub mod error;
pub mod gangs;
pub mod input;
pub mod openb;
pub mod output;
pub mod policy;
pub mod progress;
mod random;

pub mod record;
pub mod replay;
mod report;
pub mod scene;
pub mod summary;
pub mod timeline;
mod units;

use std::path::PathBuf;

use muster_core::time::Millis;

pub use self::error::Error;
use self::input::trace::{TraceFormat, TraceOptions};
pub use self::policy::PolicyKind;
pub use self::replay::{At, Progress, Setting, Until};
use self::summary::About;
pub use self::summary::Summary;

/// Longest time that a write may take, milliseconds.
pub const WRITE_DELAY_MAX_MS: u64 = 60_000;

/// What is replayed. Another format is another variant.
#[derive(Clone, Debug)]
pub enum Input {
    /// Jobs of a trace, on nodes that are alike.
    Trace(TraceFormat, TraceOptions),
    /// A scenario, with nodes of its own.
    Scenario,
}

/// A replay from file to folder.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// How the file is read.
    pub input: Input,
    /// The file.
    pub file: PathBuf,
    /// Who decides.
    pub policy: PolicyKind,
    /// Stands in the results; with `--limit-jobs` it chooses the jobs.
    pub seed: u64,
    /// How long a write takes, milliseconds. At most [`WRITE_DELAY_MAX_MS`].
    pub write_delay_ms: u64,
    /// How long a gang waits before nodes are kept for it, milliseconds; 0: none ever are. `None`: as the scenario
    /// says, or as long as by default. Only for [`PolicyKind::Muster`].
    pub reserve_after_ms: Option<u64>,
    /// How long nodes are kept for a gang while nothing ends on them, milliseconds; 0: until it starts. `None`: as the
    /// scenario says, or as long as by default. Only for [`PolicyKind::Muster`].
    pub keep_for_ms: Option<u64>,
    /// When the replay ends; `None`: as the scenario says, or when all is done.
    pub until: Option<Until>,
    /// Folder for the results.
    pub out: PathBuf,
    /// Write into a folder that is not empty.
    pub force: bool,
    /// File for what the planner sees, and when: milliseconds, at the end at the latest. Only for
    /// [`PolicyKind::Muster`].
    pub dump: Option<(PathBuf, u64)>,
}

/// A format of input, by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Jobs of Microsoft's Philly clusters.
    Philly,
    /// Jobs as the Muri simulator has them.
    Muri,
    /// Nodes, gangs and events written by hand.
    Scenario,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Philly, Self::Muri, Self::Scenario]
            .into_iter()
            .find(|format| format.as_str() == text)
            .ok_or_else(|| "must be philly, muri or scenario".into())
    }
}

impl Format {
    /// Name on the command line and in results.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Philly => "philly",
            Self::Muri => "muri",
            Self::Scenario => "scenario",
        }
    }
}

impl Input {
    /// Input of a format; `options` count for traces only.
    pub fn new(format: Format, options: TraceOptions) -> Self {
        match format {
            Format::Philly => Self::Trace(TraceFormat::Philly, options),
            Format::Muri => Self::Trace(TraceFormat::Muri, options),
            Format::Scenario => Self::Scenario,
        }
    }
}

impl Simulation {
    /// Reads, replays and writes the results.
    pub fn run(&self, progress: &mut dyn FnMut(Progress)) -> Result<Summary, Error> {
        if self.write_delay_ms > WRITE_DELAY_MAX_MS {
            let value = format!("{} ms", self.write_delay_ms);
            let limit = format!("must be at most {WRITE_DELAY_MAX_MS} ms");
            return Err(Error::flag("--write-delay", value, limit));
        }
        if self.dump.is_some() && self.policy != PolicyKind::Muster {
            let limit = "must be muster with --dump: the others have no engine";
            return Err(Error::flag("--policy", self.policy.as_str(), limit));
        }
        let (mut scene, until, format, load) = match &self.input {
            Input::Trace(kind, options) => {
                let format = match kind {
                    TraceFormat::Philly => Format::Philly,
                    TraceFormat::Muri => Format::Muri,
                };
                let scene = input::trace::read(&self.file, *kind, options)?;
                (scene, Until::Drained, format, options.load)
            }
            Input::Scenario => {
                let (scene, until) = input::scenario::read(&self.file)?;
                (scene, until, Format::Scenario, None)
            }
        };
        scene.reserve_after = self.reserve_after_ms.map(Millis).or(scene.reserve_after);
        scene.keep_for = self.keep_for_ms.map(Millis).or(scene.keep_for);
        output::prepare(&self.out, self.force)?;
        let setting = Setting {
            policy: self.policy,
            write_delay_ms: self.write_delay_ms,
            until: self.until.unwrap_or(until),
            state_at_ms: self.dump.as_ref().map(|(_, at_ms)| *at_ms),
        };
        let outcome = replay::replay(&scene, &setting, progress)?;
        let about = About {
            format: format.as_str(),
            policy: self.policy.as_str(),
            seed: self.seed,
            load,
            write_delay_ms: self.write_delay_ms,
            reserve_after_ms: policy::config(&scene).reserve_after.0,
            keep_for_ms: policy::config(&scene).keep_for.0,
        };
        let summary = Summary::of(&about, &scene, &outcome);
        let record = &outcome.record;
        output::write(&self.out, "summary.json", &summary.json())?;
        output::write(&self.out, "timeline.csv", &timeline::text(record))?;
        output::write(&self.out, "gangs.csv", &gangs::text(&scene, record))?;
        let page = report::page(&summary, &scene, record);
        output::write(&self.out, "report.html", &page)?;
        if let (Some((file, _)), Some(state)) = (&self.dump, &outcome.state) {
            output::write_dump(file, state)?;
        }
        Ok(summary)
    }
}
