//! The engine's limits and choices, as the file has them.

use muster_core::breaker;
use muster_core::config as core;
use muster_core::failure;
use muster_core::time::Millis;
use muster_core::topology;
use serde::{Deserialize, Serialize};

use super::{text, word};
use crate::error::Error;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    device_resources: Vec<String>,
    nodes_without_agent: NodesWithoutAgent,
    report_age_max_ms: u64,
    #[serde(default)]
    breaker: Breaker,
    gather_quiet_max_ms: u64,
    gather_max_ms: u64,
    repair_max_ms: u64,
    #[serde(default)]
    on_gpu_failure: OnGpuFailure,
    #[serde(default = "gpu_failure_grace_ms")]
    gpu_failure_grace_ms: u64,
    #[serde(default)]
    reserve_after_ms: u64,
    #[serde(default)]
    keep_for_ms: u64,
    refusal_grace_ms: u64,
    retry_after_ms: u64,
    refused_node_for_ms: u64,
    settle_ms: u64,
    template_nodes_max: usize,
    writes_in_flight_max: usize,
    topology: Vec<Level>,
    /// Position among these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    together: Option<usize>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum NodesWithoutAgent {
    Refuse,
    UseAllocatable,
}

/// What becomes of what runs on a failed GPU; as with the breaker, dumps of before that have none.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum OnGpuFailure {
    #[default]
    Ignore,
    Repair,
    Evict,
}

fn gpu_failure_grace_ms() -> u64 {
    core::Config::default().gpu_failure_grace.0
}

/// When mass quarantine is stopped. Dumps of before that have none: it decides nothing about a plan.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Breaker {
    window_ms: u64,
    percent_max: u32,
    nodes_max: u32,
}

impl Default for Breaker {
    fn default() -> Self {
        Self::of(&breaker::BreakerLimits::default())
    }
}

impl Breaker {
    fn of(limits: &breaker::BreakerLimits) -> Self {
        let breaker::BreakerLimits {
            window,
            percent_max,
            nodes_max,
        } = limits;
        Self {
            window_ms: window.0,
            percent_max: *percent_max,
            nodes_max: *nodes_max,
        }
    }

    fn read(self) -> breaker::BreakerLimits {
        breaker::BreakerLimits {
            window: Millis(self.window_ms),
            percent_max: self.percent_max,
            nodes_max: self.nodes_max,
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Level {
    name: String,
    source: Source,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Source {
    Label(String),
    FabricClique,
}

impl Config {
    pub fn of(config: &core::Config) -> Self {
        let core::Config {
            device_resources,
            nodes_without_agent,
            report_age_max,
            breaker,
            gather_quiet_max,
            gather_max,
            repair_max,
            on_gpu_failure,
            gpu_failure_grace,
            reserve_after,
            keep_for,
            refusal_grace,
            retry_after,
            refused_node_for,
            template_nodes_max,
            settle,
            writes_in_flight_max,
            topology,
            together,
        } = config;
        Self {
            device_resources: device_resources.clone(),
            nodes_without_agent: match nodes_without_agent {
                core::NodesWithoutAgent::Refuse => NodesWithoutAgent::Refuse,
                core::NodesWithoutAgent::UseAllocatable => NodesWithoutAgent::UseAllocatable,
            },
            report_age_max_ms: report_age_max.0,
            breaker: Breaker::of(breaker),
            gather_quiet_max_ms: gather_quiet_max.0,
            gather_max_ms: gather_max.0,
            repair_max_ms: repair_max.0,
            on_gpu_failure: match on_gpu_failure {
                failure::OnGpuFailure::Ignore => OnGpuFailure::Ignore,
                failure::OnGpuFailure::Repair => OnGpuFailure::Repair,
                failure::OnGpuFailure::Evict => OnGpuFailure::Evict,
            },
            gpu_failure_grace_ms: gpu_failure_grace.0,
            reserve_after_ms: reserve_after.0,
            keep_for_ms: keep_for.0,
            refusal_grace_ms: refusal_grace.0,
            retry_after_ms: retry_after.0,
            refused_node_for_ms: refused_node_for.0,
            settle_ms: settle.0,
            template_nodes_max: *template_nodes_max,
            writes_in_flight_max: *writes_in_flight_max,
            topology: topology.iter().map(Level::of).collect(),
            together: *together,
        }
    }

    pub fn read(self) -> Result<core::Config, Error> {
        if self.topology.len() > topology::LEVELS_MAX {
            let limit = format!("must be at most {} levels", topology::LEVELS_MAX);
            let path = "config.topology";
            return Err(Error::field(path, self.topology.len(), limit));
        }
        Ok(core::Config {
            device_resources: self.device_resources,
            nodes_without_agent: match self.nodes_without_agent {
                NodesWithoutAgent::Refuse => core::NodesWithoutAgent::Refuse,
                NodesWithoutAgent::UseAllocatable => core::NodesWithoutAgent::UseAllocatable,
            },
            report_age_max: Millis(self.report_age_max_ms),
            breaker: self.breaker.read(),
            gather_quiet_max: Millis(self.gather_quiet_max_ms),
            gather_max: Millis(self.gather_max_ms),
            repair_max: Millis(self.repair_max_ms),
            on_gpu_failure: match self.on_gpu_failure {
                OnGpuFailure::Ignore => failure::OnGpuFailure::Ignore,
                OnGpuFailure::Repair => failure::OnGpuFailure::Repair,
                OnGpuFailure::Evict => failure::OnGpuFailure::Evict,
            },
            gpu_failure_grace: Millis(self.gpu_failure_grace_ms),
            reserve_after: Millis(self.reserve_after_ms),
            keep_for: Millis(self.keep_for_ms),
            refusal_grace: Millis(self.refusal_grace_ms),
            retry_after: Millis(self.retry_after_ms),
            refused_node_for: Millis(self.refused_node_for_ms),
            template_nodes_max: self.template_nodes_max,
            settle: Millis(self.settle_ms),
            writes_in_flight_max: self.writes_in_flight_max,
            together: self.together,
            topology: self.topology.into_iter().map(Level::read).collect(),
        })
    }
}

impl Level {
    fn of(level: &topology::Level) -> Self {
        let topology::Level { name, source } = level;
        Self {
            name: word(name),
            source: match source {
                topology::Source::Label(label) => Source::Label(word(label)),
                topology::Source::FabricClique => Source::FabricClique,
            },
        }
    }

    fn read(self) -> topology::Level {
        topology::Level {
            name: text(self.name),
            source: match self.source {
                Source::Label(label) => topology::Source::Label(text(label)),
                Source::FabricClique => topology::Source::FabricClique,
            },
        }
    }
}
