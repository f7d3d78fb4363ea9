//! The configuration file: strict YAML with documented defaults.
//!
//! Every key may be left out. An unknown key, a wrong type and a value outside its limits are
//! errors that name the key, the value and the limit.

use std::path::Path;

use muster_core::config as core;
use serde::Deserialize;

pub use self::topology::{Level, Topology};
use crate::span::Span;

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

/// What is believed about nodes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Inventory {
    /// `refuse` or `useAllocatable`.
    pub nodes_without_agent: NodesWithoutAgent,
    /// Silence of an agent after which nothing new is placed on its node. 5s to 1h.
    pub report_age_max: Span,
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
        }
    }
}

impl Default for Gang {
    fn default() -> Self {
        Self {
            gather_quiet_max: Span::secs(60),
            gather_max: Span::secs(150),
            repair_max: Span::secs(30),
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
            token_reviews_per_second: 100,
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
        let config = read.map_err(|error| InvalidConfig::Malformed {
            path: malformed.unwrap_or_else(|| "configuration".into()),
            error: error.to_string(),
        })?;
        config.check()?;
        Ok(config)
    }

    /// Checks every value against its limits.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        text("schedulerName", &self.scheduler_name)?;
        text("agents.audience", &self.agents.audience)?;
        account("agents.serviceAccount", &self.agents.service_account)?;
        text("lease.namespace", &self.lease.namespace)?;
        text("lease.name", &self.lease.name)?;
        count(
            "deviceResources (entries)",
            self.device_resources.len(),
            1,
            64,
        )?;
        for name in &self.device_resources {
            text("deviceResources", name)?;
        }
        self.topology.check()?;
        self.check_spans()?;
        count(
            "gang.templateNodesMax",
            self.gang.template_nodes_max,
            0,
            1024,
        )?;
        count("writes.inFlightMax", self.writes.in_flight_max, 1, 4096)?;
        count(
            "extender.bindsHeldMax",
            self.extender.binds_held_max,
            1,
            65_536,
        )?;
        count(
            "extender.bodyBytesMax",
            self.extender.body_bytes_max,
            64 << 10,
            256 << 20,
        )?;
        count(
            "extender.connectionsMax",
            self.extender.connections_max,
            1,
            65_536,
        )?;
        count("agents.streamsMax", self.agents.streams_max, 1, 100_000)?;
        let reviews = usize::try_from(self.agents.token_reviews_per_second).unwrap_or(usize::MAX);
        count("agents.tokenReviewsPerSecond", reviews, 1, 10_000)
    }

    fn check_spans(&self) -> Result<(), InvalidConfig> {
        let hour = Span::secs(3600);
        let (second, tenth) = (Span::secs(1), Span(std::time::Duration::from_millis(100)));
        let half_bind = Span(self.extender.bind_timeout.0 / 2);
        span(
            "inventory.reportAgeMax",
            self.inventory.report_age_max,
            Span::secs(5),
            hour,
        )?;
        span(
            "extender.bindTimeout",
            self.extender.bind_timeout,
            Span::secs(2),
            hour,
        )?;
        span("gang.gatherMax", self.gang.gather_max, second, half_bind)?;
        span(
            "gang.gatherQuietMax",
            self.gang.gather_quiet_max,
            second,
            hour,
        )?;
        span("gang.repairMax", self.gang.repair_max, second, hour)?;
        span(
            "gang.refusalGrace",
            self.gang.refusal_grace,
            Span::secs(0),
            hour,
        )?;
        span("gang.retryAfter", self.gang.retry_after, tenth, hour)?;
        span(
            "gang.refusedNodeFor",
            self.gang.refused_node_for,
            second,
            Span::secs(86_400),
        )?;
        span("gang.settle", self.gang.settle, tenth, hour)?;
        span(
            "writes.attemptTimeout",
            self.writes.attempt_timeout,
            tenth,
            self.writes.deadline,
        )?;
        span(
            "writes.deadline",
            self.writes.deadline,
            tenth,
            // The last of the held Binds is written within the time of the first.
            Span(
                self.extender
                    .bind_timeout
                    .0
                    .saturating_sub(self.gang.gather_max.0),
            ),
        )?;
        span(
            "watch.backoffFirst",
            self.watch.backoff_first,
            Span::secs(0),
            hour,
        )?;
        span(
            "watch.backoffMax",
            self.watch.backoff_max,
            self.watch.backoff_first,
            hour,
        )?;
        span(
            "watch.unhealthyAfter",
            self.watch.unhealthy_after,
            second,
            hour,
        )?;
        span(
            "watch.rediscoverEvery",
            self.watch.rediscover_every,
            second,
            hour,
        )?;
        span(
            "agents.heartbeatEvery",
            self.agents.heartbeat_every,
            second,
            self.inventory.report_age_max,
        )?;
        span(
            "agents.streamAgeMax",
            self.agents.stream_age_max,
            Span::secs(10),
            Span::secs(86_400),
        )?;
        span("lease.duration", self.lease.duration, second, hour)?;
        span(
            "lease.renewDeadline",
            self.lease.renew_deadline,
            tenth,
            below(self.lease.duration),
        )?;
        span(
            "lease.retryPeriod",
            self.lease.retry_period,
            tenth,
            below(self.lease.renew_deadline),
        )
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
            gather_quiet_max: self.gang.gather_quiet_max.millis(),
            gather_max: self.gang.gather_max.millis(),
            repair_max: self.gang.repair_max.millis(),
            refusal_grace: self.gang.refusal_grace.millis(),
            retry_after: self.gang.retry_after.millis(),
            refused_node_for: self.gang.refused_node_for.millis(),
            template_nodes_max: self.gang.template_nodes_max,
            settle: self.gang.settle.millis(),
            writes_in_flight_max: self.writes.in_flight_max.saturating_mul(2),
            topology: self.topology.core(),
        }
    }
}

