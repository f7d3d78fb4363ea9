//! The configuration file: strict YAML with documented defaults.
//!
//! Every key may be left out. An unknown key, a wrong type and a value outside its limits are
//! errors that name the key, the value and the limit.

use std::path::Path;

use muster_core::breaker::BreakerLimits;
use muster_core::{config as core, failure};
use serde::Deserialize;

pub use self::topology::{Level, Topology};
use crate::span::Span;

mod limits;
mod names;
mod topology;

/// A file with every key at its default, and what each is for. What `print config` prints.
pub const DOCUMENTED: &str = include_str!("config.yaml");

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// `spec.schedulerName` of the pods that are ours.
    pub scheduler_name: String,
    /// training-operator runs with `--gang-scheduler-name` naming us: a template that names no
    /// scheduler is ours before any pod of it says so. Without this a job whose templates name none
    /// is ours from its first pod on, and one of which only some do is refused.
    pub unnamed_jobs_are_ours: bool,
    /// Resources whose units are devices, by exact name or, ending in `*`, by prefix. At most 64.
    pub device_resources: Vec<String>,
    /// What is believed about nodes.
    pub inventory: Inventory,
    /// Levels of the network, of which gangs may ask something.
    pub topology: Topology,
    /// Who goes first.
    pub queue: Queue,
    /// How gangs are gathered, repaired and kept away from nodes.
    pub gang: Gang,
    /// How the API is written to.
    pub writes: Writes,
    /// How the API is watched.
    pub watch: Watch,
    /// The HTTP door for kube-scheduler.
    pub extender: Extender,
    /// The gRPC door for agents.
    pub agents: Agents,
    /// Leader election.
    pub lease: Lease,
}

/// What to do with a node that no agent reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NodesWithoutAgent {
    /// Its devices are not given to anybody.
    #[default]
    Refuse,
    /// The kubelet's count is believed.
    UseAllocatable,
}

/// What becomes of a gang with a member on a GPU that has failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnGpuFailure {
    /// It is told.
    #[default]
    Ignore,
    /// The member is replaced on another node.
    Repair,
    /// The gang is released whole.
    Evict,
}

/// What is believed about nodes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Inventory {
    /// `refuse` or `useAllocatable`.
    pub nodes_without_agent: NodesWithoutAgent,
    /// Silence of an agent after which nothing new is placed on its node. 5s to 1h.
    pub report_age_max: Span,
    /// Share of the nodes on which GPUs may turn bad within the window, before further verdicts are held back. 0 to
    /// 100 percent; 100 holds none back.
    pub quarantine_percent_max: u32,
    /// So many nodes may in any case. 0 to 100000.
    pub quarantine_nodes_max: u32,
    /// Time within which they are counted together. 1s to 24h.
    pub quarantine_window: Span,
}

/// Who goes first.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Queue {
    /// How long a gang waits before nodes are kept for it. 0s to 168h; 0s: none ever are.
    pub reserve_after: Span,
    /// How long they are kept while nothing ends on them; then for as long again for nobody. 0s to 168h; 0s: without end.
    pub keep_for: Span,
}

/// How gangs are gathered, repaired and kept away from nodes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Gang {
    /// How long a released gang may go without another member arriving at the barrier.
    pub gather_quiet_max: Span,
    /// How long the first held Bind may wait in all; at most half of `extender.bindTimeout`.
    pub gather_max: Span,
    /// How long a gang may be bound in part before it is released as a whole.
    pub repair_max: Span,
    /// What becomes of a gang with a member on a GPU that has failed: `ignore`, `repair` or `evict`.
    pub on_gpu_failure: OnGpuFailure,
    /// How long the GPU must have failed before anything is done. 1s to 24h.
    pub gpu_failure_grace: Span,
    /// How long after kube-scheduler turned a member down on its planned node it may still change
    /// its mind: its view of the cluster lags behind.
    pub refusal_grace: Span,
    /// How long a gang whose plan failed rests; doubles with each failure, up to 16 times this.
    pub retry_after: Span,
    /// How long a node stays out of a gang's plans after it refused a member.
    pub refused_node_for: Span,
    /// How long a gang known by its pods alone must be quiet before it is taken for whole.
    pub settle: Span,
    /// Most nodes that are written into a job's template. 0 to 1024.
    pub template_nodes_max: usize,
}

