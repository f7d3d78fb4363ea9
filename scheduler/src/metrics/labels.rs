//! What labels may say. All of it is counted from the start, at zero: a rate sees the first failure of its kind, and the
//! number of series tells that nothing grows.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::{Labels, Metrics};

/// What Filter answered.
const FILTERED: &[&str] = &[
    "Error",
    "Later",
    "Nowhere",
    "NotOffered",
    "Only",
    "WhereRoom",
];
/// What Preempt answered.
const PREEMPTED: &[&str] = &["allowed", "vetoed"];
/// What became of a Bind.
const BOUND: &[&str] = &[
    "bound",
    "busy",
    "dropped",
    "malformed",
    "not leading",
    "refused",
    "unheard",
];
/// Kinds of writes.
const WRITES: &[&str] = &[
    "Bind",
    "ChangeJob",
    "CreateRecord",
    "DeletePod",
    "DeleteRecord",
    "PutStatus",
    "ReleasePod",
    "StampPod",
    "StampRecord",
    "WakePod",
];
/// What became of a write.
const WRITTEN: &[&str] = &["Conflict", "Done", "Gone", "Refused", "Unknown"];
/// What agents say.
const MESSAGES: &[&str] = &[
    "bye",
    "delta",
    "health event",
    "heartbeat",
    "hello",
    "reauth",
    "snapshot",
];
/// Where a change of health comes from.
const SOURCES: &[&str] = &[
    "ecc",
    "fabric",
    "leak",
    "lost",
    "recovery action",
    "row remap",
    "sampler",
    "unknown",
    "xid",
];
/// Why an agent's stream was refused or closed.
const REFUSALS: &[&str] = &[
    "age",
    "another node",
    "connection",
    "expired",
    "identity",
    "invalid",
    "limit",
    "protocol",
    "replaced",
    "silent",
    "turn",
];
/// What a TokenReview came to.
const REVIEWS: &[&str] = &[
    "another account",
    "failed",
    "no node",
    "node",
    "refused",
    "told to come later",
];
/// What became of a Kubernetes Event.
const ANNOUNCED: &[&str] = &["dropped", "failed", "published", "repeated"];
/// Kinds that are watched.
const WATCHED: &[&str] = &[
    "Gang",
    "Node",
    "Pod",
    "PodGroup",
    "PriorityClass",
    "PyTorchJob",
];
/// Whether a prediction of devices was right.
pub(super) const PREDICTED: [&str; 2] = ["match", "differ"];

impl Metrics {
    /// Counts everything that is counted by labels from zero on, but for states of gangs: most of those never are.
    pub(super) fn list(&self) {
        let families: [(_, _, &[&str]); 10] = [
            (&self.filter_answers, "answer", FILTERED),
            (&self.preempts, "answer", PREEMPTED),
            (&self.binds, "outcome", BOUND),
            (&self.agent_messages, "kind", MESSAGES),
            (&self.health_events, "source", SOURCES),
            (&self.agent_refusals, "cause", REFUSALS),
            (&self.token_reviews, "outcome", REVIEWS),
            (&self.announcements, "outcome", ANNOUNCED),
            (&self.watch_errors, "kind", WATCHED),
            (&self.device_predictions, "outcome", &PREDICTED),
        ];
        for (family, key, values) in families {
            for value in values {
                drop(family.get_or_create(&vec![(key, *value)]));
            }
        }
        for kind in WRITES {
            for outcome in WRITTEN {
                let labels = vec![("kind", *kind), ("outcome", *outcome)];
                drop(self.writes.get_or_create(&labels));
            }
        }
        drop(self.agents.get_or_create(&vec![("state", "connected")]));
    }
}

/// Counts one more of what is listed.
pub(super) fn count(family: &Family<Labels, Counter>, labels: Labels) {
    debug_assert!(
        family.get(&labels).is_some(),
        "labels that are not listed: {labels:?}"
    );
    family.get_or_create(&labels).inc();
}