fn below(span: Span) -> Span {
    Span(span.0.saturating_sub(std::time::Duration::from_millis(1)))
}

fn text(key: &'static str, value: &str) -> Result<(), InvalidConfig> {
    if value.is_empty() || value.len() > 253 {
        return Err(InvalidConfig::OutOfRange {
            key,
            value: format!("\"{}\"", value.chars().take(64).collect::<String>()),
            limit: "1 to 253 characters".into(),
        });
    }
    Ok(())
}

/// A ServiceAccount's user name.
fn account(key: &'static str, value: &str) -> Result<(), InvalidConfig> {
    text(key, value)?;
    let parts: Vec<&str> = value.split(':').collect();
    match parts.as_slice() {
        ["system", "serviceaccount", namespace, name]
            if !namespace.is_empty() && !name.is_empty() =>
        {
            Ok(())
        }
        _ => Err(InvalidConfig::OutOfRange {
            key,
            value: format!("\"{}\"", value.chars().take(64).collect::<String>()),
            limit: "must be system:serviceaccount:NAMESPACE:NAME".into(),
        }),
    }
}

fn count(key: &'static str, value: usize, min: usize, max: usize) -> Result<(), InvalidConfig> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(InvalidConfig::OutOfRange {
        key,
        value: value.to_string(),
        limit: format!("must be {min} to {max}"),
    })
}

