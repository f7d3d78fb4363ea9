//! Objects to core values.
//!
//! ```text
//!   LiteNode ─────────> core::node::Node
//!   LitePod ──rules───> core::pod::Pod           (shape, membership, what the bind wrote)
//!   LitePyTorchJob ───> core::workload::Workload (roles with counts and shapes; or: not ours)
//!   LitePodGroup ─────> core::workload::Workload (a minimum; the pods say who the members are)
//!   gang::Gang ───────> core::record::GangRecord
//! ```
//!
//! Who belongs to which gang is decided here and nowhere else: see [`pod`].

mod between;
mod group;
mod job;
mod node;
mod pod;
mod record;
mod requests;
mod shape;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use muster_core::config::Config;
use muster_core::ids::Epoch;
use muster_core::workload::InvalidWorkload;

pub use group::pod_group;
pub use job::pytorchjob;
pub use node::node;
pub use pod::pod;
pub use record::record;

use crate::names;

/// Longest value that is repeated in a message, characters.
const VALUE_MAX: usize = 64;

/// What translation needs to know about this installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRules {
    /// `spec.schedulerName` of the pods that are ours.
    pub scheduler_name: String,
    /// Which resources are devices.
    pub config: Config,
    /// Value of each PriorityClass by name. The entry with the empty name is the cluster's default.
    pub priority_classes: BTreeMap<String, i32>,
    /// training-operator runs with `--gang-scheduler-name` naming us: a template that names no
    /// scheduler is ours before any pod of it says so.
    pub unnamed_jobs_are_ours: bool,
}

impl PodRules {
    /// Rules for pods that name `scheduler_name`, with no PriorityClass known yet.
    pub fn new(scheduler_name: &str, config: &Config) -> Self {
        Self {
            scheduler_name: scheduler_name.to_owned(),
            config: config.clone(),
            priority_classes: BTreeMap::new(),
            unnamed_jobs_are_ours: false,
        }
    }
}

impl Default for PodRules {
    fn default() -> Self {
        Self::new(names::SCHEDULER_NAME, &Config::default())
    }
}

/// Something that cannot be read: where, what it is, what it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Problem {
    field: String,
    value: String,
    limit: String,
}

impl Problem {
    fn new(field: impl Into<String>, value: &str, limit: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            value: shortened(value),
            limit: limit.into(),
        }
    }

    /// The same problem, seen from further up.
    fn below(mut self, prefix: &str) -> Self {
        self.field = match self.field.as_str() {
            "" => prefix.to_owned(),
            field if field.starts_with('[') => format!("{prefix}{field}"),
            field => format!("{prefix}.{field}"),
        };
        self
    }
}

impl From<Problem> for InvalidWorkload {
    fn from(problem: Problem) -> Self {
        Self {
            field: problem.field.into(),
            value: problem.value.into(),
            limit: problem.limit.into(),
        }
    }
}

/// At most 64 characters of `text`; a longer one ends in `...`. Control characters become spaces.
fn shortened(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    if text.chars().count() <= VALUE_MAX {
        return text.chars().map(clean).collect();
    }
    let mut short: String = text
        .chars()
        .take(VALUE_MAX.saturating_sub(3))
        .map(clean)
        .collect();
    short.push_str("...");
    short
}

/// The epoch that an object was stamped or bound with.
pub fn stamp(meta: &ObjectMeta) -> Option<Epoch> {
    annotation(meta, names::EPOCH).and_then(|text| text.parse().ok().map(Epoch))
}

/// A text of the metadata, empty when absent.
fn text(field: Option<&String>) -> &str {
    field.map_or("", String::as_str)
}

/// `metadata.creationTimestamp` in seconds since the Unix epoch; 0 when absent.
fn created_seconds(meta: &ObjectMeta) -> i64 {
    meta.creation_timestamp
        .as_ref()
        .map_or(0, |time| time.0.as_second())
}

/// Annotation of an object.
fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Label of an object.
fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

/// Labels and annotations under `muster.dev/`; an annotation wins over a label of the same key.
fn settings(meta: &ObjectMeta) -> BTreeMap<Arc<str>, Arc<str>> {
    [&meta.labels, &meta.annotations]
        .into_iter()
        .flatten()
        .flatten()
        .filter(|(key, _)| key.starts_with(names::PREFIX))
        .map(|(key, value)| (Arc::from(key.as_str()), Arc::from(value.as_str())))
        .collect()
}

/// Those of them that nobody reads.
fn unread(meta: &ObjectMeta) -> BTreeMap<Arc<str>, Arc<str>> {
    let mut found = settings(meta);
    found.retain(|key, _| !muster_core::settings::is_known(key));
    found
}

#[cfg(test)]
mod tests;
