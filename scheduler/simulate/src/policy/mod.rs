//! Who decides: the production engine, or one of two baselines.

mod baseline;
mod production;
mod store;

use muster_core::config::Config;
use muster_core::ids::NodeName;
use muster_core::state::State;
use muster_core::time::{Millis, Timestamp};

pub use self::baseline::{Baseline, Order};
pub use self::production::Production;
use crate::cluster::Cluster;
use crate::error::Error;
use crate::scene::Scene;

/// A scheduling policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyKind {
    /// The production engine.
    Muster,
    /// Strict order of arrival: a gang that does not fit holds up all that came later.
    Fifo,
    /// In order of arrival, and whoever fits goes.
    Greedy,
}

impl PolicyKind {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Muster, Self::Fifo, Self::Greedy];

    /// Name on the command line and in results.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Muster => "muster",
            Self::Fifo => "fifo",
            Self::Greedy => "greedy",
        }
    }
}

impl std::str::FromStr for PolicyKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|policy| policy.as_str() == text)
            .ok_or_else(|| "must be muster, fifo or greedy".into())
    }
}

/// What a policy has brought about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A pod of the gang is bound and takes GPUs of a node.
    Takes {
        /// Position of the gang.
        gang: usize,
        /// The node.
        node: NodeName,
        /// GPUs.
        gpus: u64,
    },
    /// A pod has ended or is gone, and its GPUs are free.
    Frees {
        /// Position of the gang.
        gang: usize,
        /// The node.
        node: NodeName,
        /// GPUs.
        gpus: u64,
    },
    /// Enough members of the gang are bound: it runs from now on.
    Runs {
        /// Position of the gang.
        gang: usize,
    },
    /// The gang has lost too many members: what it has done is lost.
    Halts {
        /// Position of the gang.
        gang: usize,
    },
}

/// Decides who goes where. Times are milliseconds from the beginning of the replay.
pub trait Policy {
    /// A node has changed, came or went; `cluster` shows it as it is now.
    fn node_changed(&mut self, cluster: &mut Cluster, node: usize, now_ms: u64);

    /// A gang has arrived.
    fn arrived(&mut self, gang: usize, now_ms: u64);

    /// A gang has run for its duration: its pods have ended well.
    fn ended(&mut self, gang: usize, now_ms: u64);

    /// Decides, after everything of this moment has been said. Adds what came of it to `facts`.
    fn decide(
        &mut self,
        cluster: &mut Cluster,
        now_ms: u64,
        facts: &mut Vec<Fact>,
    ) -> Result<(), Error>;

    /// When it wants to be asked even if nothing happens, milliseconds.
    fn deadline_ms(&self) -> Option<u64>;

    /// Why a gang waits.
    fn reason(&self, gang: usize) -> Option<String>;

    /// What the planner sees; `None` for a policy that is not the engine.
    fn state(&self, now_ms: u64) -> Option<State>;

    /// Invariants of the engine that did not hold. To be called now and then, and at the end.
    fn audit(&mut self) -> u64;
}

/// The engine's clock at the beginning of a replay.
const START: Timestamp = Timestamp(1_000_000);

fn timestamp(now_ms: u64) -> Timestamp {
    START + Millis(now_ms)
}

/// The production defaults, on the scene's network, but for one: agents in a replay are never silent, and to
/// hear each of them every few seconds for months would be all that happens.
pub fn config(scene: &Scene) -> Config {
    let config = Config::default();
    Config {
        report_age_max: Millis(u64::MAX),
        topology: scene.levels.clone(),
        together: scene.together,
        reserve_after: scene.reserve_after.unwrap_or(config.reserve_after),
        keep_for: scene.keep_for.unwrap_or(config.keep_for),
        ..config
    }
}