fn span(key: &'static str, value: Span, min: Span, max: Span) -> Result<(), InvalidConfig> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(InvalidConfig::OutOfRange {
        key,
        value: value.to_string(),
        limit: format!("must be {min} to {max}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        Config::parse(text)
            .map(|_| String::new())
            .unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn defaults_are_within_their_own_limits() {
        assert!(Config::default().check().is_ok());
        assert_eq!(Config::parse("# nothing\n\n").ok(), Some(Config::default()));
    }

    /// The keys of a part of the file, as the parser lists them when it meets one that is none.
    fn keys_of(part: &str) -> Vec<String> {
        let json = match part {
            "" => r#"{"no-such-key": 1}"#.to_owned(),
            part => format!(r#"{{"{part}": {{"no-such-key": 1}}}}"#),
        };
        let said = serde_json::from_str::<Config>(&json).unwrap_err();
        let said = said.to_string();
        let listed = said.split_once("expected").unwrap().1;
        let keys: Vec<String> = listed
            .split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect();
        assert!(!keys.is_empty(), "{said}");
        keys
    }

    #[test]
    fn documented_file_holds_every_key_once_with_its_default() {
        assert_eq!(Config::parse(DOCUMENTED).unwrap(), Config::default());
        let mut part = String::new();
        let mut found = Vec::new();
        let mut explained = false;
        for line in DOCUMENTED.lines() {
            let text = line.trim_start();
            if text.is_empty() || text.starts_with('#') {
                explained = text.starts_with('#');
                continue;
            }
            let Some((key, value)) = text.split_once(':').filter(|_| !text.starts_with('-')) else {
                continue;
            };
            assert!(explained, "{line} has no comment above it");
            explained = false;
            if line.starts_with(' ') {
                found.push(format!("{part}.{key}"));
            } else {
                found.push(key.to_owned());
                part = if value.is_empty() {
                    key.to_owned()
                } else {
                    String::new()
                };
            }
        }
        let mut wanted = Vec::new();
        for key in keys_of("") {
            let is_part = found
                .iter()
                .any(|name| name.starts_with(&format!("{key}.")));
            if is_part {
                wanted.extend(keys_of(&key).iter().map(|name| format!("{key}.{name}")));
            }
            wanted.push(key);
        }
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted);
    }

    #[test]
    fn unknown_key_is_named_with_its_path() {
        let said = refusal("inventory:\n  nodesWithoutAgents: refuse\n");
        assert!(
            said.contains("inventory") && said.contains("nodesWithoutAgents"),
            "{said}"
        );
        let said = refusal("colour: red\n");
        assert!(said.contains("colour"), "{said}");
    }

    #[test]
    fn levels_of_the_network_are_told_apart_by_name_and_label() {
        let config =
            "topology: {levels: [{name: block, label: a/b}, {name: nvlink, source: fabricClique}]}";
        let levels = Config::parse(config).unwrap().core().topology;
        let sources: Vec<_> = levels
            .iter()
            .map(|l| (&*l.name, l.source.clone()))
            .collect();
        let label = muster_core::topology::Source::Label("a/b".into());
        let clique = muster_core::topology::Source::FabricClique;
        assert_eq!(sources, [("block", label), ("nvlink", clique)]);
        for both in ["", ", label: a, source: fabricClique"] {
            let said = refusal(&format!("topology: {{levels: [{{name: x{both}}}]}}"));
            assert_eq!(
                said,
                "topology.levels[] is \"x\": a level has either a label or a source"
            );
        }
        let said = refusal("topology: {levels: [{name: x, label: a}, {name: y, label: x}]}");
        assert_eq!(
            said,
            "topology.levels[].label is \"x\": each level has a name and a label of its own"
        );
        let said = refusal("topology: {levels: [{name: '', label: a}]}");
        assert!(said.starts_with("topology.levels[].name is \"\""), "{said}");
        let said = refusal("topology: {levels: [{name: x, source: rack}]}");
        assert!(
            said.contains("topology.levels[0]") && said.contains("fabricClique"),
            "{said}"
        );
    }

    #[test]
    fn values_arrive_and_wrong_ones_name_the_key() {
        let config = Config::parse(
            "inventory: {nodesWithoutAgent: useAllocatable, reportAgeMax: 45s}\nlease: {duration: 3s, renewDeadline: 2s, retryPeriod: 500ms}\n",
        );
        let config = config.unwrap();
        assert_eq!(
            config.core().nodes_without_agent,
            core::NodesWithoutAgent::UseAllocatable
        );
        assert_eq!(config.core().report_age_max.0, 45_000);
        let said = refusal("inventory: {nodesWithoutAgent: sometimes}\n");
        assert!(
            said.contains("inventory.nodesWithoutAgent") && said.contains("sometimes"),
            "{said}"
        );
        let said = refusal("gang: {gatherMax: 200s}\n");
        assert_eq!(said, "gang.gatherMax is 200s: must be 1s to 150s");
        for wrong in ["muster-agent", "system:serviceaccount::a", "system:node:n1"] {
            let said = refusal(&format!("agents: {{serviceAccount: '{wrong}'}}\n"));
            assert!(said.contains("agents.serviceAccount is"), "{said}");
        }
        let said = refusal("lease: {renewDeadline: 15s}\n");
        assert!(said.contains("lease.renewDeadline is 15s"), "{said}");
        let said = refusal("writes: {deadline: 30}\n");
        assert!(said.contains("writes.deadline"), "{said}");
    }
}