/// How the API is written to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Writes {
    /// Most writes on their way at once over all kinds. 1 to 4096.
    pub in_flight_max: usize,
    /// Longest time for one attempt.
    pub attempt_timeout: Span,
    /// Longest time for one write with all its attempts and readings back. At most
    /// `extender.bindTimeout` less `gang.gatherMax`.
    pub deadline: Span,
}

/// How the API is watched.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Watch {
    /// First pause after a failed watch; it doubles up to `backoffMax`.
    pub backoff_first: Span,
    /// Longest pause after failed watches.
    pub backoff_max: Span,
    /// How long a watch may fail before `/readyz` says so, and before a refused login (401) ends
    /// the process.
    pub unhealthy_after: Span,
    /// How often resources that are not served are looked for again.
    pub rediscover_every: Span,
}

/// The HTTP door for kube-scheduler.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Extender {
    /// DNS name that kube-scheduler's certificate bears; empty: any that the authority has signed may call.
    pub client_name: String,
    /// `httpTimeout` of the bind entry in kube-scheduler's configuration. A held Bind is answered
    /// before it passes.
    pub bind_timeout: Span,
    /// Most Binds held at once. 1 to 65536.
    pub binds_held_max: usize,
    /// Largest request body, bytes. 64 KiB to 256 MiB.
    pub body_bytes_max: usize,
    /// Most connections at once. 1 to 65536.
    pub connections_max: usize,
}

/// The gRPC door for agents.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Agents {
    /// Audience that a token must be issued for.
    pub audience: String,
    /// User name of the agents' ServiceAccount, `system:serviceaccount:NAMESPACE:NAME`. A token of
    /// any other account is refused, whatever node it names.
    pub service_account: String,
    /// Most TokenReviews a second. 1 to 10000.
    pub token_reviews_per_second: u32,
    /// Heartbeats that agents are asked for.
    pub heartbeat_every: Span,
    /// Longest life of a stream; up to a quarter is taken off at random.
    pub stream_age_max: Span,
    /// Most streams at once. 1 to 100000.
    pub streams_max: usize,
}

/// Leader election by a Lease.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Lease {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Time after which another replica may take an unrenewed Lease.
    pub duration: Span,
    /// Time after which a leader that could not renew stops leading; less than `duration`.
    pub renew_deadline: Span,
    /// Time between two tries; less than `renewDeadline`.
    pub retry_period: Span,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            scheduler_name: "muster".into(),
            unnamed_jobs_are_ours: false,
            device_resources: core::Config::default().device_resources,
            inventory: Inventory::default(),
            topology: Topology::default(),
            queue: Queue::default(),
            gang: Gang::default(),
            writes: Writes::default(),
            watch: Watch::default(),
            extender: Extender::default(),
            agents: Agents::default(),
            lease: Lease::default(),
        }
    }
}

impl Default for Inventory {
    fn default() -> Self {
        Self {
            nodes_without_agent: NodesWithoutAgent::Refuse,
            report_age_max: Span::secs(30),
            quarantine_percent_max: 20,
            quarantine_nodes_max: 2,
            quarantine_window: Span::secs(300),
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            reserve_after: Span::secs(600),
            keep_for: Span::secs(48 * 3600),
        }
    }
}

impl Default for Gang {
    fn default() -> Self {
        Self {
            gather_quiet_max: Span::secs(60),
            gather_max: Span::secs(150),
            repair_max: Span::secs(30),
            on_gpu_failure: OnGpuFailure::Ignore,
            gpu_failure_grace: Span::secs(120),
            refusal_grace: Span::secs(5),
            retry_after: Span::secs(5),
            refused_node_for: Span::secs(300),
            settle: Span::secs(3),
            template_nodes_max: 32,
        }
    }
}

impl Default for Writes {
    fn default() -> Self {
        Self {
            in_flight_max: 256,
            attempt_timeout: Span::secs(5),
            deadline: Span::secs(20),
        }
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            backoff_first: Span(std::time::Duration::from_millis(200)),
            backoff_max: Span::secs(10),
            unhealthy_after: Span::secs(60),
            rediscover_every: Span::secs(30),
        }
    }
}

impl Default for Extender {
    fn default() -> Self {
        Self {
            client_name: "muster-kube-scheduler".into(),
            bind_timeout: Span::secs(300),
            binds_held_max: 32_768,
            body_bytes_max: 16 << 20,
            connections_max: 1024,
        }
    }
}

impl Default for Agents {
    fn default() -> Self {
        Self {
            audience: "muster-scheduler".into(),
            service_account: "system:serviceaccount:muster-system:muster-agent".into(),
            token_reviews_per_second: 500,
            heartbeat_every: Span::secs(10),
            stream_age_max: Span::secs(3600),
            streams_max: 20_000,
        }
    }
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            namespace: "muster-system".into(),
            name: "muster-scheduler".into(),
            duration: Span::secs(15),
            renew_deadline: Span::secs(10),
            retry_period: Span::secs(2),
        }
    }
}

/// Why a configuration is not taken.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    /// The file cannot be read.
    #[error("{path}: {error}")]
    Unreadable {
        /// The file.
        path: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// A key is unknown, or its value has another type.
    #[error("{path}: {error}")]
    Malformed {
        /// Path of the key, for example `inventory.nodesWithoutAgent`.
        path: String,
        /// What is wrong, with the line.
        error: String,
    },
    /// A value is outside its limits.
    #[error("{key} is {value}: {limit}")]
    OutOfRange {
        /// Path of the key.
        key: &'static str,
        /// The value found.
        value: String,
        /// What is allowed.
        limit: String,
    },
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, InvalidConfig> {
        let text = std::fs::read_to_string(path).map_err(|error| InvalidConfig::Unreadable {
            path: path.display().to_string(),
            error,
        })?;
        Self::parse(&text)
    }

    /// Reads and checks a text. An empty text is the defaults.
    pub fn parse(text: &str) -> Result<Self, InvalidConfig> {
        let empty = text
            .lines()
            .all(|line| matches!(line.trim().chars().next(), None | Some('#')));
        if empty {
            return Ok(Self::default());
        }
        let mut malformed = None;
        let read = serde_saphyr::with_deserializer_from_str(text, |deserializer| {
            let mut track = serde_path_to_error::Track::new();
            let tracked = serde_path_to_error::Deserializer::new(deserializer, &mut track);
            match Self::deserialize(tracked) {
                Ok(config) => Ok(config),
                Err(error) => {
                    malformed = Some(track.path().to_string());
                    Err(error)
                }
            }
        });
        let config = read.map_err(|error| {
            let path = malformed.unwrap_or_else(|| "configuration".into());
            let unit = limits::unit_of(&path);
            let unit = unit.map(|unit| format!("must be a whole number of {unit}: "));
            InvalidConfig::Malformed {
                error: format!("{}{error}", unit.unwrap_or_default()),
                path,
            }
        })?;
        config.check()?;
        Ok(config)
    }

    /// The engine's part.
    pub fn core(&self) -> core::Config {
        core::Config {
            device_resources: self.device_resources.clone(),
            nodes_without_agent: match self.inventory.nodes_without_agent {
                NodesWithoutAgent::Refuse => core::NodesWithoutAgent::Refuse,
                NodesWithoutAgent::UseAllocatable => core::NodesWithoutAgent::UseAllocatable,
            },
            report_age_max: self.inventory.report_age_max.millis(),
            breaker: BreakerLimits {
                window: self.inventory.quarantine_window.millis(),
                percent_max: self.inventory.quarantine_percent_max,
                nodes_max: self.inventory.quarantine_nodes_max,
            },
            gather_quiet_max: self.gang.gather_quiet_max.millis(),
            gather_max: self.gang.gather_max.millis(),
            repair_max: self.gang.repair_max.millis(),
            on_gpu_failure: match self.gang.on_gpu_failure {
                OnGpuFailure::Ignore => failure::OnGpuFailure::Ignore,
                OnGpuFailure::Repair => failure::OnGpuFailure::Repair,
                OnGpuFailure::Evict => failure::OnGpuFailure::Evict,
            },
            gpu_failure_grace: self.gang.gpu_failure_grace.millis(),
            reserve_after: self.queue.reserve_after.millis(),
            keep_for: self.queue.keep_for.millis(),
            refusal_grace: self.gang.refusal_grace.millis(),
            retry_after: self.gang.retry_after.millis(),
            refused_node_for: self.gang.refused_node_for.millis(),
            template_nodes_max: self.gang.template_nodes_max,
            settle: self.gang.settle.millis(),
            writes_in_flight_max: self.writes.in_flight_max.saturating_mul(2),
            topology: self.topology.core(),
            together: self.topology.together(),
        }
    }
}

#[cfg(test)]
mod tests;
